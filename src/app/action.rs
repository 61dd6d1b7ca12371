//! The one table of what a user can do.
//!
//! A key, its footer label, its line in the help, its palette entry, its name in a configuration and its
//! documentation (`docs/keys.md`) all come from [`ACTIONS`]. What an action does is in [`super::update`].

use std::fmt::Write;

use crate::{
    engine::snapshot::{Capability, Snapshot, Status, StoppedBy, WayOn},
    ui::state::PaneId,
};

/// Where the focus is: what keys can mean depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// One of the panes.
    Pane(PaneId),
    /// A popup that is read, not typed into.
    Popup,
    /// The memory view.
    Memory,
}

impl Place {
    /// How the documentation calls it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Pane(pane) => pane.title(),
            Self::Popup => "Popups",
            Self::Memory => "Memory",
        }
    }
}

const PROCESSES: Place = Place::Pane(PaneId::Processes);
const BREAKPOINTS: Place = Place::Pane(PaneId::Breakpoints);
const TABLES: Place = Place::Pane(PaneId::Tables);
const FAULTS: Place = Place::Pane(PaneId::Faults);
const EVENTS: Place = Place::Pane(PaneId::Events);
const LOG: Place = Place::Pane(PaneId::Log);
const POPUP: Place = Place::Popup;
const MEMORY: Place = Place::Memory;

const EVERYWHERE: &[Place] = &[PROCESSES, BREAKPOINTS, TABLES, FAULTS, EVENTS, LOG, POPUP, MEMORY];
/// Every pane.
pub(super) const PANES: &[Place] = &[PROCESSES, BREAKPOINTS, TABLES, FAULTS, EVENTS, LOG];
/// Where something with an address can be selected.
const ADDRESSES: &[Place] = &[PROCESSES, BREAKPOINTS, TABLES, FAULTS, EVENTS, POPUP];
const LISTS: &[Place] = &[PROCESSES, BREAKPOINTS, TABLES, FAULTS, EVENTS];

/// Lists, and the rows of memory.
const COPIED: &[Place] = &[PROCESSES, BREAKPOINTS, TABLES, FAULTS, EVENTS, MEMORY];

/// Something that a user can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the table below says what each one is")]
pub enum Action {
    Down,
    Up,
    PageDown,
    PageUp,
    Home,
    End,
    FocusProcesses,
    FocusBreakpoints,
    FocusTables,
    FocusFaults,
    FocusEvents,
    FocusLog,
    FocusNext,
    FocusPrevious,
    Zoom,
    ResetLayout,
    Detail,
    Close,
    Toggle,
    Add,
    Delete,
    InjectFault,
    SuppressFault,
    RetryFault,
    ClearFault,
    RequestPage,
    Filter,
    ClearFilter,
    Sort,
    SortReverse,
    Tree,
    GroupEvents,
    Mark,
    MarkAll,
    InvertMarks,
    Undo,
    Memory,
    MemoryHere,
    PageWalk,
    Left,
    Right,
    Follow,
    MemoryBack,
    GoTo,
    MemoryMode,
    Search,
    SearchNext,
    SearchPrevious,
    AskPage,
    CloseMemory,
    LogTargets,
    LogMore,
    LogLess,
    Copy,
    CopyCell,
    CopyPane,
    SaveCopied,
    Export,
    Theme,
    ReloadTheme,
    SaveState,
    PauseGuest,
    Step,
    Freeze,
    Back,
    Forward,
    FarBack,
    FarForward,
    Refresh,
    Help,
    Palette,
    Redraw,
    Suspend,
    Quit,
}

/// One line of the table.
#[derive(Debug)]
pub struct Entry {
    /// The action.
    pub action: Action,
    /// Its name in a configuration.
    pub name: &'static str,
    /// Its keys by default, the first one is shown.
    pub keys: &'static [&'static str],
    /// Its label in the footer.
    pub short: &'static str,
    /// Its line in the help, the palette and the documentation.
    pub doc: &'static str,
    /// Where it can be done.
    pub places: &'static [Place],
    /// What the driver must be able to do.
    pub needs: Option<Capability>,
    /// Whether it changes the guest, which a read-only run forbids.
    pub changes_guest: bool,
    /// Whether the footer shows it; the order there is the order here.
    pub footer: bool,
}

