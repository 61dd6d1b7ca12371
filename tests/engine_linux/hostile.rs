//! Guests that want to be looked at for ever: what a look costs is bounded, and what was cut is neither hidden nor gone.

use std::time::Duration;

use indexmap::IndexSet;
use vmscope::engine::{
    addr::{AddressContext, Va},
    os::{ProcessList, VmiOs, linux::LinuxOs},
    session::{Cut, Limits, VmiProber, VmiSession},
    snapshot::ProcessKey,
};

use super::{INIT, SHELL, attach, hidden, process, processes};
use crate::support::{
    FlatDriver,
    linux::{Machine, Options, Spawn, offset},
};

/// A budget of reads alone: time is for hosts, not for tests.
fn reads(reads: u64) -> Limits {
    Limits { reads, kept: usize::MAX, time: Duration::MAX, time_if_awaited: Duration::MAX }
}

/// A machine with processes from id 1 on.
fn crowd(processes: u32) -> (Machine, Vec<Va>) {
    let machine = Machine::new(Options::default());
    let spawn = |pid| machine.spawn(Spawn { pid, name: "crowd", arguments: None });
    let tasks = (1..=processes).map(spawn).collect();
    (machine, tasks)
}

/// A list of so many nodes that leads to `last` in the end; its first node.
fn chain(machine: &Machine, nodes: u64, last: Va) -> Va {
    let first = machine.alloc(nodes * 16);
    for node in 0..nodes {
        let next = if node + 1 < nodes { first + (node + 1) * 16 } else { last };
        machine.poke64(first + node * 16, next.0);
    }
    first
}

/// What a look cost, and whether all of it was looked at.
fn looked(machine: &Machine, os: &LinuxOs, limits: Limits) -> (ProcessList, Option<Cut>) {
    machine.core.begin_round(limits);
    let list = processes(machine, os);
    let cut = machine.core.cut();
    machine.core.begin_round(None);
    (list, cut)
}

#[test]
fn processes_that_share_a_list_of_threads_cost_no_more_than_one_list() {
    let (machine, tasks) = crowd(50);
    let os = attach(&machine);
    let head =
        |task: Va| Va(machine.peek64(task + offset("task_struct", "signal"))) + offset("signal_struct", "thread_head");
    let nodes = chain(&machine, 2000, head(tasks[0]));
    for &task in &tasks {
        machine.poke64(head(task), nodes.0);
    }
    let (list, cut) = looked(&machine, &os, reads(20_000));
    assert_eq!((cut, list.processes.len(), list.truncated), (None, 50, false));
    assert_eq!(list.hidden_threads, []);
}

#[test]
fn run_queues_that_lead_into_each_other_are_walked_once() {
    let (machine, _) = crowd(3);
    let os = attach(&machine);
    let queue = |cpu: u64| {
        let area = machine.per_cpu_base(cpu) + VmiOs::<FlatDriver>::symbols(&os).lookup("runqueues").expect("there").0;
        Va(area) + offset("rq", "cfs_tasks")
    };
    // A ring that leads back to no head; around each of its nodes, a task of zeros.
    let (first, nodes, bytes) = (machine.alloc(2001 * 0x400) + 0x400, 2000, 0x400);
    for node in 0..nodes {
        machine.poke64(first + node * bytes, (first + (node + 1) % nodes * bytes).0);
    }
    (0..2).for_each(|cpu| machine.poke64(queue(cpu), first.0));
    // A node is a read, and its task one or two; the queues are looked at for processes and for threads.
    let (list, cut) = looked(&machine, &os, reads(12_000));
    assert_eq!((cut, list.processes.len(), hidden(&list).len()), (None, 3, 0));
}

#[test]
fn a_look_that_is_cut_shows_what_it_has_and_hides_nothing() {
    let (machine, tasks) = crowd(40);
    machine.add_thread(tasks[7], 60, "thread");
    machine.add_thread(tasks[7], 61, "hidden");
    let os = attach(&machine);
    machine.unlink(tasks[20]);
    let (whole, cut) = looked(&machine, &os, reads(100_000));
    assert_eq!((cut, whole.truncated, hidden(&whole)), (None, false, vec![21]));
    let mut cuts = 0;
    for budget in (1..4000).step_by(7) {
        machine.core.begin_round(reads(budget));
        let Ok(list) = os.processes(VmiSession::new(&machine.core, &os)) else {
            assert!(budget < 10, "the head of the list was read");
            continue;
        };
        let cut = machine.core.cut();
        assert_eq!(list.truncated, cut.is_some(), "{budget}");
        // The list comes first: whatever is shown of it is right, and only the comparison may say that something is hidden.
        assert!(hidden(&list).iter().all(|&pid| pid == 21), "{budget}: {:?}", hidden(&list));
        assert_eq!(list.hidden_threads, [], "{budget}");
        let rows = list.processes.iter().filter(|row| row.pid != 21);
        assert!(rows.eq(whole.processes.iter().filter(|row| row.pid != 21).take(list.processes.len())), "{budget}");
        // A process behind the place where the list was cut has not ended.
        let last = ProcessKey { object: tasks[3], ..whole.processes[38].key() };
        let again = os.process_again(VmiSession::new(&machine.core, &os), last);
        assert!(!matches!(again, Ok(None)), "{budget}");
        cuts += usize::from(cut.is_some());
        // What breakpoints and page tables need is not a look.
        assert!(machine.core.read_u64((tasks[0], VmiOs::<FlatDriver>::kernel_root(&os))).is_ok(), "{budget}");
    }
    assert!(cuts > 50, "{cuts}");
}

