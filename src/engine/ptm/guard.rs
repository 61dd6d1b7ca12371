//! How writes to page tables are noticed: by write protection where a driver has it, else not at all.

use crate::engine::{
    addr::{Gfn, View},
    driver::{MemoryAccess, MemoryAccessOptions, VmiDriver, VmiQueryProtection, VmiRead, VmiSetProtection},
    error::VmiError,
    session::VmiCore,
};

/// What is done to a page-table page while an entry in it is monitored.
pub trait TableGuard<Driver: VmiDriver> {
    /// What has to be remembered for taking it back.
    type Found: Copy;

    /// Starts guarding a page.
    ///
    /// # Errors
    /// When the driver failed; nothing has changed then.
    fn protect(vmi: &VmiCore<Driver>, gfn: Gfn, view: View) -> Result<Self::Found, VmiError>;

    /// Takes it back. A view or a frame that is gone is not an error: its protection went with it.
    ///
    /// # Errors
    /// When the driver failed; the page is still guarded then.
    fn restore(vmi: &VmiCore<Driver>, gfn: Gfn, view: View, found: Self::Found) -> Result<(), VmiError>;
}

/// Takes write access away, so that every write of the guest's raises an event
/// ([`mark_dirty_entry`](super::PageTableMonitor::mark_dirty_entry)). The processor's own updates of accessed and
/// dirty bits raise none.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteProtect;

impl<Driver> TableGuard<Driver> for WriteProtect
where
    Driver: VmiRead + VmiQueryProtection + VmiSetProtection,
{
    type Found = MemoryAccess;

    fn protect(vmi: &VmiCore<Driver>, gfn: Gfn, view: View) -> Result<MemoryAccess, VmiError> {
        let found = vmi.memory_access(gfn, view)?;
        let options = MemoryAccessOptions { ignore_page_walk_updates: true };
        vmi.set_memory_access_with_options(gfn, view, found.without(MemoryAccess::W), options)?;
        Ok(found)
    }

    fn restore(vmi: &VmiCore<Driver>, gfn: Gfn, view: View, found: MemoryAccess) -> Result<(), VmiError> {
        match vmi.set_memory_access(gfn, view, found) {
            Err(VmiError::ViewNotFound(_) | VmiError::OutOfBounds(_)) => Ok(()),
            result => result,
        }
    }
}

/// Does nothing: for drivers without write events. [`poll`](super::PageTableMonitor::poll) finds the changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unguarded;

impl<Driver: VmiDriver> TableGuard<Driver> for Unguarded {
    type Found = ();

    fn protect(_: &VmiCore<Driver>, _: Gfn, _: View) -> Result<(), VmiError> {
        Ok(())
    }

    fn restore(_: &VmiCore<Driver>, _: Gfn, _: View, (): ()) -> Result<(), VmiError> {
        Ok(())
    }
}
