//! A picture of pixels, and how the screen is drawn on it.

use std::collections::HashMap;

use ab_glyph_rasterizer::{Point, Rasterizer, point};
use ttf_parser::{Face, GlyphId, OutlineBuilder};
use unicode_width::UnicodeWidthChar;

use super::draw::{Area, BASELINE, CELL_HEIGHT, CELL_WIDTH, MARGIN, Surface, Word};
use crate::ui::theme::Rgb;

/// How far a bold letter's outline is moved to each side, in pixels: the font has one cut only.
const BOLD: f32 = 0.225;
/// How far an italic letter leans: pixels to the right for each pixel up.
const SLANT: f32 = 0.2;
/// Letters may reach over their cell by as much as a cell on each side.
const BOX: (u32, u32) = (4 * CELL_WIDTH, 3 * CELL_HEIGHT);
/// Where the letter's cell is in its box.
const CELL: (u32, u32) = (CELL_WIDTH, CELL_HEIGHT);

/// Pixels, row by row, three bytes each: red, green, blue.
pub(super) struct Pixels {
    width: u32,
    height: u32,
    bytes: Vec<u8>,
    font: Font,
}

impl Pixels {
    /// A picture of one color; `None` when it is larger than memory.
    pub(super) fn new((width, height): (u32, u32), Rgb(r, g, b): Rgb, font: Font) -> Option<Self> {
        let pixels = (width as usize).checked_mul(height as usize)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(pixels.checked_mul(3)?).ok()?;
        bytes.extend(std::iter::repeat_n([r, g, b], pixels).flatten());
        Some(Self { width, height, bytes, font })
    }

    /// The pixels.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Mixes a color into a part of one row of the picture, margin included.
    fn blend_row(&mut self, x: u32, y: u32, coverage: impl Iterator<Item = f32>, Rgb(r, g, b): Rgb) {
        if x >= self.width || y >= self.height {
            return;
        }
        let start = (y as usize * self.width as usize + x as usize) * 3;
        let row = self.bytes.get_mut(start..start + (self.width - x) as usize * 3).unwrap_or_default();
        for (pixel, coverage) in row.as_chunks_mut::<3>().0.iter_mut().zip(coverage) {
            for (below, above) in pixel.iter_mut().zip([r, g, b]) {
                let mixed = f32::from(*below) + (f32::from(above) - f32::from(*below)) * coverage.clamp(0.0, 1.0);
                *below = (mixed + 0.5) as u8;
            }
        }
    }

    /// Mixes a color into the picture as far as a mask covers it. The mask's own corner may be left of or above it.
    fn blend(&mut self, (x, y): (i64, i64), mask: &Mask, color: Rgb) {
        let skipped = usize::try_from(-x).unwrap_or(0);
        let left = u32::try_from(x).unwrap_or(0);
        for (row, coverage) in mask.coverage.chunks(mask.width as usize).enumerate() {
            if let Ok(y) = u32::try_from(y + row as i64) {
                self.blend_row(left, y, coverage.iter().skip(skipped).copied(), color);
            }
        }
    }
}

impl Surface for Pixels {
    fn background(&mut self, area: Area, color: Rgb) {
        self.rect(area, color, 100);
    }

    fn rect(&mut self, area: Area, color: Rgb, opacity: u32) {
        for y in area.y..area.y + area.height {
            let coverage = std::iter::repeat_n(opacity as f32 / 100.0, area.width as usize);
            self.blend_row(area.x + MARGIN, y + MARGIN, coverage, color);
        }
    }

    fn corner(&mut self, x: u32, y: u32, down: bool, right: bool, color: Rgb) {
        let mask = corner(down, right);
        self.blend((i64::from(x + MARGIN), i64::from(y + MARGIN)), &mask, color);
    }

    fn word(&mut self, word: Word<'_>, color: Rgb) {
        let (mut x, y) = (i64::from(word.x + MARGIN), i64::from(word.y + MARGIN));
        let mut last = x;
        for c in word.text.chars() {
            let cells = c.width().unwrap_or(0) as u32;
            // A mark stands on the letter before it.
            let at = if cells == 0 { last } else { x };
            let mask = self.font.letter(Letter { c, bold: word.bold, italic: word.italic });
            let (left, top) = CELL;
            // A narrow glyph in a wide cell is the sign for a missing one: it stands in the middle.
            let middle = i64::from(cells.saturating_sub(1) * CELL_WIDTH / 2);
            self.blend((at - i64::from(left) + middle, y - i64::from(top)), &mask, color);
            last = at;
            x += i64::from(cells * CELL_WIDTH);
        }
    }
}

