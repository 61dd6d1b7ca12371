//! Files: their names, and which of them a process has open.
//!
//! A name is put together backwards from a directory entry to the root of its mount, and on from where that is mounted
//! (`prepend_path` in `fs/d_path.c`). What is in no tree of folders (a pipe, a memfd) has an entry that names itself by a
//! function, `d_dname`: which one it is tells the rule.

use super::{kernel::Kernel, layout::Paths};
use crate::engine::{addr::Va, arch::amd64::Amd64, driver::VmiRead, snapshot::clean, symbols::SymbolTable};

/// Directories of a path that are followed at most: more than there can be in a path of that length.
const MOST_PARTS: usize = MOST_PATH / 2;
/// Longest name of a directory entry (`NAME_MAX`).
const LONGEST_NAME: u32 = 255;
/// Bytes of a path that are read, those at its end (`PATH_MAX`); only a map or a file that was moved has a longer one.
const MOST_PATH: usize = 4096;
/// Longest name of a file system, of a kind of namespace, of a dma-buf (`DMA_BUF_NAME_LEN`).
const LONGEST_WORD: usize = 32;
/// Open files that are listed at most.
const MOST_FILES: u32 = 4096;
/// What stands for a part that is left out.
const CUT: &str = "…";

/// A rule by which the kernel names a file that is in no tree of folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Namer {
    /// `/name (deleted)`: memfd, shared anonymous and huge pages, SysV shared memory, secretmem.
    Simple,
    /// `pipe:[inode]`.
    Pipe,
    /// `socket:[inode]`.
    Socket,
    /// `anon_inode:name`.
    AnonInode,
    /// `net:[inode]`.
    Namespace,
    /// `/dmabuf:name`.
    DmaBuf,
    /// `anon_inode:[pidfd]`, from 6.9 on.
    Pidfd,
    /// That of a module or of a kernel to come.
    Other,
}

/// The functions (`dentry_operations.d_dname`) that stand for the rules, and the file systems that use them.
const NAMERS: [(&str, &str, Namer); 7] = [
    ("simple_dname", "", Namer::Simple),
    ("pipefs_dname", "pipefs", Namer::Pipe),
    ("sockfs_dname", "sockfs", Namer::Socket),
    ("anon_inodefs_dname", "anon_inodefs", Namer::AnonInode),
    ("ns_dname", "nsfs", Namer::Namespace),
    ("dmabuffs_dname", "dmabuf", Namer::DmaBuf),
    ("pidfs_dname", "pidfs", Namer::Pidfd),
];

/// Where the functions of a kernel are.
pub(super) fn namers(symbols: &SymbolTable) -> Vec<(Va, Namer)> {
    NAMERS.iter().filter_map(|&(function, _, namer)| Some((symbols.lookup(function)?, namer))).collect()
}

