//! The address ranges of a process: the tree of VADs, and the files that images are mapped from.

use std::collections::{HashMap, HashSet};

use super::memory::{Memory, present};
use crate::engine::{
    addr::Va,
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    snapshot::{Module, Region},
};

/// Nodes of the tree that are read at most: far beyond what real processes have.
const MOST_REGIONS: usize = 1 << 14;
/// The lower bits of an `_EX_FAST_REF` count references.
const FAST_REFERENCES: u64 = 0xf;

/// `_MMVAD_FLAGS.Protection`, its lower three bits.
const PROTECTIONS: [&str; 8] = ["---", "r--", "--x", "r-x", "rw-", "rwc", "rwx", "rwxc"];
/// `_MMVAD_FLAGS.VadType` of a mapped image (VadImageMap).
const IMAGE: u32 = 2;

/// The ranges in order, and the images among them.
#[derive(Default)]
pub(super) struct Mappings {
    pub(super) regions: Vec<Region>,
    pub(super) images: Vec<Module>,
    pub(super) truncated: bool,
}

impl<Driver: VmiRead<Architecture = Amd64>> Memory<'_, Driver> {
    /// The tree under `_EPROCESS.VadRoot`. A node that cannot be read is left out with what is below it.
    pub(super) fn mappings(&self, process: Va) -> Result<Mappings, VmiError> {
        let o = &self.os.offsets;
        let mut found = Mappings::default();
        let mut files = HashMap::new();
        let mut seen = HashSet::new();
        let mut open = vec![self.pointer(process + o.vad_root)?];
        while let Some(node) = open.pop() {
            if node.is_null() {
                continue;
            }
            if found.regions.len() >= MOST_REGIONS || !seen.insert(node) {
                found.truncated = true;
                continue;
            }
            if present(self.region(node, &mut files, &mut found))?.is_none() {
                found.truncated = true;
                continue;
            }
            for side in [o.vad_left, o.vad_right] {
                open.extend(present(self.pointer(node + side))?);
            }
        }
        found.regions.sort_by_key(|region| region.start);
        found.images.sort_by_key(|image| image.base);
        Ok(found)
    }

    fn region(&self, node: Va, files: &mut HashMap<Va, String>, found: &mut Mappings) -> Result<(), VmiError> {
        let o = &self.os.offsets;
        let number = |low: u64, high: u64| -> Result<u64, VmiError> {
            Ok(u64::from(self.u8(node + high)?) << 32 | u64::from(self.u32(node + low)?))
        };
        let start = Va(number(o.vad_start, o.vad_start_high)? << 12);
        let end = Va((number(o.vad_end, o.vad_end_high)? + 1) << 12);
        let flags = self.u32(node + o.vad_flags)?;
        let is_private = flags >> 20 & 1 != 0;
        let is_image = flags >> 4 & 7 == IMAGE;
        let name = if is_private { String::new() } else { self.mapped_file(node, files)? };
        // A name may be that of a region, of a file that is known, and of an image.
        self.core.keep(size_of::<Region>() + 3 * name.len())?;
        if is_image {
            let own = name.rsplit('\\').next().unwrap_or_default().to_owned();
            found.images.push(Module { base: start, size: end - start, name: own, ..Module::default() });
        }
        let protection = PROTECTIONS.get((flags >> 7 & 7) as usize).copied().unwrap_or("---");
        let protection = format!("{protection}{}", if is_private { "p" } else { "s" });
        found.regions.push(Region { start, end, protection, name });
        Ok(())
    }

    /// The file behind a mapped range, without its device: subsection, control area, file object. Memory that only the page
    /// file backs has none.
    fn mapped_file(&self, node: Va, files: &mut HashMap<Va, String>) -> Result<String, VmiError> {
        let o = &self.os.offsets;
        let subsection = self.pointer(node + o.vad_subsection)?;
        if let Some(known) = files.get(&subsection) {
            return Ok(known.clone());
        }
        let name = || {
            let area = self.pointer(subsection + o.subsection_area)?;
            let file = Va(self.u64(area + o.area_file)? & !FAST_REFERENCES);
            if file.is_null() { Ok(String::new()) } else { self.string(file + o.file_name) }
        };
        let name = if subsection.is_null() { String::new() } else { present(name())?.unwrap_or("?".to_owned()) };
        files.insert(subsection, name.clone());
        Ok(name)
    }
}
