//! The loop: waits for input, for the engine and for answers, and draws when something changed.
//!
//! The only place that does I/O for the screen. It is generic over the backend that is drawn on and over the
//! [`Console`] that keys come from, so that a run without a terminal is the same program. It never waits for the
//! engine: commands go out by `try_send`, answers are collected when they are there.
//!
//! Start with [`Loop::run`]; what comes from the user is in `input`, what goes to the engine in `commands`, what is
//! done here in `effects`.

mod commands;
mod effects;
mod input;

use std::{
    collections::VecDeque,
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

pub use commands::leave;
use crossbeam_channel::{Receiver, Select, TryRecvError};
use ratatui::{Terminal, backend::Backend};

use crate::{
    app::{
        console::{Console, Next, Situation},
        history::{self, History},
        input::ESCAPE_TIME,
        keymap::Keymap,
        logging,
        themes::Themes,
        update::{Draft, hints},
    },
    engine::{
        command::{Answer, Command, Engine},
        snapshot::{Snapshot, Status},
    },
    ui::{
        self, rows,
        state::{Severity, UiState},
        theme::Theme,
    },
};

/// Shortest time between two frames: 30 a second.
const FRAME: Duration = Duration::from_millis(33);
/// The unit in which notices fade.
const TICK: Duration = Duration::from_millis(100);
/// How long a script waits for an answer of the engine before it gives up.
const ANSWER_BOUND: Duration = Duration::from_secs(60);
/// How often the file of a user's theme is looked at.
const THEME_LOOK: Duration = Duration::from_secs(1);
/// What takes longer than this is told.
const MOMENT: Duration = Duration::from_millis(200);

/// What a loop needs besides terminal, console and engine.
#[derive(Debug)]
pub struct Setup {
    /// The colours.
    pub themes: Themes,
    /// The keys.
    pub keymap: Keymap,
    /// The state that the screen begins with.
    pub state: UiState,
    /// Whether the terminal is asked to report the mouse.
    pub mouse: bool,
    /// Whether what was saved for the guest is restored, and saved again at the end.
    pub restore: bool,
    /// How long an ESC may be the beginning of another key.
    pub escape_time: Duration,
    /// How many bytes the pictures to go back to may take.
    pub history: usize,
    /// A ping after a new line of the log; `None` where the log is not watched.
    pub logged: Option<Receiver<()>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            themes: Themes::default(),
            keymap: Keymap::default(),
            state: UiState::default(),
            mouse: false,
            restore: false,
            escape_time: ESCAPE_TIME,
            history: history::MOST_BYTES,
            logged: None,
        }
    }
}

/// Why a loop ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The user left, or the script was done.
    Done,
    /// A signal asked for it.
    Signal(&'static str),
}

/// How it stands with what was saved for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restore {
    /// Nobody asked for it, or it could not be read and is left alone.
    No,
    /// As soon as the guest is known.
    Wanted,
    /// Done, and saved again at the end.
    Done,
}

/// A command under way.
struct Pending {
    /// What the engine does, in words.
    what: &'static str,
    answer: Receiver<Answer>,
    draft: Option<Box<Draft>>,
    since: Instant,
}

/// A running loop.
pub struct Loop<'a, B: Backend, C: Console> {
    terminal: &'a mut Terminal<B>,
    console: &'a mut C,
    engine: Engine,
    themes: Themes,
    restore: Restore,
    keymap: Keymap,
    state: UiState,
    history: History,
    shown: Arc<Snapshot>,
    pending: Vec<Pending>,
    /// Commands that wait because too many are under way.
    outbox: VecDeque<(Command, Option<Box<Draft>>)>,
    logged: Option<Receiver<()>>,
    engine_ended: bool,
    dirty: bool,
    began: Instant,
    drawn: Option<Instant>,
    ticked: Duration,
    /// When the theme's file was looked at last.
    looked: Instant,
    ended: Option<Result<Ended, String>>,
}

