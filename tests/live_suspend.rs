//! The program is stopped or left while it watches a real guest: the guest runs on, and one that was only watched never
//! hears of it.

mod live;

use std::{
    env, fs,
    io::{Read, Write},
    process::Command as Program,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use live::{
    dashboard::Dashboard,
    guest::{Guest, Options},
    recorder::Recorder,
};
use portable_pty::{Child, CommandBuilder, PtySize, native_pty_system};
use vmscope::engine::{
    command::{Command, Target},
    snapshot::{Breakpoint, BreakpointState, Scope, Status},
    worker::StartOptions,
};

/// No step takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(60);

fn start() -> StartOptions {
    StartOptions { breaks: vec![Target::parse("do_sys_openat2").expect("a place")], ..StartOptions::default() }
}

#[test]
fn an_engine_that_stands_by_leaves_nothing_that_stops_the_guest() {
    let Some(mut guest) = Guest::boot(&Options { plain: true, ..Options::default() }) else { return };
    let dashboard = Dashboard::open(&guest, true, start());
    let is_on = |row: &Breakpoint| row.state == BreakpointState::Active;
    dashboard.wait("the breakpoint", |s| s.breakpoints.first().is_some_and(is_on));
    guest.sh("cat /proc/version");
    dashboard.wait("a hit", |s| s.counters.hits > 0);
    let off = Target::parse("do_exit").expect("a place");
    let kept = Command::RestoreBreakpoint { target: off, scope: Scope::Global, tag: String::new(), enabled: false };
    dashboard.ask(kept).expect("a row that is off");
    dashboard.ask(Command::StandBy).expect("the engine steps aside");
    assert_eq!(guest.status(), "running");
    // Nobody would answer a breakpoint now.
    guest.sh("cat /proc/version; cat /proc/version");
    let refused = dashboard.ask(Command::Refresh).expect_err("nothing is done");
    assert!(refused.contains("stands by"), "{refused}");
    dashboard.ask(Command::ComeBack).expect("the breakpoint is set again");
    let before = dashboard.wait("both rows", |s| s.breakpoints.len() == 2);
    let states: Vec<BreakpointState> = before.breakpoints.iter().map(|row| row.state).collect();
    assert_eq!(states, [BreakpointState::Active, BreakpointState::Disabled], "each as it was");
    guest.sh("cat /proc/version");
    dashboard.wait("another hit", |s| s.counters.hits > before.counters.hits);
    // A guest that the user has paused stays paused.
    dashboard.ask(Command::Pause).expect("a pause");
    dashboard.ask(Command::StandBy).expect("the engine steps aside");
    assert_eq!(guest.status(), "paused");
    dashboard.ask(Command::ComeBack).expect("back");
    dashboard.ask(Command::Resume).expect("the guest runs");
    dashboard.wait("the guest", |s| s.status == Status::Running);
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

/// vmscope in a terminal of its own.
struct Session {
    child: Box<dyn Child + Send + Sync>,
    keys: Box<dyn Write + Send>,
    output: Receiver<Vec<u8>>,
    held: Arc<AtomicBool>,
    screen: vt100::Parser,
}

impl Session {
    fn start(arguments: &[String], more: &[&str]) -> Self {
        let pair =
            native_pty_system().openpty(PtySize { rows: 40, cols: 140, ..PtySize::default() }).expect("a terminal");
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_vmscope"));
        command.args(arguments);
        command.args(more);
        command.cwd(env!("CARGO_MANIFEST_DIR"));
        let home = env::temp_dir().join("vmscope-tests-without-configuration");
        for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"] {
            command.env(variable, &home);
        }
        command.env("TERM", "xterm-256color");
        let child = pair.slave.spawn_command(command).expect("vmscope starts");
        let mut reader = pair.master.try_clone_reader().expect("its output");
        let keys = pair.master.take_writer().expect("its keys");
        let (sender, output) = channel();
        let held = Arc::new(AtomicBool::new(false));
        let holds = Arc::clone(&held);
        thread::spawn(move || {
            // The terminal stays open as long as somebody reads, or could.
            let _master = pair.master;
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                while holds.load(Ordering::SeqCst) {
                    thread::park();
                }
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keys, output, held, screen: vt100::Parser::new(cells(40), cells(140), 0) }
    }

    fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(self) {
            match self.output.recv_timeout(Duration::from_millis(50)) {
                Ok(bytes) => self.screen.process(&bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("vmscope ended before {what}:\n{}", self.text()),
            }
            assert!(Instant::now() < deadline, "waited for {what} in vain:\n{}", self.text());
        }
    }

    fn text(&self) -> String {
        self.screen.screen().contents()
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).and_then(|()| self.keys.flush()).expect("a key");
    }

    /// Reads no more of what is drawn.
    fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    fn pid(&self) -> u32 {
        self.child.process_id().expect("a process")
    }

    fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
    }

    /// How often the breakpoint was hit, as the screen says.
    fn hits(&self) -> Option<u64> {
        let text = self.text();
        let row = text.lines().find_map(|line| line.split("do_sys_openat2").nth(1))?;
        // The last number of the row; the physical address, where there is one, stands before it.
        let mut cells = row.split('│').next()?.split_whitespace();
        let word = cells.rfind(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        word.replace(',', "").parse().ok()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn cells(count: u16) -> std::num::NonZeroU16 {
    std::num::NonZeroU16::new(count).expect("not zero")
}

#[test]
fn ctrl_z_leaves_a_guest_that_runs_until_fg() {
    let Some(mut guest) = Guest::boot(&Options { plain: true, ..Options::default() }) else { return };
    let mut session = Session::start(guest.attach_arguments(), &["--break", "do_sys_openat2"]);
    session.until("the breakpoint", |session| session.text().contains("● do_sys_openat2"));
    guest.sh("cat /proc/version");
    session.until("a hit", |session| session.hits().is_some_and(|hits| hits > 0));
    session.press("\x1a");
    session.until("it is stopped", Session::is_stopped);
    session.until("the note", |session| session.text().contains("out of the guest; fg puts them back"));
    assert_eq!(guest.status(), "running");
    // This would hang at the breakpoint if that was still there.
    assert_eq!(guest.sh("cat /proc/version >/dev/null; echo runs"), "runs\n");
    let pid = session.pid().to_string();
    assert!(
        Program::new("sh").args(["-c", "kill -s $0 $1", "CONT", &pid]).status().is_ok_and(|status| status.success())
    );
    session.until("the breakpoint", |session| {
        session.screen.screen().alternate_screen() && session.text().contains("● do_sys_openat2")
    });
    let before = session.hits().unwrap_or(0);
    guest.sh("cat /proc/version; cat /proc/version");
    session.until("another hit", |session| session.hits().is_some_and(|hits| hits > before));
    session.press("qy");
    session.until("the end", |session| !session.screen.screen().alternate_screen());
    assert_eq!(guest.sh("cat /proc/version >/dev/null; echo runs"), "runs\n");
}

/// Whether a word of vmscope's changes nothing and stops nobody.
fn only_asks(word: &str) -> bool {
    let asks = ["qmp_capabilities", "query-", "info ", "gpa2hva ", "xp "];
    asks.iter().any(|asks| word.starts_with(asks))
}

#[test]
fn a_guest_that_was_only_watched_hears_nothing_of_it_whatever_ends_it() {
    let Some(mut guest) = Guest::boot(&Options::default()) else { return };
    let (qmp, gdb) = (Recorder::before(guest.qmp_socket()), Recorder::before(guest.gdb_socket()));
    let memory = guest.memory_file().display().to_string();
    let arguments = ["qemu", "--qmp", &qmp.address(), "--gdb", &gdb.address(), "--memory", &memory].map(str::to_owned);
    for way in ["q", "\x03", "TERM", "HUP", "INT", "QUIT", "USR1", "ALRM", "KILL", "\x1a"] {
        let mut session = Session::start(&arguments, &["--watch", "init_task"]);
        session.until("the guest", |session| session.text().contains("RUNNING") && session.text().contains("kthreadd"));
        let kill = |signal: &str, pid: u32| {
            let status = Program::new("sh").args(["-c", "kill -s $0 $1", signal, &pid.to_string()]).status();
            assert!(status.is_ok_and(|status| status.success()));
        };
        match way {
            "q" | "\x03" => session.press(way),
            "\x1a" => {
                session.press(way);
                session.until("it is stopped", Session::is_stopped);
                kill("CONT", session.pid());
                session.until("it is back", |session| session.screen.screen().alternate_screen());
                session.press("q");
            }
            signal => kill(signal, session.pid()),
        }
        let deadline = Instant::now() + PATIENCE;
        while session.child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "{way:?} does not end it");
            thread::sleep(Duration::from_millis(5));
        }
        let commands = qmp.take_commands();
        assert!(!commands.is_empty());
        let touches: Vec<&String> = commands.iter().filter(|word| !only_asks(word)).collect();
        assert_eq!((touches, gdb.take()), (Vec::<&String>::new(), Vec::new()), "{way:?}");
    }
    // The same without a terminal, to its end and when the guest's memory goes.
    for (more, ends) in [(&["--for", "2s"][..], Some(0)), (&["--until", "snapshots>=3", "--for", "60s"], Some(0))] {
        let run = Program::new(env!("CARGO_BIN_EXE_vmscope")).args(&arguments).arg("--headless").args(more).output();
        let run = run.expect("vmscope runs");
        assert_eq!(run.status.code(), ends, "{}", String::from_utf8_lossy(&run.stderr));
        let commands = qmp.take_commands();
        assert!(commands.iter().all(|word| only_asks(word)) && gdb.take().is_empty(), "{commands:?}");
    }
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_terminal_that_takes_no_output_keeps_no_breakpoint_in_the_guest() {
    let Some(mut guest) = Guest::boot(&Options { plain: true, ..Options::default() }) else { return };
    let mut session = Session::start(guest.attach_arguments(), &["--break", "do_sys_openat2"]);
    session.until("the breakpoint", |session| session.text().contains("● do_sys_openat2"));
    // Nobody reads any more: what is drawn now waits in the terminal, until that takes no more. Each hit is something to
    // be drawn.
    session.hold();
    let pid = session.pid().to_string();
    let written = || fs::read_to_string(format!("/proc/{pid}/io")).expect("a process");
    let written = || written().lines().find(|line| line.starts_with("wchar")).map(str::to_owned);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = written();
        guest.sh("work open 50");
        if written() == before {
            break;
        }
        assert!(Instant::now() < deadline, "the terminal takes all");
    }
    assert!(
        Program::new("sh").args(["-c", "kill -s $0 $1", "TERM", &pid]).status().is_ok_and(|status| status.success())
    );
    let status = loop {
        if let Some(status) = session.child.try_wait().expect("a child") {
            break status;
        }
        assert!(Instant::now() < deadline, "SIGTERM does not end it");
        thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(status.exit_code(), 128 + libc::SIGTERM.cast_unsigned());
    assert_eq!(guest.status(), "running");
    assert_eq!(guest.sh("cat /proc/version >/dev/null; echo runs"), "runs\n");
}
