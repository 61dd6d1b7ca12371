//! A line of text that is asked for, and a list of which one is chosen: the file of an export, the theme, a cell.

use crokey::KeyCombination;
use crossterm::event::KeyCode;

use super::{Effect, copy, popup::type_into};
use crate::{
    app::action::Action,
    engine::snapshot::Snapshot,
    ui::state::{Ask, Choice, Choose, Contents, Popup, UiState},
};

/// Longest part of a guest's name in the name of a file.
const NAME: usize = 40;

/// Asks where the screen is to be written.
pub(super) fn ask_for_file(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    state.popups.push(Popup::Ask(file_question(file_name(snapshot, "svg"))));
    Vec::new()
}

/// Asks where what was copied is to be written.
pub(super) fn ask_for_copied_file(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    if state.copied.is_none() {
        state.remark("nothing was copied yet");
        return Vec::new();
    }
    state.popups.push(Popup::Ask(copied_file_question(file_name(snapshot, "txt"))));
    Vec::new()
}

/// A name for a file about a guest at this moment.
fn file_name(snapshot: &Snapshot, extension: &str) -> String {
    let known = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = snapshot.guest.name.chars().take(NAME).map(known).collect();
    let name = name.trim_matches(['.', '-']);
    let seconds = snapshot.taken_at_ns / 1_000_000_000;
    if name.is_empty() {
        format!("vmscope-{seconds}s.{extension}")
    } else {
        format!("vmscope-{name}-{seconds}s.{extension}")
    }
}

/// The question for the file of what was copied, with what was typed so far.
pub fn copied_file_question(file: String) -> Ask {
    Ask {
        contents: Contents::Copied,
        title: "Save what was copied".into(),
        label: "file".into(),
        input: file.into(),
        hint: "rows as text, separated by tabs".into(),
        does: "write".into(),
        error: None,
    }
}

/// The question for a file with what was typed so far.
pub fn file_question(file: String) -> Ask {
    Ask {
        contents: Contents::Screen,
        title: "Export".into(),
        label: "file".into(),
        input: file.into(),
        hint: ".txt, .ansi, .svg or .png for the screen, .json for the snapshot itself".into(),
        does: "write".into(),
        error: None,
    }
}

pub(super) fn ask(state: &mut UiState, key: KeyCombination, code: KeyCode) -> Vec<Effect> {
    let Some(Popup::Ask(ask)) = state.popups.last_mut() else { return Vec::new() };
    match code {
        KeyCode::Esc => {
            state.popups.pop();
        }
        KeyCode::Enter => {
            let file = ask.input.value().trim().to_owned();
            if file.is_empty() {
                ask.error = Some("the name of a file is needed, for example screen.svg".into());
                return Vec::new();
            }
            let effect = match ask.contents {
                Contents::Screen => Effect::Export { file, overwrite: false },
                Contents::Copied => Effect::SaveCopied { file, overwrite: false },
            };
            state.popups.pop();
            return vec![effect];
        }
        _ => {
            ask.error = None;
            type_into(&mut ask.input, key);
        }
    }
    Vec::new()
}

/// What is shown while it is chosen.
fn preview(choose: &Choose) -> Vec<Effect> {
    match (&choose.choice, choose.items.get(choose.chosen)) {
        (Choice::Theme(_), Some((name, _))) => vec![Effect::Theme(name.clone())],
        _ => Vec::new(),
    }
}

pub(super) fn choose(state: &mut UiState, code: KeyCode, meaning: Option<Action>) -> Vec<Effect> {
    let Some(Popup::Choose(choose)) = state.popups.last_mut() else { return Vec::new() };
    let last = choose.items.len().saturating_sub(1);
    choose.chosen = match (code, meaning) {
        (KeyCode::Enter | KeyCode::Char(' '), _) => return take(state),
        (KeyCode::Down | KeyCode::Tab, _) | (_, Some(Action::Down)) => (choose.chosen + 1).min(last),
        (KeyCode::Up | KeyCode::BackTab, _) | (_, Some(Action::Up)) => choose.chosen.saturating_sub(1),
        (_, Some(Action::Home | Action::PageUp)) => 0,
        (_, Some(Action::End | Action::PageDown)) => last,
        (KeyCode::Esc, _) | (_, Some(Action::Close | Action::Quit)) => {
            let before = match &choose.choice {
                Choice::Theme(before) => vec![Effect::Theme(before.clone())],
                Choice::Cell => Vec::new(),
            };
            state.popups.pop();
            return before;
        }
        _ => return Vec::new(),
    };
    preview(choose)
}

/// Takes what is chosen.
fn take(state: &mut UiState) -> Vec<Effect> {
    let Some(Popup::Choose(mut choose)) = state.popups.pop() else { return Vec::new() };
    if choose.chosen >= choose.items.len() {
        return Vec::new();
    }
    let (name, note) = choose.items.swap_remove(choose.chosen);
    match choose.choice {
        Choice::Theme(_) => vec![Effect::Theme(name)],
        Choice::Cell => copy::send(state, format!("the {name}"), note),
    }
}
