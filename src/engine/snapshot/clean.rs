//! Guest strings made fit for a terminal.
//!
//! What a terminal does with a character is told by the tables of the Unicode Character Database, not by lists of blocks:
//! its general category (UAX #44) says what is a control, a format character, a mark or nothing at all, and its width in
//! columns (UAX #11, as `unicode-width` has it) what a terminal moves on by. A string is fit when every column of it can be
//! told from its characters alone, so nothing is left that changes the width of what stands beside it.

use unicode_properties::{EmojiStatus, GeneralCategory, GeneralCategoryGroup, UnicodeEmoji, UnicodeGeneralCategory};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What stands for a character that is not shown.
const STAND_IN: char = '\u{fffd}';
/// As far back as a character can change the width of another one: its base, a mark, and itself.
const CONTEXT: usize = 3;

/// Makes a string that came out of the guest fit for a terminal and for export, and keeps no more than `limit` characters.
///
/// Controls become their pictures (U+2400 on). A stand-in (U+FFFD) takes the place of format characters, so of what is
/// bidirectional, joins or hides; of line and paragraph separators; of what is private or not assigned; of every mark
/// without a column but the first one in a cell; and of what would change the width of another character.
pub fn clean(text: &str, limit: usize) -> String {
    if is_plain(text, limit) {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut context = Context::default();
    for (count, c) in text.chars().enumerate() {
        if count == limit {
            out.push('…');
            break;
        }
        out.push(context.fit(c));
    }
    out
}

/// The same for text that is there already; where it is fit, nothing is copied.
pub fn cleaned(text: String, limit: usize) -> String {
    if is_plain(&text, limit) { text } else { clean(&text, limit) }
}

/// The same for text of several lines, whatever their length: line breaks stay.
pub fn clean_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.split('\n').enumerate() {
        if number > 0 {
            out.push('\n');
        }
        if is_plain(line, usize::MAX) {
            out.push_str(line);
        } else {
            out.push_str(&clean(line, usize::MAX));
        }
    }
    out
}

/// Whether a text has nothing but what ASCII prints.
fn is_plain(text: &str, limit: usize) -> bool {
    text.len() <= limit && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// The characters that came last.
#[derive(Default)]
struct Context {
    last: [Option<char>; CONTEXT],
    /// Whether the last one has a cell in which there is no mark yet.
    is_base: bool,
}

impl Context {
    /// What is shown of the next character.
    fn fit(&mut self, c: char) -> char {
        let c = match c {
            '\0'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or(STAND_IN),
            '\u{7f}' => '\u{2421}',
            ' '..='~' => c,
            c if self.is_fit(c) => c,
            _ => STAND_IN,
        };
        // A stand-in says enough, with marks on it it would look like something.
        self.is_base = c != STAND_IN && c.width().is_some_and(|width| width > 0);
        self.last.rotate_left(1);
        if let Some(last) = self.last.last_mut() {
            *last = Some(c);
        }
        c
    }

    fn is_fit(&self, c: char) -> bool {
        if !is_printable(c) || is_invisible(c) || is_part_of_emoji(c) {
            return false;
        }
        let has_place = match c.width() {
            Some(0) => is_mark(c) && self.is_base,
            // Marks with a column of their own still belong to what is before them.
            Some(_) => !is_mark(c) || self.last.last().is_some_and(|last| last.is_some_and(|last| last != STAND_IN)),
            None => false,
        };
        has_place && self.is_as_wide_as_its_parts(c)
    }

    /// Whether nothing changes its width for this character: ligatures, syllables and pictures are made of several.
    fn is_as_wide_as_its_parts(&self, c: char) -> bool {
        let together: String = self.last.iter().flatten().copied().chain([c]).collect();
        together.width() == together.chars().map(|c| c.width().unwrap_or(0)).sum::<usize>()
    }
}

/// Whether a character has a shape of its own that does not depend on who shows it.
fn is_printable(c: char) -> bool {
    use GeneralCategory::{LineSeparator, ParagraphSeparator};
    let category = c.general_category();
    // Controls, format characters, surrogates, private use, not assigned.
    c.general_category_group() != GeneralCategoryGroup::Other && !matches!(category, LineSeparator | ParagraphSeparator)
}

fn is_mark(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Mark
}

/// Letters and marks that show nothing, though they may take columns or change what is shown: what of
/// Default_Ignorable_Code_Point (`DerivedCoreProperties.txt`, a set that is hardly ever added to) its category does not tell.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180d}' | '\u{180f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}')
}

