//! The screen as a picture of pixels: the SVG, drawn with the one font that is compiled in.

use std::sync::{Arc, LazyLock};

use ratatui::buffer::Buffer;
use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{Options, Tree, fontdb},
};

use super::svg::{Bold, draw, size};
use crate::ui::theme::Theme;

static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(epaint_default_fonts::HACK_REGULAR.to_vec());
    fonts.set_monospace_family("Hack");
    Arc::new(fonts)
});

/// The screen as PNG.
///
/// # Errors
/// A sentence when the picture cannot be drawn: it is empty, or larger than memory.
pub fn png(buffer: &Buffer, theme: &Theme) -> Result<Vec<u8>, String> {
    let (width, height) = size(buffer);
    let options = Options { fontdb: Arc::clone(&FONTS), font_family: "Hack".to_owned(), ..Options::default() };
    let picture = draw(buffer, theme, Bold::Outline);
    let cannot = |why: String| format!("a picture of {width}x{height} pixels cannot be drawn: {why}");
    let tree = Tree::from_str(&picture, &options).map_err(|error| cannot(error.to_string()))?;
    let mut pixels = Pixmap::new(width, height).ok_or_else(|| cannot("there is not enough memory".to_owned()))?;
    resvg::render(&tree, Transform::default(), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| cannot(error.to_string()))
}
