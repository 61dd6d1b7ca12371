//! Sorting by any column, both ways. Rows that are equal keep the snapshot's order.

use std::cmp::{Ordering, Reverse};

use crate::{
    engine::snapshot::{Breakpoint, Event, Fault, Process, Scope, Snapshot, Table},
    ui::state::{Column, PaneId, Sort},
};

/// Sorts indices into a pane's part of the snapshot.
pub(super) fn sort(snapshot: &Snapshot, pane: PaneId, sort: Sort, indices: &mut [u32]) {
    let Sort { column, .. } = sort;
    match pane {
        PaneId::Processes => by(&snapshot.processes, sort, indices, |a, b| process(column, a, b)),
        PaneId::Breakpoints => by(&snapshot.breakpoints, sort, indices, |a, b| breakpoint(column, a, b)),
        PaneId::Tables => by(&snapshot.page_tables, sort, indices, |a, b| table(column, a, b)),
        PaneId::Faults => by(&snapshot.faults, sort, indices, |a, b| fault(column, a, b)),
        PaneId::Events => by(&snapshot.events, sort, indices, |a, b| event(column, a, b)),
        PaneId::Log => {}
    }
}

fn by<T>(items: &[T], sort: Sort, indices: &mut [u32], compare: impl Fn(&T, &T) -> Ordering) {
    indices.sort_by(|&a, &b| {
        let order = match (items.get(a as usize), items.get(b as usize)) {
            (Some(a), Some(b)) => compare(a, b),
            _ => Ordering::Equal,
        };
        if sort.descending { order.reverse() } else { order }
    });
}

fn words(a: &str, b: &str) -> Ordering {
    let lower = |text: &str| text.chars().flat_map(char::to_lowercase).collect::<Vec<char>>();
    // Most pairs differ in their first letters; only then is nothing allocated.
    match (a.bytes().next(), b.bytes().next()) {
        (Some(a), Some(b)) if a.is_ascii() && b.is_ascii() && !a.eq_ignore_ascii_case(&b) => {
            a.to_ascii_lowercase().cmp(&b.to_ascii_lowercase())
        }
        _ => lower(a).cmp(&lower(b)),
    }
}

fn process(column: Column, a: &Process, b: &Process) -> Ordering {
    match column {
        Column::Ppid => a.ppid.cmp(&b.ppid),
        Column::Name => words(&a.name, &b.name),
        Column::Root => a.root.cmp(&b.root),
        Column::Threads => a.threads.cmp(&b.threads),
        // The column shows how long a process has been there: the youngest has the smallest time.
        Column::Time => b.start_ns.cmp(&a.start_ns),
        Column::Uid => a.uid.cmp(&b.uid),
        Column::Flags => Reverse(&a.flags).cmp(&Reverse(&b.flags)),
        _ => a.pid.cmp(&b.pid),
    }
}

fn breakpoint(column: Column, a: &Breakpoint, b: &Breakpoint) -> Ordering {
    let pid = |scope| match scope {
        Scope::Global => None,
        Scope::Process(pid) => Some(pid),
    };
    match column {
        Column::State => a.state.cmp(&b.state),
        Column::Symbol => words(&a.symbol, &b.symbol),
        Column::Address => a.address.cmp(&b.address),
        Column::Scope => pid(a.scope).cmp(&pid(b.scope)),
        Column::View => a.view.cmp(&b.view),
        Column::Physical => a.pa.cmp(&b.pa),
        Column::Tag => words(&a.tag, &b.tag),
        Column::Hits => a.hits.cmp(&b.hits),
        Column::Rate => a.rates.last().cmp(&b.rates.last()),
        _ => a.id.cmp(&b.id),
    }
}

fn table(column: Column, a: &Table, b: &Table) -> Ordering {
    match column {
        Column::State => b.paged_in.cmp(&a.paged_in),
        Column::Symbol => words(&a.symbol, &b.symbol),
        Column::Address => a.address.cmp(&b.address),
        Column::Process => a.pid.cmp(&b.pid),
        Column::Root => a.root.cmp(&b.root),
        Column::View => a.view.cmp(&b.view),
        Column::Physical => a.pa.cmp(&b.pa),
        Column::PageSize => a.page_bytes.cmp(&b.page_bytes),
        Column::Tag => words(&a.tag, &b.tag),
        Column::Changes => a.changes.cmp(&b.changes),
        Column::Time => a.last_change_ns.cmp(&b.last_change_ns),
        _ => a.id.cmp(&b.id),
    }
}

fn fault(column: Column, a: &Fault, b: &Fault) -> Ordering {
    match column {
        Column::State => a.state.cmp(&b.state),
        Column::Address => a.address.cmp(&b.address),
        Column::Process => a.pid.cmp(&b.pid),
        Column::Root => a.root.cmp(&b.root),
        Column::AskedBy => words(&a.asked_by, &b.asked_by),
        Column::Attempts => a.attempts.cmp(&b.attempts),
        Column::Time => a.age_ns.cmp(&b.age_ns),
        Column::Note => words(&a.note, &b.note),
        _ => a.id.cmp(&b.id),
    }
}

fn event(column: Column, a: &Event, b: &Event) -> Ordering {
    match column {
        Column::Time => a.at_ns.cmp(&b.at_ns),
        Column::Kind => a.kind.cmp(&b.kind),
        Column::Vcpu => a.vcpu.cmp(&b.vcpu),
        Column::Process => words(&a.process, &b.process).then(a.pid.cmp(&b.pid)),
        Column::Text => words(&a.text, &b.text),
        _ => a.seq.cmp(&b.seq),
    }
}
