//! Where everything is: pure arithmetic from the size of the terminal and the state of the screen.
//!
//! ```text
//! ┌ header ────────────────┐   wide: 2 × 3 panes          narrow and high: one column, the focused
//! ├ 1 ────────┬ 2 ─────────┤   narrow and low, or zoomed: pane is the tall one
//! ├ 3 ────────┼ 4 ─────────┤   one pane under a line of
//! ├ 5 ────────┴ 6 ─────────┤   tabs
//! └ footer ────────────────┘
//! ```
//!
//! No size is refused: what does not fit gives way, borders first, then the tabs, then the footer, then the header.

use ratatui::layout::Rect;

use super::{
    footer,
    state::{PaneId, Split, UiState},
    tabs,
};

/// The regions of the screen; a region without room is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regions {
    /// The line with guest, state and counters.
    pub header: Rect,
    /// The line that names the panes when only one is shown.
    pub tabs: Rect,
    /// The panes that are shown.
    pub panes: Vec<(PaneId, Rect)>,
    /// The line with keys.
    pub footer: Rect,
}

/// Narrowest screen with two columns of panes.
const WIDE: u16 = 72;
/// Lowest room for three panes above each other in two columns.
const GRID_HEIGHT: u16 = 15;
/// Height of a pane that is not focused in one column of panes.
const SLIM: u16 = 3;

/// Divides a screen of this size.
pub fn regions(area: Rect, ui: &UiState) -> Regions {
    let header_height = u16::from(area.height >= 3);
    let footer_height = u16::from(area.height >= 4);
    let body =
        Rect { y: area.y + header_height, height: area.height.saturating_sub(header_height + footer_height), ..area };
    let mut regions = Regions {
        header: Rect { height: header_height, ..area },
        footer: Rect { y: body.bottom(), height: footer_height, ..area },
        ..Regions::default()
    };
    if body.is_empty() {
        return regions;
    }
    if ui.zoom {
        regions.panes.push((ui.focus, body));
    } else if body.width >= WIDE && body.height >= GRID_HEIGHT {
        regions.panes = grid(body, ui);
    } else if body.height >= SLIM * 6 + 4 {
        regions.panes = column(body, ui.focus);
    } else {
        let tabs = u16::from(body.height >= 7);
        regions.tabs = Rect { height: tabs, ..body };
        regions.panes.push((ui.focus, Rect { y: body.y + tabs, height: body.height - tabs, ..body }));
    }
    regions
}

/// Two columns of three panes, the borders between them as the user put them.
fn grid(body: Rect, ui: &UiState) -> Vec<(PaneId, Rect)> {
    let share = |whole: u16, percent: u16| (u32::from(whole) * u32::from(percent) / 100) as u16;
    let left = share(body.width, ui.split.left.clamp(10, 90)).clamp(20, body.width - 20);
    let first = share(body.height, ui.split.first).clamp(5, body.height - 10);
    let second = share(body.height, ui.split.second).clamp(5, body.height - first - 5);
    let mut panes = Vec::with_capacity(6);
    let mut ids = PaneId::ALL.into_iter();
    let heights = [first, second, body.height - first - second];
    let mut y = body.y;
    for height in heights {
        for (x, width) in [(body.x, left), (body.x + left, body.width - left)] {
            if let Some(id) = ids.next() {
                panes.push((id, Rect { x, y, width, height }));
            }
        }
        y += height;
    }
    panes
}

/// One column: the focused pane gets what the others leave.
fn column(body: Rect, focus: PaneId) -> Vec<(PaneId, Rect)> {
    let mut y = body.y;
    PaneId::ALL
        .into_iter()
        .map(|id| {
            let height = if id == focus { body.height - SLIM * 5 } else { SLIM };
            let area = Rect { y, height, ..body };
            y += height;
            (id, area)
        })
        .collect()
}

/// The parts of one pane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PaneParts {
    /// Whether there is room for a border; without it the title has a line of its own.
    pub boxed: bool,
    /// The line with the title.
    pub title: Rect,
    /// The line with the names of the columns, empty when there is no room.
    pub heading: Rect,
    /// The rows.
    pub rows: Rect,
}

/// Divides a pane.
pub fn pane_parts(area: Rect) -> PaneParts {
    let boxed = area.width >= 16 && area.height >= 3;
    let title = Rect { height: area.height.min(1), ..area };
    let inner = if boxed {
        Rect { x: area.x + 1, y: area.y + 1, width: area.width - 2, height: area.height - 2 }
    } else {
        Rect { y: title.bottom(), height: area.height - title.height, ..area }
    };
    let heading_height = u16::from(inner.height >= 3);
    PaneParts {
        boxed,
        title,
        heading: Rect { height: heading_height, ..inner },
        rows: Rect { y: inner.y + heading_height, height: inner.height - heading_height, ..inner },
    }
}

/// How many rows of a pane are on the screen: what a page up or down moves by. 0 while the pane is not shown.
pub fn visible_rows(ui: &UiState, pane: PaneId) -> usize {
    let area = Rect { x: 0, y: 0, width: ui.size.0, height: ui.size.1 };
    let shown = regions(area, ui).panes.into_iter().find(|(id, _)| *id == pane);
    shown.map_or(0, |(_, area)| usize::from(pane_parts(area).rows.height))
}