#[test]
fn the_detail_of_a_process_is_cut_and_says_so() {
    let machine = Machine::new(Options::default());
    let task = machine.spawn(INIT);
    let names: Vec<String> = (0..30).map(|_| "long".repeat(60)).collect();
    let file = machine.file(&names.iter().map(String::as_str).take(4).collect::<Vec<_>>());
    machine.open(task, &vec![file; 200]);
    machine.set_regions(task, &[(0x1000, 0x2000, 5, file), (0x3000, 0x4000, 1, Va(0))]);
    let os = attach(&machine);
    let row = process(&machine, &os, 1);
    let detail = |limits: Limits| {
        machine.core.begin_round(limits);
        let prober = VmiProber::new(&IndexSet::new());
        let detail = os.process_detail(VmiSession::new(&machine.core, &os), &row, &prober);
        (detail, machine.core.cut())
    };
    let (whole, cut) = detail(reads(100_000));
    let whole = whole.expect("readable");
    assert_eq!((cut, whole.handles.len(), whole.truncated.len()), (None, 200, 0));
    // By what is kept: a path has a thousand characters.
    let (some, cut) = detail(Limits { kept: 50_000, ..reads(100_000) });
    let some = some.expect("readable");
    assert_eq!(cut, Some(Cut::Spent));
    assert!((40..60).contains(&some.handles.len()) && some.truncated.contains(&"handles"), "{}", some.handles.len());
    // By reads: whatever is there is right, and whatever is not there is said.
    for budget in (1..1500).step_by(11) {
        let (part, cut) = detail(reads(budget));
        let Ok(part) = part else { continue };
        assert!(whole.handles.starts_with(&part.handles) && whole.threads.starts_with(&part.threads), "{budget}");
        assert!(cut.is_none() || !part.truncated.is_empty(), "{budget}: {:?}", part.truncated);
    }
}

#[test]
fn somebody_who_waits_is_heard_in_the_midst_of_a_look() {
    let (machine, _) = crowd(50);
    let os = attach(&machine);
    let impatient = Limits { time_if_awaited: Duration::ZERO, ..reads(100_000) };
    assert_eq!(looked(&machine, &os, impatient).1, None, "nobody waits");
    machine.core.set_waits(|| true);
    machine.core.begin_round(impatient);
    let _ = os.processes(VmiSession::new(&machine.core, &os));
    assert_eq!(machine.core.cut(), Some(Cut::Awaited));
    // All looks of a round are one: those that come after it are cut as well.
    assert!(os.process_again(VmiSession::new(&machine.core, &os), ProcessKey::default()).is_err());
    machine.core.set_waits(|| false);
    assert_eq!(looked(&machine, &os, impatient).1, None);
}

#[test]
fn a_module_that_a_broken_list_does_not_have_keeps_its_names() {
    let machine = Machine::new(Options::default());
    let os = attach(&machine);
    let symbols = || VmiOs::<FlatDriver>::symbols(&os);
    let refresh = || os.refresh_symbols(VmiSession::new(&machine.core, &os));
    let (first, second) = (Va(0xffff_ffff_c040_0000), Va(0xffff_ffff_c060_0000));
    let mut loaded = Vec::new();
    for (name, base) in [("first", first), ("second", second)] {
        let module = machine.load_module(name, base, 0x1000);
        machine.module_symbols(module, &[("open", base + 0x20, 1)]);
        loaded.push(module);
    }
    assert!(refresh());
    // The list leads into itself; nothing else knows modules.
    machine.hide_folder();
    machine.poke64(Machine::MODULE_TREE + offset("mod_tree_root", "root.tree.rb_node"), 0);
    let links = |module: Va| module + offset("module", "list");
    let head = machine.peek64(Machine::MODULES);
    machine.poke64(Machine::MODULES, links(loaded[0]).0);
    machine.poke64(links(loaded[0]), links(loaded[0]).0);
    refresh();
    assert_eq!(symbols().lookup("second!open"), Some(second + 0x20), "a list that was cut unloads nothing");
    assert_eq!(symbols().lookup("first!open"), Some(first + 0x20));
    // One that comes to its end does.
    machine.poke64(links(loaded[0]), Machine::MODULES.0);
    assert!(refresh());
    assert_eq!((symbols().lookup("second!open"), symbols().lookup("first!open")), (None, Some(first + 0x20)));
    assert_ne!(head, 0);
}

#[test]
fn an_address_space_behind_a_broken_list_has_not_ended() {
    let machine = Machine::new(Options::default());
    let init = machine.spawn(INIT);
    machine.spawn(SHELL);
    let os = attach(&machine);
    let root = process(&machine, &os, 7).root.expect("an address space");
    let asked = || os.unservable(VmiSession::new(&machine.core, &os), AddressContext::new(0x1000u64, root));
    assert!(!matches!(asked(), Ok(Some(why)) if why.contains("ended")));
    let node = init + offset("task_struct", "tasks");
    machine.poke64(node, node.0);
    assert!(asked().is_err(), "{:?}", asked());
}

#[test]
fn a_structure_without_an_id_is_no_process() {
    let (machine, tasks) = crowd(3);
    let os = attach(&machine);
    // An entry of the table of ids that leads to zeros: every one of them would be a process that hides.
    let zeros = machine.alloc(0x400);
    machine.forge_id(5, zeros);
    assert_eq!(processes(&machine, &os).processes.len(), tasks.len());
}
