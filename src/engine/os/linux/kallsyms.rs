//! The kernel's own symbol table (kallsyms), found in its read-only data by structure.
//!
//! The tables are written by `scripts/kallsyms.c` of the kernel's source, one behind the other. Their order changed in
//! 6.4 and parts of it were backported, so the version tells nothing:
//!
//! ```text
//! up to 6.3   offsets, relative_base, num_syms, names, markers, [seqs_of_names,] token_table, token_index
//! from 6.4    num_syms, names, markers, token_table, token_index, offsets, relative_base, seqs_of_names
//! newest      the same without relative_base: each offset is relative to its own address
//! ```
//!
//! Each table starts at a multiple of one power of two: 8 up to 6.19, 4 from 7.0 on. The distance from the number of names
//! to the names is that power of two, and every other gap must agree with it.
//!
//! What cannot be mistaken is the token table: 256 strings, of which those of the digits' codes are the digits, and
//! behind it an index that gives the position of each. From there the markers (positions of every 256th name, rising
//! from 0) are found backwards, from them the names, whose lengths must fit the markers exactly; at last the offsets, of
//! which the one of `_text` must give the start of the kernel. A pure function of bytes that a guest wrote: every
//! search is linear in them and every step checked.

use super::bytes::{string_at, u16_at, u32_at, u64_at};
use crate::engine::{
    addr::Va,
    symbols::{SymbolTable, SymbolTableBuilder},
};

/// Names per marker.
const GROUP: usize = 256;
/// What tables may be aligned to: any power of two that holds the four bytes of the number of names, up to a page.
const ALIGNMENTS: std::ops::RangeInclusive<u32> = 2..=12;
/// Longest token, and longest name in codes (`KSYM_NAME_LEN` is 512).
const LONGEST: usize = 600;
/// Bytes that a group of names can have: each at least a length and a code.
const GROUP_BYTES: std::ops::Range<u32> = GROUP as u32 * 2..(GROUP * LONGEST) as u32;
/// A kernel with fewer full groups of symbols than this is none.
const LEAST_MARKERS: usize = 4;
/// Names beyond this many bytes in all are a guest's trap: real tables have 4 MiB.
const MOST_TEXT: usize = 32 << 20;
/// More symbols than this are a trap as well: the largest kernels have 300,000.
const MOST_SYMBOLS: usize = 1 << 20;
/// Runs of digits that are looked at: a kernel has a handful.
const MOST_DIGITS: usize = 64;
/// Names that are walked over in search of the right ones, in all: real tables have 300,000 and are found at once.
const MOST_STEPS: usize = 1 << 24;
/// How far behind the start of the kernel `_text` or `_stext` may lie.
const TEXT_SLACK: u64 = 4 << 20;

/// Reads the symbols out of a stretch of kernel memory that holds the tables as a whole.
///
/// `at` is the address of the stretch's first byte, the start of a page; `text` is the address where the kernel's image
/// starts. `None` where no table is found that fits. Names are reduced to printable ASCII.
pub fn parse(memory: &[u8], at: Va, text: Va) -> Option<SymbolTable> {
    let mut from = 0;
    let mut steps = MOST_STEPS;
    for _ in 0..MOST_DIGITS {
        let digits = find_digits(memory, from)?;
        from = digits + 1;
        if let Some(table) =
            TokenTable::around(memory, digits).and_then(|tokens| read_table(memory, at, text, &tokens, &mut steps))
        {
            return Some(table);
        }
    }
    None
}

fn read_table(memory: &[u8], at: Va, text: Va, tokens: &TokenTable, steps: &mut usize) -> Option<SymbolTable> {
    find_markers(memory, tokens.start).iter().rev().find_map(|markers| {
        // Names that fit their markers may still be no kernel's: then the search goes on.
        Names::before(memory, markers, steps, |names, steps| {
            *steps = steps.checked_sub(names.count)?;
            let offsets = Offsets::find(memory, at, text, tokens, names)?;
            *steps = steps.checked_sub(names.count)?;
            expand(memory, tokens, names, &offsets)
        })
    })
}

fn expand(memory: &[u8], tokens: &TokenTable, names: &Names, offsets: &Offsets) -> Option<SymbolTable> {
    // Real tables expand to two to three bytes of text for each code.
    let mut builder = SymbolTableBuilder::with_capacity(names.count, (3 * names.bytes).min(MOST_TEXT));
    let mut text_bytes = 0usize;
    for (i, codes) in names.iter(memory).enumerate() {
        // The first character is the symbol's type, as `nm` prints it.
        let mut first = true;
        builder.push(
            offsets.address(memory, i)?,
            codes.iter().map(|&code| {
                let token = tokens.text(code);
                let skip = usize::from(std::mem::take(&mut first)).min(token.len());
                text_bytes += token.len();
                token.get(skip..).unwrap_or("")
            }),
        );
        if text_bytes > MOST_TEXT {
            return None;
        }
    }
    Some(builder.build())
}

