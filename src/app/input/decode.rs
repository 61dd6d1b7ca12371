//! Keys out of bytes that come in any pieces: what is not whole waits for the rest.
//!
//! The same byte that begins every sequence is a key of its own, so an ESC at the end of what has come waits for a moment.
//! The moment is kept by [`super::read`]; here is no clock.

use crossterm::event::{Event, KeyCode};

use super::sequence::{self, ESC, Heard, Read};

/// The end of a paste.
const PASTE_END: &[u8] = b"\x1b[201~";
/// How much of a paste is kept: no field takes nearly as much.
const MOST_PASTED: usize = 1 << 20;

/// What an unfinished sequence may yet be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// The key `esc`, or any sequence.
    Escape,
    /// A sequence beyond doubt, or a key with Alt that few use.
    Sequence,
    /// A paste whose end has not come.
    Paste,
}

/// Bytes on their way to be keys.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    paste: Option<Paste>,
}

#[derive(Debug, Default)]
struct Paste {
    text: Vec<u8>,
    /// How many bytes of its end have come.
    ending: usize,
}

impl Paste {
    /// Takes a byte; answers whether it was the last one.
    fn push(&mut self, byte: u8) -> bool {
        if PASTE_END.get(self.ending) == Some(&byte) {
            self.ending += 1;
            return self.ending == PASTE_END.len();
        }
        let held = PASTE_END.get(..std::mem::take(&mut self.ending)).unwrap_or_default();
        self.text.extend_from_slice(held);
        if byte == ESC {
            self.ending = 1;
        } else {
            self.text.push(byte);
        }
        self.text.truncate(MOST_PASTED);
        false
    }

    fn heard(&self) -> Heard {
        Heard::Event(Event::Paste(String::from_utf8_lossy(&self.text).into_owned()))
    }
}

impl Decoder {
    /// Takes what came and adds what it says to `heard`.
    pub fn feed(&mut self, bytes: &[u8], heard: &mut Vec<Heard>) {
        for &byte in bytes {
            match &mut self.paste {
                Some(paste) => {
                    if paste.push(byte) {
                        heard.push(paste.heard());
                        self.paste = None;
                    }
                }
                None => {
                    self.bytes.push(byte);
                    self.decode(heard);
                }
            }
        }
    }

    fn decode(&mut self, heard: &mut Vec<Heard>) {
        while !self.bytes.is_empty() {
            let (said, length) = match sequence::read(&self.bytes) {
                Read::Part => return,
                Read::Whole(said, length) => (said, length),
                Read::Paste(length) => {
                    self.paste = Some(Paste::default());
                    (None, length)
                }
            };
            heard.extend(said);
            self.bytes.drain(..length.clamp(1, self.bytes.len()));
        }
    }

    /// What waits for more bytes, if anything does.
    pub fn unfinished(&self) -> Option<Unfinished> {
        match self.bytes.as_slice() {
            _ if self.paste.is_some() => Some(Unfinished::Paste),
            [] => None,
            [ESC] | [ESC, ESC] => Some(Unfinished::Escape),
            _ => Some(Unfinished::Sequence),
        }
    }

