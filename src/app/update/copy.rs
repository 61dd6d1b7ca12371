//! A row as text for the clipboard: its facts, separated by tabs, without what the width of a column left out.

use crate::{
    engine::snapshot::{Breakpoint, Event, Fault, Process, Scope, Snapshot, Table},
    ui::{
        rows,
        state::{PaneState, RowKey},
    },
};

/// The row with this key, a burst as all of its events; nothing when it is gone.
pub(super) fn lines(snapshot: &Snapshot, pane: &PaneState, row: RowKey) -> Vec<String> {
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
            return events.into_iter().map(|row| event(row).join("\t")).collect();
        }
    };
    facts.map(|facts| facts.join("\t")).into_iter().collect()
}

fn process(row: &Process) -> Vec<String> {
    let root = row.root.map_or_else(String::new, |root| root.to_string());
    vec![row.pid.to_string(), row.ppid.to_string(), row.name.clone(), root]
}

fn breakpoint(row: &Breakpoint) -> Vec<String> {
    let scope = match row.scope {
        Scope::Global => "global".to_owned(),
        Scope::Process(pid) => pid.to_string(),
    };
    vec![row.symbol.clone(), row.address.to_string(), scope, row.hits.to_string(), row.tag.clone()]
}

fn table(row: &Table) -> Vec<String> {
    let pa = row.pa.map_or_else(|| "out".to_owned(), |pa| pa.to_string());
    vec![row.symbol.clone(), row.address.to_string(), row.root.to_string(), pa, row.changes.to_string()]
}

fn fault(row: &Fault) -> Vec<String> {
    vec![row.address.to_string(), row.root.to_string(), row.asked_by.clone(), row.note.clone()]
}

fn event(row: &Event) -> Vec<String> {
    vec![row.at_ns.to_string(), row.kind.label().to_owned(), row.process.clone(), row.text.clone()]
}
