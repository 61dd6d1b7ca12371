//! Breakpoints under KVM: debug registers, INT3 in guest memory, and how a vCPU gets past either.

use vmscope::engine::{
    addr::{AddressContext, Pa, Va, VcpuId},
    driver::{MemoryAccess, VmiDebugControl, VmiStep, VmiVmControl, qemu::QemuDriver},
    error::VmiError,
};

use super::{
    LONG, SHORT,
    fake::{Act, BREAKPOINT, BREAKPOINT_PA, Fake, ROOT},
    hit, next, refusal, set,
};

/// The root of a process, which maps nothing that the fake knows.
const PROCESS: u64 = 0x9000;
const RF: u32 = 1 << 16;

fn kvm() -> Fake {
    let fake = Fake::new();
    {
        let mut machine = fake.lock();
        machine.kvm = true;
        // `nopl 0x0(%rax,%rax,1)`, as at the entry of every function of Linux.
        for n in 0..8 {
            machine.write(BREAKPOINT_PA + n * 0x20, &[0x0f, 0x1f, 0x44, 0, 0, 0x55, 0x48, 0x89, 0xe5, n as u8]);
        }
    }
    fake
}

/// The nth address of the kernel, and where it is.
fn kernel(n: u64) -> (AddressContext, Pa) {
    ((Va(BREAKPOINT + n * 0x20), Pa(ROOT)).into(), Pa(BREAKPOINT_PA + n * 0x20))
}

fn user(n: u64) -> (AddressContext, Pa) {
    ((Va(0x40_1800 + n * 0x10), Pa(PROCESS)).into(), Pa(0x7_0000))
}

fn add(driver: &QemuDriver, (ctx, pa): (AddressContext, Pa)) -> Result<Va, VmiError> {
    driver.set_breakpoint(ctx, pa).map(|()| ctx.va)
}

fn bytes(fake: &Fake) -> Vec<u8> {
    let machine = fake.lock();
    (0..8).map(|n| machine.byte(BREAKPOINT_PA + n * 0x20)).collect()
}

#[test]
fn a_debug_register_is_passed_with_rf() {
    let fake = kvm();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    let come = || Act::Come(vec![1], BREAKPOINT);
    fake.lock().script = [come(), come(), come()].into();
    for _ in 0..3 {
        assert_eq!(next(&driver, LONG).expect("a hit"), hit(1));
    }
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    let rf = format!("P3={}", "46020100");
    assert_eq!(
        fake.take_log(),
        // It is tried once with a step whether RF helps; from then on nothing is stepped.
        [
            "gdbserver",
            &format!("Z1,{BREAKPOINT:x},1"),
            "vCont;c",
            &rf,
            "vCont;s:p1.2",
            "vCont;c",
            &rf,
            "vCont;c",
            &rf,
            "vCont;c"
        ]
    );
    drop(driver);
    assert!(fake.lock().points.is_empty() && fake.lock().running);
}

#[test]
fn where_rf_does_not_help_the_breakpoint_is_taken_out_for_the_step() {
    let fake = kvm();
    fake.lock().honours_rf = false;
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    fake.lock().script = [Act::Come(vec![0], BREAKPOINT), Act::Come(vec![0], BREAKPOINT)].into();
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(0));
    fake.take_log();
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(0));
    fake.take_log();
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    let point = format!("1,{BREAKPOINT:x},1");
    assert_eq!(fake.take_log(), [&format!("z{point}"), "vCont;s:p1.1", &format!("Z{point}"), "vCont;c"]);
}

#[test]
fn vcpus_that_stop_at_the_same_moment_are_a_hit_each() {
    for (kvm_guest, first) in [(false, 0), (true, 0), (true, 4)] {
        let fake = if kvm_guest { kvm() } else { Fake::new() };
        let driver = fake.attach();
        // Four others have the debug registers.
        for n in 0..first {
            add(&driver, kernel(n + 1)).expect("a breakpoint");
        }
        set(&driver).expect("a breakpoint");
        assert_eq!(driver.is_breakpoint_visible(Va(BREAKPOINT)), first == 4);
        fake.lock().script = [Act::Come(vec![0, 1], BREAKPOINT), Act::Come(vec![1, 0], BREAKPOINT)].into();
        let hits: Vec<_> = (0..4).map(|_| next(&driver, LONG).expect("a hit")).collect();
        assert_eq!(hits, [hit(1), hit(0), hit(0), hit(1)], "the one that was named first");
        assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
        drop(driver);
        assert!(fake.lock().running);
    }
}

