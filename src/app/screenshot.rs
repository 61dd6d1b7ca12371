//! Where a screenshot goes and in which form.

use std::{
    fmt, fs,
    io::{self, Write},
    path::PathBuf,
    str::FromStr,
};

use ratatui::buffer::Buffer;

use crate::{
    engine::snapshot::{Snapshot, clean_lines},
    ui::{export, theme::Theme},
};

/// The form of a screenshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Plain text.
    Text,
    /// Text with colours as escape sequences.
    Ansi,
    /// A vector picture.
    Svg,
    /// A picture.
    Png,
    /// The snapshot itself (`docs/snapshot.md`).
    Json,
}

/// One screenshot to leave at the end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screenshot {
    /// Its form.
    pub format: Format,
    /// Its file; `None` is standard output.
    pub file: Option<PathBuf>,
}

/// The forms that there are.
const KNOWN: &str = "use .txt, .ansi, .svg, .png or .json";

impl FromStr for Screenshot {
    type Err = String;

    /// `-` is text on standard output, else the extension decides.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self { format: Format::Text, file: None });
        }
        let file = PathBuf::from(text);
        let extension = file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let format = match extension.as_deref() {
            Some("txt") => Format::Text,
            Some("ansi") => Format::Ansi,
            Some("svg") => Format::Svg,
            Some("png") => Format::Png,
            Some("json") => Format::Json,
            Some(other) => return Err(format!("no screenshot can be written as '.{other}'; {KNOWN}")),
            None => return Err(format!("'{text}' has no extension that says which form is wanted; {KNOWN}")),
        };
        Ok(Self { format, file: Some(file) })
    }
}

impl fmt::Display for Screenshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => file.display().fmt(f),
            None => f.write_str("standard output"),
        }
    }
}

/// What a screenshot is taken of.
#[derive(Debug)]
pub struct Shot<'a> {
    /// The cells of the screen.
    pub buffer: &'a Buffer,
    /// The picture that they show.
    pub snapshot: &'a Snapshot,
    /// The colours behind the cells' own.
    pub theme: &'a Theme,
}

impl Format {
    /// The screen in this form.
    ///
    /// # Errors
    /// A sentence when it cannot be made.
    pub fn render(self, shot: &Shot<'_>) -> Result<Vec<u8>, String> {
        Ok(match self {
            Self::Text => export::text(shot.buffer).into_bytes(),
            Self::Ansi => export::ansi(shot.buffer).into_bytes(),
            Self::Svg => export::svg(shot.buffer, shot.theme).into_bytes(),
            Self::Png => export::png(shot.buffer, shot.theme)?,
            Self::Json => json(shot.snapshot)?.into_bytes(),
        })
    }
}

impl Screenshot {
    /// Takes it and leaves it where it belongs.
    ///
    /// # Errors
    /// A sentence when it cannot be made or written.
    pub fn leave(&self, shot: &Shot<'_>) -> Result<(), String> {
        let bytes = self.format.render(shot)?;
        let written = match &self.file {
            Some(file) => fs::write(file, bytes),
            None => io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush()),
        };
        written.map_err(|error| format!("cannot write the screenshot to {self}: {error}; check --screenshot"))
    }
}

/// The JSON form of a snapshot, as `docs/snapshot.md` describes it.
///
/// # Errors
/// A sentence when it cannot be written as JSON, which is a mistake in vmscope.
pub fn json(snapshot: &Snapshot) -> Result<String, String> {
    let text = serde_json::to_string_pretty(snapshot);
    // Every string in it is clean; whoever shows it in a terminal need not rely on that.
    text.map(|text| clean_lines(&text) + "\n").map_err(|error| format!("cannot write the snapshot as JSON: {error}"))
}
