//! Names of keys, and which key means which action.
//!
//! Keys are compared in one normal form: an upper-case letter carries shift, any other character carries none,
//! whatever a terminal reports.

use crokey::{KeyCombination, OneToThree};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Reads the name of a key: `j`, `S`, `?`, `space`, `enter`, `pgup`, `ctrl-p`, `shift-tab`, `f1`.
///
/// # Errors
/// A sentence for a name that is none.
pub fn parse(name: &str) -> Result<KeyCombination, String> {
    let mut chars = name.chars();
    if let (Some(c), None) = (chars.next(), chars.next()) {
        return Ok(typed(c));
    }
    let full = match name.to_ascii_lowercase().as_str() {
        "pgup" => "pageup".to_owned(),
        "pgdn" | "pgdown" => "pagedown".to_owned(),
        "escape" => "esc".to_owned(),
        "shift-tab" => "backtab".to_owned(),
        _ => name.to_owned(),
    };
    let wrong = || {
        format!(
            "'{name}' is not the name of a key; write a character, or a name such as enter, esc, space, tab, up, \
             pgdn, f1, ctrl-p, and quote text that is to be typed"
        )
    };
    let key = crokey::parse(&full).map_err(|_| wrong())?;
    if key.is_ansi_compatible() { Ok(normal(key)) } else { Err(wrong()) }
}

/// The key that types a character.
pub fn typed(c: char) -> KeyCombination {
    normal(KeyCombination::one_key(KeyCode::Char(c), KeyModifiers::NONE))
}

/// The key of a terminal's event, in normal form.
pub fn pressed(event: KeyEvent) -> KeyCombination {
    normal(KeyCombination::one_key(event.code, event.modifiers))
}

/// The event that a key makes, as a terminal would send it.
pub fn event(key: KeyCombination) -> KeyEvent {
    KeyEvent::new(*key.codes.first(), key.modifiers)
}

/// The name of a key as it is shown and written in a configuration: `S`, `ctrl-p`, `space`.
pub fn name(key: KeyCombination) -> String {
    let plain = key.modifiers.difference(KeyModifiers::SHIFT).is_empty();
    match key.codes {
        OneToThree::One(KeyCode::Char(c)) if plain && c != ' ' => c.to_string(),
        OneToThree::One(KeyCode::BackTab) => "shift-tab".to_owned(),
        _ => key.to_string().to_lowercase(),
    }
}

fn normal(key: KeyCombination) -> KeyCombination {
    let mut key = key.normalized();
    if let OneToThree::One(KeyCode::Char(c)) = key.codes {
        // Shift is how a '?' or a 'É' was typed, not what was typed; crokey treats ASCII letters alone.
        if c.is_uppercase() {
            key.modifiers.insert(KeyModifiers::SHIFT);
        } else {
            key.modifiers.remove(KeyModifiers::SHIFT);
        }
    }
    if key.codes == OneToThree::One(KeyCode::BackTab) {
        key.modifiers = KeyModifiers::SHIFT;
    }
    key
}
