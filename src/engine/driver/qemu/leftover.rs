//! What a session leaves behind when it dies, and how that is repaired.
//!
//! QEMU forgets nothing when a gdb client dies: the guest runs into its breakpoints and stands for ever. So before a
//! session touches the guest it writes down, in a folder of its own, which guest that is and how to let go of it, and that
//! it is touched from now on. Only an acknowledged detach clears that. Whoever finds it set (the session on leaving, its
//! guardian, the next start) connects anew and repairs; who dies in the midst of it leaves it set for the next one.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    channel::{self, Channel},
    gdb::Gdb,
    identity::Identity,
    int3::Patch,
    patience, process,
    qmp::Qmp,
    state_folder::{Folder, PREFIX},
    transport::Address,
};
use crate::engine::error::VmiError;

const STATE: &str = "state.json";
/// Where versions before 0.2 put the state while they repaired.
const CLAIMED: &str = "state.claimed";
/// How often a start tries again to repair, and after which time.
const ATTEMPTS: usize = 5;
const ATTEMPT_PERIOD: Duration = Duration::from_millis(100);
/// How long QEMU may take to greet somebody who wants to repair.
const GREETING_TIME: Duration = Duration::from_secs(1);
/// How long one attempt of the guardian's may take in all.
const ATTEMPT_TIME: Duration = Duration::from_secs(30);

/// What somebody else must know to let go of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The session's process and when that started, in its pid namespace: for messages, and in what older versions wrote.
    pub owner: (u32, u64),
    /// The QEMU.
    #[serde(flatten)]
    pub identity: Identity,
    /// The gdb stub that is used, if any: its address, or the device in QEMU that it is reached by.
    pub stub: Option<String>,
    /// Whether the session started that stub.
    pub stub_is_ours: bool,
    /// Whether the guest was stopped by somebody else, and so stays stopped.
    pub leave_paused: bool,
    /// Whether something was done to the guest that was not taken back for certain.
    #[serde(default = "yes")]
    pub touched: bool,
    /// What may be in guest memory.
    #[serde(default)]
    pub patches: Vec<Patch>,
}

/// Older versions did not write it down.
fn yes() -> bool {
    true
}

impl State {
    /// Writes it into a session's folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, folder: &Folder) -> io::Result<()> {
        folder.write(STATE, &serde_json::to_vec(self)?)
    }

    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// What the system says; `InvalidData` when it is not one.
    pub fn read(folder: &Folder) -> io::Result<Option<Self>> {
        let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match folder.read(STATE).or_else(|error| if is_missing(&error) { folder.read(CLAIMED) } else { Err(error) }) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether its session is an older version's, which holds no lock, and lives.
    fn is_held_without_lock(&self) -> bool {
        let (pid, started) = self.owner;
        self.identity.is_of_older_version() && process::start_time(pid) == Some(started)
    }
}

/// Whether this is the address of a stub that a session started and could not end, whose folder is gone: nobody can
/// connect to it.
pub fn is_orphan(stub: &Address) -> bool {
    let Address::Unix(socket) = stub else { return false };
    socket.iter().any(|part| part.to_string_lossy().starts_with(PREFIX)) && !socket.exists()
}

/// Repairs what dead sessions have left on this guest; says what was done, a sentence each.
///
/// # Errors
/// When QEMU is gone.
pub fn repair_all(qmp: &Arc<Mutex<Qmp>>, identity: &Identity) -> Result<Vec<String>, VmiError> {
    let mut notices = Vec::new();
    for mut folder in Folder::all() {
        let state = match State::read(&folder) {
            Ok(Some(state)) => state,
            // A session that died before it had written anything; or one that is about to, which holds the lock.
            Ok(None) if folder.has_lock() && folder.try_lock().unwrap_or(false) => {
                if matches!(State::read(&folder), Ok(None)) {
                    folder.remove();
                }
                continue;
            }
            _ => continue,
        };
        let is_this = state.identity.is(identity);
        if !is_this && !state.identity.has_ended() || state.is_held_without_lock() {
            continue;
        }
        if !folder.try_lock().unwrap_or(false) {
            // Its session lives, or somebody else is repairing.
            continue;
        }
        // What it says now that nobody else changes it.
        let Ok(Some(state)) = State::read(&folder) else { continue };
        if !is_this || !state.touched {
            folder.remove();
            continue;
        }
        let owner = state.owner.0;
        let mut repaired = repair(qmp, &folder, &state);
        for _ in 0..ATTEMPTS {
            if matches!(repaired, Ok(()) | Err(VmiError::Lost(_))) {
                break;
            }
            // QEMU may not have noticed yet that somebody who repaired has died.
            thread::sleep(ATTEMPT_PERIOD);
            repaired = repair(qmp, &folder, &state);
        }
        match repaired {
            Ok(()) => {
                folder.remove();
                let runs = if state.leave_paused { "" } else { ", and the guest runs" };
                notices.push(format!(
                    "a vmscope that died (process {owner}) had left breakpoints or a pause in this guest: they were taken \
                     out{runs}"
                ));
            }
            Err(error @ VmiError::Lost(_)) => return Err(error),
            Err(error) => notices.push(format!(
                "a vmscope that died (process {owner}) has left breakpoints or a pause in this guest, and they could not \
                 be taken out: {error}"
            )),
        }
    }
    Ok(notices)
}

