//! Why an AMD64 vCPU stopped, and what can be asked to stop it.

use super::{ExceptionVector, Interrupt, InterruptType};
use crate::engine::{
    addr::{Gfn, Va},
    arch::{EventMemoryAccess, EventReason},
    driver::MemoryAccess,
};

/// A control register whose writes can be monitored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ControlRegister {
    /// CR0.
    Cr0,
    /// CR3, the translation root.
    Cr3,
    /// CR4.
    Cr4,
}

/// What a driver can be asked to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventMonitor {
    /// Writes to a control register.
    Register(ControlRegister),
    /// An exception of this vector; `ExceptionVector::BREAKPOINT` for software breakpoints.
    Interrupt(ExceptionVector),
    /// Single steps.
    Singlestep,
    /// CPUID.
    CpuId,
    /// Writes to a model-specific register.
    Msr(u32),
    /// VMCALL and the like.
    Hypercall,
    /// Port input and output.
    Io,
}

/// An intercepted interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventInterrupt {
    /// The frame of the instruction that raised it, as the guest's page tables (not the view) say.
    pub gfn: Gfn,
    /// The interrupt.
    pub interrupt: Interrupt,
}

/// Why an event was raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amd64EventReason {
    /// An access that the view's permissions do not allow.
    MemoryAccess(EventMemoryAccess),
    /// An interrupt or exception.
    Interrupt(EventInterrupt),
    /// The end of a single step.
    Singlestep {
        /// The frame of the next instruction.
        gfn: Gfn,
    },
    /// A breakpoint that the hypervisor keeps outside of guest memory (QEMU's gdb stub).
    DebugBreakpoint {
        /// Its virtual address.
        va: Va,
        /// The frame behind it in the current address space.
        gfn: Gfn,
    },
    /// A watchpoint that the hypervisor keeps; the access has happened already.
    DebugWatchpoint {
        /// The watched address, as it was set.
        va: Va,
        /// What was watched for.
        access: MemoryAccess,
    },
    /// A write to a control register.
    WriteCr {
        /// The register.
        register: ControlRegister,
        /// Its value before.
        old: u64,
        /// The value to be written.
        new: u64,
    },
    /// A write to a model-specific register.
    WriteMsr {
        /// Its number.
        msr: u32,
        /// The value to be written.
        value: u64,
    },
    /// CPUID.
    CpuId {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
    },
    /// A hypercall.
    Hypercall,
    /// Port input or output.
    Io {
        /// The port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// Whether the guest reads.
        input: bool,
    },
}

impl EventReason for Amd64EventReason {
    fn as_memory_access(&self) -> Option<&EventMemoryAccess> {
        match self {
            Self::MemoryAccess(access) => Some(access),
            _ => None,
        }
    }

    fn as_software_breakpoint(&self) -> Option<Gfn> {
        match self {
            // INT 3 in two bytes (CD 03) is a software interrupt of the guest's own, never a breakpoint of ours.
            Self::Interrupt(EventInterrupt { gfn, interrupt })
                if interrupt.vector == ExceptionVector::BREAKPOINT
                    && interrupt.kind == InterruptType::SoftwareException =>
            {
                Some(*gfn)
            }
            Self::DebugBreakpoint { gfn, .. } => Some(*gfn),
            _ => None,
        }
    }

    fn instruction_length(&self) -> u64 {
        match self {
            Self::Interrupt(event) => u64::from(event.interrupt.instruction_length),
            _ => 0,
        }
    }

    fn is_singlestep(&self) -> bool {
        matches!(self, Self::Singlestep { .. })
    }
}
