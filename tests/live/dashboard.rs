//! A dashboard on a screen in memory, at a guest: keys go in, snapshots are waited for.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend};
use vmscope::{
    app::{
        console::{Console, Input},
        event_loop::{Ended, Loop, leave},
        start::{Wishes, prepare},
    },
    engine::{
        command::{Answer, Command, Engine, Request},
        driver::qemu::QemuOptions,
        snapshot::Snapshot,
        worker::{StartOptions, start_qemu},
    },
};

use super::guest::Guest;

/// The longest that anything may take before a test gives up; nothing is compared with it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Keys that a test presses.
struct Fingers(Receiver<Input>);

impl Console for Fingers {
    fn inputs(&self) -> &Receiver<Input> {
        &self.0
    }
}

/// A dashboard at a guest.
pub struct Dashboard {
    pub engine: Engine,
    keys: Sender<Input>,
    news: Receiver<()>,
    thread: JoinHandle<Result<Ended, String>>,
}

impl Dashboard {
    /// Attaches, by the memory file and the gdb stub or (`plain`) by nothing but the QMP socket.
    pub fn open(guest: &Guest, plain: bool, start: StartOptions) -> Self {
        let options = QemuOptions {
            qmp: Some(format!("unix:{}", guest.qmp_socket().display())),
            gdb: (!plain).then(|| format!("unix:{}", guest.gdb_socket().display())),
            memory: (!plain).then(|| guest.memory_file()),
            guardian: Some(env!("CARGO_BIN_EXE_vmscope").into()),
            ..QemuOptions::default()
        };
        Self::of(options, start)
    }

    /// Attaches as the options say.
    pub fn of(options: QemuOptions, start: StartOptions) -> Self {
        let engine = start_qemu(options, start).expect("the guest can be attached to");
        // The loop takes the engine's pings; a copy of each comes here.
        let (ping, changed) = bounded(1);
        let (tell, news) = bounded(1);
        let pings = engine.changed.clone();
        thread::spawn(move || {
            while pings.recv().is_ok() {
                let _ = ping.try_send(());
                let _ = tell.try_send(());
            }
        });
        let (keys, inputs) = unbounded();
        let shown = Engine { changed, ..engine.clone() };
        let thread = thread::spawn(move || {
            let mut terminal = Terminal::new(TestBackend::new(160, 50)).expect("a screen in memory");
            let setup = prepare(Wishes { headless: true, ..Wishes::default() })?;
            Loop::new(&mut terminal, &mut Fingers(inputs), shown, setup).run()
        });
        Self { engine, keys, news, thread }
    }

    /// Waits until the snapshot is as wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let snapshot = self.engine.snapshot.load_full();
            if wanted(&snapshot) {
                return snapshot;
            }
            let seen = || {
                format!(
                    "{:?} {:?}, {:?}, breakpoints {:?}, tables {:?}",
                    snapshot.status, snapshot.notice, snapshot.counters, *snapshot.breakpoints, *snapshot.page_tables
                )
            };
            if self.news.recv_deadline(deadline).is_err() {
                panic!("waited for {what} in vain; last seen: {}", seen());
            }
        }
    }

    /// Presses a key.
    pub fn key(&self, code: KeyCode) {
        let event = Event::Key(KeyEvent::new(code, KeyModifiers::NONE));
        self.keys.send(Input::Terminal(event)).expect("the dashboard listens");
    }

    /// Types.
    pub fn keys(&self, text: &str) {
        text.chars().for_each(|c| self.key(KeyCode::Char(c)));
    }

    /// Sends a command past the keys.
    pub fn ask(&self, command: Command) -> Answer {
        let (answer, answered) = bounded(1);
        self.engine.requests.send(Request { command, answer }).expect("the engine listens");
        answered.recv_timeout(PATIENCE).expect("an answer")
    }

    /// Leaves as on SIGTERM.
    pub fn close(self) {
        self.keys.send(Input::Terminate("SIGTERM")).expect("the dashboard listens");
        let ended = self.thread.join().expect("the loop does not panic");
        assert_eq!(ended, Ok(Ended::Signal("SIGTERM")));
        leave(&self.engine).expect("the engine leaves the guest");
    }
}
