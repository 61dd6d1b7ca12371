//! The kernel's code: real instructions at the addresses that the real build has its functions at.
//!
//! What a real kernel computes with thousands of instructions (which thread is next, which page goes) is asked of the
//! kernel's model by VMCALL, number in EAX ([`Call`]); everything that can be seen from outside (stores to page tables
//! and lists, switches of CR3, reads of its own code) the instructions do themselves.

mod entry;
mod services;
mod switching;

use iced_x86::{IcedError, code_asm::*};

use super::facts::Facts;
use crate::engine::{driver::sim::memory::Memory, error::VmiError};

/// What the kernel's code asks its model. Arguments in RCX, RDX, R8; answers in RAX, RCX, RDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Call {
    /// RAX: the thread to run next.
    Pick = 1,
    /// RAX: whether the running thread's time is up.
    Tick,
    /// RCX error code, RDX address, R8 flags of the interrupted code. RAX: 0 served, 1 store RCX at RDX and ask again,
    /// 2 wait and ask again, 3 refused.
    Fault,
    /// RCX exception record, R8 trap frame. RAX: where to go on.
    Dispatch,
    /// RDX: a new handle, RCX: where its entry is (0: there is no room), RAX: what to store there.
    Handle,
    /// RAX: whether the request has to be waited for.
    Input,
    /// The running thread sleeps.
    Delay,
    /// RAX: a new process that is on no list yet, or 0.
    Create,
    /// RCX: a process that is on the list now.
    Created,
    /// The running process ends. RAX: its process object, RDX: the time.
    Exit,
    /// What the worker does next. RAX: 0 wait, 1 store RCX at RDX, 2 call RCX with R8 and R9.
    Work,
    /// RCX: a process that is off the list now.
    Deleted,
    /// RCX: number of a routine that is not as it was.
    Tampered,
    /// RAX: the bytes that the routine that patches itself writes, RDX: where.
    Patch,
    /// It has.
    Patched,
    /// Nothing can go on.
    BugCheck,
    /// RCX: a handle. RCX: where its entry is, or 0.
    Close,
}

impl Call {
    /// A call by its number.
    pub(super) fn from_number(number: u64) -> Option<Self> {
        use Call as C;
        [
            C::Pick,
            C::Tick,
            C::Fault,
            C::Dispatch,
            C::Handle,
            C::Input,
            C::Delay,
            C::Create,
            C::Created,
            C::Exit,
            C::Work,
            C::Deleted,
            C::Tampered,
            C::Patch,
            C::Patched,
            C::BugCheck,
            C::Close,
        ]
        .into_iter()
        .find(|call| *call as u64 == number)
    }
}

/// Where the trap frame that [`Code`] builds has what, in bytes.
pub(super) mod trap {
    /// RIP.
    pub(in super::super) const RIP: u64 = 0x48;
    /// CS.
    pub(in super::super) const CS: u64 = 0x50;
    /// RFLAGS.
    pub(in super::super) const RFLAGS: u64 = 0x58;
}

/// Things of the kernel's own in the unused end of its image, in bytes from its base.
pub(super) mod own {
    /// Lock of the process list.
    pub(in super::super) const LIST_LOCK: u64 = 0xf0_0000;
    /// Routines and their checksums, 16 bytes each.
    pub(in super::super) const CHECKED: u64 = 0xf0_1000;
    /// The interrupt descriptor table.
    pub(in super::super) const IDT: u64 = 0xf1_0000;
    /// Task state segments, 0x80 bytes each.
    pub(in super::super) const TSS: u64 = 0xf1_1000;
    /// The CID table's own structure.
    pub(in super::super) const CID_TABLE: u64 = 0xf1_2000;
    /// Processor control regions, 64 KiB each.
    pub(in super::super) const PCR: u64 = 0xf2_0000;
}

/// Bytes of a routine that the integrity check reads.
pub(super) const CHECKED_BYTES: u64 = 128;

/// STATUS_ACCESS_VIOLATION.
pub(super) const ACCESS_VIOLATION: u32 = 0xc000_0005;
/// STATUS_BREAKPOINT.
pub(super) const BREAKPOINT: u32 = 0x8000_0003;
/// STATUS_NOT_IMPLEMENTED.
const NOT_IMPLEMENTED: u32 = 0xc000_0002;

