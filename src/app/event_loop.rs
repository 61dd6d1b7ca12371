//! The loop: waits for input, for the engine and for answers, and draws when something changed.
//!
//! The only place that does I/O for the screen. It is generic over the backend that is drawn on and over the
//! [`Console`] that keys come from, so that a run without a terminal is the same program. It never waits for the
//! engine: commands go out by `try_send`, answers are collected when they are there.

use std::{
    collections::VecDeque,
    fmt::Display,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crokey::KeyCombination;
use crossbeam_channel::{Receiver, RecvTimeoutError, Select, SendTimeoutError, TryRecvError, TrySendError, bounded};
use crossterm::event::{Event, KeyEventKind, MouseEventKind};
use ratatui::{
    Terminal,
    backend::{Backend, TestBackend},
    layout::{Position, Rect},
};

use super::{
    console::{Console, Input, Next, Situation},
    export::{Exported, export},
    history::History,
    keymap::{self, Keymap},
    logging,
    saved::Saved,
    screenshot::Shot,
    themes::Themes,
    update::{self, Draft, Effect, choose, hints, memory, mouse, popup},
};
use crate::{
    engine::{
        command::{Answer, Command, Done, Engine, Request},
        snapshot::{BreakpointState, Snapshot, Status},
    },
    ui::{
        self, rows,
        state::{Ask, Choice, Choose, Confirm, Popup, Severity, Then, UiState},
        theme::Theme,
    },
};

/// Shortest time between two frames: 30 a second.
const FRAME: Duration = Duration::from_millis(33);
/// The unit in which notices fade.
const TICK: Duration = Duration::from_millis(100);
/// How long a script waits for an answer of the engine before it gives up.
const ANSWER_BOUND: Duration = Duration::from_secs(60);
/// How many commands may be under way; those of many marked rows wait for the first ones.
const UNDER_WAY: usize = 64;
/// How long the engine may take to leave the guest.
const LEAVE_BOUND: Duration = Duration::from_secs(10);
/// How often the file of a user's theme is looked at.
const THEME_LOOK: Duration = Duration::from_secs(1);
/// How long the engine may take to step aside before this process is stopped.
const STAND_BY_BOUND: Duration = Duration::from_secs(3);
/// What takes longer than this is told.
const MOMENT: Duration = Duration::from_millis(200);

/// What a loop needs besides terminal, console and engine.
#[derive(Debug, Default)]
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
    /// A ping after a new line of the log; `None` where the log is not watched.
    pub logged: Option<Receiver<()>>,
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
            history: History::new(Arc::clone(&first)),
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
                self.draw()?;
                return ended;
            }
            self.draw_when_due()?;
            self.wait(wait);
            self.collect();
        }
    }

    /// Brings back what was saved for this guest, once it is known which one it is.
    fn restore_when_known(&mut self) {
        let live = Arc::clone(self.history.live());
        if self.restore != Restore::Wanted || matches!(live.status, Status::Attaching | Status::Lost) {
            return;
        }
        self.restore = Restore::Done;
        match Saved::read(&live) {
            Ok(None) => self.state.notify(Severity::Info, "nothing is saved for this guest yet"),
            Ok(Some(saved)) => {
                saved.apply(&mut self.state);
                if let Err(why) = self.themes.choose(saved.theme()) {
                    self.state.notify(Severity::Warning, why);
                }
                for command in saved.commands(&live) {
                    self.send(command, None);
                }
            }
            Err(why) => {
                self.restore = Restore::No;
                self.state.notify(Severity::Error, why);
            }
        }
        self.settle();
    }

    /// Keeps for the next run what the user has set; answers where, or says why not.
    fn save(&mut self) -> Option<PathBuf> {
        let live = self.history.live();
        if live.status == Status::Attaching {
            self.state.notify(Severity::Warning, "nothing to save yet: the engine is still on its way into the guest");
            return None;
        }
        match Saved::of(&self.state, live, self.themes.name()).write(live) {
            Ok(path) => Some(path),
            Err(why) => {
                tracing::warn!("{why}");
                self.state.notify(Severity::Error, why);
                None
            }
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
            if let Some(oldest) = self.pending.first() {
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
                return Some(left);
            }
            let snapshot = self.history.live();
            let situation = Situation { snapshot, now: self.now(), engine_ended: self.engine_ended };
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
        let mut longest = longest;
        let mut at_most = |time: Duration| longest = Some(longest.map_or(time, |longest| longest.min(time)));
        if !self.console.is_virtual() {
            if self.dirty {
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
                Err(TryRecvError::Empty) => index += 1,
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

    /// Reads the theme's file again when it was written.
    fn look_at_theme(&mut self) {
        if !self.themes.is_from_file() || self.console.is_virtual() || self.looked.elapsed() < THEME_LOOK {
            return;
        }
        self.looked = Instant::now();
        if let Some(read) = self.themes.follow() {
            self.theme_was_read(read);
        }
    }

    fn theme_was_read(&mut self, read: Result<(), String>) {
        match read {
            Ok(()) => {
                let text = format!("theme {}: read again", self.themes.name());
                self.state.notify(Severity::Info, text);
            }
            Err(why) => self.state.notify(Severity::Error, format!("{why}; the theme stays as it was")),
        }
        self.settle();
    }

    /// Says what takes longer than a moment. A script has nobody to be told.
    fn tell_progress(&mut self) {
        let oldest = self.pending.first().filter(|oldest| oldest.since.elapsed() >= MOMENT);
        let busy = oldest.filter(|_| !self.console.is_scripted()).map(|oldest| {
            let tenths = oldest.since.elapsed().as_millis() / 100;
            format!("{} ({}.{} s)", oldest.what, tenths / 10, tenths % 10)
        });
        if busy != self.state.busy {
            self.state.busy = busy;
            self.dirty = true;
        }
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

    fn input(&mut self, input: Input) {
        match input {
            Input::Terminal(Event::Key(key)) if key.kind != KeyEventKind::Release => self.press(keymap::pressed(key)),
            Input::Terminal(Event::Key(_)) => {}
            // A pointer that only passes changes nothing.
            Input::Terminal(Event::Mouse(event)) if event.kind == MouseEventKind::Moved => {}
            Input::Terminal(Event::Mouse(event)) => {
                let now = self.began.elapsed();
                let effects = mouse::mouse(&mut self.state, &self.shown, &self.keymap, event, now);
                self.carry_out(effects);
                self.settle();
            }
            Input::Terminal(Event::Paste(text)) => {
                popup::paste(&mut self.state, &self.shown, &text);
                self.settle();
            }
            // A terminal that was small for a moment has lost cells, even when it is back at its size by now. What it
            // lost while it had no focus, some terminals tell by the focus alone.
            Input::Terminal(Event::Resize(..) | Event::FocusGained) => {
                self.redraw(Ok(true));
                self.carry_out(memory::resized(&self.state));
            }
            Input::Terminal(Event::FocusLost) => {}
            Input::Suspend => self.suspend(),
            Input::Continued => {
                let resumed = self.console.resume();
                self.redraw(resumed);
            }
            Input::Terminate(signal) => self.ended = Some(Ok(Ended::Signal(signal))),
            Input::Lost(why) => self.ended = Some(Err(why)),
        }
    }

    fn press(&mut self, key: KeyCombination) {
        let effects = update::key(&mut self.state, &self.shown, &self.keymap, key);
        self.carry_out(effects);
        self.settle();
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(command) => self.send(command, None),
                Effect::SendFrom(command, draft) => self.send(command, Some(draft)),
                Effect::Copy(text) => self.console.copy(&text),
                Effect::Freeze => self.history.freeze(),
                Effect::Back => {
                    if !self.history.back() {
                        self.state.notify(Severity::Info, "there is no earlier picture");
                    }
                }
                Effect::Forward => self.history.forward(),
                Effect::FarBack => {
                    if !self.history.far_back() {
                        self.state.notify(Severity::Info, "there is no earlier picture");
                    }
                }
                Effect::FarForward => self.history.far_forward(),
                Effect::Redraw => self.redraw(Ok(true)),
                Effect::Suspend => self.suspend(),
                Effect::ChooseTheme => {
                    let (items, name) = (self.themes.list(), self.themes.name().to_owned());
                    let chosen = items.iter().position(|(item, _)| *item == name).unwrap_or(0);
                    let (title, does) = ("Theme".into(), "keep".into());
                    let choice = Choice::Theme(name);
                    self.state.popups.push(Popup::Choose(Choose { choice, title, items, chosen, does }));
                }
                Effect::Theme(name) => {
                    if let Err(why) = self.themes.choose(&name) {
                        self.state.notify(Severity::Error, format!("{why}; the theme stays as it was"));
                    }
                }
                Effect::ReloadTheme => {
                    let read = self.themes.reload();
                    self.theme_was_read(read);
                }
                Effect::Export { file, overwrite } => self.export(file, overwrite),
                Effect::SaveState => {
                    if let Some(path) = self.save() {
                        let text = format!("saved to {}; start with --restore to have it back", path.display());
                        self.state.notify(Severity::Info, text);
                    }
                }
                Effect::Leave => self.ended = Some(Ok(Ended::Done)),
            }
        }
    }

    /// Goes to the shell for a while. While this process is stopped nobody answers the guest, so the engine steps aside
    /// first; where it cannot, nothing is stopped.
    fn suspend(&mut self) {
        let live = !self.engine_ended && !self.console.is_scripted();
        let set = self.history.live().breakpoints.iter().any(|row| row.state == BreakpointState::Active);
        let aside = if live { self.stand_by() } else { Ok(()) };
        match aside {
            Ok(()) => {
                // What is out of the guest is shown so, until it is back.
                self.digest();
                let note = match self.history.live().status {
                    Status::Paused => "vmscope is stopped and the guest stays paused; fg comes back",
                    _ if set => "vmscope is stopped and its breakpoints are out of the guest; fg puts them back",
                    _ => "",
                };
                let suspended = self.console.suspend(note);
                self.redraw(suspended);
            }
            Err(why) => self.state.notify(Severity::Error, format!("vmscope is not stopped: {why}")),
        }
        if live {
            self.send(Command::ComeBack, None);
        }
    }

    /// Waits until the engine has stepped aside.
    fn stand_by(&mut self) -> Result<(), String> {
        let until = Instant::now() + STAND_BY_BOUND;
        let late = || "the engine is busy, and the guest would hang at the next breakpoint; try again".to_owned();
        let (answer, answered) = bounded(1);
        match self.engine.requests.send_deadline(Request { command: Command::StandBy, answer }, until) {
            Ok(()) => {}
            Err(SendTimeoutError::Timeout(_)) => return Err(late()),
            // An engine that has ended has left the guest.
            Err(SendTimeoutError::Disconnected(_)) => return Ok(()),
        }
        match answered.recv_deadline(until) {
            Ok(answer) => answer.map(|_| ()),
            Err(RecvTimeoutError::Timeout) => Err(late()),
            Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }

    /// Writes the panes as they are, without what lies above them, to a file.
    fn export(&mut self, file: String, overwrite: bool) {
        let notices = std::mem::take(&mut self.state.notices);
        let (columns, rows) = self.state.size;
        let Ok(mut terminal) = Terminal::new(TestBackend::new(columns, rows));
        let (shown, state, theme) = (&self.shown, &self.state, self.themes.theme());
        let Ok(_) = terminal.draw(|frame| ui::render(frame, shown, state, theme));
        let exported = export(&file, overwrite, &Shot { buffer: terminal.backend().buffer(), snapshot: shown, theme });
        self.state.notices = notices;
        match exported {
            Ok(Exported::Written(path)) => self.state.notify(Severity::Info, format!("wrote {}", path.display())),
            Ok(Exported::Exists(path)) => self.state.popups.push(Popup::Confirm(Confirm {
                title: "Overwrite".into(),
                text: format!("{} is there already. What is in it will be lost.", path.display()),
                yes: "overwrite".into(),
                no: "keep".into(),
                chosen_yes: false,
                then: Then::Overwrite(file),
            })),
            Err(why) => {
                let question = choose::file_question(file);
                self.state.popups.push(Popup::Ask(Ask { error: Some(why), ..question }));
            }
        }
    }

    /// Sends a command without waiting; its answer becomes a notice. The engine has logged it.
    fn send(&mut self, command: Command, draft: Option<Box<Draft>>) {
        self.outbox.push_back((command, draft));
        self.flush();
    }

    /// Hands the engine what waits, as far as it takes more.
    fn flush(&mut self) {
        while self.pending.len() < UNDER_WAY
            && let Some((command, draft)) = self.outbox.pop_front()
        {
            let (answer, receiver) = bounded(1);
            let what = doing(&command);
            match self.engine.requests.try_send(Request { command, answer }) {
                Ok(()) => self.pending.push(Pending { what, answer: receiver, draft, since: Instant::now() }),
                Err(TrySendError::Full(request)) if !self.pending.is_empty() => {
                    self.outbox.push_front((request.command, draft));
                    return;
                }
                Err(TrySendError::Full(_)) => {
                    self.state
                        .notify(Severity::Warning, "the engine is busy and takes no more commands now; try again");
                }
                Err(TrySendError::Disconnected(_)) => {
                    self.outbox.clear();
                    let what = "the engine has ended and takes no commands; quit and start vmscope again";
                    self.state.notify(Severity::Error, what);
                }
            }
        }
    }

    fn answer(&mut self, answer: Answer, draft: Option<Box<Draft>>) {
        match answer {
            Ok(Done::Quiet) => {}
            Ok(Done::Said(text) | Done::Breakpoint(_, text) | Done::Table(_, text) | Done::Fault(_, text)) => {
                self.notify_logged(Severity::Info, text);
            }
            Ok(Done::Found(found, more)) => {
                let effects = memory::found(&mut self.state, found, more);
                self.carry_out(effects);
            }
            Err(why) => {
                if let (Some(draft), true) = (draft, self.state.popups.is_empty()) {
                    let Draft(mut dialog) = *draft;
                    dialog.error = Some(why);
                    self.state.popups.push(Popup::Add(dialog));
                } else {
                    self.notify_logged(Severity::Error, why);
                }
            }
        }
        self.settle();
    }

    /// Forgets what the terminal shows, so that the next frame writes every cell.
    fn redraw(&mut self, needed: Result<bool, String>) {
        match needed {
            Ok(true) => {
                // Not `Terminal::clear`: that asks the terminal where its cursor is, and the answer would come in
                // among the keys.
                let cleared =
                    self.terminal.size().and_then(|size| self.terminal.resize(Rect::from((Position::ORIGIN, size))));
                if let Err(error) = cleared {
                    self.ended = Some(Err(format!("cannot clear the terminal: {error}")));
                }
                self.settle();
            }
            Ok(false) => {}
            Err(why) => self.ended = Some(Err(why)),
        }
    }

    fn draw_when_due(&mut self) -> Result<(), String> {
        let due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= FRAME);
        if self.dirty && due && !self.console.is_virtual() { self.draw() } else { Ok(()) }
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

/// What the engine does for a command, in words.
const fn doing(command: &Command) -> &'static str {
    match command {
        Command::AddBreakpoint { .. } | Command::ToggleBreakpoint(_) | Command::RemoveBreakpoint(_) => {
            "changing a breakpoint"
        }
        Command::WatchAddress { .. } | Command::UnwatchAddress(_) => "changing what is watched",
        Command::Pause | Command::Resume => "waiting for the guest's processors",
        Command::Step(_) => "stepping",
        Command::Inspect(_) => "reading the guest",
        Command::Search { .. } => "searching the guest's memory",
        Command::Refresh => "reading everything again",
        _ => "waiting for the engine",
    }
}

/// Lets the engine take everything out of the guest and end.
///
/// # Errors
/// A sentence when it could not, or does not end in time.
pub fn leave(engine: &Engine) -> Result<(), String> {
    let until = Instant::now() + LEAVE_BOUND;
    let (answer, answered) = bounded(1);
    match engine.requests.send_deadline(Request { command: Command::Quit, answer }, until) {
        // An engine that has ended by itself has left the guest already.
        Ok(()) | Err(SendTimeoutError::Disconnected(_)) => {}
        Err(SendTimeoutError::Timeout(_)) => return Err(stuck()),
    }
    loop {
        match engine.changed.recv_deadline(until) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => return Err(stuck()),
        }
    }
    answered.try_recv().ok().map_or(Ok(()), |answer| answer.map(|_| ()))
}

fn stuck() -> String {
    let bound = LEAVE_BOUND.as_secs();
    format!(
        "the engine did not leave the guest within {bound} s; look at the guest, breakpoints may still be set in it"
    )
}
