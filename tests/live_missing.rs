//! Missing pages of a real Linux guest: one page fault each, into the right process, and nobody hears of it.

mod live;

use live::{
    dashboard::Dashboard,
    guest::{Guest, Job, Options, wider_kernels},
};
use vmscope::engine::{
    addr::Va,
    command::{Command, Done, Subject, Target},
    snapshot::{Capability, Detail, Fault, FaultId, FaultState, Scope, Snapshot, Status},
    worker::StartOptions,
};

/// Where `work missing` maps what it never touches.
const PAGES: u64 = 0x100_0000_0000;
const NO_ACCESS: u64 = PAGES + 0x1000;
const FILE: u64 = PAGES + (1 << 20);
const BEYOND: u64 = FILE + (1 << 20);
const NOTHING: u64 = PAGES + (64 << 20);

fn row(snapshot: &Snapshot, id: FaultId) -> Option<Fault> {
    snapshot.faults.iter().find(|fault| fault.id == id).cloned()
}

fn ask_for(dashboard: &Dashboard, job: &Job, address: u64) -> FaultId {
    let target = Target::parse(&format!("{address:#x}@{}", job.pid)).expect("a place");
    match dashboard.ask(Command::RequestPage { target }) {
        Ok(Done::Fault(id, _)) => id,
        answer => panic!("{answer:?}"),
    }
}

fn open(guest: &Guest) -> Dashboard {
    let dashboard = Dashboard::open(guest, true, StartOptions::default());
    dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    dashboard
}

/// The states that a page went through, as the events tell them.
fn notes(snapshot: &Snapshot, address: u64) -> Vec<String> {
    let of_page = snapshot.events.iter().filter(|event| event.text.starts_with(&Va(address).to_string()));
    of_page.filter_map(|event| Some(event.text.split_once(": ")?.1.to_owned())).collect()
}

