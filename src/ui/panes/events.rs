//! Pane 5: what the guest did that we were told of, one line each.
//!
//! ```text
//!       TIME KIND          CPU PROCESS            WHAT
//!  0:12.345 breakpoint      0 lsass.exe 648      nt!NtCreateFile(0x1f4, 0x80100080)
//! ```

use std::borrow::Cow;

use ratatui::style::Style;

use super::{Cell, nothing};
use crate::{
    engine::snapshot::{Event, EventKind, Snapshot},
    ui::{format, pen::Pen, rows::RowRef, state::Column, theme::Theme},
};

/// The style of a kind.
pub(in crate::ui) fn kind_style(kind: EventKind, theme: &Theme) -> Style {
    match kind {
        EventKind::Breakpoint => theme.event_breakpoint,
        EventKind::PageIn | EventKind::PageOut => theme.event_page,
        EventKind::Fault => theme.event_fault,
        EventKind::ProcessStart | EventKind::ProcessExit => theme.event_process,
        EventKind::Hidden => theme.hidden,
        EventKind::Vm | EventKind::Engine => theme.event_vm,
    }
}

/// The process of an event: name and id, as far as they are known.
pub(in crate::ui) fn process_words(event: &Event) -> Cow<'_, str> {
    match (event.pid, event.process.as_str()) {
        (None, name) => Cow::Borrowed(name),
        (Some(pid), "") => Cow::Owned(pid.to_string()),
        (Some(pid), name) => Cow::Owned(format!("{name} {pid}")),
    }
}

pub(super) fn cell<'a>(pen: &Pen<'_>, snapshot: &'a Snapshot, row: RowRef, column: Column) -> Option<Cell<'a>> {
    let theme = pen.theme;
    let event = snapshot.events.get(row.index as usize)?;
    Some(match column {
        Column::Time => Cell::new(format::clock(event.at_ns), theme.muted),
        Column::Kind => Cell::new(event.kind.label(), kind_style(event.kind, theme)),
        Column::Vcpu => event.vcpu.map_or_else(|| nothing(pen), |vcpu| Cell::new(vcpu.to_string(), theme.muted)),
        Column::Process => Cell::new(process_words(event), theme.symbol),
        Column::Text => Cell::new(event.text.as_str(), theme.symbol),
        _ => return None,
    })
}
