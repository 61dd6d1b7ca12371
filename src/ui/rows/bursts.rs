//! Bursts of events: the same thing in the same process again and again is one row, which stands where the burst began.
//!
//! Bursts may be interleaved: an event joins a burst that is one of the last few rows. So a row's count goes up in place
//! while its burst goes on, and once enough else has happened the same thing begins a new row.

use super::RowRef;
use crate::engine::snapshot::{Event, EventKind};

/// How many rows up an event still joins its burst.
const REACH: usize = 8;
/// Longest gap within a burst.
const GAP_NS: u64 = 2_000_000_000;

/// What an event says without what differs from one hit of a breakpoint to the next: its arguments.
pub fn stem(event: &Event) -> &str {
    let whole = event.text.as_str();
    let arguments = if event.kind == EventKind::Breakpoint { whole.find('(') } else { None };
    arguments.and_then(|at| whole.get(..at)).unwrap_or(whole)
}

/// Whether two events say the same.
fn alike(a: &Event, b: &Event) -> bool {
    a.kind == b.kind && a.pid == b.pid && a.process == b.process && stem(a) == stem(b)
}

/// Folds the given events, oldest first, into rows; [`RowRef::index`] is a burst's newest event.
pub(super) fn fold(events: &[Event], order: &[u32]) -> Vec<RowRef> {
    let mut rows: Vec<RowRef> = Vec::with_capacity(order.len());
    for &index in order {
        let Some(event) = events.get(index as usize) else { continue };
        let joins = |row: &&mut RowRef| {
            let newest = events.get(row.index as usize);
            newest.is_some_and(|last| event.at_ns.saturating_sub(last.at_ns) <= GAP_NS && alike(last, event))
        };
        match rows.iter_mut().rev().take(REACH).find(joins) {
            Some(row) => {
                row.index = index;
                row.folded += 1;
            }
            None => rows.push(RowRef { index, first: index, ..RowRef::default() }),
        }
    }
    rows
}

/// The events of a row, oldest first, out of those that a filter let through.
pub(super) fn members<'a>(events: &'a [Event], order: &[u32], row: RowRef) -> Vec<&'a Event> {
    let Some(newest) = events.get(row.index as usize) else { return Vec::new() };
    if row.folded == 0 {
        return vec![newest];
    }
    let within = order.iter().filter(|&&index| (row.first..=row.index).contains(&index));
    within.filter_map(|&index| events.get(index as usize)).filter(|event| alike(event, newest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, ms: u64, pid: u32, text: &str) -> Event {
        let (kind, process) = (EventKind::Breakpoint, String::new());
        Event { seq, at_ns: ms * 1_000_000, kind, vcpu: None, pid: Some(pid), process, text: text.into() }
    }

    fn folded(events: &[Event]) -> Vec<(u32, u32, u32)> {
        let order: Vec<u32> = (0..events.len() as u32).collect();
        let rows = fold(events, &order);
        for row in &rows {
            assert_eq!(members(events, &order, *row).len(), row.folded as usize + 1);
        }
        rows.iter().map(|row| (row.first, row.index, row.folded + 1)).collect()
    }

    #[test]
    fn what_repeats_is_one_row_whatever_its_arguments_and_what_lies_between() {
        let events = [
            event(0, 0, 4, "nt!NtClose(0x1)"),
            event(1, 1, 4, "nt!NtOpenFile(0x2)"),
            event(2, 2, 4, "nt!NtClose(0x3)"),
            event(3, 3, 8, "nt!NtClose(0x3)"),
            event(4, 4, 4, "nt!NtClose(0x5)"),
        ];
        assert_eq!(folded(&events), [(0, 4, 3), (1, 1, 1), (3, 3, 1)]);
    }

    #[test]
    fn a_pause_or_much_else_ends_a_burst() {
        assert_eq!(folded(&[event(0, 0, 4, "a"), event(1, 2_000, 4, "a"), event(2, 4_001, 4, "a")]).len(), 2);
        let mut events: Vec<Event> = (0..9).map(|n| event(n, n, n as u32, "a")).collect();
        events.push(event(9, 9, 0, "a"));
        assert_eq!(folded(&events).len(), 10, "eight other rows have come since");
        events.push(event(10, 10, 8, "a"));
        assert_eq!(folded(&events).len(), 10);
    }
}
