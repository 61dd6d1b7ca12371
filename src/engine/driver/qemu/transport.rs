//! Sockets with deadlines: what QMP and the gdb stub are spoken over.
//!
//! Everything is non-blocking and waits in `poll`, because a QEMU that hangs must not hang us: each wait has an end.
#![allow(unsafe_code)] // poll(2), a connect(2) that cannot block, and SO_PEERCRED have no safe form in std.

use std::{
    fmt, fs, io,
    io::{Read, Write},
    net::{Shutdown, TcpStream, ToSocketAddrs},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::{self, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, Mode, OFlags};

use super::{
    descriptor,
    libvirt::{self, Domain},
    patience,
};
use crate::engine::error::VmiError;

/// Where a socket listens: `unix:PATH` (or a path as such) or `HOST:PORT`; or a domain of libvirt's, which has QMP only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
    /// A domain of libvirt's: `libvirt:UUID@URI`.
    Libvirt(Domain),
}

impl FromStr for Address {
    type Err = VmiError;

    fn from_str(text: &str) -> Result<Self, VmiError> {
        let text = text.trim();
        if let Ok(domain) = text.parse() {
            return Ok(Self::Libvirt(domain));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            // QEMU's own form carries options behind the path, in which a comma is written twice.
            let path = path.replace(",,", "\0");
            let path = path.split(',').next().unwrap_or_default().replace('\0', ",");
            if !path.is_empty() {
                return Ok(Self::Unix(path.into()));
            }
        } else if text.starts_with('.') || text.contains('/') {
            return Ok(Self::Unix(text.into()));
        } else {
            let text = text.strip_prefix("tcp:").unwrap_or(text).split(',').next().unwrap_or_default();
            if let Some((host, port)) = text.rsplit_once(':')
                && port.parse::<u16>().is_ok()
            {
                let host = if host.is_empty() { "127.0.0.1" } else { host };
                return Ok(Self::Tcp(format!("{host}:{port}")));
            }
        }
        Err(VmiError::Invalid(format!(
            "'{text}' is not an address: give HOST:PORT, or the path of a socket as unix:PATH"
        )))
    }
}

impl Address {
    /// The same address for whoever works in another folder: a socket's path from the root on, and without links, which may
    /// lead elsewhere by then.
    #[must_use]
    pub fn absolute(self) -> Self {
        let Self::Unix(path) = self else { return self };
        // What is not there is named as it was given.
        Self::Unix(fs::canonicalize(&path).or_else(|_| path::absolute(&path)).unwrap_or(path))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display().to_string().replace(',', ",,")),
            Self::Tcp(host) => f.write_str(host),
            Self::Libvirt(domain) => domain.fmt(f),
        }
    }
}

