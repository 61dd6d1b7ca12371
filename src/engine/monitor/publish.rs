//! Snapshots: made of what changed, shared for the rest, swapped in without a lock.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::{Channels, Monitor, Platform, elapsed};
use crate::engine::{
    addr::{Pa, Va, VcpuId},
    os::VmiOs,
    session::{VmiCore, VmiSession},
    snapshot::{
        Capability, Counters, Detail, Guest, Process, Run, SearchProgress, Snapshot, Status, SymbolTable, Unavailable,
        Vcpu, clean,
    },
};

/// The shortest time between two snapshots: 30 a second.
const PERIOD: Duration = Duration::from_millis(33);

/// Characters of a sentence about the engine or the driver.
const LONGEST_NOTICE: usize = 2000;

/// How long a snapshot may stand that nothing but the clock has made old.
const QUIET: Duration = Duration::from_secs(1);

/// What a snapshot says, as far as it can be told apart at no cost: the parts by their numbers.
#[derive(Debug, Default, PartialEq)]
struct Said {
    parts: [u64; 8],
    counters: Counters,
    run: Run,
    notice: Option<Arc<str>>,
    truncated: bool,
    detail: Option<Arc<Detail>>,
    search: Option<SearchProgress>,
}

impl Said {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            parts: [
                snapshot.guest.id(),
                snapshot.vcpus.id(),
                snapshot.processes.id(),
                snapshot.breakpoints.id(),
                snapshot.page_tables.id(),
                snapshot.faults.id(),
                snapshot.events.id(),
                snapshot.event_rates.id(),
            ],
            counters: Counters { snapshots: 0, ..snapshot.counters },
            run: snapshot.run.clone(),
            notice: snapshot.notice.clone(),
            truncated: snapshot.processes_truncated,
            detail: snapshot.detail.clone(),
            search: snapshot.search.as_deref().copied(),
        }
    }
}

