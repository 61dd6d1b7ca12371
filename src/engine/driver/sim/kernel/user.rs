//! User mode: the programs that processes run, and the system's library.

use iced_x86::code_asm::*;

use super::{
    code::{SERVICES, assemble},
    contents::{page, put},
    facts::Facts,
};
use crate::engine::{driver::sim::memory::Frame, error::VmiError};

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