/// A connected, non-blocking socket.
#[derive(Debug)]
pub enum Stream {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    /// What the system says; `TimedOut` when the listener's queue stays full.
    pub fn connect(address: &Address, timeout: Duration) -> io::Result<Self> {
        match address {
            Address::Unix(path) => connect_unix(path, Instant::now() + timeout).map(Self::Unix),
            Address::Libvirt(domain) => libvirt::connect(domain, timeout).map(Self::Unix),
            Address::Tcp(host) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
                for address in host.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, timeout) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_nonblocking(true)?;
                            return Ok(Self::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    /// Appends what has arrived, at most 64 KiB; nothing is not an error, the end of the stream is.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer has gone.
    pub fn read_available(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let mut buffer = [0; 65536];
        loop {
            let read = match self {
                Self::Unix(stream) => stream.read(&mut buffer),
                Self::Tcp(stream) => stream.read(&mut buffer),
            };
            return match read {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    into.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    Ok(count)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
        }
    }

    /// Sends all bytes.
    ///
    /// # Errors
    /// `TimedOut` when the peer does not read; what the system says.
    pub fn send(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Unix(stream) => stream.write(bytes),
                Self::Tcp(stream) => stream.write(bytes),
            };
            match written {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !poll(&[self.as_raw_fd()], libc::POLLOUT, deadline)?.0 {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends all bytes and, with the first of them, a descriptor.
    ///
    /// # Errors
    /// As [`Stream::send`]; `Unsupported` over TCP.
    pub fn send_with(&mut self, bytes: &[u8], passed: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
        let sent = loop {
            let Self::Unix(stream) = self else { return Err(io::ErrorKind::Unsupported.into()) };
            match descriptor::send(stream, bytes, passed) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !poll(&[self.as_raw_fd()], libc::POLLOUT, deadline)?.0 {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        self.send(bytes.get(sent..).unwrap_or_default(), deadline)
    }

    /// Ends the connection, for whoever shares it as well.
    pub fn hang_up(&self) {
        // One that the peer has ended already needs no end.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// The process that listens at the other end of a Unix socket, and its user and group.
    pub fn peer(&self) -> Option<(u32, u32, u32)> {
        let Self::Unix(stream) = self else { return None };
        let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the descriptor is open for as long as `stream` is borrowed; the option's buffer is a `ucred` that
        // lives on this stack frame, and `length` is its size.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &raw mut length,
            )
        };
        let pid = u32::try_from(credentials.pid).ok().filter(|&pid| pid != 0)?;
        (result == 0).then_some((pid, credentials.uid, credentials.gid))
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(stream) => stream.as_raw_fd(),
            Self::Tcp(stream) => stream.as_raw_fd(),
        }
    }
}

/// `UnixStream::connect` blocks for ever on a listener whose queue is full; this does not.
fn connect_unix(path: &std::path::Path, deadline: Instant) -> io::Result<UnixStream> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let mut address = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    if bytes.len() >= address.sun_path.len() {
        // The address has no room for it, but for a name of the open file.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        return connect_unix(std::path::Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), deadline);
    }
    for (to, &from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from as libc::c_char;
    }
    // SAFETY: `socket` takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was opened just now and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    loop {
        // SAFETY: `address` is a complete `sockaddr_un` on this stack frame, zero-terminated by the length check above.
        let result = unsafe {
            libc::connect(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_un>() as libc::socklen_t,
            )
        };
        if result == 0 {
            return Ok(UnixStream::from(fd));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            // The queue is full; there is nothing to poll for.
            io::ErrorKind::WouldBlock if Instant::now() < deadline => {
                patience::check()?;
                std::thread::sleep(Duration::from_millis(5));
            }
            io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            _ => return Err(error),
        }
    }
}

/// Waits until one of up to two descriptors can be read (or has ended); signals do not end the wait.
///
/// # Errors
/// What `poll` says; `Interrupted` when the [`patience`] for all of it has ended.
pub fn wait_readable(fds: &[RawFd], deadline: Instant) -> io::Result<(bool, bool)> {
    poll(fds, libc::POLLIN, deadline)
}

/// How long a peer may go on talking behind a deadline: what has come in until then is still taken.
const FLOOD_TIME: Duration = Duration::from_secs(1);

/// Tells a peer whose data never end, and so never let a wait run into its deadline.
///
/// # Errors
/// `InvalidData` when it talks long behind the deadline.
pub fn check_flood(deadline: Instant) -> io::Result<()> {
    if Instant::now() < deadline + FLOOD_TIME {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "its peer never stops talking"))
}

fn poll(fds: &[RawFd], events: libc::c_short, deadline: Instant) -> io::Result<(bool, bool)> {
    let of = |index: usize| libc::pollfd { fd: fds.get(index).copied().unwrap_or(-1), events, revents: 0 };
    // `poll` ignores negative descriptors.
    let mut wanted = [of(0), of(1)];
    loop {
        patience::check()?;
        let left = patience::next_look(deadline).saturating_duration_since(Instant::now());
        // Rounded up, or the last part of a millisecond would be spent spinning.
        let milliseconds = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        // SAFETY: `wanted` is an array of two `pollfd` on this stack frame, and 2 is its length.
        let ready = unsafe { libc::poll(wanted.as_mut_ptr(), 2, milliseconds) };
        match ready {
            0 if Instant::now() < deadline => {}
            0 => return Ok((false, false)),
            1.. => return Ok((wanted[0].revents != 0, wanted[1].revents != 0)),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_two_forms() {
        let unix = |path: &str| Address::Unix(path.into());
        for (text, want) in [
            ("unix:/run/q", unix("/run/q")),
            ("unix:/run/q,server=on,wait=off", unix("/run/q")),
            ("/run/q", unix("/run/q")),
            ("unix:/run/a,,b,server=on", unix("/run/a,b")),
            ("localhost:4444", Address::Tcp("localhost:4444".into())),
            ("tcp::1234,server=on", Address::Tcp("127.0.0.1:1234".into())),
        ] {
            assert_eq!(text.parse::<Address>().ok(), Some(want), "{text}");
        }
        assert_eq!(unix("/run/a,b").to_string().parse::<Address>().ok(), Some(unix("/run/a,b")));
        for text in ["", "unix:", "localhost", "host:port", "host:70000"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_of_any_length_is_connected_to_and_made_absolute() {
        let folder = tempfile::tempdir().expect("a folder");
        let deep = folder.path().join("d".repeat(120));
        fs::create_dir(&deep).expect("a folder");
        // As QEMU does when it is started there: by a relative path, which is short.
        let link = folder.path().join("l");
        std::os::unix::fs::symlink(&deep, &link).expect("a link");
        let listener = std::os::unix::net::UnixListener::bind(link.join("s")).expect("a socket");
        let address = Address::Unix(link.join("s")).absolute();
        let real = fs::canonicalize(&deep).expect("it is there").join("s");
        assert_eq!(address, Address::Unix(real.clone()), "links may change");
        let mut stream = Stream::connect(&address, Duration::ZERO).expect("a connection");
        let (mut peer, _) = listener.accept().expect("a client");
        stream.send(b"here", Instant::now()).expect("room");
        let mut said = [0; 4];
        peer.read_exact(&mut said).expect("what was sent");
        assert_eq!(&said, b"here");
        let gone = Stream::connect(&Address::Unix(real.with_file_name("none")), Duration::ZERO);
        assert_eq!(gone.map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
        let relative = Address::Unix("none".into()).absolute();
        assert_eq!(relative, Address::Unix(std::env::current_dir().expect("a folder").join("none")));
    }

    #[test]
    fn a_peer_may_talk_up_to_the_deadline_and_a_little_longer() {
        let now = Instant::now();
        assert!(check_flood(now + FLOOD_TIME).is_ok());
        let long_ago = now.checked_sub(FLOOD_TIME).expect("the machine is up for longer than that");
        assert_eq!(check_flood(long_ago).map_err(|error| error.kind()), Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn a_full_listener_does_not_hang_us() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let address = Address::Unix(path);
        let mut queued = Vec::new();
        // The queue's length is the system's business; that it ends, and how, is ours.
        let refused = (0..100_000).find_map(|_| match Stream::connect(&address, Duration::ZERO) {
            Ok(stream) => {
                queued.push(stream);
                None
            }
            Err(error) => Some(error.kind()),
        });
        assert_eq!(refused, Some(io::ErrorKind::TimedOut));
    }
}
