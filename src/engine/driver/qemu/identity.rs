//! Which QEMU it is: told apart from every other one by sessions of other pid namespaces and after a reboot, too.
//!
//! A process id means something within one pid namespace and one boot only; where those differ, the QMP socket's inode says
//! which QEMU is meant, which is the same for all who share the file system.

use std::{fs, io, os::unix::fs::MetadataExt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    process,
    qmp::Qmp,
    transport::{Address, Stream},
};

/// How long a QEMU that may have ended is waited for.
const CONNECT_TIME: Duration = Duration::from_secs(1);

/// What is known of a QEMU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its process and when that started; `None` when it is not seen from here.
    pub qemu: Option<(u32, u64)>,
    /// Its QMP socket.
    pub qmp: String,
    /// The boot in which it runs (`/proc/sys/kernel/random/boot_id`); empty when not known, as in what older versions wrote.
    #[serde(default)]
    boot: String,
    /// The pid namespace that its process id is of, as an inode; 0 when not known.
    #[serde(default)]
    namespace: u64,
    /// The QMP socket's device and inode, where it is a file.
    #[serde(default)]
    socket: Option<(u64, u64)>,
}

impl Identity {
    /// The QEMU that somebody is connected to, and its process where that is seen from here.
    pub fn of(qmp: &Qmp, pid: Option<u32>) -> Self {
        let socket = match qmp.address() {
            Address::Unix(path) => fs::metadata(path).ok().map(|data| (data.dev(), data.ino())),
            _ => None,
        };
        Self {
            qemu: pid.and_then(|pid| Some((pid, process::start_time(pid)?))),
            qmp: qmp.address().to_string(),
            boot: this_boot(),
            namespace: this_namespace(),
            socket,
        }
    }

    /// Whether its process id means something here and now.
    fn is_seen_from_here(&self) -> bool {
        let is = |written: bool, same: bool| !written || same;
        is(!self.boot.is_empty(), self.boot == this_boot())
            && is(self.namespace != 0, self.namespace == this_namespace())
    }

    /// Whether a version wrote it that knew less.
    pub fn is_of_older_version(&self) -> bool {
        self.boot.is_empty()
    }

    /// Its process, if that can be told from here.
    pub fn process(&self) -> Option<(u32, u64)> {
        self.qemu.filter(|_| self.is_seen_from_here())
    }

    /// Whether it is the same as one that somebody is connected to from here.
    pub fn is(&self, connected: &Self) -> bool {
        if !self.boot.is_empty() && self.boot != connected.boot {
            return false;
        }
        if let (Some(one), Some(other)) = (self.process(), connected.qemu) {
            return one == other;
        }
        match (self.socket, connected.socket) {
            (Some(one), Some(other)) => one == other,
            _ => self.qmp == connected.qmp,
        }
    }

    /// Whether it is known to have ended.
    pub fn has_ended(&self) -> bool {
        if !self.boot.is_empty() && self.boot != this_boot() {
            return true;
        }
        self.process().is_some_and(|(pid, started)| process::start_time(pid) != Some(started))
    }

    /// Whether nobody listens where it did. That tells the end of one whose process is not seen from here: as long as it
    /// lives it listens, however busy it is.
    pub fn has_hung_up(&self) -> bool {
        let Ok(address @ (Address::Unix(_) | Address::Tcp(_))) = self.qmp.parse() else { return false };
        let tried = Stream::connect(&address, CONNECT_TIME);
        tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

fn this_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn this_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |data| data.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(qemu: Option<(u32, u64)>, socket: u64) -> Identity {
        let (boot, namespace) = (this_boot(), this_namespace());
        Identity { qemu, qmp: format!("unix:/run/q{socket}"), boot, namespace, socket: Some((1, socket)) }
    }

    #[test]
    fn a_process_id_names_a_qemu_within_its_namespace_only() {
        let me = std::process::id();
        let started = process::start_time(me).expect("this process");
        let (this, other) = (here(Some((me, started)), 7), here(Some((me, started + 1)), 7));
        assert!(this.is(&this) && !this.has_ended());
        assert!(!other.is(&this) && other.has_ended(), "its id was used again");
        let elsewhere = |one: &Identity| Identity { namespace: 1, ..one.clone() };
        assert!(elsewhere(&other).is(&this) && !elsewhere(&other).has_ended(), "by its socket");
        assert!(!elsewhere(&here(Some((me, started)), 8)).is(&this));
        let before = Identity { boot: "of old".into(), ..this.clone() };
        assert!(!before.is(&this) && before.has_ended());
    }

    #[test]
    fn what_an_older_version_wrote_is_understood() {
        let me = std::process::id();
        let started = process::start_time(me).expect("this process");
        let read = |text: &str| serde_json::from_str::<Identity>(text).expect("as it was written");
        let old = read(&format!("{{\"owner\": [1, 2], \"qemu\": [{me}, {started}], \"qmp\": \"unix:/q\"}}"));
        assert!(old.is(&here(Some((me, started)), 7)) && !old.is(&here(Some((me, started + 1)), 7)));
        assert!(read("{\"qemu\": [4194303, 1], \"qmp\": \"unix:/q\"}").has_ended());
        let remote = read("{\"qemu\": null, \"qmp\": \"host:4444\"}");
        assert!(remote.is(&Identity { qmp: "host:4444".into(), ..Identity::default() }) && !remote.has_ended());
    }
}
