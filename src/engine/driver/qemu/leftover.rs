//! What a session leaves behind when it dies, and how that is repaired.
//!
//! QEMU forgets nothing when a gdb client dies: the guest runs into its breakpoints and stands for ever. So before a
//! session touches the guest it writes down, in a folder of its own, which guest that is and how to let go of it. The
//! guardian process reads it when the session dies, and so does the next session, whoever comes first.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    channel::{self, Channel},
    gdb::Gdb,
    int3::Patch,
    process,
    qmp::Qmp,
    transport::Address,
};
use crate::engine::error::VmiError;

const PREFIX: &str = "vmscope-qemu-";
const STATE: &str = "state.json";
const CLAIMED: &str = "state.claimed";
/// The largest state file that is read.
const LARGEST_STATE: u64 = 64 << 10;

/// What somebody else must know to let go of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The session's process and when that started.
    pub owner: (u32, u64),
    /// QEMU's process and when that started; `None` when it is on another machine.
    pub qemu: Option<(u32, u64)>,
    /// QEMU's QMP socket.
    pub qmp: String,
    /// The gdb stub that is used, if any: its address, or the device in QEMU that it is reached by.
    pub stub: Option<String>,
    /// Whether the session started that stub.
    pub stub_is_ours: bool,
    /// Whether the guest was stopped by somebody else, and so stays stopped.
    pub leave_paused: bool,
    /// What may be in guest memory.
    #[serde(default)]
    pub patches: Vec<Patch>,
}

impl State {
    fn is_dead(&self) -> bool {
        let (pid, started) = self.owner;
        process::start_time(pid) != Some(started)
    }
}

/// A session's folder: its state and the socket of the stub that it starts.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    socket_folder: PathBuf,
}

impl Folder {
    /// Makes a folder that only this user, and QEMU's where that is another one, can enter.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(qemus_user: Option<(u32, u32)>) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for base in bases() {
            for attempt in 0..100 {
                let path = base.join(format!("{PREFIX}{}-{attempt}", std::process::id()));
                // The path of a Unix socket has room for 107 bytes.
                if path.as_os_str().len() > 90 {
                    break;
                }
                match DirBuilder::new().mode(0o700).create(&path) {
                    Ok(()) => return Self::prepare(path, qemus_user),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => {
                        last = error;
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    fn prepare(path: PathBuf, qemus_user: Option<(u32, u32)>) -> io::Result<Self> {
        let folder = Self { socket_folder: path.join("stub"), path };
        DirBuilder::new().mode(0o700).create(&folder.socket_folder)?;
        let mine = fs::metadata(&folder.path)?.uid();
        if let Some((user, group)) = qemus_user.filter(|&(user, _)| user != mine) {
            // Only root gets here with success: QEMU runs as a user of its own and has to make its socket.
            chown(&folder.socket_folder, Some(user), Some(group))?;
            fs::set_permissions(&folder.path, Permissions::from_mode(0o711))?;
        }
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the stub's socket is to be.
    pub fn socket(&self) -> PathBuf {
        self.socket_folder.join("gdb")
    }

    /// Writes the state, all of it or nothing.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, state: &State) -> io::Result<()> {
        let new = self.path.join("state.new");
        fs::write(&new, serde_json::to_vec(state)?)?;
        fs::rename(new, self.path.join(STATE))
    }

    /// Removes the folder, when there is nothing left to repair.
    pub fn remove(self) {
        remove(&self.path);
    }
}

/// Where sessions' folders are: `/tmp` comes first, because QEMU may be another user's and has to get there.
fn bases() -> Vec<PathBuf> {
    let mut bases = vec![PathBuf::from("/tmp")];
    let own = std::env::temp_dir();
    if !bases.contains(&own) {
        bases.push(own);
    }
    bases
}

/// Whether this is the address of a stub that a session started and could not end, whose folder is gone: nobody can
/// connect to it.
pub fn is_orphan(stub: &Address) -> bool {
    let Address::Unix(socket) = stub else { return false };
    let is_ours = socket.iter().any(|part| part.to_string_lossy().starts_with(PREFIX));
    is_ours && !socket.exists()
}

fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "could not remove a session's folder");
    }
}