impl<'a, B, C> Loop<'a, B, C>
where
    B: Backend,
    B::Error: Display,
    C: Console,
{
    /// A loop that has not begun yet.
    pub fn new(terminal: &'a mut Terminal<B>, console: &'a mut C, engine: Engine, setup: Setup) -> Self {
        let first = engine.snapshot.load_full();
        let mut state = setup.state;
        state.virtual_time = console.is_virtual();
        Self {
            terminal,
            console,
            themes: setup.themes,
            restore: if setup.restore { Restore::Wanted } else { Restore::No },
            keymap: setup.keymap,
            state,
            history: History::new(Arc::clone(&first), setup.history),
            shown: first,
            pending: Vec::new(),
            outbox: VecDeque::new(),
            logged: setup.logged,
            engine_ended: false,
            dirty: true,
            began: Instant::now(),
            drawn: None,
            ticked: Duration::ZERO,
            looked: Instant::now(),
            ended: None,
            engine,
        }
    }

    /// Runs until the user, the script or a signal ends it. The engine is still there afterwards: see [`leave`].
    ///
    /// # Errors
    /// A sentence when the terminal is lost or the script fails.
    pub fn run(&mut self) -> Result<Ended, String> {
        self.settle();
        loop {
            self.restore_when_known();
            let wait = self.follow_script();
            if let Some(ended) = self.ended.take() {
                if self.restore == Restore::Done {
                    self.save();
                }
                // The last picture is for who keeps it; a slow terminal only had to show it before it is left.
                if self.console.is_ready() {
                    self.draw()?;
                }
                return ended;
            }
            self.draw_when_due()?;
            self.wait(wait);
            self.collect();
        }
    }

    /// The colours on the screen.
    pub const fn theme(&self) -> &Theme {
        self.themes.theme()
    }

    /// The picture on the screen.
    pub fn shown(&self) -> &Arc<Snapshot> {
        &self.shown
    }

    /// Takes the console's steps until it waits; answers for how long it may wait.
    fn follow_script(&mut self) -> Option<Duration> {
        loop {
            if self.ended.is_some() {
                return None;
            }
            let left_for_all = self.console.longest().map(|longest| longest.saturating_sub(self.now()));
            if let Some(oldest) = self.pending.first().filter(|_| left_for_all != Some(Duration::ZERO)) {
                if !self.console.is_scripted() {
                    return None;
                }
                let left = ANSWER_BOUND.saturating_sub(oldest.since.elapsed());
                if left.is_zero() {
                    let bound = ANSWER_BOUND.as_secs();
                    self.ended = Some(Err(format!(
                        "the engine did not answer a command within {bound} s; a log (--log-file) says what it was doing"
                    )));
                }
                return Some(left_for_all.map_or(left, |all| all.min(left)));
            }
            let busy = self.pending.first().map(|oldest| oldest.what);
            let snapshot = self.history.live();
            let situation = Situation { snapshot, now: self.now(), engine_ended: self.engine_ended, busy };
            match self.console.next(&situation) {
                Next::Wait => return None,
                Next::WaitFor(time) => return Some(time),
                Next::Press(key) => self.press(key),
                Next::Advance(ticks) => self.send(Command::Advance(ticks), None),
                Next::End => self.ended = Some(Ok(Ended::Done)),
                Next::Fail(why) => self.ended = Some(Err(why)),
            }
        }
    }

    /// Time since the loop began, by the clock that the console lives by.
    fn now(&self) -> Duration {
        if self.console.is_virtual() {
            Duration::from_nanos(self.history.live().taken_at_ns)
        } else {
            self.began.elapsed()
        }
    }

    /// Blocks until something is there to be collected, a frame or a tick is due, or the time has passed.
    fn wait(&mut self, longest: Option<Duration>) {
        let mut select = Select::new();
        select.recv(self.console.inputs());
        if !self.engine_ended {
            select.recv(&self.engine.changed);
        }
        for pending in &self.pending {
            select.recv(&pending.answer);
        }
        if let Some(logged) = &self.logged {
            select.recv(logged);
        }
        let ready = self.console.is_ready();
        if let Some(freed) = self.console.freed() {
            select.recv(freed);
        }
        let mut longest = longest;
        let mut at_most = |time: Duration| longest = Some(longest.map_or(time, |longest| longest.min(time)));
        if self.engine_ended && !self.pending.is_empty() {
            at_most(Duration::ZERO);
        }
        if !self.console.is_virtual() {
            if self.dirty && ready {
                at_most(self.drawn.map_or(Duration::ZERO, |drawn| FRAME.saturating_sub(drawn.elapsed())));
            }
            if !self.state.notices.is_empty() {
                at_most((self.ticked + TICK).saturating_sub(self.now()));
            }
            if self.themes.is_from_file() {
                at_most(THEME_LOOK.saturating_sub(self.looked.elapsed()));
            }
            if !self.pending.is_empty() && !self.console.is_scripted() {
                at_most(MOMENT);
            }
        }
        match longest {
            Some(time) => {
                // Nothing ready is fine: the time has passed.
                let _ = select.ready_timeout(time);
            }
            None => {
                select.ready();
            }
        }
    }

    /// Takes in everything that is there.
    fn collect(&mut self) {
        if self.logged.as_ref().is_some_and(|logged| logged.try_recv().is_ok()) {
            self.dirty = true;
        }
        if let Some(freed) = self.console.freed() {
            // It has done what it is for: to wake.
            let _ = freed.try_recv();
        }
        let inputs = self.console.inputs().clone();
        let began = Instant::now();
        // However many keys there are, what they do is shown.
        while began.elapsed() < FRAME {
            match inputs.try_recv() {
                Ok(input) => self.input(input),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.ended.get_or_insert(Err("nothing is left that could send keys".into()));
                    break;
                }
            }
            if self.ended.is_some() {
                return;
            }
        }
        let mut answered = false;
        let mut index = 0;
        while let Some(pending) = self.pending.get(index) {
            match pending.answer.try_recv() {
                // An engine whose end is known has answered what it will; commands that it never read stay in its queue.
                Err(TryRecvError::Empty) if !self.engine_ended => index += 1,
                answer => {
                    let pending = self.pending.remove(index);
                    match answer {
                        Ok(answer) => self.answer(answer, pending.draft),
                        // The engine dropped the question: it is gone.
                        Err(_) => self.engine_has_ended(),
                    }
                    answered = true;
                }
            }
        }
        if answered {
            self.flush();
        }
        let pinged = self.ping();
        // In step with the engine, only an answer tells that a picture is complete.
        let in_step = self.console.is_virtual() && self.history.live().status != Status::Attaching;
        if answered || (pinged && !in_step) {
            self.digest();
        }
        self.look_at_theme();
        self.tell_progress();
        self.tick();
    }

    /// Whether the engine has published; notes its end.
    fn ping(&mut self) -> bool {
        if self.engine_ended {
            return false;
        }
        match self.engine.changed.try_recv() {
            Ok(()) => true,
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Disconnected) => {
                self.engine_has_ended();
                true
            }
        }
    }

    fn engine_has_ended(&mut self) {
        if self.engine_ended {
            return;
        }
        self.engine_ended = true;
        self.dirty = true;
        // The engine's own last picture has the better reason, where it could still publish one.
        if self.engine.snapshot.load().status != Status::Lost {
            let what = "the engine has ended: what is shown is the last picture of the guest";
            self.state.notify(Severity::Error, what);
        }
    }

    fn digest(&mut self) {
        if self.history.digest(self.engine.snapshot.load_full()) {
            self.settle();
        }
    }

    /// Notices fade with time, by whichever clock the run has.
    fn tick(&mut self) {
        if self.state.notices.is_empty() {
            self.ticked = self.now();
            return;
        }
        while self.ticked + TICK <= self.now() {
            self.ticked += TICK;
            self.dirty |= self.state.tick();
        }
    }

    /// Brings the lists, the selection and the footer up to date with picture and state.
    fn settle(&mut self) {
        self.shown = self.history.shown();
        self.state.past = self.history.past();
        if let Ok(size) = self.terminal.size() {
            self.state.size = (size.width, size.height);
        }
        self.log_notices();
        rows::settle(&self.shown, &mut self.state);
        hints::refresh(&mut self.state, &self.shown, &self.keymap);
        self.dirty = true;
    }

    /// A notice fades; the log keeps it.
    fn log_notices(&mut self) {
        for notice in self.state.notices.iter_mut().filter(|notice| !notice.logged) {
            notice.logged = true;
            match notice.severity {
                Severity::Info => tracing::info!("{}", notice.text),
                Severity::Warning => tracing::warn!("{}", notice.text),
                Severity::Error => tracing::error!("{}", notice.text),
            }
        }
    }

    /// Shows a sentence that the engine has logged already.
    fn notify_logged(&mut self, severity: Severity, text: String) {
        self.state.notify(severity, text);
        if let Some(notice) = self.state.notices.last_mut() {
            notice.logged = true;
        }
    }

    fn draw_when_due(&mut self) -> Result<(), String> {
        let due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= FRAME);
        if self.dirty && due && !self.console.is_virtual() && self.console.is_ready() { self.draw() } else { Ok(()) }
    }

    fn draw(&mut self) -> Result<(), String> {
        logging::collect();
        self.console.begin_frame();
        let (shown, state, theme) = (&self.shown, &self.state, self.themes.theme());
        let drawn = self.terminal.draw(|frame| ui::render(frame, shown, state, theme)).map(|_| ());
        self.console.end_frame();
        self.dirty = false;
        self.drawn = Some(Instant::now());
        drawn.map_err(|error| format!("cannot draw on the terminal: {error}"))
    }
}
