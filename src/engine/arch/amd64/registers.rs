//! The registers of an AMD64 vCPU (Intel SDM volume 1, section 3.4; volume 3A, section 2.5).

use super::{Amd64, paging::root_from_cr3};
use crate::engine::{
    addr::{AccessContext, Pa, Va},
    arch::{Architecture, GpRegisters, Registers},
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
};

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// The base address.
    pub base: u64,
    /// The L bit of a code segment: 64-bit code.
    pub long: bool,
}

/// The general-purpose registers, the instruction pointer and the flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the registers'")]
pub struct Amd64GpRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl Amd64GpRegisters {
    /// All by name, in the order of the architecture's manuals.
    pub fn named(&self) -> [(&'static str, u64); 18] {
        [
            ("rax", self.rax),
            ("rbx", self.rbx),
            ("rcx", self.rcx),
            ("rdx", self.rdx),
            ("rsi", self.rsi),
            ("rdi", self.rdi),
            ("rbp", self.rbp),
            ("rsp", self.rsp),
            ("r8", self.r8),
            ("r9", self.r9),
            ("r10", self.r10),
            ("r11", self.r11),
            ("r12", self.r12),
            ("r13", self.r13),
            ("r14", self.r14),
            ("r15", self.r15),
            ("rip", self.rip),
            ("rflags", self.rflags),
        ]
    }
}

impl GpRegisters for Amd64GpRegisters {
    fn instruction_pointer(&self) -> u64 {
        self.rip
    }
    fn set_instruction_pointer(&mut self, ip: u64) {
        self.rip = ip;
    }
    fn stack_pointer(&self) -> u64 {
        self.rsp
    }
    fn set_result(&mut self, value: u64) {
        self.rax = value;
    }
}

/// All registers of a vCPU that the engine uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amd64Registers {
    /// General-purpose registers, RIP and RFLAGS.
    pub gp: Amd64GpRegisters,
    /// Code segment; the low two bits of its selector are the privilege level.
    pub cs: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// FS, whose base holds user thread-local storage (Linux).
    pub fs: Segment,
    /// GS, whose base holds per-CPU data in the kernel.
    pub gs: Segment,
    /// IA32_KERNEL_GS_BASE: the other GS base, exchanged by SWAPGS.
    pub kernel_gs_base: u64,
    /// CR0.
    pub cr0: u64,
    /// CR2, the address of the last page fault.
    pub cr2: u64,
    /// CR3: translation root, PCID or PWT/PCD bits.
    pub cr3: u64,
    /// CR4; bit 12 is LA57.
    pub cr4: u64,
    /// IA32_EFER; bit 10 is LMA.
    pub efer: u64,
    /// IA32_LSTAR, entry of SYSCALL; 0 where the driver cannot read it.
    pub lstar: u64,
    /// Base of the interrupt descriptor table; 0 where the driver cannot read it.
    pub idt_base: u64,
}

impl Amd64Registers {
    /// CR4.LA57: 57-bit linear addresses, five levels of page tables (Intel SDM volume 3A, section 4.1.1).
    pub const CR4_LA57: u64 = 1 << 12;
    /// IA32_EFER.LMA: long mode is active.
    pub const EFER_LMA: u64 = 1 << 10;
    /// RFLAGS.TF, the trap flag.
    pub const RFLAGS_TF: u64 = 1 << 8;
    /// RFLAGS.RF, the resume flag: the next instruction meets no instruction breakpoint.
    pub const RFLAGS_RF: u64 = 1 << 16;
    /// RFLAGS.IF, the interrupt enable flag.
    pub const RFLAGS_IF: u64 = 1 << 9;

    /// The current privilege level, 0 to 3.
    pub fn cpl(&self) -> u8 {
        (self.cs.selector & 3) as u8
    }

    /// Levels of page tables: 4 or 5.
    pub fn paging_levels(&self) -> u8 {
        if self.cr4 & Self::CR4_LA57 != 0 { 5 } else { 4 }
    }

    /// Whether paging in long mode is on, which everything here needs.
    pub fn is_long_mode(&self) -> bool {
        self.cr0 & (1 << 31) != 0 && self.efer & Self::EFER_LMA != 0
    }

    /// The physical address of the top page table.
    pub fn root(&self) -> Pa {
        root_from_cr3(self.cr3)
    }
}

impl Registers for Amd64Registers {
    type Architecture = Amd64;
    type GpRegisters = Amd64GpRegisters;

    fn instruction_pointer(&self) -> u64 {
        self.gp.rip
    }
    fn stack_pointer(&self) -> u64 {
        self.gp.rsp
    }
    fn result(&self) -> u64 {
        self.gp.rax
    }
    fn gp_registers(&self) -> Amd64GpRegisters {
        self.gp
    }
    fn set_gp_registers(&mut self, gp: &Amd64GpRegisters) {
        self.gp = *gp;
    }
    fn address_width(&self) -> usize {
        if self.efer & Self::EFER_LMA != 0 && !self.cs.long { 4 } else { 8 }
    }
    fn translation_root(&self, _: Va) -> Pa {
        self.root()
    }
    fn is_user_mode(&self) -> bool {
        self.cpl() == 3
    }

    fn named(&self) -> Vec<(&'static str, u64)> {
        let mut all = self.gp.named().to_vec();
        all.extend([
            ("cs", u64::from(self.cs.selector)),
            ("ss", u64::from(self.ss.selector)),
            ("fs_base", self.fs.base),
            ("gs_base", self.gs.base),
            ("k_gs_base", self.kernel_gs_base),
            ("cr0", self.cr0),
            ("cr2", self.cr2),
            ("cr3", self.cr3),
            ("cr4", self.cr4),
            ("efer", self.efer),
        ]);
        all
    }

    fn return_address<Driver>(&self, vmi: &VmiCore<Driver>) -> Result<Va, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let stack: AccessContext = self.access_context(Va(self.gp.rsp));
        vmi.read_va(stack, self.address_width())
    }
}

const _: () = assert!(<Amd64 as Architecture>::PAGE_SIZE == 1 << <Amd64 as Architecture>::PAGE_SHIFT);
