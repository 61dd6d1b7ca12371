//! The real program in a real pseudo-terminal: the screen is right, and the terminal is given back on every way out.

#[path = "terminal/held.rs"]
mod held;

use std::{
    env,
    io::{Read, Write},
    num::NonZeroU16,
    process::{self, Command},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, unbounded};
use portable_pty::{Child, CommandBuilder, ExitStatus, MasterPty, PtySize, native_pty_system};
use vmscope::{
    app::{event_loop::Setup, start, terminal},
    engine::{
        command::{self, Engine, Leaving, Request},
        snapshot::{Part, Process, Snapshot, Status},
    },
};

#[path = "terminal/copied.rs"]
mod copied;
#[path = "terminal/pieces.rs"]
mod pieces;
#[path = "terminal/slow.rs"]
mod slow;

/// No step of a test takes nearly as long.
const BOUND: Duration = Duration::from_secs(30);

/// A program in a terminal.
struct Session {
    master: Box<dyn MasterPty + Send>,
    child: Box<dyn Child + Send + Sync>,
    keys: Box<dyn Write + Send>,
    output: Receiver<Vec<u8>>,
    screen: vt100::Parser,
    /// Everything that came, as it came.
    raw: Vec<u8>,
    canonical_at_first: bool,
}

impl Session {
    /// The vmscope of this build.
    fn vmscope(arguments: &[&str], columns: u16, rows: u16) -> Self {
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_vmscope"));
        command.args(arguments);
        Self::start(command, columns, rows)
    }

    /// One of the programs at the end of this file: a run of this test binary.
    fn program(name: &str) -> Self {
        let mut command = CommandBuilder::new(env::current_exe().unwrap());
        command.args(program_arguments(name));
        Self::start(command, 100, 30)
    }

    fn start(command: CommandBuilder, columns: u16, rows: u16) -> Self {
        Self::start_at(command, columns, rows, None)
    }

    /// A program in a terminal that reads as many bytes at a time as it is told, or all that there are.
    fn start_at(mut command: CommandBuilder, columns: u16, rows: u16, pace: Option<Receiver<usize>>) -> Self {
        let size = PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).unwrap();
        let home = env::temp_dir().join("vmscope-tests-without-configuration");
        command.cwd(env!("CARGO_MANIFEST_DIR"));
        command.env("TERM", "xterm-256color");
        command.env("COLORTERM", "truecolor");
        command.env_remove("NO_COLOR");
        if command.get_env("LC_ALL").is_none_or(|set| Some(set) == env::var_os("LC_ALL").as_deref()) {
            command.env("LC_ALL", "C.UTF-8");
        }
        for name in ["TMUX", "STY"] {
            command.env_remove(name);
        }
        command.env("XDG_CONFIG_HOME", &home);
        command.env("HOME", &home);
        let canonical_at_first = canonical(pair.master.as_ref());
        let child = pair.slave.spawn_command(command).unwrap();
        let mut reader = pair.master.try_clone_reader().unwrap();
        let keys = pair.master.take_writer().unwrap();
        let (sender, output) = unbounded();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A pace that has ended is the terminal's own again.
            let next = || pace.as_ref().and_then(|pace| pace.recv().ok()).unwrap_or(4096).min(4096);
            while let Ok(length @ 1..) = reader.read(&mut buffer[..next()]) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        // A terminal may lie about its size; its screen is one that a person has.
        let screen = vt100::Parser::new(some(rows.clamp(1, 300)), some(columns.clamp(1, 300)), 0);
        Self { master: pair.master, child, keys, output, screen, raw: Vec::new(), canonical_at_first }
    }

    fn text(&self) -> String {
        self.screen.screen().contents()
    }

    /// Takes in output for a moment; answers whether more may come.
    fn listen(&mut self) -> bool {
        match self.output.recv_timeout(Duration::from_millis(50)) {
            Ok(bytes) => {
                self.screen.process(&bytes);
                self.raw.extend(bytes);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    /// Reads until the screen is as wanted.
    fn wait(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let until = Instant::now() + BOUND;
        while !wanted(self) {
            let open = self.listen();
            assert!(open || wanted(self), "the program ended while the test waited until {what}:\n{}", self.text());
            assert!(Instant::now() < until, "waited until {what} in vain:\n{}", self.text());
        }
    }

    fn shows(&mut self, text: &str) {
        self.wait(&format!("'{text}' is shown"), |session| session.text().contains(text));
    }

    fn shows_no_more(&mut self, text: &str) {
        self.wait(&format!("'{text}' is gone"), |session| !session.text().contains(text));
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    fn resize(&mut self, columns: u16, rows: u16) {
        self.screen.screen_mut().set_size(some(rows), some(columns));
        self.master.resize(PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 }).unwrap();
    }

    fn signal(&self, name: &str) {
        let pid = self.child.process_id().unwrap().to_string();
        assert!(Command::new("sh").args(["-c", "kill -s $0 $1", name, &pid]).status().unwrap().success());
    }

    /// Reads until the program has ended.
    fn ends(&mut self) -> ExitStatus {
        let until = Instant::now() + BOUND;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // The terminal closes with the last program in it; what it still holds comes before that.
                while self.listen() {
                    assert!(Instant::now() < until, "the terminal stays open");
                }
                return status;
            }
            self.listen();
            assert!(Instant::now() < until, "the program does not end:\n{}", self.text());
        }
    }

    /// The terminal is as it was before the program took it.
    fn is_restored(&self) {
        let screen = self.screen.screen();
        assert!(!screen.alternate_screen(), "still in the alternate screen");
        assert!(!screen.hide_cursor(), "the cursor is hidden");
        assert!(!screen.bracketed_paste(), "pastes are still bracketed");
        assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::None, "the mouse is still reported");
        assert_eq!(canonical(self.master.as_ref()), self.canonical_at_first, "the terminal is still raw");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
    }
}

