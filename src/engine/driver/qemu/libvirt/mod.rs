//! Domains of libvirt's, with no change to them: found and spoken to through the program `virsh`.
//!
//! `virsh` is asked rather than libvirt's library linked, so that nothing is needed to build vmscope and nothing of
//! libvirt's to run it without. Start at [`find`]; [`Domain`] is what the rest of the driver knows, `bridge` makes a
//! QMP socket of it, `virsh` and `child` know the program.

mod bridge;
mod child;
mod list;
mod virsh;

use std::{
    fmt,
    os::fd::BorrowedFd,
    str::FromStr,
    time::{Duration, Instant},
};

use serde_json::Value;

use self::virsh::Failure;
pub use self::{
    bridge::{LOST, connect},
    list::{Listed, Listing, list},
};
use super::{descriptor::INHERITED, process};
use crate::engine::{error::VmiError, snapshot::clean};

/// How long libvirt may take to answer a question about its domains.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// The libvirts of a machine: root's and the user's own.
const USUAL: [&str; 2] = ["qemu:///system", "qemu:///session"];
const SCHEME: &str = "libvirt:";

/// A domain, by what names it for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// libvirt's address, such as `qemu:///system`.
    pub uri: String,
    /// The domain's UUID, in its usual form.
    pub uuid: String,
    /// Its name, for messages.
    pub name: String,
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}@{}", self.uuid, self.uri)
    }
}

impl FromStr for Domain {
    type Err = ();

    /// What [`fmt::Display`] writes; the name is then the UUID.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (uuid, uri) = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('@')).ok_or(())?;
        if !is_uuid(uuid) || uri.is_empty() {
            return Err(());
        }
        Ok(Self { uri: uri.into(), uuid: uuid.into(), name: uuid.into() })
    }
}

/// Whether this is a UUID in the form that libvirt prints: no other text goes into a line of virsh's.
fn is_uuid(text: &str) -> bool {
    let is_place_of_dash = |at| matches!(at, 8 | 13 | 18 | 23);
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| if is_place_of_dash(at) { b == b'-' } else { b.is_ascii_hexdigit() })
}

impl Domain {
    /// Hands a descriptor to the domain's QEMU, with the command that takes it.
    fn pass(&self, request: &Value, passed: BorrowedFd<'_>, deadline: Instant) -> Result<Value, Failure> {
        let (number, json) = (INHERITED.to_string(), request.to_string());
        let command = ["qemu-monitor-command", "--domain", &self.uuid, "--pass-fds", &number, "--cmd", &json];
        bridge::reply(virsh::ask(Some(&self.uri), &command, Some(passed), deadline)?.trim())
    }

    /// The sentence for a failure.
    fn refusal(&self, failure: Failure) -> VmiError {
        match failure {
            Failure::Refused(why) => {
                VmiError::Invalid(format!("asking libvirt about the domain '{}': {why}", self.name))
            }
            failure => VmiError::Invalid(cannot_ask(&self.uri, failure)),
        }
    }
}

/// A domain that runs here, and its process.
pub struct Found {
    /// The domain.
    pub domain: Domain,
    /// QEMU's process.
    pub pid: u32,
}

/// Finds a running domain by name, id or UUID: at this address, else where `LIBVIRT_DEFAULT_URI` says, else in root's
/// libvirt and the user's own.
///
/// # Errors
/// A sentence: no virsh, no libvirt, no permission, no such domain, one that is off or on another machine.
pub fn find(name: &str, uri: Option<&str>) -> Result<Found, VmiError> {
    let uris = addresses(uri);
    for uri in &uris {
        if let Some(host) = other_host(uri) {
            return Err(VmiError::Invalid(format!(
                "the domains of {} run on {host}, and guest memory can only be read there: run vmscope on that machine",
                clean(uri, 100)
            )));
        }
    }
    let shown = clean(name, 60);
    let (mut off, mut without, mut failures) = (None, Vec::new(), Vec::new());
    let mut absent = uri.is_none() && uris.len() > 1;
    for uri in &uris {
        match look_up(name, uri) {
            Ok(Some((domain, true))) => return with_process(domain),
            Ok(Some((domain, false))) => off = off.or(Some(domain)),
            Ok(None) => without.push(uri.as_str()),
            Err(failure @ Failure::Missing) => return Err(VmiError::Invalid(cannot_ask(uri, failure))),
            Err(failure) => {
                absent &= failure.is_absent();
                failures.push(cannot_ask(uri, failure));
            }
        }
    }
    Err(VmiError::Invalid(match (off, without.as_slice(), failures.as_slice()) {
        (Some(domain), ..) => format!(
            "the libvirt domain '{}' is shut off: start it with 'virsh -c {} start {}', then watch it",
            domain.name, domain.uri, domain.uuid
        ),
        (None, [], _) if absent => format!(
            "no libvirt runs here, neither {}: start its daemon (libvirtd or virtqemud), or give its address with --connect",
            uris.join(" nor ")
        ),
        (None, [], failures) => failures.join("; "),
        (None, without, failures) => {
            let asked = without.join(" or ");
            let more: String = failures.iter().map(|failure| format!("; {failure}")).collect();
            format!(
                "no libvirt domain '{shown}' at {asked}; 'vmscope guests' lists what there is (a transient domain is gone \
                 once it ends){more}"
            )
        }
    }))
}

