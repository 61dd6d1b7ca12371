//! User mode: the programs that processes run, the system's library, and what the private pages of a process hold
//! before it ever wrote to them.

use iced_x86::code_asm::*;

use super::{
    code::{SERVICES, assemble},
    facts::Facts,
    handles::state_file,
    namespace::utf16,
};
use crate::engine::{driver::sim::memory::Frame, error::VmiError};

/// Where a process keeps its private pages: numbers of pages from the start of its region of 2 MiB.
pub(super) mod page {
    /// Pages of the first thread's stack; the second thread's follows.
    pub(in super::super) const STACK: u64 = 4;
    /// Process environment block.
    pub(in super::super) const PEB: u64 = 0x10;
    /// Thread environment blocks.
    pub(in super::super) const TEB: u64 = 0x11;
    /// Process environment block of a 32-bit process, as its own code sees it.
    pub(in super::super) const PEB32: u64 = 0x12;
    /// Process parameters: command line, image path.
    pub(in super::super) const PARAMETERS: u64 = 0x20;
    /// The loader's list of modules.
    pub(in super::super) const MODULES: u64 = 0x21;
    /// The 32-bit loader's list of modules.
    pub(in super::super) const MODULES32: u64 = 0x22;
    /// The heap.
    pub(in super::super) const HEAP: u64 = 0x40;
    /// Pages of the heap; a power of two.
    pub(in super::super) const HEAP_PAGES: u64 = 16;
}

/// What a program does besides its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Habits {
    /// Starts another process now and then.
    pub(super) spawns: bool,
    /// Ends after a while.
    pub(super) short_lived: bool,
    /// Reads an address that is not mapped, and handles the exception.
    pub(super) faults: bool,
    /// Runs breakpoint instructions of its own.
    pub(super) traps: bool,
    /// 32-bit, as far as its process object says.
    pub(super) wow64: bool,
}

/// A program.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) habits: Habits,
    /// Where it is loaded.
    pub(super) base: u64,
    /// The table that maps it and the system's library, shared by all its processes.
    pub(super) tables: u64,
    /// Its first instruction.
    pub(super) entry: u64,
    /// The instruction that faults on purpose, and where its handler goes on.
    pub(super) bad: Option<(u64, u64)>,
}

/// Size of a program's and the library's image in bytes.
pub(super) const IMAGE_BYTES: u64 = 0x2000;

/// The system's library as a file object names it.
pub(super) const LIBRARY: &str = "\\Windows\\System32\\ntdll.dll";

/// What a 32-bit process has besides: base, size, name. Nothing of them is in memory.
pub(super) const MODULES32: [(u64, u64, &str); 2] =
    [(0x77a0_0000, 0x1a_4000, "ntdll.dll"), (0x7650_0000, 0xf_0000, "kernel32.dll")];

/// A 32-bit module's file.
pub(super) fn path32(name: &str) -> String {
    format!("\\Windows\\SysWOW64\\{name}")
}

/// A program's file.
pub(super) fn image_path(name: &str) -> String {
    let folder = if name == "explorer.exe" { "\\Windows" } else { "\\Windows\\System32" };
    format!("{folder}\\{name}")
}

/// An address that no process ever has.
pub(super) const NOWHERE: u64 = 0x7777_0000;

/// The address of a service's stub in the system's library; the services are in the order of [`SERVICES`].
pub(super) fn stub(library: u64, service: &str) -> u64 {
    let index = SERVICES.iter().position(|&(_, name, _)| name == service).unwrap_or(0);
    library + 0x1000 + index as u64 * 0x20
}

/// The library's code page: a stub for every service (`mov r10, rcx; mov eax, N; syscall; ret`).
pub(super) fn library_code(library: u64) -> Result<Frame, VmiError> {
    let mut page = [0xcc; 4096];
    for &(number, name, _) in SERVICES {
        let at = stub(library, name);
        let code = assemble(at, |a| {
            a.mov(r10, rcx)?;
            a.mov(eax, number)?;
            a.syscall()?;
            a.ret()
        })?;
        put(&mut page, (at & 0xfff) as usize, &code);
    }
    Ok(page)
}

