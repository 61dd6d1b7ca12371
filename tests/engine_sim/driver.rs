//! The driver's own rules: memory, frames, views, pauses, read-only sessions, time.

use std::time::{Duration, Instant};

use vmscope::engine::{
    addr::{Gfn, Pa, VcpuId, View},
    arch::amd64::{EventMonitor, ExceptionVector, Interrupt},
    driver::{
        MemoryAccess, VmiDriver, VmiEventControl, VmiQueryProtection, VmiQueryRegisters, VmiRead, VmiSetProtection,
        VmiSetRegisters, VmiStep, VmiViewControl, VmiVmControl, VmiWrite,
        sim::{SimDriver, SimOptions},
    },
    error::VmiError,
    event::VmiEventResponse,
    snapshot::Capability,
};

fn driver(options: SimOptions) -> SimDriver {
    SimDriver::new(options).expect("boots")
}

#[test]
fn memory_ends_where_it_says() {
    let driver = driver(SimOptions::default());
    let info = driver.info().expect("there");
    assert_eq!((info.memory_bytes, info.vcpus), (512 << 20, 2));
    let end = Pa(info.memory_bytes);
    assert_eq!(info.max_gfn, Gfn((end.0 >> 12) - 1));
    assert_eq!(driver.read_physical_u64(end - 8).ok(), Some(0), "untouched memory is zero");
    assert!(matches!(driver.read_physical_u64(end), Err(VmiError::OutOfBounds(pa)) if pa == end));
    let mut bytes = [0; 32];
    assert!(matches!(driver.read_physical(end - 16, &mut bytes), Err(VmiError::OutOfBounds(pa)) if pa == end));
    assert!(matches!(driver.write_physical(Pa(u64::MAX - 3), &bytes), Err(VmiError::OutOfBounds(_))));
    assert!(matches!(driver.memory_access(Gfn(u64::MAX), View(0)), Err(VmiError::OutOfBounds(_))));
    assert!(driver.is_direct());
}

#[test]
fn frames_above_memory_are_allocated_and_freed() {
    let driver = driver(SimOptions::default());
    let gfn = driver.allocate_gfn().expect("free");
    assert!(gfn > driver.info().expect("there").max_gfn);
    assert!(matches!(driver.allocate_gfn_at(gfn), Err(VmiError::Frame(..))));
    driver.write_physical(Pa(gfn.0 << 12), &[1]).expect("allocated");
    driver.free_gfn(gfn).expect("allocated");
    assert!(matches!(driver.free_gfn(gfn), Err(VmiError::Frame(..))));
    assert!(matches!(driver.free_gfn(Gfn(1)), Err(VmiError::Frame(..))));
    driver.allocate_gfn_at(gfn).expect("free again");
    assert_eq!(driver.read_physical_u64(Pa(gfn.0 << 12)).ok(), Some(0));
}

#[test]
fn pauses_count_and_time_stands_still_in_them() {
    let driver = driver(SimOptions::default());
    driver.pause().expect("runs");
    driver.pause().expect("runs");
    driver.resume().expect("paused");
    let before = (driver.clock_ns(), driver.registers(VcpuId(0)).expect("a vCPU"));
    let waited = driver.wait_for_event(Duration::from_secs(1), |_| VmiEventResponse::default());
    assert!(matches!(waited, Err(VmiError::Timeout)));
    assert_eq!((driver.clock_ns(), driver.registers(VcpuId(0)).expect("a vCPU")), before);
    driver.resume().expect("paused");
    let waited = driver.wait_for_event(Duration::from_secs(1), |_| VmiEventResponse::default());
    assert!(matches!(waited, Err(VmiError::Timeout)));
    assert_eq!(driver.clock_ns(), before.0 + 1_000_000_000, "as long as allowed and no longer");
}

#[test]
fn a_halted_vcpu_steps_into_the_interrupt_that_ends_its_halt() {
    let driver = driver(SimOptions { vcpus: 1, ..SimOptions::default() });
    let _ = driver.wait_for_event(Duration::from_micros(500), |_| VmiEventResponse::default());
    driver.pause().expect("runs");
    let halted = driver.registers(VcpuId(0)).expect("a vCPU").gp.rip;
    driver.step(VcpuId(0)).expect("paused");
    let entered = driver.registers(VcpuId(0)).expect("a vCPU").gp.rip;
    driver.step(VcpuId(0)).expect("paused");
    assert!(entered != halted && driver.registers(VcpuId(0)).expect("a vCPU").gp.rip != entered);
    assert!(matches!(driver.step(VcpuId(9)), Err(VmiError::VcpuNotFound(VcpuId(9)))));
}

