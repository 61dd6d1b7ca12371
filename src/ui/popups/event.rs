//! One event, with all that was cut in its line.

use super::{Desk, sheet::Sheet};
use crate::{
    engine::snapshot::Event,
    ui::{format, panes::event_kind_style},
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