fn some(cells: u16) -> NonZeroU16 {
    NonZeroU16::new(cells).unwrap()
}

/// Whether the terminal collects lines, as terminals do outside raw mode.
fn canonical(master: &dyn MasterPty) -> bool {
    master.get_termios().is_some_and(|modes| modes.local_flags.bits() & libc::ICANON != 0)
}

fn dashboard() -> Session {
    let mut session = Session::vmscope(&["demo", "--seed", "7"], 120, 40);
    session.shows("System");
    session
}

#[test]
fn the_main_keys_work_and_quitting_gives_the_terminal_back() {
    let mut session = dashboard();
    assert!(session.screen.screen().alternate_screen());
    for title in ["1 Processes", "2 Breakpoints", "3 Page tables", "4 Faults", "5 Events", "6 Log"] {
        session.shows(title);
    }
    session.press("?");
    session.shows("Take everything out of the guest and leave");
    session.press("\x1b");
    session.shows_no_more("Take everything out of the guest and leave");
    session.press("z");
    session.shows_no_more("2 Breakpoints");
    session.press("z2a");
    session.shows("2 Breakpoints");
    session.press("nt!NtCreateFile\r");
    session.shows("2 Breakpoints  1 on");
    session.press("q");
    session.shows("runs on");
    session.press("y");
    assert!(session.ends().success());
    session.is_restored();
}

#[test]
fn sizes_change_in_a_storm_and_may_be_tiny() {
    let mut session = dashboard();
    for step in 0..60_u16 {
        session.resize(20 + step * 3 % 150, 5 + step * 7 % 50);
    }
    session.resize(20, 5);
    session.press("1");
    session.shows("Processes");
    session.resize(120, 40);
    session.shows("6 Log");
    session.press("q");
    assert!(session.ends().success());
    session.is_restored();
}

