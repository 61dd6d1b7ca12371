//! What an action or a key does to the state of the screen, and what it asks of the world.
//!
//! Everything here is pure: no clock, no file, no terminal, no engine. What must happen outside is answered as
//! [`Effect`]s, which only the loop carries out. Here are the panes, with `moving` in them; [`popup`] has what is typed
//! and chosen above them, [`memory`] the memory view, [`hints`] the footer and the help.

pub mod choose;
mod copy;
mod dump;
mod find;
pub mod hints;
mod marks;
pub mod memory;
pub mod mouse;
mod moving;
pub mod popup;

use crokey::KeyCombination;
use tui_logger::TuiWidgetEvent;

use super::{
    action::{Action, Entry, Place},
    keymap::{self, Keymap},
};
use crate::{
    engine::{
        command::{Command, Subject},
        snapshot::{BreakpointState, Capability, Event, Snapshot, Status, VcpuId},
    },
    ui::{
        rows,
        state::{AddDialog, Confirm, MemoryMode, PaneId, Popup, Purpose, RowKey, Severity, Split, Then, UiState},
    },
};

/// What the loop is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send a command to the engine.
    Send(Command),
    /// Send the command of a dialog; a refusal opens the dialog again with what was entered.
    SendFrom(Command, Box<Draft>),
    /// Send text to the clipboard, and say what came of it.
    Copy(String),
    /// Hold the picture still, or let it go on.
    Freeze,
    /// Show an earlier picture.
    Back,
    /// Show a later picture.
    Forward,
    /// Show the picture of a minute before.
    FarBack,
    /// Show the picture of a minute later.
    FarForward,
    /// Draw every cell again.
    Redraw,
    /// Go to the shell for a while.
    Suspend,
    /// Let a theme be chosen among those that there are.
    ChooseTheme,
    /// Use the theme of this name.
    Theme(String),
    /// Read the theme's file again.
    ReloadTheme,
    /// Write the screen to this file, in the form that its extension says.
    Export {
        /// The path as it was typed.
        file: String,
        /// Whether a file that is there already is written anew.
        overwrite: bool,
    },
    /// Write what was copied last to this file.
    SaveCopied {
        /// The path as it was typed.
        file: String,
        /// Whether a file that is there already is written anew.
        overwrite: bool,
    },
    /// Keep what the user has set for the next run.
    SaveState,
    /// End the program.
    Leave,
}

/// A dialog that was sent off.
#[derive(Clone, Debug)]
pub struct Draft(pub AddDialog);

impl PartialEq for Draft {
    fn eq(&self, other: &Self) -> bool {
        self.0.purpose == other.0.purpose && self.0.place.value() == other.0.place.value()
    }
}

/// Where keys go now.
pub fn place(state: &UiState) -> Place {
    match state.popups.last() {
        None => Place::Pane(state.focus),
        Some(Popup::Memory(_)) => Place::Memory,
        Some(_) => Place::Popup,
    }
}

/// A key was pressed.
pub fn key(state: &mut UiState, snapshot: &Snapshot, keymap: &Keymap, key: KeyCombination) -> Vec<Effect> {
    if let Some(effects) = popup::key(state, snapshot, keymap, key) {
        return effects;
    }
    match keymap.lookup(key, place(state)) {
        Some(entry) => update(state, snapshot, entry.action),
        None => means_nothing(state, keymap, key),
    }
}

/// Says why a key does nothing: what it is for is elsewhere, or it is for nothing.
fn means_nothing(state: &mut UiState, keymap: &Keymap, key: KeyCombination) -> Vec<Effect> {
    let why = match keymap.elsewhere(key) {
        Some(entry) => format!("{} {}", entry.name, hints::elsewhere(entry)),
        None => {
            let help = keymap.keys_of(Action::Help).next();
            let help = help.map_or_else(String::new, |help| format!("; {help} lists all keys"));
            format!("{} is no key of any action{help}", keymap::name(key))
        }
    };
    state.remark(why);
    Vec::new()
}

