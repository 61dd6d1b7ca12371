//! What the mouse does.

use crossterm::event::{MouseButton, MouseEventKind};
use ratatui::layout::Rect;
use vmscope::{
    app::update::Effect,
    engine::{
        command::{Command, Subject},
        snapshot::{BreakpointId, BreakpointState, Part, Snapshot},
    },
    ui::{
        layout::{self, PaneParts},
        rows,
        state::{Column, PaneId, Popup, RowKey, Split, UiState},
    },
};

use crate::user::{User, breakpoint, snapshot};

const DRAG: MouseEventKind = MouseEventKind::Drag(MouseButton::Left);
const UP: MouseEventKind = MouseEventKind::Up(MouseButton::Left);

fn area(state: &UiState, pane: PaneId) -> Rect {
    let screen = Rect::new(0, 0, state.size.0, state.size.1);
    layout::regions(screen, state).panes.into_iter().find(|(id, _)| *id == pane).unwrap().1
}

fn parts(state: &UiState, pane: PaneId) -> PaneParts {
    layout::pane_parts(area(state, pane))
}

/// The screen as lines, to look for the place of a word.
fn find(user: &User, word: &str) -> (u16, u16) {
    use ratatui::{Terminal, backend::TestBackend};
    let mut terminal = Terminal::new(TestBackend::new(user.state.size.0, user.state.size.1)).unwrap();
    let theme = vmscope::ui::theme::Theme::default();
    terminal.draw(|frame| vmscope::ui::render(frame, &user.snapshot, &user.state, &theme)).unwrap();
    let text = vmscope::ui::export::text(terminal.backend().buffer());
    let (y, line) = text.lines().enumerate().find(|(_, line)| line.contains(word)).unwrap_or_else(|| panic!("{text}"));
    let x = line.split(word).next().unwrap().chars().count();
    (x as u16, y as u16)
}

#[test]
fn a_click_selects_and_the_wheel_scrolls_what_it_is_over() {
    let mut user = User::new();
    let rows = parts(&user.state, PaneId::Breakpoints).rows;
    user.click(rows.x + 2, rows.y + 1, 0);
    assert_eq!(user.state.focus, PaneId::Breakpoints);
    assert_eq!(user.state.focused().selected, Some(RowKey::Breakpoint(BreakpointId(2))));
    user.press("1");
    user.mouse(MouseEventKind::ScrollUp, rows.x + 2, rows.y + 1, 1);
    assert_eq!(user.state.pane(PaneId::Breakpoints).position, 0);
    assert_eq!(user.state.focus, PaneId::Processes, "the wheel does not take the focus");
}

#[test]
fn a_double_click_opens_and_two_slow_ones_do_not() {
    let mut user = User::new();
    let rows = parts(&user.state, PaneId::Processes).rows;
    let (x, y) = (rows.x + 3, rows.y + 1);
    assert!(user.click(x, y, 1000).is_empty());
    assert!(user.click(x, y, 1900).is_empty() && user.popup().is_none());
    let opened = [Effect::Send(Command::Inspect(Some(Subject::Process(648))))];
    assert_eq!(user.click(x, y, 2100), opened);
    assert_eq!(user.click(0, 0, 2200), [Effect::Send(Command::Inspect(None))], "a click beside it closes it");
    assert!(user.popup().is_none());
    user.click(x, y, 3000);
    assert!(user.click(x, y + 1, 3100).is_empty(), "another row");
}

#[test]
fn a_click_on_the_name_of_a_column_sorts_and_turns_round() {
    let mut user = User::new();
    let (x, y) = find(&user, "NAME");
    user.click(x + 1, y, 0);
    let sort = |user: &User| {
        (user.state.pane(PaneId::Processes).sort.column, user.state.pane(PaneId::Processes).sort.descending)
    };
    assert_eq!(sort(&user), (Column::Name, false));
    user.click(x, y, 100);
    assert_eq!(sort(&user), (Column::Name, true));
    let (x, y) = find(&user, "HITS");
    user.click(x, y, 900);
    assert_eq!(user.state.pane(PaneId::Breakpoints).sort.column, Column::Hits);
    assert_eq!(user.state.focus, PaneId::Breakpoints);
}

/// Wherever a name of a column is drawn, a click on it sorts by that column.
#[test]
fn every_heading_of_every_pane_is_where_it_is_drawn() {
    for width in [40, 80, 120, 240] {
        for pane in PaneId::ALL.into_iter().filter(|&pane| pane != PaneId::Log) {
            let mut user = User::new();
            user.state = UiState { size: (width, 40), focus: pane, zoom: true, ..UiState::default() };
            user.settle();
            let cells = parts(&user.state, pane).rows.width;
            let placed = rows::fit(pane, &user.state.pane(pane).rows, cells);
            assert!(!placed.is_empty());
            for column in placed.iter().filter(|column| !column.spec.title.is_empty()) {
                let (x, y) = find(&user, column.spec.title);
                user.click(x, y, 0);
                assert_eq!(user.state.pane(pane).sort.column, column.spec.id, "{pane:?} at {width}");
                user.state.pane_mut(pane).sort = vmscope::ui::state::Sort::default_of(pane);
                user.settle();
            }
        }
    }
}

