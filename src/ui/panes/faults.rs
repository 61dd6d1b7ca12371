//! Pane 4: pages that a read needed and did not find.
//!
//! ```text
//! STATE                  ADDRESS   PROC TRY    AGE ASKED BY              NOTE
//! ◐ pending        7ffa`1c2a0000    648   0   12ms process command line  waits for user mode
//! ```

use ratatui::style::Style;

use super::{Cell, key_sentence, nothing};
use crate::{
    engine::snapshot::{Capability, FaultState, Snapshot},
    ui::{
        format,
        glyphs::Glyphs,
        pen::Pen,
        rows::{RowRef, fault_word},
        state::{Column, UiState},
        theme::Theme,
    },
};

/// The glyph and the style of a state.
pub(in crate::ui) fn state_glyph(state: FaultState, theme: &Theme, glyphs: &Glyphs) -> (char, Style) {
    match state {
        FaultState::Pending => (glyphs.half, theme.pending),
        FaultState::Injected => (glyphs.under_way, theme.injected),
        FaultState::Resolved => (glyphs.on, theme.resolved),
        FaultState::Suppressed => (glyphs.off, theme.suppressed),
    }
}

pub(super) fn cell<'a>(pen: &Pen<'_>, snapshot: &'a Snapshot, row: RowRef, column: Column) -> Option<Cell<'a>> {
    let theme = pen.theme;
    let fault = snapshot.faults.get(row.index as usize)?;
    let (glyph, style) = state_glyph(fault.state, theme, pen.glyphs);
    Some(match column {
        Column::State => Cell::new(format!("{glyph} {}", fault_word(fault.state)), style),
        Column::Address => Cell::new(format::Address(fault.address.0).to_string(), theme.address),
        Column::Process => fault.pid.map_or_else(|| nothing(pen), |pid| Cell::new(pid.to_string(), theme.number)),
        Column::Root => Cell::new(format!("{:x}", fault.root.0), theme.muted),
        Column::Attempts => Cell::new(format::short_count(fault.attempts.into()), theme.number),
        Column::Time => Cell::new(format::age(fault.age_ns), theme.muted),
        Column::AskedBy => Cell::new(fault.asked_by.as_str(), theme.symbol),
        Column::Note => Cell::new(fault.note.as_str(), theme.muted),
        _ => return None,
    })
}

pub(super) fn empty(snapshot: &Snapshot, ui: &UiState) -> String {
    let ask = key_sentence(ui, "request-page", "ask for one");
    match snapshot.can(Capability::FaultInjection) {
        Ok(()) => format!("No page is missing.{ask}"),
        Err(why) => format!("No page is missing.{ask} Pages come when the guest needs them: {why}."),
    }
}
