//! Where the members of the kernel's structures lie: from its type information, or from a file of facts.

use std::collections::HashMap;

use serde::Deserialize;

use super::btf::Btf;
use crate::engine::{error::VmiError, snapshot::clean};

/// Offsets in bytes by structure and member path: the kernel's own type information, overruled by a profile.
pub(super) struct Facts<'a> {
    btf: Option<Btf<'a>>,
    profile: Profile,
}

type Profile = HashMap<String, HashMap<String, Number>>;

/// A number as JSON has it, or as a string with `0x`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "RawNumber")]
struct Number(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum RawNumber {
    Plain(u64),
    Text(String),
}

impl TryFrom<RawNumber> for Number {
    type Error = String;

    fn try_from(raw: RawNumber) -> Result<Self, String> {
        let value = match raw {
            RawNumber::Plain(value) => value,
            RawNumber::Text(text) => {
                let number = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
                number.ok_or_else(|| format!("\"{text}\" is not a number like 0x1f"))?
            }
        };
        // No structure of the kernel is larger; so sums of offsets never overflow.
        if value > 1 << 24 {
            return Err(format!("{value:#x} is no offset in a structure of the kernel"));
        }
        Ok(Self(value))
    }
}

impl<'a> Facts<'a> {
    /// Facts from type information, from the text of a profile, or from both.
    pub(super) fn new(btf: Option<Btf<'a>>, profile: Option<&str>) -> Result<Self, VmiError> {
        let profile = match profile {
            Some(text) => serde_json::from_str(text).map_err(|error| {
                VmiError::os(format!(
                    "the profile is not of the form {{\"task_struct\": {{\"tasks\": \"0x4a8\"}}}}: {}",
                    clean(&error.to_string(), 300)
                ))
            })?,
            None => Profile::new(),
        };
        Ok(Self { btf, profile })
    }

    /// The offset of a member, if it exists.
    fn at(&self, structure: &str, path: &str) -> Option<u64> {
        let known = self.profile.get(structure).and_then(|members| members.get(path)).map(|number| number.0);
        known.or_else(|| self.btf.as_ref()?.member(structure, path).map(|member| member.offset))
    }

    /// The size of a member in bytes, where it is known.
    fn bytes(&self, structure: &str, path: &str) -> Option<u64> {
        self.btf.as_ref()?.member(structure, path).map(|member| member.size)
    }

    /// The offset of the first of several members that exists: names change from kernel to kernel.
    fn any(&self, structure: &str, paths: &[&str]) -> Option<u64> {
        paths.iter().find_map(|path| self.at(structure, path))
    }

    fn need(&self, structure: &str, path: &str) -> Result<u64, VmiError> {
        self.at(structure, path).ok_or_else(|| {
            let source = if self.btf.is_some() { "the kernel's type information" } else { "the profile" };
            VmiError::os(format!(
                "{source} does not say where {structure}.{path} is: give its offset with --profile FILE (docs/linux.md)"
            ))
        })
    }
}

/// Reads the text of a profile as a kernel without type information would be read with it.
///
/// # Errors
/// As [`LinuxOs::detect`](super::LinuxOs::detect) for a broken or incomplete profile.
#[cfg(feature = "fuzzing")]
pub fn check_profile(text: &str) -> Result<(), VmiError> {
    Layout::new(&Facts::new(None, Some(text))?).map(|_| ())
}

/// What a walk over processes reads of a `task_struct` (`include/linux/sched.h`).
pub(super) struct Task {
    pub(super) tasks: u64,
    pub(super) pid: u64,
    pub(super) tgid: u64,
    pub(super) comm: u64,
    pub(super) mm: u64,
    pub(super) real_parent: u64,
    pub(super) flags: u64,
    pub(super) exit_state: Option<u64>,
    pub(super) signal: Option<u64>,
    pub(super) group_leader: Option<u64>,
    pub(super) start: Option<u64>,
    pub(super) cred: Option<u64>,
    pub(super) state: Option<u64>,
    /// A kernel thread's `struct kthread`.
    pub(super) kthread: Option<u64>,
}

impl Task {
    /// Length of `comm` (`TASK_COMM_LEN`).
    pub(super) const COMM_BYTES: u64 = 16;
    /// What is read of a task at most; real ones span 3 KiB.
    const MOST_SPAN: u64 = 64 << 10;

    fn new(facts: &Facts<'_>) -> Result<Self, VmiError> {
        let need = |path| facts.need("task_struct", path);
        let task = Self {
            tasks: need("tasks")?,
            pid: need("pid")?,
            tgid: need("tgid")?,
            comm: need("comm")?,
            mm: need("mm")?,
            real_parent: need("real_parent")?,
            flags: need("flags")?,
            exit_state: facts.at("task_struct", "exit_state"),
            signal: facts.at("task_struct", "signal"),
            group_leader: facts.at("task_struct", "group_leader"),
            start: facts.any("task_struct", &["start_boottime", "real_start_time"]),
            cred: facts.at("task_struct", "real_cred"),
            state: facts.any("task_struct", &["__state", "state"]),
            kthread: facts.at("task_struct", "worker_private"),
        };
        let (from, to) = task.span();
        if to.saturating_sub(from) > Self::MOST_SPAN {
            return Err(VmiError::os(format!(
                "the offsets in task_struct lie {:#x} bytes apart: no kernel has such",
                to - from
            )));
        }
        Ok(task)
    }

    /// The bytes of a task that hold all of these members: from, to.
    pub(super) fn span(&self) -> (u64, u64) {
        let always = [self.tasks, self.pid, self.tgid, self.mm, self.real_parent, self.flags, self.comm];
        let sometimes =
            [self.exit_state, self.signal, self.group_leader, self.start, self.cred, self.state, self.kthread];
        let all = || always.into_iter().chain(sometimes.into_iter().flatten());
        let from = all().min().unwrap_or(0);
        (from, all().max().unwrap_or(0).saturating_add(Self::COMM_BYTES))
    }
}

/// The table of process ids (`include/linux/pid.h`, `include/linux/idr.h`, `include/linux/xarray.h`).
pub(super) struct Pids {
    /// `pid_namespace.idr.idr_rt.xa_head`.
    pub(super) head: u64,
    pub(super) node_shift: u64,
    pub(super) node_slots: u64,
    /// `pid.tasks`: a list head for each kind of id.
    pub(super) tasks: u64,
    /// `task_struct.pid_links`: a list node for each kind of id.
    pub(super) links: u64,
}

impl Pids {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            head: facts.at("pid_namespace", "idr.idr_rt.xa_head")?,
            node_shift: facts.at("xa_node", "shift")?,
            node_slots: facts.at("xa_node", "slots")?,
            tasks: facts.at("pid", "tasks")?,
            links: facts.at("task_struct", "pid_links")?,
        })
    }
}

