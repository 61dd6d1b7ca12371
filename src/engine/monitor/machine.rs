//! The machine as a whole: made to stand and to run by us, and what others do to it.
//!
//! Whatever others do becomes a line in the list of events, and what follows from it is done: a pause of ours that somebody
//! has overruled is over, a machine that was changed is described anew.

use super::{Monitor, Platform};
use crate::engine::{
    command::{Answer, Done},
    driver::News,
    os::VmiOs,
    session::VmiCore,
    snapshot::{EventKind, Guest, Run, RunState, StoppedBy},
};

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// How the guest is.
    pub(super) fn run(&self, core: &VmiCore<D>) -> Run {
        match core.driver().run() {
            Some(run) => run,
            None if self.paused => Run::PAUSED_BY_US,
            None => Run::default(),
        }
    }

    fn happened(&mut self, core: &VmiCore<D>, text: &str) {
        self.log.say(core.driver().clock_ns(), EventKind::Vm, text);
        tracing::info!("{text}");
    }

    /// Takes note of what others have done to the machine; answers whether the guest's memory may be another guest's now.
    pub(super) fn follow_machine(&mut self, core: &VmiCore<D>) -> bool {
        let (mut interrupted, mut changed) = (false, false);
        for news in core.driver().news() {
            match news {
                News::Interrupted => interrupted = true,
                News::Said(text) => self.happened(core, &text),
                News::Changed(text) => {
                    changed = true;
                    self.happened(core, &text);
                }
            }
        }
        let run = self.run(core);
        if run != self.last_run {
            let before = std::mem::replace(&mut self.last_run, run.clone());
            if !run.is_running() {
                self.happened(core, &run.sentence());
            } else if before.stopped_by == Some(StoppedBy::Us) && self.paused {
                self.happened(core, "another client has let the guest run, over our pause");
            } else {
                self.happened(core, before.end());
            }
        }
        if self.paused && run.is_running() {
            // Somebody has overruled our pause: it is over.
            self.paused = false;
            if let Err(error) = core.resume() {
                tracing::debug!(%error, "could not take back a pause that another client has ended");
            }
        }
        if changed && let Ok(info) = core.info() {
            self.publisher.resize(info.vcpus, info.memory_bytes);
        }
        interrupted
    }

    /// Makes the guest stand.
    pub(super) fn pause(&mut self, core: &VmiCore<D>) -> Answer {
        self.writable("pause")?;
        if self.paused {
            return Ok(Done::Said("the guest is paused already".into()));
        }
        let run = self.run(core);
        if !run.is_running() {
            // The key was pressed for what the screen showed a moment ago.
            return Ok(Done::Said(format!("the guest does not run already: {}", run.sentence())));
        }
        core.pause().map_err(|error| format!("could not pause the guest: {error}"))?;
        self.paused = true;
        self.last_run = self.run(core);
        self.log.say(core.driver().clock_ns(), EventKind::Vm, "the guest was paused");
        Ok(Done::Said("the guest is paused".into()))
    }

    /// Lets the guest run, whoever has made it stand.
    pub(super) fn resume(&mut self, core: &VmiCore<D>) -> Answer {
        let before = self.run(core);
        if before.is_running() && !self.paused {
            return Ok(Done::Said("the guest runs already".into()));
        }
        if !self.paused {
            self.writable("resume")?;
        }
        core.resume().map_err(|error| format!("could not let the guest run: {error}"))?;
        self.paused = false;
        self.last_run = self.run(core);
        let text = if self.last_run.is_running() {
            match (&before.state, before.stopped_by) {
                (RunState::Paused, Some(StoppedBy::Other)) => "the guest runs again; another client had paused it",
                (RunState::Debug, _) => "the guest runs again; another debugger had left it at a breakpoint",
                (RunState::Prelaunch, _) => "the guest was started",
                (RunState::IoError, _) => "the guest runs again, and tries the disk again",
                (RunState::Watchdog, _) => "the guest runs again; its watchdog had expired",
                (RunState::GuestPanicked, _) => "the guest runs on from its panic",
                _ => "the guest runs again",
            }
            .to_owned()
        } else if before.state == RunState::Suspended {
            "the guest is being woken up".to_owned()
        } else {
            format!("our pause is over, but {}", self.last_run.sentence())
        };
        self.log.say(core.driver().clock_ns(), EventKind::Vm, text.clone());
        Ok(Done::Said(text))
    }

    /// The same while the guest's kernel is looked for.
    pub fn resume_without_kernel(&mut self, core: &VmiCore<D>) -> Answer {
        let answer = self.resume(core);
        super::told(&answer);
        answer
    }
}

impl super::publish::Publisher {
    /// vCPUs or memory were plugged in or out.
    fn resize(&mut self, vcpus: u16, memory_bytes: u64) {
        let mut guest = Guest::clone(self.guest());
        (guest.vcpus, guest.memory_bytes) = (vcpus, memory_bytes);
        self.set_guest(guest);
    }
}
