//! Moves, arithmetic, logic and shifts, with the flags of Intel SDM volume 1, section 3.4.3.1.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{
    Core, Stop, invalid,
    mmu::Need,
    operand::{mask, sign},
};

/// Carry.
pub(super) const CF: u64 = 1;
/// Parity of the lowest byte.
pub(super) const PF: u64 = 1 << 2;
/// Carry out of bit 3.
const AF: u64 = 1 << 4;
/// Zero.
pub(super) const ZF: u64 = 1 << 6;
/// Sign.
pub(super) const SF: u64 = 1 << 7;
/// Signed overflow.
pub(super) const OF: u64 = 1 << 11;

fn result_flags(value: u64, size: usize) -> u64 {
    let mut flags = 0;
    if value & mask(size) == 0 {
        flags |= ZF;
    }
    if value & sign(size) != 0 {
        flags |= SF;
    }
    if (value as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

fn add(a: u64, b: u64, carry: u64, size: usize) -> (u64, u64) {
    let wide = u128::from(a & mask(size)) + u128::from(b & mask(size)) + u128::from(carry);
    let value = wide as u64 & mask(size);
    let mut flags = result_flags(value, size);
    if wide > u128::from(mask(size)) {
        flags |= CF;
    }
    if (a ^ value) & (b ^ value) & sign(size) != 0 {
        flags |= OF;
    }
    if (a ^ b ^ value) & 0x10 != 0 {
        flags |= AF;
    }
    (value, flags)
}

fn subtract(a: u64, b: u64, borrow: u64, size: usize) -> (u64, u64) {
    let (a, b) = (a & mask(size), b & mask(size));
    let value = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let mut flags = result_flags(value, size);
    if u128::from(a) < u128::from(b) + u128::from(borrow) {
        flags |= CF;
    }
    if (a ^ b) & (a ^ value) & sign(size) != 0 {
        flags |= OF;
    }
    if (a ^ b ^ value) & 0x10 != 0 {
        flags |= AF;
    }
    (value, flags)
}

impl Core<'_> {
    fn set_flags(&mut self, flags: u64) {
        self.set_some_flags(CF | PF | AF | ZF | SF | OF, flags);
    }

    fn set_some_flags(&mut self, which: u64, flags: u64) {
        let rflags = &mut self.cpu.registers.gp.rflags;
        *rflags = *rflags & !which | flags & which;
    }

    fn carry(&self) -> u64 {
        self.cpu.registers.gp.rflags & CF
    }

    /// MOV and its kin between registers and memory.
    pub(super) fn transfer(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let size = self.size(instruction, 0);
        match instruction.mnemonic() {
            Mnemonic::Lea => {
                let address = self.offset(instruction)?;
                self.set_register(instruction.op0_register(), address)
            }
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                let from = self.size(instruction, 1);
                let value = self.value(instruction, 1)?;
                let extended = if value & sign(from) != 0 { value | !mask(from) } else { value };
                self.set_register(instruction.op0_register(), extended & mask(size))
            }
            Mnemonic::Xchg => {
                let target = self.target(instruction, 0, Need::Modify)?;
                let old = self.current(target)?;
                let new = self.register(instruction.op1_register())?;
                self.set_register(instruction.op1_register(), old)?;
                self.assign(target, size, new)
            }
            Mnemonic::Cmpxchg => {
                let target = self.target(instruction, 0, Need::Modify)?;
                let old = self.current(target)?;
                let expected = self.cpu.registers.gp.rax & mask(size);
                let (_, flags) = subtract(expected, old, 0, size);
                self.set_flags(flags);
                if old == expected {
                    let new = self.value(instruction, 1)?;
                    self.assign(target, size, new)
                } else {
                    let accumulator = match size {
                        1 => Register::AL,
                        2 => Register::AX,
                        4 => Register::EAX,
                        _ => Register::RAX,
                    };
                    self.set_register(accumulator, old)
                }
            }
            Mnemonic::Xadd => {
                let target = self.target(instruction, 0, Need::Modify)?;
                let old = self.current(target)?;
                let more = self.value(instruction, 1)?;
                let (sum, flags) = add(old, more, 0, size);
                self.set_flags(flags);
                self.set_register(instruction.op1_register(), old)?;
                self.assign(target, size, sum)
            }
            // MOV, MOVZX
            _ => {
                let value = self.value(instruction, 1)?;
                let target = self.target(instruction, 0, Need::Write)?;
                self.assign(target, size, value)
            }
        }
    }

    /// Two operands, a result and all flags.
    pub(super) fn binary(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let size = self.size(instruction, 0);
        let only_compares = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
        let b = self.value(instruction, 1)?;
        let need = if only_compares { Need::Read } else { Need::Modify };
        let target = self.target(instruction, 0, need)?;
        let a = self.current(target)?;
        let logic = |value: u64| (value & mask(size), result_flags(value, size));
        let (value, flags) = match instruction.mnemonic() {
            Mnemonic::Add => add(a, b, 0, size),
            Mnemonic::Adc => add(a, b, self.carry(), size),
            Mnemonic::Sub | Mnemonic::Cmp => subtract(a, b, 0, size),
            Mnemonic::Sbb => subtract(a, b, self.carry(), size),
            Mnemonic::And | Mnemonic::Test => logic(a & b),
            Mnemonic::Or => logic(a | b),
            _ => logic(a ^ b),
        };
        self.set_flags(flags);
        if only_compares { Ok(()) } else { self.assign(target, size, value) }
    }

    /// One operand.
    pub(super) fn unary(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let size = self.size(instruction, 0);
        let target = self.target(instruction, 0, Need::Modify)?;
        let a = self.current(target)?;
        let value = match instruction.mnemonic() {
            Mnemonic::Inc => {
                let (value, flags) = add(a, 1, 0, size);
                self.set_some_flags(PF | AF | ZF | SF | OF, flags);
                value
            }
            Mnemonic::Dec => {
                let (value, flags) = subtract(a, 1, 0, size);
                self.set_some_flags(PF | AF | ZF | SF | OF, flags);
                value
            }
            Mnemonic::Neg => {
                let (value, flags) = subtract(0, a, 0, size);
                self.set_flags(flags);
                value
            }
            _ => !a & mask(size),
        };
        self.assign(target, size, value)
    }

    /// Shifts and rotations; the overflow flag is as for a count of 1.
    pub(super) fn shift(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let size = self.size(instruction, 0);
        let bits = size as u32 * 8;
        let count = self.value(instruction, 1)? as u32 & if size == 8 { 63 } else { 31 };
        let target = self.target(instruction, 0, Need::Modify)?;
        let a = self.current(target)?;
        if count == 0 {
            return self.assign(target, size, a);
        }
        let wide = u128::from(a);
        let signed = if a & sign(size) != 0 { a | !mask(size) } else { a } as i64;
        let (value, carry) = match instruction.mnemonic() {
            Mnemonic::Shl => ((wide << count) as u64, wide << count >> bits & 1),
            Mnemonic::Shr => ((wide >> count) as u64, wide >> (count - 1) & 1),
            Mnemonic::Sar => ((signed >> count.min(63)) as u64, u128::from((signed >> (count - 1).min(63)) as u64 & 1)),
            rotation => {
                let count = count % bits;
                let left = if rotation == Mnemonic::Rol { count } else { (bits - count) % bits };
                let value = ((wide << left) | (wide >> (bits - left))) as u64 & mask(size);
                let carry = if rotation == Mnemonic::Rol { value & 1 } else { u64::from(value & sign(size) != 0) };
                let overflow = if (value & sign(size) != 0) != (carry != 0) { OF } else { 0 };
                self.set_some_flags(CF | OF, carry | overflow);
                return self.assign(target, size, value);
            }
        };
        let overflow = if (value ^ a) & sign(size) != 0 { OF } else { 0 };
        self.set_flags(result_flags(value, size) | u64::from(carry as u8) | overflow);
        self.assign(target, size, value & mask(size))
    }

    /// IMUL with two or three operands; the one-operand form is not part of this machine.
    pub(super) fn multiply(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let (a, b) = match instruction.op_count() {
            2 => (self.value(instruction, 0)?, self.value(instruction, 1)?),
            3 => (self.value(instruction, 1)?, self.value(instruction, 2)?),
            _ => return Err(invalid()),
        };
        let size = self.size(instruction, 0);
        let extend = |v: u64| i128::from(if v & sign(size) != 0 { v | !mask(size) } else { v } as i64);
        let product = extend(a) * extend(b);
        let value = product as u64 & mask(size);
        let overflow = if extend(value) == product { 0 } else { CF | OF };
        self.set_some_flags(CF | OF, overflow);
        self.set_register(instruction.op0_register(), value)
    }

    /// BT, BTS and BTR on registers, or on memory with an immediate (the bit then lies in the operand itself).
    pub(super) fn bit(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        if instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register {
            return Err(invalid());
        }
        let size = self.size(instruction, 0);
        let number = self.value(instruction, 1)? & (size as u64 * 8 - 1);
        let tests = instruction.mnemonic() == Mnemonic::Bt;
        let target = self.target(instruction, 0, if tests { Need::Read } else { Need::Modify })?;
        let old = self.current(target)?;
        self.set_some_flags(CF, old >> number & 1);
        match instruction.mnemonic() {
            Mnemonic::Bts => self.assign(target, size, old | 1 << number),
            Mnemonic::Btr => self.assign(target, size, old & !(1 << number)),
            _ => Ok(()),
        }
    }

    /// Sign extensions of the accumulator, and BSWAP.
    pub(super) fn extend(&mut self, instruction: &Instruction) {
        let gp = &mut self.cpu.registers.gp;
        match instruction.mnemonic() {
            Mnemonic::Cdqe => gp.rax = i64::from(gp.rax as i32) as u64,
            Mnemonic::Cqo => gp.rdx = ((gp.rax as i64) >> 63) as u64,
            Mnemonic::Cdq => gp.rdx = u64::from(((gp.rax as i32) >> 31) as u32),
            _ => {
                let register = instruction.op0_register();
                if let Ok(value) = self.register(register) {
                    let swapped =
                        if register.size() == 8 { value.swap_bytes() } else { u64::from((value as u32).swap_bytes()) };
                    let _ = self.set_register(register, swapped);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_differences_have_the_flags_of_the_manual() {
        assert_eq!(add(0x7f, 1, 0, 1), (0x80, SF | OF | AF));
        assert_eq!(add(0xff, 1, 0, 1), (0, ZF | CF | PF | AF));
        assert_eq!(add(u64::MAX, 0, 1, 8), (0, ZF | CF | PF | AF));
        assert_eq!(add(0x8000_0000, 0x8000_0000, 0, 4), (0, ZF | CF | OF | PF));
        assert_eq!(subtract(0, 1, 0, 4), (0xffff_ffff, SF | CF | PF | AF));
        assert_eq!(subtract(0x80, 1, 0, 1), (0x7f, OF | AF));
        assert_eq!(subtract(5, 5, 0, 8), (0, ZF | PF));
        assert_eq!(subtract(5, u64::MAX, 1, 8), (5, CF | PF | AF));
    }
}
