//! Operands: registers of every width, immediates, and the memory that an instruction names.

use iced_x86::{Instruction, OpKind, Register};

use super::{
    Core, Stop, invalid,
    mmu::{Need, Place},
};

/// An operand that will be written: found first, written when everything else is known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Register(Register),
    Memory(Place),
}

/// The bits of a value of this many bytes.
pub(super) const fn mask(size: usize) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 }
}

/// The sign bit of a value of this many bytes.
pub(super) const fn sign(size: usize) -> u64 {
    mask(size) ^ (mask(size) >> 1)
}

impl Core<'_> {
    fn slot(&mut self, register: Register) -> Option<&mut u64> {
        let gp = &mut self.cpu.registers.gp;
        Some(match register.full_register() {
            Register::RAX => &mut gp.rax,
            Register::RCX => &mut gp.rcx,
            Register::RDX => &mut gp.rdx,
            Register::RBX => &mut gp.rbx,
            Register::RSP => &mut gp.rsp,
            Register::RBP => &mut gp.rbp,
            Register::RSI => &mut gp.rsi,
            Register::RDI => &mut gp.rdi,
            Register::R8 => &mut gp.r8,
            Register::R9 => &mut gp.r9,
            Register::R10 => &mut gp.r10,
            Register::R11 => &mut gp.r11,
            Register::R12 => &mut gp.r12,
            Register::R13 => &mut gp.r13,
            Register::R14 => &mut gp.r14,
            Register::R15 => &mut gp.r15,
            _ => return None,
        })
    }

    /// A general-purpose register; others are #UD (no instruction of this machine has them as operands here).
    pub(super) fn register(&mut self, register: Register) -> Result<u64, Stop> {
        let shift = if is_high_byte(register) { 8 } else { 0 };
        let value = *self.slot(register).ok_or_else(invalid)?;
        Ok(value >> shift & mask(register.size()))
    }

    /// Writes a register: 4 bytes clear the upper half, 1 and 2 keep the rest (Intel SDM volume 1, section 3.4.1.1).
    pub(super) fn set_register(&mut self, register: Register, value: u64) -> Result<(), Stop> {
        let high = is_high_byte(register);
        let size = register.size();
        let slot = self.slot(register).ok_or_else(invalid)?;
        *slot = match size {
            8 => value,
            4 => value & mask(4),
            _ if high => *slot & !0xff00 | (value & 0xff) << 8,
            _ => *slot & !mask(size) | value & mask(size),
        };
        Ok(())
    }

    /// The virtual address of the memory operand.
    pub(super) fn effective_address(&mut self, instruction: &Instruction) -> Result<u64, Stop> {
        let offset = self.offset(instruction)?;
        let base = match instruction.memory_segment() {
            Register::FS => self.cpu.registers.fs.base,
            Register::GS => self.cpu.registers.gs.base,
            _ => 0,
        };
        Ok(base.wrapping_add(offset))
    }

    /// The memory operand's address without its segment: what LEA computes.
    pub(super) fn offset(&mut self, instruction: &Instruction) -> Result<u64, Stop> {
        let mut address = instruction.memory_displacement64();
        match instruction.memory_base() {
            // The displacement of an RIP-relative operand is the address itself.
            Register::None | Register::RIP => {}
            base => address = address.wrapping_add(self.register(base)?),
        }
        if instruction.memory_index() != Register::None {
            let index = self.register(instruction.memory_index())?;
            address = address.wrapping_add(index.wrapping_mul(u64::from(instruction.memory_index_scale())));
        }
        Ok(if instruction.memory_base().size() == 4 { address & mask(4) } else { address })
    }

    /// Bytes of an operand.
    pub(super) fn size(&self, instruction: &Instruction, operand: u32) -> usize {
        match instruction.op_kind(operand) {
            OpKind::Register => instruction.op_register(operand).size(),
            OpKind::Memory => instruction.memory_size().size(),
            _ => 8,
        }
    }

    /// The value of an operand; immediates are sign-extended.
    pub(super) fn value(&mut self, instruction: &Instruction, operand: u32) -> Result<u64, Stop> {
        match instruction.op_kind(operand) {
            OpKind::Register => self.register(instruction.op_register(operand)),
            OpKind::Memory => {
                let va = self.effective_address(instruction)?;
                let user = self.is_user();
                self.load(va, instruction.memory_size().size(), user)
            }
            _ => instruction.try_immediate(operand).map_err(|_| invalid()),
        }
    }

    /// Finds an operand that will be written.
    pub(super) fn target(&mut self, instruction: &Instruction, operand: u32, need: Need) -> Result<Target, Stop> {
        match instruction.op_kind(operand) {
            OpKind::Register => Ok(Target::Register(instruction.op_register(operand))),
            OpKind::Memory => {
                let va = self.effective_address(instruction)?;
                let user = self.is_user();
                self.locate(va, instruction.memory_size().size(), need, user).map(Target::Memory)
            }
            _ => Err(invalid()),
        }
    }

    /// What a target holds now.
    pub(super) fn current(&mut self, target: Target) -> Result<u64, Stop> {
        match target {
            Target::Register(register) => self.register(register),
            Target::Memory(place) => Ok(self.get(place)),
        }
    }

    /// Writes a target.
    pub(super) fn assign(&mut self, target: Target, size: usize, value: u64) -> Result<(), Stop> {
        match target {
            Target::Register(register) => self.set_register(register, value),
            Target::Memory(place) => {
                self.put(place, value.to_le_bytes().get(..size).unwrap_or(&[]));
                Ok(())
            }
        }
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}
