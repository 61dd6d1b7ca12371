//! How the gdb stub that a session starts is reached: over a pair of sockets, one end of which is handed to QEMU.
//!
//! No file is needed for that, so it works as well where QEMU sees other files than we do (containers, mount namespaces)
//! or may not make any (AppArmor, SELinux). Where the monitor takes no descriptors (over TCP), a socket file is used.
//! QEMU: `getfd` and `chardev-add` (QMP reference), `gdbserver chardev:ID` (`gdbstub/`, `qemu_chr_new`).

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    process,
    qmp::Qmp,
    state_folder::Folder,
    transport::{Address, Stream},
};
use crate::engine::{error::VmiError, snapshot::clean};

/// What the labels of our character devices in QEMU begin with.
const LABEL: &str = "vmscope-";
/// How QEMU's `gdbserver` is told that a character device is meant.
const DEVICE: &str = "chardev:";
/// How long connecting to a socket file may take.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// A stub that was started for us, and our connection to it.
pub struct Channel {
    /// Our end.
    pub stream: Stream,
    /// What messages and the state file call it: `chardev:LABEL`, or the address of a socket file.
    pub name: String,
}

/// A name for a stub that is to be started.
pub fn new_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{DEVICE}{LABEL}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Starts QEMU's gdb stub under a name from [`new_name`] and connects to it: over a descriptor, else over a socket file in a
/// session's folder, where QEMU's user can make it. The guest stops. A stub that QEMU had is gone then.
///
/// # Errors
/// QEMU's own words; [`VmiError::Lost`] when it is gone.
pub fn open(
    monitor: &Mutex<Qmp>,
    name: &str,
    folder: &Folder,
    qemus_user: Option<(u32, u32)>,
) -> Result<Channel, VmiError> {
    let mut qmp = monitor.lock().unwrap_or_else(PoisonError::into_inner);
    match over_descriptor(&mut qmp, name) {
        Ok(stream) => return Ok(Channel { stream, name: name.to_owned() }),
        Err(error @ VmiError::Lost(_)) => return Err(error),
        Err(error) => tracing::info!("QEMU's gdb stub is reached over a socket file, because {error}"),
    }
    let doing = || format!("making a place in {} for the gdb stub's socket", folder.path().display());
    let socket = folder.socket(qemus_user).map_err(|error| VmiError::driver(doing(), error))?;
    start(&mut qmp, &socket)?;
    drop(qmp);
    let address = Address::Unix(socket);
    let stream = Stream::connect(&address, CONNECT_TIME)
        .map_err(|error| VmiError::driver(format!("connecting to QEMU's gdb stub at {address}"), error))?;
    Ok(Channel { stream, name: address.to_string() })
}

fn over_descriptor(qmp: &mut Qmp, name: &str) -> Result<Stream, VmiError> {
    let label = name.strip_prefix(DEVICE).unwrap_or(name);
    let doing = "making a pair of sockets for the gdb stub";
    let (ours, theirs) = UnixStream::pair().map_err(|error| VmiError::driver(doing, error))?;
    ours.set_nonblocking(true).map_err(|error| VmiError::driver(doing, error))?;
    qmp.pass_descriptor(label, theirs.as_fd())?;
    drop(theirs);
    let backend =
        json!({ "type": "socket", "data": { "addr": { "type": "fd", "data": { "str": label } }, "server": false } });
    if let Err(error) = qmp.execute("chardev-add", json!({ "id": label, "backend": backend })) {
        let _ = qmp.execute("closefd", json!({ "fdname": label }));
        return Err(error);
    }
    let said = qmp.human(&format!("gdbserver {name}"), None);
    match said {
        Ok(said) if said.starts_with("Waiting") => Ok(Stream::Unix(ours)),
        refused => {
            let _ = qmp.execute("chardev-remove", json!({ "id": label }));
            let said = refused?;
            Err(VmiError::driver("starting QEMU's gdb stub", clean(said.trim(), 200)))
        }
    }
}

/// Makes QEMU listen for a gdb client on a Unix socket; one that it had is gone then.
fn start(qmp: &mut Qmp, socket: &Path) -> Result<(), VmiError> {
    // Its socket is bound when the command returns.
    let said = qmp.human(&format!("gdbserver unix:{},server=on,wait=off", socket.display()), None)?;
    if said.starts_with("Waiting") {
        return Ok(());
    }
    Err(VmiError::driver("starting QEMU's gdb stub", clean(said.trim(), 200)))
}

