//! The mouse: a click focuses a pane and selects a row, the wheel scrolls what it is over.

use crossterm::event::{MouseButton, MouseEvent, MouseEventKind};

use super::{step, step_in};
use crate::{
    engine::snapshot::Snapshot,
    ui::{
        layout::{self, Hit},
        rows,
        state::UiState,
    },
};

/// Rows that a notch of the wheel moves by.
const NOTCH: isize = 3;

/// The mouse was used.
pub fn mouse(state: &mut UiState, snapshot: &Snapshot, event: MouseEvent) {
    match event.kind {
        MouseEventKind::ScrollDown => wheel(state, snapshot, event, NOTCH),
        MouseEventKind::ScrollUp => wheel(state, snapshot, event, -NOTCH),
        MouseEventKind::Down(MouseButton::Left) if state.popups.is_empty() => {
            match layout::hit(state, event.column, event.row) {
                Hit::Row(pane, row) => {
                    state.focus = pane;
                    let pane = state.pane_mut(pane);
                    let place = pane.offset.saturating_add(row);
                    if place < pane.rows.len() {
                        rows::select(snapshot, pane, place);
                    }
                }
                Hit::Heading(pane, _) | Hit::Border(pane) => state.focus = pane,
                Hit::Elsewhere => {}
            }
        }
        _ => {}
    }
}

fn wheel(state: &mut UiState, snapshot: &Snapshot, event: MouseEvent, by: isize) {
    let over = match layout::hit(state, event.column, event.row) {
        Hit::Row(pane, _) | Hit::Heading(pane, _) | Hit::Border(pane) => pane,
        Hit::Elsewhere => state.focus,
    };
    if state.popups.is_empty() {
        step_in(state, snapshot, over, by);
    } else {
        step(state, snapshot, by);
    }
}
