//! Guests under KVM: breakpoints that the guest gets past, exactly counted; INT3 nowhere but where it may be, and never
//! left; pause, step, watch, reset, detach; every kind of memory.
//!
//! Each test is a scenario that runs on a host with KVM ([`live::lab`]), in a guest of its own. Before vmscope comes and
//! after it has left, the guest's kernel and the pages of its programs are the same, read from outside ([`live::bytes`]).

mod live;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command as Program, Stdio},
};

use crossterm::event::KeyCode;
use live::{
    bytes::Code,
    dashboard::Dashboard,
    guest::{Guest, Job, Options, skip},
    lab::{self, Run},
    plain::{Client, Kind},
    processes::processes_agree,
};
use vmscope::engine::{
    addr::VcpuId,
    command::{Command, Target},
    snapshot::{Breakpoint, BreakpointState, Scope, Snapshot, Status},
    worker::StartOptions,
};

/// Functions of the kernel that a quiet guest does not call: four of them take the four hardware breakpoints.
const QUIET: [&str; 4] = ["__x64_sys_sethostname", "__x64_sys_reboot", "__x64_sys_swapon", "__x64_sys_swapoff"];

macro_rules! scenarios {
    ($run:ident: $($name:ident $body:expr;)*) => {
        $(
            #[test]
            fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                lab::scenario(Run::$run, name.trim_start_matches("live_kvm::"), || $body);
            }
        )*
    };
}

/// Every run of `scripts/test`.
mod smoke {
    use super::*;

    scenarios! {
        Smoke:
        hits_are_exact_on_1_vcpu exact_hits(1);
        hits_are_exact_on_2_vcpus exact_hits(2);
        the_fifth_breakpoint_is_an_int3_of_the_kernel_or_none fifth();
        kill_9_leaves_no_byte kill_9();
        a_paused_guest_steps_also_out_of_hlt pause_and_step();
        a_page_is_seen_to_come_and_go watch();
    }
}

/// `scripts/test --long`.
mod whole {
    use super::*;

    scenarios! {
        Whole:
        hits_are_exact_on_4_vcpus exact_hits(4);
        a_reset_takes_nothing_along reset();
        time_for_a_hit_is_near_the_plainest_clients ratio();
        memory_is_anonymous memory(&[]);
        memory_is_in_huge_pages with_huge_pages(|| memory(&[]));
        memory_is_a_memfd memory(&["--", "-object", "memory-backend-memfd,id=ram,size=128M,share=on", "-machine", PC]);
        memory_is_a_file
            memory(&["--", "-object", "memory-backend-file,id=ram,size=128M,share=on,mem-path=/dev/shm/f", "-machine", PC]);
        memory_is_a_private_file
            memory(&["--", "-object", "memory-backend-file,id=ram,size=128M,share=off,mem-path=/dev/shm/p", "-machine", PC]);
        memory_is_hugetlb with_hugetlb(|| {
            memory(&["--", "-object", "memory-backend-memfd,id=ram,size=128M,hugetlb=on,hugetlbsize=2M", "-machine", PC]);
        });
        the_machine_is_a_q35 reads_and_hits(&Options { more: &["--", "-machine", "q35"], smp: 2, ..lab::options() });
        the_processor_is_an_epyc reads_and_hits(&Options { cpu: "EPYC", ..lab::options() });
        the_processor_is_a_kvm64 reads_and_hits(&Options { cpu: "kvm64", ..lab::options() });
        the_kernel_isolates_its_page_tables
            reads_and_hits(&Options { append: "pti=on tsc=reliable random.trust_cpu=on", ..lab::options() });
        the_kernel_is_6_1 reads_and_hits(&Options { kernel: "6.1", ..lab::options() });
        nested_paging_is_off without_nested_paging(|| reads_and_hits(&lab::options()));
    }
}

/// A machine whose memory is the backend `ram`.
const PC: &str = "pc,memory-backend=ram";

fn boot(options: &Options) -> Guest {
    Guest::boot(options).expect("a guest under KVM")
}

