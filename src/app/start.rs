//! A run of the program around a started engine: with the user's terminal, or without.
//!
//! Whatever way a run ends, a panic of this thread included, the engine is asked to leave the guest before the
//! process goes.

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    path::Path,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender};
use ratatui::{Terminal, backend::TestBackend};

use super::{
    attaching::Opening,
    config::{self, Config},
    console::Input,
    event_loop::{Ended, Loop, Setup, leave},
    headless::{Plan, Scripted},
    history, input,
    keymap::Keymap,
    locale::{Ascii, Characters},
    screenshot::{Screenshot, Shot},
    script::Size,
    terminal::{Keyboard, Screen},
    themes::Themes,
};
use crate::{
    engine::command::{Attaching, Engine},
    ui::state::{ColorDepth, Severity, UiState},
};

/// The size of a headless screen that is not told.
const DEFAULT_SIZE: Size = Size { columns: 120, rows: 40 };

/// How long a guest may take to open before the screen comes up without it.
const OPEN_MOMENT: Duration = Duration::from_millis(500);

/// What the command line says of the screen; it goes before the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes<'a> {
    /// `--config`
    pub config: Option<&'a Path>,
    /// `--theme`
    pub theme: Option<&'a str>,
    /// `--ascii`
    pub ascii: Option<Ascii>,
    /// `--escape-time`
    pub escape_ms: Option<u64>,
    /// `--history`
    pub history_mib: Option<u32>,
    /// `--no-mouse`
    pub no_mouse: bool,
    /// `--restore`
    pub restore: bool,
    /// `--headless`
    pub headless: bool,
}

/// Reads configuration and theme.
///
/// # Errors
/// A sentence when one of them cannot be read or is wrong.
pub fn prepare(wishes: Wishes<'_>) -> Result<Setup, String> {
    let config = Config::read(wishes.config)?;
    let colors = if wishes.headless { ColorDepth::TrueColor } else { colors() };
    let mut themes = Themes::new(config::themes_folder(), colors);
    match (wishes.theme, &config.theme) {
        (Some(theme), _) => themes.choose(theme)?,
        (None, Some(theme)) => themes.choose(theme).map_err(|why| config.blame(&why))?,
        (None, None) => {}
    }
    let keymap = Keymap::new(&config.keys()).map_err(|why| config.blame(&why))?;
    let configured = config.ascii.map(|ascii| if ascii { Ascii::Always } else { Ascii::Never });
    let ascii = wishes.ascii.or(configured).unwrap_or_default();
    let Characters { ascii, only_ascii, hint } = if wishes.headless {
        // What is drawn without a terminal goes to files, which have no locale.
        Characters { ascii: ascii == Ascii::Always, ..Characters::default() }
    } else {
        Characters::new(ascii, |name| env::var(name).ok())
    };
    let mut state = UiState { colors, ascii, only_ascii, ..UiState::default() };
    if let Some(hint) = hint {
        state.notify(Severity::Info, hint);
    }
    let mouse = config.mouse && !wishes.no_mouse;
    let restore = wishes.restore || config.restore;
    let escape_time = wishes.escape_ms.or(config.escape_time).map_or(input::ESCAPE_TIME, Duration::from_millis);
    let history = wishes.history_mib.or(config.history).map_or(history::MOST_BYTES, |mib| (mib as usize) << 20);
    Ok(Setup { themes, keymap, state, mouse, restore, escape_time, history, logged: None })
}

/// How many colours the terminal says it has.
fn colors() -> ColorDepth {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let (kind, term) = (variable("COLORTERM"), variable("TERM"));
    if !variable("NO_COLOR").is_empty() || term == "dumb" {
        ColorDepth::Mono
    } else if kind == "truecolor" || kind == "24bit" || term.ends_with("-direct") {
        ColorDepth::TrueColor
    } else if term.contains("256color") {
        ColorDepth::Ansi256
    } else {
        ColorDepth::Ansi16
    }
}

/// Runs without a terminal and leaves the screenshots, also when the script fails.
///
/// # Errors
/// The first thing that went wrong, in a sentence.
pub fn headless(
    guest: impl Into<Attaching>,
    setup: Setup,
    plan: Plan,
    size: Option<Size>,
    screenshots: &[Screenshot],
    signals: Receiver<Input>,
) -> Result<(), String> {
    let (engine, mut opening) = Opening::of(guest.into());
    let guest = engine.clone();
    leaving(&guest, move || {
        if plan.ticks.is_some() {
            // Runs in virtual time are alike from their first picture on.
            opening.wait(None, &signals)?;
        }
        let size = size.unwrap_or(DEFAULT_SIZE);
        let Ok(mut terminal) = Terminal::new(TestBackend::new(size.columns, size.rows));
        let mut console = Scripted::new(plan, signals, opening);
        let mut run = Loop::new(&mut terminal, &mut console, engine, setup);
        let ended = match run.run() {
            Ok(Ended::Done) => Ok(()),
            Ok(Ended::Signal(signal)) => Err(format!("ended by {signal} before the run was over")),
            Err(why) => Err(why),
        };
        let (shown, theme) = (run.shown().clone(), run.theme().clone());
        if !console.has_seen_a_guest() {
            // There is no picture of it.
            return ended;
        }
        let shot = Shot { buffer: terminal.backend().buffer(), snapshot: &shown, theme: &theme };
        let left = screenshots.iter().try_for_each(|screenshot| screenshot.leave(&shot));
        ended.and(left)
    })
}

/// Runs on the user's terminal.
///
/// # Errors
/// A sentence when the terminal cannot be used or is lost.
pub fn dashboard(
    guest: impl Into<Attaching>,
    setup: Setup,
    signals: Receiver<Input>,
    keys: Sender<Input>,
) -> Result<(), String> {
    let (engine, mut opening) = Opening::of(guest.into());
    let guest = engine.clone();
    leaving(&guest, move || {
        // No screen comes up for a guest that cannot be opened, if that is known in a moment.
        opening.wait(Some(OPEN_MOMENT), &signals)?;
        let mut screen = Screen::open(setup.mouse)?;
        input::read(keys, screen.outlet.clone(), setup.escape_time);
        let mut keyboard = Keyboard::new(signals, screen.outlet.clone(), opening);
        // Every signal that ends a dashboard is a request to leave, which was done.
        Loop::new(&mut screen.terminal, &mut keyboard, engine, setup).run().map(|_| ())
    })
}

/// Runs and then lets the engine leave the guest, whatever happens.
fn leaving(guest: &Engine, run: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let ended = panic::catch_unwind(AssertUnwindSafe(run));
    let left = leave(guest);
    match ended {
        Ok(ended) => ended.and(left),
        Err(_) => Err("vmscope itself failed (see above); the engine was asked to leave the guest".into()),
    }
}
