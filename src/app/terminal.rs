//! The real terminal: taken, and given back on every way out.
//!
//! Raw mode, alternate screen, mouse, bracketed paste and focus reports are switched on together and off together.
//! What is written goes through an [`Outlet`], so that nothing here waits for the terminal: see [`super::output`].
//! A panic of the thread that draws gives the terminal back before it is told; a panic of any other thread is
//! logged and leaves the screen alone, because the screen goes on.

use std::{
    env,
    io::{self, IsTerminal},
    panic,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use crossterm::{
    cursor,
    event::{
        DisableBracketedPaste, DisableFocusChange, DisableMouseCapture, EnableBracketedPaste, EnableFocusChange,
        EnableMouseCapture, KeyboardEnhancementFlags, PopKeyboardEnhancementFlags, PushKeyboardEnhancementFlags,
    },
    queue,
    style::ResetColor,
    terminal::{self, BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen},
};
use ratatui::{Terminal, backend::CrosstermBackend};
use signal_hook::{consts::SIGTSTP, low_level};

use super::{
    attaching::Opening,
    bounded::Bounded,
    clipboard::Way,
    console::{Console, Input, Next, Situation},
    output::{ASK, Outlet, Sheet},
};

/// Whether the terminal is ours now; what [`restore`] undoes once.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// The same until all of it is undone: a terminal that takes no output may hold [`restore`] for a while.
static HELD: AtomicBool = AtomicBool::new(false);
/// Whether the mouse is wanted, each time the terminal is taken.
static MOUSE: AtomicBool = AtomicBool::new(true);
/// Whether the terminal speaks kitty's keyboard protocol, in which no key is the beginning of another.
static KITTY: AtomicBool = AtomicBool::new(false);
/// The way to the terminal, from the first time that it is taken.
static OUTLET: OnceLock<Outlet> = OnceLock::new();

/// Asks for the flags of kitty's keyboard protocol. What does not know it stays silent.
const ASK_KITTY: &[u8] = b"\x1b[?u";

/// Whether there is a terminal to draw on and to read keys from.
///
/// # Errors
/// A sentence when there is none.
pub fn check() -> Result<(), String> {
    if io::stdout().is_terminal() && io::stdin().is_terminal() {
        return Ok(());
    }
    Err("the dashboard needs a terminal as standard input and output; run vmscope in one, or add --headless to run \
         without (with --keys and --screenshot)"
        .into())
}

/// The terminal of a user, drawn on by ratatui; given back when dropped.
pub struct Screen {
    /// What frames are drawn on.
    pub terminal: Terminal<Bounded<CrosstermBackend<Sheet>>>,
    /// What writes to it.
    pub outlet: Outlet,
}

impl Screen {
    /// Takes the terminal for the calling thread, which must be the one that draws; `mouse` is whether the mouse is ours
    /// too, or stays the terminal's for selecting text.
    ///
    /// # Errors
    /// A sentence when it does not take a mode.
    pub fn open(mouse: bool) -> Result<Self, String> {
        let unfit = |error| format!("cannot prepare the terminal: {error}; try another one, or --headless");
        MOUSE.store(mouse, Ordering::SeqCst);
        let opened = Outlet::open().map_err(unfit)?;
        let outlet = OUTLET.get_or_init(|| opened).clone();
        restore_on_panic();
        take().map_err(unfit)?;
        let terminal = Terminal::new(Bounded(CrosstermBackend::new(Sheet(outlet.clone())))).map_err(|error| {
            restore("");
            format!("cannot ask the terminal for its size: {error}; try another one, or --headless")
        })?;
        Ok(Self { terminal, outlet })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore("");
    }
}

/// Switches all modes on, and asks what else the terminal can do: it is not waited for.
fn take() -> io::Result<()> {
    HELD.store(true, Ordering::SeqCst);
    TAKEN.store(true, Ordering::SeqCst);
    terminal::enable_raw_mode().inspect_err(|_| restore(""))?;
    let mut modes = Vec::new();
    queue!(modes, EnterAlternateScreen, EnableBracketedPaste, EnableFocusChange)?;
    if MOUSE.load(Ordering::SeqCst) {
        queue!(modes, EnableMouseCapture)?;
    }
    modes.extend(ASK_KITTY);
    modes.extend(ASK);
    if let Some(outlet) = OUTLET.get() {
        outlet.send(&modes, 1);
    }
    Ok(())
}

/// Takes note that the terminal speaks kitty's keyboard protocol, and has it send keys in it.
pub fn use_kitty_keys() {
    // The protocol keeps a stack, so that what was before comes back; once for each time that the terminal is taken.
    if TAKEN.load(Ordering::SeqCst) && !KITTY.swap(true, Ordering::SeqCst) {
        let mut push = Vec::new();
        let flags = KeyboardEnhancementFlags::DISAMBIGUATE_ESCAPE_CODES;
        if let (Ok(()), Some(outlet)) = (queue!(push, PushKeyboardEnhancementFlags(flags)), OUTLET.get()) {
            outlet.send(&push, 0);
        }
    }
}

/// Switches all modes off, if they are on, and leaves a note. A terminal that is gone cannot be restored, so failures are
/// not told; one that takes nothing is given up after a moment.
fn restore(note: &str) {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    let mut words = Vec::new();
    let kitty = KITTY.swap(false, Ordering::SeqCst);
    let queued = queue!(words, ResetColor)
        // The alternate screen has a stack of its own.
        .and_then(|()| if kitty { queue!(words, PopKeyboardEnhancementFlags) } else { Ok(()) })
        .and_then(|()| {
            let off = (DisableFocusChange, DisableBracketedPaste, DisableMouseCapture);
            queue!(words, off.0, off.1, off.2, LeaveAlternateScreen, cursor::Show)
        });
    if !note.is_empty() {
        words.extend(format!("{note}\r\n").bytes());
    }
    if let (Ok(()), Some(outlet)) = (queued, OUTLET.get()) {
        outlet.end(&words);
    }
    let _ = terminal::disable_raw_mode();
    HELD.store(false, Ordering::SeqCst);
}

/// Whether the terminal is not as it was, for whoever has to restore it when dropping [`Screen`] cannot.
pub fn held() -> &'static AtomicBool {
    &HELD
}

