//! AMD64 page walks (Intel SDM volume 3A, sections 4.5 and 4.5.4; the entry formats are in tables 4-14 to 4-20).
//!
//! Two forms of one walk: [`translate`] answers an address and nothing else, as fast as the driver reads;
//! [`record`] keeps every level for display and for the page-table monitor. Both are bounded by the number of
//! levels, so tables that point at themselves are harmless.

use super::Amd64;
use crate::engine::{
    addr::{AddressContext, Gfn, Pa, Va},
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
};

/// Bits 51:12 of an entry or of CR3: a physical page.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bit 0 of an entry, P.
const PRESENT: u64 = 1;

/// Bit 7 of an entry, PS (in a PT: PAT).
const LARGE: u64 = 0x80;

/// The physical address of the top page table that CR3 names: without the PCID (or PWT and PCD) in bits 11:0 and
/// without the no-flush bit 63 (Intel SDM volume 3A, section 4.10.4.1).
///
/// Kernel page-table isolation keeps two roots per process side by side; which of them a process is known by is
/// the OS layer's business (`VmiOs::process_root`).
pub const fn root_from_cr3(cr3: u64) -> Pa {
    Pa(cr3 & ADDRESS)
}

/// Whether an address is canonical: its upper bits repeat bit 47 (4 levels) or bit 56 (5 levels).
#[inline]
pub const fn is_canonical(va: Va, levels: u8) -> bool {
    let unused = if levels == 5 { 7 } else { 16 };
    let value = va.0 as i64;
    (value << unused) >> unused == value
}

/// A level of the page tables, top down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageTableLevel {
    /// 256 TiB an entry; only with LA57.
    Pml5,
    /// 512 GiB an entry.
    Pml4,
    /// 1 GiB an entry.
    Pdpt,
    /// 2 MiB an entry.
    Pd,
    /// 4 KiB an entry.
    Pt,
}

impl PageTableLevel {
    /// The levels of a walk, top down.
    pub const fn walk(levels: u8) -> &'static [Self] {
        const ALL: &[PageTableLevel] =
            &[PageTableLevel::Pml5, PageTableLevel::Pml4, PageTableLevel::Pdpt, PageTableLevel::Pd, PageTableLevel::Pt];
        if levels == 5 { ALL } else { ALL.split_at(1).1 }
    }

    /// The lowest address bit that this level's index is made of: 48, 39, 30, 21 or 12.
    pub const fn shift(self) -> u32 {
        match self {
            Self::Pml5 => 48,
            Self::Pml4 => 39,
            Self::Pdpt => 30,
            Self::Pd => 21,
            Self::Pt => 12,
        }
    }

    /// How many bytes an entry of this level maps.
    pub const fn page_bytes(self) -> u64 {
        1 << self.shift()
    }

    /// The index of an address in a table of this level.
    pub const fn index(self, va: Va) -> u64 {
        (va.0 >> self.shift()) & 0x1ff
    }

    /// The level below; `None` below PT.
    pub const fn next(self) -> Option<Self> {
        match self {
            Self::Pml5 => Some(Self::Pml4),
            Self::Pml4 => Some(Self::Pdpt),
            Self::Pdpt => Some(Self::Pd),
            Self::Pd => Some(Self::Pt),
            Self::Pt => None,
        }
    }

    /// The name used in the Intel SDM.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pml5 => "PML5",
            Self::Pml4 => "PML4",
            Self::Pdpt => "PDPT",
            Self::Pd => "PD",
            Self::Pt => "PT",
        }
    }
}

/// A page-table entry of any level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PageTableEntry(pub u64);

impl PageTableEntry {
    /// Bit 0, P.
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Whether this entry of this level maps a page (rather than naming a table): always at PT, by bit 7 (PS) at PD
    /// and PDPT. In PML4 and PML5 bit 7 is reserved.
    #[inline]
    pub const fn is_leaf(self, level: PageTableLevel) -> bool {
        match level {
            PageTableLevel::Pt => true,
            PageTableLevel::Pd | PageTableLevel::Pdpt => self.0 & LARGE != 0,
            PageTableLevel::Pml4 | PageTableLevel::Pml5 => false,
        }
    }

    /// Whether a bit is set that hardware requires to be clear: PS in PML4 and PML5. (The address bits of a large page
    /// between PAT and the page's size are reserved too; hypervisors differ, and so they are only masked out.)
    #[inline]
    pub const fn has_reserved_bits(self, level: PageTableLevel) -> bool {
        matches!(level, PageTableLevel::Pml4 | PageTableLevel::Pml5) && self.0 & LARGE != 0
    }

    /// The physical address of the table or page; of a large page without its PAT bit (bit 12).
    #[inline]
    pub const fn address(self, level: PageTableLevel) -> Pa {
        if self.is_leaf(level) { Pa(self.0 & ADDRESS & !(level.page_bytes() - 1)) } else { Pa(self.0 & ADDRESS) }
    }

    /// What the entry's bits mean at its level, for display.
    pub fn flags(self, level: PageTableLevel) -> Vec<&'static str> {
        let leaf = self.is_leaf(level);
        let bit = |n: u32| self.0 & (1 << n) != 0;
        let mut flags = Vec::new();
        flags.push(if bit(0) { "present" } else { "not-present" });
        if !bit(0) {
            return flags;
        }
        let pat = if level == PageTableLevel::Pt { 7 } else { 12 };
        let named = [
            (bit(1), "writable"),
            (bit(2), "user"),
            (bit(3), "write-through"),
            (bit(4), "cache-disable"),
            (bit(5), "accessed"),
            (leaf && bit(6), "dirty"),
            (leaf && level != PageTableLevel::Pt, "large"),
            (leaf && bit(8), "global"),
            (leaf && bit(pat), "pat"),
            (self.has_reserved_bits(level), "reserved"),
            (bit(63), "nx"),
        ];
        flags.extend(named.iter().filter(|(set, _)| *set).map(|(_, name)| *name));
        flags
    }
}

