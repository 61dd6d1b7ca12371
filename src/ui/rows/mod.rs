//! Which rows a pane shows, in which order, and where its selection is: pure functions of the snapshot and of what the
//! pane remembers. Rendering and `app::update` use the same ones.
//!
//! A list is an index into a part of the snapshot ([`Rows`]). [`settle`] keeps it in the pane and makes it anew only when
//! the part, the filter or the order changed, so that ten thousand rows cost nothing while they rest.

mod bursts;
mod columns;
mod filter;
mod order;
mod tally;
mod tree;

use std::{collections::HashMap, sync::Arc};

pub(in crate::ui) use self::filter::{breakpoint_word, fault_word, flag_word};
pub use self::{
    bursts::stem,
    columns::{ColumnSpec, Placed, column_at, columns, fit},
    tally::Tally,
};
use super::{
    layout, popups,
    state::{Column, PaneId, PaneState, RowKey, Sort, UiState},
};
use crate::engine::snapshot::{Event, Part, Snapshot};

/// One row of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowRef {
    /// Index into the snapshot's part.
    pub index: u32,
    /// Depth in the process tree, 0 in a flat list.
    pub depth: u16,
    /// Whether it is the last child of its parent in the tree.
    pub last: bool,
    /// Bit *n* is set when the line of a parent at depth *n* goes on past this row.
    pub lines: u64,
    /// How many more events a burst has than the one at `index`, which is its newest.
    pub folded: u32,
    /// A burst's first event.
    pub first: u32,
}

/// A filtered and sorted list of a pane, and what it was made of.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    items: Arc<[RowRef]>,
    total: usize,
    tally: Arc<Tally>,
    /// The greatest depth in the process tree.
    deepest: u16,
    made_of: Option<Ingredients>,
}

/// All that a list depends on: equal ingredients, equal list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ingredients {
    /// The part's own number.
    part: u64,
    /// Expression at work.
    filter: Option<String>,
    sort: Sort,
    /// Whether processes are a tree, and events folded into bursts.
    shaped: bool,
}

impl Rows {
    /// How many rows are shown.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether no row is shown.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How many rows there are without the filter.
    pub const fn total(&self) -> usize {
        self.total
    }

    /// What was counted over all rows, filtered or not.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The greatest depth in the process tree, 0 of a flat list.
    pub const fn deepest(&self) -> u16 {
        self.deepest
    }

    /// A row by its place in the list.
    pub fn get(&self, place: usize) -> Option<RowRef> {
        self.items.get(place).copied()
    }

    /// Rows from a place on.
    pub fn from(&self, place: usize) -> impl Iterator<Item = RowRef> {
        self.items.iter().skip(place).copied()
    }
}

/// The list of a pane: the one it keeps when that is still true, else a new one. The log pane has none.
/// `shaped` makes a tree of processes, and bursts of events.
pub fn list(snapshot: &Snapshot, pane: &PaneState, shaped: bool) -> Rows {
    let (part, total) = match pane.id {
        PaneId::Processes => stamp(&snapshot.processes),
        PaneId::Breakpoints => stamp(&snapshot.breakpoints),
        PaneId::Tables => stamp(&snapshot.page_tables),
        PaneId::Faults => stamp(&snapshot.faults),
        PaneId::Events => stamp(&snapshot.events),
        PaneId::Log => return Rows::default(),
    };
    let filter = pane.filter.regex().map(|regex| regex.as_str().to_owned());
    let made_of = Ingredients { part, filter, sort: pane.sort, shaped };
    if pane.rows.made_of.as_ref() == Some(&made_of) {
        return pane.rows.clone();
    }
    let mut indices = filter::matching(snapshot, pane);
    let items: Vec<RowRef> = match pane.id {
        PaneId::Events if shaped => in_bursts(snapshot, pane.sort, &indices),
        id => {
            order::sort(snapshot, id, pane.sort, &mut indices);
            if shaped && id == PaneId::Processes {
                tree::arrange(&snapshot.processes, &indices)
            } else {
                indices.into_iter().map(|index| RowRef { index, first: index, ..RowRef::default() }).collect()
            }
        }
    };
    let tally = match &pane.rows.made_of {
        Some(old) if old.part == part => Arc::clone(&pane.rows.tally),
        _ => Arc::new(tally::tally(snapshot, pane.id)),
    };
    let deepest = items.iter().map(|row| row.depth).max().unwrap_or(0);
    Rows { items: items.into(), total, tally, deepest, made_of: Some(made_of) }
}

