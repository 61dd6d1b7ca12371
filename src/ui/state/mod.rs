//! What the screen remembers between frames, as plain data.
//!
//! [`UiState`] is changed by `app::update` (one action at a time) and by [`super::rows::settle`] (once before each
//! frame); rendering only reads it. [`pane`] holds what each pane remembers, [`popup`] what lies above the panes.

pub mod memory;
pub mod pane;
pub mod popup;

use std::{fmt, time::Duration};

use tui_logger::TuiWidgetState;

pub use self::{
    memory::{FindDialog, FindKind, Found, MemoryMode, MemoryView},
    pane::{Column, Filter, PaneId, PaneState, RowKey, Sort},
    popup::{AddDialog, AddField, Ask, Candidate, Choice, Choose, Confirm, Contents, Popup, Purpose, Then},
};
use super::layout::Grip;
use crate::engine::{command::Command, snapshot::Status};

/// Everything the screen remembers.
#[derive(Debug)]
pub struct UiState {
    /// Columns and rows of the terminal, kept by the application; [`super::rows::settle`] scrolls by it.
    pub size: (u16, u16),
    /// The pane that gets the keys.
    pub focus: PaneId,
    /// Whether the focused pane has the whole screen.
    pub zoom: bool,
    /// Where the borders between the panes are.
    pub split: Split,
    /// What each pane remembers; see [`UiState::pane`].
    pub panes: [PaneState; 6],
    /// Processes as a tree (parents above their children) instead of a flat list.
    pub tree: bool,
    /// Events that repeat as one row.
    pub grouped: bool,
    /// The log pane's own state.
    pub log: LogState,
    /// What lies above the panes; the last one gets the keys.
    pub popups: Vec<Popup>,
    /// Sentences for the user, newest last; see [`UiState::notify`] and [`UiState::tick`].
    pub notices: Vec<Notice>,
    /// Breakpoints that were deleted together, the last ones last: the commands that put them back.
    pub deleted: Vec<Vec<Command>>,
    /// Whether what the user has set is kept for the next run when this one ends.
    pub kept: bool,
    /// What the mouse is in the middle of.
    pub pointer: Pointer,
    /// What was copied last, and what it is ("one row").
    pub copied: Option<Copied>,
    /// What the engine is asked for that takes longer than a moment, and for how long; kept by the application.
    pub busy: Option<String>,
    /// Set while the picture is not the newest one.
    pub past: Option<Past>,
    /// The footer's keys for the focused pane or the topmost popup, most useful first.
    pub footer: Vec<KeyHint>,
    /// Every action, in the order and the groups of the help page.
    pub help: Vec<KeyHint>,
    /// Time is virtual: nothing that depends on the wall clock is drawn.
    pub virtual_time: bool,
    /// Only ASCII characters are drawn by the program itself.
    pub ascii: bool,
    /// Only ASCII characters are drawn at all, whatever names the guest has: the terminal takes no others.
    pub only_ascii: bool,
    /// How many colours the terminal has.
    pub colors: ColorDepth,
}

/// A text that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// What it is, in words.
    pub what: String,
    /// The text.
    pub text: String,
}

impl Default for UiState {
    fn default() -> Self {
        Self {
            size: (80, 24),
            focus: PaneId::Processes,
            zoom: false,
            split: Split::default(),
            panes: PaneId::ALL.map(PaneState::new),
            tree: false,
            grouped: true,
            log: LogState::default(),
            popups: Vec::new(),
            notices: Vec::new(),
            deleted: Vec::new(),
            kept: false,
            pointer: Pointer::default(),
            copied: None,
            busy: None,
            past: None,
            footer: Vec::new(),
            help: Vec::new(),
            virtual_time: false,
            ascii: false,
            only_ascii: false,
            colors: ColorDepth::TrueColor,
        }
    }
}

impl UiState {
    /// What a pane remembers.
    pub fn pane(&self, id: PaneId) -> &PaneState {
        let [processes, breakpoints, tables, faults, events, log] = &self.panes;
        match id {
            PaneId::Processes => processes,
            PaneId::Breakpoints => breakpoints,
            PaneId::Tables => tables,
            PaneId::Faults => faults,
            PaneId::Events => events,
            PaneId::Log => log,
        }
    }

    /// What a pane remembers, to change it.
    pub fn pane_mut(&mut self, id: PaneId) -> &mut PaneState {
        let [processes, breakpoints, tables, faults, events, log] = &mut self.panes;
        match id {
            PaneId::Processes => processes,
            PaneId::Breakpoints => breakpoints,
            PaneId::Tables => tables,
            PaneId::Faults => faults,
            PaneId::Events => events,
            PaneId::Log => log,
        }
    }

    /// Whether a pane's list has a shape of its own: a tree of processes, bursts of events.
    pub const fn shaped(&self, pane: PaneId) -> bool {
        match pane {
            PaneId::Processes => self.tree,
            PaneId::Events => self.grouped,
            _ => false,
        }
    }

