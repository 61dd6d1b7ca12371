//! The processes that rows belong to: each is told from every other one by its [`ProcessKey`], never by its id or its page
//! tables alone, which kernels use again.
//!
//! A breakpoint, a watched address or a missing page of a process, and an open window on it, are that process's. They
//! follow it into another address space (`execve`) and end with it: see `exec_exit`. In the moment before either is
//! noticed, the process that runs on the vCPU decides whose a hit is. Processes that share an address space (`vfork`,
//! `CLONE_VM` without `CLONE_THREAD`) are still several processes: what one of them executes is no hit of another's.

use std::collections::{BTreeMap, HashMap};

use super::{Monitor, Platform};
use crate::engine::{
    addr::{AddressContext, Pa, Va},
    command::Subject,
    os::{CurrentProcess, VmiOs},
    session::{VmiSession, VmiState},
    snapshot::{BreakpointId, BreakpointState, Process, ProcessKey},
};

/// The processes that something belongs to.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Those that live, as they were seen last.
    pub(super) known: Vec<Process>,
    /// Whose the missing pages of an address space are.
    pub(super) pages: BTreeMap<Pa, ProcessKey>,
    /// Processes as they were before an `execve` that is still to be told.
    pub(super) execs: HashMap<ProcessKey, Process>,
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
            None if self.processes_cut => Err(format!(
                "process {pid} is not in what could be read of the guest's process list, which is cut short"
            )),
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
        let listed = match listed {
            // What a list that is cut short does not have may live all the same.
            None if self.processes_cut => match vmi.underlying_os().process_again(vmi, key) {
                Ok(process) => process,
                Err(_) => Some(inspected.clone()),
            },
            listed => listed,
        };
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
        if self.owners.known.is_empty() {
            return;
        }
        let list: HashMap<ProcessKey, &Process> = list.iter().map(|process| (process.key(), process)).collect();
        for known in self.owners.known.clone() {
            match list.get(&known.key()) {
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
}

/// Why an address is refused that belongs to no process.
pub(super) fn needs_process(va: Va) -> String {
    format!("{va} is an address of user mode, where each process has its own memory: name the process, as in {va}@1234")
}
