//! The first line: what is watched, how it is, how much happens.
//!
//! ```text
//!  vmscope  demo: WIN10-19045 · 2 vCPU · 512 MiB   ● RUNNING   1.2k ev/s ▂▃▅▇▆▃   0 dropped   [read-only]   0:12.345
//! ```
//!
//! A guest that stands says so in the hypervisor's word for it: `‖ PAUSED by another client`, `‖ PAUSED (io-error)`,
//! `‖ SUSPENDED`. What has no room gives way, the least important part first; how the guest is never does.

use ratatui::{
    layout::Rect,
    style::Style,
    text::{Line, Span},
};

use super::{
    format,
    glyphs::Glyphs,
    pen::{Pen, width},
    state::{Past, UiState},
    theme::Theme,
};
use crate::engine::snapshot::{Run, Snapshot, Status};

/// A part of the header and when it gives way: the largest rank first, 0 never.
struct Part {
    rank: u8,
    spans: Vec<Span<'static>>,
}

impl Part {
    fn new(rank: u8, text: impl Into<String>, style: Style) -> Self {
        Self { rank, spans: vec![Span::styled(text.into(), style)] }
    }

    fn width(&self) -> u16 {
        self.spans.iter().map(|span| width(&span.content)).fold(0, u16::saturating_add)
    }
}

/// Rank of the program's name.
const BRAND: u8 = 5;

/// Draws the header.
pub(super) fn draw(pen: &mut Pen<'_>, area: Rect, snapshot: &Snapshot, ui: &UiState) {
    if area.is_empty() {
        return;
    }
    pen.tint(area, pen.theme.header);
    let mut parts = parts(snapshot, ui, pen.theme, pen.glyphs);
    // The name brings its own blank at the left edge.
    let indent = |parts: &[Part]| u16::from(parts.first().is_none_or(|part| part.rank != BRAND));
    let total = |parts: &[Part]| parts.iter().map(|part| part.width() + 2).fold(indent(parts), u16::saturating_add);
    while total(&parts) > area.width.saturating_add(2) {
        // Of equal ranks the one furthest to the right goes.
        let last = (0..parts.len()).rev().max_by_key(|&i| parts.get(i).map_or(0, |part| part.rank));
        match last {
            Some(last) if parts.get(last).is_some_and(|part| part.rank > 0) => parts.remove(last),
            _ => break,
        };
    }
    let mut rest = super::popups::rest(area, indent(&parts));
    for part in parts {
        let used = pen.line(rest, &Line::from(part.spans)) + 2;
        rest = Rect { x: rest.x + used.min(rest.width), width: rest.width.saturating_sub(used), ..rest };
    }
}

fn parts(snapshot: &Snapshot, ui: &UiState, theme: &Theme, glyphs: &Glyphs) -> Vec<Part> {
    let guest = &snapshot.guest;
    let on_bar = |style: Style| Style { bg: theme.header.bg, ..style };
    let muted = on_bar(theme.muted);
    let mut parts = vec![Part::new(BRAND, " vmscope ", theme.brand)];
    let name = if guest.name.is_empty() { "no guest yet" } else { &guest.name };
    let mut what = format!("{}: {name}", if snapshot.driver.is_empty() { "guest" } else { snapshot.driver });
    if snapshot.driver == guest.name {
        name.clone_into(&mut what);
    }
    parts.push(Part::new(2, what, theme.header));
    if guest.vcpus > 0 {
        let size = format!("{} vCPU {} {}", guest.vcpus, glyphs.dot, format::memory(guest.memory_bytes));
        parts.push(Part::new(8, size, muted));
    }
    if let Some(past) = &ui.past {
        parts.push(Part::new(0, past_words(past), theme.frozen));
        let (word, style) = status_words(past.status_now, &Run::default(), theme, glyphs);
        parts.push(Part::new(1, format!("now {word}"), style));
    } else {
        let (word, style) = status_words(snapshot.status, &snapshot.run, theme, glyphs);
        // A guest that stands has the word, even while its kernel is looked for.
        if snapshot.status == Status::Attaching && !snapshot.run.is_running() {
            let (stands, bold) = status_words(Status::Paused, &snapshot.run, theme, glyphs);
            parts.push(Part::new(0, stands, bold));
            parts.push(Part::new(1, word, style));
        } else {
            parts.push(Part::new(0, word, style));
        }
    }
    if snapshot.read_only {
        parts.push(Part::new(3, "[read-only]", theme.read_only));
    }
    let rates = &snapshot.event_rates;
    // A guest that stands still does nothing, whatever it did in its last second.
    if let Some(&rate) = rates.last().filter(|_| snapshot.status != Status::Paused) {
        parts.push(Part::new(4, format!("{} ev/s", format::short_count(rate)), theme.header));
        if rates.len() > 1 {
            parts.push(Part::new(7, glyphs.spark(rates, 12), on_bar(theme.sparkline)));
        }
    }
    let dropped = snapshot.counters.dropped;
    let (rank, style) = if dropped > 0 { (3, on_bar(theme.pending)) } else { (9, muted) };
    parts.push(Part::new(rank, format!("{} dropped", format::short_count(dropped)), style));
    if snapshot.taken_at_ns > 0 {
        parts.push(Part::new(10, format::clock(snapshot.taken_at_ns), muted));
    }
    if !guest.version.is_empty() {
        parts.push(Part::new(11, guest.version.clone(), muted));
    }
    parts
}

fn past_words(past: &Past) -> String {
    let age = format::age(past.behind_ns);
    match past.steps_back {
        0 => format!(" FROZEN {age} behind "),
        back => format!(" BACK {back} of {}, {age} behind ", past.steps_kept),
    }
}

/// The word, with its glyph, and the style for how the guest is.
fn status_words(status: Status, run: &Run, theme: &Theme, glyphs: &Glyphs) -> (String, Style) {
    let (glyph, word, style) = match status {
        Status::Paused if !run.is_running() => {
            return (format!("{} {}", glyphs.pause, run.words()), theme.paused);
        }
        Status::Attaching => (glyphs.under_way, "ATTACHING", theme.attaching),
        Status::Running => (glyphs.on, "RUNNING", theme.running),
        Status::Paused => (glyphs.pause, "PAUSED", theme.paused),
        Status::Lost => (glyphs.gone, "LOST", theme.lost),
        Status::Replay => (glyphs.play, "REPLAY", theme.replay),
    };
    (format!("{glyph} {word}"), style)
}
