//! How the guest's vCPUs are, and who made them stand.

use serde::{Serialize, Serializer};

use super::clean;

/// What the hypervisor says of the guest as a whole. The names are those of QEMU's `RunState` (`qapi/run-state.json`),
/// which other hypervisors' states map to; [`RunState::Other`] keeps a name that is not among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RunState {
    /// The vCPUs run.
    #[default]
    Running,
    /// Stopped by somebody's command.
    Paused,
    /// Stopped at a debugger's breakpoint.
    Debug,
    /// The hypervisor cannot run the guest any further.
    InternalError,
    /// Stopped because a disk could not be read or written.
    IoError,
    /// Stopped because the guest's watchdog expired.
    Watchdog,
    /// The guest's kernel has panicked.
    GuestPanicked,
    /// Shut down, with the hypervisor still there.
    Shutdown,
    /// Asleep (ACPI S3).
    Suspended,
    /// Created but never started (QEMU's `-S`).
    Prelaunch,
    /// Waiting for a migration to come in.
    Inmigrate,
    /// In the last, standing phase of a migration away.
    FinishMigrate,
    /// Migrated away; what is here is what it was then.
    Postmigrate,
    /// A snapshot is being saved.
    SaveVm,
    /// A snapshot is being loaded.
    RestoreVm,
    /// Replaced by its fault-tolerant twin for a moment.
    Colo,
    /// A state that is not known here, by its cleaned name.
    Other(String),
}

/// The states that have names.
const NAMES: &[(RunState, &str)] = &[
    (RunState::Running, "running"),
    (RunState::Paused, "paused"),
    (RunState::Debug, "debug"),
    (RunState::InternalError, "internal-error"),
    (RunState::IoError, "io-error"),
    (RunState::Watchdog, "watchdog"),
    (RunState::GuestPanicked, "guest-panicked"),
    (RunState::Shutdown, "shutdown"),
    (RunState::Suspended, "suspended"),
    (RunState::Prelaunch, "prelaunch"),
    (RunState::Inmigrate, "inmigrate"),
    (RunState::FinishMigrate, "finish-migrate"),
    (RunState::Postmigrate, "postmigrate"),
    (RunState::SaveVm, "save-vm"),
    (RunState::RestoreVm, "restore-vm"),
    (RunState::Colo, "colo"),
];

/// The longest name of an unknown state that is kept.
const LONGEST_NAME: usize = 24;

impl RunState {
    /// The state of this name.
    pub fn from_name(name: &str) -> Self {
        let known = NAMES.iter().find(|(_, known)| *known == name).map(|(state, _)| state.clone());
        known.unwrap_or_else(|| Self::Other(clean(name, LONGEST_NAME)))
    }

    /// How a guest in this state gets going again on a user's command.
    pub fn way_on(&self) -> WayOn {
        match self {
            Self::Running | Self::Paused | Self::Debug => WayOn::Resume,
            Self::Prelaunch => WayOn::Start,
            Self::Suspended => WayOn::Wake,
            Self::IoError => WayOn::Retry,
            Self::Watchdog | Self::GuestPanicked | Self::Colo | Self::Other(_) => WayOn::Continue,
            Self::InternalError => {
                WayOn::Refused("QEMU met an internal error in running the guest: only a reset gets it going again")
            }
            Self::Shutdown => WayOn::Refused("the guest has shut down: only a reset starts it again"),
            Self::Inmigrate => WayOn::Refused("the guest waits for a migration to come in, and runs when it has"),
            Self::FinishMigrate => {
                WayOn::Refused("the guest is being migrated away, and stands for the last part of it")
            }
            Self::Postmigrate => WayOn::Refused(
                "the guest was migrated away: if it ran here as well, there would be two of it on the same disks",
            ),
            Self::SaveVm => WayOn::Refused("QEMU is saving a snapshot of the guest, and lets it run afterwards"),
            Self::RestoreVm => WayOn::Refused("QEMU is loading a snapshot into the guest, and lets it run afterwards"),
        }
    }

    /// Its name, as in JSON.
    pub fn name(&self) -> &str {
        match self {
            Self::Other(name) if name.is_empty() => "unknown",
            Self::Other(name) => name,
            state => NAMES.iter().find(|(known, _)| known == state).map_or("unknown", |(_, name)| name),
        }
    }
}

impl Serialize for RunState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What lets a guest that stands run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayOn {
    /// It goes on where it was stopped.
    Resume,
    /// It begins to run.
    Start,
    /// It wakes up.
    Wake,
    /// It goes on, and what failed is tried again.
    Retry,
    /// It goes on, whatever comes of it.
    Continue,
    /// Nothing that we may do; why.
    Refused(&'static str),
}

/// Who made the guest stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StoppedBy {
    /// This vmscope's user.
    Us,
    /// Another client of the hypervisor, or whoever started it.
    Other,
    /// The guest itself, or what its hypervisor met in running it.
    Guest,
}

