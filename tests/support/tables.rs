//! Page tables in a flat guest.

use std::cell::Cell;

use vmscope::engine::{
    addr::{Pa, Va},
    arch::amd64::PageTableLevel,
};

use super::FlatDriver;

/// The size of a mapped page, by the level of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    Small,
    Large,
    Huge,
}

impl PageSize {
    fn level(self) -> PageTableLevel {
        match self {
            Self::Small => PageTableLevel::Pt,
            Self::Large => PageTableLevel::Pd,
            Self::Huge => PageTableLevel::Pdpt,
        }
    }
}

/// One address space. Tables take the guest's frames from `first` on; the tester keeps data out of them.
pub struct Tables<'a> {
    driver: &'a FlatDriver,
    next: &'a Cell<u64>,
    levels: u8,
    root: Pa,
}

/// Present, writable, user.
const FLAGS: u64 = 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl<'a> Tables<'a> {
    /// An empty address space of 4 or 5 levels; `next` is the next free frame for tables, shared by all spaces.
    pub fn new(driver: &'a FlatDriver, next: &'a Cell<u64>, levels: u8) -> Self {
        let root = Self::table(driver, next);
        Self { driver, next, levels, root }
    }

    /// An address space that is there.
    pub fn under(driver: &'a FlatDriver, next: &'a Cell<u64>, levels: u8, root: Pa) -> Self {
        Self { driver, next, levels, root }
    }

    fn table(driver: &FlatDriver, next: &Cell<u64>) -> Pa {
        let pa = next.get() * 0x1000;
        next.set(next.get() + 1);
        driver.poke(pa, &[0; 0x1000]);
        Pa(pa)
    }

    /// The translation root.
    pub fn root(&self) -> Pa {
        self.root
    }

    /// The address of the entry of a level; `None` where an entry above is missing or maps a page.
    pub fn entry(&self, va: Va, level: PageTableLevel) -> Option<Pa> {
        let mut table = self.root;
        for &here in PageTableLevel::walk(self.levels) {
            let at = table + here.index(va) * 8;
            if here == level {
                return Some(at);
            }
            let entry = self.driver.peek64(at.0);
            if entry & 1 == 0 || entry & 0x80 != 0 {
                return None;
            }
            table = Pa(entry & ADDRESS);
        }
        None
    }

    /// Maps a page, making the tables above it; answers the address of its entry.
    pub fn map(&self, va: Va, pa: Pa, size: PageSize) -> Pa {
        let mut table = self.root;
        for &here in PageTableLevel::walk(self.levels) {
            let at = table + here.index(va) * 8;
            if here == size.level() {
                let large = if here == PageTableLevel::Pt { 0 } else { 0x80 };
                self.driver.poke64(at.0, pa.0 | FLAGS | large);
                return at;
            }
            let entry = self.driver.peek64(at.0);
            table = if entry & 1 == 0 {
                let new = Self::table(self.driver, self.next);
                self.driver.poke64(at.0, new.0 | FLAGS);
                new
            } else {
                Pa(entry & ADDRESS)
            };
        }
        unreachable!("every size has a level")
    }

    /// Maps `count` small pages that follow each other.
    pub fn map_range(&self, va: Va, pa: Pa, count: u64) {
        for page in 0..count {
            self.map(va + page * 0x1000, pa + page * 0x1000, PageSize::Small);
        }
    }

    /// Clears the entry that maps a small page.
    pub fn unmap(&self, va: Va) {
        let at = self.entry(va, PageTableLevel::Pt).expect("the page has tables");
        self.driver.poke64(at.0, 0);
    }
}
