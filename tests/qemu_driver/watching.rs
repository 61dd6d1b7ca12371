//! Leaving: what touched nothing takes nothing back, attaching can be broken off, and what is gone ends the session.

use std::{
    io::Write,
    os::unix::net::UnixListener,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use vmscope::engine::{
    addr::{Pa, VcpuId},
    arch::amd64::Amd64,
    command::Leaving,
    driver::{
        VmiQueryRegisters, VmiRead, VmiVmControl,
        qemu::{QemuDriver, QemuOptions, patience},
    },
    error::VmiError,
    event::VmiEventResponse,
    session::{Interrupted, NoOS, VmiContext, VmiCore, VmiHandler, VmiSession},
};

use super::{
    LONG, SHORT,
    fake::{self, Fake},
    refusal, set,
};

/// A handler that only looks, some times.
struct Looks {
    left: u32,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Result,
    Panic,
}

impl VmiHandler<QemuDriver, NoOS> for Looks {
    type Output = ();

    fn poll(&mut self, vmi: VmiSession<'_, QemuDriver, NoOS>) -> Option<()> {
        // As a list that could not be read again: the error goes no further.
        let _ = vmi.driver().read_physical_u64(Pa(0x20_0000));
        let _ = vmi.driver().registers(VcpuId(0));
        if self.left > 0 {
            self.left -= 1;
            return None;
        }
        match self.end {
            End::Result => Some(()),
            End::Panic => panic!("on purpose"),
        }
    }

    fn handle_event(&mut self, _: VmiContext<'_, QemuDriver, NoOS>) -> VmiEventResponse<Amd64> {
        VmiEventResponse::default()
    }

    fn handle_interrupted(&mut self, _: VmiSession<'_, QemuDriver, NoOS>) -> Interrupted {
        Interrupted::End
    }

    fn timeout(&self) -> Option<Duration> {
        Some(Duration::from_millis(5))
    }

    fn cleanup(&mut self, _: VmiSession<'_, QemuDriver, NoOS>) {}
}

fn look(core: &VmiCore<QemuDriver>, left: u32, end: End) -> thread::Result<Result<Option<()>, VmiError>> {
    catch_unwind(AssertUnwindSafe(|| VmiSession::new(core, &NoOS).handle(Looks { left, end })))
}

#[test]
fn a_guest_that_was_only_watched_is_left_without_a_word() {
    for (name, end) in [("a result", End::Result), ("a panic", End::Panic)] {
        let fake = Fake::new();
        let core = VmiCore::new(fake.attach()).expect("a core");
        assert_eq!(look(&core, 3, end).is_err(), matches!(end, End::Panic), "{name}");
        drop(core);
        assert_eq!(fake.take_log(), Vec::<String>::new(), "{name}");
        assert!(fake.lock().running, "{name}");
    }
    // Lost, and nobody told to do anything all the same.
    let fake = Fake::new();
    let core = VmiCore::new(fake.attach()).expect("a core");
    fake.lock().silent = true;
    let ended = look(&core, 400, End::Result).expect("no panic");
    assert!(matches!(ended, Err(VmiError::Lost(_))), "{ended:?}");
    drop(core);
    assert_eq!(fake.take_log(), Vec::<String>::new());
    // Somebody else's pause, which nobody has told of yet, is none of ours.
    let fake = Fake::new();
    let core = VmiCore::new(fake.attach()).expect("a core");
    fake.lock().stand("paused", None);
    assert!(look(&core, 0, End::Result).is_ok_and(|ended| ended.is_ok()));
    drop(core);
    assert_eq!((fake.take_log(), fake.lock().status), (Vec::new(), "paused"));
}

#[test]
fn a_pause_that_is_over_is_not_made_again_to_leave() {
    let fake = Fake::new();
    let core = VmiCore::new(fake.attach()).expect("a core");
    core.driver().pause().and_then(|()| core.driver().resume()).expect("a pause");
    assert_eq!(fake.take_log(), ["stop", "cont"]);
    assert!(look(&core, 1, End::Result).is_ok_and(|ended| ended.is_ok()));
    drop(core);
    assert_eq!(fake.take_log(), Vec::<String>::new());
    // Nor is one of somebody else's that comes later taken for it.
    let driver = fake.attach();
    driver.pause().and_then(|()| driver.resume()).expect("a pause");
    fake.take_log();
    fake.lock().stand("paused", None);
    drop(driver);
    assert_eq!((fake.take_log(), fake.lock().status), (Vec::new(), "paused"));
    let fake = Fake::new();
    // One that is not over is taken back, whoever forgot it.
    let driver = fake.attach();
    driver.pause().expect("a pause");
    drop(driver);
    assert_eq!(fake.take_log(), ["stop", "cont"]);
    assert!(fake.lock().running);
}

#[test]
fn memory_that_is_gone_ends_the_session_whoever_reads_it() {
    let fake = Fake::new();
    let core = VmiCore::new(fake.attach()).expect("a core");
    set(core.driver()).expect("a breakpoint");
    std::fs::File::options().write(true).open(fake.path("ram")).and_then(|file| file.set_len(4096)).expect("shorter");
    let ended = look(&core, 400, End::Result).expect("no panic");
    assert!(matches!(&ended, Err(VmiError::Lost(why)) if why.contains("memory is out of reach")), "{ended:?}");
    // What was in the guest came out of it, without its memory.
    assert!(fake.lock().points.is_empty() && fake.lock().running);
}

#[test]
fn a_stub_that_never_comes_to_an_end_is_given_up_and_the_guest_runs_on() {
    let fake = Fake::new();
    let driver = fake.attach();
    fake.lock().endless = true;
    // Given up by the clock.
    let said = refusal(patience::at_most(SHORT, "attaching to the guest", || set(&driver)));
    assert!(said.contains("attaching to the guest was given up"), "{said}");
    assert!(fake.wait_until(|machine| machine.running), "the guest stands");
    // And by the user.
    let leaving = Leaving::new();
    fake.take_log();
    thread::scope(|scope| {
        let (wish, fake) = (leaving.clone(), &fake);
        scope.spawn(move || {
            fake.wait_until(|machine| machine.log.iter().filter(|said| said.as_str() == "described").count() > 2);
            wish.want();
        });
        let said = refusal(patience::until_left(&leaving, || set(&driver)));
        assert!(said.contains("because you left"), "{said}");
    });
    assert!(fake.wait_until(|machine| machine.running), "the guest stands");
    // The driver is as good as new: nothing of it was the guest's fault.
    fake.lock().endless = false;
    set(&driver).expect("a breakpoint");
    drop(driver);
    assert!(fake.lock().points.is_empty() && fake.lock().running);
}

#[test]
fn a_state_that_is_not_known_is_no_pause_while_the_vcpus_run() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    let _ = super::next(&driver, SHORT);
    fake.lock().status = "on fire";
    // Longer than it takes until QEMU is asked by itself.
    let _ = super::next(&driver, Duration::from_millis(1200));
    assert!(driver.reset_state().is_ok());
    assert!(fake.lock().running && fake.lock().points.is_empty());
}

#[test]
fn a_guest_that_is_left_in_a_state_that_is_not_known_is_told_of() {
    let fake = Fake::new();
    let driver = fake.attach();
    set(&driver).expect("a breakpoint");
    let _ = super::next(&driver, SHORT);
    fake.lock().stand("on fire", Some("STOP"));
    let _ = super::next(&driver, Duration::from_millis(1200));
    let said = refusal(driver.reset_state());
    assert!(said.contains("'on fire'") && said.contains("cont"), "{said}");
}

#[test]
fn an_answer_that_got_lost_is_told_as_such() {
    let fake = Fake::new();
    let driver = fake.attach();
    fake.lock().swallows = Some("Z0");
    let said = refusal(set(&driver));
    assert!(said.contains("has not answered 'Z0,") && said.contains("QEMU answers"), "{said}");
    assert!(!said.contains("guest is gone"), "{said}");
}

/// What is said of a peer that says this where QMP is wanted.
fn greeted_by(says: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("peer");
    let listener = UnixListener::bind(&path).expect("a socket");
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a client");
            // Whoever has heard enough hangs up.
            let _ = stream.write_all(says);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        let qmp = Some(path.display().to_string());
        refusal(fake::attach(QemuOptions { qmp, ..QemuOptions::default() }))
    })
}

