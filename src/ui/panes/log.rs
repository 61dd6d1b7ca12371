//! Pane 6: the program's own log, by `tui-logger`'s widgets.
//!
//! ```text
//! 12:04:31 INFO  engine   attached to WIN10-19045     │ targets, while they are chosen
//! 12:04:33 WARN  bpm      storm: nt!KiPageFault off   │ EWIDT vmscope::engine
//! ```

use ratatui::{
    layout::Rect,
    style::Style,
    text::{Line, Span},
    widgets::Widget,
};
use tui_logger::{ExtLogRecord, LogFormatter, TuiLoggerTargetWidget, TuiLoggerWidget};

use crate::{
    engine::snapshot::clean,
    ui::{
        pen::{Pen, width, wrap},
        state::UiState,
        theme::Theme,
    },
};

/// Width of the list of targets.
const TARGETS: u16 = 32;
/// Longest message that is shown, in characters.
const LONGEST: usize = 2000;

pub(super) fn draw(pen: &mut Pen<'_>, area: Rect, ui: &UiState) {
    if area.is_empty() {
        return;
    }
    let targets = if ui.log.targets { TARGETS.min(area.width / 2) } else { 0 };
    let lines = Rect { width: area.width - targets, ..area };
    let formatter = Formatter { theme: pen.theme.clone(), clock: !ui.virtual_time };
    let body = Style { bg: pen.theme.text.bg, ..pen.theme.symbol };
    TuiLoggerWidget::default()
        .style(body)
        .formatter(Box::new(formatter))
        .state(&ui.log.widget)
        .render(lines, pen.buffer);
    let blank = |at| pen.buffer.cell(at).is_none_or(|cell| cell.symbol() == " ");
    if lines.positions().all(blank) {
        super::sentence_in_the_middle(pen, lines, "Nothing is logged at the levels that are shown.");
    }
    if targets > 0 {
        let list = Rect { x: lines.right(), width: targets, ..area };
        TuiLoggerTargetWidget::default()
            .style(body)
            .style_show(pen.theme.active)
            .style_hide(pen.theme.muted)
            .style_off(pen.theme.muted)
            .highlight_style(pen.theme.selected)
            .state(&ui.log.widget)
            .render(list, pen.buffer);
    }
}

/// One record as lines: time, level, the last part of its target, the message.
struct Formatter {
    theme: Theme,
    clock: bool,
}

impl LogFormatter for Formatter {
    fn min_width(&self) -> u16 {
        1
    }

    fn format(&self, columns: usize, record: &ExtLogRecord) -> Vec<Line<'_>> {
        let theme = &self.theme;
        let level = record.level.as_str();
        let style = match level {
            "ERROR" => theme.failed,
            "WARN" => theme.pending,
            "INFO" => theme.active,
            _ => theme.muted,
        };
        let columns = columns.min(usize::from(u16::MAX)) as u16;
        let mut head = vec![Span::styled(format!("{level:<5} "), style)];
        if self.clock && columns >= 40 {
            head.insert(0, Span::styled(record.timestamp.strftime("%H:%M:%S ").to_string(), theme.muted));
        }
        if columns >= 60 {
            let target = record.target().rsplit("::").next().unwrap_or_default();
            head.push(Span::styled(format!("{:<10.10} ", clean(target, 10)), theme.event_process));
        }
        let used: u16 = head.iter().map(|span| width(&span.content)).sum();
        let message = clean(record.msg(), LONGEST);
        let mut lines: Vec<Line<'_>> = Vec::new();
        for text in wrap(&message, columns.saturating_sub(used)) {
            let mut spans = if lines.is_empty() {
                std::mem::take(&mut head)
            } else {
                vec![Span::raw(" ".repeat(usize::from(used)))]
            };
            spans.push(Span::styled(text, theme.symbol));
            lines.push(Line::from(spans));
        }
        lines
    }
}
