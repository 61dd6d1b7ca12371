//! A driver with its caches. What it reads and writes is in `access`.

use std::cell::Cell;

use super::{
    budget::Budget,
    cache::{PageCache, TranslationCache},
};
use crate::engine::{
    addr::{AddressContext, Gfn},
    arch::Architecture,
    driver::{VmiDriver, VmiInfo},
    error::VmiError,
};

/// A driver, a cache of translations and (for drivers whose reads are expensive) a cache of pages.
///
/// Both caches hold what was true when it was read; whoever lets the guest run flushes them
/// ([`VmiCore::flush_v2p_cache`], [`VmiCore::flush_gfn_cache`]: one addition each).
pub struct VmiCore<Driver: VmiDriver> {
    pub(super) driver: Driver,
    pub(super) translations: TranslationCache,
    pub(super) pages: PageCache,
    levels: Cell<u8>,
    string_limit: Cell<Option<usize>>,
    pub(super) next_gfn: Cell<Gfn>,
    pub(super) use_translations: Cell<bool>,
    pub(super) budget: Budget,
}

impl<Driver: VmiDriver> VmiCore<Driver> {
    /// The limit of [`VmiCore::read_string`] and its kin unless another is set: bytes, or UTF-16 units.
    pub const DEFAULT_STRING_LIMIT: usize = 64 * 1024;

    /// A core on a driver, with cold caches and 4-level paging until [`VmiCore::set_paging_levels`] says otherwise.
    ///
    /// # Errors
    /// When the driver cannot tell what machine it has.
    pub fn new(driver: Driver) -> Result<Self, VmiError> {
        let info = driver.info()?;
        Ok(Self {
            driver,
            translations: TranslationCache::new(),
            pages: PageCache::new(),
            levels: Cell::new(4),
            string_limit: Cell::new(Some(Self::DEFAULT_STRING_LIMIT)),
            next_gfn: Cell::new(info.max_gfn + 1),
            use_translations: Cell::new(true),
            budget: Budget::new(),
        })
    }

    /// The driver.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    /// The machine.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn info(&self) -> Result<VmiInfo, VmiError> {
        self.driver.info()
    }

    /// Levels of the guest's page tables: 4 or 5.
    #[inline]
    pub fn paging_levels(&self) -> u8 {
        self.levels.get()
    }

    /// Tells how many levels the guest's page tables have (CR4.LA57); anything but 5 is 4.
    pub fn set_paging_levels(&self, levels: u8) {
        self.levels.set(if levels == 5 { 5 } else { 4 });
        self.flush_v2p_cache();
    }

    /// Forgets all copies of pages.
    #[inline]
    pub fn flush_gfn_cache(&self) {
        self.pages.flush();
    }

    /// Forgets the copy of one page.
    pub fn flush_gfn_cache_entry(&self, gfn: Gfn) {
        self.pages.forget(gfn);
    }

    /// Forgets all translations.
    #[inline]
    pub fn flush_v2p_cache(&self) {
        self.translations.flush();
    }

    /// Forgets the translation of one page.
    pub fn flush_v2p_cache_entry(&self, ctx: impl Into<AddressContext>) {
        let ctx = ctx.into();
        self.translations.forget(ctx.va.0 >> Driver::Architecture::PAGE_SHIFT, ctx.root);
    }

    /// Whether translations are kept between flushes; for measurements, and for tables that somebody else changes.
    pub fn set_v2p_cache_enabled(&self, enabled: bool) {
        self.use_translations.set(enabled);
        self.flush_v2p_cache();
    }

    /// How long strings may get where the caller gives no limit of its own: a limit truncates, `None` lifts it.
    pub fn read_string_length_limit(&self) -> Option<usize> {
        self.string_limit.get()
    }

    /// Sets [`VmiCore::read_string_length_limit`].
    pub fn set_read_string_length_limit(&self, limit: Option<usize>) {
        self.string_limit.set(limit);
    }
}
