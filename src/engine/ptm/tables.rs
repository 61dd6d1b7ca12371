//! The physical side of the books: which page-table pages are guarded, and which entries of them are monitored.

use super::{
    guard::TableGuard,
    hash::FastMap,
    slab::{Id, NONE, Slab},
};
use crate::engine::{
    addr::{Gfn, Pa, View},
    driver::VmiDriver,
    error::VmiError,
    session::VmiCore,
};

/// A page of page-table entries in one view.
pub(super) struct Table<Found> {
    pub(super) gfn: Gfn,
    pub(super) view: View,
    found: Option<Found>,
    /// Nodes of the walk tree whose entry lies here; several may share an entry.
    nodes: u32,
    /// Whether it is in [`Tables::idle`].
    idle: bool,
    /// One bit for each entry that is monitored.
    used: [u64; 8],
    /// For each set bit, in order, the first node of the entry's chain.
    heads: Vec<Id>,
}

impl<Found> Default for Table<Found> {
    fn default() -> Self {
        Self { gfn: Gfn(0), view: View(0), found: None, nodes: 0, idle: false, used: [0; 8], heads: Vec::new() }
    }
}

impl<Found> Table<Found> {
    /// Where the head of an entry's chain is or would be, and whether it is there.
    #[inline]
    fn position(&self, index: u16) -> (usize, bool) {
        let (word, bit) = (usize::from(index >> 6), 1u64 << (index & 63));
        let below: u32 = self.used.iter().take(word).map(|bits| bits.count_ones()).sum();
        let bits = self.used.get(word).copied().unwrap_or(0);
        ((below + (bits & (bit - 1)).count_ones()) as usize, bits & bit != 0)
    }

    /// The first node of an entry's chain.
    #[inline]
    pub(super) fn head(&self, index: u16) -> Id {
        match self.position(index) {
            (at, true) => self.heads.get(at).copied().unwrap_or(NONE),
            _ => NONE,
        }
    }

    /// Sets the first node of an entry's chain; `NONE` where it has none any more.
    pub(super) fn set_head(&mut self, index: u16, head: Id) {
        let (at, there) = self.position(index);
        let Some(word) = self.used.get_mut(usize::from(index >> 6)) else { return };
        let bit = 1u64 << (index & 63);
        match (there, head) {
            (true, NONE) => {
                *word &= !bit;
                if at < self.heads.len() {
                    self.heads.remove(at);
                }
            }
            (true, _) => {
                if let Some(slot) = self.heads.get_mut(at) {
                    *slot = head;
                }
            }
            (false, NONE) => {}
            (false, _) => {
                *word |= bit;
                self.heads.insert(at.min(self.heads.len()), head);
            }
        }
    }

    /// The monitored entries: number and first node.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u16, Id)> + '_ {
        let indices = self.used.iter().enumerate().flat_map(|(word, &bits)| {
            let mut bits = bits;
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros())?;
                bits &= bits - 1;
                Some((word as u32 * 64 + bit) as u16)
            })
        });
        indices.zip(self.heads.iter().copied())
    }

    /// The monitored entries of a range of numbers, its ends included.
    pub(super) fn used_between(&self, first: u16, last: u16) -> impl Iterator<Item = u16> + '_ {
        (first..=last)
            .filter(|&index| self.used.get(usize::from(index >> 6)).is_some_and(|bits| bits >> (index & 63) & 1 != 0))
    }

    /// The physical address of an entry.
    #[inline]
    pub(super) fn entry_pa(&self, index: u16) -> Pa {
        Pa((self.gfn.0 << 12) | (u64::from(index) * 8))
    }
}

/// A page-table page in a view as one number; frames have at most 40 bits.
#[inline]
fn table_key(gfn: Gfn, view: View) -> u64 {
    (gfn.0 << 16) | u64::from(view.0)
}

/// All guarded pages.
///
/// A page is guarded from the moment before its first entry is read until the end of the operation in which its last
/// one left. Where taking the guard back fails, the page stays in the books and it is tried again with every later
/// operation.
pub(super) struct Tables<Found> {
    slab: Slab<Table<Found>>,
    by_frame: FastMap<u64, Id>,
    /// Tables that may have no entry left.
    idle: Vec<Id>,
    entries: usize,
}

