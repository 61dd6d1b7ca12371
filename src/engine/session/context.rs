//! An event together with everything needed to answer it.

use std::ops::Deref;

use super::{VmiState, core::VmiCore};
use crate::engine::{driver::VmiDriver, event::VmiEvent, session::NoOS};

/// An event, the registers at it, and the session.
pub struct VmiContext<'a, Driver: VmiDriver, Os = NoOS> {
    state: VmiState<'a, Driver, Os>,
    event: &'a VmiEvent<Driver::Architecture>,
}

impl<Driver: VmiDriver, Os> Clone for VmiContext<'_, Driver, Os> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Driver: VmiDriver, Os> Copy for VmiContext<'_, Driver, Os> {}

impl<'a, Driver: VmiDriver, Os> Deref for VmiContext<'a, Driver, Os> {
    type Target = VmiState<'a, Driver, Os>;
    fn deref(&self) -> &Self::Target {
        &self.state
    }
}

impl<'a, Driver: VmiDriver, Os> VmiContext<'a, Driver, Os> {
    /// The context of an event.
    pub fn new(session: super::VmiSession<'a, Driver, Os>, event: &'a VmiEvent<Driver::Architecture>) -> Self {
        Self { state: session.with_registers(event.registers()), event }
    }

    /// The event.
    pub fn event(&self) -> &'a VmiEvent<Driver::Architecture> {
        self.event
    }

    /// The state that the event was raised in.
    pub fn state(&self) -> VmiState<'a, Driver, Os> {
        self.state
    }

    /// The driver and its caches.
    pub fn core(&self) -> &'a VmiCore<Driver> {
        self.state.core()
    }
}