/// A program's code page for an address; where it starts is its first byte.
pub(super) fn program_code(
    base: u64,
    library: u64,
    facts: &Facts,
    habits: Habits,
) -> Result<(Frame, Option<(u64, u64)>), VmiError> {
    let start = base + 0x1000;
    // The distance to the faulting instruction is known only once the code in front of it is: it sits at a fixed place.
    const BAD: u64 = 0x800;
    let service = |a: &mut CodeAssembler, name: &str| {
        a.mov(rax, stub(library, name))?;
        a.call(rax)
    };
    let code = assemble(start, |a| {
        let mut again = a.create_label();
        let mut compute = a.create_label();
        a.sub(rsp, 0x68)?;
        a.mov(rbp, qword_ptr(facts.teb_peb).gs())?;
        a.mov(rbx, qword_ptr(rbp + facts.peb_heap))?;
        a.xor(r12d, r12d)?;
        a.set_label(&mut again)?;
        a.inc(r12)?;
        a.mov(ecx, 32)?;
        a.mov(rax, r12)?;
        a.set_label(&mut compute)?;
        a.lea(rax, qword_ptr(rax + rcx * 2 + 1))?;
        a.rol(rax, 3)?;
        a.dec(ecx)?;
        a.jnz(compute)?;
        a.mov(qword_ptr(rbx + 8), rax)?;

        a.lea(rcx, qword_ptr(rbx + 0x20))?;
        a.mov(edx, 0x8010_0080_u32)?;
        a.lea(r8, qword_ptr(rbx + 0x100))?;
        a.lea(r9, qword_ptr(rbx + 0x30))?;
        for (offset, value) in [(0x20, 0), (0x28, 0x80), (0x30, 7), (0x38, 1), (0x40, 0x60), (0x48, 0), (0x50, 0)] {
            a.mov(qword_ptr(rsp + offset), value)?;
        }
        service(a, "NtCreateFile")?;
        file(a, 0x20)?;
        service(a, "NtReadFile")?;
        a.mov(rcx, qword_ptr(rbx + 0x20))?;
        service(a, "NtClose")?;

        a.lea(rcx, qword_ptr(rbx + 0x28))?;
        a.mov(edx, 0x0010_0001)?;
        a.lea(r8, qword_ptr(rbx + 0x100))?;
        a.lea(r9, qword_ptr(rbx + 0x30))?;
        service(a, "NtOpenFile")?;
        file(a, 0x28)?;
        service(a, "NtWriteFile")?;
        a.mov(rcx, qword_ptr(rbx + 0x28))?;
        service(a, "NtClose")?;

        a.mov(ecx, 5)?;
        a.lea(rdx, qword_ptr(rbx + 0x200))?;
        a.mov(r8d, 0x1000)?;
        a.lea(r9, qword_ptr(rbx + 0x40))?;
        service(a, "NtQuerySystemInformation")?;

        // Another page of the heap every time.
        a.mov(rax, r12)?;
        a.and(eax, (page::HEAP_PAGES - 1) as u32)?;
        a.shl(eax, 12)?;
        a.inc(qword_ptr(rbx + rax + 0xff8u32))?;

        every(a, 8, |a| {
            a.mov(rcx, -1i64)?;
            a.lea(rdx, qword_ptr(rbx + 0x48))?;
            a.xor(r8d, r8d)?;
            a.lea(r9, qword_ptr(rbx + 0x50))?;
            service(a, "NtAllocateVirtualMemory")
        })?;
        every(a, 32, |a| {
            // Its own command line.
            a.mov(rax, qword_ptr(rbp + facts.peb_parameters))?;
            a.mov(rax, qword_ptr(rax + facts.command_line))
        })?;
        if habits.spawns {
            every(a, 8, |a| {
                a.lea(rcx, qword_ptr(rbx + 0x58))?;
                a.xor(edx, edx)?;
                service(a, "NtCreateUserProcess")
            })?;
        }
        if habits.traps {
            every(a, 16, |a| a.int3())?;
        }
        if habits.faults {
            every(a, 16, |a| a.call(start + BAD))?;
        }
        if habits.short_lived {
            every(a, 16, |a| {
                a.mov(rcx, -1i64)?;
                a.xor(edx, edx)?;
                service(a, "NtTerminateProcess")
            })?;
        }
        a.xor(ecx, ecx)?;
        a.lea(rdx, qword_ptr(rbx + 0x60))?;
        service(a, "NtDelayExecution")?;
        a.jmp(again)
    })?;
    let mut page = [0xcc; 4096];
    put(&mut page, 0, &code);
    if !habits.faults {
        return Ok((page, None));
    }
    let faulting = assemble(start + BAD, |a| {
        a.mov(rax, NOWHERE)?;
        a.mov(rax, qword_ptr(rax))?;
        a.ret()
    })?;
    put(&mut page, BAD as usize, &faulting);
    // The load is behind the move of the address and in front of the one-byte return.
    let resume = start + BAD + faulting.len() as u64 - 1;
    let load = resume - 3;
    Ok((page, Some((load, resume))))
}

