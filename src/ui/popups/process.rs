//! A process: everything that the OS layer reads of it.
//!
//! ```text
//! parent          528 wininit.exe
//! command line    C:\Windows\system32\lsass.exe
//!
//! Threads (9)
//!    652 running  ffffe001`04000080  main
//!
//! Memory regions (3)
//! 7ffa`1c2a0000 - 7ffa`1c498000  r-xp  \Windows\System32\ntdll.dll
//! ```

use ratatui::text::Span;

use super::{
    Desk,
    sheet::{Sheet, column, column_right},
};
use crate::{
    engine::snapshot::{ProcessDetail, ProcessFlag},
    ui::{format, rows::flag_word},
};

pub(super) fn sheet(desk: &Desk<'_>, detail: &ProcessDetail) -> Sheet {
    let mut sheet = Sheet::new(desk, format!("Process {} {}", detail.process.pid, detail.process.name));
    identity(&mut sheet, desk, detail);
    missing(&mut sheet, desk, detail);
    threads(&mut sheet, desk, detail);
    modules(&mut sheet, desk, detail);
    regions(&mut sheet, desk, detail);
    handles(&mut sheet, desk, detail);
    if !detail.unavailable.is_empty() {
        sheet.section("Not read here");
        for what in &detail.unavailable {
            sheet.text(what, desk.theme.muted);
        }
    }
    sheet
}

fn identity(sheet: &mut Sheet, desk: &Desk<'_>, detail: &ProcessDetail) {
    let Desk { snapshot, theme, .. } = desk;
    let process = &detail.process;
    let parent = snapshot.processes.iter().find(|other| other.pid == process.ppid);
    let parent = match parent {
        Some(parent) => format!("{} {}", parent.pid, parent.name),
        None if process.ppid == 0 => "none".to_owned(),
        None => format!("{} (not in the list)", process.ppid),
    };
    sheet.field("parent", &parent, theme.symbol);
    match &detail.command_line {
        Some(line) if line.is_empty() && process.flags.contains(&ProcessFlag::Kernel) => {
            sheet.field("command line", "none: it runs in the kernel", theme.muted);
        }
        Some(line) if line.is_empty() => sheet.field("command line", "(none)", theme.muted),
        Some(line) => sheet.field("command line", line, theme.symbol),
        None if !detail.missing.is_empty() => {
            sheet.field("command line", "its pages are not mapped", theme.missing);
        }
        None => sheet.field("command line", "not read", theme.muted),
    }
    let root = detail.root_directory.as_ref().filter(|root| *root != "/");
    for (name, path) in
        [("program", detail.executable.as_ref()), ("folder", detail.working_directory.as_ref()), ("root folder", root)]
    {
        if let Some(path) = path {
            sheet.field(name, path, theme.symbol);
        }
    }
    if !process.flags.is_empty() {
        let words: Vec<&str> = process.flags.iter().map(|&flag| flag_word(flag)).collect();
        let hidden = process.flags.contains(&ProcessFlag::Hidden);
        sheet.field("flags", &words.join(", "), if hidden { theme.hidden } else { theme.symbol });
    }
    let root = process.root.map_or_else(|| "none: it runs in the kernel".to_owned(), |root| format!("{:x}", root.0));
    sheet.field("root", &root, theme.number);
    sheet.field("object", &format::Address(process.object.0).to_string(), theme.address);
    let started =
        format!("{} after boot, {} ago", format::span(process.start_ns), format::span(snapshot.age_ns(process)));
    sheet.field("started", &started, theme.symbol);
    let running: Vec<String> = snapshot
        .vcpus
        .iter()
        .filter(|vcpu| vcpu.pid == Some(process.pid))
        .map(|vcpu| format!("vCPU {} at {}", vcpu.id, format::Address(vcpu.rip.0)))
        .collect();
    if !running.is_empty() {
        sheet.field("runs on", &running.join(", "), theme.active);
    }
    for (name, value) in &detail.credentials {
        sheet.field(name, value, theme.symbol);
    }
}

