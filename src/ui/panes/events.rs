//! Pane 5: what the guest did that we were told of, one line each.
//!
//! ```text
//!       TIME KIND          CPU PROCESS            WHAT
//!  0:12.345 breakpoint      0 lsass.exe 648      nt!NtCreateFile(0x1f4, 0x80100080)
//!  0:13.201 breakpoint      1 svchost.exe 900    nt!NtClose ×12 in 0.8s, 14/s
//! ```

use std::borrow::Cow;

use ratatui::style::Style;

use super::{Cell, nothing};
use crate::{
    engine::snapshot::{Event, EventKind, Snapshot},
    ui::{
        format,
        pen::Pen,
        rows::{RowRef, stem},
        state::Column,
        theme::Theme,
    },
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
        Column::Text if row.folded > 0 => {
            let words = burst_words(snapshot.events.get(row.first as usize), event, row.folded, pen.glyphs.times);
            Cell::new(words, theme.symbol)
        }
        Column::Text => Cell::new(event.text.as_str(), theme.symbol),
        _ => return None,
    })
}

/// What a burst says: `nt!NtCreateFile ×12 in 1.2s, 9/s`; of one that was over at once only how many there were.
fn burst_words(first: Option<&Event>, newest: &Event, folded: u32, times: char) -> String {
    let span = newest.at_ns.saturating_sub(first.map_or(newest.at_ns, |first| first.at_ns));
    let rate = rate(folded, span).map_or_else(String::new, |rate| format!(", {}/s", format::short_count(rate)));
    let span = if span < 1_000_000 { String::new() } else { format!(" in {}", format::age(span)) };
    format!("{} {times}{}{span}{rate}", stem(newest), u64::from(folded) + 1)
}

/// Events a second over a span with `more` of them after the first one; two, or a moment, are no rate.
pub(in crate::ui) fn rate(more: u32, span_ns: u64) -> Option<u64> {
    let rate = u128::from(more) * 1_000_000_000 / u128::from(span_ns.max(1));
    (more > 1 && span_ns >= 10_000_000 && rate > 0).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
}
