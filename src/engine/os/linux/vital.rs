//! Whether the kernel that was found still runs.
//!
//! A kernel can be replaced without a reset: kexec starts another one in its place, and QEMU can load a snapshot of another
//! boot. What was learnt of the first one may stay readable for long, because nobody has used its memory again. What tells
//! is where the vCPUs' page tables lead, and whether its clock goes on.

use super::{detect, kernel::Kernel};
use crate::engine::{
    addr::Pa,
    arch::amd64::{Amd64, Amd64Registers},
    driver::VmiRead,
    os::VitalSigns,
};

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// Whether a vCPU's page tables map the kernel's image where it was found. Under page-table isolation those of user
    /// mode do not, and the full ones are the page in front.
    pub(super) fn is_mapped(&self, registers: &Amd64Registers) -> Option<bool> {
        if !registers.is_long_mode() {
            return None;
        }
        let root = registers.root();
        let maps = |root: Pa| self.core.translate_address((self.os.base, root)).is_ok_and(|pa| pa == self.os.image);
        Some(maps(root) || maps(Pa(root.0 & !0x1000)))
    }

    /// Whether the kernel is what it was, and its count of ticks (`jiffies_64`).
    pub(super) fn vital_signs(&self) -> VitalSigns {
        let (core, os) = (self.core, self.os);
        let place = |name: &str| os.symbols.lookup(name);
        let is_intact = core.translate_address((os.base, os.root)).is_ok_and(|pa| pa == os.image)
            && detect::version(core, &os.symbols, os.root) == os.version
            && place("page_offset_base").is_none_or(|va| self.pointer(va).is_ok_and(|map| map == os.direct_map));
        let ticks = place("jiffies_64").and_then(|va| core.read_u64((va, os.root)).ok());
        VitalSigns { is_intact, ticks }
    }
}
