//! A guest that is reset under us, or whose kernel is replaced by another one (kexec, a snapshot of another boot): what
//! was learnt of its kernel is void, what the user asked for is not.
//!
//! The session on the old kernel ends like any other, with everything taken out of the guest. Whoever runs the monitor then
//! looks for the kernel again ([`Monitor::seek`]) and starts a session on it, which sets the user's rows anew.

use super::{
    Monitor, Platform,
    ages::Reads,
    fault_loop,
    kernel_watch::KernelWatch,
    owners::{Owners, over},
    resolve::resolve,
    told,
};
use crate::engine::{
    addr::{AddressContext, Va},
    arch::amd64::is_canonical,
    bpm::BreakpointManager,
    command::Done,
    os::VmiOs,
    ptm::PageTableMonitor,
    session::{VmiCore, VmiSession},
    snapshot::{BreakpointState, EventKind, ProcessKey, Scope, Status, SymbolTable},
};

/// What is said of a guest whose button was pressed.
pub(super) const BY_RESET: &str = "the guest was reset";

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// Whether the guest was reset since its kernel was looked for. One that is paused has not run since then, and is let
    /// be until it does.
    pub(super) fn was_reset(&self, core: &VmiCore<D>) -> bool {
        !self.paused && core.driver().resets() != self.resets
    }

    /// To be called before the guest's kernel is looked for: a reset from here on voids what is found.
    pub fn begin_seeking(&mut self, core: &VmiCore<D>) {
        self.resets = core.driver().resets();
    }

    /// Publishes that no kernel is found yet, and why.
    pub fn seek(&mut self, core: &VmiCore<D>, why: &str) {
        self.follow_machine(core);
        let run = self.last_run.clone();
        let reset = if self.was_reset_before { format!("{}; ", self.lost_by) } else { String::new() };
        let stands = if run.is_running() { String::new() } else { format!("{}; ", run.sentence()) };
        self.fill(core, Status::Attaching, run);
        let notice = format!("{reset}{stands}no kernel found yet, looking again: {why}");
        self.publisher.set_notice(Some(notice.as_str().into()));
        self.deliver();
    }

    /// Forgets the kernel of a guest that was reset, after its session has ended: breakpoints and addresses in the kernel
    /// wait for the next one, those of processes go with their processes.
    pub fn forget_kernel(&mut self, core: &VmiCore<D>) {
        let (at_ns, by) = (core.driver().clock_ns(), self.lost_by);
        self.was_reset_before = true;
        self.kernel = KernelWatch::default();
        self.reads = Reads::default();
        // The session's teardown has emptied both; whatever it could not take out, the reset did.
        self.bpm = BreakpointManager::new();
        self.ptm = PageTableMonitor::default();
        self.faults = fault_loop();
        self.refusal_at = None;
        self.returns = Default::default();
        self.follows_cr3 = false;
        self.steps.clear();
        self.followed.clear();
        self.processes.clear();
        self.pids.clear();
        self.seen_processes = false;
        self.processes_cut = false;
        self.hidden_threads.clear();
        self.publisher.set_processes(Vec::new(), false);
        for row in self.breakpoints.values_mut() {
            row.pa = None;
            if let Some(owner) = row.owner
                && row.state != BreakpointState::Ended
            {
                row.end(after_reset(&self.owners, owner, by));
            }
        }
        for row in self.tables.values_mut() {
            if let Some(owner) = row.owner
                && row.ended.is_none()
            {
                row.ended = Some(after_reset(&self.owners, owner, by));
            }
        }
        self.owners = Owners::default();
        let waiting = self.breakpoints.values().filter(|row| row.is_on()).count();
        let waiting =
            if waiting == 1 { "1 breakpoint waits".to_owned() } else { format!("{waiting} breakpoints wait") };
        let text = format!("{by}: its kernel is looked for again, {waiting} for it");
        tracing::warn!("{text}");
        self.log.say(at_ns, EventKind::Vm, text);
        self.publisher.breakpoints_changed = true;
        self.publisher.tables_changed = true;
    }

    /// Sets the rows of the kernel before again, where the new one has their places.
    pub(super) fn set_again(&mut self, vmi: VmiSession<'_, D, Os>) {
        let os = vmi.underlying_os();
        let (symbols, root) = (os.symbols(), os.kernel_root());
        let place = |symbol: &str, va: Va| {
            let va = moved(symbol, va, &symbols)?;
            if is_canonical(va, vmi.paging_levels()) {
                Ok(AddressContext { va, root })
            } else {
                Err(format!("{va} is not a canonical address any more"))
            }
        };
        let (mut set, mut failed) = (0, 0);
        for (index, id) in self.breakpoints.keys().copied().collect::<Vec<_>>().into_iter().enumerate() {
            let Some(mut row) = self.breakpoints.shift_remove(&id) else { continue };
            if row.scope == Scope::Global {
                let placed = match os.missing_module(&row.symbol) {
                    // Setting it makes it wait.
                    Some(_) => Ok(row.ctx),
                    None => place(&row.symbol, row.ctx.va),
                };
                let armed = match placed {
                    Ok(ctx) if row.is_on() => {
                        row.ctx = ctx;
                        self.arm(vmi, &mut row).map_err(|error| error.to_string())
                    }
                    Ok(ctx) => {
                        row.ctx = ctx;
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                set += usize::from(armed.is_ok() && row.is_on());
                if let Err(error) = armed {
                    failed += 1;
                    row.state = BreakpointState::Failed;
                    row.error = Some(format!("could not be set again in the new kernel: {error}"));
                }
            }
            self.breakpoints.shift_insert(index, id, row);
        }
        for id in self.tables.keys().copied().collect::<Vec<_>>() {
            let row = self.tables.get(&id).filter(|row| row.ended.is_none());
            let Some(place) = row.map(|row| place(&row.symbol, row.ctx.va)) else { continue };
            let again = place.and_then(|ctx| Ok((ctx, self.watch(vmi, ctx).map_err(|error| error.to_string())?)));
            match again {
                Ok((ctx, view)) => {
                    if let Some(row) = self.tables.get_mut(&id) {
                        (row.ctx, row.view, row.walk) = (ctx, view, Vec::new());
                    }
                }
                Err(error) => {
                    failed += 1;
                    tracing::warn!(%error, "a monitored address is dropped: the new kernel does not have it");
                    self.tables.shift_remove(&id);
                }
            }
        }
        self.sync_breakpoints(vmi.core());
        let base = os.kernel_image_base();
        let set = if set == 1 { "1 breakpoint is".to_owned() } else { format!("{set} breakpoints are") };
        let mut text = format!("the kernel was found again: {} at {base}, {set} set again", os.version());
        if failed > 0 {
            let places = if failed == 1 { "place" } else { "places" };
            text = format!("{text}, {failed} {places} could not be");
        }
        told(&Ok(Done::Said(text.clone())));
        self.log.say(vmi.driver().clock_ns(), EventKind::Vm, text);
    }
}

/// What a row of a process says after a reset.
fn after_reset(owners: &Owners, owner: ProcessKey, by: &str) -> String {
    match owners.get(owner) {
        Some(process) => format!("{}: {by}", over(process)),
        None => format!("ended: its process {} is gone: {by}", owner.pid),
    }
}

/// Where a place is in the kernel of now: by its name, if it has one. An address without a name stays what it is.
fn moved(symbol: &str, va: Va, symbols: &SymbolTable) -> Result<Va, String> {
    if symbol.is_empty() { Ok(va) } else { resolve(symbol, symbols) }
}
