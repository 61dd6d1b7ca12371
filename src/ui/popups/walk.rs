//! A page walk: each level with its entry, its flags, and the bits that changed last.
//!
//! ```text
//! LEVEL  INDEX  AT             ENTRY              FLAGS
//! PML4   0ff       22d7f8      1`0f067063         present writable accessed dirty
//! PT     1a1      1208d10      80000000`01f40867  present writable user accessed dirty nx
//!                       was    80000000`01f40825  +writable +dirty
//! ```

use ratatui::text::Span;

use super::{
    Desk,
    sheet::{Sheet, column, column_right},
};
use crate::{
    engine::snapshot::{MissingPage, Table, Va, WalkEntry},
    ui::format,
};

/// Bits of a page-table entry that software or the processor changes one by one, with their names
/// (Intel SDM volume 3A, section 4.5, "4-level paging and 5-level paging").
const BITS: &[(u32, &str)] = &[
    (0, "present"),
    (1, "writable"),
    (2, "user"),
    (3, "write-through"),
    (4, "uncached"),
    (5, "accessed"),
    (6, "dirty"),
    (7, "large/pat"),
    (8, "global"),
    (63, "nx"),
];
/// Bits 12 to 51: where the entry points to.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// Fewer columns than this have no room for an entry and its flags side by side.
const NARROW: u16 = 72;

pub(super) fn sheet(desk: &Desk<'_>, table: &Table) -> Sheet {
    let theme = desk.theme;
    let address = format::Address(table.address.0).to_string();
    let mut sheet = Sheet::new(desk, format!("Page walk of {address}"));
    if !table.symbol.is_empty() {
        sheet.field("symbol", &table.symbol, theme.symbol);
    }
    match (table.paged_in, table.pa) {
        _ if table.ended.is_some() => {
            sheet.field("state", table.ended.as_deref().unwrap_or_default(), theme.pending);
        }
        (true, Some(pa)) => {
            let text = format!(
                "{} in: {address} {} {:x}, {} page",
                desk.glyphs.on,
                desk.glyphs.arrow,
                pa.0,
                format::size(table.page_bytes)
            );
            sheet.field("state", &text, theme.paged_in);
        }
        (true, None) => sheet.field("state", &format!("{} in", desk.glyphs.on), theme.paged_in),
        (false, _) => {
            sheet.field("state", &format!("{} out: the guest does not map it", desk.glyphs.off), theme.paged_out);
        }
    }
    let owner = table.pid.map_or_else(|| "kernel".to_owned(), |pid| format!("process {pid}"));
    sheet.field("space", &format!("{owner}, root {:x}, view {}", table.root.0, table.view), theme.symbol);
    if !table.tag.is_empty() {
        sheet.field("tag", &table.tag, theme.tag);
    }
    let ago = table.last_change_ns.map(|at| format::age(desk.snapshot.taken_at_ns.saturating_sub(at)));
    let changes = match ago {
        Some(ago) => format!("{}, the last one {ago} ago", format::count(table.changes)),
        None => format::count(table.changes),
    };
    sheet.field("changes", &changes, theme.number);
    missing(&mut sheet, desk, table.missing.as_ref());
    sheet.gap();
    levels(&mut sheet, desk, table.address, &table.walk);
    sheet
}

/// The levels of a walk, top level first.
pub(super) fn levels(sheet: &mut Sheet, desk: &Desk<'_>, va: Va, walk: &[WalkEntry]) {
    let theme = desk.theme;
    if walk.is_empty() {
        sheet.text("The page tables cannot be read.", theme.missing);
        return;
    }
    // Where there is no room beside an entry, its flags go below it.
    let narrow = desk.columns < NARROW;
    let heading = |text, columns| column(text, columns, theme.label);
    let mut line = vec![heading("LEVEL", 5), heading("INDEX", 5)];
    if !narrow {
        line.push(column_right("AT", 10, theme.label));
    }
    line.push(heading("ENTRY", 17));
    if !narrow {
        line.push(heading("FLAGS", 5));
    }
    sheet.line(line);
    for entry in walk {
        let changed = entry.previous.map_or(0, |previous| previous ^ entry.entry);
        let mut line = vec![
            column(entry.level, 5, theme.section),
            column(&index(entry.level, va).map_or_else(String::new, |i| format!("{i:03x}")), 5, theme.muted),
        ];
        if !narrow {
            line.push(column_right(&format!("{:x}", entry.entry_pa.0), 10, theme.muted));
        }
        digits(&mut line, desk, entry.entry, changed);
        if narrow {
            sheet.line(std::mem::take(&mut line));
            line.push(Span::raw("      "));
        }
        if entry.flags.is_empty() {
            line.push(Span::styled("not present", theme.missing));
        } else {
            for flag in &entry.flags {
                let bit = BITS.iter().find(|(_, name)| name == flag).map_or(0, |(bit, _)| 1u64 << bit);
                let style = if changed & bit == 0 { theme.symbol } else { theme.changed };
                line.push(Span::styled(*flag, style));
                line.push(Span::raw(" "));
            }
        }
        sheet.line(line);
        if let Some(previous) = entry.previous.filter(|_| changed != 0) {
            let before = if narrow { 0 } else { 12 };
            let mut line = vec![Span::raw(" ".repeat(before)), column_right("was", 10, theme.label)];
            digits(&mut line, desk, previous, 0);
            if narrow {
                sheet.line(std::mem::take(&mut line));
                line.push(Span::raw("      "));
            }
            line.push(Span::styled(changes(entry.entry, changed), theme.here));
            sheet.line(line);
        }
    }
}