/// Ends QEMU's gdb stub, whoever started it.
///
/// # Errors
/// As [`Qmp::human`].
pub fn stop(qmp: &mut Qmp) -> Result<(), VmiError> {
    qmp.human("gdbserver none", None).map(drop)
}

/// Ends a stub that was started for a session, by the name that its [`Channel`] had.
///
/// # Errors
/// As [`Qmp::human`].
pub fn close(qmp: &mut Qmp, name: &str) -> Result<(), VmiError> {
    stop(qmp)?;
    let Some(label) = name.strip_prefix(DEVICE) else { return Ok(()) };
    // The device goes with its stub; one that had no stub yet does not.
    match qmp.execute("chardev-remove", json!({ "id": label })) {
        Err(error @ VmiError::Lost(_)) => Err(error),
        _ => Ok(()),
    }
}

/// What there is of ours among QEMU's character devices.
pub enum Present {
    /// Nothing.
    Nothing,
    /// Another session is connected by this device.
    Connected(String),
}

/// Looks for stubs that sessions have started over a descriptor, and takes out what nobody is connected to any more.
///
/// # Errors
/// As [`Qmp::execute`].
pub fn clear(qmp: &mut Qmp) -> Result<Present, VmiError> {
    let mut present = Present::Nothing;
    for (label, filename) in devices(qmp)? {
        if !label.starts_with(LABEL) {
            continue;
        }
        if filename.starts_with("disconnected:") {
            discard(qmp, &label)?;
        } else {
            present = Present::Connected(clean(&label, 60));
        }
    }
    Ok(present)
}

/// Takes a device out: by itself, because the stub may be another one's; with the stub where that is on it.
fn discard(qmp: &mut Qmp, label: &str) -> Result<(), VmiError> {
    match qmp.execute("chardev-remove", json!({ "id": label })) {
        Ok(_) => Ok(()),
        Err(error @ VmiError::Lost(_)) => Err(error),
        Err(_) => close(qmp, &format!("{DEVICE}{label}")),
    }
}

/// The device by which a session other than that of this stub is connected.
///
/// # Errors
/// As [`Qmp::execute`].
pub fn session(qmp: &mut Qmp, name: &str) -> Result<Option<String>, VmiError> {
    let own = name.strip_prefix(DEVICE);
    let is_other = |(label, filename): &(String, String)| {
        label.starts_with(LABEL) && !filename.starts_with("disconnected:") && Some(label.as_str()) != own
    };
    Ok(devices(qmp)?.into_iter().find(is_other).map(|(label, _)| clean(&label, 60)))
}

/// The stub that QEMU serves at an address, as that is reached from here, and whether somebody is connected.
///
/// # Errors
/// As [`Qmp::execute`].
pub fn served(qmp: &mut Qmp, pid: Option<u32>) -> Result<Option<(Address, bool)>, VmiError> {
    let stub = devices(qmp)?.into_iter().find(|(label, _)| label == "gdb");
    Ok(stub.and_then(|(_, name)| {
        let free = name.strip_prefix("disconnected:");
        let address = free.unwrap_or(&name).parse().ok()?;
        Some((from_here(address, pid), free.is_none()))
    }))
}

/// QEMU tells a socket's path as it was told itself: from its own folder on, in its own view of the files.
fn from_here(address: Address, pid: Option<u32>) -> Address {
    match (address, pid) {
        (Address::Unix(path), Some(pid)) => {
            Address::Unix(process::path_from_here(pid, process::folder(pid).join(path)))
        }
        (address, _) => address,
    }
}

/// Connecting would wait for ever, and stop the guest when the other one has long gone.
pub fn taken(how: &str) -> VmiError {
    VmiError::Invalid(format!(
        "another debugger is connected to the guest's gdb stub {how}, which serves one at a time: end that one first"
    ))
}

/// QEMU's character devices: label and what it calls their file.
///
/// # Errors
/// As [`Qmp::execute`].
fn devices(qmp: &mut Qmp) -> Result<Vec<(String, String)>, VmiError> {
    let devices = qmp.execute("query-chardev", json!({}))?;
    let text = |device: &Value, name| device.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(devices.as_array().into_iter().flatten().map(|one| (text(one, "label"), text(one, "filename"))).collect())
}
