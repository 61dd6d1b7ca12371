//! One walk over a finished screen for all pictures that are drawn, so that each shows the same.
//!
//! Cells have whole-number sizes and edges are crisp, so that no hairline shows between them. Borders and blocks are
//! shapes, not letters: they join whatever the font.

use ratatui::{
    buffer::Buffer,
    style::{Color, Modifier, Style},
};
use unicode_width::UnicodeWidthChar;

use super::{Run, has, runs, shapes};
use crate::ui::theme::{Rgb, Theme, rgb};

/// Width of a cell in pixels.
pub(super) const CELL_WIDTH: u32 = 9;
/// Height of a cell in pixels.
pub(super) const CELL_HEIGHT: u32 = 19;
/// Where letters stand, from the top of their cell.
pub(super) const BASELINE: u32 = 14;
/// Room around the screen.
pub(super) const MARGIN: u32 = 6;

/// A part of the screen in pixels, from its top left corner, the margin not counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

/// Letters in a row: one in each cell, or a single wide one in two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<'a> {
    /// The left edge of the first cell.
    pub x: u32,
    /// The top of the cells.
    pub y: u32,
    pub text: &'a str,
    /// Cells that it fills.
    pub cells: u32,
    pub bold: bool,
    pub italic: bool,
}

/// What a screen is drawn on.
pub(super) trait Surface {
    /// The background of cells. All backgrounds are below everything else.
    fn background(&mut self, area: Area, color: Rgb);
    /// A filled rectangle, `opacity` percent opaque.
    fn rect(&mut self, area: Area, color: Rgb, opacity: u32);
    /// A thin quarter circle in the cell at (`x`, `y`); see [`shapes::Shape::Corner`].
    fn corner(&mut self, x: u32, y: u32, down: bool, right: bool, color: Rgb);
    /// Letters.
    fn word(&mut self, word: Word<'_>, color: Rgb);
}

/// Width and height of the picture in pixels.
pub(super) fn size(buffer: &Buffer) -> (u32, u32) {
    let width = u32::from(buffer.area.width) * CELL_WIDTH + 2 * MARGIN;
    (width, u32::from(buffer.area.height) * CELL_HEIGHT + 2 * MARGIN)
}

/// The color of the picture where no cell has one of its own.
pub(super) fn canvas(theme: &Theme) -> Rgb {
    colors(theme.text, theme).0
}

/// Draws all cells.
pub(super) fn draw(buffer: &Buffer, theme: &Theme, on: &mut impl Surface) {
    let back = canvas(theme);
    for (row, y) in (0u32..).zip(buffer.area.top()..buffer.area.bottom()) {
        let runs = runs(buffer, y);
        backgrounds(on, row * CELL_HEIGHT, &runs, theme, back);
        for run in &runs {
            foreground(on, row * CELL_HEIGHT, run, theme);
        }
    }
}

/// The backgrounds of a row that are not the picture's own; neighbours of one color become one rectangle.
fn backgrounds(on: &mut impl Surface, y: u32, runs: &[Run], theme: &Theme, back: Rgb) {
    let mut runs = runs.iter().map(|run| (colors(run.style, theme).0, run)).peekable();
    while let Some((color, run)) = runs.next() {
        let mut width = u32::from(run.width);
        while let Some((_, next)) = runs.next_if(|(next, _)| *next == color) {
            width += u32::from(next.width);
        }
        if color != back {
            let x = u32::from(run.x) * CELL_WIDTH;
            on.background(Area { x, y, width: width * CELL_WIDTH, height: CELL_HEIGHT }, color);
        }
    }
}

/// The letters, shapes and lines of a run.
fn foreground(on: &mut impl Surface, y: u32, run: &Run, theme: &Theme) {
    let (_, color) = colors(run.style, theme);
    let left = u32::from(run.x) * CELL_WIDTH;
    let (bold, italic) = (has(run.style, Modifier::BOLD), has(run.style, Modifier::ITALIC));
    if run.width == 2 {
        on.word(Word { x: left, y, text: &run.text, cells: 2, bold, italic }, color);
    } else {
        let mut x = left;
        let mut rest = run.text.as_str();
        while let Some(first) = rest.chars().next() {
            // Letters between blanks and shapes go together.
            let shape = shapes::shape(first);
            let end = if first == ' ' || shape.is_some() {
                rest.find(|c| c != first)
            } else {
                rest.find(|c| c == ' ' || shapes::shape(c).is_some())
            };
            let (text, after) = rest.split_at(end.unwrap_or(rest.len()));
            let cells = text.chars().map(|c| c.width().unwrap_or(0) as u32).sum();
            match shape {
                Some(shape) => shape.draw(on, x, y, cells, color),
                None if first == ' ' => {}
                None => on.word(Word { x, y, text, cells, bold, italic }, color),
            }
            x += cells * CELL_WIDTH;
            rest = after;
        }
    }
    for (modifier, height) in [(Modifier::UNDERLINED, BASELINE + 2), (Modifier::CROSSED_OUT, BASELINE - 4)] {
        if has(run.style, modifier) {
            let width = u32::from(run.width) * CELL_WIDTH;
            on.rect(Area { x: left, y: y + height, width, height: 1 }, color, 100);
        }
    }
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
