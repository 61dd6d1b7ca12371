//! The list of processes against what else the kernel knows of them.
//!
//! A process that was taken out of the list still runs: it has an id in the table of the first pid namespace (an IDR, which
//! is an xarray: `lib/xarray.c`), and it is the current task of a CPU or waits for one. Whatever only one side knows is
//! hidden. The guest runs while we look, and processes come and go; so a difference counts only if it is still there when
//! everything is read a second time. The kernel changes both sides in one hold of `tasklist_lock`, in the midst of which a
//! vCPU may be without a core for long: between the two times the lock must have been seen free.

use std::{collections::HashSet, thread};

use super::{
    bytes::u64_at,
    kernel::Kernel,
    tasks::{Identity, MOST_PROCESSES, TaskRecord},
};
use crate::engine::{addr::Va, arch::amd64::Amd64, driver::VmiRead, error::VmiError};

/// Entries of a node of an xarray (`XA_CHUNK_SIZE`).
const SLOTS: u64 = 64;
/// Nodes of the table that are read at most.
const MOST_NODES: usize = 1 << 15;
/// Ids that are looked at at most.
const MOST_IDS: usize = 1 << 18;
/// Tasks of one run queue that are looked at at most.
const MOST_QUEUED: usize = 4096;
/// How often the lock of the lists is looked at until it is free.
const MOST_LOOKS: usize = 1000;
/// `_QW_LOCKED` in `include/asm-generic/qrwlock.h`: the byte of a `rwlock_t` that says that a writer holds it.
const QW_LOCKED: u32 = 0xff;
/// `PIDTYPE_PID` and `PIDTYPE_TGID`: the lists of an id's threads and of its processes, in `include/linux/pid_types.h`.
const PIDTYPE_PID: u64 = 0;
const PIDTYPE_TGID: u64 = 1;

/// What the table of ids knows.
#[derive(Default)]
pub(super) struct Ids {
    /// First tasks of processes.
    pub(super) processes: Vec<Va>,
    /// All tasks, those too.
    pub(super) threads: Vec<Va>,
}

/// The first tasks of all processes, and where they were found.
#[derive(Default)]
pub(super) struct Processes {
    /// The kernel's list.
    pub(super) listed: Vec<TaskRecord>,
    /// Whether a bound or a missing page cut the list short: then what it does not have is not hidden.
    pub(super) truncated: bool,
    /// Found elsewhere, but not in the list.
    pub(super) unlisted: Vec<TaskRecord>,
    /// Whether there is more of that than may be kept.
    pub(super) has_more: bool,
    /// In the list, but not in the table of ids.
    pub(super) without_id: HashSet<Va>,
    /// Whether the list is not the one that was given, but another one, read after it.
    pub(super) is_again: bool,
}

impl Processes {
    fn has_differences(&self) -> bool {
        !self.unlisted.is_empty() || !self.without_id.is_empty()
    }

    fn without_id(&self) -> impl Iterator<Item = Identity> {
        self.listed.iter().filter(|task| self.without_id.contains(&task.object)).map(TaskRecord::identity)
    }

