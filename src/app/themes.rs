//! Where themes come from: built in, the user's folder of themes, any file; and which one is used now.
//!
//! A file in the user's folder goes before a built-in theme of the same name, and may inherit from it. Files are looked
//! at again while the program runs; one that is broken leaves the theme as it was.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    nearest::did_you_mean,
    ui::{state::ColorDepth, theme::Theme},
};

/// What tells that a file was written: its time and its length.
type Stamp = (SystemTime, u64);
/// Files with what they were when they were read.
type Files = Vec<(PathBuf, Option<Stamp>)>;

/// The themes that there are, and the one that is used.
#[derive(Debug, Default)]
pub struct Themes {
    /// The user's folder of themes, `None` where there is none.
    folder: Option<PathBuf>,
    depth: ColorDepth,
    name: String,
    theme: Theme,
    /// The files that it was read from, its parents' included.
    files: Files,
}

impl Themes {
    /// The dark theme, and the themes of a folder to choose from.
    pub fn new(folder: Option<PathBuf>, depth: ColorDepth) -> Self {
        let dark = Theme::default();
        Self { folder, depth, name: dark.name.clone(), theme: dark.reduced(depth), files: Vec::new() }
    }

    /// The theme that is used, for as many colours as the terminal has.
    pub const fn theme(&self) -> &Theme {
        &self.theme
    }

    /// Its name, as [`Themes::choose`] takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names to choose from, and where each one is from.
    pub fn list(&self) -> Vec<(String, String)> {
        let own = self.own();
        let builtin = Theme::names().filter(|name| !own.iter().any(|own| own == name));
        let mut list: Vec<(String, String)> = builtin.map(|name| (name.to_owned(), "built in".to_owned())).collect();
        list.extend(own.into_iter().map(|name| (name, "your own".to_owned())));
        if !list.iter().any(|(name, _)| *name == self.name) {
            list.push((self.name.clone(), "a file".to_owned()));
        }
        list
    }

