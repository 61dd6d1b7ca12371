//! Putting an exception into a vCPU, as its processor would.
//!
//! The stub has no command for it, but the delivery of an exception is nothing but a change of registers and stack
//! (Intel SDM volume 3A, sections 6.12 and 6.14): the interrupted state goes onto the kernel's stack, the vCPU goes on at
//! the handler. The guest's own IRET then leads back to exactly the registers that were interrupted, in the thread that
//! was interrupted, whatever happens in between: nothing has to be restored, not even when this process is killed
//! afterwards.

use super::QemuDriver;
use crate::engine::{
    addr::{Pa, Va, VcpuId},
    arch::{
        Architecture,
        amd64::{Amd64, Amd64Registers, Interrupt, InterruptType},
    },
    driver::VmiRead,
    error::VmiError,
};

/// CR4.CET and CR4.FRED: shadow stacks, and another way of delivering events.
const OTHER_DELIVERY: u64 = 1 << 23 | 1 << 32;
/// TF, NT, RF and VM, which every delivery clears (Intel SDM volume 3A, section 6.12.1.3).
const CLEARED_FLAGS: u64 = 1 << 8 | 1 << 14 | 1 << 16 | 1 << 17;
/// Offsets of RSP0 and IST1 in a 64-bit task state segment (Intel SDM volume 3A, figure 8-11).
const TSS_RSP0: u64 = 0x04;
const TSS_IST1: u64 = 0x24;

/// A 64-bit gate of the interrupt descriptor table (Intel SDM volume 3A, figure 6-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gate {
    selector: u16,
    handler: u64,
    /// The place of the stack's address in the task state segment.
    stack: u64,
    masks_interrupts: bool,
}

impl Gate {
    const BYTES: u64 = 16;

    /// Reads a gate; `None` where the processor would not go through it to the kernel.
    fn parse(words: [u64; 2]) -> Option<Self> {
        let [low, high] = words;
        let kind = low >> 40 & 0xf;
        let is_present = low >> 47 & 1 != 0;
        let selector = (low >> 16) as u16;
        if !is_present || !matches!(kind, 0xe | 0xf) || selector & !3 == 0 || selector & 3 != 0 {
            return None;
        }
        let stack = match low >> 32 & 7 {
            0 => TSS_RSP0,
            ist => TSS_IST1 + (ist - 1) * 8,
        };
        let handler = (low & 0xffff) | (low >> 32 & 0xffff_0000) | (high << 32);
        Some(Self { selector, handler, stack, masks_interrupts: kind == 0xe })
    }
}

/// What the processor pushes, lowest address first, and where it stands then.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Delivered {
    pushed: Vec<u64>,
    registers: Amd64Registers,
}

/// Delivers an exception that interrupts user mode (Intel SDM volume 3A, section 6.14.2).
fn deliver(interrupted: &Amd64Registers, gate: Gate, stack: u64, interrupt: Interrupt) -> Delivered {
    let gp = interrupted.gp;
    let mut pushed: Vec<u64> = interrupt.error_code.map(u64::from).into_iter().collect();
    let segments = (u64::from(interrupted.cs.selector), u64::from(interrupted.ss.selector));
    pushed.extend([gp.rip, segments.0, gp.rflags, gp.rsp, segments.1]);
    let mut registers = *interrupted;
    registers.gp.rsp = (stack & !0xf).wrapping_sub(pushed.len() as u64 * 8);
    registers.gp.rip = gate.handler;
    registers.gp.rflags &= !CLEARED_FLAGS;
    if gate.masks_interrupts {
        registers.gp.rflags &= !Amd64Registers::RFLAGS_IF;
    }
    registers.cs.selector = gate.selector;
    // A null selector, whose privilege level is the new one.
    registers.ss.selector = 0;
    registers.cr2 = interrupt.cr2;
    Delivered { pushed, registers }
}

