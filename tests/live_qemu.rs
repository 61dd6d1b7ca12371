//! The main job on a real guest: a Linux in QEMU, watched and steered by keys, then left as it was found.
//!
//! Every combination of kernel (6.1, 6.12), processor (plain, PTI by Nehalem, LA57 by max) and way in (shared memory
//! file, nothing but a QMP socket), on two vCPUs.

mod live;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command as Program, Stdio},
};

use crossterm::event::KeyCode;
use live::{
    dashboard::Dashboard,
    guest::{Guest, Options},
    processes::processes_agree,
};
use vmscope::engine::{
    command::Command,
    snapshot::{BreakpointState, Snapshot, Status},
    worker::StartOptions,
};

fn the_main_job(options: Options) {
    let plain = options.plain;
    let Some(mut guest) = Guest::boot(&options) else { return };
    let sleepers = guest.start("work sleepers 20");
    let threads = guest.start("work threads 7");
    let hostile = guest.start("work hostile-name");

    let dashboard = Dashboard::open(&guest, plain, StartOptions::default());
    let snapshot = dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    assert_eq!(guest.status(), "running", "looking stops nothing");
    assert_eq!(snapshot.guest.os, "linux");
    assert_eq!(snapshot.guest.paging_levels, if options.cpu == "max" { 5 } else { 4 });
    assert_eq!(snapshot.guest.vcpus, 2);
    assert!(snapshot.guest.version.contains(&format!("Linux {}.", options.kernel)), "{}", snapshot.guest.version);
    processes_agree(&mut guest, &dashboard);
    for job in [sleepers, threads, hostile] {
        guest.end(job);
    }
    processes_agree(&mut guest, &dashboard);

    // A breakpoint, by keys; exactly the opens that were made while it was on.
    let hits = |s: &Snapshot| s.breakpoints.first().map_or(0, |row| row.hits);
    let state = |s: &Snapshot| s.breakpoints.first().map(|row| row.state);
    dashboard.keys("2a");
    dashboard.keys("do_sys_openat2");
    dashboard.key(KeyCode::Enter);
    dashboard.wait("an active breakpoint", |s| state(s) == Some(BreakpointState::Active));
    let said = guest.sh("work open 57");
    assert!(said.ends_with(" 57\n"), "{said}");
    let snapshot = dashboard.wait("57 hits", |s| hits(s) >= 57);
    let row = snapshot.breakpoints.first().expect("the breakpoint");
    assert_eq!(row.symbol, "do_sys_openat2");
    assert!(!row.last_hits.is_empty());
    let pid = row.last_hits.first().and_then(|hit| hit.pid);
    assert!(pid.is_some());
    for hit in &row.last_hits {
        assert_eq!((hit.process.as_str(), hit.pid), ("work", pid));
        // The first argument is AT_FDCWD.
        assert_eq!(hit.args.first().map(|&dfd| dfd as i32), Some(-100));
    }
    dashboard.key(KeyCode::Char(' '));
    let snapshot = dashboard.wait("a disabled breakpoint", |s| state(s) == Some(BreakpointState::Disabled));
    assert_eq!(hits(&snapshot), 57, "none doubled, none lost");
    guest.sh("work open 31");
    dashboard.key(KeyCode::Char(' '));
    let snapshot = dashboard.wait("the breakpoint again", |s| state(s) == Some(BreakpointState::Active));
    assert_eq!(hits(&snapshot), 57, "none while it was off");
    guest.sh("work open 5 | work open 6");
    dashboard.wait("11 more hits on two vCPUs", |s| hits(s) == 68);

    // A page that comes and goes.
    let map = guest.start("work map");
    dashboard.keys("3a");
    dashboard.keys(&format!("0x10000000000@{}", map.pid));
    dashboard.key(KeyCode::Enter);
    let table = |s: &Snapshot| s.page_tables.first().map(|row| (row.paged_in, row.changes));
    dashboard.wait("a monitored address", |s| table(s) == Some((false, 0)));
    assert_eq!(guest.ask(&map, "map"), "mapped");
    assert_eq!(guest.ask(&map, "touch"), "touched");
    let snapshot = dashboard.wait("a page-in", |s| table(s) == Some((true, 1)));
    assert_eq!(snapshot.page_tables.first().map(|row| row.page_bytes), Some(4096));
    assert_eq!(guest.ask(&map, "unmap"), "unmapped");
    let snapshot = dashboard.wait("a page-out", |s| table(s) == Some((false, 2)));
    assert_eq!((snapshot.counters.page_ins, snapshot.counters.page_outs), (1, 1));
    guest.end(map);

    // Pause, step, go on; a busy vCPU, because an idle one has no next instruction.
    let busy: Vec<_> = (0..2).map(|_| guest.start("sh -c 'echo ready; exec work cpu 100000000000'")).collect();
    dashboard.keys("p");
    let snapshot = dashboard.wait("a paused guest", |s| s.status == Status::Paused);
    assert_ne!(guest.status(), "running");
    let is_busy = |pid: Option<u32>| busy.iter().any(|job| Some(job.pid as u32) == pid);
    let vcpu = snapshot.vcpus.iter().find(|vcpu| is_busy(vcpu.pid)).expect("one of two vCPUs works").clone();
    // A repeated string instruction keeps its address for a step, but not its registers.
    let registers = || {
        let snapshot = dashboard.engine.snapshot.load();
        let now = snapshot.vcpus.iter().find(|now| now.id == vcpu.id).expect("the vCPU");
        now.registers.iter().copied().take_while(|&(name, _)| name != "rflags").collect::<Vec<_>>()
    };
    let before = registers();
    dashboard.ask(Command::Refresh).expect("a refresh");
    assert_eq!(registers(), before, "a paused vCPU stands still");
    dashboard.ask(Command::Step(vcpu.id)).expect("a step");
    assert_ne!(registers(), before, "one step is one instruction");
    assert_ne!(guest.status(), "running");
    dashboard.keys("p");
    dashboard.wait("a running guest", |s| s.status == Status::Running);
    busy.into_iter().for_each(|job| guest.end(job));

    // Leaving takes the breakpoint along.
    dashboard.close();
    assert_eq!(guest.status(), "running");
    guest.sh("work open 9");
    assert_eq!(guest.status(), "running");

    kill_9(&mut guest);
}