fn open(guest: &Guest) -> Dashboard {
    let dashboard = Dashboard::open(guest, true, StartOptions::default());
    dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    dashboard
}

/// Sets a breakpoint as a user does and waits until it is in the guest.
fn set(dashboard: &Dashboard, place: &str) -> Breakpoint {
    let rows = |s: &Snapshot| s.breakpoints.len();
    let before = rows(&dashboard.engine.snapshot.load());
    dashboard.keys("2a");
    dashboard.keys(place);
    dashboard.key(KeyCode::Enter);
    let snapshot = dashboard.wait(&format!("an active breakpoint at {place}"), |s| {
        rows(s) > before && s.breakpoints.last().is_some_and(|row| row.state == BreakpointState::Active)
    });
    snapshot.breakpoints.last().expect("its row").clone()
}

/// The snapshot's own word on whether the guest can see a breakpoint, by the place that it was set at.
fn visible(dashboard: &Dashboard, row: &Breakpoint) -> bool {
    let json = serde_json::to_value(&*dashboard.engine.snapshot.load_full()).expect("a snapshot is JSON");
    let rows = json["breakpoints"].as_array().expect("breakpoints");
    let row = rows.iter().find(|other| other["address"] == format!("{:#x}", row.address.0)).expect("the breakpoint");
    row["visible"].as_bool().unwrap_or_else(|| panic!("no word on whether the guest can see {row:?}"))
}

fn hits(snapshot: &Snapshot, row: &Breakpoint) -> u64 {
    snapshot.breakpoints.iter().find(|other| other.id == row.id).map_or(0, |row| row.hits)
}

/// Hits are as many as there were calls, once the engine has had every chance to see one too many.
fn hits_are(dashboard: &Dashboard, row: &Breakpoint, count: u64) {
    dashboard.wait(&format!("{count} hits"), |s| hits(s, row) >= count);
    dashboard.ask(Command::Refresh).expect("a refresh");
    assert_eq!(hits(&dashboard.engine.snapshot.load(), row), count, "none doubled, none lost");
}

/// So many opens on every vCPU at the same time, and no other: a pipe is not opened, as a file or the input of a
/// background job would be.
fn open_files(guest: &mut Guest, vcpus: u32, count: u32) {
    let each: Vec<_> = (0..vcpus).map(|cpu| format!("taskset {:#x} work open {count} >&2", 1u32 << cpu)).collect();
    let said = guest.sh(&each.join(" | "));
    assert_eq!(said.matches(&format!(" {count}\n")).count(), vcpus as usize, "{said}");
}

/// Switches the breakpoint of the selected row off or on.
fn toggle(dashboard: &Dashboard, row: &Breakpoint, state: BreakpointState) {
    dashboard.key(KeyCode::Char(' '));
    dashboard.wait(&format!("{} to be {state:?}", row.symbol), |s| {
        s.breakpoints.iter().any(|other| other.id == row.id && other.state == state)
    });
}

/// Twenty calls on every vCPU are so many hits; switched off by key, none; switched on again, so many more.
fn count(dashboard: &Dashboard, row: &Breakpoint, vcpus: u32, mut call: impl FnMut(u32)) {
    call(20);
    let each = u64::from(20 * vcpus);
    hits_are(dashboard, row, each);
    toggle(dashboard, row, BreakpointState::Disabled);
    call(7);
    toggle(dashboard, row, BreakpointState::Active);
    hits_are(dashboard, row, each);
    call(20);
    hits_are(dashboard, row, 2 * each);
}

/// Where a `work calls` has the function that it calls, as its `ready PID ADDRESS` says.
fn function_of(job: &Job) -> String {
    job.ready.split(' ').nth(2).expect("an address").to_owned()
}

