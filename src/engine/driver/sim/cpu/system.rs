//! System instructions: privilege changes, control registers, MSRs, CPUID, HLT.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Core, Stop, exception, flow::LOADABLE_FLAGS, invalid, protection};
use crate::engine::{
    arch::amd64::{
        Amd64EventReason, Amd64Registers, ControlRegister, EventMonitor, ExceptionVector, Interrupt, InterruptType,
    },
    driver::sim::vcpu::{KERNEL_CS, KERNEL_SS, USER_CS, USER_SS, segment},
};

/// IA32_LSTAR.
const MSR_LSTAR: u32 = 0xc000_0082;
/// IA32_FS_BASE.
const MSR_FS_BASE: u32 = 0xc000_0100;
/// IA32_GS_BASE.
const MSR_GS_BASE: u32 = 0xc000_0101;
/// IA32_KERNEL_GS_BASE.
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
/// IA32_EFER.
const MSR_EFER: u32 = 0xc000_0080;

/// Flags that SYSCALL clears (IA32_FMASK as Windows sets it: TF, IF, DF, IOPL, NT, AC).
const SYSCALL_MASK: u64 = 0x4_7700;

/// Whether a MOV moves to or from a control or debug register.
pub(super) fn touches_special(instruction: &Instruction) -> bool {
    let special = |register: Register| register.is_cr() || register.is_dr() || register.is_segment_register();
    special(instruction.op0_register()) || special(instruction.op1_register())
}

