//! The QEMU driver against a peer that behaves as QEMU does, well and badly. Real guests are in `live_qemu`.

mod devices;
mod fake;
mod kvm;
mod leaving;
mod outside;
mod watching;

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    time::Duration,
};

use devices::Devices;
use fake::{Act, BREAKPOINT, BREAKPOINT_PA, ELSEWHERE, Fake, KERNEL_STACK, TABLES_PA};
use vmscope::engine::{
    addr::{Gfn, Pa, Va, VcpuId},
    arch::amd64::{Amd64EventReason, ExceptionVector, Interrupt},
    driver::{
        MemoryAccess, VmiDebugControl, VmiDriver, VmiEventControl, VmiQueryRegisters, VmiRead, VmiSetRegisters,
        VmiStep, VmiVmControl, VmiWrite,
        qemu::{MemoryPath, QemuDriver, QemuOptions},
    },
    error::VmiError,
    event::VmiEventResponse,
    snapshot::Capability,
};

const LONG: Duration = Duration::from_secs(20);
/// Long enough for what is there already, and for nothing else.
const SHORT: Duration = Duration::from_millis(50);

/// The next event's vCPU and reason.
fn next(driver: &QemuDriver, timeout: Duration) -> Result<(VcpuId, Amd64EventReason), VmiError> {
    let mut seen = None;
    driver.wait_for_event(timeout, |event| {
        seen = Some((event.vcpu_id(), *event.reason()));
        VmiEventResponse::default()
    })?;
    seen.ok_or_else(|| VmiError::Invalid("answered without an event".into()))
}

fn hit(vcpu: u16) -> (VcpuId, Amd64EventReason) {
    let gfn = Gfn(BREAKPOINT_PA >> 12);
    (VcpuId(vcpu), Amd64EventReason::DebugBreakpoint { va: Va(BREAKPOINT), gfn })
}

/// Sets the tests' breakpoint.
fn set(driver: &QemuDriver) -> Result<(), VmiError> {
    driver.set_breakpoint((Va(BREAKPOINT), Pa(fake::ROOT)).into(), Pa(BREAKPOINT_PA))
}

