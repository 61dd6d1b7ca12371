//! The columns of each pane: their names, their widths, and which ones give way when there is no room.

use super::Rows;
use crate::ui::state::{Column, PaneId};

/// One column of a pane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnSpec {
    /// What it shows; sorting uses the same name.
    pub id: Column,
    /// Its heading.
    pub title: &'static str,
    /// Its name in configuration and sort chooser.
    pub name: &'static str,
    /// Cells it needs.
    pub width: u16,
    /// Share of the room that is left over; 0 for a column of fixed width.
    pub grow: u16,
    /// Cells beyond which more would not be of use.
    pub most: u16,
    /// Aligned to the right, as numbers are.
    pub right: bool,
    /// Columns with a larger number give way first; 0 never does. [`ColumnSpec::SORT_ONLY`] is never drawn.
    pub rank: u8,
}

impl ColumnSpec {
    /// Rank of what can be sorted by but is not drawn.
    pub const SORT_ONLY: u8 = u8::MAX;

    const fn new(id: Column, title: &'static str, name: &'static str, width: u16, rank: u8) -> Self {
        Self { id, title, name, width, grow: 0, most: width, right: false, rank }
    }

    /// Takes part in what is left over, up to `most` cells.
    const fn grow(self, grow: u16, most: u16) -> Self {
        Self { grow, most, ..self }
    }

    const fn right(self) -> Self {
        Self { right: true, ..self }
    }
}

/// Cells that the symbol of a breakpoint has at least.
const SYMBOL: u16 = 18;
/// Cells that the symbol of a watched address has at least.
const TABLE_SYMBOL: u16 = 14;

const PROCESSES: &[ColumnSpec] = &[
    ColumnSpec::new(Column::Pid, "PID", "pid", 6, 0).right(),
    ColumnSpec::new(Column::Ppid, "PPID", "ppid", 6, 5).right(),
    ColumnSpec::new(Column::Name, "NAME", "name", 12, 0).grow(3, 40),
    ColumnSpec::new(Column::Uid, "UID", "uid", 5, 7).right(),
    ColumnSpec::new(Column::Root, "ROOT", "root", 9, 6).right(),
    ColumnSpec::new(Column::Threads, "THR", "threads", 4, 4).right(),
    ColumnSpec::new(Column::Time, "TIME", "time", 7, 2).right(),
    ColumnSpec::new(Column::Flags, "FLAGS", "flags", 7, 1).grow(1, 24),
];

const BREAKPOINTS: &[ColumnSpec] = &[
    ColumnSpec::new(Column::State, "", "state", 1, 0),
    ColumnSpec::new(Column::Symbol, "SYMBOL", "symbol", SYMBOL, 0).grow(4, 56),
    ColumnSpec::new(Column::Address, "ADDRESS", "address", 17, 3).right(),
    ColumnSpec::new(Column::Scope, "SCOPE", "scope", 6, 5),
    ColumnSpec::new(Column::View, "VIEW", "view", 4, 8).right(),
    ColumnSpec::new(Column::Physical, "PHYSICAL", "physical", 9, 7).right(),
    ColumnSpec::new(Column::Tag, "TAG", "tag", 8, 6).grow(1, 24),
    ColumnSpec::new(Column::Hits, "HITS", "hits", 8, 1).right(),
    ColumnSpec::new(Column::Rate, "RATE", "rate", 8, 2).grow(1, 20),
    ColumnSpec::new(Column::Seq, "", "set", 0, ColumnSpec::SORT_ONLY),
];

const TABLES: &[ColumnSpec] = &[
    ColumnSpec::new(Column::State, "", "state", 5, 0),
    ColumnSpec::new(Column::Symbol, "SYMBOL", "symbol", TABLE_SYMBOL, 0).grow(3, 48),
    ColumnSpec::new(Column::Address, "ADDRESS", "address", 17, 4).right(),
    ColumnSpec::new(Column::Process, "PROC", "process", 6, 5).right(),
    ColumnSpec::new(Column::Root, "ROOT", "root", 9, 7).right(),
    ColumnSpec::new(Column::View, "VIEW", "view", 4, 9).right(),
    ColumnSpec::new(Column::Physical, "PHYSICAL", "physical", 9, 3).right(),
    ColumnSpec::new(Column::PageSize, "SIZE", "size", 4, 6).right(),
    ColumnSpec::new(Column::Changes, "CHG", "changes", 4, 1).right(),
    ColumnSpec::new(Column::Time, "LAST", "last", 6, 2).right(),
    ColumnSpec::new(Column::Tag, "TAG", "tag", 8, 8).grow(1, 24),
    ColumnSpec::new(Column::Seq, "", "added", 0, ColumnSpec::SORT_ONLY),
];

