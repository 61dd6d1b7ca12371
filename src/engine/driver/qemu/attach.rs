//! Finding a QEMU and its QMP socket.

use std::time::Duration;

use super::{QemuOptions, command_line, libvirt, process, qmp::Qmp, transport::Address};
use crate::engine::{error::VmiError, snapshot::clean};

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
    if let Some(name) = &options.domain {
        return of_domain(name, options.connect.as_deref());
    }
    match (&options.qmp, options.pid) {
        (Some(address), pid) => {
            let qmp = Qmp::connect(&address.parse::<Address>()?.absolute(), GREETING_TIME)?;
            let pid = pid.or_else(|| qmp.peer().map(|(pid, ..)| pid));
            Ok(Found { qmp, pid })
        }
        (None, Some(pid)) => of_process(pid),
        (None, None) => only_one(),
    }
}

fn of_domain(name: &str, uri: Option<&str>) -> Result<Found, VmiError> {
    let libvirt::Found { domain, pid } = libvirt::find(name, uri)?;
    let name = domain.name.clone();
    let qmp = Qmp::connect(&Address::Libvirt(domain), GREETING_TIME)?;
    tracing::info!(
        "libvirt marks the domain '{name}' as tainted from now on (custom-monitor): it does so for every command that goes \
         through it to QEMU's monitor"
    );
    Ok(Found { qmp, pid: Some(pid) })
}

/// Where a QEMU serves QMP, as it is reached from here.
pub(super) fn addresses(pid: u32) -> Vec<Address> {
    let of_its_own = command_line::qmp_addresses(&process::arguments(pid), &process::folder(pid));
    let from_here = |address| match address {
        Address::Unix(path) => Address::Unix(process::path_from_here(pid, path)),
        other => other,
    };
    of_its_own.into_iter().map(from_here).collect()
}

/// Why a process without a QMP socket on its command line cannot be watched, and what to do.
pub(super) fn without_socket(arguments: &[String]) -> String {
    let name = command_line::name(arguments).map(|name| clean(&name, 60));
    match name {
        Some(name) if command_line::is_libvirts(arguments) => format!(
            "libvirt holds its QMP: watch it with vmscope libvirt {}, or give the domain a socket of its own with <qemu:commandline>",
            quoted(&name)
        ),
        _ if command_line::has_descriptor(arguments) => {
            "whoever started it holds its QMP by a descriptor: let it give QEMU \
             a second one with -qmp unix:PATH,server=on,wait=off"
                .into()
        }
        _ => "no QMP socket on its command line: start it with -qmp unix:PATH,server=on,wait=off".into(),
    }
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.+:/@=".contains(c);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn of_process(pid: u32) -> Result<Found, VmiError> {
    if process::start_time(pid).is_none() {
        return Err(VmiError::Invalid(format!("there is no process {pid}")));
    }
    let mut last =
        VmiError::Invalid(format!("process {pid} cannot be watched: {}", without_socket(&process::arguments(pid))));
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
        ([], 1) => of_process(all.first().copied().unwrap_or_default()),
        ([], count) => Err(VmiError::Invalid(format!(
            "{count} QEMU processes run here, but none has a QMP socket on its command line; 'vmscope guests' tells what \
             to do for each"
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
