//! A terminal that takes bytes slowly, or none: it holds up neither keys nor the end, and shows one frame at a time.

use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use portable_pty::CommandBuilder;

use super::{BOUND, Session};

/// The dashboard of a busy guest in a terminal that reads as it is told.
fn paced() -> (Session, Sender<usize>) {
    let (pace, told) = bounded(1);
    let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_vmscope"));
    command.args(["demo", "--seed", "7"]);
    (Session::start_at(command, 120, 40, Some(told)), pace)
}

impl Session {
    /// Reads at most so many bytes, should there be any within a moment.
    fn take(&mut self, pace: &Sender<usize>, bytes: usize) {
        // One that was told before has not read yet.
        let _ = pace.try_send(bytes);
        self.listen();
    }

    fn takes_until(&mut self, pace: &Sender<usize>, what: &str, wanted: impl Fn(&Self) -> bool) {
        let until = Instant::now() + BOUND;
        while !wanted(self) {
            self.take(pace, 4096);
            assert!(Instant::now() < until, "waited until {what} in vain:\n{}", self.text());
        }
    }

    /// Waits for the end of the program without reading a byte of what it writes; returns its exit status.
    fn ends_unread(&mut self) -> u32 {
        let until = Instant::now() + BOUND;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.exit_code();
            }
            assert!(Instant::now() < until, "the program waits for a terminal that takes nothing");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_terminal_that_takes_nothing_is_left_by_key_and_by_signal() {
    for (way, status) in [("q", 0), ("TERM", 128 + 15), ("HUP", 128 + 1)] {
        let (mut session, pace) = paced();
        session.takes_until(&pace, "the screen is there", |session| session.text().contains("System"));
        // Far more than the terminal holds is drawn meanwhile: every key of these shows another screen.
        for _ in 0..40 {
            for key in ["?", "\x1b[27u", "z", "z"] {
                session.press(key);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if way == "q" {
            session.press("q")
        } else {
            session.signal(way)
        }
        assert_eq!(session.ends_unread(), status, "{way}");
        drop(pace);
        session.ends();
        session.is_restored();
    }
}

#[test]
fn one_frame_is_on_its_way_to_a_terminal_that_says_how_far_it_is() {
    let (mut session, pace) = paced();
    let ends = |session: &Session| session.raw.windows(8).filter(|&at| at == b"\x1b[?2026l").count();
    let mut answered = 0;
    let mut answer = |session: &mut Session| {
        let asked = session.raw.windows(4).filter(|&at| at == b"\x1b[5n").count();
        while answered < asked {
            session.press("\x1b[0n");
            answered += 1;
        }
    };
    let until = Instant::now() + BOUND;
    // A guest that lives makes a frame for each thirtieth of a second; read as slowly as this, they would pile up.
    while ends(&session) < 12 {
        session.take(&pace, 400);
        answer(&mut session);
        assert!(Instant::now() < until, "{}", session.text());
    }
    session.press("?");
    let before = ends(&session);
    while !session.text().contains("Take everything out of the guest and leave") {
        session.take(&pace, 400);
        answer(&mut session);
        assert!(Instant::now() < until, "{}", session.text());
    }
    // The one that was on its way, and one that may have been begun when the key came.
    let waited = ends(&session) - before;
    assert!(waited <= 2, "{waited} frames came before the one that the key made");
    session.press("\x03");
    drop(pace);
    session.ends();
    session.is_restored();
}