impl QemuDriver {
    /// Makes a vCPU of a stopped guest, which is in 64-bit user mode, take an exception before its next instruction.
    pub(super) fn deliver_exception(&self, vcpu: VcpuId, interrupt: Interrupt) -> Result<(), VmiError> {
        if self.kvm {
            return Err(VmiError::Unsupported { what: "injecting an exception into a QEMU guest under KVM" });
        }
        if interrupt.kind != InterruptType::HardwareException {
            return Err(VmiError::Unsupported { what: "injecting anything but a processor's exception in QEMU" });
        }
        let refuse = |why: &str| {
            let vector = interrupt.vector.0;
            Err(VmiError::Invalid(format!("cannot inject exception {vector} into vCPU {vcpu}: {why}")))
        };
        let (registers, tables) = {
            let mut control = self.control.borrow_mut();
            if control.running {
                return refuse("the guest runs; pause it first");
            }
            control.attach_stub()?;
            control.hold()?;
            (control.registers(vcpu)?, control.monitor_registers(vcpu)?)
        };
        if registers.cpl() != 3 || !registers.is_long_mode() || !registers.cs.long {
            return refuse("it is not in 64-bit user mode; retry later");
        }
        if registers.cr4 & OTHER_DELIVERY != 0 {
            return refuse("it uses shadow stacks or FRED, which are not understood");
        }
        let gate = Va(tables.registers.idt_base) + u64::from(interrupt.vector.0) * Gate::BYTES;
        let gate = [self.virtual_u64(gate, &registers)?, self.virtual_u64(gate + 8, &registers)?];
        let Some(gate) = Gate::parse(gate) else { return refuse("its interrupt table has no gate for it") };
        let stack = self.virtual_u64(Va(tables.task_base) + gate.stack, &registers)?;
        let Delivered { pushed, registers: new } = deliver(&registers, gate, stack, interrupt);
        let mut places = Vec::with_capacity(pushed.len());
        for (word, at) in pushed.iter().zip((0u64..).step_by(8)) {
            places.push((self.physical(Va(new.gp.rsp) + at, &registers)?, word.to_le_bytes()));
        }
        let mut control = self.control.borrow_mut();
        for (pa, bytes) in places {
            control.write_physical(pa, &bytes)?;
        }
        // Each by itself: QEMU 10 does not take the floating-point registers of a `G` packet as its `g` told them.
        control.set_registers(vcpu, &new)
    }

    /// Eight bytes of a vCPU's address space, which may run into another page.
    fn virtual_u64(&self, va: Va, registers: &Amd64Registers) -> Result<u64, VmiError> {
        let mut bytes = [0; 8];
        for (byte, at) in bytes.iter_mut().zip(0u64..) {
            let mut one = [0];
            self.read_physical(self.physical(va + at, registers)?, &mut one)?;
            [*byte] = one;
        }
        Ok(u64::from_le_bytes(bytes))
    }

    fn physical(&self, va: Va, registers: &Amd64Registers) -> Result<Pa, VmiError> {
        let gfn = self.frame(va, registers);
        let gfn = gfn.ok_or_else(|| VmiError::page_fault((va, registers.root())))?;
        Ok(Amd64::pa_from_gfn(gfn) + (va.0 & !Amd64::PAGE_MASK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::arch::amd64::Segment;

    /// A page-fault gate of a Linux kernel: handler 0xffffffff81a00b50, selector 0x10, no IST, interrupt gate.
    const LINUX: [u64; 2] = [0x81a0_8e00_0010_0b50, 0xffff_ffff];

    #[test]
    fn gates_are_read_as_the_processor_does() {
        let gate = Gate { selector: 0x10, handler: 0xffff_ffff_81a0_0b50, stack: TSS_RSP0, masks_interrupts: true };
        assert_eq!(Gate::parse(LINUX), Some(gate));
        let [low, high] = LINUX;
        assert_eq!(Gate::parse([low | 3 << 32, high]).map(|gate| gate.stack), Some(0x34));
        assert_eq!(Gate::parse([low | 1 << 40, high]).map(|gate| gate.masks_interrupts), Some(false));
        // Not present, a call gate, no selector, a handler in user mode.
        for low in [low & !(1 << 47), low & !(2 << 40), low & !(0x10 << 16), low | 3 << 16] {
            assert_eq!(Gate::parse([low, high]), None, "{low:x}");
        }
    }

    #[test]
    fn a_page_fault_is_delivered_as_by_the_processor() {
        let mut user = Amd64Registers {
            cs: Segment { selector: 0x33, base: 0, long: true },
            ss: Segment { selector: 0x2b, base: 0, long: false },
            ..Default::default()
        };
        user.gp.rip = 0x40_1000;
        user.gp.rsp = 0x7ffc_0008;
        user.gp.rflags = 0x1_4746;
        user.gp.rax = 77;
        let gate = Gate::parse(LINUX).expect("a gate");
        let done = deliver(&user, gate, 0xffff_fe00_0000_3008, Interrupt::page_fault(0x1234_5000, 4));
        assert_eq!(done.pushed, [4, 0x40_1000, 0x33, 0x1_4746, 0x7ffc_0008, 0x2b]);
        let gp = done.registers.gp;
        assert_eq!((gp.rip, gp.rsp, gp.rflags, gp.rax), (gate.handler, 0xffff_fe00_0000_2fd0, 0x446, 77));
        assert_eq!((done.registers.cs.selector, done.registers.ss.selector), (0x10, 0));
        assert_eq!((done.registers.cr2, done.registers.cpl()), (0x1234_5000, 0));
        let open = Gate { masks_interrupts: false, ..gate };
        assert_eq!(deliver(&user, open, 0, Interrupt::page_fault(0, 4)).registers.gp.rflags, 0x646);
    }
}
