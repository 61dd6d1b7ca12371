//! Reads a theme from TOML.
//!
//! ```toml
//! inherits = "dark"                       # optional: palette and styles that are not given here
//! [palette]
//! background = "#15181e"                  # background and foreground are needed: pictures are drawn on them
//! accent = "#6cb6ff"
//! [styles]
//! border = "accent"                       # a foreground colour, or
//! selected = { bg = "#2d3b52", add = ["bold"] }
//! ```

use std::collections::BTreeMap;

use ratatui::style::{Color, Modifier, Style};
use serde::Deserialize;

use super::{Theme, color::Rgb};
use crate::nearest::did_you_mean;

/// Longest chain of `inherits`.
const LONGEST_CHAIN: usize = 8;

const ATTRIBUTES: &[(&str, Modifier)] = &[
    ("bold", Modifier::BOLD),
    ("dim", Modifier::DIM),
    ("italic", Modifier::ITALIC),
    ("underlined", Modifier::UNDERLINED),
    ("reversed", Modifier::REVERSED),
    ("crossed-out", Modifier::CROSSED_OUT),
];

const ANSI: &[(&str, Color)] = &[
    ("default", Color::Reset),
    ("black", Color::Black),
    ("red", Color::Red),
    ("green", Color::Green),
    ("yellow", Color::Yellow),
    ("blue", Color::Blue),
    ("magenta", Color::Magenta),
    ("cyan", Color::Cyan),
    ("gray", Color::Gray),
    ("dark-gray", Color::DarkGray),
    ("light-red", Color::LightRed),
    ("light-green", Color::LightGreen),
    ("light-yellow", Color::LightYellow),
    ("light-blue", Color::LightBlue),
    ("light-magenta", Color::LightMagenta),
    ("light-cyan", Color::LightCyan),
    ("white", Color::White),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    inherits: Option<String>,
    #[serde(default)]
    palette: BTreeMap<String, String>,
    #[serde(default)]
    styles: BTreeMap<String, toml::Value>,
}

impl Theme {
    /// Reads a theme. `name` is what errors call it (its name or its file); `lookup` gives the text of a theme that it
    /// inherits from.
    ///
    /// # Errors
    /// One sentence that names the theme, the key and what is allowed: broken TOML, an unknown key, style, attribute or
    /// colour, a style that is missing here and in all that it inherits from, a circle of `inherits`.
    pub fn parse(name: &str, text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut palette = BTreeMap::new();
        let mut styles = BTreeMap::new();
        let mut next = Some((name.to_owned(), text.to_owned()));
        let mut depth = 0;
        while let Some((from, text)) = next.take() {
            depth += 1;
            if depth > LONGEST_CHAIN {
                return Err(format!(
                    "theme {name}: inherits goes in a circle or over more than {LONGEST_CHAIN} themes"
                ));
            }
            let file: File = toml::from_str(&text).map_err(|error| syntax(&from, &text, &error))?;
            if let Some(unknown) = file.styles.keys().find(|key| !Self::ITEMS.contains(&key.as_str())) {
                let known = format!("known are {}", Self::ITEMS.join(", "));
                let meant = did_you_mean(unknown, Self::ITEMS.iter().copied(), &known);
                return Err(format!("theme {from}: there is no style '{unknown}'; {meant}"));
            }
            for (key, color) in file.palette {
                palette.entry(key).or_insert(color);
            }
            for (key, value) in file.styles {
                styles.entry(key).or_insert((from.clone(), value));
            }
            if let Some(parent) = file.inherits {
                let text = lookup(&parent);
                let text = text.ok_or_else(|| format!("theme {from}: inherits '{parent}', which is not a theme"))?;
                next = Some((parent, text));
            }
        }
        let canvas = |key: &str| match palette.get(key).and_then(|text| hex(text)) {
            Some(Color::Rgb(r, g, b)) => Ok(Rgb(r, g, b)),
            _ => Err(format!("theme {name}: the palette needs '{key}' as \"#rrggbb\"; pictures are drawn on it")),
        };
        let canvas = (canvas("background")?, canvas("foreground")?);
        Self::build(name, canvas, |item| {
            let (from, value) =
                styles.get(item).ok_or_else(|| format!("theme {name}: the style '{item}' is missing"))?;
            style(value, &palette).map_err(|what| format!("theme {from}: style '{item}': {what}"))
        })
    }
}

/// One line of what TOML's parser draws over several.
fn syntax(name: &str, text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1));
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    match line {
        Some(line) => format!("theme {name}, line {line}: {message}"),
        None => format!("theme {name}: {message}"),
    }
}

