//! The footer and the help page, made from the table of actions.

use super::{place, possible};
use crate::{
    app::{
        action::{ACTIONS, Entry, Place},
        keymap::Keymap,
    },
    engine::snapshot::Snapshot,
    ui::state::{KeyHint, UiState},
};

/// Brings footer and help up to date with the focus and with what the guest's driver can do.
pub fn refresh(state: &mut UiState, snapshot: &Snapshot, keymap: &Keymap) {
    let here = place(state);
    let hint = |entry: &Entry, why_not: Result<(), String>| KeyHint {
        name: entry.name.to_owned(),
        key: keymap.keys_of(entry.action).next().unwrap_or_default(),
        label: entry.short.to_owned(),
        doc: entry.doc.to_owned(),
        group: group(entry).to_owned(),
        why_not: why_not.err(),
    };
    let shown = ACTIONS.iter().filter(|entry| entry.footer && entry.places.contains(&here));
    // In a popup `q` closes: an action all of whose keys mean something nearer is not offered.
    let reachable = |entry: &&Entry| {
        keymap.bound(entry.action).any(|key| keymap.lookup(key, here).is_some_and(|found| found.action == entry.action))
    };
    state.footer = shown.filter(reachable).map(|entry| hint(entry, possible(entry, state, snapshot))).collect();
    // Help and palette lie above the panes but speak of the pane below.
    let below = Place::Pane(state.focus);
    let mut help: Vec<KeyHint> = ACTIONS
        .iter()
        .map(|entry| {
            let keys: Vec<String> = keymap.keys_of(entry.action).collect();
            let here = if entry.places.contains(&below) { Ok(()) } else { Err(elsewhere(entry)) };
            KeyHint { key: keys.join(" "), ..hint(entry, here.and_then(|()| entry.available(snapshot))) }
        })
        .collect();
    help.sort_by_key(|hint| GROUPS.iter().position(|&group| group == hint.group));
    state.help = help;
}

const GROUPS: [&str; 8] = [
    "Everywhere",
    "In every pane",
    "Processes",
    "Breakpoints",
    "Breakpoints, Page tables",
    "Page tables",
    "Faults",
    "Popups",
];

fn group(entry: &Entry) -> &'static str {
    match entry.places {
        [Place::Pane(pane)] => pane.title(),
        [Place::Popup] => "Popups",
        [_, _] => "Breakpoints, Page tables",
        places if places.contains(&Place::Popup) => "Everywhere",
        _ => "In every pane",
    }
}

fn elsewhere(entry: &Entry) -> String {
    let places: Vec<&str> = entry.places.iter().map(|place| place.title()).collect();
    format!("works in: {}", places.join(", "))
}
