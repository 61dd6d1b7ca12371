//! The line that names all panes while only one is shown.
//!
//! ```text
//!  1 Proc  2 Break  3 Tables  4 Faults  5 Events  6 Log
//! ```

use ratatui::{layout::Rect, style::Modifier};

use super::{
    pen::{Pen, width},
    state::{PaneId, UiState},
};

/// Draws the tabs; the shown one is underlined.
pub(super) fn draw(pen: &mut Pen<'_>, area: Rect, ui: &UiState) {
    for (id, spot, name) in spots(area, ui) {
        let shown = id == ui.focus;
        let style = if shown { pen.theme.title_focused.add_modifier(Modifier::UNDERLINED) } else { pen.theme.muted };
        pen.text(spot, &name, style);
    }
}

/// Where each tab is, and what it says.
pub(super) fn spots(area: Rect, ui: &UiState) -> impl Iterator<Item = (PaneId, Rect, String)> {
    let (words, focus, mut rest) = (area.width >= 56, ui.focus, area);
    PaneId::ALL.into_iter().map(move |id| {
        let name = if words || id == focus {
            format!(" {} {} ", id.number(), short(id))
        } else {
            format!(" {} ", id.number())
        };
        let used = width(&name).min(rest.width);
        let spot = Rect { width: used, ..rest };
        rest = Rect { x: rest.x + used, width: rest.width - used, ..rest };
        (id, spot, name)
    })
}

const fn short(id: PaneId) -> &'static str {
    match id {
        PaneId::Processes => "Procs",
        PaneId::Breakpoints => "Breaks",
        PaneId::Tables => "Tables",
        PaneId::Faults => "Faults",
        PaneId::Events => "Events",
        PaneId::Log => "Log",
    }
}
