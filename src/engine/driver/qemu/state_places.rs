//! Where sessions' folders are, and what makes a folder ours: it is opened without following links, belongs to us, and nobody
//! else can write into it.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, CWD, Dir, Mode, OFlags, Stat},
    io::Errno,
    process::geteuid,
};

/// Most entries of a folder that are looked at: others may fill a shared one.
const MOST_ENTRIES: usize = 1 << 16;

/// How a folder is opened.
pub const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A place where folders are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The folder that they are in.
    pub path: PathBuf,
    /// Whether it is a folder of vmscope's own, to be made and to be entered by us alone; else one that all share.
    pub is_own: bool,
}

impl Base {
    /// Opens it, and makes it before if it is our own and wanted.
    ///
    /// # Errors
    /// What the system says; `PermissionDenied` where others could put something of theirs in the place of what is ours.
    pub fn open(&self, make: bool) -> io::Result<OwnedFd> {
        if !self.is_own {
            let folder = fs::openat(CWD, &self.path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let mode = Mode::from_raw_mode(fs::fstat(&folder)?.st_mode);
            // Else others could put something of theirs in the place of what is ours.
            let is_safe = mode.contains(Mode::SVTX) || !mode.intersects(Mode::WGRP | Mode::WOTH);
            return if is_safe { Ok(folder) } else { Err(io::ErrorKind::PermissionDenied.into()) };
        }
        if make && let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) {
            // Root's /run is the system's, a user's own folder the user's: nobody else writes there.
            let parent = open_folder(CWD, parent)?;
            match fs::mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        open_folder(CWD, &self.path)
    }
}

/// Where folders are, the best first: one that other users cannot write into, and `/tmp` where there is none.
pub fn bases() -> Vec<Base> {
    let user = geteuid();
    let mut bases = Vec::new();
    let mut add = |path: PathBuf, is_own| {
        let base = Base { path, is_own };
        if base.path.is_absolute() && !bases.contains(&base) {
            bases.push(base);
        }
    };
    if user.is_root() {
        add("/run/vmscope".into(), true);
    }
    if let Some(folder) = std::env::var_os("XDG_RUNTIME_DIR") {
        add(PathBuf::from(folder).join("vmscope"), true);
    }
    // Where that is, also for a session that was started without the variable (cron, su).
    add(format!("/run/user/{}/vmscope", user.as_raw()).into(), true);
    add("/tmp".into(), false);
    add(std::env::temp_dir(), false);
    bases
}

/// Opens a folder that is ours and that nobody else can write into.
///
/// # Errors
/// What the system says; `PermissionDenied` for any other folder.
pub fn open_folder(at: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let folder = fs::openat(at, path, FOLDER, Mode::empty())?;
    let data = fs::fstat(&folder)?;
    let others_write = Mode::from_raw_mode(data.st_mode).intersects(Mode::WGRP | Mode::WOTH);
    if is_ours(&data) && !others_write { Ok(folder) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

/// Whether a file or a folder belongs to us.
pub fn is_ours(data: &Stat) -> bool {
    data.st_uid == geteuid().as_raw()
}

/// The names in a folder, except those of itself and its parent.
pub fn names(folder: &OwnedFd) -> Vec<PathBuf> {
    let Ok(entries) = Dir::read_from(folder) else { return Vec::new() };
    let names =
        entries.filter_map(Result::ok).map(|entry| PathBuf::from(OsStr::from_bytes(entry.file_name().to_bytes())));
    names.filter(|name| name.as_os_str() != "." && name.as_os_str() != "..").take(MOST_ENTRIES).collect()
}
