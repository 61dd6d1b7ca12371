//! Rows as text for the clipboard: their facts, separated by tabs, without what the width of a column left out.

use super::{Effect, hints, marks::targets, nothing_selected};
use crate::{
    app::action::Action,
    engine::snapshot::{Breakpoint, Event, Fault, Process, Scope, Snapshot, Table},
    ui::{
        rows::{self, RowRef},
        state::{Choice, Choose, Copied, PaneId, PaneState, Popup, RowKey, Severity, UiState},
    },
};

/// How much is sent to a terminal: more than this, many drop.
const MOST_BYTES: usize = 64 << 10;

/// What a row says, by the names of its parts.
type Facts = Vec<(&'static str, String)>;

/// Copies the marked rows, else the selected one.
pub(super) fn marked(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    let rows = targets(state);
    let lines: Vec<String> =
        rows.iter().flat_map(|&row| facts(snapshot, state.focused(), row)).map(|row| line(&row)).collect();
    let said = match rows.len() {
        1 => "one row".to_owned(),
        marked => format!("the {marked} marked rows"),
    };
    send_lines(state, &lines, said)
}

/// Copies every row that the focused pane shows, below the names of its columns.
pub(super) fn pane(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    let pane = state.focused();
    let mut rows = pane.rows.from(0).flat_map(|row| facts_at(snapshot, pane, row)).peekable();
    let heading = rows.peek().map(|first| joined(first.iter().map(|(name, _)| *name)));
    let lines: Vec<String> = heading.into_iter().chain(rows.map(|row| line(&row))).collect();
    let rows = match lines.len().saturating_sub(1) {
        1 => "the one row".to_owned(),
        rows => format!("{rows} rows"),
    };
    let said = format!("{rows} of the {}", pane.id.title().to_lowercase());
    send_lines(state, &lines, said)
}

/// Lets one fact of the selected row be chosen.
pub(super) fn choose_cell(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    let selected = state.focused().selected.map_or_else(Vec::new, |row| facts(snapshot, state.focused(), row));
    if let Some(facts) = selected.into_iter().next_back() {
        let items = facts.into_iter().filter(|(_, value)| !value.is_empty());
        state.popups.push(Popup::Choose(Choose {
            choice: Choice::Cell,
            title: "Copy which cell?".into(),
            items: items.map(|(name, value)| (name.to_owned(), value)).collect(),
            chosen: 0,
            does: "copy".into(),
        }));
        return Vec::new();
    }
    nothing_selected(state)
}

fn send_lines(state: &mut UiState, lines: &[String], what: String) -> Vec<Effect> {
    if lines.is_empty() {
        state.notify(Severity::Info, "there is no row to be copied");
        return Vec::new();
    }
    send(state, what, lines.join("\n"))
}

/// Keeps a text as what was copied, and sends it unless it is too long for that.
pub(super) fn send(state: &mut UiState, what: String, text: String) -> Vec<Effect> {
    let effects = if text.len() > MOST_BYTES {
        let save = hints::key_of(state, Action::SaveCopied);
        let text = format!(
            "not copied: {} KiB are more than terminals take at once (64); filter the pane, or write {what} to a file: {save}",
            text.len() >> 10
        );
        state.notify(Severity::Warning, text);
        Vec::new()
    } else {
        vec![Effect::Copy(text.clone())]
    };
    state.copied = Some(Copied { what, text });
    effects
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    parts.collect::<Vec<_>>().join("\t")
}

fn line(facts: &Facts) -> String {
    joined(facts.iter().map(|(_, value)| value.as_str()))
}

/// The row with this key, a burst as all of its events; nothing when it is gone.
fn facts(snapshot: &Snapshot, pane: &PaneState, row: RowKey) -> Vec<Facts> {
    let facts = match row {
        RowKey::Process(pid, object) => {
            snapshot.processes.iter().find(|row| row.pid == pid && row.object == object).map(process)
        }
        RowKey::Breakpoint(id) => snapshot.breakpoints.iter().find(|row| row.id == id).map(breakpoint),
        RowKey::Table(id) => snapshot.page_tables.iter().find(|row| row.id == id).map(table),
        RowKey::Fault(id) => snapshot.faults.iter().find(|row| row.id == id).map(fault),
        RowKey::Event(_) => {
            let row = rows::row_of(snapshot, pane, row);
            let events = row.map_or_else(Vec::new, |row| rows::events_of(snapshot, pane, row));
            return events.into_iter().map(event).collect();
        }
    };
    facts.into_iter().collect()
}

/// The same by the row's place in its part of the snapshot.
fn facts_at(snapshot: &Snapshot, pane: &PaneState, row: RowRef) -> Vec<Facts> {
    let index = row.index as usize;
    let facts = match pane.id {
        PaneId::Processes => snapshot.processes.get(index).map(process),
        PaneId::Breakpoints => snapshot.breakpoints.get(index).map(breakpoint),
        PaneId::Tables => snapshot.page_tables.get(index).map(table),
        PaneId::Faults => snapshot.faults.get(index).map(fault),
        PaneId::Events => return rows::events_of(snapshot, pane, row).into_iter().map(event).collect(),
        PaneId::Log => None,
    };
    facts.into_iter().collect()
}

fn process(row: &Process) -> Facts {
    let root = row.root.map_or_else(String::new, |root| root.to_string());
    vec![("pid", row.pid.to_string()), ("ppid", row.ppid.to_string()), ("name", row.name.clone()), ("root", root)]
}

fn breakpoint(row: &Breakpoint) -> Facts {
    let scope = match row.scope {
        Scope::Global => "global".to_owned(),
        Scope::Process(pid) => pid.to_string(),
    };
    vec![
        ("symbol", row.symbol.clone()),
        ("address", row.address.to_string()),
        ("scope", scope),
        ("hits", row.hits.to_string()),
        ("tag", row.tag.clone()),
    ]
}

fn table(row: &Table) -> Facts {
    let pa = row.pa.map_or_else(|| "out".to_owned(), |pa| pa.to_string());
    vec![
        ("symbol", row.symbol.clone()),
        ("address", row.address.to_string()),
        ("root", row.root.to_string()),
        ("physical", pa),
        ("changes", row.changes.to_string()),
    ]
}

fn fault(row: &Fault) -> Facts {
    vec![
        ("address", row.address.to_string()),
        ("root", row.root.to_string()),
        ("asked by", row.asked_by.clone()),
        ("note", row.note.clone()),
    ]
}

fn event(row: &Event) -> Facts {
    vec![
        ("time", row.at_ns.to_string()),
        ("kind", row.kind.label().to_owned()),
        ("process", row.process.clone()),
        ("text", row.text.clone()),
    ]
}
