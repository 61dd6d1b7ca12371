//! The page table monitor: tells when a monitored address is mapped, unmapped or moved to another frame.
//!
//! Every table on the way to a monitored address is guarded ([`TableGuard`]): a write to it raises an event, the
//! entry is marked, the vCPU makes its step, and processing the marks yields page-ins and page-outs. Where a driver has
//! no such events, [`PageTableMonitor::poll`] finds the changes by reading all monitored entries.
//!
//! Imports the session and below. Start at [`PageTableMonitor`]; its books are `watch` (addresses), `tree` (their
//! walks) and `tables` (guarded pages); `process` is what happens when the guest changes something. The invariants are
//! in `docs/engine.md`.

mod adapter;
mod dirty;
mod entries;
mod event;
mod guard;
mod process;
mod slab;
mod tables;
mod tree;
mod watch;

pub use self::{
    adapter::{ArchAdapter, EntryMeaning},
    event::{PageEntryUpdate, PageTableMonitorEvent},
    guard::{TableGuard, Unguarded, WriteProtect},
    watch::WatchState,
};

use std::fmt;

use self::{
    adapter::Mapping,
    dirty::{Dirty, Mark},
    slab::{Id, NONE},
    tree::{Space, Stopped, Tree},
    watch::Watches,
};
use super::{
    addr::{AddressContext, Gfn, Pa, View},
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
};

/// Follows what addresses map to.
///
/// `Tag` is a word of the caller's for each address; `Guard` is how writes are noticed. [`PageTableMonitor::new`] makes
/// one for drivers with write events, [`PageTableMonitor::polling`] one for all others; both have the same methods.
///
/// Addresses are counted: one that was monitored twice is unmonitored by the second call. Answers are about the exact
/// address, not its page, and in a view. Reads go through the core's page cache where the driver has need of one:
/// whoever lets the guest run flushes it.
pub struct PageTableMonitor<Driver, Tag = &'static str, Guard = WriteProtect>
where
    Driver: VmiRead,
    Guard: TableGuard<Driver>,
{
    watches: Watches<Tag>,
    tree: Tree<Guard::Found>,
    dirty: Dirty,
    /// Events of a call that ended with an error.
    undelivered: Vec<PageTableMonitorEvent>,
    scratch_marks: Vec<Mark>,
    scratch_nodes: Vec<(u8, Id)>,
}

/// One entry of a monitored walk, as it was when it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedEntry {
    /// The manual's name of the level.
    pub level: &'static str,
    /// The entry's physical address.
    pub entry_pa: Pa,
    /// Its value.
    pub value: u64,
    /// Its value before its last change.
    pub previous: Option<u64>,
}

impl<Driver, Tag, Guard> Default for PageTableMonitor<Driver, Tag, Guard>
where
    Driver: VmiRead,
    Guard: TableGuard<Driver>,
{
    fn default() -> Self {
        Self {
            watches: Watches::default(),
            tree: Tree::default(),
            dirty: Dirty::default(),
            undelivered: Vec::new(),
            scratch_marks: Vec::new(),
            scratch_nodes: Vec::new(),
        }
    }
}

