//! Leaving a guest whatever was lost on the way: by the session, by its guardian, by the next start.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    process::{Child, Command, Stdio},
};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use vmscope::engine::driver::{
    VmiDriver, VmiVmControl,
    qemu::{QemuDriver, QemuOptions},
};

use crate::{
    devices::Devices,
    fake::{self, BREAKPOINT, BREAKPOINT_PA, Fake},
    set,
};

fn point() -> String {
    format!("0,{BREAKPOINT:x},1")
}

/// A guest that stands at a breakpoint which nobody looks after.
fn stuck() -> Fake {
    let fake = Fake::new();
    fake.lock().points.push(point());
    fake.lock().stop("debug");
    fake
}

/// What a session writes down about a QEMU whose process is not seen from here.
fn state(fake: &Fake) -> Value {
    let socket = fs::metadata(fake.path("qmp")).expect("the socket");
    json!({
        "owner": [u32::MAX, 1], "qemu": [u32::MAX, 1], "namespace": 1, "socket": [socket.dev(), socket.ino()],
        "boot": fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot").trim(),
        "qmp": fake.options().qmp, "stub": "unix:/gone", "stub_is_ours": true, "leave_paused": false, "touched": true,
    })
}

/// The same as versions wrote it that knew less.
fn old_state(fake: &Fake, qemu: Value, leave_paused: bool) -> Value {
    json!({
        "owner": [u32::MAX, 1], "qemu": qemu, "qmp": fake.options().qmp, "stub": "unix:/gone", "stub_is_ours": true,
        "leave_paused": leave_paused,
        "patches": [{ "va": BREAKPOINT, "pa": BREAKPOINT_PA, "original": [0x90, 1, 2] }],
    })
}

/// This process, as a state names a QEMU.
fn this_process() -> Value {
    let me = std::process::id();
    let stat = fs::read_to_string(format!("/proc/{me}/stat")).expect("stat");
    let started: u64 =
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)?.parse().ok()).expect("a time");
    json!([me, started])
}

/// A dead session's folder.
fn dead_session(name: &str, state: &Value) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("vmscope-qemu-").tempdir_in("/tmp").expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("its owner may");
    fs::write(folder.path().join(name), state.to_string()).expect("room");
    folder
}

fn guardian(folder: &tempfile::TempDir) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmscope"));
    command.arg("guardian").arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::null());
    command.spawn().expect("a guardian")
}

/// Whether the guest runs, with nothing in it.
fn is_free(machine: &fake::Machine) -> bool {
    machine.running && machine.points.is_empty() && machine.gdb_address.is_none()
}

#[test]
fn a_stub_that_somebody_ends_takes_no_breakpoint_along_and_leaves_none() {
    for devices in [None, Some(Devices::default())] {
        let fake = Fake::new();
        fake.lock().devices = devices;
        let driver = fake.attach();
        set(&driver).expect("a breakpoint");
        fake.lock().end_stub();
        assert_eq!(fake.lock().points, [point()]);
        // The session ends as on a lost guest: everything is taken back, and once more when it is dropped.
        let _ = driver.reset_state();
        drop(driver);
        assert!(is_free(&fake.lock()), "{:?}", fake.take_log());
    }
}

#[test]
fn a_breakpoint_whose_answer_is_lost_counts_as_set() {
    let fake = Fake::new();
    fake.lock().swallows = Some("Z");
    let driver = fake.attach();
    assert!(set(&driver).is_err());
    fake.lock().swallows = None;
    assert_eq!(fake.lock().points, [point()]);
    let _ = driver.reset_state();
    drop(driver);
    assert!(is_free(&fake.lock()), "{:?}", fake.take_log());
}

