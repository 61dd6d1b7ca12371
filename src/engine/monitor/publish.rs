//! Snapshots: made of what changed, shared for the rest, swapped in without a lock.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::{Channels, Monitor, Platform, now};
use crate::engine::{
    addr::{Pa, Va, VcpuId},
    os::VmiOs,
    session::VmiSession,
    snapshot::{Capability, Guest, Process, Snapshot, Status, SymbolTable, Unavailable, Vcpu},
};

/// The shortest time between two snapshots: 30 a second.
const PERIOD: Duration = Duration::from_millis(33);

/// The working copy of the snapshot and the way to the screen.
#[derive(Debug)]
pub(super) struct Publisher {
    slot: Arc<arc_swap::ArcSwap<Snapshot>>,
    changed: Sender<()>,
    current: Snapshot,
    last: Option<Instant>,
    pub(super) breakpoints_changed: bool,
    pub(super) tables_changed: bool,
}

impl Publisher {
    pub(super) fn new(channels: Channels, first: Snapshot) -> Self {
        Self {
            slot: channels.snapshot,
            changed: channels.changed,
            current: first,
            last: None,
            breakpoints_changed: true,
            tables_changed: true,
        }
    }

    /// Whether enough time has passed since the last snapshot.
    pub(super) fn is_due(&self) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= PERIOD)
    }

    /// Whether the screen has taken the last snapshot: there is no hurry to read more for one that does not look.
    pub(super) fn is_seen(&self) -> bool {
        self.changed.is_empty() || self.last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1))
    }

    pub(super) fn describe(
        &mut self,
        guest: Guest,
        capabilities: Vec<Capability>,
        unavailable: Vec<Unavailable>,
        symbols: &Arc<SymbolTable>,
    ) {
        self.current.guest.set(guest);
        self.current.capabilities.set(capabilities);
        self.current.unavailable.set(unavailable);
        self.current.symbols = Arc::clone(symbols);
        self.current.notice = None;
    }

    pub(super) fn set_processes(&mut self, processes: Vec<Process>, truncated: bool) {
        self.current.processes.set(processes);
        self.current.processes_truncated = truncated;
    }

    pub(super) fn set_vcpus(&mut self, vcpus: Vec<Vcpu>) {
        self.current.vcpus.set(vcpus);
    }

    pub(super) fn rip(&self, vcpu: VcpuId) -> Option<Va> {
        self.current.vcpus.iter().find(|known| known.id == vcpu).map(|known| known.rip)
    }

    fn publish(&mut self) {
        self.last = Some(Instant::now());
        self.slot.store(Arc::new(self.current.clone()));
        // A ping that is still there says the same.
        let _ = self.changed.try_send(());
    }
}

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// The process that a translation root belongs to.
    pub(super) fn pid_of(&self, root: Pa) -> Option<u32> {
        self.processes.iter().find(|process| process.root == Some(root)).map(|process| process.pid)
    }

    /// Publishes what is known now.
    pub(super) fn publish(&mut self, vmi: VmiSession<'_, D, Os>) {
        let clock = now(vmi);
        self.refresh_faults(vmi);
        if std::mem::take(&mut self.publisher.breakpoints_changed) {
            self.sync_breakpoints();
        }
        let breakpoints = self.breakpoints.values_mut().map(|row| row.to_snapshot(clock)).collect();
        self.publisher.current.breakpoints.set(breakpoints);
        if std::mem::take(&mut self.publisher.tables_changed) {
            let rows = self.tables.values().map(|row| row.to_snapshot(self.mapping(row.ctx, row.view))).collect();
            self.publisher.current.page_tables.set(rows);
        }
        let (events, rates) = self.log.publish(clock);
        let faults = self.faults.rows(clock, |root| self.pid_of(root));
        let counters = &mut self.log.counters;
        counters.snapshots += 1;
        counters.faults_pending = self.faults.open_count() as u64;
        let snapshot = &mut self.publisher.current;
        snapshot.driver = D::KIND;
        snapshot.read_only = self.options.read_only;
        snapshot.status = if self.paused { Status::Paused } else { Status::Running };
        snapshot.taken_at_ns = clock;
        snapshot.tables_monitored = self.ptm.monitored_tables() as u64;
        snapshot.faults.set(faults);
        snapshot.events = events;
        snapshot.event_rates = rates;
        snapshot.counters = *counters;
        snapshot.detail.clone_from(&self.detail);
        self.publisher.publish();
    }
}
