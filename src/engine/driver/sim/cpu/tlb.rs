//! A cache of translations that is always coherent: every store to a frame that was ever walked as a page table, and
//! everything that happens to the machine from outside, empties it. Faster than walking, and never seen by the guest.

use super::mmu::Need;
use crate::engine::addr::View;

#[derive(Clone, Copy, Debug)]
struct Entry {
    page: u64,
    root: u64,
    view: View,
    user: bool,
    need: Need,
    epoch: u64,
    /// The frame that the access ends at, behind page tables and view.
    frame: u64,
}

/// The cache.
pub(in crate::engine::driver::sim) struct Tlb {
    entries: Vec<Entry>,
    epoch: u64,
    /// One bit per frame of RAM: whether it was ever walked as a table.
    tables: Vec<u64>,
}

impl Tlb {
    /// Entries; a power of two.
    const SLOTS: usize = 256;

    pub(in crate::engine::driver::sim) fn new(frames: u64) -> Self {
        let empty = Entry { page: 0, root: 0, view: View(0), user: false, need: Need::Read, epoch: 0, frame: 0 };
        Self { entries: vec![empty; Self::SLOTS], epoch: 1, tables: vec![0; (frames as usize).div_ceil(64)] }
    }

    /// Forgets everything.
    #[inline]
    pub(in crate::engine::driver::sim) fn flush(&mut self) {
        self.epoch += 1;
    }

    #[inline]
    fn index(page: u64, need: Need) -> usize {
        (page as usize).wrapping_mul(3).wrapping_add(need as usize) & (Self::SLOTS - 1)
    }

    /// The frame of an access that was allowed before.
    #[inline]
    pub(super) fn get(&self, page: u64, root: u64, view: View, user: bool, need: Need) -> Option<u64> {
        let entry = self.entries.get(Self::index(page, need))?;
        let same = entry.epoch == self.epoch
            && entry.page == page
            && entry.root == root
            && entry.view == view
            && entry.user == user
            && entry.need == need;
        same.then_some(entry.frame)
    }

    #[inline]
    pub(super) fn put(&mut self, page: u64, root: u64, view: View, (user, need): (bool, Need), frame: u64) {
        let epoch = self.epoch;
        if let Some(entry) = self.entries.get_mut(Self::index(page, need)) {
            *entry = Entry { page, root, view, user, need, epoch, frame };
        }
    }

    /// A frame is used as a table.
    #[inline]
    pub(super) fn walked(&mut self, frame: u64) {
        if let Some(word) = self.tables.get_mut((frame >> 6) as usize) {
            *word |= 1 << (frame & 63);
        }
    }

    /// A frame is written to.
    #[inline]
    pub(super) fn written(&mut self, frame: u64) {
        // Frames above RAM have no bit: a store to one may be a store to a table.
        if self.tables.get((frame >> 6) as usize).is_none_or(|word| word >> (frame & 63) & 1 != 0) {
            self.flush();
        }
    }
}