/// Reads a session's state; `None` when there is none, when it is not one, or when it is another user's.
fn read(folder: &Path) -> Option<State> {
    let file = folder.join(STATE);
    let data = fs::symlink_metadata(&file).ok()?;
    let mine = fs::metadata("/proc/self").ok()?.uid();
    if !data.is_file() || data.len() > LARGEST_STATE || data.uid() != mine {
        return None;
    }
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Repairs what dead sessions have left on this guest; says what was done, a sentence each.
///
/// # Errors
/// When QEMU is gone.
pub fn repair_all(qmp: &Arc<Mutex<Qmp>>, qemu: Option<(u32, u64)>, address: &str) -> Result<Vec<String>, VmiError> {
    let mut notices = Vec::new();
    for base in bases() {
        for entry in fs::read_dir(base).into_iter().flatten().filter_map(Result::ok) {
            let folder = entry.path();
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            let Some(state) = read(&folder) else { continue };
            let is_this = if qemu.is_some() { state.qemu == qemu } else { state.qmp == address };
            let qemu_has_ended = state.qemu.is_some_and(|(pid, started)| process::start_time(pid) != Some(started));
            if !state.is_dead() || !(is_this || qemu_has_ended) || !claim(&folder) {
                continue;
            }
            if !is_this {
                remove(&folder);
                continue;
            }
            let owner = state.owner.0;
            match repair(qmp, &folder, &state) {
                Ok(()) => {
                    remove(&folder);
                    let runs = if state.leave_paused { "" } else { ", and the guest runs" };
                    notices.push(format!(
                        "a vmscope that died (process {owner}) had left breakpoints or a pause in this guest: they were \
                         taken out{runs}"
                    ));
                }
                Err(error) => {
                    unclaim(&folder);
                    if let VmiError::Lost(_) = error {
                        return Err(error);
                    }
                    notices.push(format!(
                        "a vmscope that died (process {owner}) has left breakpoints or a pause in this guest, and they \
                         could not be taken out: {error}"
                    ));
                }
            }
        }
    }
    Ok(notices)
}

/// The guardian's part: repairs what the session of this folder has left, unless somebody else does.
///
/// # Errors
/// A sentence when it could not be repaired.
pub fn repair_one(folder: &Path, patience: std::time::Duration) -> Result<(), VmiError> {
    let Some(state) = read(folder) else { return Ok(()) };
    let address: Address = state.qmp.parse()?;
    // QEMU serves one QMP client at a time, and may not have noticed yet that ours has died. A new session that was
    // faster holds the socket now and repairs by itself.
    let end = std::time::Instant::now() + patience;
    let qmp = loop {
        let gone = state.qemu.is_some_and(|(pid, started)| process::start_time(pid) != Some(started));
        match Qmp::connect(&address, std::time::Duration::from_secs(1)) {
            Ok(qmp) => break Some(qmp),
            Err(_) if gone || read(folder).is_none() => break None,
            Err(error) if std::time::Instant::now() >= end => return Err(error),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(50)),
        }
    };
    if let Some(qmp) = qmp
        && claim(folder)
    {
        repair(&Arc::new(Mutex::new(qmp)), folder, &state).inspect_err(|_| unclaim(folder))?;
    }
    remove(folder);
    Ok(())
}

/// Of several who want to repair, one gets the state.
fn claim(folder: &Path) -> bool {
    fs::rename(folder.join(STATE), folder.join(CLAIMED)).is_ok()
}

/// The next session may have more luck.
fn unclaim(folder: &Path) {
    let _ = fs::rename(folder.join(CLAIMED), folder.join(STATE));
}

fn repair(qmp: &Arc<Mutex<Qmp>>, folder: &Path, state: &State) -> Result<(), VmiError> {
    let monitor = || qmp.lock().unwrap_or_else(PoisonError::into_inner);
    let mut freed = Ok(());
    let let_go = |mut stub: Gdb| {
        let repaired = state.patches.iter().try_for_each(|patch| patch.repair(&mut stub));
        if state.leave_paused { repaired } else { repaired.and(stub.detach()) }
    };
    if let Some(stub) = &state.stub {
        // Connecting clears all breakpoints and stops the guest.
        if state.stub_is_ours {
            // Started anew, whatever has become of the old one, which has to end first; breakpoints are QEMU's and outlive
            // their stub.
            channel::close(&mut monitor(), stub)?;
            let Channel { stream, name } = channel::open(qmp, &channel::new_name(), &folder.join("stub").join("gdb"))?;
            freed = Gdb::on(stream, &name, Arc::clone(qmp)).and_then(let_go);
            channel::close(&mut monitor(), &name)?;
        } else {
            freed = Gdb::connect(&stub.parse::<Address>()?, Arc::clone(qmp)).and_then(let_go);
        }
    }
    if !state.leave_paused {
        let now = status(&mut monitor())?;
        if matches!(now.as_str(), "paused" | "debug") {
            monitor().execute("cont", json!({}))?;
        }
    }
    freed
}

/// QEMU's run state (QMP: `RunState`): "running", "paused", "debug" …
///
/// # Errors
/// As [`Qmp::execute`].
pub fn status(qmp: &mut Qmp) -> Result<String, VmiError> {
    let status = qmp.execute("query-status", json!({}))?;
    Ok(status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// Makes QEMU listen for a gdb client on a Unix socket; one that it had is gone then.
///
/// # Errors
/// QEMU's own words.
pub fn start_stub(qmp: &mut Qmp, socket: &Path) -> Result<(), VmiError> {
    // Its socket is bound when the command returns. A stale one would be connected to instead.
    let _ = fs::remove_file(socket);
    let said = qmp.human(&format!("gdbserver unix:{},server=on,wait=off", socket.display()), None)?;
    if said.starts_with("Waiting") {
        return Ok(());
    }
    let said = crate::engine::snapshot::clean(said.trim(), 200);
    Err(VmiError::driver("starting QEMU's gdb stub", said))
}

/// Ends QEMU's gdb stub.
///
/// # Errors
/// As [`Qmp::human`].
pub fn stop_stub(qmp: &mut Qmp) -> Result<(), VmiError> {
    qmp.human("gdbserver none", None).map(drop)
}
