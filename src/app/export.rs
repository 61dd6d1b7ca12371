//! A file that is left from inside the program: never over another one without a question, and never half of one.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::screenshot::{Screenshot, Shot};

/// What came of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exported {
    /// The file was written.
    Written(PathBuf),
    /// There is such a file already; nothing was done.
    Exists(PathBuf),
}

/// Writes what is on the screen to a file, in the form that its extension says; `~/` is the user's home.
///
/// # Errors
/// A sentence when the extension says nothing, or the file cannot be written; a file that was there is as it was.
pub fn export(file: &str, overwrite: bool, shot: &Shot<'_>) -> Result<Exported, String> {
    if file == "-" {
        return Err("standard output is the screen itself; give the name of a file, for example screen.svg".into());
    }
    let Screenshot { format, file: Some(path) } = file.parse()? else {
        return Err("the name of a file is needed, for example screen.svg".into());
    };
    let path = at_home(path);
    if !overwrite && fs::symlink_metadata(&path).is_ok() {
        return Ok(Exported::Exists(path));
    }
    put(path, overwrite, &format.render(shot)?)
}

/// Writes bytes to a file; `~/` is the user's home.
///
/// # Errors
/// A sentence when the file cannot be written; one that was there is as it was.
pub fn leave(file: &str, overwrite: bool, bytes: &[u8]) -> Result<Exported, String> {
    let path = at_home(file.into());
    if !overwrite && fs::symlink_metadata(&path).is_ok() {
        return Ok(Exported::Exists(path));
    }
    put(path, overwrite, bytes)
}

fn put(path: PathBuf, overwrite: bool, bytes: &[u8]) -> Result<Exported, String> {
    match write(&path, overwrite, bytes) {
        Ok(()) => Ok(Exported::Written(path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !overwrite => Ok(Exported::Exists(path)),
        Err(error) => Err(format!("cannot write {}: {error}; choose another file or folder", path.display())),
    }
}

fn at_home(path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), etcetera::home_dir()) {
        (Ok(rest), Ok(home)) => home.join(rest),
        _ => path,
    }
}

/// Writes a file as a whole or not at all.
fn write(path: &Path, overwrite: bool, bytes: &[u8]) -> io::Result<()> {
    // What is no file of its own (a device, a pipe) cannot be replaced, only written to.
    if overwrite && fs::metadata(path).is_ok_and(|data| !data.is_file()) {
        return fs::write(path, bytes);
    }
    // A link stays a link.
    let path = if overwrite { fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()) } else { path.to_owned() };
    let written = if overwrite { beside(&path) } else { path.clone() };
    let mut file = OpenOptions::new().write(true).create_new(true).open(&written)?;
    let done = file.write_all(bytes).and_then(|()| file.sync_all());
    let done = done.and_then(|()| if written == path { Ok(()) } else { fs::rename(&written, &path) });
    done.inspect_err(|_| {
        // Half a file is worth nothing; that it cannot be removed either is not the first trouble.
        let _ = fs::remove_file(&written);
    })
}

/// A new file in the same folder.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use ratatui::{buffer::Buffer, layout::Rect};

    use super::*;
    use crate::{engine::snapshot::Snapshot, ui::theme::Theme};

    fn leave(file: &Path, overwrite: bool) -> Result<Exported, String> {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 12, 2));
        buffer.set_string(0, 0, "a guest", ratatui::style::Style::new());
        let shot = Shot { buffer: &buffer, snapshot: &Snapshot::default(), theme: &Theme::default() };
        export(file.to_str().unwrap(), overwrite, &shot)
    }

    #[test]
    fn a_file_is_written_once_and_again_only_when_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.txt");
        assert_eq!(leave(&file, false), Ok(Exported::Written(file.clone())));
        assert_eq!(fs::read_to_string(&file).unwrap(), "a guest\n\n");
        fs::write(&file, "mine").unwrap();
        assert_eq!(leave(&file, false), Ok(Exported::Exists(file.clone())));
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
        assert_eq!(leave(&file, true), Ok(Exported::Written(file.clone())));
        assert_eq!(fs::read_to_string(&file).unwrap(), "a guest\n\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn every_form_can_be_written() {
        let folder = tempfile::tempdir().unwrap();
        for (name, begins) in [("a.ansi", "\x1b[0"), ("a.svg", "<svg"), ("a.json", "{")] {
            let file = folder.path().join(name);
            leave(&file, false).unwrap();
            assert!(fs::read_to_string(&file).unwrap().contains(begins), "{name}");
        }
        leave(&folder.path().join("a.png"), false).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_a_sentence_and_nothing_changes() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("no/such/folder/a.txt");
        let said = leave(&nowhere, false).unwrap_err();
        assert!(said.starts_with("cannot write") && said.contains("no/such/folder/a.txt"), "{said}");
        for (name, what) in [("a.bmp", "'.bmp'"), ("a", "no extension"), ("-", "standard output is the screen")] {
            let said = leave(Path::new(name), false).unwrap_err();
            assert!(said.contains(what), "{said}");
        }
        let full = Path::new("/dev/full");
        let link = folder.path().join("full.txt");
        if full.exists() && std::os::unix::fs::symlink(full, &link).is_ok() {
            assert!(leave(&link, true).is_err(), "no space left");
            assert!(full.exists(), "a device is not replaced");
        }
        assert_eq!(leave(&folder.path().join("full.txt"), false), Ok(Exported::Exists(link)));
    }
}