/// Whether a character is only a part of pictures (Emoji_Component, UTS #51): letters of flags, shades of skin. How wide
/// they are together is up to the font.
fn is_part_of_emoji(c: char) -> bool {
    let status = c.emoji_status();
    let is_component = matches!(
        status,
        EmojiStatus::EmojiPresentationAndModifierAndEmojiComponent
            | EmojiStatus::EmojiPresentationAndEmojiComponent
            | EmojiStatus::EmojiOtherAndEmojiComponent
            | EmojiStatus::NonEmojiButEmojiComponent
    );
    is_component && !c.is_ascii()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn clean_leaves_nothing_that_moves_a_terminal() {
        assert_eq!(clean("lsass.exe", 64), "lsass.exe");
        assert_eq!(clean("\x1b[31mred\x07\x7f", 64), "␛[31mred␇␡");
        assert_eq!(clean("a\u{202e}b\u{200b}c\u{9b}d", 64), "a\u{fffd}b\u{fffd}c\u{fffd}d");
        assert_eq!(clean("abcdef", 3), "abc…");
        assert_eq!(clean("abc", 3), "abc");
    }

    #[test]
    fn names_in_any_script_stay_readable() {
        for name in
            ["müßig", "日本語", "файл", "αρχείο", "קובץ", "فایل", "ไฟล์", "हिंदी", "한글", "🦀 crab", "e\u{301}t\u{e9}"]
        {
            assert_eq!(clean(name, 64), name);
        }
    }

    #[test]
    fn what_plays_with_widths_is_not_shown() {
        // Marks upon marks, and one upon nothing.
        assert_eq!(clean("ก็็็็x", 64), "ก็\u{fffd}\u{fffd}\u{fffd}x");
        assert_eq!(clean("\u{301}x", 64), "\u{fffd}x");
        // Tags, variation selectors, a joiner, a shade of skin, a flag, a keycap, fillers, a syllable in parts.
        for hidden in [
            "a\u{e0041}",
            "❤\u{fe0f}",
            "☔\u{fe0e}",
            "a\u{e0100}",
            "👩\u{200d}",
            "👩\u{1f3ff}",
            "\u{1f1e9}",
            "1\u{20e3}\u{fe0f}",
            "\u{3164}",
            "\u{115f}",
            "\u{ffa0}",
            "가\u{11a8}",
            "a\u{34f}",
            "\u{e000}",
            "\u{fdd0}",
            "\u{2028}",
            "\u{feff}",
            "\u{10ffff}",
            "\u{378}",
            "\u{600}",
            "\u{110bd}",
            "\u{fff9}",
            "\u{1d173}",
        ] {
            assert!(clean(hidden, 64).contains(STAND_IN), "{hidden:?}");
        }
    }

    #[test]
    fn every_character_by_itself_takes_its_columns() {
        for c in '\0'..=char::MAX {
            let clean = clean(c.encode_utf8(&mut [0; 4]), 1);
            let mut left = clean.chars();
            let shown = left.next().and_then(UnicodeWidthChar::width);
            assert!(left.next().is_none() && shown.is_some_and(|width| width > 0), "{c:?} is shown as {clean:?}");
        }
    }

    fn any_text() -> impl Strategy<Value = String> {
        let near = |from: u32, to: u32| (from..to).prop_map(|c| char::from_u32(c).unwrap_or(' '));
        let c = prop_oneof![
            4 => any::<char>(),
            // Where marks, ligatures, syllables and pictures are.
            2 => near(0x300, 0x370), 2 => near(0x5d0, 0x700), 1 => near(0x900, 0xe80), 1 => near(0x1100, 0x1200),
            2 => near(0x1780, 0x17e0), 1 => near(0x1a00, 0x1a20), 2 => near(0x2000, 0x2070), 1 => near(0x20d0, 0x2d80),
            1 => near(0xa4d0, 0xa500), 1 => near(0xac00, 0xac40), 1 => near(0xfe00, 0xfe10), 1 => near(0x10c00, 0x10c50),
            1 => near(0x16d40, 0x16d80), 3 => near(0x1f1e0, 0x1f680), 1 => near(0xe0000, 0xe0200), 1 => near(0x20, 0x80),
        ];
        prop::collection::vec(c, 0..24).prop_map(|text| text.into_iter().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8192, failure_persistence: None, ..ProptestConfig::default() })]

        /// Every column of a cleaned string is told by its characters, and none of them does anything but stand there.
        #[test]
        fn a_cleaned_string_is_as_wide_as_its_cells(text in any_text(), limit in 0usize..32) {
            let clean = clean(&text, limit);
            let cells: usize = clean.chars().map(|c| c.width().unwrap_or(99)).sum();
            prop_assert_eq!(clean.width(), cells, "{:?} of {:?}", clean, text);
            prop_assert!(clean.chars().count() <= limit + 1);
            let mut is_base = false;
            for c in clean.chars() {
                let group = c.general_category_group();
                prop_assert!(group != GeneralCategoryGroup::Other, "{:?}", c);
                let is_separator = matches!(c, '\u{2028}' | '\u{2029}');
                prop_assert!(!is_separator);
                let is_mark = group == GeneralCategoryGroup::Mark;
                let has_column = c.width().is_some_and(|width| width > 0);
                prop_assert!(has_column || (is_mark && is_base), "more than one mark in a cell of {:?}", clean);
                is_base = has_column;
            }
            prop_assert_eq!(super::clean(&clean, usize::MAX), clean, "cleaning twice changes nothing more");
        }
    }
}
