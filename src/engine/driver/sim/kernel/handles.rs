//! What a process has open: its `_HANDLE_TABLE` and the objects of its own that the handles lead to.

use super::{
    Kernel,
    namespace::{Place, utf16},
    objects::{HANDLES_AT, OWN, PROCESS_AT, TOKEN_AT},
    process::Process,
};
use crate::engine::{driver::sim::memory::Memory, error::VmiError};

/// Entries of a page, and bytes of an entry.
const ENTRIES: u64 = 256;
const ENTRY: u64 = 16;
/// Handles of a process that has more than one page of them.
const MANY: u64 = 300;
/// Handles that a process is given at its start; what it opens itself comes behind them.
const GIVEN: u64 = 16;

/// Rights: GENERIC_ALL of events and the like, KEY_READ, FILE_GENERIC_READ, PROCESS_ALL_ACCESS, TOKEN_ALL_ACCESS.
const ALL: u32 = 0x1f_0003;
const KEY_READ: u32 = 0x2_0019;
const FILE_READ: u32 = 0x12_0089;
const PROCESS_ALL: u32 = 0x1f_ffff;
const TOKEN_ALL: u32 = 0xf_01ff;

impl Kernel {
    /// An object of a process's own, at a distance from its place.
    fn own(&self, process: &Process, at: u64, kind: &'static str) -> Place {
        let va = process.object - PROCESS_AT + at;
        Place { va, pa: self.objects.physical(va), kind }
    }

    /// The two words of an entry (`_HANDLE_TABLE_ENTRY`): unlocked, references to spare, the header's address without its
    /// upper 16 and lower 4 bits from bit 20 on; the rights.
    fn entry(&self, body: u64, rights: u32) -> (u64, u64) {
        let header = body - self.facts.header_body;
        ((header & 0xffff_ffff_fff0) << 16 | 0x7ff0 << 1 | 1, u64::from(rights))
    }

