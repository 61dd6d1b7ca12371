//! Objects of the whole system and their names: object types, directories, devices, files, registry keys, and the
//! sections that images are mapped by. Made at boot in a pool of their own and never freed.
//!
//! In front of each object lies its `_OBJECT_HEADER`; a name, and who made it, lie in front of that (bits of `InfoMask`).

use std::collections::BTreeMap;

use super::facts::Facts;
use crate::engine::{driver::sim::memory::Memory, error::VmiError};

/// Pages of the pool.
pub(super) const POOL_PAGES: u64 = 32;

/// Bits of `_OBJECT_HEADER.InfoMask`, in the order in which the parts lie in front of the header, nearest first.
const CREATOR_INFO: u8 = 1;
const NAME_INFO: u8 = 2;
/// Size of each of the two parts.
const INFO_BYTES: u64 = 0x20;

/// IO_TYPE_DEVICE, IO_TYPE_FILE.
const DEVICE_TYPE: u16 = 3;
const FILE_TYPE: u16 = 5;
/// The signature of a `_CM_KEY_BODY`: "ky02".
const KEY_SIGNATURE: u32 = 0x6b79_3032;

/// Object types: index in `ObTypeIndexTable`, name. Indexes 0 and 1 are no types.
pub(super) const TYPES: &[(u8, &str)] = &[
    (2, "Type"),
    (3, "Directory"),
    (4, "SymbolicLink"),
    (5, "Token"),
    (6, "Job"),
    (7, "Process"),
    (8, "Thread"),
    (16, "Event"),
    (17, "Mutant"),
    (33, "Device"),
    (37, "File"),
    (42, "Section"),
    (44, "Key"),
    (46, "ALPC Port"),
];

/// A string in guest memory: where, and how many bytes.
pub(super) type Text = (u64, u64);

/// What every object needs to be made, and the objects that are there.
#[derive(Debug)]
pub(super) struct Namespace {
    /// Virtual and physical address of the pool.
    va: u64,
    pa: u64,
    used: u64,
    /// `ObHeaderCookie`, in its lowest byte.
    pub(super) cookie: u8,
    /// Objects by their full names.
    named: BTreeMap<String, u64>,
}

/// Where an object goes and what it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Virtual and physical address of its body.
    pub(super) va: u64,
    pub(super) pa: u64,
    pub(super) kind: &'static str,
}

impl Namespace {
    pub(super) fn new((va, pa): (u64, u64), cookie: u8) -> Self {
        Self { va, pa, used: 0, cookie, named: BTreeMap::new() }
    }

    /// An object by its full name; 0 where there is none.
    pub(super) fn find(&self, name: &str) -> u64 {
        self.named.get(name).copied().unwrap_or(0)
    }

    /// Room in the pool: virtual and physical address.
    pub(super) fn take(&mut self, bytes: u64) -> Result<(u64, u64), VmiError> {
        let at = self.used;
        self.used = (at + bytes).next_multiple_of(16);
        if self.used > POOL_PAGES << 12 {
            return Err(VmiError::Invalid("the built-in guest's pool of objects is full".to_owned()));
        }
        Ok((self.va + at, self.pa + at))
    }

    /// A string in the pool.
    pub(super) fn text(&mut self, memory: &mut Memory, text: &str) -> Result<Text, VmiError> {
        let bytes = utf16(text);
        let (va, pa) = self.take(bytes.len() as u64)?;
        memory.write(pa, &bytes)?;
        Ok((va, bytes.len() as u64))
    }

