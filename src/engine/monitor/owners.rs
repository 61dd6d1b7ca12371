//! The processes that rows belong to: each is told from every other one by its [`ProcessKey`], never by its id or its page
//! tables alone, which kernels use again.
//!
//! A breakpoint, a watched address or a missing page of a process, and an open window on it, are that process's. They
//! follow it into another address space (`execve`) and end with it. In the moment before either is noticed, the process
//! that runs on the vCPU decides whose a hit is. Processes that share an address space (`vfork`, `CLONE_VM` without
//! `CLONE_THREAD`) are still several processes: what one of them executes is no hit of another's.

use std::collections::BTreeMap;

use super::{Monitor, Platform, now};
use crate::engine::{
    addr::{AddressContext, Pa, Va},
    command::Subject,
    os::{CurrentProcess, VmiOs},
    session::{VmiSession, VmiState},
    snapshot::{BreakpointId, BreakpointState, EventKind, Process, ProcessKey, TableId},
};

/// The processes that something belongs to.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Those that live, as they were seen last.
    known: Vec<Process>,
    /// Whose the missing pages of an address space are.
    pages: BTreeMap<Pa, ProcessKey>,
    /// Processes as they were before an `execve` that is still to be told.
    execs: Vec<Process>,
    /// The process that the open window is about.
    inspected: Option<Process>,
}

impl Owners {
    /// A process that lives and that something belongs to.
    pub(super) fn get(&self, key: ProcessKey) -> Option<&Process> {
        self.known.iter().find(|process| process.key() == key)
    }

    fn add(&mut self, process: &Process) {
        if self.get(process.key()).is_none() {
            self.known.push(process.clone());
        }
    }

    /// The process whose missing pages are asked for in an address space.
    pub(super) fn of_pages(&self, root: Pa) -> Option<&Process> {
        self.get(*self.pages.get(&root)?)
    }
}

/// What a sentence calls a process.
pub(super) fn called(process: &Process) -> String {
    format!("{} ({})", process.name, process.pid)
}

