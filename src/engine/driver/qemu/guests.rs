//! The QEMU processes of this machine, as somebody sees them who wants to watch one. Nothing is attached to: a QMP socket
//! serves one client at a time, and that may be somebody else's.
#![allow(unsafe_code)] // access(2), which asks without opening, has no safe form in std.

use std::{ffi::CString, fs::File, os::unix::ffi::OsStrExt, path::Path};

use super::{process, transport::Address};
use crate::engine::snapshot::clean;

/// The longest name or address that is shown, in characters.
const LONGEST: usize = 200;

/// A QEMU process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process id.
    pub pid: u32,
    /// The name that it was given with `-name`.
    pub name: Option<String>,
    /// Where it serves QMP, as `--qmp` takes it; none where its command line does not say.
    pub qmp: Vec<String>,
    /// What keeps this user from watching it; `None` when nothing does.
    pub obstacle: Option<String>,
}

impl Running {
    /// The command that watches it.
    pub fn command(&self) -> Option<String> {
        self.obstacle.is_none().then(|| format!("vmscope qemu --pid {}", self.pid))
    }
}

/// All of them, by process id.
pub fn running() -> Vec<Running> {
    let of = |pid| {
        let arguments = process::arguments(pid);
        let addresses = process::qmp_addresses(&arguments, &process::folder(pid));
        let readable = File::open(format!("/proc/{pid}/mem")).map(drop).map_err(|error| error.to_string());
        Running {
            pid,
            name: name(&arguments),
            qmp: addresses.iter().map(|address| clean(&address.to_string(), LONGEST)).collect(),
            obstacle: obstacle(&addresses, readable),
        }
    };
    process::emulators().into_iter().map(of).collect()
}

/// The value of `-name NAME,...` or `-name guest=NAME,...` (QEMU's manual page).
fn name(arguments: &[String]) -> Option<String> {
    let value = arguments.windows(2).find_map(|pair| match pair {
        [option, value] if option.trim_start_matches('-') == "name" => Some(value),
        _ => None,
    })?;
    let mut parts = value.split(',');
    let named = value.split(',').find_map(|part| part.strip_prefix("guest="));
    let name = named.or_else(|| parts.next().filter(|first| !first.contains('=')))?;
    Some(clean(name, LONGEST)).filter(|name| !name.is_empty())
}

/// What keeps this user from watching a QEMU with these addresses, given whether its memory can be read.
fn obstacle(addresses: &[Address], readable: Result<(), String>) -> Option<String> {
    if addresses.is_empty() {
        return Some("no QMP socket on its command line: start it with -qmp unix:PATH,server=on,wait=off".into());
    }
    let closed = |address: &&Address| matches!(address, Address::Unix(path) if !may_connect(path));
    if addresses.iter().all(|address| closed(&address)) {
        return Some("its QMP socket is not open to this user: run vmscope as its owner, or as root".into());
    }
    // With a shared memory file QMP alone is enough, but that is known only when attached.
    readable.err().map(|why| format!("its memory cannot be read ({why}): run vmscope as its owner, or as root"))
}

/// Whether this user may write to a socket.
fn may_connect(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: `path` is a string that ends with a zero byte and outlives the call, which only reads it.
    unsafe { libc::access(path.as_ptr(), libc::W_OK) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_both_forms() {
        let of = |line: &str| name(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("qemu -name web").as_deref(), Some("web"));
        assert_eq!(of("qemu -m 1G --name web,process=x").as_deref(), Some("web"));
        assert_eq!(of("qemu -name process=x,guest=web,debug-threads=on").as_deref(), Some("web"));
        assert_eq!(of("qemu -name process=x"), None);
        assert_eq!(of("qemu -name"), None);
        assert_eq!(of("qemu -name \u{1b}[2J").as_deref(), Some("␛[2J"));
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("q");
        let _listener = std::os::unix::net::UnixListener::bind(&open).unwrap();
        let unix = |path: &Path| Address::Unix(path.to_owned());
        assert_eq!(obstacle(&[unix(&open)], Ok(())), None);
        assert_eq!(obstacle(&[Address::Tcp("localhost:1".into())], Ok(())), None);
        let why = |addresses: &[Address], readable| obstacle(addresses, readable).unwrap();
        assert!(why(&[], Ok(())).contains("-qmp unix:PATH"));
        assert!(why(&[unix(&folder.path().join("gone"))], Ok(())).contains("not open to this user"));
        assert!(why(&[unix(&open)], Err("denied".into())).contains("cannot be read (denied)"));
    }
}
