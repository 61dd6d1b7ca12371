//! Memory as the engine reads and searches it, on the built-in guest.

use std::{sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, bounded};
use vmscope::engine::{
    command::{Answer, Command, Done, Engine, Pattern, Request, Subject, Target},
    snapshot::{Detail, MemoryDetail, Scope, Snapshot, Va},
    worker::{DemoOptions, StartOptions, start_demo},
};

struct Demo(Engine);

impl Demo {
    fn start(lock_step: bool) -> Self {
        let demo = DemoOptions { seed: 11, processes: None, lock_step };
        Self(start_demo(demo, StartOptions::default()).expect("the built-in guest starts"))
    }

    fn send(&self, command: Command) -> Receiver<Answer> {
        let (answer, answered) = bounded(1);
        self.0.requests.send(Request { command, answer }).expect("the engine listens");
        answered
    }

    fn ask(&self, command: Command) -> Answer {
        self.send(command).recv().expect("the engine answers")
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    fn symbol(&self, name: &str) -> Va {
        self.snapshot().symbols.lookup(name).expect("the symbol")
    }

    fn memory(&self, pid: Option<u32>, va: Va, length: u32) -> MemoryDetail {
        self.ask(Command::Inspect(Some(Subject::Memory { pid, va, length }))).expect("a detail");
        match self.snapshot().detail.as_deref() {
            Some(Detail::Memory(memory)) => memory.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn find(&self, pid: Option<u32>, from: Va, length: u64, patterns: Vec<Pattern>) -> Vec<Va> {
        match self.ask(Command::Search { pid, from, length, patterns }) {
            Ok(Done::Found(places, more)) => {
                assert!(!more, "{} places and more", places.len());
                places
            }
            other => panic!("{other:?}"),
        }
    }
}

fn exactly(bytes: &[u8]) -> Pattern {
    bytes.iter().map(|byte| Some(*byte)).collect()
}

#[test]
fn a_search_finds_across_pages_with_wildcards_and_in_any_of_its_forms() {
    let demo = Demo::start(true);
    let code = demo.symbol("nt!NtCreateFile");
    // From the last code of a page, over its end, to the first bytes of the next one.
    let page = Va(code.0 & !0xfff);
    let around: Vec<u8> = demo.memory(None, page, 0x1010).bytes.into_iter().flatten().collect();
    assert_eq!(around.len(), 0x1010, "both pages are there");
    let last = around[..0x1000].iter().rposition(|byte| *byte != 0).expect("code") - 40;
    let (across, wanted) = (exactly(&around[last..]), Va(page.0 + last as u64));
    assert!(demo.find(None, page, 0x2000, vec![across.clone()]).contains(&wanted));
    assert!(demo.find(None, Va(wanted.0 + 1), 0x1000, vec![across]).is_empty(), "not before the start");

    let start: Vec<u8> = demo.memory(None, code, 16).bytes.into_iter().flatten().collect();
    let mut wild = exactly(&start);
    wild[1] = None;
    wild[9] = None;
    let places = demo.find(None, Va(code.0 - 0x1000), 0x2000, vec![exactly(b"not to be found here"), wild]);
    assert!(places.contains(&code) && places.is_sorted(), "{places:?}");

    for refused in [vec![], vec![vec![]], vec![vec![None; 3]], vec![vec![Some(0); 5000]], vec![exactly(b"x"); 9]] {
        let why =
            demo.ask(Command::Search { pid: None, from: code, length: 16, patterns: refused }).expect_err("no search");
        assert!(why.contains("a search needs"), "{why}");
    }
}

#[test]
fn what_is_not_mapped_is_stepped_over_and_the_search_ends() {
    let demo = Demo::start(true);
    // Every process has its name in its kernel structure; searched from the beginning of the kernel's half.
    let snapshot = demo.snapshot();
    let process = snapshot.processes.iter().find(|process| process.name == "lsass.exe").expect("lsass");
    let from = Va(0xffff_8000_0000_0000);
    let places = demo.find(None, from, u64::MAX, vec![exactly(b"lsass.exe")]);
    assert!(places.iter().any(|place| (process.object.0..process.object.0 + 0x1000).contains(&place.0)), "{places:?}");
    // The user's half of a process is another one.
    let user = demo.find(Some(process.pid), Va(0), u64::MAX, vec![exactly(&[0x48, 0x89])]);
    assert!(user.iter().all(|place| place.0 >> 47 == 0), "{user:?}");
    assert!(demo.find(None, Va(0x0000_9000_0000_0000), u64::MAX, vec![exactly(b"x")]).is_empty(), "no address at all");
}

#[test]
fn a_search_runs_between_events_is_told_of_and_given_up() {
    let demo = Demo::start(false);
    let target = Target::parse("nt!NtClose").expect("a place");
    demo.ask(Command::AddBreakpoint { target, scope: Scope::Global, tag: String::new() }).expect("a breakpoint");
    let from = Va(0xffff_8000_0000_0000);
    let everything =
        || Command::Search { pid: None, from, length: u64::MAX, patterns: vec![exactly(b"no such words")] };
    let first = demo.send(everything());
    let second = demo.send(everything());
    assert_eq!(first.recv(), Ok(Ok(Done::Quiet)), "replaced");
    // Commands are served meanwhile, in the order in which they came.
    demo.ask(Command::Refresh).expect("served");
    demo.ask(Command::CancelSearch).expect("given up");
    match second.recv_timeout(Duration::from_secs(30)) {
        // A machine that is fast enough may have seen everything by then.
        Ok(Ok(Done::Found(places, _))) => assert!(places.is_empty()),
        other => panic!("{other:?}"),
    }
    assert!(demo.snapshot().search.is_none());
    demo.ask(Command::CancelSearch).expect("nothing to give up is no error");
}

#[test]
fn bytes_that_change_are_marked_and_a_page_that_is_not_there_is_not() {
    let demo = Demo::start(true);
    let snapshot = demo.snapshot();
    let process = snapshot.processes.iter().find(|process| process.name == "lsass.exe").expect("lsass");
    demo.ask(Command::Inspect(Some(Subject::Process(process.pid)))).expect("a detail");
    let Some(Detail::Process(detail)) = demo.snapshot().detail.as_deref().cloned() else { panic!("no process") };
    // Somewhere in what a process may write, something changes within a while.
    let writable = detail.regions.iter().filter(|region| region.protection.contains('w'));
    let changes = writable.flat_map(|region| (region.start.0..region.end.0).step_by(0x8000).map(Va)).any(|va| {
        let before = demo.memory(Some(process.pid), va, 0x8000);
        assert!(before.changed.iter().all(Option::is_none), "nothing was seen before");
        demo.ask(Command::Advance(300)).expect("time passes");
        let after = demo.memory(Some(process.pid), va, 0x8000);
        let now = demo.snapshot().taken_at_ns;
        for ((old, new), changed) in before.bytes.iter().zip(&after.bytes).zip(&after.changed) {
            let differs = old.is_some() && new.is_some() && old != new;
            assert!(!differs || changed.is_some(), "a change is marked");
            assert!(changed.is_none_or(|at| at <= now));
        }
        // Scrolling by a row keeps what is known of the rows that stay.
        let scrolled = demo.memory(Some(process.pid), va + 16, 0x4000);
        let same = after.changed.iter().skip(16).zip(&scrolled.changed).all(|(old, new)| new >= old);
        assert!(same);
        demo.ask(Command::Inspect(None)).expect("closed");
        after.changed.iter().any(Option::is_some)
    });
    assert!(changes, "a living process writes");
}

#[test]
fn instructions_before_an_address_lead_up_to_it() {
    let demo = Demo::start(true);
    let code = demo.symbol("nt!NtCreateFile");
    let memory = demo.memory(None, code, 256);
    let third = memory.code.get(3).expect("more than three instructions").address;
    let from_there = demo.memory(None, third, 256);
    let before: Vec<Va> = from_there.before.iter().rev().take(3).rev().map(|line| line.address).collect();
    let wanted: Vec<Va> = memory.code.iter().take(3).map(|line| line.address).collect();
    assert_eq!(before, wanted);
    assert!(memory.code.iter().any(|line| line.target.is_some()), "a call names where it goes");
}
