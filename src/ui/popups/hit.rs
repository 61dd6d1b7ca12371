//! What of a popup lies under a point of the screen, by the same arithmetic that draws it.

use ratatui::layout::{Position, Rect};

use super::{choose, desk, dialogs, help, inner, place, sheet};
use crate::{
    engine::snapshot::{Snapshot, Va},
    ui::{
        glyphs::Glyphs,
        memory,
        state::{Popup, UiState},
        theme::Theme,
    },
};

/// What lies under a point while a popup is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PopupHit {
    /// Beside the popup.
    Outside,
    /// The popup, but nothing that could be chosen.
    Inside,
    /// An item of its list, by its index.
    Item(usize),
    /// A byte or an instruction of the memory view.
    Address(Va),
    /// An answer to its question: whether it is yes.
    Answer(bool),
}

/// What lies under a point, seen by the topmost popup.
pub fn popup_hit(snapshot: &Snapshot, ui: &UiState, x: u16, y: u16) -> PopupHit {
    let screen = Rect { x: 0, y: 0, width: ui.size.0, height: ui.size.1 };
    let point = Position { x, y };
    let Some(popup) = ui.popups.last() else { return PopupHit::Outside };
    let item = |list: Rect, first: usize, total: usize| {
        let nth = first + usize::from(y.saturating_sub(list.y));
        (list.contains(point) && nth < total).then_some(PopupHit::Item(nth))
    };
    let (area, hit) = match popup {
        Popup::Detail { .. } | Popup::Event { .. } | Popup::Burst { .. } | Popup::Message { .. } => {
            let theme = Theme::plain();
            let desk = desk(screen, snapshot, ui, &theme, Glyphs::of(ui.ascii));
            (sheet(&desk, popup).map_or_else(Rect::default, |sheet| place(screen, &sheet)), None)
        }
        Popup::Memory(view) => (memory::area(ui), memory::address_at(snapshot, ui, view, x, y).map(PopupHit::Address)),
        Popup::Help { .. } => (help::place(screen), None),
        Popup::Palette { found, chosen, .. } => {
            let (area, list, first) = help::palette_place(screen, found.len(), *chosen);
            (area, item(list, first, found.len()))
        }
        Popup::Sort { pane, chosen } => {
            let (area, first) = dialogs::sort_place(screen, *pane, *chosen);
            (area, item(inner(area), first, crate::ui::rows::columns(*pane).len()))
        }
        Popup::Add(dialog) => {
            let area = dialogs::add_place(screen, dialog);
            let inside = inner(area);
            let line = usize::from(y.saturating_sub(inside.y)).checked_sub(1).filter(|_| inside.contains(point));
            let candidate = line.and_then(|line| dialogs::candidate_at(dialog, line));
            (area, candidate.map(PopupHit::Item))
        }
        Popup::Confirm(question) => {
            let text = dialogs::confirm_text(screen, question).len();
            let (area, [yes, no]) = dialogs::confirm_place(screen, question, text);
            let answer = yes.contains(point).then_some(true).or(no.contains(point).then_some(false));
            (area, answer.map(PopupHit::Answer))
        }
        Popup::Ask(ask) => (choose::ask_place(screen, ask), None),
        Popup::Choose(list) => {
            let (area, first) = choose::choose_place(screen, list);
            (area, item(inner(area), first, list.items.len()))
        }
        Popup::Filter { .. } | Popup::Find(_) => {
            (Rect { y: screen.bottom().saturating_sub(1), height: 1, ..screen }, None)
        }
    };
    match hit {
        Some(hit) => hit,
        None if area.contains(point) => PopupHit::Inside,
        None => PopupHit::Outside,
    }
}