fn refusal<T>(result: Result<T, VmiError>) -> String {
    match result {
        Ok(_) => String::from("it worked"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn looking_touches_nothing() {
    let fake = Fake::new();
    let driver = fake.attach();
    let info = driver.info().expect("info");
    assert_eq!((info.vcpus, info.max_gfn), (2, Gfn(0x1000ff)));
    assert!(!info.name.contains('\u{1b}'));
    let registers = driver.registers(VcpuId(1)).expect("registers");
    assert_eq!((registers.gp.rip, registers.cr3, registers.idt_base), (ELSEWHERE, 0x1000, 0xffff_fe00_0000_0000));
    assert!(matches!(driver.registers(VcpuId(2)), Err(VmiError::VcpuNotFound(VcpuId(2)))));
    assert!(driver.is_direct() && driver.memory_path() == MemoryPath::Mapped);
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    assert!(!driver.is_stub_attached() && !driver.is_paused());
    drop(driver);
    assert_eq!(fake.take_log(), [""; 0]);
    assert!(fake.lock().running);
}

#[test]
fn memory_lies_around_the_hole() {
    let fake = Fake::new();
    let driver = fake.attach();
    let file = std::fs::File::options().write(true).open(fake.path("ram")).expect("the file");
    std::os::unix::fs::FileExt::write_at(&file, b"below above", (3 << 20) - 6).expect("room");
    let mut bytes = [0; 5];
    assert!(driver.read_physical(Pa((3 << 20) - 6), &mut bytes).is_ok());
    assert_eq!(&bytes, b"below");
    assert!(driver.read_physical(Pa(1 << 32), &mut bytes).is_ok());
    assert_eq!(&bytes, b"above");
    // The video memory's window, the hole, the firmware (which is not the machine's memory) and the end.
    for (from, first) in [(0xa_0000, 0xa_0000), (0x9_fffe, 0xa_0000), (3 << 20, 3 << 20), (0xffff_0000, 0xffff_0000)] {
        let result = driver.read_physical(Pa(from), &mut bytes);
        assert!(matches!(result, Err(VmiError::OutOfBounds(Pa(at))) if at == first), "{from:x}");
    }
    assert!(matches!(driver.read_physical(Pa((1 << 32) + (1 << 20) - 2), &mut bytes), Err(VmiError::OutOfBounds(_))));
    assert!(matches!(driver.read_physical_u64(Pa(u64::MAX)), Err(VmiError::OutOfBounds(_))));
}

#[test]
fn a_memory_file_that_shrinks_is_lost() {
    let fake = Fake::new();
    let driver = fake.attach();
    std::fs::File::options().write(true).open(fake.path("ram")).and_then(|file| file.set_len(4096)).expect("shorter");
    assert!(driver.read_physical_u64(Pa(8)).is_ok());
    let lost = driver.read_physical_u64(Pa(0x20_0000));
    assert!(matches!(lost, Err(VmiError::Lost(_))), "{lost:?}");
    let mut options = fake.options();
    drop(driver);
    assert!(refusal(fake::attach(options.clone())).contains("as the guest's memory"));
    options.memory = Some("/nonexistent".into());
    assert!(refusal(fake::attach(options)).contains("/nonexistent"));
}

#[test]
fn sockets_that_are_not_qemus() {
    let folder = tempfile::tempdir().expect("a folder");
    let attach = |name: &str, says: &'static [u8], stays: bool| {
        let path = folder.path().join(name);
        let listener = UnixListener::bind(&path).expect("a socket");
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.write_all(says).expect("room");
            // Until the client has had enough.
            if stays {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        let qmp = Some(path.display().to_string());
        let said = refusal(fake::attach(QemuOptions { qmp, ..QemuOptions::default() }));
        peer.join().expect("no panic");
        said
    };
    assert!(attach("hangup", b"", false).contains("not a QMP socket: it hung up"));
    let said = attach("shell", b"\x1b[2Jlogin: \n", true);
    assert!(said.contains("not a QMP socket") && said.contains("login:") && !said.contains('\u{1b}'), "{said}");
    assert!(attach("json", b"{\"hello\":1}\n", true).contains("not a QMP socket"));
    assert!(attach("prompt", b"(qemu) ", true).contains("not a QMP socket"));
    assert!(attach("silence", b"", true).contains("does not greet"));
    // A gdb stub has stopped its guest for the client, and lets it go when it is told to.
    let path = folder.path().join("stub");
    let listener = UnixListener::bind(&path).expect("a socket");
    let stub = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(b"$T02thread:01;#04").expect("room");
        let mut heard = [0; 8];
        stream.read_exact(&mut heard).expect("a packet");
        stream.write_all(b"+$OK#9a").expect("room");
        heard
    });
    let qmp = Some(path.display().to_string());
    let said = refusal(fake::attach(QemuOptions { qmp, ..QemuOptions::default() }));
    assert_eq!(&stub.join().expect("no panic"), b"+$D;1#b0");
    assert!(said.contains("gdb stub") && said.contains("runs again"), "{said}");
    let at = |qmp: &str| fake::attach(QemuOptions { qmp: Some(qmp.into()), ..QemuOptions::default() });
    assert!(refusal(at("/nonexistent/socket")).contains("/nonexistent/socket"));
    assert!(refusal(at("nonsense")).contains("not an address"));
    let pid = QemuOptions { pid: Some(std::process::id()), ..QemuOptions::default() };
    assert!(refusal(fake::attach(pid)).contains("no QMP socket on its command line"));
}

#[test]
fn other_architectures_are_refused() {
    let fake = Fake::new();
    fake.lock().architecture = "aarch64";
    assert!(refusal(fake::attach(fake.options())).contains("aarch64"));
}

#[test]
fn read_only_sends_nothing() {
    let fake = Fake::new();
    let driver = fake::attach(QemuOptions { read_only: true, ..fake.options() }).expect("it attaches");
    let registers = driver.registers(VcpuId(0)).expect("registers");
    let results = [
        driver.write_physical(Pa(0), &[1]),
        driver.set_registers(VcpuId(0), registers),
        set(&driver),
        driver.set_watchpoint(Va(BREAKPOINT), 8, MemoryAccess::W),
        driver.pause(),
        driver.resume(),
        driver.step(VcpuId(0)),
    ];
    for result in results {
        assert!(matches!(result, Err(VmiError::ReadOnly { .. })), "{result:?}");
    }
    let (can, cannot) = driver.capabilities();
    for what in [Capability::Breakpoints, Capability::Pause, Capability::Step, Capability::Write] {
        assert!(!can.contains(&what) && cannot.iter().any(|entry| entry.what == what), "{what:?}");
    }
    drop(driver);
    assert_eq!(fake.take_log(), [""; 0]);
}

#[test]
fn a_hit_is_reported_stepped_over_and_left() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    set(&driver).expect("the same one");
    assert!(driver.is_stub_attached());
    fake.lock().script = [Act::Come(vec![1], BREAKPOINT)].into();
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(1));
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    let breakpoint = format!("0,{BREAKPOINT:x},1");
    assert_eq!(
        fake.take_log(),
        ["gdbserver", &format!("Z{breakpoint}"), "vCont;c", "vCont;s:p1.2", "vCont;c"],
        "only the vCPU that hit moves, before all go on"
    );
    drop(driver);
    assert_eq!(fake.take_log(), [&format!("z{breakpoint}"), "D;1", "gdbserver none"]);
    assert!(fake.lock().running);
}

