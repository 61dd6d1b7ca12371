//! Which characters the terminal takes, as far as the environment tells: the locale as POSIX reads it, and `TERM`.

use std::str::FromStr;

/// Kinds of terminal whose fonts have ASCII and little else, by the beginning of `TERM`.
const PLAIN: [&str; 6] = ["dumb", "linux", "vt", "ansi", "cons25", "sun"];

/// When to draw with ASCII characters only: `--ascii`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ascii {
    /// When locale or terminal ask for it.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl FromStr for Ascii {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(format!("'{text}' is not auto, always or never")),
        }
    }
}

/// The characters of a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Characters {
    /// Whether the program itself draws ASCII characters only.
    pub ascii: bool,
    /// Whether the terminal takes no others at all, names from the guest included: bytes of UTF-8 are something else in
    /// another encoding, control characters among them.
    pub only_ascii: bool,
    /// Why ASCII was chosen, where nobody asked for it.
    pub hint: Option<String>,
}

impl Characters {
    /// What is drawn with, by the user's wish and the environment.
    pub fn new(wish: Ascii, variable: impl Fn(&str) -> Option<String>) -> Self {
        let locale = Locale::of(&variable);
        let term = variable("TERM").unwrap_or_default();
        let why = if !locale.is_utf8() {
            Some(format!("the locale ({locale}) is not UTF-8"))
        } else if PLAIN.iter().any(|plain| term.starts_with(plain)) {
            Some(format!("TERM is {term}"))
        } else {
            None
        };
        match wish {
            Ascii::Never => Self::default(),
            Ascii::Always => Self { ascii: true, only_ascii: !locale.is_utf8(), hint: None },
            Ascii::Auto => Self {
                ascii: why.is_some(),
                only_ascii: !locale.is_utf8(),
                hint: why.map(|why| format!("drawn in ASCII, because {why}; --ascii=never draws all characters")),
            },
        }
    }
}

/// The locale of characters: the first of `LC_ALL`, `LC_CTYPE` and `LANG` that is set and not empty (POSIX XBD 8.2).
#[derive(Debug)]
struct Locale {
    variable: &'static str,
    value: String,
}

impl Locale {
    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name| variable(name).filter(|value| !value.is_empty()).map(|value| Self { variable: name, value });
        let set = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        set.unwrap_or(Self { variable: "LANG", value: String::new() })
    }

    /// Whether its codeset is UTF-8, however it is spelt. macOS has a locale that is nothing but the codeset.
    fn is_utf8(&self) -> bool {
        let named = self.value.split_once('.').map_or(self.value.as_str(), |(_, codeset)| codeset);
        let codeset = named.split('@').next().unwrap_or_default();
        let plain: String = codeset.chars().filter(char::is_ascii_alphanumeric).collect();
        plain.eq_ignore_ascii_case("utf8")
    }
}

impl std::fmt::Display for Locale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Whoever set it may have set anything.
        let value: String = self.value.chars().take(40).filter(char::is_ascii_graphic).collect();
        if value.is_empty() { f.write_str("none is set") } else { write!(f, "{}={value}", self.variable) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn characters(wish: Ascii, set: &[(&str, &str)]) -> Characters {
        Characters::new(wish, |name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_locale_is_read_as_posix_says() {
        let term = ("TERM", "xterm-256color");
        for utf8 in ["C.UTF-8", "C.utf8", "en_US.UTF-8", "de_DE.utf8@euro", "ja_JP.UTF8", "UTF-8"] {
            for name in ["LC_ALL", "LC_CTYPE", "LANG"] {
                assert_eq!(characters(Ascii::Auto, &[term, (name, utf8)]), Characters::default(), "{name}={utf8}");
            }
        }
        for other in ["C", "POSIX", "en_US", "en_US.ISO-8859-1", "de_DE@euro", "ja_JP.eucJP", "ru_RU.KOI8-R", "utf"] {
            let set = characters(Ascii::Auto, &[term, ("LC_ALL", other), ("LANG", "C.UTF-8")]);
            assert!(set.ascii && set.only_ascii, "LC_ALL={other} goes before LANG");
            assert!(set.hint.is_some_and(|hint| hint.contains(other) && hint.contains("--ascii=never")));
        }
        assert!(characters(Ascii::Auto, &[term]).ascii, "no locale is that of C");
        let set = [term, ("LC_ALL", ""), ("LC_CTYPE", "C.UTF-8"), ("LANG", "C")];
        assert!(!characters(Ascii::Auto, &set).ascii, "an empty variable is none, and LC_CTYPE goes before LANG");
        assert!(!characters(Ascii::Auto, &[term, ("LC_MESSAGES", "C"), ("LANG", "C.UTF-8")]).ascii);
    }

    #[test]
    fn a_plain_terminal_gets_ascii_and_the_user_has_the_last_word() {
        let utf8 = ("LANG", "C.UTF-8");
        for term in ["linux", "linux-16color", "vt100", "vt220", "dumb", "ansi"] {
            let set = characters(Ascii::Auto, &[utf8, ("TERM", term)]);
            assert!(set.ascii && !set.only_ascii, "{term}: its glyphs are few, its encoding is the locale's");
            assert!(set.hint.is_some_and(|hint| hint.contains(term)));
            assert_eq!(characters(Ascii::Never, &[("TERM", term)]), Characters::default());
        }
        for term in ["xterm", "screen", "tmux-256color", "foot", "alacritty", "xterm-kitty", "rxvt-unicode", "st"] {
            assert!(!characters(Ascii::Auto, &[utf8, ("TERM", term)]).ascii, "{term}");
        }
        let wanted = characters(Ascii::Always, &[utf8, ("TERM", "xterm")]);
        assert!(wanted.ascii && !wanted.only_ascii && wanted.hint.is_none());
    }
}