/// The guardian's part: repairs what the session of this folder has left, unless somebody else does. Returns whether there
/// is nothing left to do. The lock is taken only with QEMU's monitor at hand: a new session that was faster there repairs by
/// itself, and needs the lock for it.
pub fn repair_one(folder: &mut Folder) -> bool {
    let needs_qemu = |state: &State| state.touched && !state.identity.has_ended();
    let qmp = match State::read(folder) {
        Ok(Some(state)) if needs_qemu(&state) => match connect(&state.identity) {
            Some(qmp) => Some(qmp),
            None => return false,
        },
        Ok(Some(_)) => None,
        Ok(None) => return true,
        Err(_) => return false,
    };
    match folder.try_lock() {
        Ok(true) => {}
        Ok(false) => {
            drop(qmp);
            return folder.wait_for_lock().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        }
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    }
    // What it says now that nobody else changes it.
    let is_free = match (State::read(folder), qmp) {
        (Ok(Some(state)), Some(qmp)) if needs_qemu(&state) => {
            let qmp = Arc::new(Mutex::new(qmp));
            patience::at_most(ATTEMPT_TIME, "freeing the guest", || repair(&qmp, folder, &state)).is_ok()
        }
        (Ok(Some(state)), _) => !needs_qemu(&state),
        (Ok(None), _) => true,
        (Err(_), _) => false,
    };
    if is_free {
        folder.remove();
    }
    folder.unlock();
    is_free
}

/// Connects to this very QEMU, not to another one that listens there by now.
fn connect(identity: &Identity) -> Option<Qmp> {
    let qmp = Qmp::connect(&identity.qmp.parse().ok()?, GREETING_TIME).ok()?;
    identity.is(&Identity::of(&qmp, None)).then_some(qmp)
}

/// Takes everything out of a guest that a session has touched, which needs nothing of that session but what it has
/// written down.
///
/// # Errors
/// What could not be done: the state is to be kept then.
pub fn repair(qmp: &Arc<Mutex<Qmp>>, folder: &Folder, state: &State) -> Result<(), VmiError> {
    let monitor = || qmp.lock().unwrap_or_else(PoisonError::into_inner);
    let stops = |state: &str| matches!(state, "paused" | "debug");
    // A guest that was migrated away, above all, must not run here.
    let now = status(&mut monitor())?;
    let stays = state.leave_paused || now != "running" && !stops(&now);
    let let_go = |mut stub: Gdb| {
        let repaired = state.patches.iter().try_for_each(|patch| patch.repair(&mut stub));
        if stays { repaired } else { repaired.and(stub.detach()) }
    };
    let mut freed = Ok(());
    if let Some(name) = &state.stub {
        // Connecting clears all breakpoints, whoever set them, and stops the guest.
        freed = match connect_to_served(qmp, folder, state, name)? {
            Some(stub) => let_go(stub),
            None => {
                // Started anew, whatever has become of the old one; breakpoints are QEMU's and outlive their stub.
                channel::close(&mut monitor(), name)?;
                let user = state.identity.process().and_then(|(pid, _)| process::owner(pid));
                let Channel { stream, name } = channel::open(qmp, &channel::new_name(), folder, user)?;
                let freed = Gdb::on(stream, &name, Arc::clone(qmp)).and_then(let_go);
                channel::close(&mut monitor(), &name)?;
                freed
            }
        };
    }
    if state.stub.is_some() {
        // What others have left that died over this.
        channel::clear(&mut monitor())?;
    }
    if !stays && stops(&status(&mut monitor())?) {
        monitor().execute("cont", json!({}))?;
    }
    freed
}

/// Connects to a stub of somebody else's that QEMU serves: the one that the session used, or one that was started in the
/// place of the session's own. `None` when there is none, and one has to be started.
fn connect_to_served(
    qmp: &Arc<Mutex<Qmp>>,
    folder: &Folder,
    state: &State,
    name: &str,
) -> Result<Option<Gdb>, VmiError> {
    let monitor = || qmp.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = channel::session(&mut monitor(), name)? {
        return Err(channel::taken(&format!("by the device {device}")));
    }
    let process = state.identity.process().map(|(pid, _)| pid);
    let served = channel::served(&mut monitor(), process)?;
    let known = if state.stub_is_ours { None } else { name.parse::<Address>().ok() };
    match (served, known) {
        (Some((address, _)), _) if is_orphan(&address) || is_in(folder, &address) => Ok(None),
        (Some((address, true)), _) => Err(channel::taken(&format!("at {address}"))),
        // The user may have named another way to the same stub.
        (Some((address, false)), Some(known)) => {
            let connected = Gdb::connect(&known, Arc::clone(qmp));
            connected.or_else(|_| Gdb::connect(&address, Arc::clone(qmp))).map(Some)
        }
        (Some((address, false)), None) => Gdb::connect(&address, Arc::clone(qmp)).map(Some),
        // QEMU may serve it on a character device of any name.
        (None, Some(known)) => Ok(Gdb::connect(&known, Arc::clone(qmp)).ok()),
        (None, None) => Ok(None),
    }
}

/// Whether this is the socket of a session's folder.
fn is_in(folder: &Folder, stub: &Address) -> bool {
    matches!(stub, Address::Unix(socket) if socket.starts_with(folder.path()))
}

/// QEMU's run state (QMP: `RunState`): "running", "paused", "debug" …
///
/// # Errors
/// As [`Qmp::execute`].
pub fn status(qmp: &mut Qmp) -> Result<String, VmiError> {
    let status = qmp.execute("query-status", json!({}))?;
    Ok(status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
}
