//! Every kind of event, and every way to answer one.

use std::time::Duration;

use vmscope::engine::{
    addr::{Gfn, Va, VcpuId},
    arch::{EventReason, Registers, amd64::*},
    driver::{
        MemoryAccess, VmiEventControl, VmiQueryRegisters, VmiSetRegisters, VmiStep, VmiVmControl, sim::SimOptions,
    },
    error::VmiError,
    event::{VmiEventAction, VmiEventResponse},
};

use crate::{Event, Guest, Response};

fn go_on(_: &Event) -> Response {
    VmiEventResponse::default()
}

#[test]
fn singlestep_is_one_instruction_and_then_off() {
    let guest = Guest::new(SimOptions { vcpus: 1, ..SimOptions::default() });
    let (view, _) = guest.hide_breakpoint("nt!NtClose");
    let address = guest.symbol("nt!NtClose");
    let default = guest.core.default_view();
    let (mut hits, mut steps) = (0, 0);
    guest.run(Duration::from_millis(500), |event| {
        if event.reason().is_singlestep() {
            steps += 1;
            assert_eq!(event.view(), Some(default));
            // `sub rsp, 28h` is four bytes long.
            assert_eq!(event.registers().gp.rip, address.0 + 4);
            return VmiEventResponse::default().with_view(view);
        }
        if event.reason().as_software_breakpoint().is_some() && event.registers().gp.rip == address.0 {
            hits += 1;
            return VmiEventResponse::singlestep().with_view(default);
        }
        match event.reason().as_memory_access() {
            Some(_) => VmiEventResponse::fast_singlestep(default),
            None => VmiEventResponse::reinject_interrupt(),
        }
    });
    assert!(hits > 50);
    assert_eq!(hits, steps);
}

#[test]
fn a_stale_breakpoint_event_comes_again_until_something_is_done() {
    let guest = Guest::new(SimOptions::default());
    let (view, gfn) = guest.hide_breakpoint("nt!NtReadFile");
    let address = guest.symbol("nt!NtReadFile").0;
    let mut same = 0;
    guest.run_until(|event| {
        if event.registers().gp.rip != address {
            let response = match event.reason().as_memory_access() {
                Some(_) => VmiEventResponse::fast_singlestep(guest.core.default_view()),
                None => VmiEventResponse::reinject_interrupt(),
            };
            return (response, None);
        }
        same += 1;
        if same == 3 {
            guest.core.reset_view_gfn(view, gfn).expect("exists");
        }
        (VmiEventResponse::default(), (same == 3).then_some(()))
    });
    // The page shows its own bytes again: the vCPU goes on.
    guest.run(Duration::from_millis(500), |event| {
        assert_ne!(event.registers().gp.rip, address);
        VmiEventResponse::reinject_interrupt()
    });
    assert_eq!(guest.driver().tamper_count(), 0);
}

#[test]
fn a_page_without_execute_permission_stops_every_instruction_in_it() {
    let guest = Guest::new(SimOptions::default());
    let pa = guest.physical("nt!NtWriteFile");
    let view = guest.core.create_view(MemoryAccess::RWX).expect("views");
    guest.core.set_memory_access(Gfn(pa.0 >> 12), view, MemoryAccess::RW).expect("exists");
    guest.core.switch_to_view(view).expect("exists");
    let mut at_start = 0;
    let mut all = 0;
    guest.run(Duration::from_millis(500), |event| {
        let access = event.reason().as_memory_access().expect("nothing else is monitored");
        assert_eq!(access.access, MemoryAccess::X);
        assert_eq!(access.va.0, event.registers().gp.rip);
        assert_eq!(access.pa.0 >> 12, pa.0 >> 12);
        all += 1;
        at_start += u32::from(access.pa == pa);
        VmiEventResponse::fast_singlestep(guest.core.default_view())
    });
    assert!(at_start > 50 && all > 3 * at_start, "{at_start} of {all}");
}

#[test]
fn registers_in_an_answer_skip_a_function() {
    let guest = Guest::new(SimOptions { vcpus: 1, ..SimOptions::default() });
    guest.hide_breakpoint("nt!NtDelayExecution");
    let address = guest.symbol("nt!NtDelayExecution").0;
    let mut skipped = 0;
    guest.run(Duration::from_millis(100), |event| {
        if event.registers().gp.rip != address {
            let response = match event.reason().as_memory_access() {
                Some(_) => VmiEventResponse::fast_singlestep(guest.core.default_view()),
                None => VmiEventResponse::reinject_interrupt(),
            };
            return response;
        }
        skipped += 1;
        let mut gp = event.registers().gp;
        gp.rip = event.registers().return_address(&guest.core).expect("on the stack").0;
        gp.rsp += 8;
        gp.rax = 0;
        VmiEventResponse::default().with_registers(gp)
    });
    // Nobody sleeps any more, so the rounds follow each other.
    assert!(skipped > 1_000, "{skipped}");
}

