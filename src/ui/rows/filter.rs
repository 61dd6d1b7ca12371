//! Which rows a filter lets through: the expression is tried on one line with all the words of a row.

use std::fmt::Write;

use crate::{
    engine::snapshot::{
        Breakpoint, BreakpointState, Event, Fault, FaultState, Process, ProcessFlag, Scope, Snapshot, Table,
    },
    ui::{
        format::Address,
        state::{PaneId, PaneState},
    },
};

/// Indices of the rows that a pane's filter lets through, in the snapshot's order.
pub(super) fn matching(snapshot: &Snapshot, pane: &PaneState) -> Vec<u32> {
    match pane.id {
        PaneId::Processes => through(&snapshot.processes, pane, process),
        PaneId::Breakpoints => through(&snapshot.breakpoints, pane, breakpoint),
        PaneId::Tables => through(&snapshot.page_tables, pane, table),
        PaneId::Faults => through(&snapshot.faults, pane, fault),
        PaneId::Events => through(&snapshot.events, pane, event),
        PaneId::Log => Vec::new(),
    }
}

fn through<T>(items: &[T], pane: &PaneState, words: fn(&T, &mut String)) -> Vec<u32> {
    let Some(regex) = pane.filter.regex() else {
        return (0..items.len() as u32).collect();
    };
    let mut line = String::new();
    let mut lets_through = |item: &T| {
        line.clear();
        words(item, &mut line);
        regex.is_match(&line)
    };
    (0u32..).zip(items).filter(|(_, item)| lets_through(item)).map(|(index, _)| index).collect()
}

/// Writing to a string does not fail.
macro_rules! say {
    ($out:expr, $($what:tt)*) => {
        let _ = write!($out, $($what)*);
    };
}

fn process(process: &Process, out: &mut String) {
    say!(out, "{} {}", process.pid, process.name);
    for flag in &process.flags {
        say!(out, " {}", flag_word(*flag));
    }
    say!(out, " ppid={}", process.ppid);
    if let Some(uid) = process.uid {
        say!(out, " uid={uid}");
    }
    if let Some(root) = process.root {
        say!(out, " root={:x}", root.0);
    }
}

fn breakpoint(breakpoint: &Breakpoint, out: &mut String) {
    let Breakpoint { symbol, address, tag, state, .. } = breakpoint;
    say!(out, "{symbol} {} {tag} {}", Address(address.0), breakpoint_word(*state));
    if let Scope::Process(pid) = breakpoint.scope {
        say!(out, " pid={pid}");
    }
    if breakpoint.visible {
        say!(out, " visible");
    }
    if let Some(error) = &breakpoint.error {
        say!(out, " {error}");
    }
}

fn table(table: &Table, out: &mut String) {
    let Table { symbol, address, tag, .. } = table;
    let state = match (&table.ended, table.paged_in) {
        (Some(ended), _) => ended,
        (None, true) => "in",
        (None, false) => "out",
    };
    say!(out, "{symbol} {} {tag} {state} root={:x}", Address(address.0), table.root.0);
    if let Some(pid) = table.pid {
        say!(out, " pid={pid}");
    }
}

fn fault(fault: &Fault, out: &mut String) {
    let Fault { address, asked_by, note, .. } = fault;
    say!(out, "{} {} {asked_by} {note}", fault_word(fault.state), Address(address.0));
    if let Some(pid) = fault.pid {
        say!(out, " pid={pid}");
    }
}

fn event(event: &Event, out: &mut String) {
    say!(out, "{} {} {}", event.kind.label(), event.process, event.text);
    if let Some(pid) = event.pid {
        say!(out, " pid={pid}");
    }
}

/// The word for a process flag.
pub(in crate::ui) const fn flag_word(flag: ProcessFlag) -> &'static str {
    match flag {
        ProcessFlag::Kernel => "kernel",
        ProcessFlag::Hidden => "hidden",
        ProcessFlag::Exiting => "exiting",
        ProcessFlag::Wow64 => "wow64",
    }
}

/// The word for a breakpoint's state.
pub(in crate::ui) const fn breakpoint_word(state: BreakpointState) -> &'static str {
    match state {
        BreakpointState::Active => "active",
        BreakpointState::Pending => "pending",
        BreakpointState::Disabled => "disabled",
        BreakpointState::Failed => "failed",
        BreakpointState::Ended => "ended",
    }
}

/// The word for a fault's state.
pub(in crate::ui) const fn fault_word(state: FaultState) -> &'static str {
    match state {
        FaultState::Pending => "pending",
        FaultState::Injected => "injected",
        FaultState::Resolved => "resolved",
        FaultState::Suppressed => "suppressed",
    }
}
