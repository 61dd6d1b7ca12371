//! Writing into ratatui's buffer: text that is cut with an ellipsis, aligned, framed. Everything that the screen shows
//! goes through here, so that nothing that moves a terminal gets past, whoever wrote the string.

use std::borrow::Cow;

use ratatui::{
    buffer::Buffer,
    layout::{Position, Rect},
    style::Style,
    text::Line,
};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::{
    glyphs::{Glyphs, UNICODE},
    theme::Theme,
};
use crate::engine::snapshot::clean;

/// A buffer to write into, and what to write it with.
pub(super) struct Pen<'a> {
    /// The buffer of the frame.
    pub buffer: &'a mut Buffer,
    /// Styles.
    pub theme: &'a Theme,
    /// Characters.
    pub glyphs: &'static Glyphs,
}

/// Text as it may be shown, no longer than is of use for `width` cells.
fn fit_to_show(text: &str, width: usize) -> Cow<'_, str> {
    if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(clean(text, width + 1))
    }
}

/// Columns that a text takes; more than fit on any screen count as 16384, so that sums of a few stay within bounds.
pub(super) fn width(text: &str) -> u16 {
    let columns = if text.is_ascii() { text.len() } else { text.width() };
    columns.min(16_384) as u16
}

/// A number of lines as a height.
pub(super) fn height(lines: usize) -> u16 {
    lines.min(16_384) as u16
}

impl Pen<'_> {
    /// Writes into the first line of an area, cut with an ellipsis; answers how many columns it took.
    pub(super) fn text(&mut self, area: Rect, text: &str, style: Style) -> u16 {
        let area = area.intersection(self.buffer.area);
        if area.is_empty() {
            return 0;
        }
        let text = fit_to_show(text, usize::from(area.width));
        let cut = width(&text) > area.width;
        let room = if cut { area.width - 1 } else { area.width };
        let mut used = 0;
        for c in text.chars() {
            let columns = c.width().unwrap_or(0).min(2) as u16;
            if columns == 0 {
                self.mark(area.x, area.x + used, area.y, c);
                continue;
            }
            if used + columns > room {
                break;
            }
            // What was cut before it came here.
            let c = if c == UNICODE.ellipsis { self.glyphs.ellipsis } else { c };
            self.cell(area.x + used, area.y, c, style);
            if columns == 2 {
                self.cell(area.x + used + 1, area.y, ' ', style);
            }
            used += columns;
        }
        if cut {
            self.cell(area.x + used, area.y, self.glyphs.ellipsis, style);
            used += 1;
        }
        used
    }

    /// Writes at the right end of the first line of an area.
    pub(super) fn right(&mut self, area: Rect, text: &str, style: Style) {
        let text = fit_to_show(text, usize::from(area.width));
        let gap = area.width.saturating_sub(width(&text));
        self.text(Rect { x: area.x + gap, width: area.width - gap, ..area }, &text, style);
    }

    /// Writes the parts of a line one behind the other; answers how many columns they took.
    pub(super) fn line(&mut self, area: Rect, line: &Line<'_>) -> u16 {
        let mut used = 0;
        for span in &line.spans {
            if used >= area.width {
                break;
            }
            let rest = Rect { x: area.x + used, width: area.width - used, ..area };
            used += self.text(rest, &span.content, line.style.patch(span.style));
        }
        used
    }

    /// Writes one character.
    pub(super) fn cell(&mut self, x: u16, y: u16, c: char, style: Style) {
        if let Some(cell) = self.buffer.cell_mut(Position { x, y }) {
            cell.set_char(c).set_style(style);
        }
    }

    /// Puts a mark on the character that was written last, in front of a column.
    fn mark(&mut self, from: u16, behind: u16, y: u16, mark: char) {
        // The second cell of a wide character is a blank.
        let is_blank = |x: u16| self.buffer.cell(Position { x, y }).is_some_and(|cell| cell.symbol() == " ");
        let mut x = behind.saturating_sub(1);
        if x > from && is_blank(x) && self.buffer.cell((x - 1, y)).is_some_and(|cell| width(cell.symbol()) == 2) {
            x -= 1;
        }
        if behind > from
            && let Some(cell) = self.buffer.cell_mut(Position { x, y })
        {
            let marked = format!("{}{mark}", cell.symbol());
            cell.set_symbol(&marked);
        }
    }

    /// Lays a style over an area and leaves its text.
    pub(super) fn tint(&mut self, area: Rect, style: Style) {
        self.buffer.set_style(area, style);
    }

    /// Empties an area.
    pub(super) fn clear(&mut self, area: Rect, style: Style) {
        let area = area.intersection(self.buffer.area);
        for position in area.positions() {
            if let Some(cell) = self.buffer.cell_mut(position) {
                cell.reset();
                cell.set_style(style);
            }
        }
    }

    /// Draws a border along the edges of an area that is at least 2 × 2.
    pub(super) fn frame(&mut self, area: Rect, style: Style) {
        let area = area.intersection(self.buffer.area);
        if area.width < 2 || area.height < 2 {
            return;
        }
        let [horizontal, vertical, top_left, top_right, bottom_right, bottom_left] = self.glyphs.border;
        let (left, right, top, bottom) = (area.x, area.right() - 1, area.y, area.bottom() - 1);
        for x in left + 1..right {
            self.cell(x, top, horizontal, style);
            self.cell(x, bottom, horizontal, style);
        }
        for y in top + 1..bottom {
            self.cell(left, y, vertical, style);
            self.cell(right, y, vertical, style);
        }
        self.cell(left, top, top_left, style);
        self.cell(right, top, top_right, style);
        self.cell(right, bottom, bottom_right, style);
        self.cell(left, bottom, bottom_left, style);
    }

    /// A scroll bar on a column: which of `total` lines the `height` shown ones from `first` on are.
    pub(super) fn scrollbar(&mut self, column: Rect, first: usize, total: usize) {
        let height = usize::from(column.height);
        if height == 0 || total <= height {
            return;
        }
        let thumb = (height * height / total).clamp(1, height);
        let top = first.min(total - height) * (height - thumb) / (total - height);
        for row in top..top + thumb {
            self.cell(column.x, column.y + row as u16, self.glyphs.thumb, self.theme.scrollbar);
        }
    }
}

