//! What becomes of the rows of a process that runs another program or ends.

use super::{
    Monitor, Platform, now,
    owners::{called, over},
};
use crate::engine::{
    addr::{AddressContext, Pa},
    os::VmiOs,
    session::VmiSession,
    snapshot::{BreakpointId, BreakpointState, EventKind, Process, ProcessKey, TableId},
};

/// Changes of program that may be noted and not told yet; a guest where more happen between two looks is out for something.
const MOST_EXECS: usize = 1 << 12;

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    fn breakpoints_of(&self, key: ProcessKey) -> Vec<BreakpointId> {
        let own = self.breakpoints.values().filter(|row| row.owner == Some(key) && row.state != BreakpointState::Ended);
        own.map(|row| row.id).collect()
    }

    fn tables_of(&self, key: ProcessKey) -> Vec<TableId> {
        let own = self.tables.values().filter(|row| row.owner == Some(key) && row.ended.is_none());
        own.map(|row| row.id).collect()
    }

    /// A process is gone: what is its own comes out of the guest, and its rows say so.
    pub(super) fn end_rows(&mut self, vmi: VmiSession<'_, D, Os>, process: &Process) {
        let (key, at_ns) = (process.key(), now(vmi));
        let (mut ended, mut is_out) = (Vec::new(), true);
        let breakpoints = self.breakpoints_of(key);
        for &id in &breakpoints {
            let disarmed = self.disarm(vmi, id);
            let Some(row) = self.breakpoints.get_mut(&id) else { continue };
            match disarmed {
                Ok(()) => row.end(over(process)),
                // It is tried again at the next look.
                Err(error) => {
                    is_out = false;
                    row.error = Some(format!("{}, and it could not be taken out: {error}", over(process)));
                }
            }
        }
        let tables = self.tables_of(key);
        for &id in &tables {
            let Some(row) = self.tables.get_mut(&id) else { continue };
            row.ended = Some(over(process));
            if let Err(error) = self.ptm.unmonitor(vmi.core(), row.ctx, row.view) {
                tracing::warn!(%error, "could not stop watching an address of a process that is gone");
            }
        }
        self.publisher.breakpoints_changed = true;
        self.publisher.tables_changed = true;
        if is_out {
            ended.extend(counted(breakpoints.len(), "breakpoint"));
        }
        ended.extend(counted(tables.len(), "watched address"));
        ended.extend(self.leave_pages(vmi, key).then(|| "its missing pages".to_owned()));
        if !ended.is_empty() {
            let text = format!("{} is gone, and with it {}", called(process), ended.join(" and "));
            tracing::info!("{text}");
            self.log.push(at_ns, EventKind::Engine, (None, Some(process.pid), process.name.clone()), text);
        }
        self.leave_search(process.root);
        if is_out {
            self.owners.known.retain(|known| known.key() != key);
        }
    }

    /// A process has another address space, by `execve`: what is its own moves there. Answers whether all of it did.
    pub(super) fn follow_exec(
        &mut self,
        vmi: VmiSession<'_, D, Os>,
        known: &Process,
        process: &Process,
        (before, root): (Pa, Pa),
    ) -> bool {
        self.note_exec(known, process);
        let (key, mut all) = (known.key(), true);
        let breakpoints = self.breakpoints_of(key);
        for &id in &breakpoints {
            let was_on = self.breakpoints.get(&id).is_some_and(|row| row.is_on());
            let disarmed = self.disarm(vmi, id);
            let Some(row) = self.breakpoints.get_mut(&id) else { continue };
            if let Err(error) = disarmed {
                all = false;
                row.error = Some(format!("it could not be taken out of the program before: {error}"));
                continue;
            }
            row.ctx.root = root;
            // A failure is in its row.
            let _ = if was_on { self.switch_on(vmi, id) } else { Ok(()) };
        }
        for id in self.tables_of(key) {
            let Some((old, view)) = self.tables.get(&id).map(|row| (row.ctx, row.view)) else { continue };
            if let Err(error) = self.ptm.unmonitor(vmi.core(), old, view) {
                tracing::warn!(%error, "could not stop watching an address of the program before");
            }
            let ctx = AddressContext { root, ..old };
            let watched = self.watch(vmi, ctx);
            let Some(row) = self.tables.get_mut(&id) else { continue };
            (row.ctx, row.walk) = (ctx, Vec::new());
            match watched {
                Ok(view) => row.view = view,
                Err(error) => row.ended = Some(format!("ended: it could not be watched in another program: {error}")),
            }
        }
        self.publisher.breakpoints_changed = true;
        self.publisher.tables_changed = true;
        self.leave_pages(vmi, key);
        self.leave_search(Some(before));
        let state = |state| {
            let mine = breakpoints.iter().filter_map(|id| self.breakpoints.get(id));
            mine.filter(|row| row.state == state).count()
        };
        let set = counted(state(BreakpointState::Active), "breakpoint").map(|text| format!("{text} set again"));
        let waits =
            counted(state(BreakpointState::Pending), "breakpoint").map(|text| format!("{text} waiting for its page"));
        let text: Vec<String> = set.into_iter().chain(waits).collect();
        if !text.is_empty() {
            let text = format!("{} runs another program: {}", called(process), text.join(", "));
            self.log.push(now(vmi), EventKind::Engine, (None, Some(process.pid), process.name.clone()), text);
        }
        all
    }

    /// Forgets the missing pages of a process; whether there were any.
    fn leave_pages(&mut self, vmi: VmiSession<'_, D, Os>, key: ProcessKey) -> bool {
        let of_key = |(&root, &owner): (&Pa, &ProcessKey)| (owner == key).then_some(root);
        let roots: Vec<Pa> = self.owners.pages.iter().filter_map(of_key).collect();
        let mut any = false;
        for root in roots {
            any |= self.faults.has_pages_in(root);
            self.faults.on_root_gone(root);
            self.owners.pages.remove(&root);
        }
        self.follow_faults(vmi);
        any
    }

    /// Ends a search of an address space that is gone; what it has found is its answer.
    fn leave_search(&mut self, root: Option<Pa>) {
        if root.is_some() && self.search.as_ref().map(|search| search.root()) == root {
            self.cancel_search();
        }
    }

    /// A process runs another program. The kernel gives it its address space before its name (`begin_new_exec` in
    /// `fs/exec.c`), so that is told at the next look.
    pub(super) fn note_exec(&mut self, before: &Process, process: &Process) {
        let execs = &mut self.owners.execs;
        if execs.len() < MOST_EXECS {
            execs.entry(before.key()).or_insert_with(|| before.clone());
        }
        // The list is not to find it once more.
        if let Some(listed) = self.processes.iter_mut().find(|listed| listed.key() == process.key()) {
            listed.root = process.root;
            self.pids.extend(process.root.map(|root| (root, process.pid)));
        }
    }

    /// Tells what was noted of a process before, now that it has its name.
    pub(super) fn tell_exec(&mut self, vmi: VmiSession<'_, D, Os>, process: &Process) {
        let Some(before) = self.owners.execs.remove(&process.key()) else { return };
        let mut text = if before.name == process.name {
            format!("{} runs another program by execve", called(process))
        } else {
            format!("{} runs {} now, by execve", called(&before), process.name)
        };
        // A name of fifteen characters says little of a program, nothing at all of one out of a memfd.
        if let Some(program) = vmi.underlying_os().program(vmi, process) {
            text.push_str(&format!(" of {program}"));
        }
        self.log.push(now(vmi), EventKind::ProcessExec, (None, Some(process.pid), process.name.clone()), text);
    }
}

/// "2 breakpoints", or nothing.
fn counted(count: usize, what: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ if what.ends_with('s') => Some(format!("{count} {what}es")),
        _ => Some(format!("{count} {what}s")),
    }
}
