//! The filter of a pane, typed on the last line while the pane follows each key.
//!
//! ```text
//!  Filter processes / lsass|svchost█                                  12 of 214
//! ```

use ratatui::layout::Rect;
use tui_input::Input;

use super::{dialogs, rest};
use crate::ui::{
    pen::{Pen, width},
    state::{PaneId, UiState},
};

pub(super) fn draw(pen: &mut Pen<'_>, screen: Rect, ui: &UiState, pane: PaneId, input: &Input) {
    let theme = pen.theme;
    let line = Rect { y: screen.bottom() - 1, height: 1, ..screen };
    pen.clear(line, theme.popup);
    let label =
        if screen.width >= 50 { format!(" Filter {} / ", pane.title().to_lowercase()) } else { " / ".to_owned() };
    let used = pen.text(line, &label, theme.popup_title);
    let state = ui.pane(pane);
    let found = if state.rows.total() > 0 {
        format!(" {} of {} ", state.rows.len(), state.rows.total())
    } else {
        String::new()
    };
    let field = rest(line, used);
    let count = width(&found).min(field.width / 2);
    dialogs::input(pen, Rect { width: field.width - count, ..field }, input, true);
    pen.right(Rect { x: field.right() - count, width: count, ..field }, &found, theme.muted);
    if let Some(error) = state.filter.error()
        && screen.height > 1
    {
        let above = Rect { y: line.y - 1, ..line };
        pen.clear(above, theme.error);
        pen.text(above, &format!(" {error}"), theme.error);
    }
}