/// Why what belonged to a process is over.
pub(super) fn over(process: &Process) -> String {
    format!("ended: its process {} ({}) is gone", process.pid, process.name)
}

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// The process that has an id now; `started_ns` tells which one must have it, where that is known.
    ///
    /// # Errors
    /// A sentence for the user when there is no such process.
    pub(super) fn process_by_id(
        &mut self,
        vmi: VmiSession<'_, D, Os>,
        pid: u32,
        started_ns: Option<u64>,
    ) -> Result<Process, String> {
        // It may have started, or have another address space by exec, since the list was read.
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        self.refresh_processes(vmi);
        let mut found = self.processes.iter().filter(|process| process.pid == pid);
        match found.find(|process| started_ns.is_none_or(|start| process.start_ns == start)) {
            Some(process) if process.has_ended() => Err(format!("process {} has ended already", called(process))),
            Some(process) => Ok(process.clone()),
            None => Err(match self.processes.iter().find(|process| process.pid == pid) {
                Some(other) => format!("the process that had the id {pid} is gone: {} is another one", called(other)),
                None => format!("there is no process {pid} in the guest: look at the process list"),
            }),
        }
    }

    /// Something belongs to a process from now on.
    pub(super) fn own(&mut self, process: Option<&Process>) -> Option<ProcessKey> {
        let process = process?;
        self.owners.add(process);
        Some(process.key())
    }

    /// The missing pages of an address space are a process's from now on.
    pub(super) fn own_pages(&mut self, ctx: AddressContext, process: &Process) {
        if process.root == Some(ctx.root) {
            self.owners.add(process);
            self.owners.pages.entry(ctx.root).or_insert(process.key());
        }
    }

    // --- The open window --------------------------------------------------------------------------------------------

    /// Opens, changes or closes the window: one that goes on to show the same process stays with it, even if another one
    /// has been given its id.
    pub(super) fn inspect(&mut self, subject: Option<Subject>) {
        let pid = match &subject {
            Some(Subject::Process(pid)) => Some(*pid),
            Some(Subject::Memory { pid, .. }) => *pid,
            _ => None,
        };
        if self.owners.inspected.as_ref().map(|process| process.pid) != pid {
            self.owners.inspected = None;
        }
        self.subject = subject;
    }

    /// The process of the open window.
    ///
    /// # Errors
    /// A sentence to show in its place when it is gone.
    pub(super) fn inspected(&mut self, vmi: VmiSession<'_, D, Os>, pid: u32) -> Result<Process, String> {
        let Some(inspected) = &self.owners.inspected else {
            // The list that is shown is fresh enough for a look that is taken again and again.
            let listed = self.processes.iter().find(|process| process.pid == pid).cloned();
            let process = match listed {
                Some(process) => process,
                None => self.process_by_id(vmi, pid, None)?,
            };
            self.owners.add(&process);
            self.owners.inspected = Some(process.clone());
            return Ok(process);
        };
        let key = inspected.key();
        let listed = self.processes.iter().find(|process| process.key() == key).cloned();
        let mut process = listed.ok_or_else(|| format!("process {} is gone", called(inspected)))?;
        // An owner is looked at more often than the list is read.
        process.root = self.owners.get(key).and_then(|known| known.root);
        Ok(process)
    }

    // --- Whose a hit is ---------------------------------------------------------------------------------------------

    /// Whether a hit of a row is one of its process's. What runs on the vCPU decides that: the process of an address space
    /// may have ended, and another one have been given its page tables, before anybody looks.
    pub(super) fn is_own_hit(
        &mut self,
        vmi: VmiState<'_, D, Os>,
        id: BreakpointId,
        current: Option<&CurrentProcess>,
    ) -> bool {
        let Some(owner) = self.breakpoints.get(&id).and_then(|row| row.owner) else { return true };
        let is_own = self.runs(vmi, owner, current);
        if !is_own {
            self.check_owner(vmi.session(), owner);
        }
        is_own
    }

    /// Whether a page fault may be injected on a vCPU in an address space as far as that depends on whose it is.
    pub(super) fn may_inject_in(&self, vmi: VmiState<'_, D, Os>, root: Pa) -> bool {
        let Some(&owner) = self.owners.pages.get(&root) else { return true };
        let current = vmi.underlying_os().current_process(vmi).ok().flatten();
        self.runs(vmi, owner, current.as_ref())
    }

    fn runs(&self, vmi: VmiState<'_, D, Os>, owner: ProcessKey, current: Option<&CurrentProcess>) -> bool {
        let os = vmi.underlying_os();
        match current {
            Some(current) => current.key() == owner,
            // What runs cannot be told: then it must be the owner's address space still.
            None => {
                let root = os.process_root(vmi.registers().root());
                os.process_again(vmi.session(), owner).is_ok_and(|it| it.is_some_and(|it| it.root == Some(root)))
            }
        }
    }

    // --- What becomes of them ---------------------------------------------------------------------------------------

    /// Looks what became of all of them.
    pub(super) fn check_owners(&mut self, vmi: VmiSession<'_, D, Os>) {
        self.drop_unowned();
        for process in self.owners.known.clone() {
            self.check_owner(vmi, process.key());
        }
    }

    /// Looks what became of those whose page tables have changed, before the change is taken for one of theirs.
    pub(super) fn check_owners_in(&mut self, vmi: VmiSession<'_, D, Os>, roots: impl Iterator<Item = Pa>) {
        let roots: Vec<Pa> = roots.collect();
        let is_meant = |process: &&Process| process.root.is_some_and(|root| roots.contains(&root));
        for key in self.owners.known.iter().filter(is_meant).map(Process::key).collect::<Vec<_>>() {
            self.check_owner(vmi, key);
        }
    }

    /// The same with a list that was just read.
    pub(super) fn check_owners_by(&mut self, vmi: VmiSession<'_, D, Os>, list: &[Process]) {
        self.drop_unowned();
        for known in self.owners.known.clone() {
            match list.iter().find(|process| process.key() == known.key()) {
                Some(listed) => self.settle(vmi, &known, Some(listed)),
                None => self.check_owner(vmi, known.key()),
            }
        }
    }

    fn check_owner(&mut self, vmi: VmiSession<'_, D, Os>, key: ProcessKey) {
        let Some(known) = self.owners.get(key).cloned() else { return };
        match vmi.underlying_os().process_again(vmi, key) {
            Ok(process) => self.settle(vmi, &known, process.as_ref()),
            // A guest may be caught in the middle of a change.
            Err(error) => tracing::debug!(%error, "could not tell what became of process {}", called(&known)),
        }
    }

    fn settle(&mut self, vmi: VmiSession<'_, D, Os>, known: &Process, process: Option<&Process>) {
        if let Some(process) = process {
            self.tell_exec(vmi, process);
        }
        let settled = match process {
            Some(process) if !process.has_ended() => match (known.root, process.root) {
                (Some(before), Some(root)) if before != root => self.follow_exec(vmi, known, process, (before, root)),
                _ => true,
            },
            _ => return self.end_rows(vmi, known),
        };
        let entry = self.owners.known.iter_mut().find(|entry| entry.key() == known.key());
        if let (Some(entry), Some(process), true) = (entry, process, settled) {
            entry.root = process.root.or(known.root);
            entry.name.clone_from(&process.name);
            entry.object = process.object;
        }
    }

    /// Forgets processes that nothing belongs to any more.
    fn drop_unowned(&mut self) {
        let owners = &mut self.owners;
        owners.pages.retain(|root, _| self.faults.has_pages_in(*root));
        let breakpoints = &self.breakpoints;
        let is_used = |key: ProcessKey| {
            let is_live = |state| state != BreakpointState::Ended;
            breakpoints.values().any(|row| row.owner == Some(key) && is_live(row.state))
                || self.tables.values().any(|row| row.owner == Some(key) && row.ended.is_none())
                || owners.pages.values().any(|owner| *owner == key)
                || owners.inspected.as_ref().is_some_and(|process| process.key() == key)
        };
        owners.known.retain(|process| is_used(process.key()));
    }

    fn breakpoints_of(&self, key: ProcessKey) -> Vec<BreakpointId> {
        let own = self.breakpoints.values().filter(|row| row.owner == Some(key) && row.state != BreakpointState::Ended);
        own.map(|row| row.id).collect()
    }

    fn tables_of(&self, key: ProcessKey) -> Vec<TableId> {
        let own = self.tables.values().filter(|row| row.owner == Some(key) && row.ended.is_none());
        own.map(|row| row.id).collect()
    }

    /// A process is gone: what is its own comes out of the guest, and its rows say so.
    fn end_rows(&mut self, vmi: VmiSession<'_, D, Os>, process: &Process) {
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
    fn follow_exec(
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
        if !self.owners.execs.iter().any(|noted| noted.key() == before.key()) {
            self.owners.execs.push(before.clone());
        }
        // The list is not to find it once more.
        if let Some(listed) = self.processes.iter_mut().find(|listed| listed.key() == process.key()) {
            listed.root = process.root;
        }
    }

    /// Tells what was noted of a process before, now that it has its name.
    pub(super) fn tell_exec(&mut self, vmi: VmiSession<'_, D, Os>, process: &Process) {
        let noted = self.owners.execs.iter().position(|before| before.key() == process.key());
        let Some(before) = noted.map(|noted| self.owners.execs.swap_remove(noted)) else { return };
        let text = if before.name == process.name {
            format!("{} runs another program by execve", called(process))
        } else {
            format!("{} runs {} now, by execve", called(&before), process.name)
        };
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

/// Why an address is refused that belongs to no process.
pub(super) fn needs_process(va: Va) -> String {
    format!("{va} is an address of user mode, which is another one in every process: name the process, as in {va}@1234")
}
