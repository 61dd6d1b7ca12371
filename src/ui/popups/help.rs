//! All keys, to read and to search; and the palette, to choose an action by its name. Both from the same list.
//!
//! ```text
//! ╭ Help ────────────────────────────────────────────────────────╮
//! │ / freeze█                                                    │
//! │ Everywhere                                                   │
//! │   f            Hold the picture still while the guest runs on│
//! ╰──────────────────────────────────────────────────────────────╯
//! ```

use ratatui::{
    layout::Rect,
    text::{Line, Span},
};
use tui_input::Input;

use super::{dialogs, inner, keys_below, open, rest};
use crate::ui::{
    layout::centered,
    pen::{Pen, height, width, wrap},
    state::{KeyHint, UiState},
    theme::Theme,
};

const WIDTH: u16 = super::WIDEST;
/// Columns for keys.
const KEYS: u16 = 14;

/// The box of the help page.
pub(super) fn place(screen: Rect) -> Rect {
    let margin = if screen.height > 20 { 4 } else { 0 };
    centered(screen, WIDTH, screen.height - margin)
}

/// The lines below the search field.
pub(super) fn body(area: Rect) -> Rect {
    let inner = inner(area);
    let search = inner.height.min(2);
    Rect { y: inner.y + search, height: inner.height - search, ..inner }
}

pub(super) fn draw(pen: &mut Pen<'_>, screen: Rect, ui: &UiState, search: &Input, scroll: usize) {
    let area = place(screen);
    let inside = open(pen, area, "Help");
    keys_below(pen, area, &[("type", "search"), ("up down", "scroll"), ("esc", "close")]);
    let label = pen.text(inside, "search ", pen.theme.label);
    dialogs::input(pen, rest(inside, label), search, true);
    let body = body(area);
    let lines = lines(ui, search.value(), pen.theme, body.width);
    if lines.is_empty() {
        pen.text(body, "No key matches. Search by name, key or text.", pen.theme.muted);
    }
    let first = scroll.min(lines.len().saturating_sub(usize::from(body.height)));
    for (y, line) in (body.top()..body.bottom()).zip(lines.iter().skip(first)) {
        pen.line(Rect { y, height: 1, ..body }, line);
    }
    let column = Rect { x: area.right() - 1, width: 1, ..body };
    pen.scrollbar(column, first, lines.len());
}

/// The furthest that help scrolls.
pub(super) fn most_scroll(screen: Rect, ui: &UiState, search: &Input) -> usize {
    if screen.is_empty() {
        return 0;
    }
    let body = body(place(screen));
    lines(ui, search.value(), &Theme::plain(), body.width).len().saturating_sub(usize::from(body.height))
}

/// Whether an item has all the words of a search, in its name, its keys, its text or its group.
fn matches(hint: &KeyHint, search: &str) -> bool {
    let line = format!("{} {} {} {} {}", hint.name, hint.key, hint.label, hint.doc, hint.group).to_lowercase();
    search.to_lowercase().split_whitespace().all(|word| line.contains(word))
}

fn lines<'a>(ui: &'a UiState, search: &str, theme: &Theme, columns: u16) -> Vec<Line<'a>> {
    let mut lines = Vec::new();
    let mut group = "";
    let keys = KEYS.min(columns / 3);
    for hint in ui.help.iter().filter(|hint| matches(hint, search)) {
        if hint.group != group {
            group = &hint.group;
            if !lines.is_empty() {
                lines.push(Line::default());
            }
            lines.push(Line::from(Span::styled(group, theme.section)));
        }
        let (key_style, doc_style) =
            if hint.enabled() { (theme.key, theme.key_label) } else { (theme.key_disabled, theme.muted) };
        // Where it works is the heading already.
        let why = hint.why_not.as_ref().filter(|why| !why.to_lowercase().ends_with(&hint.group.to_lowercase()));
        let text = why.map_or_else(|| hint.doc.clone(), |why| format!("{} ({why})", hint.doc));
        let indent = keys.max(width(&hint.key) + 1);
        for (nth, part) in wrap(&text, columns.saturating_sub(2 + indent).max(8)).into_iter().enumerate() {
            let key = if nth == 0 { hint.key.as_str() } else { "" };
            let gap = " ".repeat(usize::from(indent - width(key)));
            let spans = [Span::raw("  "), Span::styled(key, key_style), Span::raw(gap), Span::styled(part, doc_style)];
            lines.push(Line::from_iter(spans));
        }
    }
    lines
}

/// The palette's box, the room for its list, and the first action shown.
pub(super) fn palette_place(screen: Rect, found: usize, chosen: usize) -> (Rect, Rect, usize) {
    let wanted = Rect { height: screen.height.min(20), ..screen };
    let area = centered(wanted, 76, height(found.clamp(1, 12)) + 4);
    let list = body(area);
    (area, list, crate::ui::rows::offset(0, chosen, found, usize::from(list.height)))
}

/// The palette: what was typed, and the actions that match.
pub(super) fn palette(pen: &mut Pen<'_>, screen: Rect, ui: &UiState, search: &Input, found: &[usize], chosen: usize) {
    let (area, list, first) = palette_place(screen, found.len(), chosen);
    let inside = open(pen, area, "Do what?");
    keys_below(pen, area, &[("enter", "do it"), ("up down", "choose"), ("esc", "close")]);
    let label = pen.text(inside, ": ", pen.theme.key);
    dialogs::input(pen, rest(inside, label), search, true);
    if found.is_empty() {
        pen.text(list, "No action has a name like this.", pen.theme.muted);
    }
    let hints = found.iter().enumerate().skip(first).filter_map(|(nth, &index)| Some((nth, ui.help.get(index)?)));
    for (y, (nth, hint)) in (list.top()..list.bottom()).zip(hints) {
        let row = Rect { y, height: 1, ..list };
        if nth == chosen {
            pen.tint(row, pen.theme.selected);
            pen.text(row, &pen.glyphs.selected.to_string(), pen.theme.key);
        }
        let on_row = |style: ratatui::style::Style| ratatui::style::Style { bg: None, ..style };
        let (name, rest_style) = if hint.enabled() {
            (pen.theme.key_label, pen.theme.muted)
        } else {
            (pen.theme.key_disabled, pen.theme.muted)
        };
        let keys = width(&hint.key).min(row.width / 3);
        let text = Rect { x: row.x + 2.min(row.width), width: row.width.saturating_sub(keys + 4), ..row };
        let used = pen.text(text, &hint.name, on_row(name));
        let about = hint.why_not.as_deref().unwrap_or(&hint.doc);
        pen.text(rest(text, used + 2), about, on_row(rest_style));
        pen.right(row, &hint.key, on_row(pen.theme.key));
    }
    let column = Rect { x: area.right().saturating_sub(1), width: 1, ..list };
    pen.scrollbar(column, first, found.len());
}