/// The bytes that such a one writes: what is under way is broken off, then what dropping [`Screen`] writes.
pub fn farewell() -> Vec<u8> {
    // CAN ends a sequence that was cut.
    let mut bytes = b"\x18".to_vec();
    // Writing to memory cannot fail. Nothing is popped from a stack of keyboard flags that is empty.
    let _ = queue!(
        bytes,
        EndSynchronizedUpdate,
        DisableFocusChange,
        DisableBracketedPaste,
        DisableMouseCapture,
        PopKeyboardEnhancementFlags,
        ResetColor,
        LeaveAlternateScreen,
        cursor::Show
    );
    bytes
}

/// Stops this process as the terminal's suspend key does, and takes the terminal again when it is continued.
///
/// # Errors
/// When the terminal does not come back.
fn suspend(note: &str) -> io::Result<()> {
    restore(note);
    low_level::emulate_default_handler(SIGTSTP)?;
    take()
}

fn restore_on_panic() {
    let drawing = thread::current().id();
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().id() == drawing {
            restore("");
        } else if TAKEN.load(Ordering::SeqCst) {
            let name = thread::current().name().unwrap_or("unnamed").to_owned();
            tracing::error!("the thread '{name}' panicked: {info}");
            return;
        }
        told(info);
    }));
}

/// The user at the terminal.
#[derive(Debug)]
pub struct Keyboard {
    inputs: Receiver<Input>,
    outlet: Outlet,
    opening: Opening,
}

impl Keyboard {
    /// Reads from an [`input_queue`], writes to the terminal of a [`Screen`], while the guest may still be on its way to be
    /// opened.
    pub const fn new(inputs: Receiver<Input>, outlet: Outlet, opening: Opening) -> Self {
        Self { inputs, outlet, opening }
    }
}

impl Console for Keyboard {
    fn inputs(&self) -> &Receiver<Input> {
        &self.inputs
    }

    fn next(&mut self, _: &Situation<'_>) -> Next {
        self.opening.look().map_or_else(Next::Fail, |()| Next::Wait)
    }

    fn is_attaching(&self) -> bool {
        self.opening.is_under_way()
    }

    fn is_ready(&self) -> bool {
        self.outlet.is_ready()
    }

    fn freed(&self) -> Option<&Receiver<()>> {
        Some(self.outlet.freed())
    }

    // Terminals show what lies between the two marks at once; others ignore them.
    fn begin_frame(&mut self) {
        let _ = queue!(Sheet(self.outlet.clone()), BeginSynchronizedUpdate);
    }

    fn end_frame(&mut self) {
        let _ = queue!(Sheet(self.outlet.clone()), EndSynchronizedUpdate);
        self.outlet.submit();
    }

    fn copy(&mut self, text: &str) -> Option<Way> {
        let way = Way::new(|name| env::var(name).ok());
        self.outlet.send(&way.bytes(text), 0);
        Some(way)
    }

    fn suspend(&mut self, note: &str) -> Result<bool, String> {
        suspend(note).map(|()| true).map_err(|error| format!("cannot take the terminal again: {error}"))
    }

    fn resume(&mut self) -> Result<bool, String> {
        take().map(|()| true).map_err(|error| format!("cannot take the terminal again: {error}"))
    }
}

/// A queue for [`super::input::read`] and for signals: bounded, so that a paste of megabytes waits in the terminal.
pub fn input_queue() -> (Sender<Input>, Receiver<Input>) {
    bounded(1024)
}
