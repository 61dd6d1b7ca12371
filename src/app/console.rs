//! Where keys come from, and what a screen is besides its cells: the part of the loop that differs between a user's
//! terminal ([`super::terminal`]) and a script ([`super::headless`]).

use std::time::Duration;

use crokey::KeyCombination;
use crossbeam_channel::Receiver;
use crossterm::event::Event;

use super::clipboard::Way;
use crate::engine::snapshot::Snapshot;

/// What comes in from outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A key, the mouse, a paste, a new size, the focus.
    Terminal(Event),
    /// The signal that suspends.
    Suspend,
    /// The process runs again after it was stopped.
    Continued,
    /// A signal that ends the program, by its name.
    Terminate(&'static str),
    /// The terminal is gone, and why.
    Lost(String),
}

/// How things stand when a console is asked for its next step.
#[derive(Debug)]
pub struct Situation<'a> {
    /// The newest picture.
    pub snapshot: &'a Snapshot,
    /// Time since the loop began: real, or the guest's in a run of virtual time.
    pub now: Duration,
    /// Whether the engine has ended, so that nothing will change any more.
    pub engine_ended: bool,
    /// What the engine is doing for a command, if one is under way.
    pub busy: Option<&'static str>,
}

/// The next step of a console.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Nothing before something happens.
    Wait,
    /// Nothing before something happens or the time has passed.
    WaitFor(Duration),
    /// A key is pressed.
    Press(KeyCombination),
    /// The guest is to run for this many ticks of virtual time.
    Advance(u64),
    /// The run is over.
    End,
    /// The run has failed, and why.
    Fail(String),
}

/// Where keys come from and what a screen is besides its cells.
pub trait Console {
    /// What comes in by itself.
    fn inputs(&self) -> &Receiver<Input>;

    /// Asked whenever no command is under way, and when the time for all is over.
    fn next(&mut self, _: &Situation<'_>) -> Next {
        Next::Wait
    }

    /// How long all may last.
    fn longest(&self) -> Option<Duration> {
        None
    }

    /// Whether the guest is not open yet: then there is nothing on the screen that could be used.
    fn is_attaching(&self) -> bool {
        false
    }

    /// Whether nobody is there who could decide that an answer takes too long.
    fn is_scripted(&self) -> bool {
        false
    }

    /// Whether time is the guest's: pictures are looked at one by one, in step with the engine.
    fn is_virtual(&self) -> bool {
        false
    }

    /// Whether the screen takes a frame now. Where it does not, [`Console::freed`] tells when it does.
    fn is_ready(&self) -> bool {
        true
    }

    /// Pings when the screen takes a frame again; `None` where it always does.
    fn freed(&self) -> Option<&Receiver<()>> {
        None
    }

    /// Before the cells of a frame are written.
    fn begin_frame(&mut self) {}

    /// After the cells of a frame were written.
    fn end_frame(&mut self) {}

    /// Sends text to the user's clipboard; answers which way it went, `None` where there is none.
    fn copy(&mut self, _: &str) -> Option<Way> {
        None
    }

    /// Gives the terminal to the shell until the user comes back, and leaves a note there; answers whether everything must
    /// be drawn again.
    ///
    /// # Errors
    /// A sentence when the terminal does not come back.
    fn suspend(&mut self, _note: &str) -> Result<bool, String> {
        Ok(false)
    }

    /// Takes the terminal again after the process was stopped from outside.
    ///
    /// # Errors
    /// A sentence when the terminal does not come back.
    fn resume(&mut self) -> Result<bool, String> {
        Ok(false)
    }
}
