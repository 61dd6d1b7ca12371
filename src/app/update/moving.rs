//! Moving in the panes: selection and scrolling, by lines, by pages and to an end.

use tui_logger::TuiWidgetEvent;

use super::Effect;
use crate::{
    engine::snapshot::Snapshot,
    ui::{
        self, layout, rows,
        state::{PaneId, Popup, UiState},
    },
};

/// The lines that a popup or a pane scrolls by at a page key.
pub(super) fn page_height(state: &UiState) -> usize {
    match state.popups.last() {
        Some(popup) => ui::popup_rows(state, popup),
        None => layout::visible_rows(state, state.focus).max(1),
    }
}

pub(super) fn step(state: &mut UiState, snapshot: &Snapshot, by: isize) -> Vec<Effect> {
    if let Some(scroll) = state.popups.last_mut().and_then(Popup::scroll_mut) {
        *scroll = scroll.saturating_add_signed(by);
    } else {
        step_in(state, snapshot, state.focus, by);
    }
    Vec::new()
}

/// Moves the selection of a pane.
pub(super) fn step_in(state: &mut UiState, snapshot: &Snapshot, pane: PaneId, by: isize) {
    if pane == PaneId::Log {
        if state.log.targets {
            let event = if by > 0 { TuiWidgetEvent::DownKey } else { TuiWidgetEvent::UpKey };
            state.log.widget.transition(event);
        } else {
            scroll_log(state, by > 0);
        }
    } else {
        rows::move_by(snapshot, state.pane_mut(pane), by);
    }
}

/// Scrolls the lines of the log, which move by pages only. Back at the newest line they follow again.
fn scroll_log(state: &mut UiState, forward: bool) {
    let log = &mut state.log;
    let event = match (forward, log.pages_back) {
        (false, _) => {
            log.pages_back += 1;
            TuiWidgetEvent::PrevPageKey
        }
        (true, 0 | 1) => {
            log.pages_back = 0;
            TuiWidgetEvent::EscapeKey
        }
        (true, _) => {
            log.pages_back -= 1;
            TuiWidgetEvent::NextPageKey
        }
    };
    log.widget.transition(event);
}

pub(super) fn page(state: &mut UiState, snapshot: &Snapshot, pages: isize) -> Vec<Effect> {
    let height = isize::try_from(page_height(state)).unwrap_or(isize::MAX);
    if state.focus == PaneId::Log && state.popups.is_empty() {
        return step(state, snapshot, pages);
    }
    step(state, snapshot, pages.saturating_mul(height))
}

pub(super) fn edge(state: &mut UiState, snapshot: &Snapshot, last: bool) -> Vec<Effect> {
    if let Some(scroll) = state.popups.last_mut().and_then(Popup::scroll_mut) {
        // The renderer stops at the last line.
        *scroll = if last { usize::MAX } else { 0 };
    } else if state.focus == PaneId::Log {
        if last {
            state.log.pages_back = 0;
            state.log.widget.transition(TuiWidgetEvent::EscapeKey);
        }
    } else if last {
        rows::select(snapshot, state.focused_mut(), usize::MAX);
    } else {
        rows::select(snapshot, state.focused_mut(), 0);
    }
    Vec::new()
}
