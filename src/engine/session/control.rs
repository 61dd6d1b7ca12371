//! The rest of a driver through the core: registers, permissions, views, the machine, events.

use std::time::Duration;

use super::core::VmiCore;
use crate::engine::{
    addr::{Gfn, VcpuId, View},
    arch::Architecture,
    driver::{
        MemoryAccess, MemoryAccessOptions, RegistersOf, VmiEventControl, VmiQueryProtection, VmiQueryRegisters,
        VmiSetProtection, VmiSetRegisters, VmiViewControl, VmiVmControl,
    },
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
};

impl<Driver: VmiQueryRegisters> VmiCore<Driver> {
    /// The registers of a vCPU.
    ///
    /// # Errors
    /// As [`VmiQueryRegisters::registers`].
    pub fn registers(&self, vcpu: VcpuId) -> Result<RegistersOf<Driver>, VmiError> {
        self.driver().registers(vcpu)
    }
}

impl<Driver: VmiSetRegisters> VmiCore<Driver> {
    /// Sets the registers of a vCPU.
    ///
    /// # Errors
    /// As [`VmiSetRegisters::set_registers`].
    pub fn set_registers(&self, vcpu: VcpuId, registers: RegistersOf<Driver>) -> Result<(), VmiError> {
        self.driver().set_registers(vcpu, registers)
    }
}

impl<Driver: VmiQueryProtection> VmiCore<Driver> {
    /// The permissions of a frame in a view.
    ///
    /// # Errors
    /// As [`VmiQueryProtection::memory_access`].
    pub fn memory_access(&self, gfn: Gfn, view: View) -> Result<MemoryAccess, VmiError> {
        self.driver().memory_access(gfn, view)
    }
}

impl<Driver: VmiSetProtection> VmiCore<Driver> {
    /// Sets the permissions of a frame in a view.
    ///
    /// # Errors
    /// As [`VmiSetProtection::set_memory_access`].
    pub fn set_memory_access(&self, gfn: Gfn, view: View, access: MemoryAccess) -> Result<(), VmiError> {
        self.driver().set_memory_access(gfn, view, access)
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`VmiSetProtection::set_memory_access_with_options`].
    pub fn set_memory_access_with_options(
        &self,
        gfn: Gfn,
        view: View,
        access: MemoryAccess,
        options: MemoryAccessOptions,
    ) -> Result<(), VmiError> {
        self.driver().set_memory_access_with_options(gfn, view, access, options)
    }
}

impl<Driver: VmiViewControl> VmiCore<Driver> {
    /// The view that a machine without us runs in.
    pub fn default_view(&self) -> View {
        self.driver().default_view()
    }

    /// Makes a view.
    ///
    /// # Errors
    /// As [`VmiViewControl::create_view`].
    pub fn create_view(&self, default_access: MemoryAccess) -> Result<View, VmiError> {
        self.driver().create_view(default_access)
    }

    /// Destroys a view.
    ///
    /// # Errors
    /// As [`VmiViewControl::destroy_view`].
    pub fn destroy_view(&self, view: View) -> Result<(), VmiError> {
        self.driver().destroy_view(view)
    }

    /// Puts all vCPUs into a view.
    ///
    /// # Errors
    /// As [`VmiViewControl::switch_to_view`].
    pub fn switch_to_view(&self, view: View) -> Result<(), VmiError> {
        self.driver().switch_to_view(view)
    }

    /// Makes a frame show another frame's contents in a view.
    ///
    /// # Errors
    /// As [`VmiViewControl::change_view_gfn`].
    pub fn change_view_gfn(&self, view: View, old_gfn: Gfn, new_gfn: Gfn) -> Result<(), VmiError> {
        self.driver().change_view_gfn(view, old_gfn, new_gfn)
    }

    /// Makes a frame show its own contents again.
    ///
    /// # Errors
    /// As [`VmiViewControl::reset_view_gfn`].
    pub fn reset_view_gfn(&self, view: View, gfn: Gfn) -> Result<(), VmiError> {
        self.driver().reset_view_gfn(view, gfn)
    }
}

impl<Driver: VmiVmControl> VmiCore<Driver> {
    /// Stops all vCPUs.
    ///
    /// # Errors
    /// As [`VmiVmControl::pause`].
    pub fn pause(&self) -> Result<(), VmiError> {
        self.driver().pause()
    }

