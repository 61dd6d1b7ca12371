//! Fetch, decode and execute: what one vCPU does with one instruction.
//!
//! [`Core::step`] delivers an interrupt or runs one instruction. Whatever must be asked or told outside (an exception,
//! an access that the view forbids, a monitored instruction) ends the instruction before it changed anything
//! ([`Stop`]), so that it can be run again. `mmu` finds memory, `operand` names registers and memory, `alu`, `flow`,
//! `string` and `system` hold the instructions by group, `interrupt` the way into the guest's handlers.

mod alu;
mod flow;
mod interrupt;
mod mmu;
mod operand;
mod string;
mod system;
mod tlb;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic};

use self::mmu::Need;
pub(super) use self::tlb::Tlb;
use super::{
    memory::Memory,
    vcpu::{Monitors, Vcpu},
    view::Views,
};
use crate::engine::arch::amd64::{Amd64EventReason, ExceptionVector, Interrupt, InterruptType};

/// Why an instruction did not happen (yet).
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// An exception for the guest.
    Exception(Interrupt),
    /// A session must be asked first.
    Event(Amd64EventReason),
}

/// How an instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// It is done.
    Done,
    /// It was a call of the kernel's model (VMCALL in kernel mode), which happens now.
    Model,
}

/// A processor exception with an error code or none.
pub(super) fn exception(vector: ExceptionVector, error_code: Option<u32>) -> Stop {
    Stop::Exception(Interrupt {
        vector,
        kind: InterruptType::HardwareException,
        error_code,
        instruction_length: 0,
        cr2: 0,
    })
}

/// #GP(0).
fn protection() -> Stop {
    exception(ExceptionVector::GENERAL_PROTECTION, Some(0))
}

/// #UD.
fn invalid() -> Stop {
    exception(ExceptionVector::INVALID_OPCODE, None)
}

/// Decoded instructions by address and bytes.
pub(super) struct DecodeCache(Vec<(u64, u128, Instruction)>);

impl DecodeCache {
    /// Entries; a power of two.
    const SLOTS: usize = 1 << 12;

    pub(super) fn new() -> Self {
        Self(vec![(u64::MAX, 0, Instruction::default()); Self::SLOTS])
    }

    /// The instruction at `rip` made of the first bytes of `bytes`, of which `length` are there; `None` when they
    /// do not suffice.
    #[inline]
    fn decode(&mut self, rip: u64, bytes: [u8; 16], length: usize) -> Option<Instruction> {
        let key = u128::from_le_bytes(bytes);
        let slot = self.0.get_mut(rip as usize & (Self::SLOTS - 1))?;
        if slot.0 == rip && slot.1 == key {
            return Some(slot.2);
        }
        let mut decoder = Decoder::with_ip(64, bytes.get(..length)?, rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return None;
        }
        *slot = (rip, key, instruction);
        Some(instruction)
    }
}

/// A vCPU and everything that an instruction may touch.
pub(super) struct Core<'a> {
    pub(super) cpu: &'a mut Vcpu,
    pub(super) memory: &'a mut Memory,
    pub(super) views: &'a Views,
    pub(super) monitors: &'a Monitors,
    pub(super) decoded: &'a mut DecodeCache,
    pub(super) tlb: &'a mut Tlb,
    /// Virtual time in nanoseconds, for RDTSC.
    pub(super) now: u64,
}

