//! Breakpoints by permission.

use std::marker::PhantomData;

use super::TapController;
use crate::engine::{
    addr::{Gfn, Pa, View},
    arch::{Architecture, EventReason},
    driver::{MemoryAccess, VmiProtection},
    error::VmiError,
    event::VmiEvent,
    session::VmiCore,
};

/// Takes the execute permission from a page with breakpoints. Nothing is patched; every instruction of the page raises
/// an event, and those at another address are stepped over.
pub struct MemoryController<Driver>(PhantomData<fn() -> Driver>);

impl<Driver: VmiProtection> TapController for MemoryController<Driver> {
    type Driver = Driver;

    fn new() -> Self {
        Self(PhantomData)
    }

    fn check_event(&self, event: &VmiEvent<Driver::Architecture>) -> Option<(View, Gfn)> {
        let access = event.reason().as_memory_access()?;
        let view = event.view()?;
        access.access.contains(MemoryAccess::X).then(|| (view, Driver::Architecture::gfn_from_pa(access.pa)))
    }

    fn insert_breakpoint(&mut self, _: &VmiCore<Driver>, _: Pa, _: View) -> Result<(), VmiError> {
        Ok(())
    }

    fn remove_breakpoint(&mut self, _: &VmiCore<Driver>, _: Pa, _: View) -> Result<(), VmiError> {
        Ok(())
    }

    fn monitor(&mut self, vmi: &VmiCore<Driver>, gfn: Gfn, view: View) -> Result<(), VmiError> {
        // Whatever else is taken from the page, by the page table monitor say, stays taken.
        let access = vmi.memory_access(gfn, view)?;
        vmi.set_memory_access(gfn, view, access.without(MemoryAccess::X))
    }

    fn unmonitor(&mut self, vmi: &VmiCore<Driver>, gfn: Gfn, view: View) -> Result<(), VmiError> {
        let access = vmi.memory_access(gfn, view)?;
        vmi.set_memory_access(gfn, view, access.union(MemoryAccess::X))
    }
}
