//! Answers to the guest's events.

use super::{Monitor, Platform, Purpose, STORM_SECONDS, Step, now};
use crate::engine::{
    addr::{AddressContext, Gfn, Pa},
    arch::{
        EventMemoryAccess,
        amd64::{Amd64, Amd64EventReason, ControlRegister, root_from_cr3},
    },
    bpm::TapController,
    driver::MemoryAccess,
    event::{VmiEventAction, VmiEventResponse},
    os::{CurrentProcess, VmiOs},
    ptm::PageTableMonitorEvent,
    session::{VmiContext, VmiCore, VmiSession},
    snapshot::{BreakpointId, BreakpointState, EventKind, FaultState, Hit},
};

/// How many arguments a hit shows.
const ARGUMENTS: u32 = 4;
/// How many instructions a vCPU is followed from a switch of address spaces to user mode.
const FOLLOWED_INSTRUCTIONS: u32 = 5000;

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// Answers an event: a hit is recorded, a protected page is stepped over outside of our view, a write to a page
    /// table is followed. Whatever is not ours is given back to the guest.
    pub(super) fn answer(&mut self, vmi: VmiContext<'_, D, Os>) -> VmiEventResponse<Amd64> {
        let event = vmi.event();
        match event.reason() {
            Amd64EventReason::Interrupt(_) | Amd64EventReason::DebugBreakpoint { .. } => {
                if let Some(response) = self.hit(vmi) {
                    return response;
                }
                if D::is_left_over(self.bpm.controller(), vmi.core(), event) {
                    return D::step_over(vmi.core());
                }
                VmiEventResponse::reinject_interrupt()
            }
            Amd64EventReason::MemoryAccess(access) => {
                if let Some(response) = self.hit(vmi) {
                    return response;
                }
                self.access(vmi, *access)
            }
            Amd64EventReason::Singlestep { .. } => self.stepped(vmi),
            Amd64EventReason::WriteCr { register: ControlRegister::Cr3, new, .. } => self.switched(vmi, *new),
            _ => VmiEventResponse::default(),
        }
    }

    /// Records a hit of each breakpoint at the event's place, under the root that its process is known by: user mode may
    /// have another one. Answers how the vCPU goes on, if there was one.
    fn hit(&mut self, vmi: VmiContext<'_, D, Os>) -> Option<VmiEventResponse<Amd64>> {
        let root = vmi.underlying_os().process_root(vmi.registers().root());
        let row = self.bpm.get_by_event_in(vmi.event(), root, Purpose::Row);
        let refusal = self.bpm.get_by_event_in(vmi.event(), root, Purpose::Refusal).is_some();
        if let Some(breakpoint) = row {
            let current = vmi.underlying_os().current_process(vmi.state()).ok().flatten();
            if self.is_own_hit(vmi.state(), breakpoint.tag(), current.as_ref()) {
                self.record_hit(vmi, breakpoint.tag(), &current.unwrap_or_default());
            } else {
                self.pass_by(vmi.session(), breakpoint.tag());
            }
        }
        let unrefused = if refusal { self.refused(vmi) } else { None };
        let returned = self.returned(vmi);
        (row.is_some() || refusal || returned).then(|| unrefused.unwrap_or_else(|| D::step_over(vmi.core())))
    }

    fn record_hit(&mut self, vmi: VmiContext<'_, D, Os>, id: BreakpointId, current: &CurrentProcess) {
        let at_ns = now(vmi.session());
        let Some(row) = self.breakpoints.get_mut(&id) else { return };
        let os = vmi.underlying_os();
        let call = os.system_call(vmi.state());
        let args = match &call {
            Some(call) => call.arguments.clone(),
            // An argument on a missing stack page ends the list, it does not spoil the hit.
            None => (0..ARGUMENTS).map_while(|index| os.function_argument(vmi.state(), index).ok()).collect(),
        };
        let vcpu = vmi.event().vcpu_id();
        let pid = (!current.object.is_null()).then_some(current.pid);
        let hit = Hit {
            at_ns,
            vcpu,
            pid,
            process: current.name.clone(),
            args,
            call: call.map(|call| call.text),
            registers: vmi.registers().gp.named().to_vec(),
        };
        let shown: Vec<String> = hit.args.iter().map(|arg| format!("{arg:#x}")).collect();
        let text = match &hit.call {
            Some(call) => format!("{}: {call}", row.name()),
            None => format!("{}({})", row.name(), shown.join(", ")),
        };
        row.record(hit);
        self.log.counters.hits += 1;
        self.log.push(at_ns, EventKind::Breakpoint, (Some(vcpu), pid, current.name.clone()), text);
        self.end_storm(vmi.session(), id);
    }

    /// Another process than the breakpoint's came to it, in the address space that both are in or that it was given.
    fn pass_by(&mut self, vmi: VmiSession<'_, D, Os>, id: BreakpointId) {
        if let Some(row) = self.breakpoints.get_mut(&id).filter(|row| row.is_on()) {
            row.passed_by(now(vmi));
            self.end_storm(vmi, id);
        }
    }

    fn end_storm(&mut self, vmi: VmiSession<'_, D, Os>, id: BreakpointId) {
        let limit = self.options.storm_limit.unwrap_or_else(|| D::storm_limit(vmi.core()));
        if self.breakpoints.get(&id).is_some_and(|row| row.is_storm(limit)) {
            self.disarm_storm(vmi, id, limit);
        }
    }

    /// Takes a breakpoint out that hits so often that guest and screen would freeze.
    fn disarm_storm(&mut self, vmi: VmiSession<'_, D, Os>, id: BreakpointId, limit: u32) {
        let result = self.disarm(vmi, id);
        let Some(row) = self.breakpoints.get_mut(&id) else { return };
        let text = match result {
            Ok(()) => format!(
                "storm: more than {limit} hits a second for {STORM_SECONDS} s, taken out to spare the guest; toggle it to \
                 put it back, or start with a higher --storm-limit"
            ),
            Err(error) => {
                format!("storm: more than {limit} hits a second for {STORM_SECONDS} s, and it stays in: {error}")
            }
        };
        row.error = Some(text.clone());
        let text = format!("{}: {text}", row.name());
        tracing::warn!("{text}");
        self.log.say(now(vmi), EventKind::Engine, text);
    }

    /// An access that our view forbids: to a page table that is monitored, or to a page with breakpoints.
    fn access(&mut self, vmi: VmiContext<'_, D, Os>, access: EventMemoryAccess) -> VmiEventResponse<Amd64> {
        let event = vmi.event();
        let view = event.view().or(self.view).unwrap_or_default();
        if !access.access.contains(MemoryAccess::W) {
            return D::step_over(vmi.core());
        }
        let table = self.ptm.mark_dirty_entry(access.pa, view, event.vcpu_id());
        let gfn = Gfn(access.pa.0 >> 12);
        // Busy tables are written to a lot, and one entry of them may be all that is monitored.
        if !table && self.ptm.guards(gfn, view) && !self.bpm.contains_page(view, gfn) {
            return D::step_over(vmi.core());
        }
        // A page that has no breakpoint any more may get one again before the store is made.
        self.steps.insert(event.vcpu_id(), Step { view, gfn });
        D::step_and_tell(vmi.core())
    }

    /// The instruction that wrote has run: now the tables and the code are as the guest wants them.
    fn stepped(&mut self, vmi: VmiContext<'_, D, Os>) -> VmiEventResponse<Amd64> {
        let vcpu = vmi.event().vcpu_id();
        let Some(step) = self.steps.remove(&vcpu) else {
            return self.follow(vmi);
        };
        match self.ptm.process_dirty_entries(vmi.core(), vcpu) {
            Ok(events) => self.table_events(vmi.session(), &events, Some(&vmi)),
            Err(error) => {
                tracing::warn!(%error, "could not follow a write to a page table; it is tried again at the next one")
            }
        }
        if let Err(error) = D::guest_wrote(self.bpm.controller_mut(), vmi.core(), step.gfn) {
            tracing::warn!(%error, gfn = %step.gfn, "could not follow a write to a page with breakpoints");
        }
        D::stepped(step.view)
    }

    /// A vCPU is about to switch to another address space. If a page waits for that one, the vCPU is followed from here
    /// to user mode, where the page fault can be injected: looking now and then would hardly ever find it there.
    fn switched(&mut self, vmi: VmiContext<'_, D, Os>, cr3: u64) -> VmiEventResponse<Amd64> {
        let root = vmi.underlying_os().process_root(root_from_cr3(cr3));
        if !self.faults.waits_for(root, now(vmi.session())) {
            return VmiEventResponse::default();
        }
        self.followed.insert(vmi.event().vcpu_id(), FOLLOWED_INSTRUCTIONS);
        VmiEventResponse::singlestep()
    }

    /// One instruction on the way to user mode is done.
    fn follow(&mut self, vmi: VmiContext<'_, D, Os>) -> VmiEventResponse<Amd64> {
        let go_on = self.view.map_or_else(VmiEventResponse::default, D::stepped);
        let vcpu = vmi.event().vcpu_id();
        let Some(left) = self.followed.remove(&vcpu).and_then(|left| left.checked_sub(1)) else { return go_on };
        let at_ns = now(vmi.session());
        let root = vmi.underlying_os().process_root(vmi.registers().root());
        if !self.may_inject_in(vmi.state(), root) {
            return go_on;
        }
        match self.faults.inject_next(vmi.state(), vcpu, at_ns) {
            Ok(None) => {}
            Ok(Some(_)) => return go_on,
            Err(error) => {
                tracing::debug!(%error, "could not inject a page fault; its row says why");
                return go_on;
            }
        }
        if !self.faults.waits_for(root, at_ns) {
            return go_on;
        }
        self.followed.insert(vcpu, left);
        VmiEventResponse { action: VmiEventAction::Singlestep, ..go_on }
    }

    /// Monitored addresses came and went.
    pub(super) fn table_events(
        &mut self,
        vmi: VmiSession<'_, D, Os>,
        events: &[PageTableMonitorEvent],
        cause: Option<&VmiContext<'_, D, Os>>,
    ) {
        if events.is_empty() {
            return;
        }
        let at_ns = now(vmi);
        self.check_owners_in(vmi, events.iter().map(|event| event.update().ctx.root));
        if let Err(error) = self.bpm.handle_ptm_events(vmi.core(), events.iter().copied()) {
            tracing::warn!(%error, "a breakpoint could not follow its page");
        }
        self.publisher.breakpoints_changed = true;
        self.publisher.tables_changed = true;
        let current = cause.and_then(|vmi| vmi.underlying_os().current_process(vmi.state()).ok().flatten());
        for event in events {
            let update = event.update();
            let page_in = event.is_page_in();
            if page_in {
                self.faults.on_page_in(update.ctx, at_ns);
            }
            let rows = self
                .tables
                .values_mut()
                .filter(|row| row.ended.is_none() && row.ctx == update.ctx && row.view == update.view);
            let mut shown = false;
            for row in rows {
                row.changes += 1;
                row.last_change_ns = Some(at_ns);
                shown = true;
            }
            if !shown {
                continue;
            }
            let counters = &mut self.log.counters;
            *(if page_in { &mut counters.page_ins } else { &mut counters.page_outs }) += 1;
            let kind = if page_in { EventKind::PageIn } else { EventKind::PageOut };
            let vcpu = cause.map(|vmi| vmi.event().vcpu_id());
            let place =
                (vcpu, current.as_ref().map(|c| c.pid), current.as_ref().map_or(String::new(), |c| c.name.clone()));
            self.log.push(at_ns, kind, place, self.describe_update(vmi, update.ctx, update.pa));
        }
    }

    fn describe_update(&self, vmi: VmiSession<'_, D, Os>, ctx: AddressContext, pa: Pa) -> String {
        let name = vmi.underlying_os().symbols().describe(ctx.va, 0x1000).unwrap_or_else(|| ctx.va.to_string());
        format!("{name} → {pa} in root {}", ctx.root)
    }

    /// The guest's exception dispatch runs: a page that we asked for may be one that it refuses. Then a program that
    /// never touched that page is not to hear of it: answers how the vCPU goes on for that.
    fn refused(&mut self, vmi: VmiContext<'_, D, Os>) -> Option<VmiEventResponse<Amd64>> {
        let os = vmi.underlying_os();
        let ctx = os.refused_fault(vmi.state(), &self.faults.open_pages());
        let ctx = ctx.inspect_err(|error| tracing::debug!(%error, "could not read an exception's record")).ok()??;
        let is_ours = self.faults.state(ctx) == Some(FaultState::Injected);
        self.faults.on_refused(ctx, now(vmi.session()));
        if !is_ours {
            return None;
        }
        let registers = os.unrefused(vmi.state());
        registers
            .inspect_err(|error| tracing::warn!(%error, "a program hears of a page fault that was injected"))
            .ok()?
            .map(|gp| VmiEventResponse::default().with_registers(gp))
    }

    /// Breakpoints' rows as the manager has them now.
    pub(super) fn sync_breakpoints(&mut self, core: &VmiCore<D>) {
        for row in self.breakpoints.values_mut() {
            if row.is_on() {
                row.state = BreakpointState::Pending;
            }
            row.pa = None;
            row.visible = false;
        }
        for known in self.bpm.breakpoints().filter(|known| known.breakpoint.key() == Purpose::Row) {
            if let (Some(row), Some(pa)) = (self.breakpoints.get_mut(&known.breakpoint.tag()), known.pa) {
                row.state = BreakpointState::Active;
                row.pa = Some(pa);
                row.visible = self.bpm.controller().is_visible(core, row.ctx.va);
            }
        }
    }
}
