//! The screen: `render(&Snapshot, &UiState, &Theme)` and nothing else. Everything here is pure.
//!
//! It imports `engine::snapshot` and `engine::command` (for the words of both), never `app`: what a key does and how
//! it is called comes in as data ([`state::KeyHint`]). Nothing here reads a clock, a file or a terminal.
//!
//! Start at [`state`] (what the screen remembers), then [`rows`] (which rows a pane shows, in which order, and where the
//! selection is). The application calls [`rows::settle`] once before each frame.

pub mod export;
mod footer;
pub mod format;
mod glyphs;
mod header;
pub mod layout;
pub mod memory;
mod panes;
mod pen;
mod popups;
pub mod rows;
pub mod state;
mod tabs;
pub mod theme;

use ratatui::{Frame, layout::Rect};

pub use self::popups::{PopupHit, popup_hit, popup_rows};
use self::{glyphs::Glyphs, pen::Pen, state::UiState, theme::Theme};
use crate::engine::snapshot::Snapshot;

/// Draws one frame. The same arguments give the same picture.
pub fn render(frame: &mut Frame<'_>, snapshot: &Snapshot, ui: &UiState, theme: &Theme) {
    let area = frame.area();
    let mut pen = Pen { buffer: frame.buffer_mut(), theme, glyphs: Glyphs::of(ui.ascii) };
    pen.tint(area, theme.text);
    let regions = layout::regions(area, ui);
    header::draw(&mut pen, regions.header, snapshot, ui);
    tabs::draw(&mut pen, regions.tabs, ui);
    for (id, area) in regions.panes {
        panes::draw(&mut pen, id, area, snapshot, ui);
    }
    footer::draw(&mut pen, regions.footer, ui);
    for popup in &ui.popups {
        popups::draw(&mut pen, area, snapshot, ui, popup);
    }
    let above_footer = Rect { height: area.height - regions.footer.height, ..area };
    footer::notices(&mut pen, above_footer, snapshot, ui);
    if ui.only_ascii {
        for cell in frame.buffer_mut().content.iter_mut().filter(|cell| !cell.symbol().is_ascii()) {
            cell.set_char('?');
        }
    }
}