fn missing(sheet: &mut Sheet, desk: &Desk<'_>, detail: &ProcessDetail) {
    if detail.missing.is_empty() {
        return;
    }
    let places: Vec<String> = detail.missing.iter().take(16).map(|va| format::Address(va.0).to_string()).collect();
    let more = match detail.missing.len().saturating_sub(places.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    sheet.gap();
    let them = if places.len() == 1 { "it" } else { "them" };
    let text = format!("Not mapped: {}{more}. The Faults pane can ask the guest for {them}.", places.join(", "));
    sheet.text(&text, desk.theme.missing);
}

/// A heading with the number of lines, and a word where a bound cut the list short.
fn heading(sheet: &mut Sheet, detail: &ProcessDetail, title: &str, key: &str, count: usize) -> bool {
    let cut = if detail.truncated.contains(&key) { ", truncated" } else { "" };
    if count > 0 || !cut.is_empty() {
        sheet.section(format!("{title} ({count}{cut})"));
    }
    count > 0
}

fn threads(sheet: &mut Sheet, desk: &Desk<'_>, detail: &ProcessDetail) {
    let theme = desk.theme;
    if !heading(sheet, detail, "Threads", "threads", detail.threads.len()) {
        return;
    }
    for thread in &detail.threads {
        let state = if thread.state == "running" { theme.active } else { theme.muted };
        let mut line = vec![
            column_right(&thread.tid.to_string(), 7, theme.number),
            column(&thread.state, 10, state),
            column(&format::Address(thread.object.0).to_string(), 17, theme.address),
            Span::styled(thread.name.clone(), theme.symbol),
        ];
        line.extend(thread.hidden.then(|| Span::styled("  hidden", theme.hidden)));
        sheet.line(line);
    }
}

fn modules(sheet: &mut Sheet, desk: &Desk<'_>, detail: &ProcessDetail) {
    let theme = desk.theme;
    if !heading(sheet, detail, "Modules", "modules", detail.modules.len()) {
        return;
    }
    for module in &detail.modules {
        let mut line = vec![
            column_right(&format::Address(module.base.0).to_string(), 17, theme.address),
            column_right(&format::memory(module.size), 9, theme.muted),
            Span::styled(module.name.clone(), theme.symbol),
        ];
        line.extend(module.hidden.then(|| Span::styled("  hidden", theme.hidden)));
        sheet.line(line);
    }
}

fn regions(sheet: &mut Sheet, desk: &Desk<'_>, detail: &ProcessDetail) {
    let theme = desk.theme;
    if !heading(sheet, detail, "Memory regions", "regions", detail.regions.len()) {
        return;
    }
    for region in &detail.regions {
        // What is writable and executable at once is worth a look.
        let both = region.protection.contains('w') && region.protection.contains('x');
        let mut line = vec![column_right(&format::Address(region.start.0).to_string(), 17, theme.address)];
        if desk.columns >= 60 {
            line.push(column_right(&format::Address(region.end.0).to_string(), 17, theme.address));
        }
        line.push(column_right(&format::memory(region.end - region.start), 9, theme.muted));
        line.push(column(&region.protection, 5, if both { theme.failed } else { theme.muted }));
        line.push(Span::styled(region.name.clone(), theme.symbol));
        sheet.line(line);
    }
}

fn handles(sheet: &mut Sheet, desk: &Desk<'_>, detail: &ProcessDetail) {
    let theme = desk.theme;
    // Linux counts its open files in decimal, as /proc/PID/fd does; Windows shows handles in hexadecimal.
    let is_linux = desk.snapshot.guest.os == "linux";
    let title = if is_linux { "Open files" } else { "Handles" };
    if !heading(sheet, detail, title, "handles", detail.handles.len()) {
        return;
    }
    for (number, what) in &detail.handles {
        let number = if is_linux { number.to_string() } else { format!("{number:x}") };
        sheet.line(vec![column_right(&number, 7, theme.number), Span::styled(what.clone(), theme.symbol)]);
    }
}
