//! A stretch of memory: bytes, then the same as instructions, then the walk of its first address.
//!
//! ```text
//!     7ffa`1c2a0ff0  4c 8b dc 48 81 ec 88 00  00 00 33 c0 49 89 43 f0  L..H......3.I.C.
//!     7ffa`1c2a1000  ?? ?? ?? ?? ?? ?? ?? ??  ...                      not in memory
//! ```

use ratatui::text::Span;

use super::{
    Desk, code,
    sheet::{Sheet, column_right},
    walk,
};
use crate::{engine::snapshot::MemoryDetail, ui::format};

pub(super) fn sheet(desk: &Desk<'_>, memory: &MemoryDetail) -> Sheet {
    let owner = memory.pid.map_or_else(|| "the kernel".to_owned(), |pid| format!("process {pid}"));
    let address = format::Address(memory.va.0);
    let mut sheet = Sheet::new(desk, format!("Memory of {owner} at {address}"));
    dump(&mut sheet, desk, memory);
    if !memory.code.is_empty() {
        sheet.section("As instructions");
        code::lines(&mut sheet, desk, &memory.code);
    }
    sheet.section(format!("Page walk of {address} under root {:x}", memory.root.0));
    walk::levels(&mut sheet, desk, memory.va, &memory.walk);
    sheet
}

fn dump(sheet: &mut Sheet, desk: &Desk<'_>, memory: &MemoryDetail) {
    let theme = desk.theme;
    let in_a_row = if desk.columns >= 86 { 16 } else { 8 };
    let mut address = memory.va;
    for row in memory.bytes.chunks(in_a_row) {
        let mut line = vec![column_right(&format::Address(address.0).to_string(), 17, theme.address), Span::raw(" ")];
        for (nth, byte) in row.iter().enumerate() {
            let gap = if nth % 8 == 7 { "  " } else { " " };
            line.push(match byte {
                Some(0) => Span::styled(format!("00{gap}"), theme.muted),
                Some(byte) => Span::styled(format!("{byte:02x}{gap}"), theme.number),
                None => Span::styled(format!("??{gap}"), theme.missing),
            });
        }
        let missing_cells = in_a_row - row.len();
        line.push(Span::raw(" ".repeat(missing_cells * 3 + usize::from(missing_cells >= 8))));
        if row.iter().all(Option::is_none) {
            line.push(Span::styled("not in memory", theme.missing));
        } else {
            let letter = |byte: &Option<u8>| match byte {
                Some(byte @ b' '..=b'~') => char::from(*byte),
                Some(_) => '.',
                None => '?',
            };
            line.push(Span::styled(row.iter().map(letter).collect::<String>(), theme.symbol));
        }
        sheet.line(line);
        address += in_a_row as u64;
    }
}
