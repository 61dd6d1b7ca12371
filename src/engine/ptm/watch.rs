//! Monitored addresses.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    adapter::Mapping,
    event::{PageEntryUpdate, PageTableMonitorEvent},
    slab::{FIRST_ROOM, Id, NONE, Slab, Slot},
};
use crate::engine::addr::{AddressContext, Pa, View};

/// What is known of a monitored address, for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchState<Tag> {
    /// The address.
    pub ctx: AddressContext,
    /// The view.
    pub view: View,
    /// The tag it was first monitored with.
    pub tag: Tag,
    /// How many times it has to be unmonitored.
    pub references: u32,
    /// What it maps to; `None` while it is not mapped.
    pub pa: Option<Pa>,
    /// Size of the page that maps it in bytes; 0 while it is not mapped.
    pub page_bytes: u64,
    /// Page-ins and page-outs since it is monitored.
    pub changes: u64,
}

/// No physical address: they have at most 52 bits.
const UNMAPPED: Pa = Pa(u64::MAX);

pub(super) struct Watch<Tag> {
    pub(super) ctx: AddressContext,
    pub(super) view: View,
    pub(super) references: u32,
    tag: Option<Tag>,
    /// What it maps to, or [`UNMAPPED`].
    pa: Pa,
    shift: u8,
    changes: u32,
    /// The node that the address is attached to, and its neighbours there.
    pub(super) node: Id,
    pub(super) next: Id,
    prev: Id,
}

impl<Tag> Default for Watch<Tag> {
    fn default() -> Self {
        Self {
            ctx: AddressContext::default(),
            view: View(0),
            references: 0,
            tag: None,
            pa: UNMAPPED,
            shift: 0,
            changes: 0,
            node: NONE,
            next: NONE,
            prev: NONE,
        }
    }
}

impl<Tag> Slot for Watch<Tag> {
    #[inline]
    fn is_live(&self) -> bool {
        self.references > 0
    }
}

impl<Tag: Copy> Watch<Tag> {
    /// What it maps to.
    #[inline]
    fn pa(&self) -> Option<Pa> {
        (self.pa != UNMAPPED).then_some(self.pa)
    }

    pub(super) fn state(&self) -> Option<WatchState<Tag>> {
        Some(WatchState {
            ctx: self.ctx,
            view: self.view,
            tag: self.tag?,
            references: self.references,
            pa: self.pa(),
            page_bytes: if self.pa == UNMAPPED { 0 } else { 1 << self.shift },
            changes: self.changes.into(),
        })
    }
}

/// All monitored addresses.
pub(super) struct Watches<Tag> {
    slab: Slab<Watch<Tag>>,
    by_address: HashTable<Id>,
    hasher: DefaultHashBuilder,
    paged_in: usize,
}

impl<Tag> Default for Watches<Tag> {
    fn default() -> Self {
        Self {
            slab: Slab::default(),
            by_address: HashTable::with_capacity(FIRST_ROOM),
            hasher: DefaultHashBuilder::default(),
            paged_in: 0,
        }
    }
}

#[inline]
fn key(ctx: AddressContext, view: View) -> (u64, u64, u16) {
    (ctx.va.0, ctx.root.0, view.0)
}

impl<Tag: Copy> Watches<Tag> {
    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn paged_in(&self) -> usize {
        self.paged_in
    }

    #[inline]
    pub(super) fn find(&self, ctx: AddressContext, view: View) -> Option<Id> {
        let same = |id: &Id| {
            let watch = self.slab.at(*id);
            watch.ctx == ctx && watch.view == view
        };
        self.by_address.find(self.hasher.hash_one(key(ctx, view)), same).copied()
    }

    pub(super) fn at(&self, id: Id) -> &Watch<Tag> {
        self.slab.at(id)
    }

    pub(super) fn at_mut(&mut self, id: Id) -> &mut Watch<Tag> {
        self.slab.at_mut(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &Watch<Tag>)> {
        self.slab.iter()
    }

    /// A new address, not attached to a node yet, with what it maps to at the start.
    pub(super) fn insert(&mut self, ctx: AddressContext, view: View, tag: Tag, maps: Option<Mapping>) -> Id {
        let (pa, shift) = maps.unwrap_or((UNMAPPED, 0));
        let watch = Watch { ctx, view, references: 1, tag: Some(tag), pa, shift, ..Watch::default() };
        let id = self.slab.insert(watch);
        let Self { slab, by_address, hasher, .. } = self;
        by_address.insert_unique(hasher.hash_one(key(ctx, view)), id, |id| {
            let watch = slab.at(*id);
            hasher.hash_one(key(watch.ctx, watch.view))
        });
        self.paged_in += usize::from(pa != UNMAPPED);
        id
    }

    /// Forgets an address that is attached to no node.
    pub(super) fn remove(&mut self, id: Id) {
        if let Some(watch) = self.slab.remove(id) {
            let hash = self.hasher.hash_one(key(watch.ctx, watch.view));
            if let Ok(place) = self.by_address.find_entry(hash, |other| *other == id) {
                place.remove();
            }
            self.paged_in -= usize::from(watch.pa != UNMAPPED);
        }
    }

    pub(super) fn clear(&mut self) {
        self.slab = Slab::default();
        self.by_address.clear();
        self.paged_in = 0;
    }

    /// Puts an address at the front of a list.
    #[inline]
    pub(super) fn attach(&mut self, id: Id, node: Id, first: &mut Id) {
        let next = std::mem::replace(first, id);
        if next != NONE {
            self.slab.at_mut(next).prev = id;
        }
        let watch = self.slab.at_mut(id);
        (watch.node, watch.next, watch.prev) = (node, next, NONE);
    }

    /// Takes an address out of the list that begins at `first`.
    #[inline]
    pub(super) fn detach(&mut self, id: Id, first: &mut Id) {
        let &Watch { next, prev, .. } = self.slab.at(id);
        if next != NONE {
            self.slab.at_mut(next).prev = prev;
        }
        if prev != NONE {
            self.slab.at_mut(prev).next = next;
        } else {
            *first = next;
        }
    }

    /// The addresses of a list, lowest first.
    pub(super) fn list(&self, first: Id) -> Vec<Id> {
        let next = |&id: &Id| Some(self.slab.at(id).next).filter(|&id| id != NONE);
        let mut all: Vec<Id> = std::iter::successors(Some(first).filter(|&id| id != NONE), next).collect();
        if all.len() > 1 {
            all.sort_unstable_by_key(|&id| self.slab.at(id).ctx.va);
        }
        all
    }

    /// Notes what an address maps to now, and reports the difference.
    pub(super) fn report(&mut self, id: Id, maps: Option<Mapping>, events: &mut Vec<PageTableMonitorEvent>) {
        let watch = self.slab.at_mut(id);
        let old = watch.pa();
        (watch.pa, watch.shift) = maps.unwrap_or((UNMAPPED, 0));
        let new = watch.pa();
        if old == new {
            return;
        }
        let (view, ctx) = (watch.view, watch.ctx);
        let update = |pa| PageEntryUpdate { view, ctx, pa };
        watch.changes = watch.changes.saturating_add(u32::from(old.is_some()) + u32::from(new.is_some()));
        self.paged_in += usize::from(new.is_some());
        self.paged_in -= usize::from(old.is_some());
        events.extend(old.map(|pa| PageTableMonitorEvent::PageOut(update(pa))));
        events.extend(new.map(|pa| PageTableMonitorEvent::PageIn(update(pa))));
    }
}
