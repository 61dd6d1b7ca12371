//! A session on one guest: reading and writing through page tables, the event loop, the prober.
//!
//! [`VmiContext`] (an event) → [`VmiState`] (registers) → [`VmiSession`] (an OS layer) → [`VmiCore`] (a driver and
//! its caches): each dereferences to the next, so that code takes the least it needs. A session is `Copy`. Imports
//! addresses, architecture and driver traits; the OS layer is a type parameter. Start at [`VmiCore`].

mod access;
mod budget;
mod cache;
mod context;
mod control;
mod core;
mod handler;
mod prober;
mod state;
mod strings;

pub use self::{
    access::Field,
    budget::{Cut, Limits, Look},
    context::VmiContext,
    control::PauseGuard,
    core::VmiCore,
    handler::{Interrupted, VmiHandler},
    prober::VmiProber,
    state::VmiState,
};

use std::{ops::Deref, time::Duration};

use super::{
    driver::{RegistersOf, VmiDriver, VmiEventControl, VmiVmControl},
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
};

/// The OS layer of a session that has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOS;

/// A guest together with the knowledge of its operating system.
pub struct VmiSession<'a, Driver: VmiDriver, Os = NoOS> {
    core: &'a VmiCore<Driver>,
    os: &'a Os,
}

impl<Driver: VmiDriver, Os> Clone for VmiSession<'_, Driver, Os> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Driver: VmiDriver, Os> Copy for VmiSession<'_, Driver, Os> {}

impl<Driver: VmiDriver, Os> Deref for VmiSession<'_, Driver, Os> {
    type Target = VmiCore<Driver>;
    fn deref(&self) -> &VmiCore<Driver> {
        self.core
    }
}

impl<'a, Driver: VmiDriver, Os> VmiSession<'a, Driver, Os> {
    /// A session of a core and an OS layer.
    pub fn new(core: &'a VmiCore<Driver>, os: &'a Os) -> Self {
        Self { core, os }
    }

    /// The same with the registers of a vCPU, real or made up: what translation and the OS layer's "current"
    /// questions need.
    pub fn with_registers(self, registers: &'a RegistersOf<Driver>) -> VmiState<'a, Driver, Os> {
        VmiState::new(self, registers)
    }

    /// The same guest without its OS layer.
    pub fn without_os(self) -> VmiSession<'a, Driver, NoOS> {
        VmiSession { core: self.core, os: &NoOS }
    }

    /// The driver and its caches.
    pub fn core(&self) -> &'a VmiCore<Driver> {
        self.core
    }

    /// The OS layer.
    pub fn underlying_os(&self) -> &'a Os {
        self.os
    }
}

impl<Driver, Os> VmiSession<'_, Driver, Os>
where
    Driver: VmiEventControl + VmiVmControl,
{
    /// Lets the guest run until at least one event was answered.
    ///
    /// # Errors
    /// As [`VmiEventControl::wait_for_event`].
    pub fn wait_for_event<Handler>(&self, timeout: Duration, handler: Handler) -> Result<(), VmiError>
    where
        Handler: FnMut(&VmiEvent<Driver::Architecture>) -> VmiEventResponse<Driver::Architecture>,
    {
        self.core.wait_for_event(timeout, handler)
    }

    /// Runs a handler until it has a result, with a wait of 5 s between its polls; see [`VmiHandler`].
    ///
    /// # Errors
    /// The driver's error that ended the loop; the guest has been left clean all the same. Else the error that kept it
    /// from being left clean.
    pub fn handle<Handler>(&self, handler: Handler) -> Result<Option<Handler::Output>, VmiError>
    where
        Handler: VmiHandler<Driver, Os>,
    {
        self.handle_with_timeout(Duration::from_secs(5), handler)
    }

    /// Runs a handler until it has a result. Every way out (result, error, panic) runs the same teardown.
    ///
    /// # Errors
    /// As [`VmiSession::handle`].
    pub fn handle_with_timeout<Handler>(
        &self,
        timeout: Duration,
        handler: Handler,
    ) -> Result<Option<Handler::Output>, VmiError>
    where
        Handler: VmiHandler<Driver, Os>,
    {
        handler::run(*self, timeout, handler)
    }
}