fn pages_come_in(options: Options) {
    let Some(mut guest) = Guest::boot(&options) else { return };
    let busy = guest.start("work missing 3");
    let dashboard = open(&guest);
    assert!(dashboard.engine.snapshot.load().can(Capability::FaultInjection).is_ok());

    // Nothing is injected unasked, and by keys it is.
    let id = ask_for(&dashboard, &busy, PAGES);
    let file = ask_for(&dashboard, &busy, FILE);
    assert_eq!(guest.ask(&busy, "report"), "errors 0");
    for id in [id, file] {
        let row = row(&dashboard.engine.snapshot.load(), id).expect("a row");
        assert_eq!((row.state, row.attempts), (FaultState::Pending, 0));
    }
    // The screen may be a picture behind, without the row; once more is no harm, the row stays selected.
    let injects = |_| {
        dashboard.keys("4i");
        dashboard.ask(Command::Refresh).expect("a refresh");
        row(&dashboard.engine.snapshot.load(), id).is_some_and(|row| row.attempts > 0)
    };
    assert!((0..1000).any(injects), "{:?}", dashboard.engine.snapshot.load().faults);
    let resolved = |id| move |s: &Snapshot| row(s, id).is_some_and(|row| row.state == FaultState::Resolved);
    let snapshot = dashboard.wait("the page", resolved(id));
    assert!(row(&snapshot, id).is_some_and(|row| row.attempts > 0 && row.vcpu.is_some()), "{:?}", snapshot.faults);
    let notes = notes(&snapshot, PAGES);
    assert!(notes.first().is_some_and(|note| note.contains("waits for its process")), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("on its way")), "{notes:?}");
    assert!(notes.last().is_some_and(|note| note.contains("came in after")), "{notes:?}");
    assert_eq!(row(&snapshot, file).map(|row| row.attempts), Some(0), "only what was asked for");
    dashboard.ask(Command::InjectFault(file)).expect("an injection");
    dashboard.wait("the file's page", resolved(file));

    // What the kernel would answer with a signal is not tried.
    for (address, why) in [(NO_ACCESS, "no access"), (NOTHING, "no memory region")] {
        let id = ask_for(&dashboard, &busy, address);
        let refused = dashboard.ask(Command::InjectFault(id)).expect_err("no such page");
        assert!(refused.contains(why), "{refused}");
        let row = row(&dashboard.engine.snapshot.load(), id).expect("a row");
        assert_eq!((row.state, row.attempts), (FaultState::Suppressed, 0));
    }
    // What only the kernel knows it refuses itself, and the process, which never touched the page, gets no signal.
    let id = ask_for(&dashboard, &busy, BEYOND);
    dashboard.ask(Command::InjectFault(id)).expect("an injection");
    let suppressed = |s: &Snapshot| row(s, id).is_some_and(|row| row.state == FaultState::Suppressed);
    let snapshot = dashboard.wait("the refusal", suppressed);
    let refused = row(&snapshot, id).expect("a row");
    assert_eq!((refused.attempts, refused.note.as_str()), (1, "refused by the guest's exception dispatch"));
    assert_eq!(guest.ask(&busy, "touch"), "errors 0 page 0 file 1");

    // A breakpoint in user mode hits by the root that the process is known by, isolated page tables or not.
    let in_user_mode = |_| {
        dashboard.ask(Command::Pause).expect("a pause");
        let snapshot = dashboard.engine.snapshot.load_full();
        let found = snapshot.vcpus.iter().find(|vcpu| vcpu.pid == Some(busy.pid as u32) && vcpu.rip.0 >> 63 == 0);
        if found.is_none() {
            dashboard.ask(Command::Resume).expect("running");
        }
        found.map(|vcpu| vcpu.rip)
    };
    let rip = (0..100).find_map(in_user_mode).expect("three busy threads on two vCPUs");
    let target = Target::parse(&format!("{rip}@{}", busy.pid)).expect("a place");
    dashboard.ask(Command::AddBreakpoint { target, scope: Scope::Global, tag: String::new() }).expect("a breakpoint");
    dashboard.ask(Command::Resume).expect("running");
    let snapshot = dashboard.wait("a hit", |s| s.breakpoints.first().is_some_and(|row| row.hits > 0));
    let hit = snapshot.breakpoints.first().expect("the breakpoint");
    assert!(hit.last_hits.iter().all(|hit| hit.pid == Some(busy.pid as u32)), "{:?}", hit.last_hits);
    dashboard.ask(Command::RemoveBreakpoint(hit.id)).expect("gone");

    // A process that sleeps is waited for where it comes back to user mode.
    let asleep = guest.start("work map");
    assert_eq!(guest.ask(&asleep, "map"), "mapped");
    let id = ask_for(&dashboard, &asleep, PAGES);
    dashboard.ask(Command::InjectFault(id)).expect("an injection");
    dashboard.ask(Command::Refresh).expect("a refresh");
    assert_eq!(row(&dashboard.engine.snapshot.load(), id).map(|row| row.state), Some(FaultState::Pending));
    let mut comes_back = || {
        assert_eq!(guest.ask(&asleep, "nonsense"), "unknown");
        resolved(id)(&dashboard.engine.snapshot.load())
    };
    assert!((0..200).any(|_| comes_back()), "{:?}", dashboard.engine.snapshot.load().faults);
    assert_eq!(guest.ask(&asleep, "touch"), "touched");

    assert_eq!(guest.ask(&busy, "report"), "errors 0");

    // The pages of a process go with it.
    let gone = guest.start("work map");
    let id = ask_for(&dashboard, &gone, PAGES);
    assert!(row(&dashboard.engine.snapshot.load(), id).is_some());
    guest.end(gone);
    dashboard.wait("the end of its page", |s| row(s, id).is_none());

    // Leaving while it waits for a process takes everything along.
    assert_eq!(guest.ask(&asleep, "drop"), "dropped");
    let id = ask_for(&dashboard, &asleep, PAGES);
    dashboard.ask(Command::InjectFault(id)).expect("an injection");
    dashboard.close();
    assert_eq!(guest.ask(&asleep, "touch"), "touched");
    assert_eq!(guest.ask(&busy, "report"), "errors 0");
    assert_eq!(guest.status(), "running");
    guest.end(busy);
    guest.end(asleep);
    let log = guest.sh("dmesg");
    assert!(!log.contains("segfault") && !log.contains("BUG:") && !log.contains("Oops"), "{log}");
}

