//! The program is stopped by its terminal while it watches a real guest with breakpoints: the guest runs on.

mod live;

use std::{
    env, fs,
    io::{Read, Write},
    process::Command as Program,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use live::{
    dashboard::Dashboard,
    guest::{Guest, Options},
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
    screen: vt100::Parser,
}

impl Session {
    fn start(arguments: &[String]) -> Self {
        let pair =
            native_pty_system().openpty(PtySize { rows: 40, cols: 140, ..PtySize::default() }).expect("a terminal");
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_vmscope"));
        command.args(arguments);
        command.args(["--break", "do_sys_openat2"]);
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
        thread::spawn(move || {
            // The terminal stays open as long as somebody reads.
            let _master = pair.master;
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keys, output, screen: vt100::Parser::new(cells(40), cells(140), 0) }
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
    let mut session = Session::start(guest.attach_arguments());
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
    assert!(Program::new("kill").args(["-s", "CONT", &pid]).status().is_ok_and(|status| status.success()));
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
