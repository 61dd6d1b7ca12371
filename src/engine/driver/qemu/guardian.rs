//! The process that frees the guest when vmscope dies in whatever way.
//!
//! `vmscope guardian FOLDER` is started before the guest is touched for the first time, says that it is there, and waits on
//! a pipe whose other end its parent holds. A clean end says so through the pipe; an end of file without that means that
//! the parent has died or could not let go of the guest, and the guardian repairs what the parent's folder says (see
//! `leftover`), for as long as that QEMU lives.
#![allow(unsafe_code)] // What a child does between fork and exec: setsid(2) and signal(2) have no safe form in std.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    leftover::{self, State},
    process,
    state_folder::Folder,
    transport::wait_readable,
};

const GOODBYE: &[u8] = b"bye\n";
const READY: &[u8] = b"ready\n";
/// How long a guardian may take to start.
const START_TIME: Duration = Duration::from_secs(10);
/// The pause after the first attempt that failed; each one is twice as long as the one before it.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause: attempts keep others from QEMU's monitor, which serves one client at a time.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked whether a QEMU that was stopped goes on: nothing tells of that, and looking costs next to nothing.
const STOPPED_PAUSE: Duration = Duration::from_millis(500);
/// How long one is tried whose process is not seen from here, and which does not refuse.
const LONGEST_SIEGE: Duration = Duration::from_secs(24 * 3600);

/// A guardian that watches over this process.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
}

impl Guardian {
    /// Starts one for a session's folder, and waits until it is there.
    ///
    /// # Errors
    /// What the system says; `TimedOut` or `UnexpectedEof` for a program that is no guardian.
    pub fn start(program: &Path, folder: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg0("vmscope").arg("guardian").arg(folder).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
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
        let mut child = command.spawn()?;
        let answered = child.stdout.take().map_or(Err(io::ErrorKind::BrokenPipe.into()), hear_ready);
        answered.inspect_err(|_| {
            // Whatever it is, it is none of ours to leave behind.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(Self { child })
    }

    /// Whether it is still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
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

/// The program that runs, whatever its name, and even when its file has been replaced: for [`super::QemuOptions::guardian`]
/// of a program that calls [`main`].
pub fn this_program() -> PathBuf {
    "/proc/self/exe".into()
}

fn hear_ready(mut from: ChildStdout) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    if !wait_readable(&[from.as_raw_fd()], Instant::now() + START_TIME)?.0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut said = [0; READY.len()];
    from.read_exact(&mut said).map_err(|_| io::Error::new(io::ErrorKind::UnexpectedEof, "it ended at once"))?;
    if said == READY { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "it says something else")) }
}

/// What `vmscope guardian FOLDER` does. Its parent is gone when it has something to say, so it says nothing.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let [folder] = arguments else { return ExitCode::from(2) };
    let Ok(mut folder) = Folder::open(Path::new(folder)) else { return ExitCode::FAILURE };
    let _ = io::stdout().write_all(READY).and_then(|()| io::stdout().flush());
    let mut said = Vec::new();
    // A pipe that breaks is a parent that has died, too.
    let _ = io::stdin().take(64).read_to_end(&mut said);
    if said != GOODBYE {
        repair(&mut folder);
    }
    ExitCode::SUCCESS
}

/// Tries until it is done, or QEMU has ended.
fn repair(folder: &mut Folder) {
    let Ok(Some(state)) = State::read(folder) else { return };
    let qemu = Watched::new(&state);
    let start = Instant::now();
    let mut pause = SHORTEST_PAUSE;
    loop {
        let is_stopped = qemu.pid.is_some_and(process::is_stopped);
        if !is_stopped {
            // The state itself says when QEMU has ended.
            if leftover::repair_one(folder) || qemu.pid.is_none() && gives_up(&state, start) {
                return;
            }
        }
        qemu.wait(if is_stopped { STOPPED_PAUSE } else { pause });
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether one whose process is not seen has ended, or is out of reach for good.
fn gives_up(state: &State, start: Instant) -> bool {
    state.identity.has_hung_up() || start.elapsed() >= LONGEST_SIEGE
}

/// QEMU's process, where it is seen from here.
struct Watched {
    pid: Option<u32>,
    descriptor: Option<OwnedFd>,
}

impl Watched {
    fn new(state: &State) -> Self {
        let pid = state.identity.process().map(|(pid, _)| pid);
        let open = |pid: u32| pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok();
        Self { pid, descriptor: pid.and_then(open) }
    }

    /// Waits for so long, or until it has ended.
    fn wait(&self, pause: Duration) {
        let Some(descriptor) = &self.descriptor else { return thread::sleep(pause) };
        let timeout = Timespec::try_from(pause).ok();
        let mut wanted = [PollFd::new(descriptor, PollFlags::IN)];
        // After its end, what is left to do may have to wait for somebody else.
        if poll(&mut wanted, timeout.as_ref()).is_ok_and(|ready| ready > 0) {
            thread::sleep(SHORTEST_PAUSE);
        }
    }
}