fn exact_hits(vcpus: u32) {
    let mut guest = boot(&Options { smp: vcpus, ..lab::options() });
    let jobs = [guest.start("work calls"), guest.start("work calls")];
    let code = Code::of(&mut guest);
    let dashboard = open(&guest);
    processes_agree(&mut guest, &dashboard);

    // Of the kernel, in hardware.
    let row = set(&dashboard, "do_sys_openat2");
    count(&dashboard, &row, vcpus, |count| {
        open_files(&mut guest, vcpus, count);
    });
    assert_eq!(code.changes(), [], "a hardware breakpoint leaves no byte");

    // Of one process of two with the same program.
    let (function, pid) = (function_of(&jobs[0]), jobs[0].pid);
    let row = set(&dashboard, &format!("{function}@{pid}"));
    let mut called = 0;
    count(&dashboard, &row, 1, |count| {
        called += count;
        assert_eq!(guest.ask(&jobs[0], &count.to_string()), format!("called {called}"));
        guest.ask(&jobs[1], "3");
    });
    assert_eq!(code.changes(), [], "a process is never given an INT3");

    dashboard.close();
    code.is_as_it_was();
    jobs.into_iter().for_each(|job| guest.end(job));
    assert_eq!(guest.status(), "running");
    open_files(&mut guest, vcpus, 3);
}

/// The fifth breakpoint: of the kernel, an INT3 that the screen tells of; of a process, one in hardware that the kernel's
/// give up; of a process whose own have all four, none.
fn fifth() {
    let mut guest = boot(&lab::options());
    let job = guest.start("work calls");
    let code = Code::of(&mut guest);
    let dashboard = open(&guest);

    let quiet = QUIET.map(|place| set(&dashboard, place));
    assert!(quiet.iter().all(|row| !visible(&dashboard, row)), "four are in hardware");
    assert_eq!(code.changes(), []);
    let fifth = set(&dashboard, "do_sys_openat2");
    assert!(visible(&dashboard, &fifth), "the fifth is an INT3, and the screen says so");
    int3_only(&dashboard, &code);
    count(&dashboard, &fifth, 1, |count| open_files(&mut guest, 1, count));

    // A process's one, set while the guest is idle and some other address space is loaded.
    let function = function_of(&job);
    let row = set(&dashboard, &format!("{function}@{}", job.pid));
    assert!(!visible(&dashboard, &row), "a process's breakpoint is in hardware");
    int3_only(&dashboard, &code);
    assert_eq!(guest.ask(&job, "20"), "called 20");
    hits_are(&dashboard, &row, 20);
    let before = hits(&dashboard.engine.snapshot.load(), &fifth);
    open_files(&mut guest, 1, 20);
    hits_are(&dashboard, &fifth, before + 20);
    int3_only(&dashboard, &code);

    // Three more of it, and there is no place for another one.
    let at = u64::from_str_radix(function.trim_start_matches("0x"), 16).expect("an address");
    let mine: Vec<_> = (1..4).map(|n| set(&dashboard, &format!("{:#x}@{}", at + 0x10 * n, job.pid))).collect();
    assert!(mine.iter().chain([&row]).all(|row| !visible(&dashboard, row)));
    int3_only(&dashboard, &code);
    let why = refused(&dashboard, &format!("{:#x}@{}", at + 0x40, job.pid));
    assert!(why.contains("turn") && why.contains(&function), "it says which one to turn off: {why}");
    int3_only(&dashboard, &code);
    assert_eq!(guest.ask(&job, "1"), "called 21");

    dashboard.close();
    code.is_as_it_was();
    guest.end(job);
    assert_eq!(guest.status(), "running");
    open_files(&mut guest, 1, 3);
}

/// The guest's code is as it was but for one INT3 at each breakpoint that the guest can see.
fn int3_only(dashboard: &Dashboard, code: &Code) {
    let snapshot = dashboard.engine.snapshot.load_full();
    let active = snapshot.breakpoints.iter().filter(|row| row.state == BreakpointState::Active);
    let mut seen: Vec<_> =
        active.filter(|row| visible(dashboard, row)).filter_map(|row| row.pa).map(|pa| pa.0).collect();
    seen.sort_unstable();
    let changes = code.changes();
    assert_eq!(changes.iter().map(|change| change.pa).collect::<Vec<_>>(), seen, "{changes:x?}");
    assert!(changes.iter().all(|change| change.is == [0xcc]), "{changes:x?}");
}

