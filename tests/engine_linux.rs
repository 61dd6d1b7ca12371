//! The Linux layer on a kernel that was written by hand: nothing of it is known to the layer, and all of it may lie.

#[path = "engine_linux/hostile.rs"]
mod hostile;
#[path = "engine_linux/names.rs"]
mod names;
#[path = "engine_linux/pages.rs"]
mod pages;
mod support;

use indexmap::IndexSet;
use proptest::prelude::*;
use vmscope::engine::{
    addr::{AddressContext, Pa, Va, VcpuId},
    arch::amd64::Amd64Registers,
    os::{CurrentProcess, ProcessList, VmiOs, linux::LinuxOs},
    session::{VmiProber, VmiSession},
    snapshot::{Process, ProcessDetail, ProcessFlag},
};

use crate::support::{
    FlatDriver,
    linux::{FACTS, Form, Machine, Options, Spawn, offset},
};

const INIT: Spawn = Spawn { pid: 1, name: "init", arguments: Some("/sbin/init --quiet") };
const KTHREAD: Spawn = Spawn { pid: 2, name: "kthreadd", arguments: None };
const SHELL: Spawn = Spawn { pid: 7, name: "sh\x1b[2J", arguments: Some("sh") };

fn attach(machine: &Machine) -> LinuxOs {
    LinuxOs::detect(&machine.core, &machine.registers(false), None).expect("a kernel")
}

fn base(os: &LinuxOs) -> Va {
    VmiOs::<FlatDriver>::kernel_image_base(os)
}

fn processes(machine: &Machine, os: &LinuxOs) -> ProcessList {
    os.processes(VmiSession::new(&machine.core, os)).expect("a list")
}

fn process(machine: &Machine, os: &LinuxOs, pid: u32) -> Process {
    processes(machine, os).processes.into_iter().find(|process| process.pid == pid).expect("the process")
}

fn detail(machine: &Machine, os: &LinuxOs, pid: u32) -> (ProcessDetail, VmiProber) {
    let prober = VmiProber::new(&IndexSet::new());
    let process = process(machine, os, pid);
    let detail = os.process_detail(VmiSession::new(&machine.core, os), &process, &prober).expect("a detail");
    (detail, prober)
}

fn current(machine: &Machine, os: &LinuxOs, registers: &Amd64Registers) -> Option<CurrentProcess> {
    os.current_process(VmiSession::new(&machine.core, os).with_registers(registers)).expect("readable")
}

fn hidden(list: &ProcessList) -> Vec<u32> {
    let hidden = list.processes.iter().filter(|process| process.flags.contains(&ProcessFlag::Hidden));
    hidden.map(|process| process.pid).collect()
}

#[test]
fn every_kind_of_kernel_is_found_from_kernel_and_user_mode() {
    for levels in [4, 5] {
        for isolated in [false, true] {
            for form in Form::ALL {
                let options = Options { levels, isolated, form, btf: true };
                let machine = Machine::new(options);
                machine.spawn(INIT);
                machine.core.set_paging_levels(4);
                for user in [false, true] {
                    let os = LinuxOs::detect(&machine.core, &machine.registers(user), None).expect("a kernel");
                    assert_eq!(machine.core.paging_levels(), levels, "{options:?}");
                    assert_eq!(os.is_isolated(), isolated, "{options:?}");
                    assert_eq!(processes(&machine, &os).processes.len(), 1, "{options:?}");
                    assert_eq!(base(&os), Va(0xffff_ffff_9a20_0000), "{options:?}");
                }
            }
        }
    }
}

#[test]
fn the_kernel_says_what_it_is() {
    let machine = Machine::new(Options::default());
    let os = attach(&machine);
    assert_eq!(VmiOs::<FlatDriver>::version(&os), "Linux 6.99.1-test #1 SMP Tue (2026-11-21)");
    let symbols = VmiOs::<FlatDriver>::symbols(&os);
    let refused = symbols.lookup("force_sig_fault").expect("a symbol");
    assert_eq!(VmiOs::<FlatDriver>::fault_refused_at(&os), Some(refused));
    assert_eq!(symbols.describe(refused + 2, 16).as_deref(), Some("force_sig_fault+0x2"));
}

#[test]
fn a_guest_without_a_kernel_is_told_in_a_sentence() {
    let machine = Machine::new(Options::default());
    let detect = |registers: &Amd64Registers| match LinuxOs::detect(&machine.core, registers, None) {
        Ok(_) => panic!("there is no kernel"),
        Err(error) => error.to_string(),
    };
    let kernel = machine.registers(false);
    assert!(detect(&Amd64Registers::default()).contains("not in 64-bit mode"));
    assert!(detect(&Amd64Registers { cr0: 0, ..kernel }).contains("not in 64-bit mode"));
    // Paging with and without PAE, but without long mode (0x800 is EFER.NXE).
    for (cr4, efer) in [(0, 0), (0, 0x800), (1 << 5, 0x800)] {
        assert!(detect(&Amd64Registers { cr4, efer, ..kernel }).contains("32-bit system, which vmscope does not read"));
    }
    assert!(
        detect(&Amd64Registers { cr3: 0x70_0000, ..kernel }).contains("no Linux kernel is mapped under CR3 0x700000")
    );
    // An interrupt table that leads elsewhere: whatever is mapped there is not what the CPU runs.
    assert!(detect(&Amd64Registers { idt_base: 0xffff_ffff_9a20_0000, ..kernel }).contains("no Linux kernel"));
}