/// Bursts in the order in which they began, or by a column of their newest event.
fn in_bursts(snapshot: &Snapshot, sort: Sort, indices: &[u32]) -> Vec<RowRef> {
    let mut rows = bursts::fold(&snapshot.events, indices);
    if sort.column != Column::Seq {
        let mut newest: Vec<u32> = rows.iter().map(|row| row.index).collect();
        order::sort(snapshot, PaneId::Events, sort, &mut newest);
        let by_newest: HashMap<u32, RowRef> = rows.iter().map(|&row| (row.index, row)).collect();
        rows = newest.iter().filter_map(|index| by_newest.get(index).copied()).collect();
    } else if sort.descending {
        rows.reverse();
    }
    rows
}

/// The events of a row, oldest first: one, or those of a burst.
pub fn events_of<'a>(snapshot: &'a Snapshot, pane: &PaneState, row: RowRef) -> Vec<&'a Event> {
    let indices = if row.folded > 0 { filter::matching(snapshot, pane) } else { Vec::new() };
    bursts::members(&snapshot.events, &indices, row)
}

/// The row of an event's or a burst's key.
pub fn row_of(snapshot: &Snapshot, pane: &PaneState, wanted: RowKey) -> Option<RowRef> {
    pane.rows.items.iter().copied().find(|&row| key(snapshot, pane.id, row) == Some(wanted))
}

fn stamp<T>(part: &Part<Vec<T>>) -> (u64, usize) {
    (part.id(), part.len())
}

/// The name that stays with a row.
pub fn key(snapshot: &Snapshot, pane: PaneId, row: RowRef) -> Option<RowKey> {
    let index = row.index as usize;
    match pane {
        PaneId::Processes => snapshot.processes.get(index).map(|p| RowKey::Process(p.pid, p.object)),
        PaneId::Breakpoints => snapshot.breakpoints.get(index).map(|b| RowKey::Breakpoint(b.id)),
        PaneId::Tables => snapshot.page_tables.get(index).map(|t| RowKey::Table(t.id)),
        PaneId::Faults => snapshot.faults.get(index).map(|f| RowKey::Fault(f.id)),
        // The first event of a burst stays when it goes on.
        PaneId::Events => snapshot.events.get(row.first as usize).map(|e| RowKey::Event(e.seq)),
        PaneId::Log => None,
    }
}

/// Where the selected item is in a list, `None` when it is not there.
pub fn selected_place(snapshot: &Snapshot, pane: &PaneState, rows: &Rows) -> Option<usize> {
    let wanted = pane.selected?;
    let is_it = |row: RowRef| key(snapshot, pane.id, row) == Some(wanted);
    if rows.get(pane.position).is_some_and(is_it) {
        return Some(pane.position);
    }
    rows.items.iter().position(|&row| is_it(row))
}

/// Selects the row at a place, the last one when the place lies behind it. Ends following, unless it is the newest row.
pub fn select(snapshot: &Snapshot, pane: &mut PaneState, place: usize) {
    let place = place.min(pane.rows.len().saturating_sub(1));
    pane.position = place;
    pane.selected = pane.rows.get(place).and_then(|row| key(snapshot, pane.id, row));
    pane.follow = pane.id == PaneId::Events && place == newest_place(pane);
}

/// Moves the selection by so many rows, stopping at both ends.
pub fn move_by(snapshot: &Snapshot, pane: &mut PaneState, rows: isize) {
    let from = selected_place(snapshot, pane, &pane.rows).unwrap_or(pane.position);
    select(snapshot, pane, from.saturating_add_signed(rows));
}

/// The place of the row that came last.
fn newest_place(pane: &PaneState) -> usize {
    if pane.sort.descending { 0 } else { pane.rows.len().saturating_sub(1) }
}

/// Brings what the screen remembers in line with the snapshot: lists, selections, scroll offsets, marks of rows that are
/// gone. Call it once before each frame and after each action that changed a filter, an order or a selection.
pub fn settle(snapshot: &Snapshot, ui: &mut UiState) {
    for id in PaneId::ALL {
        let height = layout::visible_rows(ui, id);
        let shaped = ui.shaped(id);
        settle_pane(snapshot, ui.pane_mut(id), shaped, height);
    }
    popups::clamp_scroll(snapshot, ui);
}

