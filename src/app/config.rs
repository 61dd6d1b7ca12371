//! The user's configuration: a TOML file, every part of which may be missing.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::nearest::nearest;

/// What a configuration may say.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file that it was read from; `None` where there is none.
    #[serde(skip)]
    file: Option<PathBuf>,
    /// The name of a theme or a TOML file; `--theme` goes before it.
    pub theme: Option<String>,
    /// Whether the program itself draws ASCII characters only, as with `--ascii`; where it says nothing, the locale tells.
    pub ascii: Option<bool>,
    /// How long an ESC may be the beginning of another key, in milliseconds, as with `--escape-time`.
    #[serde(default, deserialize_with = "at_most::<_, u64, 5000>")]
    pub escape_time: Option<u64>,
    /// Memory for pictures to go back to, in MiB, as with `--history`.
    #[serde(default, deserialize_with = "at_most::<_, u32, 65536>")]
    pub history: Option<u32>,
    /// Whether what was saved for the guest is restored at the start and saved at the end, as with `--restore`.
    #[serde(default)]
    pub restore: bool,
    /// Whether the mouse is used; `--no-mouse` switches it off.
    #[serde(default = "yes")]
    pub mouse: bool,
    /// Keys by the name of an action (`docs/keys.md`): `quit = "ctrl-q"` or `down = ["j", "down"]`.
    #[serde(default)]
    keys: BTreeMap<String, Keys>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a key is written as \"ctrl-q\", several as [\"j\", \"down\"]")]
enum Keys {
    One(String),
    Several(Vec<String>),
}

/// A number with a bound.
fn at_most<'de, D, N, const MOST: i64>(deserializer: D) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<i64>,
{
    let number = i64::deserialize(deserializer)?;
    let wrong = || D::Error::custom(format!("{number} is not between 0 and {MOST}"));
    if number > MOST {
        return Err(wrong());
    }
    N::try_from(number).map(Some).map_err(|_| wrong())
}

const fn yes() -> bool {
    true
}

impl Default for Config {
    /// What holds where nothing is configured.
    fn default() -> Self {
        Self {
            file: None,
            theme: None,
            ascii: None,
            escape_time: None,
            history: None,
            restore: false,
            mouse: true,
            keys: BTreeMap::new(),
        }
    }
}

impl Config {
    /// The names of all options.
    pub const OPTIONS: &'static [&'static str] =
        &["theme", "ascii", "escape_time", "history", "restore", "mouse", "keys"];

    /// Reads the file that is named, or the one in the user's configuration folder where there is one.
    ///
    /// # Errors
    /// A sentence when the file cannot be read or does not parse.
    pub fn read(named: Option<&Path>) -> Result<Self, String> {
        let Some(path) = named.map(Path::to_owned).or_else(default_path) else {
            return Ok(Self::default());
        };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(format!("cannot read the configuration {}: {error}; check --config", path.display()));
            }
        };
        match Self::parse(&text) {
            Ok(config) => Ok(Self { file: Some(path), ..config }),
            Err(why) => Err(Self { file: Some(path), ..Self::default() }.blame(&why)),
        }
    }

    /// What is said of a configuration whose words are right, but not what they ask for.
    pub fn blame(&self, why: &str) -> String {
        match &self.file {
            Some(file) => format!("the configuration {} is not used: {why}", file.display()),
            None => why.to_owned(),
        }
    }

    /// Reads the text of a configuration.
    ///
    /// # Errors
    /// What is wrong and in which line.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text.get(..span.start).unwrap_or("").matches('\n').count() + 1);
            let said = error.message().replace('\n', " ");
            let unknown = said.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
            let meant = unknown.and_then(|name| nearest(name, Self::OPTIONS.iter().copied()));
            let meant = meant.map_or_else(String::new, |name| format!("; did you mean '{name}'?"));
            format!("line {line}: {said}{meant}")
        })
    }

    /// The keys by action, for [`super::keymap::Keymap::new`].
    pub fn keys(&self) -> Vec<(String, Vec<String>)> {
        let list = |keys: &Keys| match keys {
            Keys::One(key) => vec![key.clone()],
            Keys::Several(keys) => keys.clone(),
        };
        self.keys.iter().map(|(name, keys)| (name.clone(), list(keys))).collect()
    }
}

/// The user's folder of themes, where there can be one.
pub fn themes_folder() -> Option<PathBuf> {
    Some(folder()?.join("themes"))
}

fn default_path() -> Option<PathBuf> {
    Some(folder()?.join("config.toml"))
}

/// The user's folder of vmscope's configuration.
fn folder() -> Option<PathBuf> {
    let base = etcetera::choose_base_strategy().ok()?;
    Some(base.config_dir().join("vmscope"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_configuration_is_enough() {
        let config = Config::parse("[keys]\nquit = 'ctrl-q'\ndown = ['j', 'down']\n").expect("valid");
        assert_eq!(config.theme, None);
        assert_eq!(
            config.keys(),
            [("down".into(), vec!["j".into(), "down".into()]), ("quit".into(), vec!["ctrl-q".into()])]
        );
        assert!(Config::parse("").is_ok());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, said) in [
            ("theme = 'dark'\ncolour = 1\n", "line 2: unknown field `colour`"),
            ("theme = 3", "line 1: invalid type"),
            ("[keys]\nquit = 3", "line 2: a key is written as"),
            ("[keys", "line 1:"),
        ] {
            let error = Config::parse(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_named_file_must_be_there() {
        let error = Config::read(Some(Path::new("/nowhere/config.toml"))).expect_err("no such file");
        assert!(error.contains("/nowhere/config.toml") && error.contains("--config"), "{error}");
    }
}
