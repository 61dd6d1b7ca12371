//! What goes to the terminal, without ever waiting for it.
//!
//! A frame is made in memory and handed over as a whole; a thread of its own passes it on, as fast as the terminal takes
//! it. Until it has arrived (`flow`) no other frame is made: pictures in between are left out, not queued. So keys are
//! heard however slow the line is, and a terminal that takes nothing holds up nobody. Start at [`Outlet`].

mod flow;

use std::{
    fs::{File, OpenOptions},
    io::{self, Write, stdout},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::Errno,
    termios::{QueueSelector, tcflush, ttyname},
};

use flow::Flow;

/// Asks the terminal whether it is well (DSR, ECMA-48 8.3.35); it answers when it has come so far.
pub const ASK: &[u8] = b"\x1b[5n";
/// Ends what a frame that was cut may have left open: a string (ST), and what is shown at once when it is whole.
const END_CUT: &[u8] = b"\x1b\\\x1b[?2026l";
/// The most that is written at once: so much is still under way when the rest is thrown away.
const CHUNK: usize = 1024;
/// How often a full line is tried again, should nobody say that it has room.
const AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// How long last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long an answer that is on its way is waited for in the end, so that it does not become keys of the next program.
const LAST_ANSWER: Duration = Duration::from_millis(500);
/// The same for a terminal that has not answered yet and may never do.
const FIRST_ANSWER: Duration = Duration::from_millis(100);

/// The way to the terminal. Clones are the same way.
#[derive(Clone, Debug)]
pub struct Outlet {
    shared: Arc<Shared>,
    freed: Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    tty: File,
    state: Mutex<State>,
    /// Signalled when there is something to write, and when an answer has come.
    news: Condvar,
    freed: Sender<()>,
}

#[derive(Debug)]
struct State {
    /// What is to be written, and how much of it was.
    pending: Vec<u8>,
    written: usize,
    flow: Flow,
    /// Whether the loop waits to hear that the next frame may go.
    is_awaited: bool,
    failed: Option<Errno>,
    /// The frame that is being made.
    sheet: Vec<u8>,
}

impl Outlet {
    /// Opens the terminal that standard output is, for writing that never waits.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open() -> io::Result<Self> {
        // A way of its own: the one that standard output is may be the shell's as well, and stays as it is.
        let own = |path: PathBuf| {
            let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
            OpenOptions::new().read(true).write(true).custom_flags(i32::try_from(flags).unwrap_or(0)).open(path)
        };
        let named = ttyname(stdout(), Vec::new()).ok().and_then(|name| name.into_string().ok());
        let named = named.map_or_else(|| Err(io::ErrorKind::NotFound.into()), |name| own(name.into()));
        let tty = named.or_else(|_| own("/proc/self/fd/1".into())).or_else(|_| own("/dev/tty".into()))?;
        Ok(Self::to(tty))
    }

    /// Writes to a file that does not block.
    pub fn to(tty: File) -> Self {
        let (sender, freed) = bounded(1);
        let state = State {
            pending: Vec::new(),
            written: 0,
            flow: Flow::new(Instant::now()),
            is_awaited: false,
            failed: None,
            sheet: Vec::new(),
        };
        let shared = Arc::new(Shared { tty, state: Mutex::new(state), news: Condvar::new(), freed: sender });
        let writer = Arc::clone(&shared);
        thread::spawn(move || writer.write());
        Self { shared, freed }
    }

    /// Whether the terminal is ready for the next frame. Where it is not, [`Outlet::freed`] will tell.
    pub fn is_ready(&self) -> bool {
        let mut state = self.shared.lock();
        state.is_awaited = !state.is_free(Instant::now());
        !state.is_awaited
    }

    /// A ping when the terminal has become ready.
    pub const fn freed(&self) -> &Receiver<()> {
        &self.freed
    }

    /// Hands over the frame that was written to a [`Sheet`].
    pub fn submit(&self) {
        let mut state = self.shared.lock();
        let frame = std::mem::take(&mut state.sheet);
        state.pending.extend(frame);
        if state.flow.answers() {
            state.pending.extend(ASK);
            state.flow.ask(Instant::now());
        }
        self.shared.news.notify_all();
    }

    /// Sends what belongs to no frame; `asks` is how many answers it makes the terminal give.
    pub fn send(&self, bytes: &[u8], asks: u32) {
        let mut state = self.shared.lock();
        state.failed = None;
        state.pending.extend(bytes);
        for _ in 0..asks {
            state.flow.ask(Instant::now());
        }
        self.shared.news.notify_all();
    }

    /// The terminal has answered [`ASK`].
    pub fn answered(&self) {
        self.shared.lock().flow.answered();
        self.shared.news.notify_all();
    }

    /// Throws away what the terminal has not taken, tells it the last words, and waits for answers that would become keys
    /// of the next program. Takes a bounded time, whatever the terminal does.
    pub fn end(&self, words: &[u8]) {
        let shared = &self.shared;
        let mut state = shared.lock();
        let now = Instant::now();
        let is_cut = state.flow.is_behind(now) || state.written > 0;
        if is_cut {
            // A terminal that is gone needs no flushing.
            let _ = tcflush(&shared.tty, QueueSelector::OFlush);
        }
        state.sheet.clear();
        state.pending.clear();
        state.written = 0;
        let words = if is_cut { [END_CUT, words].concat() } else { words.to_vec() };
        let mut left = words.as_slice();
        while !left.is_empty() && now.elapsed() < LAST_WORDS {
            match rustix::io::write(&shared.tty, left) {
                Ok(length) => left = left.get(length..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => await_room(&shared.tty),
                Err(_) => break,
            }
        }
        while let Some(asked_at) = state.flow.unanswered() {
            let until = if state.flow.answers() { now + LAST_ANSWER } else { asked_at + FIRST_ANSWER };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let _ = tcflush(&shared.tty, QueueSelector::IFlush);
                break;
            }
            state = shared.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.flow.discarded();
    }
}

