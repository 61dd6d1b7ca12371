//! The characters that the screen is drawn with, and their ASCII forms.

/// One set of characters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Glyphs {
    /// Border: horizontal, vertical, then corners from the top left clockwise.
    pub border: [char; 6],
    /// Thumb of the scroll bar.
    pub thumb: char,
    /// Where text was cut.
    pub ellipsis: char,
    /// Before the selected row.
    pub selected: char,
    /// Before a marked row.
    pub marked: char,
    /// In force: an active breakpoint, a running guest.
    pub on: char,
    /// In force, and the guest can see it: a breakpoint in its memory.
    pub seen: char,
    /// Half way: a pending breakpoint or fault.
    pub half: char,
    /// Switched off.
    pub off: char,
    /// Under way: an injected fault, a guest that is being attached to.
    pub under_way: char,
    /// Played, or pointed at.
    pub play: char,
    /// Standing still.
    pub pause: char,
    /// Gone, failed.
    pub gone: char,
    /// So many times.
    pub times: char,
    /// Sorted with the smallest, with the largest first.
    pub sorted: [char; 2],
    /// Between things that belong together.
    pub dot: char,
    /// From and to.
    pub arrow: char,
    /// Tree: a child, the last child, the line past a child.
    pub tree: [&'static str; 3],
    /// Bars from low to high; none fills its cell, so that rows stay apart.
    pub bars: [char; 7],
}

/// For terminals that know Unicode.
pub(super) const UNICODE: Glyphs = Glyphs {
    border: ['─', '│', '╭', '╮', '╯', '╰'],
    thumb: '┃',
    ellipsis: '…',
    selected: '▸',
    marked: '◆',
    on: '●',
    seen: '◉',
    half: '◐',
    off: '○',
    under_way: '◌',
    play: '▶',
    pause: '‖',
    gone: '×',
    times: '×',
    sorted: ['▴', '▾'],
    dot: '·',
    arrow: '→',
    tree: ["├ ", "└ ", "│ "],
    bars: ['▁', '▂', '▃', '▄', '▅', '▆', '▇'],
};

/// For terminals that do not.
pub(super) const ASCII: Glyphs = Glyphs {
    border: ['-', '|', '+', '+', '+', '+'],
    thumb: '#',
    ellipsis: '~',
    selected: '>',
    marked: '+',
    on: '*',
    seen: '@',
    half: '%',
    off: '-',
    under_way: '~',
    play: '>',
    pause: '=',
    gone: 'x',
    times: 'x',
    sorted: ['^', 'v'],
    dot: '-',
    arrow: '>',
    tree: ["|-", "`-", "| "],
    bars: ['_', '.', ':', '-', '=', '+', '#'],
};

impl Glyphs {
    /// The set for a terminal.
    pub(super) const fn of(ascii: bool) -> &'static Self {
        if ascii { &ASCII } else { &UNICODE }
    }

    /// The newest `width` values as bars, the largest of them full.
    pub(super) fn spark(&self, values: &[u64], width: usize) -> String {
        let shown = values.get(values.len().saturating_sub(width)..).unwrap_or(values);
        let most = shown.iter().copied().max().unwrap_or(0).max(1);
        let bar = |&value: &u64| {
            let step = (u128::from(value) * 6).div_ceil(u128::from(most)) as usize;
            self.bars.get(step).copied().unwrap_or(' ')
        };
        shown.iter().map(bar).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparklines_scale_to_their_largest_value() {
        assert_eq!(UNICODE.spark(&[9, 9, 0, 1, 7, 14], 4), "▁▂▄▇");
        assert_eq!(UNICODE.spark(&[0, 0], 4), "▁▁");
        assert_eq!(UNICODE.spark(&[u64::MAX, u64::MAX / 2], 4), "▇▄");
        assert_eq!(UNICODE.spark(&[], 4), "");
    }
}
