//! Questions: a place to add, a column to sort by, yes or no.
//!
//! ```text
//! ╭ New breakpoint ───────────────────────────────╮
//! │ place  nt!NtCre█                              │
//! │        ▸ nt!NtCreateFile    fffff803`1c2a41f0 │
//! │          nt!NtCreateKey     fffff803`1c2a5000 │
//! │ scope  every process                          │
//! │ tag                                           │
//! ╰─ enter set it  tab complete  esc give up ─────╯
//! ```

use ratatui::{layout::Rect, style::Style};
use tui_input::Input;

use super::{keys_below, open, rest};
use crate::{
    engine::snapshot::Scope,
    ui::{
        format,
        layout::centered,
        pen::{Pen, height, width, wrap},
        rows,
        state::{AddDialog, AddField, Confirm, PaneId, Purpose, UiState},
    },
};

/// Candidates shown at a time.
const CANDIDATES: usize = 8;

/// A text field over the first line of an area.
pub(super) fn input(pen: &mut Pen<'_>, area: Rect, input: &Input, focused: bool) {
    if area.width == 0 || area.height == 0 {
        return;
    }
    let line = Rect { height: 1, ..area };
    pen.clear(line, pen.theme.input);
    let scroll = input.visual_scroll(usize::from(area.width.saturating_sub(1)));
    let mut skipped = 0;
    let shown: String = input
        .value()
        .chars()
        .skip_while(|&c| {
            let skip = skipped < scroll;
            skipped += usize::from(width(c.encode_utf8(&mut [0; 4])));
            skip
        })
        .collect();
    pen.text(line, &shown, pen.theme.input);
    if focused {
        let column = input.visual_cursor().saturating_sub(scroll).min(usize::from(area.width - 1)) as u16;
        pen.tint(Rect { x: area.x + column, width: 1, ..line }, pen.theme.cursor);
    }
}

pub(super) fn add(pen: &mut Pen<'_>, screen: Rect, dialog: &AddDialog) {
    const LABELS: u16 = 7;
    let (title, does) = match dialog.purpose {
        Purpose::Breakpoint => ("New breakpoint", "set it"),
        Purpose::Watch => ("Watch an address", "watch it"),
        Purpose::Page => ("Ask for a page", "ask"),
        Purpose::Memory => ("Look at memory", "look"),
    };
    let theme = pen.theme;
    let box_width = 76.min(screen.width);
    let errors = dialog.error.as_deref().map_or_else(Vec::new, |error| wrap(error, box_width.saturating_sub(4)));
    let candidates = dialog.candidates.len().min(CANDIDATES);
    let fields = dialog.purpose.fields();
    let area = centered(screen, box_width, height(fields.len() + candidates + errors.len() + 2));
    let inside = open(pen, area, title);
    let mut y = inside.y;
    let mut next = |lines: usize| {
        let line = Rect { y, height: u16::from(y < inside.bottom()), ..inside };
        y = y.saturating_add(height(lines));
        line
    };
    for &field in fields {
        let line = next(1);
        let focused = field == dialog.field;
        let label = if focused { theme.section } else { theme.label };
        match field {
            AddField::Place => {
                pen.text(line, "place", label);
                input(pen, rest(line, LABELS), &dialog.place, focused);
                if dialog.place.value().is_empty() {
                    let hint = rest(line, LABELS + 2);
                    pen.text(
                        hint,
                        "a symbol or an address, @PID for one process",
                        Style { fg: theme.muted.fg, ..theme.input },
                    );
                }
                let first = rows::offset(0, dialog.chosen.unwrap_or(0), dialog.candidates.len(), candidates);
                for (nth, candidate) in dialog.candidates.iter().enumerate().skip(first).take(candidates) {
                    let row = rest(next(1), LABELS);
                    if row.is_empty() {
                        continue;
                    }
                    let chosen = dialog.chosen == Some(nth);
                    if chosen {
                        pen.tint(row, theme.selected);
                        pen.text(row, &pen.glyphs.selected.to_string(), theme.key);
                    }
                    // A name is worth more than its address.
                    let address = candidate.address.filter(|_| row.width >= 50);
                    let address = address.map_or_else(String::new, |va| format::Address(va.0).to_string());
                    let room = Rect { width: row.width.saturating_sub(width(&address) + 1), ..row };
                    pen.text(rest(room, 2), &candidate.name, theme.symbol);
                    pen.right(row, &address, theme.address);
                }
            }
            AddField::Scope => {
                pen.text(line, "scope", label);
                let (here, process) = match (dialog.scope, &dialog.process) {
                    (Scope::Global, _) => ("every process".to_owned(), None),
                    (Scope::Process(pid), Some((_, name))) => (format!("process {pid} {name}"), Some(name)),
                    (Scope::Process(pid), None) => (format!("process {pid}"), None),
                };
                let hint = match &dialog.process {
                    Some((pid, name)) if process.is_none() => format!("  space: only {pid} {name}"),
                    Some(_) => "  space: every process".to_owned(),
                    None => String::new(),
                };
                let style = if focused { theme.input } else { theme.symbol };
                let line = rest(line, LABELS);
                if focused {
                    pen.clear(line, theme.input);
                }
                let used = pen.text(line, &here, style);
                if focused {
                    pen.text(rest(line, used), &hint, Style { fg: theme.muted.fg, ..theme.input });
                }
            }
            AddField::Tag => {
                pen.text(line, "tag", label);
                input(pen, rest(line, LABELS), &dialog.tag, focused);
            }
        }
    }
    for error in &errors {
        let line = next(1);
        pen.text(line, error, theme.failed);
    }
    keys_below(pen, area, &[("enter", does), ("tab", "complete, next field"), ("esc", "give up")]);
}

