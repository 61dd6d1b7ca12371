//! vmscope: watch and steer a live virtual machine from outside it, in a terminal.
//!
//! The house, from the ground up: [`engine`] watches the guest and publishes immutable snapshots; `ui` draws a
//! snapshot; `app` turns keys into actions and actions into commands for the engine. Start reading at
//! [`engine::snapshot`] (what exists), then `app::action` (what can be done), then `engine::monitor` (how it is done).

pub mod app;
pub mod cli;
pub mod engine;
pub mod guests;
pub mod nearest;
pub mod ui;
