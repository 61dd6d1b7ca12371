//! Handing open descriptors to other processes: over a Unix socket to one that runs, or to a program that is started.
#![allow(unsafe_code)] // sendmsg(2), recvmsg(2) with SCM_RIGHTS, and what a child does before exec, have no safe form in std.

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::Command,
};

/// Room for the control message of one descriptor, aligned as `cmsghdr` is.
type Control = [u64; 8];

/// Sends bytes and, with the first of them, a descriptor (unix(7), `SCM_RIGHTS`). Returns how many bytes were taken.
///
/// # Errors
/// What the system says; `WouldBlock` when the socket is full.
pub fn send(stream: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let mut control: Control = [0; 8];
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let length = size_of::<RawFd>() as libc::c_uint;
    // SAFETY: `msghdr` is a plain structure for which all zeroes is the empty message.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: CMSG_SPACE only computes with its argument.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as _;
    // SAFETY: `message` points to `control`, whose 64 bytes exceed CMSG_SPACE of one descriptor (24) and which is aligned
    // for `cmsghdr`; so the first header and the four bytes of its data lie inside of it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(length) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(descriptor.as_raw_fd());
    }
    // SAFETY: everything that `message` points to lives until the call returns, and none of it is written.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives what has arrived, and the descriptor that came with it, if one did.
///
/// # Errors
/// What the system says; `UnexpectedEof` when the peer has gone.
pub fn receive(stream: &UnixStream, into: &mut Vec<u8>) -> io::Result<Option<OwnedFd>> {
    let mut buffer = [0u8; 16384];
    let mut control: Control = [0; 8];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: as in `send`.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: `message` points to buffers on this stack frame with their true lengths.
    let received = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let mut descriptor = None;
    // SAFETY: the kernel has filled `control` with complete headers as far as `msg_controllen` says; the macros stay inside
    // of that. A descriptor that the kernel has put there is open and belongs to nobody else.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(current) = header.as_ref() {
            if (current.cmsg_level, current.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = current.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                for index in 0..bytes / size_of::<RawFd>() {
                    let fd = libc::CMSG_DATA(header).cast::<RawFd>().add(index).read_unaligned();
                    // Of several the last one stays open; the others are closed.
                    descriptor = Some(OwnedFd::from_raw_fd(fd));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    into.extend_from_slice(buffer.get(..received).unwrap_or_default());
    Ok(descriptor)
}

/// The number under which [`inherit`] hands a descriptor over.
pub const INHERITED: RawFd = 3;

/// Lets a program that will be started have this descriptor, under the number [`INHERITED`]. It must stay open until then.
pub fn inherit(command: &mut Command, descriptor: BorrowedFd<'_>) {
    let from = descriptor.as_raw_fd();
    let hand_over = move || {
        // The copy is without the close-on-exec flag; where the numbers are equal, `dup2` would leave the flag as it is.
        // SAFETY: `dup2` and `fcntl` take no pointers and are async-signal-safe, as all must be between fork and exec. In
        // the child nobody else owns number 3: all others of this process are closed by exec.
        let result = unsafe {
            if from == INHERITED { libc::fcntl(from, libc::F_SETFD, 0) } else { libc::dup2(from, INHERITED) }
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure makes one async-signal-safe system call; it allocates nothing and takes no locks.
    unsafe { command.pre_exec(hand_over) };
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::fd::AsFd,
        process::Stdio,
    };

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_bytes() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        assert_eq!(send(&here, b"take this", theirs.as_fd()).expect("room"), 9);
        drop(theirs);
        let mut bytes = Vec::new();
        let taken = receive(&there, &mut bytes).expect("a message").expect("a descriptor");
        assert_eq!(bytes, b"take this");
        UnixStream::from(taken).write_all(b"hello").expect("room");
        let mut said = [0; 5];
        ours.read_exact(&mut said).expect("what was written");
        assert_eq!(&said, b"hello");
        drop(here);
        let ended = receive(&there, &mut bytes).expect_err("nobody is there");
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_program_inherits_one() {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        let mut command = Command::new("sh");
        command.args(["-c", "echo here >&3"]).stdin(Stdio::null());
        inherit(&mut command, theirs.as_fd());
        let mut child = command.spawn().expect("a shell");
        drop(theirs);
        let mut said = String::new();
        ours.read_to_string(&mut said).expect("what was written");
        assert_eq!(said, "here\n");
        assert!(child.wait().expect("its end").success());
    }
}