/// The libvirts that are asked: the user's choice or the usual ones.
fn addresses(uri: Option<&str>) -> Vec<String> {
    let chosen = uri.map(str::to_owned).or_else(|| std::env::var("LIBVIRT_DEFAULT_URI").ok());
    match chosen.filter(|uri| !uri.is_empty()) {
        Some(uri) => vec![uri],
        None => USUAL.map(str::to_owned).to_vec(),
    }
}

/// The host that a libvirt address names (`qemu+ssh://user@host:port/system`), unless it is this one.
fn other_host(uri: &str) -> Option<String> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let name = if host.starts_with('[') { host } else { host.split(':').next().unwrap_or_default() };
    let is_here = matches!(name, "" | "localhost" | "127.0.0.1") || name.starts_with("[::1]");
    (!is_here).then(|| clean(name, 60))
}

/// A domain, and whether it runs; `None` when libvirt has no such domain.
fn look_up(name: &str, uri: &str) -> Result<Option<(Domain, bool)>, Failure> {
    let said = match virsh::ask(Some(uri), &["dominfo", "--domain", name], None, Instant::now() + ANSWER_TIME) {
        Ok(said) => said,
        Err(Failure::Refused(why)) if why.contains("failed to get domain") => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let field = |wanted: &str| {
        let value = said.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'));
        value.map(str::trim).unwrap_or_default()
    };
    let uuid = field("UUID").to_owned();
    if !is_uuid(&uuid) {
        return Err(Failure::Broken(format!("virsh answers '{}' where a domain was wanted", clean(said.trim(), 60))));
    }
    let runs = field("Id").parse::<u32>().is_ok();
    Ok(Some((Domain { uri: uri.to_owned(), uuid, name: clean(field("Name"), 100) }, runs)))
}

fn with_process(domain: Domain) -> Result<Found, VmiError> {
    match process::with_uuid(&domain.uuid).as_slice() {
        &[pid] => Ok(Found { domain, pid }),
        [] => Err(VmiError::Invalid(format!(
            "the libvirt domain '{}' runs, but not where its QEMU process can be seen from here: run vmscope on the machine \
             (or in the container's host) that it runs on",
            domain.name
        ))),
        several => Err(VmiError::Invalid(format!(
            "several processes say that they are the libvirt domain '{}': {several:?}",
            domain.name
        ))),
    }
}

/// The sentence for a libvirt that cannot be asked.
fn cannot_ask(uri: &str, failure: Failure) -> String {
    let uri = clean(uri, 100);
    match failure {
        Failure::Missing => "the program virsh is missing, through which libvirt is asked: install it (package \
                             libvirt-clients), or give the domain a QMP socket of its own with <qemu:commandline>"
            .into(),
        Failure::Broken(why) => {
            format!("asking libvirt at {uri}: {why}; try 'virsh -c {uri} list' to see what is wrong")
        }
        Failure::Refused(why) | Failure::Ended(why) => {
            let hint = if ["ermission denied", "authentication", "access denied", "polkit"]
                .iter()
                .any(|word| why.contains(word))
            {
                "run vmscope as root or as a member of the group libvirt"
            } else if ["No such file", "refused"].iter().any(|word| why.contains(word)) {
                "its daemon (libvirtd or virtqemud) does not run, or listens elsewhere: give its address with --connect"
            } else {
                "see what 'virsh list' says, or give another address with --connect"
            };
            format!("asking libvirt at {uri}: {why}; {hint}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_written_down_and_read_again() {
        let uuid = "f9eaa8b3-8672-4ea4-bac4-4bddd6c96f07";
        let domain =
            Domain { uri: "qemu+unix:///system?socket=/run/x@y".into(), uuid: uuid.into(), name: "web".into() };
        assert_eq!(domain.to_string().parse(), Ok(Domain { name: uuid.into(), ..domain }));
        for text in
            ["", "libvirt:", "libvirt:x@qemu:///system", &format!("libvirt:{uuid}@"), &format!("{uuid}@qemu:///x")]
        {
            assert!(text.parse::<Domain>().is_err(), "{text}");
        }
        assert!(!is_uuid("f9eaa8b3-8672-4ea4-bac4-4bddd6c96f0'"));
    }

    #[test]
    fn other_machines_are_told_from_this_one() {
        for uri in [
            "qemu:///system",
            "qemu+unix:///system?socket=/run/s",
            "qemu+tcp://localhost:16509/system",
            "qemu+tcp://[::1]/system",
            "test",
        ] {
            assert_eq!(other_host(uri), None, "{uri}");
        }
        assert_eq!(other_host("qemu+ssh://root@big.example:22/system").as_deref(), Some("big.example"));
        assert_eq!(other_host("qemu+tls://[2001:db8::1]/system").as_deref(), Some("[2001:db8::1]"));
    }

    #[test]
    fn refusals_name_the_way_out() {
        let said = |why: &str| cannot_ask("qemu:///system", Failure::Ended(why.into()));
        assert!(said("Failed to connect socket to '/run/s': Permission denied").contains("group libvirt"));
        assert!(said("authentication unavailable: no polkit agent").contains("group libvirt"));
        assert!(said("Failed to connect socket to '/run/s': No such file or directory").contains("does not run"));
        assert!(cannot_ask("qemu:///system", Failure::Missing).contains("libvirt-clients"));
    }
}
