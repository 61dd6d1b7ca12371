//! Pane 3: monitored addresses, and whether the guest maps them.
//!
//! ```text
//!       SYMBOL                 ADDRESS   PROC PHYSICAL SIZE  CHG   LAST
//! ● in  nt!MmPfnDatabase  fffff803`1c30      -   1f4000   4K    3   1.2s
//! ○ out                    7ffa`1c2a0000   648        -    -    8   12ms
//! ```

use std::borrow::Cow;

use super::{Cell, hex_cell, key_sentence, nothing, with_process};
use crate::{
    engine::snapshot::{Capability, Snapshot},
    ui::{
        format,
        pen::Pen,
        rows::RowRef,
        state::{Column, UiState},
    },
};

/// `addressed` and `named` tell whether address and process have a column of their own.
pub(super) fn cell<'a>(
    pen: &Pen<'_>,
    snapshot: &'a Snapshot,
    row: RowRef,
    column: Column,
    columns: u16,
    (addressed, named): (bool, bool),
) -> Option<Cell<'a>> {
    let theme = pen.theme;
    let table = snapshot.page_tables.get(row.index as usize)?;
    let within = |place: Cow<'a, str>| with_process(pen, place, table.pid.filter(|_| !named), columns);
    Some(match column {
        Column::State if table.ended.is_some() => Cell::new("ended", theme.pending),
        Column::State if table.paged_in => Cell::new(format!("{} in", pen.glyphs.on), theme.paged_in),
        Column::State => Cell::new(format!("{} out", pen.glyphs.off), theme.paged_out),
        Column::Symbol if table.symbol.is_empty() && !addressed => {
            Cell::new(within(format::Address(table.address.0).to_string().into()), theme.address)
        }
        Column::Symbol if table.symbol.is_empty() => Cell::new("", theme.symbol),
        Column::Symbol => Cell::new(within(table.symbol.as_str().into()), theme.symbol),
        Column::Address => Cell::new(format::Address(table.address.0).to_string(), theme.address),
        Column::Process => table.pid.map_or_else(|| nothing(pen), |pid| Cell::new(pid.to_string(), theme.number)),
        Column::Root => Cell::new(format!("{:x}", table.root.0), theme.muted),
        Column::View => Cell::new(table.view.to_string(), theme.muted),
        Column::Physical => hex_cell(pen, table.pa.map(|pa| pa.0), theme.number),
        Column::PageSize => Cell::new(format::size(table.page_bytes), theme.muted),
        Column::Tag => Cell::new(table.tag.as_str(), theme.tag),
        Column::Changes => Cell::new(format::short_count(table.changes), theme.number),
        Column::Time => match table.last_change_ns {
            Some(at) => Cell::new(format::age(snapshot.taken_at_ns.saturating_sub(at)), theme.muted),
            None => nothing(pen),
        },
        _ => return None,
    })
}

pub(super) fn empty(snapshot: &Snapshot, ui: &UiState) -> String {
    match snapshot.can(Capability::TableWrites).or_else(|_| snapshot.can(Capability::TablePolling)) {
        Ok(()) => {
            format!("No address is watched.{}", key_sentence(ui, "add", "watch one and see when the guest maps it"))
        }
        Err(why) => format!("Page tables cannot be watched here: {why}."),
    }
}
