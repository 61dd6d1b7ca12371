//! The page table monitor: tells when a monitored address is mapped, unmapped or moved to another frame.
//!
//! Imports the session and below. Start at [`PageTableMonitorEvent`], what comes out of it.

mod event;

pub use self::event::{PageEntryUpdate, PageTableMonitorEvent};
