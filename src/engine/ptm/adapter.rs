//! What the page table monitor must know of an architecture: how an entry is found and what it means.

use crate::engine::{
    addr::{Gfn, Pa, Va},
    arch::{
        Architecture,
        amd64::{Amd64, PageTableEntry, PageTableLevel, is_canonical, root_from_cr3},
    },
};

/// What an entry means for the addresses behind it. Accessed, dirty and permission bits are no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryMeaning {
    /// Nothing is mapped.
    Absent,
    /// The next level's table is in this frame.
    Table(Gfn),
    /// A page of `1 << shift` bytes is mapped.
    Page {
        /// The page's first address.
        base: Pa,
        /// Binary logarithm of the page's size.
        shift: u8,
    },
}

/// What an address maps to, and the binary logarithm of the page's size.
pub(super) type Mapping = (Pa, u8);

impl EntryMeaning {
    /// What an address maps to, if this is the last entry of its walk.
    #[inline]
    pub(super) fn maps(self, va: Va) -> Option<Mapping> {
        match self {
            Self::Page { base, shift } => Some((base + (va.0 & ((1 << shift) - 1)), shift)),
            Self::Absent | Self::Table(_) => None,
        }
    }
}

/// An architecture whose page tables can be monitored: a tree of at most 6 levels of tables, each one page of 8-byte
/// entries. A level is named by its height: 1 is the lowest, a walk starts at the highest.
pub trait ArchAdapter: Architecture {
    /// Whether some page table could map the address at all.
    fn is_canonical(va: Va, levels: u8) -> bool;

    /// The frame of the top table, given a translation root.
    fn top_table(root: Pa) -> Gfn;

    /// The number of the entry that an address selects in a table of this level, below 512.
    fn index(va: Va, level: u8) -> u16;

    /// The first address of the range that an entry of this level translates.
    fn range_start(va: Va, level: u8) -> Va;

    /// What an entry means.
    fn meaning(entry: u64, level: u8) -> EntryMeaning;

    /// The manual's name of a level.
    fn level_name(level: u8) -> &'static str;
}

/// The level of a height.
#[inline]
fn amd64_level(level: u8) -> PageTableLevel {
    match level {
        1 => PageTableLevel::Pt,
        2 => PageTableLevel::Pd,
        3 => PageTableLevel::Pdpt,
        4 => PageTableLevel::Pml4,
        _ => PageTableLevel::Pml5,
    }
}

impl ArchAdapter for Amd64 {
    #[inline]
    fn is_canonical(va: Va, levels: u8) -> bool {
        is_canonical(va, levels)
    }

    #[inline]
    fn top_table(root: Pa) -> Gfn {
        Self::gfn_from_pa(root_from_cr3(root.0))
    }

    #[inline]
    fn index(va: Va, level: u8) -> u16 {
        amd64_level(level).index(va) as u16
    }

    #[inline]
    fn range_start(va: Va, level: u8) -> Va {
        Va(va.0 & !(amd64_level(level).page_bytes() - 1))
    }

    #[inline]
    fn meaning(entry: u64, level: u8) -> EntryMeaning {
        let (entry, level) = (PageTableEntry(entry), amd64_level(level));
        if !entry.is_present() || entry.has_reserved_bits(level) {
            EntryMeaning::Absent
        } else if entry.is_leaf(level) {
            EntryMeaning::Page { base: entry.address(level), shift: level.shift() as u8 }
        } else {
            EntryMeaning::Table(Self::gfn_from_pa(entry.address(level)))
        }
    }

    fn level_name(level: u8) -> &'static str {
        amd64_level(level).name()
    }
}
