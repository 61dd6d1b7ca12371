//! The screen as text with escape sequences for colours and attributes: what `cat` shows in a terminal.

use std::fmt::Write;

use ratatui::{
    buffer::Buffer,
    style::{Color, Modifier, Style},
};

use super::{has, runs};

/// The screen as ANSI text (ECMA-48 SGR, 24-bit colours where the theme has them). The terminal's own colours stay its own.
pub fn ansi(buffer: &Buffer) -> String {
    let mut out = String::new();
    for y in buffer.area.top()..buffer.area.bottom() {
        for run in runs(buffer, y) {
            select(&mut out, run.style);
            out.push_str(&run.text);
        }
        out.push_str("\x1b[0m\n");
    }
    out
}

const ATTRIBUTES: [(Modifier, u8); 6] = [
    (Modifier::BOLD, 1),
    (Modifier::DIM, 2),
    (Modifier::ITALIC, 3),
    (Modifier::UNDERLINED, 4),
    (Modifier::REVERSED, 7),
    (Modifier::CROSSED_OUT, 9),
];

fn select(out: &mut String, style: Style) {
    out.push_str("\x1b[0");
    for (modifier, code) in ATTRIBUTES {
        if has(style, modifier) {
            // Writing to a string does not fail.
            let _ = write!(out, ";{code}");
        }
    }
    color(out, style.fg, 30);
    color(out, style.bg, 40);
    out.push('m');
}

/// Appends the parameters for a colour; `base` is 30 for the foreground, 40 for the background.
fn color(out: &mut String, color: Option<Color>, base: u8) {
    let plain = |index: u8| format!(";{}", base + index);
    let bright = |index: u8| format!(";{}", base + 60 + index);
    out.push_str(&match color {
        None | Some(Color::Reset) => return,
        Some(Color::Rgb(r, g, b)) => format!(";{};2;{r};{g};{b}", base + 8),
        Some(Color::Indexed(index)) => format!(";{};5;{index}", base + 8),
        Some(Color::Black) => plain(0),
        Some(Color::Red) => plain(1),
        Some(Color::Green) => plain(2),
        Some(Color::Yellow) => plain(3),
        Some(Color::Blue) => plain(4),
        Some(Color::Magenta) => plain(5),
        Some(Color::Cyan) => plain(6),
        Some(Color::Gray) => plain(7),
        Some(Color::DarkGray) => bright(0),
        Some(Color::LightRed) => bright(1),
        Some(Color::LightGreen) => bright(2),
        Some(Color::LightYellow) => bright(3),
        Some(Color::LightBlue) => bright(4),
        Some(Color::LightMagenta) => bright(5),
        Some(Color::LightCyan) => bright(6),
        Some(Color::White) => bright(7),
    });
}