#[test]
fn a_kernel_without_type_information_asks_for_a_profile_and_takes_it() {
    let machine = Machine::new(Options { btf: false, ..Options::default() });
    machine.spawn(INIT);
    let registers = machine.registers(false);
    let error = LinuxOs::detect(&machine.core, &registers, None).err().expect("no layouts").to_string();
    assert!(error.contains("Linux 6.99.1-test") && error.contains("--profile FILE"), "{error}");

    let fact = |(path, at): &(&str, u64)| format!("\"{path}\": \"{at:#x}\"");
    let members = |members: &[(&str, u64)]| members.iter().map(fact).collect::<Vec<_>>().join(", ");
    let structures: Vec<String> =
        FACTS.iter().map(|(name, facts)| format!("\"{name}\": {{{}}}", members(facts))).collect();
    let profile = format!("{{{}}}", structures.join(", "));
    let os = LinuxOs::detect(&machine.core, &registers, Some(&profile)).expect("a kernel");
    assert_eq!(process(&machine, &os, 1).name, "init");

    for (profile, part) in [
        ("nonsense", "the profile is not of the form"),
        (r#"{"task_struct": {"tasks": "12"}}"#, "not a number like 0x1f"),
        (r#"{"task_struct": {"tasks": "0xffffffffffffffff"}}"#, "is no offset in a structure"),
        (r#"{"task_struct": {"tasks": 8}}"#, "does not say where task_struct.pid is"),
    ] {
        let error = LinuxOs::detect(&machine.core, &registers, Some(profile)).err().expect("a bad profile").to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_list_has_what_the_kernel_knows_of_each_process() {
    let machine = Machine::new(Options::default());
    let init = machine.spawn(INIT);
    let kernel = machine.spawn(KTHREAD);
    let shell = machine.spawn(SHELL);
    machine.add_thread(shell, 8, "worker");
    machine.poke64(shell + offset("task_struct", "real_parent"), init.0);
    machine.poke32(shell + offset("task_struct", "exit_state"), 0x20);
    let os = attach(&machine);
    let list = processes(&machine, &os);
    assert!(!list.truncated);
    let [first, second, third] = list.processes.as_slice() else { panic!("three processes: {list:?}") };
    assert_eq!((first.pid, first.ppid, first.name.as_str(), first.object), (1, 0, "init", init));
    assert_eq!((first.threads, first.start_ns, first.uid), (1, 1_000_000, Some(1000)));
    assert!(first.flags.is_empty() && first.root.is_some());
    assert_eq!((second.object, second.root), (kernel, None));
    assert_eq!(second.flags, [ProcessFlag::Kernel]);
    assert_eq!((third.pid, third.ppid, third.threads), (7, 1, 2));
    assert_eq!(third.name, "sh\u{241b}[2J");
    assert_eq!(third.flags, [ProcessFlag::Exiting]);
}

#[test]
fn a_kernel_thread_goes_by_its_long_name() {
    let machine = Machine::new(Options::default());
    let task = machine.spawn(Spawn { name: "rcu_tasks_trace", ..KTHREAD });
    let (kthread, name) = (machine.alloc(0x80), machine.alloc(64));
    machine.poke(name, b"rcu_tasks_trace_kthread\0");
    machine.poke64(kthread + offset("kthread", "full_name"), name.0);
    machine.poke64(task + offset("task_struct", "worker_private"), kthread.0);
    let os = attach(&machine);
    assert_eq!(process(&machine, &os, 2).name, "rcu_tasks_trace_kthread");
    // A name that is not a longer form of the short one is not believed.
    machine.poke(name, b"something else\0");
    assert_eq!(process(&machine, &os, 2).name, "rcu_tasks_trace");
}

#[test]
fn what_one_side_only_knows_is_hidden() {
    let machine = Machine::new(Options::default());
    machine.spawn(INIT);
    let shell = machine.spawn(SHELL);
    let kernel = machine.spawn(KTHREAD);
    let os = attach(&machine);
    assert!(hidden(&processes(&machine, &os)).is_empty());

    machine.unlink(shell);
    let list = processes(&machine, &os);
    assert_eq!(hidden(&list), [7]);
    assert_eq!(list.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [1, 2, 7]);

    // Out of the table of ids as well, it is still seen when it runs or wants to.
    machine.take_id(7);
    assert!(hidden(&processes(&machine, &os)).is_empty());
    machine.enqueue(1, shell);
    assert_eq!(hidden(&processes(&machine, &os)), [7]);
    let thread = machine.add_thread(kernel, 9, "kthread");
    machine.set_current(0, thread);
    assert_eq!(hidden(&processes(&machine, &os)), [7]);
    machine.unlink(kernel);
    machine.take_id(2);
    assert_eq!(hidden(&processes(&machine, &os)), [2, 7]);
    machine.take_id(1);
    assert_eq!(hidden(&processes(&machine, &os)), [1, 2, 7]);

    // In one order, however often they are found.
    let other = machine.spawn(Spawn { pid: 8, ..SHELL });
    machine.unlink(other);
    machine.take_id(8);
    machine.enqueue(0, other);
    for _ in 0..16 {
        assert_eq!(hidden(&processes(&machine, &os)), [1, 2, 8, 7]);
    }
}

#[test]
fn a_thread_that_one_side_only_knows_is_hidden() {
    let machine = Machine::new(Options::default());
    let shell = machine.spawn(INIT);
    let thread = machine.add_thread(shell, 8, "worker");
    let other = machine.add_thread(shell, 9, "other");
    let os = attach(&machine);
    let threads = || {
        let threads = detail(&machine, &os, 1).0.threads;
        threads.into_iter().map(|thread| (thread.tid, thread.hidden)).collect::<Vec<_>>()
    };
    assert_eq!(threads(), [(1, false), (9, false), (8, false)]);
    machine.unlink_thread(shell, thread);
    assert_eq!(threads(), [(1, false), (9, false), (8, true)]);
    assert_eq!(processes(&machine, &os).hidden_threads, [(1, 8)]);
    // Out of the table of ids as well, it is still seen when it runs or wants to.
    machine.take_id(8);
    assert_eq!(threads(), [(1, false), (9, false)]);
    assert!(processes(&machine, &os).hidden_threads.is_empty());
    machine.set_current(1, thread);
    assert_eq!(threads(), [(1, false), (9, false), (8, true)]);
    assert_eq!(processes(&machine, &os).hidden_threads, [(1, 8)]);
    machine.set_current(1, shell);
    machine.enqueue(0, thread);
    assert_eq!(threads(), [(1, false), (9, false), (8, true)]);
    // In the list and nowhere else; but for one that has ended, which has given its id back.
    machine.take_id(9);
    assert_eq!(threads(), [(1, false), (9, true), (8, true)]);
    machine.poke32(other + offset("task_struct", "exit_state"), 0x10);
    assert_eq!(threads(), [(1, false), (9, false), (8, true)]);
    assert!(hidden(&processes(&machine, &os)).is_empty(), "the process itself hides from nobody");
}

/// Nobody is called hidden in the midst of a change of the lists.
#[test]
fn what_is_listed_just_now_hides_from_nobody() {
    let machine = Machine::new(Options::default());
    let init = machine.spawn(INIT);
    let shell = machine.spawn(SHELL);
    let thread = machine.add_thread(init, 9, "worker");
    let os = attach(&machine);
    machine.unlink(shell);
    machine.unlink_thread(init, thread);
    let found = || {
        let list = processes(&machine, &os);
        let threads = detail(&machine, &os, 1).0.threads.iter().filter(|thread| thread.hidden).count();
        (hidden(&list).len(), list.hidden_threads.len(), threads)
    };
    // Free, readers in it, a writer that waits for them, and one that has it.
    for (lock, is_held) in [(0, false), (0x200, false), (0x300, false), (0xff, true), (0x1ff, true)] {
        machine.poke32(Machine::TASK_LIST_LOCK, lock);
        assert_eq!(found(), if is_held { (0, 0, 0) } else { (1, 1, 1) }, "{lock:#x}");
    }
}

/// References that the guest changed while they were followed lead anywhere.
#[test]
fn what_is_no_task_is_no_process() {
    let machine = Machine::new(Options::default());
    machine.spawn(INIT);
    let shell = machine.spawn(SHELL);
    let os = attach(&machine);
    let node = offset("task_struct", "se.group_node");
    let write = |at: Va, pid: u32, leader: Va| {
        machine.poke32(at + offset("task_struct", "pid"), pid);
        machine.poke32(at + offset("task_struct", "tgid"), pid);
        machine.poke64(at + offset("task_struct", "group_leader"), leader.0);
    };
    // In the midst of the queue of one CPU a task is moved to that of another.
    machine.enqueue(1, shell);
    let other = Va(machine.peek64(shell + node));
    machine.enqueue(0, shell);
    machine.poke64(shell + node, other.0);
    write(other - node, 9, other - node);
    assert!(hidden(&processes(&machine, &os)).is_empty());

    let (current, leader) = (machine.alloc(0x2000), machine.alloc(0x2000));
    write(current, 10, leader);
    write(leader, 10, leader);
    machine.set_current(0, current);
    assert_eq!(hidden(&processes(&machine, &os)), [10], "these could be");
    for (pid, leader_of_leader) in [(11, leader), (10, shell)] {
        write(leader, pid, leader_of_leader);
        assert!(hidden(&processes(&machine, &os)).is_empty());
    }
}

#[test]
fn a_process_that_left_list_and_ids_is_known_by_its_threads() {
    let machine = Machine::new(Options::default());
    machine.spawn(INIT);
    let shell = machine.spawn(SHELL);
    machine.add_thread(shell, 9, "worker");
    let os = attach(&machine);
    machine.unlink(shell);
    machine.take_id(7);
    assert_eq!(hidden(&processes(&machine, &os)), [7]);
    machine.take_id(9);
    assert!(hidden(&processes(&machine, &os)).is_empty());
}

#[test]
fn a_list_that_does_not_end_is_cut_short() {
    let machine = Machine::new(Options::default());
    let init = machine.spawn(INIT);
    machine.spawn(KTHREAD);
    let shell = machine.spawn(SHELL);
    let node = |task: Va| task + offset("task_struct", "tasks");
    let os = attach(&machine);
    machine.poke64(node(shell), node(init).0);
    let list = processes(&machine, &os);
    assert!(list.truncated);
    assert_eq!(list.processes.len(), 3);
    machine.poke64(node(init), 0xdead_0000_0000_0100);
    let list = processes(&machine, &os);
    assert!(list.truncated);
    // What others know of is shown all the same, but a list that was cut hides nothing.
    assert!(list.processes.iter().any(|process| process.pid == 7));
    assert_eq!(hidden(&list), [0; 0]);
}

#[test]
fn the_current_process_is_the_one_of_the_vcpus_own_data() {
    for form in [Form::Behind, Form::Unsigned] {
        let machine = Machine::new(Options { form, ..Options::default() });
        let shell = machine.spawn(SHELL);
        let thread = machine.add_thread(shell, 8, "worker");
        let os = attach(&machine);
        machine.set_current(1, thread);
        let running =
            CurrentProcess { pid: 7, tid: 8, name: "sh\u{241b}[2J".to_owned(), object: shell, start_ns: 7_000_000 };
        for user in [false, true] {
            assert_eq!(current(&machine, &os, &machine.registers(user)).as_ref(), Some(&running));
        }
        let by_number = os.current_process_of(&machine.core, VcpuId(1)).expect("readable");
        assert_eq!(by_number.as_ref(), Some(&running));
        let idle = os.current_process_of(&machine.core, VcpuId(0)).expect("readable").expect("the idle task");
        assert_eq!((idle.pid, idle.name.as_str()), (0, "swapper/0"));
        assert_eq!(os.current_process_of(&machine.core, VcpuId(2)).expect("no such CPU"), None);
        // Between entry and SWAPGS the two bases are the wrong way round; and user code may make one up.
        let mut entry = machine.registers(true);
        entry.cs.selector = 0x10;
        assert_eq!(current(&machine, &os, &entry).as_ref(), Some(&running));
        entry.kernel_gs_base = 0xffff_8880_0000_1000;
        assert_eq!(current(&machine, &os, &entry), None);
    }
}

#[test]
fn without_the_kernels_base_a_user_process_is_known_by_its_address_space() {
    for isolated in [false, true] {
        let machine = Machine::new(Options { isolated, ..Options::default() });
        let init = machine.spawn(INIT);
        let os = attach(&machine);
        let root = process(&machine, &os, 1).root.expect("an address space");
        let mut registers = machine.registers(true);
        registers.kernel_gs_base = 0;
        registers.cr3 = root.0 | if isolated { 0x1000 } else { 0 };
        assert_eq!(current(&machine, &os, &registers), None);
        machine.set_current(1, init);
        assert_eq!(current(&machine, &os, &registers).map(|current| current.pid), Some(1));
    }
}

#[test]
fn isolation_has_one_root_for_both_tables_of_a_process() {
    for isolated in [false, true] {
        let machine = Machine::new(Options { isolated, ..Options::default() });
        let os = attach(&machine);
        let root = |pa: u64| VmiOs::<FlatDriver>::process_root(&os, Pa(pa));
        assert_eq!(root(0x5000), Pa(if isolated { 0x4000 } else { 0x5000 }));
        assert_eq!(root(machine.user_root.0), machine.root);
    }
}

#[test]
fn the_detail_of_a_process_has_its_parts() {
    for levels in [4, 5] {
        let machine = Machine::new(Options { levels, ..Options::default() });
        let shell = machine.spawn(INIT);
        machine.add_thread(shell, 8, "worker");
        machine.poke32(shell + offset("task_struct", "__state"), 1);
        let (busybox, passwd) = (machine.file(&["bin", "busy\x07box"]), machine.file(&["etc", "passwd"]));
        machine.open(shell, &[Va(0), passwd]);
        machine.set_regions(
            shell,
            &[
                (0x40_0000, 0x40_1000, 0x1, busybox),
                (0x40_1000, 0x58_5000, 0x5, busybox),
                (0x60_0000, 0x60_1000, 0x83, passwd),
                (0x7ffd_0000_0000, 0x7ffd_0002_1000, 0x3, Va(0)),
            ],
        );
        let os = attach(&machine);
        let (detail, prober) = detail(&machine, &os, 1);
        assert!(prober.page_faults().is_empty());
        assert_eq!(detail.command_line.as_deref(), Some("/sbin/init --quiet"));
        assert!(detail.credentials.contains(&("uid".to_owned(), "1000".to_owned())));
        let threads: Vec<_> = detail.threads.iter().map(|t| (t.tid, t.name.as_str(), t.state.as_str())).collect();
        assert_eq!(threads, [(1, "init", "sleeping"), (8, "worker", "running")]);
        assert_eq!(detail.handles, [(1, "/etc/passwd".to_owned())]);
        let regions: Vec<_> =
            detail.regions.iter().map(|r| (r.start.0, r.protection.as_str(), r.name.as_str())).collect();
        assert_eq!(
            regions,
            [
                (0x40_0000, "r--p", "/bin/busy\u{2407}box"),
                (0x40_1000, "r-xp", "/bin/busy\u{2407}box"),
                (0x60_0000, "rw-s", "/etc/passwd"),
                (0x7ffd_0000_0000, "rw-p", "[stack]"),
            ]
        );
        let [image] = detail.modules.as_slice() else { panic!("one image: {:?}", detail.modules) };
        assert_eq!((image.base, image.size), (Va(0x40_0000), 0x18_5000));
        assert_eq!((detail.truncated.len(), detail.unavailable.len()), (0, 0));
    }
}

/// Counts and lengths of all ones: each list says that it was cut, or that it is not there.
#[test]
fn lengths_beyond_all_memory_are_cut() {
    let machine = Machine::new(Options::default());
    let task = machine.spawn(INIT);
    let file = machine.file(&["bin", "sh"]);
    machine.open(task, &[file]);
    machine.set_regions(task, &[(0x40_0000, u64::MAX, u64::MAX, file)]);
    machine.load_module("huge", Va(u64::MAX), u32::MAX);
    let os = attach(&machine);
    let part = |member: &str| Va(machine.peek64(task + offset("task_struct", member)));
    machine.poke64(part("mm") + offset("mm_struct", "arg_end"), u64::MAX);
    machine.poke32(part("signal") + offset("signal_struct", "nr_threads"), u32::MAX);
    let table = Va(machine.peek64(part("files") + offset("files_struct", "fdt")));
    machine.poke32(table + offset("fdtable", "max_fds"), u32::MAX);
    let dentry = Va(machine.peek64(file + offset("file", "f_path.dentry")));
    machine.poke32(dentry + offset("dentry", "d_name.len"), u32::MAX);
    let (detail, _) = detail(&machine, &os, 1);
    assert!(detail.command_line.is_none_or(|line| line.len() < 0x1_0000));
    assert!(detail.threads.len() < 0x1000 && detail.handles.len() <= 4096 && detail.regions.len() < 0x1000);
    assert!(detail.regions.iter().all(|region| region.start <= region.end && region.name.len() <= 4096));
    assert!(os.kernel_modules(&machine.core).is_ok_and(|modules| modules.len() == 1));
    assert_eq!(processes(&machine, &os).processes.len(), 1);
}

#[test]
fn a_modules_symbols_come_and_go_with_it_and_lie_in_its_own_memory() {
    let machine = Machine::new(Options::default());
    let os = attach(&machine);
    let symbols = || VmiOs::<FlatDriver>::symbols(&os);
    let refresh = || os.refresh_symbols(VmiSession::new(&machine.core, &os));
    assert!(!refresh(), "there is no module");
    let base = Va(0xffff_ffff_c040_0000);
    let module = machine.load_module("net", base, 0x1000);
    let init_task = symbols().lookup("init_task").expect("a kernel's symbol");
    machine.module_symbols(
        module,
        &[
            ("open\x1b[2J", base + 0x20, 1),
            ("poll", base + 0x10, 1),
            ("printk", base + 0x30, 0),
            ("init_task", base + 0x40, 1),
            ("mine_now", init_task, 1),
            ("behind", base + 0x1000, 1),
            ("user", Va(0x40_0000), 1),
        ],
    );
    assert!(refresh() && !refresh(), "read once");
    assert_eq!(symbols().place("net!poll"), Ok(Some(base + 0x10)));
    assert_eq!(symbols().describe(base + 0x24, 0x1000).as_deref(), Some("net!open?[2J+0x4"));
    for name in ["printk", "mine_now", "behind", "user"] {
        assert_eq!(symbols().lookup(name), None, "{name}");
    }
    assert_eq!(symbols().place("init_task"), Ok(Some(init_task)), "the kernel's own name stays its own");
    assert_eq!(VmiOs::<FlatDriver>::missing_module(&os, "net!poll"), None);
    machine.hide_module(module);
    refresh();
    assert_eq!(symbols().lookup("net!poll"), Some(base + 0x10), "one that hides keeps its names");
    // A table without an end is cut or left out, and is nobody else's trouble.
    let huge = machine.load_module("huge", base + 0x10_0000, u32::MAX);
    machine.module_symbols(huge, &[("x", base + 0x10_0000, 1)]);
    let table = Va(machine.peek64(huge + offset("module", "kallsyms")));
    machine.poke32(table + offset("mod_kallsyms", "num_symtab"), u32::MAX);
    assert!(refresh());
    assert_eq!(symbols().lookup("net!poll"), Some(base + 0x10));
}

#[test]
fn modules_of_the_kernel_are_listed() {
    let machine = Machine::new(Options::default());
    let os = attach(&machine);
    assert!(os.kernel_modules(&machine.core).expect("an empty list").is_empty());
    let net = machine.load_module("virtio_net", Va(0xffff_ffff_c040_0000), 0x9000);
    let modules = os.kernel_modules(&machine.core).expect("a list");
    let [module] = modules.as_slice() else { panic!("one module: {modules:?}") };
    assert_eq!((module.name.as_str(), module.base, module.size), ("virtio_net", Va(0xffff_ffff_c040_0000), 0x9000));
    assert!(!module.hidden);

    // One that took itself off the list has its folder still, and without that its addresses.
    let rootkit = machine.load_module("rootkit", Va(0xffff_ffff_c060_0000), 0x2000);
    let seen = || {
        let modules = os.kernel_modules(&machine.core).expect("a list");
        modules.into_iter().map(|module| (module.name, module.hidden)).collect::<Vec<_>>()
    };
    let both = |hidden| [("virtio_net".to_owned(), false), ("rootkit".to_owned(), hidden)];
    machine.hide_module(rootkit);
    assert_eq!(seen(), both(true));
    machine.hide_folder();
    assert_eq!(seen(), both(true));
    // They are the modules of every thread of the kernel's.
    machine.spawn(KTHREAD);
    assert_eq!(detail(&machine, &os, 2).0.modules.len(), 2);
    assert_eq!(detail(&machine, &os, 2).0.command_line.as_deref(), Some(""));
    // A list that does not end hides nothing.
    let links = net + offset("module", "list");
    machine.poke64(links, links.0);
    assert_eq!(seen().len(), 1);
    assert_eq!(detail(&machine, &os, 2).0.truncated, ["modules"]);
}

#[test]
fn sockets_say_what_they_are_connected_to() {
    let machine = Machine::new(Options::default());
    let shell = machine.spawn(INIT);
    let none: [(&[u8], u16); 2] = [(&[0; 4], 0); 2];
    let long = |last: u8| [[0; 15].as_slice(), &[last]].concat();
    let mapped = [[0; 10].as_slice(), &[0xff, 0xff, 10, 0, 2, 15]].concat();
    let sockets = [
        machine.socket(2, (6, 10), [(&[0; 4], 22), (&[0; 4], 0)], b""),
        machine.socket(2, (6, 1), [(&[10, 0, 2, 15], 22), (&[10, 0, 2, 2], 51_000)], b""),
        machine.socket(10, (17, 7), [(&long(1), 53), (&long(2), 5353)], b""),
        machine.socket(10, (6, 8), [(&mapped, 80), (&mapped, 1)], b""),
        machine.socket(1, (0, 1), none, b"/run/sh\x1b[2J\0"),
        machine.socket(1, (0, 1), none, b"\0hidden\0x"),
        machine.socket(1, (0, 1), none, b""),
        machine.socket(16, (0, 1), none, b""),
        machine.socket(99, (0, 1), none, b""),
        machine.socket(2, (6, 99), none, b""),
    ];
    machine.open(shell, &sockets);
    let os = attach(&machine);
    let said: Vec<String> = detail(&machine, &os, 1).0.handles.into_iter().map(|(_, text)| text).collect();
    let wanted = [
        " tcp 0.0.0.0:22 listening",
        " tcp 10.0.2.15:22 → 10.0.2.2:51000 established",
        " udp [::1]:53 → [::2]:5353",
        " tcp 10.0.2.15:80 → 10.0.2.15:1 close wait",
        " unix /run/sh\u{241b}[2J",
        " unix @hidden@x",
        " unix",
        " netlink",
        " address family 99",
        "",
    ];
    assert_eq!(said, wanted.map(|what| format!("socket:[4711]{what}")));
}

#[test]
fn what_else_is_known_of_a_process() {
    let machine = Machine::new(Options::default());
    let shell = machine.spawn(INIT);
    let os = attach(&machine);
    let (cred, groups) = (Va(machine.peek64(shell + offset("task_struct", "real_cred"))), machine.alloc(0x40));
    machine.poke64(cred + offset("cred", "group_info"), groups.0);
    machine.poke32(groups + offset("group_info", "ngroups"), 2);
    machine.poke32(groups + offset("group_info", "gid"), 4);
    machine.poke32(groups + offset("group_info", "gid") + 4, 27);
    machine.poke32(shell + offset("task_struct", "seccomp.mode"), 2);
    let (proxy, mounts, network) = (machine.alloc(0x80), machine.alloc(0x80), machine.alloc(0x100));
    machine.poke64(shell + offset("task_struct", "nsproxy"), proxy.0);
    machine.poke64(proxy + offset("nsproxy", "mnt_ns"), mounts.0);
    machine.poke64(proxy + offset("nsproxy", "net_ns"), network.0);
    machine.poke32(mounts + offset("mnt_namespace", "ns.inum"), 0xf000_0000);
    machine.poke32(network + offset("net", "ns.inum"), 0xf000_0009);
    let said = detail(&machine, &os, 1).0.credentials;
    for (name, value) in
        [("groups", "4 27"), ("seccomp", "filter"), ("namespaces", "mnt:[4026531840] net:[4026531849]")]
    {
        assert!(said.contains(&(name.to_owned(), value.to_owned())), "{said:?}");
    }
    machine.poke32(groups + offset("group_info", "ngroups"), u32::MAX);
    assert!(detail(&machine, &os, 1).0.credentials.iter().all(|(_, value)| value.len() < 4096));
}

#[test]
fn a_system_call_is_told_by_name_with_its_arguments() {
    let machine = Machine::new(Options::default());
    machine.spawn(INIT);
    let os = attach(&machine);
    let path = machine.arguments_at();
    let saved = machine.saved_registers([-100i32 as u32 as u64, path.0, 0x8_0000, 0o644, 5, 6]);
    let root = process(&machine, &os, 1).root.expect("an address space");
    let call = |function: Va, rdi: u64, rsi: u64| {
        let mut registers = Amd64Registers { cr3: root.0, ..machine.registers(false) };
        (registers.gp.rip, registers.gp.rdi, registers.gp.rsi) = (function.0, rdi, rsi);
        os.system_call(VmiSession::new(&machine.core, &os).with_registers(&registers))
    };
    let symbol = |name: &str| VmiOs::<FlatDriver>::symbols(&os).lookup(name).expect("a symbol");
    // A kernel that traces no system calls knows no names.
    let plain = call(Machine::OPENAT, saved.0, 0).expect("a system call");
    assert_eq!(plain.text, format!("openat(0xffffff9c, {:#x}, 0x80000, 0x1a4, 0x5, 0x6)", path.0));
    machine.trace_openat(&[("int", "dfd"), ("const char *", "filename"), ("int", "flags"), ("umode_t", "mode")]);
    let traced = r#"openat(dfd=-100, filename="/sbin/init", flags=524288, mode=0x1a4)"#;
    let known = call(Machine::OPENAT, saved.0, 0).expect("a system call");
    assert_eq!((known.text.as_str(), known.arguments.len()), (traced, 4));
    // Before its own function: with the number behind or, in old kernels, in front.
    let dispatcher = symbol("do_syscall_64");
    assert_eq!(call(dispatcher, saved.0, 257).map(|call| call.text).as_deref(), Some(traced));
    assert_eq!(call(dispatcher, 257, saved.0).map(|call| call.text).as_deref(), Some(traced));
    assert_eq!(call(dispatcher, saved.0, 3), None, "no such system call");
    assert_eq!(call(dispatcher, saved.0, 0xffff_ffff), None);
    let compatible = call(symbol("__ia32_compat_sys_openat"), saved.0, 0).expect("a system call");
    assert!(compatible.text.starts_with("openat(dfd="), "{}", compatible.text);
    assert_eq!(call(symbol("force_sig_fault"), saved.0, 257), None, "an ordinary function");
    // Saved registers that are nowhere, text that is nowhere, more arguments than there can be.
    assert_eq!(call(Machine::OPENAT, 0x1000, 0).expect("a system call").text, "openat()");
    machine.poke64(saved + 0x68, 0xdead_0000);
    assert!(call(Machine::OPENAT, saved.0, 0).expect("a system call").text.contains("filename=0xdead0000"));
    machine.poke32(Machine::OPENAT_FACTS + offset("syscall_metadata", "nb_args"), u32::MAX);
    assert!(call(Machine::OPENAT, saved.0, 0).expect("a system call").arguments.len() <= 6);
}

#[test]
fn a_page_of_the_process_that_is_missing_is_asked_for() {
    let machine = Machine::new(Options::default());
    machine.spawn(INIT);
    let os = attach(&machine);
    let root = process(&machine, &os, 1).root.expect("an address space");
    machine.page_out_arguments(root);
    machine.core.flush_v2p_cache();
    let (detail, prober) = detail(&machine, &os, 1);
    assert_eq!(detail.command_line, None);
    assert_eq!(detail.missing, [machine.arguments_at()]);
    let wanted = AddressContext::new(machine.arguments_at(), root);
    assert_eq!(prober.page_faults().into_iter().collect::<Vec<_>>(), [wanted]);
}

#[test]
fn a_process_that_has_ended_has_no_detail() {
    let machine = Machine::new(Options::default());
    let init = machine.spawn(INIT);
    let os = attach(&machine);
    let process = process(&machine, &os, 1);
    machine.poke32(init + offset("task_struct", "tgid"), 99);
    let prober = VmiProber::new(&IndexSet::new());
    let error = os.process_detail(VmiSession::new(&machine.core, &os), &process, &prober).expect_err("it is gone");
    assert_eq!(error.to_string(), "process 1 (init) has ended");
}

#[test]
fn a_refused_fault_is_recognised_by_its_page_and_address_space() {
    let machine = Machine::new(Options { isolated: true, ..Options::default() });
    let os = attach(&machine);
    let mut registers = machine.registers(false);
    (registers.gp.rdi, registers.gp.rdx) = (11, 0x1234_5678);
    let refused = |waiting: AddressContext| {
        let state = VmiSession::new(&machine.core, &os).with_registers(&registers);
        os.refused_fault(state, &IndexSet::from([waiting])).expect("registers are enough")
    };
    let same_page = AddressContext::new(Va(0x1234_5000), machine.root);
    assert_eq!(refused(same_page), Some(same_page));
    assert_eq!(refused(AddressContext::new(Va(0x1234_6000), machine.root)), None);
    assert_eq!(refused(AddressContext::new(Va(0x1234_5000), Pa(0x9_0000))), None);
}

#[test]
fn arguments_are_in_six_registers_and_then_on_the_stack() {
    let machine = Machine::new(Options::default());
    let os = attach(&machine);
    let stack = machine.alloc(64);
    machine.poke64(stack + 8, 106);
    machine.poke64(stack + 16, 107);
    let mut registers = machine.registers(false);
    let gp = &mut registers.gp;
    (gp.rdi, gp.rsi, gp.rdx, gp.rcx, gp.r8, gp.r9, gp.rsp) = (100, 101, 102, 103, 104, 105, stack.0);
    let state = VmiSession::new(&machine.core, &os).with_registers(&registers);
    let arguments: Vec<u64> = (0..8).filter_map(|index| os.function_argument(state, index).ok()).collect();
    assert_eq!(arguments, [100, 101, 102, 103, 104, 105, 106, 107]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(384) / 8, failure_persistence: None, ..ProptestConfig::default() })]

    /// A guest that writes what it likes into its page tables and structures costs time and gets cut short, no more.
    #[test]
    fn a_guest_that_lies_is_survived(
        levels in 4u8..=5,
        isolated in any::<bool>(),
        lies in prop::collection::vec((0usize..3, any::<prop::sample::Index>(), any::<u8>(), 0u64..0x80_0000), 1..60),
    ) {
        let machine = Machine::new(Options { levels, isolated, ..Options::default() });
        let init = machine.spawn(INIT);
        machine.spawn(KTHREAD);
        machine.add_thread(init, 9, "thread");
        let file = machine.file(&["bin", "sh"]);
        let socket = machine.socket(2, (6, 1), [(&[10, 0, 2, 15], 22), (&[10, 0, 2, 2], 51_000)], b"name");
        machine.open(init, &[file, file, socket]);
        let module = machine.load_module("virtio_net", Va(0xffff_ffff_c040_0000), 0x9000);
        machine.load_module("rootkit", Va(0xffff_ffff_c060_0000), 0x9000);
        machine.hide_module(module);
        machine.trace_openat(&[("int", "dfd"), ("const char *", "filename")]);
        let saved = machine.saved_registers([1, 2, 3, 4, 5, 6]);
        machine.set_regions(init, &[(0x1000, 0x2000, 5, file), (0x3000, 0x4000, 1, Va(0))]);
        let os = attach(&machine);
        let driver = machine.core.driver();
        let objects: Vec<Process> = processes(&machine, &os).processes;
        for (place, at, byte, pointer) in lies {
            let (from, to) = machine.used()[place];
            let at = from + at.index((to - from) as usize) as u64;
            if byte & 1 == 0 {
                driver.poke(at, &[byte]);
            } else {
                // A pointer that leads into memory goes further than a random one.
                driver.poke64((at & !7).min(to - 8), (machine.direct + pointer).0);
            }
        }
        machine.core.flush_v2p_cache();
        let session = VmiSession::new(&machine.core, &os);
        let _ = os.processes(session);
        for process in &objects {
            let _ = os.process_detail(session, process, &VmiProber::new(&IndexSet::new()));
        }
        let _ = os.current_process(session.with_registers(&machine.registers(false)));
        let _ = os.kernel_modules(&machine.core);
        let mut registers = machine.registers(false);
        (registers.gp.rip, registers.gp.rdi) = (Machine::OPENAT.0, saved.0);
        let _ = os.system_call(session.with_registers(&registers));
        let _ = LinuxOs::detect(&machine.core, &machine.registers(true), None);
    }
}
