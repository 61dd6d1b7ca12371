//! The whole engine on the built-in guest, in virtual time, by commands and snapshots alone.

use std::sync::Arc;

use crossbeam_channel::bounded;
use vmscope::engine::{
    command::{Answer, Command, Done, Engine, Request, Subject, Target},
    snapshot::{
        Breakpoint, BreakpointState, Detail, Event, EventKind, Fault, FaultState, Process, ProcessFlag, Scope,
        Snapshot, Status, Table, Va,
    },
    worker::{DemoOptions, StartOptions, start_demo},
};

struct Demo(Engine);

impl Demo {
    fn start(seed: u64) -> Self {
        Self::with(seed, StartOptions::default())
    }

    fn with(seed: u64, start: StartOptions) -> Self {
        let demo = DemoOptions { seed, processes: None, lock_step: true };
        Self(start_demo(demo, start).expect("the built-in guest starts"))
    }

    fn ask(&self, command: Command) -> Answer {
        let (answer, answered) = bounded(1);
        self.0.requests.send(Request { command, answer }).expect("the engine listens");
        answered.recv().expect("the engine answers")
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    fn advance(&self, ticks: u64) -> Arc<Snapshot> {
        self.ask(Command::Advance(ticks)).expect("time passes");
        self.snapshot()
    }

    /// Lets time pass until the snapshot is as wanted.
    fn until(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        for _ in 0..6000 {
            let snapshot = self.advance(20);
            if wanted(&snapshot) {
                return snapshot;
            }
        }
        let snapshot = self.snapshot();
        panic!("{what} never came: {:?} {:?} {:?}", *snapshot.breakpoints, *snapshot.page_tables, *snapshot.faults);
    }

    fn breakpoint(&self, place: &str) -> Answer {
        let target = Target::parse(place).expect("a place");
        self.ask(Command::AddBreakpoint { target, scope: Scope::Global, tag: "test".into() })
    }

    fn watch(&self, place: &str) -> Answer {
        self.ask(Command::WatchAddress { target: Target::parse(place).expect("a place"), tag: String::new() })
    }

    fn process(&self, name: &str) -> Process {
        let snapshot = self.snapshot();
        snapshot.processes.iter().find(|process| process.name == name).expect("the process").clone()
    }

    /// Where the private regions of a process start, which the pager takes away and brings back.
    fn private_regions(&self, pid: u32) -> Vec<Va> {
        self.ask(Command::Inspect(Some(Subject::Process(pid)))).expect("a detail");
        let snapshot = self.snapshot();
        let Some(Detail::Process(detail)) = snapshot.detail.as_deref() else { panic!("{:?}", snapshot.detail) };
        let private = detail.regions.iter().filter(|region| region.protection.ends_with('p'));
        private.map(|region| region.start).collect()
    }
}

fn only<T: Clone>(list: &[T]) -> T {
    assert_eq!(list.len(), 1);
    list.first().expect("one").clone()
}

fn newest(snapshot: &Snapshot) -> Process {
    snapshot.processes.iter().max_by_key(|process| process.start_ns).expect("processes").clone()
}

fn untouched(snapshot: &Snapshot) {
    // The guest checks its own code and starts such a process when it finds a change.
    assert!(snapshot.processes.iter().all(|process| !process.name.starts_with("TAMPER")));
}

#[test]
fn a_breakpoint_hits_hides_and_goes() {
    let demo = Demo::start(7);
    assert!(matches!(demo.breakpoint("nt!NtCreateFile"), Ok(Done::Breakpoint(..))));
    assert!(demo.breakpoint("NtCreateFile").expect_err("twice").contains("already"));
    let snapshot = demo.advance(4000);
    let row: Breakpoint = only(&snapshot.breakpoints);
    assert_eq!(
        (row.state, row.tag.as_str(), row.symbol.as_str()),
        (BreakpointState::Active, "test", "nt!NtCreateFile")
    );
    assert!(row.hits >= 3);
    assert!(row.last_hits.iter().all(|hit| hit.pid.is_some() && !hit.process.is_empty() && hit.args.len() == 4));
    assert_eq!(snapshot.counters.hits, row.hits);
    untouched(&snapshot);

    demo.ask(Command::ToggleBreakpoint(row.id)).expect("off");
    let off = only(&demo.advance(2000).breakpoints);
    assert_eq!((off.state, off.hits, off.pa), (BreakpointState::Disabled, row.hits, None));
    demo.ask(Command::ToggleBreakpoint(row.id)).expect("on");
    assert!(only(&demo.advance(2000).breakpoints).hits > row.hits);
    demo.ask(Command::RemoveBreakpoint(row.id)).expect("gone");
    let snapshot = demo.advance(2000);
    assert!(snapshot.breakpoints.is_empty());
    untouched(&snapshot);
}

#[test]
fn a_guest_that_rewrites_its_code_under_a_breakpoint_keeps_both() {
    let demo = Demo::start(3);
    demo.breakpoint("nt!NtQuerySystemInformation").expect("a breakpoint in code that changes itself");
    let first = demo.until("hits", |s| only(&s.breakpoints).hits > 3);
    let hits = only(&first.breakpoints).hits;
    let later = demo.advance(20_000);
    assert!(only(&later.breakpoints).hits > hits, "it still hits after the guest has rewritten the page");
    assert_eq!(only(&later.breakpoints).state, BreakpointState::Active);
    untouched(&later);
}

#[test]
fn breakpoints_follow_their_pages_each_in_its_own_process() {
    let demo = Demo::start(11);
    demo.advance(500);
    for name in ["explorer.exe", "lsass.exe", "services.exe", "winlogon.exe"] {
        let process = demo.process(name);
        for va in demo.private_regions(process.pid) {
            let place = format!("{va}@{}", process.pid);
            demo.breakpoint(&place).expect("a breakpoint");
            demo.watch(&place).expect("a watch");
        }
    }
    demo.ask(Command::Inspect(None)).expect("closed");
    let (mut seen_in, mut seen_out, mut apart) = (false, false, false);
    for _ in 0..3000 {
        let snapshot = demo.advance(20);
        let states: Vec<bool> = snapshot.page_tables.iter().map(|table: &Table| table.paged_in).collect();
        for (table, row) in snapshot.page_tables.iter().zip(snapshot.breakpoints.iter()) {
            assert_eq!((table.address, Scope::Process(table.pid.expect("a process"))), (row.address, row.scope));
            let armed = row.state == BreakpointState::Active;
            assert_eq!(armed, table.paged_in, "{row:?} {table:?}");
            assert_eq!(row.pa.map(|pa| pa.0 & !0xfff), table.pa.map(|pa| pa.0 & !0xfff));
        }
        seen_in |= states.contains(&true);
        seen_out |= states.contains(&false);
        apart |= states.contains(&true) && states.contains(&false);
        if seen_in && seen_out && apart && snapshot.counters.page_ins > 2 && snapshot.counters.page_outs > 2 {
            untouched(&snapshot);
            return;
        }
    }
    panic!("the pager did nothing: in {seen_in}, out {seen_out}, apart {apart}");
}

#[test]
fn a_breakpoint_of_a_process_ends_with_it_and_counts_no_other() {
    let demo = Demo::start(13);
    let first = demo.advance(1000);
    let started = demo.until("a process that comes and goes", |s| newest(s).key() != newest(&first).key());
    let process = newest(&started);
    let place = format!("nt!NtClose@{}", process.pid);
    demo.breakpoint(&place).expect("a breakpoint");
    demo.watch(&format!("0x10000@{}", process.pid)).expect("a watch");
    let why = format!("ended: its process {} ({}) is gone", process.pid, process.name);
    let ended = demo.until("its end", |s| only(&s.breakpoints).state == BreakpointState::Ended);
    let row = only(&ended.breakpoints);
    assert!(row.hits > 0, "a process closes what it has opened");
    assert!(row.last_hits.iter().all(|hit| (hit.pid, &hit.process) == (Some(process.pid), &process.name)), "{row:?}");
    assert_eq!((row.error.as_ref(), row.pa), (Some(&why), None));
    assert_eq!(only(&ended.page_tables).ended.as_ref(), Some(&why));
    assert!(demo.ask(Command::ToggleBreakpoint(row.id)).is_err_and(|refused| refused.contains(&why)));
    // Later processes of the same program close what they have opened, too.
    let another = |s: &Snapshot| newest(s).start_ns > process.start_ns && newest(s).name == process.name;
    demo.until("another process of its program", another);
    let later = demo.advance(5000);
    assert_eq!(only(&later.breakpoints).hits, row.hits);
    untouched(&later);
    demo.ask(Command::RemoveBreakpoint(row.id)).expect("deleted");
    assert!(demo.snapshot().breakpoints.is_empty());
    assert!(demo.breakpoint("0x10000").is_err_and(|why| why.contains("name the process")));
}

#[test]
fn a_missing_page_is_brought_in_and_an_impossible_one_is_given_up() {
    let demo = Demo::start(5);
    let snapshot = demo.until("a process with a missing page", |s| s.processes.len() > 5);
    let mut asked = None;
    'search: for _ in 0..200 {
        demo.advance(100);
        for process in snapshot.processes.iter().filter(|process| !process.flags.contains(&ProcessFlag::Kernel)) {
            demo.ask(Command::Inspect(Some(Subject::Process(process.pid)))).expect("a detail");
            let snapshot = demo.snapshot();
            let Some(Detail::Process(detail)) = snapshot.detail.as_deref() else { continue };
            if let Some(va) = detail.missing.first() {
                asked = Some((process.pid, *va));
                break 'search;
            }
        }
    }
    let (pid, va) = asked.expect("some process has pages that are not in memory");
    demo.ask(Command::Inspect(None)).expect("closed");
    let waiting = demo.snapshot();
    let row = waiting.faults.iter().find(|fault| fault.address.0 & !0xfff == va.0 & !0xfff).expect("a row").clone();
    assert_eq!((row.state, row.attempts, row.pid), (FaultState::Pending, 0, Some(pid)), "nothing is injected unasked");
    assert!(row.asked_by.contains("details of"));

