//! Where everything is in the memory view, and which instructions it shows: arithmetic for drawing, keys and mouse.
//!
//! ```text
//! ╭ Memory of lsass.exe 648 ───────────────────── [bytes] instructions  page walk ╮
//! │▸7ffa`1c2a0ff0* 4c 8b dc 48 81 ec 88 00  00 00 33 c0 49 89 43 f0 L..H......3.I.C.│
//! │ 7ffa`1c2a1000  ?? ?? ?? ?? ?? ?? ?? ??  ?? ?? ?? ?? ?? ?? ?? ?? not mapped      │
//! │ 7ffa`1c2a0ff4 ntdll!LdrLoadDll+0x4   points to 7ffa`1c2b0000                    │
//! ╰────────────────────────────────────────────────────────────────────────────────╯
//! ```

use ratatui::layout::{Position, Rect};

use super::{
    layout,
    state::{MemoryMode, MemoryView, UiState},
};
use crate::engine::snapshot::{CodeLine, Detail, MemoryDetail, Snapshot, Va};

/// The box of the view: everything between header and footer.
pub fn area(ui: &UiState) -> Rect {
    let screen = Rect { x: 0, y: 0, width: ui.size.0, height: ui.size.1 };
    let regions = layout::regions(screen, ui);
    let taken = regions.header.height + regions.footer.height;
    Rect { y: regions.header.height, height: screen.height.saturating_sub(taken), ..screen }
}

/// The room within the box.
pub fn inside(area: Rect) -> Rect {
    if area.width < 12 || area.height < 5 {
        return area;
    }
    Rect { x: area.x + 1, y: area.y + 1, width: area.width - 2, height: area.height - 2 }
}

/// The room for rows: all but the line that tells of the cursor.
pub fn body(area: Rect) -> Rect {
    let inside = inside(area);
    let told = u16::from(inside.height > 2);
    Rect { height: inside.height - told, ..inside }
}

/// How many rows are shown, at least one.
pub fn rows(ui: &UiState) -> u64 {
    u64::from(body(area(ui)).height.max(1))
}

/// How a row of bytes is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes in a row: 32, 16, 8 or 4.
    pub per_row: u64,
    /// Cells of an address; 9 show its lower half only.
    pub address: u16,
    /// Whether letters stand beside the bytes.
    pub letters: bool,
}

impl Shape {
    /// What fits into a row of `width` cells.
    pub const fn of(width: u16) -> Self {
        let (per_row, address, letters) = match width {
            154.. => (32, 17, true),
            86..154 => (16, 17, true),
            78..86 => (16, 9, true),
            54..78 => (8, 17, true),
            46..54 => (8, 9, true),
            36..46 => (8, 9, false),
            _ => (4, 9, false),
        };
        Self { per_row, address, letters }
    }

    /// The cell of a byte's first digit, from the row's first cell: a mark, the address, a mark, a gap.
    pub const fn byte(self, nth: u64) -> u16 {
        let nth = nth as u16;
        self.address + 3 + nth * 3 + nth / 8
    }

    /// The cell of a byte's letter.
    pub const fn letter(self, nth: u64) -> u16 {
        self.byte(self.per_row - 1) + 3 + nth as u16
    }
}

/// How rows of bytes are laid out now.
pub fn shape(ui: &UiState) -> Shape {
    Shape::of(body(area(ui)).width)
}

/// What the engine has read for a view, also when it is of another address of the same space.
pub fn held<'a>(snapshot: &'a Snapshot, view: &MemoryView) -> Option<&'a MemoryDetail> {
    match snapshot.detail.as_deref() {
        Some(Detail::Memory(memory)) if memory.pid == view.pid => Some(memory),
        _ => None,
    }
}

/// A byte that was read: `None` where nothing was read, `Some(None)` where the page is missing.
pub fn byte(memory: &MemoryDetail, va: Va) -> Option<Option<u8>> {
    let nth = usize::try_from(va - memory.va).ok()?;
    memory.bytes.get(nth).copied()
}

/// The aligned word that an address lies in, where all of it is there.
pub fn word(memory: &MemoryDetail, va: Va) -> Option<u64> {
    let first = Va(va.0 & !7);
    let mut word = [0; 8];
    for (nth, slot) in word.iter_mut().enumerate() {
        *slot = byte(memory, first + nth as u64)??;
    }
    Some(u64::from_le_bytes(word))
}

/// Every instruction that is known, in order of address.
pub fn lines(memory: &MemoryDetail) -> impl DoubleEndedIterator<Item = &CodeLine> {
    memory.before.iter().chain(&memory.code)
}

/// The place in [`lines`] of the instruction that an address lies in.
pub fn line_of(memory: &MemoryDetail, va: Va) -> Option<usize> {
    lines(memory).position(|line| va.0 >= line.address.0 && va - line.address < length(line))
}

/// The bytes of an instruction.
pub const fn length(line: &CodeLine) -> u64 {
    (line.bytes.len() / 2) as u64
}

/// One row of instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CodeRow<'a> {
    /// The symbol that begins at the next row.
    Symbol(&'a str),
    /// An instruction.
    Line(&'a CodeLine),
}

/// The rows of instructions from an address on, as many as fit.
pub fn code_rows<'a>(memory: &'a MemoryDetail, top: Va, height: u64) -> Vec<CodeRow<'a>> {
    let height = height as usize;
    let mut rows = Vec::new();
    for line in lines(memory).filter(|line| line.address >= top) {
        // A symbol of its own begins here; `symbol+offset` is inside one.
        if !line.symbol.is_empty() && !line.symbol.contains('+') && !rows.is_empty() {
            rows.push(CodeRow::Symbol(&line.symbol));
        }
        rows.push(CodeRow::Line(line));
        if rows.len() >= height {
            break;
        }
    }
    rows.truncate(height);
    rows
}

/// The address that lies under a point of the screen.
pub fn address_at(snapshot: &Snapshot, ui: &UiState, view: &MemoryView, x: u16, y: u16) -> Option<Va> {
    let body = body(area(ui));
    if !body.contains(Position { x, y }) {
        return None;
    }
    let (column, row) = (x - body.x, u64::from(y - body.y));
    match view.mode {
        MemoryMode::Walk => None,
        MemoryMode::Code => {
            let rows = code_rows(held(snapshot, view)?, view.top, rows(ui));
            match rows.get(row as usize)? {
                CodeRow::Line(line) => Some(line.address),
                CodeRow::Symbol(_) => None,
            }
        }
        MemoryMode::Bytes => {
            let shape = shape(ui);
            let in_row = (0..shape.per_row).find(|&nth| {
                let digits = shape.byte(nth)..shape.byte(nth) + 3;
                digits.contains(&column) || shape.letters && shape.letter(nth) == column
            })?;
            view.top.checked_add(row * shape.per_row + in_row)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_bytes_fit_whatever_the_width() {
        for width in 36..300 {
            let shape = Shape::of(width);
            let last = if shape.letters { shape.letter(shape.per_row - 1) } else { shape.byte(shape.per_row - 1) + 1 };
            assert!(last < width, "{width}: {shape:?} ends at {last}");
        }
        assert_eq!(Shape::of(78).per_row, 16, "on 80 columns");
    }
}
