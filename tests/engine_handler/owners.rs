//! Whose a breakpoint and a watched address are, on a Linux kernel that was written by hand: it gives ids, structures and
//! page tables away again between one look and the next, as fast as no real one does.

use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use vmscope::engine::{
    addr::{Gfn, Pa, Va, VcpuId, View},
    arch::amd64::{Amd64EventReason, Amd64Registers, EventInterrupt, Interrupt},
    command::{Answer, Command, Done, Request, Subject, Target},
    event::{VmiEvent, VmiEventAction},
    monitor::{Channels, Monitor, MonitorOptions},
    os::linux::LinuxOs,
    session::{VmiContext, VmiHandler, VmiSession},
    snapshot::{Breakpoint, BreakpointState, Detail, EventKind, FaultId, Scope, Snapshot, Table},
};

use crate::support::{
    Call, FlatDriver,
    linux::{Machine, Options, Spawn, offset},
};

const WORK: Spawn = Spawn { pid: 7, name: "work", arguments: Some("work") };
const OTHER: Spawn = Spawn { pid: 9, name: "other", arguments: Some("other") };
/// `EXIT_DEAD` and `EXIT_ZOMBIE`.
const DEAD: u32 = 0x10;
const ZOMBIE: u32 = 0x20;
/// `PF_EXITING`.
const EXITING: u32 = 4;
/// `VM_READ`.
const VM_READ: u64 = 1;

/// A machine with two processes, and a monitor that is at work on it.
struct Rig {
    machine: Machine,
    os: LinuxOs,
    monitor: Monitor<FlatDriver, LinuxOs>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    requests: Sender<Request>,
    _changed: Receiver<()>,
    work: Va,
    other: Va,
}

impl Rig {
    fn new() -> Self {
        Self::with(MonitorOptions::default())
    }

    fn with(options: MonitorOptions) -> Self {
        let machine = Machine::new(Options::default());
        let (work, other) = (machine.spawn(WORK), machine.spawn(OTHER));
        let os = LinuxOs::detect(&machine.core, &machine.registers(false), None).expect("a kernel");
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (requests, commands) = unbounded();
        let (ping, changed) = bounded(1);
        let channels = Channels { snapshot: Arc::clone(&snapshot), changed: ping, requests: commands };
        let mut monitor = Monitor::new(options, channels, Snapshot::default());
        monitor.start(VmiSession::new(&machine.core, &os)).expect("it starts");
        Self { machine, os, monitor, snapshot, requests, _changed: changed, work, other }
    }

    fn ask(&mut self, command: Command) -> Answer {
        let (answer, answered) = bounded(1);
        self.requests.send(Request { command, answer }).expect("the monitor listens");
        assert!(self.monitor.poll(VmiSession::new(&self.machine.core, &self.os)).is_none());
        answered.try_recv().expect("an answer")
    }

    fn now(&mut self) -> Arc<Snapshot> {
        self.ask(Command::Refresh).expect("a refresh");
        self.snapshot.load_full()
    }

    fn breakpoint(&mut self, place: &str) -> Answer {
        let target = Target::parse(place).expect("a place");
        self.ask(Command::AddBreakpoint { target, scope: Scope::Global, tag: String::new() })
    }

    fn watch(&mut self, place: &str) -> Answer {
        let target = Target::parse(place).expect("a place");
        self.ask(Command::WatchAddress { target, tag: String::new() })
    }

    /// The only breakpoint.
    fn row(&mut self) -> Breakpoint {
        let snapshot = self.now();
        assert_eq!(snapshot.breakpoints.len(), 1);
        snapshot.breakpoints[0].clone()
    }

    fn table(&mut self) -> Table {
        let snapshot = self.now();
        assert_eq!(snapshot.page_tables.len(), 1);
        snapshot.page_tables[0].clone()
    }

    /// Texts of the events of a kind.
    fn told(&mut self, kind: EventKind) -> Vec<String> {
        let snapshot = self.now();
        snapshot.events.iter().filter(|event| event.kind == kind).map(|event| event.text.clone()).collect()
    }

