//! Breakpoint instructions in shadow pages.

use super::TapController;
use crate::engine::{
    addr::{AccessContext, Gfn, Pa, Va, View},
    arch::{Architecture, EventReason, Registers},
    bpm::{Interceptor, closing::ExecuteOnly},
    driver::{MemoryAccess, VmiDriver, VmiMemory, VmiRead, VmiSetProtection, VmiViewControl, VmiVmControl, VmiWrite},
    error::VmiError,
    event::VmiEvent,
    session::VmiCore,
};

/// Puts the architecture's breakpoint instruction into a shadow page that the guest may execute, but neither read nor
/// write, from before it is shown until after it is hidden: the vCPUs may run meanwhile.
///
/// A read raises an event and is answered by a step in the default view, where the page is as the guest left it. A write
/// is answered in the same way; after the step [`BreakpointController::guest_wrote`] brings the shadow up to date.
pub struct BreakpointController<Driver: VmiDriver> {
    interceptor: Interceptor<Driver>,
}

impl<Driver: VmiRead> BreakpointController<Driver> {
    /// Whether the guest's own memory has a breakpoint instruction where this event was raised: if so and no breakpoint
    /// of ours is known there, the interrupt is the guest's and is reinjected. If not, the event is left over from a
    /// breakpoint that was just removed, and the instruction is stepped over in the default view.
    ///
    /// # Errors
    /// When the guest's memory cannot be read.
    pub fn is_breakpoint(vmi: &VmiCore<Driver>, event: &VmiEvent<Driver::Architecture>) -> Result<bool, VmiError> {
        let Some(gfn) = event.reason().as_software_breakpoint() else { return Ok(false) };
        let instruction = Driver::Architecture::BREAKPOINT;
        let va = Va(event.registers().instruction_pointer());
        let offset = Driver::Architecture::va_offset(va);
        // The guest may put prefixes before the instruction; the event is raised at the first of them.
        let prefixes = event.reason().instruction_length().saturating_sub(instruction.len() as u64);
        let at: AccessContext = if offset + prefixes < Driver::Architecture::PAGE_SIZE {
            AccessContext::Direct(Driver::Architecture::pa_from_gfn(gfn) + offset + prefixes)
        } else {
            event.registers().access_context(va + prefixes)
        };
        let mut bytes = [0; 8];
        let Some(found) = bytes.get_mut(..instruction.len()) else { return Ok(false) };
        vmi.read(at, found)?;
        Ok(found == instruction)
    }
}

impl<Driver> BreakpointController<Driver>
where
    Driver: VmiMemory + VmiViewControl + VmiVmControl,
{
    /// The guest wrote to a page: its shadows follow. Answers whether it has any.
    ///
    /// # Errors
    /// As [`Interceptor::guest_wrote`].
    pub fn guest_wrote(&mut self, vmi: &VmiCore<Driver>, gfn: Gfn) -> Result<bool, VmiError> {
        self.interceptor.guest_wrote(vmi, gfn)
    }

    /// Whether an event of a breakpoint that nobody waits for is our doing all the same: left over from a breakpoint that
    /// was just removed, or of one that is for another address space. The guest's own frame holds an INT3 only if the
    /// guest put it there; where that cannot be read, one that is ours is not given to the guest, whose end it would be.
    pub fn is_left_over(&self, vmi: &VmiCore<Driver>, event: &VmiEvent<Driver::Architecture>) -> bool {
        match Self::is_breakpoint(vmi, event) {
            Ok(is_the_guests) => !is_the_guests,
            Err(_) => self.interceptor.contains_breakpoint(event),
        }
    }

    /// The shadow pages.
    pub fn interceptor(&self) -> &Interceptor<Driver> {
        &self.interceptor
    }
}

impl<Driver> TapController for BreakpointController<Driver>
where
    Driver: VmiRead + VmiWrite + VmiSetProtection + VmiViewControl + VmiVmControl,
{
    type Driver = Driver;

    fn new() -> Self {
        Self { interceptor: Interceptor::new() }
    }

    fn check_event(&self, event: &VmiEvent<Driver::Architecture>) -> Option<(View, Gfn)> {
        Some((event.view()?, event.reason().as_software_breakpoint()?))
    }

    fn insert_breakpoint(&mut self, vmi: &VmiCore<Driver>, pa: Pa, view: View) -> Result<(), VmiError> {
        self.interceptor.insert::<ExecuteOnly>(vmi, pa, view).map(|_| ())
    }

    fn remove_breakpoint(&mut self, vmi: &VmiCore<Driver>, pa: Pa, view: View) -> Result<(), VmiError> {
        self.interceptor.remove::<ExecuteOnly>(vmi, pa, view, false).map(|_| ())
    }

    fn is_installed(&self, pa: Pa, view: View) -> bool {
        self.interceptor.saved_bytes(view, pa).is_some()
    }

    fn monitor(&mut self, vmi: &VmiCore<Driver>, gfn: Gfn, view: View) -> Result<(), VmiError> {
        vmi.set_memory_access(gfn, view, MemoryAccess::X)
    }

    fn unmonitor(&mut self, vmi: &VmiCore<Driver>, gfn: Gfn, view: View) -> Result<(), VmiError> {
        vmi.set_memory_access(gfn, view, MemoryAccess::RWX)
    }

    fn release(&mut self, vmi: &VmiCore<Driver>) -> Result<(), VmiError> {
        self.interceptor.free_all(vmi)
    }
}