impl Core<'_> {
    /// Takes an interrupt that is on its way, or runs one instruction.
    pub(super) fn step(&mut self) -> Result<Flow, Stop> {
        if let Some(interrupt) = self.cpu.delivering {
            self.deliver(interrupt)?;
            self.cpu.delivering = None;
            self.cpu.granted = false;
            self.cpu.emulate = false;
            return Ok(Flow::Done);
        }
        let instruction = self.fetch()?;
        let before = self.cpu.registers.gp;
        let shadow = std::mem::take(&mut self.cpu.sti_shadow);
        let done = self.execute(&instruction);
        if done.is_err() {
            self.cpu.sti_shadow = shadow;
            // All other registers change only as the last thing that an instruction does.
            self.cpu.registers.gp = before;
        } else {
            self.cpu.granted = false;
            self.cpu.emulate = false;
        }
        done
    }

    /// Whether the vCPU runs in user mode.
    fn is_user(&self) -> bool {
        self.cpu.registers.cpl() == 3
    }

    /// Fetches and decodes the next instruction through page tables and view.
    fn fetch(&mut self) -> Result<Instruction, Stop> {
        let rip = self.cpu.registers.gp.rip;
        let here = self.locate_code(rip)?;
        let room = 4096 - (here & 0xfff) as usize;
        if let Some(bytes) = self.memory.read_chunk(here) {
            return self.decoded.decode(rip, *bytes, 15).filter(|i| !i.is_invalid()).ok_or_else(invalid);
        }
        // The instruction may go on in the next page.
        let mut bytes = [0; 16];
        let length = room.min(15);
        self.copy_code(here, bytes.get_mut(..length).ok_or_else(invalid)?);
        let mut instruction = self.decoded.decode(rip, bytes, length);
        if instruction.is_none() && room < 15 {
            let next = self.locate_code(rip.wrapping_add(room as u64))?;
            self.copy_code(next, bytes.get_mut(room..15).ok_or_else(invalid)?);
            instruction = self.decoded.decode(rip, bytes, 15);
        }
        instruction.filter(|instruction| !instruction.is_invalid()).ok_or_else(invalid)
    }

    fn locate_code(&mut self, rip: u64) -> Result<u64, Stop> {
        self.resolve(rip, Need::Execute, self.is_user())
    }

    fn copy_code(&self, pa: u64, bytes: &mut [u8]) {
        // A frame that is not there reads as ones, like a bus that nobody drives.
        if self.memory.read(pa, bytes).is_err() {
            bytes.fill(0xff);
        }
    }

    /// The length of the instruction at RIP in the current view, without side effects; 0 where there is none.
    pub(super) fn length_here(&mut self) -> u64 {
        let rip = self.cpu.registers.gp.rip;
        let mut bytes = [0; 15];
        let mut length = 0;
        for (i, byte) in bytes.iter_mut().enumerate() {
            let va = rip.wrapping_add(i as u64);
            let Some(gpa) = self.peek(va) else { break };
            let pa = self.views.get(self.cpu.view, gpa >> 12).shows << 12 | gpa & 0xfff;
            self.copy_code(pa, std::slice::from_mut(byte));
            length = i + 1;
        }
        let instruction = Decoder::with_ip(64, bytes.get(..length).unwrap_or(&[]), rip, DecoderOptions::NONE).decode();
        if instruction.is_invalid() { 0 } else { instruction.len() as u64 }
    }

    fn execute(&mut self, instruction: &Instruction) -> Result<Flow, Stop> {
        use Mnemonic as M;
        let next = instruction.next_ip();
        match instruction.mnemonic() {
            M::Nop | M::Pause | M::Lfence | M::Mfence | M::Sfence | M::Endbr64 | M::Prefetchw => {}
            M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Lea | M::Xchg | M::Cmpxchg | M::Xadd => {
                if system::touches_special(instruction) {
                    self.special_register(instruction)?;
                } else {
                    self.transfer(instruction)?;
                }
            }
            M::Add | M::Adc | M::Sub | M::Sbb | M::And | M::Or | M::Xor | M::Cmp | M::Test => {
                self.binary(instruction)?;
            }
            M::Inc | M::Dec | M::Neg | M::Not => self.unary(instruction)?,
            M::Shl | M::Shr | M::Sar | M::Rol | M::Ror => self.shift(instruction)?,
            M::Imul => self.multiply(instruction)?,
            M::Bt | M::Bts | M::Btr => self.bit(instruction)?,
            M::Cdqe | M::Cqo | M::Cdq | M::Bswap => self.extend(instruction),
            M::Push | M::Pop | M::Pushfq | M::Popfq | M::Leave => self.stack(instruction)?,
            M::Call | M::Ret | M::Jmp | M::Jrcxz | M::Loop => {
                self.branch(instruction)?;
                return Ok(Flow::Done);
            }
            M::Movsb | M::Movsd | M::Movsq | M::Stosb | M::Stosd | M::Stosq | M::Lodsb | M::Lodsd | M::Lodsq => {
                if !self.string(instruction)? {
                    // An iteration at a time: interrupts and steps fall between them.
                    return Ok(Flow::Done);
                }
            }
            M::Syscall | M::Sysretq | M::Iretq | M::Int3 | M::Int | M::Ud2 => {
                self.change_privilege(instruction)?;
                return Ok(Flow::Done);
            }
            M::Vmcall => {
                self.system(instruction)?;
                self.cpu.registers.gp.rip = next;
                return Ok(Flow::Model);
            }
            _ if instruction.is_jcc_short_or_near() => {
                self.branch(instruction)?;
                return Ok(Flow::Done);
            }
            _ if flow::is_conditional(instruction) => self.conditional(instruction)?,
            _ => self.system(instruction)?,
        }
        self.cpu.registers.gp.rip = next;
        Ok(Flow::Done)
    }
}
