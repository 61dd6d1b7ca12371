//! More of one process: what its own pages say (command line, modules: through the prober, they may be paged out) and
//! what the kernel keeps (threads, address space, handles, token).

use std::collections::HashSet;

use super::{
    WindowsOs,
    list::{MOST_THREADS, THREAD_OBJECT},
    memory::{Memory, present},
};
use crate::engine::{
    addr::Va,
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    session::{VmiCore, VmiProber},
    snapshot::{Module, Process, ProcessDetail, ThreadInfo},
};

/// The process that the kernel's own threads belong to.
const SYSTEM: u32 = 4;

/// `_KTHREAD.State` (KTHREAD_STATE).
const STATES: [&str; 9] = [
    "initialized",
    "ready",
    "running",
    "standby",
    "terminated",
    "waiting",
    "transition",
    "deferred-ready",
    "gate-wait",
];

impl WindowsOs {
    pub(super) fn detail<Driver>(
        &self,
        core: &VmiCore<Driver>,
        process: &Process,
        prober: &VmiProber,
    ) -> Result<ProcessDetail, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let kernel = self.memory(core);
        let mut detail = ProcessDetail { process: process.clone(), ..ProcessDetail::default() };
        prober.probe(|| kernel.threads(process, &mut detail))?;
        let mut list = |read: Option<bool>, name: &'static str| {
            if read.unwrap_or(true) {
                detail.truncated.push(name);
            }
        };
        let credentials = prober.probe(|| kernel.credentials(process.object))?;
        list(credentials.as_ref().map(|(_, truncated)| *truncated), "credentials");
        let handles = prober.probe(|| kernel.handles(process.object))?;
        list(handles.as_ref().map(|(_, truncated)| *truncated), "handles");
        detail.credentials = credentials.unwrap_or_default().0;
        detail.handles = handles.unwrap_or_default().0;

        let peb = prober.probe(|| kernel.pointer(process.object + self.offsets.peb))?.unwrap_or_default();
        match process.root {
            Some(root) if !peb.is_null() => kernel.user_half(kernel.of(root), peb, process, prober, &mut detail)?,
            // What has no user mode has no command line, no regions and no modules: but for the kernel itself.
            _ => {
                detail.command_line = Some(String::new());
                if process.pid == SYSTEM {
                    let modules = prober.probe(|| kernel.kernel_modules())?;
                    detail.truncated.extend(modules.as_ref().is_none_or(|(_, more)| *more).then_some("modules"));
                    detail.modules = modules.unwrap_or_default().0;
                }
            }
        }
        if core.cut().is_some() {
            let lists = ["threads", "handles", "modules", "regions"].into_iter();
            detail.truncated.extend(lists.filter(|list| !detail.truncated.contains(list)).collect::<Vec<_>>());
        }
        kernel.name_threads(&mut detail);
        detail.missing = prober.page_faults().iter().map(|missing| missing.va).collect();
        Ok(detail)
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> Memory<'_, Driver> {
    /// The part of a process in its own memory, and the tree of its address ranges.
    fn user_half(
        &self,
        user: Self,
        peb: Va,
        process: &Process,
        prober: &VmiProber,
        detail: &mut ProcessDetail,
    ) -> Result<(), VmiError> {
        let o = &self.os.offsets;
        detail.command_line = prober.probe(|| user.command_line(peb))?;
        let mut truncated = false;
        let lists = [
            prober.probe(|| user.process_modules(peb))?,
            prober.probe(|| {
                let wow64 = self.pointer(process.object + o.wow64)?;
                let peb = if wow64.is_null() { Va(0) } else { self.pointer(wow64 + o.wow64_peb)? };
                if peb.is_null() { Ok(Default::default()) } else { user.process_modules_32(peb) }
            })?,
        ];
        for (modules, more) in lists.into_iter().flatten() {
            truncated |= more;
            add_modules(&mut detail.modules, modules);
        }
        if let Some(mappings) = prober.probe(|| self.mappings(process.object))? {
            // What the loader's lists do not have, or cannot be asked for, the kernel's tree still has.
            add_modules(&mut detail.modules, mappings.images);
            detail.regions = mappings.regions;
            detail.truncated.extend(mappings.truncated.then_some("regions"));
        }
        detail.truncated.extend(truncated.then_some("modules"));
        Ok(())
    }

    /// The threads in the process's list, then those that only the table of ids knows, if they are the same at a second
    /// look: the guest may run while we look.
    fn threads(&self, process: &Process, detail: &mut ProcessDetail) -> Result<(), VmiError> {
        self.look_at_threads(process, detail)?;
        let hidden = detail.threads.iter().filter(|thread| thread.hidden);
        let suspects: HashSet<(Va, u32)> = hidden.map(|thread| (thread.object, thread.tid)).collect();
        if !suspects.is_empty() {
            self.core.flush_gfn_cache();
            self.core.flush_v2p_cache();
            detail.threads.clear();
            self.look_at_threads(process, detail)?;
            detail.threads.retain(|thread| !thread.hidden || suspects.contains(&(thread.object, thread.tid)));
        }
        Ok(())
    }

    fn look_at_threads(&self, process: &Process, detail: &mut ProcessDetail) -> Result<(), VmiError> {
        let o = &self.os.offsets;
        let head = process.object + o.thread_list;
        let mut link = self.pointer(head)?;
        let mut seen = HashSet::new();
        let mut truncated = false;
        while link != head {
            let object = link - o.thread_links;
            if detail.threads.len() >= MOST_THREADS || !seen.insert(object) {
                truncated = true;
                break;
            }
            let Some(thread) = present(self.thread(object))? else {
                truncated = true;
                break;
            };
            detail.threads.push(thread);
            link = self.pointer(link)?;
        }
        // What a walk that was cut short did not come to is not hidden.
        if truncated {
            detail.truncated.push("threads");
            return Ok(());
        }
        let Some(ids) = present(self.known_ids())? else { return Ok(()) };
        let listed = detail.threads.len();
        let own = |&&(id, object): &&(u64, Va)| {
            let read = |at: u64| present(self.u64(object + at)).ok().flatten();
            // The id that it has itself tells the entry of a thread from one that was just given back.
            read(o.thread_process) == Some(process.object.0) && read(o.cid + o.cid_thread) == Some(id)
        };
        for &(_, object) in ids.of(THREAD_OBJECT).iter().filter(own).filter(|(_, object)| !seen.contains(object)) {
            if let Some(thread) = present(self.thread(object))?.filter(|thread| thread.state != "terminated") {
                detail.threads.push(ThreadInfo { hidden: true, ..thread });
            }
            if detail.threads.len() >= listed + MOST_THREADS {
                break;
            }
        }
        // A comparison that was cut finds nothing missing.
        if self.core.cut().is_some() {
            detail.threads.truncate(listed);
        }
        Ok(())
    }

    fn thread(&self, object: Va) -> Result<ThreadInfo, VmiError> {
        let o = &self.os.offsets;
        let state = self.u8(object + o.thread_state)?;
        let start = self.pointer(object + o.start_address)?;
        Ok(ThreadInfo {
            tid: self.u64(object + o.cid + o.cid_thread)? as u32,
            name: self.os.symbols.describe(start, 0).unwrap_or_else(|| format!("start {start}")),
            state: STATES.get(usize::from(state)).copied().unwrap_or("unknown").to_owned(),
            object,
            hidden: false,
        })
    }

    /// Calls threads that start in a module of the process by it: the kernel's symbols are no help there.
    fn name_threads(&self, detail: &mut ProcessDetail) {
        for thread in &mut detail.threads {
            let Ok(start) = self.pointer(thread.object + self.os.offsets.start_address) else { continue };
            let module = detail.modules.iter().find(|module| start >= module.base && start - module.base < module.size);
            if let Some(module) = module.filter(|_| self.os.symbols.describe(start, 0).is_none()) {
                thread.name = format!("{}+{:#x}", module.name, start - module.base);
            }
        }
    }

    fn command_line(&self, peb: Va) -> Result<String, VmiError> {
        let parameters = self.pointer(peb + self.os.offsets.parameters)?;
        self.string(parameters + self.os.offsets.command_line)
    }
}

/// Adds what is not there yet.
fn add_modules(to: &mut Vec<Module>, more: Vec<Module>) {
    let known: HashSet<Va> = to.iter().map(|module| module.base).collect();
    to.extend(more.into_iter().filter(|module| !known.contains(&module.base)));
}
