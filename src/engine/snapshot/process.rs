//! A row of the process list.

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