/// The services that user code calls: number (as of this build's system call table), name, arguments on the stack.
pub(super) const SERVICES: &[(u32, &str, u32)] = &[
    (0x06, "NtReadFile", 5),
    (0x08, "NtWriteFile", 5),
    (0x0f, "NtClose", 0),
    (0x18, "NtAllocateVirtualMemory", 2),
    (0x2c, "NtTerminateProcess", 0),
    (0x33, "NtOpenFile", 2),
    (0x34, "NtDelayExecution", 0),
    (0x36, "NtQuerySystemInformation", 0),
    (0x55, "NtCreateFile", 7),
    (0xc8, "NtCreateUserProcess", 7),
];

/// Entries of the system call table.
pub(super) const SERVICE_COUNT: u32 = 0x1d0;

fn assembling(error: IcedError) -> VmiError {
    VmiError::driver("assembling the built-in guest's code", error.to_string())
}

/// Assembles one piece of code for an address.
pub(super) fn assemble(
    ip: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, VmiError> {
    let mut a = CodeAssembler::new(64).map_err(assembling)?;
    write(&mut a).map_err(assembling)?;
    a.assemble(ip).map_err(assembling)
}

/// A writer of the kernel's image.
pub(super) struct Code<'a> {
    pub(super) facts: &'a Facts,
    pub(super) memory: &'a mut Memory,
    /// Virtual and physical address of the image.
    pub(super) base: u64,
    pub(super) pa: u64,
    /// The routines written, by name, in order.
    pub(super) written: Vec<(&'static str, u64)>,
}

type Assembled = Result<(), IcedError>;

fn call_model(a: &mut CodeAssembler, call: Call) -> Assembled {
    a.mov(eax, call as u32)?;
    a.vmcall()
}

/// Saves what a handler changes; with an error code (or a zero) on the stack already. Loads the kernel's GS.
fn enter(a: &mut CodeAssembler) -> Assembled {
    for register in [rax, rcx, rdx, r8, r9, r10, r11, rbx] {
        a.push(register)?;
    }
    let mut kernel = a.create_label();
    a.test(byte_ptr(rsp + trap::CS), 1)?;
    a.jz(kernel)?;
    a.swapgs()?;
    a.set_label(&mut kernel)?;
    a.nop()
}

/// The way back from [`enter`].
fn leave(a: &mut CodeAssembler) -> Assembled {
    let mut kernel = a.create_label();
    a.cli()?;
    a.test(byte_ptr(rsp + trap::CS), 1)?;
    a.jz(kernel)?;
    a.swapgs()?;
    a.set_label(&mut kernel)?;
    for register in [rbx, r11, r10, r9, r8, rdx, rcx, rax] {
        a.pop(register)?;
    }
    a.add(rsp, 8)?;
    a.iretq()
}

impl Code<'_> {
    /// The address of a routine.
    fn at(&self, name: &str) -> Result<u64, VmiError> {
        Ok(self.base + self.facts.symbol(name)?)
    }

    fn put(&mut self, name: &'static str, write: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Result<(), VmiError> {
        let rva = self.facts.symbol(name)?;
        let bytes = assemble(self.base + rva, write)?;
        self.memory.write(self.pa + rva, &bytes)?;
        self.written.push((name, rva));
        Ok(())
    }

    /// Writes the whole kernel.
    pub(super) fn write(&mut self) -> Result<(), VmiError> {
        self.write_placeholders()?;
        self.write_system_call()?;
        self.write_traps()?;
        self.write_faults()?;
        self.write_scheduling()?;
        self.write_files()?;
        self.write_processes()?;
        self.write_worker()
    }

    /// Every service that nothing here calls answers that it is not implemented.
    fn write_placeholders(&mut self) -> Result<(), VmiError> {
        let data = self.facts.symbol("NtBuildNumber")?;
        let services: Vec<u64> = self
            .facts
            .symbols()
            .filter(|&(name, rva)| name.starts_with("Nt") && rva < data)
            .map(|(_, rva)| rva)
            .collect();
        for rva in services {
            let bytes = assemble(self.base + rva, |a| {
                a.mov(eax, NOT_IMPLEMENTED)?;
                a.ret()
            })?;
            self.memory.write(self.pa + rva, &bytes)?;
        }
        Ok(())
    }
}

/// The two forms of the bytes that the kernel changes in itself: `mov edi, edi` and `xchg ax, ax`.
pub(super) const PATCHES: [[u8; 2]; 2] = [[0x8b, 0xff], [0x66, 0x90]];

/// The routine that they are at the start of.
pub(super) const PATCHED: &str = "NtQuerySystemInformation";

/// The checksum of the integrity check over the bytes of a routine.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.as_chunks::<8>().0.iter().fold(0u64, |sum, word| sum.rotate_left(7).wrapping_add(u64::from_le_bytes(*word)))
}
