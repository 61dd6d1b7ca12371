//! The way into the guest: what it has come to, while the screen is up already.

use std::time::Duration;

use crossbeam_channel::{Receiver, Select, TryRecvError};

use super::console::Input;
use crate::engine::command::{Attaching, Engine};

const ENDED: &str = "the engine ended before the guest was open";

/// A guest that is being opened.
#[derive(Clone, Debug, Default)]
pub struct Opening(Option<Receiver<Result<(), String>>>);

impl Opening {
    /// An engine and what is to be heard of its way into the guest.
    pub fn of(attaching: Attaching) -> (Engine, Self) {
        (attaching.engine, Self(Some(attaching.opened)))
    }

    /// Whether the guest was not open when it was last looked.
    pub const fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    /// Looks whether the guest is open.
    ///
    /// # Errors
    /// A sentence when it cannot be opened.
    pub fn look(&mut self) -> Result<(), String> {
        match self.0.as_ref().map(Receiver::try_recv) {
            None | Some(Err(TryRecvError::Empty)) => Ok(()),
            Some(Ok(opened)) => {
                self.0 = None;
                opened
            }
            Some(Err(TryRecvError::Disconnected)) => {
                self.0 = None;
                Err(ENDED.into())
            }
        }
    }

    /// Waits for that however long it takes.
    ///
    /// # Errors
    /// As [`Opening::look`].
    pub fn wait_long(&mut self) -> Result<(), String> {
        match self.0.take().map(|opened| opened.recv()) {
            None => Ok(()),
            Some(Ok(opened)) => opened,
            Some(Err(_)) => Err(ENDED.into()),
        }
    }

    /// Waits for that for a while, or until something comes in.
    ///
    /// # Errors
    /// As [`Opening::look`].
    pub fn wait(&mut self, longest: Duration, inputs: &Receiver<Input>) -> Result<(), String> {
        if let Some(opened) = &self.0 {
            let mut select = Select::new();
            select.recv(opened);
            select.recv(inputs);
            // Nothing ready is fine: the time has passed.
            let _ = select.ready_timeout(longest);
        }
        self.look()
    }
}
