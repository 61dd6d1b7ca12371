//! What the screen may know: one immutable picture of the guest and of what the engine does to it.
//!
//! A snapshot is cheap to publish and to keep: every part is shared with the snapshot before while it does not change,
//! and has a number by which that is seen. It serialises to the documented JSON form (`docs/snapshot.md`); names in it
//! are stable, [`SCHEMA`] changes when one changes its meaning. Strings that came out of the guest are cleaned
//! ([`clean`]) before they get here. Start at [`Snapshot`]; the rows of its parts have a file each.

use std::sync::Arc;

use serde::Serialize;

mod ages;
mod breakpoint;
mod clean;
mod detail;
mod event;
mod fault;
mod id;
mod machine;
mod missing;
mod part;
mod process;
mod run;
mod serial;
mod table;

pub use self::{
    ages::Ages,
    breakpoint::{Breakpoint, BreakpointState, Hit, Scope},
    clean::{clean, clean_lines, cleaned},
    detail::{
        BreakpointDetail, CodeLine, Detail, MemoryDetail, Module, ProcessDetail, Region, SearchProgress, ThreadInfo,
    },
    event::{Counters, Event, EventKind},
    fault::{Fault, FaultState},
    id::{BreakpointId, FaultId, TableId},
    machine::{Capability, Guest, Unavailable, Vcpu},
    missing::MissingPage,
    part::Part,
    process::{Process, ProcessFlag, ProcessKey},
    run::{Run, RunState, StoppedBy, WayOn},
    serial::Serial,
    table::{Table, WalkEntry},
};
pub use super::{
    addr::{Gfn, Pa, Va, VcpuId, View},
    symbols::SymbolTable,
};

/// Version of the JSON form.
pub const SCHEMA: u32 = 1;

/// The state of the guest as the engine knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The engine is on its way into the guest: see [`Snapshot::notice`].
    #[default]
    Attaching,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand, whoever stopped them: see [`Snapshot::run`].
    Paused,
    /// The guest or the engine is gone: see [`Snapshot::notice`].
    Lost,
    /// A recording is played.
    Replay,
}

/// The whole picture.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    /// Tells this snapshot from every other one.
    #[serde(skip)]
    pub serial: Serial,
    /// [`SCHEMA`].
    pub schema: u32,
    /// Nanoseconds of the guest's clock where the driver has one (demo), else since the engine started.
    pub taken_at_ns: u64,
    /// Live, paused, lost, replayed.
    pub status: Status,
    /// What the hypervisor says of the guest, and who made it stand. While the engine is on its way into the guest, or
    /// has lost it, this is what was last known.
    pub run: Run,
    /// Whether the driver refuses every change of the guest.
    pub read_only: bool,
    /// "demo", "qemu", "xen", "dump" or "replay".
    pub driver: &'static str,
    /// A sentence about the engine itself: what it is doing while it attaches, what the user should know while it runs (that
    /// nobody frees the guest if vmscope is killed), why the guest was lost.
    pub notice: Option<Arc<str>>,
    /// The machine.
    pub guest: Part<Guest>,
    /// The virtual CPUs, in order.
    pub vcpus: Part<Vec<Vcpu>>,
    /// The processes, in the order of the guest's list; sorted by the screen.
    pub processes: Part<Vec<Process>>,
    /// Whether the process list, or its comparison with what else the kernel knows, was cut short: by a cycle, a missing
    /// page, or the bounds of a list or a look.
    pub processes_truncated: bool,
    /// How old the lists are that could not be read again.
    pub ages: Ages,
    /// Breakpoints in the order in which they were set.
    pub breakpoints: Part<Vec<Breakpoint>>,
    /// Monitored addresses in the order in which they were added.
    pub page_tables: Part<Vec<Table>>,
    /// How many page-table pages are monitored (write-protected, watched or polled) in all.
    pub tables_monitored: u64,
    /// Missing pages, oldest first.
    pub faults: Part<Vec<Fault>>,
    /// What happened, newest last; bounded, see [`Counters::dropped`].
    pub events: Part<Vec<Event>>,
    /// Totals since the engine started.
    pub counters: Counters,
    /// How long the guest stands for a hit of a breakpoint, measured, in nanoseconds; `None` before the first.
    pub hit_cost_ns: Option<u64>,
    /// Events per second over the last seconds, oldest first, at most 60 values, one a second.
    pub event_rates: Part<Vec<u64>>,
    /// What the open popup shows, while one is open.
    pub detail: Option<Arc<Detail>>,
    /// How far a search of memory is, while one is under way.
    #[serde(skip)]
    pub search: Option<Arc<SearchProgress>>,
    /// What this driver can do here.
    pub capabilities: Part<Vec<Capability>>,
    /// What it cannot, and why.
    pub unavailable: Part<Vec<Unavailable>>,
    /// Names and addresses of the guest's kernel, for completion and labels.
    #[serde(skip)]
    pub symbols: Arc<SymbolTable>,
}

impl Snapshot {
    /// When the process that has an id now started, where that is known.
    pub fn started_ns(&self, pid: u32) -> Option<u64> {
        let process = self.processes.iter().find(|process| process.pid == pid)?;
        Some(process.start_ns).filter(|&start| start != 0)
    }

    /// Whether the driver can do this here; the answer's error is the reason, for a greyed key.
    pub fn can(&self, what: Capability) -> Result<(), &str> {
        if self.capabilities.contains(&what) {
            return Ok(());
        }
        let reason = self.unavailable.iter().find(|missing| missing.what == what).map(|missing| missing.why.as_str());
        Err(reason.unwrap_or("not supported by this driver"))
    }

    /// How long a process has been there, in nanoseconds. Without the guest's own clock the snapshot's is taken for it.
    pub fn age_ns(&self, process: &Process) -> u64 {
        let booted = i128::from(self.guest.booted_at_ns.unwrap_or(0));
        let age = i128::from(self.taken_at_ns) - booted - i128::from(process.start_ns);
        u64::try_from(age.max(0)).unwrap_or(u64::MAX)
    }

    /// A counter by its JSON name, as `wait:NAME>=N` and `--until` use it.
    pub fn counter(&self, name: &str) -> Option<u64> {
        let c = &self.counters;
        Some(match name {
            "events" => c.events,
            "hits" => c.hits,
            "page_ins" => c.page_ins,
            "page_outs" => c.page_outs,
            "faults_pending" => c.faults_pending,
            "dropped" => c.dropped,
            "snapshots" => c.snapshots,
            "processes" => self.processes.len() as u64,
            "breakpoints" => self.breakpoints.len() as u64,
            _ => return None,
        })
    }

    /// The names that [`Snapshot::counter`] knows.
    pub const COUNTERS: &[&str] = &[
        "events",
        "hits",
        "page_ins",
        "page_outs",
        "faults_pending",
        "dropped",
        "snapshots",
        "processes",
        "breakpoints",
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_counter_has_a_value() {
        let snapshot = Snapshot::default();
        assert!(Snapshot::COUNTERS.iter().all(|name| snapshot.counter(name).is_some()));
        assert_eq!(snapshot.counter("nonsense"), None);
    }
}
