//! Jumps, calls, the stack, and everything that depends on a condition (Intel SDM volume 1, appendix B).

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};

use super::{
    Core, Stop,
    alu::{CF, OF, PF, SF, ZF},
    mmu::Need,
};

/// Flags that POPFQ and IRETQ may load: everything defined but VM, VIF and VIP.
pub(super) const LOADABLE_FLAGS: u64 = 0x0025_7fd5;

/// Whether it is a SETcc or a CMOVcc.
pub(super) fn is_conditional(instruction: &Instruction) -> bool {
    instruction.condition_code() != ConditionCode::None
}

impl Core<'_> {
    fn holds(&self, condition: ConditionCode) -> bool {
        let flags = self.cpu.registers.gp.rflags;
        let set = |flag: u64| flags & flag != 0;
        match condition {
            ConditionCode::None => true,
            ConditionCode::o => set(OF),
            ConditionCode::no => !set(OF),
            ConditionCode::b => set(CF),
            ConditionCode::ae => !set(CF),
            ConditionCode::e => set(ZF),
            ConditionCode::ne => !set(ZF),
            ConditionCode::be => set(CF) || set(ZF),
            ConditionCode::a => !set(CF) && !set(ZF),
            ConditionCode::s => set(SF),
            ConditionCode::ns => !set(SF),
            ConditionCode::p => set(PF),
            ConditionCode::np => !set(PF),
            ConditionCode::l => set(SF) != set(OF),
            ConditionCode::ge => set(SF) == set(OF),
            ConditionCode::le => set(ZF) || set(SF) != set(OF),
            ConditionCode::g => !set(ZF) && set(SF) == set(OF),
        }
    }

    /// Everything that sets RIP within one privilege level.
    pub(super) fn branch(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let next = instruction.next_ip();
        let rip = match instruction.mnemonic() {
            Mnemonic::Call => {
                let target = self.branch_target(instruction)?;
                self.push(next)?;
                target
            }
            Mnemonic::Ret => {
                let target = self.pop()?;
                if instruction.op_count() == 1 {
                    let gp = &mut self.cpu.registers.gp;
                    gp.rsp = gp.rsp.wrapping_add(u64::from(instruction.immediate16()));
                }
                target
            }
            Mnemonic::Jmp => self.branch_target(instruction)?,
            Mnemonic::Jrcxz if self.cpu.registers.gp.rcx != 0 => next,
            Mnemonic::Loop => {
                let gp = &mut self.cpu.registers.gp;
                gp.rcx = gp.rcx.wrapping_sub(1);
                if gp.rcx == 0 { next } else { instruction.near_branch_target() }
            }
            _ if !self.holds(instruction.condition_code()) => next,
            _ => instruction.near_branch_target(),
        };
        self.cpu.registers.gp.rip = rip;
        Ok(())
    }

    fn branch_target(&mut self, instruction: &Instruction) -> Result<u64, Stop> {
        match instruction.op0_kind() {
            OpKind::NearBranch64 => Ok(instruction.near_branch_target()),
            _ => self.value(instruction, 0),
        }
    }

    /// SETcc and CMOVcc.
    pub(super) fn conditional(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        let holds = self.holds(instruction.condition_code());
        if instruction.op_count() == 1 {
            let target = self.target(instruction, 0, Need::Write)?;
            return self.assign(target, 1, u64::from(holds));
        }
        // The source is read, and a 4-byte target is extended, whether or not the condition holds.
        let new = self.value(instruction, 1)?;
        let old = self.register(instruction.op0_register())?;
        self.set_register(instruction.op0_register(), if holds { new } else { old })
    }

    /// Pushes eight bytes.
    pub(super) fn push(&mut self, value: u64) -> Result<(), Stop> {
        let rsp = self.cpu.registers.gp.rsp.wrapping_sub(8);
        let user = self.is_user();
        self.store(rsp, 8, value, user)?;
        self.cpu.registers.gp.rsp = rsp;
        Ok(())
    }

    /// Pops eight bytes.
    pub(super) fn pop(&mut self) -> Result<u64, Stop> {
        let rsp = self.cpu.registers.gp.rsp;
        let user = self.is_user();
        let value = self.load(rsp, 8, user)?;
        self.cpu.registers.gp.rsp = rsp.wrapping_add(8);
        Ok(value)
    }

    /// Pushes, pops and LEAVE, eight bytes wide.
    pub(super) fn stack(&mut self, instruction: &Instruction) -> Result<(), Stop> {
        match instruction.mnemonic() {
            Mnemonic::Push => {
                let value = self.value(instruction, 0)?;
                self.push(value)
            }
            Mnemonic::Pop => {
                let value = self.pop()?;
                let target = self.target(instruction, 0, Need::Write)?;
                self.assign(target, 8, value)
            }
            Mnemonic::Pushfq => self.push(self.cpu.registers.gp.rflags),
            Mnemonic::Popfq => {
                let value = self.pop()?;
                // Without privilege the interrupt flag and the I/O privilege level stay (CPL above IOPL 0).
                let kept = if self.is_user() { 0x3200 } else { 0 };
                let gp = &mut self.cpu.registers.gp;
                gp.rflags = value & LOADABLE_FLAGS & !kept | gp.rflags & kept | 2;
                Ok(())
            }
            _ => {
                self.cpu.registers.gp.rsp = self.cpu.registers.gp.rbp;
                self.cpu.registers.gp.rbp = self.pop()?;
                Ok(())
            }
        }
    }
}
