//! String instructions, one iteration at a time.

use iced_x86::{Instruction, Mnemonic};

use super::{Core, Stop, operand::mask};

/// RFLAGS.DF.
const DIRECTION: u64 = 1 << 10;

impl Core<'_> {
    /// One iteration; whether it was the last one.
    pub(super) fn string(&mut self, instruction: &Instruction) -> Result<bool, Stop> {
        use Mnemonic as M;
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if repeated && self.cpu.registers.gp.rcx == 0 {
            return Ok(true);
        }
        let size = match instruction.mnemonic() {
            M::Movsb | M::Stosb | M::Lodsb => 1,
            M::Movsd | M::Stosd | M::Lodsd => 4,
            _ => 8,
        };
        let user = self.is_user();
        let gp = self.cpu.registers.gp;
        let step = if gp.rflags & DIRECTION != 0 { (size as u64).wrapping_neg() } else { size as u64 };
        match instruction.mnemonic() {
            M::Movsb | M::Movsd | M::Movsq => {
                let value = self.load(gp.rsi, size, user)?;
                self.store(gp.rdi, size, value, user)?;
                self.cpu.registers.gp.rsi = gp.rsi.wrapping_add(step);
                self.cpu.registers.gp.rdi = gp.rdi.wrapping_add(step);
            }
            M::Stosb | M::Stosd | M::Stosq => {
                self.store(gp.rdi, size, gp.rax & mask(size), user)?;
                self.cpu.registers.gp.rdi = gp.rdi.wrapping_add(step);
            }
            _ => {
                let value = self.load(gp.rsi, size, user)?;
                let kept = if size == 1 { gp.rax & !0xff } else { 0 };
                self.cpu.registers.gp.rax = kept | value;
                self.cpu.registers.gp.rsi = gp.rsi.wrapping_add(step);
            }
        }
        if !repeated {
            return Ok(true);
        }
        self.cpu.registers.gp.rcx = gp.rcx.wrapping_sub(1);
        Ok(self.cpu.registers.gp.rcx == 0)
    }
}
