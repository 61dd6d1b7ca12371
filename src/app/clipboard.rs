//! The clipboard of the user's terminal: reached by OSC 52, through whatever stands between.
//!
//! A terminal does not say whether it took a text, and a multiplexer in between drops the sequence unless it is told in its
//! own way whose it is. So the sequence is wrapped for the one that is there, and what is said claims no more than is
//! known.

use crossterm::{Command, clipboard::CopyToClipboard};

/// How many bytes GNU screen takes in one string (`MAXSTR` in its `screen.h` is 768).
const SCREEN_STRING: usize = 512;
/// The longest sequence that GNU screen ignores as a whole; the rest of a longer one it writes on the screen.
const SCREEN_IGNORES: usize = 700;

/// What is between here and the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing that is known of.
    Direct,
    /// tmux.
    Tmux,
    /// GNU screen.
    Screen,
    /// One of the two, on another machine.
    Multiplexer,
}

impl Way {
    /// The way out, by what multiplexers leave in the environment.
    pub fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        let term = variable("TERM").unwrap_or_default();
        if is_set("TMUX") || term.starts_with("tmux") {
            Self::Tmux
        } else if is_set("STY") {
            Self::Screen
        } else if term.starts_with("screen") {
            Self::Multiplexer
        } else {
            Self::Direct
        }
    }

    /// What puts a text on the clipboard.
    pub fn bytes(self, text: &str) -> Vec<u8> {
        let mut plain = String::new();
        // Writing to a string cannot fail.
        let _ = CopyToClipboard::to_clipboard_from(text).write_ansi(&mut plain);
        match self {
            Self::Direct => plain.into_bytes(),
            // tmux takes the plain one where it is told to (set-clipboard on), and passes the wrapped one on where it is
            // told to do that (allow-passthrough on).
            Self::Tmux => format!("{plain}\x1bPtmux;{}\x1b\\", plain.replace('\x1b', "\x1b\x1b")).into_bytes(),
            Self::Screen => screen(&plain),
            Self::Multiplexer if plain.len() > SCREEN_IGNORES => screen(&plain),
            Self::Multiplexer => [plain.as_bytes(), &screen(&plain)].concat(),
        }
    }

    /// What is said of a text that was sent.
    pub fn told(self, what: &str) -> String {
        match self {
            Self::Direct => {
                format!("sent {what} to the terminal's clipboard; whether it took it cannot be known")
            }
            Self::Tmux => format!(
                "sent {what} to tmux, which passes it on with 'set-clipboard on' or 'allow-passthrough on' only; whether it \
                 did cannot be known"
            ),
            Self::Screen | Self::Multiplexer => {
                format!("sent {what} through screen or tmux to the terminal; whether it arrived cannot be known")
            }
        }
    }
}

/// In strings that screen passes on as they are (DCS); a bell ends the sequence, because ST would end screen's string.
fn screen(plain: &str) -> Vec<u8> {
    let belled = format!("{}\x07", plain.trim_end_matches("\x1b\\").trim_end_matches('\x07'));
    belled.as_bytes().chunks(SCREEN_STRING).flat_map(|chunk| [b"\x1bP", chunk, b"\x1b\\"].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(set: &[(&str, &str)]) -> Way {
        Way::new(|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_multiplexer_is_known_by_what_it_leaves_in_the_environment() {
        assert_eq!(way(&[("TERM", "xterm-256color")]), Way::Direct);
        assert_eq!(way(&[("TERM", "screen"), ("TMUX", "/tmp/tmux-0/default,1,0")]), Way::Tmux);
        assert_eq!(way(&[("TERM", "tmux-256color"), ("TMUX", "")]), Way::Tmux, "over ssh");
        assert_eq!(way(&[("TERM", "screen.xterm-256color"), ("STY", "1.pts-0.host")]), Way::Screen);
        assert_eq!(way(&[("TERM", "screen-256color")]), Way::Multiplexer);
        assert_eq!(way(&[]), Way::Direct);
    }

    #[test]
    fn the_sequence_is_wrapped_for_what_is_between() {
        let plain = "\x1b]52;c;b25lIHJvdw==\x1b\\";
        assert_eq!(Way::Direct.bytes("one row"), plain.as_bytes());
        let tmux = format!("{plain}\x1bPtmux;\x1b\x1b]52;c;b25lIHJvdw==\x1b\x1b\\\x1b\\");
        assert_eq!(Way::Tmux.bytes("one row"), tmux.as_bytes());
        let wrapped = "\x1bP\x1b]52;c;b25lIHJvdw==\x07\x1b\\";
        assert_eq!(Way::Screen.bytes("one row"), wrapped.as_bytes());
        assert_eq!(Way::Multiplexer.bytes("one row"), format!("{plain}{wrapped}").as_bytes());
    }

    #[test]
    fn screen_gets_strings_that_it_can_hold_and_never_a_long_plain_one() {
        let text = "x".repeat(20_000);
        let plain = String::from_utf8(Way::Direct.bytes(&text)).unwrap();
        for way in [Way::Screen, Way::Multiplexer] {
            let bytes = String::from_utf8(way.bytes(&text)).unwrap();
            let strings: Vec<&str> =
                bytes.split_terminator("\x1b\\").map(|part| part.strip_prefix("\x1bP").unwrap()).collect();
            assert!(strings.iter().all(|part| part.len() <= SCREEN_STRING));
            assert_eq!(strings.concat(), plain.replace("\x1b\\", "\x07"), "{way:?}: what comes out is the whole");
        }
    }

    #[test]
    fn nothing_is_claimed_that_is_not_known() {
        for way in [Way::Direct, Way::Tmux, Way::Screen, Way::Multiplexer] {
            let told = way.told("one row");
            assert!(
                told.contains("sent one row") && told.contains("cannot be known") && !told.contains("copied"),
                "{told}"
            );
        }
    }
}
