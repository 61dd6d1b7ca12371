//! What differs between drivers, chosen at compile time.

use std::time::Duration;

use crate::engine::{
    addr::{Gfn, View},
    arch::amd64::{Amd64, EventMonitor, ExceptionVector},
    bpm::TapController,
    driver::{
        MemoryAccess, VmiDriver, VmiEventControl, VmiFullDriver, VmiQueryRegisters, VmiRead, VmiStep, VmiVmControl,
    },
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
    faults::FaultDelivery,
    ptm::TableGuard,
    session::VmiCore,
};

/// The time over which a breakpoint's hits are counted to tell a storm from a burst.
pub const STORM_SECONDS: u32 = 5;

/// A driver together with the ways in which the monitor works on it.
pub trait Platform:
    VmiDriver<Architecture = Amd64> + VmiRead + VmiQueryRegisters + VmiEventControl + VmiVmControl + VmiStep + Sized
{
    /// The driver's name in a snapshot.
    const KIND: &'static str;
    /// How often page tables are read again; `None` where writes to them raise events.
    const TABLE_POLL: Option<Duration>;
    /// Whether switches of address spaces (writes to CR3) can be reported.
    const REPORTS_SWITCHES: bool;
    /// How often the registers of running vCPUs are read.
    const VCPU_POLL: Duration;

    /// How breakpoints get into the guest.
    type Tap: TapController<Driver = Self>;
    /// How writes to page tables are noticed.
    type Guard: TableGuard<Self>;
    /// How missing pages are asked for.
    type Delivery: FaultDelivery<Self>;

    /// How long the guest stands for a hit, as far as that was measured and matters.
    fn hit_cost(_: &VmiCore<Self>) -> Option<Duration> {
        None
    }

    /// Hits of one breakpoint a second, over [`STORM_SECONDS`], above which it is a storm.
    fn storm_limit(vmi: &VmiCore<Self>) -> u32;

    /// Makes ready for breakpoints and monitored tables; the answer is the view that they are installed in.
    ///
    /// # Errors
    /// When the driver refuses, for example because it is read-only.
    fn enter(vmi: &VmiCore<Self>) -> Result<View, VmiError>;

    /// Takes back what [`Platform::enter`] did.
    ///
    /// # Errors
    /// When the driver fails; what could be taken back was.
    fn leave(vmi: &VmiCore<Self>, view: View) -> Result<(), VmiError>;

    /// Whether a breakpoint event that nobody waits for is our doing all the same: it is left over from a breakpoint that
    /// was just removed, or of one that is for another address space. The guest's own INT3 is not.
    fn is_left_over(tap: &Self::Tap, vmi: &VmiCore<Self>, event: &VmiEvent<Amd64>) -> bool;

    /// The guest wrote to a frame that has breakpoints: they follow.
    ///
    /// # Errors
    /// When the driver fails; the breakpoints then show the guest's code as it was before.
    fn guest_wrote(tap: &mut Self::Tap, vmi: &VmiCore<Self>, gfn: Gfn) -> Result<(), VmiError>;

    /// Lets the instruction under a breakpoint, or one that touched a protected page, run as if we were not there.
    fn step_over(vmi: &VmiCore<Self>) -> VmiEventResponse<Amd64>;

    /// The same, with a singlestep event behind the instruction.
    fn step_and_tell(vmi: &VmiCore<Self>) -> VmiEventResponse<Amd64>;

    /// Goes on in our view after that event.
    fn stepped(view: View) -> VmiEventResponse<Amd64>;
}

/// What every driver with second-level page tables does alike: a view of our own, breakpoints in shadow pages.
pub(in crate::engine) mod second_level {
    use super::*;

    pub(in crate::engine) fn enter<D>(vmi: &VmiCore<D>) -> Result<View, VmiError>
    where
        D: VmiFullDriver<Architecture = Amd64>,
    {
        let view = vmi.create_view(MemoryAccess::RWX)?;
        let ready = vmi
            .monitor_enable(EventMonitor::Interrupt(ExceptionVector::BREAKPOINT))
            .and_then(|()| vmi.monitor_enable(EventMonitor::Singlestep))
            .and_then(|()| vmi.switch_to_view(view));
        if let Err(error) = ready {
            // The view alone changes nothing in the guest; failing to destroy it too is said by the teardown.
            let _ = leave(vmi, view);
            return Err(error);
        }
        Ok(view)
    }

    pub(in crate::engine) fn leave<D>(vmi: &VmiCore<D>, view: View) -> Result<(), VmiError>
    where
        D: VmiFullDriver<Architecture = Amd64>,
    {
        let steps = [
            vmi.switch_to_view(vmi.default_view()),
            vmi.monitor_disable(EventMonitor::Interrupt(ExceptionVector::BREAKPOINT)),
            vmi.monitor_disable(EventMonitor::Singlestep),
            vmi.destroy_view(view),
        ];
        steps.into_iter().collect()
    }
}
