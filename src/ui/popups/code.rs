//! Instructions, one per line.
//!
//! ```text
//!                    nt!NtCreateFile:
//! ▸ fffff803`1c2a41f0  4c8bdc           mov r11, rsp
//!   fffff803`1c2a41f3  4881ec88000000   sub rsp, 0x88
//! ```

use std::{iter::Peekable, slice::Iter};

use ratatui::text::Span;

use super::{
    Desk,
    sheet::{Sheet, column, column_right},
};
use crate::{engine::snapshot::CodeLine, ui::format};

pub(super) fn lines(sheet: &mut Sheet, desk: &Desk<'_>, code: &[CodeLine]) {
    let theme = desk.theme;
    let mut rest = code.iter().peekable();
    while let Some(line) = rest.next() {
        // A symbol of its own begins here; `symbol+offset` is inside one.
        if !line.symbol.is_empty() && !line.symbol.contains('+') {
            sheet.line(vec![Span::raw("  "), Span::styled(format!("{}:", line.symbol), theme.section)]);
        }
        let (mark, style) = if line.here { (desk.glyphs.selected, theme.here) } else { (' ', theme.symbol) };
        let mut spans = vec![
            Span::styled(format!("{mark} "), style),
            column_right(&format::Address(line.address.0).to_string(), 17, theme.address),
        ];
        if desk.columns >= 60 {
            spans.push(Span::raw(" "));
            spans.push(column(&line.bytes, 20, theme.muted));
        }
        spans.push(Span::styled(line.text.clone(), style));
        sheet.line(spans);
        skip_zeros(sheet, desk, line, &mut rest);
    }
}

/// Instructions of nothing but zeros in a row are what lies between functions: one line says so for the rest of them.
fn skip_zeros(sheet: &mut Sheet, desk: &Desk<'_>, first: &CodeLine, rest: &mut Peekable<Iter<'_, CodeLine>>) {
    let is_zero = |line: &CodeLine| line.bytes == "0000";
    let more = |line: &&CodeLine| is_zero(line) && !line.here && (line.symbol.is_empty() || line.symbol.contains('+'));
    if !is_zero(first) || rest.clone().take(2).take_while(more).count() < 2 {
        return;
    }
    let mut skipped = 0;
    while rest.next_if(more).is_some() {
        skipped += 2;
    }
    let text = format!("and {skipped} more bytes of zeros");
    sheet.line(vec![column_right("...", 19, desk.theme.muted), Span::styled(text, desk.theme.muted)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::snapshot::{Snapshot, Va},
        ui::{glyphs::Glyphs, state::UiState, theme::Theme},
    };

    #[test]
    fn zeros_between_functions_are_told_in_one_line() {
        let line = |nth: u64, bytes: &str, symbol: &str| CodeLine {
            address: Va(0x1000 + nth),
            bytes: bytes.to_owned(),
            symbol: symbol.to_owned(),
            text: format!("instruction {nth}"),
            ..CodeLine::default()
        };
        let code = [
            line(0, "c3", "f"),
            line(1, "0000", "f+0x1"),
            line(3, "0000", "f+0x3"),
            line(5, "0000", "f+0x5"),
            line(7, "0000", "g"),
            line(9, "0000", "g+0x2"),
            line(11, "c3", "g+0x4"),
        ];
        let (snapshot, ui, theme) = (Snapshot::default(), UiState::default(), Theme::plain());
        let glyphs = Glyphs::of(false);
        let desk = Desk { snapshot: &snapshot, ui: &ui, theme: &theme, glyphs, columns: 80 };
        let mut sheet = Sheet::new(&desk, String::new());
        lines(&mut sheet, &desk, &code);
        let ends: Vec<String> = sheet
            .lines
            .iter()
            .map(|line| line.spans.last().map_or_else(String::new, |span| span.content.to_string()))
            .collect();
        let instructions = ["f:", "instruction 0", "instruction 1", "and 4 more bytes of zeros", "g:"];
        assert_eq!(ends[..5], instructions);
        assert_eq!(ends[5..], ["instruction 7", "instruction 9", "instruction 11"]);
    }
}
