//! The process that frees the guest when vmscope dies in whatever way.
//!
//! `vmscope guardian FOLDER` is started before the guest is touched for the first time and waits on a pipe whose other
//! end its parent holds. A clean end says so through the pipe; an end of file without that means that the parent has
//! died, and the guardian repairs what the parent's folder says (see `leftover`).
#![allow(unsafe_code)] // What a child does between fork and exec: setsid(2) and signal(2) have no safe form in std.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use super::leftover;

/// How long the guardian tries to reach QEMU.
const PATIENCE: Duration = Duration::from_secs(30);
const GOODBYE: &[u8] = b"bye\n";

/// A guardian that watches over this process.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
}

impl Guardian {
    /// Starts one for a session's folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(program: &Path, folder: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg0("vmscope").arg("guardian").arg(folder).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // What ends this process (the terminal's signals, or `kill` by name) must not end its guardian with it.
        let survive = || {
            // SAFETY: `setsid` takes no pointers and is async-signal-safe, as all must be between fork and exec.
            unsafe { libc::setsid() };
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE] {
                // SAFETY: `signal` is async-signal-safe, and ignoring these signals runs no code of ours.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
            Ok(())
        };
        // SAFETY: the closure makes two async-signal-safe system calls; it allocates nothing and takes no locks.
        unsafe { command.pre_exec(survive) };
        Ok(Self { child: command.spawn()? })
    }

    /// Tells it that all is well, and waits until it is gone.
    pub fn dismiss(mut self) {
        let said = self.child.stdin.take().map(|mut pipe| pipe.write_all(GOODBYE));
        let ended = self.child.wait();
        if let (Some(Err(error)), _) | (_, Err(error)) = (said, ended) {
            tracing::warn!(%error, "the guardian process did not end as it should");
        }
    }
}

/// The program to start as a guardian: the one that the caller names, or this one if it is vmscope. (A test's program is
/// not, and would run its tests again.)
pub fn program(chosen: Option<&Path>) -> Option<PathBuf> {
    if let Some(chosen) = chosen {
        return Some(chosen.to_owned());
    }
    let me = std::env::current_exe().ok()?;
    let name = me.file_name()?.to_str()?;
    // The link leads to the running program even when its file has been replaced.
    (name.strip_suffix(" (deleted)").unwrap_or(name) == "vmscope").then(|| PathBuf::from("/proc/self/exe"))
}

/// What `vmscope guardian FOLDER` does. Its parent is gone when it has something to say, so it says nothing.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let [folder] = arguments else { return ExitCode::from(2) };
    let mut said = Vec::new();
    // A pipe that breaks is a parent that has died, too.
    let _ = io::stdin().take(64).read_to_end(&mut said);
    if said == GOODBYE {
        return ExitCode::SUCCESS;
    }
    match leftover::repair_one(Path::new(folder), PATIENCE) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