impl Entry {
    /// Whether the action is possible at all in this guest; the answer's error says why not.
    pub fn available(&self, snapshot: &Snapshot) -> Result<(), String> {
        if self.changes_guest && snapshot.read_only {
            return Err(format!("{}: not in a read-only run; start vmscope without --read-only for it", self.name));
        }
        if let Some(capability) = self.needs {
            snapshot.can(capability).map_err(|why| format!("{}: {why}", self.name))?;
        }
        // A pause of ours can always be taken back, whatever has become of the guest meanwhile.
        match snapshot.run.state.way_on() {
            WayOn::Refused(why)
                if self.action == Action::PauseGuest
                    && matches!(snapshot.status, Status::Paused | Status::Attaching)
                    && snapshot.run.stopped_by != Some(StoppedBy::Us) =>
            {
                Err(format!("{}: {why}", self.name))
            }
            _ => Ok(()),
        }
    }

    /// Its label in the footer: what it would do to a guest that is like this.
    pub fn label(&self, snapshot: &Snapshot) -> &'static str {
        let stands = matches!(snapshot.status, Status::Paused | Status::Attaching) && !snapshot.run.is_running();
        match snapshot.run.state.way_on() {
            _ if self.action != Action::PauseGuest || !stands => self.short,
            WayOn::Start => "start guest",
            WayOn::Wake => "wake guest",
            _ => "resume guest",
        }
    }
}

const fn entry(
    action: Action,
    name: &'static str,
    keys: &'static [&'static str],
    short: &'static str,
    doc: &'static str,
    places: &'static [Place],
) -> Entry {
    Entry { action, name, keys, short, doc, places, needs: None, changes_guest: false, footer: false }
}

impl Entry {
    const fn needs(mut self, capability: Capability) -> Self {
        self.needs = Some(capability);
        self
    }

    const fn changes_guest(mut self) -> Self {
        self.changes_guest = true;
        self
    }

    const fn in_footer(mut self) -> Self {
        self.footer = true;
        self
    }
}