/// What lies under a point of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// A row of a pane, counted from the first one shown.
    Row(PaneId, usize),
    /// The names of a pane's columns, and the distance from the pane's left inner edge.
    Heading(PaneId, u16),
    /// A pane's border or title.
    Border(PaneId),
    /// The name of a pane in the line of tabs.
    Tab(PaneId),
    /// A key of the footer, by its index in [`UiState::footer`].
    Key(usize),
    /// Header, or nothing.
    Elsewhere,
}

/// What lies under a point of the screen, popups left out.
pub fn hit(ui: &UiState, x: u16, y: u16) -> Hit {
    let area = Rect { x: 0, y: 0, width: ui.size.0, height: ui.size.1 };
    let point = ratatui::layout::Position { x, y };
    let regions = regions(area, ui);
    if regions.footer.contains(point) {
        let key = footer::spots(regions.footer, ui).into_iter().find(|(_, spot)| spot.contains(point));
        return key.map_or(Hit::Elsewhere, |(index, _)| Hit::Key(index));
    }
    if regions.tabs.contains(point) {
        let tab = tabs::spots(regions.tabs, ui).find(|(_, spot, _)| spot.contains(point));
        return tab.map_or(Hit::Elsewhere, |(id, ..)| Hit::Tab(id));
    }
    let Some((id, area)) = regions.panes.into_iter().find(|(_, area)| area.contains(point)) else {
        return Hit::Elsewhere;
    };
    let parts = pane_parts(area);
    if parts.rows.contains(point) {
        Hit::Row(id, usize::from(y - parts.rows.y))
    } else if parts.heading.contains(point) {
        Hit::Heading(id, x - parts.heading.x)
    } else {
        Hit::Border(id)
    }
}

/// Borders between panes that move together when they are dragged: at a crossing both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grip {
    /// The border between the two columns.
    pub column: bool,
    /// The border below the first (0) or the second (1) row of panes.
    pub row: Option<u8>,
}

/// The borders that can be taken hold of at a point; `None` where there is nothing to drag.
pub fn grip(ui: &UiState, x: u16, y: u16) -> Option<Grip> {
    let area = Rect { x: 0, y: 0, width: ui.size.0, height: ui.size.1 };
    let panes = regions(area, ui).panes;
    // Only the grid has borders that can be moved.
    let [(_, first), (_, beside), (_, second), _, (_, third), _] = panes.as_slice() else { return None };
    let body = panes.iter().fold(*first, |all, (_, pane)| all.union(*pane));
    if beside.y != first.y || !body.contains((x, y).into()) {
        return None;
    }
    let column = x + 1 == beside.x || x == beside.x;
    // The title of the lower pane is the border too.
    let at = |top: u16| y + 1 == top || y == top;
    let row = if at(second.y) {
        Some(0)
    } else if at(third.y) {
        Some(1)
    } else {
        None
    };
    (column || row.is_some()).then_some(Grip { column, row })
}

/// Where the borders are when the ones held are dragged to a point. The borders that are not held stay.
pub fn dragged(ui: &UiState, grip: Grip, x: u16, y: u16) -> Split {
    let area = Rect { x: 0, y: 0, width: ui.size.0, height: ui.size.1 };
    let panes = regions(area, ui).panes;
    let Some((_, first)) = panes.first() else { return ui.split };
    let body = panes.iter().fold(*first, |all, (_, pane)| all.union(*pane));
    // Rounded up, because shares are rounded down: the border comes to lie under the pointer.
    let percent = |part: u16, whole: u16| (u32::from(part) * 100).div_ceil(u32::from(whole.max(1))).min(100) as u16;
    let mut split = ui.split;
    if grip.column {
        split.left = percent(x.saturating_sub(body.x), body.width).clamp(10, 90);
    }
    let at = percent(y.saturating_sub(body.y), body.height);
    match grip.row {
        Some(0) => {
            let below = split.first.saturating_add(split.second).clamp(20, 90);
            split.first = at.clamp(10, below - 10);
            split.second = below - split.first;
        }
        Some(_) => split.second = at.clamp(split.first.saturating_add(10), 90.max(split.first + 10)) - split.first,
        None => {}
    }
    split
}

/// A box of at most this size in the middle of an area.
pub(crate) fn centered(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(width: u16, height: u16) -> (Rect, Regions) {
        let area = Rect { x: 0, y: 0, width, height };
        (area, regions(area, &UiState::default()))
    }

    #[test]
    fn no_size_is_refused_and_nothing_leaves_the_screen() {
        for width in (0..=300).step_by(7) {
            for height in 0..=90 {
                let (area, regions) = at(width, height);
                let panes = regions.panes.iter().map(|(_, area)| *area);
                for part in panes.clone().chain([regions.header, regions.tabs, regions.footer]) {
                    assert_eq!(area.union(part), area, "{width}x{height}: {part:?}");
                }
                let covered: u32 = panes
                    .chain([regions.header, regions.tabs, regions.footer])
                    .map(|r| u32::from(r.height) * u32::from(r.width))
                    .sum();
                assert_eq!(covered, area.area(), "{width}x{height}");
            }
        }
    }

    #[test]
    fn small_screens_show_one_pane_and_wide_ones_all() {
        assert_eq!(at(120, 40).1.panes.len(), 6);
        assert_eq!(at(80, 24).1.panes.len(), 6);
        assert_eq!(at(60, 40).1.panes.len(), 6);
        assert_eq!(at(40, 12).1.panes.len(), 1);
        assert_eq!(at(20, 5).1.panes.len(), 1);
    }
}
