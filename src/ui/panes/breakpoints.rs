//! Pane 2: breakpoints.
//!
//! ```text
//!   SYMBOL               ADDRESS            HITS RATE
//! ● nt!NtCreateFile      fffff803`1c2a41f0 1,204 ▂▅▇▆▃▂▁▂
//! ◐ ntdll!LdrLoadDll        7ffa`1c2a0000      0 pending
//! ◉ do_sys_openat2       ffffffff`81341f0c     19 ▁▂▁        (the guest can see it)
//! ```

use std::borrow::Cow;

use super::{Cell, hex_cell, key_sentence, with_process};
use crate::{
    engine::snapshot::{Breakpoint, BreakpointState, Capability, Scope, Snapshot},
    ui::{
        format,
        glyphs::Glyphs,
        pen::Pen,
        rows::RowRef,
        state::{Column, UiState},
        theme::Theme,
    },
};
use ratatui::style::Style;

/// The glyph and the style of a state.
pub(in crate::ui) fn state_glyph(breakpoint: &Breakpoint, theme: &Theme, glyphs: &Glyphs) -> (char, Style) {
    match breakpoint.state {
        BreakpointState::Active if breakpoint.visible => (glyphs.seen, theme.pending),
        BreakpointState::Active => (glyphs.on, theme.active),
        BreakpointState::Pending => (glyphs.half, theme.pending),
        BreakpointState::Disabled | BreakpointState::Ended => (glyphs.off, theme.disabled),
        BreakpointState::Failed => ('!', theme.failed),
    }
}

/// `addressed` and `scoped` tell whether address and scope have a column of their own.
pub(super) fn cell<'a>(
    pen: &Pen<'_>,
    snapshot: &'a Snapshot,
    row: RowRef,
    column: Column,
    width: u16,
    (addressed, scoped): (bool, bool),
) -> Option<Cell<'a>> {
    let theme = pen.theme;
    let breakpoint = snapshot.breakpoints.get(row.index as usize)?;
    let (glyph, style) = state_glyph(breakpoint, theme, pen.glyphs);
    let off = matches!(breakpoint.state, BreakpointState::Disabled | BreakpointState::Ended);
    let unless_off = |style| if off { theme.disabled } else { style };
    let pid = match breakpoint.scope {
        Scope::Global => None,
        Scope::Process(pid) => Some(pid),
    };
    let scoped = |place: Cow<'a, str>| with_process(pen, place, pid.filter(|_| !scoped), width);
    Some(match column {
        Column::State => Cell::new(glyph.to_string(), style),
        Column::Symbol if breakpoint.symbol.is_empty() && addressed => Cell::new("(no symbol)", theme.muted),
        Column::Symbol if breakpoint.symbol.is_empty() => {
            Cell::new(scoped(format::Address(breakpoint.address.0).to_string().into()), unless_off(theme.address))
        }
        Column::Symbol => Cell::new(scoped(breakpoint.symbol.as_str().into()), unless_off(theme.symbol)),
        Column::Address => Cell::new(format::Address(breakpoint.address.0).to_string(), unless_off(theme.address)),
        Column::Scope => match pid {
            None => Cell::new("global", theme.muted),
            Some(pid) => Cell::new(pid.to_string(), unless_off(theme.number)),
        },
        Column::View => Cell::new(breakpoint.view.to_string(), theme.muted),
        Column::Physical => hex_cell(pen, breakpoint.pa.map(|pa| pa.0), theme.muted),
        Column::Tag => Cell::new(breakpoint.tag.as_str(), theme.tag),
        Column::Hits => {
            let full = format::count(breakpoint.hits);
            let fits = full.len() <= usize::from(width);
            Cell::new(if fits { full } else { format::short_count(breakpoint.hits) }, unless_off(theme.number))
        }
        Column::Rate => match breakpoint.state {
            BreakpointState::Active => {
                // The number first, where there is room for both.
                let now = breakpoint.rates.last().map_or_else(String::new, |&rate| {
                    if width < 18 { String::new() } else { format!("{:>4}/s ", format::short_count(rate)) }
                });
                let bars = usize::from(width).saturating_sub(now.len());
                let bars = pen.glyphs.spark(&breakpoint.rates, bars);
                Cell::new(now + &bars, theme.sparkline)
            }
            BreakpointState::Pending => Cell::new("pending", style),
            // Storm control takes a breakpoint out and says so; a user needs no reason.
            BreakpointState::Disabled if breakpoint.error.as_deref().is_some_and(|why| why.starts_with("storm")) => {
                Cell::new("storm", theme.pending)
            }
            BreakpointState::Ended => Cell::new("ended", theme.pending),
            BreakpointState::Disabled => Cell::new("off", style),
            BreakpointState::Failed => Cell::new("failed", style),
        },
        _ => return None,
    })
}

pub(super) fn empty(snapshot: &Snapshot, ui: &UiState) -> String {
    match snapshot.can(Capability::Breakpoints) {
        Ok(()) => format!("No breakpoint is set.{}", key_sentence(ui, "add", "set one by name or address")),
        Err(why) => format!("No breakpoints here: {why}."),
    }
}
