//! What happened, one by one and counted.

use serde::Serialize;

use super::VcpuId;

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A breakpoint was hit.
    Breakpoint,
    /// A monitored address was mapped.
    PageIn,
    /// A monitored address was unmapped.
    PageOut,
    /// A fault changed its state.
    Fault,
    /// A process came.
    ProcessStart,
    /// A process runs another program than before (`execve`).
    ProcessExec,
    /// A process went.
    ProcessExit,
    /// A process was found hidden.
    Hidden,
    /// The guest ran, stopped, was stepped, was lost.
    Vm,
    /// Something was changed by the engine itself: storm control, repair.
    Engine,
}

impl EventKind {
    /// The word shown on the screen and written in JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Breakpoint => "breakpoint",
            Self::PageIn => "page-in",
            Self::PageOut => "page-out",
            Self::Fault => "fault",
            Self::ProcessStart => "process-start",
            Self::ProcessExec => "process-exec",
            Self::ProcessExit => "process-exit",
            Self::Hidden => "hidden",
            Self::Vm => "vm",
            Self::Engine => "engine",
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Counts events from 0; a gap is what was dropped.
    pub seq: u64,
    /// Nanoseconds on the snapshot's clock.
    pub at_ns: u64,
    /// What.
    pub kind: EventKind,
    /// Where, when it happened on a vCPU.
    pub vcpu: Option<VcpuId>,
    /// In which process, where known.
    pub pid: Option<u32>,
    /// Its name, cleaned.
    pub process: String,
    /// One line, cleaned.
    pub text: String,
}

/// Totals since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Events seen.
    pub events: u64,
    /// Breakpoint hits.
    pub hits: u64,
    /// Page-ins of monitored addresses.
    pub page_ins: u64,
    /// Page-outs of monitored addresses.
    pub page_outs: u64,
    /// Faults that are pending now.
    pub faults_pending: u64,
    /// Events that fell out of the bounded list before any snapshot showed them.
    pub dropped: u64,
    /// Snapshots published.
    pub snapshots: u64,
}