/// The tasks that want to run on a CPU (`struct rq` in `kernel/sched/sched.h`).
pub(super) struct RunQueue {
    /// `rq.cfs_tasks`.
    pub(super) head: u64,
    /// `task_struct.se.group_node`.
    pub(super) node: u64,
}

impl RunQueue {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self { head: facts.at("rq", "cfs_tasks")?, node: facts.at("task_struct", "se.group_node")? })
    }
}

/// The threads of a process: a list in `signal_struct`, or on old kernels one through the tasks themselves.
pub(super) struct Threads {
    /// `signal_struct.thread_head`; `None` where the first task heads the list.
    pub(super) head: Option<u64>,
    /// `task_struct.thread_node` or `task_struct.thread_group`.
    pub(super) node: u64,
    /// `task_struct.thread_group` where there are both, up to 6.6: the list that `/proc` goes by.
    pub(super) group: Option<u64>,
}

impl Threads {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        let head = facts.at("signal_struct", "thread_head");
        match (head, facts.at("task_struct", "thread_node")) {
            (Some(_), Some(node)) => Some(Self { head, node, group: facts.at("task_struct", "thread_group") }),
            _ => Some(Self { head: None, node: facts.at("task_struct", "thread_group")?, group: None }),
        }
    }
}

/// A process's memory (`include/linux/mm_types.h`).
pub(super) struct Maps {
    pub(super) index: RegionIndex,
    pub(super) vm_start: u64,
    pub(super) vm_end: u64,
    pub(super) vm_flags: u64,
    pub(super) vm_file: u64,
    pub(super) vm_ops: Option<u64>,
    pub(super) vm_private_data: Option<u64>,
    /// `vm_special_mapping.name`: the kernel's own pages in a process.
    pub(super) special_name: Option<u64>,
    /// `mm_struct.start_brk`, `.brk`, `.start_stack`.
    pub(super) heap_and_stack: Option<[u64; 3]>,
}