#[test]
fn a_terminal_that_lies_about_its_size_is_no_end() {
    for (columns, rows) in [(0, 0), (1, 1), (0, 40), (65535, 1), (1, 65535), (65535, 65535)] {
        // From the start, and later.
        let mut session = Session::vmscope(&["demo", "--seed", "7"], columns, rows);
        session.wait("the screen is taken", |session| session.screen.screen().alternate_screen());
        session.press("2z");
        session.resize(120, 40);
        session.shows("zoomed");
        session.master.resize(PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 }).unwrap();
        session.press("z");
        session.resize(120, 40);
        session.shows("6 Log");
        session.press("q");
        assert!(session.ends().success(), "{columns}x{rows}");
        session.is_restored();
    }
}

#[test]
fn the_mouse_is_left_alone_on_request() {
    let mode = |arguments: &[&str]| {
        let mut session = Session::vmscope(arguments, 120, 40);
        session.shows("System");
        let mode = session.screen.screen().mouse_protocol_mode();
        session.press("q");
        assert!(session.ends().success());
        session.is_restored();
        mode
    };
    assert_ne!(mode(&["demo"]), vt100::MouseProtocolMode::None);
    assert_eq!(mode(&["demo", "--no-mouse"]), vt100::MouseProtocolMode::None);
}

#[test]
fn frames_are_shown_as_a_whole() {
    let mut session = dashboard();
    session.press("jjj2z?");
    session.shows("Take everything out of the guest and leave");
    session.press("\x1b");
    session.shows_no_more("Take everything out of the guest and leave");
    // The guest runs, so there is always a next one.
    session.wait("several frames", |session| session.raw.windows(8).filter(|&at| at == b"\x1b[?2026h").count() > 3);
    session.press("q");
    session.ends();
    let raw = String::from_utf8_lossy(&session.raw).into_owned();
    let (begins, ends) = (raw.matches("\x1b[?2026h").count(), raw.matches("\x1b[?2026l").count());
    assert!(begins > 3 && begins == ends, "{begins} begun, {ends} ended");
    // Between two frames nothing is drawn: what is there only moves the modes of the terminal.
    let between = raw.split("\x1b[?2026h").skip(1).filter_map(|part| part.split("\x1b[?2026l").nth(1));
    let drawn = between.filter(|text| text.contains("Processes")).count();
    assert_eq!(drawn, 0);
}

#[test]
fn a_theme_follows_its_file_while_the_program_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let accent = |colour: &str| format!("inherits = 'dark'\n[palette]\naccent = '{colour}'\n");
    std::fs::write(&file, accent("#010203")).unwrap();
    let mut session = Session::vmscope(&["demo", "--theme", file.to_str().unwrap()], 120, 40);
    let has = |colour: &'static str| move |session: &Session| String::from_utf8_lossy(&session.raw).contains(colour);
    session.wait("the theme's colour", has("38;2;1;2;3"));
    std::fs::write(&file, accent("#0a0b0c # and longer")).unwrap();
    session.shows("stays as it was");
    assert!(session.text().contains("System"), "a broken file ends nothing");
    std::fs::write(&file, accent("#0a0b0c")).unwrap();
    session.shows("read again");
    session.wait("the new colour", has("38;2;10;11;12"));
    session.press("q");
    assert!(session.ends().success());
    session.is_restored();
}

#[test]
fn an_exported_screen_is_a_file_and_never_over_another_by_accident() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.txt");
    std::fs::write(&file, "mine").unwrap();
    let mut session = dashboard();
    session.press("e\x15");
    session.press(&format!("{}\r", file.display()));
    session.shows("Overwrite");
    session.press("\r");
    session.shows_no_more("Overwrite");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    session.press("e\x15");
    session.press(&format!("{}\r", file.display()));
    session.shows("Overwrite");
    session.press("y");
    session.shows("wrote");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("1 Processes") && text.contains("System") && !text.contains("Overwrite"), "{text}");
    session.press("q");
    assert!(session.ends().success());
}

