//! Breakpoints that the hypervisor keeps.

use std::marker::PhantomData;

use hashbrown::{HashMap, hash_map::Entry};

use super::TapController;
use crate::engine::{
    addr::{AddressContext, Gfn, Pa, Va, View},
    arch::EventReason,
    driver::{VmiDebugControl, VmiDriver},
    error::VmiError,
    event::VmiEvent,
    session::VmiCore,
};

/// Asks the hypervisor to stop at a virtual address (QEMU's gdb stub).
///
/// Such a breakpoint holds in every address space, and a second one at the same address would have to be taken out
/// twice: each address is asked for once and counted here. Without views, all breakpoints are in view 0.
pub struct DebugController<Driver> {
    references: HashMap<Va, u32>,
    driver: PhantomData<fn() -> Driver>,
}

/// What only works on virtual addresses.
fn needs_address() -> VmiError {
    VmiError::Unsupported { what: "a breakpoint at a physical address in a debugger stub" }
}

impl<Driver: VmiDebugControl> TapController for DebugController<Driver> {
    type Driver = Driver;

    fn new() -> Self {
        Self { references: HashMap::new(), driver: PhantomData }
    }

    fn check_event(&self, event: &VmiEvent<<Driver as VmiDriver>::Architecture>) -> Option<(View, Gfn)> {
        Some((event.view().unwrap_or(View(0)), event.reason().as_software_breakpoint()?))
    }

    fn insert_breakpoint(&mut self, _: &VmiCore<Driver>, _: Pa, _: View) -> Result<(), VmiError> {
        Err(needs_address())
    }

    fn remove_breakpoint(&mut self, _: &VmiCore<Driver>, _: Pa, _: View) -> Result<(), VmiError> {
        Err(needs_address())
    }

    fn monitor(&mut self, _: &VmiCore<Driver>, _: Gfn, _: View) -> Result<(), VmiError> {
        Ok(())
    }

    fn unmonitor(&mut self, _: &VmiCore<Driver>, _: Gfn, _: View) -> Result<(), VmiError> {
        Ok(())
    }

    fn insert_breakpoint_at(
        &mut self,
        vmi: &VmiCore<Driver>,
        ctx: AddressContext,
        pa: Pa,
        _: View,
    ) -> Result<(), VmiError> {
        match self.references.entry(ctx.va) {
            Entry::Occupied(mut entry) => *entry.get_mut() += 1,
            Entry::Vacant(entry) => {
                vmi.driver().set_breakpoint(ctx, pa)?;
                entry.insert(1);
            }
        }
        Ok(())
    }

    fn remove_breakpoint_at(
        &mut self,
        vmi: &VmiCore<Driver>,
        ctx: AddressContext,
        _: Pa,
        _: View,
    ) -> Result<(), VmiError> {
        let Entry::Occupied(mut entry) = self.references.entry(ctx.va) else { return Ok(()) };
        if *entry.get() > 1 {
            *entry.get_mut() -= 1;
        } else {
            vmi.driver().clear_breakpoint(ctx.va)?;
            entry.remove();
        }
        Ok(())
    }
    fn is_visible(&self, vmi: &VmiCore<Driver>, va: Va) -> bool {
        vmi.driver().is_breakpoint_visible(va)
    }
}
