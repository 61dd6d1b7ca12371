//! Threads: the idle loop, switches between them, the clock, sleeping; and the worker thread's loop with what it calls.

use iced_x86::code_asm::*;

use super::{CHECKED_BYTES, Call, Code, call_model, enter, leave, own};
use crate::engine::error::VmiError;

impl Code<'_> {
    pub(super) fn write_scheduling(&mut self) -> Result<(), VmiError> {
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

    pub(super) fn write_worker(&mut self) -> Result<(), VmiError> {
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
