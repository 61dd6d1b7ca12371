//! What lies above the panes. Things to read are a [`Sheet`] of lines that scrolls in a box; dialogs draw themselves.
//!
//! ```text
//! ╭ Process 648 lsass.exe ─────────────────────── 1-20 of 97 ╮
//! │ parent          528 wininit.exe                          ┃
//! │ command line    C:\Windows\system32\lsass.exe            │
//! ╰──────────────────────────────────────────────────────────╯
//! ```

mod breakpoint;
mod choose;
mod code;
mod dialogs;
mod event;
mod fault;
mod help;
mod hit;
mod memory;
mod process;
mod prompt;
mod sheet;
mod walk;

use ratatui::{
    layout::Rect,
    text::{Line, Span},
};

pub use self::hit::{PopupHit, popup_hit};
use self::sheet::Sheet;
use super::{
    glyphs::Glyphs,
    layout::centered,
    pen::{Pen, width},
    state::{Popup, Severity, UiState},
    theme::Theme,
};
use crate::engine::{
    command::Subject,
    snapshot::{Detail, Snapshot},
};

/// Widest box.
const WIDEST: u16 = 104;

/// What sheets are made from.
struct Desk<'a> {
    snapshot: &'a Snapshot,
    ui: &'a UiState,
    theme: &'a Theme,
    glyphs: &'static Glyphs,
    /// Columns that a line may take.
    columns: u16,
}

/// Draws a popup over the screen.
pub(super) fn draw(pen: &mut Pen<'_>, screen: Rect, snapshot: &Snapshot, ui: &UiState, popup: &Popup) {
    if screen.is_empty() {
        return;
    }
    match popup {
        Popup::Detail { .. } | Popup::Event { .. } | Popup::Burst { .. } | Popup::Message { .. } => {
            let desk = desk(screen, snapshot, ui, pen.theme, pen.glyphs);
            if let Some(sheet) = sheet(&desk, popup) {
                let area = place(screen, &sheet);
                let inner = open(pen, area, &sheet.title);
                lines(pen, area, inner, &sheet, scroll_of(popup));
            }
        }
        Popup::Memory(view) => memory::draw(pen, snapshot, ui, view),
        Popup::Find(dialog) => prompt::find(pen, screen, dialog),
        Popup::Help { search, scroll } => help::draw(pen, screen, ui, search, *scroll),
        Popup::Palette { input, found, chosen } => help::palette(pen, screen, ui, input, found, *chosen),
        Popup::Add(dialog) => dialogs::add(pen, screen, dialog),
        Popup::Sort { pane, chosen } => dialogs::sort(pen, screen, ui, *pane, *chosen),
        Popup::Confirm(question) => dialogs::confirm(pen, screen, question),
        Popup::Ask(ask) => choose::ask(pen, screen, ask),
        Popup::Choose(choose) => choose::choose(pen, screen, choose),
        Popup::Filter { pane, input, .. } => prompt::draw(pen, screen, ui, *pane, input),
    }
}

/// Keeps scrolled popups within their text, so that a key that moves too far is not felt when it moves back.
pub(super) fn clamp_scroll(snapshot: &Snapshot, ui: &mut UiState) {
    let screen = Rect { x: 0, y: 0, width: ui.size.0, height: ui.size.1 };
    let theme = Theme::plain();
    let glyphs = Glyphs::of(ui.ascii);
    let mut popups = std::mem::take(&mut ui.popups);
    for popup in &mut popups {
        let most = match &*popup {
            Popup::Detail { scroll: 0, .. }
            | Popup::Event { scroll: 0, .. }
            | Popup::Burst { scroll: 0, .. }
            | Popup::Message { scroll: 0, .. } => {
                continue;
            }
            Popup::Detail { .. } | Popup::Event { .. } | Popup::Burst { .. } | Popup::Message { .. } => {
                let sheet = sheet(&desk(screen, snapshot, ui, &theme, glyphs), popup);
                sheet.map_or(0, |sheet| {
                    let area = place(screen, &sheet);
                    sheet.lines.len().saturating_sub(usize::from(inner(area).height))
                })
            }
            Popup::Help { search, .. } => help::most_scroll(screen, ui, search),
            Popup::Memory(view) => memory::most_scroll(snapshot, ui, view),
            Popup::Find(_)
            | Popup::Add(_)
            | Popup::Filter { .. }
            | Popup::Sort { .. }
            | Popup::Palette { .. }
            | Popup::Confirm(_)
            | Popup::Ask(_)
            | Popup::Choose(_) => 0,
        };
        if let Some(scroll) = popup.scroll_mut() {
            *scroll = (*scroll).min(most);
        }
    }
    ui.popups = popups;
}

