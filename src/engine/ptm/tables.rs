//! The physical side of the books: which page-table pages are guarded, and which entries of them are monitored.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    entries::Entries,
    guard::TableGuard,
    slab::{FIRST_ROOM, Id, NONE, Slab, Slot},
};
use crate::engine::{
    addr::{Gfn, Pa, View},
    driver::VmiDriver,
    error::VmiError,
    session::VmiCore,
};

/// The physical address of an entry of a table.
#[inline]
pub(super) fn entry_pa(table: Gfn, index: u16) -> Pa {
    Pa((table.0 << 12) + u64::from(index) * 8)
}

/// A page of page-table entries in one view.
pub(super) struct Table<Found> {
    pub(super) gfn: Gfn,
    pub(super) view: View,
    /// What the guard has to take back.
    found: Option<Found>,
    /// Whether it is in [`Tables::idle`].
    idle: bool,
    /// Nodes of the walk tree whose entry lies here; several may share an entry.
    nodes: u32,
    pub(super) entries: Entries,
}

impl<Found> Default for Table<Found> {
    fn default() -> Self {
        Self { gfn: Gfn(0), view: View(0), found: None, idle: false, nodes: 0, entries: Entries::None }
    }
}

impl<Found> Slot for Table<Found> {
    fn is_live(&self) -> bool {
        self.found.is_some()
    }
}

impl<Found> Table<Found> {
    /// The physical address of an entry.
    #[inline]
    pub(super) fn entry_pa(&self, index: u16) -> Pa {
        entry_pa(self.gfn, index)
    }
}

/// All guarded pages.
///
/// A page is guarded from the moment before its first entry is read until the end of the operation in which its last
/// one left. Where taking the guard back fails, the page stays in the books and it is tried again with every later
/// operation.
pub(super) struct Tables<Found> {
    slab: Slab<Table<Found>>,
    by_frame: HashTable<Id>,
    hasher: DefaultHashBuilder,
    /// Tables that may have no entry left.
    idle: Vec<Id>,
    entries: usize,
}

impl<Found> Default for Tables<Found> {
    fn default() -> Self {
        Self {
            slab: Slab::default(),
            by_frame: HashTable::with_capacity(FIRST_ROOM),
            hasher: DefaultHashBuilder::default(),
            idle: Vec::with_capacity(FIRST_ROOM),
            entries: 0,
        }
    }
}

/// A page-table page in a view as one number; frames have at most 40 bits.
#[inline]
fn key(gfn: Gfn, view: View) -> u64 {
    (gfn.0 << 16) | u64::from(view.0)
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

    /// The table in a frame; `NONE` where the frame is not guarded in this view.
    #[inline]
    pub(super) fn find(&self, gfn: Gfn, view: View) -> Id {
        self.find_hashed(self.hasher.hash_one(key(gfn, view)), gfn, view)
    }

    #[inline]
    fn find_hashed(&self, hash: u64, gfn: Gfn, view: View) -> Id {
        let same = |id: &Id| {
            let table = self.slab.at(*id);
            table.gfn == gfn && table.view == view
        };
        self.by_frame.find(hash, same).copied().unwrap_or(NONE)
    }

    /// Guards a page. If nothing is to be linked into it after all: [`Tables::give_up_unused`].
    pub(super) fn acquire<Driver, Guard>(&mut self, vmi: &VmiCore<Driver>, gfn: Gfn, view: View) -> Result<Id, VmiError>
    where
        Driver: VmiDriver,
        Guard: TableGuard<Driver, Found = Found>,
    {
        let hash = self.hasher.hash_one(key(gfn, view));
        let id = self.find_hashed(hash, gfn, view);
        if id != NONE {
            return Ok(id);
        }
        let found = Some(Guard::protect(vmi, gfn, view)?);
        let id = self.slab.insert(Table { gfn, view, found, ..Table::default() });
        let Self { slab, by_frame, hasher, .. } = self;
        by_frame.insert_unique(hash, id, |id| {
            let table = slab.at(*id);
            hasher.hash_one(key(table.gfn, table.view))
        });
        Ok(id)
    }

    /// Has [`Tables::settle`] give a page up, if it has no entries.
    pub(super) fn give_up_unused(&mut self, id: Id) {
        let table = self.slab.at_mut(id);
        if table.nodes == 0 && !table.idle {
            table.idle = true;
            self.idle.push(id);
        }
    }

    /// Puts a node at the front of an entry's chain; answers the node that was there before.
    pub(super) fn link(&mut self, id: Id, index: u16, node: Id) -> Id {
        let table = self.slab.at_mut(id);
        table.nodes += 1;
        let before = table.entries.head(index);
        table.entries.set_head(index, node);
        self.entries += usize::from(before == NONE);
        before
    }

    /// Takes a node out of an entry's chain; `new_head` is the first node that is left, if it `was_head`.
    pub(super) fn unlink(&mut self, id: Id, index: u16, was_head: bool, new_head: Id) {
        let table = self.slab.at_mut(id);
        table.nodes = table.nodes.saturating_sub(1);
        if was_head {
            table.entries.set_head(index, new_head);
            self.entries -= usize::from(new_head == NONE);
        }
        self.give_up_unused(id);
    }

    /// Forgets all entries of all tables; [`Tables::settle`] gives the tables up.
    pub(super) fn clear(&mut self) {
        let ids: Vec<Id> = self.slab.iter().map(|(id, _)| id).collect();
        for &id in &ids {
            let table = self.slab.at_mut(id);
            table.nodes = 0;
            table.entries = Entries::None;
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
            if table.nodes > 0 {
                table.idle = false;
            } else if let Some(Err(error)) = table.found.map(|found| Guard::restore(vmi, table.gfn, table.view, found))
            {
                result = result.and(Err(error));
                at += 1;
                continue;
            } else {
                let hash = self.hasher.hash_one(key(table.gfn, table.view));
                if let Ok(place) = self.by_frame.find_entry(hash, |other| *other == id) {
                    place.remove();
                }
                self.slab.remove(id);
            }
            self.idle.swap_remove(at);
        }
        result
    }
}
