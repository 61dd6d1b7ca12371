//! The six panes: border, title, names of columns, rows; one file per pane says what its cells hold.
//!
//! ```text
//! ╭ 2 Breakpoints  7 on · 1 pending ──────────── /Nt.*File  3 of 8 ╮
//! │   SYMBOL               ADDRESS              HITS ▾ RATE        │
//! │▸● nt!NtCreateFile      fffff803`1c2a41f0   1,204   ▂▅▇         ┃
//! ╰────────────────────────────────────────────────────────────────╯
//! ```

mod breakpoints;
mod events;
mod faults;
mod log;
mod processes;
mod tables;

use std::borrow::Cow;

use ratatui::{
    layout::Rect,
    style::Style,
    text::{Line, Span},
};

pub(super) use self::{
    breakpoints::state_glyph as breakpoint_glyph, events::kind_style as event_kind_style, events::rate as event_rate,
    faults::state_glyph as fault_glyph,
};
use regex::Regex;

use super::{
    format,
    layout::{PaneParts, pane_parts},
    pen::{Pen, width, wrap},
    rows::{self, Placed, RowRef, Rows},
    state::{Column, PaneId, PaneState, Popup, UiState},
};
use crate::engine::snapshot::{Snapshot, Status};

/// What a cell of a row shows.
struct Cell<'a> {
    text: Cow<'a, str>,
    style: Style,
}

