//! Guest strings made fit for a terminal.

/// Makes a string that came out of the guest fit for a terminal and for export: control, bidirectional and
/// zero-width characters become visible stand-ins, and no more than `limit` characters are kept.
pub fn clean(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == limit {
            out.push('…');
            break;
        }
        match c {
            '\0'..='\u{1f}' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
            '\u{7f}' => out.push('\u{2421}'),
            c if is_unprintable(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// C1 controls, format characters that reorder, hide or join (bidi, zero-width, tags, variation selectors), line and
/// paragraph separators, combining marks, private use and noncharacters.
fn is_unprintable(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{9f}' | '\u{ad}' | '\u{300}'..='\u{36f}' | '\u{483}'..='\u{489}' | '\u{61c}' | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{20d0}'..='\u{20ff}' | '\u{3164}' | '\u{e000}'..='\u{f8ff}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{fe20}'..='\u{fe2f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffc}' | '\u{fffe}'..='\u{ffff}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{10ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_leaves_nothing_that_moves_a_terminal() {
        assert_eq!(clean("lsass.exe", 64), "lsass.exe");
        assert_eq!(clean("\x1b[31mred\x07", 64), "␛[31mred␇");
        assert_eq!(clean("a\u{202e}b\u{200b}c\u{9b}d", 64), "a\u{fffd}b\u{fffd}c\u{fffd}d");
        assert_eq!(clean("abcdef", 3), "abc…");
    }
}
