//! Tasks and the list of processes (`struct task_struct` in `include/linux/sched.h`).

use std::collections::{HashMap, HashSet};

use super::{
    bytes::{u32_at, u64_at},
    kernel::Kernel,
    layout::Task,
};
use crate::engine::{
    addr::{Pa, Va},
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    os::ProcessList,
    snapshot::{Process, ProcessFlag, ProcessKey, clean},
};

/// Processes listed at most; more is a list that a guest made to keep us busy.
pub(super) const MOST_PROCESSES: usize = 1 << 16;
/// `EXIT_DEAD` in a task's `exit_state`, in `include/linux/sched.h`: nobody waits for it any more.
const EXIT_DEAD: u32 = 0x10;
/// `PF_EXITING`, in `include/linux/sched.h`.
const PF_EXITING: u32 = 0x4;
/// `PF_KTHREAD`.
const PF_KTHREAD: u32 = 0x20_0000;
/// `PF_WQ_WORKER`: its long name would be that of the work it does at the moment.
const PF_WQ_WORKER: u32 = 0x20;
/// Characters of a name that are kept: kernel threads' are longer than `comm`.
const MOST_NAME: usize = 64;

/// What was read of one task.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskRecord {
    pub(super) object: Va,
    pub(super) pid: u32,
    pub(super) tgid: u32,
    pub(super) name: String,
    pub(super) leader: Va,
    pub(super) state: u32,
    pub(super) exit_state: u32,
    next: Va,
    flags: u32,
    pub(super) mm: Va,
    parent: Va,
    pub(super) signal: Va,
    pub(super) cred: Va,
    pub(super) start_ns: u64,
    kthread: Va,
}

/// What tells a task from another one that was given the same memory after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) object: Va,
    pid: u32,
    start_ns: u64,
}

impl TaskRecord {
    pub(super) fn identity(&self) -> Identity {
        Identity { object: self.object, pid: self.pid, start_ns: self.start_ns }
    }

