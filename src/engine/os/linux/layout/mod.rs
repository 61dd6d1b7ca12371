//! Where the members of the kernel's structures lie.
//!
//! `facts` answers one question at a time, from the kernel's type information (BTF) or a profile; here and in `memory`, `files`
//! and `modules` the answers are put together by what reads them. What a kernel does not have is `None`. Imports the type
//! information and errors. Start at [`Layout::new`].

mod facts;
mod files;
mod memory;
mod modules;

pub(super) use self::{
    facts::Facts,
    files::Paths,
    memory::{MapleNode, Maps, RegionIndex, SwapForm},
};
use self::{
    files::{Files, Folders, Sockets, UnixName},
    modules::{KernelModule, ModuleFolders, ModuleTree},
};
use crate::engine::error::VmiError;

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

/// The kernel's clocks, in the variable `tk_core`, or from 6.17 on in the first of `timekeeper_data`
/// (`kernel/time/timekeeping.c`).
pub(super) struct Clock {
    /// `timekeeper.ktime_sec`: seconds of `CLOCK_MONOTONIC`, from the start of the variable on.
    pub(super) seconds: u64,
    /// `timekeeper.offs_boot`: what `CLOCK_BOOTTIME` is ahead, nanoseconds.
    pub(super) to_boot: u64,
}

impl Clock {
    /// Up to 6.12 `tk_core` has no name for its type: a sequence counter (four bytes, and in a real-time kernel the lock that
    /// belongs to it), then the timekeeper.
    fn new(facts: &Facts<'_>) -> Option<Self> {
        let unnamed = || facts.at("seqcount_raw_spinlock", "lock").map_or(8, |lock| lock.wrapping_add(8));
        let timekeeper = facts.at("tk_data", "timekeeper").unwrap_or_else(unnamed);
        let member = |name| Some(timekeeper.wrapping_add(facts.at("timekeeper", name)?));
        Some(Self { seconds: member("ktime_sec")?, to_boot: member("offs_boot")? })
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
    /// Where it is, how far to shift it, and what is left of it: a whole number up to 6.18, seven bits of it from 6.19 on.
    pub(super) count: (u64, u32, u32),
    pub(super) types: u64,
    pub(super) names: u64,
}

impl SystemCalls {
    fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            name: facts.at("syscall_metadata", "name")?,
            count: facts.number("syscall_metadata", "nb_args")?,
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
    /// `mm_struct.env_start` and `.env_end`.
    pub(super) environment: Option<(u64, u64)>,
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
    pub(super) folders: Option<Folders>,
    /// `mm_struct.exe_file`.
    pub(super) executable: Option<u64>,
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
    pub(super) clock: Option<Clock>,
    /// `None` without type information.
    pub(super) swap_form: Option<SwapForm>,
    /// `swap_info_struct.swap_file`.
    pub(super) swap_file: Option<u64>,
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
            environment: argument("env_start").zip(argument("env_end")),
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
            folders: Folders::new(facts),
            executable: facts.at("mm_struct", "exe_file"),
            module: KernelModule::new(facts),
            module_folders: ModuleFolders::new(facts),
            module_tree: ModuleTree::new(facts),
            sockets: Sockets::new(facts),
            unix: UnixName::new(facts),
            groups: Groups::new(facts),
            seccomp: facts.at("task_struct", "seccomp.mode"),
            namespaces: Namespaces::new(facts),
            system_calls: SystemCalls::new(facts),
            clock: Clock::new(facts),
            swap_form: SwapForm::new(facts),
            swap_file: facts.at("swap_info_struct", "swap_file"),
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
