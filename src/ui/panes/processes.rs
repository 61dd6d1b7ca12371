//! Pane 1: the guest's processes.
//!
//! ```text
//!     PID   PPID NAME              ROOT  THR    TIME FLAGS
//! ▸   648    560 ├ lsass.exe     1a5000    9    0:12 hidden
//! ```

use std::borrow::Cow;

use super::{Cell, hex_cell, nothing};
use crate::{
    engine::snapshot::{Process, ProcessFlag, Snapshot, Status},
    ui::{
        format,
        pen::Pen,
        rows::{RowRef, flag_word},
        state::{Column, UiState},
    },
};

pub(super) fn cell<'a>(
    pen: &Pen<'_>,
    snapshot: &'a Snapshot,
    ui: &UiState,
    row: RowRef,
    column: Column,
) -> Option<Cell<'a>> {
    let theme = pen.theme;
    let process = snapshot.processes.get(row.index as usize)?;
    let has = |flag| process.flags.contains(&flag);
    let style = if has(ProcessFlag::Hidden) {
        theme.hidden
    } else if has(ProcessFlag::Exiting) {
        theme.exiting
    } else if has(ProcessFlag::Kernel) {
        theme.muted
    } else {
        theme.text
    };
    let plain = ratatui::style::Style { bg: None, ..style };
    Some(match column {
        Column::Pid => Cell::new(process.pid.to_string(), plain),
        Column::Ppid => Cell::new(process.ppid.to_string(), theme.muted),
        Column::Name => Cell::new(name(process, pen, ui, row), plain),
        Column::Uid => process.uid.map_or_else(|| nothing(pen), |uid| Cell::new(uid.to_string(), theme.muted)),
        Column::Root => hex_cell(pen, process.root.map(|root| root.0), theme.muted),
        Column::Threads => Cell::new(process.threads.to_string(), plain),
        Column::Time => Cell::new(format::span(snapshot.age_ns(process)), theme.muted),
        Column::Flags => {
            let words: Vec<&str> = process.flags.iter().map(|&flag| flag_word(flag)).collect();
            Cell::new(words.join(" "), plain)
        }
        _ => return None,
    })
}

/// The name, under its parent in the tree.
fn name<'a>(process: &'a Process, pen: &Pen<'_>, ui: &UiState, row: RowRef) -> Cow<'a, str> {
    let name = if process.name.is_empty() { "(no name)" } else { &process.name };
    if !ui.tree || row.depth == 0 {
        return Cow::Borrowed(name);
    }
    let [child, last, past] = pen.glyphs.tree;
    let lines: String = (1..row.depth).map(|depth| if row.lines >> depth & 1 == 1 { past } else { "  " }).collect();
    let branch = if row.last { last } else { child };
    Cow::Owned(format!("{lines}{branch}{name}"))
}

pub(super) fn empty(snapshot: &Snapshot) -> String {
    match snapshot.status {
        Status::Attaching => "The process list comes as soon as the guest's kernel is found.".to_owned(),
        Status::Lost => "The guest is gone, and no process was read before.".to_owned(),
        Status::Running | Status::Paused | Status::Replay if snapshot.guest.os == "unknown" => {
            "No kernel that can be read was found in this guest: it may still be in its boot loader.".to_owned()
        }
        Status::Running | Status::Paused | Status::Replay => "No process was found yet.".to_owned(),
    }
}
