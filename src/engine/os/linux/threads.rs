//! The threads of a process: as the process lists them, and as the table of ids and the CPUs know them. One that only one
//! side has hides; as with processes, a difference counts only if it lasts.

use std::collections::HashSet;

use super::{
    kernel::Kernel,
    tasks::{Identity, TaskRecord},
};
use crate::engine::{addr::Va, arch::amd64::Amd64, driver::VmiRead, snapshot::ThreadInfo};

/// Threads that are listed at most.
const MOST_THREADS: usize = 4096;
/// Threads that are asked for the memory of their process: those that have ended are taken off the list soon.
const MOST_WITHOUT_MEMORY: usize = 64;

/// All threads of a process, and where they were found.
struct Views {
    /// The process's own list, its first task first.
    listed: Vec<TaskRecord>,
    /// Whether that list did not come to its end.
    truncated: bool,
    /// Found elsewhere, but not in the list.
    unlisted: Vec<TaskRecord>,
    /// In the list, but not in the table of ids, or not in the other list of kernels that have two.
    listed_only: HashSet<Identity>,
}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// The threads of a process, its first task first, the hidden ones last. The flag tells that there are more.
    pub(super) fn threads(&self, task: &TaskRecord) -> Option<(Vec<ThreadInfo>, bool)> {
        let first = self.thread_views(task)?;
        if first.unlisted.is_empty() && first.listed_only.is_empty() {
            return Some((first.listed.iter().map(|task| thread(task, false)).collect(), first.truncated));
        }
        let settled = self.lists_settle();
        let second = self.thread_views(task)?;
        if second.truncated {
            return Some((first.listed.iter().map(|task| thread(task, false)).collect(), true));
        }
        let suspects: HashSet<Identity> = first.unlisted.iter().map(TaskRecord::identity).collect();
        let is_hidden = |task: &TaskRecord| {
            settled && [&first, &second].iter().all(|views| views.listed_only.contains(&task.identity()))
        };
        let listed = second.listed.iter().map(|task| thread(task, is_hidden(task)));
        let unlisted = second.unlisted.iter().filter(|task| settled && suspects.contains(&task.identity()));
        Some((listed.chain(unlisted.map(|task| thread(task, true))).collect(), second.truncated))
    }

    /// Threads that are missing from the lists of these processes, as ids of process and thread.
    pub(super) fn hidden_threads<'a>(&self, processes: impl Iterator<Item = &'a TaskRecord>) -> Vec<(u32, u32)> {
        let processes: Vec<&TaskRecord> = processes.collect();
        let mut first = self.unlisted_threads(&processes);
        if !first.is_empty() {
            let settled = self.lists_settle();
            let second: HashSet<Identity> =
                self.unlisted_threads(&processes).iter().map(TaskRecord::identity).collect();
            first.retain(|task| settled && second.contains(&task.identity()));
        }
        first.iter().map(|task| (task.tgid, task.pid)).collect()
    }

    fn unlisted_threads(&self, processes: &[&TaskRecord]) -> Vec<TaskRecord> {
        let Some(ids) = self.pid_table() else { return Vec::new() };
        // Processes whose lists were read to their end, and everything in these.
        let (mut judged, mut listed) = (HashSet::new(), HashSet::new());
        let (mut nodes, mut other_nodes) = (HashSet::new(), HashSet::new());
        for process in processes {
            let Some(mut threads) = self.thread_objects(process, &mut nodes) else { continue };
            if let Some(other) = self.other_list(process, &mut other_nodes) {
                threads.retain(|thread| other.contains(thread));
            }
            judged.insert(process.object);
            listed.extend(threads);
        }
        let threads = ids.threads.into_iter().chain(self.scheduled());
        let unlisted = threads.filter(|thread| {
            let leader = self.leader_of(*thread).filter(|leader| leader != thread && judged.contains(leader));
            leader.is_some() && listed.insert(*thread)
        });
        let unlisted = unlisted.filter_map(|thread| self.task(thread).ok()).filter(|task| task.exit_state == 0);
        let unlisted = unlisted.take(MOST_THREADS).collect();
        if self.core.cut().is_some() { Vec::new() } else { unlisted }
    }

    /// The tasks in a process's own list, unread; `None` where it does not come to its end, or leads into what is `seen` in
    /// that of another process.
    fn thread_objects(&self, task: &TaskRecord, seen: &mut HashSet<Va>) -> Option<Vec<Va>> {
        let layout = self.os.layout.threads.as_ref()?;
        let head = match layout.head {
            Some(_) if task.signal.is_null() => return None,
            Some(head) => task.signal + head,
            None => task.object + layout.node,
        };
        let mut threads = if layout.head.is_some() { Vec::new() } else { vec![task.object] };
        let mut next = self.pointer(head).ok()?;
        while next != head {
            if threads.len() >= MOST_THREADS || !seen.insert(next) {
                return None;
            }
            threads.push(next - layout.node);
            next = self.pointer(next).ok()?;
        }
        Some(threads)
    }

    fn thread_views(&self, task: &TaskRecord) -> Option<Views> {
        let (listed, truncated) = self.thread_list(task)?;
        let mut views = Views { listed, truncated, unlisted: Vec::new(), listed_only: HashSet::new() };
        // A list that was cut short misses threads for a reason of its own.
        if truncated {
            return Some(views);
        }
        let mut seen: HashSet<Va> = views.listed.iter().map(|task| task.object).collect();
        let own = |object: &Va| self.leader_of(*object) == Some(task.object);
        let table: Option<HashSet<Va>> =
            self.pid_table().map(|table| table.threads.into_iter().filter(|object| own(object)).collect());
        let other = self.other_list(task, &mut HashSet::new());
        let lacks = |side: &Option<HashSet<Va>>, task: Va| side.as_ref().is_some_and(|side| !side.contains(&task));
        let is_one_sided =
            |task: &&TaskRecord| task.exit_state == 0 && (lacks(&table, task.object) || lacks(&other, task.object));
        views.listed_only = views.listed.iter().filter(is_one_sided).map(TaskRecord::identity).collect();
        let scheduled = self.scheduled().into_iter().filter(own);
        for object in table.into_iter().flatten().chain(scheduled) {
            if views.unlisted.len() < MOST_THREADS && seen.insert(object) {
                let found = self.task(object).ok();
                views.unlisted.extend(found.filter(|found| found.tgid == task.tgid && found.exit_state == 0));
            }
        }
        // A comparison that was cut finds nothing missing.
        if self.core.cut().is_some() {
            views.unlisted.clear();
            views.listed_only.clear();
            views.truncated = true;
        }
        views.unlisted.sort_by_key(|task| task.pid);
        Some(views)
    }

    /// The tasks in the other list of kernels that have two; `None` where there is none, or it does not come to its end, or
    /// leads into what is `seen` in that of another process.
    fn other_list(&self, task: &TaskRecord, seen: &mut HashSet<Va>) -> Option<HashSet<Va>> {
        let group = self.os.layout.threads.as_ref()?.group?;
        let head = task.object + group;
        let mut found = HashSet::from([task.object]);
        let mut next = self.pointer(head).ok()?;
        while next != head {
            if found.len() > MOST_THREADS || !seen.insert(next) {
                return None;
            }
            found.insert(next - group);
            next = self.pointer(next).ok()?;
        }
        Some(found)
    }

    /// The memory of a process whose first task has given it back already: that of another one.
    pub(super) fn other_mm(&self, task: &TaskRecord) -> Option<Va> {
        let layout = self.os.layout.threads.as_ref()?;
        let mut node = match layout.head {
            Some(head) => self.existing(task.signal + head)?,
            None => self.existing(task.object + layout.node)?,
        };
        for _ in 0..MOST_WITHOUT_MEMORY {
            let other = self.task(node - layout.node).ok().filter(|other| other.tgid == task.tgid)?;
            if !other.mm.is_null() {
                return Some(other.mm);
            }
            node = self.existing(node)?;
        }
        None
    }

    /// The process's own list. The flag tells that there are more.
    pub(super) fn thread_list(&self, task: &TaskRecord) -> Option<(Vec<TaskRecord>, bool)> {
        let layout = self.os.layout.threads.as_ref()?;
        let head = match layout.head {
            Some(head) if !task.signal.is_null() => task.signal + head,
            Some(_) => return Some((vec![task.clone()], false)),
            None => task.object + layout.node,
        };
        // A list that the first task heads does not lead back to it.
        let mut threads = if layout.head.is_some() { Vec::new() } else { vec![task.clone()] };
        let mut seen = HashSet::new();
        let mut next = self.pointer(head).unwrap_or(Va(0));
        while next != head {
            let member = self.task(next - layout.node).ok().filter(|member| member.tgid == task.tgid);
            let Some(member) = member.filter(|_| threads.len() < MOST_THREADS && seen.insert(next)) else {
                return Some((threads, true));
            };
            threads.push(member);
            next = self.pointer(next).unwrap_or(Va(0));
        }
        Some((threads, false))
    }
}

fn thread(task: &TaskRecord, hidden: bool) -> ThreadInfo {
    ThreadInfo {
        tid: task.pid,
        name: task.name.clone(),
        state: state(task.state, task.exit_state).to_owned(),
        object: task.object,
        hidden,
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