/// How much of each pixel is covered, 0 to 1, row by row.
struct Mask {
    width: u32,
    coverage: Vec<f32>,
}

impl Mask {
    fn of((width, height): (u32, u32), draw: impl FnOnce(&mut Rasterizer)) -> Self {
        let mut rasterizer = Rasterizer::new(width as usize, height as usize);
        draw(&mut rasterizer);
        let mut coverage = vec![0.0; width as usize * height as usize];
        rasterizer.for_each_pixel(|place, covered| {
            if let Some(pixel) = coverage.get_mut(place) {
                *pixel = covered;
            }
        });
        Self { width, coverage }
    }
}

/// A quarter circle of one pixel's width: straight from the cell's upper or lower edge, then bent to its side.
fn corner(down: bool, right: bool) -> Mask {
    let (width, height) = (CELL_WIDTH as f32, CELL_HEIGHT as f32);
    let (mx, my) = ((CELL_WIDTH / 2) as f32 + 0.5, (CELL_HEIGHT / 2) as f32 + 0.5);
    let edge = (mx, if down { height } else { 0.0 });
    let bend = (mx, if down { my + 4.5 } else { my - 4.5 });
    let side = (if right { width } else { 0.0 }, my);
    const STEPS: u8 = 8;
    let curve = (0..=STEPS).map(|step| {
        let t = f32::from(step) / f32::from(STEPS);
        let mix = |from: f32, by: f32, to: f32| (1.0 - t) * ((1.0 - t) * from + 2.0 * t * by) + t * t * to;
        (mix(bend.0, mx, side.0), mix(bend.1, my, side.1))
    });
    let line: Vec<(f32, f32)> = std::iter::once(edge).chain(curve).collect();
    // The line's two sides, half a pixel away from it.
    let sides: Vec<(Point, Point)> = (0..line.len())
        .filter_map(|nth| {
            let (at, before, after) =
                (line.get(nth)?, line.get(nth.saturating_sub(1))?, line.get(nth + 1).or(line.last())?);
            let (dx, dy) = (after.0 - before.0, after.1 - before.1);
            let half = 0.5 / dx.hypot(dy);
            let (nx, ny) = (-dy * half, dx * half);
            Some((point(at.0 + nx, at.1 + ny), point(at.0 - nx, at.1 - ny)))
        })
        .collect();
    Mask::of((CELL_WIDTH, CELL_HEIGHT), |rasterizer| {
        let outline: Vec<Point> =
            sides.iter().map(|side| side.0).chain(sides.iter().rev().map(|side| side.1)).map(inside).collect();
        for (from, to) in outline.iter().zip(outline.iter().cycle().skip(1)) {
            rasterizer.draw_line(*from, *to);
        }
    })
}

/// A point within a cell.
fn inside(at: Point) -> Point {
    point(at.x.clamp(0.0, CELL_WIDTH as f32), at.y.clamp(0.0, CELL_HEIGHT as f32))
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Letter {
    c: char,
    bold: bool,
    italic: bool,
}

/// A fixed-width font, and the letters that were drawn with it.
pub(super) struct Font {
    face: Face<'static>,
    /// Pixels for each unit of the font.
    scale: f32,
    drawn: HashMap<Letter, std::rc::Rc<Mask>>,
}

impl Font {
    /// The font in a TrueType file whose letters are made as wide as a cell.
    ///
    /// # Errors
    /// A sentence when it is not such a file.
    pub(super) fn new(file: &'static [u8]) -> Result<Self, String> {
        let face = Face::parse(file, 0).map_err(|error| format!("its font cannot be read: {error}"))?;
        let advance = face.glyph_index('m').and_then(|glyph| face.glyph_hor_advance(glyph)).filter(|&units| units > 0);
        let advance = advance.ok_or("its font has no letters")?;
        Ok(Self { face, scale: CELL_WIDTH as f32 / f32::from(advance), drawn: HashMap::new() })
    }

    fn letter(&mut self, letter: Letter) -> std::rc::Rc<Mask> {
        let Self { face, scale, drawn } = self;
        std::rc::Rc::clone(drawn.entry(letter).or_insert_with(|| std::rc::Rc::new(draw(face, *scale, letter))))
    }
}

/// A letter in its box; what the font does not have is its sign for that.
fn draw(face: &Face<'_>, scale: f32, letter: Letter) -> Mask {
    let glyph = face.glyph_index(letter.c).unwrap_or(GlyphId(0));
    let at = |dx: f32| {
        Mask::of(BOX, |rasterizer| {
            let mut outline = Outline {
                on: rasterizer,
                origin: point(CELL.0 as f32 + dx, (CELL.1 + BASELINE) as f32),
                scale,
                slant: if letter.italic { SLANT } else { 0.0 },
                first: point(0.0, 0.0),
                last: point(0.0, 0.0),
            };
            // A blank has no outline.
            let _ = face.outline_glyph(glyph, &mut outline);
        })
    };
    if !letter.bold {
        return at(0.0);
    }
    let (mut left, right) = (at(-BOLD), at(BOLD));
    for (pixel, other) in left.coverage.iter_mut().zip(right.coverage) {
        *pixel = pixel.max(other);
    }
    left
}

/// Draws a glyph's outline, which is in units of the font, upwards from the baseline.
struct Outline<'a> {
    on: &'a mut Rasterizer,
    origin: Point,
    scale: f32,
    slant: f32,
    first: Point,
    last: Point,
}

