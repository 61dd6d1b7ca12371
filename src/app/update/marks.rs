//! Marks, what is done to all marked rows, and how the last deletion is undone.

use super::{Effect, nothing_selected, refuse};
use crate::{
    app::action::Action,
    engine::{
        command::{Command, Target},
        snapshot::{Breakpoint, BreakpointState, Scope, Snapshot},
    },
    ui::{
        rows,
        state::{RowKey, UiState},
    },
};

/// The rows that an action is for, sorted: the marked ones, else the selected one.
pub(super) fn targets(state: &UiState) -> Vec<RowKey> {
    let pane = state.focused();
    if pane.marks.is_empty() { pane.selected.into_iter().collect() } else { pane.marks.iter().copied().collect() }
}

pub(super) fn mark(state: &mut UiState, snapshot: &Snapshot) -> Vec<Effect> {
    let pane = state.focused_mut();
    let Some(row) = pane.selected else { return nothing_selected(state) };
    if !pane.marks.remove(&row) {
        pane.marks.insert(row);
    }
    rows::move_by(snapshot, pane, 1);
    Vec::new()
}

/// Marks every row that is shown, or takes all marks off when all have one; `invert` turns each mark round instead.
pub(super) fn mark_all(state: &mut UiState, snapshot: &Snapshot, invert: bool) -> Vec<Effect> {
    let pane = state.focused_mut();
    let shown: Vec<RowKey> = pane.rows.from(0).filter_map(|row| rows::key(snapshot, pane.id, row)).collect();
    let all = shown.iter().all(|row| pane.marks.contains(row));
    for row in shown {
        let marked = pane.marks.remove(&row);
        if if invert { !marked } else { !all } {
            pane.marks.insert(row);
        }
    }
    Vec::new()
}

/// How many deletions can be undone.
const UNDONE: usize = 16;

/// Remembers breakpoints that are about to be deleted; `rows` are sorted.
fn remember(state: &mut UiState, snapshot: &Snapshot, rows: &[RowKey]) {
    let restore = |breakpoint: &Breakpoint| {
        let pid = match breakpoint.scope {
            Scope::Global => None,
            Scope::Process(pid) => Some(pid),
        };
        Command::RestoreBreakpoint {
            target: Target {
                place: breakpoint.address.to_string(),
                pid,
                started_ns: pid.and_then(|pid| snapshot.started_ns(pid)),
            },
            scope: breakpoint.scope,
            tag: breakpoint.tag.clone(),
            enabled: matches!(breakpoint.state, BreakpointState::Active | BreakpointState::Pending),
        }
    };
    // In the order of the list, not of the marks.
    let deleted: Vec<Command> = snapshot
        .breakpoints
        .iter()
        // One whose process is gone cannot come back.
        .filter(|breakpoint| breakpoint.state != BreakpointState::Ended)
        .filter(|breakpoint| rows.binary_search(&RowKey::Breakpoint(breakpoint.id)).is_ok())
        .map(restore)
        .collect();
    if !deleted.is_empty() {
        state.deleted.push(deleted);
        let surplus = state.deleted.len().saturating_sub(UNDONE);
        state.deleted.drain(..surplus);
    }
}

pub(super) fn undo(state: &mut UiState) -> Vec<Effect> {
    match state.deleted.pop() {
        Some(deleted) => deleted.into_iter().map(Effect::Send).collect(),
        None => refuse(state, "undo: no breakpoint was deleted"),
    }
}

pub(super) fn on_rows(state: &mut UiState, snapshot: &Snapshot, action: Action) -> Vec<Effect> {
    let rows = targets(state);
    if action == Action::Delete {
        remember(state, snapshot, &rows);
    }
    if rows.is_empty() {
        return nothing_selected(state);
    }
    state.focused_mut().marks.clear();
    let command = |row| match (action, row) {
        (Action::Toggle, RowKey::Breakpoint(id)) => Some(Command::ToggleBreakpoint(id)),
        (Action::Delete, RowKey::Breakpoint(id)) => Some(Command::RemoveBreakpoint(id)),
        (Action::Delete, RowKey::Table(id)) => Some(Command::UnwatchAddress(id)),
        (Action::InjectFault, RowKey::Fault(id)) => Some(Command::InjectFault(id)),
        (Action::SuppressFault, RowKey::Fault(id)) => Some(Command::SuppressFault(id)),
        (Action::RetryFault, RowKey::Fault(id)) => Some(Command::RetryFault(id)),
        (Action::ClearFault, RowKey::Fault(id)) => Some(Command::ClearFault(id)),
        _ => None,
    };
    rows.into_iter().filter_map(command).map(Effect::Send).collect()
}