/// A vmscope that is killed at a breakpoint leaves a guest that runs, and none of its breakpoints.
fn kill_9(guest: &mut Guest) {
    let log = guest.qmp_socket().with_file_name("log");
    let made = Program::new("mkfifo").arg(&log).status().expect("mkfifo can be run");
    assert!(made.success());
    let mut vmscope = Program::new(env!("CARGO_BIN_EXE_vmscope"))
        .args(guest.attach_arguments())
        .args(["--headless", "--break", "do_sys_openat2", "--until", "hits>=100000", "--log-file"])
        .arg(&log)
        .stdout(Stdio::null())
        .spawn()
        .expect("vmscope can be started");
    let lines = BufReader::new(fs::File::open(&log).expect("the log")).lines();
    let set = lines.map_while(Result::ok).find(|line| line.contains("breakpoint at do_sys_openat2 is active"));
    assert!(set.is_some(), "vmscope ended without setting its breakpoint");
    let job = guest.start("sh -c 'echo ready; work open 100000'");
    vmscope.kill().expect("kill -9");
    vmscope.wait().expect("its end");
    guest.end(job);
    guest.sh("work open 7");
    assert_eq!(guest.status(), "running");
    fs::remove_file(&log).expect("the log's name");
}

macro_rules! main_job {
    ($($name:ident: $kernel:literal $cpu:literal $plain:literal;)*) => {
        $(
            #[test]
            fn $name() {
                the_main_job(Options { kernel: $kernel, cpu: $cpu, plain: $plain, smp: 2, ..Options::default() });
            }
        )*
    };
}

main_job! {
    linux_5_10_file: "5.10" "default" false;
    linux_5_10_pti_plain: "5.10" "Nehalem" true;
    linux_6_1_file: "6.1" "default" false;
    linux_6_1_plain: "6.1" "default" true;
    linux_6_1_pti_file: "6.1" "Nehalem" false;
    linux_6_1_pti_plain: "6.1" "Nehalem" true;
    linux_6_1_la57_file: "6.1" "max" false;
    linux_6_1_la57_plain: "6.1" "max" true;
    linux_6_12_file: "6.12" "default" false;
    linux_6_12_plain: "6.12" "default" true;
    linux_6_12_pti_file: "6.12" "Nehalem" false;
    linux_6_12_pti_plain: "6.12" "Nehalem" true;
    linux_6_12_la57_file: "6.12" "max" false;
    linux_6_12_la57_plain: "6.12" "max" true;
    linux_7_3_file: "7.3" "default" false;
    linux_7_3_pti_plain: "7.3" "Nehalem" true;
    linux_7_3_la57_plain: "7.3" "max" true;
}

#[test]
fn on_qemu_10() {
    the_main_job(Options { qemu: "backport", plain: true, smp: 2, ..Options::default() });
}

/// As many processes as a busy server has.
#[test]
fn a_list_of_1860_processes_equals_the_guests_own() {
    let Some(mut guest) = Guest::boot(&Options { plain: true, ..Options::default() }) else { return };
    let sleepers = guest.start("work sleepers 1800");
    let dashboard = Dashboard::open(&guest, true, StartOptions::default());
    dashboard.wait("the list", |s| s.processes.len() >= 1800);
    processes_agree(&mut guest, &dashboard);
    guest.end(sleepers);
    dashboard.close();
}
