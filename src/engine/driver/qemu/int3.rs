//! INT3 in the memory of a guest under KVM.
//!
//! QEMU writes it (`Z0`) through the address space of the vCPU that the stub is aimed at, and takes it out (`z0`) the
//! same way; it answers `OK` as well when it finds no INT3 there. So where an INT3 is, and what was there before, is
//! written down by physical address before QEMU is asked for it, and whoever takes it out (this session, its guardian,
//! the next session) looks at the bytes themselves and puts back what QEMU has left.

use serde::{Deserialize, Serialize};

use super::gdb::{Gdb, Thread};
use crate::engine::{
    addr::{Pa, Va, VcpuId},
    error::VmiError,
};

/// The instruction.
pub const INT3: u8 = 0xcc;
/// How many bytes tell that a place still is the one that was written to: the one under the INT3 and those after it.
const KNOWN_BYTES: u64 = 16;

/// An INT3 in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Its virtual address.
    pub va: u64,
    /// Its physical address.
    pub pa: u64,
    /// The guest's bytes from there on, at most [`KNOWN_BYTES`] and none of another page. The first is under the INT3.
    pub original: Vec<u8>,
    /// The vCPU that was given another translation root for the moment in which QEMU writes, and the one that it had.
    #[serde(default)]
    pub borrowed: Option<(u16, u64)>,
}

impl Patch {
    /// What is about to be patched at a place.
    ///
    /// # Errors
    /// Where there is no memory, or an INT3 of the guest's own.
    pub fn of(stub: &mut Gdb, va: Va, pa: Pa) -> Result<Self, VmiError> {
        let length = KNOWN_BYTES.min(0x1000 - (pa.0 & 0xfff)) as usize;
        let original = stub.read_physical(pa.0, length)?.ok_or(VmiError::OutOfBounds(pa))?;
        if original.first() == Some(&INT3) {
            return Err(VmiError::Invalid(format!(
                "there is an INT3 of the guest's own at {va}, which only a hardware breakpoint could be told from: turn \
                 off one that has a hardware breakpoint, or break at another instruction"
            )));
        }
        Ok(Self { va: va.0, pa: pa.0, original, borrowed: None })
    }

    /// Whether the INT3 is in guest memory.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn is_in(&self, stub: &mut Gdb) -> Result<bool, VmiError> {
        Ok(stub.read_physical(self.pa, 1)?.as_deref() == Some(&[INT3]))
    }

    /// Whether a vCPU's address space has at the virtual address what memory has at the physical one.
    fn is_mapped_by(&self, stub: &mut Gdb, thread: Thread) -> Result<bool, VmiError> {
        let length = self.original.len();
        let here = stub.read_virtual(thread, self.va, length)?;
        Ok(here.is_some() && here == stub.read_physical(self.pa, length)?)
    }

    /// Puts the guest's byte back where an INT3 is left, whoever had to take it out. Memory that is something else by now
    /// (the page was freed and used again) is left alone.
    ///
    /// # Errors
    /// When the stub is gone or does not write.
    pub fn repair(&self, stub: &mut Gdb) -> Result<(), VmiError> {
        if let Some((vcpu, root)) = self.borrowed {
            give_back(stub, VcpuId(vcpu), root)?;
        }
        let (Some(&byte), true) = (self.original.first(), self.original.len() <= KNOWN_BYTES as usize) else {
            return Ok(());
        };
        let Some(now) = stub.read_physical(self.pa, self.original.len())? else { return Ok(()) };
        if now.first() != Some(&INT3) {
            return Ok(());
        }
        let mut is_place = now.get(1..) == self.original.get(1..);
        if !is_place {
            // The kernel may have patched the instructions that follow.
            for thread in stub.all_threads() {
                is_place = is_place || self.is_mapped_by(stub, thread)?;
            }
        }
        if !is_place {
            return Ok(());
        }
        stub.write_physical(self.pa, &[byte])?;
        if self.is_in(stub)? {
            let doing = format!("putting back the guest's byte at physical address {:#x}", self.pa);
            return Err(VmiError::driver(doing, "QEMU does not write there"));
        }
        Ok(())
    }
}

/// Gives a vCPU the translation root back that it had.
fn give_back(stub: &mut Gdb, vcpu: VcpuId, cr3: u64) -> Result<(), VmiError> {
    let Some(thread) = stub.thread(vcpu) else { return Ok(()) };
    let registers = stub.registers(thread)?;
    stub.set_registers(thread, &super::Amd64Registers { cr3, ..registers })
}

/// Aims the stub at a vCPU whose address space has the place of a patch, calls `work`, and undoes what had to be done for
/// that. Under page-table isolation a vCPU in user mode does not map the kernel: where all are there, one is given the
/// kernel's translation root for that moment, after `note` has written that down.
///
/// # Errors
/// When no vCPU can reach the place, and what `work` says.
pub fn reach(
    stub: &mut Gdb,
    patch: &mut Patch,
    root: Pa,
    note: &mut dyn FnMut(&Patch) -> Result<(), VmiError>,
    work: impl FnOnce(&mut Gdb) -> Result<(), VmiError>,
) -> Result<(), VmiError> {
    let threads = stub.all_threads();
    for &thread in &threads {
        if patch.is_mapped_by(stub, thread)? {
            stub.aim(thread)?;
            return work(stub);
        }
    }
    let nobody =
        || VmiError::Invalid(format!("no vCPU maps {} at the moment: try again when the kernel runs", Va(patch.va)));
    let thread = threads.first().copied().ok_or_else(nobody)?;
    let before = stub.registers(thread)?;
    if !before.is_long_mode() {
        return Err(nobody());
    }
    patch.borrowed = Some((thread.vcpu().0, before.cr3));
    note(patch)?;
    let lent = super::Amd64Registers { cr3: root.0, ..before };
    let mut result = stub.set_registers(thread, &lent);
    if result.is_ok() {
        result = match patch.is_mapped_by(stub, thread) {
            Ok(true) => stub.aim(thread).and_then(|()| work(stub)),
            Ok(false) => Err(VmiError::Invalid(format!("the kernel does not map {}", Va(patch.va)))),
            Err(error) => Err(error),
        };
    }
    let returned = stub.set_registers(thread, &before);
    if returned.is_ok() {
        patch.borrowed = None;
        note(patch)?;
    }
    result.and(returned)
}