impl State {
    /// Whether everything has arrived.
    fn is_free(&mut self, now: Instant) -> bool {
        self.pending.is_empty() && self.flow.wait(now).is_none()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes on what there is, for the rest of the process.
    fn write(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let chunk = state.pending.get(state.written..).unwrap_or_default();
            if chunk.is_empty() {
                state = self.rest(state, now);
                continue;
            }
            match rustix::io::write(&self.tty, chunk.get(..CHUNK).unwrap_or(chunk)) {
                Ok(length) => {
                    state.written += length;
                    state.flow.took(length, now);
                    if state.written >= state.pending.len() {
                        state.pending.clear();
                        state.written = 0;
                        state.flow.done(now);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    state.flow.is_full(now);
                    drop(state);
                    await_room(&self.tty);
                    state = self.lock();
                }
                Err(error) => {
                    state.failed = Some(error);
                    state.pending.clear();
                    state.written = 0;
                }
            }
        }
    }

    /// Waits for something to write; says before that that there may be.
    fn rest<'a>(&'a self, mut state: MutexGuard<'a, State>, now: Instant) -> MutexGuard<'a, State> {
        match state.flow.wait(now) {
            Some(time) => self.news.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
            None => {
                if std::mem::take(&mut state.is_awaited) {
                    // A ping that is still there says the same.
                    let _ = self.freed.try_send(());
                }
                self.news.wait(state).unwrap_or_else(PoisonError::into_inner)
            }
        }
    }
}

/// Waits for a moment until a full line has room.
fn await_room(tty: &File) {
    // What comes of it, the next attempt will tell.
    let _ = poll(&mut [PollFd::new(&tty.as_fd(), PollFlags::OUT)], Some(&AGAIN));
}

/// What a frame is written to before it is handed over.
#[derive(Clone, Debug)]
pub struct Sheet(pub Outlet);

impl Write for Sheet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.shared.lock().sheet.extend(bytes);
        Ok(bytes.len())
    }

    /// Hands over nothing, because a frame is whole only behind its last cell; fails as the last frame did.
    fn flush(&mut self) -> io::Result<()> {
        match self.0.shared.lock().failed {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}