#[test]
fn a_reset_is_counted_and_leaves_no_hit_behind() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    fake.lock().script = [Act::Come(vec![0, 1], BREAKPOINT)].into();
    let mut hits = 0;
    let waited = driver.wait_for_event(LONG, |_| {
        hits += 1;
        VmiEventResponse::singlestep()
    });
    assert!(waited.is_ok() && hits == 1);
    assert_eq!(driver.resets(), 0);
    fake.take_log();
    // One vCPU is to be stepped and to tell of it, the other one is at the breakpoint.
    fake.lock().reset();
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)), "the other hit is none any more");
    assert_eq!(driver.resets(), 1);
    assert_eq!(fake.take_log(), ["vCont;c"], "no vCPU is stepped: none is where it was");
    driver.clear_breakpoint(Va(BREAKPOINT)).expect("it is in the stub still");
    drop(driver);
    assert_eq!(fake.take_log(), [&format!("z0,{BREAKPOINT:x},1"), "D;1", "gdbserver none"]);
}

#[test]
fn two_vcpus_at_once_are_two_hits() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    fake.lock().script = [Act::Come(vec![0, 1], BREAKPOINT)].into();
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(1));
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(0));
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
}

#[test]
fn what_is_not_a_hit_is_none() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    fake.lock().script = [Act::Trap(0, ELSEWHERE), Act::Come(vec![0], BREAKPOINT)].into();
    // A step that stops before its instruction, as QEMU 7.2's sometimes do.
    fake.lock().sticky_steps = 1;
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(0));
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    // The guest is continued by somebody else while the hit is looked at, and stops for it again.
    fake.lock().rip = [ELSEWHERE; 2];
    fake.lock().script = [Act::Come(vec![0], BREAKPOINT)].into();
    fake.lock().pause();
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    assert!(driver.is_paused());
    driver.resume().expect("it goes on");
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(0));
    fake.lock().go();
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
}

#[test]
fn an_instruction_that_faults_is_one_hit() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    // The second time is the same instruction after its fault was handled, the third a new one.
    let come = || Act::Come(vec![0], BREAKPOINT);
    fake.lock().script = [come(), come(), come()].into();
    fake.lock().faulting_steps = 1;
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(0));
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(0));
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    assert!(fake.lock().script.is_empty());
}

