//! The two forms in which a screen is kept for comparison: its text, and which style each cell has.

use std::fmt::Write;

use ratatui::{buffer::Buffer, style::Style};
use vmscope::ui::{export, theme::Theme};

/// Text within a frame, so that blanks at line ends would show.
pub fn text(buffer: &Buffer) -> String {
    export::text(buffer).lines().map(|line| format!("|{line}\n")).collect()
}

/// Styles: first what each letter stands for, by the names of the theme, then each row as runs (`12a 3b` is twelve cells
/// of style a and three of b); equal rows in a row are written once.
pub fn styles(buffer: &Buffer, theme: &Theme) -> String {
    let mut known: Vec<Style> = Vec::new();
    let mut rows: Vec<(String, usize)> = Vec::new();
    for y in buffer.area.top()..buffer.area.bottom() {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for x in buffer.area.left()..buffer.area.right() {
            let style = buffer[(x, y)].style();
            let letter = known.iter().position(|&s| s == style).unwrap_or_else(|| {
                known.push(style);
                known.len() - 1
            });
            match runs.last_mut() {
                Some((count, last)) if *last == letter => *count += 1,
                _ => runs.push((1, letter)),
            }
        }
        let row: Vec<String> = runs.into_iter().map(|(count, letter)| format!("{count}{}", name(letter))).collect();
        let row = row.join(" ");
        match rows.last_mut() {
            Some((last, times)) if *last == row => *times += 1,
            _ => rows.push((row, 1)),
        }
    }
    let mut out = String::new();
    for (letter, &style) in known.iter().enumerate() {
        writeln!(out, "{} = {}", name(letter), describe(style, theme)).unwrap();
    }
    for (row, times) in rows {
        let times = if times > 1 { format!("{times} × ") } else { String::new() };
        writeln!(out, "{times}{row}").unwrap();
    }
    out
}

fn name(letter: usize) -> String {
    let letters: Vec<char> = ('a'..='z').chain('A'..='Z').collect();
    let last = letters[letter % letters.len()];
    if letter < letters.len() { last.to_string() } else { format!("{}'", last) }
}

/// The first items of the theme with this foreground and this background, and the attributes.
fn describe(style: Style, theme: &Theme) -> String {
    let foreground = theme.items().find(|(_, item)| item.fg == style.fg).map_or("?", |(name, _)| name);
    let background = theme.items().find(|(_, item)| item.bg == style.bg).map_or("?", |(name, _)| name);
    let attributes = if style.add_modifier.is_empty() { String::new() } else { format!(" {:?}", style.add_modifier) };
    format!("{foreground} on {background}{attributes}")
}
