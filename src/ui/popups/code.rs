//! Instructions, one per line.
//!
//! ```text
//!                    nt!NtCreateFile:
//! ▸ fffff803`1c2a41f0  4c8bdc           mov r11, rsp
//!   fffff803`1c2a41f3  4881ec88000000   sub rsp, 0x88
//! ```

use ratatui::text::Span;

use super::{
    Desk,
    sheet::{Sheet, column, column_right},
};
use crate::{engine::snapshot::CodeLine, ui::format};

pub(super) fn lines(sheet: &mut Sheet, desk: &Desk<'_>, code: &[CodeLine]) {
    let theme = desk.theme;
    for line in code {
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
    }
}
