//! A missing page: who wanted it and how far it is.
//!
//! ```text
//! state           ◐ pending → injected → resolved
//! asked by        process command line, 12ms ago
//! ```

use super::{Desk, sheet::Sheet, walk};
use crate::{
    engine::snapshot::{Fault, FaultState},
    ui::{format, panes::fault_glyph, rows::fault_word},
};

pub(super) fn sheet(desk: &Desk<'_>, fault: &Fault) -> Sheet {
    let theme = desk.theme;
    let address = format::Address(fault.address.0).to_string();
    let mut sheet = Sheet::new(desk, format!("Missing page {address}"));
    let (glyph, style) = fault_glyph(fault.state, theme, desk.glyphs);
    sheet.field("state", &format!("{glyph} {}", fault_word(fault.state)), style);
    sheet.field("way", &way(fault.state, desk.glyphs.arrow), theme.muted);
    if !fault.note.is_empty() {
        sheet.field("note", &fault.note, theme.symbol);
    }
    walk::missing(&mut sheet, desk, fault.missing.as_ref());
    sheet.field("address", &address, theme.address);
    let owner = match fault.pid {
        Some(pid) => {
            let name = desk.snapshot.processes.iter().find(|process| process.pid == pid).map(|p| p.name.as_str());
            format!("process {pid} {}, root {:x}", name.unwrap_or("(not in the list)"), fault.root.0)
        }
        None => format!("root {:x}", fault.root.0),
    };
    sheet.field("space", &owner, theme.symbol);
    sheet.field("asked by", &format!("{}, {} ago", fault.asked_by, format::age(fault.age_ns)), theme.symbol);
    let attempts = match fault.vcpu {
        Some(vcpu) => format!("{}, the last one on vCPU {vcpu}", fault.attempts),
        None => fault.attempts.to_string(),
    };
    sheet.field("injections", &attempts, theme.number);
    sheet
}

/// The life of a missing page, with the state that it is in.
fn way(state: FaultState, arrow: char) -> String {
    let stop = |this: FaultState| {
        let word = fault_word(this);
        if this == state { format!("[{word}]") } else { word.to_owned() }
    };
    if state == FaultState::Suppressed {
        return format!("{} {arrow} {}", stop(FaultState::Pending), stop(FaultState::Suppressed));
    }
    [FaultState::Pending, FaultState::Injected, FaultState::Resolved].map(stop).join(&format!(" {arrow} "))
}
