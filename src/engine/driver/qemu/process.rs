//! What `/proc` tells about a QEMU process (proc(5)).

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::transport::Address;

/// The first part of a process's life: together with its id this names it for good, because ids are used again.
/// Clock ticks since the machine's start; `None` when there is no such process.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, blanks and brackets included; it ends at the last bracket.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    // A zombie has ended.
    if fields.next() == Some("Z") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A process's arguments.
pub fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

/// The processes that are QEMU's system emulators, by their program's name.
pub fn emulators() -> Vec<u32> {
    let Ok(folder) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = folder
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| {
            let arguments = arguments(pid);
            let program = arguments.first().map(Path::new).and_then(Path::file_name).and_then(|name| name.to_str());
            program.is_some_and(|name| name.starts_with("qemu-system-") || name == "qemu-kvm" || name == "kvm")
                && start_time(pid).is_some()
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// Where a QEMU with these arguments, started in this folder, serves QMP: `-qmp`, `-qmp-pretty`, and `-mon` with
/// `mode=control` on a `-chardev socket` (QEMU's manual page). Sockets handed over as descriptors have no address.
pub fn qmp_addresses(arguments: &[String], folder: &Path) -> Vec<Address> {
    let mut found = Vec::new();
    for pair in arguments.windows(2) {
        let [option, value] = pair else { continue };
        let option = option.trim_start_matches('-');
        let address = match option {
            "qmp" | "qmp-pretty" => value.parse().ok(),
            "mon" if property(value, "mode") == Some("control") => {
                let id = property(value, "chardev").or_else(|| value.split(',').next());
                id.and_then(|id| chardev(arguments, id))
            }
            _ => None,
        };
        match address {
            Some(Address::Unix(path)) => found.push(Address::Unix(folder.join(path))),
            Some(address) => found.push(address),
            None => {}
        }
    }
    found
}

/// The folder that a process's relative paths start at.
pub fn folder(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default()
}

fn property<'a>(options: &'a str, name: &str) -> Option<&'a str> {
    options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

fn chardev(arguments: &[String], id: &str) -> Option<Address> {
    arguments.windows(2).find_map(|pair| {
        let [option, value] = pair else { return None };
        if option.trim_start_matches('-') != "chardev" || property(value, "id") != Some(id) {
            return None;
        }
        match (property(value, "path"), property(value, "port")) {
            (Some(path), _) => Some(Address::Unix(path.into())),
            (None, Some(port)) => format!("{}:{port}", property(value, "host").unwrap_or_default()).parse().ok(),
            (None, None) => None,
        }
    })
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

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn qmp_is_found_in_every_spelling() {
        let unix = |path: &str| Address::Unix(path.into());
        for (line, want) in [
            ("qemu -m 1G -qmp unix:/run/q,server=on", vec![unix("/run/q")]),
            ("qemu --qmp unix:q,server,nowait", vec![unix("/home/q")]),
            ("qemu -qmp tcp:localhost:4444,server", vec![Address::Tcp("localhost:4444".into())]),
            ("qemu -chardev socket,id=m,path=/run/m -mon chardev=m,mode=control", vec![unix("/run/m")]),
            ("qemu -chardev socket,id=m,path=/run/m -mon chardev=m,mode=readline", vec![]),
            ("qemu -chardev socket,id=m,fd=23 -mon chardev=m,mode=control", vec![]),
            ("qemu -qmp stdio", vec![]),
            ("qemu -qmp", vec![]),
        ] {
            assert_eq!(qmp_addresses(&words(line), Path::new("/home")), want, "{line}");
        }
    }

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