#[test]
fn whoever_listens_where_qmp_should_be_is_named() {
    let said = greeted_by(&vec![b'x'; 9 << 20]);
    assert!(said.contains("more than 8 MiB without an end of line") && !said.contains("hung up"), "{said}");
    let said = greeted_by(b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ");
    assert!(said.contains("human monitor"), "{said}");
    let said = greeted_by(b"{\"QMP\": {\"version\"");
    assert!(said.contains("has begun to greet"), "{said}");
}

#[test]
fn whoever_listens_where_the_stub_should_be_is_named() {
    for (says, named) in [
        (&b"{\"QMP\": {\"version\": {\"package\": \"1:7.2+dfsg-7\"}}}\r\n"[..], "QMP socket and not its gdb stub"),
        (b"QEMU 7.2.22 monitor - type 'help'\r\n(qemu) ", "it says 'QEMU 7.2.22 monitor"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it says 'SSH-2.0"),
    ] {
        let fake = Fake::new();
        let listener = UnixListener::bind(fake.path("other")).expect("a socket");
        let gdb = Some(format!("unix:{}", fake.path("other").display()));
        let driver = fake::attach(QemuOptions { gdb, ..fake.options() }).expect("it attaches");
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().expect("a client");
                let _ = stream.write_all(says);
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
            let said = refusal(set(&driver));
            assert!(said.contains(named), "{said}");
        });
        assert!(super::next(&driver, SHORT).is_err_and(|error| matches!(error, VmiError::Timeout)));
        assert!(LONG > SHORT && fake.lock().running);
    }
}
