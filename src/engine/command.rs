//! What the screen may ask of the engine, and the answers it gets.
//!
//! A command travels in a bounded queue together with a place for its answer. The engine applies commands
//! between events, publishes a new snapshot at once, and answers with a sentence: what was done, or what was
//! tried, why it failed and what to do.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender};

use super::{
    addr::{Va, VcpuId},
    snapshot::{BreakpointId, FaultId, Scope, Snapshot, TableId},
    symbols::is_cpu,
};

/// Where a breakpoint or a watch is wanted, as a person says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A symbol (`nt!NtCreateFile`, `do_sys_openat2+0x10`, `runqueues@cpu1`: see [`SymbolTable::place`](super::symbols::SymbolTable::place)) or an address
    /// (`0xffff…`, `fffff803`1c2a41f0`).
    pub place: String,
    /// The process whose address space is meant; `None` is the kernel's.
    pub pid: Option<u32>,
    /// When that process started, where it must be the one that was meant before: kernels use ids again.
    pub started_ns: Option<u64>,
}

impl Target {
    /// Parses `SYMBOL|ADDRESS[@PID]`. An `@cpu1` belongs to the symbol.
    ///
    /// # Errors
    /// A sentence for the user when the place is empty or the PID is not a number.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (place, pid) = match text.rsplit_once('@') {
            Some((_, cpu)) if is_cpu(cpu) => (text, None),
            Some((place, pid)) => {
                let pid = pid.trim().parse::<u32>();
                let pid =
                    pid.map_err(|_| format!("'{text}': what follows '@' must be a process id, a whole number"))?;
                (place.trim(), Some(pid))
            }
            None => (text, None),
        };
        if place.is_empty() {
            return Err(
                "a symbol or an address is needed, for example nt!NtCreateFile, 0xfffff8031c2a41f0 or main@648".into(),
            );
        }
        Ok(Self { place: place.to_owned(), pid, started_ns: None })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{}@{pid}", self.place),
            None => f.write_str(&self.place),
        }
    }
}

/// What a detail popup shows. The engine keeps it fresh in [`Snapshot::detail`](super::snapshot::Snapshot::detail).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One process: command line, credentials, threads, regions, modules, handles.
    Process(u32),
    /// One breakpoint: disassembly around it, last hits.
    Breakpoint(BreakpointId),
    /// One monitored address: the live walk.
    Table(TableId),
    /// One missing page.
    Fault(FaultId),
    /// Memory of a process (or of the kernel) from an address on: hex dump and disassembly.
    Memory {
        /// The address space: `None` is the kernel's.
        pid: Option<u32>,
        /// The first byte.
        va: Va,
        /// How many bytes, at most 64 KiB.
        length: u32,
    },
}

/// Bytes to look for, 1 to 4096 of them; `None` stands for any byte.
pub type Pattern = Vec<Option<u8>>;

/// A request to the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Set a breakpoint: active at once where the address is mapped, pending where it is not.
    AddBreakpoint {
        /// Where.
        target: Target,
        /// All address spaces or one process.
        scope: Scope,
        /// A word of the user's own.
        tag: String,
    },
    /// Set a breakpoint as it was before: one that was switched off only gets its row.
    RestoreBreakpoint {
        /// Where.
        target: Target,
        /// All address spaces or one process.
        scope: Scope,
        /// A word of the user's own.
        tag: String,
        /// Whether it goes into the guest.
        enabled: bool,
    },
    /// Remove a breakpoint from the guest and keep its row, or put it back.
    ToggleBreakpoint(BreakpointId),
    /// Remove a breakpoint and forget it.
    RemoveBreakpoint(BreakpointId),
    /// Monitor the page-table entries behind an address.
    WatchAddress {
        /// Where.
        target: Target,
        /// A word of the user's own.
        tag: String,
    },
    /// Stop monitoring an address.
    UnwatchAddress(TableId),
    /// Ask for a page that is not there: becomes a pending fault.
    RequestPage {
        /// Where.
        target: Target,
    },
    /// Inject the page fault now, if it is safe.
    InjectFault(FaultId),
    /// Never ask for this page again.
    SuppressFault(FaultId),
    /// Ask once more for a suppressed or failed page.
    RetryFault(FaultId),
    /// Forget a fault.
    ClearFault(FaultId),
    /// Stop all vCPUs.
    Pause,
    /// Let the guest run.
    Resume,
    /// One instruction on one vCPU while the guest is paused.
    Step(VcpuId),
    /// What [`Snapshot::detail`](super::snapshot::Snapshot::detail) is to hold; `None` for nothing.
    Inspect(Option<Subject>),
    /// Search memory of an address space for any of some patterns, in place of a search that is under way. It goes on
    /// between events; [`Snapshot::search`](super::snapshot::Snapshot::search) tells how far it is, the answer lists
    /// addresses.
    Search {
        /// The address space: `None` is the kernel's.
        pid: Option<u32>,
        /// First byte of the range.
        from: Va,
        /// Length of the range in bytes; the search ends with the half of the address space that it begins in.
        length: u64,
        /// What to look for, 1 to 8 patterns.
        patterns: Vec<Pattern>,
    },
    /// End the search that is under way; what it has found is its answer.
    CancelSearch,
    /// Read everything again now, not at the next refresh.
    Refresh,
    /// In lock-step runs (virtual time): let the guest run this many ticks, then publish and wait again.
    Advance(u64),
    /// Take out of the guest what stops it, and do nothing until [`Command::ComeBack`]: this process is about to be stopped,
    /// and a guest at a breakpoint would wait for it. Rows stay; a guest that the user has paused stays paused.
    StandBy,
    /// Go on after [`Command::StandBy`], with every breakpoint back that was set.
    ComeBack,
    /// Take everything out of the guest, leave it running and end the engine.
    Quit,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// A sentence for the notice line and the log.
    Said(String),
    /// A breakpoint was set; its row and a sentence.
    Breakpoint(BreakpointId, String),
    /// An address is monitored; its row and a sentence.
    Table(TableId, String),
    /// A page was asked for; its row and a sentence.
    Fault(FaultId, String),
    /// Addresses where a search found its pattern, and whether there were more.
    Found(Vec<Va>, bool),
    /// Nothing worth a notice.
    Quiet,
}

