//! How one breakpoint gets into the guest and out of it: one file for each way.
//!
//! `breakpoint` patches a shadow page, `memory` takes the right to execute, `debug` leaves it to a hypervisor that
//! keeps breakpoints outside guest memory. Imports what `bpm` imports. Start at [`TapController`].

mod breakpoint;
mod debug;
mod memory;

pub use self::{breakpoint::BreakpointController, debug::DebugController, memory::MemoryController};

use crate::engine::{
    addr::{AddressContext, Gfn, Pa, Va, View},
    driver::VmiDriver,
    error::VmiError,
    event::VmiEvent,
    session::VmiCore,
};

/// Puts breakpoints into the guest for the [`BreakpointManager`](super::BreakpointManager).
///
/// A call that fails has changed nothing. A breakpoint that is inserted twice at one place is removed twice. Monitoring
/// follows the first insertion in a page and ends after the last removal from it, so that no page is opened while it
/// still shows a breakpoint. On the way out a view that is gone already is no error. The vCPUs run on between the calls:
/// a controller whose breakpoints the guest could see hides them from the moment that it inserts them.
pub trait TapController {
    /// The driver; a controller asks only for the capabilities that it needs.
    type Driver: VmiDriver;

    /// A controller that has put nothing into the guest yet.
    fn new() -> Self;

    /// The view and the frame of an event that one of this controller's breakpoints may have caused.
    fn check_event(&self, event: &VmiEvent<<Self::Driver as VmiDriver>::Architecture>) -> Option<(View, Gfn)>;

    /// Puts a breakpoint at a physical address.
    ///
    /// # Errors
    /// When the driver failed, or where the breakpoint would run past its page.
    fn insert_breakpoint(&mut self, vmi: &VmiCore<Self::Driver>, pa: Pa, view: View) -> Result<(), VmiError>;

    /// Takes a breakpoint out.
    ///
    /// # Errors
    /// When the driver failed; the breakpoint is still there then, unless [`TapController::is_installed`] says otherwise.
    fn remove_breakpoint(&mut self, vmi: &VmiCore<Self::Driver>, pa: Pa, view: View) -> Result<(), VmiError>;

    /// Whether a breakpoint is in the guest, where a call of this controller has failed: a controller that can fail to
    /// undo what it did knows better than that nothing has changed.
    fn is_installed(&self, _pa: Pa, _view: View) -> bool {
        true
    }

    /// Starts to hide a page with breakpoints from the guest, or to report its execution.
    ///
    /// # Errors
    /// When the driver failed.
    fn monitor(&mut self, vmi: &VmiCore<Self::Driver>, gfn: Gfn, view: View) -> Result<(), VmiError>;

    /// Ends what [`TapController::monitor`] started.
    ///
    /// # Errors
    /// When the driver failed.
    fn unmonitor(&mut self, vmi: &VmiCore<Self::Driver>, gfn: Gfn, view: View) -> Result<(), VmiError>;

    /// Puts a breakpoint at a virtual address that maps to `pa`; for controllers that work on virtual addresses.
    ///
    /// # Errors
    /// As [`TapController::insert_breakpoint`].
    #[inline]
    fn insert_breakpoint_at(
        &mut self,
        vmi: &VmiCore<Self::Driver>,
        _ctx: AddressContext,
        pa: Pa,
        view: View,
    ) -> Result<(), VmiError> {
        self.insert_breakpoint(vmi, pa, view)
    }

    /// Takes out what [`TapController::insert_breakpoint_at`] put there.
    ///
    /// # Errors
    /// As [`TapController::remove_breakpoint`].
    #[inline]
    fn remove_breakpoint_at(
        &mut self,
        vmi: &VmiCore<Self::Driver>,
        _ctx: AddressContext,
        pa: Pa,
        view: View,
    ) -> Result<(), VmiError> {
        self.remove_breakpoint(vmi, pa, view)
    }

    /// Whether the guest can see the breakpoint at a virtual address by reading its own code.
    fn is_visible(&self, _vmi: &VmiCore<Self::Driver>, _va: Va) -> bool {
        false
    }

    /// Gives back what was kept for later breakpoints, when all breakpoints are out.
    ///
    /// # Errors
    /// When the driver failed; everything was tried, and what could not be given back is still known.
    fn release(&mut self, _vmi: &VmiCore<Self::Driver>) -> Result<(), VmiError> {
        Ok(())
    }
}
