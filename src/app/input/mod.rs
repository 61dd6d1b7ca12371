//! What the terminal sends: keys, the mouse, pastes, its size, and its answers to what it was asked.
//!
//! vmscope reads the terminal's bytes itself, because over a slow line the bytes of one arrow key come in two reads, and who
//! takes the first one for the key `esc` closes what the user looks at. Start at [`read`], which keeps the time;
//! `decode` puts the pieces together, `sequence` knows what each sequence means.

mod decode;
mod sequence;

use std::{
    io::{self, Read, stdin},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use crossterm::{event::Event, terminal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::{consts::SIGWINCH, low_level::pipe};

pub use self::{
    decode::{Decoder, Unfinished},
    sequence::Heard,
};
use super::{console::Input, output::Outlet};

/// How long an ESC waits for the rest of a sequence, unless the user says otherwise.
pub const ESCAPE_TIME: Duration = Duration::from_millis(50);
/// How long a sequence that is one beyond doubt waits for its rest: nobody types its beginning.
const SEQUENCE_TIME: Duration = Duration::from_millis(500);
/// How long a paste waits for its rest. What is taken for typed too early would be keys.
const PASTE_TIME: Duration = Duration::from_secs(5);
/// How much is read at a time.
const READ: usize = 4096;

/// Reads the terminal for the rest of the process, on a thread of its own.
pub fn read(sender: Sender<Input>, outlet: Outlet, escape_time: Duration) {
    thread::spawn(move || {
        let why = match follow(&sender, &outlet, escape_time) {
            Ok(()) => return,
            Err(error) => format!("the terminal cannot be read any more: {error}"),
        };
        // A loop that has ended has no use for it.
        let _ = sender.send(Input::Lost(why));
    });
}

/// Reads until nobody listens.
fn follow(sender: &Sender<Input>, outlet: &Outlet, escape_time: Duration) -> io::Result<()> {
    let (mut resized, wakes) = UnixStream::pair()?;
    resized.set_nonblocking(true)?;
    wakes.set_nonblocking(true)?;
    pipe::register(SIGWINCH, wakes)?;
    let tty = stdin();
    let (mut decoder, mut heard, mut buffer) = (Decoder::default(), Vec::new(), [0; READ]);
    let mut since = Instant::now();
    loop {
        let patience = decoder.unfinished().map(|what| {
            let time = match what {
                Unfinished::Escape => escape_time,
                Unfinished::Sequence => SEQUENCE_TIME.max(escape_time),
                Unfinished::Paste => PASTE_TIME,
            };
            time.saturating_sub(since.elapsed())
        });
        let timeout = patience.and_then(|time| Timespec::try_from(time).ok());
        let mut ready = [PollFd::new(&tty, PollFlags::IN), PollFd::new(&resized, PollFlags::IN)];
        match poll(&mut ready, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let [keys, size] = ready.map(|ready| !ready.revents().is_empty());
        if size {
            while matches!(resized.read(&mut buffer), Ok(1..)) {}
            let (columns, rows) = terminal::size()?;
            if sender.send(Input::Terminal(Event::Resize(columns, rows))).is_err() {
                return Ok(());
            }
        }
        if keys {
            match rustix::io::read(tty.as_fd(), &mut buffer) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was closed")),
                Ok(length) => decoder.feed(buffer.get(..length).unwrap_or_default(), &mut heard),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
                Err(error) => return Err(error.into()),
            }
            since = Instant::now();
        } else if patience.is_some_and(|_| !size) {
            // There was nothing to read when the time had passed, however late this thread came to look.
            decoder.give_up(&mut heard);
        }
        for said in heard.drain(..) {
            match said {
                Heard::Event(event) => {
                    if sender.send(Input::Terminal(event)).is_err() {
                        return Ok(());
                    }
                }
                Heard::Kitty => super::terminal::use_kitty_keys(),
                Heard::Alive => outlet.answered(),
            }
        }
    }
}
