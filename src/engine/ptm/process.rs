//! Finding out what changed: the entries that were marked, or all of them.

use super::{
    ArchAdapter, PageTableMonitor, PageTableMonitorEvent,
    adapter::EntryMeaning,
    dirty::{self, Entry},
    guard::TableGuard,
    slab::{Id, NONE},
    tree::read_entry,
};
use crate::engine::{
    addr::{Pa, VcpuId, View},
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
};

/// No store of the architecture is wider, in bytes.
const WIDEST_STORE: u64 = 64;

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
    /// How wide the store is is not known, and so the monitored entries behind it that the widest store would reach
    /// are marked as well.
    pub fn mark_dirty_entry(&mut self, entry_pa: Pa, view: View, vcpu: VcpuId) -> bool {
        let Some(table) = self.tree.tables.find(entry_pa, view) else { return false };
        let offset = entry_pa.0 & 0xfff;
        let last = (offset + WIDEST_STORE - 1).min(0xfff);
        let mut marked = false;
        for index in table.used_between((offset >> 3) as u16, (last >> 3) as u16) {
            self.dirty.mark(vcpu, dirty::entry(table.entry_pa(index), view));
            marked = true;
        }
        marked
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
        let mut entries = std::mem::take(&mut self.scratch_entries);
        self.dirty.take(vcpu, &mut entries);
        let mut nodes = std::mem::take(&mut self.scratch_nodes);
        for (pa, view) in entries.drain(..) {
            if let Some(table) = self.tree.tables.find(Pa(pa), View(view)) {
                self.push_chain(table.head((pa >> 3 & 0x1ff) as u16), &mut nodes);
            }
        }
        self.scratch_entries = entries;
        self.process(vmi, nodes)
    }

    /// Reads all monitored entries and reports what changed, marked or not: how changes are found on drivers without
    /// write events. Every table is visited once; on drivers whose reads are expensive it is read once as a page.
    ///
    /// # Errors
    /// As [`process_dirty_entries`](Self::process_dirty_entries).
    pub fn poll(&mut self, vmi: &VmiCore<Driver>) -> Result<Vec<PageTableMonitorEvent>, VmiError> {
        vmi.flush_gfn_cache();
        let mut nodes = std::mem::take(&mut self.scratch_nodes);
        let mut entries = std::mem::take(&mut self.scratch_entries);
        // Whatever is due is found by its value.
        self.dirty.take_due(&mut entries);
        entries.clear();
        self.scratch_entries = entries;
        for table in self.tree.tables.iter() {
            for (index, head) in table.entries() {
                let now = read_entry(vmi, table.entry_pa(index));
                let mut id = head;
                while let Some(node) = self.tree.get(id) {
                    let same = now.as_ref().is_ok_and(|now| now.unwrap_or(0) == node.raw);
                    if !same || node.stale {
                        nodes.push((node.level, id));
                    }
                    id = node.next_alias;
                }
            }
        }
        self.process(vmi, nodes)
    }

    /// Adds the nodes of an entry.
    fn push_chain(&self, head: Id, nodes: &mut Vec<(u8, Id)>) {
        let mut id = head;
        while let Some(node) = self.tree.get(id) {
            nodes.push((node.level, id));
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
            let Some(node) = self.tree.get(id) else { continue };
            let entry: Entry = dirty::entry(self.tree.tables.at(node.table).entry_pa(node.index), self.tree.view(id));
            if let Err(error) = self.look_at(vmi, id, Pa(entry.0), &mut events) {
                self.dirty.retry(entry);
                result = result.and(Err(error));
            }
        }
        self.scratch_nodes = nodes;
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
        let raw = read_entry(vmi, entry_pa)?.unwrap_or(0);
        let node = self.tree.at_mut(id);
        let old = node.meaning::<Driver::Architecture>();
        if raw != node.raw {
            node.previous = Some(std::mem::replace(&mut node.raw, raw));
        }
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
                self.tree.descend_from::<Driver, Guard>(vmi, id, va).map_err(|(reached, error)| {
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
        if node != NONE {
            self.tree.prune(node);
        }
        self.undelivered.retain(|event| (event.update().ctx, event.update().view) != (ctx, view));
    }
}