#[test]
fn a_detach_that_is_not_acknowledged_is_none() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    fake.lock().swallows = Some("D");
    let freed = std::thread::spawn({
        let (machine, changed) = (fake.machine.clone(), fake.changed.clone());
        move || {
            let asked = |machine: &fake::Machine| machine.log.iter().any(|line| line == "D;1");
            let machine = machine.lock().expect("no panic");
            let mut machine = changed.wait_while(machine, |machine| !asked(machine)).expect("no panic");
            machine.swallows = None;
        }
    });
    drop(driver);
    freed.join().expect("no panic");
    assert!(is_free(&fake.lock()), "{:?}", fake.take_log());
}

#[test]
fn a_guest_that_another_has_paused_is_freed_and_stays_paused_when_the_stub_is_lost() {
    let fake = Fake::new();
    fake.lock().stop("paused");
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    fake.lock().end_stub();
    drop(driver);
    let machine = fake.lock();
    assert!(!machine.running && machine.points.is_empty() && machine.gdb_address.is_none(), "{:?}", machine.log);
}

#[test]
fn a_qemu_that_hangs_while_it_is_left_is_freed_once_it_goes_on() {
    let fake = Fake::new();
    let guardian = Some(env!("CARGO_BIN_EXE_vmscope").into());
    let driver = fake::attach(QemuOptions { guardian, ..fake.options() }).expect("it attaches");
    assert_eq!(driver.warning(), None);
    set(&driver).expect("a breakpoint");
    // Another start would take what is left for that of its own guest, which is the same process.
    let _alone = fake::ATTACHING.write();
    fake.lock().silent = true;
    drop(driver);
    assert!(fake.lock().gdb_address.is_some(), "the stub could not be ended");
    fake.take_log();
    fake.lock().silent = false;
    let ended = |machine: &fake::Machine| machine.log.iter().any(|line| line == "gdbserver none");
    assert!(fake.wait_until(|machine| ended(machine) && is_free(machine)), "{:?}", fake.lock().log);
}

#[test]
fn a_session_without_a_guardian_says_so() {
    let fake = Fake::new();
    for (guardian, why) in
        [(None, "starts none"), (Some("/nonexistent"), "No such file"), (Some("true"), "ended at once")]
    {
        let options = QemuOptions { guardian: guardian.map(Into::into), ..fake.options() };
        let driver = fake::attach(options).expect("it attaches");
        assert_eq!(driver.warning(), None, "nothing is touched yet");
        driver.pause().expect("it pauses");
        let said = driver.warning().unwrap_or_default();
        assert!(said.starts_with("no guardian process") && said.contains(why), "{said}");
    }
}

#[test]
fn the_guardian_frees_the_guest_over_a_descriptor() {
    let fake = Fake::new();
    let pair = || UnixStream::pair().expect("a pair").1;
    // The second one is of a repairer that died as well.
    fake.lock().devices = Some(Devices::with_stub("vmscope-1-0", pair()).and_lost("vmscope-2-0", pair()));
    fake.lock().points.push(point());
    fake.lock().stop("debug");
    let folder = dead_session("state.json", &old_state(&fake, Value::Null, false));
    // Dropping the pipe says nothing, as the end of the parent does.
    let mut guardian = guardian(&folder);
    drop(guardian.stdin.take());
    assert!(guardian.wait().expect("it ends").success());
    let machine = fake.lock();
    let devices = machine.devices.as_ref().expect("as above");
    assert!(is_free(&machine) && devices.is_empty(), "{:?} {devices:?}", machine.log);
}

