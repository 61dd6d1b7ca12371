//! What `/proc` tells about a QEMU process (proc(5)).

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::command_line;

/// The first part of a process's life: together with its id this names it for good, because ids are used again.
/// Clock ticks since the machine's start; `None` when there is no such process.
pub fn start_time(pid: u32) -> Option<u64> {
    let (state, rest) = state(pid)?;
    // A zombie has ended.
    if state == 'Z' { None } else { rest.split(' ').nth(18)?.parse().ok() }
}

/// Whether a signal or a debugger has stopped a process.
pub fn is_stopped(pid: u32) -> bool {
    state(pid).is_some_and(|(state, _)| matches!(state, 'T' | 't'))
}

/// A process's state, and what follows it in its status line.
fn state(pid: u32) -> Option<(char, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, blanks and brackets included; it ends at the last bracket.
    let (_, fields) = stat.rsplit_once(") ")?;
    let (state, rest) = fields.split_once(' ')?;
    Some((state.chars().next()?, rest.to_owned()))
}

/// A process's arguments.
pub fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

/// A process's user and group.
pub fn owner(pid: u32) -> Option<(u32, u32)> {
    let process = fs::metadata(format!("/proc/{pid}")).ok()?;
    Some((process.uid(), process.gid()))
}

/// The processes that are QEMU's system emulators, by their program's name.
pub fn emulators() -> Vec<u32> {
    let is_qemu = |pid: &u32| {
        let arguments = arguments(*pid);
        let program = arguments.first().map(Path::new).and_then(Path::file_name).and_then(|name| name.to_str());
        program.is_some_and(|name| name.starts_with("qemu-system-") || name == "qemu-kvm" || name == "kvm")
    };
    all().into_iter().filter(is_qemu).collect()
}

/// All processes that have not ended, by id.
fn all() -> Vec<u32> {
    let Ok(folder) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut pids: Vec<u32> = pids.filter(|&pid| start_time(pid).is_some()).collect();
    pids.sort_unstable();
    pids
}

/// The folder that a process's relative paths start at.
pub fn folder(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default()
}

/// The processes of a guest with this UUID.
pub fn with_uuid(uuid: &str) -> Vec<u32> {
    let is_it = |pid: &u32| command_line::uuid(&arguments(*pid)).is_some_and(|given| given.eq_ignore_ascii_case(uuid));
    all().into_iter().filter(is_it).collect()
}

/// Where a path of a process is found from here: in its own view of the files, where that is another one (a container, or
/// a mount namespace; proc(5), `/proc/PID/root`).
pub fn path_from_here(pid: u32, path: PathBuf) -> PathBuf {
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    let within = Path::new(&format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(&path));
    let other = mount_namespace(pid).zip(mount_namespace(std::process::id())).is_some_and(|(its, ours)| its != ours);
    if (other || !is_there(&path)) && is_there(&within) { within } else { path }
}

fn mount_namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// What holds a stretch of a process's memory.
#[derive(Debug)]
pub enum Backing {
    /// A file that the process shares, opened for reading, and where in it the stretch starts.
    File(File, u64),
    /// Memory of the process alone.
    Private,
}

/// What holds `bytes` bytes of a process's memory from `address` on; `None` when the process has no such memory or does
/// not let us look.
pub fn backing(pid: u32, address: u64, bytes: u64) -> Option<Backing> {
    let end = address.checked_add(bytes)?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mut covered = address;
    let mut shared: Option<Area> = None;
    let mut is_shared = true;
    for area in maps.lines().filter_map(Area::parse) {
        if covered < area.start || covered >= area.end {
            continue;
        }
        // A mapping may be cut where its flags differ; it is one file all the same.
        match &shared {
            None => shared = Some(Area { offset: area.offset.wrapping_add(covered - area.start), ..area.clone() }),
            Some(first) => {
                let follows = first.offset.wrapping_add(covered - address) == area.offset;
                is_shared &= follows && first.inode == area.inode;
            }
        }
        is_shared &= area.shared && area.inode != 0;
        covered = area.end;
        if covered >= end {
            break;
        }
    }
    let first = shared.filter(|_| covered >= end)?;
    if !is_shared {
        return Some(Backing::Private);
    }
    Some(open_shared(pid, &first).map_or(Backing::Private, |file| Backing::File(file, first.offset)))
}

/// A line of `/proc/PID/maps`.
#[derive(Clone, Debug)]
struct Area {
    start: u64,
    end: u64,
    shared: bool,
    offset: u64,
    inode: u64,
    name: String,
}

impl Area {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        Some(Self {
            start: hex(start)?,
            end: hex(end)?,
            shared: words.next()?.ends_with('s'),
            offset: hex(words.next()?)?,
            inode: words.nth(1)?.parse().ok()?,
            name: words.next().unwrap_or_default().trim_start().to_owned(),
        })
    }
}

/// Opens the file behind a shared mapping: through the process's own descriptor, which also works for memory files
/// without a name, or by its path.
fn open_shared(pid: u32, area: &Area) -> Option<File> {
    let open = |path: &Path| {
        let is_it = fs::metadata(path).is_ok_and(|data| data.ino() == area.inode);
        if is_it { OpenOptions::new().read(true).open(path).ok() } else { None }
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().filter_map(Result::ok);
    descriptors
        .map(|entry| entry.path())
        .filter(|path| fs::read_link(path).is_ok_and(|name| name.as_os_str() == area.name.as_str()))
        .find_map(|path| open(&path))
        .or_else(|| open(Path::new(&area.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_itself() {
        let me = std::process::id();
        assert!(start_time(me).is_some());
        assert_eq!(start_time(u32::MAX), None);
        assert!(!arguments(me).is_empty());
        let heap = vec![0u8; 4096];
        assert!(matches!(backing(me, heap.as_ptr() as u64, 4096), Some(Backing::Private)));
        assert!(backing(me, 0, 4096).is_none());
    }
}
