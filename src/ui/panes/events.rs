//! Pane 5: what the guest did that we were told of, one line each.
//!
//! ```text
//!       TIME KIND          CPU PROCESS            WHAT
//!  0:12.345 breakpoint      0 lsass.exe 648      nt!NtCreateFile(0x1f4, 0x80100080)
//!  0:13.201 breakpoint      1 svchost.exe 900    nt!NtClose ×12 in 0.8s, 14/s
//! ```

use std::borrow::Cow;

use ratatui::style::Style;

use super::{Cell, nothing, with_end};
use crate::{
    engine::snapshot::{Event, EventKind, Snapshot},
    ui::{
        format,
        pen::{Pen, width},
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
        EventKind::ProcessStart | EventKind::ProcessExec | EventKind::ProcessExit => theme.event_process,
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

/// The same in a column: the name gives way to the id.
fn process_cell(event: &Event, columns: u16, ellipsis: char) -> Cow<'_, str> {
    let whole = process_words(event);
    let Some(pid) = event.pid.filter(|_| width(&whole) > columns) else { return whole };
    Cow::Owned(with_end(&event.process, &format!(" {pid}"), columns, ellipsis))
}

/// What happened, without the process where a column of its own names it.
fn text(event: &Event, named: bool) -> &str {
    let own = event.pid.filter(|_| named).map(|pid| format!("{} ({pid}) ", event.process));
    own.and_then(|own| event.text.strip_prefix(own.as_str())).unwrap_or(&event.text)
}

/// `columns` is how many the cell has, `named` whether the process has a column of its own.
pub(super) fn cell<'a>(
    pen: &Pen<'_>,
    snapshot: &'a Snapshot,
    row: RowRef,
    column: Column,
    columns: u16,
    named: bool,
) -> Option<Cell<'a>> {
    let theme = pen.theme;
    let event = snapshot.events.get(row.index as usize)?;
    Some(match column {
        Column::Time => Cell::new(format::clock(event.at_ns), theme.muted),
        Column::Kind => Cell::new(event.kind.label(), kind_style(event.kind, theme)),
        Column::Vcpu => event.vcpu.map_or_else(|| nothing(pen), |vcpu| Cell::new(vcpu.to_string(), theme.muted)),
        Column::Process => Cell::new(process_cell(event, columns, pen.glyphs.ellipsis), theme.symbol),
        Column::Text if row.folded > 0 => {
            let words = burst_words(snapshot.events.get(row.first as usize), event, row.folded, pen.glyphs.times);
            Cell::new(words, theme.symbol)
        }
        Column::Text => Cell::new(text(event, named), theme.symbol),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn event(process: &str, text: &str) -> Event {
        let (process, text) = (process.to_owned(), text.to_owned());
        Event { seq: 1, at_ns: 0, kind: EventKind::ProcessExit, vcpu: None, pid: Some(1234), process, text }
    }

    #[test]
    fn a_long_name_gives_way_to_the_id() {
        assert_eq!(process_cell(&event("smss.exe", ""), 18, '…'), "smss.exe 1234");
        assert_eq!(process_cell(&event("backgroundTask", ""), 18, '…'), "backgroundTa… 1234");
        assert_eq!(process_cell(&event("日本語", ""), 9, '~'), "日~ 1234");
        assert_eq!(process_cell(&event("a", ""), 3, '…'), "… 1234", "cut where it is drawn");
    }

    #[test]
    fn the_process_is_named_once() {
        let event = event("smss.exe", "smss.exe (1234) is gone");
        assert_eq!(text(&event, true), "is gone");
        assert_eq!(text(&event, false), "smss.exe (1234) is gone");
        let other = Event { text: "smss.exe (1) is gone".to_owned(), ..event };
        assert_eq!(text(&other, true), "smss.exe (1) is gone");
    }
}
