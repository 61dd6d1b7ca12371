//! A row of the missing pages.

use serde::Serialize;

use super::{FaultId, MissingPage, Pa, Va, VcpuId};

/// Where a missing page is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultState {
    /// Asked for; not injected yet, or waiting for the guest to bring it in by itself.
    Pending,
    /// A page fault is on its way through the guest.
    Injected,
    /// The page is there.
    Resolved,
    /// The guest refused it, the user gave it up, or the attempts ran out.
    Suppressed,
}

/// One missing page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Its row.
    pub id: FaultId,
    /// The page (or the address in it that was read first).
    pub address: Va,
    /// The address space.
    pub root: Pa,
    /// Its process, where known.
    pub pid: Option<u32>,
    /// Who needed it: "process command line", "breakpoint ntdll!LdrLoadDll", "user" …
    pub asked_by: String,
    /// Pending, injected, resolved, suppressed.
    pub state: FaultState,
    /// Injections so far.
    pub attempts: u32,
    /// Time since it was asked for.
    pub age_ns: u64,
    /// The vCPU of the last injection.
    pub vcpu: Option<VcpuId>,
    /// A sentence on the state: why it waits, who refused it.
    pub note: String,
    /// What there is of the page while it is not mapped; read for the open popup only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<MissingPage>,
}
