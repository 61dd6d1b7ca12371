//! The memory regions of a process (`struct vm_area_struct`).
//!
//! Up to Linux 6.0 they are a list, from 6.1 on a maple tree (`lib/maple_tree.c`): nodes of 256 bytes that hold rising
//! pivots and one more slot than pivots; the low byte of a pointer to a node tells which of two forms it has.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;

use super::{
    bytes::u64_at,
    kernel::Kernel,
    layout::{MapleNode, Maps, RegionIndex},
};
use crate::engine::{
    addr::Va,
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    snapshot::{Module, Region, clean},
};

/// Regions that are listed at most.
const MOST_REGIONS: usize = 8192;
/// Characters of a name of a region that are kept: those of `ANON_VMA_NAME_MAX_LEN`, without the zero.
const LONGEST_NAME: usize = 79;
/// Nodes of the tree that are read at most.
const MOST_NODES: usize = 4096;
/// Bytes of a tree's node, to which it is aligned.
const NODE_BYTES: u64 = 256;
/// `maple_leaf_64`, `maple_range_64` and `maple_arange_64` in `include/linux/maple_tree.h`.
const LEAF: u64 = 1;
const RANGE: u64 = 2;
const ALLOCATION: u64 = 3;

const VM_READ: u64 = 1;
const VM_WRITE: u64 = 2;
const VM_EXEC: u64 = 4;
/// `VM_MAYSHARE`: what `/proc` shows as shared.
const VM_SHARED: u64 = 0x80;