    /// A place in user mode that every process has.
    fn code(&self) -> Va {
        self.machine.arguments_at() + 0x10
    }

    fn at(&self, pid: u32) -> String {
        format!("{}@{pid}", self.code())
    }

    fn mm(&self, task: Va) -> Va {
        Va(self.machine.peek64(task + offset("task_struct", "mm")))
    }

    fn root(&self, task: Va) -> Pa {
        Pa(self.machine.peek64(self.mm(task) + offset("mm_struct", "pgd")) - self.machine.direct.0)
    }

    /// A task comes to an address of an address space, where a breakpoint of ours is or was.
    fn run(&mut self, task: Va, va: Va, root: Pa) -> VmiEventAction {
        self.machine.set_current(1, task);
        let mut registers = self.machine.registers(va.0 >> 63 == 0);
        (registers.cr3, registers.gp.rip) = (root.0, va.0);
        self.machine.core.flush_v2p_cache();
        self.machine.core.flush_gfn_cache();
        let pa = self.machine.core.translate_address((va, root)).expect("mapped");
        let reason =
            Amd64EventReason::Interrupt(EventInterrupt { gfn: Gfn(pa.0 >> 12), interrupt: Interrupt::breakpoint() });
        let event = VmiEvent::new(VcpuId(1), Some(View(1)), registers, reason);
        let session = VmiSession::new(&self.machine.core, &self.os);
        self.monitor.handle_event(VmiContext::new(session, &event)).action
    }

    fn set32(&self, task: Va, member: &str, value: u32) {
        self.machine.poke32(task + offset("task_struct", member), value);
    }

    fn set64(&self, task: Va, member: &str, value: u64) {
        self.machine.poke64(task + offset("task_struct", member), value);
    }

    /// A process is gone: out of the lists, without an address space.
    fn end(&self, task: Va, pid: u32) {
        self.machine.unlink(task);
        self.machine.take_id(pid);
        self.set64(task, "mm", 0);
        self.set32(task, "flags", EXITING);
        self.set32(task, "exit_state", DEAD);
    }

    /// A process is given page tables that were another's.
    fn give_root(&self, task: Va, root: Pa) {
        self.machine.poke64(self.mm(task) + offset("mm_struct", "pgd"), (self.machine.direct + root.0).0);
    }

    /// Nothing of ours is in the guest but what the view has.
    fn is_clean(&self) -> bool {
        self.machine.core.driver().remapped().is_empty()
    }
}

#[test]
fn what_a_broken_list_does_not_have_has_neither_ended_nor_started() {
    let mut rig = Rig::new();
    rig.ask(Command::Inspect(Some(Subject::Process(9)))).expect("a window");
    assert!(matches!(rig.now().detail.as_deref(), Some(Detail::Process(_))));
    // The list leads into itself before it comes to the other one, and nothing else knows that.
    let node = rig.work + offset("task_struct", "tasks");
    let next = rig.machine.peek64(node);
    rig.machine.poke64(node, node.0);
    rig.machine.take_id(9);
    let snapshot = rig.now();
    assert!(snapshot.processes_truncated && snapshot.processes.len() == 1);
    assert!(matches!(snapshot.detail.as_deref(), Some(Detail::Process(_))), "{:?}", snapshot.detail);
    let refused = rig.breakpoint(&format!("{}@11", rig.code())).expect_err("no such process is known");
    assert!(refused.contains("cut short"), "{refused}");
    // It comes back with the list.
    rig.machine.poke64(node, next);
    assert!(!rig.now().processes_truncated);
    for kind in [EventKind::ProcessExit, EventKind::ProcessStart] {
        assert_eq!(rig.told(kind), [""; 0]);
    }
    // What ends when the list is whole has ended.
    rig.end(rig.other, 9);
    assert_eq!(rig.told(EventKind::ProcessExit), ["other (9) is gone"]);
}

