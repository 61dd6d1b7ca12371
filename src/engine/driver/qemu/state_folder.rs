//! Folders that hold what must outlive a session, safe from other users of the machine.
//!
//! A session has one for its life, and with it a lock (flock(2)) that the kernel releases when the session dies in whatever
//! way: who holds the lock owns the folder's contents, whichever pid namespace it lives in. A folder is opened once, without
//! following links, and is used only if it is ours and nobody else can write into it; everything below is reached through
//! that descriptor, never by its path again.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, Uid},
    io::Errno,
    process::geteuid,
};

use super::state_places::{Base, FOLDER, bases, is_ours, names, open_folder};

/// What the names of the folders begin with.
pub const PREFIX: &str = "vmscope-qemu-";
const LOCK: &str = "lock";
/// The folder of the socket, which belongs to QEMU's user, and the socket.
const STUB: &str = "stub";
const SOCKET: &str = "gdb";
/// The largest file that is read.
const LARGEST: u64 = 64 << 10;
/// The longest path of a Unix socket (unix(7)).
const LONGEST_SOCKET: usize = 107;
/// How often another name is tried.
const ATTEMPTS: usize = 100;

/// A folder that is ours alone.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    descriptor: OwnedFd,
    /// The file of the lock, while we hold that.
    lock: Option<OwnedFd>,
}

impl Folder {
    /// Makes a folder and locks it, in the best place there is.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for base in bases() {
            match Self::new_in(&base) {
                Ok(folder) => return Ok(folder),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn new_in(base: &Base) -> io::Result<Self> {
        let parent = base.open(true)?;
        for _ in 0..ATTEMPTS {
            // Hard to guess, so that nobody takes all the names first.
            let random = RandomState::new().hash_one(std::process::id());
            let name = format!("{PREFIX}{}-{random:016x}", std::process::id());
            let path = base.path.join(&name);
            if path.join(STUB).join(SOCKET).as_os_str().len() > LONGEST_SOCKET {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "its path is too long for a socket in it"));
            }
            match fs::mkdirat(&parent, &name, Mode::RWXU) {
                Err(Errno::EXIST) => continue,
                made => made?,
            }
            let mut folder = Self { descriptor: open_folder(&parent, Path::new(&name))?, path, lock: None };
            match folder.try_lock() {
                Ok(true) if folder.is_there() => return Ok(folder),
                // Somebody who tidies up was quicker, and took it for a dead session's.
                Ok(_) => {}
                Err(error) => {
                    folder.remove();
                    return Err(error);
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Opens a folder of ours.
    ///
    /// # Errors
    /// What the system says; `PermissionDenied` when it is another user's or others can write into it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { descriptor: open_folder(CWD, path)?, path: path.to_owned(), lock: None })
    }

    /// All sessions' folders that are ours.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for base in bases() {
            let Ok(parent) = base.open(false) else { continue };
            for name in names(&parent) {
                if !name.to_string_lossy().starts_with(PREFIX) {
                    continue;
                }
                if let Ok(descriptor) = open_folder(&parent, &name) {
                    all.push(Self { path: base.path.join(name), descriptor, lock: None });
                }
            }
        }
        all
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has not been removed.
    pub fn is_there(&self) -> bool {
        let lock_is_there = self.lock.as_ref().is_none_or(|lock| fs::fstat(lock).is_ok_and(|data| data.st_nlink > 0));
        lock_is_there && fs::fstat(&self.descriptor).is_ok_and(|data| data.st_nlink > 0)
    }

    /// Whether somebody has locked it at some time: not in the folders of older versions.
    pub fn has_lock(&self) -> bool {
        fs::statat(&self.descriptor, LOCK, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Takes the lock; returns whether that was possible. Nothing that is executed later inherits it.
    ///
    /// # Errors
    /// What the system says, where it has no locks above all.
    pub fn try_lock(&mut self) -> io::Result<bool> {
        let file = self.lock_file()?;
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                self.lock = Some(file);
                Ok(true)
            }
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until nobody holds the lock.
    ///
    /// # Errors
    /// What the system says; `NotFound` when the folder is gone.
    pub fn wait_for_lock(&self) -> io::Result<()> {
        let file = self.lock_file()?;
        loop {
            match fs::flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                waited => return Ok(waited?),
            }
        }
    }

    /// Gives the lock back.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    fn lock_file(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(&self.descriptor, LOCK, flags, Mode::RUSR | Mode::WUSR)?)
    }

    /// Reads a file of ours.
    ///
    /// # Errors
    /// What the system says; `InvalidData` for anything but a small file that we have written.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        // A pipe that somebody has put there must not block us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = fs::openat(&self.descriptor, name, flags, Mode::empty())?;
        let data = fs::fstat(&file)?;
        let is_file = FileType::from_raw_mode(data.st_mode) == FileType::RegularFile;
        if !is_file || !is_ours(&data) || u64::try_from(data.st_size).is_ok_and(|size| size > LARGEST) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = Vec::new();
        File::from(file).take(LARGEST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes a file, all of it or nothing.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&self.descriptor, &new, flags, Mode::RUSR | Mode::WUSR)?;
        File::from(file).write_all(bytes)?;
        Ok(fs::renameat(&self.descriptor, &new, &self.descriptor, name)?)
    }

