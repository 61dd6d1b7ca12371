//! One key, report or answer of a terminal out of the bytes that it sends for it.
//!
//! The forms are those of xterm's `ctlseqs` (CSI, SS3, `modifyOtherKeys`, mouse reports in all three encodings, focus and
//! bracketed paste), of rxvt (`ESC [ 3 ^`, `ESC [ a`), of the Linux console (`ESC [ [ A`) and of kitty's keyboard protocol
//! (`CSI … u`). [`read`] is a pure function of the bytes so far: whether time may pass is for [`super::decode`].

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};

/// The first byte of every sequence.
pub(super) const ESC: u8 = 0x1b;
/// No key or report is longer; what goes on is no sequence of ours.
const LONGEST: usize = 64;

/// What a terminal said.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// A key, the mouse, the focus, a paste.
    Event(Event),
    /// The answer to `CSI ? u`: it speaks kitty's keyboard protocol.
    Kitty,
    /// The answer to `CSI 5 n`: it has come as far as there.
    Alive,
}

/// What bytes begin with.
#[derive(Debug, PartialEq)]
pub(super) enum Read {
    /// So many bytes, and what they say; nothing for what is of no use.
    Whole(Option<Heard>, usize),
    /// A paste begins behind so many bytes.
    Paste(usize),
    /// More bytes decide.
    Part,
}

/// Reads what bytes begin with; there must be at least one.
pub(super) fn read(bytes: &[u8]) -> Read {
    match bytes {
        [ESC] | [] => Read::Part,
        [ESC, b'[', rest @ ..] => csi(rest),
        [ESC, b'O', rest @ ..] => ss3(rest),
        // rxvt and others send Alt with a key that has a sequence as one more ESC.
        [ESC, ESC] => Read::Part,
        [ESC, ESC, b'[' | b'O', ..] => match bytes.get(1..).map_or(Read::Part, read) {
            Read::Whole(Some(Heard::Event(Event::Key(key))), length) => Read::Whole(Some(with_alt(key)), length + 1),
            Read::Part => Read::Part,
            _ => whole(key(KeyCode::Esc), 1),
        },
        [ESC, ESC, ..] => whole(key(KeyCode::Esc), 1),
        [ESC, rest @ ..] => match character(rest) {
            Read::Whole(Some(Heard::Event(Event::Key(key))), length) => Read::Whole(Some(with_alt(key)), length + 1),
            Read::Whole(None, length) => Read::Whole(None, length + 1),
            other => other,
        },
        _ => character(bytes),
    }
}

fn whole(event: Event, length: usize) -> Read {
    Read::Whole(Some(Heard::Event(event)), length)
}

pub(super) fn key(code: KeyCode) -> Event {
    Event::Key(KeyEvent::new(code, KeyModifiers::NONE))
}

pub(super) fn alt(c: char) -> Event {
    let shift = if c.is_uppercase() { KeyModifiers::SHIFT } else { KeyModifiers::NONE };
    Event::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::ALT | shift))
}

fn with_alt(mut key: KeyEvent) -> Heard {
    key.modifiers |= KeyModifiers::ALT;
    Heard::Event(Event::Key(key))
}

/// A character, or a key that is one byte.
fn character(bytes: &[u8]) -> Read {
    let Some(&first) = bytes.first() else { return Read::Part };
    let control = |c: u8| Event::Key(KeyEvent::new(KeyCode::Char(char::from(c)), KeyModifiers::CONTROL));
    let event = match first {
        b'\r' => key(KeyCode::Enter),
        b'\t' => key(KeyCode::Tab),
        0x7f => key(KeyCode::Backspace),
        0 => control(b' '),
        0x01..=0x1a => control(first - 1 + b'a'),
        0x1b => key(KeyCode::Esc),
        0x1c..=0x1f => control(first - 0x1c + b'4'),
        _ => return utf8(bytes),
    };
    whole(event, 1)
}

