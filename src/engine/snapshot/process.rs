//! A row of the process list.

use std::hash::{Hash, Hasher};

use serde::Serialize;

use super::{Pa, Va};

/// What is special about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessFlag {
    /// A kernel thread or the system process: no address space of its own.
    Kernel,
    /// Missing from the guest's own list, or only there: found by cross-view.
    Hidden,
    /// On its way out.
    Exiting,
    /// 32-bit on 64-bit Windows.
    Wow64,
}

/// What tells a process from every other one, also from those that are given its id, its structure or its page tables
/// after it. Kernels use all three again, page tables at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessKey {
    /// Process id.
    pub pid: u32,
    /// When it started, nanoseconds since boot; 0 where that is not known.
    pub start_ns: u64,
    /// Address of the kernel's structure.
    pub object: Va,
}

/// On Linux, a thread that is not the first one and calls `execve` gives the process its own structure, with the id and the
/// start of the first one (`de_thread` in `fs/exec.c`); so the structure decides only where the start is not known.
impl PartialEq for ProcessKey {
    fn eq(&self, other: &Self) -> bool {
        let is_like = (self.pid, self.start_ns) == (other.pid, other.start_ns);
        is_like && (self.start_ns != 0 || self.object == other.object)
    }
}

impl Eq for ProcessKey {}

impl Hash for ProcessKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.pid, self.start_ns).hash(state);
    }
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Process id (Linux: tgid; Windows: UniqueProcessId).
    pub pid: u32,
    /// Parent's id.
    pub ppid: u32,
    /// Short name as the kernel keeps it, cleaned.
    pub name: String,
    /// Physical address of its top page table; `None` where it has none.
    pub root: Option<Pa>,
    /// Threads.
    pub threads: u32,
    /// When it started, nanoseconds since boot.
    pub start_ns: u64,
    /// Owner, where the guest has one (Linux: real uid).
    pub uid: Option<u32>,
    /// What is special.
    pub flags: Vec<ProcessFlag>,
    /// Address of the kernel's structure (`task_struct`, `_EPROCESS`).
    pub object: Va,
}

impl Process {
    /// What it is known by.
    pub fn key(&self) -> ProcessKey {
        ProcessKey { pid: self.pid, start_ns: self.start_ns, object: self.object }
    }

    /// Whether none of its code will run again, though the kernel still lists it: a zombie.
    pub fn has_ended(&self) -> bool {
        let last_threads = if self.root.is_some() { 0 } else { 1 };
        self.flags.contains(&ProcessFlag::Exiting) && self.threads <= last_threads
    }
}