    /// Writes the objects of a process's own and its table of handles.
    pub(super) fn write_handles(&mut self, memory: &mut Memory, process: &Process) -> Result<(), VmiError> {
        let f = &self.facts;
        let names = &self.names;
        for &id in &process.threads {
            let Some(thread) = self.thread(id) else { continue };
            let pa = self.objects.physical(thread.object);
            names.head(memory, f, Place { va: thread.object, pa, kind: "Thread" }, 0);
        }
        let pa = self.objects.physical(process.object);
        names.head(memory, f, Place { va: process.object, pa, kind: "Process" }, 0);
        let event = self.own(process, OWN.event, "Event");
        names.head(memory, f, event, 0);
        let port = self.own(process, OWN.port, "ALPC Port");
        names.head(memory, f, port, 0);
        let text = |memory: &mut Memory, at: u64, text: &str| {
            let place = self.own(process, at, "");
            let bytes = utf16(text);
            let _ = memory.write(place.pa, &bytes);
            (place.va, bytes.len() as u64)
        };
        let mutant = self.own(process, OWN.mutant, "Mutant");
        let name = text(memory, OWN.mutant_name, &format!("SM0:{}:304:WilStaging_02", process.pid));
        names.head_named(memory, f, mutant, names.find("\\Sessions\\1\\BaseNamedObjects"), name);
        let file = self.own(process, OWN.file, "File");
        let program = process.program.and_then(|program| self.programs.get(program));
        let program = program.map_or(process.name.as_str(), |program| program.name);
        let name = text(memory, OWN.file_name, &state_file(program, process.pid));
        names.write_file(memory, f, file, name);
        let token = process.object - PROCESS_AT + TOKEN_AT;
        let parent = self.processes.iter().flatten().find(|other| other.pid == process.ppid);
        let thread = process.threads.first().and_then(|&id| self.thread(id)).map_or(0, |thread| thread.object);
        let given = [
            (names.find("\\KnownDlls"), 3),
            (event.va, ALL),
            (names.find("\\REGISTRY\\MACHINE\\SYSTEM\\ControlSet001\\Control\\Session Manager"), KEY_READ),
            (names.find("\\BaseNamedObjects\\__ComCatalogCache__"), 4),
            (mutant.va, ALL),
            (port.va, ALL),
            (names.find("\\Windows\\System32"), FILE_READ),
            (parent.map_or(0, |parent| parent.object), PROCESS_ALL),
            (thread, PROCESS_ALL),
            (token, TOKEN_ALL),
            (names.find("\\REGISTRY\\MACHINE\\SOFTWARE\\Microsoft\\Ole"), KEY_READ),
        ];
        let kernel_only = [
            (process.object, PROCESS_ALL),
            (names.find("\\pagefile.sys"), FILE_READ),
            (names.find("\\REGISTRY\\MACHINE\\SYSTEM\\ControlSet001\\Control\\Session Manager"), KEY_READ),
            (names.find("\\Device\\HarddiskVolume2"), FILE_READ),
        ];
        let given = if process.pid == 4 { &kernel_only[..] } else { &given[..] };
        let page = self.own(process, HANDLES_AT, "");
        for (&(body, rights), index) in given.iter().filter(|(body, _)| *body != 0).zip(1..) {
            let (low, high) = self.entry(body, rights);
            memory.write_u64(page.pa + index * ENTRY, low);
            memory.write_u64(page.pa + index * ENTRY + 8, high);
        }
        // A program that has more than a page of them: a page of pointers to pages, as its lowest bits tell.
        let (mut code, mut next) = (page.va, ENTRIES * 4);
        if process.name == "explorer.exe" {
            let (level, more) = (self.frames.take()?, self.frames.take()?);
            memory.write_u64(level, page.va);
            memory.write_u64(level + 8, self.direct + more);
            let (low, high) = self.entry(event.va, ALL);
            for index in ENTRIES..MANY {
                memory.write_u64(more + (index - ENTRIES) * ENTRY, low);
                memory.write_u64(more + (index - ENTRIES) * ENTRY + 8, high);
            }
            (code, next) = ((self.direct + level) | 1, 2 * ENTRIES * 4);
        }
        let f = &self.facts;
        let table = self.own(process, OWN.table, "");
        let _ = memory.write(table.pa + f.table_next, &(next as u32).to_le_bytes());
        memory.write_u64(table.pa + f.table_code, code);
        memory.write_u64(table.pa + f.table_process, process.object);
        let _ = memory.write(table.pa + f.table_pid, &(process.pid as u32).to_le_bytes());
        memory.write_u64(pa + f.object_table, table.va);
        Ok(())
    }

    /// A free handle of the running process for the file that it opens: the handle, where its entry is, what to store
    /// there. A process that has no room left is given no handle.
    pub(super) fn open_handle(&self, memory: &Memory, vcpu: usize) -> (u64, u64, u64) {
        let Some(process) = self.running(vcpu).and_then(|(_, place)| self.process(place)) else { return (0, 0, 0) };
        let page = self.own(process, HANDLES_AT, "");
        let free = |index: &u64| memory.read_u64(page.pa + index * ENTRY) == Some(0);
        let Some(index) = (GIVEN..ENTRIES).find(free) else { return (0, 0, 0) };
        let (low, _) = self.entry(self.own(process, OWN.file, "File").va, FILE_READ);
        (index * 4, page.va + index * ENTRY, low)
    }

    /// Where the entry of a handle is that the running process closes; 0 where it is none that it opened itself.
    pub(super) fn close_handle(&self, vcpu: usize, handle: u64) -> u64 {
        let Some(process) = self.running(vcpu).and_then(|(_, place)| self.process(place)) else { return 0 };
        let index = handle / 4;
        if (GIVEN..ENTRIES).contains(&index) { self.own(process, HANDLES_AT, "").va + index * ENTRY } else { 0 }
    }
}

/// The file that a process works on, as its file object names it.
pub(super) fn state_file(name: &str, pid: u64) -> String {
    format!("\\ProgramData\\{}\\state-{pid}.dat", name.trim_end_matches(".exe"))
}
