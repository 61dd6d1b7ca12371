//! Keys whose bytes come in pieces, as over slow lines: they are one key, and `esc` is still one.

use std::{thread, time::Duration};

use super::Session;

/// The gap between two pieces: a few bytes at 9600 baud. It is what is tested, not what the test waits by.
const GAP: Duration = Duration::from_millis(3);

impl Session {
    /// Sends bytes in two pieces.
    fn press_in_pieces(&mut self, bytes: &str, cut: usize) {
        let (first, rest) = bytes.split_at(cut);
        self.press(first);
        thread::sleep(GAP);
        self.press(rest);
    }
}

/// The help with a search, which every key that is typed by itself would change, and `esc` would close.
fn help(escape_time: &str) -> Session {
    let mut session = Session::vmscope(&["demo", "--seed", "7", "--escape-time", escape_time], 120, 40);
    session.shows("System");
    session.press("?");
    session.shows("Take everything out of the guest and leave");
    session
}

#[test]
fn a_key_in_two_pieces_is_that_key_wherever_it_is_cut() {
    // So long that no pause of this machine is taken for the end.
    let mut session = help("5000");
    let moves =
        ["\x1b[B", "\x1b[A", "\x1bOB", "\x1bOA", "\x1b[6~", "\x1b[5~", "\x1b[1;5B", "\x1b[15~", "\x1bOP", "\x1b[[C"];
    let others = ["\x1b[<35;10;5M", "\x1b[I", "\x1b[O", "\x1b[57441u", "\x1b[?1;2c", "\x1bx", "\x1b[200~zoom\x1b[201~"];
    for bytes in moves.iter().chain(&others) {
        for cut in 1..bytes.len() {
            session.press_in_pieces(bytes, cut);
        }
    }
    // Had one piece been a key of its own, the help would be closed, or something else would be searched for.
    let pasted = "zoom".repeat(others[6].len() - 1);
    session.shows(&pasted[..20]);
    session.press("\x15zoom");
    session.shows("Give the whole screen to one pane");
    session.press("\x03");
    session.ends();
}

#[test]
fn esc_alone_acts_after_its_time_and_alt_stays_alt() {
    for escape_time in ["0", "50"] {
        let mut session = help(escape_time);
        session.press("\x1b");
        session.shows_no_more("Take everything out of the guest and leave");
        session.press("q");
        assert!(session.ends().success());
    }
    let mut session = help("5000");
    session.press("\x1b");
    session.press("z");
    // As alt-z, which is nothing; esc would have closed the help, and z would be searched for or zoom.
    session.press("zoom");
    session.shows("Give the whole screen to one pane");
    assert!(!session.text().contains("zzoom"), "{}", session.text());
}

#[test]
fn kittys_protocol_is_used_where_it_is_offered_and_taken_back() {
    let mut session = Session::vmscope(&["demo", "--escape-time", "5000"], 120, 40);
    let has = |what: &'static str| move |session: &Session| String::from_utf8_lossy(&session.raw).contains(what);
    session.wait("the question", has("\x1b[?u"));
    // Keys that are typed before the answer are not lost.
    session.press("?");
    session.press("\x1b[?0u");
    session.press("\x1b[0n");
    session.wait("the protocol is switched on", has("\x1b[>1u"));
    session.shows("Take everything out of the guest and leave");
    session.press("\x1b[27u");
    // At once, though an ESC would wait for five seconds.
    session.shows_no_more("Take everything out of the guest and leave");
    session.press("\x1a");
    session.wait("it is given back to the shell", has("\x1b[<1u"));
    let until = std::time::Instant::now() + super::BOUND;
    while session.raw.windows(5).filter(|&at| at == b"\x1b[?u\x1b").count() < 2 {
        session.signal("CONT");
        session.listen();
        assert!(std::time::Instant::now() < until, "the program does not come back");
    }
    session.press("\x1b[?0u\x1b[0n");
    session
        .wait("it is switched on again", |session| session.raw.windows(5).filter(|&at| at == b"\x1b[>1u").count() == 2);
    session.press("q");
    assert!(session.ends().success());
    session.is_restored();
    let raw = String::from_utf8_lossy(&session.raw).into_owned();
    assert_eq!(raw.matches("\x1b[<1u").count(), 2, "as often as it was switched on");
    let last = (raw.rfind("\x1b[<1u"), raw.rfind("\x1b[?1049l"));
    assert!(last.0 < last.1, "in the screen whose it is: {last:?}");
}