/// How the regions of a process hang together.
pub(super) enum RegionIndex {
    /// `mm_struct.mmap` and `vm_area_struct.vm_next`, up to 6.0.
    List { first: u64, next: u64 },
    /// A maple tree, from 6.1 on (`include/linux/maple_tree.h`).
    Tree { root: u64, range: MapleNode, allocation: MapleNode },
}

/// One form of a maple tree's node: arrays of pivots and, right behind, of one more slots.
#[derive(Clone, Copy)]
pub(super) struct MapleNode {
    pub(super) pivots: u64,
    pub(super) slots: u64,
}

impl MapleNode {
    fn new(facts: &Facts<'_>, structure: &str) -> Option<Self> {
        Some(Self { pivots: facts.at(structure, "pivot")?, slots: facts.at(structure, "slot")? })
    }
}

impl Maps {
    fn new(facts: &Facts<'_>) -> Option<Self> {
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
            heap_and_stack: heap_and_stack(),
        })
    }
}

/// From a file to its name (`include/linux/fs.h`, `include/linux/dcache.h`, `fs/mount.h`).
pub(super) struct Paths {
    pub(super) file_dentry: u64,
    pub(super) file_mount: u64,
    pub(super) name: u64,
    pub(super) name_length: u64,
    pub(super) parent: u64,
    /// `dentry.d_hash.pprev`: null once the file is deleted.
    pub(super) hashed: Option<u64>,
    pub(super) inode: u64,
    pub(super) inode_number: u64,
    pub(super) superblock: u64,
    pub(super) filesystem: u64,
    pub(super) filesystem_name: u64,
    /// `mount.mnt`, through which files know their mount.
    pub(super) mount_public: u64,
    pub(super) mount_parent: u64,
    pub(super) mount_point: u64,
    /// `mount.mnt.mnt_root`.
    pub(super) mount_root: u64,
}

impl Paths {
    fn new(facts: &Facts<'_>) -> Option<Self> {
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
            mount_public: facts.at("mount", "mnt")?,
            mount_parent: facts.at("mount", "mnt_parent")?,
            mount_point: facts.at("mount", "mnt_mountpoint")?,
            mount_root: facts.at("mount", "mnt.mnt_root")?,
        })
    }
}

/// A process's open files (`include/linux/fdtable.h`).
pub(super) struct Files {
    /// `task_struct.files`.
    pub(super) files: u64,
    pub(super) table: u64,
    pub(super) count: u64,
    pub(super) array: u64,
}

impl Files {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            files: facts.at("task_struct", "files")?,
            table: facts.at("files_struct", "fdt")?,
            count: facts.at("fdtable", "max_fds")?,
            array: facts.at("fdtable", "fd")?,
        })
    }
}

/// A loaded module of the kernel (`include/linux/module.h`).
pub(super) struct KernelModule {
    pub(super) list: u64,
    pub(super) name: u64,
    pub(super) base: u64,
    pub(super) size: u64,
}

impl KernelModule {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            list: facts.at("module", "list")?,
            name: facts.at("module", "name")?,
            // From 6.4 on an array, whose first element is the code.
            base: facts.any("module", &["mem.base", "core_layout.base"])?,
            size: facts.any("module", &["mem.size", "core_layout.size"])?,
        })
    }
}

