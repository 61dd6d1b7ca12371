//! What the memory view shows, as text for the clipboard.

use crate::{
    engine::snapshot::{MemoryDetail, Va},
    ui::{
        format::Address,
        memory::{self, CodeRow},
        state::{MemoryMode, MemoryView},
    },
};

/// The rows that are shown, or only the one under the cursor. A page walk is always whole.
pub(super) fn text(view: &MemoryView, held: &MemoryDetail, (rows, per_row): (u64, u64), only_here: bool) -> String {
    let lines: Vec<String> = match view.mode {
        MemoryMode::Bytes => {
            let here = |row: &Va| !only_here || view.cursor >= *row && view.cursor - *row < per_row;
            let shown = (0..rows).filter_map(|nth| view.top.checked_add(nth * per_row));
            shown.filter(here).map(|row| bytes(held, row, per_row)).collect()
        }
        MemoryMode::Code => {
            let here = |address: Va, length| !only_here || view.cursor >= address && view.cursor - address < length;
            let shown = memory::code_rows(held, view.top, rows);
            let line = |row: CodeRow<'_>| match row {
                CodeRow::Line(line) if here(line.address, memory::length(line)) => {
                    Some(format!("{}  {:<20}  {}", Address(line.address.0), line.bytes, line.text))
                }
                CodeRow::Symbol(name) if !only_here => Some(format!("{name}:")),
                CodeRow::Line(_) | CodeRow::Symbol(_) => None,
            };
            shown.into_iter().filter_map(line).collect()
        }
        MemoryMode::Walk => {
            let entry = held.walk.iter().map(|entry| {
                format!("{}\t{:x}\t{:016x}\t{}", entry.level, entry.entry_pa.0, entry.entry, entry.flags.join(" "))
            });
            entry.collect()
        }
    };
    lines.join("\n")
}

fn bytes(held: &MemoryDetail, row: Va, per_row: u64) -> String {
    let (mut digits, mut letters) = (String::new(), String::new());
    for nth in 0..per_row {
        let byte = row.checked_add(nth).and_then(|va| memory::byte(held, va)).flatten();
        digits += &byte.map_or_else(|| " ??".to_owned(), |byte| format!(" {byte:02x}"));
        letters.push(match byte {
            Some(byte @ b' '..=b'~') => char::from(byte),
            Some(_) => '.',
            None => '?',
        });
    }
    format!("{} {digits}  {letters}", Address(row.0))
}
