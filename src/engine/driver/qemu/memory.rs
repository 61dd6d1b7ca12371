//! Guest-physical memory of a QEMU guest, by the cheapest way there is for each RAM block.
//!
//! The ladder: the file that the user names; the file or memory file that QEMU shares (found in the process's own
//! mappings), mapped; the process's memory (`/proc/PID/mem`, 0.8 µs a page); else the monitor's `xp`, as text (0.7 ms a
//! page), which also works across machines. None of them stops the guest; the gdb stub's reads would.

use std::{cell::Cell, fs::File, io, os::unix::fs::FileExt, path::Path};

use super::{
    mapping::Mapping,
    mtree::{self, RamRange},
    process::{self, Backing},
    qmp::Qmp,
};
use crate::engine::{addr::Pa, error::VmiError};

/// How the RAM is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPath {
    /// Mapped: a read is a memory access.
    Mapped,
    /// Read out of QEMU's process.
    Process,
    /// Asked of the monitor.
    Monitor,
}

/// Where a block's bytes are.
enum Source {
    Mapping(Mapping),
    /// The block's address in the process.
    Process(u64),
    Monitor,
}

struct Region {
    start: u64,
    end: u64,
    /// Offset of `start` in the block.
    offset: u64,
    block: usize,
}

/// A guest's RAM.
pub struct Memory {
    regions: Vec<Region>,
    blocks: Vec<Source>,
    process: Option<(u32, File)>,
    /// The region of the last read: page tables and what they map are mostly in the same one.
    last: Cell<usize>,
    direct: bool,
}

/// Pages of 4 KiB that are shared with files at most, this program's own too: 64 MiB.
const MOST_TOUCHED: u64 = 16 << 10;
/// Bytes per question to the monitor.
const MONITOR_PIECE: u64 = 16 << 10;

impl Memory {
    /// Finds out where the RAM is. `pid` is QEMU's process where that is known.
    ///
    /// # Errors
    /// When QEMU does not tell its memory map, or the user's file cannot hold the guest's memory.
    pub fn open(qmp: &mut Qmp, pid: Option<u32>, file: Option<&Path>) -> Result<Self, VmiError> {
        let ranges = mtree::parse(&qmp.human("info mtree -f", None)?);
        // The block at 1 MiB is the machine's main memory, whatever its name.
        let main = ranges.iter().find(|range| range.end > 0x10_0000).map(|range| range.block.clone());
        let Some(main) = main else {
            return Err(VmiError::driver("asking QEMU where the guest's memory is", "its monitor names no RAM"));
        };
        let mut names: Vec<&str> = Vec::new();
        let mut regions = Vec::new();
        for range in &ranges {
            let block = names.iter().position(|&name| name == range.block).unwrap_or_else(|| {
                names.push(&range.block);
                names.len() - 1
            });
            regions.push(Region { start: range.start, end: range.end, offset: range.offset, block });
        }
        let process = pid.and_then(|pid| Some((pid, File::open(format!("/proc/{pid}/mem")).ok()?)));
        let mut blocks = Vec::new();
        for name in names {
            let of_block = || ranges.iter().filter(|range| range.block == name);
            let bytes = of_block().map(|range| range.offset + (range.end - range.start)).max().unwrap_or(0);
            blocks.push(match (file.filter(|_| name == main), pid, of_block().next()) {
                (Some(path), ..) => Source::Mapping(map_users_file(path, bytes)?),
                (None, Some(pid), Some(first)) => in_process(qmp, pid, process.is_some(), first, bytes)?,
                _ => Source::Monitor,
            });
        }
        let direct = blocks.iter().all(|block| matches!(block, Source::Mapping(_)));
        Ok(Self { regions, blocks, process, last: Cell::new(0), direct })
    }

    /// Whether every read is a memory access.
    #[inline]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Keeps the pages that were touched in mapped memory from adding up to the guest's size in our process.
    pub fn trim(&self) {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        // The third number: pages that are shared with files (`proc_pid_statm(5)`).
        let shared = statm.split(' ').nth(2).and_then(|pages| pages.parse::<u64>().ok());
        if shared.is_some_and(|pages| pages > MOST_TOUCHED) {
            for block in &self.blocks {
                if let Source::Mapping(mapping) = block {
                    mapping.release();
                }
            }
        }
    }