    /// Takes one pause back.
    ///
    /// # Errors
    /// As [`VmiVmControl::resume`].
    pub fn resume(&self) -> Result<(), VmiError> {
        self.driver().resume()
    }

    /// Stops all vCPUs until the guard goes, in a panic too.
    ///
    /// # Errors
    /// As [`VmiVmControl::pause`].
    pub fn pause_guard(&self) -> Result<PauseGuard<'_, Driver>, VmiError> {
        self.driver().pause()?;
        Ok(PauseGuard(self))
    }

    /// A frame of the driver's choice.
    ///
    /// # Errors
    /// As [`VmiVmControl::allocate_gfn`].
    pub fn allocate_gfn(&self) -> Result<Gfn, VmiError> {
        self.driver().allocate_gfn()
    }

    /// The next frame above the guest's memory, each one only once.
    ///
    /// # Errors
    /// As [`VmiVmControl::allocate_gfn_at`].
    pub fn allocate_next_available_gfn(&self) -> Result<Gfn, VmiError> {
        let gfn = self.next_gfn.get();
        // Not asked for again even if it is refused: it may be in use for good.
        self.next_gfn.set(gfn + 1);
        self.driver().allocate_gfn_at(gfn)?;
        Ok(gfn)
    }

    /// Gives a frame back.
    ///
    /// # Errors
    /// As [`VmiVmControl::free_gfn`].
    pub fn free_gfn(&self, gfn: Gfn) -> Result<(), VmiError> {
        self.flush_gfn_cache_entry(gfn);
        self.driver().free_gfn(gfn)
    }

    /// Makes a vCPU take an interrupt.
    ///
    /// # Errors
    /// As [`VmiVmControl::inject_interrupt`].
    pub fn inject_interrupt(
        &self,
        vcpu: VcpuId,
        interrupt: <Driver::Architecture as Architecture>::Interrupt,
    ) -> Result<(), VmiError> {
        self.driver().inject_interrupt(vcpu, interrupt)
    }

    /// Takes back every change that outlives a session.
    ///
    /// # Errors
    /// As [`VmiVmControl::reset_state`].
    pub fn reset_state(&self) -> Result<(), VmiError> {
        self.driver().reset_state()
    }
}

impl<Driver: VmiEventControl> VmiCore<Driver> {
    /// Starts reporting something.
    ///
    /// # Errors
    /// As [`VmiEventControl::monitor_enable`].
    pub fn monitor_enable(&self, option: <Driver::Architecture as Architecture>::EventMonitor) -> Result<(), VmiError> {
        self.driver().monitor_enable(option)
    }

    /// Stops reporting something.
    ///
    /// # Errors
    /// As [`VmiEventControl::monitor_disable`].
    pub fn monitor_disable(
        &self,
        option: <Driver::Architecture as Architecture>::EventMonitor,
    ) -> Result<(), VmiError> {
        self.driver().monitor_disable(option)
    }

    /// How many events wait for an answer.
    pub fn events_pending(&self) -> usize {
        self.driver().events_pending()
    }

    /// What the driver itself needs for one event.
    pub fn event_processing_overhead(&self) -> Duration {
        self.driver().event_processing_overhead()
    }

    /// Lets the guest run until at least one event was answered. Both caches are flushed before each event, because the
    /// guest ran.
    ///
    /// # Errors
    /// As [`VmiEventControl::wait_for_event`].
    pub fn wait_for_event<Handler>(&self, timeout: Duration, mut handler: Handler) -> Result<(), VmiError>
    where
        Handler: FnMut(&VmiEvent<Driver::Architecture>) -> VmiEventResponse<Driver::Architecture>,
    {
        let result = self.driver().wait_for_event(timeout, |event| {
            self.flush_v2p_cache();
            self.flush_gfn_cache();
            handler(event)
        });
        self.flush_v2p_cache();
        self.flush_gfn_cache();
        result
    }
}

/// Keeps the machine paused until it goes.
pub struct PauseGuard<'a, Driver: VmiVmControl>(&'a VmiCore<Driver>);

impl<Driver: VmiVmControl> Drop for PauseGuard<'_, Driver> {
    fn drop(&mut self) {
        if let Err(error) = self.0.resume() {
            tracing::warn!(%error, "could not let the guest run again after a pause");
        }
    }
}
