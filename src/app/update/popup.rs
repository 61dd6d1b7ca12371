//! What is typed and chosen above the panes: filter, dialog, help, palette, sort order, questions.

use crokey::{KeyCombination, OneToThree};
use crossterm::event::{Event, KeyCode, KeyModifiers};
use nucleo_matcher::{
    Config, Matcher, Utf32Str,
    pattern::{CaseMatching, Normalization, Pattern},
};
use tui_input::{Input, backend::crossterm::EventHandler};

use super::{Draft, Effect, choose, find, memory, moving::page_height, update};
use crate::{
    app::{
        action::{ACTIONS, Action, Place},
        keymap::{self, Keymap},
    },
    engine::{
        command::{Command, Target},
        snapshot::{Scope, Snapshot, SymbolTable, Va},
    },
    ui::{
        rows,
        state::{AddDialog, AddField, Candidate, Confirm, MemoryMode, PaneId, Popup, Purpose, RowKey, Then, UiState},
    },
};

/// How many completions are offered.
const CANDIDATES: usize = 8;

/// A key while a popup is open; `None` where the popup leaves it to the keymap.
pub(super) fn key(
    state: &mut UiState,
    snapshot: &Snapshot,
    keymap: &Keymap,
    key: KeyCombination,
) -> Option<Vec<Effect>> {
    let popup = state.popups.last()?;
    let meaning = keymap.lookup(key, Place::Popup).map(|entry| entry.action);
    if !takes_keys(popup) {
        return None;
    }
    let OneToThree::One(code) = key.codes else { return Some(Vec::new()) };
    let is_text = key.modifiers.difference(KeyModifiers::SHIFT).is_empty();
    if let (Some(Action::Quit | Action::Suspend | Action::Redraw), false) = (meaning, is_text) {
        if meaning == Some(Action::Quit) && matches!(popup, Popup::Confirm(Confirm { then: Then::Leave, .. })) {
            return Some(vec![Effect::Leave]);
        }
        return meaning.map(|action| update(state, snapshot, action));
    }
    match popup {
        Popup::Filter { .. } => filter(state, snapshot, key, code),
        Popup::Help { .. } => help(state, key, code),
        Popup::Palette { .. } => return Some(palette(state, snapshot, key, code)),
        Popup::Add(_) => return Some(add(state, snapshot, key, code)),
        Popup::Sort { .. } => sort(state, code, meaning),
        Popup::Confirm(_) => return Some(confirm(state, code, meaning)),
        Popup::Ask(_) => return Some(choose::ask(state, key, code)),
        Popup::Choose(_) => return Some(choose::choose(state, code, meaning)),
        Popup::Find(_) => return Some(find::key(state, snapshot, key, code)),
        Popup::Detail { .. } | Popup::Event { .. } | Popup::Burst { .. } | Popup::Memory(_) | Popup::Message { .. } => {
            return None;
        }
    }
    Some(Vec::new())
}

/// Whether a popup is typed into or chosen from; the others are read, with the keys of the table.
pub(super) const fn takes_keys(popup: &Popup) -> bool {
    !matches!(
        popup,
        Popup::Detail { .. } | Popup::Event { .. } | Popup::Burst { .. } | Popup::Memory(_) | Popup::Message { .. }
    )
}

/// Text was pasted: into the field that is open, nowhere else.
pub fn paste(state: &mut UiState, snapshot: &Snapshot, text: &str) {
    let line = text.lines().next().unwrap_or("");
    for c in line.chars().filter(|c| !c.is_control()).take(1024) {
        if let Some(input) = state.popups.last_mut().and_then(Popup::input_mut) {
            type_into(input, keymap::typed(c));
        }
    }
    typed(state, snapshot);
}

/// Closes the topmost popup; a detail is no longer kept fresh.
pub(super) fn close(state: &mut UiState) -> Vec<Effect> {
    match state.popups.pop() {
        Some(Popup::Detail { .. } | Popup::Memory(_)) => {
            let below = state.popups.iter().rev().find_map(|popup| match popup {
                Popup::Detail { subject, .. } => Some(subject.clone()),
                Popup::Memory(view) => Some(memory::subject(state, view)),
                _ => None,
            });
            vec![Effect::Send(Command::Inspect(below))]
        }
        _ => Vec::new(),
    }
}

pub(super) fn type_into(input: &mut Input, key: KeyCombination) {
    input.handle_event(&Event::Key(keymap::event(key)));
}