/// The lines that a page up or down moves a popup by, which is as high as it gets when there is something to scroll.
pub fn popup_rows(ui: &UiState, popup: &Popup) -> usize {
    let screen = Rect { x: 0, y: 0, width: ui.size.0, height: ui.size.1 };
    let room = match popup {
        Popup::Help { .. } => help::body(help::place(screen)),
        _ => inner(highest(screen, u16::MAX)),
    };
    usize::from(room.height).max(1)
}

fn desk<'a>(
    screen: Rect,
    snapshot: &'a Snapshot,
    ui: &'a UiState,
    theme: &'a Theme,
    glyphs: &'static Glyphs,
) -> Desk<'a> {
    let columns = screen.width.min(WIDEST).saturating_sub(4).max(1);
    Desk { snapshot, ui, theme, glyphs, columns }
}

const fn scroll_of(popup: &Popup) -> usize {
    match popup {
        Popup::Detail { scroll, .. }
        | Popup::Event { scroll, .. }
        | Popup::Burst { scroll, .. }
        | Popup::Message { scroll, .. } => *scroll,
        _ => 0,
    }
}

/// The text of a popup that is there to be read.
fn sheet(desk: &Desk<'_>, popup: &Popup) -> Option<Sheet> {
    match popup {
        Popup::Detail { subject, .. } => Some(detail(desk, subject)),
        Popup::Event { event, .. } => Some(event::sheet(desk, event)),
        Popup::Burst { events, .. } => Some(event::burst(desk, events)),
        Popup::Message { title, text, severity, .. } => {
            let style = match severity {
                Severity::Info => desk.theme.popup,
                Severity::Warning => desk.theme.pending,
                Severity::Error => desk.theme.failed,
            };
            let mut sheet = Sheet::new(desk, title.clone());
            sheet.text(text, style);
            Some(sheet)
        }
        _ => None,
    }
}

/// The detail that was asked for. Until the engine has it, the row of the snapshot serves where it says enough.
fn detail(desk: &Desk<'_>, subject: &Subject) -> Sheet {
    let snapshot = desk.snapshot;
    let held = snapshot.detail.as_deref();
    match (subject, held) {
        (Subject::Process(pid), Some(Detail::Process(detail))) if detail.process.pid == *pid => {
            process::sheet(desk, detail)
        }
        (Subject::Breakpoint(id), Some(Detail::Breakpoint(detail))) if detail.breakpoint.id == *id => {
            breakpoint::sheet(desk, &detail.breakpoint, Some(&detail.code))
        }
        (Subject::Table(id), Some(Detail::Table(table))) if table.id == *id => walk::sheet(desk, table),
        (Subject::Fault(id), Some(Detail::Fault(fault))) if fault.id == *id => fault::sheet(desk, fault),
        (_, Some(Detail::Gone(why))) => {
            let mut sheet = Sheet::new(desk, "Gone".to_owned());
            sheet.text(why, desk.theme.missing);
            sheet
        }
        (Subject::Breakpoint(id), _) => match snapshot.breakpoints.iter().find(|row| row.id == *id) {
            Some(row) => breakpoint::sheet(desk, row, None),
            None => waiting(desk, "Breakpoint"),
        },
        (Subject::Table(id), _) => match snapshot.page_tables.iter().find(|row| row.id == *id) {
            Some(row) => walk::sheet(desk, row),
            None => waiting(desk, "Page walk"),
        },
        (Subject::Fault(id), _) => match snapshot.faults.iter().find(|row| row.id == *id) {
            Some(row) => fault::sheet(desk, row),
            None => waiting(desk, "Fault"),
        },
        (Subject::Process(pid), _) => waiting(desk, &format!("Process {pid}")),
        (Subject::Memory { .. }, _) => waiting(desk, "Memory"),
    }
}

