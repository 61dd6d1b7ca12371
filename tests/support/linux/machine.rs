//! The machine: where everything lies, and what a test does to it.

use std::cell::Cell;

use vmscope::engine::{
    addr::{Pa, Va},
    arch::amd64::{Amd64Registers, PageTableLevel},
    session::VmiCore,
};

use super::{BtfWriter, Form, tables};
use crate::support::{FlatDriver, PageSize, Tables};

type Structure = (&'static str, &'static [(&'static str, u64)]);

/// The layout of this kernel's structures.
pub const FACTS: &[Structure] = &[
    (
        "task_struct",
        &[
            ("__state", 0x18),
            ("flags", 0x2c),
            ("se.group_node", 0x98),
            ("tasks", 0x100),
            ("mm", 0x150),
            ("exit_state", 0x180),
            ("pid", 0x188),
            ("tgid", 0x18c),
            ("real_parent", 0x198),
            ("group_leader", 0x1b0),
            ("pid_links", 0x1c0),
            ("thread_node", 0x200),
            ("start_boottime", 0x220),
            ("real_cred", 0x230),
            ("comm", 0x240),
            ("files", 0x260),
            ("signal", 0x270),
            ("worker_private", 0x280),
            ("nsproxy", 0x288),
            ("fs", 0x2a0),
            ("seccomp.mode", 0x290),
        ],
    ),
    (
        "mm_struct",
        &[
            ("mm_mt.ma_root", 0x8),
            ("pgd", 0x48),
            ("arg_start", 0x100),
            ("arg_end", 0x108),
            ("env_start", 0x130),
            ("env_end", 0x138),
            ("exe_file", 0x140),
            ("start_brk", 0x110),
            ("brk", 0x118),
            ("start_stack", 0x120),
        ],
    ),
    ("signal_struct", &[("nr_threads", 0x8), ("thread_head", 0x10)]),
    ("cred", &[("uid", 0x8), ("gid", 0xc), ("euid", 0x18), ("cap_effective", 0x38), ("group_info", 0x60)]),
    ("kthread", &[("full_name", 0x30)]),
    ("pid_namespace", &[("idr.idr_rt.xa_head", 0x8)]),
    ("xa_node", &[("shift", 0x0), ("slots", 0x28)]),
    ("pid", &[("tasks", 0x10)]),
    ("rq", &[("cfs_tasks", 0x20)]),
    ("maple_range_64", &[("pivot", 0x8), ("slot", 0x80)]),
    ("maple_arange_64", &[("pivot", 0x8), ("slot", 0x50)]),
    (
        "vm_area_struct",
        &[("vm_start", 0x0), ("vm_end", 0x8), ("vm_flags", 0x20), ("vm_file", 0x30), ("anon_name", 0x60)],
    ),
    ("anon_vma_name", &[("name", 0x4)]),
    ("backing_file", &[("file", 0x0), ("user_path.mnt", 0xf0), ("user_path.dentry", 0xf8)]),
    ("fs_struct", &[("root.mnt", 0x10), ("root.dentry", 0x18), ("pwd.mnt", 0x20), ("pwd.dentry", 0x28)]),
    ("file", &[("f_path.mnt", 0x10), ("f_path.dentry", 0x18), ("private_data", 0xc8)]),
    (
        "dentry",
        &[
            ("d_hash.pprev", 0x10),
            ("d_parent", 0x18),
            ("d_name.len", 0x24),
            ("d_name.name", 0x28),
            ("d_inode", 0x30),
            ("d_sb", 0x38),
            ("d_op", 0x60),
            ("d_fsdata", 0x68),
        ],
    ),
    ("dentry_operations", &[("d_dname", 0x48)]),
    ("dma_buf", &[("name", 0x50)]),
    ("ns_common", &[("ops", 0x8)]),
    ("proc_ns_operations", &[("name", 0x0)]),
    ("inode", &[("i_ino", 0x40), ("i_private", 0x70)]),
    ("super_block", &[("s_type", 0x28)]),
    ("file_system_type", &[("name", 0x0)]),
    (
        "mount",
        &[("mnt_parent", 0x10), ("mnt_mountpoint", 0x18), ("mnt.mnt_root", 0x20), ("mnt.mnt_sb", 0x28), ("mnt", 0x20)],
    ),
    ("files_struct", &[("fdt", 0x20)]),
    ("fdtable", &[("max_fds", 0x0), ("fd", 0x8)]),
    (
        "module",
        &[("state", 0x0), ("list", 0x8), ("name", 0x18), ("mem.base", 0x140), ("mem.size", 0x148), ("kallsyms", 0x160)],
    ),
    ("mod_kallsyms", &[("symtab", 0x0), ("num_symtab", 0x8), ("strtab", 0x10)]),
    ("kset", &[("list", 0x10)]),
    ("kobject", &[("entry", 0x8)]),
    ("module_kobject", &[("kobj", 0x20), ("mod", 0x60)]),
    ("mod_tree_root", &[("root.tree.rb_node", 0x8)]),
    ("mod_tree_node", &[("mod", 0x0), ("node.node", 0x8)]),
    ("rb_node", &[("rb_right", 0x8), ("rb_left", 0x10)]),
    ("socket", &[("sk", 0x18)]),
    (
        "sock",
        &[
            ("__sk_common.skc_daddr", 0x0),
            ("__sk_common.skc_rcv_saddr", 0x4),
            ("__sk_common.skc_dport", 0xc),
            ("__sk_common.skc_num", 0xe),
            ("__sk_common.skc_family", 0x10),
            ("__sk_common.skc_state", 0x12),
            ("__sk_common.skc_v6_daddr", 0x38),
            ("__sk_common.skc_v6_rcv_saddr", 0x48),
            ("sk_protocol", 0x100),
        ],
    ),
    ("unix_sock", &[("addr", 0x180)]),
    ("unix_address", &[("len", 0x4), ("name", 0xc)]),
    ("group_info", &[("ngroups", 0x4), ("gid", 0x8)]),
    ("nsproxy", &[("mnt_ns", 0x18), ("net_ns", 0x28)]),
    ("mnt_namespace", &[("ns.inum", 0x10)]),
    ("net", &[("ns.inum", 0x80)]),
    ("swap_info_struct", &[("swap_file", 0x38)]),
    ("syscall_metadata", &[("name", 0x0), ("nb_args", 0xc), ("types", 0x10), ("args", 0x18)]),
];

/// The offset of a member of this kernel's structures.
pub fn offset(structure: &str, path: &str) -> u64 {
    let members = FACTS.iter().find(|(name, _)| *name == structure).map_or(&[][..], |(_, members)| *members);
    members.iter().find(|(name, _)| *name == path).map(|(_, at)| *at).expect("a member of this kernel")
}

/// What kind of kernel.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub levels: u8,
    /// Page-table isolation.
    pub isolated: bool,
    pub form: Form,
    /// Whether it carries type information.
    pub btf: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { levels: 4, isolated: false, form: Form::Behind, btf: true }
    }
}

/// A process to be.
#[derive(Clone, Copy, Debug)]
pub struct Spawn {
    pub pid: u32,
    pub name: &'static str,
    /// `None` makes a kernel thread.
    pub arguments: Option<&'static str>,
}

/// The kernel and its memory.
pub struct Machine {
    pub core: VmiCore<FlatDriver>,
    pub options: Options,
    /// Start of the direct map.
    pub direct: Va,
    /// A process's table, as a vCPU in the kernel has it in CR3.
    pub root: Pa,
    /// The same for a vCPU in user mode.
    pub user_root: Pa,
    kernel_tables: Pa,
    free: Cell<u64>,
    next_table: Cell<u64>,
}

const FRAMES: u64 = 0x800;
const TEXT: Va = Va(0xffff_ffff_9a20_0000);
const TEXT_PA: u64 = 0x20_0000;
const TEXT_BYTES: u64 = 0x1_0000;
const RODATA: Va = Va(TEXT.0 + TEXT_BYTES);
const RODATA_BYTES: u64 = 0x4_0000;
const DATA: Va = Va(RODATA.0 + RODATA_BYTES);
const DATA_BYTES: u64 = 0x1_0000;
const BANNER: Va = Va(RODATA.0 + 0x1_8000);
const TYPES: Va = Va(RODATA.0 + 0x2_0000);
const INIT_TASK: Va = DATA;
const VARIABLES: Va = Va(DATA.0 + 0x1000);
const TOP_TABLES: Va = Va(DATA.0 + 0x2000);
const SYSTEM_CALLS: Va = Va(DATA.0 + 0x1800);
const IDT: Va = Va(0xffff_fe00_0000_0000);
const IDT_PA: u64 = 0x1000;
/// Per-CPU data of CPU n: one page each.
const PER_CPU_PA: u64 = 0x4000;
const CURRENT_TASK: u64 = 0x100;
const RUN_QUEUES: u64 = 0x200;
/// Where processes have their arguments.
const STACK: Va = Va(0x7ffd_0000_0000);
const NX: u64 = 1 << 63;
/// Of the only system call.
const OPENAT_NUMBER: u64 = 257;

/// The kernel's symbols, without those of the type information.
pub fn symbols(text: Va, form: Form) -> Vec<(String, Va)> {
    let at = |va: Va| Va(va.0.wrapping_sub(TEXT.0).wrapping_add(text.0));
    // Kernels without absolute symbols have their per-CPU section in the image.
    let per_cpu = if form.has_absolute() { Va(0) } else { at(DATA) + 0x8000 };
    let mut symbols = vec![
        ("current_task".to_owned(), per_cpu + CURRENT_TASK),
        ("runqueues".to_owned(), per_cpu + RUN_QUEUES),
        ("_text".to_owned(), text),
        ("_stext".to_owned(), text),
    ];
    symbols.extend((0..1500).map(|i| (format!("sys_read_{i}"), text + 0x1000 + i * 16)));
    let known = [
        ("asm_exc_page_fault", text + 0x40),
        ("force_sig_fault", text + 0x80),
        ("linux_banner", at(BANNER)),
        ("init_task", at(INIT_TASK)),
        ("page_offset_base", at(VARIABLES)),
        ("nr_cpu_ids", at(VARIABLES) + 8),
        ("__per_cpu_offset", at(VARIABLES) + 0x10),
        ("do_syscall_64", text + 0xe000),
        ("__x64_sys_openat", text + 0xe100),
        ("__ia32_compat_sys_openat", text + 0xe200),
        ("simple_dname", text + 0xe300),
        ("pipefs_dname", text + 0xe310),
        ("sockfs_dname", text + 0xe320),
        ("anon_inodefs_dname", text + 0xe330),
        ("ns_dname", text + 0xe340),
        ("dmabuffs_dname", text + 0xe350),
        ("pidfs_dname", text + 0xe360),
        ("migrate_pages", text + 0xe400),
        ("memory_failure", text + 0xe410),
        ("make_device_exclusive", text + 0xe420),
        ("handle_userfault", text + 0xe430),
        ("nr_swapfiles", at(Machine::SWAP_FILES)),
        ("swap_info", at(Machine::SWAP_FILES) + 8),
        ("modules", at(Machine::MODULES)),
        ("module_kset", at(Machine::MODULE_SET)),
        ("mod_tree", at(Machine::MODULE_TREE)),
        ("sys_call_table", at(SYSTEM_CALLS)),
        ("__syscall_meta__openat", at(Machine::OPENAT_FACTS)),
        ("init_pid_ns", at(VARIABLES) + 0x100),
        ("tasklist_lock", at(Machine::TASK_LIST_LOCK)),
        ("init_top_pgt", at(TOP_TABLES)),
        ("level2_kernel_pgt", at(TOP_TABLES) + 0x2000),
    ];
    symbols.extend(known.map(|(name, va)| (name.to_owned(), va)));
    symbols.push((format!("long_{}", "x".repeat(200)), text + 0xf000));
    symbols
}

impl Machine {
    /// The heads of the list of modules, of the set of their folders, of the tree of their addresses.
    pub const MODULES: Va = Va(VARIABLES.0 + 0x20);
    pub const MODULE_SET: Va = Va(VARIABLES.0 + 0x28);
    pub const MODULE_TREE: Va = Va(VARIABLES.0 + 0x30);
    /// How many swap files there are, and where pointers to them are.
    pub const SWAP_FILES: Va = Va(VARIABLES.0 + 0x60);
    /// The lock of the lists of tasks.
    pub const TASK_LIST_LOCK: Va = Va(VARIABLES.0 + 0x80);
    /// What is traced of the only system call, and the function that serves it.
    pub const OPENAT_FACTS: Va = Va(VARIABLES.0 + 0x700);
    pub const OPENAT: Va = Va(TEXT.0 + 0xe100);

    /// Where the image starts.
    pub fn base(&self) -> Va {
        TEXT
    }

    /// A kernel that is up: the idle task and no process yet, two CPUs.
    pub fn new(options: Options) -> Self {
        let core = crate::support::core(FRAMES);
        core.set_paging_levels(options.levels);
        let direct = if options.levels == 5 { Va(0xff11_4567_4000_0000) } else { Va(0xffff_9c3d_4000_0000) };
        let mut machine = Self {
            core,
            options,
            direct,
            root: Pa(0),
            user_root: Pa(0),
            kernel_tables: Pa(Self::image_pa(TOP_TABLES)),
            free: Cell::new(0x40_0000),
            next_table: Cell::new(0x10),
        };
        machine.map_kernel();
        machine.write_image();
        machine.write_variables();
        (machine.root, machine.user_root) = machine.address_space("");
        machine
    }

    fn image_pa(va: Va) -> u64 {
        TEXT_PA + (va - TEXT)
    }

    fn driver(&self) -> &FlatDriver {
        self.core.driver()
    }

    fn map_kernel(&self) {
        // The kernel's own top table lies in the image; all others elsewhere.
        self.next_table.set(self.kernel_tables.0 / 0x1000);
        let tables = Tables::new(self.driver(), &self.next_table, self.options.levels);
        self.next_table.set(0x10);
        let protect = |va: Va, bytes: u64, flags: u64| {
            for page in 0..bytes / 0x1000 {
                let pa = Pa(Self::image_pa(va) + page * 0x1000);
                let entry = tables.map(va + page * 0x1000, pa, PageSize::Small);
                self.driver().poke64(entry.0, pa.0 | flags);
            }
        };
        protect(TEXT, TEXT_BYTES, 1);
        protect(RODATA, RODATA_BYTES, 1 | NX);
        protect(DATA, DATA_BYTES, 3 | NX);
        for large in 0..FRAMES / 512 {
            tables.map(self.direct + (large << 21), Pa(large << 21), PageSize::Large);
        }
        tables.map(IDT, Pa(IDT_PA), PageSize::Small);
        // The gate of the page fault, vector 14.
        let handler = TEXT.0 + 0x40;
        let low = handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        self.driver().poke64(IDT_PA + 14 * 16, low);
        self.driver().poke64(IDT_PA + 14 * 16 + 8, handler >> 32);
        if self.options.isolated {
            // The user's half of the kernel's own table: the image by tables of its own.
            self.map_user_side(self.kernel_tables + 0x1000);
        }
    }

    /// What user mode sees of the kernel under isolation: its code and the IDT.
    fn map_user_side(&self, root: Pa) {
        let next = self.next_table.get();
        self.next_table.set(root.0 / 0x1000);
        let tables = Tables::new(self.driver(), &self.next_table, self.options.levels);
        self.next_table.set(next);
        tables.map_range(TEXT, Pa(TEXT_PA), TEXT_BYTES / 0x1000);
        tables.map(IDT, Pa(IDT_PA), PageSize::Small);
    }

    fn write_image(&self) {
        let mut symbols = symbols(TEXT, self.options.form);
        let types = self.options.btf.then(|| {
            let mut writer = BtfWriter::default();
            for (name, members) in FACTS {
                writer.paths(name, members);
            }
            writer.enumeration("pageflags", &["PG_locked", "PG_anon_exclusive"]);
            writer.finish()
        });
        if let Some(types) = &types {
            assert!(types.len() < 0x2_0000);
            self.poke(TYPES, types);
            symbols.push(("__start_BTF".to_owned(), TYPES));
            symbols.push(("__stop_BTF".to_owned(), TYPES + types.len() as u64));
        }
        let tables = tables(&symbols, RODATA, self.options.form);
        assert!(tables.len() < 0x1_8000);
        self.poke(RODATA, &tables);
        self.poke(BANNER, b"Linux version 6.99.1-test (someone@somewhere) (gcc (x) 12) #1 SMP Tue (2026-11-21)\n\0");
    }

    fn write_variables(&self) {
        self.poke64(VARIABLES, self.direct.0);
        self.poke64(VARIABLES + 8, 2);
        for cpu in 0..2 {
            self.poke64(VARIABLES + 0x10 + cpu * 8, self.per_cpu_base(cpu));
            let queue = self.direct + PER_CPU_PA + cpu * 0x1000 + RUN_QUEUES + offset("rq", "cfs_tasks");
            self.poke64(queue, queue.0);
            self.set_current(cpu, INIT_TASK);
        }
        self.poke64(Self::MODULES, Self::MODULES.0);
        self.poke64(SYSTEM_CALLS + OPENAT_NUMBER * 8, Self::OPENAT.0);
        let idle = INIT_TASK;
        self.poke64(idle + offset("task_struct", "tasks"), (idle + offset("task_struct", "tasks")).0);
        self.poke(idle + offset("task_struct", "comm"), b"swapper/0\0");
        self.poke64(idle + offset("task_struct", "group_leader"), idle.0);
        let head = VARIABLES + 0x100 + offset("pid_namespace", "idr.idr_rt.xa_head");
        self.poke64(head, self.alloc(0x400).0 | 2);
    }

    /// What GS holds on a CPU in the kernel.
    pub fn per_cpu_base(&self, cpu: u64) -> u64 {
        let data = (self.direct + PER_CPU_PA + cpu * 0x1000).0;
        if self.options.form.has_absolute() { data } else { data.wrapping_sub(DATA.0 + 0x8000) }
    }

    pub fn set_current(&self, cpu: u64, task: Va) {
        self.poke64(self.direct + PER_CPU_PA + cpu * 0x1000 + CURRENT_TASK, task.0);
    }

    /// Puts a task into a CPU's run queue, alone.
    pub fn enqueue(&self, cpu: u64, task: Va) {
        let head = self.direct + PER_CPU_PA + cpu * 0x1000 + RUN_QUEUES + offset("rq", "cfs_tasks");
        let node = task + offset("task_struct", "se.group_node");
        self.poke64(head, node.0);
        self.poke64(node, head.0);
    }

    /// The registers of a vCPU in the kernel, or in user mode.
    pub fn registers(&self, user: bool) -> Amd64Registers {
        let mut registers = Amd64Registers {
            cr0: 1 << 31,
            cr3: if user { self.user_root.0 } else { self.root.0 },
            cr4: if self.options.levels == 5 { Amd64Registers::CR4_LA57 } else { 0 },
            efer: Amd64Registers::EFER_LMA,
            idt_base: IDT.0,
            ..Amd64Registers::default()
        };
        registers.cs.selector = if user { 0x33 } else { 0x10 };
        registers.cs.long = true;
        registers.gs.base = self.per_cpu_base(1);
        if user {
            registers.kernel_gs_base = std::mem::replace(&mut registers.gs.base, 0x7f00_0000);
        }
        registers
    }

    // --- Memory -----------------------------------------------------------------------------------------------------

    /// The physical address of one of the kernel's addresses.
    pub fn pa(&self, va: Va) -> u64 {
        if va >= TEXT { Self::image_pa(va) } else { va - self.direct }
    }

    pub fn poke(&self, va: Va, bytes: &[u8]) {
        self.driver().poke(self.pa(va), bytes);
    }

    pub fn poke64(&self, va: Va, value: u64) {
        self.poke(va, &value.to_le_bytes());
    }

    pub fn poke32(&self, va: Va, value: u32) {
        self.poke(va, &value.to_le_bytes());
    }

    pub fn peek64(&self, va: Va) -> u64 {
        self.driver().peek64(self.pa(va))
    }

    /// The physical memory that objects, tables and the image's data are in: from, to.
    pub fn used(&self) -> [(u64, u64); 3] {
        [
            (0x1_0000, self.next_table.get() * 0x1000),
            (Self::image_pa(DATA), Self::image_pa(DATA) + 0x2000),
            (0x40_0000, self.free.get()),
        ]
    }

    /// Zeroed memory of the kernel's heap.
    pub fn alloc(&self, bytes: u64) -> Va {
        let pa = self.free.get().next_multiple_of(256);
        self.free.set(pa + bytes);
        assert!(pa + bytes <= FRAMES * 0x1000);
        self.direct + pa
    }

    pub(super) fn string(&self, text: &str) -> Va {
        let at = self.alloc(text.len() as u64 + 1);
        self.poke(at, text.as_bytes());
        at
    }

    // --- Processes --------------------------------------------------------------------------------------------------

    /// A new address space: its table in the kernel, and the one in user mode.
    fn address_space(&self, arguments: &str) -> (Pa, Pa) {
        // Two pages side by side, as under isolation.
        self.next_table.set(self.next_table.get().next_multiple_of(2));
        let tables = Tables::new(self.driver(), &self.next_table, self.options.levels);
        let root = tables.root();
        self.next_table.set(self.next_table.get() + 1);
        for slot in 256..512 {
            self.driver().poke64(root.0 + slot * 8, self.driver().peek64(self.kernel_tables.0 + slot * 8));
        }
        let page = self.alloc(0x2000).0.next_multiple_of(0x1000);
        self.poke(Va(page), arguments.as_bytes());
        tables.map(STACK, Pa(self.pa(Va(page))), PageSize::Small);
        if !self.options.isolated {
            return (root, root);
        }
        self.map_user_side(root + 0x1000);
        (root, root + 0x1000)
    }

    /// Makes a process with one thread, in the list and in the table of ids; its parent is the idle task.
    pub fn spawn(&self, spawn: Spawn) -> Va {
        let task = self.task(spawn.pid, spawn.pid, spawn.name);
        let at = |member| task + offset("task_struct", member);
        if let Some(arguments) = spawn.arguments {
            let mm = self.alloc(0x200);
            let (root, _) = self.address_space(&arguments.replace(' ', "\0"));
            self.poke64(mm + offset("mm_struct", "pgd"), (self.direct + root.0).0);
            self.poke64(mm + offset("mm_struct", "arg_start"), STACK.0);
            self.poke64(mm + offset("mm_struct", "arg_end"), STACK.0 + arguments.len() as u64 + 1);
            self.poke64(mm + offset("mm_struct", "start_stack"), STACK.0 + 0x800);
            self.poke64(at("mm"), mm.0);
        } else {
            self.poke32(at("flags"), 0x20_0000);
        }
        let signal = self.alloc(0x100);
        self.poke32(signal + offset("signal_struct", "nr_threads"), 1);
        let (head, node) = (signal + offset("signal_struct", "thread_head"), at("thread_node"));
        self.poke64(head, node.0);
        self.poke64(node, head.0);
        self.poke64(at("signal"), signal.0);
        let cred = self.alloc(0x100);
        self.poke32(cred + offset("cred", "uid"), 1000);
        self.poke64(at("real_cred"), cred.0);
        self.poke64(at("start_boottime"), u64::from(spawn.pid) * 1_000_000);
        self.link(task);
        self.give_id(spawn.pid, task);
        task
    }

    /// A task of its own.
    fn task(&self, pid: u32, tgid: u32, name: &str) -> Va {
        let task = self.alloc(0x300);
        let at = |member| task + offset("task_struct", member);
        self.poke32(at("pid"), pid);
        self.poke32(at("tgid"), tgid);
        self.poke(at("comm"), name.as_bytes());
        self.poke64(at("real_parent"), INIT_TASK.0);
        self.poke64(at("group_leader"), task.0);
        task
    }

    /// Adds a thread to a process.
    pub fn add_thread(&self, process: Va, tid: u32, name: &str) -> Va {
        let tgid = self.peek64(process + offset("task_struct", "tgid")) as u32;
        let task = self.task(tid, tgid, name);
        self.poke64(task + offset("task_struct", "group_leader"), process.0);
        for member in ["signal", "mm", "real_cred"] {
            self.poke64(task + offset("task_struct", member), self.peek64(process + offset("task_struct", member)));
        }
        let (first, node) =
            (process + offset("task_struct", "thread_node"), task + offset("task_struct", "thread_node"));
        self.poke64(node, self.peek64(first));
        self.poke64(first, node.0);
        let threads =
            Va(self.peek64(process + offset("task_struct", "signal"))) + offset("signal_struct", "nr_threads");
        self.poke32(threads, self.peek64(threads) as u32 + 1);
        self.give_id(tid, task);
        // The id of a thread is that of no process.
        self.poke64(Va(self.peek64(self.id_slot(tid))) + offset("pid", "tasks") + 8, 0);
        task
    }

    fn link(&self, task: Va) {
        let node = |task: Va| task + offset("task_struct", "tasks");
        let head = node(INIT_TASK);
        let mut last = head;
        while self.peek64(last) != head.0 {
            last = Va(self.peek64(last));
        }
        self.poke64(last, node(task).0);
        self.poke64(node(task), head.0);
    }

    /// Takes a process out of the list, as a rootkit does.
    pub fn unlink(&self, task: Va) {
        let node = task + offset("task_struct", "tasks");
        let mut before = INIT_TASK + offset("task_struct", "tasks");
        while self.peek64(before) != node.0 {
            before = Va(self.peek64(before));
        }
        self.poke64(before, self.peek64(node));
    }

    fn id_slot(&self, pid: u32) -> Va {
        let head = VARIABLES + 0x100 + offset("pid_namespace", "idr.idr_rt.xa_head");
        assert!(pid < 64, "the table of ids has one node");
        Va(self.peek64(head) & !3) + offset("xa_node", "slots") + u64::from(pid) * 8
    }

    fn give_id(&self, pid: u32, task: Va) {
        let id = self.alloc(0x80);
        self.poke64(self.id_slot(pid), id.0);
        let links = task + offset("task_struct", "pid_links");
        self.poke64(id + offset("pid", "tasks"), links.0);
        self.poke64(id + offset("pid", "tasks") + 8, links.0 + 16);
    }

    /// Takes a thread out of its process's list, as a rootkit does.
    pub fn unlink_thread(&self, process: Va, thread: Va) {
        let head = Va(self.peek64(process + offset("task_struct", "signal"))) + offset("signal_struct", "thread_head");
        self.take(head, thread + offset("task_struct", "thread_node"));
    }

    /// Gives an id to whatever is at an address.
    pub fn forge_id(&self, pid: u32, task: Va) {
        self.give_id(pid, task);
    }

    /// Takes an id out of the table.
    pub fn take_id(&self, pid: u32) {
        self.poke64(self.id_slot(pid), 0);
    }

    // --- Files and regions ------------------------------------------------------------------------------------------

    /// An open file on the root file system; the parts of its path from the root on.
    pub fn file(&self, path: &[&str]) -> Va {
        let (superblock, kind) = (self.alloc(0x80), self.alloc(0x40));
        self.poke64(superblock + offset("super_block", "s_type"), kind.0);
        self.poke64(kind + offset("file_system_type", "name"), self.string("ext4").0);
        let entry = |name: &str, parent: Option<Va>| {
            let dentry = self.alloc(0x80);
            let at = |member| dentry + offset("dentry", member);
            self.poke64(at("d_hash.pprev"), 1);
            self.poke64(at("d_parent"), parent.unwrap_or(dentry).0);
            self.poke32(at("d_name.len"), name.len() as u32);
            self.poke64(at("d_name.name"), self.string(name).0);
            self.poke64(at("d_sb"), superblock.0);
            dentry
        };
        let top = entry("/", None);
        let dentry = path.iter().fold(top, |parent, name| entry(name, Some(parent)));
        let mount = self.alloc(0x100);
        self.poke64(mount + offset("mount", "mnt_parent"), mount.0);
        self.poke64(mount + offset("mount", "mnt_mountpoint"), top.0);
        self.poke64(mount + offset("mount", "mnt.mnt_root"), top.0);
        self.poke64(mount + offset("mount", "mnt.mnt_sb"), superblock.0);
        let file = self.alloc(0x100);
        self.poke64(file + offset("file", "f_path.mnt"), (mount + offset("mount", "mnt")).0);
        self.poke64(file + offset("file", "f_path.dentry"), dentry.0);
        file
    }

    /// Gives a process its open files, numbered from 0.
    pub fn open(&self, task: Va, files: &[Va]) {
        let (structure, table, array) = (self.alloc(0x80), self.alloc(0x40), self.alloc(files.len() as u64 * 8));
        self.poke64(task + offset("task_struct", "files"), structure.0);
        self.poke64(structure + offset("files_struct", "fdt"), table.0);
        self.poke32(table + offset("fdtable", "max_fds"), files.len() as u32);
        self.poke64(table + offset("fdtable", "fd"), array.0);
        for (i, file) in files.iter().enumerate() {
            self.poke64(array + i as u64 * 8, file.0);
        }
    }

    /// Gives a process its regions, at most four: start, end, flags, file. Each gets a leaf of its own below one node.
    pub fn set_regions(&self, task: Va, regions: &[(u64, u64, u64, Va)]) {
        let mm = Va(self.peek64(task + offset("task_struct", "mm")));
        let top = self.alloc(256);
        self.poke64(mm + offset("mm_struct", "mm_mt.ma_root"), top.0 | 3 << 3 | 2);
        for (i, &(start, end, flags, file)) in regions.iter().enumerate() {
            let area = self.alloc(0x80);
            for (member, value) in [("vm_start", start), ("vm_end", end), ("vm_flags", flags), ("vm_file", file.0)] {
                self.poke64(area + offset("vm_area_struct", member), value);
            }
            let leaf = self.alloc(256);
            let pivots = leaf + offset("maple_range_64", "pivot");
            self.poke64(pivots, start - 1);
            self.poke64(pivots + 8, end - 1);
            self.poke64(leaf + offset("maple_range_64", "slot") + 8, area.0);
            let last = if i + 1 == regions.len() { u64::MAX } else { end - 1 };
            self.poke64(top + offset("maple_arange_64", "pivot") + i as u64 * 8, last);
            self.poke64(top + offset("maple_arange_64", "slot") + i as u64 * 8, leaf.0 | 1 << 3);
        }
    }

    /// Takes away the page that a process has its arguments in.
    pub fn page_out_arguments(&self, root: Pa) {
        self.set_entry(root, PageTableLevel::Pt, 0);
    }

    /// Writes the entry of a level that leads to the page that a process has its arguments in.
    pub fn set_entry(&self, root: Pa, level: PageTableLevel, value: u64) {
        let tables = Tables::under(self.driver(), &self.next_table, self.options.levels, root);
        let entry = tables.entry(STACK, level).expect("a table of that level");
        self.driver().poke64(entry.0, value);
    }

    /// Maps so many pages, one behind the other, where a process has its arguments.
    pub fn map_arguments(&self, root: Pa, pages: u64) -> Va {
        let memory = Va(self.alloc((pages + 1) * 0x1000).0.next_multiple_of(0x1000));
        let tables = Tables::under(self.driver(), &self.next_table, self.options.levels, root);
        tables.map_range(STACK, Pa(self.pa(memory)), pages);
        memory
    }

    /// Where processes have their arguments.
    pub fn arguments_at(&self) -> Va {
        STACK
    }
}
