//! What others do to a guest is seen: they pause it, start it, migrate it, put another kernel or another memory into it,
//! and plug vCPUs and memory in and out.

mod live;

use live::{
    dashboard::Dashboard,
    guest::{Guest, Options},
};
use serde_json::json;
use vmscope::engine::{
    command::{Command, Done, Target},
    snapshot::{BreakpointState, EventKind, RunState, Scope, Snapshot, Status, StoppedBy, VcpuId},
    worker::StartOptions,
};

fn plain(more: &'static [&'static str]) -> Options {
    Options { plain: true, more, ..Options::default() }
}

fn open(guest: &Guest) -> Dashboard {
    Dashboard::open(guest, true, StartOptions::default())
}

fn breakpoint(place: &str) -> Command {
    let target = Target::parse(place).expect("a place");
    Command::AddBreakpoint { target, scope: Scope::Global, tag: String::new() }
}

fn is_told(snapshot: &Snapshot, words: &str) -> bool {
    snapshot.events.iter().any(|event| event.kind == EventKind::Vm && event.text.contains(words))
}

fn runs(snapshot: &Snapshot) -> bool {
    snapshot.status == Status::Running && snapshot.run.is_running() && !snapshot.processes.is_empty()
}

fn stands(snapshot: &Snapshot, state: &RunState, by: StoppedBy) -> bool {
    snapshot.status == Status::Paused && snapshot.run.state == *state && snapshot.run.stopped_by == Some(by)
}