    /// A thread of the kernel's own.
    pub(super) fn is_kernel(&self) -> bool {
        self.mm.is_null() && self.flags & PF_KTHREAD != 0
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// Reads a task with one read.
    pub(super) fn task(&self, object: Va) -> Result<TaskRecord, VmiError> {
        let layout = &self.os.layout.task;
        let (from, to) = layout.span();
        let mut bytes = vec![0; to.saturating_sub(from) as usize];
        self.read(object + from, &mut bytes)?;
        let place = |offset: u64| offset.wrapping_sub(from) as usize;
        let number = |offset: u64| u32_at(&bytes, place(offset)).unwrap_or(0);
        let wide = |offset: u64| u64_at(&bytes, place(offset)).unwrap_or(0);
        let pointer = |offset: Option<u64>| offset.map_or(Va(0), |offset| Va(wide(offset)));
        let comm = bytes.get(place(layout.comm)..).unwrap_or_default();
        let comm = comm.get(..Task::COMM_BYTES as usize).unwrap_or(comm);
        let comm = comm.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(TaskRecord {
            object,
            pid: number(layout.pid),
            tgid: number(layout.tgid),
            name: clean(&String::from_utf8_lossy(comm), MOST_NAME),
            leader: pointer(layout.group_leader),
            state: layout.state.map_or(0, number),
            exit_state: layout.exit_state.map_or(0, number),
            next: Va(wide(layout.tasks)) - layout.tasks,
            flags: number(layout.flags),
            mm: Va(wide(layout.mm)),
            parent: Va(wide(layout.real_parent)),
            signal: pointer(layout.signal),
            cred: pointer(layout.cred),
            start_ns: layout.start.map_or(0, wide),
            kthread: pointer(layout.kthread),
        })
    }

    /// The kernel's list of processes: their first tasks, without the idle task that heads it. The flag tells that it
    /// did not come to its end.
    pub(super) fn task_list(&self) -> Result<(Vec<TaskRecord>, bool), VmiError> {
        self.each_task(|_| {})
    }

    /// The same, with something to do at each task.
    fn each_task(&self, mut each: impl FnMut(&TaskRecord)) -> Result<(Vec<TaskRecord>, bool), VmiError> {
        let head = self.os.init_task;
        let mut next = self.task(head)?.next;
        let mut seen = HashSet::new();
        let mut tasks: Vec<TaskRecord> = Vec::new();
        while next != head {
            if tasks.len() >= MOST_PROCESSES || !seen.insert(next) {
                return Ok((tasks, true));
            }
            match self.task(next) {
                Ok(task) => {
                    next = task.next;
                    each(&task);
                    tasks.push(task);
                }
                Err(VmiError::Translation(_) | VmiError::OutOfBounds(_) | VmiError::CutShort) => {
                    return Ok((tasks, true));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((tasks, false))
    }

    /// All processes, those that are hidden last.
    pub(super) fn processes(&self) -> Result<ProcessList, VmiError> {
        // Rows are read with the list, so that one which is cut is right as far as it goes; and before it is compared with
        // anything, for which there may be no budget left.
        let (mut rows, mut ids) = (Vec::new(), HashMap::new());
        let mut has_room = true;
        let (listed, truncated) = self.each_task(|task| {
            ids.insert(task.object, task.tgid);
            let row = if has_room { self.row(task, &ids) } else { None };
            has_room = row.is_some();
            rows.extend(row);
        })?;
        let found = self.cross_view(listed, truncated)?;
        let again = found.is_again.then(|| self.rows(&found.listed, &found.listed));
        let mut processes = again.filter(|_| self.core.cut().is_none()).unwrap_or(rows);
        for process in processes.iter_mut().filter(|process| found.without_id.contains(&process.object)) {
            process.flags.push(ProcessFlag::Hidden);
        }
        let mut unlisted = self.rows(&found.unlisted, &found.listed);
        if !found.truncated {
            unlisted.iter_mut().for_each(|process| process.flags.push(ProcessFlag::Hidden));
        }
        processes.append(&mut unlisted);
        let hidden_threads = self.hidden_threads(found.listed.iter().chain(&found.unlisted));
        let truncated = found.truncated || found.has_more || self.core.cut().is_some();
        Ok(ProcessList { processes, truncated, hidden_threads })
    }

    /// The rows of tasks, as many as may be kept; parents are looked for in a list before they are read.
    fn rows(&self, tasks: &[TaskRecord], list: &[TaskRecord]) -> Vec<Process> {
        let ids: HashMap<Va, u32> = list.iter().map(|task| (task.object, task.tgid)).collect();
        tasks.iter().map_while(|task| self.row(task, &ids)).collect()
    }

    /// The row of a task; `None` where no more may be read or kept.
    fn row(&self, task: &TaskRecord, ids: &HashMap<Va, u32>) -> Option<Process> {
        let known = ids.get(&task.parent).copied();
        let parent = known.or_else(|| self.u32(task.parent + self.os.layout.task.tgid).ok());
        let process = self.process(task, parent.unwrap_or(0));
        self.core.keep(size_of::<Process>() + process.name.len()).is_ok().then_some(process)
    }

    /// A process as it is now, by its structure where that is still its own; else the list is asked: by `execve`, another
    /// thread's structure may have become the process's.
    pub(super) fn process_again(&self, known: ProcessKey) -> Result<Option<Process>, VmiError> {
        let task = self.task(known.object)?;
        if task.pid == task.tgid && task.exit_state & EXIT_DEAD == 0 {
            let parent = self.u32(task.parent + self.os.layout.task.tgid).unwrap_or(0);
            let process = self.process(&task, parent);
            if process.key() == known {
                return Ok(Some(process));
            }
        }
        let (tasks, truncated) = self.task_list()?;
        let is_like = |task: &&TaskRecord| (task.tgid, task.start_ns) == (known.pid, known.start_ns);
        let like = tasks.iter().filter(is_like).map(|task| self.process(task, 0));
        match like.into_iter().find(|process| process.key() == known) {
            // What is missing from a part of the list has not ended.
            None if truncated => Err(VmiError::os("the list of processes is cut short")),
            found => Ok(found),
        }
    }

    /// The row of a process, from its first task.
    pub(super) fn process(&self, task: &TaskRecord, ppid: u32) -> Process {
        let layout = &self.os.layout;
        let beyond = |base: Va, offset: Option<u64>| {
            let offset = offset.filter(|_| !base.is_null())?;
            self.u32(base + offset).ok()
        };
        let mut flags = Vec::new();
        if task.is_kernel() {
            flags.push(ProcessFlag::Kernel);
        }
        if task.exit_state != 0 || task.flags & PF_EXITING != 0 {
            flags.push(ProcessFlag::Exiting);
        }
        Process {
            pid: task.tgid,
            ppid,
            name: self.long_name(task).unwrap_or_else(|| task.name.clone()),
            root: self.root_of_process(task),
            threads: beyond(task.signal, layout.signal_threads).unwrap_or(1),
            start_ns: task.start_ns,
            uid: beyond(task.cred, layout.cred_uid),
            flags,
            object: task.object,
        }
    }

    /// The address space of a process: that of its first task, or of another one where the first has ended before the
    /// others.
    fn root_of_process(&self, task: &TaskRecord) -> Option<Pa> {
        if !task.mm.is_null() {
            return self.root_of(task.mm);
        }
        if task.exit_state == 0 {
            return None;
        }
        self.root_of(self.other_mm(task)?)
    }

    /// The whole name of a kernel thread whose `comm` was too short for it.
    fn long_name(&self, task: &TaskRecord) -> Option<String> {
        let cut = task.name.len() as u64 == Task::COMM_BYTES - 1;
        if !cut || !task.is_kernel() || task.flags & PF_WQ_WORKER != 0 || task.kthread.is_null() {
            return None;
        }
        let name = self.pointer(task.kthread + self.os.layout.kthread_name?).ok().filter(|name| !name.is_null())?;
        let name = self.text(name, MOST_NAME)?;
        name.starts_with(&task.name).then(|| clean(&name, MOST_NAME))
    }
}
