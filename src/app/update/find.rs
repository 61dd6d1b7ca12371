//! What is typed to be searched for in memory, turned into patterns.

use crokey::KeyCombination;
use crossterm::event::KeyCode;

use super::{Effect, memory, popup};
use crate::{
    engine::{command::Pattern, snapshot::Snapshot},
    ui::state::{FindKind, Popup, UiState},
};

/// The longest pattern that is typed, in bytes.
const LONGEST: usize = 256;

/// A key while something to search for is typed.
pub(super) fn key(state: &mut UiState, snapshot: &Snapshot, key: KeyCombination, code: KeyCode) -> Vec<Effect> {
    let Some(Popup::Find(dialog)) = state.popups.last_mut() else { return Vec::new() };
    match code {
        KeyCode::Esc => {
            state.popups.pop();
        }
        KeyCode::Tab | KeyCode::BackTab => {
            dialog.kind = dialog.kind.next();
            dialog.error = None;
        }
        KeyCode::Enter => {
            let text = dialog.input.value().trim().to_owned();
            match patterns(dialog.kind, &text, snapshot) {
                Ok(patterns) => {
                    state.popups.pop();
                    return memory::search(state, text, patterns);
                }
                Err(why) => dialog.error = Some(why),
            }
        }
        _ => {
            dialog.error = None;
            popup::type_into(&mut dialog.input, key);
        }
    }
    Vec::new()
}

/// The patterns that a text stands for; the error is a sentence.
fn patterns(kind: FindKind, text: &str, snapshot: &Snapshot) -> Result<Vec<Pattern>, String> {
    if text.is_empty() {
        return Err("there is nothing to search for yet".into());
    }
    let exactly = |bytes: Vec<u8>| -> Pattern { bytes.into_iter().map(Some).collect() };
    let patterns = match kind {
        FindKind::Bytes => vec![bytes(text)?],
        FindKind::Text => {
            let wide = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            vec![exactly(text.as_bytes().to_vec()), exactly(wide)]
        }
        FindKind::Pointer => {
            let va = popup::resolve(text, snapshot)?;
            vec![exactly(va.0.to_le_bytes().to_vec())]
        }
    };
    if patterns.iter().any(|pattern| pattern.len() > LONGEST) {
        return Err(format!("that is more than {LONGEST} bytes: search for the beginning of it"));
    }
    Ok(patterns)
}

/// `48 8b ?? 05`, with or without blanks.
fn bytes(text: &str) -> Result<Pattern, String> {
    let wrong =
        || format!("'{text}' is not bytes: write two hexadecimal digits for each, ?? for any, as in 48 8b ?? 05");
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| match pair {
        ['?', '?'] => Ok(None),
        [high, low] => {
            let value = high.to_digit(16).zip(low.to_digit(16)).map(|(high, low)| (high * 16 + low) as u8);
            value.map(Some).ok_or_else(wrong)
        }
        _ => Err(wrong()),
    };
    let pattern: Pattern = digits.chunks(2).map(byte).collect::<Result<_, _>>()?;
    if pattern.iter().all(Option::is_none) {
        return Err("a search needs at least one byte that is not ??".into());
    }
    Ok(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_with_and_without_blanks() {
        let some = [Some(0x48), Some(0x8b), None, Some(0x05)];
        assert_eq!(bytes("48 8b ?? 05").as_deref(), Ok(some.as_slice()));
        assert_eq!(bytes("488B??05").as_deref(), Ok(some.as_slice()));
        for wrong in ["4", "4g", "48 8", "?? ??", "é1", "?1"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn text_is_searched_in_two_forms_and_a_pointer_in_memory_order() {
        let snapshot = Snapshot::default();
        let text = patterns(FindKind::Text, "ab", &snapshot).unwrap();
        assert_eq!(text, [vec![Some(b'a'), Some(b'b')], vec![Some(b'a'), Some(0), Some(b'b'), Some(0)]]);
        let pointer = patterns(FindKind::Pointer, "0x1234", &snapshot).unwrap();
        assert_eq!(pointer[0][..3], [Some(0x34), Some(0x12), Some(0)]);
        assert!(patterns(FindKind::Pointer, "nothing", &snapshot).is_err_and(|why| why.contains("'nothing'")));
        assert!(patterns(FindKind::Text, &"x".repeat(200), &snapshot).is_err());
    }
}