    /// Takes what there is for all that comes: the moment in which the rest would have come has passed.
    pub fn give_up(&mut self, heard: &mut Vec<Heard>) {
        if let Some(paste) = self.paste.take() {
            heard.push(paste.heard());
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.starts_with(&[ESC, ESC]) {
            heard.push(Heard::Event(sequence::key(KeyCode::Esc)));
            bytes.remove(0);
        }
        match bytes.as_slice() {
            [ESC] => heard.push(Heard::Event(sequence::key(KeyCode::Esc))),
            [ESC, c @ (b'[' | b'O')] => heard.push(Heard::Event(sequence::alt(char::from(*c)))),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crossterm::event::{KeyEvent, KeyModifiers as M, MouseButton, MouseEvent, MouseEventKind as K};

    use super::*;

    fn held(code: KeyCode, modifiers: M) -> Heard {
        Heard::Event(Event::Key(KeyEvent::new(code, modifiers)))
    }

    fn key(code: KeyCode) -> Heard {
        held(code, M::NONE)
    }

    fn mouse(kind: K, column: u16, row: u16, modifiers: M) -> Heard {
        Heard::Event(Event::Mouse(MouseEvent { kind, column, row, modifiers }))
    }

    /// What terminals send, and what it means; nothing where it means nothing.
    fn table() -> Vec<(&'static [u8], Vec<Heard>)> {
        use KeyCode::*;
        let one = |heard| vec![heard];
        let paste = |text: &str| one(Heard::Event(Event::Paste(text.into())));
        let both = |first, second| vec![first, second];
        let left = MouseButton::Left;
        vec![
            (b"q", one(key(Char('q')))),
            (b"S", one(held(Char('S'), M::SHIFT))),
            ("é".as_bytes(), one(key(Char('é')))),
            ("€".as_bytes(), one(key(Char('€')))),
            ("🦀".as_bytes(), one(key(Char('🦀')))),
            (b"\r", one(key(Enter))),
            (b"\t", one(key(Tab))),
            (b"\x7f", one(key(Backspace))),
            (b"\x03", one(held(Char('c'), M::CONTROL))),
            (b"\0", one(held(Char(' '), M::CONTROL))),
            (b"\x1d", one(held(Char('5'), M::CONTROL))),
            // CSI: xterm, VT220, the Linux console, rxvt.
            (b"\x1b[A", one(key(Up))),
            (b"\x1b[B", one(key(Down))),
            (b"\x1b[C", one(key(Right))),
            (b"\x1b[D", one(key(Left))),
            (b"\x1b[H", one(key(Home))),
            (b"\x1b[F", one(key(End))),
            (b"\x1b[1~", one(key(Home))),
            (b"\x1b[4~", one(key(End))),
            (b"\x1b[7~", one(key(Home))),
            (b"\x1b[8~", one(key(End))),
            (b"\x1b[2~", one(key(Insert))),
            (b"\x1b[3~", one(key(Delete))),
            (b"\x1b[5~", one(key(PageUp))),
            (b"\x1b[6~", one(key(PageDown))),
            (b"\x1b[11~", one(key(F(1)))),
            (b"\x1b[15~", one(key(F(5)))),
            (b"\x1b[17~", one(key(F(6)))),
            (b"\x1b[24~", one(key(F(12)))),
            (b"\x1b[34~", one(key(F(20)))),
            (b"\x1b[Z", one(held(BackTab, M::SHIFT))),
            (b"\x1b[[A", one(key(F(1)))),
            (b"\x1b[[E", one(key(F(5)))),
            (b"\x1b[3$", one(held(Delete, M::SHIFT))),
            (b"\x1b[3^", one(held(Delete, M::CONTROL))),
            (b"\x1b[5@", one(held(PageUp, M::CONTROL | M::SHIFT))),
            (b"\x1b[a", one(held(Up, M::SHIFT))),
            (b"\x1b[1;5A", one(held(Up, M::CONTROL))),
            (b"\x1b[1;2D", one(held(Left, M::SHIFT))),
            (b"\x1b[1;3H", one(held(Home, M::ALT))),
            (b"\x1b[1;6F", one(held(End, M::CONTROL | M::SHIFT))),
            (b"\x1b[1;5P", one(held(F(1), M::CONTROL))),
            (b"\x1b[1;2R", one(held(F(3), M::SHIFT))),
            (b"\x1b[3;5~", one(held(Delete, M::CONTROL))),
            (b"\x1b[24;2~", one(held(F(12), M::SHIFT))),
            (b"\x1b[27;5;105~", one(held(Char('i'), M::CONTROL))),
            // SS3: application mode.
            (b"\x1bOA", one(key(Up))),
            (b"\x1bOH", one(key(Home))),
            (b"\x1bOP", one(key(F(1)))),
            (b"\x1bOS", one(key(F(4)))),
            (b"\x1bO5C", one(held(Right, M::CONTROL))),
            (b"\x1bOa", one(held(Up, M::CONTROL))),
            (b"\x1bOM", one(key(Enter))),
            (b"\x1bOj", one(key(Char('*')))),
            (b"\x1bOy", one(key(Char('9')))),
            // Alt.
            (b"\x1bx", one(held(Char('x'), M::ALT))),
            (b"\x1bX", one(held(Char('X'), M::ALT | M::SHIFT))),
            (b"\x1b\r", one(held(Enter, M::ALT))),
            (b"\x1b\x7f", one(held(Backspace, M::ALT))),
            (b"\x1b\x01", one(held(Char('a'), M::ALT | M::CONTROL))),
            ("\x1bé".as_bytes(), one(held(Char('é'), M::ALT))),
            (b"\x1b\x1b[A", one(held(Up, M::ALT))),
            (b"\x1b\x1bOB", one(held(Down, M::ALT))),
            (b"\x1b\x1bx", both(key(Esc), held(Char('x'), M::ALT))),
            // kitty's protocol.
            (b"\x1b[27u", one(key(Esc))),
            (b"\x1b[27;1:1u", one(key(Esc))),
            (b"\x1b[120;3u", one(held(Char('x'), M::ALT))),
            (b"\x1b[120;4u", one(held(Char('X'), M::ALT | M::SHIFT))),
            (b"\x1b[99;5u", one(held(Char('c'), M::CONTROL))),
            (b"\x1b[99;133u", one(held(Char('c'), M::CONTROL))),
            (b"\x1b[9;2u", one(held(BackTab, M::SHIFT))),
            (b"\x1b[13;5u", one(held(Enter, M::CONTROL))),
            (b"\x1b[57400u", one(key(Char('1')))),
            (b"\x1b[57417u", one(key(Left))),
            (b"\x1b[57376u", one(key(F(13)))),
            (b"\x1b[57441u", vec![]),
            (b"\x1b[E", one(key(KeypadBegin))),
            // The mouse in three encodings.
            (b"\x1b[<0;10;5M", one(mouse(K::Down(left), 9, 4, M::NONE))),
            (b"\x1b[<0;10;5m", one(mouse(K::Up(left), 9, 4, M::NONE))),
            (b"\x1b[<2;300;200M", one(mouse(K::Down(MouseButton::Right), 299, 199, M::NONE))),
            (b"\x1b[<35;1;1M", one(mouse(K::Moved, 0, 0, M::NONE))),
            (b"\x1b[<48;3;4M", one(mouse(K::Drag(left), 2, 3, M::CONTROL))),
            (b"\x1b[<64;10;5M", one(mouse(K::ScrollUp, 9, 4, M::NONE))),
            (b"\x1b[<65;10;5M", one(mouse(K::ScrollDown, 9, 4, M::NONE))),
            (b"\x1b[32;10;5M", one(mouse(K::Down(left), 9, 4, M::NONE))),
            (b"\x1b[M \x2a\x25", one(mouse(K::Down(left), 9, 4, M::NONE))),
            (b"\x1b[M\x60\x2a\x1b", one(mouse(K::ScrollUp, 9, 0, M::NONE))),
            (b"\x1b[<0;0;5M", vec![]),
            // The focus, pastes, and answers.
            (b"\x1b[I", one(Heard::Event(Event::FocusGained))),
            (b"\x1b[O", one(Heard::Event(Event::FocusLost))),
            (b"\x1b[200~hello\x1b[201~", paste("hello")),
            (b"\x1b[200~\x1b[201~", paste("")),
            (b"\x1b[200~a\x1bb\x1b[20c\x1b[A\x1b\x1b[201~", paste("a\x1bb\x1b[20c\x1b[A\x1b")),
            (b"\x1b[201~", vec![]),
            (b"\x1b[?1u", one(Heard::Kitty)),
            (b"\x1b[?0u", one(Heard::Kitty)),
            (b"\x1b[0n", one(Heard::Alive)),
            (b"\x1b[?62;22;4c", vec![]),
            (b"\x1b[>41;380;0c", vec![]),
            (b"\x1b[24;80R", vec![]),
            (b"\x1b[?2026;2$y", vec![]),
        ]
    }

    fn heard<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Heard> {
        let (mut decoder, mut heard) = (Decoder::default(), Vec::new());
        for piece in pieces {
            decoder.feed(piece, &mut heard);
        }
        assert_eq!(decoder.unfinished(), None, "{heard:?}");
        heard
    }

    #[test]
    fn every_sequence_means_the_same_in_whatever_pieces_it_comes() {
        for (bytes, meant) in table() {
            let name = String::from_utf8_lossy(bytes).into_owned();
            assert_eq!(heard([bytes]), meant, "{name:?} whole");
            assert_eq!(heard(bytes.chunks(1)), meant, "{name:?} byte by byte");
            for first in 1..bytes.len() {
                let (a, rest) = bytes.split_at(first);
                assert_eq!(heard([a, rest]), meant, "{name:?} cut at {first}");
                for second in 1..rest.len() {
                    let (b, c) = rest.split_at(second);
                    assert_eq!(heard([a, b, c]), meant, "{name:?} cut at {first} and {second} more");
                }
            }
        }
    }

    #[test]
    fn sequences_that_follow_each_other_do_not_mix() {
        let table = table();
        for (a, first) in &table {
            for (b, second) in &table {
                let together = [*a, *b].concat();
                let meant: Vec<Heard> = first.iter().chain(second).cloned().collect();
                assert_eq!(heard([together.as_slice()]), meant, "{:?}", String::from_utf8_lossy(&together));
            }
        }
    }

    #[test]
    fn what_stays_unfinished_is_what_it_is_by_itself() {
        let left = |bytes: &[u8]| {
            let (mut decoder, mut heard) = (Decoder::default(), Vec::new());
            decoder.feed(bytes, &mut heard);
            let unfinished = decoder.unfinished().unwrap_or_else(|| panic!("{bytes:?} is whole"));
            assert!(heard.is_empty(), "{bytes:?}: {heard:?}");
            decoder.give_up(&mut heard);
            assert_eq!(decoder.unfinished(), None);
            decoder.feed(b"q", &mut heard);
            assert_eq!(heard.pop(), Some(key(KeyCode::Char('q'))), "{bytes:?}: the next key is itself");
            (unfinished, heard)
        };
        let alt = |c, more| held(KeyCode::Char(c), M::ALT | more);
        let esc = key(KeyCode::Esc);
        assert_eq!(left(b"\x1b"), (Unfinished::Escape, vec![esc.clone()]));
        assert_eq!(left(b"\x1b\x1b"), (Unfinished::Escape, vec![esc.clone(), esc.clone()]));
        assert_eq!(left(b"\x1b["), (Unfinished::Sequence, vec![alt('[', M::NONE)]));
        assert_eq!(left(b"\x1bO"), (Unfinished::Sequence, vec![alt('O', M::SHIFT)]));
        assert_eq!(left(b"\x1b\x1b["), (Unfinished::Sequence, vec![esc, alt('[', M::NONE)]));
        for cut in [&b"\x1b[1;5"[..], b"\x1b[<0;10", b"\x1b[M ", b"\xe2\x82", b"\x1b[["] {
            assert_eq!(left(cut), (Unfinished::Sequence, vec![]), "{cut:?}: keys are never made of the middle of one");
        }
        let paste = Heard::Event(Event::Paste("half".into()));
        assert_eq!(left(b"\x1b[200~half"), (Unfinished::Paste, vec![paste]));
    }

    #[test]
    fn no_bytes_hold_the_keyboard_up_or_take_memory_without_end() {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        };
        let (mut decoder, mut heard) = (Decoder::default(), Vec::new());
        for round in 0..20_000 {
            let bytes: Vec<u8> = (0..random() % 9)
                .map(|_| if random() % 3 == 0 { b"\x1b[;<O?1M~u"[usize::from(random()) % 10] } else { random() })
                .collect();
            decoder.feed(&bytes, &mut heard);
            assert!(decoder.bytes.len() <= 80, "round {round}: {:?}", decoder.bytes);
            heard.clear();
        }
        decoder.give_up(&mut heard);
        heard.clear();
        decoder.feed(b"\x1b[200~", &mut heard);
        for _ in 0..3 * MOST_PASTED / 4096 {
            decoder.feed(&[b'x'; 4096], &mut heard);
        }
        decoder.feed(b"\x1b[201~", &mut heard);
        assert!(matches!(heard.as_slice(), [Heard::Event(Event::Paste(text))] if text.len() == MOST_PASTED));
    }
}