#[test]
fn views_that_are_gone_are_gone() {
    let driver = driver(SimOptions::default());
    let view = driver.create_view(MemoryAccess::RX).expect("free");
    assert_eq!(driver.memory_access(Gfn(5), view).ok(), Some(MemoryAccess::RX));
    driver.switch_to_view(view).expect("exists");
    driver.destroy_view(view).expect("exists");
    let gone = |result: Result<(), VmiError>| assert!(matches!(result, Err(VmiError::ViewNotFound(v)) if v == view));
    gone(driver.destroy_view(view));
    gone(driver.switch_to_view(view));
    gone(driver.set_memory_access(Gfn(5), view, MemoryAccess::R));
    gone(driver.change_view_gfn(view, Gfn(5), Gfn(6)));
    gone(driver.reset_view_gfn(view, Gfn(5)));
    // The vCPUs are back where everything is allowed.
    let waited = driver.wait_for_event(Duration::from_millis(100), |event| panic!("{:?}", event.reason()));
    assert!(matches!(waited, Err(VmiError::Timeout)));
    assert!(driver.destroy_view(driver.default_view()).is_err());
}

#[test]
fn a_read_only_guest_lives_and_refuses_every_change() {
    let driver = driver(SimOptions { read_only: true, ..SimOptions::default() });
    let _ = driver.wait_for_event(Duration::from_millis(300), |_| VmiEventResponse::default());
    driver.pause().expect("is no change");
    let registers = driver.registers(VcpuId(0)).expect("a vCPU");
    let view = driver.default_view();
    let refused = |result: Result<(), VmiError>| assert!(matches!(result, Err(VmiError::ReadOnly { .. })));
    refused(driver.write_physical(Pa(0), &[0]));
    refused(driver.set_memory_access(Gfn(1), view, MemoryAccess::R));
    refused(driver.set_registers(VcpuId(0), registers));
    refused(driver.create_view(MemoryAccess::RWX).map(|_| ()));
    refused(driver.destroy_view(View(1)));
    refused(driver.switch_to_view(view));
    refused(driver.change_view_gfn(view, Gfn(1), Gfn(2)));
    refused(driver.reset_view_gfn(view, Gfn(1)));
    refused(driver.allocate_gfn().map(|_| ()));
    refused(driver.allocate_gfn_at(Gfn(1 << 18)));
    refused(driver.free_gfn(Gfn(1 << 18)));
    refused(driver.inject_interrupt(VcpuId(0), Interrupt::breakpoint()));
    refused(driver.step(VcpuId(0)));
    driver.reset_state().expect("there is nothing to take back");
    driver.resume().expect("paused");
    let (can, cannot) = driver.capabilities();
    assert!(can.contains(&Capability::Read) && !can.contains(&Capability::Breakpoints));
    assert!(cannot.iter().any(|missing| missing.what == Capability::Write && missing.why.contains("read-only")));
}

#[test]
fn a_guest_that_may_be_changed_can_everything() {
    let (can, cannot) = driver(SimOptions::default()).capabilities();
    for what in [
        Capability::Breakpoints,
        Capability::HiddenBreakpoints,
        Capability::TableWrites,
        Capability::FaultInjection,
        Capability::Step,
        Capability::Views,
    ] {
        assert!(can.contains(&what), "{what:?}");
    }
    assert!(cannot.is_empty());
}

#[test]
fn in_real_time_the_guest_is_never_ahead_of_the_wall_clock() {
    let driver = driver(SimOptions { real_time: true, ..SimOptions::default() });
    let started = Instant::now();
    let mut hits = 0;
    driver.monitor_enable(EventMonitor::Interrupt(ExceptionVector::PAGE_FAULT)).expect("supported");
    while driver.clock_ns() < 100_000_000 {
        let _ = driver.wait_for_event(Duration::from_millis(20), |_| {
            hits += 1;
            VmiEventResponse::reinject_interrupt()
        });
        assert!(u128::from(driver.clock_ns()) <= started.elapsed().as_nanos() + 2_000_000);
    }
    assert!(hits > 0);
    driver.pause().expect("runs");
    let paused_at = driver.clock_ns();
    let waited = driver.wait_for_event(Duration::from_millis(5), |_| VmiEventResponse::default());
    assert!(matches!(waited, Err(VmiError::Timeout)));
    assert_eq!(driver.clock_ns(), paused_at);
}
