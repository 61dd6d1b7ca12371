//! Getting hold of QEMU's gdb stub, and letting go of it.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    channel::{self, Channel, Present, taken},
    control::Control,
    gdb::Gdb,
    leftover, patience,
    points::watch_access,
    process,
    transport::Address,
};
use crate::engine::{error::VmiError, snapshot::RunState};

/// How long a session tries to free the guest before it leaves that to its guardian, or to the next start.
const LEAVING_TIME: Duration = Duration::from_secs(5);
/// Between two attempts.
const ATTEMPT_PERIOD: Duration = Duration::from_millis(100);
/// How long QEMU may take to greet us anew.
const GREETING_TIME: Duration = Duration::from_secs(1);

impl Control {
    /// Connects to the stub if that has not been done: the one that the user named, one that QEMU has, or one that is
    /// started now. The guest is stopped then.
    pub fn attach_stub(&mut self) -> Result<(), VmiError> {
        self.listen()?;
        if self.stub.is_some() {
            return Ok(());
        }
        self.guard()?;
        if let Present::Connected(device) = channel::clear(&mut self.qmp())? {
            return Err(taken(&format!("by the device {device}")));
        }
        let mut known = channel::served(&mut self.qmp(), self.pid)?;
        if known.as_ref().is_some_and(|(address, used)| !used && leftover::is_orphan(address)) {
            channel::stop(&mut self.qmp())?;
            known = None;
        }
        let (address, is_connected) = match known {
            Some((address, is_connected)) => (Some(self.gdb_option.clone().unwrap_or(address)), is_connected),
            None => (self.gdb_option.clone(), false),
        };
        if let (Some(address), true) = (&address, is_connected) {
            return Err(taken(&format!("at {address}")));
        }
        let before = (self.stub_address.clone(), self.stub_is_ours, self.touched);
        let was_running = self.running;
        self.stub_is_ours = address.is_none();
        self.stub_address = Some(address.as_ref().map_or_else(channel::new_name, Address::to_string));
        self.touch()?;
        let result = self.connect_stub(address);
        if result.is_err() {
            patience::unhurried(|| {
                self.end_stub()?;
                if was_running {
                    self.run_on()?;
                }
                (self.stub_address, self.stub_is_ours, self.touched) = before;
                self.write_state()
            })?;
        }
        result
    }

    /// A stub that was connected to and then given up has stopped the guest all the same, and nothing says that it was us.
    fn run_on(&mut self) -> Result<(), VmiError> {
        // What is heard from here on is of after our stop.
        self.qmp().events()?;
        if self.status()? == RunState::Paused {
            self.qmp().execute("cont", json!({}))?;
        }
        Ok(())
    }

    /// Connects to the stub at this address, or starts one.
    fn connect_stub(&mut self, address: Option<Address>) -> Result<(), VmiError> {
        let monitor = Arc::clone(&self.monitor);
        let stub = match (address, &self.guard) {
            (Some(address), _) => Gdb::connect(&address, monitor)?,
            (None, Some(guard)) => {
                let name = self.stub_address.clone().unwrap_or_default();
                let user = self.pid.and_then(process::owner);
                let Channel { stream, name } = channel::open(&monitor, &name, &guard.folder, user)?;
                self.stub_address = Some(name.clone());
                Gdb::on(stream, &name, monitor)?
            }
            (None, None) => return Ok(()),
        };
        self.stub = Some(stub);
        self.running = false;
        self.note_unpluggable();
        Ok(())
    }