/// Nothing is known yet.
fn waiting(desk: &Desk<'_>, title: &str) -> Sheet {
    let mut sheet = Sheet::new(desk, title.to_owned());
    let text = if desk.ui.past.is_some() {
        "This was not read when the picture was taken. Go back to the live view to read it now."
    } else {
        "Reading it from the guest."
    };
    sheet.text(text, desk.theme.muted);
    sheet
}

/// Where the box of a sheet goes: in the middle, as high as its text where that fits.
fn place(screen: Rect, sheet: &Sheet) -> Rect {
    highest(screen, u16::try_from(sheet.lines.len()).unwrap_or(u16::MAX))
}

/// A box for so many lines, or for as many as there is room for.
fn highest(screen: Rect, lines: u16) -> Rect {
    let height = lines.saturating_add(2);
    let margin = if screen.height > 20 { 2 } else { 0 };
    centered(screen, WIDEST.min(screen.width), height.clamp(6, screen.height.saturating_sub(margin).max(6)))
}

/// The room within a box.
fn inner(area: Rect) -> Rect {
    if area.width < 8 || area.height < 3 {
        return area;
    }
    Rect { x: area.x + 2, y: area.y + 1, width: area.width - 4, height: area.height - 2 }
}

/// Empties a box, draws its border and title, and answers the room within.
fn open(pen: &mut Pen<'_>, area: Rect, title: &str) -> Rect {
    let theme = pen.theme;
    pen.clear(area, theme.popup);
    let inner = inner(area);
    if inner != area {
        pen.frame(area, theme.popup_border);
        let bar = Rect { x: area.x + 1, width: area.width - 2, height: 1, ..area };
        pen.text(bar, &format!(" {title} "), theme.popup_title);
    }
    inner
}

/// Keys of a popup in which text is typed, on its lower border.
fn keys_below(pen: &mut Pen<'_>, area: Rect, keys: &[(&str, &str)]) {
    if area.height < 3 || area.width < 8 {
        return;
    }
    let bar = Rect { x: area.x + 2, y: area.bottom() - 1, width: area.width - 4, height: 1 };
    let mut left = bar;
    for (key, does) in keys {
        if width(key) + width(does) + 3 > left.width {
            break;
        }
        let key = Span::styled(format!(" {key} "), pen.theme.key);
        let line = Line::from(vec![key, Span::styled(format!("{does} "), pen.theme.muted)]);
        let used = pen.line(left, &line);
        left = rest(left, used);
    }
}

/// Draws the part of a sheet that is scrolled to.
fn lines(pen: &mut Pen<'_>, area: Rect, inner: Rect, sheet: &Sheet, scroll: usize) {
    let height = usize::from(inner.height);
    let total = sheet.lines.len();
    let first = scroll.min(total.saturating_sub(height));
    for (y, line) in (inner.top()..inner.bottom()).zip(sheet.lines.iter().skip(first)) {
        pen.line(Rect { y, height: 1, ..inner }, line);
    }
    if total > height && inner != area {
        let where_in_it = format!(" {}-{} of {total} ", first + 1, (first + height).min(total));
        let room = area.width.saturating_sub(width(&sheet.title) + 5);
        let bar = Rect { x: area.right() - 1 - room.min(area.width - 2), width: room, y: area.y, height: 1 };
        if width(&where_in_it) <= room {
            pen.right(bar, &where_in_it, pen.theme.popup_border);
        }
        let column = Rect { x: area.right() - 1, y: inner.y, width: 1, height: inner.height };
        pen.scrollbar(column, first, total);
    }
}

/// What is left of a line behind its first `used` columns.
pub(super) fn rest(area: Rect, used: u16) -> Rect {
    let used = used.min(area.width);
    Rect { x: area.x + used, width: area.width - used, ..area }
}