    /// The names in the user's folder, sorted.
    fn own(&self) -> Vec<String> {
        let files = self.folder.as_ref().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten();
        let mut names: Vec<String> = files
            .filter_map(|file| file.ok()?.file_name().into_string().ok()?.strip_suffix(".toml").map(str::to_owned))
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    /// Uses a theme by its name or its file.
    ///
    /// # Errors
    /// A sentence when there is none, or it cannot be read or is wrong; the theme stays as it was.
    pub fn choose(&mut self, name: &str) -> Result<(), String> {
        let (theme, files) = self.read(name)?;
        (self.name, self.theme, self.files) = (name.to_owned(), theme.reduced(self.depth), files);
        Ok(())
    }

    /// Whether the theme came from a file, which may change.
    pub fn is_from_file(&self) -> bool {
        !self.files.is_empty()
    }

    /// Reads the theme again if one of its files was written since; `None` when none was.
    pub fn follow(&mut self) -> Option<Result<(), String>> {
        // A file that is not there is being replaced; it is waited for.
        let written = |(path, before): &(PathBuf, Option<Stamp>)| stamp(path).is_some_and(|now| Some(now) != *before);
        self.files.iter().any(written).then(|| self.reload())
    }

    /// Reads the theme again.
    ///
    /// # Errors
    /// As [`Themes::choose`].
    pub fn reload(&mut self) -> Result<(), String> {
        let name = self.name.clone();
        self.choose(&name).inspect_err(|_| {
            // Told once for each time that the file is written.
            for (path, seen) in &mut self.files {
                *seen = stamp(path);
            }
        })
    }

    fn read(&self, name: &str) -> Result<(Theme, Files), String> {
        let files = RefCell::new(Files::new());
        let text = self.text(name, &files).ok_or_else(|| self.unknown(name))??;
        // Built-in themes inherit from built-in ones.
        if files.borrow().is_empty() {
            return Ok((Theme::builtin(name)?, Files::new()));
        }
        let theme = Theme::parse(name, &text, |parent| self.text(parent, &files)?.ok())?;
        Ok((theme, files.into_inner()))
    }

    /// The text of a theme, of which the files so far are children; `None` when there is no theme of that name.
    fn text(&self, name: &str, files: &RefCell<Files>) -> Option<Result<String, String>> {
        let read = |path: &Path| {
            files.borrow_mut().push((path.to_owned(), stamp(path)));
            fs::read_to_string(path).map_err(|error| format!("cannot read the theme {}: {error}", path.display()))
        };
        let plain = !name.contains(['/', '.']);
        let own = self.folder.as_ref().map(|folder| folder.join(format!("{name}.toml")));
        // A theme of the user's may have the name of the built-in one that it inherits from.
        let again = |own: &PathBuf| files.borrow().iter().any(|(read, _)| read == own);
        match own.filter(|own| plain && own.exists() && !again(own)) {
            Some(own) => Some(read(&own)),
            None => match Theme::builtin_text(name) {
                Some(text) => Some(Ok(text.to_owned())),
                None => Some(Path::new(name)).filter(|path| path.exists()).map(read),
            },
        }
    }

    fn unknown(&self, name: &str) -> String {
        let list = self.list();
        let known = || list.iter().map(|(name, _)| name.as_str());
        let known_list = known().collect::<Vec<_>>().join(", ");
        format!(
            "there is no theme '{name}', nor a file of that name; {}",
            did_you_mean(name, known(), &format!("use one of {known_list}, or a .toml file"))
        )
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let data = fs::metadata(path).ok()?;
    Some((data.modified().ok()?, data.len()))
}

#[cfg(test)]
mod tests {
    use ratatui::style::Color;

    use super::*;

    fn themes() -> (tempfile::TempDir, Themes) {
        let folder = tempfile::tempdir().unwrap();
        let themes = Themes::new(Some(folder.path().to_owned()), ColorDepth::TrueColor);
        (folder, themes)
    }

    fn accent(themes: &Themes) -> Option<Color> {
        themes.theme().border_focused.fg
    }

    #[test]
    fn a_file_of_the_users_is_followed_and_a_broken_one_keeps_the_theme() {
        let (folder, mut themes) = themes();
        let file = folder.path().join("mine.toml");
        fs::write(&file, "inherits = 'dark'\n[palette]\naccent = '#010203'").unwrap();
        themes.choose("mine").unwrap();
        assert_eq!(accent(&themes), Some(Color::Rgb(1, 2, 3)));
        assert!(themes.follow().is_none(), "nothing was written");
        fs::write(&file, "inherits = 'dark'\n[palette]\naccent = '#0a0b0c' # longer").unwrap();
        assert_eq!(themes.follow(), Some(Ok(())));
        assert_eq!(accent(&themes), Some(Color::Rgb(10, 11, 12)));
        fs::write(&file, "inherits = 'dark'\n[palette]\naccent = 'broken").unwrap();
        let said = themes.follow().unwrap().unwrap_err();
        assert!(said.contains("theme mine, line 3"), "{said}");
        assert_eq!(accent(&themes), Some(Color::Rgb(10, 11, 12)), "the old theme is kept");
        assert!(themes.follow().is_none(), "told once");
        fs::remove_file(&file).unwrap();
        assert!(themes.follow().is_none(), "an editor replaces files");
        fs::write(&file, "inherits = 'light'").unwrap();
        assert_eq!(themes.follow(), Some(Ok(())));
    }

    #[test]
    fn a_parent_in_a_file_is_followed_too() {
        let (folder, mut themes) = themes();
        fs::write(folder.path().join("base.toml"), "inherits = 'dark'").unwrap();
        fs::write(folder.path().join("mine.toml"), "inherits = 'base'").unwrap();
        themes.choose("mine").unwrap();
        fs::write(folder.path().join("base.toml"), "inherits = 'dark'\n[palette]\naccent = '#010203'").unwrap();
        assert_eq!(themes.follow(), Some(Ok(())));
        assert_eq!(accent(&themes), Some(Color::Rgb(1, 2, 3)));
    }

    #[test]
    fn the_users_own_go_before_built_in_ones_of_the_same_name() {
        let (folder, mut themes) = themes();
        fs::write(folder.path().join("dark.toml"), "inherits = 'dark'\n[palette]\naccent = '#010203'").unwrap();
        themes.choose("dark").unwrap();
        assert_eq!(accent(&themes), Some(Color::Rgb(1, 2, 3)));
        fs::write(folder.path().join("mine.toml"), "inherits = 'dark'").unwrap();
        themes.choose("mine").unwrap();
        assert_eq!(accent(&themes), Some(Color::Rgb(1, 2, 3)), "by way of the user's own");
        themes.choose("light").unwrap();
        assert!(!themes.is_from_file(), "nothing is looked at again for a built-in theme");
        let names: Vec<String> = themes.list().into_iter().map(|(name, from)| format!("{name} {from}")).collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("dark")).collect::<Vec<_>>(), ["dark your own"]);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest_one() {
        let (_folder, mut themes) = themes();
        let said = themes.choose("hihg-contrast").unwrap_err();
        assert!(said.contains("no theme 'hihg-contrast'") && said.contains("did you mean 'high-contrast'?"), "{said}");
        assert_eq!(themes.name(), "dark");
        let said = themes.choose("../xyzzy.toml").unwrap_err();
        assert!(said.contains("dark, light"), "{said}");
    }
}