#[test]
fn borders_are_dragged_both_ways_and_put_back() {
    let mut user = User::new();
    let left = area(&user.state, PaneId::Processes);
    user.click(left.right(), left.y + 4, 0);
    user.mouse(DRAG, 80, left.y + 4, 10);
    assert_eq!(area(&user.state, PaneId::Processes).width, 80);
    user.mouse(UP, 80, left.y + 4, 20);
    user.mouse(DRAG, 30, left.y + 4, 30);
    assert_eq!(area(&user.state, PaneId::Processes).width, 80, "the button is up");

    let third = area(&user.state, PaneId::Events).y;
    let second = area(&user.state, PaneId::Tables).y;
    user.click(5, second, 1000);
    user.mouse(DRAG, 5, second - 4, 1010);
    user.mouse(UP, 5, second - 4, 1020);
    assert_eq!(area(&user.state, PaneId::Tables).y, second - 4);
    assert!(area(&user.state, PaneId::Events).y.abs_diff(third) <= 1, "the other border stays");
    // Rows are whole, percents are coarse; the border follows to the cell or beside it.
    user.click(5, third, 2000);
    user.mouse(DRAG, 5, third + 5, 2010);
    user.mouse(UP, 5, third + 5, 2020);
    assert!(area(&user.state, PaneId::Events).y.abs_diff(third + 5) <= 1);

    // A drag beyond every bound leaves every pane its least room.
    for (x, y) in [(0, 0), (119, 39), (500, 500)] {
        let (grip_x, grip_y) = (area(&user.state, PaneId::Breakpoints).x, area(&user.state, PaneId::Tables).y);
        user.click(grip_x, grip_y, 3000);
        user.mouse(DRAG, x, y, 3010);
        user.mouse(UP, x, y, 3020);
        assert!(
            PaneId::ALL.iter().all(|&pane| area(&user.state, pane).height >= 5 && area(&user.state, pane).width >= 12)
        );
    }
    user.press("=");
    assert_eq!(user.state.split, Split::default());
    user.click(left.right(), left.y + 4, 5000);
    user.mouse(DRAG, 90, left.y + 4, 5010);
    user.mouse(UP, 90, left.y + 4, 5020);
    let border = area(&user.state, PaneId::Breakpoints).x;
    user.click(border, left.y + 4, 6000);
    user.click(border, left.y + 4, 6100);
    assert_eq!(user.state.split, Split::default(), "a double click on the border");
}

#[test]
fn tabs_and_keys_of_the_footer_are_pressed() {
    let mut user = User::new();
    let (x, y) = find(&user, "freeze");
    assert_eq!(user.click(x, y, 0), [Effect::Freeze]);
    user.state.size = (60, 16);
    user.settle();
    let (x, y) = find(&user, "3 Tables");
    user.click(x, y, 100);
    assert_eq!(user.state.focus, PaneId::Tables);
}

#[test]
fn lists_and_answers_of_popups_are_clicked() {
    let mut user = User::new();
    user.press("s");
    let (x, y) = find(&user, "▸ pid");
    user.click(x + 3, y + 2, 0);
    assert!(user.popup().is_none());
    assert_eq!(user.state.focused().sort.column, Column::Name);

    user.press(": 'freeze'");
    let (x, y) = find(&user, "Hold the picture");
    assert_eq!(user.click(x, y, 1000), [Effect::Freeze]);

    user.press("2 a 'NtCreate'");
    let (x, y) = find(&user, "nt!NtCreateKey");
    user.click(x, y, 2000);
    assert!(matches!(user.popup(), Some(Popup::Add(dialog)) if dialog.place.value() == "nt!NtCreateKey"));
    user.mouse(MouseEventKind::ScrollDown, x, y, 2010);
    user.click(0, 0, 3000);
    assert!(user.popup().is_none(), "a click beside a popup closes it");

    user.press("/ 'x'");
    user.click(4, 4, 4000);
    assert!(user.popup().is_none());
    assert_eq!(user.state.focused().filter.text(), "x", "a filter that was typed stays");

    let set = Part::new(vec![breakpoint(1, BreakpointState::Active)]);
    let mut user = User::with(Snapshot { breakpoints: set, ..snapshot() });
    user.press("q");
    let (x, y) = find(&user, "stay (n)");
    assert!(user.click(x, y, 0).is_empty() && user.popup().is_none());
    user.press("q");
    let (x, y) = find(&user, "quit (y)");
    assert_eq!(user.click(x, y, 1000), [Effect::Leave]);
}
