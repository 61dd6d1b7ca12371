//! The two caches of a session: translations by page, and copies of pages.
//!
//! Both are direct-mapped arrays whose entries carry the generation that they were made in: flushing is one addition,
//! because a handler flushes on every event. Faults are not kept: what is missing now may be there at the next read.

use std::cell::{Cell, RefCell};

use crate::engine::addr::{Gfn, Pa};

#[derive(Clone, Copy, Default)]
struct Translation {
    page: u64,
    root: u64,
    frame: u64,
    generation: u64,
}

/// Translations: (virtual page, root) → physical page.
///
/// After a flush only the first few slots are used, and more as they fill up: the few pages that the handler of one
/// event reads then stay in the processor's nearest cache, however large the whole is.
pub(super) struct TranslationCache {
    slots: Box<[Cell<Translation>]>,
    generation: Cell<u64>,
    /// The slots in use are those up to this one; one less than a power of two.
    last: Cell<usize>,
    /// Entries made since the last flush.
    made: Cell<usize>,
}

impl TranslationCache {
    /// Slots; a power of two. 1 MiB of address space that is touched only as far as it is used.
    const SLOTS: usize = 1 << 15;
    /// Slots in use after a flush; a power of two.
    const FIRST_SLOTS: usize = 1 << 8;

    pub(super) fn new() -> Self {
        Self {
            slots: vec![Cell::default(); Self::SLOTS].into_boxed_slice(),
            generation: Cell::new(1),
            last: Cell::new(Self::FIRST_SLOTS - 1),
            made: Cell::new(0),
        }
    }

    #[inline]
    fn slot(&self, page: u64, root: Pa) -> Option<&Cell<Translation>> {
        let mixed = page ^ (root.0 >> 12).wrapping_mul(0x9e37_79b9);
        self.slots.get(mixed as usize & self.last.get())
    }

    /// The physical page of a virtual page number.
    #[inline]
    pub(super) fn get(&self, page: u64, root: Pa) -> Option<u64> {
        let entry = self.slot(page, root)?.get();
        (entry.page == page && entry.root == root.0 && entry.generation == self.generation.get()).then_some(entry.frame)
    }

    #[inline]
    pub(super) fn put(&self, page: u64, root: Pa, frame: u64) {
        let made = self.made.get();
        self.made.set(made.wrapping_add(1));
        if made == self.last.get() {
            // Entries that now belong elsewhere are as good as forgotten: the next flush outdates them.
            self.last.set((made * 8 + 7).min(Self::SLOTS - 1));
        }
        if let Some(slot) = self.slot(page, root) {
            slot.set(Translation { page, root: root.0, frame, generation: self.generation.get() });
        }
    }

    pub(super) fn forget(&self, page: u64, root: Pa) {
        let slot = self.slot(page, root).filter(|slot| slot.get().page == page && slot.get().root == root.0);
        if let Some(slot) = slot {
            slot.set(Translation::default());
        }
    }

    #[inline]
    pub(super) fn flush(&self) {
        self.generation.set(self.generation.get() + 1);
        self.last.set(Self::FIRST_SLOTS - 1);
        self.made.set(0);
    }
}

struct Page {
    gfn: Gfn,
    generation: u64,
    bytes: Option<Box<[u8; 4096]>>,
}

/// Copies of pages, for drivers whose reads are expensive.
pub(super) struct PageCache {
    slots: RefCell<Vec<Page>>,
    generation: Cell<u64>,
}

impl PageCache {
    /// Entries; a power of two. At most 8 MiB, allocated page by page on first use.
    const SLOTS: usize = 1 << 11;

    pub(super) fn new() -> Self {
        Self { slots: RefCell::new(Vec::new()), generation: Cell::new(1) }
    }

    /// Copies bytes of a page out of the cache, after `fill` put the page there if it was missing.
    pub(super) fn read<E>(
        &self,
        gfn: Gfn,
        offset: usize,
        buffer: &mut [u8],
        fill: impl FnOnce(&mut [u8; 4096]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut slots = self.slots.borrow_mut();
        if slots.is_empty() {
            slots.resize_with(Self::SLOTS, || Page { gfn: Gfn(0), generation: 0, bytes: None });
        }
        let Some(page) = slots.get_mut(gfn.0 as usize & (Self::SLOTS - 1)) else { return Ok(()) };
        let bytes = page.bytes.get_or_insert_with(|| Box::new([0; 4096]));
        if page.gfn != gfn || page.generation != self.generation.get() {
            page.generation = 0;
            fill(bytes)?;
            page.gfn = gfn;
            page.generation = self.generation.get();
        }
        if let Some(source) = bytes.get(offset..offset.saturating_add(buffer.len())) {
            buffer.copy_from_slice(source);
        }
        Ok(())
    }

    pub(super) fn forget(&self, gfn: Gfn) {
        let mut slots = self.slots.borrow_mut();
        let page = slots.get_mut(gfn.0 as usize & (Self::SLOTS - 1)).filter(|page| page.gfn == gfn);
        if let Some(page) = page {
            page.generation = 0;
        }
    }

    #[inline]
    pub(super) fn flush(&self) {
        self.generation.set(self.generation.get() + 1);
    }
}
