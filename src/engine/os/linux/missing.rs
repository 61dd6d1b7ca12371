//! Pages that an address space does not map: what the kernel has in the entry in the place of an address, and what it
//! would do at a page fault.
//!
//! An entry that is not present is Linux's own (`arch/x86/include/asm/pgtable_64.h`): nothing; a page whose bit P was
//! taken away (PROT_NONE, a NUMA hint), told by bit 8; or a swap entry with a type in bits 63 to 59 and an offset in bits
//! 58 to 9. In the latter two the address and the offset are inverted, against L1TF. The highest types are no swap files
//! (`include/linux/swap.h`); how many there are of each is up to version and configuration.

use super::{
    kernel::Kernel,
    layout::{Layout, Maps, SwapForm},
};
use crate::engine::{
    addr::{AddressContext, Pa, Va},
    arch::{
        Architecture,
        amd64::{Amd64, PageTableLevel, TranslationFault},
    },
    driver::VmiRead,
    error::VmiError,
    os::VmiOs,
    snapshot::{MissingPage, clean},
    symbols::SymbolTable,
};

/// Bits 51:12 of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// `_PAGE_PSE` and, where P is clear, `_PAGE_PROTNONE`.
const LARGE: u64 = 1 << 7;
const PROT_NONE: u64 = 1 << 8;
/// `MAX_SWAPFILES_SHIFT`: 32 types.
const TYPES: u64 = 32;
/// The bits of a marker (`PTE_MARKER_…` in `include/linux/swapops.h`).
const MARKER_WRITE_PROTECTED: u64 = 1;
const MARKER_LOST: u64 = 2;
const MARKER_GUARD: u64 = 4;

/// `VM_READ`, `VM_WRITE` and `VM_EXEC`: a region without any of them is there to be faulted on (`vma_is_accessible`).
const VM_ACCESS: u64 = 7;
/// `VM_UFFD_MISSING`: a thread that faults here sleeps until some other one serves it.
const VM_UFFD_MISSING: u64 = 0x200;
/// `VM_PFNMAP` and `VM_IO`: what is mapped is a device's, or no memory at all.
const VM_DEVICE: u64 = 0x4400;

/// What an entry of a type that is no swap file's stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Special {
    /// `SWP_SWAPIN_ERROR`: it could not be read back.
    Lost,
    /// `SWP_PTE_MARKER`: no page, but something to remember of it.
    Marker,
    /// `SWP_DEVICE_…`: in the memory of a device.
    DevicePrivate,
    /// `SWP_DEVICE_EXCLUSIVE…`: in memory, and a device's for the moment.
    DeviceExclusive,
    /// `SWP_MIGRATION_…`: on its way from one frame to another.
    Migration,
    /// `SWP_HWPOISON`: its memory is broken.
    Poisoned,
}

/// What the types of swap entries stand for, from the highest down; those below are swap files. `None` where the kernel
/// does not tell.
pub(super) struct SwapTypes(Option<Vec<Special>>);

impl SwapTypes {
    /// What a kernel has by its form and by what it was built with: each kind has functions of its own.
    pub(super) fn new(symbols: &SymbolTable, layout: &Layout) -> Self {
        let has = |name: &str| symbols.lookup(name).is_some();
        let Some(form) = layout.swap_form else { return Self(None) };
        let (private, exclusive) = if has("make_device_exclusive") {
            (2, 1)
        } else if has("make_device_exclusive_range") {
            (2, 2)
        } else if form == SwapForm::Plain && has("migrate_vma_setup") {
            (2, 0)
        } else {
            (0, 0)
        };
        let (errors, markers, moving) = match form {
            SwapForm::Plain => (0, 0, 2),
            SwapForm::Errors => (1, usize::from(has("handle_userfault")), 3),
            SwapForm::Markers => (0, 1, 3),
        };
        let kinds = [
            (Special::Lost, errors),
            (Special::Marker, markers),
            (Special::DeviceExclusive, exclusive),
            (Special::DevicePrivate, private),
            (Special::Migration, if has("migrate_pages") { moving } else { 0 }),
            (Special::Poisoned, usize::from(has("memory_failure"))),
        ];
        Self(Some(kinds.into_iter().flat_map(|(kind, count)| std::iter::repeat_n(kind, count)).collect()))
    }