/// What follows from the text of the topmost popup.
fn typed(state: &mut UiState, snapshot: &Snapshot) {
    match state.popups.last_mut() {
        Some(Popup::Filter { pane, input, .. }) => {
            let (pane, text) = (*pane, input.value().to_owned());
            state.pane_mut(pane).filter.set(&text);
        }
        Some(Popup::Palette { input, found, chosen }) => {
            *found = matching(input.value(), state.help.iter().map(|hint| (hint.name.as_str(), hint.doc.as_str())));
            *chosen = 0;
        }
        Some(Popup::Add(dialog)) => complete(dialog, &snapshot.symbols),
        Some(Popup::Help { scroll, .. }) => *scroll = 0,
        _ => {}
    }
}

fn filter(state: &mut UiState, snapshot: &Snapshot, key: KeyCombination, code: KeyCode) {
    let Some(Popup::Filter { pane, input, before }) = state.popups.last_mut() else { return };
    let pane = *pane;
    match code {
        KeyCode::Enter => {
            state.popups.pop();
        }
        KeyCode::Esc => {
            let before = std::mem::take(before);
            state.popups.pop();
            state.pane_mut(pane).filter.set(&before);
        }
        KeyCode::Down => rows::move_by(snapshot, state.pane_mut(pane), 1),
        KeyCode::Up => rows::move_by(snapshot, state.pane_mut(pane), -1),
        _ => {
            type_into(input, key);
            let text = input.value().to_owned();
            state.pane_mut(pane).filter.set(&text);
        }
    }
}

fn help(state: &mut UiState, key: KeyCombination, code: KeyCode) {
    let height = page_height(state);
    let Some(Popup::Help { search, scroll }) = state.popups.last_mut() else { return };
    match code {
        KeyCode::Esc | KeyCode::Enter | KeyCode::F(1) => {
            state.popups.pop();
        }
        KeyCode::Down => *scroll = scroll.saturating_add(1),
        KeyCode::Up => *scroll = scroll.saturating_sub(1),
        KeyCode::PageDown => *scroll = scroll.saturating_add(height),
        KeyCode::PageUp => *scroll = scroll.saturating_sub(height),
        KeyCode::Char('?') if search.value().is_empty() => {
            state.popups.pop();
        }
        _ => {
            type_into(search, key);
            *scroll = 0;
        }
    }
}

fn palette(state: &mut UiState, snapshot: &Snapshot, key: KeyCombination, code: KeyCode) -> Vec<Effect> {
    let Some(Popup::Palette { input, found, chosen }) = state.popups.last_mut() else { return Vec::new() };
    match code {
        KeyCode::Esc => {
            state.popups.pop();
        }
        KeyCode::Down | KeyCode::Tab => *chosen = chosen.saturating_add(1).min(found.len().saturating_sub(1)),
        KeyCode::Up | KeyCode::BackTab => *chosen = chosen.saturating_sub(1),
        KeyCode::Enter => {
            let name = found.get(*chosen).and_then(|&index| state.help.get(index)).map(|hint| hint.name.clone());
            state.popups.pop();
            let entry = name.and_then(|name| ACTIONS.iter().find(|entry| entry.name == name));
            return entry.map_or_else(Vec::new, |entry| update(state, snapshot, entry.action));
        }
        _ => {
            type_into(input, key);
            typed(state, snapshot);
        }
    }
    Vec::new()
}

/// Indices of the items, each a name and what it does, that match fuzzily, best first: a name counts more than the words
/// about it.
fn matching<'a>(wanted: &str, items: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<usize> {
    let mut matcher = Matcher::new(Config::DEFAULT);
    let pattern = Pattern::parse(wanted, CaseMatching::Ignore, Normalization::Smart);
    let mut buffer = Vec::new();
    let mut score = |text: &str| pattern.score(Utf32Str::new(text, &mut buffer), &mut matcher);
    let wanted = wanted.trim().to_lowercase();
    let mut scored: Vec<((u8, u32), usize)> = items
        .enumerate()
        .filter_map(|(index, (name, doc))| {
            let by_name = score(name).map(|score| match name.strip_prefix(wanted.as_str()) {
                Some("") => (3, score),
                Some(_) => (2, score),
                None => (1, score),
            });
            Some((by_name.or_else(|| Some((0, score(&format!("{name} {doc}"))?)))?, index))
        })
        .collect();
    scored.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    scored.into_iter().map(|(_, index)| index).collect()
}