    /// How the bulk of the RAM is reached.
    pub fn path(&self) -> MemoryPath {
        let largest = self.regions.iter().max_by_key(|region| region.end - region.start);
        match largest.and_then(|region| self.blocks.get(region.block)) {
            Some(Source::Mapping(_)) => MemoryPath::Mapped,
            Some(Source::Process(_)) => MemoryPath::Process,
            _ => MemoryPath::Monitor,
        }
    }

    /// Bytes of RAM.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.end - region.start).sum()
    }

    /// The address behind the highest byte of RAM.
    pub fn end(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.end)
    }

    /// The region that holds an address.
    #[inline]
    fn region(&self, pa: u64) -> Option<&Region> {
        let holds = |region: &&Region| pa >= region.start && pa < region.end;
        if let Some(region) = self.regions.get(self.last.get()).filter(holds) {
            return Some(region);
        }
        let index = self.regions.partition_point(|region| region.end <= pa);
        let region = self.regions.get(index).filter(holds)?;
        self.last.set(index);
        Some(region)
    }

    /// Eight bytes of mapped memory; `None` means that [`Memory::read`] has to be asked.
    #[inline]
    pub fn read_mapped_u64(&self, pa: Pa) -> Option<u64> {
        let region = self.region(pa.0)?;
        if region.end - pa.0 < 8 {
            return None;
        }
        match self.blocks.get(region.block) {
            Some(Source::Mapping(mapping)) => mapping.read_u64(region.offset + (pa.0 - region.start)),
            _ => None,
        }
    }

    /// Copies guest-physical memory. The monitor is borrowed only where there is no better way.
    ///
    /// # Errors
    /// [`VmiError::OutOfBounds`] with the first address that is not RAM; [`VmiError::Lost`] when the memory has gone.
    pub fn read(
        &self,
        mut pa: Pa,
        mut buffer: &mut [u8],
        monitor: &mut dyn FnMut(&str) -> Result<String, VmiError>,
    ) -> Result<(), VmiError> {
        while !buffer.is_empty() {
            let region = self.region(pa.0).ok_or_else(|| VmiError::OutOfBounds(pa))?;
            let room = usize::try_from(region.end - pa.0).unwrap_or(usize::MAX);
            let (part, rest) = buffer.split_at_mut(room.min(buffer.len()));
            let offset = region.offset + (pa.0 - region.start);
            match self.blocks.get(region.block) {
                Some(Source::Mapping(mapping)) => mapping.read(offset, part).ok_or_else(torn)?,
                Some(&Source::Process(base)) => self.read_process(base.wrapping_add(offset), part)?,
                _ => read_monitor(pa, part, monitor)?,
            }
            pa += part.len() as u64;
            buffer = rest;
        }
        Ok(())
    }

    fn read_process(&self, address: u64, buffer: &mut [u8]) -> Result<(), VmiError> {
        let Some((pid, process)) = &self.process else {
            return Err(VmiError::Unsupported { what: "reading QEMU's process" });
        };
        process.read_exact_at(buffer, address).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                VmiError::Lost(format!("the guest is gone: QEMU (process {pid}) has ended"))
            }
            _ => VmiError::driver(format!("reading the memory of QEMU (process {pid}) at {address:#x}"), error),
        })
    }
}

fn torn() -> VmiError {
    VmiError::Lost(
        "the guest's memory is out of reach: the file that holds it has shrunk or lost a page under vmscope; look whether \
         the guest still runs, and start vmscope again"
            .into(),
    )
}

fn map_users_file(path: &Path, bytes: u64) -> Result<Mapping, VmiError> {
    let mapped = File::open(path).and_then(|file| Mapping::new(&file, 0, bytes));
    mapped.map_err(|error| {
        VmiError::Invalid(format!(
            "using {} as the guest's memory: {error}; give the mem-path of QEMU's memory backend, or leave --memory out",
            path.display()
        ))
    })
}