    demo.ask(Command::InjectFault(row.id)).expect("an injection");
    let find = |s: &Snapshot, row: &Fault| s.faults.iter().find(|fault| fault.id == row.id).cloned();
    let done = demo.until("the page", |s| find(s, &row).is_none_or(|fault| fault.state == FaultState::Resolved));
    let told = |event: &&Event| event.kind == EventKind::Fault && event.text.starts_with(&row.address.to_string());
    let told = done.events.iter().find(told).expect("an event");
    assert_eq!(told.pid, Some(pid), "{told:?}");
    assert!(!told.process.is_empty() && !told.text.contains("root"), "{told:?}");

    // Nothing is ever mapped there: the guest's own exception dispatcher says so, once.
    let answer = demo.ask(Command::RequestPage { target: Target::parse(&format!("0x10000@{pid}")).expect("a place") });
    let Ok(Done::Fault(id, _)) = answer else { panic!("{answer:?}") };
    let asked = demo.advance(5000);
    let row = asked.faults.iter().find(|fault| fault.id == id).expect("a row");
    assert_eq!((row.state, row.attempts), (FaultState::Pending, 0), "nothing is injected unasked");
    demo.ask(Command::InjectFault(id)).expect("an injection");
    let state = |s: &Snapshot| s.faults.iter().find(|fault| fault.id == id).map(|fault| (fault.state, fault.attempts));
    let refused = demo.until("the refusal", |s| state(s).is_some_and(|(state, _)| state == FaultState::Suppressed));
    let (_, attempts) = state(&refused).expect("the row");
    let later = demo.advance(5000);
    assert_eq!(state(&later), Some((FaultState::Suppressed, attempts)), "asked for no more");
    untouched(&later);
}

