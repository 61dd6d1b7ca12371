//! Reads of the kernel's half of the address space.

use super::LinuxOs;
use crate::engine::{
    addr::{Pa, Va},
    arch::amd64::{Amd64, root_from_cr3},
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
};

/// A guest's memory as its kernel sees it, and what is known of the kernel.
pub(super) struct Kernel<'a, Driver: VmiRead<Architecture = Amd64>> {
    pub(super) core: &'a VmiCore<Driver>,
    pub(super) os: &'a LinuxOs,
}

impl<Driver: VmiRead<Architecture = Amd64>> Clone for Kernel<'_, Driver> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> Copy for Kernel<'_, Driver> {}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// Copies memory.
    pub(super) fn read(&self, va: Va, buffer: &mut [u8]) -> Result<(), VmiError> {
        self.core.read((va, self.os.root), buffer)
    }

    /// Four bytes.
    pub(super) fn u32(&self, va: Va) -> Result<u32, VmiError> {
        self.core.read_u32((va, self.os.root))
    }

    /// A string of the kernel's, with an ellipsis where it is longer than `limit` bytes; `None` where it cannot be read.
    pub(super) fn text(&self, va: Va, limit: usize) -> Option<String> {
        self.core.read_string_marked((va, self.os.root), limit).ok()
    }

    /// How long the kernel has been up (`CLOCK_BOOTTIME`), in nanoseconds, by its last tick.
    pub(super) fn uptime_ns(&self) -> Option<u64> {
        let clock = self.os.layout.clock.as_ref()?;
        let keeper = ["tk_core", "timekeeper_data"].into_iter().find_map(|name| self.os.symbols.lookup(name))?;
        let word = |offset| self.core.read_u64((keeper + offset, self.os.root)).ok();
        word(clock.seconds)?.checked_mul(1_000_000_000)?.checked_add(word(clock.to_boot)?)
    }

    /// A pointer.
    pub(super) fn pointer(&self, va: Va) -> Result<Va, VmiError> {
        self.core.read_va64((va, self.os.root))
    }

    /// The translation root of an address space (`mm_struct`).
    pub(super) fn root_of(&self, mm: Va) -> Option<Pa> {
        let pgd = self.pointer(mm + self.os.layout.mm_pgd).ok()?;
        // Top tables come from the page allocator, so they lie in the direct map; 52 bits are the most it can span.
        let direct = pgd - self.os.direct_map;
        if pgd >= self.os.direct_map && direct >> 52 == 0 {
            return Some(root_from_cr3(direct));
        }
        self.core.translate_address((pgd, self.os.root)).ok().map(|pa| root_from_cr3(pa.0))
    }
}