const FAULTS: &[ColumnSpec] = &[
    ColumnSpec::new(Column::State, "STATE", "state", 12, 0),
    ColumnSpec::new(Column::Address, "ADDRESS", "address", 17, 0).right(),
    ColumnSpec::new(Column::Process, "PROC", "process", 6, 3).right(),
    ColumnSpec::new(Column::Root, "ROOT", "root", 9, 6).right(),
    ColumnSpec::new(Column::Attempts, "TRY", "attempts", 3, 4).right(),
    ColumnSpec::new(Column::Time, "AGE", "age", 6, 1).right(),
    ColumnSpec::new(Column::AskedBy, "ASKED BY", "asked-by", 15, 2).grow(2, 32),
    ColumnSpec::new(Column::Note, "NOTE", "note", 16, 5).grow(4, 200),
    ColumnSpec::new(Column::Seq, "", "asked", 0, ColumnSpec::SORT_ONLY),
];

const EVENTS: &[ColumnSpec] = &[
    ColumnSpec::new(Column::Time, "TIME", "time", 10, 1).right(),
    ColumnSpec::new(Column::Kind, "KIND", "kind", 13, 3),
    ColumnSpec::new(Column::Vcpu, "CPU", "vcpu", 3, 4).right(),
    ColumnSpec::new(Column::Process, "PROCESS", "process", 18, 2),
    ColumnSpec::new(Column::Text, "WHAT", "text", 22, 0).grow(1, 1000),
    ColumnSpec::new(Column::Seq, "", "seq", 0, ColumnSpec::SORT_ONLY),
];

/// Most cells that the lines of a tree are given at the cost of other columns.
const MOST_INDENT: u16 = 12;
/// Most cells that a symbol is given at the cost of other columns.
const LONG_SYMBOL: u16 = 32;

/// The column of names, how many cells more it has use for, and the rank from which on other columns give way to that.
fn wish(pane: PaneId, list: &Rows) -> (Column, u16, u8) {
    let symbol = |needed: u16| list.tally().longest.min(LONG_SYMBOL).saturating_sub(needed);
    match pane {
        // The names of a tree stand two cells further in with each generation.
        PaneId::Processes => (Column::Name, (2 * list.deepest()).min(MOST_INDENT), 3),
        PaneId::Breakpoints => (Column::Symbol, symbol(SYMBOL), 7),
        // An address that has no column of its own stands where a symbol would.
        PaneId::Tables => (Column::Symbol, symbol(TABLE_SYMBOL), 4),
        PaneId::Faults | PaneId::Events | PaneId::Log => (Column::Name, 0, 0),
    }
}

/// The columns of a pane, left to right; the log has none.
pub const fn columns(pane: PaneId) -> &'static [ColumnSpec] {
    match pane {
        PaneId::Processes => PROCESSES,
        PaneId::Breakpoints => BREAKPOINTS,
        PaneId::Tables => TABLES,
        PaneId::Faults => FAULTS,
        PaneId::Events => EVENTS,
        PaneId::Log => &[],
    }
}

/// A column with the place that it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The column.
    pub spec: ColumnSpec,
    /// Its first cell, counted from the first one behind the row's mark.
    pub x: u16,
    /// Its cells.
    pub width: u16,
}