/// The best way to a block in QEMU's process: by the file behind it, or out of the process where that may be read.
fn in_process(qmp: &mut Qmp, pid: u32, readable: bool, first: &RamRange, bytes: u64) -> Result<Source, VmiError> {
    let answer = qmp.human(&format!("gpa2hva {:#x}", first.start), None)?;
    let address = answer.trim_end().rsplit_once(" is 0x").and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok());
    let base = address.and_then(|address| address.checked_sub(first.offset));
    let Some(base) = base else { return Ok(Source::Monitor) };
    Ok(match process::backing(pid, base, bytes) {
        Some(Backing::File(file, offset)) => match Mapping::new(&file, offset, bytes) {
            Ok(mapping) => Source::Mapping(mapping),
            Err(_) if readable => Source::Process(base),
            Err(_) => Source::Monitor,
        },
        Some(Backing::Private) if readable => Source::Process(base),
        // The process at the other end of the socket is not the one that has the memory, or it is not ours to read.
        _ => Source::Monitor,
    })
}

/// `xp /NNgx ADDRESS` prints `ADDRESS: 0x… 0x…`, two numbers a line.
fn read_monitor(
    pa: Pa,
    buffer: &mut [u8],
    monitor: &mut dyn FnMut(&str) -> Result<String, VmiError>,
) -> Result<(), VmiError> {
    let end = pa.0.wrapping_add(buffer.len() as u64);
    let mut at = pa.0 & !7;
    let mut filled = 0;
    while filled < buffer.len() {
        let words = (end.wrapping_sub(at).min(MONITOR_PIECE)).div_ceil(8);
        let text = monitor(&format!("xp /{words}gx {at:#x}"))?;
        let mut values = text
            .lines()
            .flat_map(|line| line.split_once(':').map_or("", |(_, values)| values).split_whitespace())
            .map_while(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
        for _ in 0..words {
            let value = values.next().ok_or(VmiError::OutOfBounds(Pa(at)))?;
            let skip = if filled == 0 { (pa.0 - at) as usize } else { 0 };
            for byte in value.to_le_bytes().into_iter().skip(skip) {
                if let Some(place) = buffer.get_mut(filled) {
                    *place = byte;
                    filled += 1;
                }
            }
            at = at.wrapping_add(8);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monitors_text_becomes_bytes() {
        let mut asked = Vec::new();
        let mut monitor = |line: &str| {
            asked.push(line.to_owned());
            let mut words = line.split([' ', '/']).filter(|word| !word.is_empty());
            let count: u64 = words.nth(1).and_then(|word| word.strip_suffix("gx")?.parse().ok()).unwrap_or(0);
            let from = words.next().and_then(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
            let from = from.unwrap_or(0);
            let values: Vec<u64> = (0..count).map(|n| (from + n * 8) * 0x0101).collect();
            Ok(values.chunks(2).fold(String::new(), |text, pair| {
                let pair: Vec<String> = pair.iter().map(|value| format!("{value:#018x}")).collect();
                text + "0000000000001000: " + &pair.join(" ") + "\r\n"
            }))
        };
        let mut buffer = [0; 0x9001];
        assert!(read_monitor(Pa(0x1003), &mut buffer, &mut monitor).is_ok());
        let want: Vec<u8> =
            (0x1000u64..0xb000).step_by(8).flat_map(|at| (at * 0x0101).to_le_bytes()).skip(3).take(0x9001).collect();
        assert_eq!(buffer[..], want[..]);
        assert_eq!(asked, ["xp /2048gx 0x1000", "xp /2048gx 0x5000", "xp /513gx 0x9000"]);
    }

    #[test]
    fn a_monitor_that_cannot_says_where() {
        let mut monitor = |_: &str| Ok("0000000000001000: Cannot access memory\r\n".to_owned());
        let error = read_monitor(Pa(0x1004), &mut [0; 16], &mut monitor);
        assert!(matches!(error, Err(VmiError::OutOfBounds(Pa(0x1000)))));
    }
}
