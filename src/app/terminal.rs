//! The real terminal: taken, and given back on every way out.
//!
//! Raw mode, alternate screen, mouse, bracketed paste and focus reports are switched on together and off together.
//! A panic of the thread that draws gives the terminal back before it is told; a panic of any other thread is
//! logged and leaves the screen alone, because the screen goes on.

use std::{
    io::{self, IsTerminal, Stdout, Write},
    panic,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use crossterm::{
    clipboard::CopyToClipboard,
    cursor,
    event::{
        self, DisableBracketedPaste, DisableFocusChange, DisableMouseCapture, EnableBracketedPaste, EnableFocusChange,
        EnableMouseCapture,
    },
    execute, queue,
    style::ResetColor,
    terminal::{self, BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen},
};
use ratatui::{Terminal, backend::CrosstermBackend};
use signal_hook::{consts::SIGTSTP, low_level};

use super::{
    attaching::Opening,
    bounded::Bounded,
    console::{Console, Input, Next, Situation},
};

/// Whether the terminal is ours now; what [`restore`] undoes once.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// The same until all of it is undone: a terminal that takes no output may hold [`restore`] for ever.
static HELD: AtomicBool = AtomicBool::new(false);
/// Whether the mouse is wanted, each time the terminal is taken.
static MOUSE: AtomicBool = AtomicBool::new(true);

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
    pub terminal: Terminal<Bounded<CrosstermBackend<Stdout>>>,
}

impl Screen {
    /// Takes the terminal for the calling thread, which must be the one that draws; `mouse` is whether the mouse is ours
    /// too, or stays the terminal's for selecting text.
    ///
    /// # Errors
    /// A sentence when it does not take a mode.
    pub fn open(mouse: bool) -> Result<Self, String> {
        MOUSE.store(mouse, Ordering::SeqCst);
        restore_on_panic();
        take().map_err(|error| format!("cannot prepare the terminal: {error}; try another one, or --headless"))?;
        let terminal = Terminal::new(Bounded(CrosstermBackend::new(io::stdout()))).map_err(|error| {
            restore();
            format!("cannot ask the terminal for its size: {error}; try another one, or --headless")
        })?;
        Ok(Self { terminal })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Switches all modes on.
fn take() -> io::Result<()> {
    HELD.store(true, Ordering::SeqCst);
    TAKEN.store(true, Ordering::SeqCst);
    terminal::enable_raw_mode()
        .and_then(|()| {
            execute!(io::stdout(), EnterAlternateScreen, EnableBracketedPaste, EnableFocusChange)?;
            if MOUSE.load(Ordering::SeqCst) { execute!(io::stdout(), EnableMouseCapture) } else { Ok(()) }
        })
        .inspect_err(|_| restore())
}

/// Switches all modes off, if they are on. A terminal that is gone cannot be restored, so failures are not told.
fn restore() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(
            io::stdout(),
            DisableFocusChange,
            DisableBracketedPaste,
            DisableMouseCapture,
            LeaveAlternateScreen,
            cursor::Show
        );
        let _ = terminal::disable_raw_mode();
        let _ = io::stdout().flush();
        HELD.store(false, Ordering::SeqCst);
    }
}

/// Whether the terminal is not as it was, for whoever has to restore it when dropping [`Screen`] cannot.
pub fn held() -> &'static AtomicBool {
    &HELD
}

/// The bytes that such a one writes: what is under way is broken off, then what dropping [`Screen`] writes.
pub fn farewell() -> Vec<u8> {
    // CAN ends a sequence that was cut.
    let mut bytes = b"\x18".to_vec();
    // Writing to memory cannot fail.
    let _ = queue!(
        bytes,
        EndSynchronizedUpdate,
        DisableFocusChange,
        DisableBracketedPaste,
        DisableMouseCapture,
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
    restore();
    if !note.is_empty() {
        // A terminal that is gone is told by the next frame.
        let _ = writeln!(io::stdout(), "{note}");
    }
    low_level::emulate_default_handler(SIGTSTP)?;
    take()
}

fn restore_on_panic() {
    let drawing = thread::current().id();
    let told = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if thread::current().id() == drawing {
            restore();
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
    opening: Opening,
}

impl Keyboard {
    /// Reads from an [`input_queue`], while the guest may still be on its way to be opened.
    pub const fn new(inputs: Receiver<Input>, opening: Opening) -> Self {
        Self { inputs, opening }
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

    // Terminals show what lies between the two marks at once; others ignore them. A terminal that is gone is told by
    // the frame itself.
    fn begin_frame(&mut self) {
        let _ = queue!(io::stdout(), BeginSynchronizedUpdate);
    }

    fn end_frame(&mut self) {
        let _ = execute!(io::stdout(), EndSynchronizedUpdate);
    }

    fn copy(&mut self, text: &str) {
        let _ = execute!(io::stdout(), CopyToClipboard::to_clipboard_from(text));
    }

    fn suspend(&mut self, note: &str) -> Result<bool, String> {
        suspend(note).map(|()| true).map_err(|error| format!("cannot take the terminal again: {error}"))
    }

    fn resume(&mut self) -> Result<bool, String> {
        take().map(|()| true).map_err(|error| format!("cannot take the terminal again: {error}"))
    }
}

/// Keys, mouse and resizes of the terminal, read by a thread of their own for the rest of the process.
pub fn inputs(sender: Sender<Input>) {
    thread::spawn(move || {
        loop {
            let input = match event::read() {
                Ok(event) => Input::Terminal(event),
                Err(error) => Input::Lost(format!("the terminal cannot be read any more: {error}")),
            };
            let last = matches!(input, Input::Lost(_));
            if sender.send(input).is_err() || last {
                return;
            }
        }
    });
}

/// A queue for [`inputs`] and for signals: bounded, so that a paste of megabytes waits in the terminal.
pub fn input_queue() -> (Sender<Input>, Receiver<Input>) {
    bounded(1024)
}