#[test]
fn the_rootkit_is_flagged_and_told_once() {
    let demo = Demo::start(2);
    let snapshot = demo.advance(1000);
    let hidden: Vec<_> =
        snapshot.processes.iter().filter(|process| process.flags.contains(&ProcessFlag::Hidden)).collect();
    assert_eq!(hidden.len(), 1);
    let told = snapshot.events.iter().filter(|event| event.kind == EventKind::Hidden).count();
    assert_eq!(told, 1);
}

#[test]
fn pausing_stops_the_clock_and_steps_are_single() {
    let demo = Demo::start(9);
    demo.advance(100);
    assert!(demo.ask(Command::Step(Default::default())).expect_err("it runs").contains("pause it first"));
    demo.ask(Command::Pause).expect("paused");
    let before = demo.advance(500);
    assert_eq!(before.status, Status::Paused);
    assert_eq!(demo.advance(500).taken_at_ns, before.taken_at_ns);
    let rip = |s: &Snapshot| s.vcpus.first().map(|vcpu| vcpu.rip);
    demo.ask(Command::Step(Default::default())).expect("a step");
    assert_ne!(rip(&demo.snapshot()), rip(&before));
    demo.ask(Command::Resume).expect("running");
    assert!(demo.advance(100).taken_at_ns > before.taken_at_ns);
}