    fn special(&self, number: u64) -> Option<Special> {
        let below = TYPES.checked_sub(number + 1)?;
        self.0.as_ref()?.get(usize::try_from(below).ok()?).copied()
    }
}

/// What the kernel knows of an address of a process.
struct Area {
    flags: u64,
    file: Option<Va>,
}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// Why the kernel would send a signal for a read at an address of a process.
    pub(super) fn unservable(&self, page: AddressContext) -> Result<Option<String>, VmiError> {
        Ok(self.missing_page(page)?.filter(|missing| !missing.comes_by_fault).map(|missing| missing.sentence()))
    }

    /// What there is of a page that is not mapped; `None` where it is mapped.
    pub(super) fn missing_page(&self, page: AddressContext) -> Result<Option<MissingPage>, VmiError> {
        let translation = Amd64::translation(self.core, page.va, page.root);
        let entry = translation.entries().last().map(|last| (last.level, last.entry.0));
        let (level, entry) = match (translation.fault(), entry) {
            (Some(TranslationFault::NotPresent(level)), Some((_, entry))) => (level, entry),
            _ => return Ok(None),
        };
        if VmiOs::<Driver>::is_kernel_address(self.os, page.va) {
            let advice = "a kernel that does not page itself takes a page fault there for a bug of its own";
            return Ok(Some(never("it is the kernel's, which does not map it", advice)));
        }
        let Some(process) = self.process_in(page.root)? else {
            return Ok(Some(never("its process has ended", "nothing brings it in")));
        };
        let Some(area) = self.area(process.mm, page.va)? else {
            return Ok(Some(never("no memory region of the process covers it", SEGMENTATION)));
        };
        let mut missing = self.found(page.va, level, entry, &area);
        if let Some(pa) = missing.pa {
            let mapped = Some(self.os.direct_map + pa.0).filter(|&va| self.core.read_u8((va, self.os.root)).is_ok());
            missing.readable_at = mapped;
        }
        Ok(Some(missing))
    }

    /// What an entry says in a region of a process.
    fn found(&self, va: Va, level: PageTableLevel, entry: u64, area: &Area) -> MissingPage {
        let is_open = area.flags & VM_ACCESS != 0;
        let is_leaf = level == PageTableLevel::Pt || entry & LARGE != 0;
        let size = if level == PageTableLevel::Pt { "" } else { "huge " };
        let inside = va.0 & (level.page_bytes() - 1);
        let at = |frame: u64| Some(Pa((frame & ADDRESS & !(level.page_bytes() - 1)) | inside));
        match entry {
            0 => self.empty(area, ""),
            _ if is_leaf && entry & PROT_NONE != 0 && is_open => MissingPage {
                pa: at(!entry),
                ..comes(
                    &format!("a NUMA hint: the {size}page is in memory, and unmapped to see who uses it"),
                    "a page fault maps it again",
                )
            },
            _ if is_leaf && entry & PROT_NONE != 0 => MissingPage {
                pa: at(!entry),
                ..never(
                    &format!("its memory region allows no access (PROT_NONE), but the {size}page is there"),
                    SEGMENTATION,
                )
            },
            _ if entry & LARGE != 0 => MissingPage {
                pa: at(!entry),
                ..comes(
                    "a huge page that the kernel is about to change or to split",
                    "look again: it is back in a moment",
                )
            },
            _ => self.swapped(entry, area, at),
        }
    }

    /// What a swap entry says; `at` is where the address's byte is in a frame.
    fn swapped(&self, entry: u64, area: &Area, at: impl Fn(u64) -> Option<Pa>) -> MissingPage {
        // `__swp_type` and `__swp_offset`.
        let (number, offset) = (entry >> 59, (!entry << 5) >> 14);
        // `SWP_PFN_BITS`: above are bits on the page that moves (from 6.1 on).
        let frames = if self.core.paging_levels() == 5 { 40 } else { 34 };
        let pa = at((offset & ((1 << frames) - 1)) << 12);
        let found = match self.os.swap_types.special(number) {
            Some(Special::Marker) if offset & MARKER_GUARD != 0 => {
                never("it is a guard page (MADV_GUARD_INSTALL): there is no page", SEGMENTATION)
            }
            Some(Special::Lost) => never("its contents are lost: it could not be read back from swap", BUS),
            Some(Special::Marker) if offset & MARKER_LOST != 0 => {
                never("its contents are lost: it could not be read back from swap, or its process has poisoned it", BUS)
            }
            Some(Special::Marker) => {
                let known = offset & MARKER_WRITE_PROTECTED != 0;
                let said =
                    if known { "userfaultfd has it write-protected" } else { "a marker of a kind not known here" };
                self.empty(area, &format!("{said}: "))
            }
            Some(Special::DevicePrivate) => {
                comes("in the memory of a device", "a page fault has the guest bring it back")
            }
            Some(Special::DeviceExclusive) => MissingPage {
                pa,
                ..comes("in memory, and a device's alone for the moment", "a page fault takes it back from the device")
            },
            Some(Special::Migration) => MissingPage {
                pa,
                ..comes("on its way to another frame (migration)", "look again: it is back in a moment")
            },
            Some(Special::Poisoned) => MissingPage { pa, ..never("its memory is broken (hwpoison)", BUS) },
            None if number < self.swap_files() => comes(
                &format!("swapped out to {}, page {offset:#x}", self.swap_file(number)),
                "a page fault has the guest read it back",
            ),
            None => comes(
                &format!(
                    "a swap entry of type {number}, offset {offset:#x}, of which this kernel does not tell what it is"
                ),
                "a page fault may bring it in",
            ),
        };
        if found.comes_by_fault && area.flags & VM_ACCESS == 0 {
            let what = format!("its memory region allows no access (PROT_NONE); {}", found.what);
            return MissingPage { pa: found.pa, ..never(&what, SEGMENTATION) };
        }
        found
    }

    /// There is no page; the region tells what would be.
    fn empty(&self, area: &Area, before: &str) -> MissingPage {
        let file = area.file.map(|file| self.mapped_name(file).unwrap_or_else(|| "a file".to_owned()));
        let said = |what: &str| format!("{before}{what}");
        match file {
            _ if area.flags & VM_ACCESS == 0 => {
                never(&said("its memory region allows no access (PROT_NONE), and there is no page"), SEGMENTATION)
            }
            _ if area.flags & VM_UFFD_MISSING != 0 => never(
                &said("there is no page, and the process serves the faults of its memory region itself (userfaultfd)"),
                "a thread that faults there sleeps until another one of the process serves it",
            ),
            _ if area.flags & VM_DEVICE != 0 => {
                comes(&said("a device's, and not mapped yet"), "a page fault asks its driver for it")
            }
            Some(file) => comes(
                &said(&format!("a page of {}, not mapped here yet", clean(&file, 120))),
                "a page fault has the guest read or find it; beyond the file's end it refuses",
            ),
            None => comes(&said("never touched, or given back: there is no page"), "a page fault maps a page of zeros"),
        }
    }

    /// The region that covers an address.
    fn area(&self, mm: Va, va: Va) -> Result<Option<Area>, VmiError> {
        let Some((layout, area)) = self.area_at(mm, va)? else { return Ok(None) };
        let Maps { vm_flags, vm_file, .. } = layout;
        let file = self.pointer(area + *vm_file)?;
        Ok(Some(Area { flags: self.pointer(area + *vm_flags)?.0, file: Some(file).filter(|file| !file.is_null()) }))
    }

    /// How many swap files the kernel has had; none where it does not tell.
    fn swap_files(&self) -> u64 {
        let count = self.os.symbols.lookup("nr_swapfiles").and_then(|va| self.u32(va).ok());
        count.map_or(0, |count| u64::from(count).min(TYPES))
    }

    /// The name of a swap file.
    fn swap_file(&self, number: u64) -> String {
        let name = || {
            let info = self.existing(self.os.symbols.lookup("swap_info")? + number * 8)?;
            self.file_name(self.existing(info + self.os.layout.swap_file?)?)
        };
        name().map_or_else(|| format!("swap file {number}"), |name| clean(&name, 120))
    }
}

/// What a signal does.
const SEGMENTATION: &str = "no page fault brings it in: its process would get SIGSEGV";
const BUS: &str = "no page fault brings it in: its process would get SIGBUS";

fn comes(what: &str, advice: &str) -> MissingPage {
    MissingPage { what: what.to_owned(), comes_by_fault: true, advice: advice.to_owned(), ..MissingPage::default() }
}

fn never(what: &str, advice: &str) -> MissingPage {
    MissingPage { comes_by_fault: false, ..comes(what, advice) }
}
