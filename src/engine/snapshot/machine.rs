//! The machine, its vCPUs, and what can be done with it.

use serde::Serialize;

use super::{Pa, Va, VcpuId};

/// The watched machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Guest {
    /// What people call it ("WIN10-19045", QEMU's `-name`, a Xen domain).
    pub name: String,
    /// "windows", "linux" or "unknown".
    pub os: String,
    /// Kernel version or banner.
    pub version: String,
    /// Where the kernel image starts.
    pub kernel_base: Option<Va>,
    /// How many virtual CPUs.
    pub vcpus: u16,
    /// Guest RAM in bytes.
    pub memory_bytes: u64,
    /// 4 or 5; 0 while not known.
    pub paging_levels: u8,
    /// When it booted, nanoseconds on the snapshot's clock, negative for a guest that was there before; `None` where
    /// its kernel's own clock is not read.
    pub booted_at_ns: Option<i64>,
}

/// One virtual CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Vcpu {
    /// Its number.
    pub id: VcpuId,
    /// Instruction pointer, last known.
    pub rip: Va,
    /// Translation root, last known.
    pub root: Pa,
    /// The process that runs on it, where known.
    pub pid: Option<u32>,
    /// All registers by name, last known, in the order to show them.
    pub registers: Vec<(&'static str, u64)>,
}

/// Something a driver may be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// Read guest memory.
    Read,
    /// Write guest memory.
    Write,
    /// Read vCPU registers.
    Registers,
    /// Breakpoints.
    Breakpoints,
    /// Breakpoints that the guest cannot see by reading its own code.
    HiddenBreakpoints,
    /// Exact events for writes to page tables.
    TableWrites,
    /// Page tables watched by reading them again.
    TablePolling,
    /// Injection of page faults.
    FaultInjection,
    /// Pause and resume.
    Pause,
    /// Single-step.
    Step,
    /// Views (second-level page tables).
    Views,
}

/// What cannot be done here, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unavailable {
    /// What.
    pub what: Capability,
    /// Why, and what would help.
    pub why: String,
}
