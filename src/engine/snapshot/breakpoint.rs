//! A row of the breakpoints, and its hits.

use serde::{Serialize, Serializer};

use super::{BreakpointId, Pa, Va, VcpuId, View};

/// Which address spaces a breakpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every address space.
    Global,
    /// One process, by the id that it had when the breakpoint was set.
    Process(u32),
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Global => serializer.serialize_str("global"),
            Self::Process(pid) => serializer.serialize_u32(*pid),
        }
    }
}

/// The state of a breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BreakpointState {
    /// In the guest.
    Active,
    /// Wanted; its page is not mapped, it arms itself at page-in.
    Pending,
    /// Taken out by the user (or by storm control: see [`Breakpoint::error`]); the row stays.
    Disabled,
    /// Could not be set: see [`Breakpoint::error`].
    Failed,
    /// Its process is gone, and it with it: see [`Breakpoint::error`]. The row stays until it is deleted.
    Ended,
}

/// One breakpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Breakpoint {
    /// Its row.
    pub id: BreakpointId,
    /// `symbol+offset`, empty where the address has no name.
    pub symbol: String,
    /// The virtual address.
    pub address: Va,
    /// Address spaces.
    pub scope: Scope,
    /// The view in which it is installed.
    pub view: View,
    /// The physical address behind it while mapped.
    pub pa: Option<Pa>,
    /// Active, pending, disabled, failed, ended.
    pub state: BreakpointState,
    /// Whether the guest can see it by reading its own code.
    pub visible: bool,
    /// The user's word for it.
    pub tag: String,
    /// Hits since it was set.
    pub hits: u64,
    /// Hits per second over the last seconds, oldest first, at most 20.
    pub rates: Vec<u64>,
    /// The last hits, newest last, at most 32.
    pub last_hits: Vec<Hit>,
    /// Why it failed or ended, or why storm control took it out.
    pub error: Option<String>,
}

/// One hit of a breakpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hit {
    /// Nanoseconds on the snapshot's clock.
    pub at_ns: u64,
    /// Where.
    pub vcpu: VcpuId,
    /// Process, where the OS layer knew it.
    pub pid: Option<u32>,
    /// Its name, cleaned.
    pub process: String,
    /// The first arguments by the guest's calling convention; of a system call those of the call.
    #[serde(serialize_with = "hex_list")]
    pub args: Vec<u64>,
    /// The system call that is served, by name, with its arguments, cleaned.
    pub call: Option<String>,
    /// General-purpose registers by name.
    #[serde(skip)]
    pub registers: Vec<(&'static str, u64)>,
}

fn hex_list<S: Serializer>(values: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|value| format!("{value:#x}")))
}
