//! What others do to the machine: run states, and vCPUs that come and go.

use std::time::Instant;

use vmscope::engine::{
    addr::VcpuId,
    driver::{News, VmiDriver, VmiEventControl, VmiQueryRegisters, VmiVmControl, qemu::QemuDriver},
    error::VmiError,
    event::VmiEventResponse,
    snapshot::{Run, RunState, StoppedBy},
};

use super::{
    LONG, SHORT,
    fake::{Act, BREAKPOINT, Fake},
    hit, next, refusal, set,
};

/// A guest that stood like this before anybody came.
fn standing(status: &'static str) -> (Fake, QemuDriver) {
    let fake = Fake::new();
    fake.lock().stand(status, None);
    let driver = fake.attach();
    (fake, driver)
}

/// Lets time pass until something is true; QEMU is looked at once a second.
fn wait_until(driver: &QemuDriver, is_so: impl Fn(&QemuDriver) -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so(driver) {
        assert!(Instant::now() < deadline, "in vain: {:?} {:?}", driver.run(), driver.vcpu_ids());
        assert!(matches!(next(driver, SHORT), Err(VmiError::Timeout)));
    }
}

#[test]
fn a_state_is_known_from_the_start_and_left_as_it_was() {
    for status in ["paused", "debug", "inmigrate", "postmigrate", "prelaunch", "suspended", "shutdown", "on fire"] {
        let (fake, driver) = standing(status);
        let run = driver.run().expect("it is told");
        assert_eq!(run, Run::foreign(RunState::from_name(status)));
        assert!(!run.is_running() && driver.is_paused());
        // A pause of ours and its end change nothing.
        driver.pause().and_then(|()| driver.resume()).expect("a pause");
        drop(driver);
        let log = fake.take_log();
        assert_eq!((fake.lock().status, log), (status, Vec::new()));
    }
}

#[test]
fn what_can_be_resumed_is_and_the_rest_says_why_not() {
    for status in ["paused", "debug", "prelaunch", "io-error", "watchdog", "guest-panicked", "on fire"] {
        let (fake, driver) = standing(status);
        driver.resume().expect(status);
        assert_eq!(fake.take_log(), ["cont"], "{status}");
        assert_eq!(driver.run(), Some(Run::default()), "{status}");
    }
    for status in ["internal-error", "shutdown", "inmigrate", "finish-migrate", "postmigrate", "save-vm", "restore-vm"]
    {
        let (fake, driver) = standing(status);
        assert_ne!(refusal(driver.resume()), "it worked", "{status}");
        let log = fake.take_log();
        assert_eq!((fake.lock().status, log), (status, Vec::new()));
    }
    let (fake, driver) = standing("suspended");
    driver.resume().expect("awake");
    wait_until(&driver, |driver| driver.run() == Some(Run::default()));
    assert_eq!(fake.take_log(), ["system_wakeup"]);
}

#[test]
fn a_guest_that_was_migrated_away_while_we_held_it_does_not_run_here() {
    let fake = Fake::new();
    let driver = fake.attach();
    driver.pause().expect("a pause");
    assert_eq!(driver.run(), Some(Run::PAUSED_BY_US));
    // It stood already, so nobody tells.
    fake.lock().stand("postmigrate", None);
    fake.take_log();
    driver.resume().expect("our pause is over");
    assert_eq!(driver.run(), Some(Run::foreign(RunState::Postmigrate)));
    drop(driver);
    assert_eq!(fake.take_log(), [""; 0]);
    assert_eq!(fake.lock().status, "postmigrate");

    // The same when we leave with the pause, and with the stub.
    for with_stub in [false, true] {
        let fake = Fake::new();
        let driver = fake.attach();
        driver.pause().expect("a pause");
        if with_stub {
            set(&driver).expect("a breakpoint");
        }
        fake.lock().stand("postmigrate", None);
        drop(driver);
        assert_eq!(fake.lock().status, "postmigrate", "with the stub: {with_stub}");
        assert_eq!(fake.lock().points, [""; 0]);
    }
}

#[test]
fn events_change_the_state_and_are_told() {
    let fake = Fake::new();
    let driver = fake.attach();
    fake.lock().stop("io-error");
    wait_until(&driver, |driver| driver.run().is_some_and(|run| run.state == RunState::IoError));
    assert_eq!(driver.run().and_then(|run| run.stopped_by), Some(StoppedBy::Guest));
    // A guest that goes to sleep sends no STOP.
    let fake = Fake::new();
    let driver = fake.attach();
    fake.lock().stand("suspended", Some("SUSPEND"));
    wait_until(&driver, |driver| driver.run().is_some_and(|run| run.state == RunState::Suspended));
    fake.lock().stand("shutdown", Some("POWERDOWN"));
    wait_until(&driver, |driver| driver.run().is_some_and(|run| run.state == RunState::Shutdown));
    let power = News::Said("somebody has pressed the guest's power button".into());
    assert!(driver.news().contains(&power));
    assert!(driver.news().is_empty());
}

#[test]
fn a_vcpu_that_is_unplugged_while_its_event_is_answered_is_forgotten() {
    let fake = Fake::new();
    let driver = fake.attach();
    fake.lock().script.push_back(Act::Come(vec![1], BREAKPOINT));
    set(&driver).expect("a breakpoint");
    driver
        .wait_for_event(LONG, |event| {
            assert_eq!((event.vcpu_id(), *event.reason()), hit(1));
            fake.lock().unplug();
            VmiEventResponse::default()
        })
        .expect("the event");
    wait_until(&driver, |driver| driver.vcpu_ids() == [VcpuId(0)]);
    assert_eq!(driver.info().expect("info").vcpus, 1);
    assert!(driver.news().contains(&News::Changed("vCPU 1 unplugged: there are 1 now".into())));
    assert!(matches!(driver.registers(VcpuId(1)), Err(VmiError::VcpuNotFound(VcpuId(1)))));
    assert!(fake.wait_until(|machine| machine.running));

    // It comes back, and has the breakpoint: all of them are set again.
    fake.take_log();
    fake.lock().vcpus = 2;
    wait_until(&driver, |driver| driver.vcpu_ids().len() == 2);
    let log = fake.take_log();
    assert!(log.contains(&format!("Z0,{BREAKPOINT:x},1")), "{log:?}");
    assert_eq!(fake.lock().points, [format!("0,{BREAKPOINT:x},1")]);
    assert!(fake.wait_until(|machine| machine.running));
    drop(driver);
    assert!(fake.lock().running && fake.lock().points.is_empty());
}