fn settle_pane(snapshot: &Snapshot, pane: &mut PaneState, shaped: bool, height: usize) {
    let rows = list(snapshot, pane, shaped);
    let renewed = rows.made_of != pane.rows.made_of;
    pane.rows = rows;
    if renewed && !pane.marks.is_empty() {
        let mut marks = std::mem::take(&mut pane.marks);
        let present: std::collections::BTreeSet<RowKey> = all_keys(snapshot, pane.id).collect();
        marks.retain(|mark| present.contains(mark));
        pane.marks = marks;
    }
    if pane.follow {
        let place = newest_place(pane);
        pane.position = place;
        pane.selected = pane.rows.get(place).and_then(|row| key(snapshot, pane.id, row));
    } else if let Some(place) = selected_place(snapshot, pane, &pane.rows) {
        pane.position = place;
    } else {
        let place = pane.position.min(pane.rows.len().saturating_sub(1));
        pane.position = place;
        pane.selected = pane.rows.get(place).and_then(|row| key(snapshot, pane.id, row));
    }
    pane.offset = offset(pane.offset, pane.position, pane.rows.len(), height);
}

fn all_keys(snapshot: &Snapshot, pane: PaneId) -> impl Iterator<Item = RowKey> + '_ {
    (0u32..).map_while(move |index| key(snapshot, pane, RowRef { index, first: index, ..RowRef::default() }))
}

/// The first row to show, as near to the wanted one as keeps the selection in sight and leaves no needless gap below.
pub fn offset(wanted: usize, selected: usize, total: usize, height: usize) -> usize {
    if height == 0 {
        return wanted.min(total.saturating_sub(1));
    }
    let wanted = wanted.min(total.saturating_sub(height));
    wanted.clamp(selected.saturating_add(1).saturating_sub(height), selected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::snapshot::{Process, Va};

    fn snapshot(pids: &[u32]) -> Snapshot {
        let process =
            |&pid: &u32| Process { pid, name: format!("p{pid}"), object: Va(pid.into()), ..Process::default() };
        Snapshot { processes: Part::new(pids.iter().map(process).collect()), ..Snapshot::default() }
    }

    fn shown(snapshot: &Snapshot, ui: &UiState) -> Vec<u32> {
        let rows = &ui.pane(PaneId::Processes).rows;
        rows.from(0).filter_map(|row| snapshot.processes.get(row.index as usize)).map(|p| p.pid).collect()
    }

    #[test]
    fn a_selection_stays_on_its_item_and_falls_to_its_neighbour() {
        let mut ui = UiState::default();
        let first = snapshot(&[4, 8, 16, 20]);
        settle(&first, &mut ui);
        move_by(&first, ui.focused_mut(), 2);
        assert_eq!(ui.focused().selected, Some(RowKey::Process(16, Va(16))));
        settle(&snapshot(&[1, 2, 4, 8, 16, 20]), &mut ui);
        assert_eq!((ui.focused().selected, ui.focused().position), (Some(RowKey::Process(16, Va(16))), 4));
        settle(&snapshot(&[1, 2, 4, 8, 20]), &mut ui);
        assert_eq!(ui.focused().selected, Some(RowKey::Process(20, Va(20))));
        settle(&snapshot(&[]), &mut ui);
        assert_eq!(ui.focused().selected, None);
    }

    #[test]
    fn sorting_goes_both_ways_and_filtering_keeps_the_order() {
        let mut ui = UiState::default();
        let data = snapshot(&[20, 4, 16, 8]);
        settle(&data, &mut ui);
        assert_eq!(shown(&data, &ui), [4, 8, 16, 20]);
        ui.focused_mut().sort_by(Column::Pid);
        settle(&data, &mut ui);
        assert_eq!(shown(&data, &ui), [20, 16, 8, 4]);
        ui.focused_mut().filter.set("p(4|8)");
        settle(&data, &mut ui);
        assert_eq!((shown(&data, &ui), ui.focused().rows.total()), (vec![8, 4], 4));
    }

    #[test]
    fn marks_of_rows_that_are_gone_are_forgotten_but_filtered_ones_kept() {
        let mut ui = UiState::default();
        let both = snapshot(&[4, 8]);
        settle(&both, &mut ui);
        ui.focused_mut().marks = [RowKey::Process(4, Va(4)), RowKey::Process(8, Va(8))].into();
        ui.focused_mut().filter.set("p4");
        settle(&both, &mut ui);
        assert_eq!(ui.focused().marks.len(), 2);
        drop(both);
        settle(&snapshot(&[4]), &mut ui);
        assert_eq!(ui.focused().marks.len(), 1);
    }

    #[test]
    fn the_offset_keeps_the_selection_in_sight() {
        assert_eq!(offset(0, 9, 20, 5), 5);
        assert_eq!(offset(9, 3, 20, 5), 3);
        assert_eq!(offset(18, 19, 20, 5), 15);
        assert_eq!(offset(7, 0, 3, 5), 0);
        assert_eq!(offset(7, 0, 0, 0), 0);
    }
}
