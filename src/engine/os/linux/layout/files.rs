//! Files, their names, and sockets.

use super::facts::Facts;

/// From a file to its name (`include/linux/fs.h`, `include/linux/dcache.h`, `fs/mount.h`).
pub(in super::super) struct Paths {
    pub(in super::super) file_dentry: u64,
    pub(in super::super) file_mount: u64,
    pub(in super::super) name: u64,
    pub(in super::super) name_length: u64,
    pub(in super::super) parent: u64,
    /// `dentry.d_hash.pprev`: null once the file is deleted.
    pub(in super::super) hashed: Option<u64>,
    pub(in super::super) inode: u64,
    pub(in super::super) inode_number: u64,
    pub(in super::super) superblock: u64,
    pub(in super::super) filesystem: u64,
    pub(in super::super) filesystem_name: u64,
    /// `dentry.d_op` and `dentry_operations.d_dname`: what names a file that is in no tree of folders.
    pub(in super::super) namer: Option<(u64, u64)>,
    pub(in super::super) namespaces: Option<NamespaceFiles>,
    /// `dentry.d_fsdata` and `dma_buf.name`.
    pub(in super::super) dma_buf_name: Option<(u64, u64)>,
    /// `mount.mnt`, through which files know their mount.
    pub(in super::super) mount_public: u64,
    pub(in super::super) mount_parent: u64,
    pub(in super::super) mount_point: u64,
    /// `mount.mnt.mnt_root`.
    pub(in super::super) mount_root: u64,
    pub(in super::super) backing: Option<BackingFile>,
}

/// The name of a namespace's file (`include/linux/ns_common.h`, `include/linux/proc_ns.h`).
pub(in super::super) struct NamespaceFiles {
    /// `inode.i_private`: the namespace.
    pub(in super::super) namespace: u64,
    /// `ns_common.ops`.
    pub(in super::super) operations: u64,
    /// `proc_ns_operations.name`.
    pub(in super::super) name: u64,
}

/// A file of a lower layer that is mapped in the place of one of an overlay's, from 6.8 on (`struct backing_file` in
/// `fs/file_table.c`); before that such a file has the overlay's path itself.
pub(in super::super) struct BackingFile {
    /// `backing_file.user_path.mnt` and `.dentry`, from `backing_file.file` on.
    pub(in super::super) mount: u64,
    pub(in super::super) dentry: u64,
    /// `mount.mnt.mnt_sb`.
    pub(in super::super) mount_superblock: u64,
}

impl NamespaceFiles {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            namespace: facts.at("inode", "i_private")?,
            operations: facts.at("ns_common", "ops")?,
            name: facts.at("proc_ns_operations", "name")?,
        })
    }
}

impl BackingFile {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        let file = facts.at("backing_file", "file")?;
        Some(Self {
            mount: facts.at("backing_file", "user_path.mnt")?.wrapping_sub(file),
            dentry: facts.at("backing_file", "user_path.dentry")?.wrapping_sub(file),
            mount_superblock: facts.at("mount", "mnt.mnt_sb")?,
        })
    }
}

impl Paths {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            file_dentry: facts.at("file", "f_path.dentry")?,
            file_mount: facts.at("file", "f_path.mnt")?,
            name: facts.any("dentry", &["d_name.name", "__d_name.name"])?,
            name_length: facts.any("dentry", &["d_name.len", "__d_name.len"])?,
            parent: facts.at("dentry", "d_parent")?,
            hashed: facts.at("dentry", "d_hash.pprev"),
            inode: facts.at("dentry", "d_inode")?,
            inode_number: facts.at("inode", "i_ino")?,
            superblock: facts.at("dentry", "d_sb")?,
            filesystem: facts.at("super_block", "s_type")?,
            filesystem_name: facts.at("file_system_type", "name")?,
            namer: facts.at("dentry", "d_op").zip(facts.at("dentry_operations", "d_dname")),
            namespaces: NamespaceFiles::new(facts),
            dma_buf_name: facts.at("dentry", "d_fsdata").zip(facts.at("dma_buf", "name")),
            mount_public: facts.at("mount", "mnt")?,
            mount_parent: facts.at("mount", "mnt_parent")?,
            mount_point: facts.at("mount", "mnt_mountpoint")?,
            mount_root: facts.at("mount", "mnt.mnt_root")?,
            backing: BackingFile::new(facts),
        })
    }
}

/// The folders of a process (`include/linux/fs_struct.h`): each a mount and an entry in it.
pub(in super::super) struct Folders {
    /// `task_struct.fs`.
    pub(in super::super) fs: u64,
    /// Where its relative paths begin.
    pub(in super::super) working: (u64, u64),
    /// Where its absolute ones do.
    pub(in super::super) root: (u64, u64),
}

impl Folders {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        let path = |name: &str| {
            let member = |part: &str| facts.at("fs_struct", &format!("{name}.{part}"));
            member("mnt").zip(member("dentry"))
        };
        Some(Self { fs: facts.at("task_struct", "fs")?, working: path("pwd")?, root: path("root")? })
    }
}

/// A process's open files (`include/linux/fdtable.h`).
pub(in super::super) struct Files {
    /// `task_struct.files`.
    pub(in super::super) files: u64,
    pub(in super::super) table: u64,
    pub(in super::super) count: u64,
    pub(in super::super) array: u64,
}

impl Files {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            files: facts.at("task_struct", "files")?,
            table: facts.at("files_struct", "fdt")?,
            count: facts.at("fdtable", "max_fds")?,
            array: facts.at("fdtable", "fd")?,
        })
    }
}

/// A socket and its two ends (`include/linux/net.h`, `include/net/sock.h`).
pub(in super::super) struct Sockets {
    /// `file.private_data`, `socket.sk`.
    pub(in super::super) private: u64,
    pub(in super::super) sock: u64,
    pub(in super::super) family: u64,
    pub(in super::super) state: u64,
    pub(in super::super) protocol: u64,
    /// `sk_protocol` was a byte up to 5.5.
    pub(in super::super) protocol_mask: u16,
    pub(in super::super) source: u64,
    pub(in super::super) source6: u64,
    pub(in super::super) source_port: u64,
    pub(in super::super) destination: u64,
    pub(in super::super) destination6: u64,
    pub(in super::super) destination_port: u64,
}

impl Sockets {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        let common = |name: &str| facts.at("sock", &format!("__sk_common.{name}"));
        Some(Self {
            private: facts.at("file", "private_data")?,
            sock: facts.at("socket", "sk")?,
            family: common("skc_family")?,
            state: common("skc_state")?,
            protocol: facts.at("sock", "sk_protocol")?,
            protocol_mask: if facts.bytes("sock", "sk_protocol") == Some(1) { 0xff } else { 0xffff },
            source: common("skc_rcv_saddr")?,
            source6: common("skc_v6_rcv_saddr").unwrap_or(0),
            source_port: common("skc_num")?,
            destination: common("skc_daddr")?,
            destination6: common("skc_v6_daddr").unwrap_or(0),
            destination_port: common("skc_dport")?,
        })
    }
}

/// The name of a Unix socket (`include/net/af_unix.h`).
pub(in super::super) struct UnixName {
    pub(in super::super) address: u64,
    pub(in super::super) length: u64,
    pub(in super::super) name: u64,
}

impl UnixName {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            address: facts.at("unix_sock", "addr")?,
            length: facts.at("unix_address", "len")?,
            name: facts.at("unix_address", "name")?,
        })
    }
}