#[test]
fn packets_that_somebody_elses_continue_swallows_are_sent_again() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    for reads in 1..4 {
        driver.pause().expect("it pauses");
        fake.lock().rip = [ELSEWHERE; 2];
        fake.lock().script = [Act::ContinueAfterReads(reads), Act::Come(vec![1], BREAKPOINT)].into();
        driver.resume().expect("it goes on");
        assert_eq!(next(&driver, LONG).expect("a hit"), hit(1));
        assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)), "after {reads} reads");
        assert!(fake.lock().running);
    }
}

#[test]
fn a_breakpoint_that_goes_takes_its_hit_along() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    // The hit comes in while the guest is paused.
    fake.lock().rip = [BREAKPOINT, ELSEWHERE];
    fake.lock().stop("debug");
    fake.lock().go();
    driver.pause().expect("it pauses");
    assert_eq!(driver.events_pending(), 1);
    driver.clear_breakpoint(Va(BREAKPOINT)).expect("it goes");
    driver.resume().expect("it runs");
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    assert!(fake.lock().running);
}

#[test]
fn watchpoints_name_what_was_watched() {
    let fake = Fake::new();
    let driver = fake.attach();
    driver.set_watchpoint(Va(0x8000), 8, MemoryAccess::W).expect("a watchpoint");
    assert!(driver.set_watchpoint(Va(0x8000), 8, MemoryAccess::X).is_err());
    fake.lock().script = [Act::Watch(0, 0x8004)].into();
    let want = Amd64EventReason::DebugWatchpoint { va: Va(0x8000), access: MemoryAccess::W };
    assert_eq!(next(&driver, LONG).expect("an access"), (VcpuId(0), want));
    driver.clear_watchpoint(Va(0x8000), 8, MemoryAccess::W).expect("it goes");
    assert_eq!(fake.lock().points, [""; 0]);
}

#[test]
fn handlers_change_registers_and_ask_for_steps() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    fake.lock().script = [Act::Come(vec![0], BREAKPOINT)].into();
    let answered = driver.wait_for_event(LONG, |event| {
        let mut gp = event.registers().gp;
        gp.rax = 0x1122_3344_5566_7788;
        VmiEventResponse::singlestep().with_registers(gp)
    });
    assert!(answered.is_ok(), "{answered:?}");
    assert_eq!(fake.lock().rax[0], 0x1122_3344_5566_7788);
    let (vcpu, reason) = next(&driver, LONG).expect("a step");
    assert!(vcpu == VcpuId(0) && matches!(reason, Amd64EventReason::Singlestep { .. }), "{reason:?}");
    assert_eq!(fake.lock().rip[0], BREAKPOINT + 4);
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
}

