//! AMD64: 4- and 5-level paging, registers, events.
//!
//! Layouts are those of the Intel SDM, volume 3A: chapter 4 (paging), chapter 6 (interrupts and exceptions).
//! Start at `paging`, which everything else leans on.

mod event;
mod interrupt;
mod paging;
mod registers;

pub use self::{
    event::{Amd64EventReason, ControlRegister, EventInterrupt, EventMonitor},
    interrupt::{ExceptionVector, Interrupt, InterruptType},
    paging::{
        PageTableEntry, PageTableLevel, Translation, TranslationEntry, TranslationFault, is_canonical, root_from_cr3,
    },
    registers::{Amd64GpRegisters, Amd64Registers, Segment},
};

use super::Architecture;
use crate::engine::{
    addr::{Pa, Va},
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
};

/// The AMD64 architecture (x86-64).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amd64;

impl Architecture for Amd64 {
    const PAGE_SIZE: u64 = 0x1000;
    const PAGE_SHIFT: u32 = 12;
    const PAGE_MASK: u64 = !0xfff;
    /// INT3, Intel SDM volume 2A.
    const BREAKPOINT: &'static [u8] = &[0xcc];

    type Registers = Amd64Registers;
    type PageTableLevel = PageTableLevel;
    type Translation = Translation;
    type Interrupt = Interrupt;
    type SpecialRegister = ControlRegister;
    type EventMonitor = EventMonitor;
    type EventReason = Amd64EventReason;

    fn translation<Driver>(vmi: &VmiCore<Driver>, va: Va, root: Pa) -> Translation
    where
        Driver: VmiRead<Architecture = Self>,
    {
        paging::record(vmi, va, root)
    }

    #[inline]
    fn translate_address<Driver>(vmi: &VmiCore<Driver>, va: Va, root: Pa) -> Result<Pa, VmiError>
    where
        Driver: VmiRead<Architecture = Self>,
    {
        paging::translate(vmi, va, root)
    }
}
