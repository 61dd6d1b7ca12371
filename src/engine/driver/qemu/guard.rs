//! What a session keeps ready for the case that it dies: what is written down, and who reads it.

use std::time::{Duration, Instant};

use super::{control::Control, guardian::Guardian, leftover::State, process, state_folder::Folder};
use crate::engine::error::VmiError;

/// How often it is looked whether all that is still there.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// A session's folder, and the process that watches over the session.
pub(super) struct Guard {
    pub folder: Folder,
    guardian: Option<Guardian>,
    looked: Instant,
}

impl Control {
    /// Before the guest is touched for the first time: writes down how to free it, and starts the process that does so if
    /// this one dies. Does it anew where somebody has removed the one or ended the other.
    pub fn guard(&mut self) -> Result<(), VmiError> {
        if let Some(guard) = self.guard.as_mut().filter(|guard| guard.folder.is_there()) {
            guard.looked = Instant::now();
            if guard.guardian.as_mut().is_none_or(Guardian::is_alive) {
                return Ok(());
            }
            tracing::warn!("the guardian process was ended by somebody; another one is started");
        } else {
            let doing = "making a folder to write down how to free the guest, under /run or /tmp";
            let folder = Folder::new().map_err(|error| VmiError::driver(doing, error))?;
            let old = self.guard.replace(Guard { folder, guardian: None, looked: Instant::now() });
            self.write_state()?;
            if let Some(guardian) = old.and_then(|old| old.guardian) {
                tracing::warn!("the session's folder was removed by somebody; another one was made");
                guardian.dismiss();
            }
        }
        self.start_guardian();
        Ok(())
    }

    fn start_guardian(&mut self) {
        let Some(guard) = &mut self.guard else { return };
        let started = match &self.guardian_program {
            Some(program) => Guardian::start(program, guard.folder.path()).map_err(|error| error.to_string()),
            None => Err("this program starts none".into()),
        };
        match started {
            Ok(guardian) => (guard.guardian, self.unguarded) = (Some(guardian), None),
            Err(why) => {
                let warning = format!(
                    "no guardian process ({why}): if vmscope is killed, the guest stays as it is until vmscope is started \
                     on it again"
                );
                tracing::warn!("{warning}");
                (guard.guardian, self.unguarded) = (None, Some(warning));
            }
        }
    }

    /// Now and then: whether there still is what is needed if this process dies.
    pub fn look_after_guard(&mut self) {
        if self.guard.as_ref().is_some_and(|guard| guard.looked.elapsed() >= LOOK_PERIOD)
            && let Err(error) = self.guard()
        {
            tracing::warn!("{error}");
        }
    }

    /// Before the guest is touched: writes that down.
    pub fn touch(&mut self) -> Result<(), VmiError> {
        self.guard()?;
        let before = std::mem::replace(&mut self.touched, true);
        self.gave_up = false;
        self.write_state().inspect_err(|_| self.touched = before)
    }

    /// Everything was taken back, and that is known for certain.
    pub fn untouch(&mut self) -> Result<(), VmiError> {
        self.touched = false;
        self.write_state()
    }

    /// How to free the guest, as things are now.
    pub fn state(&self) -> State {
        let me = std::process::id();
        State {
            owner: (me, process::start_time(me).unwrap_or(0)),
            identity: self.identity.clone(),
            stub: self.stub_address.clone(),
            stub_is_ours: self.stub_is_ours,
            leave_paused: self.foreign,
            touched: self.touched,
            patches: self.patches.clone(),
        }
    }

    /// Writes that down.
    pub fn write_state(&self) -> Result<(), VmiError> {
        let Some(Guard { folder, .. }) = &self.guard else { return Ok(()) };
        let doing = || format!("writing down in {} how to free the guest", folder.path().display());
        self.state().write(folder).map_err(|error| VmiError::driver(doing(), error))
    }

    /// `foreign` has changed.
    pub fn note_foreign(&self) -> Result<(), VmiError> {
        self.write_state()
    }

    /// What the user should know for as long as it is so.
    pub fn warning(&self) -> Option<String> {
        self.unguarded.clone()
    }

    /// Whether there is somebody who goes on where this session gives up.
    pub fn is_guarded(&mut self) -> bool {
        let guardian = self.guard.as_mut().and_then(|guard| guard.guardian.as_mut());
        guardian.is_some_and(Guardian::is_alive)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.guard.is_none() {
            return;
        }
        self.pauses = 0;
        if !self.gave_up
            && let Err(error) = self.leave()
        {
            tracing::warn!("could not leave the guest as it was found: {error}");
        }
        let Some(Guard { folder, guardian, .. }) = self.guard.take() else { return };
        if !self.touched || self.identity.has_ended() {
            if let Some(guardian) = guardian {
                guardian.dismiss();
            }
            folder.remove();
            return;
        }
        // The guardian sees our end of its pipe close without a word, and takes the lock and the monitor when they are free.
        drop(folder);
        self.qmp().hang_up();
        match guardian {
            Some(_) => {
                tracing::warn!("the guardian process goes on trying to free the guest, for as long as QEMU lives")
            }
            None => tracing::warn!("start vmscope on this guest again: that frees it as soon as QEMU answers"),
        }
    }
}