/// What the processor does at a page fault in user mode: six words on the kernel's stack, then the registers.
#[test]
fn a_page_fault_is_injected_as_the_processor_takes_it() {
    let fake = Fake::new();
    let driver = fake.attach();
    let fault = Interrupt::page_fault(0x1234_5000, 4);
    let user = |machine: &mut fake::Machine| {
        (machine.rip[1], machine.rsp[1], machine.rax[1]) = (0x40_1000, 0x7ffc_0000, 5);
        machine.segments[1] = (0x33, 0x2b);
    };
    user(&mut fake.lock());
    assert!(refusal(driver.inject_interrupt(VcpuId(1), fault)).contains("pause it first"));
    driver.pause().expect("it pauses");
    assert!(refusal(driver.inject_interrupt(VcpuId(0), fault)).contains("not in 64-bit user mode"));
    assert!(refusal(driver.inject_interrupt(VcpuId(1), Interrupt::breakpoint())).contains("exception"));
    let other = Interrupt { vector: ExceptionVector(15), ..fault };
    assert!(refusal(driver.inject_interrupt(VcpuId(1), other)).contains("no gate"));
    fake.lock().segments[1].0 = 0x23;
    assert!(refusal(driver.inject_interrupt(VcpuId(1), fault)).contains("not in 64-bit user mode"));
    user(&mut fake.lock());
    fake.take_log();
    driver.inject_interrupt(VcpuId(1), fault).expect("an injection");
    let log = fake.take_log();
    let first = log.iter().position(|line| line.starts_with('P')).expect("registers");
    assert!(log[first..].iter().all(|line| line.starts_with('P')), "the stack before the registers: {log:?}");
    let mut stack = [0; 48];
    driver.read_physical(Pa(TABLES_PA + 0x1000 - 48), &mut stack).expect("the stack");
    let stack: Vec<u64> = stack.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8"))).collect();
    assert_eq!(stack, [4, 0x40_1000, 0x33, 0x246, 0x7ffc_0000, 0x2b]);
    {
        let machine = fake.lock();
        assert_eq!((machine.rip, machine.rsp[1], machine.rax[1]), ([ELSEWHERE; 2], KERNEL_STACK - 48, 5));
        assert_eq!((machine.segments[1], machine.cr2[1], machine.rflags[1]), ((0x10, 0), 0x1234_5000, 0x46));
    }
    assert!(refusal(driver.inject_interrupt(VcpuId(1), fault)).contains("user mode"), "one at a time");
    drop(driver);
    assert!(fake.lock().running);
}

#[test]
fn pauses_count_and_steps_need_one() {
    let fake = Fake::new();
    let driver = fake.attach();
    assert!(refusal(driver.step(VcpuId(0))).contains("pause it"));
    driver.pause().expect("it pauses");
    driver.pause().expect("it pauses");
    driver.resume().expect("one is left");
    assert!(driver.is_paused() && !fake.lock().running);
    driver.step(VcpuId(1)).expect("a step");
    assert_eq!(fake.lock().rip, [ELSEWHERE, ELSEWHERE + 4]);
    assert!(matches!(driver.step(VcpuId(7)), Err(VmiError::VcpuNotFound(_))));
    driver.resume().expect("it runs");
    assert!(fake.wait_until(|machine| machine.running));
    assert!(!driver.is_paused());
}

#[test]
fn stepping_off_an_unreported_hit_keeps_it() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    driver.pause().expect("it pauses");
    fake.lock().rip[0] = BREAKPOINT;
    driver.step(VcpuId(0)).expect("a step");
    driver.resume().expect("it runs");
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(0));
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
}

#[test]
fn writes_go_through_the_stub() {
    let fake = Fake::new();
    let driver = fake.attach();
    driver.write_physical(Pa(0x8000), &[7; 1500]).expect("it writes");
    let mut bytes = [0; 1500];
    driver.read_physical(Pa(0x8000), &mut bytes).expect("it reads");
    assert_eq!(bytes, [7; 1500]);
    drop(driver);
    assert!(fake.lock().running);
}

#[test]
fn a_guest_that_was_paused_stays_paused() {
    let fake = Fake::new();
    fake.lock().stop("paused");
    let driver = fake.attach();
    assert!(driver.is_paused());
    set(&driver).expect("a breakpoint");
    assert!(matches!(next(&driver, SHORT), Err(VmiError::Timeout)));
    drop(driver);
    let log = fake.take_log();
    assert!(!log.iter().any(|line| line == "D;1" || line == "cont" || line.starts_with("vCont")), "{log:?}");
    assert!(!fake.lock().running && fake.lock().points.is_empty());
}

#[test]
fn another_debugger_is_named_and_left_alone() {
    let fake = Fake::new();
    fake.lock().stub_is_taken = true;
    let driver = fake.attach();
    assert!(refusal(set(&driver)).contains("another debugger is connected"));
    assert_eq!(fake.take_log(), [""; 0]);
    assert!(fake.lock().running);
}