#[test]
fn cr3_writes_are_reported_before_they_happen_and_can_be_denied() {
    let guest = Guest::new(SimOptions { vcpus: 1, ..SimOptions::default() });
    guest.core.monitor_enable(EventMonitor::Register(ControlRegister::Cr3)).expect("supported");
    let (mut last, mut count) = (guest.kernel_root().0, 0);
    guest.run(Duration::from_millis(200), |event| {
        let Amd64EventReason::WriteCr { register: ControlRegister::Cr3, old, new } = *event.reason() else {
            panic!("{:?}", event.reason());
        };
        assert_eq!((old, event.registers().cr3), (last, last));
        assert_ne!(old, new);
        last = new;
        count += 1;
        VmiEventResponse::default()
    });
    assert!(count > 20);
    let (rip, old) = guest.run_until(|event| {
        let registers = event.registers();
        (VmiEventResponse::deny(), Some((registers.gp.rip, registers.cr3)))
    });
    let registers = guest.driver().registers(VcpuId(0)).expect("a vCPU");
    // `mov cr3, rdx` is three bytes long.
    assert_eq!((registers.gp.rip, registers.cr3), (rip + 3, old));
}

#[test]
fn msr_writes_and_hypercalls_are_reported_once_each() {
    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    let guest = Guest::new(SimOptions { vcpus: 1, ..SimOptions::default() });
    guest.core.monitor_enable(EventMonitor::Msr(KERNEL_GS_BASE)).expect("supported");
    guest.core.monitor_enable(EventMonitor::Hypercall).expect("supported");
    let (mut writes, mut calls, mut before) = (0, 0, None);
    guest.run(Duration::from_millis(100), |event| {
        match *event.reason() {
            Amd64EventReason::WriteMsr { msr: KERNEL_GS_BASE, value } => {
                assert_eq!(value & 0xfff, 0, "a thread's environment block");
                assert_ne!(before.replace(*event.registers()), Some(*event.registers()), "answered already");
                writes += 1;
            }
            Amd64EventReason::Hypercall => calls += 1,
            other => panic!("{other:?}"),
        }
        VmiEventResponse::default()
    });
    assert!(writes > 5 && calls > 100, "{writes} {calls}");
    guest.core.monitor_disable(EventMonitor::Hypercall).expect("on");
    guest.core.monitor_disable(EventMonitor::Msr(KERNEL_GS_BASE)).expect("on");
    guest.run(Duration::from_millis(100), |event| panic!("{:?}", event.reason()));
}

/// Puts code into a function that nothing calls, and a vCPU of the paused guest in front of it.
fn stand_at(guest: &Guest, code: &[u8]) -> u64 {
    let rip = guest.symbol("nt!NtVdmControl").0;
    guest.core.write(guest.physical("nt!NtVdmControl"), code).expect("writable");
    let mut registers = guest.driver().registers(VcpuId(0)).expect("a vCPU");
    registers.gp.rip = rip;
    guest.driver().set_registers(VcpuId(0), registers).expect("paused");
    rip
}

#[test]
fn steps_of_the_paused_guest_raise_events_and_go_on_after_the_answer() {
    let guest = Guest::new(SimOptions::default());
    guest.core.pause().expect("runs");
    // cpuid; in al, 60h; nop
    let rip = stand_at(&guest, &[0x0f, 0xa2, 0xe4, 0x60, 0x90]);
    guest.core.monitor_enable(EventMonitor::CpuId).expect("supported");
    guest.core.monitor_enable(EventMonitor::Io).expect("supported");
    let here = || guest.driver().registers(VcpuId(0)).expect("a vCPU").gp;
    let other = guest.driver().registers(VcpuId(1)).expect("a vCPU");
    let mut seen = Vec::new();
    for expected in [2, 4, 5] {
        guest.driver().step(VcpuId(0)).expect("paused");
        if guest.driver().events_pending() > 0 {
            assert!(guest.driver().step(VcpuId(0)).is_err(), "it waits for an answer");
            guest
                .core
                .wait_for_event(Duration::ZERO, |event| {
                    seen.push(*event.reason());
                    VmiEventResponse::default()
                })
                .expect("pending");
        }
        assert_eq!(here().rip, rip + expected);
    }
    let [Amd64EventReason::CpuId { .. }, Amd64EventReason::Io { port: 0x60, size: 1, input: true }] = seen[..] else {
        panic!("{seen:?}");
    };
    assert_eq!(here().rax & 0xff, 0xff, "no device drives the bus");
    assert_eq!(guest.driver().registers(VcpuId(1)).expect("a vCPU"), other, "the other vCPU stands still");
    assert!(matches!(guest.core.wait_for_event(Duration::from_secs(1), go_on), Err(VmiError::Timeout)));
    guest.core.resume().expect("paused");
    assert!(matches!(guest.driver().step(VcpuId(0)), Err(VmiError::Invalid(_))), "it runs");
}

