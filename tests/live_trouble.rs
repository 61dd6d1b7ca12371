//! What can go wrong with a real guest: each thing gets one clear sentence, and the guest runs on.

#[path = "live/kills.rs"]
mod kills;
mod live;

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Instant,
};

use crossbeam_channel::RecvTimeoutError;
use live::{
    dashboard::Dashboard,
    guest::{Guest, Options},
};
use vmscope::engine::{
    command::{Command, Target},
    driver::qemu::QemuOptions,
    snapshot::{BreakpointState, Scope, Status},
    worker::{StartOptions, start_qemu},
};

fn breakpoint(place: &str) -> Command {
    let target = Target::parse(place).expect("a place");
    Command::AddBreakpoint { target, scope: Scope::Global, tag: String::new() }
}

#[test]
fn places_that_are_not_there_are_named() {
    let Some(mut guest) = Guest::boot(&Options { plain: true, ..Options::default() }) else { return };
    let dashboard = Dashboard::open(&guest, true, StartOptions::default());
    dashboard.wait("the kernel", |s| s.status == Status::Running);
    let refused = |place: &str| dashboard.ask(breakpoint(place)).expect_err(place);
    assert!(refused("do_sys_openat9").contains("no symbol"), "{}", refused("do_sys_openat9"));
    assert!(refused("do_sys_openat").contains("did you mean do_sys_openat2"), "{}", refused("do_sys_openat"));
    assert!(refused("0x8000000000000000").contains("canonical"));
    assert!(refused("main@4000000").contains("no symbol"));
    assert!(refused("0x401000@4000000").contains("no process 4000000"));
    // An address that nothing maps is no error: the breakpoint waits for its page.
    let said = dashboard.ask(breakpoint("0x10000000000@1")).expect("a pending breakpoint");
    assert!(format!("{said:?}").contains("pending"), "{said:?}");
    assert!(dashboard.engine.snapshot.load().faults.is_empty());
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn read_only_is_held() {
    let Some(guest) = Guest::boot(&Options { plain: true, ..Options::default() }) else { return };
    let start = StartOptions { read_only: true, ..StartOptions::default() };
    let dashboard = Dashboard::open(&guest, true, start);
    dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    for command in [breakpoint("do_sys_openat2"), Command::Pause] {
        let refused = dashboard.ask(command).expect_err("read-only");
        assert!(refused.contains("read-only"), "{refused}");
    }
    assert_eq!(guest.status(), "running");
    dashboard.close();
}

#[test]
fn a_breakpoint_that_would_stop_the_guest_for_good_is_taken_out() {
    let Some(mut guest) = Guest::boot(&Options { plain: true, smp: 2, ..Options::default() }) else { return };
    // A slow machine is to be above it, too.
    const LIMIT: u32 = 1;
    let start = StartOptions { storm_limit: Some(LIMIT), ..StartOptions::default() };
    let dashboard = Dashboard::open(&guest, true, start);
    dashboard.wait("the kernel", |s| s.status == Status::Running);
    dashboard.ask(breakpoint("do_sys_openat2")).expect("a breakpoint");
    assert!(guest.sh("work open 1000").ends_with(" 1000\n"));
    let snapshot = dashboard
        .wait("the storm's end", |s| s.breakpoints.first().is_some_and(|row| row.state == BreakpointState::Disabled));
    let row = snapshot.breakpoints.first().expect("the breakpoint");
    assert!(row.hits > u64::from(LIMIT) * 5 && row.hits < 1000, "{}", row.hits);
    assert!(row.error.as_deref().is_some_and(|why| why.starts_with("storm: ")), "{:?}", row.error);
    assert!(snapshot.events.iter().any(|event| event.text.starts_with("do_sys_openat2: storm: ")));
    dashboard.ask(Command::ToggleBreakpoint(row.id)).expect("on again");
    let hits = row.hits;
    guest.sh("work open 3");
    dashboard.wait("three more", |s| s.breakpoints.first().is_some_and(|row| row.hits == hits + 3));
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_guest_in_its_firmware_is_waited_for() {
    let Some(mut guest) = Guest::power_on(&Options { plain: true, ..Options::default() }) else { return };
    let dashboard = Dashboard::open(&guest, true, StartOptions::default());
    guest.wait_for_shell();
    let snapshot = dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    assert_eq!(snapshot.guest.os, "linux");
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_guest_that_is_reset_is_found_again() {
    let Some(mut guest) = Guest::boot(&Options { plain: true, ..Options::default() }) else { return };
    let dashboard = Dashboard::open(&guest, true, StartOptions::default());
    dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    let job = guest.start("work hostile-name");
    let pid = job.pid as u32;
    dashboard.ask(breakpoint("do_sys_openat2")).expect("a breakpoint");
    dashboard.ask(breakpoint(&format!("0x10000000000@{pid}"))).expect("a pending breakpoint");
    let target = Target::parse("jiffies").expect("a place");
    dashboard.ask(Command::WatchAddress { target, tag: "clock".into() }).expect("a watch");
    let state = |s: &vmscope::engine::snapshot::Snapshot| s.breakpoints.first().map(|row| row.state);
    let before = dashboard.wait("an active breakpoint", |s| state(s) == Some(BreakpointState::Active));

    guest.reset();
    let snapshot = dashboard.wait("the kernel again", |s| {
        s.status == Status::Running
            && state(s) == Some(BreakpointState::Active)
            && s.processes.iter().any(|process| process.name == "kthreadd")
            && s.events.iter().any(|event| event.text.contains("the kernel was found again"))
    });
    assert!(snapshot.events.iter().any(|event| event.text.contains("the guest was reset")));
    assert_eq!(snapshot.notice, None);
    let rows = |s: &vmscope::engine::snapshot::Snapshot| s.breakpoints.iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!(rows(&snapshot), rows(&before), "the rows are the same");
    let process = snapshot.breakpoints.last().expect("two rows");
    assert_eq!(process.state, BreakpointState::Ended);
    assert!(process.error.as_deref().is_some_and(|error| error.contains("reset")), "{process:?}");
    let symbols = &snapshot.symbols;
    assert_eq!(snapshot.breakpoints.first().map(|row| Some(row.address)), Some(symbols.lookup("do_sys_openat2")));
    let table = snapshot.page_tables.first().expect("the watch");
    assert_eq!((Some(table.address), table.paged_in), (symbols.lookup("jiffies"), true));

    let hits = |s: &vmscope::engine::snapshot::Snapshot| s.breakpoints.first().map_or(0, |row| row.hits);
    dashboard.ask(Command::Refresh).expect("a refresh");
    let seen = hits(&dashboard.engine.snapshot.load());
    assert!(guest.sh("work open 23").ends_with(" 23\n"));
    dashboard.wait("23 hits", |s| hits(s) >= seen + 23);
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_second_gdb_client_is_told_of_the_first() {
    let Some(mut guest) = Guest::boot(&Options::default()) else { return };
    let first = UnixStream::connect(guest.gdb_socket()).expect("the stub");
    // The stub stops the guest for its client (and says so to it before QEMU 8.1 only); let it run again, as a debugger would.
    assert!((0..100_000).any(|_| guest.status() == "paused"));
    guest.qmp("cont", serde_json::json!({}));
    let dashboard = Dashboard::open(&guest, false, StartOptions::default());
    dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    let refused = dashboard.ask(breakpoint("do_sys_openat2")).expect_err("the stub is taken");
    assert!(refused.contains("gdb"), "{refused}");
    drop(first);
    dashboard.close();
    guest.qmp("cont", serde_json::json!({}));
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_qemu_that_dies_is_a_lost_guest() {
    let Some(guest) = Guest::boot(&Options::default()) else { return };
    let start =
        StartOptions { breaks: vec![Target::parse("do_sys_openat2").expect("a place")], ..StartOptions::default() };
    let dashboard = Dashboard::open(&guest, false, start);
    dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    guest.signal("KILL");
    let snapshot = dashboard.wait("the loss", |s| s.status == Status::Lost);
    assert!(snapshot.notice.is_some());
    // What was seen stays to be looked at.
    assert!(!snapshot.processes.is_empty());
}

#[test]
fn a_qemu_that_stalls_is_survived() {
    let Some(mut guest) = Guest::boot(&Options { plain: true, ..Options::default() }) else { return };
    let dashboard = Dashboard::open(&guest, true, StartOptions::default());
    dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    guest.signal("STOP");
    dashboard.keys("z");
    guest.signal("CONT");
    assert_eq!(guest.sh("echo runs"), "runs\n");
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_memory_file_that_shrinks_is_an_error_and_no_crash() {
    let Some(mut guest) = Guest::boot(&Options::default()) else { return };
    // A copy, because QEMU itself would not survive it.
    let copy = guest.memory_file().with_file_name("copy");
    std::fs::copy(guest.memory_file(), &copy).expect("a copy of the memory");
    let options = QemuOptions {
        qmp: Some(format!("unix:{}", guest.qmp_socket().display())),
        memory: Some(copy.clone()),
        ..QemuOptions::default()
    };
    let engine = start_qemu(options, StartOptions::default()).expect("the guest can be attached to");
    File::options().write(true).open(&copy).and_then(|file| file.set_len(1 << 20)).expect("a shorter file");
    let (answer, answered) = crossbeam_channel::bounded(1);
    // Whatever it answers, it answers, or it has seen the loss by itself before.
    let asked = engine.requests.send(vmscope::engine::command::Request { command: Command::Refresh, answer });
    let deadline = Instant::now() + live::dashboard::PATIENCE;
    while asked.is_ok() && answered.is_empty() {
        match engine.changed.recv_deadline(deadline) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("neither an answer nor an end"),
        }
    }
    if asked.is_err() || answered.is_empty() {
        let last = engine.snapshot.load();
        assert_eq!(last.status, Status::Lost);
        assert!(last.notice.as_deref().is_some_and(|why| why.contains("has shrunk")), "{:?}", last.notice);
    }
    // The loss may be noticed only now.
    if let Err(why) = vmscope::app::event_loop::leave(&engine) {
        assert!(why.contains("has shrunk"), "{why}");
    }
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_socket_that_is_not_qemus_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let server = std::thread::spawn(move || {
        if let Ok((mut peer, _)) = listener.accept() {
            let _ = peer.write_all(b"220 mail.example ESMTP\r\n");
            let _ = peer.read(&mut [0; 64]);
        }
    });
    let options = QemuOptions { qmp: Some(format!("unix:{}", path.display())), ..QemuOptions::default() };
    let refused = start_qemu(options, StartOptions::default()).expect_err("no QEMU");
    assert!(refused.contains("QMP"), "{refused}");
    server.join().expect("the server");
    let gone =
        QemuOptions { qmp: Some(format!("unix:{}", dir.path().join("none").display())), ..QemuOptions::default() };
    let refused = start_qemu(gone, StartOptions::default()).expect_err("no socket");
    assert!(refused.contains("none"), "{refused}");
}

#[test]
fn a_session_that_nobody_guards_says_so_on_the_screen() {
    let Some(mut guest) = Guest::boot(&Options { plain: true, ..Options::default() }) else { return };
    let qmp = Some(format!("unix:{}", guest.qmp_socket().display()));
    let dashboard = Dashboard::of(QemuOptions { qmp, ..QemuOptions::default() }, StartOptions::default());
    dashboard.wait("the kernel", |s| s.status == Status::Running && s.notice.is_none());
    dashboard.ask(breakpoint("do_sys_openat2")).expect("a breakpoint");
    let says =
        |s: &vmscope::engine::snapshot::Snapshot| s.notice.as_deref().is_some_and(|text| text.contains("no guardian"));
    dashboard.wait("the notice", says);
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}
