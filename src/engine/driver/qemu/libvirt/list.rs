//! The domains of this machine's libvirts, as `vmscope guests` lists them.

use std::time::{Duration, Instant};

use super::{
    addresses, cannot_ask, is_uuid, other_host,
    virsh::{self, Failure},
};
use crate::engine::snapshot::clean;

/// How long each libvirt may take: a list that hangs helps nobody.
const ANSWER_TIME: Duration = Duration::from_secs(3);
/// Domains of one libvirt that are listed.
const MOST_DOMAINS: usize = 4096;

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// libvirt's address.
    pub uri: String,
    /// Its UUID.
    pub uuid: String,
    /// Its name, cleaned.
    pub name: String,
    /// Whether it runs.
    pub running: bool,
}

/// What the libvirts say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Domains, in the order of the libvirts.
    pub domains: Vec<Listed>,
    /// A sentence for each libvirt that runs here and cannot be asked.
    pub errors: Vec<String>,
}

/// All domains; one that does not run here is left out, as is one of another machine.
pub fn list() -> Listing {
    let mut listing = Listing::default();
    for uri in addresses(None).into_iter().filter(|uri| other_host(uri).is_none()) {
        match domains(&uri) {
            Ok(domains) => listing.domains.extend(domains),
            Err(failure) if failure.is_absent() => {}
            Err(failure) => listing.errors.push(cannot_ask(&uri, failure)),
        }
    }
    listing
}

fn domains(uri: &str) -> Result<Vec<Listed>, Failure> {
    let deadline = Instant::now() + ANSWER_TIME;
    let all = virsh::ask(Some(uri), &["list", "--all", "--uuid", "--name"], None, deadline)?;
    let running = virsh::ask(Some(uri), &["list", "--uuid"], None, deadline)?;
    let runs = |uuid: &str| running.lines().any(|line| line.trim() == uuid);
    Ok(parse(&all)
        .map(|(uuid, name)| Listed {
            uri: uri.to_owned(),
            uuid: uuid.to_owned(),
            name: clean(name, 100),
            running: runs(uuid),
        })
        .take(MOST_DOMAINS)
        .collect())
}

/// UUID and name of each line.
fn parse(said: &str) -> impl Iterator<Item = (&str, &str)> {
    said.lines().filter_map(|line| {
        let (uuid, name) = line.trim().split_once(' ')?;
        is_uuid(uuid).then_some((uuid, name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_domains_are_read_and_others_passed_over() {
        let said =
            "f9eaa8b3-8672-4ea4-bac4-4bddd6c96f07 lab one\n\n hello\nf9eaa8b3-8672-4ea4-bac4-4bddd6c96f08   x  \n";
        let all: Vec<_> = parse(said).collect();
        assert_eq!(
            all,
            [("f9eaa8b3-8672-4ea4-bac4-4bddd6c96f07", "lab one"), ("f9eaa8b3-8672-4ea4-bac4-4bddd6c96f08", "x")]
        );
    }
}