#[test]
fn page_tables_that_are_used_again_at_once_bring_no_hits() {
    let mut rig = Rig::new();
    let (work, other, code, root) = (rig.work, rig.other, rig.code(), rig.root(rig.work));
    rig.breakpoint(&rig.at(7)).expect("a breakpoint");
    rig.watch(&rig.at(7)).expect("a watch");
    rig.run(work, code, root);
    let thread = rig.machine.add_thread(work, 8, "worker");
    rig.run(thread, code, root);
    assert_eq!((rig.row().hits, rig.row().state), (2, BreakpointState::Active), "its threads are the process");

    // Between two looks, the process ends and another one has its page tables.
    rig.end(work, 7);
    rig.give_root(other, root);
    let snapshot = rig.snapshot.load_full();
    let action = rig.run(other, code, root);
    assert_ne!(action, VmiEventAction::ReinjectInterrupt, "it is no INT3 of the guest's");
    assert_eq!(snapshot.processes.len(), 2, "nobody has looked yet");
    assert!(rig.is_clean(), "it is out at once");
    let row = rig.row();
    assert_eq!((row.hits, row.state, row.pa), (2, BreakpointState::Ended, None));
    assert_eq!(row.error.as_deref(), Some("ended: its process 7 (work) is gone"));
    assert_eq!(rig.table().ended, row.error);
    assert_eq!(rig.told(EventKind::Engine), ["work (7) is gone, and with it 1 breakpoint and 1 watched address"]);
    assert_eq!(rig.told(EventKind::Breakpoint).len(), 2);

    let refused = rig.ask(Command::ToggleBreakpoint(row.id)).expect_err("there is nothing to set it in");
    assert!(refused.contains("its process 7 (work) is gone; delete it"), "{refused}");
    rig.breakpoint(&rig.at(9)).expect("a breakpoint of the process that has them now");
    rig.watch(&rig.at(9)).expect("a watch, too");
    rig.run(other, code, root);
    let hits: Vec<_> = rig.now().breakpoints.iter().map(|row| row.hits).collect();
    assert_eq!(hits, [2, 1]);
    rig.ask(Command::RemoveBreakpoint(row.id)).expect("deleted");
    let table = rig.now().page_tables[0].id;
    rig.ask(Command::UnwatchAddress(table)).expect("deleted");
    assert_eq!((rig.now().breakpoints.len(), rig.now().page_tables.len()), (1, 1));
}

#[test]
fn a_process_with_the_id_the_structure_and_the_page_tables_of_another_is_another() {
    let mut rig = Rig::new();
    let (work, code, root) = (rig.work, rig.code(), rig.root(rig.work));
    rig.breakpoint(&rig.at(7)).expect("a breakpoint");
    rig.ask(Command::Inspect(Some(Subject::Memory { pid: Some(7), va: code, length: 16 }))).expect("a look");
    assert!(matches!(rig.now().detail.as_deref(), Some(Detail::Memory(_))));
    rig.run(work, code, root);
    rig.set64(work, "start_boottime", 99_000_000);
    rig.run(work, code, root);
    let row = rig.row();
    assert_eq!((row.hits, row.state), (1, BreakpointState::Ended));
    // A window that scrolls on is still about the process that it was opened on.
    rig.ask(Command::Inspect(Some(Subject::Memory { pid: Some(7), va: code, length: 32 }))).expect("a look");
    let gone = Detail::Gone("process work (7) is gone".into());
    assert_eq!(rig.now().detail.as_deref(), Some(&gone));
    rig.ask(Command::Inspect(None)).expect("closed");
    rig.ask(Command::Inspect(Some(Subject::Process(7)))).expect("another look");
    assert!(matches!(rig.now().detail.as_deref(), Some(Detail::Process(_))));

    // What was kept names the process that was meant.
    let target = Target { place: code.to_string(), pid: Some(7), started_ns: Some(7_000_000) };
    let kept = Command::RestoreBreakpoint { target, scope: Scope::Process(7), tag: String::new(), enabled: true };
    let refused = rig.ask(kept).expect_err("it is gone");
    assert!(refused.contains("the process that had the id 7 is gone: work (7) is another one"), "{refused}");
    rig.breakpoint(&rig.at(7)).expect("one of the process of now");
}