    /// The same, compared with nothing.
    fn list_only(self) -> Self {
        Self { listed: self.listed, truncated: self.truncated, is_again: self.is_again, ..Self::default() }
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// All processes, given the list, with the differences that last.
    pub(super) fn cross_view(&self, listed: Vec<TaskRecord>, truncated: bool) -> Result<Processes, VmiError> {
        let first = self.both_sides(listed, truncated);
        if self.core.cut().is_some() {
            return Ok(first.list_only());
        }
        // What only others know of a list that was cut is nothing to look at twice.
        if !first.has_differences() || first.truncated {
            return Ok(first);
        }
        let settled = self.lists_settle();
        let (listed, truncated) = match self.task_list() {
            Err(VmiError::CutShort) => return Ok(first.list_only()),
            list => list?,
        };
        let mut second = self.both_sides(listed, truncated);
        if second.truncated || self.core.cut().is_some() {
            return Ok(first.list_only());
        }
        let suspects: HashSet<Identity> = first.unlisted.iter().map(TaskRecord::identity).collect();
        second.unlisted.retain(|task| settled && suspects.contains(&task.identity()));
        let suspects: HashSet<Identity> = first.without_id().collect();
        let lasting = second.without_id().filter(|identity| settled && suspects.contains(identity));
        second.without_id = lasting.map(|identity| identity.object).collect();
        second.is_again = true;
        Ok(second)
    }

    /// Waits until nobody changes the lists of tasks, and forgets what was read of them; answers whether that came.
    pub(super) fn lists_settle(&self) -> bool {
        let lock = self.os.symbols.lookup("tasklist_lock");
        (0..MOST_LOOKS).take_while(|_| self.core.cut().is_none()).any(|look| {
            if look > 0 {
                thread::yield_now();
            }
            self.core.flush_gfn_cache();
            self.core.flush_v2p_cache();
            // Not every kernel tells where its variables are.
            lock.is_none_or(|lock| self.u32(lock).is_ok_and(|state| state & 0xff != QW_LOCKED))
        })
    }

    /// A list against what else knows processes; nothing of the comparison holds when the look was cut.
    fn both_sides(&self, listed: Vec<TaskRecord>, truncated: bool) -> Processes {
        let mut found = Processes { listed, truncated, ..Processes::default() };
        let mut room = MOST_PROCESSES.saturating_sub(found.listed.len());
        let known: HashSet<Va> = found.listed.iter().map(|task| task.object).collect();
        let mut seen = known.clone();
        let mut add = |found: &mut Processes, task: TaskRecord| {
            found.has_more |= room == 0;
            if room > 0 {
                room -= 1;
                found.unlisted.push(task);
            }
        };
        if let Some(table) = self.pid_table() {
            for &object in table.processes.iter().filter(|object| seen.insert(**object)) {
                if let Some(task) = self.first_task(object) {
                    add(&mut found, task);
                }
            }
            // A process may have been taken out of both, and its threads be left.
            for leader in table.threads.iter().filter_map(|&thread| self.leader_of(thread)) {
                if seen.insert(leader)
                    && let Some(task) = self.first_task(leader).filter(|task| task.exit_state == 0)
                {
                    add(&mut found, task);
                }
            }
            let table: HashSet<Va> = table.processes.into_iter().collect();
            found.without_id = known.iter().copied().filter(|object| !table.contains(object)).collect();
        }
        for object in self.scheduled() {
            if !seen.insert(object) {
                continue;
            }
            // Idle tasks have no id. A task that has just died still runs to its last switch.
            let Some(task) = self.task(object).ok().filter(|task| task.pid != 0 && task.exit_state == 0) else {
                continue;
            };
            let leader = if task.leader.is_null() { object } else { task.leader };
            if (leader == object || seen.insert(leader))
                && let Some(leader) = self.first_task(leader).filter(|leader| leader.tgid == task.tgid)
            {
                add(&mut found, leader);
            }
        }
        // Of a list that was cut short nobody knows what it is compared with.
        if found.truncated {
            found.without_id.clear();
        }
        found
    }

    /// The tasks in the table of ids; `None` where it could not be read as a whole.
    pub(super) fn pid_table(&self) -> Option<Ids> {
        let layout = self.os.layout.pids.as_ref()?;
        let head = self.pointer(self.os.symbols.lookup("init_pid_ns")? + layout.head).ok()?;
        let mut bytes = vec![0; layout.node_slots.checked_add(SLOTS * 8).filter(|&size| size <= 4096)? as usize];
        let mut found = Ids::default();
        let mut nodes = vec![(node(head.0)?, u64::from(u8::MAX))];
        let (mut nodes_read, mut ids_read) = (0, 0);
        while let Some((at, parent_shift)) = nodes.pop() {
            nodes_read += 1;
            self.read(at, &mut bytes).ok()?;
            let shift = u64::from(*bytes.get(layout.node_shift as usize)?);
            // Children cover less than their parents, so nothing can loop.
            if shift >= parent_shift || nodes_read > MOST_NODES {
                return None;
            }
            for slot in 0..SLOTS {
                let entry = u64_at(&bytes, (layout.node_slots + slot * 8) as usize)?;
                match node(entry) {
                    Some(child) => nodes.push((child, shift)),
                    None if entry == 0 || entry & 3 != 0 => {}
                    None => {
                        ids_read += 1;
                        found.processes.extend(self.task_of(Va(entry), PIDTYPE_TGID));
                        found.threads.extend(self.task_of(Va(entry), PIDTYPE_PID));
                    }
                }
            }
            if ids_read > MOST_IDS {
                return None;
            }
        }
        // Of a table that was not read to its end nothing is known that it lacks.
        self.core.cut().is_none().then_some(found)
    }

    /// The task that has an id (`struct pid`) of a type; `None` for the id of a group or session whose process is gone.
    fn task_of(&self, pid: Va, kind: u64) -> Option<Va> {
        let layout = self.os.layout.pids.as_ref()?;
        let node = self.pointer(pid + layout.tasks + kind * 8).ok()?;
        (!node.is_null()).then(|| node - layout.links - kind * 16)
    }

    /// Reads what is said to be the first task of a process, if it is one: a reference that the guest changed while it was
    /// followed may lead anywhere.
    fn first_task(&self, object: Va) -> Option<TaskRecord> {
        let task = self.task(object).ok()?;
        // The idle tasks alone have the id 0, and none has its own place in a table of ids.
        let is_first = task.pid != 0 && task.pid == task.tgid && (task.leader.is_null() || task.leader == object);
        is_first.then_some(task)
    }

    /// The first task of the process that a task belongs to.
    pub(super) fn leader_of(&self, task: Va) -> Option<Va> {
        self.existing(task + self.os.layout.task.group_leader?)
    }

    /// The tasks that run or want to run, of every CPU; what cannot be read is left out.
    pub(super) fn scheduled(&self) -> Vec<Va> {
        let mut tasks = Vec::new();
        let bases = &self.os.per_cpu.offsets;
        tasks.extend(bases.iter().filter_map(|&base| self.current_task_at(base).ok().flatten()));
        let queues = self.os.layout.run_queue.as_ref().zip(self.os.symbols.lookup("runqueues"));
        if let Some((layout, queues)) = queues {
            let head_of = |&base: &u64| queues + base + layout.head;
            // A task may move to the queue of another CPU while it is looked at, and the walk with it: so each head ends all
            // walks, and what one walk has seen ends the next one.
            let mut seen: HashSet<Va> = bases.iter().map(head_of).collect();
            for head in bases.iter().map(head_of) {
                let mut next = self.pointer(head).unwrap_or(head);
                for _ in 0..MOST_QUEUED {
                    if next.is_null() || !seen.insert(next) {
                        break;
                    }
                    tasks.push(next - layout.node);
                    next = self.pointer(next).unwrap_or(head);
                }
            }
        }
        tasks
    }
}

/// The address of the node that an entry of an xarray refers to (`xa_is_node`, `xa_to_node` in `include/linux/xarray.h`).
fn node(entry: u64) -> Option<Va> {
    (entry & 3 == 2 && entry > 4096).then(|| Va(entry - 2))
}
