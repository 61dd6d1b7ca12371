//! The screen as a vector picture that any browser shows the same way.
//!
//! Cells have whole-number sizes and edges are crisp, so that no hairline shows between them. Borders and blocks are
//! shapes, not letters: they join whatever font is there. The font is named, not embedded.

use std::fmt::Write;

use ratatui::{
    buffer::Buffer,
    style::{Color, Modifier, Style},
};

use super::{Run, has, runs, shapes};
use crate::ui::theme::{Rgb, Theme, rgb};

/// Width of a cell in pixels.
pub(super) const CELL_WIDTH: u32 = 9;
/// Height of a cell in pixels.
pub(super) const CELL_HEIGHT: u32 = 19;
/// Where letters stand, from the top of their cell.
const BASELINE: u32 = 14;
/// The size at which a letter of Hack (1233 of 2048 units wide) is as wide as a cell.
const FONT_SIZE: &str = "14.949";
/// Room around the screen.
const MARGIN: u32 = 6;

/// How heavy letters are made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bold {
    /// By the font's bold cut.
    Cut,
    /// By an outline, where there is only one cut.
    Outline,
}

/// The screen as SVG.
pub fn svg(buffer: &Buffer, theme: &Theme) -> String {
    draw(buffer, theme, Bold::Cut)
}

/// Width and height of the picture in pixels.
pub(super) fn size(buffer: &Buffer) -> (u32, u32) {
    let width = u32::from(buffer.area.width) * CELL_WIDTH + 2 * MARGIN;
    (width, u32::from(buffer.area.height) * CELL_HEIGHT + 2 * MARGIN)
}

// Writing to a string does not fail: the results of `write!` below carry nothing.
pub(super) fn draw(buffer: &Buffer, theme: &Theme, bold: Bold) -> String {
    let (width, height) = size(buffer);
    let (back, _) = colors(theme.text, theme);
    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="Hack, 'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace" font-size="{FONT_SIZE}" xml:space="preserve">"#
    );
    let _ = writeln!(out, r#"<rect width="{width}" height="{height}" fill="{}"/>"#, hex(back));
    let _ = writeln!(out, r#"<g transform="translate({MARGIN} {MARGIN})">"#);
    let rows: Vec<(u32, Vec<Run>)> =
        (0u32..).zip(buffer.area.top()..buffer.area.bottom()).map(|(row, y)| (row, runs(buffer, y))).collect();
    out.push_str("<g shape-rendering=\"crispEdges\">\n");
    for (row, runs) in &rows {
        backgrounds(&mut out, row * CELL_HEIGHT, runs, theme, back);
    }
    out.push_str("</g>\n");
    for (row, runs) in &rows {
        for run in runs {
            foreground(&mut out, row * CELL_HEIGHT, run, theme, bold);
        }
    }
    out.push_str("</g>\n</svg>\n");
    out
}

/// The backgrounds of a row that are not the picture's own; neighbours of one colour become one rectangle.
fn backgrounds(out: &mut String, y: u32, runs: &[Run], theme: &Theme, back: Rgb) {
    let mut runs = runs.iter().map(|run| (colors(run.style, theme).0, run)).peekable();
    while let Some((color, run)) = runs.next() {
        let mut width = u32::from(run.width);
        while let Some((_, next)) = runs.next_if(|(next, _)| *next == color) {
            width += u32::from(next.width);
        }
        if color != back {
            let (x, width) = (u32::from(run.x) * CELL_WIDTH, width * CELL_WIDTH);
            let fill = hex(color);
            let _ = writeln!(out, r#"<rect x="{x}" y="{y}" width="{width}" height="{CELL_HEIGHT}" fill="{fill}"/>"#);
        }
    }
}

/// The letters, shapes and lines of a run.
fn foreground(out: &mut String, y: u32, run: &Run, theme: &Theme, bold: Bold) {
    let (_, color) = colors(run.style, theme);
    let color = hex(color);
    let left = u32::from(run.x);
    if run.width == 2 {
        words(out, left, y, &run.text, 2, &color, run.style, bold);
    } else {
        // Letters between blanks and shapes go together; a single blank stays inside.
        let characters: Vec<char> = run.text.chars().collect();
        let mut place = 0;
        while let Some(&first) = characters.get(place) {
            let same = characters.iter().skip(place).take_while(|&&c| c == first).count();
            let x = left + place as u32;
            if first == ' ' {
                place += same;
            } else if let Some(shape) = shapes::shape(first) {
                shape.draw(out, x * CELL_WIDTH, y, same as u32, &color);
                place += same;
            } else {
                let word: String =
                    characters.iter().skip(place).take_while(|&&c| c != ' ' && shapes::shape(c).is_none()).collect();
                let length = word.chars().count();
                words(out, x, y, &word, length as u32, &color, run.style, bold);
                place += length;
            }
        }
    }
    for (modifier, height) in [(Modifier::UNDERLINED, BASELINE + 2), (Modifier::CROSSED_OUT, BASELINE - 4)] {
        if has(run.style, modifier) {
            let (x, y, width) = (left * CELL_WIDTH, y + height, u32::from(run.width) * CELL_WIDTH);
            let _ = writeln!(
                out,
                r#"<rect x="{x}" y="{y}" width="{width}" height="1" fill="{color}" shape-rendering="crispEdges"/>"#
            );
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "one letter's worth of SVG attributes")]
fn words(out: &mut String, column: u32, y: u32, word: &str, cells: u32, color: &str, style: Style, bold: Bold) {
    let weight = match (has(style, Modifier::BOLD), bold) {
        (false, _) => String::new(),
        (true, Bold::Cut) => r#" font-weight="bold""#.to_owned(),
        (true, Bold::Outline) => format!(r#" stroke="{color}" stroke-width="0.45""#),
    };
    let slant = if has(style, Modifier::ITALIC) { r#" font-style="italic""# } else { "" };
    let (x, y, length) = (column * CELL_WIDTH, y + BASELINE, cells * CELL_WIDTH);
    let _ = writeln!(
        out,
        r#"<text x="{x}" y="{y}" textLength="{length}" fill="{color}"{weight}{slant}>{}</text>"#,
        escape(word)
    );
}

/// Text as XML holds it.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// Background and foreground as they look: the theme's where the style has the terminal's own, swapped in reverse video.
fn colors(style: Style, theme: &Theme) -> (Rgb, Rgb) {
    let (canvas_bg, canvas_fg) = theme.canvas;
    let resolve = |color: Option<Color>, own: Rgb| color.and_then(rgb).unwrap_or(own);
    let (mut bg, mut fg) = (resolve(style.bg, canvas_bg), resolve(style.fg, canvas_fg));
    if has(style, Modifier::REVERSED) {
        std::mem::swap(&mut bg, &mut fg);
    }
    if has(style, Modifier::DIM) {
        let mix = |fg: u8, bg: u8| ((u16::from(fg) * 2 + u16::from(bg)) / 3) as u8;
        fg = Rgb(mix(fg.0, bg.0), mix(fg.1, bg.1), mix(fg.2, bg.2));
    }
    (bg, fg)
}

fn hex(Rgb(r, g, b): Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}