pub(super) fn sort(pen: &mut Pen<'_>, screen: Rect, ui: &UiState, pane: PaneId, chosen: usize) {
    let columns = rows::columns(pane);
    let area = centered(screen, 34, height(columns.len()) + 2);
    let inside = open(pen, area, &format!("Sort {}", pane.title()));
    let order = ui.pane(pane).sort;
    let first = rows::offset(0, chosen, columns.len(), usize::from(inside.height));
    for (y, (nth, column)) in (inside.top()..inside.bottom()).zip(columns.iter().enumerate().skip(first)) {
        let row = Rect { y, height: 1, ..inside };
        if nth == chosen {
            pen.tint(row, pen.theme.selected);
            pen.text(row, &pen.glyphs.selected.to_string(), pen.theme.key);
        }
        pen.text(rest(row, 2), column.name, pen.theme.symbol);
        if order.column == column.id {
            let [up, down] = pen.glyphs.sorted;
            let (arrow, word) = if order.descending { (down, "largest first") } else { (up, "smallest first") };
            pen.right(row, &format!("{arrow} {word}"), pen.theme.muted);
        }
    }
    keys_below(pen, area, &[("enter", "sort"), ("esc", "leave")]);
}

pub(super) fn confirm(pen: &mut Pen<'_>, screen: Rect, question: &Confirm) {
    let columns = 60.min(screen.width);
    let text = wrap(&question.text, columns.saturating_sub(4));
    let area = centered(screen, columns, height(text.len()) + 4);
    let inside = open(pen, area, &question.title);
    let room = inside.height.saturating_sub(1);
    for (y, line) in (inside.top()..inside.top() + room).zip(&text) {
        pen.text(Rect { y, height: 1, ..inside }, line, pen.theme.popup);
    }
    let mut line = Rect { y: inside.y + room, height: 1, ..inside };
    for (chosen, key, word) in [(question.chosen_yes, 'y', &question.yes), (!question.chosen_yes, 'n', &question.no)] {
        let mark = if chosen { pen.glyphs.selected } else { ' ' };
        let style = if chosen { pen.theme.cursor } else { pen.theme.popup };
        let used = pen.text(line, &format!(" {mark} {word} ({key}) "), style);
        line = rest(line, used + 2);
    }
}