fn utf8(bytes: &[u8]) -> Read {
    let length = match bytes.first() {
        Some(..0x80) => 1,
        Some(0xc2..0xe0) => 2,
        Some(0xe0..0xf0) => 3,
        Some(0xf0..0xf5) => 4,
        _ => return Read::Whole(None, 1),
    };
    let there = bytes.get(..length).unwrap_or(bytes);
    match std::str::from_utf8(there) {
        Ok(text) => {
            let c = text.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
            let shift = if c.is_uppercase() { KeyModifiers::SHIFT } else { KeyModifiers::NONE };
            whole(Event::Key(KeyEvent::new(KeyCode::Char(c), shift)), length)
        }
        Err(error) if error.error_len().is_none() => Read::Part,
        // The byte that does not belong there begins something else.
        Err(_) => Read::Whole(None, 1),
    }
}

/// What follows `ESC O`.
fn ss3(rest: &[u8]) -> Read {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count().min(2);
    let Some(&last) = rest.get(digits) else { return Read::Part };
    let modifiers = rest.get(..digits).and_then(number).map_or(KeyModifiers::NONE, modifiers);
    let (code, more) = match last {
        b'M' => (KeyCode::Enter, KeyModifiers::NONE),
        b'I' => (KeyCode::Tab, KeyModifiers::NONE),
        b'X' => (KeyCode::Char('='), KeyModifiers::NONE),
        // The keypad in application mode: the characters from '*' on in their order.
        b'j'..=b'y' => (KeyCode::Char(char::from(last - b'j' + b'*')), KeyModifiers::NONE),
        b'a'..=b'd' => match cursor_key(last.to_ascii_uppercase()) {
            Some(code) => (code, KeyModifiers::CONTROL),
            None => return whole(alt('O'), 2),
        },
        _ => match cursor_key(last) {
            Some(code) => (code, KeyModifiers::NONE),
            // No key of the kind: Alt with a capital O, and whatever comes behind it.
            None => return whole(alt('O'), 2),
        },
    };
    whole(Event::Key(KeyEvent::new(code, modifiers | more)), digits + 3)
}

/// What follows `ESC [`.
fn csi(rest: &[u8]) -> Read {
    match rest {
        [] => return Read::Part,
        [b'[', last @ b'A'..=b'E', ..] => return whole(key(KeyCode::F(1 + last - b'A')), 4),
        [b'['] | [b'M'] | [b'M', _] | [b'M', _, _] => return Read::Part,
        [b'M', button, column, row, ..] => {
            let cell = |byte: &u8| u16::from(byte.saturating_sub(33));
            let event = button.checked_sub(32).and_then(|button| mouse(button, cell(column), cell(row), false));
            return Read::Whole(event.map(Heard::Event), 6);
        }
        _ => {}
    }
    let parameters = rest.iter().take_while(|byte| (0x30..0x40).contains(*byte)).count();
    let between = rest.iter().skip(parameters).take_while(|byte| (0x20..0x30).contains(*byte)).count();
    let values = rest.get(..parameters).unwrap_or_default();
    // rxvt ends Shift with an editing key in a byte that ends nothing elsewhere.
    if between > 0 && rest.get(parameters) == Some(&b'$') && number(values).is_some() {
        let event = edit_key(number(values)).map(|code| Event::Key(KeyEvent::new(code, KeyModifiers::SHIFT)));
        return Read::Whole(event.map(Heard::Event), parameters + 3);
    }
    match rest.get(parameters + between) {
        None if rest.len() < LONGEST => Read::Part,
        None => Read::Whole(None, rest.len() + 2),
        Some(last @ 0x40..0x7f) => {
            let length = parameters + between + 3;
            if (values, between, last) == (b"200".as_slice(), 0, &b'~') {
                return Read::Paste(length);
            }
            Read::Whole(if between == 0 { sequence(values, *last) } else { None }, length)
        }
        // The byte that does not belong there begins something else.
        Some(_) if parameters + between == 0 => whole(alt('['), 2),
        Some(_) => Read::Whole(None, parameters + between + 2),
    }
}

