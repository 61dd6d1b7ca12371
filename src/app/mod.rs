//! The application: keys become actions, actions become commands for the engine, snapshots become frames.
//!
//! It knows [`crate::ui`] and, of the engine, only [`snapshot`](crate::engine::snapshot) and
//! [`command`](crate::engine::command). Start at `action` (what can be done), then `update` (what it does to the
//! state of the screen, without any I/O), then `event_loop` (the only place that reads input, talks to the engine
//! and draws); `headless` runs the same loop without a terminal.

pub mod action;
pub mod attaching;
pub mod bounded;
pub mod clipboard;
pub mod config;
pub mod console;
pub mod event_loop;
pub mod export;
pub mod headless;
pub mod history;
pub mod input;
pub mod keymap;
pub mod locale;
pub mod logging;
pub mod output;
pub mod saved;
pub mod screenshot;
pub mod script;
pub mod signals;
pub mod start;
pub mod terminal;
pub mod themes;
pub mod update;
