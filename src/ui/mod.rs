//! The screen: `render(&Snapshot, &UiState, &Theme)` and nothing else. Everything here is pure.
//!
//! It imports `engine::snapshot` and `engine::command` (for the words of both), never `app`: what a key does and how
//! it is called comes in as data ([`state::KeyHint`]). Nothing here reads a clock, a file or a terminal.
//!
//! Start at [`state`] (what the screen remembers), then [`rows`] (which rows a pane shows, in which order, and where the
//! selection is). The application calls [`rows::settle`] once before each frame.

pub mod export;
pub mod format;
pub mod layout;
pub mod rows;
pub mod state;
pub mod theme;

use ratatui::Frame;

use self::{state::UiState, theme::Theme};
use crate::engine::snapshot::Snapshot;

/// Draws one frame. The same arguments give the same picture.
pub fn render(frame: &mut Frame<'_>, snapshot: &Snapshot, ui: &UiState, theme: &Theme) {
    let _ = (snapshot, ui);
    let area = frame.area();
    frame.buffer_mut().set_style(area, theme.text);
}
