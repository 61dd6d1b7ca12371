//! The ways into the kernel: system calls, traps, page faults.

use iced_x86::code_asm::*;

use super::{ACCESS_VIOLATION, BREAKPOINT, Call, Code, SERVICE_COUNT, call_model, enter, leave, trap};
use crate::engine::error::VmiError;

/// STATUS_SINGLE_STEP.
const SINGLE_STEP: u32 = 0x8000_0004;
/// STATUS_ILLEGAL_INSTRUCTION.
const ILLEGAL_INSTRUCTION: u32 = 0xc000_001d;
/// STATUS_INTEGER_DIVIDE_BY_ZERO.
const DIVIDE_BY_ZERO: u32 = 0xc000_0094;

impl Code<'_> {
    pub(super) fn write_system_call(&mut self) -> Result<(), VmiError> {
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
    pub(super) fn write_traps(&mut self) -> Result<(), VmiError> {
        let dispatch = self.at("KiExceptionDispatch")?;
        for (name, code, has_error) in [
            ("KiDivideErrorFault", DIVIDE_BY_ZERO, false),
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

    pub(super) fn write_faults(&mut self) -> Result<(), VmiError> {
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
}
