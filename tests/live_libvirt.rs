//! A domain of a real libvirt, watched with no change to it: root's libvirt and a user's own.

mod live;

use std::{
    fs::File,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use crossterm::event::KeyCode;
use live::{
    dashboard::{Dashboard, PATIENCE},
    libvirt::{Libvirt, NAME, Whose},
    processes::processes_agree,
};
use serde_json::Value;
use vmscope::engine::{
    driver::{
        VmiEventControl,
        qemu::{QemuDriver, QemuOptions},
    },
    error::VmiError,
    event::VmiEventResponse,
    snapshot::{BreakpointState, Snapshot, Status},
    worker::StartOptions,
};

/// How long a driver waits before it is asked what it knows.
const MOMENT: Duration = Duration::from_millis(50);

/// The domain's row in what `vmscope guests` lists.
fn listed(libvirt: &Libvirt) -> Value {
    let ran = libvirt.command(libvirt.vmscope()).args(["guests", "--json"]).output().expect("vmscope can be run");
    let list: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    let rows = list["qemu"].as_array().expect("a list").iter();
    let mut ours = rows.filter(|row| row["name"] == NAME && row["libvirt"]["uri"] == libvirt.uri());
    let row = ours.next().unwrap_or_else(|| panic!("not listed: {list:#}")).clone();
    assert!(ours.next().is_none(), "listed twice: {list:#}");
    row
}

/// vmscope with a breakpoint, once that is set.
fn with_breakpoint(libvirt: &Libvirt, more: &[&str]) -> Child {
    let log = libvirt.vmscope().with_file_name("messages");
    let _ = std::fs::remove_file(&log);
    assert!(libvirt.command("mkfifo").arg(&log).status().expect("mkfifo can be run").success());
    let vmscope = libvirt
        .command(libvirt.vmscope())
        .args(["libvirt", NAME, "--headless", "--break", "do_sys_openat2", "--log-file"])
        .arg(&log)
        .args(more)
        .stdout(Stdio::null())
        .spawn()
        .expect("vmscope can be started");
    let mut lines = BufReader::new(File::open(&log).expect("the log")).lines().map_while(Result::ok);
    let tainted = lines.any(|line| line.contains("tainted"));
    assert!(tainted, "the user is told of the taint");
    let set = lines.any(|line| line.contains("breakpoint at do_sys_openat2 is active"));
    assert!(set, "vmscope ended without setting its breakpoint");
    // Nobody writes to a pipe that has no reader any more.
    std::thread::spawn(move || lines.count());
    vmscope
}

#[test]
fn roots_libvirt() {
    let Some(libvirt) = Libvirt::start(Whose::System) else { return };
    let mut guest = libvirt.boot(false);
    let row = listed(&libvirt);
    assert_eq!((row["pid"].as_u64(), row["obstacle"].as_str()), (Some(guest.qemu_pid().into()), None));
    assert_eq!(row["command"], "vmscope libvirt 'live '\\''guest'\\'' one'");

    let options = || QemuOptions {
        domain: Some(NAME.into()),
        connect: Some(libvirt.uri()),
        guardian: Some(env!("CARGO_BIN_EXE_vmscope").into()),
        ..QemuOptions::default()
    };
    // Somebody else's pause is seen, with nothing but libvirt to tell of it.
    let driver = QemuDriver::attach(options()).expect("the domain can be attached to");
    for (command, paused) in [("suspend", true), ("resume", false)] {
        libvirt.virsh(&[command, NAME]);
        let deadline = Instant::now() + PATIENCE;
        while driver.is_paused() != paused {
            assert!(Instant::now() < deadline, "{command} was not seen");
            let waited = driver.wait_for_event(MOMENT, |_| VmiEventResponse::default());
            assert!(matches!(waited, Err(VmiError::Timeout)), "{waited:?}");
        }
    }
    drop(driver);

    let dashboard = Dashboard::of(options(), StartOptions::default());
    dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    assert_eq!(libvirt.state(), "running", "looking stops nothing");
    processes_agree(&mut guest, &dashboard);

    let state = |s: &Snapshot| s.breakpoints.first().map(|row| row.state);
    let hits = |s: &Snapshot| s.breakpoints.first().map_or(0, |row| row.hits);
    dashboard.keys("2a");
    dashboard.keys("do_sys_openat2");
    dashboard.key(KeyCode::Enter);
    dashboard.wait("an active breakpoint", |s| state(s) == Some(BreakpointState::Active));
    guest.sh("work open 57");
    dashboard.wait("57 hits", |s| hits(s) == 57);

    dashboard.keys("p");
    dashboard.wait("a paused guest", |s| s.status == Status::Paused);
    assert_eq!(libvirt.state(), "paused");
    dashboard.keys("p");
    dashboard.wait("a running guest", |s| s.status == Status::Running);
    assert_eq!(libvirt.state(), "running");
    // Somebody else's pause, with the stub connected.
    libvirt.virsh(&["suspend", NAME]);
    assert_eq!(libvirt.state(), "paused");
    libvirt.virsh(&["resume", NAME]);
    guest.sh("work open 3");
    dashboard.wait("3 more hits", |s| hits(s) == 60);

    // Leaving leaves nothing.
    dashboard.close();
    libvirt.wait_for_no_device();
    assert_eq!(libvirt.state(), "running");
    guest.sh("work open 9");

    // Nor does dying, at a breakpoint.
    let mut vmscope = with_breakpoint(&libvirt, &["--until", "hits>=100000"]);
    let job = guest.start("sh -c 'echo ready; work open 100000'");
    vmscope.kill().expect("kill -9");
    vmscope.wait().expect("its end");
    guest.end(job);
    guest.sh("work open 7");
    libvirt.wait_for_no_device();
    assert_eq!(libvirt.state(), "running");

    // Somebody without a right to it is told whom to ask.
    let mut nobody = libvirt.command_of_nobody(libvirt.vmscope());
    let said = libvirt.refusal(nobody.args(["libvirt", NAME, "--headless"]));
    assert!(said.contains("group libvirt"), "{said}");

    // A domain that ends while it is watched, one that is off, and one that is not there.
    let dashboard = Dashboard::of(options(), StartOptions::default());
    dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    libvirt.virsh(&["destroy", NAME]);
    let last = dashboard.wait("the end", |s| s.status == Status::Lost);
    let notice = last.notice.as_deref().unwrap_or_default();
    assert!(notice.contains("has ended") && notice.contains("destroyed"), "{notice}");
    dashboard.close();
    let row = listed(&libvirt);
    assert!(row["pid"].is_null() && row["obstacle"].as_str().is_some_and(|why| why.contains("shut off")), "{row}");
    let attach = || {
        let mut vmscope = libvirt.command(libvirt.vmscope());
        vmscope.args(["libvirt", NAME, "--headless"]);
        vmscope
    };
    assert!(libvirt.refusal(&mut attach()).contains("is shut off: start it with 'virsh"));
    libvirt.virsh(&["undefine", NAME]);
    assert!(libvirt.refusal(&mut attach()).contains("no libvirt domain"));
}

#[test]
fn a_users_own_libvirt() {
    let Some(libvirt) = Libvirt::start(Whose::Session) else { return };
    let mut guest = libvirt.boot(true);
    let row = listed(&libvirt);
    assert_eq!((row["pid"].as_u64(), row["obstacle"].as_str()), (Some(guest.qemu_pid().into()), None));

    let shot = libvirt.vmscope().with_file_name("shot.json");
    let path = shot.to_str().expect("a plain path");
    let mut vmscope = with_breakpoint(&libvirt, &["--until", "hits>=20", "--screenshot", path]);
    guest.sh("work open 20");
    assert!(vmscope.wait().expect("its end").success());
    let seen: Value = serde_json::from_slice(&std::fs::read(&shot).expect("the screenshot")).expect("JSON");
    assert_eq!((seen["guest"]["name"].as_str(), seen["breakpoints"][0]["hits"].as_u64()), (Some(NAME), Some(20)));
    assert!(seen["processes"].as_array().is_some_and(|all| all.len() > 20), "{}", seen["processes"]);
    libvirt.wait_for_no_device();
    assert_eq!(libvirt.state(), "running");

    // A transient domain that ends at a breakpoint of ours is gone.
    let mut vmscope = with_breakpoint(&libvirt, &["--until", "hits>=100000"]);
    libvirt.virsh(&["destroy", NAME]);
    assert!(!vmscope.wait().expect("its end").success());
    let mut attach = libvirt.command(libvirt.vmscope());
    let said = libvirt.refusal(attach.args(["libvirt", NAME, "--headless"]));
    assert!(said.contains("no libvirt domain"), "{said}");
}
