//! Text with headings, names and values, line by line.

use ratatui::{
    style::Style,
    text::{Line, Span},
};

use super::Desk;
use crate::ui::{
    pen::{width, wrap},
    theme::Theme,
};

/// Columns for the name of a value.
const NAMES: u16 = 15;
/// Most lines of one sheet: lists are bounded where they are read, this bounds what is drawn.
const MOST: usize = 20_000;

/// A text to read.
pub(super) struct Sheet {
    /// On the border.
    pub title: String,
    /// The text.
    pub lines: Vec<Line<'static>>,
    columns: u16,
    theme: Theme,
}

impl Sheet {
    pub(super) fn new(desk: &Desk<'_>, title: String) -> Self {
        Self { title, lines: Vec::new(), columns: desk.columns, theme: desk.theme.clone() }
    }

    /// Adds a line as it is.
    pub(super) fn line(&mut self, spans: Vec<Span<'static>>) {
        match self.lines.len() {
            MOST => self
                .lines
                .push(Line::from(Span::styled("… and more, which a file has (--screenshot x.json)", self.theme.muted))),
            lines if lines < MOST => self.lines.push(Line::from(spans)),
            _ => {}
        }
    }

    /// Adds an empty line, except at the top.
    pub(super) fn gap(&mut self) {
        if !self.lines.is_empty() {
            self.line(Vec::new());
        }
    }

    /// Begins a part of the text.
    pub(super) fn section(&mut self, heading: impl Into<String>) {
        self.gap();
        self.line(vec![Span::styled(heading.into(), self.theme.section)]);
    }

    /// Adds text that wraps.
    pub(super) fn text(&mut self, text: &str, style: Style) {
        for line in wrap(text, self.columns) {
            self.line(vec![Span::styled(line, style)]);
        }
    }

    /// Adds a value with its name; a long value wraps behind its name.
    pub(super) fn field(&mut self, name: &str, value: &str, style: Style) {
        let names = if self.columns >= 50 { NAMES } else { 10.min(self.columns / 2) };
        for (nth, line) in wrap(value, self.columns.saturating_sub(names + 1)).into_iter().enumerate() {
            let name = if nth == 0 { name } else { "" };
            let gap = usize::from(names.saturating_sub(width(name))) + 1;
            let label = Span::styled(name.to_owned(), self.theme.label);
            self.line(vec![label, Span::raw(" ".repeat(gap)), Span::styled(line, style)]);
        }
    }
}

/// A value in a column of a table: padded to its width, cut where it is longer.
pub(super) fn column(text: &str, columns: u16, style: Style) -> Span<'static> {
    Span::styled(pad(text, columns, false), style)
}

/// The same, aligned to the right.
pub(super) fn column_right(text: &str, columns: u16, style: Style) -> Span<'static> {
    Span::styled(pad(text, columns, true), style)
}

fn pad(text: &str, columns: u16, right: bool) -> String {
    let text: String = if width(text) > columns {
        text.chars().take(usize::from(columns.saturating_sub(1))).chain(['…']).collect()
    } else {
        text.to_owned()
    };
    let gap = " ".repeat(usize::from(columns.saturating_sub(width(&text))));
    if right { format!("{gap}{text} ") } else { format!("{text}{gap} ") }
}
