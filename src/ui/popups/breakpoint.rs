//! A breakpoint: what it is, the code around it, who hit it last.
//!
//! ```text
//! state           ● active in view 1, at physical 1c2a41f0
//! hits            1,204   ▂▅▇▆▃
//!
//! Code
//! ▸ fffff803`1c2a41f0  4c8bdc           mov r11, rsp
//!
//! Last hits (newest first)
//!   1:01.780   0  lsass.exe 648    (0x1f4, 0x80100080)
//! ```

use ratatui::text::Span;

use super::{
    Desk, code,
    sheet::{Sheet, column, column_right},
};
use crate::{
    engine::snapshot::{Breakpoint, BreakpointState, CodeLine, Hit, Scope},
    ui::{format, panes::breakpoint_glyph, rows::breakpoint_word},
};

/// `code` is `None` until the engine has read it.
pub(super) fn sheet(desk: &Desk<'_>, breakpoint: &Breakpoint, code: Option<&[CodeLine]>) -> Sheet {
    let theme = desk.theme;
    let address = format::Address(breakpoint.address.0).to_string();
    let name = if breakpoint.symbol.is_empty() { &address } else { &breakpoint.symbol };
    let mut sheet = Sheet::new(desk, format!("Breakpoint {name}"));
    let (glyph, style) = breakpoint_glyph(breakpoint, theme, desk.glyphs);
    sheet.field("state", &format!("{glyph} {}", state_words(breakpoint)), style);
    if let Some(error) = &breakpoint.error {
        sheet.field("because", error, theme.pending);
    }
    sheet.field("address", &address, theme.address);
    let scope = match breakpoint.scope {
        Scope::Global => "every process".to_owned(),
        Scope::Process(pid) if breakpoint.state == BreakpointState::Ended => format!("process {pid}, which is gone"),
        Scope::Process(pid) => {
            let name = desk.snapshot.processes.iter().find(|process| process.pid == pid).map(|p| p.name.as_str());
            format!("process {pid} {}", name.unwrap_or("(not in the list)"))
        }
    };
    sheet.field("scope", &scope, theme.symbol);
    if breakpoint.state == BreakpointState::Active {
        match breakpoint.visible {
            true => sheet.field("seen", "the guest can see it: it is an INT3 in guest memory", theme.pending),
            false => sheet.field("seen", "hidden: the guest reads its own code", theme.symbol),
        }
        if let Some(cost) = desk.snapshot.hit_cost_ns {
            sheet.field("cost", &format!("each hit stops the guest for about {}", format::age(cost)), theme.muted);
        }
    }
    if !breakpoint.tag.is_empty() {
        sheet.field("tag", &breakpoint.tag, theme.tag);
    }
    let spark = desk.glyphs.spark(&breakpoint.rates, 20);
    sheet.field("hits", &format!("{}   {spark}", format::count(breakpoint.hits)), theme.number);
    if let Some(code) = code {
        sheet.section("Code");
        if code.is_empty() {
            let is_over = breakpoint.state == BreakpointState::Ended;
            let why = if is_over { "It went with its process." } else { "The page of this code is not mapped." };
            sheet.text(why, theme.missing);
        }
        code::lines(&mut sheet, desk, code);
    }
    hits(&mut sheet, desk, &breakpoint.last_hits);
    sheet
}

fn state_words(breakpoint: &Breakpoint) -> String {
    let word = breakpoint_word(breakpoint.state);
    match (breakpoint.state, breakpoint.pa) {
        (BreakpointState::Active, Some(pa)) => format!("{word} in view {}, at physical {:x}", breakpoint.view, pa.0),
        (BreakpointState::Pending, _) => {
            format!("{word}: the guest does not map this page; it arms itself when it does")
        }
        (BreakpointState::Disabled | BreakpointState::Ended, _) => format!("{word}: nothing of it is in the guest"),
        (BreakpointState::Active | BreakpointState::Failed, _) => word.to_owned(),
    }
}

fn hits(sheet: &mut Sheet, desk: &Desk<'_>, hits: &[Hit]) {
    let theme = desk.theme;
    if hits.is_empty() {
        sheet.section("Last hits");
        sheet.text("None yet.", theme.muted);
        return;
    }
    sheet.section("Last hits (newest first)");
    for hit in hits.iter().rev() {
        let process = match hit.pid {
            Some(pid) => format!("{} {pid}", hit.process),
            None => hit.process.clone(),
        };
        let args: Vec<String> = hit.args.iter().map(|arg| format!("{arg:#x}")).collect();
        let asked = hit.call.clone().unwrap_or_else(|| format!("({})", args.join(", ")));
        sheet.line(vec![
            column_right(&format::clock(hit.at_ns), 10, theme.muted),
            column_right(&hit.vcpu.to_string(), 3, theme.muted),
            column(&process, 20, theme.symbol),
            Span::styled(asked, theme.number),
        ]);
    }
    if let Some(newest) = hits.last().filter(|hit| !hit.registers.is_empty()) {
        sheet.section("Registers at the newest hit");
        registers(sheet, desk, &newest.registers);
    }
}

/// Registers in as many columns as fit.
pub(super) fn registers(sheet: &mut Sheet, desk: &Desk<'_>, registers: &[(&'static str, u64)]) {
    let theme = desk.theme;
    let in_a_row = usize::from(desk.columns / 25).max(1);
    for row in registers.chunks(in_a_row) {
        let mut line = Vec::new();
        for (name, value) in row {
            line.push(column(name, 5, theme.label));
            line.push(column(&format::Address(*value).to_string(), 18, theme.number));
        }
        sheet.line(line);
    }
}
