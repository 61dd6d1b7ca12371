//! The screen: `render(&Snapshot, &UiState, &Theme)` and nothing else. Everything here is pure.
//!
//! It imports `engine::snapshot` and `engine::command` (for the words of both), never `app`: what a key does and how
//! it is called comes in as data ([`state::KeyHint`]). Nothing here reads a clock, a file or a terminal.
//!
//! Start at [`state`] (what the screen remembers), then [`rows`] (which rows a pane shows, in which order, and where the
//! selection is). The application calls [`rows::settle`] once before each frame.

pub mod format;
pub mod layout;
pub mod rows;
pub mod state;
