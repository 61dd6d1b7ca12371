//! A line of text that is asked for, and a list of which one is chosen.
//!
//! ```text
//! ╭ Export ───────────────────────────────╮   ╭ Theme ─────────────────────────╮
//! │ file  vmscope-guest-12s.svg█          │   │   dark           built in      │
//! │ .txt .ansi .svg .png .json            │   │ ▸ light          built in      │
//! ╰─ enter write  esc give up ────────────╯   ╰─ enter keep  esc leave ────────╯
//! ```

use ratatui::layout::Rect;

use super::{dialogs, inner, keys_below, open, rest};
use crate::ui::{
    layout::centered,
    pen::{Pen, height, width, wrap},
    rows,
    state::{Ask, Choose},
};

/// What is said below the field of a question: why not, else what is good to know.
fn below(screen: Rect, ask: &Ask) -> Vec<String> {
    wrap(ask.error.as_ref().unwrap_or(&ask.hint), columns_of_ask(screen).saturating_sub(4))
}

fn columns_of_ask(screen: Rect) -> u16 {
    76.min(screen.width)
}

/// Where the question for a line of text goes.
pub(super) fn ask_place(screen: Rect, ask: &Ask) -> Rect {
    centered(screen, columns_of_ask(screen), height(below(screen, ask).len()) + 3)
}

pub(super) fn ask(pen: &mut Pen<'_>, screen: Rect, ask: &Ask) {
    let style = if ask.error.is_some() { pen.theme.failed } else { pen.theme.muted };
    let area = ask_place(screen, ask);
    let inside = open(pen, area, &ask.title);
    let label = pen.text(inside, &ask.label, pen.theme.section);
    dialogs::input(pen, rest(inside, label + 1), &ask.input, true);
    for (y, line) in (inside.top() + 1..inside.bottom()).zip(&below(screen, ask)) {
        pen.text(Rect { y, height: 1, ..inside }, line, style);
    }
    keys_below(pen, area, &[("enter", &ask.does), ("esc", "give up")]);
}

/// Columns of the names and of what is said of them.
fn widths(choose: &Choose) -> (u16, u16) {
    let widest =
        |of: fn(&(String, String)) -> &String| choose.items.iter().map(|item| width(of(item))).max().unwrap_or(0);
    (widest(|(name, _)| name), widest(|(_, note)| note))
}

/// Where a list goes, and its first item that is shown.
pub(super) fn choose_place(screen: Rect, choose: &Choose) -> (Rect, usize) {
    let (names, notes) = widths(choose);
    let area = centered(screen, (names + notes + 9).clamp(34, 76), height(choose.items.len()).min(20) + 2);
    (area, rows::offset(0, choose.chosen, choose.items.len(), usize::from(inner(area).height)))
}

pub(super) fn choose(pen: &mut Pen<'_>, screen: Rect, choose: &Choose) {
    let (area, first) = choose_place(screen, choose);
    let (names, _) = widths(choose);
    let inside = open(pen, area, &choose.title);
    for (y, (nth, (name, note))) in (inside.top()..inside.bottom()).zip(choose.items.iter().enumerate().skip(first)) {
        let row = Rect { y, height: 1, ..inside };
        if nth == choose.chosen {
            pen.tint(row, pen.theme.selected);
            pen.text(row, &pen.glyphs.selected.to_string(), pen.theme.key);
        }
        pen.text(rest(row, 2), name, pen.theme.symbol);
        pen.text(rest(row, names + 5), note, pen.theme.muted);
    }
    let column = Rect { x: area.right().saturating_sub(1), width: 1, ..inside };
    pen.scrollbar(column, first, choose.items.len());
    keys_below(pen, area, &[("enter", &choose.does), ("esc", "leave"), ("up down", "choose")]);
}