/// The set of folders in `/sys/module` (`include/linux/kobject.h`, `include/linux/module.h`).
pub(super) struct ModuleFolders {
    pub(super) list: u64,
    pub(super) entry: u64,
    /// `module_kobject.kobj`, `.mod`.
    pub(super) kobject: u64,
    pub(super) module: u64,
}

impl ModuleFolders {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            list: facts.at("kset", "list")?,
            entry: facts.at("kobject", "entry")?,
            kobject: facts.at("module_kobject", "kobj")?,
            module: facts.at("module_kobject", "mod")?,
        })
    }
}

/// The tree of modules by address, the first of its two copies (`include/linux/rbtree_latch.h`, `kernel/module/internal.h`).
pub(super) struct ModuleTree {
    pub(super) root: u64,
    /// `mod_tree_node.node.node`, `.mod`.
    pub(super) node: u64,
    pub(super) module: u64,
    pub(super) left: u64,
    pub(super) right: u64,
}

impl ModuleTree {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            root: facts.at("mod_tree_root", "root.tree.rb_node")?,
            node: facts.at("mod_tree_node", "node.node")?,
            module: facts.at("mod_tree_node", "mod")?,
            left: facts.at("rb_node", "rb_left")?,
            right: facts.at("rb_node", "rb_right")?,
        })
    }
}

/// A socket and its two ends (`include/linux/net.h`, `include/net/sock.h`).
pub(super) struct Sockets {
    /// `file.private_data`, `socket.sk`.
    pub(super) private: u64,
    pub(super) sock: u64,
    pub(super) family: u64,
    pub(super) state: u64,
    pub(super) protocol: u64,
    /// `sk_protocol` was a byte up to 5.5.
    pub(super) protocol_mask: u16,
    pub(super) source: u64,
    pub(super) source6: u64,
    pub(super) source_port: u64,
    pub(super) destination: u64,
    pub(super) destination6: u64,
    pub(super) destination_port: u64,
}

impl Sockets {
    fn new(facts: &Facts<'_>) -> Option<Self> {
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
pub(super) struct UnixName {
    pub(super) address: u64,
    pub(super) length: u64,
    pub(super) name: u64,
}

impl UnixName {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            address: facts.at("unix_sock", "addr")?,
            length: facts.at("unix_address", "len")?,
            name: facts.at("unix_address", "name")?,
        })
    }
}

/// Supplementary groups (`include/linux/cred.h`).
pub(super) struct Groups {
    pub(super) info: u64,
    pub(super) count: u64,
    pub(super) ids: u64,
}

impl Groups {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            info: facts.at("cred", "group_info")?,
            count: facts.at("group_info", "ngroups")?,
            ids: facts.at("group_info", "gid")?,
        })
    }
}

/// The namespaces of a task (`include/linux/nsproxy.h`).
pub(super) struct Namespaces {
    pub(super) proxy: u64,
    /// Name, pointer in the proxy, number in the namespace.
    pub(super) kinds: Vec<(&'static str, u64, u64)>,
}

impl Namespaces {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        let kinds = [
            ("mnt", "mnt_ns", "mnt_namespace"),
            ("net", "net_ns", "net"),
            ("uts", "uts_ns", "uts_namespace"),
            ("ipc", "ipc_ns", "ipc_namespace"),
            ("cgroup", "cgroup_ns", "cgroup_namespace"),
        ];
        let kind = |(name, pointer, structure): (&'static str, &str, &str)| {
            Some((name, facts.at("nsproxy", pointer)?, facts.at(structure, "ns.inum")?))
        };
        Some(Self { proxy: facts.at("task_struct", "nsproxy")?, kinds: kinds.into_iter().filter_map(kind).collect() })
    }
}

/// What is traced of a system call (`include/trace/syscall.h`).
pub(super) struct SystemCalls {
    pub(super) name: u64,
    pub(super) count: u64,
    pub(super) types: u64,
    pub(super) names: u64,
}