fn sort(state: &mut UiState, code: KeyCode, meaning: Option<Action>) {
    let Some(Popup::Sort { pane, chosen }) = state.popups.last_mut() else { return };
    let (pane, columns) = (*pane, rows::columns(*pane));
    match (code, meaning) {
        (KeyCode::Down | KeyCode::Right | KeyCode::Tab | KeyCode::Char('l' | 's'), _) | (_, Some(Action::Down)) => {
            *chosen = (*chosen + 1) % columns.len().max(1);
        }
        (KeyCode::Up | KeyCode::Left | KeyCode::BackTab | KeyCode::Char('h'), _) | (_, Some(Action::Up)) => {
            *chosen = chosen.checked_sub(1).unwrap_or(columns.len().saturating_sub(1));
        }
        (KeyCode::Enter | KeyCode::Char(' '), _) => {
            let column = columns.get(*chosen).map(|column| column.id);
            state.popups.pop();
            if let Some(column) = column {
                state.pane_mut(pane).sort_by(column);
            }
        }
        (KeyCode::Esc, _) | (_, Some(Action::Close | Action::Quit)) => {
            state.popups.pop();
        }
        _ => {}
    }
}

fn confirm(state: &mut UiState, code: KeyCode, meaning: Option<Action>) -> Vec<Effect> {
    let Some(Popup::Confirm(question)) = state.popups.last_mut() else { return Vec::new() };
    let answer = match code {
        KeyCode::Char('y' | 'Y') => true,
        KeyCode::Enter => question.chosen_yes,
        KeyCode::Char('n' | 'N') | KeyCode::Esc => false,
        KeyCode::Left | KeyCode::Right | KeyCode::Tab | KeyCode::BackTab | KeyCode::Char('h' | 'l') => {
            question.chosen_yes = !question.chosen_yes;
            return Vec::new();
        }
        _ if meaning == Some(Action::Close) => false,
        _ => return Vec::new(),
    };
    let then = std::mem::take(&mut question.then);
    state.popups.pop();
    match (answer, then) {
        (false, _) => Vec::new(),
        (true, Then::Leave) => vec![Effect::Leave],
        (true, Then::Overwrite(file)) => vec![Effect::Export { file, overwrite: true }],
        (true, Then::OverwriteCopied(file)) => vec![Effect::SaveCopied { file, overwrite: true }],
    }
}

/// An empty dialog; one process means the one that is selected in the processes.
pub(super) fn dialog(state: &UiState, snapshot: &Snapshot, purpose: Purpose) -> AddDialog {
    let process = match state.pane(PaneId::Processes).selected {
        Some(RowKey::Process(pid, _)) => snapshot.processes.iter().find(|process| process.pid == pid),
        _ => None,
    };
    let process = process.map(|process| (process.pid, process.name.clone()));
    AddDialog { process, ..AddDialog::new(purpose) }
}

fn add(state: &mut UiState, snapshot: &Snapshot, key: KeyCombination, code: KeyCode) -> Vec<Effect> {
    let Some(Popup::Add(dialog)) = state.popups.last_mut() else { return Vec::new() };
    let in_place = dialog.field == AddField::Place;
    match code {
        KeyCode::Esc => {
            state.popups.pop();
        }
        KeyCode::Enter => return submit(state, snapshot),
        KeyCode::Tab if in_place && take_completion(dialog) => {}
        KeyCode::Tab => move_field(dialog, 1),
        KeyCode::BackTab => move_field(dialog, -1),
        KeyCode::Down if in_place && !dialog.candidates.is_empty() => {
            let last = dialog.candidates.len().saturating_sub(1);
            dialog.chosen = Some(dialog.chosen.map_or(0, |chosen| (chosen + 1).min(last)));
        }
        KeyCode::Up if in_place && dialog.chosen.is_some() => {
            dialog.chosen = dialog.chosen.and_then(|chosen| chosen.checked_sub(1));
        }
        KeyCode::Down => move_field(dialog, 1),
        KeyCode::Up => move_field(dialog, -1),
        KeyCode::Char(' ') | KeyCode::Left | KeyCode::Right if dialog.field == AddField::Scope => {
            dialog.scope = match (dialog.scope, &dialog.process) {
                (Scope::Global, Some((pid, _))) => Scope::Process(*pid),
                _ => Scope::Global,
            };
        }
        _ => {
            dialog.error = None;
            if let Some(input) = state.popups.last_mut().and_then(Popup::input_mut) {
                type_into(input, key);
            }
            typed(state, snapshot);
        }
    }
    Vec::new()
}

