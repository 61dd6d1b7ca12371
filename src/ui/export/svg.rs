//! The screen as a vector picture that any browser shows the same way. The font is named, not embedded.

use std::fmt::Write;

use ratatui::buffer::Buffer;

use super::draw::{Area, BASELINE, CELL_HEIGHT, CELL_WIDTH, MARGIN, Surface, Word, canvas, draw, size};
use crate::ui::theme::{Rgb, Theme};

/// The size at which a letter of Hack (1233 of 2048 units wide) is as wide as a cell.
const FONT_SIZE: &str = "14.949";

/// The screen as SVG.
// Writing to a string does not fail: the results of `write!` here carry nothing.
pub fn svg(buffer: &Buffer, theme: &Theme) -> String {
    let (width, height) = size(buffer);
    let mut parts = Svg::default();
    draw(buffer, theme, &mut parts);
    let mut out = String::new();
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="Hack, 'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace" font-size="{FONT_SIZE}" xml:space="preserve">"#
    );
    let _ = writeln!(out, r#"<rect width="{width}" height="{height}" fill="{}"/>"#, hex(canvas(theme)));
    let _ = writeln!(out, r#"<g transform="translate({MARGIN} {MARGIN})">"#);
    let _ = write!(out, "<g shape-rendering=\"crispEdges\">\n{}</g>\n", parts.backgrounds);
    let _ = write!(out, "{}</g>\n</svg>\n", parts.foregrounds);
    out
}

/// The elements of a picture.
#[derive(Default)]
struct Svg {
    backgrounds: String,
    foregrounds: String,
}

impl Surface for Svg {
    fn background(&mut self, area: Area, color: Rgb) {
        let Area { x, y, width, height } = area;
        let fill = hex(color);
        let _ =
            writeln!(self.backgrounds, r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>"#);
    }

    fn rect(&mut self, area: Area, color: Rgb, opacity: u32) {
        let Area { x, y, width, height } = area;
        let fill = hex(color);
        let opacity = if opacity < 100 { format!(r#" fill-opacity="0.{opacity:02}""#) } else { String::new() };
        let _ = writeln!(
            self.foregrounds,
            r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"{opacity} shape-rendering="crispEdges"/>"#
        );
    }

    fn corner(&mut self, x: u32, y: u32, down: bool, right: bool, color: Rgb) {
        let edge_y = if down { y + CELL_HEIGHT } else { y };
        let edge_x = if right { x + CELL_WIDTH } else { x };
        let bend = if down { y + CELL_HEIGHT / 2 + 5 } else { y + CELL_HEIGHT / 2 - 4 };
        let (cx, cy) = (f64::from(x + CELL_WIDTH / 2) + 0.5, f64::from(y + CELL_HEIGHT / 2) + 0.5);
        let color = hex(color);
        let _ = writeln!(
            self.foregrounds,
            r#"<path d="M{cx} {edge_y}V{bend}Q{cx} {cy} {edge_x} {cy}" fill="none" stroke="{color}"/>"#
        );
    }

    fn word(&mut self, word: Word<'_>, color: Rgb) {
        let weight = if word.bold { r#" font-weight="bold""# } else { "" };
        let slant = if word.italic { r#" font-style="italic""# } else { "" };
        let (x, y, length) = (word.x, word.y + BASELINE, word.cells * CELL_WIDTH);
        let (color, text) = (hex(color), escape(word.text));
        let _ = writeln!(
            self.foregrounds,
            r#"<text x="{x}" y="{y}" textLength="{length}" fill="{color}"{weight}{slant}>{text}</text>"#
        );
    }
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

fn hex(Rgb(r, g, b): Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}