/// The position of `0\01\02\0…9\0` at or behind `from`.
///
/// Any eight aligned bytes in the middle of it hold four digits in a row and four zeros, so looking at every eighth
/// byte is enough.
fn find_digits(memory: &[u8], from: usize) -> Option<usize> {
    const RUN: &[u8; 20] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";
    let skip = from & !7;
    let (words, _) = memory.get(skip..)?.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let even = word & 0xfff0_fff0_fff0_fff0 == 0x0030_0030_0030_0030;
        let odd = word & 0xf0ff_f0ff_f0ff_f0ff == 0x3000_3000_3000_3000;
        if !even && !odd {
            continue;
        }
        let here = skip + i * 8;
        let digit = if even { word & 0xf } else { word >> 8 & 0xf } as usize;
        let start = (here + usize::from(odd)).checked_sub(digit * 2);
        if let Some(start) = start.filter(|&start| start >= from && memory.get(start..start + 20) == Some(RUN)) {
            return Some(start);
        }
    }
    None
}

/// The strings that the codes 0 to 255 stand for.
struct TokenTable {
    /// Position of the table.
    start: usize,
    /// Position behind the index that follows it.
    end: usize,
    /// All strings, one behind the other.
    text: String,
    /// Where each begins in `text`; one more for the end of the last.
    bounds: Vec<usize>,
}

impl TokenTable {
    /// The table whose digits are at a position, if there is one with an index that fits it.
    fn around(memory: &[u8], digits: usize) -> Option<Self> {
        let mut end = digits;
        for _ in usize::from(b'0')..256 {
            end += string_at(memory, end, LONGEST)?.len() + 1;
        }
        let mut tried = end;
        Self::with_index(memory, digits, end).or_else(|| {
            ALIGNMENTS.map(|shift| end.next_multiple_of(1 << shift)).find_map(|index| {
                let new = std::mem::replace(&mut tried, index) != index;
                new.then(|| Self::with_index(memory, digits, index)).flatten()
            })
        })
    }

    fn with_index(memory: &[u8], digits: usize, index: usize) -> Option<Self> {
        let position = |code: usize| u16_at(memory, index + code * 2).map(usize::from);
        let start = digits.checked_sub(position(usize::from(b'0'))?)?;
        let (mut text, mut bounds) = (String::new(), vec![0]);
        let mut expected = 0;
        for code in 0..256 {
            if position(code)? != expected {
                return None;
            }
            let token = string_at(memory, start + expected, LONGEST)?;
            expected += token.len() + 1;
            text.extend(token.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }));
            bounds.push(text.len());
        }
        Some(Self { start, end: index + 512, text, bounds })
    }

    #[inline]
    fn text(&self, code: u8) -> &str {
        let code = usize::from(code);
        match (self.bounds.get(code), self.bounds.get(code + 1)) {
            (Some(&from), Some(&to)) => self.text.get(from..to).unwrap_or(""),
            _ => "",
        }
    }
}

/// A run of numbers that could be the markers.
struct Markers {
    start: usize,
    count: usize,
    last: u32,
}

/// The runs in front of the token table, in order.
fn find_markers(memory: &[u8], end: usize) -> Vec<Markers> {
    // Between markers and tokens there may be a sequence number of three or four bytes for each symbol.
    let from = end.saturating_sub(16 << 20) & !3;
    let (words, _) = memory.get(from..end).unwrap_or_default().as_chunks::<4>();
    let mut found = Vec::new();
    let mut run: Option<Markers> = None;
    for (i, word) in words.iter().enumerate() {
        let value = u32::from_le_bytes(*word);
        match &mut run {
            Some(markers) if GROUP_BYTES.contains(&value.wrapping_sub(markers.last)) => {
                markers.count += 1;
                markers.last = value;
            }
            _ => {
                found.extend(run.take().filter(|markers| markers.count >= LEAST_MARKERS));
                run = (value == 0).then_some(Markers { start: from + i * 4, count: 1, last: 0 });
            }
        }
    }
    found.extend(run.filter(|markers| markers.count >= LEAST_MARKERS));
    found
}

/// The compressed names.
struct Names {
    start: usize,
    count: usize,
    bytes: usize,
    /// What every table is aligned to.
    alignment: usize,
}

/// The length in codes of the name at a position, and where its codes begin (lengths above 127 take two bytes).
#[inline]
fn name_at(memory: &[u8], at: usize) -> Option<(usize, usize)> {
    let low = usize::from(*memory.get(at)?);
    if low < 0x80 {
        return Some((low, at + 1));
    }
    Some((low & 0x7f | usize::from(*memory.get(at + 1)?) << 7, at + 2))
}