#[test]
fn execve_takes_breakpoints_and_watches_along() {
    let mut rig = Rig::new();
    let (work, other, code, root) = (rig.work, rig.other, rig.code(), rig.root(rig.work));
    rig.breakpoint(&rig.at(7)).expect("a breakpoint");
    rig.watch(&rig.at(7)).expect("a watch");
    rig.run(work, code, root);

    // The new program's address space; the old one is another process's at once.
    let new = rig.root(other);
    rig.set64(work, "mm", rig.mm(other).0);
    let heir = rig.machine.spawn(Spawn { pid: 11, name: "heir", arguments: Some("heir") });
    rig.give_root(heir, root);
    rig.run(heir, code, root);
    // The kernel gives the process its new name a moment later.
    rig.machine.poke(work + offset("task_struct", "comm"), b"prog\0");
    let row = rig.row();
    assert_eq!((row.hits, row.state), (1, BreakpointState::Active));
    assert_eq!(row.pa, rig.machine.core.translate_address((code, new)).ok());
    rig.run(work, code, new);
    rig.run(heir, code, root);
    assert_eq!(rig.row().hits, 2);
    let table = rig.table();
    assert_eq!((table.root, table.ended, table.paged_in), (new, None, true));
    assert_eq!(rig.told(EventKind::ProcessExec), ["work (7) runs prog now, by execve"]);
    assert_eq!(rig.told(EventKind::Engine), ["work (7) runs another program: 1 breakpoint set again"]);

    // A program that does not map the address: it waits.
    let third = rig.machine.spawn(Spawn { pid: 12, name: "third", arguments: Some("third") });
    rig.machine.page_out_arguments(rig.root(third));
    rig.set64(work, "mm", rig.mm(third).0);
    let row = rig.row();
    assert_eq!((row.hits, row.state, row.error), (2, BreakpointState::Pending, None));
    assert!(!rig.table().paged_in);
    let said = rig.told(EventKind::Engine);
    assert_eq!(said[1], "prog (7) runs another program: 1 breakpoint waiting for its page");
}

#[test]
fn a_thread_that_calls_execve_becomes_the_process() {
    let mut rig = Rig::new();
    let (work, code, root) = (rig.work, rig.code(), rig.root(rig.work));
    let thread = rig.machine.add_thread(work, 8, "worker");
    rig.breakpoint(&rig.at(7)).expect("a breakpoint");
    // `de_thread`: it takes over the id, the start and the place in the list.
    rig.set32(work, "pid", 8);
    rig.set64(work, "group_leader", thread.0);
    rig.set32(thread, "pid", 7);
    rig.set64(thread, "group_leader", thread.0);
    rig.set64(thread, "start_boottime", 7_000_000);
    let next = rig.machine.peek64(work + offset("task_struct", "tasks"));
    rig.machine.unlink(work);
    let first = rig.other + offset("task_struct", "tasks");
    rig.set64(thread, "tasks", rig.machine.peek64(first));
    rig.machine.poke64(first, (thread + offset("task_struct", "tasks")).0);
    assert_ne!(next, 0);
    rig.set64(work, "mm", 0);
    rig.set32(work, "exit_state", DEAD);
    rig.run(thread, code, root);
    let row = rig.row();
    assert_eq!((row.hits, row.state), (1, BreakpointState::Active));
    assert!(rig.told(EventKind::ProcessExit).is_empty() && rig.told(EventKind::ProcessStart).is_empty());
}

#[test]
fn a_process_lives_while_one_of_its_threads_does() {
    let mut rig = Rig::new();
    let (work, code, root) = (rig.work, rig.code(), rig.root(rig.work));
    let thread = rig.machine.add_thread(work, 8, "worker");
    rig.breakpoint(&rig.at(7)).expect("a breakpoint");
    // The first thread has called `pthread_exit`.
    rig.set64(work, "mm", 0);
    rig.set32(work, "flags", EXITING);
    rig.set32(work, "exit_state", ZOMBIE);
    rig.run(thread, code, root);
    let row = rig.row();
    assert_eq!((row.hits, row.state), (1, BreakpointState::Active));
    let process = |s: &Snapshot| s.processes.iter().find(|process| process.pid == 7).map(|process| process.root);
    assert_eq!(process(&rig.now()), Some(Some(root)), "its address space is that of its threads");
    // The last one has ended; nobody has waited for the process yet.
    let signal = Va(rig.machine.peek64(work + offset("task_struct", "signal")));
    rig.machine.poke32(signal + offset("signal_struct", "nr_threads"), 1);
    rig.set64(thread, "mm", 0);
    assert_eq!(rig.row().state, BreakpointState::Ended);
    let refused = rig.breakpoint(&rig.at(7)).expect_err("a zombie");
    assert!(refused.contains("work (7) has ended already"), "{refused}");
}

