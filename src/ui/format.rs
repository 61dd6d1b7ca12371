//! How values are written: addresses as WinDbg writes them, sizes, counts, spans of time.

use std::fmt;

/// A virtual address: `fffff803`1c2a41f0`, and without the upper half where that is zero.
#[derive(Clone, Copy, Debug)]
pub struct Address(pub u64);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 >> 32, self.0 & 0xffff_ffff) {
            (0, low) => write!(f, "{low:x}"),
            (high, low) => write!(f, "{high:x}`{low:08x}"),
        }
    }
}

/// A count with its thousands set apart: `1,204`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count in no more than five characters: `999`, `1.2k`, `48k`, `3.1M`.
pub fn short_count(value: u64) -> String {
    let scaled = |unit: u64, letter: char| {
        let whole = value / unit;
        let tenth = value % unit * 10 / unit;
        if whole < 10 && tenth > 0 { format!("{whole}.{tenth}{letter}") } else { format!("{whole}{letter}") }
    };
    match value {
        0..1_000 => value.to_string(),
        1_000..1_000_000 => scaled(1_000, 'k'),
        1_000_000..1_000_000_000 => scaled(1_000_000, 'M'),
        1_000_000_000..1_000_000_000_000 => scaled(1_000_000_000, 'G'),
        _ => scaled(1_000_000_000_000, 'T'),
    }
}

/// A size in bytes: `4K`, `2M`, `1G`, `512`; spelled `512 MiB` by [`memory`].
pub fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        b if b.is_multiple_of(1 << 30) => format!("{}G", b >> 30),
        b if b.is_multiple_of(1 << 20) => format!("{}M", b >> 20),
        b if b.is_multiple_of(1 << 10) => format!("{}K", b >> 10),
        b => b.to_string(),
    }
}

/// An amount of memory: `512 MiB`, `4 GiB`.
pub fn memory(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b.is_multiple_of(1 << 30) => format!("{} GiB", b >> 30),
        b if b >= 64 << 20 || (b >= 1 << 20 && b.is_multiple_of(1 << 20)) => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

/// A span of time as a clock shows it: `0:12`, `3:07:44`, `5d03h`.
pub fn span(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours) {
        (0, 0) => format!("{minutes}:{:02}", seconds % 60),
        (0, _) => format!("{hours}:{:02}:{:02}", minutes % 60, seconds % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// How long something took or has been there, in no more than six characters: `830µs` as `0.8ms`, `12ms`, `4.2s`, `3m07`.
pub fn age(ns: u64) -> String {
    let ms = ns / 1_000_000;
    match ms {
        0..10 => format!("{ms}.{}ms", ns / 100_000 % 10),
        10..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}.{}s", ms / 1_000, ms / 100 % 10),
        60_000..3_600_000 => format!("{}m{:02}", ms / 60_000, ms / 1_000 % 60),
        3_600_000..86_400_000 => format!("{}h{:02}", ms / 3_600_000, ms / 60_000 % 60),
        _ => format!("{}d{:02}h", ms / 86_400_000, ms / 3_600_000 % 24),
    }
}

/// A point in time on the snapshot's clock: `1:02:03.456`, minutes and seconds where there is no hour.
pub fn clock(ns: u64) -> String {
    let ms = ns / 1_000_000;
    let (hours, minutes, seconds, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000);
    match hours {
        0 => format!("{minutes}:{seconds:02}.{ms:03}"),
        1..1_000 => format!("{hours}:{minutes:02}:{seconds:02}.{ms:03}"),
        _ => format!("{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_as_people_write_them() {
        assert_eq!(Address(0xffff_f803_1c2a_41f0).to_string(), "fffff803`1c2a41f0");
        assert_eq!(Address(0x7ffa_1c2a_0000).to_string(), "7ffa`1c2a0000");
        assert_eq!(Address(0x40_1000).to_string(), "401000");
        assert_eq!([count(0), count(999), count(1_204), count(1_234_567)], ["0", "999", "1,204", "1,234,567"]);
        assert_eq!([short_count(999), short_count(1_240), short_count(48_000)], ["999", "1.2k", "48k"]);
        assert_eq!([size(4096), size(2 << 20), size(1 << 30), size(0)], ["4K", "2M", "1G", "-"]);
        assert_eq!([memory(512 << 20), memory(4 << 30), memory(2016 << 10)], ["512 MiB", "4 GiB", "2016 KiB"]);
        assert_eq!([span(12_000_000_000), span(11_264_000_000_000)], ["0:12", "3:07:44"]);
        assert_eq!(
            [age(830_000), age(12_000_000), age(4_200_000_000), age(187_000_000_000)],
            ["0.8ms", "12ms", "4.2s", "3m07"]
        );
        assert_eq!([clock(62_034_000_000), clock(3_723_456_000_000)], ["1:02.034", "1:02:03.456"]);
    }

    #[test]
    fn the_largest_values_have_a_form() {
        for text in [
            count(u64::MAX),
            short_count(u64::MAX),
            size(u64::MAX),
            memory(u64::MAX),
            span(u64::MAX),
            age(u64::MAX),
            clock(u64::MAX),
        ] {
            assert!(!text.is_empty() && text.len() <= 26, "{text}");
        }
    }
}