/// Which columns fit into a row of `width` cells, the first of which is for the row's mark, and how wide each one is:
/// columns without anything to show are left out, the least important ones give way, those that grow share what is left.
pub fn fit(pane: PaneId, list: &Rows, width: u16) -> Vec<Placed> {
    let shown = |spec: &&ColumnSpec| spec.rank != ColumnSpec::SORT_ONLY && !list.tally().empty.contains(&spec.id);
    let mut columns: Vec<ColumnSpec> = columns(pane).iter().filter(shown).copied().collect();
    let (names, mut extra, gives_way) = wish(pane, list);
    for name in columns.iter_mut().filter(|column| column.id == names) {
        (name.width, name.most) = (name.width + extra, name.most + extra);
    }
    let needed = |columns: &[ColumnSpec]| columns.iter().map(|c| c.width + 1).sum::<u16>().saturating_sub(1);
    // More room than this is of no use, and products of it stay within bounds.
    let room = width.saturating_sub(1).min(4096);
    while needed(&columns) > room {
        let weakest = columns.iter().enumerate().max_by_key(|(_, column)| column.rank);
        match weakest {
            // What is worth more than the ends of names stays.
            Some((_, column)) if column.rank < gives_way && extra > 0 => {
                let less = extra.min(needed(&columns) - room);
                for name in columns.iter_mut().filter(|column| column.id == names) {
                    name.width -= less;
                }
                extra = 0;
            }
            Some((place, column)) if column.rank > 0 => {
                columns.remove(place);
            }
            _ => break,
        }
    }
    let mut spare = room.saturating_sub(needed(&columns));
    let mut shares: u16 = columns.iter().map(|column| column.grow).sum();
    let mut x = 0;
    columns
        .into_iter()
        .map(|spec| {
            let wish = (spare * spec.grow).checked_div(shares).unwrap_or(0);
            let extra = wish.min(spec.most.saturating_sub(spec.width));
            spare -= extra;
            shares -= spec.grow;
            let width = (spec.width + extra).min(room.saturating_sub(x));
            let placed = Placed { spec, x, width };
            x = (x + width + 1).min(room);
            placed
        })
        .collect()
}

/// The column whose name lies `x` cells from the left end of a row of `width` cells.
pub fn column_at(pane: PaneId, list: &Rows, width: u16, x: u16) -> Option<Column> {
    let x = x.checked_sub(1)?;
    let columns = fit(pane, list, width);
    // The gap behind a column belongs to it.
    columns.iter().find(|column| (column.x..=column.x + column.width).contains(&x)).map(|column| column.spec.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::snapshot::{Part, Process, ProcessFlag, Snapshot, Table, Va},
        ui::{rows::list, state::PaneState},
    };

    fn shown(snapshot: &Snapshot, pane: PaneId, shaped: bool, width: u16) -> Vec<(Column, u16)> {
        let list = list(snapshot, &PaneState::new(pane), shaped);
        fit(pane, &list, width).iter().map(|column| (column.spec.id, column.width)).collect()
    }

    fn has(columns: &[(Column, u16)], wanted: Column) -> bool {
        columns.iter().any(|(column, _)| *column == wanted)
    }

    #[test]
    fn lesser_columns_give_way_to_a_symbol_that_needs_the_room() {
        let table = |symbol: &str| Snapshot {
            page_tables: Part::new(vec![Table { symbol: symbol.to_owned(), ..Table::default() }]),
            ..Snapshot::default()
        };
        let short = shown(&table("nt!NtClose"), PaneId::Tables, false, 62);
        assert!(has(&short, Column::Address), "{short:?}");
        let long = shown(&table("nt!NtTerminateProcess"), PaneId::Tables, false, 62);
        assert!(!has(&long, Column::Address), "{long:?}");
        assert!(long.iter().any(|(column, width)| *column == Column::Symbol && *width >= 21), "{long:?}");
    }

    #[test]
    fn a_deep_tree_takes_room_from_what_it_shows_itself_but_not_from_flags() {
        let process = |pid: u32| Process {
            pid,
            ppid: pid - 1,
            object: Va(pid.into()),
            threads: 1,
            flags: vec![ProcessFlag::Hidden],
            ..Process::default()
        };
        let snapshot = Snapshot { processes: Part::new((1..8).map(process).collect()), ..Snapshot::default() };
        assert!(has(&shown(&snapshot, PaneId::Processes, false, 55), Column::Ppid));
        let tree = shown(&snapshot, PaneId::Processes, true, 55);
        assert!(!has(&tree, Column::Ppid) && has(&tree, Column::Flags), "{tree:?}");
        for width in 30..200 {
            let tree = shown(&snapshot, PaneId::Processes, true, width);
            let flat = shown(&snapshot, PaneId::Processes, false, width);
            for kept in [Column::Time, Column::Flags] {
                assert_eq!(has(&tree, kept), has(&flat, kept), "{width}: {tree:?}");
            }
        }
    }
}