    /// What the focused pane remembers.
    pub fn focused(&self) -> &PaneState {
        self.pane(self.focus)
    }

    /// What the focused pane remembers, to change it.
    pub fn focused_mut(&mut self) -> &mut PaneState {
        self.pane_mut(self.focus)
    }

    /// Shows a sentence for a while; the same sentence again only starts its time anew.
    pub fn notify(&mut self, severity: Severity, text: impl Into<String>) {
        let text = text.into();
        self.notices.retain(|notice| notice.text != text);
        self.notices.push(Notice { text, severity, ticks_left: severity.ticks(), logged: false, passing: false });
        let surplus = self.notices.len().saturating_sub(Notice::KEPT);
        self.notices.drain(..surplus);
    }

    /// Says something of no more than this moment: the next such word takes its place, and the log does not keep it.
    pub fn remark(&mut self, text: impl Into<String>) {
        self.notices.retain(|notice| !notice.passing);
        self.notify(Severity::Info, text);
        if let Some(notice) = self.notices.last_mut() {
            (notice.logged, notice.passing) = (true, true);
        }
    }

    /// Lets notices fade by one tick (a tenth of a second); answers whether one disappeared.
    pub fn tick(&mut self) -> bool {
        let before = self.notices.len();
        for notice in &mut self.notices {
            notice.ticks_left = notice.ticks_left.saturating_sub(1);
        }
        self.notices.retain(|notice| notice.ticks_left > 0);
        self.notices.len() != before
    }
}

/// Where the borders between the panes are, in percent of the room for panes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Width of the left column, 10 to 90.
    pub left: u16,
    /// Height of the first row, 10 to 80.
    pub first: u16,
    /// Height of the second row, 10 to 80.
    pub second: u16,
}

impl Default for Split {
    fn default() -> Self {
        Self { left: 48, first: 38, second: 28 }
    }
}

/// What the mouse is in the middle of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pointer {
    /// When and where it was clicked last: a second click there soon after makes it a double click.
    pub clicked: Option<(Duration, u16, u16)>,
    /// The borders that are being dragged.
    pub grip: Option<Grip>,
}

/// The state of `tui-logger`'s widget: shown levels and targets, and how far it is scrolled back.
#[derive(Default)]
pub struct LogState {
    /// Events such as `TuiWidgetEvent::PrevPageKey` go here.
    pub widget: TuiWidgetState,
    /// Whether the list of targets is shown beside the lines.
    pub targets: bool,
    /// Pages that the lines are scrolled back; 0 while they follow the newest one.
    pub pages_back: usize,
}

impl fmt::Debug for LogState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogState").field("targets", &self.targets).finish_non_exhaustive()
    }
}

/// How serious a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something was done as asked.
    Info,
    /// Something needs attention.
    Warning,
    /// Something that was asked for could not be done.
    Error,
}

impl Severity {
    /// How many ticks such a notice stays: errors are read slowly.
    const fn ticks(self) -> u16 {
        match self {
            Self::Info => 40,
            Self::Warning => 70,
            Self::Error => 100,
        }
    }
}

/// A sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The sentence.
    pub text: String,
    /// How serious it is.
    pub severity: Severity,
    /// Ticks until it disappears.
    pub ticks_left: u16,
    /// Whether the log has it; it stays there.
    pub logged: bool,
    /// Whether the next one like it takes its place.
    pub passing: bool,
}

impl Notice {
    /// No more than this many are kept.
    pub const KEPT: usize = 8;
}

/// The picture on the screen is not the newest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// How much older than the newest picture it is, in nanoseconds on the snapshot's clock.
    pub behind_ns: u64,
    /// How the guest is now, in the newest picture.
    pub status_now: Status,
    /// Pictures back from where the view was frozen; 0 when only frozen.
    pub steps_back: usize,
    /// How many pictures back there are.
    pub steps_kept: usize,
}

/// One action as the screen shows it: in the footer, on the help page, in the palette.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyHint {
    /// The action's name in the configuration ("toggle-breakpoint").
    pub name: String,
    /// Its keys as shown ("space", "ctrl-p"), empty when it has none.
    pub key: String,
    /// A word or two for the footer ("toggle").
    pub label: String,
    /// One line for help page and palette.
    pub doc: String,
    /// Heading on the help page ("Breakpoints").
    pub group: String,
    /// Why it cannot be used now; `None` when it can.
    pub why_not: Option<String>,
}

impl KeyHint {
    /// Whether it can be used now.
    pub const fn enabled(&self) -> bool {
        self.why_not.is_none()
    }
}

/// How many colours the terminal has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ColorDepth {
    /// None (`NO_COLOR`, a monochrome terminal): attributes only.
    Mono,
    /// The 16 ANSI colours, as the user's terminal defines them.
    Ansi16,
    /// The 256-colour palette.
    Ansi256,
    /// 24 bits.
    #[default]
    TrueColor,
}