/// An action was asked for by key, palette or mouse.
pub fn update(state: &mut UiState, snapshot: &Snapshot, action: Action) -> Vec<Effect> {
    let entry = action.entry();
    if let Err(why) = possible(entry, state, snapshot) {
        state.notify(Severity::Warning, why);
        return Vec::new();
    }
    if let Some(effects) = memory::act(state, snapshot, action) {
        return effects;
    }
    match action {
        Action::Down => moving::step(state, snapshot, 1),
        Action::Up => moving::step(state, snapshot, -1),
        Action::PageDown => moving::page(state, snapshot, 1),
        Action::PageUp => moving::page(state, snapshot, -1),
        Action::Home => moving::edge(state, snapshot, false),
        Action::End => moving::edge(state, snapshot, true),
        Action::FocusProcesses => focus(state, PaneId::Processes),
        Action::FocusBreakpoints => focus(state, PaneId::Breakpoints),
        Action::FocusTables => focus(state, PaneId::Tables),
        Action::FocusFaults => focus(state, PaneId::Faults),
        Action::FocusEvents => focus(state, PaneId::Events),
        Action::FocusLog => focus(state, PaneId::Log),
        Action::FocusNext => focus(state, state.focus.next()),
        Action::FocusPrevious => focus(state, state.focus.previous()),
        Action::Zoom => {
            state.zoom = !state.zoom;
            Vec::new()
        }
        Action::ResetLayout => {
            state.split = Split::default();
            Vec::new()
        }
        Action::Detail => detail(state, snapshot),
        Action::Close => popup::close(state),
        Action::Toggle | Action::Delete => marks::on_rows(state, snapshot, action),
        Action::InjectFault | Action::SuppressFault | Action::RetryFault | Action::ClearFault => {
            marks::on_rows(state, snapshot, action)
        }
        Action::Add => add(state, snapshot),
        Action::RequestPage => ask(state, snapshot, Purpose::Page),
        Action::Memory | Action::GoTo => ask(state, snapshot, Purpose::Memory),
        Action::MemoryHere => memory_here(state, snapshot, MemoryMode::Bytes),
        Action::PageWalk => memory_here(state, snapshot, MemoryMode::Walk),
        // Everything else that the memory view knows was done above.
        Action::Left
        | Action::Right
        | Action::Follow
        | Action::MemoryBack
        | Action::MemoryMode
        | Action::Search
        | Action::SearchNext
        | Action::SearchPrevious
        | Action::AskPage
        | Action::CloseMemory => Vec::new(),
        Action::Filter => {
            let before = state.focused().filter.text().to_owned();
            let input = before.clone().into();
            state.popups.push(Popup::Filter { pane: state.focus, input, before });
            Vec::new()
        }
        Action::ClearFilter => {
            let pane = state.focused_mut();
            pane.filter.set("");
            pane.marks.clear();
            Vec::new()
        }
        Action::Mark => marks::mark(state, snapshot),
        Action::MarkAll => marks::mark_all(state, snapshot, false),
        Action::InvertMarks => marks::mark_all(state, snapshot, true),
        Action::Undo => marks::undo(state),
        Action::Sort => {
            let pane = state.focused();
            let chosen = rows::columns(pane.id).iter().position(|column| column.id == pane.sort.column).unwrap_or(0);
            state.popups.push(Popup::Sort { pane: state.focus, chosen });
            Vec::new()
        }
        Action::SortReverse => {
            let pane = state.focused_mut();
            pane.sort.descending = !pane.sort.descending;
            Vec::new()
        }
        Action::Tree => {
            state.tree = !state.tree;
            Vec::new()
        }
        Action::GroupEvents => {
            state.grouped = !state.grouped;
            Vec::new()
        }
        Action::LogTargets => {
            state.log.targets = !state.log.targets;
            Vec::new()
        }
        Action::LogMore => log_level(state, TuiWidgetEvent::RightKey),
        Action::LogLess => log_level(state, TuiWidgetEvent::LeftKey),
        Action::Copy => copy::marked(state, snapshot),
        Action::CopyCell => copy::choose_cell(state, snapshot),
        Action::CopyPane => copy::pane(state, snapshot),
        Action::SaveCopied => choose::ask_for_copied_file(state, snapshot),
        Action::Export => choose::ask_for_file(state, snapshot),
        Action::Theme => vec![Effect::ChooseTheme],
        Action::ReloadTheme => vec![Effect::ReloadTheme],
        Action::SaveState => vec![Effect::SaveState],
        Action::PauseGuest => pause(state, snapshot),
        Action::Step => single_step(state, snapshot),
        Action::Freeze => vec![Effect::Freeze],
        Action::Back => vec![Effect::Back],
        Action::Forward => vec![Effect::Forward],
        Action::FarBack => vec![Effect::FarBack],
        Action::FarForward => vec![Effect::FarForward],
        Action::Refresh => vec![Effect::Send(Command::Refresh)],
        Action::Redraw => vec![Effect::Redraw],
        Action::Suspend => vec![Effect::Suspend],
        Action::Help => {
            state.popups.push(Popup::Help { search: Default::default(), scroll: 0 });
            Vec::new()
        }
        Action::Palette => {
            let found = (0..state.help.len()).collect();
            state.popups.push(Popup::Palette { input: Default::default(), found, chosen: 0 });
            Vec::new()
        }
        Action::Quit => quit(state, snapshot),
    }
}

/// Whether an action can be done here and now; the answer's error is the sentence to show.
fn possible(entry: &Entry, state: &UiState, snapshot: &Snapshot) -> Result<(), String> {
    let here = place(state);
    if !entry.places.contains(&here) {
        return Err(format!("{} {}", entry.name, hints::elsewhere(entry)));
    }
    entry.available(snapshot)
}

fn focus(state: &mut UiState, pane: PaneId) -> Vec<Effect> {
    state.focus = pane;
    Vec::new()
}

/// Shows more or less of the chosen target's lines; the targets are shown, so that one can be chosen.
fn log_level(state: &mut UiState, event: TuiWidgetEvent) -> Vec<Effect> {
    if state.log.targets {
        state.log.widget.transition(event);
    }
    state.log.targets = true;
    Vec::new()
}

