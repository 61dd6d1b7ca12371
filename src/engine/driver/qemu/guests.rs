//! The QEMU guests of this machine, as somebody sees them who wants to watch one: its QEMU processes and libvirt's domains,
//! each guest once. Nothing is attached to: a QMP socket serves one client at a time, and that may be somebody else's.
#![allow(unsafe_code)] // access(2), which asks without opening, has no safe form in std.

use std::{ffi::CString, fs::File, os::unix::ffi::OsStrExt, path::Path};

use super::{
    attach::{addresses, quoted, without_socket},
    command_line,
    libvirt::{self, Listed, Listing},
    process,
    transport::Address,
};
use crate::engine::snapshot::clean;

/// The longest name or address that is shown, in characters.
const LONGEST: usize = 200;

/// A guest: a QEMU process, a domain of libvirt's, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Its process id; `None` for a domain that is off, or whose process cannot be seen.
    pub pid: Option<u32>,
    /// The name that it was given with `-name`, or the domain's.
    pub name: Option<String>,
    /// Where it serves QMP, as `--qmp` takes it; none where its command line does not say.
    pub qmp: Vec<String>,
    /// The libvirt domain that it is, where libvirt can be asked.
    pub domain: Option<Listed>,
    /// What keeps this user from watching it; `None` when nothing does.
    pub obstacle: Option<String>,
    /// The command that watches it.
    pub command: Option<String>,
}

/// All guests, the running ones by process id, then domains that are off; and a sentence for each libvirt that could not be
/// asked.
pub fn running() -> (Vec<Running>, Vec<String>) {
    let processes: Vec<Process> = process::emulators().into_iter().map(Process::of).collect();
    let listing = libvirt::list();
    (merged(processes, &listing, &|uuid| process::with_uuid(uuid)), listing.errors)
}

/// What is known of a QEMU process.
struct Process {
    pid: u32,
    arguments: Vec<String>,
    addresses: Vec<Address>,
    /// Whether its memory can be read, or why not.
    readable: Result<(), String>,
}

impl Process {
    fn of(pid: u32) -> Self {
        Self {
            pid,
            arguments: process::arguments(pid),
            addresses: addresses(pid),
            readable: File::open(format!("/proc/{pid}/mem")).map(drop).map_err(|error| error.to_string()),
        }
    }

    fn row(self, domain: Option<(&Listed, String)>) -> Running {
        let direct = obstacle(&self.arguments, &self.addresses, self.readable.clone());
        let by_itself = format!("vmscope qemu --pid {}", self.pid);
        let (obstacle, command) = match (direct, domain.as_ref()) {
            (None, _) => (None, Some(by_itself)),
            // libvirt's way needs no socket, but the memory all the same.
            (Some(_), Some((_, command))) => match unreadable(self.readable) {
                None => (None, Some(command.clone())),
                obstacle => (obstacle, None),
            },
            (obstacle, None) => (obstacle, None),
        };
        Running {
            pid: Some(self.pid),
            name: command_line::name(&self.arguments).map(|name| clean(&name, LONGEST)),
            qmp: self.addresses.iter().map(|address| clean(&address.to_string(), LONGEST)).collect(),
            domain: domain.map(|(domain, _)| domain.clone()),
            obstacle,
            command,
        }
    }
}

/// Each guest once: a domain that runs is the process with its UUID. `with_uuid` finds processes whose program has an
/// unusual name.
fn merged(processes: Vec<Process>, listing: &Listing, with_uuid: &dyn Fn(&str) -> Vec<u32>) -> Vec<Running> {
    let mut rows = Vec::new();
    let mut left: Vec<&Listed> = listing.domains.iter().collect();
    for process in processes {
        let uuid = command_line::uuid(&process.arguments).unwrap_or_default();
        let is_it = |domain: &&Listed| domain.running && domain.uuid.eq_ignore_ascii_case(uuid);
        let domain = left.iter().position(is_it).map(|at| left.remove(at));
        rows.push(process.row(domain.map(|domain| (domain, command(domain, listing)))));
    }
    for domain in left {
        let row = match (domain.running, with_uuid(&domain.uuid).as_slice()) {
            (true, &[pid]) => Process::of(pid).row(Some((domain, command(domain, listing)))),
            (runs, _) => {
                Running { domain: Some(domain.clone()), obstacle: Some(away(domain, runs)), ..Running::default() }
            }
        };
        rows.push(Running { name: Some(domain.name.clone()), ..row });
    }
    rows.sort_by_key(|row| row.pid.unwrap_or(u32::MAX));
    rows
}

/// Why a domain without a process cannot be watched.
fn away(domain: &Listed, runs: bool) -> String {
    if runs {
        return "its QEMU process cannot be seen from here: run vmscope where it runs".into();
    }
    format!("shut off: start it with 'virsh -c {} start {}'", domain.uri, domain.uuid)
}