/// Everything that can be done, in the order of help, palette and documentation.
#[rustfmt::skip]
pub const ACTIONS: &[Entry] = &[
    entry(Action::Toggle, "toggle", &["space"], "toggle", "Take the breakpoint out of the guest and keep its row, or put it back", &[BREAKPOINTS])
        .needs(Capability::Breakpoints).changes_guest().in_footer(),
    entry(Action::InjectFault, "inject-fault", &["i"], "inject", "Inject a page fault into the process, so that the guest's kernel brings the page in", &[FAULTS])
        .needs(Capability::FaultInjection).changes_guest().in_footer(),
    entry(Action::SuppressFault, "suppress-fault", &["x"], "suppress", "Never ask for this page again", &[FAULTS]).in_footer(),
    entry(Action::RetryFault, "retry-fault", &["r"], "retry", "Ask once more for a page that was suppressed", &[FAULTS]).in_footer(),
    entry(Action::ClearFault, "clear-fault", &["c"], "clear", "Forget this fault", &[FAULTS]).in_footer(),
    entry(Action::RequestPage, "request-page", &["g"], "request", "Ask for a page by symbol or address", &[FAULTS]).in_footer(),
    entry(Action::Add, "add", &["a"], "add", "Set a breakpoint, or watch an address, by symbol or address", &[BREAKPOINTS, TABLES])
        .in_footer(),
    entry(Action::Delete, "delete", &["d", "delete"], "delete", "Take the breakpoint out, or stop watching the address, and forget it", &[BREAKPOINTS, TABLES])
        .in_footer(),
    entry(Action::Detail, "detail", &["enter"], "detail", "Show everything about the selected row", LISTS).in_footer(),
    entry(Action::Filter, "filter", &["/"], "filter", "Show only rows that match a regular expression", LISTS).in_footer(),
    entry(Action::Sort, "sort", &["s"], "sort", "Choose the column to sort by", LISTS).in_footer(),
    entry(Action::Tree, "tree", &["t"], "tree", "Show processes as a tree or as a flat list", &[PROCESSES]).in_footer(),
    entry(Action::GroupEvents, "group-events", &["g"], "group", "Show events that repeat as one row, or each one by itself", &[EVENTS]).in_footer(),
    entry(Action::LogTargets, "log-targets", &["t"], "targets", "List the parts of the program that log, to choose one", &[LOG]).in_footer(),
    entry(Action::LogMore, "log-more", &["+"], "more", "Show more of the chosen part's log", &[LOG]).in_footer(),
    entry(Action::LogLess, "log-less", &["-"], "less", "Show less of the chosen part's log", &[LOG]).in_footer(),
    entry(Action::Follow, "follow", &["enter", "o"], "follow", "Go where the word or the instruction under the cursor points to", &[MEMORY]).in_footer(),
    entry(Action::MemoryBack, "memory-back", &["backspace"], "back", "Go back to where the last jump began", &[MEMORY]).in_footer(),
    entry(Action::GoTo, "go-to", &["g"], "go to", "Go to a symbol, an address or a register, @PID for another process", &[MEMORY]).in_footer(),
    entry(Action::MemoryMode, "memory-mode", &["tab"], "view", "Show bytes, instructions or the page walk", &[MEMORY]).in_footer(),
    entry(Action::Search, "search", &["/"], "search", "Search memory for bytes, text or a pointer, from the cursor on", &[MEMORY]).in_footer(),
    entry(Action::SearchNext, "search-next", &["n"], "next", "Go to the next match", &[MEMORY]).in_footer(),
    entry(Action::SearchPrevious, "search-previous", &["N"], "previous", "Go to the match before", &[MEMORY]),
    entry(Action::AskPage, "ask-page", &["r"], "request", "Ask for the missing page under the cursor", &[MEMORY]).in_footer(),
    entry(Action::CloseMemory, "close-memory", &["esc", "q"], "close", "Give up the search that is under way, else close the view", &[MEMORY]).in_footer(),
    entry(Action::Left, "left", &["h", "left"], "left", "One byte back", &[MEMORY]),
    entry(Action::Right, "right", &["l", "right"], "right", "One byte on", &[MEMORY]),
    entry(Action::PauseGuest, "pause-guest", &["p"], "pause guest", "Stop the guest's processors, or let them run, whoever has stopped them", EVERYWHERE)
        .needs(Capability::Pause).changes_guest().in_footer(),
    entry(Action::Step, "step", &["n", "f10"], "step", "Run one instruction of a busy processor while the guest is paused", EVERYWHERE)
        .needs(Capability::Step).changes_guest(),
    entry(Action::Freeze, "freeze", &["f"], "freeze view", "Hold the picture still while the guest runs on", EVERYWHERE).in_footer(),
    entry(Action::Help, "help", &["?", "f1"], "help", "List all keys", EVERYWHERE).in_footer(),
    entry(Action::Palette, "palette", &[":", "ctrl-p"], "palette", "Find an action by its name", EVERYWHERE).in_footer(),
    entry(Action::Close, "close", &["esc", "q", "enter"], "close", "Close the popup", &[POPUP]).in_footer(),
    entry(Action::Quit, "quit", &["q", "ctrl-c"], "quit", "Take everything out of the guest and leave", EVERYWHERE).in_footer(),
    entry(Action::FocusProcesses, "focus-processes", &["1"], "processes", "Go to the processes", PANES),
    entry(Action::FocusBreakpoints, "focus-breakpoints", &["2"], "breakpoints", "Go to the breakpoints", PANES),
    entry(Action::FocusTables, "focus-tables", &["3"], "tables", "Go to the page tables", PANES),
    entry(Action::FocusFaults, "focus-faults", &["4"], "faults", "Go to the faults", PANES),
    entry(Action::FocusEvents, "focus-events", &["5"], "events", "Go to the events", PANES),
    entry(Action::FocusLog, "focus-log", &["6"], "log", "Go to the log", PANES),
    entry(Action::FocusNext, "focus-next", &["tab"], "next pane", "Go to the next pane", PANES),
    entry(Action::FocusPrevious, "focus-previous", &["shift-tab"], "previous pane", "Go to the previous pane", PANES),
    entry(Action::Zoom, "zoom", &["z"], "zoom", "Give the whole screen to one pane, or share it again", PANES),
    entry(Action::ResetLayout, "reset-layout", &["="], "reset layout", "Put the borders between the panes back where they were", PANES),
    entry(Action::Down, "down", &["j", "down"], "down", "One row down", EVERYWHERE),
    entry(Action::Up, "up", &["k", "up"], "up", "One row up", EVERYWHERE),
    entry(Action::PageDown, "page-down", &["pgdn", "ctrl-f"], "page down", "One page down", EVERYWHERE),
    entry(Action::PageUp, "page-up", &["pgup", "ctrl-b"], "page up", "One page up", EVERYWHERE),
    entry(Action::Home, "home", &["home"], "first", "To the first row", EVERYWHERE),
    entry(Action::End, "end", &["end", "G"], "last", "To the last row; in the events, follow the newest", EVERYWHERE),
    entry(Action::ClearFilter, "clear-filter", &["esc"], "all rows", "Show all rows again, unmarked", LISTS),
    entry(Action::SortReverse, "sort-reverse", &["S"], "reverse", "Turn the sort order round", LISTS),
    entry(Action::Mark, "mark", &["v"], "mark", "Mark the row, so that the next action is for all marked rows", LISTS),
    entry(Action::MarkAll, "mark-all", &["V"], "mark all", "Mark all rows that are shown, or none when all are", LISTS),
    entry(Action::InvertMarks, "invert-marks", &["*"], "invert", "Mark the rows that are not marked, and the other way round", LISTS),
    entry(Action::Undo, "undo", &["u"], "undo", "Put back the breakpoints that were deleted last, with scope, tag and state", &[BREAKPOINTS])
        .needs(Capability::Breakpoints).changes_guest(),
    entry(Action::Memory, "memory", &["m"], "memory", "Look at memory and its instructions by symbol, address or register; the selected row's with enter alone", PANES)
        .needs(Capability::Read),
    entry(Action::MemoryHere, "memory-here", &["M"], "memory", "Look at the memory at the address of the selected row or of the popup", ADDRESSES)
        .needs(Capability::Read),
    entry(Action::PageWalk, "page-walk", &["w"], "page walk", "Walk the page tables of the address of the selected row, of the popup, or under the cursor", &[PROCESSES, BREAKPOINTS, TABLES, FAULTS, EVENTS, POPUP, MEMORY])
        .needs(Capability::Read),
    entry(Action::Copy, "copy", &["y"], "copy", "Send the selected row to the terminal's clipboard, also over ssh; whether it takes it, it does not say", COPIED),
    entry(Action::CopyCell, "copy-cell", &["ctrl-y"], "copy cell", "Send one cell of the selected row to the terminal's clipboard", LISTS),
    entry(Action::CopyPane, "copy-pane", &["Y"], "copy pane", "Send all rows that the pane shows to the terminal's clipboard", COPIED),
    entry(Action::SaveCopied, "save-copied", &["W"], "save copied", "Write what was copied last to a file, for a terminal that takes no clipboard or not so much", COPIED),
    entry(Action::Export, "export", &["e"], "export", "Write the screen to a file: .txt, .ansi, .svg, .png, or .json for the snapshot itself", PANES),
    entry(Action::Theme, "theme", &["T"], "theme", "Choose the colours, shown while choosing", PANES),
    entry(Action::ReloadTheme, "reload-theme", &[], "reload theme", "Read the theme's file again", PANES),
    entry(Action::SaveState, "save-state", &["ctrl-s"], "save state", "Keep breakpoints, filters, order, layout and theme for the next run with --restore", PANES),
    entry(Action::Back, "back", &["["], "back", "Look at an earlier picture: up to five minutes of them, as far as 64 MiB hold them (--history)", EVERYWHERE),
    entry(Action::Forward, "forward", &["]"], "forward", "Look at a later picture, in the end at the live one", EVERYWHERE),
    entry(Action::FarBack, "far-back", &["{"], "minute back", "Look at the picture of a minute before", EVERYWHERE),
    entry(Action::FarForward, "far-forward", &["}"], "minute on", "Look at the picture of a minute later, in the end at the live one", EVERYWHERE),
    entry(Action::Refresh, "refresh", &["ctrl-r"], "refresh", "Read everything from the guest again now", EVERYWHERE),
    entry(Action::Redraw, "redraw", &["ctrl-l"], "redraw", "Draw the whole screen again", EVERYWHERE),
    entry(Action::Suspend, "suspend", &["ctrl-z"], "suspend", "Go to the shell; fg comes back", EVERYWHERE),
];