    /// The types and the tree of directories, devices and keys that a booted system has.
    pub(super) fn furnish(&mut self, memory: &mut Memory, f: &Facts, image: u64) -> Result<(), VmiError> {
        memory.write(image + f.symbol("ObHeaderCookie")?, &u32::from(self.cookie).to_le_bytes())?;
        let table = image + f.symbol("ObTypeIndexTable")?;
        // The second entry is what a damaged header leads to.
        memory.write_u64(table + 8, 0xffff_ffff_ffff_fff0);
        let bytes = f.size("_OBJECT_TYPE")?;
        for &(index, name) in TYPES {
            let text = self.text(memory, name)?;
            let (va, pa) = self.take(f.header_body + bytes)?;
            let place = Place { va: va + f.header_body, pa: pa + f.header_body, kind: "Type" };
            self.head(memory, f, place, 0);
            string(memory, f, place.pa + f.type_name, text);
            memory.write(place.pa + f.type_index, &[index])?;
            memory.write_u64(table + u64::from(index) * 8, place.va);
        }
        for name in ["\\", "\\Device", "\\KnownDlls", "\\BaseNamedObjects", "\\Sessions", "\\Sessions\\1"] {
            self.name(memory, f, name, "Directory", f.size("_LIST_ENTRY")?)?;
        }
        self.name(memory, f, "\\Sessions\\1\\BaseNamedObjects", "Directory", 0x10)?;
        let volume = self.name(memory, f, "\\Device\\HarddiskVolume2", "Device", f.size("_DEVICE_OBJECT")?)?;
        memory.write(volume.pa + f.device_type, &DEVICE_TYPE.to_le_bytes())?;
        memory.write(volume.pa + f.device_size, &(f.size("_DEVICE_OBJECT")? as u16).to_le_bytes())?;
        self.name(memory, f, "\\KnownDlls\\kernel32.dll", "Section", 0x40)?;
        self.name(memory, f, "\\BaseNamedObjects\\__ComCatalogCache__", "Section", 0x40)?;
        for path in ["\\pagefile.sys", "\\Windows\\System32", "\\$Directory"] {
            self.file(memory, f, path)?;
        }
        self.key(memory, f, &["REGISTRY", "MACHINE", "SYSTEM", "ControlSet001", "Control", "Session Manager"])?;
        self.key(memory, f, &["REGISTRY", "MACHINE", "SOFTWARE", "Microsoft", "Ole"])
    }

    /// Writes an object's header; `info` are bits of its mask.
    pub(super) fn head(&self, memory: &mut Memory, f: &Facts, place: Place, info: u8) {
        let header = place.pa - f.header_body;
        let va = place.va - f.header_body;
        let index = TYPES.iter().find(|&&(_, name)| name == place.kind).map_or(0, |&(index, _)| index);
        memory.write_u64(header + f.header_pointers, 0x7fff);
        memory.write_u64(header + f.header_handles, 1);
        // The second byte of the header's own address and the cookie make a copied index worthless.
        let _ = memory.write(header + f.header_type, &[index ^ (va >> 8) as u8 ^ self.cookie]);
        let _ = memory.write(header + f.header_mask, &[info]);
    }

    /// Writes a header with a name in front of it, which lies in a directory.
    pub(super) fn head_named(&self, memory: &mut Memory, f: &Facts, place: Place, directory: u64, text: Text) {
        self.head(memory, f, place, NAME_INFO);
        let info = place.pa - f.header_body - INFO_BYTES;
        memory.write_u64(info + f.name_directory, directory);
        string(memory, f, info + f.name_name, text);
    }

    /// Makes an object with a name, with who made it between the name and the header.
    fn name(
        &mut self,
        memory: &mut Memory,
        f: &Facts,
        path: &str,
        kind: &'static str,
        bytes: u64,
    ) -> Result<Place, VmiError> {
        let (parent, own) = path.rsplit_once('\\').unwrap_or(("", path));
        // The root's name is a backslash, and it lies in no directory.
        let (parent, own) = match (parent, own) {
            ("", "") => (0, "\\"),
            ("", own) => (self.find("\\"), own),
            (parent, own) => (self.find(parent), own),
        };
        let text = self.text(memory, own)?;
        let before = 2 * INFO_BYTES + f.header_body;
        let (va, pa) = self.take(before + bytes)?;
        let place = Place { va: va + before, pa: pa + before, kind };
        self.head(memory, f, place, NAME_INFO | CREATOR_INFO);
        memory.write_u64(pa + INFO_BYTES + f.creator_process, 4);
        memory.write_u64(pa + f.name_directory, parent);
        string(memory, f, pa + f.name_name, text);
        self.named.insert(path.to_owned(), place.va);
        Ok(place)
    }

