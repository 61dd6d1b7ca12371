//! Files of the kernel that is written by hand that are in no tree of folders, and files on mounts.

use vmscope::engine::addr::Va;

use super::{Machine, offset, symbols};

impl Machine {
    /// A file that names itself: the name of its entry, its file system, and the function that names it, if it has one.
    pub fn pseudo_file(&self, name: &str, filesystem: &str, function: Option<&str>) -> Va {
        let file = self.file(&[name]);
        let dentry = self.entry_of(file);
        // Its entry is its own parent, and not the root of its mount.
        self.poke64(dentry + offset("dentry", "d_parent"), dentry.0);
        self.poke64(dentry + offset("dentry", "d_hash.pprev"), 0);
        let superblock = Va(self.peek64(dentry + offset("dentry", "d_sb")));
        let kind = Va(self.peek64(superblock + offset("super_block", "s_type")));
        self.poke64(kind + offset("file_system_type", "name"), self.string(filesystem).0);
        let inode = self.alloc(0x80);
        self.poke64(dentry + offset("dentry", "d_inode"), inode.0);
        self.poke64(inode + offset("inode", "i_ino"), 4711);
        if let Some(function) = function {
            let operations = self.alloc(0x60);
            self.poke64(operations + offset("dentry_operations", "d_dname"), self.function(function).0);
            self.poke64(dentry + offset("dentry", "d_op"), operations.0);
        }
        file
    }

    /// The file of a namespace.
    pub fn namespace_file(&self, kind: &str) -> Va {
        let file = self.pseudo_file("", "nsfs", Some("ns_dname"));
        let inode = Va(self.peek64(self.entry_of(file) + offset("dentry", "d_inode")));
        let (namespace, operations) = (self.alloc(0x40), self.alloc(0x40));
        self.poke64(inode + offset("inode", "i_private"), namespace.0);
        self.poke64(namespace + offset("ns_common", "ops"), operations.0);
        self.poke64(operations + offset("proc_ns_operations", "name"), self.string(kind).0);
        file
    }

    /// The file of a buffer that devices share, with the name that somebody has given it.
    pub fn dma_buf(&self, given: Option<&str>) -> Va {
        let file = self.pseudo_file("dmabuf", "dmabuf", Some("dmabuffs_dname"));
        let buffer = self.alloc(0x80);
        self.poke64(self.entry_of(file) + offset("dentry", "d_fsdata"), buffer.0);
        self.poke64(buffer + offset("dma_buf", "name"), given.map_or(0, |given| self.string(given).0));
        file
    }

    /// The directory entry of a file.
    pub fn entry_of(&self, file: Va) -> Va {
        Va(self.peek64(file + offset("file", "f_path.dentry")))
    }

    /// The mount that a file is on.
    pub fn mount_of(&self, file: Va) -> Va {
        Va(self.peek64(file + offset("file", "f_path.mnt"))) - offset("mount", "mnt")
    }

    /// Mounts the file system of a file on another file's place.
    pub fn mount_on(&self, inner: Va, place: Va) {
        let mount = self.mount_of(inner);
        self.poke64(mount + offset("mount", "mnt_parent"), self.mount_of(place).0);
        self.poke64(mount + offset("mount", "mnt_mountpoint"), self.entry_of(place).0);
    }

    /// Makes a file of a lower layer stand for one of an overlay's.
    pub fn back(&self, lower: Va, upper: Va) {
        for (to, from) in [("user_path.mnt", "f_path.mnt"), ("user_path.dentry", "f_path.dentry")] {
            self.poke64(lower + offset("backing_file", to), self.peek64(upper + offset("file", from)));
        }
    }

    /// Gives a process its program and its folders.
    pub fn set_places(&self, task: Va, program: Va, root: Va, working: Va) {
        let mm = Va(self.peek64(task + offset("task_struct", "mm")));
        self.poke64(mm + offset("mm_struct", "exe_file"), program.0);
        let fs = self.alloc(0x40);
        self.poke64(task + offset("task_struct", "fs"), fs.0);
        for (name, file) in [("root", root), ("pwd", working)] {
            for part in ["mnt", "dentry"] {
                let value = self.peek64(file + offset("file", &format!("f_path.{part}")));
                self.poke64(fs + offset("fs_struct", &format!("{name}.{part}")), value);
            }
        }
    }

    /// Gives a region of memory a name, as its process does.
    pub fn name_region(&self, task: Va, nth: u64, name: &str) {
        let mm = Va(self.peek64(task + offset("task_struct", "mm")));
        let top = Va(self.peek64(mm + offset("mm_struct", "mm_mt.ma_root")) & !0xff);
        let leaf = Va(self.peek64(top + offset("maple_arange_64", "slot") + nth * 8) & !0xff);
        let area = Va(self.peek64(leaf + offset("maple_range_64", "slot") + 8));
        let given = self.alloc(4 + name.len() as u64 + 1);
        self.poke(given + offset("anon_vma_name", "name"), name.as_bytes());
        self.poke64(area + offset("vm_area_struct", "anon_name"), given.0);
    }

    fn function(&self, name: &str) -> Va {
        let known = symbols(self.base(), self.options.form);
        known.into_iter().find(|(known, _)| known == name).map_or(self.base() + 0xe3f0, |(_, va)| va)
    }
}