#[test]
fn a_socket_that_is_no_gdb_stub_costs_no_guest() {
    let fake = Fake::new();
    let gdb = Some(format!("unix:{}", fake.path("other").display()));
    let listener = UnixListener::bind(fake.path("other")).expect("a socket");
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(b"$no#stub").expect("room");
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let driver = fake::attach(QemuOptions { gdb, ..fake.options() }).expect("it attaches");
    let refused = set(&driver);
    assert!(!matches!(refused, Err(VmiError::Lost(_))));
    let said = refusal(refused);
    assert!(said.contains("does not speak the gdb protocol") && !said.contains("gone"), "{said}");
    other.join().expect("no panic");
    assert!(driver.registers(VcpuId(0)).is_ok() && fake.lock().running);
}

#[test]
fn a_qemu_that_goes_silent_is_lost() {
    let fake = Fake::new();
    let driver = fake.attach();
    fake.lock().silent = true;
    let said = driver.registers(VcpuId(0));
    assert!(matches!(&said, Err(VmiError::Lost(why)) if why.contains("has not answered")), "{said:?}");
    // What is lost stays lost, at once.
    assert!(matches!(driver.registers(VcpuId(1)), Err(VmiError::Lost(_))));
}

#[test]
fn a_stub_that_a_dead_session_left_without_its_folder_is_replaced() {
    let fake = Fake::new();
    fake.lock().gdb_address = Some("/tmp/vmscope-qemu-0-0/stub/gdb".into());
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    drop(driver);
    let log = fake.take_log();
    assert_eq!(
        log.first_chunk().map(|lines| lines.each_ref().map(String::as_str)),
        Some(["gdbserver none", "gdbserver"])
    );
    assert_eq!(log.last().map(String::as_str), Some("gdbserver none"));
    assert!(fake.lock().running && fake.lock().gdb_address.is_none());
}

#[test]
fn the_stub_is_reached_over_a_descriptor() {
    let fake = Fake::new();
    fake.lock().devices = Some(Devices::default());
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    fake.lock().script = [Act::Come(vec![1], BREAKPOINT)].into();
    assert_eq!(next(&driver, LONG).expect("a hit"), hit(1));
    assert!(fake.lock().gdb_address.is_none(), "no socket file");
    drop(driver);
    let log = fake.take_log();
    assert_eq!(log.first().map(String::as_str), Some("gdbserver chardev"));
    assert_eq!(log.last().map(String::as_str), Some("gdbserver none"));
    let machine = fake.lock();
    let devices = machine.devices.as_ref().expect("as above");
    assert!(machine.running && machine.points.is_empty() && devices.is_empty(), "{devices:?}");
}

#[test]
fn where_devices_are_refused_a_socket_file_is_used_and_nothing_is_left() {
    for refused in ["getfd", "chardev-add", "gdbserver"] {
        let fake = Fake::new();
        fake.lock().devices = Some(Devices::refusing(refused));
        let driver = fake.attach();
        set(&driver).expect("a breakpoint");
        assert!(fake.lock().gdb_address.is_some(), "{refused}");
        drop(driver);
        let machine = fake.lock();
        let devices = machine.devices.as_ref().expect("as above");
        assert!(machine.running && machine.points.is_empty() && devices.is_empty(), "{refused}: {devices:?}");
    }
}

#[test]
fn a_device_that_a_dead_session_left_is_taken_out_and_that_of_a_living_one_is_not() {
    let fake = Fake::new();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    fake.lock().devices = Some(Devices::with_stub("vmscope-1-0", theirs));
    let driver = fake.attach();
    let said = refusal(set(&driver));
    assert!(said.contains("another debugger") && said.contains("vmscope-1-0"), "{said}");
    assert_eq!(fake.take_log(), [""; 0]);
    drop(ours);
    set(&driver).expect("nobody is there any more");
    drop(driver);
    assert_eq!(fake.take_log().first().map(String::as_str), Some("gdbserver none"));
    assert!(fake.lock().running && fake.lock().devices.as_ref().is_some_and(Devices::is_empty));
}
