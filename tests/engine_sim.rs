//! The built-in guest through the capability traits.

use std::time::Duration;

use vmscope::engine::{
    arch::amd64::{Amd64EventReason, ControlRegister, EventMonitor},
    driver::{
        VmiDriver, VmiEventControl,
        sim::{SimDriver, SimOptions},
    },
    event::VmiEventResponse,
};

/// Runs a guest for some virtual time; every event is answered by `Continue` and kept.
fn run(driver: &SimDriver, time: Duration) -> Vec<(u64, Amd64EventReason)> {
    let end = driver.clock_ns() + time.as_nanos() as u64;
    let mut seen = Vec::new();
    while driver.clock_ns() < end {
        let left = Duration::from_nanos(end - driver.clock_ns());
        // A time-out is the end of the run.
        let _ = driver.wait_for_event(left, |event| {
            seen.push((driver.clock_ns(), *event.reason()));
            VmiEventResponse::default()
        });
    }
    seen
}

#[test]
fn two_runs_from_one_seed_are_the_same_and_from_another_are_not() {
    let trace = |seed| {
        let driver = SimDriver::new(SimOptions { seed, ..SimOptions::default() }).expect("boots");
        driver.monitor_enable(EventMonitor::Register(ControlRegister::Cr3)).expect("can be monitored");
        let events = run(&driver, Duration::from_secs(1));
        (events, driver.processes(), driver.clock_ns())
    };
    let first = trace(7);
    assert!(first.0.len() > 100, "processes are switched");
    assert_eq!(first, trace(7));
    assert_ne!(first, trace(8));
}
