//! Where the kernel is: from an address that the CPU knows (the system call entry, or an interrupt handler) down to the
//! image's header.

use crate::engine::{
    addr::{AddressContext, Va},
    arch::amd64::{Amd64, Amd64Registers},
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
};

/// How far below its entry points an image may start, in pages: 64 MiB, several times the largest kernel.
const PAGES: u64 = 64 << 8;

/// The base of the kernel's image.
pub(super) fn kernel_base<Driver>(core: &VmiCore<Driver>, registers: &Amd64Registers) -> Result<Va, VmiError>
where
    Driver: VmiRead<Architecture = Amd64>,
{
    if !registers.is_long_mode() {
        return Err(VmiError::os("the guest is not in 64-bit mode yet: wait until its kernel runs"));
    }
    let inside = match registers.lstar {
        0 => page_fault_handler(core, registers)?,
        lstar => Va(lstar),
    };
    if inside.0 >> 63 == 0 {
        return Err(VmiError::os(format!("no kernel is running yet: the system call entry is at {inside}")));
    }
    let first = Va(inside.0 & !0xfff);
    for page in 0..PAGES {
        let base = first - page * 0x1000;
        // Discarded sections leave holes in the image.
        match is_image(core, AddressContext { va: base, root: registers.root() }, inside) {
            Ok(true) => return Ok(base),
            Ok(false) => {}
            Err(error) if error.is_page_fault() => {}
            Err(error) => return Err(error),
        }
    }
    Err(VmiError::os(format!("no Windows kernel image was found below {inside}: is the guest a 64-bit Windows?")))
}

/// The handler of vector 14 in the interrupt table (Intel SDM volume 3A, figure 6-8).
fn page_fault_handler<Driver>(core: &VmiCore<Driver>, registers: &Amd64Registers) -> Result<Va, VmiError>
where
    Driver: VmiRead<Architecture = Amd64>,
{
    let gate = AddressContext { va: Va(registers.idt_base) + 14 * 16, root: registers.root() };
    let low = core.read_u64(gate)?;
    let high = core.read_u64(AddressContext { va: gate.va + 8, ..gate })?;
    Ok(Va(low & 0xffff | low >> 32 & 0xffff_0000 | high << 32))
}

/// Whether an executable image for AMD64 starts here and reaches as far as `inside` (PE format, section 3).
fn is_image<Driver>(core: &VmiCore<Driver>, base: AddressContext, inside: Va) -> Result<bool, VmiError>
where
    Driver: VmiRead<Architecture = Amd64>,
{
    let at = |offset: u64| AddressContext { va: base.va + offset, ..base };
    if core.read_u16(base)? != 0x5a4d {
        return Ok(false);
    }
    let header = u64::from(core.read_u32(at(0x3c))?);
    if header > 0xf00 || core.read_u32(at(header))? != 0x4550 || core.read_u16(at(header + 4))? != 0x8664 {
        return Ok(false);
    }
    Ok(u64::from(core.read_u32(at(header + 0x50))?) > inside - base.va)
}