/// Breaks a text into lines of at most `columns`, between words where that is possible; line breaks stay.
pub(super) fn wrap(text: &str, columns: u16) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let gap = u16::from(!line.is_empty());
            if !line.is_empty() && width(&line) + gap + width(word) > columns {
                lines.push(std::mem::take(&mut line));
            } else if gap == 1 {
                line.push(' ');
            }
            // A word longer than a line is broken anywhere.
            for c in word.chars() {
                if !line.is_empty() && width(&line) + c.width().unwrap_or(0) as u16 > columns {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(c);
            }
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::glyphs::ASCII;

    fn written(text: &str, columns: u16) -> String {
        let area = Rect::new(0, 0, columns, 1);
        let mut buffer = Buffer::empty(area);
        let theme = Theme::plain();
        Pen { buffer: &mut buffer, theme: &theme, glyphs: &UNICODE }.text(area, text, Style::new());
        buffer.content.iter().map(ratatui::buffer::Cell::symbol).collect()
    }

    #[test]
    fn text_is_cut_with_an_ellipsis_at_whole_characters() {
        assert_eq!(written("lsass.exe", 9), "lsass.exe");
        assert_eq!(written("lsass.exe", 6), "lsass…");
        assert_eq!(written("日本語", 5), "日 本 …", "two columns each");
        assert_eq!(written("日本語", 4), "日 … ");
        assert_eq!(written("a", 0), "");
    }

    #[test]
    fn an_ellipsis_is_of_the_set_of_characters() {
        let area = Rect::new(0, 0, 5, 1);
        let mut buffer = Buffer::empty(area);
        let theme = Theme::plain();
        Pen { buffer: &mut buffer, theme: &theme, glyphs: &ASCII }.text(area, "ab…", Style::new());
        assert_eq!(buffer.content.iter().map(ratatui::buffer::Cell::symbol).collect::<String>(), "ab~  ");
    }

    #[test]
    fn nothing_that_moves_a_terminal_gets_through() {
        assert_eq!(written("a\x1b[2Jb\u{202e}c\u{301}\u{301}", 12), "a␛[2Jb\u{fffd}c\u{301}\u{fffd}   ");
        assert_eq!(written("日\u{301}本", 5), "日\u{301} 本  ", "a mark is in its character's cell");
    }

    #[test]
    fn words_wrap_and_long_ones_break() {
        assert_eq!(wrap("the guest is gone", 9), ["the guest", "is gone"]);
        assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrap("a\n\nb", 9), ["a", "", "b"]);
    }
}