/// Why a breakpoint could not be set: by the answer or by its row.
fn refused(dashboard: &Dashboard, place: &str) -> String {
    let target = Target::parse(place).expect("a place");
    let scope = target.pid.map_or(Scope::Global, Scope::Process);
    let before = dashboard.engine.snapshot.load().breakpoints.len();
    match dashboard.ask(Command::AddBreakpoint { target, scope, tag: String::new() }) {
        Err(why) => why,
        Ok(said) => {
            let snapshot = dashboard.engine.snapshot.load();
            let row = snapshot.breakpoints.get(before).unwrap_or_else(|| panic!("{place} was set: {said:?}"));
            assert_eq!(row.state, BreakpointState::Failed, "{said:?}");
            row.error.clone().expect("why")
        }
    }
}

/// A vmscope that is killed with six breakpoints, one of them of a process, leaves a guest that runs, and no byte.
fn kill_9() {
    let mut guest = boot(&lab::options());
    let job = guest.start("work calls");
    let code = Code::of(&mut guest);
    let log = guest.qmp_socket().with_file_name("log");
    assert!(Program::new("mkfifo").arg(&log).status().is_ok_and(|status| status.success()), "a named pipe");
    let mut places: Vec<String> = QUIET.map(str::to_owned).to_vec();
    places.extend(["do_sys_openat2".to_owned(), format!("{}@{}", function_of(&job), job.pid)]);
    let mut vmscope = Program::new(env!("CARGO_BIN_EXE_vmscope"))
        .args(guest.attach_arguments())
        .args(["--headless", "--until", "hits>=1000000", "--log-file"])
        .arg(&log)
        .args(places.iter().flat_map(|place| ["--break", place]))
        .stdout(Stdio::null())
        .spawn()
        .expect("vmscope can be started");
    let mut lines = BufReader::new(fs::File::open(&log).expect("the log")).lines().map_while(Result::ok);
    let active = lines.by_ref().filter(|line| line.contains(" is active")).take(places.len()).count();
    assert_eq!(active, places.len(), "vmscope ended without setting its breakpoints");
    let load = guest.start("sh -c 'echo ready; work open 100000'");
    guest.ask(&job, "10");
    vmscope.kill().expect("kill -9");
    vmscope.wait().expect("its end");
    code.is_as_it_was();
    guest.end(load);
    assert_eq!(guest.ask(&job, "10"), "called 20");
    guest.end(job);
    open_files(&mut guest, 1, 20);
    assert_eq!(guest.status(), "running");
    fs::remove_file(&log).expect("the log's name");
}