/// The command that watches a domain; where two libvirts have one of that name, or it looks like an id, by its UUID.
fn command(domain: &Listed, listing: &Listing) -> String {
    let namesakes = listing.domains.iter().filter(|other| other.name == domain.name).count();
    let is_number = domain.name.bytes().all(|byte| byte.is_ascii_digit());
    // A name that had to be cleaned is not the domain's name any more.
    let is_clear = namesakes == 1 && !is_number && !domain.name.starts_with('-') && domain.name.is_ascii();
    let name = if is_clear { &domain.name } else { &domain.uuid };
    format!("vmscope libvirt {}", quoted(name))
}

/// What keeps this user from watching a QEMU by its own QMP socket, given whether its memory can be read.
fn obstacle(arguments: &[String], addresses: &[Address], readable: Result<(), String>) -> Option<String> {
    if addresses.is_empty() {
        return Some(without_socket(arguments));
    }
    let closed = |address: &&Address| matches!(address, Address::Unix(path) if !may_connect(path));
    if addresses.iter().all(|address| closed(&address)) {
        return Some("its QMP socket is not open to this user: run vmscope as its owner, or as root".into());
    }
    unreadable(readable)
}

/// With a shared memory file QMP alone is enough, but that is known only when attached.
fn unreadable(readable: Result<(), String>) -> Option<String> {
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

    const UUID: &str = "f9eaa8b3-8672-4ea4-bac4-4bddd6c96f07";

    fn domain(name: &str, uuid: &str, running: bool) -> Listed {
        Listed { uri: "qemu:///system".into(), uuid: uuid.into(), name: name.into(), running }
    }

    fn process(pid: u32, line: &str, addresses: Vec<Address>) -> Process {
        Process { pid, arguments: line.split(' ').map(str::to_owned).collect(), addresses, readable: Ok(()) }
    }

    fn libvirts(name: &str) -> String {
        format!(
            "qemu -name guest={name} -uuid {UUID} -chardev socket,id=charmonitor,fd=23,server=on -mon \
             chardev=charmonitor,mode=control"
        )
    }

    #[test]
    fn a_domain_and_its_process_are_one_guest() {
        let other = UUID.replace('f', "a");
        let listing =
            Listing { domains: vec![domain("web", UUID, true), domain("old", &other, false)], errors: vec![] };
        let tcp = Address::Tcp("localhost:1".into());
        let processes = vec![process(7, &libvirts("web"), vec![]), process(9, "qemu -name plain", vec![tcp])];
        let rows = merged(processes, &listing, &|_| Vec::new());
        let seen: Vec<_> = rows.iter().map(|row| (row.pid, row.name.as_deref(), row.command.as_deref())).collect();
        assert_eq!(
            seen,
            [
                (Some(7), Some("web"), Some("vmscope libvirt web")),
                (Some(9), Some("plain"), Some("vmscope qemu --pid 9")),
                (None, Some("old"), None)
            ]
        );
        assert_eq!(rows[2].obstacle, Some(format!("shut off: start it with 'virsh -c qemu:///system start {other}'")));
        // Where libvirt cannot be asked, its guests are known by their command lines.
        let rows = merged(vec![process(7, &libvirts("web"), vec![])], &Listing::default(), &|_| Vec::new());
        assert!(rows[0].obstacle.as_deref().is_some_and(|why| why.contains("vmscope libvirt web")), "{rows:?}");
        // A domain whose process is nowhere to be seen.
        let rows = merged(Vec::new(), &listing, &|_| Vec::new());
        assert!(rows[0].obstacle.as_deref().is_some_and(|why| why.contains("cannot be seen")), "{rows:?}");
    }

    #[test]
    fn commands_name_a_domain_beyond_doubt() {
        let of = |domains: &[Listed]| command(&domains[0], &Listing { domains: domains.to_vec(), errors: vec![] });
        assert_eq!(of(&[domain("lab one", UUID, true)]), "vmscope libvirt 'lab one'");
        assert_eq!(of(&[domain("7", UUID, true)]), format!("vmscope libvirt {UUID}"));
        assert_eq!(of(&[domain("a", UUID, true), domain("a", "b", false)]), format!("vmscope libvirt {UUID}"));
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("q");
        let _listener = std::os::unix::net::UnixListener::bind(&open).unwrap();
        let unix = |path: &Path| Address::Unix(path.to_owned());
        assert_eq!(obstacle(&[], &[unix(&open)], Ok(())), None);
        assert_eq!(obstacle(&[], &[Address::Tcp("localhost:1".into())], Ok(())), None);
        let why = |addresses: &[Address], readable| obstacle(&[], addresses, readable).unwrap();
        assert!(why(&[], Ok(())).contains("-qmp unix:PATH"));
        assert!(why(&[unix(&folder.path().join("gone"))], Ok(())).contains("not open to this user"));
        assert!(why(&[unix(&open)], Err("denied".into())).contains("cannot be read (denied)"));
    }
}
