//! What the page table monitor reports.

use crate::engine::addr::{AddressContext, Pa, View};

/// A change of what a monitored address maps to.
///
/// An address that moves from one frame to another is reported as a page-out of the old frame followed by a page-in
/// of the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageTableMonitorEvent {
    /// The address is mapped now.
    PageIn(PageEntryUpdate),
    /// The address is no longer mapped to this frame.
    PageOut(PageEntryUpdate),
}

/// One monitored address and the physical address that it maps to (page-in) or mapped to (page-out).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageEntryUpdate {
    /// The view that the address was monitored in.
    pub view: View,
    /// The monitored address.
    pub ctx: AddressContext,
    /// The physical address of the byte at the monitored address, offset included.
    pub pa: Pa,
}

impl PageTableMonitorEvent {
    /// The address and what it maps to, whichever way it went.
    pub fn update(&self) -> &PageEntryUpdate {
        match self {
            Self::PageIn(update) | Self::PageOut(update) => update,
        }
    }

    /// Whether the address came in.
    pub fn is_page_in(&self) -> bool {
        matches!(self, Self::PageIn(_))
    }
}