impl Names {
    /// The names that end where the markers begin and are what is wanted. In front of them is their number, as far away
    /// as the tables are aligned.
    fn before<T>(
        memory: &[u8],
        markers: &Markers,
        steps: &mut usize,
        mut wanted: impl FnMut(&Self, &mut usize) -> Option<T>,
    ) -> Option<T> {
        let latest = markers.start.checked_sub(markers.last as usize)? & !3;
        let earliest = latest.saturating_sub(GROUP_BYTES.end as usize).max(4);
        for start in (earliest..=latest).rev().step_by(4) {
            for alignment in ALIGNMENTS.map(|shift| 1 << shift).take_while(|alignment| start % alignment == 0) {
                *steps = steps.checked_sub(1)?;
                let Some(number) = start.checked_sub(alignment) else { break };
                let count = u32_at(memory, number)? as usize;
                if count <= MOST_SYMBOLS
                    && count.div_ceil(GROUP) == markers.count
                    && let Some(names) = Self::check(memory, markers, start, count, alignment, steps)
                    && let Some(found) = wanted(&names, steps)
                {
                    return Some(found);
                }
            }
        }
        None
    }

    fn check(
        memory: &[u8],
        markers: &Markers,
        start: usize,
        count: usize,
        alignment: usize,
        steps: &mut usize,
    ) -> Option<Self> {
        let mut at = start;
        for i in 0..count {
            if i % GROUP == 0 && u32_at(memory, markers.start + i / GROUP * 4)? as usize != at - start {
                return None;
            }
            *steps = steps.checked_sub(1)?;
            let (length, codes) = name_at(memory, at)?;
            // A name has its type at least. Zeros are what fills the gap behind the last one.
            if length == 0 {
                return None;
            }
            at = codes + length;
        }
        let fits = at.next_multiple_of(alignment) == markers.start;
        fits.then_some(Self { start, count, bytes: at - start, alignment })
    }

    /// The codes of each name.
    fn iter<'a>(&self, memory: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut at = self.start;
        (0..self.count).map_while(move |_| {
            let (length, codes) = name_at(memory, at)?;
            at = codes + length;
            memory.get(codes..at)
        })
    }
}

/// How an offset becomes an address (`kallsyms_sym_address` in `kernel/kallsyms.c`).
#[derive(Clone, Copy)]
enum Form {
    /// Not negative: absolute (per-CPU variables); negative: `base - 1 - offset`.
    AbsolutePerCpu(u64),
    /// Unsigned, from a base.
    Relative(u64),
    /// Signed, from the offset's own address.
    OwnAddress(u64),
}

struct Offsets {
    start: usize,
    form: Form,
}

impl Offsets {
    fn find(memory: &[u8], at: Va, text: Va, tokens: &TokenTable, names: &Names) -> Option<Self> {
        let landmark = landmark(memory, tokens, names)?;
        let aligned = |bytes: usize| bytes.next_multiple_of(names.alignment);
        let array = aligned(names.count * 4);
        // In front of the number of names there is the base, in front of it the offsets.
        let base_before = names.start.checked_sub(names.alignment + aligned(8));
        let before = base_before.and_then(|base| Some((base.checked_sub(array)?, u64_at(memory, base)?)));
        let start_behind = aligned(tokens.end);
        let behind = u64_at(memory, start_behind + array).map(|base| (start_behind, base));
        let with_base = [before, behind].into_iter().flatten().flat_map(|(start, base)| {
            [Form::AbsolutePerCpu(base), Form::Relative(base)].map(|form| Self { start, form })
        });
        let own = Self { start: start_behind, form: Form::OwnAddress(at.0.wrapping_add(start_behind as u64)) };
        with_base
            .chain([own])
            .find(|offsets| offsets.address(memory, landmark).is_some_and(|va| va - text < TEXT_SLACK))
    }

    #[inline]
    fn address(&self, memory: &[u8], index: usize) -> Option<Va> {
        let offset = u32_at(memory, self.start + index * 4)?;
        let signed = offset as i32 as u64;
        Some(Va(match self.form {
            Form::AbsolutePerCpu(_) if (offset as i32) >= 0 => signed,
            Form::AbsolutePerCpu(base) => base.wrapping_sub(1).wrapping_sub(signed),
            Form::Relative(base) => base.wrapping_add(u64::from(offset)),
            Form::OwnAddress(array) => array.wrapping_add(index as u64 * 4).wrapping_add(signed),
        }))
    }
}

/// The number of a symbol whose address is known beforehand: `_text`, or `_stext` where it is missing.
fn landmark(memory: &[u8], tokens: &TokenTable, names: &Names) -> Option<usize> {
    let mut stext = None;
    for (i, codes) in names.iter(memory).enumerate() {
        if codes.len() > "t_stext".len() {
            continue;
        }
        let is = |name: &str| {
            let expanded = codes.iter().flat_map(|&code| tokens.text(code).bytes()).skip(1);
            expanded.eq(name.bytes())
        };
        if is("_text") {
            return Some(i);
        }
        if stext.is_none() && is("_stext") {
            stext = Some(i);
        }
    }
    stext
}
