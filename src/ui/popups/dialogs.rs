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

use super::{inner, keys_below, open, rest};
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

fn add_errors(screen: Rect, dialog: &AddDialog) -> Vec<String> {
    dialog.error.as_deref().map_or_else(Vec::new, |error| wrap(error, 76.min(screen.width).saturating_sub(4)))
}

/// The box of a dialog that asks for a place. The place is on its first line, completions are below.
pub(super) fn add_place(screen: Rect, dialog: &AddDialog) -> Rect {
    let candidates = dialog.candidates.len().min(CANDIDATES);
    let lines = dialog.purpose.fields().len() + candidates + add_errors(screen, dialog).len();
    centered(screen, 76.min(screen.width), height(lines + 2))
}

/// The first completion shown.
fn first_candidate(dialog: &AddDialog) -> usize {
    rows::offset(0, dialog.chosen.unwrap_or(0), dialog.candidates.len(), dialog.candidates.len().min(CANDIDATES))
}

/// The completion that is shown on the `line`th line below the place.
pub(super) fn candidate_at(dialog: &AddDialog, line: usize) -> Option<usize> {
    let shown = dialog.candidates.len().min(CANDIDATES);
    (line < shown).then(|| first_candidate(dialog) + line)
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
    let errors = add_errors(screen, dialog);
    let candidates = dialog.candidates.len().min(CANDIDATES);
    let fields = dialog.purpose.fields();
    let area = add_place(screen, dialog);
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
                    let what = match dialog.purpose {
                        Purpose::Memory => "a symbol, an address or a register, @PID for another process",
                        _ => "a symbol or an address, @PID for one process",
                    };
                    pen.text(hint, what, Style { fg: theme.muted.fg, ..theme.input });
                }
                let first = first_candidate(dialog);
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
    let tab = if fields.len() > 1 { "complete, next field" } else { "complete" };
    keys_below(pen, area, &[("enter", does), ("tab", tab), ("esc", "give up")]);
}

/// The box in which a column to sort by is chosen, and the first column shown.
pub(super) fn sort_place(screen: Rect, pane: PaneId, chosen: usize) -> (Rect, usize) {
    let columns = rows::columns(pane).len();
    let area = centered(screen, 34, height(columns) + 2);
    (area, rows::offset(0, chosen, columns, usize::from(inner(area).height)))
}

pub(super) fn sort(pen: &mut Pen<'_>, screen: Rect, ui: &UiState, pane: PaneId, chosen: usize) {
    let columns = rows::columns(pane);
    let (area, first) = sort_place(screen, pane, chosen);
    let inside = open(pen, area, &format!("Sort {}", pane.title()));
    let order = ui.pane(pane).sort;
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

/// The box of a question, and its two answers: yes, no.
pub(super) fn confirm_place(screen: Rect, question: &Confirm, text: usize) -> (Rect, [Rect; 2]) {
    let area = centered(screen, 60.min(screen.width), height(text) + 4);
    let inside = inner(area);
    let line = Rect { y: inside.y + inside.height.saturating_sub(1), height: inside.height.min(1), ..inside };
    // A blank, the mark, and the key in parentheses.
    let yes = Rect { width: (width(&question.yes) + 8).min(line.width), ..line };
    let behind = rest(line, yes.width + 2);
    (area, [yes, Rect { width: (width(&question.no) + 8).min(behind.width), ..behind }])
}

/// The lines of a question.
pub(super) fn confirm_text(screen: Rect, question: &Confirm) -> Vec<String> {
    wrap(&question.text, 60.min(screen.width).saturating_sub(4))
}

pub(super) fn confirm(pen: &mut Pen<'_>, screen: Rect, question: &Confirm) {
    let text = confirm_text(screen, question);
    let (area, answers) = confirm_place(screen, question, text.len());
    let inside = open(pen, area, &question.title);
    let room = inside.height.saturating_sub(1);
    for (y, line) in (inside.top()..inside.top() + room).zip(&text) {
        pen.text(Rect { y, height: 1, ..inside }, line, pen.theme.popup);
    }
    let words = [(question.chosen_yes, 'y', &question.yes), (!question.chosen_yes, 'n', &question.no)];
    for ((chosen, key, word), spot) in words.into_iter().zip(answers) {
        let mark = if chosen { pen.glyphs.selected } else { ' ' };
        let style = if chosen { pen.theme.cursor } else { pen.theme.popup };
        pen.text(spot, &format!(" {mark} {word} ({key}) "), style);
    }
}