#[test]
fn the_guardian_frees_the_guest_when_its_parent_says_nothing() {
    use std::io::Write;
    for (leave_paused, word, want) in [(false, "", "D;1"), (true, "", "gdbserver none"), (false, "bye\n", "")] {
        let fake = stuck();
        fake.lock().write(BREAKPOINT_PA, &[0xcc, 1, 2]);
        let folder = dead_session("state.json", &old_state(&fake, Value::Null, leave_paused));
        let mut guardian = guardian(&folder);
        guardian.stdin.take().expect("a pipe").write_all(word.as_bytes()).expect("room");
        assert!(guardian.wait().expect("it ends").success());
        let log = fake.take_log();
        assert_eq!(log.iter().any(|line| line == want), !want.is_empty(), "{log:?}");
        let machine = fake.lock();
        assert_eq!(machine.points.is_empty(), word.is_empty());
        assert_eq!(
            machine.byte(BREAKPOINT_PA),
            if word.is_empty() { 0x90 } else { 0xcc },
            "what QEMU has left in memory"
        );
        assert_eq!(machine.running, word.is_empty() && !leave_paused);
    }
}

#[test]
fn the_guardian_touches_nothing_that_was_not_touched_and_no_other_qemu() {
    let fake = Fake::new();
    fake.lock().stop("paused");
    let mut untouched = state(&fake);
    untouched["touched"] = json!(false);
    let mut another = state(&fake);
    another["boot"] = json!("another");
    // Another start would tidy up before.
    let _alone = fake::ATTACHING.write();
    for state in [untouched, another] {
        let folder = dead_session("state.json", &state);
        let mut guardian = guardian(&folder);
        drop(guardian.stdin.take());
        assert!(guardian.wait().expect("it ends").success());
        assert!(!folder.path().exists());
    }
    assert_eq!(fake.take_log(), [""; 0]);
    assert!(!fake.lock().running);
}

#[test]
fn the_next_session_repairs_what_a_dead_one_left() {
    // The second name is where older versions put it while they repaired, and left it when they died over that.
    for name in ["state.json", "state.claimed"] {
        let fake = stuck();
        let guard = fake::ATTACHING.write();
        let folder = dead_session(name, &old_state(&fake, this_process(), false));
        let driver = QemuDriver::attach(fake.options()).expect("it attaches");
        drop(guard);
        assert!(driver.notices().iter().any(|notice| notice.contains("died")), "{:?}", driver.notices());
        assert!(driver.warning().is_some_and(|warning| warning.contains("died")), "{:?}", driver.warning());
        assert!(!driver.is_paused() && is_free(&fake.lock()));
        assert!(!folder.path().exists());
    }
}

#[test]
fn a_repairer_that_dies_leaves_the_guest_to_the_next_one() {
    let fake = stuck();
    let guard = fake::ATTACHING.write();
    let folder = dead_session("state.json", &old_state(&fake, this_process(), false));
    fake.lock().swallows = Some("D");
    let mut guardian = guardian(&folder);
    drop(guardian.stdin.take());
    assert!(fake.wait_until(|machine| machine.log.iter().any(|line| line == "D;1")));
    guardian.kill().expect("it is ours");
    guardian.wait().expect("its end");
    fake.lock().swallows = None;
    assert!(!fake.lock().running);
    let driver = QemuDriver::attach(fake.options()).expect("it attaches");
    drop(guard);
    assert!(!driver.is_paused() && is_free(&fake.lock()), "{:?}", fake.take_log());
    assert!(!folder.path().exists());
}

#[test]
fn a_session_whose_process_is_not_seen_lives_as_long_as_it_holds_its_lock() {
    let fake = stuck();
    let guard = fake::ATTACHING.write();
    let folder = dead_session("state.json", &state(&fake));
    let lock = fs::File::create(folder.path().join("lock")).expect("room");
    flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("nobody else has it");
    let driver = QemuDriver::attach(fake.options()).expect("it attaches");
    assert!(!driver.notices().iter().any(|notice| notice.contains("died")), "{:?}", driver.notices());
    drop(driver);
    assert_eq!(fake.take_log(), [""; 0]);
    assert!(!fake.lock().running && folder.path().exists());
    drop(lock);
    let driver = QemuDriver::attach(fake.options()).expect("it attaches");
    drop(guard);
    assert!(!driver.is_paused() && is_free(&fake.lock()) && !folder.path().exists());
}
