//! The mouse: a click focuses, selects, sorts or chooses, a second one opens, the wheel scrolls what it is over, a drag
//! moves borders. What it does goes the way of the action or the key that does the same.

use std::time::Duration;

use crokey::KeyCombination;
use crossterm::event::{KeyCode, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};

use super::{
    Effect,
    moving::{step, step_in},
    popup, update,
};
use crate::{
    app::{
        action::{ACTIONS, Action},
        keymap::Keymap,
    },
    engine::snapshot::Snapshot,
    ui::{
        PopupHit,
        layout::{self, Hit, pane_parts},
        popup_hit, rows,
        state::{PaneId, Popup, UiState},
    },
};

/// Rows that a notch of the wheel moves by.
const NOTCH: isize = 3;
/// Longest time between the two clicks of a double click.
const DOUBLE: Duration = Duration::from_millis(400);

/// The mouse was used; `now` is the time since the program began.
pub fn mouse(
    state: &mut UiState,
    snapshot: &Snapshot,
    keymap: &Keymap,
    event: MouseEvent,
    now: Duration,
) -> Vec<Effect> {
    let (x, y) = (event.column, event.row);
    match event.kind {
        MouseEventKind::ScrollDown => wheel(state, snapshot, keymap, event, NOTCH),
        MouseEventKind::ScrollUp => wheel(state, snapshot, keymap, event, -NOTCH),
        MouseEventKind::Down(MouseButton::Left) => {
            let again =
                |&(at, column, row): &(Duration, u16, u16)| (column, row) == (x, y) && now - at.min(now) <= DOUBLE;
            let double = state.pointer.clicked.as_ref().is_some_and(again);
            // A third click is a first one again.
            state.pointer.clicked = (!double).then_some((now, x, y));
            state.pointer.grip = if state.popups.is_empty() { layout::grip(state, x, y) } else { None };
            match layout::hit(state, x, y) {
                Hit::Key(index) => {
                    let name = state.footer.get(index).map(|hint| hint.name.clone());
                    let entry = name.and_then(|name| ACTIONS.iter().find(|entry| entry.name == name));
                    entry.map_or_else(Vec::new, |entry| update(state, snapshot, entry.action))
                }
                _ if !state.popups.is_empty() => in_popup(state, snapshot, keymap, (x, y), double),
                hit => in_panes(state, snapshot, hit, double),
            }
        }
        MouseEventKind::Drag(MouseButton::Left) => {
            if let Some(grip) = state.pointer.grip {
                state.split = layout::dragged(state, grip, x, y);
            }
            Vec::new()
        }
        MouseEventKind::Up(MouseButton::Left) => {
            state.pointer.grip = None;
            Vec::new()
        }
        _ => Vec::new(),
    }
}

fn in_panes(state: &mut UiState, snapshot: &Snapshot, hit: Hit, double: bool) -> Vec<Effect> {
    if double && state.pointer.grip.is_some() {
        return update(state, snapshot, Action::ResetLayout);
    }
    match hit {
        Hit::Row(id, row) => {
            state.focus = id;
            let pane = state.pane_mut(id);
            let place = pane.offset.saturating_add(row);
            if place < pane.rows.len() {
                rows::select(snapshot, pane, place);
                if double {
                    return update(state, snapshot, Action::Detail);
                }
            }
        }
        Hit::Heading(id, x) => {
            state.focus = id;
            if let Some(column) = heading(state, id, x) {
                state.pane_mut(id).sort_by(column);
            }
        }
        Hit::Border(id) | Hit::Tab(id) => state.focus = id,
        Hit::Key(_) | Hit::Elsewhere => {}
    }
    Vec::new()
}

/// The column whose name is at a distance from a pane's left inner edge.
fn heading(state: &UiState, id: PaneId, x: u16) -> Option<crate::ui::state::Column> {
    let screen = ratatui::layout::Rect { x: 0, y: 0, width: state.size.0, height: state.size.1 };
    let (_, area) = layout::regions(screen, state).panes.into_iter().find(|(pane, _)| *pane == id)?;
    rows::column_at(id, &state.pane(id).rows, pane_parts(area).rows.width, x)
}

fn in_popup(
    state: &mut UiState,
    snapshot: &Snapshot,
    keymap: &Keymap,
    (x, y): (u16, u16),
    double: bool,
) -> Vec<Effect> {
    let hit = popup_hit(snapshot, state, x, y);
    let press = |state: &mut UiState, code| {
        let key = KeyCombination::one_key(code, KeyModifiers::NONE);
        popup::key(state, snapshot, keymap, key).unwrap_or_default()
    };
    match (hit, state.popups.last_mut()) {
        (PopupHit::Item(item), Some(Popup::Palette { chosen, .. } | Popup::Sort { chosen, .. })) => {
            *chosen = item;
            press(state, KeyCode::Enter)
        }
        (PopupHit::Item(item), Some(Popup::Choose(list))) => {
            list.chosen = item;
            press(state, KeyCode::Enter)
        }
        (PopupHit::Item(item), Some(Popup::Add(dialog))) => {
            dialog.chosen = Some(item);
            press(state, KeyCode::Tab)
        }
        (PopupHit::Address(va), Some(Popup::Memory(view))) => {
            view.cursor = va;
            if double { update(state, snapshot, Action::Follow) } else { Vec::new() }
        }
        (PopupHit::Answer(yes), Some(Popup::Confirm(question))) => {
            question.chosen_yes = yes;
            press(state, KeyCode::Enter)
        }
        // What was typed into a filter stays at work.
        (PopupHit::Outside, Some(Popup::Filter { .. })) => press(state, KeyCode::Enter),
        // A theme that was only looked at goes.
        (PopupHit::Outside, Some(Popup::Choose(_))) => press(state, KeyCode::Esc),
        (PopupHit::Outside, Some(Popup::Memory(_))) => Vec::new(),
        (PopupHit::Outside, Some(_)) => popup::close(state),
        _ => Vec::new(),
    }
}

fn wheel(state: &mut UiState, snapshot: &Snapshot, keymap: &Keymap, event: MouseEvent, by: isize) -> Vec<Effect> {
    match state.popups.last_mut().map(|popup| popup.scroll_mut().is_some()) {
        None => {
            let over = match layout::hit(state, event.column, event.row) {
                Hit::Row(pane, _) | Hit::Heading(pane, _) | Hit::Border(pane) => pane,
                Hit::Tab(_) | Hit::Key(_) | Hit::Elsewhere => state.focus,
            };
            step_in(state, snapshot, over, by);
            Vec::new()
        }
        Some(_) if matches!(state.popups.last(), Some(Popup::Memory(_))) => {
            let action = if by > 0 { Action::Down } else { Action::Up };
            (0..by.unsigned_abs()).flat_map(|_| update(state, snapshot, action)).collect()
        }
        Some(true) => step(state, snapshot, by),
        // A list to choose from moves one by one.
        Some(false) => {
            let code = if by > 0 { KeyCode::Down } else { KeyCode::Up };
            let key = KeyCombination::one_key(code, KeyModifiers::NONE);
            popup::key(state, snapshot, keymap, key).unwrap_or_default()
        }
    }
}
