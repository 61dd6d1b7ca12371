//! Sessions that are killed: at random moments, with their guardian, in the midst of a repair, while QEMU is stopped, under
//! another name and by relative paths. Nothing of them is left, the kernel's text is as it was, and the guest runs.
//!
//! `VMSCOPE_KILLS` says how many, as the stage `kills` of `scripts/test --long` does.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use crate::live::{
    bytes::Code,
    guest::{Guest, Options},
};

/// The longest that anything may take before a test gives up; nothing is compared with it.
const PATIENCE: Duration = Duration::from_secs(240);
/// How often it is looked.
const LOOK_PERIOD: Duration = Duration::from_millis(5);
/// Up to when after its start a session is killed: it takes a second or so to set its breakpoint.
const LIFE: Duration = Duration::from_millis(3000);

/// How a session comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is killed, and its guardian is not.
    Session,
    /// The guardian is killed at a random moment after it.
    Both,
    /// The guardian is killed in the midst of its repair.
    InRepair,
    /// QEMU is stopped for so long meanwhile.
    Stopped(Duration),
}

/// A time up to this.
fn some(most: Duration) -> Duration {
    let random = RandomState::new().hash_one(0);
    most.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "waited for {what} in vain");
        thread::sleep(LOOK_PERIOD);
    }
}

fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).split('\0').map(str::to_owned).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The guardian that a session has started, and the folder that it guards.
fn guardian(session: u32) -> Option<(u32, PathBuf)> {
    let all =
        fs::read_dir("/proc").expect("processes").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|&pid| parent(pid) == Some(session)).find_map(|pid: u32| match arguments(pid).as_slice() {
        [_, word, folder, ..] if word == "guardian" => Some((pid, folder.into())),
        _ => None,
    })
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill(pid: u32) {
    // One that has ended by itself is as well.
    let _ = Command::new("sh").args(["-c", "kill -9 $0", &pid.to_string()]).stderr(Stdio::null()).status();
}

/// Whether somebody holds the lock of a session's folder.
fn is_locked(folder: &Path) -> bool {
    let Ok(lock) = fs::File::open(folder.join("lock")) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
}

/// A session, which is gone when this is.
struct Session(Child);