impl Outline<'_> {
    fn place(&self, x: f32, y: f32) -> Point {
        let (x, y) = (self.origin.x + (x + y * self.slant) * self.scale, self.origin.y - y * self.scale);
        point(x.clamp(0.0, BOX.0 as f32), y.clamp(0.0, BOX.1 as f32))
    }
}

impl OutlineBuilder for Outline<'_> {
    fn move_to(&mut self, x: f32, y: f32) {
        self.first = self.place(x, y);
        self.last = self.first;
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let to = self.place(x, y);
        self.on.draw_line(self.last, to);
        self.last = to;
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let (by, to) = (self.place(x1, y1), self.place(x, y));
        self.on.draw_quad(self.last, by, to);
        self.last = to;
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let (by, and, to) = (self.place(x1, y1), self.place(x2, y2), self.place(x, y));
        self.on.draw_cubic(self.last, by, and, to);
        self.last = to;
    }

    fn close(&mut self) {
        self.on.draw_line(self.last, self.first);
        self.last = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn font() -> Font {
        Font::new(epaint_default_fonts::HACK_REGULAR).expect("the font that is compiled in")
    }

    fn ink(c: char, bold: bool, italic: bool) -> f32 {
        font().letter(Letter { c, bold, italic }).coverage.iter().sum()
    }

    #[test]
    fn letters_have_ink_and_bold_ones_more() {
        let plain = ink('g', false, false);
        assert!(plain > 10.0 && ink('g', true, false) > plain * 1.2, "{plain}");
        assert_ne!(
            font().letter(Letter { c: 'l', bold: false, italic: true }).coverage,
            font().letter(Letter { c: 'l', bold: false, italic: false }).coverage
        );
        assert!((ink('l', false, true) / ink('l', false, false) - 1.0).abs() < 0.1, "leaning adds no ink");
        assert_eq!(ink(' ', true, true), 0.0);
        assert!(ink('\u{4e00}', false, false) > 10.0, "what the font does not have is shown as missing");
    }

    #[test]
    fn corners_join_the_lines_of_their_neighbours() {
        for (down, right) in [(true, true), (true, false), (false, true), (false, false)] {
            let coverage = corner(down, right).coverage;
            let at = |x: u32, y: u32| coverage[(y * CELL_WIDTH + x) as usize];
            let (edge_x, edge_y) = (if right { CELL_WIDTH - 1 } else { 0 }, if down { CELL_HEIGHT - 1 } else { 0 });
            assert!(at(CELL_WIDTH / 2, edge_y) > 0.95, "the vertical line, {down} {right}");
            assert!(at(edge_x, CELL_HEIGHT / 2) > 0.6, "the horizontal line, {down} {right}");
            assert!(at(CELL_WIDTH - 1 - edge_x, CELL_HEIGHT - 1 - edge_y) < 0.01, "nothing on the other side");
        }
    }

    #[test]
    fn what_reaches_out_of_the_picture_is_cut_off() {
        let mut pixels = Pixels::new((30, 30), Rgb(0, 0, 0), font()).expect("a small picture");
        let white = Rgb(255, 255, 255);
        pixels.rect(Area { x: 0, y: 5, width: 1_000, height: 2 }, white, 50);
        pixels.word(Word { x: 20, y: 20, text: "Wg\u{301}", cells: 2, bold: true, italic: true }, white);
        pixels.word(Word { x: 500, y: 500, text: "W", cells: 1, bold: false, italic: false }, white);
        let pixel = |x: usize, y: usize| &pixels.bytes()[(y * 30 + x) * 3..][..3];
        assert_eq!(pixel(29, 11), [128; 3]);
        assert_eq!(pixel(5, 11), [0; 3], "the margin's column is left of it");
        assert_eq!(pixel(29, 14), [0; 3], "and the row below is as it was");
    }
}