fn said(answer: Result<Done, String>) -> String {
    match answer.expect("it is done") {
        Done::Said(text) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_that_another_client_has_paused_says_so() {
    let Some(mut guest) = Guest::boot(&plain(&[])) else { return };
    guest.qmp("stop", json!({}));
    let dashboard = open(&guest);
    let snapshot = dashboard.wait("the kernel", |s| s.status != Status::Attaching);
    assert!(stands(&snapshot, &RunState::Paused, StoppedBy::Other), "{:?}", snapshot.run);
    assert!(!snapshot.processes.is_empty());
    assert!(said(dashboard.ask(Command::Resume)).contains("another client had paused it"));
    assert_eq!(guest.sh("echo runs"), "runs\n");
    dashboard.wait("it to run", runs);

    // Without the gdb stub and with it.
    for with_stub in [false, true] {
        if with_stub {
            dashboard.ask(breakpoint("do_sys_openat2")).expect("a breakpoint");
        }
        guest.qmp("stop", json!({}));
        dashboard.wait("the other's pause", |s| stands(s, &RunState::Paused, StoppedBy::Other));
        guest.qmp("cont", json!({}));
        dashboard.wait("its end", |s| runs(s) && is_told(s, "another client has let the guest run again"));
        assert_eq!(guest.sh("echo runs"), "runs\n");

        // Our pause, ended by somebody else, is over: the next one is a pause again.
        dashboard.ask(Command::Pause).expect("a pause");
        dashboard.wait("our pause", |s| stands(s, &RunState::Paused, StoppedBy::Us));
        guest.qmp("cont", json!({}));
        dashboard.wait("its end", |s| runs(s) && is_told(s, "over our pause"));
        assert_eq!(guest.sh("echo runs"), "runs\n");
        assert!(said(dashboard.ask(Command::Pause)).contains("is paused"));
        dashboard.wait("our pause", |s| stands(s, &RunState::Paused, StoppedBy::Us));
        dashboard.ask(Command::Resume).expect("it runs");
        dashboard.wait("it to run", runs);
    }
    guest.sh("work open 3");
    dashboard.wait("three hits", |s| s.breakpoints.first().is_some_and(|row| row.hits >= 3));

    // What somebody else has paused stays paused.
    guest.qmp("stop", json!({}));
    dashboard.wait("the other's pause", |s| stands(s, &RunState::Paused, StoppedBy::Other));
    dashboard.close();
    assert_ne!(guest.status(), "running");
    guest.qmp("cont", json!({}));
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_guest_that_was_not_started_is_started() {
    let Some(mut guest) = Guest::power_on(&plain(&["--", "-S"])) else { return };
    let dashboard = open(&guest);
    let snapshot = dashboard.wait("the run state", |s| s.run.state == RunState::Prelaunch && s.notice.is_some());
    assert_eq!((snapshot.status, snapshot.run.stopped_by), (Status::Attaching, Some(StoppedBy::Other)));
    assert!(snapshot.notice.as_deref().is_some_and(|notice| notice.contains("not been started")));
    assert_eq!(said(dashboard.ask(Command::Resume)), "the guest was started");
    guest.wait_for_shell();
    let snapshot = dashboard.wait("the kernel", runs);
    assert!(is_told(&snapshot, "the guest was started"));
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_guest_that_is_migrated_is_seen_at_both_ends() {
    let Some(mut guest) = Guest::boot(&plain(&[])) else { return };
    let sleepers = guest.start("work sleepers 3");
    let dashboard = open(&guest);
    dashboard.wait("the kernel", runs);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let to = format!("exec:cat > {}", file.path().display());
    guest.qmp("migrate", json!({ "uri": to }));
    let snapshot = dashboard.wait("the migration", |s| stands(s, &RunState::Postmigrate, StoppedBy::Other));
    assert!(is_told(&snapshot, "the guest was migrated away"));
    let refused = dashboard.ask(Command::Resume).expect_err("two of it");
    assert!(refused.contains("two of it"), "{refused}");
    assert!(dashboard.ask(Command::Step(VcpuId(0))).is_err());
    dashboard.close();
    assert_eq!(guest.status(), "postmigrate");

    let Some(other) = Guest::power_on(&plain(&["--", "-incoming", "defer"])) else { return };
    let dashboard = open(&other);
    dashboard.wait("the run state", |s| s.run.state == RunState::Inmigrate);
    let refused = dashboard.ask(Command::Resume).expect_err("nothing has come in");
    assert!(refused.contains("migration"), "{refused}");
    other.qmp("migrate-incoming", json!({ "uri": format!("exec:cat {}", file.path().display()) }));
    let snapshot = dashboard.wait("the kernel", runs);
    assert!(is_told(&snapshot, "the migration has come in"));
    assert_eq!(snapshot.processes.iter().filter(|process| process.name.starts_with("sleeper-")).count(), 3);
    dashboard.close();
    assert_eq!(other.status(), "running");
    drop(sleepers);
}

#[test]
fn a_guest_that_is_migrated_away_while_we_have_paused_it_does_not_run_twice() {
    let Some(guest) = Guest::boot(&plain(&[])) else { return };
    let dashboard = open(&guest);
    dashboard.wait("the kernel", runs);
    dashboard.ask(Command::Pause).expect("a pause");
    guest.qmp("migrate", json!({ "uri": "exec:cat > /dev/null" }));
    dashboard.wait("the migration", |s| stands(s, &RunState::Postmigrate, StoppedBy::Other));
    dashboard.close();
    assert_eq!(guest.status(), "postmigrate");
}

#[test]
fn a_guest_that_sleeps_is_woken() {
    let Some(mut guest) = Guest::boot(&plain(&[])) else { return };
    let dashboard = open(&guest);
    dashboard.wait("the kernel", runs);
    let job = guest.start("sh -c 'echo ready; read -r line; echo mem >/sys/power/state; echo @awake@ >/dev/ttyS0; echo awake; read -r line'");
    guest.tell(&job, "sleep");
    let snapshot = dashboard.wait("its sleep", |s| stands(s, &RunState::Suspended, StoppedBy::Guest));
    assert!(is_told(&snapshot, "the guest is asleep"));
    assert!(said(dashboard.ask(Command::Pause)).contains("asleep"), "a pause adds nothing to it");
    assert_eq!(said(dashboard.ask(Command::Resume)), "the guest is being woken up");
    dashboard.wait("its waking", runs);
    // The serial port wakes up later than the processors, and what comes before that is lost.
    guest.wait_for_console("@awake@\n");
    assert_eq!(guest.listen(&job), "awake");
    assert!(!is_told(&dashboard.engine.snapshot.load(), "found again"));
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn another_kernel_by_kexec_is_found() {
    let Some(mut guest) = Guest::boot(&plain(&["--kexec"])) else { return };
    let dashboard = open(&guest);
    let before = dashboard.wait("the kernel", runs);
    dashboard.ask(breakpoint("do_sys_openat2")).expect("a breakpoint");
    let job = guest.start("work sleepers 3");
    dashboard.wait("three processes", |s| {
        s.processes.iter().filter(|process| process.name.starts_with("sleeper-")).count() == 3
    });
    drop(job);
    guest.kexec();
    let snapshot = dashboard.wait("the new kernel", |s| runs(s) && is_told(s, "the kernel was found again"));
    assert!(is_told(&snapshot, "(kexec)"));
    assert!(snapshot.processes.iter().all(|process| !process.name.starts_with("sleeper-")));
    assert_ne!(snapshot.guest.kernel_base, before.guest.kernel_base);
    let row = snapshot.breakpoints.first().expect("the breakpoint");
    assert_eq!(row.state, BreakpointState::Active);
    let hits = row.hits;
    guest.sh("work open 5");
    dashboard.wait("hits in the new kernel", |s| s.breakpoints.first().is_some_and(|row| row.hits >= hits + 5));
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_snapshot_of_another_boot_is_another_kernel_and_one_of_the_same_is_a_step_back() {
    let Some(mut guest) = Guest::boot(&plain(&["--disk"])) else { return };
    let hmp = |guest: &Guest, line: &str| {
        assert_eq!(guest.qmp("human-monitor-command", json!({ "command-line": line })), json!(""), "{line}");
    };
    let dashboard = open(&guest);
    let first = dashboard.wait("the kernel", runs);
    hmp(&guest, "savevm first");
    // The same boot: what has started since is gone, and nothing is looked for.
    let job = guest.start("work sleepers 3");
    let sleepers = |s: &Snapshot| s.processes.iter().filter(|process| process.name.starts_with("sleeper-")).count();
    dashboard.wait("three processes", |s| sleepers(s) == 3);
    drop(job);
    // The guest's own time has to go on for a while, to have a way back.
    guest.sh("sleep 2");
    hmp(&guest, "loadvm first");
    let snapshot = dashboard.wait("the step back", |s| runs(s) && is_told(s, "gone back in time"));
    assert_eq!(snapshot.guest.kernel_base, first.guest.kernel_base);
    dashboard.wait("the list of then", |s| runs(s) && sleepers(s) == 0);
    assert!(!is_told(&dashboard.engine.snapshot.load(), "found again"));

    guest.reset();
    let second = dashboard.wait("the kernel again", |s| runs(s) && is_told(s, "the kernel was found again"));
    assert_ne!(second.guest.kernel_base, first.guest.kernel_base);
    hmp(&guest, "loadvm first");
    let third = dashboard.wait("the first kernel", |s| runs(s) && s.guest.kernel_base == first.guest.kernel_base);
    assert!(is_told(&third, "the guest's memory was replaced (a snapshot was loaded"));
    dashboard.close();
    assert_eq!(guest.status(), "running");
}

#[test]
fn vcpus_and_memory_are_plugged_in() {
    plugged(Options { kernel: "6.1", ..plain(&["--hotplug"]) }, false);
}

/// On QEMU 10: 7.2 dies of a damaged heap after a vCPU was unplugged, also where nobody watches the guest.
#[test]
fn a_vcpu_is_unplugged() {
    plugged(Options { kernel: "6.1", qemu: "backport", ..plain(&["--hotplug"]) }, true);
}

/// From 6.9 on Linux takes in no CPU of QEMU 7.2: it knows none that could come.
fn plugged(options: Options, unplug: bool) {
    let Some(mut guest) = Guest::boot(&options) else { return };
    let dashboard = open(&guest);
    dashboard.wait("the kernel", runs);
    dashboard.ask(breakpoint("do_sys_openat2")).expect("a breakpoint");
    let cpu = json!({ "driver": "qemu64-x86_64-cpu", "id": "cpu1", "socket-id": 1, "core-id": 0, "thread-id": 0 });
    guest.qmp("device_add", cpu);
    let snapshot = dashboard.wait("a vCPU", |s| s.guest.vcpus == 2 && s.vcpus.len() == 2);
    assert!(is_told(&snapshot, "vCPU 1 plugged in: there are 2 now"));
    // It has the breakpoint, too.
    guest.sh(
        "until [ -e /sys/devices/system/cpu/cpu1/online ]; do :; done; echo 1 >/sys/devices/system/cpu/cpu1/online",
    );
    guest.sh("taskset 2 work open 5");
    dashboard.wait("hits on the new vCPU", |s| {
        let on_it = |row: &vmscope::engine::snapshot::Breakpoint| {
            row.last_hits.iter().filter(|hit| hit.vcpu == VcpuId(1)).count() >= 5
        };
        s.breakpoints.first().is_some_and(on_it)
    });
    if unplug {
        guest.qmp("device_del", json!({ "id": "cpu1" }));
        dashboard.wait("its end", |s| s.guest.vcpus == 1 && s.vcpus.len() == 1 && is_told(s, "vCPU 1 unplugged"));
        guest.sh("work open 3");
    }

    guest.qmp("object-add", json!({ "qom-type": "memory-backend-ram", "id": "more", "size": 128 << 20 }));
    guest.qmp("device_add", json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "more" }));
    let snapshot = dashboard.wait("memory", |s| s.guest.memory_bytes == 640 << 20);
    assert!(is_told(&snapshot, "128 MiB of memory plugged in"));
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}