#[test]
fn what_shares_an_address_space_is_another_process() {
    let mut rig = Rig::new();
    let (work, other, code, root) = (rig.work, rig.other, rig.code(), rig.root(rig.work));
    rig.breakpoint(&rig.at(7)).expect("a breakpoint");
    // A child of vfork until its execve, and a kernel that goes on in whatever address space was there last.
    rig.set64(other, "mm", rig.mm(work).0);
    rig.run(other, code, root);
    let row = rig.row();
    assert_eq!((row.hits, row.state), (0, BreakpointState::Active), "it stays in for its own process");
    rig.run(work, code, root);
    assert_eq!(rig.row().hits, 1);
    rig.ask(Command::RemoveBreakpoint(row.id)).expect("deleted");

    rig.breakpoint("do_syscall_64@7").expect("a breakpoint in the kernel");
    let address = rig.row().address;
    let idle = Va(rig.machine.peek64(work + offset("task_struct", "real_parent")));
    rig.run(idle, address, root);
    assert_eq!(rig.row().hits, 0);
    rig.run(work, address, root);
    assert_eq!(rig.row().hits, 1);
}

#[test]
fn an_address_of_user_mode_needs_a_process() {
    let mut rig = Rig::new();
    let place = rig.code().to_string();
    let page = Command::RequestPage { target: Target::parse(&place).expect("a place") };
    for refused in [rig.breakpoint(&place), rig.watch(&place), rig.ask(page)] {
        let why = refused.expect_err("whose?");
        assert!(why.contains(&format!("name the process, as in {place}@")), "{why}");
    }
    assert!(matches!(rig.breakpoint("do_syscall_64"), Ok(Done::Breakpoint(..))));
}

#[test]
fn a_page_fault_is_injected_into_no_other_process() {
    let mut rig = Rig::with(MonitorOptions { lock_step: true, ..MonitorOptions::default() });
    let (work, other, root) = (rig.work, rig.other, rig.root(rig.work));
    let page = rig.machine.arguments_at() + 0x5000;
    rig.machine.set_regions(work, &[(page.0, page.0 + 0x1000, VM_READ, Va(0))]);
    let target = Target::parse(&format!("{page}@7")).expect("a place");
    let answers =
        [Command::RequestPage { target }, Command::InjectFault(FaultId(1)), Command::Advance(1)].map(|command| {
            let (answer, answered) = bounded(1);
            rig.requests.send(Request { command, answer }).expect("the monitor listens");
            answered
        });
    let mut poll = || assert!(rig.monitor.poll(VmiSession::new(&rig.machine.core, &rig.os)).is_none());
    poll();
    for answer in answers.iter().take(2) {
        answer.try_recv().expect("an answer").expect("done");
    }
    // A process that has the page tables runs in user mode, but it is another one.
    let user = Amd64Registers { cr3: root.0, ..rig.machine.registers(true) };
    rig.machine.core.driver().set_vcpu_registers(VcpuId(1), user);
    rig.machine.poke64(other + offset("task_struct", "mm"), rig.machine.peek64(work + offset("task_struct", "mm")));
    let injected = |rig: &Machine| {
        let calls = rig.core.driver().take_calls();
        calls.into_iter().filter(|call| matches!(call, Call::InjectInterrupt(..))).count()
    };
    rig.machine.set_current(1, other);
    poll();
    assert_eq!(injected(&rig.machine), 0);
    rig.machine.set_current(1, work);
    poll();
    assert_eq!(injected(&rig.machine), 1);
}
