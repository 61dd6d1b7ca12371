//! The footer and the help page, made from the table of actions.

use std::cmp::Reverse;

use super::{place, popup, possible};
use crate::{
    app::{
        action::{ACTIONS, Action, Entry, PANES, Place},
        keymap::{self, Keymap},
    },
    engine::snapshot::Snapshot,
    ui::state::{KeyHint, Popup, UiState},
};

/// The key of an action as it is shown; its name where it has none.
pub fn key_of(state: &UiState, action: Action) -> String {
    let entry = ACTIONS.iter().find(|entry| entry.action == action);
    let name = entry.map_or("", |entry| entry.name);
    let hint = state.help.iter().find(|hint| hint.name == name && !hint.key.is_empty());
    hint.map_or(name, |hint| &hint.key).to_owned()
}

/// Brings footer and help up to date with the focus and with what the guest's driver can do.
pub fn refresh(state: &mut UiState, snapshot: &Snapshot, keymap: &Keymap) {
    let here = place(state);
    // In a popup `q` closes: a key that means something nearer is not offered for what it means elsewhere.
    let key_here = |entry: &Entry| {
        let mut keys = keymap.bound(entry.action);
        keys.find(|&key| keymap.lookup(key, here).is_some_and(|found| found.action == entry.action))
    };
    let footer = |entry: &Entry| {
        let key = keymap::name(key_here(entry)?);
        Some(KeyHint { key, ..hint(entry, snapshot, possible(entry, state, snapshot)) })
    };
    // A popup that takes the keys itself names them itself.
    state.footer = if state.popups.last().is_some_and(popup::takes_keys) {
        Vec::new()
    } else {
        ACTIONS.iter().filter(|entry| entry.footer && entry.places.contains(&here)).filter_map(footer).collect()
    };
    // Help and palette lie above the panes but speak of the pane below: what only it can do comes first.
    let looking = state.popups.iter().any(|popup| matches!(popup, Popup::Memory(_)));
    let below = if looking { Place::Memory } else { Place::Pane(state.focus) };
    let elsewhere_too = |entry: &Entry| entry.places.len() + 1 >= PANES.len() || !entry.places.contains(&below);
    let mut sorted: Vec<&Entry> = ACTIONS.iter().collect();
    sorted.sort_by_key(|entry| (elsewhere_too(entry), Reverse(entry.places.len()), titles(entry)));
    state.help = sorted
        .into_iter()
        .map(|entry| {
            let keys: Vec<String> = keymap.keys_of(entry.action).collect();
            let here = if entry.places.contains(&below) { Ok(()) } else { Err(elsewhere(entry)) };
            KeyHint { key: keys.join(" "), ..hint(entry, snapshot, here.and_then(|()| entry.available(snapshot))) }
        })
        .collect();
}

/// An action without its key.
fn hint(entry: &Entry, snapshot: &Snapshot, why_not: Result<(), String>) -> KeyHint {
    KeyHint {
        name: entry.name.to_owned(),
        key: String::new(),
        label: entry.label(snapshot).to_owned(),
        doc: entry.doc.to_owned(),
        group: group(entry),
        why_not: why_not.err(),
    }
}

/// The heading on the help page: where the action works.
fn group(entry: &Entry) -> String {
    match entry.places.len() {
        places if places > PANES.len() => "Everywhere".into(),
        places if places + 1 >= PANES.len() => "In every pane".into(),
        _ => titles(entry),
    }
}

/// Why an action cannot be done in another place.
pub(super) fn elsewhere(entry: &Entry) -> String {
    let missing: Vec<&Place> = PANES.iter().filter(|pane| !entry.places.contains(pane)).collect();
    match missing.as_slice() {
        [] => "works in every pane".to_owned(),
        [pane] => format!("works in every pane but: {}", pane.title()),
        _ => format!("works in: {}", titles(entry)),
    }
}

/// The places of an action by name.
fn titles(entry: &Entry) -> String {
    entry.places.iter().map(|place| place.title()).collect::<Vec<_>>().join(", ")
}