/// A control sequence by its parameters and its last byte.
fn sequence(values: &[u8], last: u8) -> Option<Heard> {
    match (values, last) {
        ([b'?', ..], b'u') => return Some(Heard::Kitty),
        ([b'0' | b'3'], b'n') => return Some(Heard::Alive),
        ([], b'I') => return Some(Heard::Event(Event::FocusGained)),
        ([], b'O') => return Some(Heard::Event(Event::FocusLost)),
        ([b'<', values @ ..], b'M' | b'm') => return reported_mouse(values, 0, last == b'm'),
        // Answers to questions that nobody asked.
        ([b'<'..=b'?', ..], _) => return None,
        (_, b'M') => return reported_mouse(values, 32, false),
        _ => {}
    }
    let mut fields = values.split(|&byte| byte == b';');
    let (first, second) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
    let mut parts = second.split(|&byte| byte == b':');
    let held = parts.next().and_then(number).map_or(KeyModifiers::NONE, modifiers);
    let kind = match parts.next().and_then(number) {
        Some(2) => KeyEventKind::Repeat,
        Some(3) => KeyEventKind::Release,
        _ => KeyEventKind::Press,
    };
    let code = first.split(|&byte| byte == b':').next().and_then(number);
    let key = |code, held| Some(Heard::Event(Event::Key(KeyEvent::new_with_kind(code, held, kind))));
    match last {
        // F3 in kitty's form; any other line is the answer to a question that nobody asked.
        b'R' if code.is_some_and(|code| code != 1) => None,
        b'Z' => key(KeyCode::BackTab, held | KeyModifiers::SHIFT),
        b'a'..=b'd' if values.is_empty() => key(cursor_key(last.to_ascii_uppercase())?, KeyModifiers::SHIFT),
        b'~' if code == Some(27) => {
            let (code, held) = unicode(fields.next().and_then(number)?, held)?;
            key(code, held)
        }
        b'~' => key(edit_key(code)?, held),
        b'^' => key(edit_key(code)?, KeyModifiers::CONTROL),
        b'@' => key(edit_key(code)?, KeyModifiers::CONTROL | KeyModifiers::SHIFT),
        b'u' => {
            let (code, held) = unicode(code?, held)?;
            key(code, held)
        }
        _ => key(cursor_key(last)?, held),
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// xterm's and kitty's bits, plus one. The locks are none that a key could mean.
fn modifiers(mask: u32) -> KeyModifiers {
    let bits = mask.saturating_sub(1);
    [
        KeyModifiers::SHIFT,
        KeyModifiers::ALT,
        KeyModifiers::CONTROL,
        KeyModifiers::SUPER,
        KeyModifiers::HYPER,
        KeyModifiers::META,
    ]
    .into_iter()
    .enumerate()
    .filter(|(bit, _)| bits >> bit & 1 != 0)
    .map(|(_, modifier)| modifier)
    .collect()
}

/// The keys that SS3 and CSI name by their last byte.
const fn cursor_key(last: u8) -> Option<KeyCode> {
    Some(match last {
        b'A' => KeyCode::Up,
        b'B' => KeyCode::Down,
        b'C' => KeyCode::Right,
        b'D' => KeyCode::Left,
        b'E' => KeyCode::KeypadBegin,
        b'F' => KeyCode::End,
        b'H' => KeyCode::Home,
        b'P'..=b'S' => KeyCode::F(1 + last - b'P'),
        _ => return None,
    })
}

/// The keys that CSI names by a number.
fn edit_key(number: Option<u32>) -> Option<KeyCode> {
    let number = u8::try_from(number?).ok()?;
    Some(match number {
        1 | 7 => KeyCode::Home,
        2 => KeyCode::Insert,
        3 => KeyCode::Delete,
        4 | 8 => KeyCode::End,
        5 => KeyCode::PageUp,
        6 => KeyCode::PageDown,
        11..=15 => KeyCode::F(number - 10),
        17..=21 => KeyCode::F(number - 11),
        23..=26 => KeyCode::F(number - 12),
        28..=29 => KeyCode::F(number - 13),
        31..=34 => KeyCode::F(number - 14),
        _ => return None,
    })
}

/// A key by its code point, or by kitty's numbers from the private-use area.
fn unicode(number: u32, held: KeyModifiers) -> Option<(KeyCode, KeyModifiers)> {
    const KEYPAD: [KeyCode; 11] = [
        KeyCode::Enter,
        KeyCode::Char('='),
        KeyCode::Char(','),
        KeyCode::Left,
        KeyCode::Right,
        KeyCode::Up,
        KeyCode::Down,
        KeyCode::PageUp,
        KeyCode::PageDown,
        KeyCode::Home,
        KeyCode::End,
    ];
    let code = match number {
        9 if held.contains(KeyModifiers::SHIFT) => KeyCode::BackTab,
        9 => KeyCode::Tab,
        13 => KeyCode::Enter,
        27 => KeyCode::Esc,
        127 => KeyCode::Backspace,
        57376..=57398 => KeyCode::F(u8::try_from(number - 57376 + 13).ok()?),
        57399..=57408 => KeyCode::Char(char::from_digit(number - 57399, 10)?),
        57409 => KeyCode::Char('.'),
        57410 => KeyCode::Char('/'),
        57411 => KeyCode::Char('*'),
        57412 => KeyCode::Char('-'),
        57413 => KeyCode::Char('+'),
        57414..=57424 => *KEYPAD.get((number - 57414) as usize)?,
        57425 => KeyCode::Insert,
        57426 => KeyCode::Delete,
        57427 => KeyCode::KeypadBegin,
        // Locks, media keys and modifiers alone, which mean nothing here.
        57344..=63743 => return None,
        _ => {
            let c = char::from_u32(number)?;
            let is_shifted = held.contains(KeyModifiers::SHIFT) && c.is_ascii_lowercase();
            KeyCode::Char(if is_shifted { c.to_ascii_uppercase() } else { c })
        }
    };
    Some((code, held))
}

/// A mouse report whose three numbers are written out.
fn reported_mouse(values: &[u8], offset: u8, is_up: bool) -> Option<Heard> {
    let mut fields = values.split(|&byte| byte == b';').map(number);
    let button = u8::try_from(fields.next()??).ok()?.checked_sub(offset)?;
    let mut cell = || u16::try_from(fields.next()??).ok()?.checked_sub(1);
    let (column, row) = (cell()?, cell()?);
    mouse(button, column, row, is_up).map(Heard::Event)
}

/// A mouse report: xterm's button byte (buttons in bits 0, 1, 6 and 7, modifiers in 2 to 4, motion in 5) and a cell.
fn mouse(button: u8, column: u16, row: u16, is_up: bool) -> Option<Event> {
    let moves = button & 0x20 != 0;
    let pressed = match button & 3 {
        0 => MouseButton::Left,
        1 => MouseButton::Middle,
        _ => MouseButton::Right,
    };
    let kind = match (button & 3 | (button & 0xc0) >> 4, moves) {
        (0..=2, true) => MouseEventKind::Drag(pressed),
        (0..=2, false) if is_up => MouseEventKind::Up(pressed),
        (0..=2, false) => MouseEventKind::Down(pressed),
        (3, false) => MouseEventKind::Up(MouseButton::Left),
        (3..=5, true) => MouseEventKind::Moved,
        (4, false) => MouseEventKind::ScrollUp,
        (5, false) => MouseEventKind::ScrollDown,
        (6, false) => MouseEventKind::ScrollLeft,
        (7, false) => MouseEventKind::ScrollRight,
        _ => return None,
    };
    let held = [(4, KeyModifiers::SHIFT), (8, KeyModifiers::ALT), (16, KeyModifiers::CONTROL)];
    let modifiers = held.into_iter().filter(|(bit, _)| button & bit != 0).map(|(_, held)| held).collect();
    Some(Event::Mouse(MouseEvent { kind, column, row, modifiers }))
}
