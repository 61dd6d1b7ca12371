//! More of one process: command line, credentials, threads; its memory is read in `maps`, its files in `files`.

use std::collections::HashSet;

use super::{kernel::Kernel, tasks::TaskRecord};
use crate::engine::{
    addr::Va,
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    session::VmiProber,
    snapshot::{Process, ProcessDetail, ThreadInfo, clean},
};

/// Bytes of a command line that are read.
const MOST_ARGUMENTS: u64 = 4096;
/// Threads that are listed at most.
const MOST_THREADS: usize = 4096;

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// Everything that is read of a process. Only its own memory may be missing for good reason: those pages are asked
    /// for; a pointer of the kernel's that leads nowhere cuts its part short.
    pub(super) fn detail(&self, process: &Process, prober: &VmiProber) -> Result<ProcessDetail, VmiError> {
        let gone = || VmiError::os(format!("process {} ({}) has ended", process.pid, process.name));
        let task = self.task(process.object).ok().filter(|task| task.tgid == process.pid).ok_or_else(gone)?;
        let mut detail = ProcessDetail { process: process.clone(), ..ProcessDetail::default() };
        detail.command_line = self.command_line(&task, process, prober)?;
        detail.credentials = self.credentials(&task);
        let mut part = |found: Option<bool>, name: &'static str| match found {
            Some(true) => detail.truncated.push(name),
            Some(false) => {}
            None => {
                detail.unavailable.push(format!("{name}: the kernel's type information does not tell where they are"))
            }
        };
        let threads = self.threads(&task);
        part(threads.as_ref().map(|(_, truncated)| *truncated), "threads");
        let files = self.open_files(task.object);
        part(files.as_ref().map(|(_, truncated)| *truncated), "handles");
        let mappings = if task.mm.is_null() { Some(Default::default()) } else { self.mappings(task.mm) };
        part(mappings.as_ref().map(|mappings| mappings.truncated), "regions");
        let mappings = mappings.unwrap_or_default();
        Ok(ProcessDetail {
            threads: threads.map(|(threads, _)| threads).unwrap_or_default(),
            handles: files.map(|(files, _)| files).unwrap_or_default(),
            regions: mappings.regions,
            modules: mappings.modules,
            missing: prober.page_faults().iter().map(|page| page.va).collect(),
            ..detail
        })
    }

    /// The arguments, with blanks between them; empty for a kernel thread, `None` while the page is missing.
    fn command_line(
        &self,
        task: &TaskRecord,
        process: &Process,
        prober: &VmiProber,
    ) -> Result<Option<String>, VmiError> {
        let (Some((start, end)), Some(root)) = (self.os.layout.arguments, process.root.filter(|_| !task.mm.is_null()))
        else {
            return Ok(Some(String::new()));
        };
        let (Ok(start), Ok(end)) = (self.pointer(task.mm + start), self.pointer(task.mm + end)) else {
            return Ok(None);
        };
        let length = end.checked_sub(start.0).map_or(0, |length| length.0).min(MOST_ARGUMENTS);
        let mut bytes = vec![0; length as usize];
        let read = prober.probe(|| self.core.read((start, root), &mut bytes))?;
        Ok(read.map(|()| {
            let text = String::from_utf8_lossy(&bytes);
            clean(&text.trim_end_matches('\0').replace('\0', " "), MOST_ARGUMENTS as usize)
        }))
    }

    fn credentials(&self, task: &TaskRecord) -> Vec<(String, String)> {
        let known = self.os.layout.credentials.iter().filter(|_| !task.cred.is_null());
        let value = |&(name, offset, bytes): &(&str, u64, usize)| {
            let value = self.core.read_uint((task.cred + offset, self.os.root), bytes).ok()?;
            Some((name.to_owned(), if bytes == 8 { format!("{value:#x}") } else { value.to_string() }))
        };
        known.filter_map(value).collect()
    }

    /// The threads of a process, its first task first. The flag tells that there are more.
    pub(super) fn threads(&self, task: &TaskRecord) -> Option<(Vec<ThreadInfo>, bool)> {
        let layout = self.os.layout.threads.as_ref()?;
        let head = match layout.head {
            Some(head) if !task.signal.is_null() => task.signal + head,
            Some(_) => return Some((vec![thread(task)], false)),
            None => task.object + layout.node,
        };
        // A list that the first task heads does not lead back to it.
        let mut threads = if layout.head.is_some() { Vec::new() } else { vec![thread(task)] };
        let mut seen = HashSet::new();
        let mut next = self.pointer(head).unwrap_or(Va(0));
        while next != head {
            let member = self.task(next - layout.node).ok().filter(|member| member.tgid == task.tgid);
            let Some(member) = member.filter(|_| threads.len() < MOST_THREADS && seen.insert(next)) else {
                return Some((threads, true));
            };
            threads.push(thread(&member));
            next = self.pointer(next).unwrap_or(Va(0));
        }
        Some((threads, false))
    }
}

fn thread(task: &TaskRecord) -> ThreadInfo {
    ThreadInfo {
        tid: task.pid,
        name: task.name.clone(),
        state: state(task.state, task.exit_state).to_owned(),
        object: task.object,
        hidden: false,
    }
}

/// The state in a word (`include/linux/sched.h`; `task_state_array` in `fs/proc/array.c`).
fn state(state: u32, exit_state: u32) -> &'static str {
    const IDLE: u32 = 0x402;
    match (exit_state, state) {
        (exit, _) if exit & 0x20 != 0 => "zombie",
        (exit, _) if exit & 0x10 != 0 => "dead",
        (_, 0) => "running",
        (_, state) if state & IDLE == IDLE => "idle",
        (_, state) if state & 0x1 != 0 => "sleeping",
        (_, state) if state & 0x2 != 0 => "disk sleep",
        (_, state) if state & 0x4 != 0 => "stopped",
        (_, state) if state & 0x8 != 0 => "traced",
        (_, state) if state & 0x40 != 0 => "parked",
        _ => "other",
    }
}