#[test]
fn one_that_was_let_past_and_has_not_run_since_is_no_new_hit() {
    let fake = kvm();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    fake.lock().script = [Act::Come(vec![0], BREAKPOINT), Act::Come(vec![0], BREAKPOINT)].into();
    for _ in 0..2 {
        assert_eq!(next(&driver, LONG).expect("a hit"), hit(0));
    }
    // The other one stops at once for something else, before the first has come to run.
    fake.lock().stands_still = true;
    fake.lock().script = [Act::Trap(1, BREAKPOINT + 0x800)].into();
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    let machine = fake.lock();
    assert_eq!((machine.rip[0], machine.rflags[0] & RF), (BREAKPOINT, RF));
}

#[test]
fn the_fifth_of_the_kernel_goes_into_memory_and_back() {
    let fake = kvm();
    let driver = fake.attach();
    let before = bytes(&fake);
    let places: Vec<Va> = (0..6).map(|n| add(&driver, kernel(n)).expect("a breakpoint")).collect();
    let visible = || places.iter().map(|&va| driver.is_breakpoint_visible(va)).collect::<Vec<_>>();
    assert_eq!(visible(), [false, false, false, false, true, true]);
    assert_eq!(bytes(&fake)[..7], [0x0f, 0x0f, 0x0f, 0x0f, 0xcc, 0xcc, 0x0f]);
    // A register that becomes free goes to the one that has been in memory for longest.
    driver.clear_breakpoint(places[1]).expect("it is out");
    assert_eq!(visible(), [false, false, false, false, false, true]);
    assert_eq!(bytes(&fake)[4..6], [0x0f, 0xcc]);
    // A hit of one in memory: out, a step, in again.
    fake.lock().script = [Act::Come(vec![0], places[5].0)].into();
    assert!(next(&driver, LONG).is_ok());
    fake.take_log();
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    let point = format!("0,{:x},1", places[5]);
    assert_eq!(fake.take_log(), [&format!("z{point}"), "vCont;s:p1.1", &format!("Z{point}"), "vCont;c"]);
    assert_eq!(bytes(&fake)[5], 0xcc);
    drop(driver);
    assert_eq!(bytes(&fake), before);
    assert!(fake.lock().points.is_empty() && fake.lock().running);
}

#[test]
fn an_address_of_a_process_gets_a_debug_register_or_says_who_has_them() {
    let fake = kvm();
    let driver = fake.attach();
    let before = bytes(&fake);
    for n in 0..4 {
        add(&driver, kernel(n)).expect("a breakpoint");
    }
    for n in 0..4 {
        let va = add(&driver, user(n)).expect("one of the kernel's makes room");
        assert!(!driver.is_breakpoint_visible(va));
    }
    assert_eq!(bytes(&fake)[..4], [0xcc; 4], "the kernel's are in memory now");
    assert_eq!(fake.lock().byte(0x7_0000), 0, "and nothing of the process's is");
    match add(&driver, user(4)) {
        Err(VmiError::NoDebugRegister { taken }) => assert_eq!(taken, [3, 2, 1, 0].map(|n| user(n).0.va)),
        other => panic!("{other:?}"),
    }
    let refused = refusal(driver.set_watchpoint(Va(BREAKPOINT), 8, MemoryAccess::W));
    assert!(refused.contains("debug registers") && refused.contains("turn one of those off"), "{refused}");
    drop(driver);
    assert_eq!(bytes(&fake), before);
}

#[test]
fn what_qemu_leaves_in_memory_is_put_back() {
    let fake = kvm();
    fake.lock().forgets_int3 = true;
    let driver = fake.attach();
    let before = bytes(&fake);
    let places: Vec<Va> = (0..6).map(|n| add(&driver, kernel(n)).expect("a breakpoint")).collect();
    driver.clear_breakpoint(places[5]).expect("it is out");
    assert_eq!(bytes(&fake)[4..6], [0xcc, 0x0f]);
    drop(driver);
    assert_eq!(bytes(&fake), before, "although QEMU said that it had taken everything out");
}

#[test]
fn memory_that_was_used_again_is_left_alone() {
    let fake = kvm();
    let driver = fake.attach();
    let places: Vec<Va> = (0..5).map(|n| add(&driver, kernel(n)).expect("a breakpoint")).collect();
    // A module is unloaded: its page is another's now, with an INT3 of its own.
    fake.lock().unmapped = true;
    let (_, pa) = kernel(4);
    fake.lock().write(pa.0, &[0xcc, 1, 2, 3, 4, 5, 6, 7]);
    driver.clear_breakpoint(places[4]).expect("it is out");
    assert_eq!(fake.lock().byte(pa.0), 0xcc);
    fake.lock().unmapped = false;
    drop(driver);
    assert_eq!(fake.lock().byte(pa.0), 0xcc);
    assert!(fake.lock().points.is_empty());
}

