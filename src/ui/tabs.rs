//! The line that names all panes while only one is shown.
//!
//! ```text
//!  1 Proc  2 Break  3 Tables  4 Faults  5 Events  6 Log
//! ```

use ratatui::{layout::Rect, style::Modifier};

use super::{
    pen::Pen,
    state::{PaneId, UiState},
};

/// Draws the tabs; the shown one is underlined.
pub(super) fn draw(pen: &mut Pen<'_>, area: Rect, ui: &UiState) {
    let words = area.width >= 56;
    let mut rest = area;
    for id in PaneId::ALL {
        let shown = id == ui.focus;
        let name =
            if words || shown { format!(" {} {} ", id.number(), short(id)) } else { format!(" {} ", id.number()) };
        let style = if shown { pen.theme.title_focused.add_modifier(Modifier::UNDERLINED) } else { pen.theme.muted };
        let used = pen.text(rest, &name, style);
        rest = Rect { x: rest.x + used, width: rest.width - used, ..rest };
    }
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
