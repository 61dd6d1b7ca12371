//! What is read again and again: processes, vCPUs, page tables, missing pages, the open popup.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Monitor, Platform, Purpose, Watcher, elapsed, now};
use crate::engine::{
    addr::{AddressContext, VcpuId, View},
    arch::{
        Architecture, Registers,
        amd64::{Amd64, ControlRegister, EventMonitor},
    },
    bpm::Breakpoint,
    error::VmiError,
    faults::{Delivers, WatchChange},
    os::VmiOs,
    session::VmiSession,
    snapshot::{BreakpointId, EventKind, Guest, Process, ProcessFlag, Vcpu, WalkEntry},
};

/// How often the process list is read at the most.
const PROCESSES: Duration = Duration::from_millis(500);
/// Reading the process list may take this fraction of the time.
const PROCESSES_SHARE: u32 = 20;
/// How often walks and popups are read.
const DETAILS: Duration = Duration::from_millis(250);
/// How often an injection is tried.
const INJECTIONS: Duration = Duration::from_millis(5);

/// When what was read last, and how long the process list took.
#[derive(Debug, Default)]
pub(super) struct Due {
    processes: Option<Instant>,
    processes_cost: Duration,
    vcpus: Option<Instant>,
    tables: Option<Instant>,
    details: Option<Instant>,
    injections: Option<Instant>,
}

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// Reads what is due. In lock-step everything is read when the guest stands still, so that runs are alike; only
    /// injections are tried while it runs.
    pub(super) fn refresh_due(&mut self, vmi: VmiSession<'_, D, Os>) {
        if self.options.lock_step {
            self.try_injections(vmi);
            self.poll_tables(vmi);
            return;
        }
        if elapsed(&mut self.due.injections, INJECTIONS) {
            self.try_injections(vmi);
        }
        if let Some(period) = D::TABLE_POLL
            && elapsed(&mut self.due.tables, period)
        {
            self.poll_tables(vmi);
        }
        if self.publisher.is_seen() {
            if elapsed(&mut self.due.vcpus, D::VCPU_POLL) {
                self.refresh_vcpus(vmi);
            }
            let period = PROCESSES.max(self.due.processes_cost * PROCESSES_SHARE);
            if elapsed(&mut self.due.processes, period) {
                self.refresh_processes(vmi);
            }
            if elapsed(&mut self.due.details, DETAILS) {
                self.refresh_walks(vmi);
                self.refresh_detail(vmi);
            }
        }
    }

    /// Reads everything.
    pub(super) fn refresh_all(&mut self, vmi: VmiSession<'_, D, Os>) {
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        self.poll_tables(vmi);
        self.refresh_vcpus(vmi);
        self.refresh_processes(vmi);
        self.refresh_walks(vmi);
        self.refresh_detail(vmi);
    }

    /// What does not change while the session lasts.
    pub(super) fn describe_guest(&mut self, vmi: VmiSession<'_, D, Os>) {
        let os = vmi.underlying_os();
        let info = vmi.info().unwrap_or_default();
        let (capabilities, unavailable) = vmi.driver().capabilities();
        let guest = Guest {
            name: info.name,
            os: os.name().to_owned(),
            version: os.version().to_owned(),
            kernel_base: Some(os.kernel_image_base()),
            vcpus: info.vcpus,
            memory_bytes: info.memory_bytes,
            paging_levels: vmi.paging_levels(),
        };
        self.publisher.describe(guest, capabilities, unavailable, os.symbols());
    }

    pub(super) fn refresh_processes(&mut self, vmi: VmiSession<'_, D, Os>) {
        let began = Instant::now();
        let list = vmi.underlying_os().processes(vmi);
        self.due.processes_cost = began.elapsed();
        let list = match list {
            Ok(list) => list,
            Err(error) => {
                // A guest may be caught in the middle of a change; the list stays as it was.
                tracing::debug!(%error, "could not read the process list");
                return;
            }
        };
        self.tell_process_changes(vmi, &list.processes);
        self.processes.clone_from(&list.processes);
        self.publisher.set_processes(list.processes, list.truncated);
    }

    fn tell_process_changes(&mut self, vmi: VmiSession<'_, D, Os>, new: &[Process]) {
        let at_ns = now(vmi);
        let key = |process: &Process| (process.pid, process.object, process.start_ns);
        let old: HashMap<_, bool> =
            self.processes.iter().map(|p| (key(p), p.flags.contains(&ProcessFlag::Hidden))).collect();
        let is_first = !std::mem::replace(&mut self.seen_processes, true);
        for process in new {
            let hidden = process.flags.contains(&ProcessFlag::Hidden);
            let before = old.get(&key(process));
            let place = || (None, Some(process.pid), process.name.clone());
            if before.is_none() && !is_first {
                let text = format!("{} ({}) started, child of {}", process.name, process.pid, process.ppid);
                self.log.push(at_ns, EventKind::ProcessStart, place(), text);
            }
            if hidden && before != Some(&true) {
                let text = format!("{} ({}) is missing from the guest's own process list", process.name, process.pid);
                self.log.push(at_ns, EventKind::Hidden, place(), text);
            }
        }
        let alive: std::collections::HashSet<_> = new.iter().map(key).collect();
        for process in self.processes.iter().filter(|process| !alive.contains(&key(process))) {
            let text = format!("{} ({}) is gone", process.name, process.pid);
            self.log.push(at_ns, EventKind::ProcessExit, (None, Some(process.pid), process.name.clone()), text);
        }
    }

    pub(super) fn refresh_vcpus(&mut self, vmi: VmiSession<'_, D, Os>) {
        let count = vmi.info().map_or(0, |info| info.vcpus);
        let os = vmi.underlying_os();
        let mut vcpus = Vec::with_capacity(usize::from(count));
        for id in (0..count).map(VcpuId) {
            let registers = match vmi.core().registers(id) {
                Ok(registers) => registers,
                Err(error) => {
                    tracing::debug!(%error, vcpu = id.0, "could not read registers");
                    continue;
                }
            };
            let current = os.current_process(vmi.with_registers(&registers)).ok().flatten();
            vcpus.push(Vcpu {
                id,
                rip: registers.gp.rip.into(),
                root: os.process_root(registers.root()),
                pid: current.map(|current| current.pid),
                registers: registers.named(),
            });
        }
        if !vcpus.is_empty() {
            self.publisher.set_vcpus(vcpus);
        }
    }

    /// Reads monitored tables again where writes to them raise no events.
    pub(super) fn poll_tables(&mut self, vmi: VmiSession<'_, D, Os>) {
        if D::TABLE_POLL.is_none() || self.ptm.monitored_addresses() == 0 {
            return;
        }
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        match self.ptm.poll(vmi.core()) {
            Ok(events) => self.table_events(vmi, &events, None),
            Err(error) => tracing::debug!(%error, "could not read the monitored page tables"),
        }
    }

    /// Reads the walks that the page-table pane shows.
    pub(super) fn refresh_walks(&mut self, vmi: VmiSession<'_, D, Os>) {
        vmi.flush_v2p_cache();
        for row in self.tables.values_mut() {
            let walk = walk_of(vmi, row.ctx);
            if walk.len() != row.walk.len() || walk.iter().zip(&row.walk).any(|(new, old)| new.entry != old.entry) {
                row.update_walk(walk);
                self.publisher.tables_changed = true;
            }
        }
    }

    /// Makes the page table monitor watch what the fault loop waits for.
    pub(super) fn follow_faults(&mut self, vmi: VmiSession<'_, D, Os>) {
        for change in self.faults.take_watch_changes() {
            let result = match change {
                WatchChange::Watch(ctx) => self.watch_fault(vmi, ctx),
                WatchChange::Unwatch(ctx) => self.ptm.unmonitor(vmi.core(), ctx, self.watch_view()),
            };
            if let Err(error) = result {
                tracing::warn!(%error, "could not follow a missing page");
            }
        }
    }

    /// The view in which pages are watched that nobody set a breakpoint on.
    fn watch_view(&self) -> View {
        if D::TABLE_POLL.is_none() { self.view.unwrap_or_default() } else { View::default() }
    }

    fn watch_fault(&mut self, vmi: VmiSession<'_, D, Os>, ctx: AddressContext) -> Result<(), VmiError> {
        let at_ns = now(vmi);
        if vmi.translate_address(ctx).is_ok() {
            self.faults.on_translation_ok(ctx, at_ns);
        }
        // A read-only session on a driver with write events notices the page when it reads again.
        if D::TABLE_POLL.is_none() && self.options.read_only {
            return Ok(());
        }
        let monitored = if D::TABLE_POLL.is_none() {
            let paused = vmi.core().pause_guard()?;
            let view = self.view(vmi)?;
            let monitored = self.ptm.monitor(vmi.core(), ctx, view, Watcher::Fault);
            drop(paused);
            monitored
        } else {
            self.ptm.monitor(vmi.core(), ctx, View::default(), Watcher::Fault)
        };
        if let Err(error) = &monitored {
            self.faults.on_unservable(ctx, &error.to_string(), at_ns);
        }
        monitored
    }

    /// Injects what waits and is safe to inject now.
    fn try_injections(&mut self, vmi: VmiSession<'_, D, Os>) {
        self.watch_refusals(vmi);
        if self.follows_cr3 && self.faults.open_count() == 0 {
            self.follow_switches(vmi, false);
        }
        if self.paused || self.options.read_only || !D::Delivery::INJECTS || self.faults.open_count() == 0 {
            return;
        }
        let at_ns = now(vmi);
        self.faults.tick(at_ns);
        self.follow_switches(vmi, self.faults.waits_for_any(at_ns));
        for vcpu in (0..vmi.info().map_or(0, |info| info.vcpus)).map(VcpuId) {
            let Ok(registers) = vmi.core().registers(vcpu) else { continue };
            if let Err(error) = self.faults.inject_next(vmi.with_registers(&registers), vcpu, at_ns) {
                tracing::debug!(%error, "could not inject a page fault; its row says why");
            }
        }
    }

    /// Has switches of address spaces reported while a page waits for one.
    fn follow_switches(&mut self, vmi: VmiSession<'_, D, Os>, wanted: bool) {
        if wanted == self.follows_cr3 {
            return;
        }
        let switches = EventMonitor::Register(ControlRegister::Cr3);
        let result = if wanted {
            self.view(vmi).and_then(|_| vmi.core().monitor_enable(switches))
        } else {
            vmi.core().monitor_disable(switches)
        };
        match result {
            Ok(()) => self.follows_cr3 = wanted,
            Err(error) => tracing::warn!(%error, "could not follow switches of address spaces"),
        }
    }

    /// While pages are injected, listens to the guest's exception dispatch.
    fn watch_refusals(&mut self, vmi: VmiSession<'_, D, Os>) {
        let wanted = (0..vmi.info().map_or(0, |info| info.vcpus)).any(|vcpu| self.faults.is_in_flight(VcpuId(vcpu)));
        if wanted == self.refusal_at.is_some() {
            return;
        }
        let result = match self.refusal_at {
            None => {
                let Some(va) = vmi.underlying_os().fault_refused_at() else { return };
                let ctx = AddressContext { va, root: vmi.underlying_os().kernel_root() };
                self.view(vmi).and_then(|view| {
                    self.bpm.insert(vmi.core(), Self::refusal(ctx, view))?;
                    self.refusal_at = Some(ctx);
                    Ok(())
                })
            }
            Some(ctx) => {
                let view = self.view.unwrap_or_default();
                self.bpm.remove(vmi.core(), Self::refusal(ctx, view)).map(|_| self.refusal_at = None)
            }
        };
        if let Err(error) = result {
            tracing::warn!(%error, "could not listen to the guest's exception dispatch");
        }
    }

    fn refusal(ctx: AddressContext, view: View) -> Breakpoint<Purpose, BreakpointId> {
        Breakpoint::new(ctx, view).global().with_key(Purpose::Refusal).with_tag(BreakpointId::default())
    }

    /// What turned out to be there is resolved; what became of the missing pages is told.
    pub(super) fn refresh_faults(&mut self, vmi: VmiSession<'_, D, Os>) {
        let at_ns = now(vmi);
        for ctx in self.faults.open_pages() {
            if vmi.translate_address(ctx).is_ok() {
                self.faults.on_translation_ok(ctx, at_ns);
            }
        }
        self.follow_faults(vmi);
        for change in self.faults.take_changes() {
            let text = format!("{} in root {}: {}", change.ctx.va, change.ctx.root, change.note);
            self.log.push(at_ns, EventKind::Fault, (change.vcpu, None, String::new()), text);
        }
    }
}

/// The walk of an address as a pane shows it.
pub(super) fn walk_of<D: Platform, Os>(vmi: VmiSession<'_, D, Os>, ctx: AddressContext) -> Vec<WalkEntry> {
    Amd64::translation(vmi.core(), ctx.va, ctx.root)
        .entries()
        .map(|entry| WalkEntry {
            level: entry.level.name(),
            entry_pa: entry.entry_address,
            entry: entry.entry.0,
            previous: None,
            flags: entry.entry.flags(entry.level),
        })
        .collect()
}