#[test]
fn ctrl_z_gives_the_terminal_to_the_shell_until_fg() {
    let mut session = dashboard();
    session.press("\x1a");
    // The modes come last, after all that is written.
    session.wait("the terminal is given back", |session| {
        let screen = session.screen.screen();
        !screen.alternate_screen() && !screen.hide_cursor() && canonical(session.master.as_ref())
    });
    session.is_restored();
    let until = Instant::now() + BOUND;
    while !session.screen.screen().alternate_screen() {
        // Sent again, because the first one may come before the process has stopped.
        session.signal("CONT");
        session.listen();
        assert!(Instant::now() < until, "the program does not come back");
    }
    session.shows("1 Processes");
    session.press("q");
    assert!(session.ends().success());
    session.is_restored();
}

#[test]
fn signals_end_the_program_and_restore_the_terminal() {
    for signal in [
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGXCPU,
        libc::SIGXFSZ,
        libc::SIGIO,
        libc::SIGABRT,
        libc::SIGTRAP,
        libc::SIGSYS,
        libc::SIGPWR,
        libc::SIGRTMIN(),
        libc::SIGRTMAX(),
    ] {
        let mut session = dashboard();
        session.signal(&signal.to_string());
        assert_eq!(session.ends().exit_code(), 128 + signal.cast_unsigned(), "{signal}");
        session.is_restored();
    }
}

#[test]
fn a_fault_ends_the_program_and_restores_the_terminal() {
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE] {
        let mut session = dashboard();
        session.signal(&signal.to_string());
        assert!(!session.ends().success(), "{signal}");
        session.is_restored();
    }
}

#[test]
fn a_panic_of_the_screen_is_told_on_a_restored_terminal() {
    let mut session = Session::program("program_whose_screen_panics");
    session.shows("drawn no more");
    session.ends();
    session.is_restored();
}

#[test]
fn a_panic_of_the_engine_is_a_state_on_the_screen() {
    let mut session = Session::program("program_whose_engine_panics");
    session.shows("lsass.exe");
    session.press("p");
    session.shows("the engine has ended");
    assert!(session.screen.screen().alternate_screen());
    session.press("?");
    session.shows("List all keys");
    session.press("\x1b");
    session.shows_no_more("List all keys");
    session.press("q");
    session.ends();
    session.is_restored();
}

#[test]
fn without_a_terminal_one_sentence_names_the_way_out() {
    let output = Command::new(env!("CARGO_BIN_EXE_vmscope")).stdin(process::Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--headless") && said.lines().count() == 1, "{said}");
    assert!(output.stdout.is_empty());
}

/// What a run of this binary is told so that it becomes one of the programs below. The tests of that name do nothing
/// in an ordinary run.
fn program_arguments(name: &str) -> [&str; 4] {
    [name, "--exact", "--nocapture", "--test-threads=1"]
}

fn is_program(name: &str) -> bool {
    env::args().skip(1).eq(program_arguments(name).map(str::to_owned))
}

#[test]
fn program_whose_screen_panics() {
    if is_program("program_whose_screen_panics") {
        let _screen = terminal::Screen::open(true).unwrap();
        panic!("drawn no more");
    }
}

#[test]
fn program_whose_engine_panics() {
    if is_program("program_whose_engine_panics") {
        let (inputs, arriving) = terminal::input_queue();
        let setup = Setup::default();
        start::dashboard(panicking_engine(), setup, arriving, inputs).unwrap();
    }
}

/// Shows one process and panics when it is asked for anything.
fn panicking_engine() -> Engine {
    use vmscope::engine::snapshot::Capability;
    let process = Process { pid: 648, name: "lsass.exe".into(), ..Process::default() };
    let snapshot = Snapshot {
        status: Status::Running,
        processes: Part::new(vec![process]),
        capabilities: Part::new(vec![Capability::Pause]),
        ..Snapshot::default()
    };
    let published = Arc::new(ArcSwap::from_pointee(snapshot));
    let (requests, receiver) = bounded::<Request>(8);
    let (changed, pings) = bounded(1);
    thread::spawn(move || {
        let _alive = changed;
        let Request { command, .. } = receiver.recv().unwrap();
        assert_eq!(command, command::Command::Quit, "on purpose");
    });
    Engine { snapshot: published, requests, changed: pings, leaving: Leaving::default() }
}
