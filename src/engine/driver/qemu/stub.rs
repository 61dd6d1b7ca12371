//! Getting hold of QEMU's gdb stub, and letting go of it.

use std::{path::Path, sync::Arc};

use serde_json::json;

use super::{
    channel::{self, Channel, Present},
    control::Control,
    gdb::Gdb,
    guardian::{self, Guardian},
    leftover::{self, Folder, State},
    patience,
    points::watch_access,
    process,
    transport::Address,
};
use crate::engine::{error::VmiError, snapshot::RunState};

impl Control {
    /// Before the guest is touched for the first time: writes down how to free it, and starts the process that does so
    /// if this one dies.
    pub fn guard(&mut self) -> Result<(), VmiError> {
        if self.guard.is_some() {
            return Ok(());
        }
        let user = self.pid.and_then(process::owner);
        let doing = "making a folder for the gdb stub's socket under /tmp";
        let folder = Folder::new(user).map_err(|error| VmiError::driver(doing, error))?;
        self.guard = Some((None, folder));
        self.write_state()?;
        let started = guardian::program(self.guardian_program.as_deref()).map(|program| {
            let folder = self.guard.as_ref().map_or(Path::new(""), |(_, folder)| folder.path());
            Guardian::start(&program, folder)
        });
        match (started, &mut self.guard) {
            (Some(Ok(child)), Some((guardian, _))) => *guardian = Some(child),
            (Some(Err(error)), _) => {
                tracing::warn!(%error, "no guardian process: if vmscope is killed, the guest stays as it is until the next start");
            }
            _ => tracing::warn!("no guardian process: this program is not vmscope"),
        }
        Ok(())
    }

    /// Writes down how to free the guest, as things are now.
    pub fn write_state(&self) -> Result<(), VmiError> {
        let Some((_, folder)) = &self.guard else { return Ok(()) };
        let me = std::process::id();
        let state = State {
            owner: (me, process::start_time(me).unwrap_or(0)),
            qemu: self.pid.and_then(|pid| Some((pid, process::start_time(pid)?))),
            qmp: self.qmp_address.clone(),
            stub: self.stub_address.clone(),
            stub_is_ours: self.stub_is_ours,
            leave_paused: self.foreign,
            patches: self.patches.clone(),
        };
        let doing = || format!("writing down in {} how to free the guest", folder.path().display());
        folder.write(&state).map_err(|error| VmiError::driver(doing(), error))
    }

    /// `foreign` has changed.
    pub fn note_foreign(&self) -> Result<(), VmiError> {
        self.write_state()
    }

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
        let mut known = self.stub_of_qemu()?;
        if known.as_ref().is_some_and(|(address, used)| !used && leftover::is_orphan(address)) {
            leftover::stop_stub(&mut self.qmp())?;
            known = None;
        }
        let (address, is_connected) = match known {
            Some((address, is_connected)) => (Some(self.gdb_option.clone().unwrap_or(address)), is_connected),
            None => (self.gdb_option.clone(), false),
        };
        if let (Some(address), true) = (&address, is_connected) {
            return Err(taken(&format!("at {address}")));
        }
        self.stub_is_ours = address.is_none();
        self.stub_address = Some(address.as_ref().map_or_else(channel::new_name, Address::to_string));
        self.write_state()?;
        let ran = self.running;
        let result = self.connect_stub(address);
        if result.is_err() {
            patience::unhurried(|| {
                self.end_stub()?;
                if ran { self.run_on() } else { Ok(()) }
            })?;
        }
        result
    }

    /// A stub that was connected to and then given up has stopped the guest all the same, and told nobody that we did it.
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
            (None, Some((_, folder))) => {
                let name = self.stub_address.clone().unwrap_or_default();
                let Channel { stream, name } = channel::open(&monitor, &name, &folder.socket())?;
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

    /// The stub's address as QEMU tells it, and whether somebody is connected.
    fn stub_of_qemu(&mut self) -> Result<Option<(Address, bool)>, VmiError> {
        let stub = channel::devices(&mut self.qmp())?.into_iter().find(|(label, _)| label == "gdb");
        Ok(stub.and_then(|(_, name)| {
            let free = name.strip_prefix("disconnected:");
            Some((free.unwrap_or(&name).parse().ok()?, free.is_none()))
        }))
    }

    /// Takes everything out of the guest and lets go of the stub. The guest then runs, unless it is paused. A guest that
    /// was only looked at is left alone.
    ///
    /// # Errors
    /// The first thing that failed; the rest was tried all the same.
    pub fn leave(&mut self) -> Result<(), VmiError> {
        if self.is_touched() { self.let_go() } else { Ok(()) }
    }

    fn let_go(&mut self) -> Result<(), VmiError> {
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
            if let (true, Some(stub)) = (runs, &mut self.stub) {
                // Whatever could not be taken out one by one goes with this.
                let detached = stub.detach();
                self.running = detached.is_ok();
                result = result.and(detached);
            }
        }
        result = result.and(self.end_stub());
        self.breakpoints.clear();
        self.watchpoints.clear();
        self.passed.clear();
        self.step_wanted.clear();
        self.retried.clear();
        self.let_past.clear();
        if self.wants_to_run() {
            let status = self.status();
            self.running = status.as_ref().is_ok_and(|status| *status == RunState::Running);
            result = result.and(status.map(drop)).and(self.go_on());
        } else if self.foreign {
            result = result.and(self.leave_standing());
        }
        // After a failure what is written down stays as it was: whoever frees the guest later needs to know the stub.
        if result.is_ok() {
            result = self.write_state();
        }
        self.explained(result)
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

/// Connecting would wait for ever, and stop the guest when the other one has long gone.
fn taken(how: &str) -> VmiError {
    VmiError::Invalid(format!(
        "another debugger is connected to the guest's gdb stub {how}, which serves one at a time: end that one first"
    ))
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.guard.is_none() {
            return;
        }
        let touched = self.is_touched();
        self.pauses = 0;
        let left = if touched { self.let_go() } else { Ok(()) };
        let qemu_has_ended = self.pid.is_some_and(|pid| process::start_time(pid).is_none());
        let Some((guardian, folder)) = self.guard.take() else { return };
        match left {
            Err(error) if !qemu_has_ended => {
                // The guardian sees our end of its pipe close without a word, and tries by itself.
                tracing::warn!(
                    "could not leave the guest as it was found, and the guardian process goes on trying: {error}"
                );
            }
            _ => {
                if let Some(guardian) = guardian {
                    guardian.dismiss();
                }
                folder.remove();
            }
        }
    }
}