#[test]
fn an_int3_that_missed_its_place_is_refused_and_taken_out() {
    let fake = kvm();
    let driver = fake.attach();
    for n in 0..4 {
        add(&driver, kernel(n)).expect("a breakpoint");
    }
    let before = bytes(&fake);
    fake.lock().misses_by = 0x20;
    let refused = refusal(add(&driver, kernel(5)));
    assert!(refused.contains("another place"), "{refused}");
    assert_eq!(bytes(&fake), before);
    // One of the guest's own is not written over.
    fake.lock().misses_by = 0;
    fake.lock().write(kernel(6).1.0, &[0xcc]);
    let refused = refusal(add(&driver, kernel(6)));
    assert!(refused.contains("INT3 of the guest's own"), "{refused}");
}

#[test]
fn with_isolated_page_tables_the_kernel_is_reached_from_user_mode() {
    let fake = kvm();
    fake.lock().root = [PROCESS; 2];
    let driver = fake.attach();
    let before = bytes(&fake);
    let places: Vec<Va> = (0..5).map(|n| add(&driver, kernel(n)).expect("a breakpoint")).collect();
    assert!(driver.is_breakpoint_visible(places[4]));
    assert_eq!((bytes(&fake)[4], fake.lock().root), (0xcc, [PROCESS; 2]), "the vCPU has its own root again");
    driver.clear_breakpoint(places[4]).expect("it is out");
    assert_eq!((bytes(&fake), fake.lock().root), (before, [PROCESS; 2]));
}

#[test]
fn a_guest_that_patches_its_code_under_an_int3_keeps_both() {
    let fake = kvm();
    let driver = fake.attach();
    let places: Vec<Va> = (0..5).map(|n| add(&driver, kernel(n)).expect("a breakpoint")).collect();
    let (_, pa) = kernel(4);
    fake.lock().write(pa.0, &[0xe8, 1, 2, 3, 4]);
    let set_again = |machine: &super::fake::Machine| machine.byte(pa.0) == 0xcc;
    while !set_again(&fake.lock()) {
        assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    }
    driver.clear_breakpoint(places[4]).expect("it is out");
    assert_eq!(fake.lock().byte(pa.0), 0xe8, "the guest's new code");
}

#[test]
fn a_step_of_the_user_passes_any_breakpoint() {
    for first in [0, 4] {
        let fake = kvm();
        let driver = fake.attach();
        for n in 0..first {
            add(&driver, kernel(n + 1)).expect("a breakpoint");
        }
        set(&driver).expect("a breakpoint");
        driver.pause().expect("it pauses");
        fake.lock().rip[1] = BREAKPOINT;
        driver.step(VcpuId(1)).expect("a step");
        assert_eq!(fake.lock().rip[1], BREAKPOINT + 4);
        assert_eq!(next(&driver, LONG).expect("a hit that the step would have lost"), hit(1));
        driver.resume().expect("it runs");
        assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
        assert!(fake.lock().running && fake.lock().points.len() == first as usize + 1);
    }
}

#[test]
fn a_jump_to_itself_is_a_hit_each_time_and_keeps_nobody() {
    for first in [0, 4] {
        let fake = kvm();
        fake.lock().jumps_to_itself = true;
        let driver = fake.attach();
        for n in 0..first {
            add(&driver, kernel(n + 1)).expect("a breakpoint");
        }
        set(&driver).expect("a breakpoint");
        fake.lock().script = [Act::Come(vec![0], BREAKPOINT)].into();
        for _ in 0..5 {
            assert_eq!(next(&driver, LONG).expect("a hit"), hit(0));
        }
        driver.clear_breakpoint(Va(BREAKPOINT)).expect("it is out");
        assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
        assert!(fake.lock().running);
    }
}

#[test]
fn a_stub_that_takes_a_breakpoint_and_never_stops_is_left_clean() {
    let fake = kvm();
    fake.lock().stands_still = true;
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    fake.lock().script = [Act::Come(vec![0], BREAKPOINT + 0x800)].into();
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    driver.pause().expect("it pauses");
    driver.resume().expect("it runs");
    drop(driver);
    assert!(fake.lock().running && fake.lock().points.is_empty());
}