impl<'a> Cell<'a> {
    fn new(text: impl Into<Cow<'a, str>>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

/// Draws a pane.
pub(super) fn draw(pen: &mut Pen<'_>, id: PaneId, area: Rect, snapshot: &Snapshot, ui: &UiState) {
    if area.is_empty() {
        return;
    }
    let parts = pane_parts(area);
    // Under a popup no pane has the keys.
    let covered = ui.popups.iter().any(|popup| !matches!(popup, Popup::Filter { .. }));
    let focused = ui.focus == id && !covered;
    if parts.boxed {
        let border = if focused { pen.theme.border_focused } else { pen.theme.border };
        pen.frame(area, border);
    }
    let pane = ui.pane(id);
    let list = rows::list(snapshot, pane, ui.shaped(id));
    title(pen, parts, focused, snapshot, ui, pane, &list);
    if id == PaneId::Log {
        let inner = parts.heading.union(parts.rows);
        log::draw(pen, inner, ui);
    } else if list.is_empty() {
        empty(pen, parts.heading.union(parts.rows), snapshot, ui, pane, &list);
    } else {
        body(pen, parts, focused, snapshot, ui, pane, &list);
    }
}

/// The title on the left; order, filter and other states on the right where there is room.
fn title(
    pen: &mut Pen<'_>,
    parts: PaneParts,
    focused: bool,
    snapshot: &Snapshot,
    ui: &UiState,
    pane: &PaneState,
    list: &Rows,
) {
    let theme = pen.theme;
    let style = if focused { theme.title_focused } else { theme.title };
    let inset = u16::from(parts.boxed);
    let bar = Rect { x: parts.title.x + inset, width: parts.title.width.saturating_sub(2 * inset), ..parts.title };
    let head = format!(" {} {} ", pane.id.number(), pane.id.title());
    let used = pen.text(bar, &head, style);
    let mut rest = Rect { x: bar.x + used, width: bar.width - used, ..bar };
    let counts = counts(snapshot, pane.id, list, pen.glyphs.dot, rest.width.saturating_sub(2));
    if !counts.is_empty() {
        let used = pen.text(rest, &format!("{counts} "), theme.muted);
        rest = Rect { x: rest.x + used, width: rest.width - used, ..rest };
    }
    let mut states: Vec<(String, Style)> = Vec::new();
    if pane.filter.error().is_some() {
        states.push((format!("/{} does not compile", pane.filter.text()), theme.failed));
    } else if pane.filter.regex().is_some() {
        states.push((format!("/{} {} of {}", pane.filter.text(), list.len(), list.total()), theme.tag));
    }
    if !pane.marks.is_empty() {
        states.push((format!("{} marked", pane.marks.len()), theme.marked));
    }
    if pane.id == PaneId::Processes && snapshot.processes_truncated {
        states.push(("truncated".to_owned(), theme.failed));
    }
    if pane.id == PaneId::Processes && ui.tree {
        states.push(("tree".to_owned(), theme.muted));
    }
    if pane.id == PaneId::Events && pane.follow && ui.past.is_none() && list.total() > 0 {
        states.push(("following".to_owned(), theme.muted));
    }
    if pane.id == PaneId::Log && ui.log.pages_back > 0 {
        states.push(("scrolled back".to_owned(), theme.tag));
    }
    if pane.id == PaneId::Events && snapshot.counters.dropped > 0 {
        states.push((format!("{} dropped", super::format::short_count(snapshot.counters.dropped)), theme.pending));
    }
    if ui.zoom {
        states.push(("zoomed".to_owned(), theme.muted));
    }
    while states.iter().map(|(text, _)| width(text) + 2).sum::<u16>() > rest.width {
        states.pop();
    }
    let total: u16 = states.iter().map(|(text, _)| width(text) + 2).sum();
    let mut x = rest.right().saturating_sub(total);
    for (text, style) in states {
        let room = width(&text) + 2;
        pen.text(Rect { x, width: room, ..rest }, &format!(" {text} "), style);
        x += room;
    }
}

/// How old a list is that could not be read again.
fn old(age_ns: u64) -> String {
    match age_ns / 1_000_000_000 {
        seconds @ 0..60 => format!("{seconds} s old"),
        _ => format!("{} old", format::age(age_ns)),
    }
}

/// The counts behind a title, as many as fit.
fn counts(snapshot: &Snapshot, pane: PaneId, list: &Rows, dot: char, room: u16) -> String {
    let [first, second, third, fourth] = list.tally().states;
    let mut words: Vec<String> = Vec::new();
    let mut say = |count: usize, word: &str| {
        if count > 0 {
            words.push(format!("{count} {word}"));
        }
    };
    match pane {
        PaneId::Processes => {
            if list.total() > 0 {
                let old = snapshot.ages.processes.map_or_else(String::new, |age| format!(", {}", old(age)));
                words.push(format!("({}{old})", list.total()));
            }
            if first > 0 {
                words.push(format!("{first} hidden"));
            }
        }
        PaneId::Breakpoints => {
            say(first, "on");
            say(second, "pending");
            say(third, "off");
            say(fourth, "failed");
        }
        PaneId::Tables => {
            let noun = if list.total() == 1 { "address" } else { "addresses" };
            let age = snapshot.ages.page_tables.map_or_else(String::new, |age| format!(", {}", old(age)));
            say(list.total(), &format!("{noun}{age}"));
            say(usize::try_from(snapshot.tables_monitored).unwrap_or(usize::MAX), "tables");
            if list.total() > 0 {
                words.push(format!("{first} in"));
            }
        }
        PaneId::Faults => {
            say(first, "pending");
            say(second, "injected");
            say(third, "resolved");
            say(fourth, "suppressed");
        }
        PaneId::Events => say(list.total(), "kept"),
        PaneId::Log => {}
    }
    let join = |words: &[String]| {
        let gap = if pane == PaneId::Processes { "" } else { " " };
        if words.is_empty() { String::new() } else { format!("{gap}{}", words.join(&format!(" {dot} "))) }
    };
    while width(&join(&words)) > room && words.pop().is_some() {}
    join(&words)
}

/// Names of columns and rows.
fn body(
    pen: &mut Pen<'_>,
    parts: PaneParts,
    focused: bool,
    snapshot: &Snapshot,
    ui: &UiState,
    pane: &PaneState,
    list: &Rows,
) {
    let columns = rows::fit(pane.id, list, parts.rows.width);
    heading(pen, parts.heading, pane, &columns);
    let height = usize::from(parts.rows.height);
    let selected = rows::selected_place(snapshot, pane, list).unwrap_or(pane.position);
    let first = rows::offset(pane.offset, selected, list.len(), height);
    for (y, (place, row)) in (parts.rows.top()..parts.rows.bottom()).zip((first..).zip(list.from(first))) {
        let line = Rect { y, height: 1, ..parts.rows };
        draw_row(pen, line, snapshot, ui, pane, row, &columns);
        let marked =
            !pane.marks.is_empty() && rows::key(snapshot, pane.id, row).is_some_and(|key| pane.marks.contains(&key));
        if place == selected {
            let style = if focused { pen.theme.selected } else { pen.theme.selected_inactive };
            pen.tint(line, style);
            if focused && !marked {
                pen.cell(line.x, y, pen.glyphs.selected, style);
            }
        }
        if marked {
            pen.cell(line.x, y, pen.glyphs.marked, pen.theme.marked);
        }
    }
    if parts.boxed {
        let column = Rect { x: parts.rows.right(), width: 1, ..parts.rows };
        pen.scrollbar(column, first, list.len());
    }
}

fn heading(pen: &mut Pen<'_>, area: Rect, pane: &PaneState, columns: &[Placed]) {
    if area.is_empty() {
        return;
    }
    for column in columns {
        let sorted = pane.sort.column == column.spec.id;
        let cell = Rect { x: area.x + 1 + column.x, width: column.width, ..area };
        let style = if sorted { pen.theme.heading_sorted } else { pen.theme.heading };
        let mut name = Cow::Borrowed(column.spec.title);
        if sorted && !name.is_empty() {
            let [up, down] = pen.glyphs.sorted;
            let arrow = if pane.sort.descending { down } else { up };
            // The arrow takes the place of the last letters where the name fills its column.
            let letters = usize::from(column.width.saturating_sub(1));
            name = Cow::Owned(name.chars().take(letters).chain([arrow]).collect());
        }
        if column.spec.right {
            pen.right(cell, &name, style);
        } else {
            pen.text(cell, &name, style);
        }
    }
}

fn draw_row(
    pen: &mut Pen<'_>,
    line: Rect,
    snapshot: &Snapshot,
    ui: &UiState,
    pane: &PaneState,
    row: RowRef,
    columns: &[Placed],
) {
    let has = |id| columns.iter().any(|column| column.spec.id == id);
    let (addressed, named, scoped) = (has(Column::Address), has(Column::Process), has(Column::Scope));
    for column in columns {
        let area = Rect { x: line.x + 1 + column.x, width: column.width, ..line };
        let what = column.spec.id;
        let cell = match pane.id {
            PaneId::Processes => processes::cell(pen, snapshot, ui, row, what),
            PaneId::Breakpoints => breakpoints::cell(pen, snapshot, row, what, column.width, (addressed, scoped)),
            PaneId::Tables => tables::cell(pen, snapshot, row, what, column.width, (addressed, named)),
            PaneId::Faults => faults::cell(pen, snapshot, row, what),
            PaneId::Events => events::cell(pen, snapshot, row, what, column.width, named),
            PaneId::Log => None,
        };
        let Some(cell) = cell else { continue };
        if column.spec.right {
            pen.right(area, &cell.text, cell.style);
        } else {
            pen.text(area, &cell.text, cell.style);
            if let Some(regex) = pane.filter.regex() {
                mark_match(pen, area, &cell.text, regex);
            }
        }
    }
}

/// Shows which part of a cell the filter found.
fn mark_match(pen: &mut Pen<'_>, area: Rect, text: &str, regex: &Regex) {
    let Some(found) = regex.find(text).filter(|found| !found.is_empty()) else { return };
    let before = width(text.get(..found.start()).unwrap_or("")).min(area.width);
    let length = width(found.as_str()).min(area.width - before);
    pen.tint(Rect { x: area.x + before, width: length, ..area }, pen.theme.matched);
}

/// Says why there is no row, and what to do about it.
fn empty(pen: &mut Pen<'_>, area: Rect, snapshot: &Snapshot, ui: &UiState, pane: &PaneState, list: &Rows) {
    let sentence = if list.total() > 0 {
        let more = key_sentence(ui, "clear-filter", "see all of them");
        format!("None of {} rows matches /{}.{more}", list.total(), pane.filter.text())
    } else {
        match pane.id {
            PaneId::Processes => processes::empty(snapshot),
            _ if snapshot.status == Status::Attaching => "Comes when the guest is there.".to_owned(),
            PaneId::Breakpoints => breakpoints::empty(snapshot, ui),
            PaneId::Tables => tables::empty(snapshot, ui),
            PaneId::Faults => faults::empty(snapshot, ui),
            PaneId::Events => {
                "Nothing has happened yet. What the guest does at breakpoints and page tables is listed here.".into()
            }
            PaneId::Log => String::new(),
        }
    };
    sentence_in_the_middle(pen, area, &sentence);
}

fn sentence_in_the_middle(pen: &mut Pen<'_>, area: Rect, sentence: &str) {
    let lines = wrap(sentence, area.width.saturating_sub(4).clamp(1, 60));
    let top = area.y + area.height.saturating_sub(lines.len() as u16) / 2;
    for (y, line) in (top..area.bottom()).zip(&lines) {
        let gap = area.width.saturating_sub(width(line)) / 2;
        let row = Rect { x: area.x + gap, y, width: area.width - gap, height: 1 };
        let style = pen.theme.muted;
        pen.line(row, &Line::from(Span::styled(line.as_str(), style)));
    }
}

/// " Press KEY to do this." for an action that has a key, else nothing.
fn key_sentence(ui: &UiState, action: &str, does: &str) -> String {
    let key = ui.help.iter().find(|hint| hint.name == action).and_then(|hint| hint.key.split(' ').next());
    key.filter(|key| !key.is_empty()).map_or_else(String::new, |key| format!(" Press {key} to {does}."))
}

/// A text and its end, which stays when there is no room for both.
fn with_end(text: &str, end: &str, columns: u16, ellipsis: char) -> String {
    if width(text) + width(end) <= columns {
        return format!("{text}{end}");
    }
    let mut start = String::new();
    for c in text.chars() {
        start.push(c);
        if width(&start) + width(end) >= columns {
            start.pop();
            break;
        }
    }
    format!("{start}{ellipsis}{end}")
}

/// A place and the process that it is in, where that has no column of its own.
fn with_process<'a>(pen: &Pen<'_>, place: Cow<'a, str>, pid: Option<u32>, columns: u16) -> Cow<'a, str> {
    match pid {
        Some(pid) => Cow::Owned(with_end(&place, &format!("@{pid}"), columns, pen.glyphs.ellipsis)),
        None => place,
    }
}

/// The cell of a missing value.
fn nothing(pen: &Pen<'_>) -> Cell<'static> {
    Cell::new("-", pen.theme.muted)
}

/// Something optional, in hexadecimal.
fn hex_cell(pen: &Pen<'_>, value: Option<u64>, style: Style) -> Cell<'static> {
    value.map_or_else(|| nothing(pen), |value| Cell::new(format!("{value:x}"), style))
}
