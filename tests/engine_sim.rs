//! The built-in guest through the capability traits.

use std::{collections::BTreeSet, time::Duration};

use vmscope::engine::{
    addr::{Pa, VcpuId},
    arch::amd64::{Amd64EventReason, ControlRegister, EventMonitor},
    driver::{
        VmiDriver, VmiEventControl,
        sim::{SimDriver, SimOptions},
    },
    event::VmiEventResponse,
    os::{
        VmiOs,
        windows::{Profile, WindowsOs},
    },
    session::{VmiCore, VmiSession},
    snapshot::{Process, ProcessFlag},
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

/// A guest with its core and its Windows layer.
fn windows(options: SimOptions) -> (VmiCore<SimDriver>, WindowsOs) {
    let core = VmiCore::new(SimDriver::new(options).expect("boots")).expect("a machine");
    let registers = core.registers(VcpuId(0)).expect("a vCPU");
    let os = WindowsOs::detect(&core, &registers, Profile::builtin().expect("compiled in")).expect("a Windows");
    (core, os)
}

/// What the guest says of its processes, in the form of a process list.
fn truth(driver: &SimDriver) -> Vec<(u32, u32, String, Pa, bool, bool)> {
    let all = driver.processes().into_iter();
    all.map(|p| (p.pid, p.ppid, p.name, p.root, p.hidden, p.exiting)).collect()
}

fn listed(core: &VmiCore<SimDriver>, os: &WindowsOs) -> Vec<(u32, u32, String, Pa, bool, bool)> {
    core.flush_v2p_cache();
    let list = os.processes(VmiSession::new(core, os)).expect("can be read");
    assert!(!list.truncated);
    let has = |process: &Process, flag| process.flags.contains(&flag);
    let mut rows: Vec<_> = list
        .processes
        .into_iter()
        .map(|p| {
            let (hidden, exiting) = (has(&p, ProcessFlag::Hidden), has(&p, ProcessFlag::Exiting));
            (p.pid, p.ppid, p.name, p.root.unwrap_or_default(), hidden, exiting)
        })
        .collect();
    rows.sort();
    rows
}

#[test]
fn the_process_list_is_the_guests_own_while_processes_come_and_go() {
    for la57 in [false, true] {
        let (core, os) = windows(SimOptions { la57, ..SimOptions::default() });
        let mut pids = BTreeSet::new();
        let (mut exits, mut hidden) = (0, 0);
        for _ in 0..60 {
            run(core.driver(), Duration::from_millis(100));
            let rows = listed(&core, &os);
            assert_eq!(rows, truth(core.driver()), "la57: {la57}");
            exits += rows.iter().filter(|row| row.5).count();
            hidden += rows.iter().filter(|row| row.4).count();
            pids.extend(rows.into_iter().map(|row| row.0));
        }
        assert!(pids.len() > 42, "processes start: {}", pids.len());
        assert!(exits > 0, "processes end");
        assert_eq!(hidden, 60, "one hides all the time");
    }
}

#[test]
fn ten_thousand_processes_fit() {
    let (core, os) = windows(SimOptions { processes: 10_000, ..SimOptions::default() });
    run(core.driver(), Duration::from_millis(500));
    let rows = listed(&core, &os);
    assert!(rows.len() >= 10_000);
    assert_eq!(rows, truth(core.driver()));
}