impl<Driver, Tag> PageTableMonitor<Driver, Tag>
where
    Driver: VmiRead,
    WriteProtect: TableGuard<Driver>,
{
    /// A monitor that write-protects tables.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<Driver, Tag> PageTableMonitor<Driver, Tag, Unguarded>
where
    Driver: VmiRead,
{
    /// A monitor that changes nothing and depends on [`PageTableMonitor::poll`].
    pub fn polling() -> Self {
        Self::default()
    }
}

impl<Driver, Tag, Guard> PageTableMonitor<Driver, Tag, Guard>
where
    Driver: VmiRead,
    Driver::Architecture: ArchAdapter,
    Tag: Copy,
    Guard: TableGuard<Driver>,
{
    /// Starts to monitor an address, or counts once more one that is monitored already (its first tag stays). Changes
    /// are reported from what the address maps to at this moment.
    ///
    /// # Errors
    /// [`VmiError::Invalid`] where no page table could ever map the address; [`VmiError::OutOfBounds`] where the top
    /// table is not in the guest's memory; others when the driver failed. Nothing stays monitored then.
    pub fn monitor(
        &mut self,
        vmi: &VmiCore<Driver>,
        ctx: impl Into<AddressContext>,
        view: View,
        tag: Tag,
    ) -> Result<(), VmiError> {
        let ctx = ctx.into();
        if let Some(id) = self.watches.find(ctx, view) {
            let watch = self.watches.at_mut(id);
            watch.references = watch.references.saturating_add(1);
            return Ok(());
        }
        let levels = vmi.paging_levels();
        if !Driver::Architecture::is_canonical(ctx.va, levels) {
            return Err(VmiError::Invalid(format!(
                "cannot monitor {ctx}: it is not a canonical address, so no page table can ever map it"
            )));
        }
        let space = Space::new::<Driver::Architecture>(ctx.root, view, levels);
        let (node, maps) = match self.place(vmi, space, ctx) {
            Ok(place) => place,
            Err((reached, error)) => {
                self.tree.prune(reached);
                // A guard that cannot be taken back now is tried again with the next call; the cause is the news.
                let _ = self.settle(vmi);
                return Err(error);
            }
        };
        let id = self.watches.insert(ctx, view, tag, maps);
        self.watches.attach(id, node, &mut self.tree.at_mut(node).first_watch);
        self.catch_passing();
        // Only tables of earlier calls can be left over here: their errors are not this call's.
        let _ = self.settle(vmi);
        Ok(())
    }

    /// Finds or makes the node that an address hangs on, and what the address maps to.
    fn place(
        &mut self,
        vmi: &VmiCore<Driver>,
        space: Space,
        ctx: AddressContext,
    ) -> Result<(Id, Option<Mapping>), Stopped> {
        let nowhere = |error| (NONE, error);
        let start = match self.tree.deepest::<Driver::Architecture>(space, ctx.va) {
            Some(start) => {
                if let Some(stale) = self.tree.highest_stale(vmi, start).map_err(nowhere)? {
                    // A change is on its way that others have yet to hear of. Processing it finds this address, too.
                    let maps = tree::walk(vmi, ctx).map_err(nowhere)?.maps(ctx.va);
                    self.note_stale(stale);
                    return Ok((stale, maps));
                }
                start
            }
            None => self.tree.top::<Driver, Guard>(vmi, space, ctx.va).map_err(nowhere)?,
        };
        let node = self.tree.descend::<Driver, Guard>(vmi, start, ctx.va)?;
        Ok((node, self.tree.at(node).meaning::<Driver::Architecture>().maps(ctx.va)))
    }

    /// Takes one [`monitor`](Self::monitor) back; nothing to do is not an error. With the last one the address is
    /// forgotten, and tables that no other address needs get the access back that they had.
    ///
    /// # Errors
    /// When the driver could not give a table its access back. The address is forgotten all the same; the table stays
    /// in the books and is tried again with the next call.
    pub fn unmonitor(
        &mut self,
        vmi: &VmiCore<Driver>,
        ctx: impl Into<AddressContext>,
        view: View,
    ) -> Result<(), VmiError> {
        if let Some(id) = self.watches.find(ctx.into(), view) {
            let watch = self.watches.at_mut(id);
            if watch.references > 1 {
                watch.references -= 1;
            } else {
                self.forget(id);
            }
        }
        self.settle(vmi)
    }

    /// Forgets an address however often it was monitored: for the owner of all its counts, when the address space is
    /// gone, say. Whoever else counted it is not told. Nothing to do is not an error.
    ///
    /// # Errors
    /// As [`unmonitor`](Self::unmonitor).
    pub fn unmonitor_by_force(
        &mut self,
        vmi: &VmiCore<Driver>,
        ctx: impl Into<AddressContext>,
        view: View,
    ) -> Result<(), VmiError> {
        if let Some(id) = self.watches.find(ctx.into(), view) {
            self.forget(id);
        }
        self.settle(vmi)
    }

    /// Forgets all addresses of a view, however often they were monitored.
    ///
    /// # Errors
    /// As [`unmonitor`](Self::unmonitor).
    pub fn unmonitor_view(&mut self, vmi: &VmiCore<Driver>, view: View) -> Result<(), VmiError> {
        for id in self.watches_of(view) {
            self.forget(id);
        }
        self.settle(vmi)
    }

    /// Forgets all addresses.
    ///
    /// # Errors
    /// As [`unmonitor`](Self::unmonitor).
    pub fn unmonitor_all(&mut self, vmi: &VmiCore<Driver>) -> Result<(), VmiError> {
        self.watches.clear();
        self.tree.clear();
        self.dirty.clear();
        self.undelivered.clear();
        self.settle(vmi)
    }

    /// Whether a frame is guarded in a view: it holds a monitored entry.
    pub fn guards(&self, gfn: Gfn, view: View) -> bool {
        self.tree.tables.find(gfn, view) != NONE
    }

    /// How many page-table pages are guarded, counted by view.
    pub fn monitored_tables(&self) -> usize {
        self.tree.tables.len()
    }

    /// How many page-table entries are monitored, counted by view.
    pub fn monitored_entries(&self) -> usize {
        self.tree.tables.entries()
    }

    /// How many addresses are monitored, counted by view.
    pub fn monitored_addresses(&self) -> usize {
        self.watches.len()
    }

    /// How many monitored addresses are mapped.
    pub fn paged_in_entries(&self) -> usize {
        self.watches.paged_in()
    }

    /// What is known of a monitored address.
    pub fn state(&self, ctx: impl Into<AddressContext>, view: View) -> Option<WatchState<Tag>> {
        self.watches.at(self.watches.find(ctx.into(), view)?).state()
    }

    /// What is known of all monitored addresses, in no particular order.
    pub fn states(&self) -> impl Iterator<Item = WatchState<Tag>> + '_ {
        self.watches.iter().filter_map(|(_, watch)| watch.state())
    }

    /// The monitored entries on the way to an address, top level first.
    pub fn entries(&self, ctx: impl Into<AddressContext>, view: View) -> Vec<WatchedEntry> {
        let Some(id) = self.watches.find(ctx.into(), view) else { return Vec::new() };
        let mut all: Vec<_> = self.tree.upwards(self.watches.at(id).node).map(|node| self.watched(node)).collect();
        all.reverse();
        all
    }

    fn watched(&self, id: Id) -> WatchedEntry {
        let node = self.tree.at(id);
        WatchedEntry {
            level: Driver::Architecture::level_name(node.level),
            entry_pa: self.tree.entry_pa(id),
            value: node.raw,
            previous: node.previous(),
        }
    }
}

impl<Driver, Tag, Guard> PageTableMonitor<Driver, Tag, Guard>
where
    Driver: VmiRead,
    Driver::Architecture: ArchAdapter,
    Tag: Copy + fmt::Debug,
    Guard: TableGuard<Driver>,
{
    /// Writes the books to the log, at debug level.
    pub fn dump(&self) {
        tracing::debug!(
            tables = self.monitored_tables(),
            entries = self.monitored_entries(),
            addresses = self.monitored_addresses(),
            paged_in = self.paged_in_entries(),
            "page table monitor"
        );
        let mut states: Vec<_> = self.states().collect();
        states.sort_unstable_by_key(|state| (state.view, state.ctx));
        for state in states {
            tracing::debug!(?state, entries = ?self.entries(state.ctx, state.view), "monitored address");
        }
    }
}
