//! Finding out what changed: the entries that were marked, or all of them.

use super::{
    ArchAdapter, PageTableMonitor, PageTableMonitorEvent,
    adapter::EntryMeaning,
    dirty::Mark,
    guard::TableGuard,
    slab::Id,
    tree::{Tree, read_entry},
};
use crate::engine::{
    addr::{Gfn, Pa, VcpuId, View},
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
};

/// No store of the architecture is wider, in bytes.
const WIDEST_STORE: u64 = 64;

/// The places in its table, first and last, that a store from an address on may reach.
#[inline]
fn reach(from: Pa) -> (u16, u16) {
    let offset = from.0 & 0xfff;
    ((offset >> 3) as u16, ((offset + WIDEST_STORE - 1).min(0xfff) >> 3) as u16)
}

/// The monitored entries that a store may reach: physical address and first node.
fn reached<Found: Copy>(tree: &Tree<Found>, (from, view): Mark) -> impl Iterator<Item = (Pa, Id)> + '_ {
    let table = tree.tables.at(tree.tables.find(Gfn(from.0 >> 12), view));
    let (first, last) = reach(from);
    table.entries.between(first, last).map(|(index, head)| (table.entry_pa(index), head))
}

impl<Driver, Tag, Guard> PageTableMonitor<Driver, Tag, Guard>
where
    Driver: VmiRead,
    Driver::Architecture: ArchAdapter,
    Tag: Copy,
    Guard: TableGuard<Driver>,
{
    /// Notes that a vCPU is about to write at `entry_pa` (any byte of an entry); answers whether a monitored entry
    /// may change. The mark counts for [`process_dirty_entries`](Self::process_dirty_entries) of the same vCPU.
    ///
    /// How wide the store is is not known, and so it counts for the monitored entries behind it, too, as far as the
    /// widest store would reach.
    pub fn mark_dirty_entry(&mut self, entry_pa: Pa, view: View, vcpu: VcpuId) -> bool {
        let monitored = reached(&self.tree, (entry_pa, view)).next().is_some();
        if monitored {
            self.dirty.mark(vcpu, (entry_pa, view));
        } else {
            self.dirty.pass(vcpu, (entry_pa, view));
        }
        monitored
    }

    /// Entries came to be monitored: stores to them may be under way that were none of ours when they were marked.
    pub(super) fn catch_passing(&mut self) {
        let Self { tree, dirty, .. } = self;
        dirty.mark_passing(|mark| reached(tree, mark).next().is_some());
    }

    /// Makes sure that an entry which is seen to have changed is looked at.
    pub(super) fn note_stale(&mut self, id: Id) {
        self.tree.at_mut(id).stale = true;
        let (pa, view) = (self.tree.entry_pa(id), self.tree.view(id));
        let index = self.tree.at(id).index;
        self.dirty.note((pa, view), |(from, of)| {
            let (first, last) = reach(from);
            of == view && from.0 >> 12 == pa.0 >> 12 && (first..=last).contains(&index)
        });
    }

    /// Looks at the entries that a vCPU marked, top level first, and reports what they changed. To be called when the
    /// vCPU has made its write.
    ///
    /// # Errors
    /// The first error of the driver's. Nothing is lost by it: the other entries were processed, what they changed is
    /// answered by the next call, which tries the failed ones again.
    pub fn process_dirty_entries(
        &mut self,
        vmi: &VmiCore<Driver>,
        vcpu: VcpuId,
    ) -> Result<Vec<PageTableMonitorEvent>, VmiError> {
        let mut marks = std::mem::take(&mut self.scratch_marks);
        let mut nodes = std::mem::take(&mut self.scratch_nodes);
        self.dirty.take(vcpu, &mut marks);
        // In order, so that entries within the reach of several marks are looked at once.
        marks.sort_unstable();
        let mut done = (Pa(0), View(0));
        for (from, view) in marks.drain(..) {
            for (pa, head) in reached(&self.tree, (from, view)) {
                if view != done.1 || pa >= done.0 {
                    self.push_changed(vmi, pa, head, &mut nodes);
                    done = (pa + 8, view);
                }
            }
        }
        self.scratch_marks = marks;
        self.process(vmi, nodes)
    }

    /// Reads all monitored entries and reports what changed, marked or not: how changes are found on drivers without
    /// write events. Every table is visited once; on drivers whose reads are expensive it is read once as a page.
    ///
    /// # Errors
    /// As [`process_dirty_entries`](Self::process_dirty_entries).
    pub fn poll(&mut self, vmi: &VmiCore<Driver>) -> Result<Vec<PageTableMonitorEvent>, VmiError> {
        vmi.flush_gfn_cache();
        self.dirty.clear_due();
        let mut nodes = std::mem::take(&mut self.scratch_nodes);
        for table in self.tree.tables.iter() {
            for (index, head) in table.entries.between(0, u16::MAX) {
                self.push_changed(vmi, table.entry_pa(index), head, &mut nodes);
            }
        }
        self.process(vmi, nodes)
    }

    /// Adds the nodes of an entry that have to be looked at; all of them when it cannot be read.
    #[inline]
    fn push_changed(&self, vmi: &VmiCore<Driver>, pa: Pa, head: Id, nodes: &mut Vec<(u8, Id)>) {
        let now = read_entry(vmi, pa);
        let mut id = head;
        while let Some(node) = self.tree.get(id) {
            if node.stale || !matches!(now, Ok(now) if now == node.raw) {
                nodes.push((node.level, id));
            }
            id = node.next_alias;
        }
    }

    /// Looks at nodes, top level first. Those that a change above removed are gone when their turn comes; a number that
    /// was given to a new node since names one that is up to date.
    fn process(
        &mut self,
        vmi: &VmiCore<Driver>,
        mut nodes: Vec<(u8, Id)>,
    ) -> Result<Vec<PageTableMonitorEvent>, VmiError> {
        let mut events = std::mem::take(&mut self.undelivered);
        let delivers = !events.is_empty();
        let mut result = Ok(());
        nodes.sort_unstable_by_key(|&(level, id)| (u8::MAX - level, id));
        for (_, id) in nodes.drain(..) {
            if self.tree.get(id).is_none() {
                continue;
            }
            let entry = (self.tree.entry_pa(id), self.tree.view(id));
            if let Err(error) = self.look_at(vmi, id, entry.0, &mut events) {
                self.dirty.retry(entry);
                result = result.and(Err(error));
            }
        }
        self.scratch_nodes = nodes;
        self.catch_passing();
        let result = result.and(self.settle(vmi));
        match result {
            Err(error) if !delivers => {
                self.undelivered = events;
                Err(error)
            }
            _ => Ok(events),
        }
    }

    /// Brings a node, and everything that hangs on it, up to date.
    fn look_at(
        &mut self,
        vmi: &VmiCore<Driver>,
        id: Id,
        entry_pa: Pa,
        events: &mut Vec<PageTableMonitorEvent>,
    ) -> Result<(), VmiError> {
        let raw = read_entry(vmi, entry_pa)?;
        let node = self.tree.at_mut(id);
        let old = node.meaning::<Driver::Architecture>();
        node.update(raw);
        let new = node.meaning::<Driver::Architecture>();
        if old == new && !node.stale {
            return Ok(());
        }
        for list in self.tree.uproot(id) {
            for watch in self.watches.list(list) {
                self.watches.attach(watch, id, &mut self.tree.at_mut(id).first_watch);
            }
        }
        let leads_on = matches!(new, EntryMeaning::Table(_));
        // Stands until every address has found its place again.
        self.tree.at_mut(id).stale = leads_on;
        for watch in self.watches.list(self.tree.at(id).first_watch) {
            let va = self.watches.at(watch).ctx.va;
            let end = if leads_on {
                self.tree.descend::<Driver, Guard>(vmi, id, va).map_err(|(reached, error)| {
                    self.tree.prune(reached);
                    error
                })?
            } else {
                id
            };
            if end != id {
                self.watches.detach(watch, &mut self.tree.at_mut(id).first_watch);
                self.watches.attach(watch, end, &mut self.tree.at_mut(end).first_watch);
            }
            let maps = self.tree.at(end).meaning::<Driver::Architecture>().maps(va);
            self.watches.report(watch, maps, events);
        }
        self.tree.at_mut(id).stale = false;
        Ok(())
    }

    /// Gives up tables that nothing needs any more.
    pub(super) fn settle(&mut self, vmi: &VmiCore<Driver>) -> Result<(), VmiError> {
        self.tree.tables.settle::<Driver, Guard>(vmi)
    }

    /// The monitored addresses of a view.
    pub(super) fn watches_of(&self, view: View) -> Vec<Id> {
        self.watches.iter().filter(|(_, watch)| watch.view == view).map(|(id, _)| id).collect()
    }

    /// Takes an address out of the books; its tables are given up by [`Self::settle`].
    pub(super) fn forget(&mut self, id: Id) {
        let watch = self.watches.at(id);
        let (node, ctx, view) = (watch.node, watch.ctx, watch.view);
        self.watches.detach(id, &mut self.tree.at_mut(node).first_watch);
        self.watches.remove(id);
        self.tree.prune(node);
        self.undelivered.retain(|event| (event.update().ctx, event.update().view) != (ctx, view));
    }
}