/// What `/proc/PID/pagemap` has of an address: the frame of a page that is there for the kernel, whatever the processor
/// makes of its entry.
fn frame_of(guest: &mut Guest, pid: i32, address: u64) -> Option<u64> {
    let text = guest.sh(&format!(
        "dd if=/proc/{pid}/pagemap bs=8 skip={} count=1 2>/dev/null | hexdump -ve '2/4 \"%08x \"'",
        address >> 12
    ));
    let word = |word: &str| u64::from_str_radix(word, 16).expect("a number");
    let (low, high) = text.trim().split_once(' ').expect("two words");
    let entry = word(high) << 32 | word(low);
    (entry >> 63 != 0).then_some(entry & ((1 << 55) - 1))
}

/// A page of every kind that looks missing: what is told of it at once, and what becomes of it when it is asked for.
fn pages_are_told_apart(kernel: &'static str) {
    let Some(mut guest) = Guest::boot(&Options { kernel, plain: true, ..Options::default() }) else { return };
    let has_swap = guest.run("insmod /brd.ko rd_nr=1 rd_size=16384 && mkswap /dev/ram0 && swapon /dev/ram0").1 == 0;
    // A guest with so little memory has none by itself.
    let has_huge_pages = guest.run("echo madvise >/sys/kernel/mm/transparent_hugepage/enabled").1 == 0;
    let job = guest.start("pages 2>/dev/null");
    let mut kinds: Vec<(String, u64)> = Vec::new();
    loop {
        let line = guest.listen(&job);
        let Some((name, address)) = line.split_once(' ') else { break };
        kinds.push((name.to_owned(), u64::from_str_radix(address, 16).expect("an address")));
    }
    let address_of = |kind: &str| kinds.iter().find(|(name, _)| name == kind).map(|(_, address)| *address);
    let dashboard = open(&guest);
    // Kind, what is said of it, whether a page fault brings it in, what its bytes are if they are there all the same.
    let mut told = 0;
    for (kind, what, comes, bytes) in [
        ("untouched", "never touched", true, None),
        ("nothing", "no memory region", false, None),
        ("none", "no access (PROT_NONE), but the page is there", false, Some("none")),
        ("none-untouched", "no access (PROT_NONE), and there is no page", false, None),
        ("huge-none", "no access (PROT_NONE), but the huge page is there", false, Some("")),
        ("file", "a page of /bin/pages", true, None),
        ("beyond", "a page of /bin/pages", true, None),
        ("shared", "a page of /dev/zero (deleted)", true, None),
        ("poisoned", "hwpoison", false, None),
        ("guard", "guard page", false, None),
        ("served", "userfaultfd", false, None),
        ("marked", "userfaultfd has it write-protected", true, None),
        ("faulty", "lost", false, None),
        ("out", "swapped out to /dev/ram0, page 0x", true, None),
    ] {
        let Some(address) = address_of(kind).filter(|_| kind != "huge-none" || has_huge_pages) else { continue };
        told += 1;
        let target = Target::parse(&format!("{address:#x}@{}", job.pid)).expect("a place");
        let (id, said) = match dashboard.ask(Command::RequestPage { target }) {
            Ok(Done::Fault(id, said)) => (id, said),
            answer => panic!("{kind}: {answer:?}"),
        };
        let advice = if comes { "inject it" } else { "no page fault brings it in" };
        // A page that its process serves itself has words of its own.
        assert!(said.contains(what) && (said.contains(advice) || kind == "served"), "{kind}: {said}");
        dashboard.ask(Command::Inspect(Some(Subject::Fault(id)))).expect("a look");
        dashboard.ask(Command::Refresh).expect("a refresh");
        let snapshot = dashboard.engine.snapshot.load_full();
        let Some(Detail::Fault(fault)) = snapshot.detail.as_deref() else { panic!("{kind}: {:?}", snapshot.detail) };
        let missing = fault.missing.clone().unwrap_or_else(|| panic!("{kind}: {fault:?}"));
        assert!(missing.what.contains(what) && missing.comes_by_fault == comes, "{kind}: {missing:?}");
        if let Some(bytes) = bytes {
            let frame = frame_of(&mut guest, job.pid, address).expect("a page");
            assert_eq!(missing.pa.map(|pa| pa.0), Some(frame << 12), "{kind}");
            let va = missing.readable_at.expect("the kernel's own map");
            dashboard.ask(Command::Inspect(Some(Subject::Memory { pid: None, va, length: 16 }))).expect("a look");
            dashboard.ask(Command::Refresh).expect("a refresh");
            let snapshot = dashboard.engine.snapshot.load_full();
            let Some(Detail::Memory(memory)) = snapshot.detail.as_deref() else { panic!("{:?}", snapshot.detail) };
            let there: Vec<u8> = memory.bytes.iter().map_while(|byte| *byte).take(bytes.len() + 1).collect();
            assert_eq!(there, [bytes.as_bytes(), b"\0"].concat(), "{kind}");
        }
        let injected = dashboard.ask(Command::InjectFault(id));
        if comes {
            injected.unwrap_or_else(|error| panic!("{kind}: {error}"));
            dashboard.ask(Command::ClearFault(id)).expect("it goes");
        } else {
            let error = injected.expect_err("nothing is injected");
            assert!(error.contains(what), "{kind}: {error}");
        }
    }
    assert!(told >= 8, "{kinds:?}");
    assert_eq!(address_of("out").is_some(), has_swap, "{kinds:?}");
    // What was swapped out is read back by one fault.
    if let Some(address) = address_of("out") {
        let id = ask_for(&dashboard, &job, address);
        dashboard.ask(Command::InjectFault(id)).expect("an injection");
        // A way back to user mode may be missed: the next one will do.
        let comes_back = |_| {
            guest.tell(&job, "on your way");
            assert_eq!(guest.sh("echo runs"), "runs\n");
            let snapshot = dashboard.engine.snapshot.load();
            row(&snapshot, id).is_some_and(|row| row.state == FaultState::Resolved)
        };
        assert!((0..200).any(comes_back), "{:?}", dashboard.engine.snapshot.load().faults);
        assert!(frame_of(&mut guest, job.pid, address).is_some());
    }
    dashboard.close();
    guest.end(job);
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn pages_are_told_apart_on_5_10() {
    pages_are_told_apart("5.10");
}

#[test]
fn pages_are_told_apart_on_6_1() {
    pages_are_told_apart("6.1");
}

#[test]
fn pages_are_told_apart_on_6_12() {
    pages_are_told_apart("6.12");
}

#[test]
fn pages_are_told_apart_on_7_3() {
    pages_are_told_apart("7.3");
}

#[test]
fn pages_are_told_apart_on_the_wider_kernels() {
    wider_kernels().into_iter().for_each(pages_are_told_apart);
}

#[test]
fn on_6_1() {
    pages_come_in(Options { kernel: "6.1", smp: 2, plain: true, ..Options::default() });
}

#[test]
fn on_5_10() {
    pages_come_in(Options { kernel: "5.10", smp: 2, plain: true, ..Options::default() });
}

#[test]
fn on_7_3() {
    pages_come_in(Options { kernel: "7.3", smp: 2, plain: true, ..Options::default() });
}

#[test]
fn on_qemu_10() {
    pages_come_in(Options { qemu: "backport", smp: 2, plain: true, ..Options::default() });
}

#[test]
fn on_6_12_with_isolated_page_tables() {
    pages_come_in(Options { cpu: "Nehalem", smp: 2, plain: true, ..Options::default() });
}

#[test]
fn on_6_12_with_five_levels() {
    pages_come_in(Options { cpu: "max", smp: 2, plain: true, ..Options::default() });
}
