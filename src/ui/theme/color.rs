//! Colours as numbers: their names, their contrast, and the nearest one of fewer.

use ratatui::style::Color;

/// Red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rgb(pub u8, pub u8, pub u8);

/// The 16 ANSI colours as most terminals show them (xterm's values).
const SIXTEEN: [(Color, Rgb); 16] = [
    (Color::Black, Rgb(0, 0, 0)),
    (Color::Red, Rgb(205, 0, 0)),
    (Color::Green, Rgb(0, 205, 0)),
    (Color::Yellow, Rgb(205, 205, 0)),
    (Color::Blue, Rgb(0, 0, 238)),
    (Color::Magenta, Rgb(205, 0, 205)),
    (Color::Cyan, Rgb(0, 205, 205)),
    (Color::Gray, Rgb(229, 229, 229)),
    (Color::DarkGray, Rgb(127, 127, 127)),
    (Color::LightRed, Rgb(255, 0, 0)),
    (Color::LightGreen, Rgb(0, 255, 0)),
    (Color::LightYellow, Rgb(255, 255, 0)),
    (Color::LightBlue, Rgb(92, 92, 255)),
    (Color::LightMagenta, Rgb(255, 0, 255)),
    (Color::LightCyan, Rgb(0, 255, 255)),
    (Color::White, Rgb(255, 255, 255)),
];

/// The steps of the 6×6×6 cube of the 256-colour palette.
const STEPS: [u8; 6] = [0, 95, 135, 175, 215, 255];

/// What a colour looks like; `None` for the terminal's own.
pub(in crate::ui) fn rgb(color: Color) -> Option<Rgb> {
    match color {
        Color::Reset => None,
        Color::Rgb(r, g, b) => Some(Rgb(r, g, b)),
        Color::Indexed(index) => Some(indexed(index)),
        named => SIXTEEN.iter().find(|(color, _)| *color == named).map(|(_, rgb)| *rgb),
    }
}

fn indexed(index: u8) -> Rgb {
    let step = |nth: u8| STEPS.get(usize::from(nth)).copied().unwrap_or(0);
    match index {
        0..16 => SIXTEEN.get(usize::from(index)).map_or(Rgb(0, 0, 0), |(_, rgb)| *rgb),
        16..232 => {
            let cube = index - 16;
            Rgb(step(cube / 36), step(cube / 6 % 6), step(cube % 6))
        }
        _ => {
            let gray = 8 + (index - 232) * 10;
            Rgb(gray, gray, gray)
        }
    }
}

/// Contrast of two colours, 1 to 21 (WCAG 2.2, relative luminance).
pub fn contrast(a: Rgb, b: Rgb) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

fn luminance(Rgb(r, g, b): Rgb) -> f64 {
    let linear = |channel: u8| {
        let c = f64::from(channel) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
}

/// Distance as an eye sees it, roughly: green counts most.
fn distance(a: Rgb, b: Rgb) -> u32 {
    let square = |x: u8, y: u8| u32::from(x.abs_diff(y)).pow(2);
    3 * square(a.0, b.0) + 6 * square(a.1, b.1) + square(a.2, b.2)
}

/// The nearest colour of the 256.
pub(super) fn to_256(color: Color) -> Color {
    let Color::Rgb(r, g, b) = color else { return color };
    let wanted = Rgb(r, g, b);
    (16..=255).min_by_key(|&index| distance(indexed(index), wanted)).map_or(color, Color::Indexed)
}

/// The nearest of the 16 colours by hue first: what is red stays red on every terminal.
pub(super) fn to_16(color: Color) -> Color {
    let Some(Rgb(r, g, b)) = rgb(color) else { return color };
    if !matches!(color, Color::Rgb(..) | Color::Indexed(16..)) {
        return color;
    }
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    // Close to gray: the terminal's own foreground is the one gray that is readable on its background.
    if most - least < 60 {
        return if most < 190 && most > 60 { Color::DarkGray } else { Color::Reset };
    }
    let middle = least + (most - least) / 2;
    match (r > middle, g > middle, b > middle) {
        (true, true, _) => Color::Yellow,
        (true, _, true) => Color::Magenta,
        (_, true, true) => Color::Cyan,
        (true, ..) => Color::Red,
        (_, true, _) => Color::Green,
        _ => Color::Blue,
    }
}

/// Whether a background is meant to stand out from the base, and is not just a shade of it.
pub(super) fn far_apart(color: Color, base: Option<Color>) -> bool {
    match (rgb(color), base.and_then(rgb)) {
        (Some(color), Some(base)) => contrast(color, base) > 2.0,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contrast_is_what_the_standard_says() {
        assert!((contrast(Rgb(0, 0, 0), Rgb(255, 255, 255)) - 21.0).abs() < 0.01);
        assert!((contrast(Rgb(119, 119, 119), Rgb(255, 255, 255)) - 4.48).abs() < 0.01);
    }

    #[test]
    fn fewer_colours_keep_the_hue() {
        assert_eq!(to_16(Color::Rgb(255, 123, 114)), Color::Red);
        assert_eq!(to_16(Color::Rgb(127, 216, 143)), Color::Green);
        assert_eq!(to_16(Color::Rgb(108, 182, 255)), Color::Cyan);
        assert_eq!(to_16(Color::Rgb(216, 222, 233)), Color::Reset);
        assert_eq!(to_256(Color::Rgb(255, 0, 0)), Color::Indexed(196));
        assert_eq!(to_256(Color::Red), Color::Red);
    }
}