fn style(value: &toml::Value, palette: &BTreeMap<String, String>) -> Result<Style, String> {
    let table = match value {
        toml::Value::String(fg) => return Ok(Style::new().fg(color(fg, palette)?)),
        toml::Value::Table(table) => table,
        _ => return Err("must be a colour or a table with fg, bg and add".to_owned()),
    };
    let mut style = Style::new();
    for (key, value) in table {
        match (key.as_str(), value) {
            ("fg", toml::Value::String(fg)) => style = style.fg(color(fg, palette)?),
            ("bg", toml::Value::String(bg)) => style = style.bg(color(bg, palette)?),
            ("add", toml::Value::Array(names)) => {
                for name in names {
                    style = style.add_modifier(attribute(name)?);
                }
            }
            ("fg" | "bg", _) => return Err(format!("'{key}' must be a colour in quotes")),
            ("add", _) => return Err("'add' must be a list of attributes".to_owned()),
            (other, _) => return Err(format!("unknown key '{other}'; allowed are fg, bg and add")),
        }
    }
    Ok(style)
}

fn attribute(name: &toml::Value) -> Result<Modifier, String> {
    let known = ATTRIBUTES.iter().find(|(known, _)| name.as_str() == Some(known));
    known.map(|(_, modifier)| *modifier).ok_or_else(|| {
        let known: Vec<&str> = ATTRIBUTES.iter().map(|(name, _)| *name).collect();
        format!("unknown attribute {name}; allowed are {}", known.join(", "))
    })
}

fn color(name: &str, palette: &BTreeMap<String, String>) -> Result<Color, String> {
    // One step through the palette: an entry is a colour, not the name of another entry.
    let text = palette.get(name).map_or(name, String::as_str);
    let ansi = ANSI.iter().find(|(known, _)| *known == text).map(|(_, color)| *color);
    ansi.or_else(|| hex(text)).ok_or_else(|| {
        format!("'{text}' is not a colour; allowed are \"#rrggbb\", a name of the palette, default, or an ANSI name such as light-blue")
    })
}

fn hex(text: &str) -> Option<Color> {
    let digits =
        text.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let [_, r, g, b] = u32::from_str_radix(digits, 16).ok()?.to_be_bytes();
    Some(Color::Rgb(r, g, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Theme, String> {
        Theme::parse("mine.toml", text, |name| Theme::builtin_text(name).map(str::to_owned))
    }

    #[test]
    fn a_theme_changes_what_it_names_and_inherits_the_rest() {
        let dark = Theme::builtin("dark").unwrap();
        let mine = parse(
            "inherits = 'dark'\n[palette]\naccent = '#010203'\n[styles]\ntag = { fg = 'accent', add = ['bold'] }\nnumber = 'light-blue'",
        );
        let mine = mine.unwrap();
        assert_eq!(mine.tag, Style::new().fg(Color::Rgb(1, 2, 3)).add_modifier(Modifier::BOLD));
        assert_eq!(mine.number, Style::new().fg(Color::LightBlue));
        assert_eq!(mine.border_focused.fg, Some(Color::Rgb(1, 2, 3)), "the palette reaches inherited styles");
        assert_eq!(mine.failed, dark.failed);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_sentence_that_names_it() {
        for (text, wanted) in [
            ("inherits = 'dark'\ncolour = 1", "mine.toml, line 2: unknown field `colour`"),
            ("inherits = 'night'", "inherits 'night', which is not a theme"),
            ("inherits = 'dark'\n[styles]\nbordr = 'red'", "no style 'bordr'; did you mean 'border"),
            ("inherits = 'dark'\n[styles]\nborder = 'redd'", "style 'border': 'redd' is not a colour; allowed are"),
            ("inherits = 'dark'\n[styles]\nborder = { fg = 1 }", "'fg' must be a colour in quotes"),
            (
                "inherits = 'dark'\n[styles]\nborder = { front = 'red' }",
                "unknown key 'front'; allowed are fg, bg and add",
            ),
            (
                "inherits = 'dark'\n[styles]\nborder = { add = ['blink'] }",
                "unknown attribute \"blink\"; allowed are bold",
            ),
            ("inherits = 'dark'\n[palette]\naccent = '#12'", "'#12' is not a colour"),
            ("[palette]\nbackground = '#000000'\nforeground = '#ffffff'", "the style 'text' is missing"),
            ("[styles]\ntext = 'red'", "the palette needs 'background'"),
            ("inherits = ", "mine.toml, line 1:"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(wanted), "{text}\n  said: {error}\n  not:  {wanted}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_circle_of_themes_ends() {
        let error = Theme::parse("a", "inherits = 'a'", |_| Some("inherits = 'a'".to_owned())).unwrap_err();
        assert!(error.contains("circle"), "{error}");
    }
}