/// Arguments of a read or write through the handle that the heap has at this offset.
fn file(a: &mut CodeAssembler, handle: i32) -> Result<(), iced_x86::IcedError> {
    a.mov(rcx, qword_ptr(rbx + handle))?;
    a.xor(edx, edx)?;
    a.xor(r8d, r8d)?;
    a.xor(r9d, r9d)
}

/// Code that runs in one of `times` rounds.
fn every(
    a: &mut CodeAssembler,
    times: u32,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Result<(), iced_x86::IcedError> {
    let mut not_now = a.create_label();
    a.test(r12d, times - 1)?;
    a.jnz(not_now)?;
    code(a)?;
    a.set_label(&mut not_now)?;
    a.nop()
}

/// What a process's private pages are made from.
pub(super) struct Contents<'a> {
    pub(super) facts: &'a Facts,
    /// Start of the process's region.
    pub(super) region: u64,
    pub(super) pid: u64,
    pub(super) tid: u64,
    pub(super) name: &'a str,
    pub(super) base: u64,
    pub(super) library: u64,
}

impl Contents<'_> {
    /// A page by its number in the region.
    pub(super) fn page(&self, number: u64) -> Frame {
        let mut page = [0; 4096];
        match number {
            page::PEB => self.environment(&mut page),
            page::TEB => self.thread(&mut page),
            page::PARAMETERS => self.parameters(&mut page),
            page::PEB32 => put(&mut page, self.facts.peb32_ldr as usize, &self.low(page::MODULES32)),
            page::MODULES => self.modules(&mut page),
            page::MODULES32 => self.modules32(&mut page),
            page::HEAP => self.heap(&mut page),
            _ => {}
        }
        page
    }

    fn at(&self, number: u64) -> u64 {
        self.region + number * 0x1000
    }

    fn environment(&self, page: &mut Frame) {
        let f = self.facts;
        put_u64(page, f.peb_image, self.base);
        put_u64(page, f.peb_ldr, self.at(page::MODULES));
        put_u64(page, f.peb_parameters, self.at(page::PARAMETERS));
        put_u64(page, f.peb_heap, self.at(page::HEAP));
    }

    fn thread(&self, page: &mut Frame) {
        let f = self.facts;
        put_u64(page, f.teb_self, self.at(page::TEB));
        put_u64(page, f.teb_peb, self.at(page::PEB));
        // _TEB.ClientId
        put_u64(page, 0x40, self.pid);
        put_u64(page, 0x48, self.tid);
    }

    fn path(&self) -> String {
        format!("C:\\Windows\\System32\\{}", self.name)
    }

    fn command_line(&self) -> String {
        match self.name {
            "svchost.exe" => format!("{} -k netsvcs -p -s {}", self.path(), service_name(self.pid)),
            "explorer.exe" => "C:\\Windows\\Explorer.EXE".to_owned(),
            _ => format!("\"{}\" /id:{}", self.path(), self.pid),
        }
    }

    fn parameters(&self, page: &mut Frame) {
        let (image, line) = (self.path(), self.command_line());
        self.string(page, page::PARAMETERS, self.facts.image_path, 0x500, &image);
        self.string(page, page::PARAMETERS, self.facts.command_line, 0x800, &line);
    }

    fn modules(&self, page: &mut Frame) {
        let f = self.facts;
        let here = self.at(page::MODULES);
        let list = [
            (0x100, self.base, self.name.to_owned(), self.path()),
            (0x300, self.library, "ntdll.dll".to_owned(), "C:\\Windows\\SYSTEM32\\ntdll.dll".to_owned()),
        ];
        let head = here + f.ldr_modules;
        let mut before = head;
        let mut text = 0x600;
        for (at, base, name, path) in &list {
            // InLoadOrderLinks is the entry's first field.
            let entry = here + at;
            put_u64(page, before - here, entry);
            put_u64(page, at + 8, before);
            put_u64(page, at + f.module_base, *base);
            put_u64(page, at + f.module_size, IMAGE_BYTES);
            self.string(page, page::MODULES, at + f.module_name, text, name);
            self.string(page, page::MODULES, at + f.module_path, text + 0x80, path);
            text += 0x200;
            before = entry;
        }
        put_u64(page, before - here, head);
        put_u64(page, f.ldr_modules + 8, before);
    }

    /// An address of a 32-bit process, as it keeps it.
    fn low(&self, number: u64) -> [u8; 4] {
        (self.at(number) as u32).to_le_bytes()
    }

    /// The same list with pointers of four bytes (`PEB_LDR_DATA32`, `LDR_DATA_TABLE_ENTRY32`).
    fn modules32(&self, page: &mut Frame) {
        const LIST: usize = 0xc;
        let here = self.at(page::MODULES32) as u32;
        let mut before = LIST;
        for (&(base, bytes, name), at) in MODULES32.iter().zip((0x100..).step_by(0x200)) {
            let text: Vec<u8> = utf16(name);
            put(page, before, &(here + at as u32).to_le_bytes());
            put(page, at + 4, &(here + before as u32).to_le_bytes());
            put(page, at + 0x18, &(base as u32).to_le_bytes());
            put(page, at + 0x20, &(bytes as u32).to_le_bytes());
            let length = text.len() as u32;
            put(page, at + 0x2c, &(length | (length + 2) << 16).to_le_bytes());
            put(page, at + 0x30, &(here + at as u32 + 0x80).to_le_bytes());
            put(page, at + 0x80, &text);
            before = at;
        }
        put(page, before, &(here + LIST as u32).to_le_bytes());
        put(page, LIST + 4, &(here + before as u32).to_le_bytes());
    }

    fn heap(&self, page: &mut Frame) {
        let file = format!("\\??\\C:{}", state_file(self.name, self.pid));
        // _OBJECT_ATTRIBUTES at 0x100, its name at 0x140.
        put_u64(page, 0x100, 0x30);
        put_u64(page, 0x100 + self.facts.object_name, self.at(page::HEAP) + 0x140);
        self.string(page, page::HEAP, 0x140, 0x160, &file);
        put_u64(page, 0x50, 0x1234);
        put_u64(page, 0x60, -100_000i64 as u64);
    }

    /// A `_UNICODE_STRING` and, on the same page, its text.
    fn string(&self, page: &mut Frame, number: u64, at: u64, text_at: u64, text: &str) {
        let bytes = utf16(text);
        let length = bytes.len() as u64;
        put_u64(page, at, length | (length + 2) << 16);
        put_u64(page, at + self.facts.string_buffer, self.at(number) + text_at);
        put(page, text_at as usize, &bytes);
    }
}

