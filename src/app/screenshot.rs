//! Where a screenshot goes and in which form.

use std::{fmt, path::PathBuf, str::FromStr};

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

impl FromStr for Screenshot {
    type Err = String;

    /// `-` is text on standard output, else the extension decides.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self { format: Format::Text, file: None });
        }
        let file = PathBuf::from(text);
        let known = "use .txt, .ansi, .svg, .png or .json, or - for text on standard output";
        let extension = file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let format = match extension.as_deref() {
            Some("txt") => Format::Text,
            Some("ansi") => Format::Ansi,
            Some("svg") => Format::Svg,
            Some("png") => Format::Png,
            Some("json") => Format::Json,
            Some(other) => return Err(format!("no screenshot can be written as '.{other}'; {known}")),
            None => return Err(format!("'{text}' has no extension that says which form is wanted; {known}")),
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
