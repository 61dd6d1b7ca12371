//! One event, with all that was cut in its line; a burst of them, with each one's time.
//!
//! ```text
//! times           12 in 0.8s, 14/s
//!   0:12.345   +62ms   1  nt!NtClose(0x1f4)
//! ```

use ratatui::text::Span;

use super::{
    Desk,
    sheet::{Sheet, column_right},
};
use crate::{
    engine::snapshot::Event,
    ui::{
        format,
        panes::{event_kind_style, event_rate},
        rows::stem,
    },
};

pub(super) fn sheet(desk: &Desk<'_>, event: &Event) -> Sheet {
    let theme = desk.theme;
    let mut sheet = Sheet::new(desk, format!("Event {}", event.seq));
    sheet.field("kind", event.kind.label(), event_kind_style(event.kind, theme));
    let ago = format::age(desk.snapshot.taken_at_ns.saturating_sub(event.at_ns));
    sheet.field("time", &format!("{}, {ago} ago", format::clock(event.at_ns)), theme.symbol);
    if let Some(vcpu) = event.vcpu {
        sheet.field("vCPU", &vcpu.to_string(), theme.number);
    }
    if let Some(pid) = event.pid {
        sheet.field("process", &format!("{pid} {}", event.process), theme.symbol);
    }
    sheet.gap();
    sheet.text(&event.text, theme.symbol);
    sheet
}

pub(super) fn burst(desk: &Desk<'_>, events: &[Event]) -> Sheet {
    let theme = desk.theme;
    let (Some(first), Some(newest)) = (events.first(), events.last()) else {
        return Sheet::new(desk, "Events".to_owned());
    };
    let mut sheet = Sheet::new(desk, format!("Events {} to {}", first.seq, newest.seq));
    sheet.field("kind", newest.kind.label(), event_kind_style(newest.kind, theme));
    sheet.field("what", stem(newest), theme.symbol);
    if let Some(pid) = newest.pid {
        sheet.field("process", &format!("{pid} {}", newest.process), theme.symbol);
    }
    let span = newest.at_ns.saturating_sub(first.at_ns);
    let more = u32::try_from(events.len() - 1).unwrap_or(u32::MAX);
    let rate = event_rate(more, span).map_or_else(String::new, |rate| format!(", {}/s", format::count(rate)));
    // What is less than a tenth of a millisecond would read as none.
    let within = if span < 100_000 { " at once".to_owned() } else { format!(" in {}", format::age(span)) };
    sheet.field("times", &format!("{}{within}{rate}", events.len()), theme.number);
    sheet.section("Each of them (newest first)");
    for (nth, event) in events.iter().enumerate().rev() {
        let before = nth.checked_sub(1).and_then(|nth| events.get(nth));
        let gap = before.map(|before| format!("+{}", format::age(event.at_ns.saturating_sub(before.at_ns))));
        sheet.line(vec![
            column_right(&format::clock(event.at_ns), 10, theme.muted),
            column_right(&gap.unwrap_or_default(), 7, theme.muted),
            column_right(&event.vcpu.map_or_else(String::new, |vcpu| vcpu.to_string()), 3, theme.muted),
            Span::styled(event.text.clone(), theme.symbol),
        ]);
    }
    sheet
}
