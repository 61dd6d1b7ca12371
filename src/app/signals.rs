//! Signals, on a thread of their own: whatever the screen does, the guest is left clean and the process ends.
//!
//! The loop hears of a signal as of a key, and ends by itself as a rule. It may not come to that: a terminal that takes no
//! output (stopped by ctrl-s, a line that hangs, a window that nobody reads) holds whoever draws on it. So this thread
//! has the engine leave the guest at once, gives the rest of the program a little time to end, and then ends the process
//! itself, with the terminal restored as far as it takes anything.
//!
//! Every signal that would end the process is taken so, with the exit status that a shell gives it, 128 and its number.
//! SIGKILL and SIGSTOP cannot be taken, and the processor's own faults (SIGSEGV and its like) leave nothing to run on:
//! `engine::driver::fatal` restores the terminal then, and the guardian frees the guest. SIGPIPE stays ignored, as Rust
//! has it: a pipe that nobody reads is an error of the write. What whoever started us wants ignored, as `nohup` does, stays
//! ignored.

use std::{
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use signal_hook::{
    consts::{
        SIGABRT, SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGSYS, SIGTERM, SIGTRAP, SIGTSTP, SIGUSR1,
        SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ,
    },
    iterator::Signals,
    low_level,
};

use super::{console::Input, event_loop::leave};
use crate::engine::command::Engine;

/// The signals that end the process unless somebody takes them, and that can be taken.
const ENDING: [(i32, &str); 15] = [
    (SIGHUP, "SIGHUP"),
    (SIGINT, "SIGINT"),
    (SIGQUIT, "SIGQUIT"),
    (SIGTRAP, "SIGTRAP"),
    (SIGABRT, "SIGABRT"),
    (SIGUSR1, "SIGUSR1"),
    (SIGUSR2, "SIGUSR2"),
    (SIGALRM, "SIGALRM"),
    (SIGTERM, "SIGTERM"),
    (SIGXCPU, "SIGXCPU"),
    (SIGXFSZ, "SIGXFSZ"),
    (SIGVTALRM, "SIGVTALRM"),
    (SIGPROF, "SIGPROF"),
    (SIGIO, "SIGIO"),
    (SIGSYS, "SIGSYS"),
];
/// How often it is looked whether the rest of the program has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long after the first signal another one means that somebody will not wait.
const IMPATIENT: Duration = Duration::from_secs(1);

/// What this thread and the rest of the program know of each other.
#[derive(Debug, Default)]
struct Shared {
    engine: Mutex<Option<Engine>>,
    /// The first signal that asked for the end; 0 before that.
    ended_by: AtomicI32,
}

/// The rest of the program's side of it.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Shared>);

impl Watch {
    /// From now on a signal has this engine leave its guest.
    pub fn engine(&self, engine: &Engine) {
        *self.0.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(engine.clone());
    }

    /// The exit status of a process that a signal has ended; `None` when none has come.
    pub fn status(&self) -> Option<u8> {
        let signal = self.0.ended_by.load(Ordering::SeqCst);
        u8::try_from(signal).ok().filter(|&signal| signal > 0).map(|signal| 128 | signal)
    }
}

/// How a process ends that does not end by itself.
#[derive(Clone, Copy, Debug)]
pub struct LastResort {
    /// How long the rest of the program may take to end, once the guest is left.
    pub grace: Duration,
    /// Restores the terminal, without waiting for it.
    pub restore: fn(),
}

/// Takes the signals from now on.
///
/// # Errors
/// A sentence when that is not possible.
pub fn start(inputs: Sender<Input>, last_resort: LastResort) -> Result<Watch, String> {
    let ignored = ignored();
    let is_ours = |signal: &i32| *signal == SIGCONT || ignored >> (signal - 1) & 1 == 0;
    let taken = ENDING.iter().map(|(signal, _)| *signal).chain(others()).chain([SIGTSTP, SIGCONT]);
    let signals = Signals::new(taken.filter(is_ours)).map_err(|error| format!("cannot handle signals: {error}"))?;
    let shared = Arc::new(Shared::default());
    let watch = Watch(Arc::clone(&shared));
    let started =
        thread::Builder::new().name("signals".into()).spawn(move || serve(signals, &shared, &inputs, last_resort));
    started.map_err(|error| format!("cannot handle signals: {error}"))?;
    Ok(watch)
}

/// Those of the system's own: real-time signals, a power failure.
fn others() -> impl Iterator<Item = i32> {
    #[cfg(target_os = "linux")]
    return [libc::SIGPWR, libc::SIGSTKFLT].into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX());
    #[cfg(not(target_os = "linux"))]
    return std::iter::empty();
}

/// The signals that are ignored since this process was started, the lowest one in the lowest bit.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn name(signal: i32) -> &'static str {
    ENDING.iter().find(|(number, _)| *number == signal).map_or("a signal", |(_, name)| name)
}

fn serve(mut signals: Signals, shared: &Shared, inputs: &Sender<Input>, last_resort: LastResort) {
    loop {
        for signal in signals.wait() {
            // Whoever draws may be held by the terminal, and its queue be full: that is not waited for.
            let _ = inputs.try_send(match signal {
                SIGTSTP => Input::Suspend,
                SIGCONT => Input::Continued,
                signal => Input::Terminate(name(signal)),
            });
            if !matches!(signal, SIGTSTP | SIGCONT) {
                shared.ended_by.store(signal, Ordering::SeqCst);
                end(&mut signals, shared);
                return finish(&mut signals, signal, last_resort);
            }
        }
    }
}

/// Has the engine leave the guest, and waits for that.
fn end(signals: &mut Signals, shared: &Shared) {
    let engine = shared.engine.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(engine) = engine else { return };
    let (sender, left) = bounded::<()>(1);
    let leaving = thread::Builder::new().name("leaving".into()).spawn(move || {
        if let Err(why) = leave(&engine) {
            tracing::error!("{why}");
        }
        drop(sender);
    });
    if leaving.is_ok() {
        wait(signals, &left, None);
    }
}

/// Ends the process, unless it ends by itself in time.
fn finish(signals: &mut Signals, signal: i32, last_resort: LastResort) {
    let (_keep, never) = bounded::<()>(1);
    wait(signals, &never, Some(last_resort.grace));
    (last_resort.restore)();
    low_level::exit(128 | signal);
}

/// Waits until a channel closes, a time has passed, or somebody will not wait any longer.
fn wait(signals: &mut Signals, until: &Receiver<()>, longest: Option<Duration>) {
    let began = Instant::now();
    loop {
        let left = longest.map_or(LOOK, |longest| longest.saturating_sub(began.elapsed()).min(LOOK));
        match until.recv_timeout(left) {
            Err(crossbeam_channel::RecvTimeoutError::Timeout) if left == LOOK => {}
            _ => return,
        }
        let again = signals.pending().any(|signal| matches!(signal, SIGINT | SIGQUIT | SIGTERM));
        if again && began.elapsed() >= IMPATIENT {
            return;
        }
    }
}