fn detail(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    let subject = match state.focused().selected {
        Some(RowKey::Process(pid, _)) => Subject::Process(pid),
        Some(RowKey::Breakpoint(id)) => Subject::Breakpoint(id),
        Some(RowKey::Table(id)) => Subject::Table(id),
        Some(RowKey::Fault(id)) => Subject::Fault(id),
        Some(selected @ RowKey::Event(_)) => {
            let pane = state.focused();
            let row = rows::row_of(snapshot, pane, selected);
            let mut events: Vec<Event> =
                row.map_or_else(Vec::new, |row| rows::events_of(snapshot, pane, row).into_iter().cloned().collect());
            if events.len() > 1 {
                state.popups.push(Popup::Burst { events, scroll: 0 });
            } else if let Some(event) = events.pop() {
                state.popups.push(Popup::Event { event, scroll: 0 });
            }
            return Vec::new();
        }
        None => return nothing_selected(state),
    };
    state.popups.push(Popup::detail(subject.clone()));
    vec![Effect::Send(Command::Inspect(Some(subject)))]
}

fn add(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    let (purpose, able) = match state.focus {
        PaneId::Tables => {
            let by_event = snapshot.can(Capability::TableWrites);
            (Purpose::Watch, by_event.or_else(|why| snapshot.can(Capability::TablePolling).map_err(|_| why)))
        }
        _ if snapshot.read_only => {
            (Purpose::Breakpoint, Err("not in a read-only run; start vmscope without --read-only for it"))
        }
        _ => (Purpose::Breakpoint, snapshot.can(Capability::Breakpoints)),
    };
    if let Err(why) = able {
        let text = format!("add: {why}");
        state.notify(Severity::Warning, text);
        return Vec::new();
    }
    ask(state, snapshot, purpose)
}

/// Looks at the memory of what is selected.
fn memory_here(state: &mut UiState, snapshot: &Snapshot, mode: MemoryMode) -> Vec<Effect> {
    match memory::selected_address(state, snapshot) {
        Some((pid, va)) => memory::open(state, pid, va, mode),
        None => {
            let action = if mode == MemoryMode::Walk { "page-walk" } else { "memory-here" };
            refuse(state, &format!("{action}: nothing with an address is selected; m asks for one"))
        }
    }
}

/// Opens the dialog that asks for a place.
fn ask(state: &mut UiState, snapshot: &Snapshot, purpose: Purpose) -> Vec<Effect> {
    let dialog = popup::dialog(state, snapshot, purpose);
    state.popups.push(Popup::Add(dialog));
    Vec::new()
}

/// How the guest is now, even while an older picture is shown.
fn status_now(state: &UiState, snapshot: &Snapshot) -> Status {
    state.past.map_or(snapshot.status, |past| past.status_now)
}

fn pause(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    match status_now(state, snapshot) {
        Status::Running => vec![Effect::Send(Command::Pause)],
        Status::Paused => vec![Effect::Send(Command::Resume)],
        // One that was not started, or that somebody has paused, gets to its kernel no other way.
        Status::Attaching if !snapshot.run.is_running() => vec![Effect::Send(Command::Resume)],
        Status::Attaching => refuse(state, "pause-guest: the engine is still on its way into the guest"),
        Status::Lost => refuse(state, "pause-guest: the guest is lost"),
        Status::Replay => refuse(state, "pause-guest: a recording has no guest to stop"),
    }
}

fn single_step(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    if status_now(state, snapshot) != Status::Paused {
        return refuse(state, "step: the guest is not paused; pause it first");
    }
    // An idle vCPU has no next instruction until an interrupt comes.
    let busy = snapshot.vcpus.iter().find(|vcpu| vcpu.pid.is_some_and(|pid| pid != 0));
    let vcpu = busy.or(snapshot.vcpus.first()).map_or(VcpuId(0), |vcpu| vcpu.id);
    vec![Effect::Send(Command::Step(vcpu))]
}

/// An action on a row found none.
fn nothing_selected(state: &mut UiState) -> Vec<Effect> {
    let what = state.focus.title().to_lowercase();
    state.remark(format!("nothing is selected in the {what}"));
    Vec::new()
}

fn refuse(state: &mut UiState, why: &str) -> Vec<Effect> {
    state.notify(Severity::Warning, why);
    Vec::new()
}

/// Leaves at once where nothing is lost by it, else asks.
fn quit(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    let set = snapshot.breakpoints.iter();
    let set = set.filter(|b| matches!(b.state, BreakpointState::Active | BreakpointState::Pending)).count();
    if set == 0 || snapshot.status == Status::Lost {
        return vec![Effect::Leave];
    }
    let them = if set == 1 {
        "The breakpoint that is set is".to_owned()
    } else {
        format!("The {set} breakpoints that are set are")
    };
    state.popups.push(Popup::Confirm(Confirm {
        title: "Quit".into(),
        text: format!(
            "{them} taken out of the guest and {}; the guest runs on.",
            if state.kept { "kept for the next run with --restore" } else { "forgotten" }
        ),
        yes: "quit".into(),
        no: "stay".into(),
        chosen_yes: true,
        then: Then::Leave,
    }));
    Vec::new()
}
