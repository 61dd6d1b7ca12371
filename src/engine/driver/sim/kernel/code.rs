//! The kernel's code: real instructions at the addresses that the real build has its functions at.
//!
//! What a real kernel computes with thousands of instructions (which thread is next, which page goes) is asked of the
//! kernel's model by VMCALL, number in EAX ([`Call`]); everything that can be seen from outside (stores to page tables
//! and lists, switches of CR3, reads of its own code) the instructions do themselves.

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
    /// RDX: a new handle.
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
/// STATUS_SINGLE_STEP.
const SINGLE_STEP: u32 = 0x8000_0004;
/// STATUS_ILLEGAL_INSTRUCTION.
const ILLEGAL_INSTRUCTION: u32 = 0xc000_001d;
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

    fn write_system_call(&mut self) -> Result<(), VmiError> {
        let f = self.facts;
        let (user_rsp, rsp_base) = (f.pcr_user_rsp, f.pcr_prcb + f.prcb_rsp_base);
        let table = self.at("KiServiceTable")?;
        self.put("KiSystemCall64", |a| {
            let mut copied = a.create_label();
            let mut valid = a.create_label();
            a.swapgs()?;
            a.mov(qword_ptr(user_rsp).gs(), rsp)?;
            a.mov(rsp, qword_ptr(rsp_base).gs())?;
            a.push(0x2b)?;
            a.push(qword_ptr(user_rsp).gs())?;
            a.push(r11)?;
            a.push(0x33)?;
            a.push(rcx)?;
            a.push(rsi)?;
            a.push(rdi)?;
            a.sub(rsp, 0x70)?;
            a.sti()?;
            a.and(eax, 0xfff)?;
            a.cmp(eax, SERVICE_COUNT)?;
            a.jb(valid)?;
            a.xor(eax, eax)?;
            a.set_label(&mut valid)?;
            a.mov(r11, table)?;
            a.movsxd(rax, dword_ptr(r11 + rax * 4))?;
            // The low four bits count the arguments on the stack, which follow the caller's return address and home
            // space.
            a.mov(ecx, eax)?;
            a.and(ecx, 0xf)?;
            a.jz(copied)?;
            a.mov(rsi, qword_ptr(rsp + 0x98))?;
            a.add(rsi, 0x28)?;
            a.lea(rdi, qword_ptr(rsp + 0x20))?;
            a.rep().movsq()?;
            a.set_label(&mut copied)?;
            a.sar(rax, 4)?;
            a.add(rax, r11)?;
            a.mov(rcx, r10)?;
            a.call(rax)?;
            a.cli()?;
            a.add(rsp, 0x70)?;
            a.pop(rdi)?;
            a.pop(rsi)?;
            a.pop(rcx)?;
            a.add(rsp, 8)?;
            a.pop(r11)?;
            a.mov(rsp, qword_ptr(rsp))?;
            a.swapgs()?;
            a.sysretq()
        })
    }

    /// Handlers that end in the exception dispatcher.
    fn write_traps(&mut self) -> Result<(), VmiError> {
        let dispatch = self.at("KiExceptionDispatch")?;
        for (name, code, has_error) in [
            ("KiDivideErrorFault", 0xc000_0094_u32, false),
            ("KiDebugTrapOrFault", SINGLE_STEP, false),
            ("KiBreakpointTrap", BREAKPOINT, false),
            ("KiInvalidOpcodeFault", ILLEGAL_INSTRUCTION, false),
            ("KiGeneralProtectionFault", ACCESS_VIOLATION, true),
        ] {
            self.put(name, |a| {
                if !has_error {
                    a.push(0)?;
                }
                enter(a)?;
                a.mov(eax, code)?;
                a.xor(ebx, ebx)?;
                a.jmp(dispatch)
            })?;
        }
        self.put("KiDoubleFaultAbort", |a| {
            call_model(a, Call::BugCheck)?;
            a.hlt()
        })?;
        self.put("KiInterruptDispatch", |a| a.iretq())?;

        let f = self.facts;
        let dispatcher = self.at("KiDispatchException")?;
        // EAX status, RBX faulting address, a trap frame at RSP.
        self.put("KiExceptionDispatch", |a| {
            const RECORD: u64 = 0x30;
            a.mov(r8, rsp)?;
            a.sub(rsp, 0xd0)?;
            a.mov(dword_ptr(rsp + (RECORD + f.record_code)), eax)?;
            a.mov(dword_ptr(rsp + (RECORD + f.record_count)), 2)?;
            a.mov(rax, qword_ptr(r8 + 0x40u32))?;
            a.and(eax, 2)?;
            a.shr(eax, 1)?;
            a.mov(qword_ptr(rsp + (RECORD + f.record_information)), rax)?;
            a.mov(qword_ptr(rsp + (RECORD + f.record_information + 8)), rbx)?;
            a.lea(rcx, qword_ptr(rsp + RECORD))?;
            a.xor(edx, edx)?;
            a.mov(r9, qword_ptr(r8 + trap::CS))?;
            a.and(r9d, 1)?;
            a.mov(qword_ptr(rsp + 0x20), 1)?;
            a.call(dispatcher)?;
            a.add(rsp, 0xd0)?;
            leave(a)
        })?;
        self.put("KiDispatchException", |a| {
            a.push(r8)?;
            call_model(a, Call::Dispatch)?;
            a.pop(r8)?;
            a.mov(qword_ptr(r8 + trap::RIP), rax)?;
            a.ret()
        })?;
        self.put("KeBugCheckEx", |a| {
            a.cli()?;
            call_model(a, Call::BugCheck)?;
            a.hlt()
        })
    }

    fn write_faults(&mut self) -> Result<(), VmiError> {
        let access_fault = self.at("MmAccessFault")?;
        let dispatch = self.at("KiExceptionDispatch")?;
        self.put("KiPageFault", |a| {
            let mut held = a.create_label();
            let mut served = a.create_label();
            enter(a)?;
            a.mov(rbx, cr2)?;
            a.test(dword_ptr(rsp + trap::RFLAGS), 0x200)?;
            a.jz(held)?;
            a.sti()?;
            a.set_label(&mut held)?;
            a.mov(ecx, dword_ptr(rsp + 0x40))?;
            a.mov(rdx, rbx)?;
            a.mov(r8, qword_ptr(rsp + trap::RFLAGS))?;
            a.call(access_fault)?;
            a.test(eax, eax)?;
            a.jns(served)?;
            a.jmp(dispatch)?;
            a.set_label(&mut served)?;
            leave(a)
        })?;
        let dispatch_fault = self.at("MiDispatchFault")?;
        self.put("MmAccessFault", |a| {
            a.sub(rsp, 0x28)?;
            a.call(dispatch_fault)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        let swap = self.at("KiSwapThread")?;
        self.put("MiDispatchFault", |a| {
            let mut again = a.create_label();
            let mut waits = a.create_label();
            let mut served = a.create_label();
            let mut refused = a.create_label();
            let mut out = a.create_label();
            a.push(rsi)?;
            a.push(rdi)?;
            a.push(r12)?;
            a.mov(edi, ecx)?;
            a.mov(rsi, rdx)?;
            a.mov(r12, r8)?;
            a.set_label(&mut again)?;
            a.mov(ecx, edi)?;
            a.mov(rdx, rsi)?;
            a.mov(r8, r12)?;
            call_model(a, Call::Fault)?;
            a.cmp(eax, 1)?;
            a.jb(served)?;
            a.ja(waits)?;
            a.mov(qword_ptr(rdx), rcx)?;
            a.invlpg(byte_ptr(rsi))?;
            a.jmp(again)?;
            a.set_label(&mut waits)?;
            a.cmp(eax, 2)?;
            a.ja(refused)?;
            a.call(swap)?;
            a.jmp(again)?;
            a.set_label(&mut refused)?;
            a.mov(eax, ACCESS_VIOLATION)?;
            a.jmp(out)?;
            a.set_label(&mut served)?;
            a.xor(eax, eax)?;
            a.set_label(&mut out)?;
            a.pop(r12)?;
            a.pop(rdi)?;
            a.pop(rsi)?;
            a.ret()
        })
    }

    fn write_scheduling(&mut self) -> Result<(), VmiError> {
        let f = self.facts;
        let current = f.pcr_prcb + f.prcb_current_thread;
        let swap_context = self.at("SwapContext")?;
        let saved = [rbx, rbp, rsi, rdi, r12, r13, r14, r15];
        self.put("KiSwapThread", |a| {
            let mut same = a.create_label();
            a.pushfq()?;
            a.cli()?;
            for register in saved {
                a.push(register)?;
            }
            call_model(a, Call::Pick)?;
            a.cmp(rax, qword_ptr(current).gs())?;
            a.je(same)?;
            a.call(swap_context)?;
            a.set_label(&mut same)?;
            for register in saved.into_iter().rev() {
                a.pop(register)?;
            }
            a.popfq()?;
            a.ret()
        })?;
        // RAX: the new thread. Interrupts are off.
        self.put("SwapContext", |a| {
            let mut system = a.create_label();
            let mut done = a.create_label();
            a.mov(rcx, qword_ptr(current).gs())?;
            a.mov(qword_ptr(rcx + f.kernel_stack), rsp)?;
            a.mov(qword_ptr(current).gs(), rax)?;
            a.mov(rsp, qword_ptr(rax + f.kernel_stack))?;
            a.mov(rdx, qword_ptr(rax + f.initial_stack))?;
            a.mov(qword_ptr(f.pcr_prcb + f.prcb_rsp_base).gs(), rdx)?;
            a.mov(rcx, qword_ptr(f.pcr_tss).gs())?;
            a.mov(qword_ptr(rcx + f.tss_rsp0), rdx)?;
            a.mov(rdx, qword_ptr(rax + f.teb))?;
            a.test(rdx, rdx)?;
            a.jz(system)?;
            a.mov(r8, rax)?;
            a.mov(eax, edx)?;
            a.shr(rdx, 32)?;
            a.mov(ecx, 0xc000_0102_u32)?;
            a.wrmsr()?;
            a.mov(rax, r8)?;
            a.set_label(&mut system)?;
            a.mov(rdx, qword_ptr(rax + f.thread_process))?;
            a.mov(rdx, qword_ptr(rdx + f.directory_table_base))?;
            a.mov(rcx, cr3)?;
            a.cmp(rcx, rdx)?;
            a.je(done)?;
            a.mov(cr3, rdx)?;
            a.set_label(&mut done)?;
            a.ret()
        })?;
        self.put("KiIdleLoop", |a| {
            let mut idle = a.create_label();
            let mut halt = a.create_label();
            a.set_label(&mut idle)?;
            a.cli()?;
            call_model(a, Call::Pick)?;
            a.cmp(rax, qword_ptr(current).gs())?;
            a.je(halt)?;
            a.call(swap_context)?;
            a.jmp(idle)?;
            a.set_label(&mut halt)?;
            a.sti()?;
            a.hlt()?;
            a.jmp(idle)
        })?;
        // The way into user mode lies on the stack.
        self.put("KiStartUserThread", |a| {
            a.swapgs()?;
            a.iretq()
        })?;
        self.put("KiStartSystemThread", |a| {
            let mut ended = a.create_label();
            a.sti()?;
            a.pop(rax)?;
            a.call(rax)?;
            a.set_label(&mut ended)?;
            a.jmp(ended)
        })?;
        let notify = self.at("KeClockInterruptNotify")?;
        self.put("HalpTimerClockInterrupt", |a| {
            a.push(0)?;
            enter(a)?;
            a.call(notify)?;
            leave(a)
        })?;
        let swap = self.at("KiSwapThread")?;
        self.put("KeClockInterruptNotify", |a| {
            let mut done = a.create_label();
            call_model(a, Call::Tick)?;
            a.test(eax, eax)?;
            a.jz(done)?;
            a.call(swap)?;
            a.set_label(&mut done)?;
            a.ret()
        })?;
        self.put("KeDelayExecutionThread", |a| {
            a.sub(rsp, 0x28)?;
            call_model(a, Call::Delay)?;
            a.call(swap)?;
            a.xor(eax, eax)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        let delay = self.at("KeDelayExecutionThread")?;
        self.put("NtDelayExecution", |a| {
            a.sub(rsp, 0x28)?;
            a.call(delay)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })
    }

    fn write_files(&mut self) -> Result<(), VmiError> {
        let f = self.facts;
        let create = self.at("IopCreateFile")?;
        for name in ["NtCreateFile", "NtOpenFile"] {
            self.put(name, |a| {
                a.mov(qword_ptr(rsp + 8), rbx)?;
                a.mov(qword_ptr(rsp + 0x10), rsi)?;
                a.push(rdi)?;
                a.sub(rsp, 0x20)?;
                a.mov(rbx, rcx)?;
                a.mov(edi, edx)?;
                a.mov(rsi, r9)?;
                a.call(create)?;
                a.mov(qword_ptr(rbx), rdx)?;
                a.mov(dword_ptr(rsi), eax)?;
                a.add(rsp, 0x20)?;
                a.pop(rdi)?;
                a.mov(rsi, qword_ptr(rsp + 0x10))?;
                a.mov(rbx, qword_ptr(rsp + 8))?;
                a.ret()
            })?;
        }
        let open = self.at("ObOpenObjectByName")?;
        self.put("IopCreateFile", |a| {
            a.sub(rsp, 0x28)?;
            a.mov(rcx, r8)?;
            a.call(open)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        let parse = self.at("IopParseDevice")?;
        let create_handle = self.at("ObpCreateHandle")?;
        self.put("ObOpenObjectByName", |a| {
            a.sub(rsp, 0x28)?;
            a.mov(rcx, qword_ptr(rcx + f.object_name))?;
            a.call(parse)?;
            a.call(create_handle)?;
            a.xor(eax, eax)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        // A hash over the first characters of the name.
        self.put("IopParseDevice", |a| {
            let mut each = a.create_label();
            a.mov(rdx, qword_ptr(rcx + f.string_buffer))?;
            a.movzx(ecx, word_ptr(rcx))?;
            a.shr(ecx, 3)?;
            a.and(ecx, 7)?;
            a.inc(ecx)?;
            a.xor(eax, eax)?;
            a.set_label(&mut each)?;
            a.rol(rax, 5)?;
            a.xor(rax, qword_ptr(rdx))?;
            a.add(rdx, 2)?;
            a.dec(ecx)?;
            a.jnz(each)?;
            a.ret()
        })?;
        self.put("ObpCreateHandle", |a| {
            call_model(a, Call::Handle)?;
            a.ret()
        })?;
        let reference = self.at("ObReferenceObjectByHandle")?;
        let driver = self.at("IofCallDriver")?;
        for name in ["NtReadFile", "NtWriteFile"] {
            self.put(name, |a| {
                a.sub(rsp, 0x28)?;
                a.call(reference)?;
                if name == "NtReadFile" {
                    a.call(driver)?;
                }
                a.xor(eax, eax)?;
                a.add(rsp, 0x28)?;
                a.ret()
            })?;
        }
        self.put("ObReferenceObjectByHandle", |a| {
            a.mov(rax, rcx)?;
            a.shr(rax, 2)?;
            a.and(eax, 0x3ff)?;
            a.ret()
        })?;
        let swap = self.at("KiSwapThread")?;
        self.put("IofCallDriver", |a| {
            let mut done = a.create_label();
            a.sub(rsp, 0x28)?;
            call_model(a, Call::Input)?;
            a.test(eax, eax)?;
            a.jz(done)?;
            a.call(swap)?;
            a.set_label(&mut done)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        let close = self.at("ObCloseHandle")?;
        self.put("NtClose", |a| {
            a.sub(rsp, 0x28)?;
            a.call(close)?;
            a.xor(eax, eax)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        self.put("ObCloseHandle", |a| {
            a.mov(rax, rcx)?;
            a.shr(rax, 2)?;
            a.ret()
        })
    }

    fn write_processes(&mut self) -> Result<(), VmiError> {
        let f = self.facts;
        let head = self.at("PsActiveProcessHead")?;
        let lock = self.base + own::LIST_LOCK;
        let locked = |a: &mut CodeAssembler| -> Assembled {
            let mut taken = a.create_label();
            let mut wait = a.create_label();
            a.pushfq()?;
            a.cli()?;
            a.mov(r11, lock)?;
            a.set_label(&mut wait)?;
            a.lock().bts(dword_ptr(r11), 0)?;
            a.jnc(taken)?;
            a.pause()?;
            a.jmp(wait)?;
            a.set_label(&mut taken)?;
            a.nop()
        };
        let unlock = |a: &mut CodeAssembler| -> Assembled {
            a.mov(r11, lock)?;
            a.mov(dword_ptr(r11), 0)?;
            a.popfq()
        };
        // RCX: the process.
        self.put("PspInsertProcess", |a| {
            locked(a)?;
            a.mov(r8, head)?;
            a.lea(r9, qword_ptr(rcx + f.links))?;
            a.mov(rdx, qword_ptr(r8 + 8))?;
            a.mov(qword_ptr(r9), r8)?;
            a.mov(qword_ptr(r9 + 8), rdx)?;
            a.mov(qword_ptr(rdx), r9)?;
            a.mov(qword_ptr(r8 + 8), r9)?;
            call_model(a, Call::Created)?;
            unlock(a)?;
            a.xor(eax, eax)?;
            a.ret()
        })?;
        self.put("PspProcessDelete", |a| {
            locked(a)?;
            a.lea(r9, qword_ptr(rcx + f.links))?;
            a.mov(r8, qword_ptr(r9))?;
            a.mov(rdx, qword_ptr(r9 + 8))?;
            a.mov(qword_ptr(rdx), r8)?;
            a.mov(qword_ptr(r8 + 8), rdx)?;
            call_model(a, Call::Deleted)?;
            unlock(a)?;
            a.ret()
        })?;
        let insert = self.at("PspInsertProcess")?;
        let allocate = self.at("PspAllocateProcess")?;
        self.put("NtCreateUserProcess", |a| {
            let mut full = a.create_label();
            a.push(rbx)?;
            a.sub(rsp, 0x20)?;
            a.mov(rbx, rcx)?;
            a.call(allocate)?;
            a.mov(rcx, rax)?;
            a.test(rax, rax)?;
            a.mov(eax, 0xc000_009a_u32)?;
            a.jz(full)?;
            a.call(insert)?;
            a.mov(qword_ptr(rbx), 0x1b4)?;
            a.set_label(&mut full)?;
            a.add(rsp, 0x20)?;
            a.pop(rbx)?;
            a.ret()
        })?;
        self.put("PspAllocateProcess", |a| {
            call_model(a, Call::Create)?;
            a.ret()
        })?;
        let terminate = self.at("PspTerminateProcess")?;
        self.put("NtTerminateProcess", |a| {
            a.sub(rsp, 0x28)?;
            a.call(terminate)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        let exit = self.at("PspExitProcess")?;
        self.put("PspTerminateProcess", |a| {
            a.sub(rsp, 0x28)?;
            a.call(exit)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        let swap = self.at("KiSwapThread")?;
        self.put("PspExitProcess", |a| {
            a.cli()?;
            call_model(a, Call::Exit)?;
            a.mov(qword_ptr(rax + f.exit_time), rdx)?;
            a.mov(dword_ptr(rax + f.active_threads), 0)?;
            a.call(swap)?;
            a.int3()
        })?;
        let allocate_memory = self.at("MiAllocateVirtualMemory")?;
        self.put("NtAllocateVirtualMemory", |a| {
            a.sub(rsp, 0x28)?;
            a.mov(rax, qword_ptr(rdx))?;
            a.call(allocate_memory)?;
            a.add(rsp, 0x28)?;
            a.ret()
        })?;
        self.put("MiAllocateVirtualMemory", |a| {
            a.mov(rax, qword_ptr(r9))?;
            a.add(rax, 0xfff)?;
            a.and(rax, -0x1000)?;
            a.mov(qword_ptr(r9), rax)?;
            a.xor(eax, eax)?;
            a.ret()
        })?;
        let information = self.at("ExpGetProcessInformation")?;
        self.put("NtQuerySystemInformation", |a| {
            // Two bytes for patching while it runs, as the real kernel's functions have them.
            a.db(&PATCHES[0])?;
            a.push(rbx)?;
            a.sub(rsp, 0x20)?;
            a.mov(ebx, ecx)?;
            a.call(information)?;
            a.add(rsp, 0x20)?;
            a.pop(rbx)?;
            a.ret()
        })?;
        // Counts the first processes of the list.
        self.put("ExpGetProcessInformation", |a| {
            let mut each = a.create_label();
            let mut end = a.create_label();
            a.mov(rdx, head)?;
            a.mov(rcx, qword_ptr(rdx))?;
            a.xor(eax, eax)?;
            a.set_label(&mut each)?;
            a.cmp(rcx, rdx)?;
            a.je(end)?;
            a.inc(eax)?;
            a.mov(rcx, qword_ptr(rcx))?;
            a.cmp(eax, 4)?;
            a.jb(each)?;
            a.set_label(&mut end)?;
            a.xor(eax, eax)?;
            a.ret()
        })
    }

    fn write_worker(&mut self) -> Result<(), VmiError> {
        let swap = self.at("KiSwapThread")?;
        self.put("ExpWorkerThread", |a| {
            let mut again = a.create_label();
            let mut store = a.create_label();
            let mut wait = a.create_label();
            a.sub(rsp, 0x28)?;
            a.set_label(&mut again)?;
            call_model(a, Call::Work)?;
            a.cmp(eax, 1)?;
            a.jb(wait)?;
            a.je(store)?;
            a.mov(rax, rcx)?;
            a.mov(rcx, r8)?;
            a.mov(rdx, r9)?;
            a.call(rax)?;
            a.jmp(again)?;
            a.set_label(&mut store)?;
            a.mov(qword_ptr(rdx), rcx)?;
            a.jmp(again)?;
            a.set_label(&mut wait)?;
            a.call(swap)?;
            a.jmp(again)
        })?;
        let checked = self.base + own::CHECKED;
        // RCX: number of the first routine, RDX: how many.
        self.put("FsRtlMdlReadCompleteDevEx", |a| {
            let mut routine = a.create_label();
            let mut word = a.create_label();
            let mut good = a.create_label();
            a.push(rbx)?;
            a.push(rsi)?;
            a.push(rdi)?;
            a.mov(rbx, rcx)?;
            a.mov(rdi, rdx)?;
            a.set_label(&mut routine)?;
            a.mov(r8, rbx)?;
            a.shl(r8, 4)?;
            a.mov(r9, checked)?;
            a.add(r8, r9)?;
            a.mov(rsi, qword_ptr(r8))?;
            a.xor(eax, eax)?;
            a.mov(ecx, (CHECKED_BYTES / 8) as u32)?;
            a.set_label(&mut word)?;
            a.rol(rax, 7)?;
            a.add(rax, qword_ptr(rsi))?;
            a.add(rsi, 8)?;
            a.dec(ecx)?;
            a.jnz(word)?;
            a.cmp(rax, qword_ptr(r8 + 8))?;
            a.je(good)?;
            a.mov(rcx, rbx)?;
            call_model(a, Call::Tampered)?;
            a.set_label(&mut good)?;
            a.inc(rbx)?;
            a.dec(rdi)?;
            a.jnz(routine)?;
            a.pop(rdi)?;
            a.pop(rsi)?;
            a.pop(rbx)?;
            a.ret()
        })?;
        // The kernel changes a function of its own.
        self.put("KeBalanceSetManager", |a| {
            call_model(a, Call::Patch)?;
            a.mov(word_ptr(rdx), ax)?;
            call_model(a, Call::Patched)?;
            a.ret()
        })
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
