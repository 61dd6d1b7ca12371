//! Files: their names, and which of them a process has open.
//!
//! A name is put together backwards from a directory entry to the root of its mount, and on from where that is mounted
//! (`prepend_path` in `fs/d_path.c`).

use super::{kernel::Kernel, layout::Paths};
use crate::engine::{addr::Va, arch::amd64::Amd64, driver::VmiRead, snapshot::clean};

/// Directories of a path that are followed at most.
const MOST_PARTS: usize = 128;
/// Longest name of a directory entry (`NAME_MAX`).
const LONGEST_NAME: u32 = 255;
/// Characters of a path that are kept.
const MOST_PATH: usize = 1024;
/// Open files that are listed at most.
const MOST_FILES: u32 = 4096;

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// The name of an open file (`struct file`); `None` where it cannot be read.
    pub(super) fn file_name(&self, file: Va) -> Option<String> {
        let layout = self.os.layout.paths.as_ref()?;
        let dentry = self.existing(file + layout.file_dentry)?;
        let name = match self.filesystem(layout, dentry)?.as_str() {
            "pipefs" => format!("pipe:[{}]", self.inode_number(layout, dentry)?),
            "sockfs" => {
                let name = format!("socket:[{}]", self.inode_number(layout, dentry)?);
                self.socket(file).map_or(name.clone(), |what| format!("{name} {what}"))
            }
            "anon_inodefs" => format!("anon_inode:{}", self.entry_name(layout, dentry)?),
            "nsfs" => format!("namespace:[{}]", self.inode_number(layout, dentry)?),
            _ => self.path(layout, dentry, self.existing(file + layout.file_mount)?)?,
        };
        Some(clean(&name, MOST_PATH))
    }

    /// A pointer that is not null.
    pub(super) fn existing(&self, va: Va) -> Option<Va> {
        self.pointer(va).ok().filter(|pointer| !pointer.is_null())
    }

    fn filesystem(&self, layout: &Paths, dentry: Va) -> Option<String> {
        let superblock = self.existing(dentry + layout.superblock)?;
        let kind = self.existing(superblock + layout.filesystem)?;
        let name = self.existing(kind + layout.filesystem_name)?;
        self.core.read_string_limited((name, self.os.root), 32).ok()
    }

    fn inode_number(&self, layout: &Paths, dentry: Va) -> Option<u64> {
        let inode = self.existing(dentry + layout.inode)?;
        self.pointer(inode + layout.inode_number).ok().map(|number| number.0)
    }

    fn entry_name(&self, layout: &Paths, dentry: Va) -> Option<String> {
        let length = self.u32(dentry + layout.name_length).ok()?.min(LONGEST_NAME);
        let mut bytes = vec![0; length as usize];
        self.read(self.existing(dentry + layout.name)?, &mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The path of an entry in a mount (`struct vfsmount`).
    fn path(&self, layout: &Paths, mut dentry: Va, mount: Va) -> Option<String> {
        let deleted =
            layout.hashed.is_some_and(|hashed| self.pointer(dentry + hashed).is_ok_and(|pointer| pointer.is_null()));
        let mut mount = mount - layout.mount_public;
        let mut parts = Vec::new();
        for _ in 0..MOST_PARTS {
            let parent = self.existing(dentry + layout.parent)?;
            if dentry == self.existing(mount + layout.mount_root)? || dentry == parent {
                let outer = self.existing(mount + layout.mount_parent)?;
                if outer == mount || dentry == parent && dentry != self.existing(mount + layout.mount_root)? {
                    break;
                }
                dentry = self.existing(mount + layout.mount_point)?;
                mount = outer;
                continue;
            }
            parts.push(self.entry_name(layout, dentry)?);
            dentry = parent;
        }
        parts.push(String::new());
        parts.reverse();
        let path = if parts.len() == 1 { "/".to_owned() } else { parts.join("/") };
        Some(if deleted && parts.len() > 1 { path + " (deleted)" } else { path })
    }

    /// The open files of a task: number and name. The flag tells that there are more.
    pub(super) fn open_files(&self, task: Va) -> Option<(Vec<(u64, String)>, bool)> {
        let layout = self.os.layout.files.as_ref()?;
        let Some(files) = self.existing(task + layout.files) else { return Some((Vec::new(), false)) };
        let table = self.existing(files + layout.table)?;
        let count = self.u32(table + layout.count).ok()?;
        let mut bytes = vec![0; count.min(MOST_FILES) as usize * 8];
        self.read(self.existing(table + layout.array)?, &mut bytes).ok()?;
        let pointers = bytes.as_chunks::<8>().0.iter().map(|pointer| Va(u64::from_le_bytes(*pointer)));
        let open = pointers.enumerate().filter(|(_, file)| !file.is_null());
        let mut names = Vec::new();
        for (number, file) in open {
            let name = self.file_name(file).unwrap_or_else(|| "?".to_owned());
            if self.core.keep(size_of::<(u64, String)>() + name.len()).is_err() {
                return Some((names, true));
            }
            names.push((number as u64, name));
        }
        Some((names, count > MOST_FILES))
    }
}