/// Where a walk ends: the physical address of what `va` maps to, and the size of its page in bytes. `None` when the last
/// entry is not present or leads to another table (Intel SDM volume 3A, section 4.5).
fn leads_to(va: Va, walk: &[WalkEntry]) -> Option<(u64, u64)> {
    let last = walk.last().filter(|last| last.flags.contains(&"present"))?;
    let page_bytes: u64 = match (last.level, last.entry >> 7 & 1) {
        ("PT", _) => 1 << 12,
        ("PD", 1) => 1 << 21,
        ("PDPT", 1) => 1 << 30,
        _ => return None,
    };
    Some((last.entry & FRAME & !(page_bytes - 1) | va.0 & (page_bytes - 1), page_bytes))
}

/// Says where a walk ends.
pub(super) fn end(sheet: &mut Sheet, desk: &Desk<'_>, va: Va, walk: &[WalkEntry]) {
    if let Some((pa, page_bytes)) = leads_to(va, walk) {
        sheet.gap();
        let text = format!("physical {pa:x}, in a page of {}", format::size(page_bytes));
        sheet.field("maps to", &text, desk.theme.paged_in);
    }
}

/// Says what there is of a page that is not mapped, and what can be done.
pub(super) fn missing(sheet: &mut Sheet, desk: &Desk<'_>, missing: Option<&MissingPage>) {
    let Some(missing) = missing else { return };
    sheet.field("page", &missing.what, desk.theme.missing);
    if let Some(pa) = missing.pa {
        let readable = missing.readable_at.map(|va| format!(", readable at {} of the kernel", format::Address(va.0)));
        let text = format!("in memory at physical {:x}{}", pa.0, readable.unwrap_or_default());
        sheet.field("bytes", &text, desk.theme.paged_in);
    }
    sheet.field("to do", &missing.advice, desk.theme.symbol);
}

/// The index into a level's table that an address selects: nine bits each, the PT's from bit 12.
fn index(level: &str, va: Va) -> Option<u64> {
    let shift = match level {
        "PML5" => 48,
        "PML4" => 39,
        "PDPT" => 30,
        "PD" => 21,
        "PT" => 12,
        _ => return None,
    };
    Some(va.0 >> shift & 0x1ff)
}

/// An entry as 16 digits, those with a changed bit marked.
fn digits(line: &mut Vec<Span<'static>>, desk: &Desk<'_>, entry: u64, changed: u64) {
    let theme = desk.theme;
    for nth in (0..16).rev() {
        let digit = entry >> (nth * 4) & 0xf;
        let style = if changed >> (nth * 4) & 0xf == 0 { theme.number } else { theme.changed };
        line.push(Span::styled(format!("{digit:x}"), style));
        if nth == 8 {
            line.push(Span::styled("`", theme.muted));
        }
    }
    line.push(Span::raw(" "));
}

/// What changed, in words: `+dirty -writable frame`.
fn changes(now: u64, changed: u64) -> String {
    let named = BITS.iter().filter(|(bit, _)| changed >> bit & 1 == 1);
    let mut words: Vec<String> = named
        .map(|(bit, name)| {
            let sign = if now >> bit & 1 == 1 { '+' } else { '-' };
            format!("{sign}{name}")
        })
        .collect();
    if changed & FRAME != 0 {
        words.push("frame".to_owned());
    }
    let known = BITS.iter().fold(FRAME, |mask, (bit, _)| mask | 1 << bit);
    if changed & !known != 0 {
        words.push("other bits".to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_selects_an_entry_at_each_level() {
        let va = Va(0xffff_f803_1c2a_41f0);
        let indices = ["PML5", "PML4", "PDPT", "PD", "PT", "?"].map(|level| index(level, va));
        assert_eq!(indices, [Some(0x1ff), Some(0x1f0), Some(0xc), Some(0xe1), Some(0xa4), None]);
    }

    #[test]
    fn a_walk_ends_in_a_page_of_some_size() {
        let walk = |level, entry, flags: &[&'static str]| {
            vec![WalkEntry { level, entry_pa: Default::default(), entry, previous: None, flags: flags.to_vec() }]
        };
        let va = Va(0xffff_f803_1c2a_41f0);
        let present = ["present"];
        assert_eq!(leads_to(va, &walk("PT", 0x8000_0000_01f4_0867, &present)), Some((0x1f4_01f0, 0x1000)));
        assert_eq!(leads_to(va, &walk("PD", 0x1_2020_10e7, &present)), Some((0x1_202a_41f0, 0x20_0000)));
        assert_eq!(leads_to(va, &walk("PDPT", 0x1_4000_00e7, &present)), Some((0x1_5c2a_41f0, 0x4000_0000)));
        assert_eq!(leads_to(va, &walk("PD", 0x1_2020_1067, &present)), None, "a table that could not be read");
        assert_eq!(leads_to(va, &walk("PT", 0x1f4_0866, &[])), None);
        assert_eq!(leads_to(va, &[]), None);
    }

    #[test]
    fn changes_are_told_in_words() {
        assert_eq!(changes(0x1f4_0867, 0x1f4_0867 ^ 0x1f4_0825), "+writable +dirty");
        assert_eq!(changes(0x0, 0x8000_0000_01f4_0001), "-present -nx frame");
        assert_eq!(changes(1 << 9, 1 << 9), "other bits");
    }
}
