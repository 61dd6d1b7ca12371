//! Borders and blocks as shapes: drawn from edge to edge of their cell, so that they join.

use super::draw::{Area, CELL_HEIGHT, CELL_WIDTH, Surface};
use crate::ui::theme::Rgb;

/// The middle of a cell, where lines run.
const MIDDLE: (u32, u32) = (CELL_WIDTH / 2, CELL_HEIGHT / 2);

/// How a character is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Lines from the middle to the edges: up, right, down, left; 0 none, 1 thin, 2 heavy.
    Lines([u32; 4]),
    /// A quarter circle that joins two edges: whether it opens downwards, whether to the right.
    Corner { down: bool, right: bool },
    /// A filled part of the cell in eighths of it: left, top, width, height.
    Block([u32; 4]),
    /// The whole cell, so many percent opaque.
    Shade(u32),
}

/// The shape of a character, `None` for what is a letter.
pub(super) fn shape(c: char) -> Option<Shape> {
    Some(match c {
        '─' => Shape::Lines([0, 1, 0, 1]),
        '│' => Shape::Lines([1, 0, 1, 0]),
        '━' => Shape::Lines([0, 2, 0, 2]),
        '┃' => Shape::Lines([2, 0, 2, 0]),
        '┌' => Shape::Lines([0, 1, 1, 0]),
        '┐' => Shape::Lines([0, 0, 1, 1]),
        '└' => Shape::Lines([1, 1, 0, 0]),
        '┘' => Shape::Lines([1, 0, 0, 1]),
        '├' => Shape::Lines([1, 1, 1, 0]),
        '┤' => Shape::Lines([1, 0, 1, 1]),
        '┬' => Shape::Lines([0, 1, 1, 1]),
        '┴' => Shape::Lines([1, 1, 0, 1]),
        '┼' => Shape::Lines([1, 1, 1, 1]),
        '╭' => Shape::Corner { down: true, right: true },
        '╮' => Shape::Corner { down: true, right: false },
        '╰' => Shape::Corner { down: false, right: true },
        '╯' => Shape::Corner { down: false, right: false },
        '▁'..='█' => {
            let eighths = c as u32 - '▁' as u32 + 1;
            Shape::Block([0, 8 - eighths, 8, eighths])
        }
        '▉'..='▏' => Shape::Block([0, 0, 7 - (c as u32 - '▉' as u32), 8]),
        '▀' => Shape::Block([0, 0, 8, 4]),
        '▐' => Shape::Block([4, 0, 4, 8]),
        '░' => Shape::Shade(25),
        '▒' => Shape::Shade(50),
        '▓' => Shape::Shade(75),
        _ => return None,
    })
}

impl Shape {
    /// Draws the character `count` times from the cell at (`x`, `y`) to the right.
    pub(super) fn draw(self, on: &mut impl Surface, x: u32, y: u32, count: u32, color: Rgb) {
        match self {
            // What reaches from side to side joins into one.
            Self::Lines([0, right, 0, left]) if right == left => {
                on.rect(Area { x, y: y + MIDDLE.1, width: CELL_WIDTH * count, height: right }, color, 100);
            }
            Self::Block([0, top, 8, height]) => {
                let top_px = top * CELL_HEIGHT / 8;
                let height = (top + height) * CELL_HEIGHT / 8 - top_px;
                on.rect(Area { x, y: y + top_px, width: CELL_WIDTH * count, height }, color, 100);
            }
            Self::Shade(percent) => {
                on.rect(Area { x, y, width: CELL_WIDTH * count, height: CELL_HEIGHT }, color, percent);
            }
            shape => (0..count).for_each(|nth| shape.draw_one(on, x + nth * CELL_WIDTH, y, color)),
        }
    }

    fn draw_one(self, on: &mut impl Surface, x: u32, y: u32, color: Rgb) {
        let (mx, my) = MIDDLE;
        let mut rect = |x, y, width, height| on.rect(Area { x, y, width, height }, color, 100);
        match self {
            Self::Lines([up, right, down, left]) => {
                let vertical = up.max(down);
                if up > 0 && down > 0 {
                    rect(x + mx, y, up, CELL_HEIGHT);
                } else if up > 0 {
                    rect(x + mx, y, up, my + 1);
                } else if down > 0 {
                    rect(x + mx, y + my, down, CELL_HEIGHT - my);
                }
                if left > 0 {
                    rect(x, y + my, mx + vertical.min(1), left);
                }
                if right > 0 {
                    rect(x + mx, y + my, CELL_WIDTH - mx, right);
                }
            }
            Self::Corner { down, right } => on.corner(x, y, down, right, color),
            Self::Block([left, top, width, height]) => {
                let (left_px, right_px) = (left * CELL_WIDTH / 8, ((left + width) * CELL_WIDTH).div_ceil(8));
                let (top_px, bottom_px) = (top * CELL_HEIGHT / 8, (top + height) * CELL_HEIGHT / 8);
                rect(x + left_px, y + top_px, right_px - left_px, bottom_px - top_px);
            }
            // Drawn whole above.
            Self::Shade(_) => {}
        }
    }
}