impl Session {
    fn kill(&mut self) {
        self.0.kill().expect("kill -9");
        self.0.wait().expect("its end");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // After a failure; else it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A session that sets a breakpoint which a busy guest hits all the time.
fn session(guest: &Guest) -> Session {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmscope"));
    command.args(guest.attach_arguments()).args([
        "--headless",
        "--storm-limit",
        "1000000",
        "--break",
        "do_sys_openat2",
    ]);
    command.args(["--for", "600s"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Session(command.spawn().expect("vmscope can be started"))
}

/// Starts vmscope once more, until it has seen the guest.
fn start_once(guest: &Guest) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmscope"));
    let ended =
        command.args(guest.attach_arguments()).args(["--headless", "--until", "processes>=1", "--for", "60s"]).output();
    let ended = ended.expect("vmscope can be started");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// Kills one session, and waits until the guest is free.
fn round(guest: &Guest, end: End) {
    let mut vmscope = session(guest);
    if end == End::Session {
        thread::sleep(some(LIFE));
    } else {
        let mut found = None;
        until("the guardian", || {
            found = guardian(vmscope.0.id());
            found.is_some()
        });
        thread::sleep(some(LIFE / 2));
    }
    let guarded = guardian(vmscope.0.id());
    if let End::Stopped(_) = end {
        guest.signal("STOP");
    }
    vmscope.kill();
    let Some((pid, folder)) = guarded else { return };
    match end {
        End::Session => {}
        End::Both => {
            thread::sleep(some(Duration::from_millis(50)));
            kill(pid);
        }
        End::InRepair => {
            until("the repair", || is_locked(&folder) || !folder.exists());
            kill(pid);
        }
        End::Stopped(time) => {
            thread::sleep(time);
            guest.signal("CONT");
        }
    }
    until("the guardian's end", || !is_alive(pid));
    if matches!(end, End::Both | End::InRepair) {
        start_once(guest);
    }
    assert!(!folder.exists(), "{end:?} has left {}", folder.display());
}

/// The guest runs, opens files, and QEMU has nothing of ours.
fn check(guest: &mut Guest, end: End) {
    assert_eq!(guest.status(), "running", "{end:?}");
    assert_eq!(guest.sh("work open 3 && echo runs").lines().last(), Some("runs"), "{end:?}");
    assert_eq!(guest.status(), "running", "{end:?}");
    let devices = guest.qmp("query-chardev", json!({}));
    let is_ours = |device: &serde_json::Value| {
        let text = |key: &str| device[key].as_str().unwrap_or_default();
        text("label").starts_with("vmscope-")
            || text("label") == "gdb" && !text("filename").starts_with("disconnected:")
    };
    assert!(!devices.as_array().expect("a list").iter().any(is_ours), "{end:?}: {devices}");
}

fn kill_sessions(options: Options, ends: &[End]) {
    let Some(mut guest) = Guest::boot(&options) else { return };
    let code = Code::of(&mut guest);
    let busy = guest.start("sh -c 'echo ready; work open 2000000000'");
    for &end in ends {
        round(&guest, end);
        check(&mut guest, end);
    }
    assert_eq!(code.changes(), []);
    guest.end(busy);
    println!("{} sessions killed: nothing was left", ends.len());
}

/// How many kills are asked for in all.
fn kills() -> usize {
    std::env::var("VMSCOPE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

/// One guest's half of the kills, without those of a stopped QEMU: every second one with the guardian killed as well, every
/// ninth in the midst of a repair.
fn ends(half: usize) -> Vec<End> {
    let of = |n: usize| match (n % 9, n % 2) {
        (8, _) => End::InRepair,
        (_, 1) => End::Both,
        _ => End::Session,
    };
    let count = (kills() - kills().div_ceil(10) + 1 - half) / 2;
    (5..5 + count).map(of).collect()
}

#[test]
fn sessions_killed_at_random_leave_a_plain_guest_as_it_was() {
    kill_sessions(Options { plain: true, smp: 2, memory: "256M", ..Options::default() }, &ends(0));
}

#[test]
fn sessions_killed_at_random_leave_a_guest_with_a_stub_of_its_own_as_it_was() {
    kill_sessions(Options { memory: "256M", ..Options::default() }, &ends(1));
}

/// Longer than any guardian used to wait; at most four times on a guest, so that the waits overlap.
#[test]
fn a_guardian_waits_for_a_qemu_that_is_stopped() {
    let count = kills().div_ceil(10);
    let time = Duration::from_secs(if count > 1 { 60 } else { 32 });
    thread::scope(|scope| {
        for first in (0..count).step_by(4) {
            let plain = first % 8 == 0;
            let ends = vec![End::Stopped(time); (count - first).min(4)];
            let options = Options { plain, memory: "256M", ..Options::default() };
            scope.spawn(move || kill_sessions(options, &ends));
        }
    });
}

/// As a user starts it in the guest's folder, by a program that a package has renamed.
#[test]
fn neither_a_relative_path_nor_another_name_of_the_program_costs_the_guest() {
    let Some(mut guest) = Guest::boot(&Options { memory: "256M", ..Options::default() }) else { return };
    let folder = guest.qmp_socket().parent().expect("a folder").to_owned();
    let program = folder.join(".vmscope-0.1-wrapped");
    fs::copy(env!("CARGO_BIN_EXE_vmscope"), &program).expect("room");
    let mut command = Command::new(&program);
    command.current_dir(&folder).args(["qemu", "--qmp", "unix:qmp.sock", "--gdb", "./gdb.sock", "--headless"]);
    command.args(["--break", "do_sys_openat2", "--for", "600s"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut vmscope = Session(command.spawn().expect("vmscope can be started"));
    let mut found = None;
    until("the breakpoint", || {
        found = guardian(vmscope.0.id());
        let devices = guest.qmp("query-chardev", json!({})).to_string();
        found.is_some() && !devices.contains("disconnected:unix:") || !is_alive(vmscope.0.id())
    });
    vmscope.kill();
    let (pid, left) = found.expect("a guardian, whatever the program's name is");
    until("the guardian's end", || !is_alive(pid));
    assert!(!left.exists());
    check(&mut guest, End::Session);
}