fn move_field(dialog: &mut AddDialog, by: isize) {
    let fields = dialog.purpose.fields();
    let at = fields.iter().position(|&field| field == dialog.field).unwrap_or(0);
    let next = at.saturating_add_signed(by).min(fields.len().saturating_sub(1));
    dialog.field = fields.get(next).copied().unwrap_or_default();
}

fn complete(dialog: &mut AddDialog, symbols: &SymbolTable) {
    dialog.chosen = None;
    dialog.candidates.clear();
    let place = dialog.place.value();
    // A process behind it, or an offset, is nothing to complete; a CPU is.
    let is_symbol = !place.contains('+') && place.split_once('@').is_none_or(|(_, cpu)| "cpu".starts_with(cpu));
    if dialog.field == AddField::Place && !place.is_empty() && is_symbol {
        let names = symbols.complete(place, CANDIDATES).into_iter();
        let candidate = |name: String| Candidate { address: symbols.place(&name).ok().flatten(), name };
        dialog.candidates = names.map(candidate).collect();
    }
}

/// Puts the chosen completion, or else the first one, into the field; answers whether that changed it.
fn take_completion(dialog: &mut AddDialog) -> bool {
    let Some(candidate) = dialog.candidates.get(dialog.chosen.unwrap_or(0)) else { return false };
    let changed = candidate.name != dialog.place.value();
    dialog.place = Input::new(candidate.name.clone());
    dialog.candidates.clear();
    dialog.chosen = None;
    changed
}

fn submit(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    let Some(Popup::Add(dialog)) = state.popups.last_mut() else { return Vec::new() };
    if dialog.chosen.is_some() {
        take_completion(dialog);
    }
    if dialog.purpose == Purpose::Memory && dialog.place.value().trim().is_empty() {
        let dialog = state.popups.pop();
        if let Some((pid, va)) = memory::selected_address(state, snapshot) {
            return memory::open(state, pid, va, MemoryMode::Bytes);
        }
        state.popups.extend(dialog);
    }
    let Some(Popup::Add(dialog)) = state.popups.last_mut() else { return Vec::new() };
    let mut target = match Target::parse(dialog.place.value()) {
        Ok(target) => target,
        Err(why) => {
            dialog.error = Some(why);
            return Vec::new();
        }
    };
    let tag = dialog.tag.value().trim().to_owned();
    let command = match dialog.purpose {
        Purpose::Breakpoint => {
            let scope = target.pid.map_or(dialog.scope, Scope::Process);
            if let Scope::Process(pid) = scope {
                target.pid = Some(pid);
            }
            Command::AddBreakpoint { target, scope, tag }
        }
        Purpose::Watch => Command::WatchAddress { target, tag },
        Purpose::Page => Command::RequestPage { target },
        Purpose::Memory => {
            let va = match resolve(&target.place, snapshot) {
                Ok(va) => va,
                Err(why) => {
                    dialog.error = Some(why);
                    return Vec::new();
                }
            };
            state.popups.pop();
            return memory::open(state, target.pid, va, MemoryMode::Bytes);
        }
    };
    let draft = Draft(dialog.clone());
    state.popups.pop();
    vec![Effect::SendFrom(command, Box::new(draft))]
}

/// The address of a symbol as [`SymbolTable::place`] takes it, of a register of a busy vCPU (`rsp+0x10`), or a hexadecimal
/// number; the error is a sentence.
pub(super) fn resolve(place: &str, snapshot: &Snapshot) -> Result<Va, String> {
    if let Some(va) = snapshot.symbols.place(place)? {
        return Ok(va);
    }
    let (name, offset) = place.split_once('+').map_or((place, None), |(name, offset)| (name, Some(offset)));
    let name = name.trim();
    let register = || {
        let busy = snapshot.vcpus.iter().find(|vcpu| vcpu.pid.is_some_and(|pid| pid != 0));
        let vcpu = busy.or(snapshot.vcpus.first())?;
        vcpu.registers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| Va(*value))
    };
    let offset = offset.map_or(Some(Va(0)), |offset| offset.trim().parse().ok());
    let base = register().or_else(|| name.parse().ok());
    let va = base.zip(offset).map(|(base, offset)| base + offset.0);
    va.ok_or_else(|| format!("'{place}' is neither a symbol of this kernel nor a register nor an address"))
}
