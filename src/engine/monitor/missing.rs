//! Missing pages: watching them, and bringing in those that the user wants.
//!
//! A page fault can be injected where a vCPU is in user mode in the page's address space. Such a moment is found by looking
//! now and then, and on the way there: by following a switch of address spaces where the driver reports them, else by
//! breakpoints where the threads of the process return to user mode.

use std::{collections::BTreeSet, time::Duration};

use super::{Monitor, Platform, Purpose, Watcher, elapsed, now};
use crate::engine::{
    addr::{AddressContext, Pa, VcpuId, View},
    arch::amd64::{Amd64, Amd64EventReason, ControlRegister, EventMonitor},
    bpm::Breakpoint,
    error::VmiError,
    faults::WatchChange,
    os::VmiOs,
    session::{VmiContext, VmiSession},
    snapshot::{BreakpointId, EventKind},
};

/// How often an injection is tried.
pub(super) const INJECTIONS: Duration = Duration::from_millis(5);
/// How often it is looked up where threads return to user mode.
const RETURNS: Duration = Duration::from_millis(100);
/// How often other processes may come to such a place before it is given up: each time costs the guest a stop.
const MOST_STRANGERS: u32 = 500;

/// Where the threads of processes with missing pages return to user mode.
#[derive(Debug, Default)]
pub(super) struct Returns {
    places: BTreeSet<AddressContext>,
    /// How often another process came to one of them.
    strangers: u32,
}

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
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

    /// Injects what the user wants and is safe to inject now.
    pub(super) fn try_injections(&mut self, vmi: VmiSession<'_, D, Os>) {
        if self.standby.is_some() {
            return;
        }
        let at_ns = now(vmi);
        self.faults.tick(at_ns);
        let stands = !self.run(vmi.core()).is_running();
        let roots = if stands { Vec::new() } else { self.faults.awaited_roots(at_ns) };
        // The way back from a refusal is there before anything is injected.
        self.watch_refusals(vmi, !roots.is_empty());
        if D::REPORTS_SWITCHES {
            self.follow_switches(vmi, !roots.is_empty());
        } else {
            self.watch_returns(vmi, &roots);
        }
        if roots.is_empty() {
            return;
        }
        for vcpu in vmi.driver().vcpu_ids() {
            if let Err(error) = self.inject_on(vmi, vcpu, at_ns) {
                tracing::debug!(%error, "could not inject a page fault");
            }
        }
    }

    /// Injects on a vCPU that is found in the right place while it runs.
    fn inject_on(&mut self, vmi: VmiSession<'_, D, Os>, vcpu: VcpuId, at_ns: u64) -> Result<(), VmiError> {
        let seen = vmi.core().registers(vcpu)?;
        let root = vmi.underlying_os().process_root(seen.root());
        if !self.faults.is_due::<Amd64>(&seen, root, vcpu, at_ns) {
            return Ok(());
        }
        // What was seen is over: only of a vCPU that stands it is known where it is.
        let _paused = vmi.core().pause_guard()?;
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        let registers = vmi.core().registers(vcpu)?;
        let state = vmi.with_registers(&registers);
        if !self.may_inject_in(state, vmi.underlying_os().process_root(registers.root())) {
            return Ok(());
        }
        self.faults.inject_next(state, vcpu, at_ns).map(drop)
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

    /// Has breakpoints where the threads of these address spaces return to user mode, and nowhere else.
    fn watch_returns(&mut self, vmi: VmiSession<'_, D, Os>, roots: &[Pa]) {
        if roots.is_empty() {
            if !self.returns.places.is_empty() {
                self.set_returns(vmi, &BTreeSet::new());
            }
            self.returns.strangers = 0;
            self.due.returns = None;
            return;
        }
        if self.returns.strangers >= MOST_STRANGERS || !elapsed(&mut self.due.returns, RETURNS) {
            return;
        }
        let mut wanted = BTreeSet::new();
        for &root in roots {
            match vmi.underlying_os().user_returns(vmi, root) {
                Ok(places) => wanted.extend(places.into_iter().map(|va| AddressContext { va, root })),
                Err(error) => tracing::debug!(%error, "could not read where threads return to user mode"),
            }
        }
        if wanted != self.returns.places {
            self.set_returns(vmi, &wanted);
        }
    }

    fn set_returns(&mut self, vmi: VmiSession<'_, D, Os>, wanted: &BTreeSet<AddressContext>) {
        let result: Result<(), VmiError> = (|| {
            let _paused = vmi.core().pause_guard()?;
            let view = self.view(vmi)?;
            for ctx in self.returns.places.difference(wanted).copied().collect::<Vec<_>>() {
                self.bpm.remove(vmi.core(), Self::own_breakpoint(ctx, view, Purpose::Return))?;
                self.returns.places.remove(&ctx);
            }
            for &ctx in wanted {
                if !self.returns.places.contains(&ctx) {
                    self.bpm.insert(vmi.core(), Self::own_breakpoint(ctx, view, Purpose::Return))?;
                    self.returns.places.insert(ctx);
                }
            }
            Ok(())
        })();
        if let Err(error) = result {
            tracing::warn!(%error, "could not watch where threads return to user mode");
        }
    }

    /// A thread has come to a place where it was waited for; whether that is what the event is about.
    pub(super) fn returned(&mut self, vmi: VmiContext<'_, D, Os>) -> bool {
        let &Amd64EventReason::DebugBreakpoint { va, .. } = vmi.event().reason() else { return false };
        if !self.returns.places.iter().any(|place| place.va == va) {
            return false;
        }
        let root = vmi.underlying_os().process_root(vmi.registers().root());
        if !self.returns.places.contains(&AddressContext { va, root }) {
            self.returns.strangers += 1;
            if self.returns.strangers == MOST_STRANGERS {
                let text = format!(
                    "other processes come to {va} too often to wait there for the process of a missing page: it is \
                     looked for now and then only"
                );
                tracing::warn!("{text}");
                self.log.say(now(vmi.session()), EventKind::Engine, text);
                self.set_returns(vmi.session(), &BTreeSet::new());
            }
            return true;
        }
        if !self.may_inject_in(vmi.state(), root) {
            return true;
        }
        let at_ns = now(vmi.session());
        if let Err(error) = self.faults.inject_next(vmi.state(), vmi.event().vcpu_id(), at_ns) {
            tracing::debug!(%error, "could not inject a page fault; its row says why");
        }
        true
    }

    /// While pages are injected, listens to the guest's exception dispatch.
    fn watch_refusals(&mut self, vmi: VmiSession<'_, D, Os>, awaited: bool) {
        let vcpus = vmi.driver().vcpu_ids();
        let wanted = awaited || vcpus.into_iter().any(|vcpu| self.faults.is_in_flight(vcpu));
        if wanted == self.refusal_at.is_some() {
            return;
        }
        let result = match self.refusal_at {
            None => {
                let Some(va) = vmi.underlying_os().fault_refused_at() else { return };
                let ctx = AddressContext { va, root: vmi.underlying_os().kernel_root() };
                self.view(vmi).and_then(|view| {
                    self.bpm.insert(vmi.core(), Self::own_breakpoint(ctx, view, Purpose::Refusal).global())?;
                    self.refusal_at = Some(ctx);
                    Ok(())
                })
            }
            Some(ctx) => {
                let view = self.view.unwrap_or_default();
                let breakpoint = Self::own_breakpoint(ctx, view, Purpose::Refusal).global();
                self.bpm.remove(vmi.core(), breakpoint).map(|_| self.refusal_at = None)
            }
        };
        if let Err(error) = result {
            tracing::warn!(%error, "could not listen to the guest's exception dispatch");
        }
    }

    /// Takes out what waits for a moment to inject, until the next try.
    pub(super) fn stop_injecting(&mut self, vmi: VmiSession<'_, D, Os>) {
        if !self.returns.places.is_empty() {
            self.set_returns(vmi, &BTreeSet::new());
        }
        self.due.returns = None;
        if D::REPORTS_SWITCHES {
            self.follow_switches(vmi, false);
        }
        if let Some(ctx) = self.refusal_at {
            let breakpoint = Self::own_breakpoint(ctx, self.view.unwrap_or_default(), Purpose::Refusal).global();
            match self.bpm.remove(vmi.core(), breakpoint) {
                Ok(_) => self.refusal_at = None,
                Err(error) => tracing::warn!(%error, "could not stop listening to the guest's exception dispatch"),
            }
        }
    }

    fn own_breakpoint(ctx: AddressContext, view: View, purpose: Purpose) -> Breakpoint<Purpose, BreakpointId> {
        Breakpoint::new(ctx, view).with_key(purpose).with_tag(BreakpointId::default())
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
            let root = change.ctx.root;
            let listed = || self.processes.iter().find(|process| process.root == Some(root));
            let owner = self.owners.of_pages(root).or_else(listed);
            let (pid, name) = owner.map_or((None, String::new()), |process| (Some(process.pid), process.name.clone()));
            // The root says whose page it is where no process does.
            let root = if pid.is_some() { String::new() } else { format!(" in root {}", change.ctx.root) };
            let text = format!("{}{root}: {}", change.ctx.va, change.note);
            self.log.push(at_ns, EventKind::Fault, (change.vcpu, pid, name), text);
        }
    }
}
