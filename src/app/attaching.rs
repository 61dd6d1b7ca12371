//! The way into the guest: what it has come to, while the screen is up already.

use std::time::Duration;

use crossbeam_channel::{Receiver, Select, TryRecvError};

use super::console::Input;
use crate::engine::command::{Attaching, Engine};

/// A guest that is being opened.
#[derive(Clone, Debug)]
pub enum Opening {
    /// It is under way; what is to be heard of it.
    UnderWay(Receiver<Result<(), String>>),
    /// The guest is open.
    Done,
    /// It could not be opened.
    Failed,
}

impl Opening {
    /// An engine and what is to be heard of its way into the guest.
    pub fn of(attaching: Attaching) -> (Engine, Self) {
        (attaching.engine, Self::UnderWay(attaching.opened))
    }

    /// Whether the guest was not open yet when it was last looked.
    pub const fn is_under_way(&self) -> bool {
        matches!(self, Self::UnderWay(_))
    }

    /// Whether there is a guest to be seen.
    pub const fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Looks whether the guest is open.
    ///
    /// # Errors
    /// A sentence when it cannot be opened.
    pub fn look(&mut self) -> Result<(), String> {
        let Self::UnderWay(opened) = self else { return Ok(()) };
        let heard = match opened.try_recv() {
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => Err("the engine ended before the guest was open".into()),
            Ok(heard) => heard,
        };
        *self = if heard.is_ok() { Self::Done } else { Self::Failed };
        heard
    }

    /// Waits for that for a while (`None`: for as long as it takes), or until something comes in.
    ///
    /// # Errors
    /// As [`Opening::look`].
    pub fn wait(&mut self, longest: Option<Duration>, inputs: &Receiver<Input>) -> Result<(), String> {
        if let Self::UnderWay(opened) = self {
            let mut select = Select::new();
            select.recv(opened);
            select.recv(inputs);
            match longest {
                // Nothing ready is fine: the time has passed.
                Some(time) => drop(select.ready_timeout(time)),
                None => drop(select.ready()),
            }
        }
        self.look()
    }
}
