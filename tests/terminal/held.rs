//! A terminal that takes no output, and a guest that does not open: both can be left all the same.

use std::{
    env,
    io::Write,
    os::unix::net::UnixListener,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use portable_pty::{CommandBuilder, PtySize, native_pty_system};

use super::{BOUND, Session, canonical};

/// The vmscope of this build, on a guest that answers nothing.
fn on_a_silent_guest() -> (tempfile::TempDir, Session) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        // A greeting without an end, a byte at a time: every single read comes in time.
        let (mut stream, _) = listener.accept().unwrap();
        while stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let address = format!("unix:{}", socket.display());
    let session = Session::vmscope(&["qemu", "--qmp", &address], 100, 30);
    (folder, session)
}

#[test]
fn attaching_is_left_by_keys_and_by_signals() {
    for way in ["q", "\x03", "\x1b", "TERM", "INT", "HUP"] {
        let (_folder, mut session) = on_a_silent_guest();
        session.shows("ATTACHING");
        match way {
            "TERM" | "INT" | "HUP" => session.signal(way),
            key => session.press(key),
        }
        session.ends();
        session.is_restored();
    }
}

#[test]
fn a_terminal_that_takes_no_output_keeps_nobody() {
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGUSR1] {
        let pair = native_pty_system().openpty(PtySize { rows: 60, cols: 200, ..PtySize::default() }).unwrap();
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_vmscope"));
        command.args(["demo", "--seed", "7"]);
        command.cwd(env!("CARGO_MANIFEST_DIR"));
        command.env("TERM", "xterm-256color");
        command.env("HOME", env::temp_dir().join("vmscope-tests-without-configuration"));
        let mut child = pair.slave.spawn_command(command).unwrap();
        let until = Instant::now() + BOUND;
        // Nobody reads. The screen is wider than what a terminal holds, so the first frames are not taken whole; that its
        // modes are set comes before the first one.
        while canonical(pair.master.as_ref()) {
            assert!(Instant::now() < until, "the terminal is not taken");
            thread::sleep(Duration::from_millis(5));
        }
        let pid = child.process_id().unwrap().to_string();
        is_held(&pid, until);
        assert!(
            Command::new("sh").args(["-c", "kill -s $0 $1", &signal.to_string(), &pid]).status().unwrap().success()
        );
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "signal {signal} does not end it");
            thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(status.exit_code(), 128 + signal.cast_unsigned());
        assert!(canonical(pair.master.as_ref()), "the terminal is still raw after signal {signal}");
    }
}

/// Waits until no more of its output is taken: the guest on it lives, so there would be another frame many times a second.
fn is_held(pid: &str, until: Instant) {
    let written = || {
        let counts = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        counts.lines().find(|line| line.starts_with("wchar")).unwrap().to_owned()
    };
    let (mut last, mut since) = (written(), Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        thread::sleep(Duration::from_millis(20));
        let now = written();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        assert!(Instant::now() < until, "the terminal takes all");
    }
}
