//! Pictures of a finished screen: plain text, ANSI, SVG, PNG. All start from ratatui's `Buffer`, so that a picture
//! shows exactly what the terminal got; colours that are the terminal's own are taken from the theme.
//!
//! No picture holds a control character other than line ends and, in ANSI, the sequences that set colours.

mod ansi;
mod draw;
mod pixels;
mod png;
mod shapes;
mod svg;

use ratatui::{
    buffer::{Buffer, Cell},
    layout::Position,
    style::{Modifier, Style},
};
use unicode_width::UnicodeWidthStr;

pub use self::{ansi::ansi, png::png, svg::svg};
use crate::engine::snapshot::clean;

/// The screen as text, one line per row, blanks at line ends left out.
pub fn text(buffer: &Buffer) -> String {
    let mut out = String::new();
    for y in buffer.area.top()..buffer.area.bottom() {
        for glyph in glyphs(buffer, y) {
            out.push_str(&glyph.text);
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

/// What stands in one cell, or in two when it is a wide character.
struct Glyph {
    /// Column.
    x: u16,
    /// Columns that it takes, 1 or 2.
    width: u16,
    /// The character, clean.
    text: String,
    /// Its style.
    style: Style,
}

/// The glyphs of one row, left to right. Each column is covered once.
fn glyphs(buffer: &Buffer, y: u16) -> impl Iterator<Item = Glyph> {
    let (left, right) = (buffer.area.left(), buffer.area.right());
    let mut x = left;
    std::iter::from_fn(move || {
        if x >= right {
            return None;
        }
        let cell = buffer.cell(Position { x, y })?;
        let (text, width) = symbol(cell, right - x);
        let glyph = Glyph { x: x - left, width, text, style: cell.style() };
        x += width;
        Some(glyph)
    })
}

fn symbol(cell: &Cell, room: u16) -> (String, u16) {
    let symbol = cell.symbol();
    if let [b' '..=b'~'] = symbol.as_bytes() {
        return (symbol.to_owned(), 1);
    }
    let text = clean(symbol, 8);
    match text.width() {
        0 => (" ".to_owned(), 1),
        1 => (text, 1),
        _ if room >= 2 => (text, 2),
        _ => (" ".to_owned(), 1),
    }
}

/// A stretch of one row in one style.
struct Run {
    x: u16,
    width: u16,
    text: String,
    style: Style,
}

/// The runs of one row: neighbours of equal style become one; a wide character is a run of its own.
fn runs(buffer: &Buffer, y: u16) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut open = false;
    for glyph in glyphs(buffer, y) {
        match runs.last_mut() {
            Some(run) if open && glyph.width == 1 && run.style == glyph.style => {
                run.text.push_str(&glyph.text);
                run.width += 1;
            }
            _ => runs.push(Run { x: glyph.x, width: glyph.width, text: glyph.text, style: glyph.style }),
        }
        open = glyph.width == 1;
    }
    runs
}

/// Whether a style has an attribute.
fn has(style: Style, modifier: Modifier) -> bool {
    style.add_modifier.contains(modifier)
}