    /// Makes a file object.
    pub(super) fn file(&mut self, memory: &mut Memory, f: &Facts, path: &str) -> Result<u64, VmiError> {
        if self.find(path) != 0 {
            return Ok(self.find(path));
        }
        let text = self.text(memory, path)?;
        let (va, pa) = self.take(f.header_body + f.size("_FILE_OBJECT")?)?;
        let place = Place { va: va + f.header_body, pa: pa + f.header_body, kind: "File" };
        self.write_file(memory, f, place, text);
        self.named.insert(path.to_owned(), place.va);
        Ok(place.va)
    }

    /// Writes a file object on the system's volume.
    pub(super) fn write_file(&self, memory: &mut Memory, f: &Facts, place: Place, text: Text) {
        self.head(memory, f, place, 0);
        let _ = memory.write(place.pa + f.file_type, &FILE_TYPE.to_le_bytes());
        let _ = memory.write(place.pa + f.file_size, &(f.size("_FILE_OBJECT").unwrap_or(0) as u16).to_le_bytes());
        memory.write_u64(place.pa + f.file_device, self.find("\\Device\\HarddiskVolume2"));
        string(memory, f, place.pa + f.file_name, text);
    }

    /// What an image is mapped by: its `_SUBSECTION`, which leads to a `_CONTROL_AREA` and on to the file.
    pub(super) fn image(&mut self, memory: &mut Memory, f: &Facts, path: &str) -> Result<u64, VmiError> {
        let known = format!("section of {path}");
        if self.find(&known) != 0 {
            return Ok(self.find(&known));
        }
        let file = self.file(memory, f, path)?;
        let (area, area_pa) = self.take(f.size("_CONTROL_AREA")?)?;
        let (subsection, subsection_pa) = self.take(f.size("_SUBSECTION")?)?;
        // An _EX_FAST_REF: the lower four bits count.
        memory.write_u64(area_pa + f.area_file, file | 0xb);
        memory.write_u64(subsection_pa + f.subsection_area, area);
        self.named.insert(known, subsection);
        Ok(subsection)
    }

    /// Makes a key and what is missing of those above it; a key body for the last one.
    fn key(&mut self, memory: &mut Memory, f: &Facts, parts: &[&str]) -> Result<(), VmiError> {
        let (mut path, mut parent) = (String::new(), 0);
        for part in parts {
            path = format!("{path}\\{part}");
            let known = format!("key block of {path}");
            if self.find(&known) == 0 {
                let (name, name_pa) = self.take(f.size("_CM_NAME_CONTROL_BLOCK")? + part.len() as u64)?;
                // A compressed name: one byte a character.
                memory.write(name_pa + f.key_name_flags, &[1])?;
                memory.write(name_pa + f.key_name_length, &(part.len() as u16).to_le_bytes())?;
                memory.write(name_pa + f.key_name, part.as_bytes())?;
                let (block, block_pa) = self.take(f.size("_CM_KEY_CONTROL_BLOCK")?)?;
                memory.write_u64(block_pa + f.block_parent, parent);
                memory.write_u64(block_pa + f.block_name, name);
                self.named.insert(known.clone(), block);
            }
            parent = self.find(&known);
        }
        let (va, pa) = self.take(f.header_body + f.size("_CM_KEY_BODY")?)?;
        let place = Place { va: va + f.header_body, pa: pa + f.header_body, kind: "Key" };
        self.head(memory, f, place, 0);
        memory.write(place.pa + f.key_type, &KEY_SIGNATURE.to_le_bytes())?;
        memory.write_u64(place.pa + f.key_block, parent);
        self.named.insert(path, place.va);
        Ok(())
    }
}

/// Writes a `_UNICODE_STRING`.
pub(super) fn string(memory: &mut Memory, f: &Facts, at: u64, (text, bytes): Text) {
    memory.write_u64(at, bytes | (bytes + 2) << 16);
    memory.write_u64(at + f.string_buffer, text);
}

/// Text as the guest has it.
pub(super) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}