fn service_name(pid: u64) -> &'static str {
    const NAMES: [&str; 8] = ["Schedule", "Themes", "Winmgmt", "BITS", "UserManager", "ProfSvc", "gpsvc", "Appinfo"];
    NAMES.get((pid / 4 % 8) as usize).copied().unwrap_or("Schedule")
}

/// A minimal image header: MZ, PE, AMD64, size of image (PE format, section 3).
pub(super) fn image_header(size: u64) -> Frame {
    let mut page = [0; 4096];
    put(&mut page, 0, b"MZ");
    put(&mut page, 0x3c, &0x100u32.to_le_bytes());
    put(&mut page, 0x100, b"PE\0\0");
    put(&mut page, 0x104, &0x8664u16.to_le_bytes());
    // SizeOfOptionalHeader, Characteristics: executable, large addresses.
    put(&mut page, 0x114, &0xf0u16.to_le_bytes());
    put(&mut page, 0x116, &0x22u16.to_le_bytes());
    // Optional header: magic PE32+, SizeOfImage, SizeOfHeaders.
    put(&mut page, 0x118, &0x20bu16.to_le_bytes());
    put(&mut page, 0x118 + 0x38, &(size as u32).to_le_bytes());
    put(&mut page, 0x118 + 0x3c, &0x1000u32.to_le_bytes());
    page
}

fn put(page: &mut Frame, at: usize, bytes: &[u8]) {
    if let Some(target) = page.get_mut(at..at + bytes.len()) {
        target.copy_from_slice(bytes);
    }
}

fn put_u64(page: &mut Frame, at: u64, value: u64) {
    put(page, at as usize, &value.to_le_bytes());
}