/// One level of a recorded walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslationEntry {
    /// The level.
    pub level: PageTableLevel,
    /// The entry as it was read.
    pub entry: PageTableEntry,
    /// The entry's physical address.
    pub entry_address: Pa,
}

/// Why a walk ended without a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslationFault {
    /// The address is not canonical: no walk was made.
    NonCanonical,
    /// The entry of this level is not present.
    NotPresent(PageTableLevel),
    /// The entry of this level has a reserved bit set.
    Reserved(PageTableLevel),
    /// The table of this level could not be read: beyond memory or in a device's hole.
    Unreadable(PageTableLevel),
}

/// The record of one page walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    entries: [Option<TranslationEntry>; 5],
    result: Result<(Pa, PageTableLevel), TranslationFault>,
}

impl Translation {
    /// The levels that were read, top down.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = TranslationEntry> + '_ {
        self.entries.iter().flatten().copied()
    }

    /// The physical address, if the address is mapped.
    pub fn pa(&self) -> Option<Pa> {
        self.result.ok().map(|(pa, _)| pa)
    }

    /// The level of the entry that maps the page (its size is [`PageTableLevel::page_bytes`]).
    pub fn leaf_level(&self) -> Option<PageTableLevel> {
        self.result.ok().map(|(_, level)| level)
    }

    /// Where and why the walk ended, if the address is not mapped.
    pub fn fault(&self) -> Option<TranslationFault> {
        self.result.err()
    }
}

/// What one entry means for a walk.
#[inline]
fn step(entry: PageTableEntry, level: PageTableLevel, va: Va) -> Result<Step, TranslationFault> {
    if !entry.is_present() {
        Err(TranslationFault::NotPresent(level))
    } else if entry.has_reserved_bits(level) {
        Err(TranslationFault::Reserved(level))
    } else if entry.is_leaf(level) {
        Ok(Step::Page(entry.address(level) + (va.0 & (level.page_bytes() - 1))))
    } else {
        Ok(Step::Table(entry.address(level)))
    }
}

enum Step {
    Table(Pa),
    Page(Pa),
}

/// Translates an address: [`record`]'s walk, written out for speed. `hostile_tables_are_walked_in_bounds` in the
/// session's tests holds the two together.
#[inline]
pub(super) fn translate<Driver>(vmi: &VmiCore<Driver>, va: Va, root: Pa) -> Result<Pa, VmiError>
where
    Driver: VmiRead<Architecture = Amd64>,
{
    let levels = vmi.paging_levels();
    if !is_canonical(va, levels) {
        return Err(fault(va, root));
    }
    let entry_of = |table: Pa, shift: u32| match vmi.read_entry(table + ((va.0 >> shift) & 0x1ff) * 8) {
        // Beyond memory there is nothing: bit 0 is not set.
        Err(VmiError::OutOfBounds(_)) => Ok(0),
        result => result,
    };
    let mut table = root;
    if levels == 5 {
        let entry = entry_of(table, PageTableLevel::Pml5.shift())?;
        if entry & (PRESENT | LARGE) != PRESENT {
            return Err(fault(va, root));
        }
        table = Pa(entry & ADDRESS);
    }
    for level in [PageTableLevel::Pml4, PageTableLevel::Pdpt, PageTableLevel::Pd, PageTableLevel::Pt] {
        let entry = entry_of(table, level.shift())?;
        if entry & (PRESENT | LARGE) != PRESENT || level == PageTableLevel::Pt {
            return match step(PageTableEntry(entry), level, va) {
                Ok(Step::Page(pa)) => Ok(pa),
                Ok(Step::Table(_)) | Err(_) => Err(fault(va, root)),
            };
        }
        table = Pa(entry & ADDRESS);
    }
    Err(fault(va, root))
}

#[cold]
fn fault(va: Va, root: Pa) -> VmiError {
    VmiError::page_fault(AddressContext { va, root })
}

/// Translates an address and keeps every level. Never fails: what could not be read is the record's fault.
pub(super) fn record<Driver>(vmi: &VmiCore<Driver>, va: Va, root: Pa) -> Translation
where
    Driver: VmiRead<Architecture = Amd64>,
{
    let levels = vmi.paging_levels();
    let mut walk = Translation { entries: [None; 5], result: Err(TranslationFault::NonCanonical) };
    if !is_canonical(va, levels) {
        return walk;
    }
    let mut table = root;
    for (slot, &level) in walk.entries.iter_mut().zip(PageTableLevel::walk(levels)) {
        let entry_address = table + level.index(va) * 8;
        let Ok(entry) = vmi.read_entry(entry_address) else {
            walk.result = Err(TranslationFault::Unreadable(level));
            break;
        };
        let entry = PageTableEntry(entry);
        *slot = Some(TranslationEntry { level, entry, entry_address });
        match step(entry, level, va) {
            Ok(Step::Table(next)) => table = next,
            Ok(Step::Page(pa)) => {
                walk.result = Ok((pa, level));
                break;
            }
            Err(fault) => {
                walk.result = Err(fault);
                break;
            }
        }
    }
    walk
}

impl TranslationEntry {
    /// The frame of the table that holds the entry.
    pub fn table(&self) -> Gfn {
        Gfn(self.entry_address.0 >> 12)
    }
}
