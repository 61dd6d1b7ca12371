//! The way of an interrupt or exception into the guest (Intel SDM volume 3A, sections 6.12 and 6.14).

use super::{Core, Stop, mmu::Need, protection, system::double_fault};
use crate::engine::{
    arch::amd64::{Amd64Registers, ExceptionVector, Interrupt, InterruptType},
    driver::sim::vcpu::{KERNEL_SS, segment},
};

impl Core<'_> {
    /// Enters the guest's handler: gate, stack switch, frame. Nothing has changed when it stops.
    pub(super) fn deliver(&mut self, interrupt: Interrupt) -> Result<(), Stop> {
        let registers = self.cpu.registers;
        let gate = registers.idt_base.wrapping_add(u64::from(interrupt.vector.0) * 16);
        let low = self.load(gate, 8, false)?;
        let high = self.load(gate.wrapping_add(8), 8, false)?;
        if low >> 47 & 1 == 0 {
            return Err(protection());
        }
        let handler = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        let selector = (low >> 16) as u16;
        let stack = match registers.cpl() {
            0 => registers.gp.rsp,
            _ => self.load(self.cpu.tss_base.wrapping_add(4), 8, false)?,
        } & !0xf;
        // A software interrupt returns behind its instruction, a fault to it.
        let skipped = match interrupt.kind {
            InterruptType::SoftwareInterrupt | InterruptType::SoftwareException => interrupt.instruction_length,
            _ => 0,
        };
        let mut frame = Vec::with_capacity(48);
        for value in [
            interrupt.error_code.map(u64::from),
            Some(registers.gp.rip.wrapping_add(u64::from(skipped))),
            Some(u64::from(registers.cs.selector)),
            Some(registers.gp.rflags),
            Some(registers.gp.rsp),
            Some(u64::from(registers.ss.selector)),
        ] {
            frame.extend(value.map(u64::to_le_bytes).into_iter().flatten());
        }
        let rsp = stack.wrapping_sub(frame.len() as u64);
        let place = self.locate(rsp, frame.len(), Need::Write, false)?;
        self.put(place, &frame);

        let interrupt_gate = low >> 40 & 1 == 0;
        let registers = &mut self.cpu.registers;
        if interrupt.vector == ExceptionVector::PAGE_FAULT {
            registers.cr2 = interrupt.cr2;
        }
        registers.gp.rsp = rsp;
        registers.gp.rip = handler;
        registers.gp.rflags &= !Amd64Registers::RFLAGS_TF;
        if interrupt_gate {
            registers.gp.rflags &= !Amd64Registers::RFLAGS_IF;
        }
        registers.cs = segment(selector & !3);
        if registers.ss.selector & 3 != 0 {
            registers.ss = segment(KERNEL_SS);
        }
        self.cpu.halted = false;
        Ok(())
    }

    /// What becomes of an exception that was raised while another was delivered: a double fault, and behind that
    /// nothing (on hardware a reset).
    pub(in crate::engine::driver::sim) fn escalate(&mut self) {
        match self.cpu.delivering {
            Some(Interrupt { vector: ExceptionVector(8), .. }) => {
                self.cpu.delivering = None;
                self.cpu.dead = true;
                self.cpu.halted = true;
            }
            _ => self.cpu.delivering = Some(double_fault()),
        }
    }
}
