//! The last line: what the keys do here; and above it the notices.
//!
//! ```text
//!                                                             ┌───────────────────────────────────┐
//!                                                             │ i breakpoint on nt!NtCreateFile set│
//!  space toggle  a add  d delete  enter detail  (p pause)  / filter  ? help  : palette
//! ```
//!
//! A key that does nothing now is crossed out and in parentheses. Help stays whatever has to give way.

use ratatui::{
    layout::Rect,
    style::Style,
    text::{Line, Span},
};

use super::{
    pen::{Pen, width, wrap},
    state::{KeyHint, Severity, UiState},
    theme::Theme,
};
use crate::engine::snapshot::{Snapshot, Status};

/// Draws the keys.
pub(super) fn draw(pen: &mut Pen<'_>, area: Rect, ui: &UiState) {
    if area.is_empty() {
        return;
    }
    pen.tint(area, pen.theme.header);
    for (index, spot) in spots(area, ui) {
        if let Some(hint) = ui.footer.get(index) {
            pen.line(spot, &Line::from(hint_spans(hint, pen.theme)));
        }
    }
}

/// Where each key that fits is, by its index in [`UiState::footer`].
pub(super) fn spots(area: Rect, ui: &UiState) -> Vec<(usize, Rect)> {
    let cost = |hint: &KeyHint| {
        let parentheses = if hint.enabled() { 0 } else { 2 };
        width(&hint.key).saturating_add(width(&hint.label)).saturating_add(1 + parentheses)
    };
    let is_help = |hint: &KeyHint| hint.name == "help";
    // Room for the help key is set aside first.
    let help = ui.footer.iter().find(|hint| is_help(hint)).map_or(0, |hint| cost(hint) + 2);
    let mut left = area.width.saturating_sub(1).saturating_sub(help);
    let mut full = false;
    let mut x = area.x.saturating_add(1);
    let mut spots = Vec::new();
    for (index, hint) in ui.footer.iter().enumerate() {
        let needed = cost(hint).saturating_add(2);
        if !is_help(hint) {
            full |= needed > left;
            if full {
                continue;
            }
            left -= needed;
        }
        let spot = Rect { x, width: needed - 2, height: area.height.min(1), ..area };
        spots.push((index, spot.intersection(area)));
        x = x.saturating_add(needed);
    }
    spots
}

/// A key and what it does.
pub(super) fn hint_spans<'a>(hint: &'a KeyHint, theme: &Theme) -> Vec<Span<'a>> {
    if hint.enabled() {
        let label = Span::styled(hint.label.as_str(), theme.key_label);
        vec![Span::styled(hint.key.as_str(), theme.key), Span::raw(" "), label]
    } else {
        let words = format!("{} {}", hint.key, hint.label);
        let around = theme.muted;
        vec![Span::styled("(", around), Span::styled(words, theme.key_disabled), Span::styled(")", around)]
    }
}

/// Most lines of notices at a time.
const MOST_LINES: usize = 6;
/// Widest notice.
const WIDEST: u16 = 78;

/// Draws the notices at the lower right of `area`, the newest lowest. What the engine says about a guest that it is on its
/// way to or has lost stays there as long as it is true.
pub(super) fn notices(pen: &mut Pen<'_>, area: Rect, snapshot: &Snapshot, ui: &UiState) {
    if area.width < 8 || area.height == 0 {
        return;
    }
    let columns = area.width.saturating_sub(4).min(WIDEST);
    let mut lines: Vec<(String, Style)> = Vec::new();
    let mut say = |severity: Severity, text: &str| {
        let (glyph, style) = match severity {
            Severity::Info => ('i', pen.theme.info),
            Severity::Warning => ('!', pen.theme.warning),
            Severity::Error => (pen.glyphs.gone, pen.theme.error),
        };
        for (nth, line) in wrap(text, columns.saturating_sub(4)).into_iter().take(4).enumerate() {
            let head = if nth == 0 { glyph } else { ' ' };
            lines.push((format!(" {head} {line} "), style));
        }
    };
    if let Some(notice) = &snapshot.notice {
        let severity = match snapshot.status {
            Status::Lost => Severity::Error,
            Status::Attaching => Severity::Info,
            Status::Running | Status::Paused | Status::Replay => Severity::Warning,
        };
        say(severity, notice);
    }
    if let Some(busy) = &ui.busy {
        say(Severity::Info, busy);
    }
    for notice in &ui.notices {
        say(notice.severity, &notice.text);
    }
    let shown = lines.len().min(MOST_LINES).min(usize::from(area.height));
    let lines = lines.split_off(lines.len() - shown);
    let widest = lines.iter().map(|(line, _)| width(line)).max().unwrap_or(0).min(area.width);
    let (x, top) = (area.right() - widest, area.bottom() - shown as u16);
    for (y, (line, style)) in (top..).zip(&lines) {
        let row = Rect { x, y, width: widest, height: 1 };
        pen.clear(row, *style);
        pen.text(row, line, *style);
    }
}