#[test]
fn an_engine_that_stands_by_keeps_the_rows_and_comes_back() {
    let demo = Demo::start(1);
    demo.breakpoint("nt!NtCreateFile").expect("a breakpoint");
    demo.breakpoint("nt!NtClose").expect("another");
    demo.until("a hit", |s| s.breakpoints.iter().all(|row| row.hits > 0));
    let off = demo.snapshot().breakpoints[1].id;
    demo.ask(Command::ToggleBreakpoint(off)).expect("off");
    let before = demo.snapshot();
    demo.ask(Command::StandBy).expect("the engine steps aside");
    let refused = demo.ask(Command::Advance(100)).expect_err("it does nothing");
    assert!(refused.contains("stands by"), "{refused}");
    assert_eq!(demo.ask(Command::ComeBack), Ok(Done::Quiet));
    let after = demo.snapshot();
    let states = |s: &Snapshot| s.breakpoints.iter().map(|row| (row.id, row.state, row.hits)).collect::<Vec<_>>();
    assert_eq!(states(&after), states(&before), "rows and hits are kept, and what was off stays off");
    demo.until("more hits", |s| s.breakpoints[0].hits > before.breakpoints[0].hits);
    assert_eq!(demo.ask(Command::ComeBack), Ok(Done::Quiet), "nobody was away");
}

#[test]
fn a_read_only_session_keeps_rows_that_are_off() {
    let demo = Demo::with(1, StartOptions { read_only: true, ..StartOptions::default() });
    let row = |enabled| {
        let target = Target::parse("nt!NtCreateFile").expect("a place");
        demo.ask(Command::RestoreBreakpoint { target, scope: Scope::Global, tag: "kept".into(), enabled })
    };
    assert!(row(true).is_err_and(|why| why.contains("read-only")));
    row(false).expect("a row changes nothing");
    let kept = only(&demo.snapshot().breakpoints);
    assert_eq!((kept.state, kept.tag.as_str()), (BreakpointState::Disabled, "kept"));
    assert!(demo.ask(Command::ToggleBreakpoint(kept.id)).is_err_and(|why| why.contains("read-only")));
}

#[test]
fn a_deleted_breakpoint_is_restored_on_or_off() {
    let demo = Demo::start(9);
    let restore = |enabled| {
        let target = Target::parse("nt!NtClose").expect("a place");
        let back = Command::RestoreBreakpoint { target, scope: Scope::Global, tag: "mine".into(), enabled };
        demo.ask(back).expect("restored");
        only(&demo.snapshot().breakpoints)
    };
    let off = restore(false);
    assert_eq!((off.state, off.tag.as_str(), off.symbol.as_str()), (BreakpointState::Disabled, "mine", "nt!NtClose"));
    assert_eq!(only(&demo.advance(2000).breakpoints).hits, 0, "nothing of it is in the guest");
    demo.ask(Command::ToggleBreakpoint(off.id)).expect("on");
    assert!(only(&demo.advance(2000).breakpoints).hits > 0);
    demo.ask(Command::RemoveBreakpoint(off.id)).expect("gone");
    assert_eq!(restore(true).state, BreakpointState::Active);
    untouched(&demo.advance(1000));
}

#[test]
fn a_read_only_session_refuses_at_every_turn_and_still_looks() {
    let demo = Demo::with(4, StartOptions { read_only: true, ..StartOptions::default() });
    let snapshot = demo.advance(1000);
    assert!(snapshot.read_only && snapshot.processes.len() > 10);
    for refused in [demo.breakpoint("nt!NtClose"), demo.watch("nt!NtClose"), demo.ask(Command::Pause)] {
        let why = refused.expect_err("read-only");
        assert!(why.contains("read-only"), "{why}");
    }
    untouched(&demo.advance(1000));
}

