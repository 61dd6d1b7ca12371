//! How a page is kept from the guest while a shadow of it is made and shown.

use crate::engine::{
    addr::{Gfn, View},
    driver::{MemoryAccess, VmiDriver, VmiSetProtection},
    error::VmiError,
    session::VmiCore,
};

/// What is done to a page before a shadow of it is made. Showing the page itself again undoes it.
pub(super) trait Closing<Driver: VmiDriver> {
    /// Whether anything is done.
    const CLOSES: bool;

    /// Keeps the guest from reading and writing the page in a view.
    ///
    /// # Errors
    /// As the driver failed; nothing has changed then.
    fn close(vmi: &VmiCore<Driver>, gfn: Gfn, view: View) -> Result<(), VmiError>;
}

/// Nothing is done: who calls the interceptor itself closes the page, pauses the guest, or does not mind.
pub(super) struct LeftOpen;

impl<Driver: VmiDriver> Closing<Driver> for LeftOpen {
    const CLOSES: bool = false;

    fn close(_: &VmiCore<Driver>, _: Gfn, _: View) -> Result<(), VmiError> {
        Ok(())
    }
}

/// The guest may execute the page, and any other access raises an event.
pub(super) struct ExecuteOnly;

impl<Driver: VmiSetProtection> Closing<Driver> for ExecuteOnly {
    const CLOSES: bool = true;

    fn close(vmi: &VmiCore<Driver>, gfn: Gfn, view: View) -> Result<(), VmiError> {
        vmi.set_memory_access(gfn, view, MemoryAccess::X)
    }
}
