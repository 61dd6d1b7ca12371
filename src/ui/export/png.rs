//! The screen as a picture of pixels, drawn with the one font that is compiled in.

use png::{BitDepth, ColorType, Encoder, Filter};
use ratatui::buffer::Buffer;

use super::{
    draw::{canvas, draw, size},
    pixels::{Font, Pixels},
};
use crate::ui::theme::Theme;

/// The screen as PNG.
///
/// # Errors
/// A sentence when the picture cannot be drawn: it is empty, or larger than memory.
pub fn png(buffer: &Buffer, theme: &Theme) -> Result<Vec<u8>, String> {
    let (width, height) = size(buffer);
    let cannot = |why: String| format!("a picture of {width}x{height} pixels cannot be drawn: {why}");
    let font = Font::new(epaint_default_fonts::HACK_REGULAR).map_err(cannot)?;
    let mut pixels = Pixels::new((width, height), canvas(theme), font)
        .ok_or_else(|| cannot("there is not enough memory".to_owned()))?;
    draw(buffer, theme, &mut pixels);
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    // Flat areas are smaller without the filters that photographs need.
    encoder.set_filter(Filter::NoFilter);
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(pixels.bytes()));
    written.map_err(|error| cannot(error.to_string()))?;
    Ok(file)
}
