//! What the engine must know of a processor architecture: pages, translation, registers, events.
//!
//! Only AMD64 exists ([`amd64`]); the trait keeps the floors above from growing into it. Imports addresses, errors
//! and, for reading page tables and stacks, the session's core.

pub mod amd64;

use std::fmt::Debug;

use super::{
    addr::{AccessContext, AddressContext, Gfn, Pa, Va},
    driver::{MemoryAccess, VmiRead},
    error::VmiError,
    session::VmiCore,
};

/// A processor architecture.
pub trait Architecture: Sized + Debug + Clone + Copy + 'static {
    /// Size of the smallest page in bytes.
    const PAGE_SIZE: u64;
    /// Its binary logarithm.
    const PAGE_SHIFT: u32;
    /// Mask of an address's page part.
    const PAGE_MASK: u64;
    /// The software breakpoint instruction.
    const BREAKPOINT: &'static [u8];

    /// All registers of a vCPU that are of interest.
    type Registers: Registers<Architecture = Self>;
    /// A level of the page tables.
    type PageTableLevel: Debug + Clone + Copy + PartialEq + Eq;
    /// The record of one page walk.
    type Translation: Debug + Clone;
    /// An interrupt or exception that can be injected.
    type Interrupt: Debug + Clone + Copy;
    /// A control register whose writes can be monitored.
    type SpecialRegister: Debug + Clone + Copy;
    /// Something whose occurrence can be monitored.
    type EventMonitor: Debug + Clone + Copy + PartialEq;
    /// Why an event was raised.
    type EventReason: EventReason;

    /// The frame of a physical address.
    fn gfn_from_pa(pa: Pa) -> Gfn {
        Gfn(pa.0 >> Self::PAGE_SHIFT)
    }

    /// The first address of a frame.
    fn pa_from_gfn(gfn: Gfn) -> Pa {
        Pa(gfn.0.wrapping_shl(Self::PAGE_SHIFT))
    }

    /// The offset of a physical address in its page.
    fn pa_offset(pa: Pa) -> u64 {
        pa.0 & !Self::PAGE_MASK
    }

    /// The offset of a virtual address in its (smallest) page.
    fn va_offset(va: Va) -> u64 {
        va.0 & !Self::PAGE_MASK
    }

    /// The first address of the (smallest) page that a virtual address lies in.
    fn va_align_down(va: Va) -> Va {
        Va(va.0 & Self::PAGE_MASK)
    }

    /// Translates an address, recording every level of the walk.
    fn translation<Driver>(vmi: &VmiCore<Driver>, va: Va, root: Pa) -> Self::Translation
    where
        Driver: VmiRead<Architecture = Self>;

    /// Translates an address: the same walk without the record.
    ///
    /// # Errors
    /// [`VmiError::Translation`] where an entry is not present, has reserved bits set or points outside of the
    /// guest's memory, or where the address is not canonical; other errors where the driver failed.
    fn translate_address<Driver>(vmi: &VmiCore<Driver>, va: Va, root: Pa) -> Result<Pa, VmiError>
    where
        Driver: VmiRead<Architecture = Self>;
}

/// The general-purpose registers of a vCPU: what a response to an event may change.
pub trait GpRegisters: Debug + Default + Clone + Copy {
    /// Where the vCPU goes on.
    fn instruction_pointer(&self) -> u64;
    /// Sets where the vCPU goes on.
    fn set_instruction_pointer(&mut self, ip: u64);
    /// The stack pointer.
    fn stack_pointer(&self) -> u64;
    /// Sets the register that holds a function's result.
    fn set_result(&mut self, value: u64);
}

/// All registers of a vCPU.
pub trait Registers: Debug + Default + Clone + Copy {
    /// Their architecture.
    type Architecture: Architecture<Registers = Self>;
    /// The part that a response may change.
    type GpRegisters: GpRegisters;

    /// Where the vCPU is.
    fn instruction_pointer(&self) -> u64;
    /// The stack pointer.
    fn stack_pointer(&self) -> u64;
    /// The register that holds a function's result.
    fn result(&self) -> u64;
    /// The general-purpose part.
    fn gp_registers(&self) -> Self::GpRegisters;
    /// Replaces the general-purpose part.
    fn set_gp_registers(&mut self, gp: &Self::GpRegisters);
    /// Width of an address of the running code in bytes: 4 or 8.
    fn address_width(&self) -> usize;
    /// The translation root that translates `va` (the same one for all addresses on AMD64).
    fn translation_root(&self, va: Va) -> Pa;
    /// Whether the vCPU runs with user privilege.
    fn is_user_mode(&self) -> bool;
    /// All registers by name, in the order to show them.
    fn named(&self) -> Vec<(&'static str, u64)>;

    /// A virtual address in the current address space.
    fn address_context(&self, va: Va) -> AddressContext {
        AddressContext { va, root: self.translation_root(va) }
    }

    /// An access through the current page tables.
    fn access_context(&self, va: Va) -> AccessContext {
        self.address_context(va).into()
    }

    /// The return address of a function whose first instruction is about to run.
    ///
    /// # Errors
    /// As a read of the stack.
    fn return_address<Driver>(&self, vmi: &VmiCore<Driver>) -> Result<Va, VmiError>
    where
        Driver: VmiRead<Architecture = Self::Architecture>;
}

/// An access to guest-physical memory that a view's permissions do not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventMemoryAccess {
    /// The physical address.
    pub pa: Pa,
    /// The virtual address, as far as the driver knows it.
    pub va: Va,
    /// What was tried.
    pub access: MemoryAccess,
}

/// Why an event was raised, as far as code that knows no architecture can ask.
pub trait EventReason: Debug + Clone + Copy {
    /// The access, if it was one.
    fn as_memory_access(&self) -> Option<&EventMemoryAccess>;
    /// The frame of the instruction, if it was a software breakpoint.
    fn as_software_breakpoint(&self) -> Option<Gfn>;
    /// Bytes of the instruction that raised an interrupt; 0 where there is none or it is not known.
    fn instruction_length(&self) -> u64;
    /// Whether it was the end of a single step.
    fn is_singlestep(&self) -> bool;
}
