//! Finding a QEMU and its QMP socket.

use std::time::Duration;

use super::{QemuOptions, process, qmp::Qmp, transport::Address};
use crate::engine::error::VmiError;

/// How long a QMP socket may take to greet.
const GREETING_TIME: Duration = Duration::from_secs(3);
/// The same where several sockets are tried.
const TRIAL_TIME: Duration = Duration::from_millis(500);

/// A QEMU that answers, and its process where that is on this machine.
pub(super) struct Found {
    pub qmp: Qmp,
    pub pid: Option<u32>,
}

/// Connects to the QEMU that the options mean: by socket, by process, or the only one there is.
///
/// # Errors
/// A sentence that says what was looked for, and what to give instead.
pub(super) fn find(options: &QemuOptions) -> Result<Found, VmiError> {
    match (&options.qmp, options.pid) {
        (Some(address), pid) => {
            let qmp = Qmp::connect(&address.parse()?, GREETING_TIME)?;
            let pid = pid.or_else(|| qmp.peer().map(|(pid, ..)| pid));
            Ok(Found { qmp, pid })
        }
        (None, Some(pid)) => of_process(pid),
        (None, None) => only_one(),
    }
}

fn addresses(pid: u32) -> Vec<Address> {
    process::qmp_addresses(&process::arguments(pid), &process::folder(pid))
}

fn of_process(pid: u32) -> Result<Found, VmiError> {
    if process::start_time(pid).is_none() {
        return Err(VmiError::Invalid(format!("there is no process {pid}")));
    }
    let mut last = VmiError::Invalid(format!(
        "process {pid} has no QMP socket on its command line; start QEMU with -qmp unix:PATH,server=on,wait=off, or \
         give the socket with --qmp"
    ));
    let addresses = addresses(pid);
    let greeting_time = if addresses.len() == 1 { GREETING_TIME } else { TRIAL_TIME };
    for address in addresses {
        match Qmp::connect(&address, greeting_time) {
            Ok(qmp) => return Ok(Found { qmp, pid: Some(pid) }),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn only_one() -> Result<Found, VmiError> {
    let all = process::emulators();
    let with_socket: Vec<u32> = all.iter().copied().filter(|&pid| !addresses(pid).is_empty()).collect();
    match (with_socket.as_slice(), all.len()) {
        (&[pid], _) => of_process(pid),
        ([], 0) => Err(VmiError::Invalid(
            "no QEMU runs here; start one with -qmp unix:PATH,server=on,wait=off, or watch the built-in guest with \
             'vmscope demo'"
                .into(),
        )),
        ([], count) => Err(VmiError::Invalid(format!(
            "{count} QEMU processes run here, but none has a QMP socket on its command line; start QEMU with \
             -qmp unix:PATH,server=on,wait=off, or give the socket with --qmp"
        ))),
        (several, _) => {
            let list: Vec<String> = several
                .iter()
                .map(|&pid| {
                    let at = addresses(pid).first().map(Address::to_string).unwrap_or_default();
                    format!("--pid {pid} ({at})")
                })
                .collect();
            Err(VmiError::Invalid(format!("several QEMU processes run here; choose one: {}", list.join(", "))))
        }
    }
}