    /// Makes room for a socket that QEMU is to make, and returns its path. Where QEMU is another user's, it is let in as far
    /// as that, which only root can do.
    ///
    /// # Errors
    /// What the system says.
    pub fn socket(&self, qemus_user: Option<(u32, u32)>) -> io::Result<PathBuf> {
        match fs::mkdirat(&self.descriptor, STUB, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let stub = fs::openat(&self.descriptor, STUB, FOLDER, Mode::empty())?;
        if let Some((user, group)) = qemus_user.filter(|&(user, _)| user != geteuid().as_raw()) {
            fs::fchown(&stub, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
            let passable = Mode::RWXU | Mode::XGRP | Mode::XOTH;
            fs::fchmod(&self.descriptor, passable)?;
            if let Some(base) = bases().iter().find(|base| base.is_own && self.path.starts_with(&base.path)) {
                fs::fchmod(base.open(false)?, passable)?;
            }
        }
        // A stale one would be connected to instead.
        match fs::unlinkat(&stub, SOCKET, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(self.path.join(STUB).join(SOCKET)),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes it, with what sessions keep there. The lock must be held: until that goes as the last, nobody else is at work
    /// here.
    pub fn remove(&self) {
        match self.try_remove() {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => {
                tracing::warn!(%error, folder = %self.path.display(), "could not remove a session's folder");
            }
        }
    }

    fn try_remove(&self) -> Result<(), Errno> {
        if let Ok(stub) = fs::openat(&self.descriptor, STUB, FOLDER, Mode::empty()) {
            for name in names(&stub) {
                let _ = fs::unlinkat(&stub, &name, AtFlags::empty());
            }
            let _ = fs::unlinkat(&self.descriptor, STUB, AtFlags::REMOVEDIR);
        }
        let mut files = names(&self.descriptor);
        files.sort_by_key(|name| name == Path::new(LOCK));
        for name in &files {
            let _ = fs::unlinkat(&self.descriptor, name, AtFlags::empty());
        }
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(()) };
        // If it is no longer what is there under its name, it is not ours to remove: and only empty folders go this way.
        let parent = fs::openat(CWD, parent, FOLDER, Mode::empty())?;
        let there = fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let ours = fs::fstat(&self.descriptor)?;
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino) {
            return Ok(());
        }
        fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{PermissionsExt, symlink},
        process::{Command, Stdio},
    };

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let kept = tempfile::tempdir().expect("a folder");
        let path = kept.path().join("vmscope-qemu-test");
        std::fs::create_dir(&path).expect("a folder");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("its owner may");
        let folder = Folder::open(&path).expect("it is ours");
        (kept, folder)
    }

    #[test]
    fn a_new_folder_is_locked_closed_to_others_and_found() {
        let folder = Folder::new().expect("there is a place for it");
        let mode = std::fs::metadata(folder.path()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o077, 0);
        let mut same = Folder::all().into_iter().find(|other| other.path() == folder.path()).expect("it is found");
        assert!(!same.try_lock().expect("there are locks") && same.is_there());
        folder.write("state.json", b"{}").expect("room");
        assert_eq!(same.read("state.json").expect("what was written"), b"{}");
        let socket = folder.socket(None).expect("a place for a socket");
        std::fs::write(&socket, b"stale").expect("room");
        assert_eq!(folder.socket(None).expect("the same place"), socket);
        assert!(!socket.exists() && socket.parent().is_some_and(Path::exists));
        folder.remove();
        assert!(!folder.is_there() && !folder.path().exists());
    }

    #[test]
    fn the_lock_ends_with_its_holder_and_not_with_what_that_has_started() {
        let (_kept, mut holder) = folder();
        let mut other = Folder::open(holder.path()).expect("it is ours");
        assert!(!holder.has_lock());
        assert!(holder.try_lock().expect("there are locks") && other.has_lock());
        assert!(!other.try_lock().expect("there are locks"));
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat");
        drop(holder);
        assert!(other.wait_for_lock().is_ok() && other.try_lock().expect("there are locks"));
        drop(child.stdin.take());
        child.wait().expect("its end");
    }

    #[test]
    fn what_others_can_write_into_or_have_put_in_the_way_is_not_used() {
        let (kept, folder) = folder();
        let path = folder.path();
        for mode in [0o770, 0o707, 0o722, 0o1777] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its owner may");
            let refused = Folder::open(path).map(drop).map_err(|error| error.kind());
            assert_eq!(refused, Err(io::ErrorKind::PermissionDenied), "{mode:o}");
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711)).expect("its owner may");
        assert!(Folder::open(path).is_ok());
        let link = kept.path().join("link");
        symlink(path, &link).expect("a link");
        assert!(Folder::open(&link).is_err());
        if geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(65534), None).expect("root may");
            assert!(Folder::open(path).is_err(), "it is another user's");
            std::os::unix::fs::chown(path, Some(0), None).expect("root may");
        }
        let victim = kept.path().join("victim");
        std::fs::create_dir(&victim).expect("a folder");
        std::fs::write(victim.join("gdb"), "not ours").expect("room");
        symlink(victim.join("gdb"), path.join("state.json")).expect("a link");
        symlink(&victim, path.join("stub")).expect("a link");
        assert!(folder.read("state.json").is_err() && folder.socket(None).is_err());
        folder.write("state.json", b"ours").expect("room");
        let made = Command::new("mkfifo").arg(path.join("pipe")).status();
        assert!(made.is_ok_and(|status| status.success()) && folder.read("pipe").is_err(), "and it does not block");
        folder.remove();
        assert!(!path.exists());
        assert_eq!(std::fs::read_to_string(victim.join("gdb")).ok().as_deref(), Some("not ours"));
    }
}