/// The regions of a process and the images among them.
#[derive(Default)]
pub(super) struct Mappings {
    pub(super) regions: Vec<Region>,
    pub(super) modules: Vec<Module>,
    pub(super) truncated: bool,
}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// The regions of an address space (`struct mm_struct`) in order of address.
    pub(super) fn mappings(&self, mm: Va) -> Option<Mappings> {
        let layout = self.os.layout.maps.as_ref()?;
        let (areas, mut truncated) = self.areas(layout, mm);
        let mut names: HashMap<Va, String> = HashMap::new();
        let mut images: IndexMap<Va, (Module, bool)> = IndexMap::new();
        let mut regions = Vec::new();
        for area in areas {
            let number = |offset: u64| self.pointer(area + offset).ok().map(|value| value.0);
            let fields =
                (number(layout.vm_start), number(layout.vm_end), number(layout.vm_flags), number(layout.vm_file));
            let (Some(start), Some(end), Some(flags), Some(file)) = fields else {
                truncated = true;
                continue;
            };
            let may_be_given = file == 0 || layout.files_have_given_names;
            let given = if may_be_given { self.given_name(layout, area) } else { None };
            let name = if file == 0 {
                self.area_purpose(layout, mm, area, start, end, given)
            } else if let Some(given) = given {
                format!("[anon_shmem:{given}]")
            } else {
                let file = Va(file);
                let name = names
                    .entry(file)
                    .or_insert_with(|| self.mapped_name(file).unwrap_or_else(|| "?".to_owned()))
                    .clone();
                let runs = flags & VM_EXEC != 0;
                let (image, is_image) = images.entry(file).or_insert_with(|| {
                    let name = name.clone();
                    (Module { base: Va(start), size: 0, name, hidden: false }, false)
                });
                image.size = image.size.max(end.wrapping_sub(image.base.0));
                *is_image |= runs;
                name
            };
            // A name may be that of a region, of a file that is known, and of an image.
            if self.core.keep(size_of::<Region>() + 3 * name.len()).is_err() {
                truncated = true;
                break;
            }
            let letter = |bit, c| if flags & bit != 0 { c } else { '-' };
            let protection = [
                letter(VM_READ, 'r'),
                letter(VM_WRITE, 'w'),
                letter(VM_EXEC, 'x'),
                if flags & VM_SHARED != 0 { 's' } else { 'p' },
            ];
            regions.push(Region { start: Va(start), end: Va(end), protection: protection.iter().collect(), name });
        }
        let modules = images.into_values().filter(|(_, is_image)| *is_image).map(|(image, _)| image).collect();
        Some(Mappings { regions, modules, truncated })
    }

    /// The region (`struct vm_area_struct`) that covers an address; `None` where none does.
    pub(super) fn area_at(&self, mm: Va, va: Va) -> Result<Option<(&Maps, Va)>, VmiError> {
        let unknown = || VmiError::os(format!("the memory regions around {va} cannot be read: retry later"));
        let layout = self.os.layout.maps.as_ref().ok_or_else(unknown)?;
        let (areas, truncated) = self.areas(layout, mm);
        for area in areas {
            if self.pointer(area + layout.vm_start)? <= va && va < self.pointer(area + layout.vm_end)? {
                return Ok(Some((layout, area)));
            }
        }
        if truncated { Err(unknown()) } else { Ok(None) }
    }

    /// The name that the process has given to a region of memory without a file (`PR_SET_VMA_ANON_NAME`).
    fn given_name(&self, layout: &Maps, area: Va) -> Option<String> {
        let (pointer, name) = layout.given_name?;
        let given = self.existing(area + pointer)? + name;
        self.text(given, LONGEST_NAME).map(|name| clean(&name, LONGEST_NAME))
    }

    /// What a region without a file is for, as `/proc/PID/maps` says it (`get_vma_name` in `fs/proc/task_mmu.c`).
    fn area_purpose(&self, layout: &Maps, mm: Va, area: Va, start: u64, end: u64, given: Option<String>) -> String {
        let special = || {
            let special_operations = self.os.symbols.lookup("special_mapping_vmops")?;
            if self.pointer(area + layout.vm_ops?).ok()? != special_operations {
                return None;
            }
            let mapping = self.pointer(area + layout.vm_private_data?).ok()?;
            self.text(self.pointer(mapping + layout.special_name?).ok()?, LONGEST_NAME)
        };
        let known = || {
            let [heap, heap_end, stack] =
                layout.heap_and_stack?.map(|offset| self.pointer(mm + offset).map_or(0, |value| value.0));
            if start <= heap_end && end >= heap {
                Some("[heap]".to_owned())
            } else {
                (start <= stack && stack <= end).then(|| "[stack]".to_owned())
            }
        };
        let given = || given.map(|name| format!("[anon:{name}]"));
        special().or_else(known).map(|name| clean(&name, LONGEST_NAME)).or_else(given).unwrap_or_default()
    }

    fn areas(&self, layout: &Maps, mm: Va) -> (Vec<Va>, bool) {
        match &layout.index {
            RegionIndex::List { first, next } => self.area_list(mm + *first, *next),
            RegionIndex::Tree { root, range, allocation } => self.area_tree(mm + *root, *range, *allocation),
        }
    }

    fn area_list(&self, first: Va, next: u64) -> (Vec<Va>, bool) {
        let mut areas = Vec::new();
        let mut seen = HashSet::new();
        let mut at = first;
        loop {
            match self.pointer(at) {
                Ok(area) if area.is_null() => return (areas, false),
                Ok(area) if areas.len() < MOST_REGIONS && seen.insert(area) => {
                    areas.push(area);
                    at = area + next;
                }
                _ => return (areas, true),
            }
        }
    }

    fn area_tree(&self, root: Va, range: MapleNode, allocation: MapleNode) -> (Vec<Va>, bool) {
        let mut areas = Vec::new();
        let Ok(root) = self.pointer(root) else { return (areas, true) };
        // A tree without a node holds one entry at index 0: no region is there.
        if root.0 & 3 != 2 || root.0 <= 4096 {
            return (areas, false);
        }
        let mut bytes = [0; NODE_BYTES as usize];
        // Depth first, the last pushed first: children go on in reverse, so that addresses rise.
        let mut nodes = vec![(root.0, u64::MAX)];
        let mut nodes_read = 0;
        while let Some((entry, last)) = nodes.pop() {
            let kind = entry >> 3 & 0xf;
            let form = match kind {
                LEAF | RANGE => range,
                ALLOCATION => allocation,
                _ => return (areas, true),
            };
            nodes_read += 1;
            let is_read = self.read(Va(entry & !(NODE_BYTES - 1)), &mut bytes).is_ok();
            if !is_read || nodes_read > MOST_NODES || areas.len() > MOST_REGIONS {
                return (areas, true);
            }
            let pivots = form.slots.saturating_sub(form.pivots) / 8;
            let children = nodes.len();
            for i in 0..=pivots.min(NODE_BYTES / 8) {
                // The last slot ends where the node does; so does one whose pivot was never set.
                let pivot = (i < pivots).then(|| u64_at(&bytes, (form.pivots + i * 8) as usize)).flatten();
                let end = pivot.filter(|&pivot| pivot != 0 || i == 0).unwrap_or(last);
                let slot = u64_at(&bytes, (form.slots + i * 8) as usize).unwrap_or(0);
                if slot != 0 && kind == LEAF && slot & 3 == 0 {
                    areas.push(Va(slot));
                } else if slot != 0 && kind != LEAF {
                    nodes.push((slot, end));
                }
                if end >= last {
                    break;
                }
            }
            if let Some(children) = nodes.get_mut(children..) {
                children.reverse();
            }
        }
        (areas, false)
    }
}