/// A place in a tree of mounts (`struct path`): a mount (`struct vfsmount`) and a directory entry.
#[derive(Clone, Copy)]
struct Place {
    mount: Va,
    dentry: Va,
}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// The name of an open file (`struct file`) as a link in `/proc/PID/fd` says it; `None` where it cannot be read.
    pub(super) fn file_name(&self, file: Va) -> Option<String> {
        let layout = self.os.layout.paths.as_ref()?;
        self.place_name(layout, self.place_of(layout, file)?).map(|name| shown(&name))
    }

    /// The name of the file of a memory region as `/proc/PID/maps` says it: with new lines written as `\\012`.
    pub(super) fn mapped_name(&self, file: Va) -> Option<String> {
        let layout = self.os.layout.paths.as_ref()?;
        let place = self.user_place(layout, file).or_else(|| self.place_of(layout, file))?;
        self.place_name(layout, place).map(|name| shown(&name.replace('\n', "\\012")))
    }

    /// The folders of a task: that in which it works, and that which it takes for the root of all.
    pub(super) fn folders(&self, task: Va) -> Option<(String, String)> {
        let (layout, paths) = (self.os.layout.folders.as_ref()?, self.os.layout.paths.as_ref()?);
        let fs = self.existing(task + layout.fs)?;
        let folder = |(mount, dentry): (u64, u64)| {
            let place = Place { mount: self.existing(fs + mount)?, dentry: self.existing(fs + dentry)? };
            self.place_name(paths, place).map(|name| shown(&name))
        };
        Some((folder(layout.working)?, folder(layout.root)?))
    }

    /// A pointer that is not null.
    pub(super) fn existing(&self, va: Va) -> Option<Va> {
        self.pointer(va).ok().filter(|pointer| !pointer.is_null())
    }

    fn place_of(&self, layout: &Paths, file: Va) -> Option<Place> {
        Some(Place {
            mount: self.existing(file + layout.file_mount)?,
            dentry: self.existing(file + layout.file_dentry)?,
        })
    }

    /// The place that a backing file is mapped in the place of. Nothing in a `struct file` tells one from another file
    /// without knowing the kernel's numbers of `FMODE_…`, so what stands behind it has to be such a place: an entry in a
    /// mount of its own file system.
    fn user_place(&self, layout: &Paths, file: Va) -> Option<Place> {
        let backing = layout.backing.as_ref()?;
        let place =
            Place { mount: self.existing(file + backing.mount)?, dentry: self.existing(file + backing.dentry)? };
        let superblock = self.existing(place.dentry + layout.superblock)?;
        let mounted = self.existing(place.mount - layout.mount_public + backing.mount_superblock)?;
        (mounted == superblock).then_some(place)
    }

    /// `d_path` in `fs/d_path.c`.
    fn place_name(&self, layout: &Paths, place: Place) -> Option<String> {
        let dentry = place.dentry;
        let is_root = self.existing(dentry + layout.parent)? == dentry;
        // What is mounted somewhere, as a namespace that `ip netns` keeps, goes by that place.
        let is_mounted = is_root && self.existing(place.mount - layout.mount_public + layout.mount_root)? == dentry;
        let Some(namer) = self.namer(layout, dentry, is_root).filter(|_| !is_mounted) else {
            return self.path(layout, place);
        };
        Some(match namer {
            Namer::Simple => format!("/{} (deleted)", self.entry_name(layout, dentry)?),
            Namer::Pipe => format!("pipe:[{}]", self.inode_number(layout, dentry)?),
            Namer::Socket => format!("socket:[{}]", self.inode_number(layout, dentry)?),
            Namer::AnonInode => format!("anon_inode:{}", self.entry_name(layout, dentry)?),
            Namer::Namespace => {
                let kind = self.namespace_kind(layout, dentry).unwrap_or_else(|| "namespace".to_owned());
                format!("{kind}:[{}]", self.inode_number(layout, dentry)?)
            }
            Namer::DmaBuf => {
                let given = layout.dma_buf_name.and_then(|(buffer, name)| {
                    let name = self.existing(self.existing(dentry + buffer)? + name)?;
                    self.text(name, LONGEST_WORD)
                });
                format!("/{}:{}", self.entry_name(layout, dentry)?, given.unwrap_or_default())
            }
            Namer::Pidfd => "anon_inode:[pidfd]".to_owned(),
            Namer::Other => format!("{}:[{}]", self.filesystem(layout, dentry)?, self.inode_number(layout, dentry)?),
        })
    }

    /// By what rule an entry is named that names itself. A kernel whose functions are not known is told by its file
    /// systems; of what else is in no tree there is only the simple rule.
    fn namer(&self, layout: &Paths, dentry: Va, is_root: bool) -> Option<Namer> {
        if let Some((operations, function)) = layout.namer {
            let function = self.existing(self.existing(dentry + operations)? + function)?;
            let known = self.os.namers.iter().find(|(known, _)| *known == function);
            return Some(known.map_or(Namer::Other, |(_, namer)| *namer));
        }
        let filesystem = self.filesystem(layout, dentry)?;
        let known = NAMERS.iter().find(|(_, known, _)| *known == filesystem).map(|(.., namer)| *namer);
        known.or(is_root.then_some(Namer::Simple))
    }

    fn namespace_kind(&self, layout: &Paths, dentry: Va) -> Option<String> {
        let layout_of = layout.namespaces.as_ref()?;
        let namespace = self.existing(self.existing(dentry + layout.inode)? + layout_of.namespace)?;
        let name = self.existing(self.existing(namespace + layout_of.operations)? + layout_of.name)?;
        self.text(name, LONGEST_WORD)
    }

    fn filesystem(&self, layout: &Paths, dentry: Va) -> Option<String> {
        let superblock = self.existing(dentry + layout.superblock)?;
        let kind = self.existing(superblock + layout.filesystem)?;
        self.text(self.existing(kind + layout.filesystem_name)?, LONGEST_WORD)
    }

    fn inode_number(&self, layout: &Paths, dentry: Va) -> Option<u64> {
        let inode = self.existing(dentry + layout.inode)?;
        self.pointer(inode + layout.inode_number).ok().map(|number| number.0)
    }

    fn entry_name(&self, layout: &Paths, dentry: Va) -> Option<String> {
        let length = self.u32(dentry + layout.name_length).ok()?;
        let mut bytes = vec![0; length.min(LONGEST_NAME) as usize];
        self.read(self.existing(dentry + layout.name)?, &mut bytes).ok()?;
        let mut name = String::from_utf8_lossy(&bytes).into_owned();
        name.push_str(if length > LONGEST_NAME { CUT } else { "" });
        Some(name)
    }

    /// The path of a place: `prepend_path`. What leads to no root that is its mount's is "/", as there.
    fn path(&self, layout: &Paths, place: Place) -> Option<String> {
        let Place { mount, mut dentry } = place;
        let is_root = self.existing(dentry + layout.parent)? == dentry;
        let deleted = !is_root
            && layout.hashed.is_some_and(|hashed| self.pointer(dentry + hashed).is_ok_and(|pointer| pointer.is_null()));
        let mut mount = mount - layout.mount_public;
        let mut parts = Vec::new();
        let (mut bytes, mut start) = (0, "");
        for step in 0.. {
            if step == MOST_PARTS || bytes > MOST_PATH {
                start = CUT;
                break;
            }
            if dentry == self.existing(mount + layout.mount_root)? {
                let outer = self.existing(mount + layout.mount_parent)?;
                if outer == mount {
                    break;
                }
                dentry = self.existing(mount + layout.mount_point)?;
                mount = outer;
                continue;
            }
            let parent = self.existing(dentry + layout.parent)?;
            if parent == dentry {
                parts.clear();
                break;
            }
            let name = self.entry_name(layout, dentry)?;
            bytes += name.len() + 1;
            parts.push(name);
            dentry = parent;
        }
        parts.reverse();
        let mut path = format!("{start}/{}", parts.join("/"));
        path.push_str(if deleted { " (deleted)" } else { "" });
        Some(path)
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
        let name = |file: Va| {
            let name = self.file_name(file)?;
            // Behind the name that `/proc` has for a socket stands what it is connected to.
            let socket = name.starts_with("socket:").then(|| self.socket(file)).flatten();
            Some(socket.map_or(name.clone(), |what| format!("{name} {}", clean(&what, MOST_PATH))))
        };
        let mut names = Vec::new();
        for (number, file) in open {
            let name = name(file).unwrap_or_else(|| "?".to_owned());
            if self.core.keep(size_of::<(u64, String)>() + name.len()).is_err() {
                return Some((names, true));
            }
            names.push((number as u64, name));
        }
        Some((names, count > MOST_FILES))
    }
}

/// A name as it may be shown; a path is bounded where it is read.
fn shown(name: &str) -> String {
    clean(name, MOST_PATH + 2 * LONGEST_NAME as usize)
}
