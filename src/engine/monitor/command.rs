//! What the user asks, applied between events. Errors are sentences: what was tried, on what, why it failed.

use super::{
    Monitor, Platform, Purpose, Watcher,
    detail::missing_of,
    now,
    owners::needs_process,
    resolve::resolve,
    rows::{BreakpointRow, TableRow},
};
use crate::engine::{
    addr::{AddressContext, Pa, Va, VcpuId, View},
    bpm::Breakpoint,
    command::{Answer, Command, Done, Target},
    error::VmiError,
    os::VmiOs,
    session::VmiSession,
    snapshot::{BreakpointId, BreakpointState, FaultId, MissingPage, Process, Scope, TableId},
};

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// Applies a command.
    pub(super) fn apply(&mut self, vmi: VmiSession<'_, D, Os>, command: Command) -> Answer {
        match command {
            Command::AddBreakpoint { target, scope, tag } => self.add_breakpoint(vmi, target, scope, tag),
            Command::RestoreBreakpoint { target, scope, tag, enabled } => {
                self.set_breakpoint(vmi, target, scope, tag, enabled)
            }
            Command::ToggleBreakpoint(id) => self.toggle(vmi, id),
            Command::RemoveBreakpoint(id) => self.remove(vmi, id),
            Command::WatchAddress { target, tag } => self.add_watch(vmi, target, tag),
            Command::UnwatchAddress(id) => self.unwatch(vmi, id),
            Command::RequestPage { target } => self.request_page(vmi, target),
            Command::InjectFault(id) => self.inject(vmi, id),
            Command::SuppressFault(id) => {
                let result = self.faults.suppress(id, now(vmi));
                Self::said(result, "the page is given up: it will not be asked for again")
            }
            Command::RetryFault(id) => self.retry_fault(vmi, id),
            Command::ClearFault(id) => Self::said(self.faults.clear(id), "the page is forgotten"),
            Command::Pause => {
                let answer = self.pause(vmi.core());
                self.refresh_vcpus(vmi);
                answer
            }
            Command::Resume => self.resume(vmi.core()),
            Command::Step(vcpu) => self.step(vmi, vcpu),
            Command::Inspect(subject) => {
                self.inspect(subject);
                self.refresh_detail(vmi);
                Ok(Done::Quiet)
            }
            // Served before it gets here: its answer comes later.
            Command::Search { .. } => Ok(Done::Quiet),
            Command::CancelSearch => {
                self.cancel_search();
                Ok(Done::Quiet)
            }
            Command::Refresh => {
                self.refresh_all(vmi);
                Ok(Done::Quiet)
            }
            Command::Advance(_) => {
                Err("the guest runs by itself here: only a run in virtual time advances by command".into())
            }
            Command::Quit | Command::StandBy | Command::ComeBack => Ok(Done::Quiet),
        }
    }

    pub(super) fn writable(&self, what: &str) -> Result<(), String> {
        if self.options.read_only {
            return Err(format!("{what}: this session is read-only; start without --read-only to change the guest"));
        }
        Ok(())
    }

    /// The address space of a process, or the kernel's.
    pub(super) fn root_of(vmi: VmiSession<'_, D, Os>, process: Option<&Process>) -> Result<Pa, String> {
        let Some(process) = process else { return Ok(vmi.underlying_os().kernel_root()) };
        let (pid, name) = (process.pid, &process.name);
        process
            .root
            .ok_or_else(|| format!("process {pid} ({name}) has no address space of its own: leave '@{pid}' out"))
    }

    /// Where a target is, and in which process.
    fn place(
        &mut self,
        vmi: VmiSession<'_, D, Os>,
        target: &Target,
    ) -> Result<(AddressContext, Option<Process>), String> {
        let va = resolve(&target.place, &vmi.underlying_os().symbols())?;
        if !crate::engine::arch::amd64::is_canonical(va, vmi.paging_levels()) {
            return Err(format!("{va} is not a canonical address: no processor maps it"));
        }
        let process = match target.pid {
            Some(pid) => Some(self.process_by_id(vmi, pid, target.started_ns)?),
            None if vmi.underlying_os().is_kernel_address(va) => None,
            None => return Err(needs_process(va)),
        };
        Ok((AddressContext { va, root: Self::root_of(vmi, process.as_ref())? }, process))
    }

    fn next_id(&mut self) -> u64 {
        let id = self.next_row;
        self.next_row += 1;
        id
    }

    fn symbol(vmi: VmiSession<'_, D, Os>, va: Va) -> String {
        // What is shown of a row is what sets it anew: after a reset, from a saved state, by hand.
        vmi.underlying_os().symbols().designate(va, 0x1000).unwrap_or_default()
    }

    pub(super) fn add_breakpoint(
        &mut self,
        vmi: VmiSession<'_, D, Os>,
        target: Target,
        scope: Scope,
        tag: String,
    ) -> Answer {
        self.set_breakpoint(vmi, target, scope, tag, true)
    }

    fn set_breakpoint(
        &mut self,
        vmi: VmiSession<'_, D, Os>,
        target: Target,
        scope: Scope,
        tag: String,
        enabled: bool,
    ) -> Answer {
        // A row that is off changes nothing in the guest.
        if enabled {
            self.writable(&format!("breakpoint at {target}"))?;
        }
        let scope = target.pid.map_or(scope, Scope::Process);
        let pid = match scope {
            Scope::Process(pid) => Some(pid),
            Scope::Global => None,
        };
        let target = Target { pid, ..target };
        let (symbol, ctx, process) = match self.place(vmi, &target) {
            Ok((ctx, process)) => (Self::symbol(vmi, ctx.va), ctx, process),
            Err(why) => {
                let (symbol, ctx) = Self::awaited(vmi, &target.place).ok_or(why)?;
                (symbol, ctx, None)
            }
        };
        let owner = self.own(process.as_ref());
        let is_there = |row: &&BreakpointRow| {
            (row.ctx.va, row.scope, row.owner) == (ctx.va, scope, owner) && (ctx.va.0 != 0 || row.symbol == symbol)
        };
        if let Some(row) = self.breakpoints.values().find(is_there) {
            return Err(format!("there is a breakpoint at {} already: select it and toggle it", row.name()));
        }
        let id = BreakpointId(self.next_id());
        let mut row = BreakpointRow::new(id, symbol, ctx, scope, tag);
        row.owner = owner;
        let name = row.name();
        if enabled {
            let armed = self.arm(vmi, &mut row);
            armed.map_err(|error| format!("could not set a breakpoint at {name}: {}", self.worded(&error)))?;
        }
        self.breakpoints.insert(id, row);
        self.sync_breakpoints(vmi.core());
        self.publisher.breakpoints_changed = true;
        let row = self.breakpoints.get(&id);
        let state = match row.map(|row| row.state) {
            Some(BreakpointState::Pending) if row.is_some_and(|row| row.unloaded) => {
                "pending: its module is not loaded, it is set as soon as it is"
            }
            Some(BreakpointState::Pending) => "pending: its page is not mapped, it arms itself when it is",
            Some(BreakpointState::Disabled) => "off",
            _ => "active",
        };
        Ok(Done::Breakpoint(id, format!("breakpoint at {name} is {state}")))
    }

    /// Puts a breakpoint into the guest, or waits for its page.
    pub(super) fn arm(&mut self, vmi: VmiSession<'_, D, Os>, row: &mut BreakpointRow) -> Result<(), VmiError> {
        if Self::locate(vmi, row)? {
            return Ok(());
        }
        let _paused = vmi.core().pause_guard()?;
        let view = self.view(vmi)?;
        row.view = view;
        let mut breakpoint = Breakpoint::new(row.ctx, view);
        if row.scope == Scope::Global {
            breakpoint = breakpoint.global();
        }
        // The page first: a page-in between the two would be missed the other way round.
        self.ptm.monitor(vmi.core(), row.ctx, view, Watcher::Breakpoint)?;
        let inserted = self.bpm.insert(vmi.core(), breakpoint.with_key(Purpose::Row).with_tag(row.id));
        if !matches!(inserted, Ok(true)) {
            self.ptm.unmonitor(vmi.core(), row.ctx, view)?;
        }
        if !inserted? {
            return Err(VmiError::Invalid("another breakpoint is there already".into()));
        }
        row.armed();
        Ok(())
    }

    /// An error with breakpoints called by their names.
    fn worded(&self, error: &VmiError) -> String {
        let VmiError::NoDebugRegister { taken } = error else { return error.to_string() };
        let name = |va: &Va| {
            let row = self.breakpoints.values().find(|row| row.is_on() && row.ctx.va == *va);
            row.map_or_else(|| va.to_string(), BreakpointRow::name)
        };
        let names: Vec<String> = taken.iter().map(name).collect();
        format!(
            "an address of a process needs a debug register of the guest's processor, and all {} are in use: turn one of \
             these off first: {}",
            names.len(),
            names.join(", ")
        )
    }

    /// Takes a breakpoint out of the guest and keeps its row.
    pub(super) fn disarm(&mut self, vmi: VmiSession<'_, D, Os>, id: BreakpointId) -> Result<(), VmiError> {
        let Some(row) = self.breakpoints.get_mut(&id) else { return Ok(()) };
        if !row.is_on() {
            return Ok(());
        }
        if std::mem::take(&mut row.unloaded) {
            row.state = BreakpointState::Disabled;
            row.error = None;
            self.publisher.breakpoints_changed = true;
            return Ok(());
        }
        let _paused = vmi.core().pause_guard()?;
        let breakpoint = Breakpoint::new(row.ctx, row.view);
        let breakpoint = if row.scope == Scope::Global { breakpoint.global() } else { breakpoint };
        self.bpm.remove(vmi.core(), breakpoint.with_key(Purpose::Row).with_tag(id))?;
        row.state = BreakpointState::Disabled;
        row.pa = None;
        self.publisher.breakpoints_changed = true;
        self.ptm.unmonitor(vmi.core(), row.ctx, row.view)?;
        Ok(())
    }

    fn toggle(&mut self, vmi: VmiSession<'_, D, Os>, id: BreakpointId) -> Answer {
        let Some(row) = self.breakpoints.get(&id) else { return Err("that breakpoint is gone".into()) };
        let name = row.name();
        self.writable(&format!("breakpoint at {name}"))?;
        if row.state == BreakpointState::Ended {
            let why = row.error.as_deref().unwrap_or("its process is gone");
            return Err(format!("could not set the breakpoint at {name} again: {why}; delete it and set another one"));
        }
        self.publisher.breakpoints_changed = true;
        if row.is_on() {
            self.disarm(vmi, id).map_err(|error| format!("could not take the breakpoint at {name} out: {error}"))?;
            return Ok(Done::Said(format!("breakpoint at {name} is off")));
        }
        let on = self.switch_on(vmi, id);
        on.map_err(|error| format!("could not set the breakpoint at {name} again: {}", self.worded(&error)))?;
        Ok(Done::Said(format!("breakpoint at {name} is on")))
    }

    /// Puts a breakpoint back into the guest; its row says what became of it.
    pub(super) fn switch_on(&mut self, vmi: VmiSession<'_, D, Os>, id: BreakpointId) -> Result<(), VmiError> {
        let Some((index, _, mut row)) = self.breakpoints.shift_remove_full(&id) else { return Ok(()) };
        let result = self.arm(vmi, &mut row);
        if let Err(error) = &result {
            row.state = BreakpointState::Failed;
            row.error = Some(self.worded(error));
        }
        self.breakpoints.shift_insert(index, id, row);
        self.sync_breakpoints(vmi.core());
        self.publisher.breakpoints_changed = true;
        result
    }

    fn remove(&mut self, vmi: VmiSession<'_, D, Os>, id: BreakpointId) -> Answer {
        let Some(row) = self.breakpoints.get(&id) else { return Err("that breakpoint is gone".into()) };
        let name = row.name();
        self.disarm(vmi, id).map_err(|error| format!("could not take the breakpoint at {name} out: {error}"))?;
        self.breakpoints.shift_remove(&id);
        self.publisher.breakpoints_changed = true;
        Ok(Done::Said(format!("breakpoint at {name} is deleted")))
    }

    pub(super) fn add_watch(&mut self, vmi: VmiSession<'_, D, Os>, target: Target, tag: String) -> Answer {
        let (ctx, process) = self.place(vmi, &target)?;
        if self.tables.values().any(|row| row.ctx == ctx && row.ended.is_none()) {
            return Err(format!("{target} is monitored already"));
        }
        if D::TABLE_POLL.is_none() {
            self.writable(&format!("monitoring {target} by write events"))?;
        }
        let view = self.watch(vmi, ctx).map_err(|error| format!("could not monitor {target}: {error}"))?;
        let owner = self.own(process.as_ref());
        let id = TableId(self.next_id());
        let symbol = Self::symbol(vmi, ctx.va);
        let row = TableRow {
            id,
            symbol,
            ctx,
            pid: target.pid,
            owner,
            ended: None,
            view,
            tag,
            changes: 0,
            last_change_ns: None,
            walk: Vec::new(),
        };
        self.tables.insert(id, row);
        self.refresh_walks(vmi);
        self.publisher.tables_changed = true;
        let mapped = self.mapping(ctx, view).is_some();
        let state = if mapped { "mapped" } else { "not mapped" };
        Ok(Done::Table(id, format!("{target} is monitored; it is {state} now")))
    }

    /// Monitors an address for a row; the view that it is monitored in.
    pub(super) fn watch(&mut self, vmi: VmiSession<'_, D, Os>, ctx: AddressContext) -> Result<View, VmiError> {
        let _paused = if D::TABLE_POLL.is_none() { Some(vmi.core().pause_guard()?) } else { None };
        let view = if D::TABLE_POLL.is_none() { self.view(vmi)? } else { View::default() };
        self.ptm.monitor(vmi.core(), ctx, view, Watcher::Row)?;
        Ok(view)
    }

    fn unwatch(&mut self, vmi: VmiSession<'_, D, Os>, id: TableId) -> Answer {
        let Some(row) = self.tables.get(&id) else { return Err("that address is not monitored any more".into()) };
        let va = row.ctx.va;
        if row.ended.is_none() {
            let unmonitored = self.ptm.unmonitor(vmi.core(), row.ctx, row.view);
            unmonitored.map_err(|error| format!("could not stop monitoring {va}: {error}"))?;
        }
        self.tables.shift_remove(&id);
        self.publisher.tables_changed = true;
        Ok(Done::Said(format!("{va} is not monitored any more")))
    }

    fn step(&mut self, vmi: VmiSession<'_, D, Os>, vcpu: VcpuId) -> Answer {
        self.writable("single-step")?;
        if self.run(vmi.core()).is_running() {
            return Err("a running guest cannot be stepped: pause it first".into());
        }
        vmi.driver().step(vcpu).map_err(|error| format!("could not step vCPU {vcpu}: {error}"))?;
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        self.refresh_vcpus(vmi);
        let rip = self.publisher.rip(vcpu);
        let place = rip.map_or_else(
            || "somewhere".to_owned(),
            |rip| vmi.underlying_os().symbols().describe(rip, 0x10_0000).unwrap_or_else(|| rip.to_string()),
        );
        Ok(Done::Said(format!("vCPU {vcpu} is at {place}")))
    }

    fn request_page(&mut self, vmi: VmiSession<'_, D, Os>, target: Target) -> Answer {
        let (ctx, process) = self.place(vmi, &target)?;
        if vmi.translate_address(ctx).is_ok() {
            return Ok(Done::Said(format!("{target} is there already")));
        }
        let Some(id) = self.faults.request(ctx, "user", now(vmi)) else {
            return Err(format!("could not ask for {target}: too many pages are waited for; clear some of them"));
        };
        if let Some(process) = &process {
            self.own_pages(ctx, process);
        }
        self.follow_faults(vmi);
        Ok(Done::Fault(id, asked(&format!("{target} is asked for and waited for"), missing_of(vmi, ctx))))
    }

    fn retry_fault(&mut self, vmi: VmiSession<'_, D, Os>, id: FaultId) -> Answer {
        let ctx = self.faults.retry(id, now(vmi)).map_err(|error| error.to_string())?;
        Ok(Done::Said(asked("the page is asked for again", missing_of(vmi, ctx))))
    }

    fn inject(&mut self, vmi: VmiSession<'_, D, Os>, id: FaultId) -> Answer {
        self.writable("inject a page fault")?;
        let ctx = self.faults.want(id).map_err(|error| error.to_string())?;
        // Injecting looks again, but that may be a while.
        if let Ok(Some(why)) = vmi.underlying_os().unservable(vmi, ctx) {
            self.faults.on_unservable(ctx, &why, now(vmi));
            return Err(format!(
                "no page fault is injected at {}: the guest would not serve it, because {why}",
                ctx.va
            ));
        }
        Ok(Done::Said(format!("a page fault at {} will be injected as soon as its process runs in user mode", ctx.va)))
    }

    fn said(result: Result<(), VmiError>, done: &str) -> Answer {
        result.map(|()| Done::Said(done.to_owned())).map_err(|error| error.to_string())
    }

    /// What an address maps to, as the page table monitor knows it: where, and in a page of how many bytes.
    pub(super) fn mapping(&self, ctx: AddressContext, view: View) -> Option<(Pa, u64)> {
        let state = self.ptm.state(ctx, view)?;
        Some((state.pa?, state.page_bytes))
    }
}

/// What was done for a page, and what can be done now.
fn asked(done: &str, missing: Option<MissingPage>) -> String {
    match missing {
        Some(missing) if missing.comes_by_fault => {
            format!("{done}: {}; inject it to have that done now", missing.sentence())
        }
        Some(missing) => format!("{done}, but {}", missing.sentence()),
        None => format!("{done}; inject its page fault to have it brought in"),
    }
}