/// How the guest is, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Run {
    /// The hypervisor's word for it.
    pub state: RunState,
    /// Who made it stand; `None` while it runs.
    pub stopped_by: Option<StoppedBy>,
}

impl Run {
    /// Paused by this vmscope's user.
    pub const PAUSED_BY_US: Self = Self { state: RunState::Paused, stopped_by: Some(StoppedBy::Us) };

    /// In a state that is none of our doing.
    pub fn foreign(state: RunState) -> Self {
        let stopped_by = match state {
            RunState::Running => None,
            RunState::InternalError
            | RunState::IoError
            | RunState::Watchdog
            | RunState::GuestPanicked
            | RunState::Shutdown
            | RunState::Suspended => Some(StoppedBy::Guest),
            _ => Some(StoppedBy::Other),
        };
        Self { state, stopped_by }
    }

    /// Whether the vCPUs run.
    pub fn is_running(&self) -> bool {
        self.state == RunState::Running
    }

    /// The same as a sentence without an end.
    pub fn sentence(&self) -> String {
        let words = match (&self.state, self.stopped_by) {
            (RunState::Running, _) => "the guest runs",
            (RunState::Paused, Some(StoppedBy::Us)) => "the guest is paused",
            (RunState::Paused, _) => "another client has paused the guest",
            (RunState::Debug, _) => "the guest stands at a breakpoint of another debugger",
            (RunState::InternalError, _) => "QEMU met an internal error in running the guest and has stopped it",
            (RunState::IoError, _) => "the guest was stopped because a disk could not be read or written",
            (RunState::Watchdog, _) => "the guest was stopped because its watchdog expired",
            (RunState::GuestPanicked, _) => "the guest's kernel has panicked, and the guest was stopped",
            (RunState::Shutdown, _) => "the guest has shut down",
            (RunState::Suspended, _) => "the guest is asleep (suspended)",
            (RunState::Prelaunch, _) => "the guest has not been started yet (-S, or a reset while it stood)",
            (RunState::Inmigrate, _) => "the guest waits for a migration to come in",
            (RunState::FinishMigrate, _) => "the guest stands for the last part of its migration away",
            (RunState::Postmigrate, _) => "the guest was migrated away: what is here is what it was then",
            (RunState::SaveVm, _) => "the guest stands while QEMU saves a snapshot of it",
            (RunState::RestoreVm, _) => "the guest stands while QEMU loads a snapshot into it",
            (RunState::Colo, _) => "the guest stands for its fault-tolerant twin",
            (RunState::Other(_), _) => return format!("the guest does not run: QEMU says '{}'", self.state.name()),
        };
        words.to_owned()
    }

    /// What has happened when a guest that was like this runs, without our doing.
    pub fn end(&self) -> &'static str {
        match self.state {
            RunState::Prelaunch => "another client has started the guest",
            RunState::Inmigrate => "the migration has come in, and the guest runs here now",
            RunState::Suspended => "the guest has woken up",
            RunState::SaveVm => "the snapshot is saved, and the guest runs again",
            RunState::RestoreVm => "the snapshot is loaded, and the guest runs again",
            RunState::Paused | RunState::Debug => "another client has let the guest run again",
            _ => "the guest runs again",
        }
    }

    /// What the screen calls it: "PAUSED by another client", "PAUSED (io-error)", "SUSPENDED".
    pub fn words(&self) -> String {
        match (&self.state, self.stopped_by) {
            (RunState::Paused, Some(StoppedBy::Us)) => "PAUSED".into(),
            (RunState::Paused, _) => "PAUSED by another client".into(),
            (RunState::Debug, _) => "PAUSED by a debugger".into(),
            (RunState::GuestPanicked, _) => "PANICKED".into(),
            (RunState::Shutdown, _) => "SHUT DOWN".into(),
            (RunState::IoError | RunState::InternalError | RunState::Watchdog | RunState::Other(_), _) => {
                format!("PAUSED ({})", self.state.name())
            }
            (state, _) => state.name().to_uppercase(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_known_by_its_name_alone() {
        for (state, name) in NAMES {
            assert_eq!((&RunState::from_name(name), state.name()), (state, *name));
            let run = Run::foreign(state.clone());
            assert!(!run.words().is_empty() && run.sentence().contains("guest") && !run.end().is_empty());
        }
        let strange = RunState::from_name("on\u{1b}[2Jfire");
        assert_eq!(strange.name(), "on\u{241b}[2Jfire");
        let run = Run::foreign(strange);
        assert!(!run.is_running());
        assert_eq!((run.words().as_str(), run.stopped_by), ("PAUSED (on\u{241b}[2Jfire)", Some(StoppedBy::Other)));
        assert_eq!(RunState::from_name("").name(), "unknown");
    }
}