/// The working copy of the snapshot and the way to the screen.
#[derive(Debug)]
pub(super) struct Publisher {
    slot: Arc<arc_swap::ArcSwap<Snapshot>>,
    changed: Sender<()>,
    current: Snapshot,
    last: Option<Instant>,
    /// When it was last looked whether there is news.
    looked: Option<Instant>,
    /// What the last snapshot said, to tell whether the next one says anything new.
    said: Said,
    symbols_changed: bool,
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
            looked: None,
            said: Said::default(),
            symbols_changed: true,
            breakpoints_changed: true,
            tables_changed: true,
        }
    }

    /// Whether it is time to look for news.
    pub(super) fn is_due(&mut self) -> bool {
        elapsed(&mut self.looked, PERIOD)
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
        let unavailable: Vec<Unavailable> = unavailable
            .into_iter()
            .map(|missing| Unavailable { why: clean(&missing.why, LONGEST_NOTICE), ..missing })
            .collect();
        self.current.guest.set(guest);
        self.current.capabilities.set(capabilities);
        self.current.unavailable.set(unavailable);
        self.set_symbols(Arc::clone(symbols));
        self.current.notice = None;
    }

    pub(super) fn set_symbols(&mut self, symbols: Arc<SymbolTable>) {
        self.current.symbols = symbols;
        self.symbols_changed = true;
    }

    /// Takes note of when the guest booted. Its clock ticks in seconds, so less than two of them are no news.
    pub(super) fn set_booted(&mut self, at_ns: Option<i64>) {
        let old = self.current.guest.booted_at_ns;
        let is_same = match (old, at_ns) {
            (Some(old), Some(new)) => old.abs_diff(new) < 2_000_000_000,
            (old, new) => old == new,
        };
        if !is_same {
            let mut guest = Guest::clone(&self.current.guest);
            guest.booted_at_ns = at_ns;
            self.current.guest.set(guest);
        }
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.current.guest
    }

    pub(super) fn set_guest(&mut self, guest: Guest) {
        self.current.guest.set(guest);
    }

    pub(super) fn set_notice(&mut self, notice: Option<Arc<str>>) {
        self.current.notice = notice.map(|notice| clean(&notice, LONGEST_NOTICE).into());
    }

    /// Shows what the driver has to say for as long as it says so.
    fn warn(&mut self, warning: Option<String>) {
        if self.current.notice.as_deref() != warning.as_deref() {
            self.current.notice = warning.map(Into::into);
        }
    }

    pub(super) fn set_processes(&mut self, processes: Vec<Process>, truncated: bool) {
        self.current.processes.set(processes);
        self.current.processes_truncated = truncated;
    }

    pub(super) fn set_vcpus(&mut self, vcpus: Vec<Vcpu>) {
        self.current.vcpus.set(vcpus);
    }

    pub(super) fn set_search(&mut self, search: Option<Arc<SearchProgress>>) {
        self.current.search = search;
    }

    pub(super) fn rip(&self, vcpu: VcpuId) -> Option<Va> {
        self.current.vcpus.iter().find(|known| known.id == vcpu).map(|known| known.rip)
    }

    /// Whether the working copy differs from the last snapshot in more than the time.
    fn is_news(&self) -> bool {
        self.symbols_changed || self.said != Said::of(&self.current)
    }

    fn publish(&mut self) {
        self.said = Said::of(&self.current);
        self.symbols_changed = false;
        self.last = Some(Instant::now());
        self.slot.store(Arc::new(self.current.clone()));
        // A ping that is still there says the same.
        let _ = self.changed.try_send(());
    }
}

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// The process whose the missing pages of an address space are.
    pub(super) fn pid_of(&self, root: Pa) -> Option<u32> {
        if let Some(owner) = self.owners.of_pages(root) {
            return Some(owner.pid);
        }
        self.pids.get(&root).copied()
    }

    /// Publishes what is known now, if it is news; a quiet guest costs the screen one picture a second.
    pub(super) fn publish_news(&mut self, vmi: VmiSession<'_, D, Os>) {
        self.prepare(vmi);
        if self.publisher.is_news() || self.publisher.last.is_none_or(|last| last.elapsed() >= QUIET) {
            self.deliver();
        }
    }

    /// Publishes what is known now.
    pub(super) fn publish(&mut self, vmi: VmiSession<'_, D, Os>) {
        self.prepare(vmi);
        self.deliver();
    }

    pub(super) fn deliver(&mut self) {
        self.log.counters.snapshots += 1;
        self.publisher.current.counters.snapshots = self.log.counters.snapshots;
        self.publisher.publish();
    }

    fn prepare(&mut self, vmi: VmiSession<'_, D, Os>) {
        self.refresh_faults(vmi);
        // What is shown has been told: a state that others end at once is not shown without its line.
        let run = self.last_run.clone();
        self.publisher.warn(vmi.core().driver().warning());
        self.fill(vmi.core(), if run.is_running() { Status::Running } else { Status::Paused }, run);
    }

    /// Brings the working copy up to date with what is known.
    pub(super) fn fill(&mut self, core: &VmiCore<D>, status: Status, run: Run) {
        let clock = core.driver().clock_ns();
        if std::mem::take(&mut self.publisher.breakpoints_changed) {
            self.sync_breakpoints(core);
        }
        let breakpoints = self.breakpoints.values_mut().map(|row| row.shown(clock)).collect();
        self.publisher.current.breakpoints.set(breakpoints);
        if std::mem::take(&mut self.publisher.tables_changed) {
            let rows = self.tables.values().map(|row| row.shown(self.mapping(row.ctx, row.view))).collect();
            self.publisher.current.page_tables.set(rows);
        }
        let (events, rates) = self.log.publish(clock);
        let faults = self.faults.rows(clock, |root| self.pid_of(root));
        let counters = &mut self.log.counters;
        counters.faults_pending = self.faults.open_count() as u64;
        let snapshot = &mut self.publisher.current;
        snapshot.driver = D::KIND;
        snapshot.read_only = self.options.read_only;
        snapshot.status = status;
        snapshot.ages = self.reads.ages(clock, status == Status::Running);
        snapshot.run = run;
        snapshot.taken_at_ns = clock;
        snapshot.hit_cost_ns = D::hit_cost(core).and_then(|cost| u64::try_from(cost.as_nanos()).ok());
        snapshot.tables_monitored = self.ptm.monitored_tables() as u64;
        snapshot.faults.set(faults);
        snapshot.events = events;
        snapshot.event_rates = rates;
        snapshot.counters = *counters;
        snapshot.detail.clone_from(&self.detail);
    }
}