impl Core<'_> {
    /// Raises an event unless nobody asked for it or it was answered already.
    fn ask(&self, monitor: EventMonitor, reason: Amd64EventReason) -> Result<(), Stop> {
        if self.monitors.on(monitor) && !self.cpu.granted { Err(Stop::Event(reason)) } else { Ok(()) }
    }

    fn privileged(&self) -> Result<(), Stop> {
        if self.cpu.registers.cpl() == 0 { Ok(()) } else { Err(protection()) }
    }

    /// MOV to and from control registers.
    pub(super) fn special_register(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        self.privileged()?;
        if instruction.op0_kind() != OpKind::Register || instruction.op1_kind() != OpKind::Register {
            return Err(invalid());
        }
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        let registers = &self.cpu.registers;
        if from.is_cr() {
            let value = match from {
                Register::CR0 => registers.cr0,
                Register::CR2 => registers.cr2,
                Register::CR3 => registers.cr3,
                Register::CR4 => registers.cr4,
                Register::CR8 => 0,
                _ => return Err(invalid()),
            };
            return self.set_register(to, value);
        }
        let new = self.register(from)?;
        let (register, old) = match to {
            Register::CR0 => (ControlRegister::Cr0, self.cpu.registers.cr0),
            Register::CR3 => (ControlRegister::Cr3, self.cpu.registers.cr3),
            Register::CR4 => (ControlRegister::Cr4, self.cpu.registers.cr4),
            Register::CR8 => return Ok(()),
            _ => return Err(invalid()),
        };
        self.ask(EventMonitor::Register(register), Amd64EventReason::WriteCr { register, old, new })?;
        let registers = &mut self.cpu.registers;
        match register {
            ControlRegister::Cr0 => registers.cr0 = new,
            // Bit 63 only says whether translations are flushed; it is not kept.
            ControlRegister::Cr3 => registers.cr3 = new & !(1 << 63),
            // The number of levels cannot change while paging is on (Intel SDM volume 3A, section 4.1.1).
            ControlRegister::Cr4 if (old ^ new) & Amd64Registers::CR4_LA57 != 0 => return Err(protection()),
            ControlRegister::Cr4 => registers.cr4 = new,
        }
        Ok(())
    }

    /// SYSCALL, SYSRET, IRET, INT3 and INT.
    pub(super) fn change_privilege(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let next = instruction.next_ip();
        match instruction.mnemonic() {
            Mnemonic::Syscall => {
                let registers = &mut self.cpu.registers;
                registers.gp.rcx = next;
                registers.gp.r11 = registers.gp.rflags;
                registers.gp.rip = registers.lstar;
                registers.gp.rflags &= !SYSCALL_MASK;
                registers.cs = segment(KERNEL_CS);
                registers.ss = segment(KERNEL_SS);
                Ok(())
            }
            Mnemonic::Sysretq => {
                self.privileged()?;
                let registers = &mut self.cpu.registers;
                registers.gp.rip = registers.gp.rcx;
                registers.gp.rflags = registers.gp.r11 & LOADABLE_FLAGS | 2;
                registers.cs = segment(USER_CS);
                registers.ss = segment(USER_SS);
                Ok(())
            }
            Mnemonic::Iretq => {
                let mut frame = [0; 5];
                for slot in &mut frame {
                    *slot = self.pop()?;
                }
                let [rip, cs, rflags, rsp, ss] = frame;
                if (cs & 3) < u64::from(self.cpu.registers.cpl()) {
                    return Err(protection());
                }
                let registers = &mut self.cpu.registers;
                registers.gp.rip = rip;
                registers.gp.rsp = rsp;
                registers.gp.rflags = rflags & LOADABLE_FLAGS | 2;
                registers.cs = segment(cs as u16);
                registers.ss = segment(ss as u16);
                Ok(())
            }
            Mnemonic::Int3 => Err(Stop::Exception(Interrupt {
                instruction_length: instruction.len() as u8,
                ..Interrupt::breakpoint()
            })),
            Mnemonic::Int => Err(Stop::Exception(Interrupt {
                vector: ExceptionVector(instruction.immediate8()),
                kind: InterruptType::SoftwareInterrupt,
                error_code: None,
                instruction_length: instruction.len() as u8,
                cr2: 0,
            })),
            _ => Err(invalid()),
        }
    }

    /// Everything else that needs privilege, and the rest of the machine's instructions.
    pub(super) fn system(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let leaf = self.cpu.registers.gp.rax as u32;
        let selected = self.cpu.registers.gp.rcx as u32;
        match instruction.mnemonic() {
            Mnemonic::Cpuid => {
                let reason = Amd64EventReason::CpuId { leaf, subleaf: selected };
                self.ask(EventMonitor::CpuId, reason)?;
                self.identify(leaf);
            }
            Mnemonic::Rdtsc => {
                // 2 GHz.
                let ticks = self.now.wrapping_mul(2);
                let gp = &mut self.cpu.registers.gp;
                (gp.rax, gp.rdx) = (ticks & 0xffff_ffff, ticks >> 32);
            }
            Mnemonic::Vmcall => {
                // Only the kernel has business with the machine.
                if self.is_user() {
                    return Err(invalid());
                }
                self.ask(EventMonitor::Hypercall, Amd64EventReason::Hypercall)?;
            }
            Mnemonic::Hlt => {
                self.privileged()?;
                self.cpu.halted = true;
            }
            Mnemonic::Cli => {
                self.privileged()?;
                self.cpu.registers.gp.rflags &= !Amd64Registers::RFLAGS_IF;
            }
            Mnemonic::Sti => {
                self.privileged()?;
                let flags = &mut self.cpu.registers.gp.rflags;
                self.cpu.sti_shadow = *flags & Amd64Registers::RFLAGS_IF == 0;
                *flags |= Amd64Registers::RFLAGS_IF;
            }
            Mnemonic::Swapgs => {
                self.privileged()?;
                let registers = &mut self.cpu.registers;
                std::mem::swap(&mut registers.gs.base, &mut registers.kernel_gs_base);
            }
            // There is no translation cache to flush: every access walks the tables.
            Mnemonic::Invlpg | Mnemonic::Wbinvd => self.privileged()?,
            Mnemonic::Cld => self.cpu.registers.gp.rflags &= !(1 << 10),
            Mnemonic::Std => self.cpu.registers.gp.rflags |= 1 << 10,
            Mnemonic::Rdmsr => {
                self.privileged()?;
                let registers = &self.cpu.registers;
                let value = match selected {
                    MSR_LSTAR => registers.lstar,
                    MSR_FS_BASE => registers.fs.base,
                    MSR_GS_BASE => registers.gs.base,
                    MSR_KERNEL_GS_BASE => registers.kernel_gs_base,
                    MSR_EFER => registers.efer,
                    _ => return Err(protection()),
                };
                let gp = &mut self.cpu.registers.gp;
                (gp.rax, gp.rdx) = (value & 0xffff_ffff, value >> 32);
            }
            Mnemonic::Wrmsr => {
                self.privileged()?;
                let gp = self.cpu.registers.gp;
                let value = gp.rax & 0xffff_ffff | gp.rdx << 32;
                self.ask(EventMonitor::Msr(selected), Amd64EventReason::WriteMsr { msr: selected, value })?;
                let registers = &mut self.cpu.registers;
                match selected {
                    MSR_LSTAR => registers.lstar = value,
                    MSR_FS_BASE => registers.fs.base = value,
                    MSR_GS_BASE => registers.gs.base = value,
                    MSR_KERNEL_GS_BASE => registers.kernel_gs_base = value,
                    _ => return Err(protection()),
                }
            }
            Mnemonic::In | Mnemonic::Out => self.port(instruction)?,
            _ => return Err(invalid()),
        }
        Ok(())
    }

    /// Port input and output: there is no device, reads give ones.
    fn port(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        self.privileged()?;
        let input = instruction.mnemonic() == Mnemonic::In;
        let (data, port) = if input { (0, 1) } else { (1, 0) };
        let number = match instruction.op_kind(port) {
            OpKind::Register => self.cpu.registers.gp.rdx as u16,
            _ => u16::from(instruction.immediate8()),
        };
        let register = instruction.op_register(data);
        let size = register.size() as u8;
        self.ask(EventMonitor::Io, Amd64EventReason::Io { port: number, size, input })?;
        if input { self.set_register(register, u64::MAX) } else { Ok(()) }
    }

    fn identify(&mut self, leaf: u32) {
        let levels = self.cpu.registers.paging_levels();
        let words = |text: &[u8; 12]| {
            let word = |i: usize| text.get(i..i + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
            (word(0), word(4), word(8))
        };
        // Intel SDM volume 2A, CPUID.
        let (a, b, c, d): (u32, u32, u32, u32) = match leaf {
            0 => {
                let (b, d, c) = words(b"GenuineIntel");
                (7, b, c, d)
            }
            1 => (0x000906ea, 0, 1 << 31, 1 << 6),
            7 => (0, 0, if levels == 5 { 1 << 16 } else { 0 }, 0),
            0x4000_0000 => {
                let (b, c, d) = words(b"vmscope demo");
                (0x4000_0000, b, c, d)
            }
            0x8000_0000 => (0x8000_0008, 0, 0, 0),
            0x8000_0001 => (0, 0, 0, 1 << 11 | 1 << 20 | 1 << 26 | 1 << 29),
            0x8000_0008 => (52 | if levels == 5 { 57 } else { 48 } << 8, 0, 0, 0),
            _ => (0, 0, 0, 0),
        };
        let gp = &mut self.cpu.registers.gp;
        (gp.rax, gp.rbx, gp.rcx, gp.rdx) = (u64::from(a), u64::from(b), u64::from(c), u64::from(d));
    }
}

/// #DF, with its error code that is always 0.
pub(super) fn double_fault() -> Interrupt {
    match exception(ExceptionVector(8), Some(0)) {
        Stop::Exception(interrupt) => interrupt,
        Stop::Event(_) => Interrupt::breakpoint(),
    }
}