#[test]
fn a_storm_is_ended_said_and_may_begin_anew() {
    let demo = Demo::with(7, StartOptions { storm_limit: Some(1), ..StartOptions::default() });
    demo.breakpoint("nt!NtCreateFile").expect("a breakpoint");
    let row = |s: &Snapshot| only(&s.breakpoints);
    let is_off = |s: &Snapshot| row(s).state == BreakpointState::Disabled;
    let said = |s: &Snapshot| {
        let told = s.events.iter().filter(|event| event.kind == EventKind::Engine && event.text.contains("storm"));
        told.count()
    };
    let storm = demo.until("the storm", is_off);
    let off = row(&storm);
    // Six in five seconds are more than one in each.
    assert_eq!((off.hits, off.pa, said(&storm)), (6, None, 1));
    assert!(off.error.as_deref().is_some_and(|why| why.starts_with("storm: more than 1 hits")), "{:?}", off.error);
    assert_eq!(row(&demo.advance(5000)).hits, 6, "it is out");

    demo.ask(Command::ToggleBreakpoint(off.id)).expect("on again");
    let on = row(&demo.snapshot());
    assert_eq!((on.state, on.error), (BreakpointState::Active, None));
    let again = demo.until("another storm", is_off);
    assert_eq!((row(&again).hits, said(&again)), (12, 2), "what was before does not count");
    untouched(&again);

    // The same breakpoint where more is allowed.
    let demo = Demo::start(7);
    demo.breakpoint("nt!NtCreateFile").expect("a breakpoint");
    let calm = demo.advance(20_000);
    assert!(row(&calm).hits > 12 && row(&calm).state == BreakpointState::Active && said(&calm) == 0);
}

#[test]
fn a_read_only_session_waits_for_pages_and_says_so() {
    let demo = Demo::with(5, StartOptions { read_only: true, ..StartOptions::default() });
    let pending = |s: &Snapshot| s.faults.iter().find(|fault| fault.state == FaultState::Pending).cloned();
    let mut waiting = None;
    for _ in 0..200 {
        let snapshot = demo.advance(100);
        for process in snapshot.processes.iter().filter(|process| !process.flags.contains(&ProcessFlag::Kernel)) {
            demo.ask(Command::Inspect(Some(Subject::Process(process.pid)))).expect("a detail");
        }
        waiting = waiting.or_else(|| pending(&demo.snapshot()));
        if waiting.is_some() {
            break;
        }
    }
    let row = waiting.expect("some process has pages that are not in memory");
    assert_eq!(row.note, "waits for the guest to bring it in by itself");
    let refused = demo.ask(Command::InjectFault(row.id)).expect_err("read-only");
    assert!(refused.contains("read-only"), "{refused}");
    demo.ask(Command::Inspect(None)).expect("closed");
    let came = |s: &Snapshot| s.faults.iter().find(|fault| fault.state == FaultState::Resolved).cloned();
    let done = demo.until("a page", |s| came(s).is_some());
    let row = came(&done).expect("it came");
    assert_eq!((row.attempts, row.note.as_str()), (0, "the guest brought it in by itself"));
    untouched(&done);
}

#[test]
fn command_line_breakpoints_that_cannot_be_set_end_the_start() {
    let start =
        |place: &str| StartOptions { breaks: vec![Target::parse(place).expect("a place")], ..StartOptions::default() };
    let demo = DemoOptions { seed: 1, processes: None, lock_step: true };
    let error = start_demo(demo, start("nt!NtCreateFill")).expect_err("no such symbol");
    assert!(error.starts_with("--break: ") && error.contains("NtCreateFill"), "{error}");
}

#[test]
fn memory_and_code_are_read_as_the_guest_has_them() {
    let demo = Demo::start(6);
    demo.breakpoint("nt!NtClose").expect("a breakpoint");
    let row = only(&demo.snapshot().breakpoints);
    demo.ask(Command::Inspect(Some(Subject::Breakpoint(row.id)))).expect("a detail");
    let snapshot = demo.advance(100);
    let Some(Detail::Breakpoint(detail)) = snapshot.detail.as_deref() else { panic!("{:?}", snapshot.detail) };
    let here = detail.code.iter().find(|line| line.here).expect("the breakpoint's line");
    assert_eq!(here.address, row.address);
    assert_ne!(here.text, "int3", "the guest's bytes, not ours");
    let memory = Subject::Memory { pid: None, va: row.address, length: 32 };
    demo.ask(Command::Inspect(Some(memory))).expect("a detail");
    let snapshot = demo.snapshot();
    let Some(Detail::Memory(memory)) = snapshot.detail.as_deref() else { panic!("{:?}", snapshot.detail) };
    let bytes: Vec<u8> = memory.bytes.iter().flatten().copied().collect();
    assert_eq!(bytes.len(), 32);
    assert_ne!(bytes.first(), Some(&0xcc));
    assert!(memory.walk.len() >= 3);
    let pattern = bytes.iter().take(8).map(|byte| Some(*byte)).collect();
    let found = demo.ask(Command::Search { pid: None, from: row.address, length: 4096, patterns: vec![pattern] });
    let Ok(Done::Found(places, _)) = found else { panic!("{found:?}") };
    assert_eq!(places.first(), Some(&row.address));
}
