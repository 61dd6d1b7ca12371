//! What is read again and again: processes, vCPUs, page tables, the open popup.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{Monitor, Platform, elapsed, missing, now};
use crate::engine::{
    addr::AddressContext,
    arch::{Architecture, Registers, amd64::Amd64},
    os::VmiOs,
    session::VmiSession,
    snapshot::{Capability, EventKind, Guest, Process, ProcessFlag, Vcpu, WalkEntry},
};

/// How often the process list is read at the most.
const PROCESSES: Duration = Duration::from_millis(500);
/// Reading the process list may take this fraction of the time.
const PROCESSES_SHARE: u32 = 20;
/// How often it is looked what became of the processes that rows belong to: a read or two for each.
const OWNERS: Duration = Duration::from_millis(50);
/// Reading the registers of running vCPUs may take this fraction of the time.
const VCPUS_SHARE: u32 = 50;
/// How often tables whose writes raise events are read all the same, in nanoseconds of the guest's clock: what a device
/// writes raises none, nor does a store that was under way when its entry came to be monitored.
const UNSEEN_NS: u64 = 1_000_000_000;
/// How often walks and popups are read.
const DETAILS: Duration = Duration::from_millis(250);

/// When what was read last, and how long the process list took.
#[derive(Debug, Default)]
pub(super) struct Due {
    processes: Option<Instant>,
    processes_cost: Duration,
    pub(super) vcpus: Option<Instant>,
    vcpus_cost: Duration,
    tables: Option<Instant>,
    /// When tables whose writes raise events were read, by the guest's clock.
    unseen_ns: u64,
    owners: Option<Instant>,
    details: Option<Instant>,
    injections: Option<Instant>,
    pub(super) returns: Option<Instant>,
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
        if elapsed(&mut self.due.injections, missing::INJECTIONS) {
            self.try_injections(vmi);
        }
        if elapsed(&mut self.due.owners, OWNERS) {
            vmi.flush_v2p_cache();
            vmi.flush_gfn_cache();
            self.check_owners(vmi);
        }
        match D::TABLE_POLL {
            Some(period) if elapsed(&mut self.due.tables, period) => self.poll_tables(vmi),
            None => self.poll_tables(vmi),
            Some(_) => {}
        }
        if self.publisher.is_seen() {
            // Many vCPUs, or a host that is slow to answer, are asked less often.
            if elapsed(&mut self.due.vcpus, D::VCPU_POLL.max(self.due.vcpus_cost * VCPUS_SHARE)) {
                let began = Instant::now();
                self.refresh_vcpus(vmi);
                self.due.vcpus_cost = began.elapsed();
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
        self.faults.set_injecting(!self.options.read_only && capabilities.contains(&Capability::FaultInjection));
        let guest = Guest {
            name: info.name,
            os: os.name().to_owned(),
            version: os.version().to_owned(),
            kernel_base: Some(os.kernel_image_base()),
            vcpus: info.vcpus,
            memory_bytes: info.memory_bytes,
            paging_levels: vmi.paging_levels(),
            booted_at_ns: None,
        };
        os.refresh_symbols(vmi);
        self.publisher.describe(guest, capabilities, unavailable, &os.symbols());
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
        self.reads.processes = Some(now(vmi));
        self.check_owners_by(vmi, &list.processes);
        self.refresh_symbols(vmi);
        self.tell_process_changes(vmi, &list.processes);
        self.tell_hidden_threads(vmi, &list.processes, &list.hidden_threads);
        self.processes.clone_from(&list.processes);
        self.publisher.set_processes(list.processes, list.truncated);
        let uptime = vmi.underlying_os().uptime_ns(vmi);
        self.publisher.set_booted(uptime.and_then(|up| i64::try_from(i128::from(now(vmi)) - i128::from(up)).ok()));
    }

    fn tell_hidden_threads(&mut self, vmi: VmiSession<'_, D, Os>, processes: &[Process], hidden: &[(u32, u32)]) {
        let at_ns = now(vmi);
        let name = |pid| processes.iter().find(|process| process.pid == pid).map_or("", |process| &process.name);
        for &(pid, tid) in hidden.iter().filter(|thread| !self.hidden_threads.contains(thread)) {
            let text = format!("thread {tid} of {} ({pid}) is missing from its process's own list", name(pid));
            self.log.push(at_ns, EventKind::Hidden, (None, Some(pid), name(pid).to_owned()), text);
        }
        self.hidden_threads = hidden.to_vec();
    }

    /// Tells what has changed since the last list, which is given up for that.
    fn tell_process_changes(&mut self, vmi: VmiSession<'_, D, Os>, new: &[Process]) {
        let at_ns = now(vmi);
        let before = std::mem::take(&mut self.processes);
        let old: HashMap<_, &Process> = before.iter().map(|process| (process.key(), process)).collect();
        let is_first = !std::mem::replace(&mut self.seen_processes, true);
        for process in new {
            let hidden = process.flags.contains(&ProcessFlag::Hidden);
            let before = old.get(&process.key());
            let place = || (None, Some(process.pid), process.name.clone());
            if before.is_none() && !is_first {
                let text = format!("{} ({}) started, child of {}", process.name, process.pid, process.ppid);
                self.log.push(at_ns, EventKind::ProcessStart, place(), text);
            }
            // Owners have been looked at already.
            if self.owners.get(process.key()).is_none() {
                self.tell_exec(vmi, process);
            }
            if let Some(before) = before
                && let (Some(old_root), Some(new_root)) = (before.root, process.root)
                && old_root != new_root
            {
                self.note_exec(before, process);
            }
            if hidden && before.is_none_or(|before| !before.flags.contains(&ProcessFlag::Hidden)) {
                let text = format!("{} ({}) is missing from the guest's own process list", process.name, process.pid);
                self.log.push(at_ns, EventKind::Hidden, place(), text);
            }
        }
        let alive: std::collections::HashSet<_> = new.iter().map(Process::key).collect();
        for process in before.iter().filter(|process| !alive.contains(&process.key())) {
            self.tell_exec(vmi, process);
            let text = format!("{} ({}) is gone", process.name, process.pid);
            self.log.push(at_ns, EventKind::ProcessExit, (None, Some(process.pid), process.name.clone()), text);
        }
    }

    pub(super) fn refresh_vcpus(&mut self, vmi: VmiSession<'_, D, Os>) {
        let ids = vmi.driver().vcpu_ids();
        let os = vmi.underlying_os();
        let mut vcpus = Vec::with_capacity(ids.len());
        let mut mapped = Vec::with_capacity(ids.len());
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        for id in ids {
            let registers = match vmi.core().registers(id) {
                Ok(registers) => registers,
                Err(error) => {
                    tracing::debug!(%error, vcpu = id.0, "could not read registers");
                    continue;
                }
            };
            mapped.push(os.is_mapped(vmi.with_registers(&registers)));
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
            self.reads.vcpus = Some(now(vmi));
            self.publisher.set_vcpus(vcpus);
            self.watch_kernel(vmi, &mapped);
        }
    }

    /// Reads monitored tables again: now where writes to them raise no events, else once a second.
    pub(super) fn poll_tables(&mut self, vmi: VmiSession<'_, D, Os>) {
        let at_ns = now(vmi);
        if self.ptm.monitored_addresses() == 0 {
            self.reads.tables = Some(at_ns);
            return;
        }
        if D::TABLE_POLL.is_none() {
            // As good as every write to them is an event.
            self.reads.tables = Some(at_ns);
            if at_ns.saturating_sub(self.due.unseen_ns) < UNSEEN_NS {
                return;
            }
            self.due.unseen_ns = at_ns;
        }
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        match self.ptm.poll(vmi.core()) {
            Ok(events) => {
                self.reads.tables = Some(now(vmi));
                self.table_events(vmi, &events, None);
            }
            Err(error) => tracing::debug!(%error, "could not read the monitored page tables"),
        }
    }

    /// Reads the walks that the page-table pane shows.
    pub(super) fn refresh_walks(&mut self, vmi: VmiSession<'_, D, Os>) {
        vmi.flush_v2p_cache();
        for row in self.tables.values_mut().filter(|row| row.ended.is_none()) {
            let walk = walk_of(vmi, row.ctx);
            if walk.len() != row.walk.len() || walk.iter().zip(&row.walk).any(|(new, old)| new.entry != old.entry) {
                row.update_walk(walk);
                self.publisher.tables_changed = true;
            }
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