impl<Found> Default for Tables<Found> {
    fn default() -> Self {
        Self { slab: Slab::default(), by_frame: FastMap::default(), idle: Vec::new(), entries: 0 }
    }
}

impl<Found: Copy> Tables<Found> {
    /// How many pages are guarded.
    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    /// How many entries are monitored.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    #[inline]
    pub(super) fn at(&self, id: Id) -> &Table<Found> {
        self.slab.at(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Table<Found>> {
        self.slab.iter().map(|(_, table)| table)
    }

    /// The table that a physical address lies in.
    pub(super) fn find(&self, pa: Pa, view: View) -> Option<&Table<Found>> {
        self.by_frame.get(&table_key(Gfn(pa.0 >> 12), view)).map(|&id| self.slab.at(id))
    }

    /// Guards a page. If nothing is linked into it, [`Tables::settle`] gives it up again.
    pub(super) fn acquire<Driver, Guard>(&mut self, vmi: &VmiCore<Driver>, gfn: Gfn, view: View) -> Result<Id, VmiError>
    where
        Driver: VmiDriver,
        Guard: TableGuard<Driver, Found = Found>,
    {
        let key = table_key(gfn, view);
        if let Some(&id) = self.by_frame.get(&key) {
            return Ok(id);
        }
        let found = Some(Guard::protect(vmi, gfn, view)?);
        let id = self.slab.insert(Table { gfn, view, found, idle: true, ..Table::default() });
        self.by_frame.insert(key, id);
        self.idle.push(id);
        Ok(id)
    }

    /// Puts a node at the front of an entry's chain; answers the node that was there before.
    pub(super) fn link(&mut self, id: Id, index: u16, node: Id) -> Id {
        let table = self.slab.at_mut(id);
        table.nodes += 1;
        let before = table.head(index);
        table.set_head(index, node);
        self.entries += usize::from(before == NONE);
        before
    }

    /// Takes a node out of an entry's chain; `new_head` is the first node that is left, if `was_head`.
    pub(super) fn unlink(&mut self, id: Id, index: u16, was_head: bool, new_head: Id) {
        let table = self.slab.at_mut(id);
        table.nodes = table.nodes.saturating_sub(1);
        if was_head {
            table.set_head(index, new_head);
            self.entries -= usize::from(new_head == NONE);
        }
        if table.nodes == 0 && !table.idle {
            table.idle = true;
            self.idle.push(id);
        }
    }

    /// Forgets all entries of all tables; [`Tables::settle`] gives the tables up.
    pub(super) fn clear(&mut self) {
        let ids: Vec<Id> = self.slab.iter().map(|(id, _)| id).collect();
        for &id in &ids {
            let table = self.slab.at_mut(id);
            table.nodes = 0;
            table.used = [0; 8];
            table.heads = Vec::new();
            table.idle = true;
        }
        self.idle = ids;
        self.entries = 0;
    }

    /// Gives up the pages that have no entry left. All are tried; the first error is answered.
    pub(super) fn settle<Driver, Guard>(&mut self, vmi: &VmiCore<Driver>) -> Result<(), VmiError>
    where
        Driver: VmiDriver,
        Guard: TableGuard<Driver, Found = Found>,
    {
        let mut result = Ok(());
        let mut at = 0;
        while let Some(&id) = self.idle.get(at) {
            let table = self.slab.at_mut(id);
            if table.nodes == 0 {
                if let Some(found) = table.found {
                    if let Err(error) = Guard::restore(vmi, table.gfn, table.view, found) {
                        if result.is_ok() {
                            result = Err(error);
                        }
                        at += 1;
                        continue;
                    }
                }
                let key = table_key(table.gfn, table.view);
                self.by_frame.remove(&key);
                self.slab.remove(id);
            } else {
                table.idle = false;
            }
            self.idle.swap_remove(at);
        }
        result
    }
}
