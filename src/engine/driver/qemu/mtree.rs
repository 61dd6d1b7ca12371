//! Where guest-physical memory lies in QEMU's RAM blocks, out of the monitor's `info mtree -f`.
//!
//! The flat view of the address space `memory` names every range with its kind, its block and the offset in it
//! (QEMU: `softmmu/memory.c`, `mtree_print_flatview`). Asking beats knowing where each machine type puts its hole.

/// More ranges than any machine has.
const MOST_RANGES: usize = 4096;

/// A range of guest-physical memory that is RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Its first address.
    pub start: u64,
    /// The address behind its last.
    pub end: u64,
    /// The RAM block that holds it.
    pub block: String,
    /// Where in the block it starts.
    pub offset: u64,
}

/// The RAM of the address space `memory` in ascending order, without overlaps. Device memory (video RAM, flash) is left
/// out: a block counts if some of it is plain RAM of the machine itself, and then its write-protected parts do too.
pub fn parse(text: &str) -> Vec<RamRange> {
    let mut ranges = Vec::new();
    let mut wanted = false;
    for line in text.lines() {
        if line.starts_with("FlatView") {
            if !ranges.is_empty() {
                break;
            }
            wanted = false;
        } else if let Some(name) = line.trim_start().strip_prefix("AS \"") {
            wanted |= name.starts_with("memory\"");
        } else if wanted
            && let Some(range) = range(line)
            && ranges.len() < MOST_RANGES
        {
            ranges.push(range);
        }
    }
    let blocks: Vec<String> = ranges.iter().filter(|(plain, _)| *plain).map(|(_, range)| range.block.clone()).collect();
    let mut ranges: Vec<RamRange> =
        ranges.into_iter().map(|(_, range)| range).filter(|range| blocks.contains(&range.block)).collect();
    ranges.sort_by_key(|range| range.start);
    let mut end = 0;
    ranges.retain(|range| {
        let fits = range.start >= end;
        if fits {
            end = range.end;
        }
        fits
    });
    join(ranges)
}

/// `  START-LAST (prio N, KIND): NAME [@OFFSET] [KVM]`, with whether it is plain RAM.
fn range(line: &str) -> Option<(bool, RamRange)> {
    let (span, rest) = line.trim().split_once(" (prio ")?;
    let (start, last) = span.split_once('-')?;
    let (start, last) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(last, 16).ok()?);
    let (kind, name) = rest.split_once("): ")?;
    let (priority, kind) = kind.split_once(", ")?;
    if !matches!(kind, "ram" | "rom") {
        return None;
    }
    let name = name.strip_suffix(" KVM").unwrap_or(name);
    let (block, offset) = match name.rsplit_once(" @") {
        Some((block, offset)) => (block, u64::from_str_radix(offset, 16).ok()?),
        None => (name, 0),
    };
    let end = last.checked_add(1)?;
    let length = end.checked_sub(start).filter(|length| *length > 0)?;
    offset.checked_add(length)?;
    // PCI devices' own memory is mapped with a higher priority than the machine's.
    let plain = kind == "ram" && priority == "0";
    Some((plain, RamRange { start, end, block: block.to_owned(), offset }))
}

/// Ranges that go on in the same block become one.
fn join(ranges: Vec<RamRange>) -> Vec<RamRange> {
    let mut joined: Vec<RamRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last)
                if last.end == range.start
                    && last.block == range.block
                    && last.offset.wrapping_add(last.end - last.start) == range.offset =>
            {
                last.end = range.end;
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PC: &str = "FlatView #0\r
 AS \"I/O\", root: io\r
 Root memory region: io\r
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\r
\r
FlatView #1\r
 AS \"i440FX\", root: bus master container\r
 Root memory region: (none)\r
  No rendered FlatView\r
\r
FlatView #2\r
 AS \"memory\", root: system\r
 AS \"cpu-memory-0\", root: system\r
 Root memory region: system\r
  0000000000000000-000000000009ffff (prio 0, ram): ram KVM\r
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\r
  00000000000c0000-00000000000c9fff (prio 0, rom): ram @00000000000c0000 KVM\r
  00000000000ca000-00000000bfffffff (prio 0, ram): ram @00000000000ca000 KVM\r
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram KVM\r
  00000000febf0400-00000000febf041f (prio 0, i/o): vga ioports remapped\r
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios KVM\r
  0000000100000000-000000017fffffff (prio 0, ram): ram @00000000c0000000 KVM\r
\r
FlatView #3\r
 AS \"cpu-smm-1\", root: memory\r
 Root memory region: memory\r
  0000000000000000-00000000000bffff (prio 0, ram): ram\r
";

    #[test]
    fn finds_ram_below_and_above_the_hole() {
        let range = |start, end, offset| RamRange { start, end, block: "ram".into(), offset };
        assert_eq!(
            parse(PC),
            [
                range(0, 0xa_0000, 0),
                range(0xc_0000, 0xc000_0000, 0xc_0000),
                range(0x1_0000_0000, 0x1_8000_0000, 0xc000_0000)
            ]
        );
    }

    #[test]
    fn a_lie_gives_nothing() {
        for text in [
            "",
            "FlatView #0\n AS \"memory\", root: system\n  10-0 (prio 0, ram): x",
            "FlatView #0\n AS \"memory\", root: system\n  10-f (prio 0, ram): x",
            "FlatView #0\n AS \"memory\", root: system\n  0-ffffffffffffffff (prio 0, ram): x",
            "FlatView #0\n AS \"memory\", root: system\n  0-fff (prio 0, ram): x @ffffffffffffffff",
        ] {
            assert_eq!(parse(text), [], "{text}");
        }
    }

    proptest! {
        #[test]
        fn ranges_ascend_whatever_is_said(lines in proptest::collection::vec(
            (0u64..0x8000, 0u64..0x8000, 0u64..0x8000, "(ram|rom|i/o)", 0..2u8), 0..20)) {
            let mut text = String::from("FlatView #0\n AS \"memory\", root: system\n");
            for (start, end, offset, kind, priority) in lines {
                text += &format!("  {start:016x}-{end:016x} (prio {priority}, {kind}): r @{offset:016x}\n");
            }
            let mut end = 0;
            for range in parse(&text) {
                prop_assert!(range.start >= end && range.start < range.end);
                end = range.end;
            }
        }
    }
}
