//! What is counted for the titles, once per change of the data.

use crate::{
    engine::snapshot::{BreakpointState, FaultState, ProcessFlag, Scope, Snapshot, View},
    ui::{
        pen::width,
        state::{Column, PaneId},
    },
};

/// Counts over all rows of a pane, filtered or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Processes: hidden, exiting. Breakpoints: active, pending, disabled, failed. Tables: in, out. Faults: pending,
    /// injected, resolved, suppressed.
    pub states: [usize; 4],
    /// Cells of the longest symbol.
    pub longest: u16,
    /// Columns in which no row has anything to show.
    pub empty: Vec<Column>,
}

/// Counts the rows of a pane.
pub(super) fn tally(snapshot: &Snapshot, pane: PaneId) -> Tally {
    let mut tally = Tally::default();
    let mut count = |place: usize| {
        if let Some(state) = tally.states.get_mut(place) {
            *state += 1;
        }
    };
    let mut longest = 0;
    let mut used = Vec::new();
    let mut uses = |column: Column, yes: bool| {
        if yes && !used.contains(&column) {
            used.push(column);
        }
    };
    let optional: &[Column] = match pane {
        PaneId::Processes => {
            for process in snapshot.processes.iter() {
                for flag in &process.flags {
                    match flag {
                        ProcessFlag::Hidden => count(0),
                        ProcessFlag::Exiting => count(1),
                        ProcessFlag::Kernel | ProcessFlag::Wow64 => {}
                    }
                }
                uses(Column::Uid, process.uid.is_some());
                uses(Column::Flags, !process.flags.is_empty());
                uses(Column::Threads, process.threads > 0);
            }
            &[Column::Uid, Column::Flags, Column::Threads]
        }
        PaneId::Breakpoints => {
            for breakpoint in snapshot.breakpoints.iter() {
                count(match breakpoint.state {
                    BreakpointState::Active => 0,
                    BreakpointState::Pending => 1,
                    BreakpointState::Disabled | BreakpointState::Ended => 2,
                    BreakpointState::Failed => 3,
                });
                longest = longest.max(width(&breakpoint.symbol));
                uses(Column::Tag, !breakpoint.tag.is_empty());
                uses(Column::View, breakpoint.view != View(0));
                uses(Column::Scope, breakpoint.scope != Scope::Global);
            }
            &[Column::Tag, Column::View, Column::Scope]
        }
        PaneId::Tables => {
            for table in snapshot.page_tables.iter() {
                count(usize::from(!table.paged_in));
                longest = longest.max(width(&table.symbol));
                uses(Column::Tag, !table.tag.is_empty());
                uses(Column::View, table.view != View(0));
                uses(Column::Process, table.pid.is_some());
            }
            &[Column::Tag, Column::View, Column::Process]
        }
        PaneId::Faults => {
            for fault in snapshot.faults.iter() {
                count(match fault.state {
                    FaultState::Pending => 0,
                    FaultState::Injected => 1,
                    FaultState::Resolved => 2,
                    FaultState::Suppressed => 3,
                });
                uses(Column::Process, fault.pid.is_some());
                uses(Column::Note, !fault.note.is_empty());
            }
            &[Column::Process, Column::Note]
        }
        PaneId::Events => {
            for event in snapshot.events.iter() {
                uses(Column::Vcpu, event.vcpu.is_some());
                uses(Column::Process, event.pid.is_some() || !event.process.is_empty());
            }
            &[Column::Vcpu, Column::Process]
        }
        PaneId::Log => &[],
    };
    tally.longest = longest;
    tally.empty = optional.iter().copied().filter(|column| !used.contains(column)).collect();
    tally
}
