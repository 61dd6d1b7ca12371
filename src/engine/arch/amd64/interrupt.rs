//! Interrupts and exceptions (Intel SDM volume 3A, section 6.3 and table 6-1; volume 3C, section 25.8.3).

/// An exception's vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExceptionVector(pub u8);

impl ExceptionVector {
    /// #DB, debug.
    pub const DEBUG: Self = Self(1);
    /// #BP, breakpoint (INT3).
    pub const BREAKPOINT: Self = Self(3);
    /// #UD, invalid opcode.
    pub const INVALID_OPCODE: Self = Self(6);
    /// #GP, general protection.
    pub const GENERAL_PROTECTION: Self = Self(13);
    /// #PF, page fault.
    pub const PAGE_FAULT: Self = Self(14);
}

/// How an interrupt is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterruptType {
    /// From a device.
    External,
    /// Non-maskable.
    Nmi,
    /// A fault or trap of the processor (page fault).
    HardwareException,
    /// INT n.
    SoftwareInterrupt,
    /// INT3, INTO.
    SoftwareException,
}

/// An interrupt to inject, or one that was intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its vector.
    pub vector: ExceptionVector,
    /// Its kind.
    pub kind: InterruptType,
    /// The error code, for exceptions that push one.
    pub error_code: Option<u32>,
    /// Length of the instruction that raised it, for software interrupts and exceptions.
    pub instruction_length: u8,
    /// CR2 for a page fault.
    pub cr2: u64,
}

impl Interrupt {
    /// A breakpoint exception, as INT3 raises it.
    pub const fn breakpoint() -> Self {
        Self {
            vector: ExceptionVector::BREAKPOINT,
            kind: InterruptType::SoftwareException,
            error_code: None,
            instruction_length: 1,
            cr2: 0,
        }
    }

    /// A page fault at `address`; error-code bits as in Intel SDM volume 3A, section 4.7
    /// (bit 0 present, 1 write, 2 user, 4 instruction fetch).
    pub const fn page_fault(address: u64, error_code: u32) -> Self {
        Self {
            vector: ExceptionVector::PAGE_FAULT,
            kind: InterruptType::HardwareException,
            error_code: Some(error_code),
            instruction_length: 0,
            cr2: address,
        }
    }
}
