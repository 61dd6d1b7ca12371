//! The terminal of a process that cannot end as it should: restored without waiting for anything.
//!
//! That is for two cases. The processor's faults (SIGSEGV, SIGILL, SIGFPE, SIGBUS, and `abort`) end a process where it
//! stands, with the terminal in raw mode and on its other screen; and a process whose terminal takes no output cannot
//! restore it in the usual way, which waits. Here is done what a signal handler may do: modes are set, and a few bytes are
//! written to a descriptor that never blocks, over what the terminal has not taken yet. It lives among the drivers because
//! all code does that the compiler cannot check.
#![allow(unsafe_code)] // Signal handlers and termios(3).

use std::{
    cell::UnsafeCell,
    fs::OpenOptions,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, IntoRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// The faults that leave nothing to run on.
const FAULTS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGBUS, libc::SIGABRT];
/// How often a terminal that takes nothing is made to forget what it has not taken yet.
const ATTEMPTS: usize = 10;

/// How the terminal was, and what brings it back.
struct Farewell {
    terminal: RawFd,
    modes: libc::termios,
    bytes: Vec<u8>,
    taken: &'static AtomicBool,
}

static FAREWELL: OnceLock<Farewell> = OnceLock::new();

/// The handlers that were there before ours, in the order of [`FAULTS`].
struct Before(UnsafeCell<[MaybeUninit<libc::sigaction>; FAULTS.len()]>);

// SAFETY: written once, by the only call of `prepare` that gets `FAREWELL`, and for each fault before the handler that
// reads it is installed.
unsafe impl Sync for Before {}

static BEFORE: Before = Before(UnsafeCell::new([const { MaybeUninit::uninit() }; FAULTS.len()]));

/// Takes note of how the terminal at standard output is now, and of the bytes that undo what is done to it from now on,
/// while `taken` says that it is. To be called once, before it is taken.
///
/// # Errors
/// What the system says; when standard output is not a terminal.
pub fn prepare(bytes: Vec<u8>, taken: &'static AtomicBool) -> io::Result<()> {
    // Opened anew, so that nobody who shares standard output with us comes to have it non-blocking.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let terminal = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/proc/self/fd/1")?;
    // SAFETY: an all-zero `termios` is a valid one: it holds numbers only.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `modes` is a `termios` on this stack frame.
    if unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut modes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let farewell = Farewell { terminal: terminal.into_raw_fd(), modes, bytes, taken };
    if FAREWELL.set(farewell).is_err() {
        return Err(io::Error::other("the terminal is known already"));
    }
    for (index, &fault) in FAULTS.iter().enumerate() {
        // SAFETY: an all-zero `sigaction` is a valid one (SIG_DFL, no flags, an empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_fault as extern "C" fn(_, _, _) as usize;
        // The thread's alternate stack where it has one: its own may be what has overflowed.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `index` is below the array's length, and nobody else refers to this element before the handler below.
        let before = unsafe { BEFORE.0.get().cast::<libc::sigaction>().add(index) };
        // SAFETY: both pointers are valid; the handler does only what is allowed in one.
        let done = unsafe {
            libc::sigaction(fault, ptr::null(), before) == 0
                && libc::sigaction(fault, &raw const action, ptr::null_mut()) == 0
        };
        if !done {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Restores the terminal if it is taken, as far as it takes anything without being waited for. Does nothing that a signal
/// handler may not do.
pub fn restore_terminal() {
    let Some(farewell) = FAREWELL.get() else { return };
    if !farewell.taken.swap(false, Ordering::SeqCst) {
        return;
    }
    let fd = farewell.terminal;
    // SAFETY: neither takes pointers; the descriptor is never closed. A terminal that belongs to another process group now
    // is not ours to change, and changing it would stop us.
    if unsafe { libc::tcgetpgrp(fd) != libc::getpgrp() } {
        return;
    }
    // First without ctrl-s, which lets a terminal go on that was stopped by it.
    let flowing = libc::termios { c_iflag: farewell.modes.c_iflag & !libc::IXON, ..farewell.modes };
    // SAFETY: the descriptor is never closed, and the modes are complete `termios`. TCSANOW waits for no output.
    unsafe {
        libc::tcsetattr(fd, libc::TCSANOW, &raw const flowing);
        libc::tcflow(fd, libc::TCOON);
    }
    let mut left = farewell.bytes.as_slice();
    for _ in 0..ATTEMPTS {
        // SAFETY: `left` is a live slice and the length is its own; the descriptor does not block.
        let written = unsafe { libc::write(fd, left.as_ptr().cast(), left.len()) };
        left = usize::try_from(written).ok().and_then(|written| left.get(written..)).unwrap_or(left);
        if left.is_empty() {
            break;
        }
        // What nobody has read by now is of a screen that ends here.
        // SAFETY: no pointers but that of a `pollfd` on this stack frame, with its length.
        unsafe {
            libc::tcflush(fd, libc::TCOFLUSH);
            let mut room = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
            libc::poll(&raw mut room, 1, 10);
        }
    }
    // SAFETY: as above.
    unsafe { libc::tcsetattr(fd, libc::TCSANOW, &raw const farewell.modes) };
}

/// A fault: restores the terminal, and lets the process end of it.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler installed with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    // SAFETY: as above; what `kill` and its like send carries the sender. Neither call takes pointers.
    let is_sent = code <= 0;
    // SAFETY: as above.
    let by_others = is_sent && unsafe { (*info).si_pid() != libc::getpid() };
    if signal == libc::SIGABRT && by_others {
        // Somebody else's wish, which the signals' own thread takes.
        return;
    }
    // SAFETY: the thread's errno is put back as it was, so the interrupted code does not see the system calls.
    let errno = unsafe { *libc::__errno_location() };
    restore_terminal();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    if signal == libc::SIGABRT {
        // `abort` ends the process when its signal's handler returns.
        return;
    }
    let Some(index) = FAULTS.iter().position(|&fault| fault == signal) else { return };
    // SAFETY: an all-zero `sigaction` is SIG_DFL; the element was written before this handler was installed; `sigaction` and
    // `raise` are async-signal-safe. The fault happens again when this handler returns, under the handler of before; one
    // that was sent does not, and is sent again.
    unsafe {
        if is_sent {
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, &raw const default, ptr::null_mut());
            libc::raise(signal);
        } else {
            libc::sigaction(signal, BEFORE.0.get().cast::<libc::sigaction>().add(index), ptr::null_mut());
        }
    }
}
