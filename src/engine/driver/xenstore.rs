//! The domains of a Xen host, by name, out of xenstore (`docs/misc/xenstore.txt` and `xen/include/public/io/xs_wire.h` in
//! Xen's sources). Only a control domain may ask.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::engine::snapshot::clean;

/// Where xenstored listens.
const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest payload of a message (`XENSTORE_PAYLOAD_MAX`).
const PAYLOAD: u32 = 4096;
/// How many domains are listed.
const MOST_DOMAINS: usize = 1024;

const XS_DIRECTORY: u32 = 1;
const XS_READ: u32 = 2;

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its number; 0 is the control domain.
    pub id: u32,
    /// Its name.
    pub name: String,
}

/// The domains of this host; `None` where Xen does not run.
///
/// # Errors
/// Why they cannot be listed.
pub fn domains() -> Option<Result<Vec<Domain>, String>> {
    let socket = SOCKETS.into_iter().map(Path::new).find(|path| path.exists());
    if socket.is_none() && !fs::exists("/proc/xen").unwrap_or(false) {
        return None;
    }
    let Some(socket) = socket else {
        return Some(Err("Xen runs here, but no xenstored; this is no control domain".into()));
    };
    let connected = UnixStream::connect(socket).and_then(|stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        list(stream)
    });
    Some(connected.map_err(|error| format!("cannot ask {} for Xen's domains: {error}; run as root", socket.display())))
}

fn list(mut store: impl Read + Write) -> io::Result<Vec<Domain>> {
    let ids = ask(&mut store, XS_DIRECTORY, "/local/domain")?;
    let ids = ids.split('\0').filter_map(|id| id.parse::<u32>().ok()).take(MOST_DOMAINS);
    let mut domains = Vec::new();
    for id in ids.collect::<Vec<_>>() {
        // It may have ended since.
        let name = ask(&mut store, XS_READ, &format!("/local/domain/{id}/name")).unwrap_or_default();
        domains.push(Domain { id, name: clean(&name, 200) });
    }
    domains.sort_by_key(|domain| domain.id);
    Ok(domains)
}

/// One request and its answer: a header of four 32-bit words (type, request, transaction, length), then the payload.
fn ask(store: &mut (impl Read + Write), kind: u32, path: &str) -> io::Result<String> {
    let length = path.len() as u32 + 1;
    let header: Vec<u8> = [kind, 0, 0, length].into_iter().flat_map(u32::to_ne_bytes).collect();
    store.write_all(&[header.as_slice(), path.as_bytes(), &[0]].concat())?;
    let mut answer = [[0; 4]; 4];
    for word in &mut answer {
        store.read_exact(word)?;
    }
    let [answered, _, _, length] = answer.map(u32::from_ne_bytes);
    if length > PAYLOAD {
        return Err(io::Error::other("it says more than xenstore may"));
    }
    let mut payload = vec![0; length as usize];
    store.read_exact(&mut payload)?;
    let text = String::from_utf8_lossy(&payload).into_owned();
    if answered == kind { Ok(text) } else { Err(io::Error::other(clean(&text, 60))) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn message(kind: u32, payload: &[u8]) -> Vec<u8> {
        let header = [kind, 0, 0, payload.len() as u32].into_iter().flat_map(u32::to_ne_bytes);
        header.chain(payload.iter().copied()).collect()
    }

    /// What is made of these answers.
    fn listed(answers: Vec<Vec<u8>>) -> io::Result<Vec<Domain>> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let mut header = [[0; 4]; 4];
                header.iter_mut().for_each(|word| theirs.read_exact(word).unwrap());
                let mut path = vec![0; u32::from_ne_bytes(header[3]) as usize];
                theirs.read_exact(&mut path).unwrap();
                asked.push(String::from_utf8(path).unwrap());
                theirs.write_all(&answer).unwrap();
            }
            asked
        });
        let domains = list(ours);
        let asked = server.join().unwrap();
        assert_eq!(asked[0], "/local/domain\0");
        domains
    }

    #[test]
    fn domains_are_listed_by_name() {
        let answers = vec![message(1, b"7\x000\x00x\x00"), message(2, b"\x1bweb"), message(2, b"Domain-0")];
        let domain = |id, name: &str| Domain { id, name: name.into() };
        assert_eq!(listed(answers).unwrap(), [domain(0, "Domain-0"), domain(7, "␛web")]);
        let gone = vec![message(1, b"7"), message(16, b"ENOENT\0")];
        assert_eq!(listed(gone).unwrap(), [domain(7, "")]);
    }

    #[test]
    fn a_store_that_refuses_or_lies_is_an_error() {
        assert!(listed(vec![message(16, b"EACCES\0")]).is_err_and(|error| error.to_string().contains("EACCES")));
        let endless: Vec<u8> = [1, 0, 0, u32::MAX].into_iter().flat_map(u32::to_ne_bytes).collect();
        assert!(listed(vec![endless]).is_err_and(|error| error.to_string().contains("more than")));
    }
}
