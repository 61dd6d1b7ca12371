//! What an open popup shows.

use serde::Serialize;

use super::{Breakpoint, Fault, MissingPage, Pa, Process, Table, Va, WalkEntry};

/// What a popup shows; which one it is follows the last `Inspect` command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// A process.
    Process(ProcessDetail),
    /// A breakpoint.
    Breakpoint(BreakpointDetail),
    /// A monitored address.
    Table(Table),
    /// A missing page.
    Fault(Fault),
    /// A stretch of memory.
    Memory(MemoryDetail),
    /// The subject is gone or could not be read: the sentence to show.
    Gone(String),
}

/// More of a process than its row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProcessDetail {
    /// Its row.
    pub process: Process,
    /// Command line; `None` while its pages are missing (see [`ProcessDetail::missing`]).
    pub command_line: Option<String>,
    /// The file of the program that it runs; `None` where it has none or the OS layer does not tell.
    pub executable: Option<String>,
    /// Where its relative paths begin.
    pub working_directory: Option<String>,
    /// What it takes for the root of all paths.
    pub root_directory: Option<String>,
    /// Credentials by name ("uid", "gid", "euid", "token" …).
    pub credentials: Vec<(String, String)>,
    /// Threads: id, name or state, instruction pointer where known.
    pub threads: Vec<ThreadInfo>,
    /// Memory regions in order of address.
    pub regions: Vec<Region>,
    /// Mapped images; of a process of the kernel's, the kernel's modules.
    pub modules: Vec<Module>,
    /// Open files or handles: number and what it is.
    pub handles: Vec<(u64, String)>,
    /// Pages that were needed and are not there.
    pub missing: Vec<Va>,
    /// What a bound cut short, by name: lists, the command line.
    pub truncated: Vec<&'static str>,
    /// Parts that this OS layer does not read, with the reason.
    pub unavailable: Vec<String>,
}

/// One thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ThreadInfo {
    /// Thread id.
    pub tid: u32,
    /// Name, cleaned.
    pub name: String,
    /// "running", "sleeping", "waiting" …
    pub state: String,
    /// Address of the kernel's structure.
    pub object: Va,
    /// Whether it is missing from its process's own list: found by cross-view.
    pub hidden: bool,
}

/// One memory region of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Region {
    /// First address.
    pub start: Va,
    /// First address behind it.
    pub end: Va,
    /// "rwxp" and the like.
    pub protection: String,
    /// File or purpose, cleaned.
    pub name: String,
}

/// One mapped image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Module {
    /// Load address.
    pub base: Va,
    /// Size in bytes.
    pub size: u64,
    /// Name, cleaned.
    pub name: String,
    /// Whether it is missing from the kernel's own list: found by cross-view.
    pub hidden: bool,
}

/// More of a breakpoint than its row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BreakpointDetail {
    /// Its row.
    pub breakpoint: Breakpoint,
    /// Instructions around it, made from the guest's own bytes, not from patched ones.
    pub code: Vec<CodeLine>,
}

/// One disassembled instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CodeLine {
    /// Where.
    pub address: Va,
    /// Its bytes as hex digits.
    pub bytes: String,
    /// Intel syntax, addresses named where a symbol is known.
    pub text: String,
    /// `symbol+offset` of the instruction, empty where there is none.
    pub symbol: String,
    /// Whether this is the line asked for (the breakpoint, the start address).
    pub here: bool,
    /// Where it branches to, or the memory that it names, where that is known without running it.
    #[serde(skip)]
    pub target: Option<Va>,
}

/// A stretch of memory; a missing page's bytes are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryDetail {
    /// The address space: a process, or `None` for the kernel.
    pub pid: Option<u32>,
    /// Its root.
    pub root: Pa,
    /// First address.
    pub va: Va,
    /// The bytes.
    pub bytes: Vec<Option<u8>>,
    /// When each byte was last seen to change, on the snapshot's clock; as long as `bytes`.
    #[serde(skip)]
    pub changed: Vec<Option<u64>>,
    /// The same as instructions, a bounded number of them.
    pub code: Vec<CodeLine>,
    /// Instructions before the first address that lead up to it exactly.
    #[serde(skip)]
    pub before: Vec<CodeLine>,
    /// The walk of the first address.
    pub walk: Vec<WalkEntry>,
    /// What there is of the first address's page while it is not mapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<MissingPage>,
}

/// How far a search of memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SearchProgress {
    /// The page that is looked at next.
    pub at: Va,
    /// How much was there to be read so far.
    pub read_bytes: u64,
    /// How many matches there are so far.
    pub found: u64,
}