/// Pause and step: a vCPU that computes, instruction by instruction; one in HLT, which has no next instruction until it is
/// woken.
fn pause_and_step() {
    let mut guest = boot(&lab::options());
    let code = Code::of(&mut guest);
    let dashboard = open(&guest);
    let rip = || dashboard.engine.snapshot.load().vcpus.first().map(|vcpu| vcpu.registers.clone());

    // Idle: the shell waits for a line.
    dashboard.keys("p");
    dashboard.wait("a paused guest", |s| s.status == Status::Paused);
    assert_ne!(guest.status(), "running");
    for _ in 0..3 {
        dashboard.ask(Command::Step(VcpuId(0))).expect("a step");
        assert_eq!(dashboard.engine.snapshot.load().status, Status::Paused);
    }
    dashboard.keys("p");
    dashboard.wait("a running guest", |s| s.status == Status::Running);
    assert_eq!(guest.sh("echo runs"), "runs\n");

    let busy = guest.start("sh -c 'echo ready; exec work cpu 100000000000'");
    dashboard.keys("p");
    dashboard.wait("a paused guest", |s| s.status == Status::Paused);
    let before = rip();
    dashboard.ask(Command::Refresh).expect("a refresh");
    assert_eq!(rip(), before, "a paused vCPU stands still");
    for _ in 0..5 {
        let before = rip();
        dashboard.ask(Command::Step(VcpuId(0))).expect("a step");
        assert_ne!(rip(), before, "one step is one instruction");
    }
    assert_ne!(guest.status(), "running");
    dashboard.keys("p");
    dashboard.wait("a running guest", |s| s.status == Status::Running);
    guest.end(busy);
    dashboard.close();
    code.is_as_it_was();
    assert_eq!(guest.status(), "running");
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

/// A page that is mapped, touched, dropped and unmapped: its tables are polled.
fn watch() {
    let mut guest = boot(&lab::options());
    let code = Code::of(&mut guest);
    let dashboard = open(&guest);
    let map = guest.start("work map");
    dashboard.keys("3a");
    dashboard.keys(&format!("0x10000000000@{}", map.pid));
    dashboard.key(KeyCode::Enter);
    let table = |s: &Snapshot| s.page_tables.first().map(|row| (row.paged_in, row.changes));
    dashboard.wait("a monitored address", |s| table(s) == Some((false, 0)));
    assert_eq!(guest.ask(&map, "map"), "mapped");
    for (changes, (command, answer)) in
        [("touch", "touched"), ("drop", "dropped"), ("touch", "touched")].iter().enumerate()
    {
        assert_eq!(guest.ask(&map, command), *answer);
        let changes = changes as u64 + 1;
        dashboard.wait("a change", |s| table(s) == Some((changes % 2 == 1, changes)));
    }
    assert_eq!(guest.ask(&map, "unmap"), "unmapped");
    dashboard.wait("a page-out", |s| table(s) == Some((false, 4)));
    guest.end(map);
    dashboard.close();
    code.is_as_it_was();
    assert_eq!(guest.status(), "running");
}

/// A reset with five breakpoints: all are in the next kernel, the fifth as an INT3 of that one.
fn reset() {
    let mut guest =
        boot(&Options { append: "nokaslr mitigations=off tsc=reliable random.trust_cpu=on", ..lab::options() });
    let dashboard = open(&guest);
    QUIET.iter().for_each(|place| drop(set(&dashboard, place)));
    let row = set(&dashboard, "do_sys_openat2");
    guest.reset();
    dashboard.wait("the kernel again", |s| {
        s.status == Status::Running
            && s.events.iter().any(|event| event.text.contains("the kernel was found again"))
            && s.breakpoints.iter().all(|row| row.state == BreakpointState::Active)
    });
    assert!(visible(&dashboard, &row));
    dashboard.ask(Command::Refresh).expect("a refresh");
    let before = hits(&dashboard.engine.snapshot.load(), &row);
    open_files(&mut guest, 1, 20);
    hits_are(&dashboard, &row, before + 20);
    dashboard.close();
    // What is there now is what the next one finds again.
    let code = Code::of(&mut guest);
    let dashboard = open(&guest);
    let rows = QUIET.map(|place| set(&dashboard, place));
    assert!(rows.iter().all(|row| !visible(&dashboard, row)), "the hardware is free again");
    dashboard.close();
    code.is_as_it_was();
    assert!(!code.has_int3_at(row.pa.expect("a physical address").0), "the INT3 went with vmscope");
    assert_eq!(guest.status(), "running");
}

/// The process list, and twenty opens that are twenty hits.
fn reads_and_hits(options: &Options) {
    let mut guest = boot(options);
    let code = Code::of(&mut guest);
    let dashboard = open(&guest);
    processes_agree(&mut guest, &dashboard);
    let row = set(&dashboard, "do_sys_openat2");
    open_files(&mut guest, options.smp, 20);
    hits_are(&dashboard, &row, u64::from(20 * options.smp));
    dashboard.close();
    code.is_as_it_was();
    assert_eq!(guest.status(), "running");
    open_files(&mut guest, options.smp, 3);
}

fn memory(more: &'static [&'static str]) {
    reads_and_hits(&Options { more, ..lab::options() });
}