    /// Takes everything out of the guest and lets go of the stub. The guest then runs, unless it is paused. Where the stub
    /// or the monitor is lost, both are connected to anew for that.
    ///
    /// # Errors
    /// The first thing that failed; the guest counts as touched then, and whoever comes next tries again.
    pub fn leave(&mut self) -> Result<(), VmiError> {
        if !self.touched {
            // It was only looked at, or everything was taken back already.
            return Ok(());
        }
        let mut result = self.let_go();
        if let (Err(error), true) = (&result, self.touched) {
            tracing::info!("the guest is freed over a new connection, because {error}");
            result = self.repair().or(result);
        }
        self.breakpoints.clear();
        self.watchpoints.clear();
        self.passed.clear();
        self.step_wanted.clear();
        self.retried.clear();
        self.let_past.clear();
        // After a failure what is written down stays as it was: whoever frees the guest later needs to know the stub.
        if result.is_ok() {
            result = match self.pauses {
                0 => self.untouch().inspect_err(|_| self.touched = true),
                // The guest stands for us until the session's last step.
                _ => self.write_state(),
            };
        }
        if result.is_ok() && self.foreign {
            result = self.leave_standing();
        }
        self.explained(result)
    }

    /// The orderly way: one thing after the other, each acknowledged.
    ///
    /// # Errors
    /// The first thing that failed; the rest was tried all the same.
    fn let_go(&mut self) -> Result<(), VmiError> {
        if self.stub.is_none() && self.touched && self.stub_address.is_some() {
            return Err(VmiError::driver("letting go of the guest", "the gdb stub was lost"));
        }
        let mut result = self.listen();
        result = result.and(self.yield_to_others());
        if self.stub.is_some() {
            result = result.and(self.hold());
            let breakpoints: Vec<_> = self.breakpoints.keys().copied().collect();
            for va in breakpoints {
                result = result.and(self.clear_breakpoint(va));
            }
            for (va, bytes, kind) in self.watchpoints.clone() {
                result = result.and(self.clear_watchpoint(va, bytes, watch_access(kind)));
            }
            result = result.and(self.repair_patches());
            let runs = self.wants_to_run();
            if let Some(stub) = &mut self.stub {
                // Whatever could not be taken out one by one goes with this, and what we do not know of, too: a breakpoint
                // whose answer was lost.
                let freed = if runs { stub.detach() } else { stub.begin_again() };
                self.running = runs && freed.is_ok();
                result = result.and(freed);
            }
        }
        // What is not known to be free is still known.
        self.stub = None;
        result?;
        self.end_stub()?;
        if self.wants_to_run() {
            self.running = self.status()? == RunState::Running;
            self.go_on()?;
        }
        Ok(())
    }

    /// The way over new connections, which needs nothing of the old ones.
    ///
    /// # Errors
    /// What the last attempt in the time that there is has failed with.
    fn repair(&mut self) -> Result<(), VmiError> {
        self.stub = None;
        let state = self.state();
        let end = Instant::now() + LEAVING_TIME;
        let is_guarded = self.is_guarded();
        loop {
            let tried = patience::at_most(LEAVING_TIME, "freeing the guest", || self.try_repair(&state));
            let Err(error) = tried else { break };
            if state.identity.has_ended() {
                return Err(error);
            }
            // Its guardian has all the time in the world, and the user wants to leave.
            let stands = is_guarded && self.pid.is_some_and(process::is_stopped);
            if stands || Instant::now() >= end {
                self.gave_up = true;
                return Err(error);
            }
            thread::sleep(ATTEMPT_PERIOD);
        }
        self.stub_is_ours = false;
        self.stub_address = None;
        self.patches.clear();
        let status = leftover::status(&mut self.qmp());
        self.running = status.is_ok_and(|status| status == "running");
        Ok(())
    }

    fn try_repair(&mut self, state: &leftover::State) -> Result<(), VmiError> {
        let Some(guard) = &self.guard else { return Ok(()) };
        {
            let mut qmp = self.qmp();
            if leftover::status(&mut qmp).is_err() {
                qmp.reconnect(GREETING_TIME)?;
            }
        }
        leftover::repair(&self.monitor, &guard.folder, state)
    }

    /// Closes the connection, and ends the stub if we started it; a stub that could not be ended is still known.
    fn end_stub(&mut self) -> Result<(), VmiError> {
        self.stub = None;
        if self.stub_is_ours {
            channel::close(&mut self.qmp(), self.stub_address.as_deref().unwrap_or_default())?;
        }
        self.stub_is_ours = false;
        self.stub_address = None;
        Ok(())
    }
}