/// The answer to a command; an error is one sentence: what was tried, on what, why it failed, what to do.
pub type Answer = Result<Done, String>;

/// A command on its way, with the place for its answer.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// Where the answer goes; a sender whose receiver is gone is not an error.
    pub answer: Sender<Answer>,
}

/// The user's wish to leave, for an engine that is too busy to read commands: on its way into the guest, above all.
#[derive(Clone, Debug, Default)]
pub struct Leaving(Option<Arc<AtomicBool>>);

impl Leaving {
    /// One that can be wanted; the default one never is.
    pub fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// The user wants to leave, from now on.
    pub fn want(&self) {
        if let Some(wanted) = &self.0 {
            wanted.store(true, Ordering::SeqCst);
        }
    }

    /// Whether the user wants to leave.
    pub fn is_wanted(&self) -> bool {
        self.0.as_ref().is_some_and(|wanted| wanted.load(Ordering::SeqCst))
    }

    /// Whether anybody could ever want it.
    pub fn can_be_wanted(&self) -> bool {
        self.0.is_some()
    }
}

/// An engine on its way into its guest.
#[derive(Clone, Debug)]
pub struct Attaching {
    /// The engine. Until the guest is open its snapshot is empty.
    pub engine: Engine,
    /// Hears once whether the guest is open, or in a sentence why it cannot be opened.
    pub opened: Receiver<Result<(), String>>,
}

impl From<Engine> for Attaching {
    /// A guest that is open.
    fn from(engine: Engine) -> Self {
        let (sender, opened) = crossbeam_channel::bounded(1);
        // There is room for one.
        let _ = sender.send(Ok(()));
        Self { engine, opened }
    }
}

/// The screen's end of a running engine. Dropping it makes the engine leave the guest as [`Command::Quit`] does.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The newest snapshot; loading it never waits.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The bounded command queue.
    pub requests: Sender<Request>,
    /// A ping (capacity 1) after each new snapshot; disconnected when the engine has ended.
    pub changed: Receiver<()>,
    /// To be told before [`Command::Quit`] is sent.
    pub leaving: Leaving,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_reads_as_people_write_it() {
        let parsed = |text| Target::parse(text).map(|t| (t.place, t.pid));
        assert_eq!(parsed("nt!NtCreateFile"), Ok(("nt!NtCreateFile".into(), None)));
        assert_eq!(parsed(" 0x7ff61000 @ 648 "), Ok(("0x7ff61000".into(), Some(648))));
        assert_eq!(parsed("runqueues@cpu1"), Ok(("runqueues@cpu1".into(), None)));
        assert_eq!(parsed("runqueues@cpu0+0x8"), Ok(("runqueues@cpu0+0x8".into(), None)));
        assert!(parsed("main@cpux").is_err_and(|e| e.contains("process id")));
        assert!(parsed("@648").is_err_and(|e| e.contains("symbol or an address")));
        assert!(parsed("main@lsass").is_err_and(|e| e.contains("process id")));
        assert!(parsed("").is_err());
    }
}