/// Every anonymous page of QEMU may be a huge one.
fn with_huge_pages(body: impl FnOnce()) {
    let setting = "/sys/kernel/mm/transparent_hugepage/enabled";
    let before = fs::read_to_string(setting).expect("a kernel with transparent huge pages");
    let before = before.split(['[', ']']).nth(1).expect("the one in brackets is in force").to_owned();
    fs::write(setting, "always").expect("the lab's root may");
    body();
    fs::write(setting, before).expect("the lab's root may");
}

/// Enough huge pages are set aside for a guest of 128 MiB.
fn with_hugetlb(body: impl FnOnce()) {
    let setting = "/proc/sys/vm/nr_hugepages";
    fs::write(setting, "72").expect("the lab's root may");
    assert_eq!(fs::read_to_string(setting).expect("a number").trim(), "72", "the host has huge pages to spare");
    body();
    fs::write(setting, "0").expect("the lab's root may");
}

/// KVM keeps shadow page tables. Only in the lab, where the module is a file and nobody else has a guest.
fn without_nested_paging(body: impl FnOnce()) {
    let load = |parameter: &str| {
        let reload = format!("rmmod kvm-amd && insmod /lib/modules/kvm-amd.ko {parameter}");
        let done = Program::new("sh").args(["-c", &reload]).status().expect("sh can be run");
        assert!(done.success(), "kvm-amd could not be loaded with {parameter}");
        fs::read_to_string("/sys/module/kvm_amd/parameters/npt").expect("the module's parameter").trim().to_owned()
    };
    if !Path::new("/lib/modules/kvm-amd.ko").exists() {
        return skip("nested paging can be switched off in the lab only");
    }
    assert_eq!(load("npt=0"), "N");
    body();
    assert_eq!(load("npt=1"), "Y");
}

/// How long the guest takes for so many opens, in seconds, by its own clock.
fn seconds_for(guest: &mut Guest, count: u32) -> f64 {
    let said = guest.sh(&format!("work open {count}"));
    said.split(' ').nth(1).and_then(|seconds| seconds.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

/// What a hit costs the guest with vmscope, over what it costs with the plainest client; in one run, on one guest.
fn ratio() {
    const COUNT: u32 = 200;
    let mut guest = boot(&Options { plain: false, ..lab::options() });
    let code = Code::of(&mut guest);
    let line = guest.sh("grep ' do_sys_openat2$' /proc/kallsyms");
    let address = u64::from_str_radix(line.split(' ').next().unwrap_or_default(), 16).expect("an address");
    let bare = seconds_for(&mut guest, COUNT);
    let each = |seconds: f64| (seconds - bare) * 1e3 / f64::from(COUNT);

    let start = StartOptions { storm_limit: Some(1_000_000), ..StartOptions::default() };
    for kind in [Kind::Hardware, Kind::Software] {
        let client = Client::at(&guest.gdb_socket(), address, kind);
        let plain = each(seconds_for(&mut guest, COUNT));
        assert_eq!(client.leave(), COUNT, "the plain client counts every hit");

        let dashboard = Dashboard::open(&guest, false, start.clone());
        dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
        if kind == Kind::Software {
            QUIET.iter().for_each(|place| drop(set(&dashboard, place)));
        }
        let row = set(&dashboard, "do_sys_openat2");
        assert_eq!(visible(&dashboard, &row), kind == Kind::Software, "it is compared with its like");
        let ours = each(seconds_for(&mut guest, COUNT));
        hits_are(&dashboard, &row, u64::from(COUNT));
        dashboard.close();
        code.is_as_it_was();
        let ratio = ours / plain;
        println!("{kind:?}: a hit costs {ours:.2} ms with vmscope, {plain:.2} ms with the plainest client: {ratio:.2}");
    }
    assert_eq!(guest.status(), "running");
}