#[test]
fn a_denied_store_does_not_happen_and_an_emulated_one_does() {
    let guest = Guest::new(SimOptions::default());
    guest.core.pause().expect("runs");
    // mov [rip+1], eax; nop
    let code = [0x89, 0x05, 0x01, 0x00, 0x00, 0x00, 0x90, 0x11, 0x22, 0x33, 0x44];
    for (action, stored) in [(VmiEventAction::Deny, false), (VmiEventAction::Emulate, true)] {
        let rip = stand_at(&guest, &code);
        let pa = guest.physical("nt!NtVdmControl");
        let view = guest.core.create_view(MemoryAccess::RWX).expect("views");
        guest.core.set_memory_access(Gfn(pa.0 >> 12), view, MemoryAccess::RX).expect("exists");
        guest.core.switch_to_view(view).expect("exists");
        let mut registers = guest.driver().registers(VcpuId(0)).expect("a vCPU");
        registers.gp.rax = 0x5555_5555;
        guest.driver().set_registers(VcpuId(0), registers).expect("paused");
        guest.driver().step(VcpuId(0)).expect("paused");
        guest
            .core
            .wait_for_event(Duration::ZERO, |event| {
                let access = event.reason().as_memory_access().expect("a write");
                assert_eq!((access.access, access.pa, access.va), (MemoryAccess::W, pa + 7, Va(rip + 7)));
                Response { action, ..VmiEventResponse::default() }
            })
            .expect("pending");
        assert_eq!(guest.driver().registers(VcpuId(0)).expect("a vCPU").gp.rip, rip + 6);
        assert_eq!(guest.core.read_u32(pa + 7).expect("in memory") == 0x5555_5555, stored);
        guest.core.destroy_view(view).expect("exists");
    }
}

#[test]
fn a_breakpoint_that_nobody_monitors_is_the_guests_own_business() {
    let guest = Guest::new(SimOptions { vcpus: 1, ..SimOptions::default() });
    guest.hide_breakpoint("nt!KiDispatchException");
    guest.core.monitor_disable(EventMonitor::Interrupt(ExceptionVector::BREAKPOINT)).expect("on");
    let mut count = 0;
    // The dispatcher's first instruction is a one-byte push: without it the way back is lost, and so is the vCPU.
    guest.run(Duration::from_secs(8), |_| {
        count += 1;
        VmiEventResponse::fast_singlestep(guest.core.default_view())
    });
    assert!(count > 0, "the integrity check reads the page");
}

#[test]
fn exceptions_can_be_intercepted_and_given_back() {
    let guest = Guest::new(SimOptions::default());
    guest.core.monitor_enable(EventMonitor::Interrupt(ExceptionVector::PAGE_FAULT)).expect("supported");
    let (mut faults, mut user) = (0, 0);
    guest.run(Duration::from_secs(2), |event| {
        let Amd64EventReason::Interrupt(raised) = event.reason() else { panic!("{:?}", event.reason()) };
        assert_eq!(raised.interrupt.vector, ExceptionVector::PAGE_FAULT);
        assert_ne!(raised.interrupt.cr2, 0);
        faults += 1;
        user += u32::from(event.registers().is_user_mode());
        VmiEventResponse::reinject_interrupt()
    });
    assert!(faults > 20 && user > 10, "{faults} {user}");
    assert_eq!(guest.driver().tamper_count(), 0);
}

#[test]
fn reset_takes_everything_back() {
    let guest = Guest::new(SimOptions::default());
    let (view, gfn) = guest.hide_breakpoint("nt!NtCreateFile");
    guest.run_until(|_| (VmiEventResponse::singlestep(), Some(())));
    guest.driver().reset_state().expect("can be reset");
    assert!(matches!(guest.core.memory_access(gfn, view), Err(VmiError::ViewNotFound(_))));
    assert_eq!(guest.core.memory_access(gfn, guest.core.default_view()).ok(), Some(MemoryAccess::RWX));
    guest.run(Duration::from_secs(1), |event| panic!("{:?}", event.reason()));
    assert_eq!(guest.driver().tamper_count(), 0);
}
