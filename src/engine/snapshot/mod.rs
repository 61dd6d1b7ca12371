//! What the screen may know: one immutable picture of the guest and of what the engine does to it.
//!
//! A snapshot is cheap to publish and to keep: every part is an [`Arc`] with a generation, an unchanged part is
//! shared with the snapshot before. It serialises to the documented JSON form (`docs/snapshot.md`); names in it
//! are stable, [`SCHEMA`] changes when one changes its meaning. Strings that came out of the guest are cleaned
//! ([`clean`]) before they get here.

use std::{fmt, ops::Deref, sync::Arc};

use serde::{Serialize, Serializer};

mod clean;
mod detail;

pub use self::{
    clean::clean,
    detail::{
        BreakpointDetail, CodeLine, Detail, MemoryDetail, Module, ProcessDetail, Region, SearchProgress, ThreadInfo,
    },
};
pub use super::{
    addr::{Gfn, Pa, Va, VcpuId, View},
    symbols::SymbolTable,
};

/// Version of the JSON form.
pub const SCHEMA: u32 = 1;

/// A part of a snapshot: shared data and the number of its last change.
///
/// Two parts with the same generation (of one engine run) hold the same data, so that lists derived from a part
/// need no rebuilding until its generation moves.
#[derive(Clone, Debug, Default)]
pub struct Part<T> {
    /// Counts the changes of this part.
    pub generation: u64,
    /// The data.
    pub data: Arc<T>,
}

impl<T> Part<T> {
    /// A part in its first generation.
    pub fn new(data: T) -> Self {
        Self { generation: 1, data: Arc::new(data) }
    }

    /// Replaces the data; the generation moves only when they differ.
    pub fn set(&mut self, data: T)
    where
        T: PartialEq,
    {
        if *self.data != data {
            self.generation += 1;
            self.data = Arc::new(data);
        }
    }
}

impl<T> Deref for Part<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T: Serialize> Serialize for Part<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.data.serialize(serializer)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// A breakpoint's row, for as long as the engine runs.
    BreakpointId
}
id! {
    /// A monitored address's row.
    TableId
}
id! {
    /// A missing page's row.
    FaultId
}

/// The state of the guest as the engine knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The engine is on its way into the guest: see [`Snapshot::notice`].
    #[default]
    Attaching,
    /// The vCPUs run.
    Running,
    /// We (or somebody else) stopped the vCPUs.
    Paused,
    /// The guest or the engine is gone: see [`Snapshot::notice`].
    Lost,
    /// A recording is played.
    Replay,
}

/// The whole picture.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Nanoseconds of the guest's clock where the driver has one (demo), else since the engine started.
    pub taken_at_ns: u64,
    /// Live, paused, lost, replayed.
    pub status: Status,
    /// Whether the driver refuses every change of the guest.
    pub read_only: bool,
    /// "demo", "qemu", "xen", "dump" or "replay".
    pub driver: &'static str,
    /// A sentence about the engine itself: what it is doing while it attaches, why the guest was lost.
    pub notice: Option<Arc<str>>,
    /// The machine.
    pub guest: Part<Guest>,
    /// The virtual CPUs, in order.
    pub vcpus: Part<Vec<Vcpu>>,
    /// The processes, in the order of the guest's list; sorted by the screen.
    pub processes: Part<Vec<Process>>,
    /// Whether a bound cut the process list short (a cyclic or absurdly long list).
    pub processes_truncated: bool,
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

/// Which address spaces a breakpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every address space.
    Global,
    /// One process, by its id.
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
    /// Active, pending, disabled, failed.
    pub state: BreakpointState,
    /// The user's word for it.
    pub tag: String,
    /// Hits since it was set.
    pub hits: u64,
    /// Hits per second over the last seconds, oldest first, at most 20.
    pub rates: Vec<u64>,
    /// The last hits, newest last, at most 32.
    pub last_hits: Vec<Hit>,
    /// Why it failed, or why storm control took it out.
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

/// One monitored address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Its row.
    pub id: TableId,
    /// The virtual address.
    pub address: Va,
    /// `symbol+offset`, empty where the address has no name.
    pub symbol: String,
    /// Its address space.
    pub root: Pa,
    /// The process it belongs to, `None` for the kernel.
    pub pid: Option<u32>,
    /// The view.
    pub view: View,
    /// The user's word for it.
    pub tag: String,
    /// Whether the address is mapped now.
    pub paged_in: bool,
    /// What it maps to.
    pub pa: Option<Pa>,
    /// Size of the page that maps it, in bytes; 0 while not mapped.
    pub page_bytes: u64,
    /// Page-ins and page-outs seen.
    pub changes: u64,
    /// When the last one was seen, on the snapshot's clock.
    pub last_change_ns: Option<u64>,
    /// The walk as it is now, top level first.
    pub walk: Vec<WalkEntry>,
}

/// One level of a page walk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WalkEntry {
    /// "PML5", "PML4", "PDPT", "PD" or "PT".
    pub level: &'static str,
    /// Physical address of the entry.
    pub entry_pa: Pa,
    /// Its value.
    #[serde(serialize_with = "hex")]
    pub entry: u64,
    /// The value before its last change seen, for marking changed bits.
    #[serde(skip)]
    pub previous: Option<u64>,
    /// Decoded: "present", "writable", "user", "accessed", "dirty", "large", "global", "nx", "pat" …
    pub flags: Vec<&'static str>,
}

fn hex<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}

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
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_moves_only_when_its_data_change() {
        let mut part = Part::new(vec![1]);
        part.set(vec![1]);
        assert_eq!(part.generation, 1);
        part.set(vec![2]);
        assert_eq!(part.generation, 2);
    }

    #[test]
    fn every_listed_counter_has_a_value() {
        let snapshot = Snapshot::default();
        assert!(Snapshot::COUNTERS.iter().all(|name| snapshot.counter(name).is_some()));
        assert_eq!(snapshot.counter("nonsense"), None);
    }
}
