//! What is typed on the last line: the filter of a pane, which follows each key, and what memory is searched for.
//!
//! ```text
//!  Filter processes / lsass|svchost█                                  12 of 214
//! ```

use ratatui::{layout::Rect, style::Style};
use tui_input::Input;

use super::{dialogs, rest};
use crate::ui::{
    pen::{Pen, height, width, wrap},
    state::{FindDialog, PaneId, UiState},
};

/// Most lines of what is said about what is typed.
const MOST_LINES: u16 = 4;

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
    if let Some(error) = state.filter.error() {
        above(pen, line, error);
    }
}

/// Says what is wrong with what is typed, on the lines above it.
fn above(pen: &mut Pen<'_>, line: Rect, error: &str) {
    let style = pen.theme.error;
    let words = wrap(error, line.width.saturating_sub(2).max(1));
    let shown = height(words.len()).min(line.y).min(MOST_LINES);
    for (y, words) in (line.y - shown..line.y).zip(&words) {
        let row = Rect { y, ..line };
        pen.clear(row, style);
        pen.text(row, &format!(" {words}"), style);
    }
}

/// What memory is searched for.
pub(super) fn find(pen: &mut Pen<'_>, screen: Rect, dialog: &FindDialog) {
    let theme = pen.theme;
    let line = Rect { y: screen.bottom() - 1, height: 1, ..screen };
    pen.clear(line, theme.popup);
    let label = match (screen.width, dialog.kind.word()) {
        (50.., kind) => format!(" Search {kind} / "),
        (_, kind) => format!(" {kind} / "),
    };
    let used = pen.text(line, &label, theme.popup_title);
    let field = rest(line, used);
    let other = format!(" tab: {} ", dialog.kind.next().word());
    let hint = if field.width >= 60 { width(&other) } else { 0 };
    let field = Rect { width: field.width - hint, ..field };
    dialogs::input(pen, field, &dialog.input, true);
    if dialog.input.value().is_empty() {
        let style = Style { fg: theme.muted.fg, ..theme.input };
        pen.text(rest(field, 2), dialog.kind.example(), style);
    }
    pen.right(Rect { x: field.right(), width: hint, ..field }, &other, theme.muted);
    if let Some(error) = &dialog.error {
        above(pen, line, error);
    }
}