impl Action {
    /// Its line of the table.
    pub fn entry(self) -> &'static Entry {
        // The table holds every action (a test sees to it), so the first line is never the answer by accident.
        ACTIONS.iter().find(|entry| entry.action == self).unwrap_or(&ACTIONS[0])
    }
}

/// The text of `docs/keys.md`.
pub fn keys_document() -> String {
    let mut text = String::from(
        "# Keys\n\nGenerated from the table of actions in `src/app/action.rs`. The name is what a configuration's \
         `[keys]` section and the palette (`:`) know the action by.\n\n| Key | Name | What it does | Where |\n|---|---|---|---|\n",
    );
    for entry in ACTIONS {
        let keys: Vec<String> = entry.keys.iter().map(|key| format!("`{key}`")).collect();
        let places = if entry.places.len() == EVERYWHERE.len() {
            "everywhere".to_owned()
        } else if entry.places == PANES {
            "every pane".to_owned()
        } else {
            entry.places.iter().map(|place| place.title()).collect::<Vec<_>>().join(", ")
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} | `{}` | {} | {places} |", keys.join(" "), entry.name, entry.doc);
    }
    text.push_str(
        "\nWhile text is typed (filter, symbol, help, palette): `enter` takes it, `tab` takes the completion, \
         `up` and `down` choose, `esc` gives it up.\n",
    );
    text
}