impl SystemCalls {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            name: facts.at("syscall_metadata", "name")?,
            count: facts.at("syscall_metadata", "nb_args")?,
            types: facts.at("syscall_metadata", "types")?,
            names: facts.at("syscall_metadata", "args")?,
        })
    }
}

/// Everything that is known of the kernel's structures; what a kernel does not have is `None`.
pub(super) struct Layout {
    pub(super) task: Task,
    /// `task_struct.stack`.
    pub(super) task_stack: Option<u64>,
    /// `mm_struct.pgd`.
    pub(super) mm_pgd: u64,
    /// `mm_struct.arg_start` and `.arg_end`.
    pub(super) arguments: Option<(u64, u64)>,
    /// `signal_struct.nr_threads`.
    pub(super) signal_threads: Option<u64>,
    /// `cred.uid`.
    pub(super) cred_uid: Option<u64>,
    /// More of `cred`: name, offset, size in bytes.
    pub(super) credentials: Vec<(&'static str, u64, usize)>,
    /// `kthread.full_name`: names longer than `comm`.
    pub(super) kthread_name: Option<u64>,
    /// `pcpu_hot.current_task`, from 6.2 to 6.14.
    pub(super) hot_current: Option<u64>,
    pub(super) pids: Option<Pids>,
    pub(super) run_queue: Option<RunQueue>,
    pub(super) threads: Option<Threads>,
    pub(super) maps: Option<Maps>,
    pub(super) paths: Option<Paths>,
    pub(super) files: Option<Files>,
    pub(super) module: Option<KernelModule>,
    pub(super) module_folders: Option<ModuleFolders>,
    pub(super) module_tree: Option<ModuleTree>,
    pub(super) sockets: Option<Sockets>,
    pub(super) unix: Option<UnixName>,
    pub(super) groups: Option<Groups>,
    /// `task_struct.seccomp.mode`.
    pub(super) seccomp: Option<u64>,
    pub(super) namespaces: Option<Namespaces>,
    pub(super) system_calls: Option<SystemCalls>,
}

impl Layout {
    pub(super) fn new(facts: &Facts<'_>) -> Result<Self, VmiError> {
        let ids = ["uid", "gid", "euid", "egid", "suid", "sgid", "fsuid", "fsgid"].map(|name| (name, name, 4));
        let sets = [
            ("capabilities", "cap_effective", 8),
            ("permitted", "cap_permitted", 8),
            ("inheritable", "cap_inheritable", 8),
            ("bounding", "cap_bset", 8),
            ("ambient", "cap_ambient", 8),
        ];
        let credential = |(name, path, bytes)| Some((name, facts.at("cred", path)?, bytes));
        let argument = |name| facts.at("mm_struct", name);
        Ok(Self {
            task: Task::new(facts)?,
            task_stack: facts.at("task_struct", "stack"),
            mm_pgd: facts.need("mm_struct", "pgd")?,
            arguments: argument("arg_start").zip(argument("arg_end")),
            signal_threads: facts.at("signal_struct", "nr_threads"),
            cred_uid: facts.at("cred", "uid"),
            credentials: ids.into_iter().chain(sets).filter_map(credential).collect(),
            kthread_name: facts.at("kthread", "full_name"),
            hot_current: facts.at("pcpu_hot", "current_task"),
            pids: Pids::new(facts),
            run_queue: RunQueue::new(facts),
            threads: Threads::new(facts),
            maps: Maps::new(facts),
            paths: Paths::new(facts),
            files: Files::new(facts),
            module: KernelModule::new(facts),
            module_folders: ModuleFolders::new(facts),
            module_tree: ModuleTree::new(facts),
            sockets: Sockets::new(facts),
            unix: UnixName::new(facts),
            groups: Groups::new(facts),
            seccomp: facts.at("task_struct", "seccomp.mode"),
            namespaces: Namespaces::new(facts),
            system_calls: SystemCalls::new(facts),
        })
    }
}
