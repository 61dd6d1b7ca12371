//! What an object of the kernel's is, in a line: its type, its name, what it is about.
//!
//! In front of each object lies an `_OBJECT_HEADER`; its type index is mixed with a byte of its own address and with
//! `ObHeaderCookie`. A name (`_OBJECT_HEADER_NAME_INFO`) lies in front of that, behind who made it, as `InfoMask` says.

use std::collections::{HashMap, HashSet};

use super::memory::Memory;
use crate::engine::{addr::Va, arch::amd64::Amd64, driver::VmiRead, error::VmiError, snapshot::clean};

/// Bits of `_OBJECT_HEADER.InfoMask`.
const CREATOR_INFO: u8 = 1;
const NAME_INFO: u8 = 2;
/// Parts of a path that are followed at most.
const MOST_PARTS: usize = 64;
/// What stands for a part that is left out.
const CUT: &str = "…";
/// Characters of a line that are kept.
const MOST_TEXT: usize = 1024;
/// Handles that are listed at most.
const MOST_HANDLES: usize = 4096;
/// The longest name of a registry key, in characters.
const MOST_KEY_NAME: u16 = 256;

/// Names of object types by their index, read once for a list.
#[derive(Default)]
pub(super) struct TypeNames(HashMap<u8, String>);

impl<Driver: VmiRead<Architecture = Amd64>> Memory<'_, Driver> {
    /// The handles of a process: number and what it leads to. The flag tells that there are more, or that a part of the
    /// table could not be read.
    pub(super) fn handles(&self, process: Va) -> Result<(Vec<(u64, String)>, bool), VmiError> {
        let table = self.pointer(process + self.os.offsets.object_table)?;
        // A process that has ended has given its table back.
        if table.is_null() {
            return Ok((Vec::new(), false));
        }
        let entries = self.table(table, MOST_HANDLES)?;
        let mut types = TypeNames::default();
        let mut handles = Vec::with_capacity(entries.used.len());
        for (handle, header) in entries.used {
            let text = match self.object(header, &mut types) {
                Ok(text) => text,
                Err(VmiError::CutShort) => return Ok((handles, true)),
                Err(error) if error.is_page_fault() => "?".to_owned(),
                Err(error) => return Err(error),
            };
            let text = clean(&text, MOST_TEXT);
            if self.core.keep(size_of::<(u64, String)>() + text.len()).is_err() {
                return Ok((handles, true));
            }
            handles.push((handle, text));
        }
        Ok((handles, entries.truncated))
    }

    /// An object by its header.
    fn object(&self, header: Va, types: &mut TypeNames) -> Result<String, VmiError> {
        let kind = self.type_name(header, types)?;
        let body = header + self.os.offsets.header_body;
        let about = match kind.as_str() {
            "File" => self.file(body)?,
            "Key" => self.key(body)?,
            "Process" => self.process_label(body)?,
            "Thread" => self.thread_label(body)?,
            "Token" => self.user(body)?,
            _ => self.path(header)?,
        };
        Ok(if about.is_empty() { kind } else { format!("{kind} {about}") })
    }

    fn type_name(&self, header: Va, types: &mut TypeNames) -> Result<String, VmiError> {
        let stored = self.u8(header + self.os.offsets.header_type)?;
        let index = stored ^ self.os.cookie ^ (header.0 >> 8) as u8;
        if let Some(name) = types.0.get(&index) {
            return Ok(name.clone());
        }
        let object = self.pointer(self.os.type_table + u64::from(index) * 8)?;
        let name = if object.0 >> 63 == 0 {
            format!("type {index}")
        } else {
            clean(&self.string(object + self.os.offsets.type_name)?, 32)
        };
        types.0.insert(index, name.clone());
        Ok(name)
    }

    /// The full name of an object in the kernel's namespace; empty where it has none.
    fn path(&self, header: Va) -> Result<String, VmiError> {
        let o = &self.os.offsets;
        let mut parts = Vec::new();
        let mut seen = HashSet::new();
        let mut header = header;
        loop {
            if parts.len() >= MOST_PARTS || !seen.insert(header) {
                parts.push(CUT.to_owned());
                break;
            }
            let mask = self.u8(header + o.header_mask)?;
            if mask & NAME_INFO == 0 {
                break;
            }
            let creator = if mask & CREATOR_INFO != 0 { o.creator_bytes } else { 0 };
            let info = header - creator - o.name_bytes;
            let directory = self.pointer(info + o.name_directory)?;
            let name = self.string(info + o.name_name)?;
            if directory.is_null() {
                // The root is called by a backslash, which each of the others has in front of it anyway.
                if parts.is_empty() || name != "\\" {
                    parts.push(name);
                }
                break;
            }
            parts.push(format!("\\{name}"));
            header = directory - o.header_body;
        }
        parts.reverse();
        Ok(clean(&parts.concat(), MOST_TEXT))
    }

    /// A file with its device, as `\Device\HarddiskVolume2\Windows`.
    pub(super) fn file(&self, file: Va) -> Result<String, VmiError> {
        let o = &self.os.offsets;
        let device = self.pointer(file + o.file_device)?;
        let device = if device.is_null() { String::new() } else { self.path(device - o.header_body)? };
        Ok(clean(&format!("{device}{}", self.string(file + o.file_name)?), MOST_TEXT))
    }

    /// A registry key's path, from its control block upwards.
    fn key(&self, key: Va) -> Result<String, VmiError> {
        let o = &self.os.offsets;
        let mut block = self.pointer(key + o.key_block)?;
        let mut parts = Vec::new();
        let mut seen = HashSet::new();
        while !block.is_null() {
            if parts.len() >= MOST_PARTS || !seen.insert(block) {
                parts.push(CUT.to_owned());
                break;
            }
            let name = self.pointer(block + o.block_name)?;
            let length = self.u16(name + o.key_name_length)?;
            let is_compressed = self.u32(name + o.key_name_flags)? & 1 != 0;
            let longest = MOST_KEY_NAME * if is_compressed { 1 } else { 2 };
            let mut bytes = vec![0; usize::from(length.min(longest))];
            self.read(name + o.key_name, &mut bytes)?;
            let text: String = if is_compressed {
                // One byte a character, of Latin-1.
                bytes.iter().map(|&byte| char::from(byte)).collect()
            } else {
                let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
                String::from_utf16_lossy(&units)
            };
            parts.push(format!("\\{text}{}", if length > longest { CUT } else { "" }));
            block = self.pointer(block + o.block_parent)?;
        }
        parts.reverse();
        Ok(parts.concat())
    }

    fn process_label(&self, process: Va) -> Result<String, VmiError> {
        let pid = self.u64(process + self.os.offsets.pid)? as u32;
        Ok(format!("{pid} {}", self.os.name(self.core, process)?))
    }

    fn thread_label(&self, thread: Va) -> Result<String, VmiError> {
        let o = &self.os.offsets;
        let tid = self.u64(thread + o.cid + o.cid_thread)? as u32;
        Ok(format!("{tid} of {}", self.u64(thread + o.cid)? as u32))
    }
}
