//! Modules of the guest's kernel that come and go: names follow them, and so do rows that are about a place in one.
//!
//! A row keeps its place by name. While its module is not loaded it is pending and nothing of it is in the guest, whose
//! memory there may be anybody's by then; when the module is loaded, most likely somewhere else, the row is set again.

use std::sync::Arc;

use super::{Monitor, Platform, now, rows::BreakpointRow};
use crate::engine::{
    addr::{AddressContext, Va},
    arch::amd64::is_canonical,
    error::VmiError,
    os::VmiOs,
    session::VmiSession,
    snapshot::{BreakpointId, EventKind, TableId},
    symbols::respelt,
};

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// Looks which modules are loaded; where that has changed, publishes their names and has rows follow.
    pub(super) fn refresh_symbols(&mut self, vmi: VmiSession<'_, D, Os>) {
        if !vmi.underlying_os().refresh_symbols(vmi) {
            return;
        }
        self.publisher.set_symbols(vmi.underlying_os().symbols());
        for id in self.breakpoints.keys().copied().collect::<Vec<_>>() {
            self.follow_breakpoint(vmi, id);
        }
        for id in self.tables.keys().copied().collect::<Vec<_>>() {
            self.follow_table(vmi, id);
        }
        self.sync_breakpoints(vmi.core());
        self.publisher.breakpoints_changed = true;
        self.publisher.tables_changed = true;
    }

    fn follow_breakpoint(&mut self, vmi: VmiSession<'_, D, Os>, id: BreakpointId) {
        let Some(row) = self.breakpoints.get(&id).filter(|row| row.is_on() && is_of_module(&row.symbol)) else {
            return;
        };
        let is_loaded = !row.unloaded;
        let moved = place_of(vmi, &row.symbol) != Some(row.ctx.va);
        if is_loaded && !moved {
            return;
        }
        // What was there is taken out even where another module lies now: every page of it is ours to put right.
        if is_loaded && let Err(error) = self.disarm(vmi, id) {
            tracing::warn!(%error, "a breakpoint could not be taken out of a module that was unloaded");
            return;
        }
        let set = self.switch_on(vmi, id);
        let Some(row) = self.breakpoints.get(&id) else { return };
        let text = match (&set, row.unloaded) {
            (Err(error), _) => format!("breakpoint at {} could not be set again: {error}", row.name()),
            (Ok(()), true) if is_loaded => format!("breakpoint at {} waits: its module was unloaded", row.name()),
            (Ok(()), true) => return,
            (Ok(()), false) => format!("breakpoint at {} is set again: its module was loaded", row.name()),
        };
        tracing::info!("{text}");
        self.log.say(now(vmi), EventKind::Vm, text);
    }

    fn follow_table(&mut self, vmi: VmiSession<'_, D, Os>, id: TableId) {
        let Some(row) = self.tables.get(&id).filter(|row| is_of_module(&row.symbol)) else { return };
        let (old, view) = (row.ctx, row.view);
        let Some(va) = place_of(vmi, &row.symbol).filter(|va| *va != old.va) else { return };
        let ctx = AddressContext { va, ..old };
        let moved = self.watch(vmi, ctx).and_then(|new| self.ptm.unmonitor(vmi.core(), old, view).map(|_| new));
        match (moved, self.tables.get_mut(&id)) {
            (Ok(view), Some(row)) => (row.ctx, row.view, row.walk) = (ctx, view, Vec::new()),
            (Err(error), _) => tracing::warn!(%error, "a monitored address could not follow its module"),
            _ => {}
        }
    }

    /// A row for a place in a module that is not loaded now; `None` where the place is none.
    pub(super) fn awaited(vmi: VmiSession<'_, D, Os>, place: &str) -> Option<(String, AddressContext)> {
        let os = vmi.underlying_os();
        os.missing_module(place)?;
        let symbol = respelt(place).unwrap_or_else(|| place.to_owned());
        Some((symbol, AddressContext { va: Va(0), root: os.kernel_root() }))
    }

    /// Finds the place of a row whose module may have been unloaded since; whether it has to wait for it.
    pub(super) fn locate(vmi: VmiSession<'_, D, Os>, row: &mut BreakpointRow) -> Result<bool, VmiError> {
        row.unloaded = false;
        if !is_of_module(&row.symbol) {
            return Ok(false);
        }
        if let Some(module) = vmi.underlying_os().missing_module(&row.symbol) {
            let why = format!("module {module} is not loaded: the breakpoint is set as soon as it is");
            row.await_module(why);
            return Ok(true);
        }
        match vmi.underlying_os().symbols().place(&row.symbol) {
            Ok(Some(va)) if is_canonical(va, vmi.paging_levels()) => row.ctx.va = va,
            Ok(_) => return Err(VmiError::Invalid(format!("there is no {} in the module now", row.symbol))),
            Err(why) => return Err(VmiError::Invalid(why)),
        }
        Ok(false)
    }
}

/// Whether a row's name is one of a module's.
fn is_of_module(symbol: &str) -> bool {
    symbol.contains('!')
}

fn place_of<D: Platform, Os: VmiOs<D>>(vmi: VmiSession<'_, D, Os>, symbol: &str) -> Option<Va> {
    let symbols: Arc<_> = vmi.underlying_os().symbols();
    symbols.place(symbol).ok().flatten()
}
