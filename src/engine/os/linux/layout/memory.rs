//! A process's memory: its regions and how they hang together.

use super::facts::Facts;

/// A process's memory (`include/linux/mm_types.h`).
pub(in super::super) struct Maps {
    pub(in super::super) index: RegionIndex,
    pub(in super::super) vm_start: u64,
    pub(in super::super) vm_end: u64,
    pub(in super::super) vm_flags: u64,
    pub(in super::super) vm_file: u64,
    pub(in super::super) vm_ops: Option<u64>,
    pub(in super::super) vm_private_data: Option<u64>,
    /// `vm_special_mapping.name`: the kernel's own pages in a process.
    pub(in super::super) special_name: Option<u64>,
    /// `vm_area_struct.anon_name`, and `anon_vma_name.name` in it: a name that the process gave it, from 5.17 on.
    pub(in super::super) given_name: Option<(u64, u64)>,
    /// Whether a region with a file has one, from 6.2 on; before that, its place in the file's tree is there.
    pub(in super::super) files_have_given_names: bool,
    /// `mm_struct.start_brk`, `.brk`, `.start_stack`.
    pub(in super::super) heap_and_stack: Option<[u64; 3]>,
}

/// How the regions of a process hang together.
pub(in super::super) enum RegionIndex {
    /// `mm_struct.mmap` and `vm_area_struct.vm_next`, up to 6.0.
    List { first: u64, next: u64 },
    /// A maple tree, from 6.1 on (`include/linux/maple_tree.h`).
    Tree { root: u64, range: MapleNode, allocation: MapleNode },
}

/// One form of a maple tree's node: arrays of pivots and, right behind, of one more slots.
#[derive(Clone, Copy)]
pub(in super::super) struct MapleNode {
    pub(in super::super) pivots: u64,
    pub(in super::super) slots: u64,
}

impl MapleNode {
    pub(super) fn new(facts: &Facts<'_>, structure: &str) -> Option<Self> {
        Some(Self { pivots: facts.at(structure, "pivot")?, slots: facts.at(structure, "slot")? })
    }
}

/// Which types of swap entries there are beside swap files (`include/linux/swap.h`): numbers without a trace, but what came
/// with them has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum SwapForm {
    /// Up to 5.18: two for pages that move.
    Plain,
    /// From 5.19 to 6.1, where a page's flag `PG_anon_exclusive` is known: three of them, markers where userfaultfd is built
    /// in, and one for errors.
    Errors,
    /// From 6.2 on, where regions with a file may have a name of their own: errors are markers.
    Markers,
}

impl SwapForm {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        let given_name = facts.at("vm_area_struct", "anon_name");
        Some(match facts.has_enumerator("PG_anon_exclusive")? {
            false => Self::Plain,
            true if given_name.is_some() && given_name == facts.at("vm_area_struct", "shared") => Self::Errors,
            true => Self::Markers,
        })
    }
}

impl Maps {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        let list = || {
            Some(RegionIndex::List {
                first: facts.at("mm_struct", "mmap")?,
                next: facts.at("vm_area_struct", "vm_next")?,
            })
        };
        let tree = || {
            Some(RegionIndex::Tree {
                root: facts.at("mm_struct", "mm_mt.ma_root")?,
                range: MapleNode::new(facts, "maple_range_64")?,
                allocation: MapleNode::new(facts, "maple_arange_64")?,
            })
        };
        let mm = |name| facts.at("mm_struct", name);
        let heap_and_stack = || Some([mm("start_brk")?, mm("brk")?, mm("start_stack")?]);
        let vma = |name| facts.at("vm_area_struct", name);
        Some(Self {
            index: tree().or_else(list)?,
            vm_start: vma("vm_start")?,
            vm_end: vma("vm_end")?,
            vm_flags: vma("vm_flags")?,
            vm_file: vma("vm_file")?,
            vm_ops: vma("vm_ops"),
            vm_private_data: vma("vm_private_data"),
            special_name: facts.at("vm_special_mapping", "name"),
            files_have_given_names: vma("anon_name") != vma("shared"),
            given_name: vma("anon_name").zip(facts.at("anon_vma_name", "name")),
            heap_and_stack: heap_and_stack(),
        })
    }
}
