//! A program that is asked something and does not outlive the question: with deadlines, bounds and no controlling terminal.
#![allow(unsafe_code)] // setsid(2), prctl(2) and kill(2) of a process group have no safe form in std.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{BorrowedFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    time::Instant,
};

use crate::engine::driver::qemu::{
    descriptor,
    transport::{Stream, check_flood, wait_readable},
};

/// The most that is taken of what a program says: a reply of QEMU's has some hundred KiB at most.
const LARGEST: usize = 8 << 20;
/// How much is looked at again when more has come in: longer than what anybody looks for.
const OVERLAP: usize = 128;
/// The most that is taken of its error messages.
const LARGEST_ERROR: usize = 16 << 10;

/// A program that runs until it is dropped. Its input and output are one socket, its error output is another.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pub stream: Stream,
    errors: Option<Stream>,
}

impl Running {
    /// Starts one; with a descriptor, the program has that as number [`descriptor::INHERITED`].
    ///
    /// # Errors
    /// What the system says; `NotFound` when there is no such program.
    pub fn start<S: AsRef<OsStr>>(
        program: &str,
        arguments: impl IntoIterator<Item = S>,
        passed: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let (ours, theirs) = pair()?;
        let (errors, their_errors) = pair()?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::from(theirs.try_clone()?)).stdout(theirs).stderr(their_errors);
        // Its messages are read here. (In UTF-8 its line editor takes names as they are.)
        command.env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE").env("TERM", "dumb");
        // Looking must not start a daemon.
        command.env("LIBVIRT_AUTOSTART", "0");
        if let Some(passed) = passed {
            descriptor::inherit(&mut command, passed);
        }
        let alone = || {
            // SAFETY: `setsid` takes no pointers and is async-signal-safe, as all must be between fork and exec.
            unsafe { libc::setsid() };
            // SAFETY: `prctl` with these arguments takes no pointers and is async-signal-safe.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) };
            Ok(())
        };
        // SAFETY: the closure makes two async-signal-safe system calls; it allocates nothing and takes no locks.
        unsafe { command.pre_exec(alone) };
        Ok(Self { child: command.spawn()?, stream: Stream::Unix(ours), errors: Some(Stream::Unix(errors)) })
    }

    /// The socket that its output comes from, for waiting on it.
    pub fn fd(&self) -> RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.stream)
    }

    /// Appends what it says, until `is_done` (of what is new, and a little before it) or the end of its output; the latter is `false`.
    ///
    /// # Errors
    /// `TimedOut`, `InvalidData` when it says too much, what the system says.
    pub fn read_until(
        &mut self,
        said: &mut Vec<u8>,
        deadline: Instant,
        is_done: impl Fn(&[u8]) -> bool,
    ) -> io::Result<bool> {
        loop {
            let before = said.len().saturating_sub(OVERLAP);
            match self.stream.read_available(said) {
                Ok(0) => {}
                Ok(_) if said.len() > LARGEST => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "it says more than anybody could have asked",
                    ));
                }
                Ok(_) => {
                    if is_done(said.get(before..).unwrap_or_default()) {
                        return Ok(true);
                    }
                    check_flood(deadline)?;
                    continue;
                }
                Err(error) if is_end(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
            if !wait_readable(&[self.fd()], deadline)?.0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// What it has written to its error output since the last call.
    pub fn errors(&mut self) -> String {
        let mut said = Vec::new();
        while let Some(errors) = &mut self.errors {
            match errors.read_available(&mut said) {
                Ok(0) => break,
                Ok(_) if said.len() < LARGEST_ERROR => {}
                // Nobody wants to read more.
                _ => self.errors = None,
            }
        }
        said.truncate(LARGEST_ERROR);
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Whether it has ended well, once its output has ended; it is given until the deadline for that.
    pub fn ended_well(&mut self, deadline: Instant) -> bool {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(std::time::Duration::from_millis(1)),
                _ => return false,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What it has started ends with it: it leads a process group of its own.
        if let (Ok(None), Ok(group)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            // SAFETY: `kill` takes no pointers. The child has not been waited for, so its id is still that of its group.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our end, which never blocks, and the program's, which does.
fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours, theirs.into()))
}

/// A program that ends with something unread in its socket resets it.
pub fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
