//! The memory view: moving, following, going back, searching.

use super::{Effect, copy, dump, popup, refuse};
use crate::{
    app::action::Action,
    engine::{
        command::{Command, Subject, Target},
        snapshot::{Breakpoint, BreakpointState, Event, MemoryDetail, Scope, Snapshot, Va},
    },
    ui::{
        memory,
        state::{FindDialog, Found, MemoryMode, MemoryView, Popup, RowKey, Severity, UiState},
    },
};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// An action while the view is the topmost popup; `None` for one that means the same as elsewhere.
pub(super) fn act(state: &mut UiState, snapshot: &Snapshot, action: Action) -> Option<Vec<Effect>> {
    let (rows, per_row) = (memory::rows(state), memory::shape(state).per_row);
    let Some(Popup::Memory(view)) = state.popups.last_mut() else { return None };
    let held = memory::held(snapshot, view);
    let before = (view.pid, view.top, view.mode, view.cursor);
    match action {
        Action::Down => step(view, held, rows, per_row, 1),
        Action::Up => step(view, held, rows, per_row, -1),
        Action::PageDown => step(view, held, rows, per_row, rows as i64),
        Action::PageUp => step(view, held, rows, per_row, -(rows as i64)),
        Action::Left => shift(view, rows, per_row, -1),
        Action::Right => shift(view, rows, per_row, 1),
        Action::Home => go(view, Va(view.cursor.0 & !(PAGE - 1)), rows, per_row),
        Action::End if view.mode == MemoryMode::Code => {
            go(view, Va((view.cursor.0 | (PAGE - 1)).saturating_add(1)), rows, per_row);
        }
        Action::End => go(view, Va(view.cursor.0 | (PAGE - 1)), rows, per_row),
        Action::MemoryMode => show(view, view.mode.next(), rows, per_row),
        Action::PageWalk if view.mode == MemoryMode::Walk => show(view, MemoryMode::Bytes, rows, per_row),
        Action::PageWalk => show(view, MemoryMode::Walk, rows, per_row),
        Action::Follow => {
            return Some(match pointed(view, held) {
                Ok(va) => jump(state, view_pid(state), va),
                Err(why) => refuse(state, why),
            });
        }
        Action::MemoryBack => {
            let Some((pid, va)) = view.trail.pop() else {
                return Some(refuse(state, "memory-back: this is where it began"));
            };
            view.pid = pid;
            go(view, va, rows, per_row);
            return Some(vec![inspect(state)]);
        }
        Action::Search => {
            let input = view.search.as_ref().map_or_else(String::new, |found| found.text.clone()).into();
            state.popups.push(Popup::Find(FindDialog { input, ..FindDialog::default() }));
            return Some(Vec::new());
        }
        Action::SearchNext => return Some(next_match(state)),
        Action::SearchPrevious => return Some(previous_match(state)),
        Action::AskPage => {
            let target = Target { place: view.cursor.to_string(), pid: view.pid, started_ns: None };
            return Some(vec![Effect::Send(Command::RequestPage { target })]);
        }
        Action::Copy | Action::CopyPane => {
            let only_here = action == Action::Copy;
            let Some(text) = held.map(|held| dump::text(view, held, (rows, per_row), only_here)) else {
                return Some(refuse(state, "copy: this memory is not read yet"));
            };
            let what = if only_here && view.mode != MemoryMode::Walk { "one row" } else { "what is shown" };
            return Some(copy::send(state, what.to_owned(), text));
        }
        Action::CloseMemory if snapshot.search.is_some() => return Some(vec![Effect::Send(Command::CancelSearch)]),
        Action::CloseMemory => return Some(popup::close(state)),
        _ => return None,
    }
    let after = (view.pid, view.top, view.mode, view.cursor);
    // The walk is of the address under the cursor; what else is shown begins at the top.
    let walked = view.mode == MemoryMode::Walk && before.3 != after.3;
    let moved = (before.0, before.1, before.2) != (after.0, after.1, after.2);
    Some(if moved || walked { vec![inspect(state)] } else { Vec::new() })
}

/// What the engine is to read for a view.
pub(super) fn subject(state: &UiState, view: &MemoryView) -> Subject {
    let (va, length) = match view.mode {
        MemoryMode::Walk => (view.cursor, 16),
        // An instruction takes up to 15 bytes.
        MemoryMode::Bytes | MemoryMode::Code => {
            (view.top, (memory::rows(state) * memory::shape(state).per_row.max(16)) as u32)
        }
    };
    Subject::Memory { pid: view.pid, va, length }
}

fn inspect(state: &UiState) -> Effect {
    let view = state.popups.iter().rev().find_map(|popup| match popup {
        Popup::Memory(view) => Some(subject(state, view)),
        _ => None,
    });
    Effect::Send(Command::Inspect(view))
}

/// The screen has another size: what is shown of memory is read anew.
pub fn resized(state: &UiState) -> Vec<Effect> {
    let shown = state.popups.iter().any(|popup| matches!(popup, Popup::Memory(_)));
    if shown { vec![inspect(state)] } else { Vec::new() }
}

/// Opens the view of an address above everything else, or moves the one that is open.
pub(super) fn open(state: &mut UiState, pid: Option<u32>, va: Va, mode: MemoryMode) -> Vec<Effect> {
    if state.popups.iter().any(|popup| matches!(popup, Popup::Memory(_))) {
        let pid = pid.or(view_pid(state));
        return jump(state, pid, va);
    }
    let (rows, per_row) = (memory::rows(state), memory::shape(state).per_row);
    let mut view = MemoryView::at(pid, va);
    show(&mut view, mode, rows, per_row);
    state.popups.push(Popup::Memory(view));
    vec![inspect(state)]
}

fn view_mut(state: &mut UiState) -> Option<&mut MemoryView> {
    state.popups.iter_mut().rev().find_map(|popup| match popup {
        Popup::Memory(view) => Some(view),
        _ => None,
    })
}

fn view_pid(state: &UiState) -> Option<u32> {
    state.popups.iter().rev().find_map(|popup| match popup {
        Popup::Memory(view) => view.pid,
        _ => None,
    })
}

/// Goes to an address and remembers where from.
fn jump(state: &mut UiState, pid: Option<u32>, va: Va) -> Vec<Effect> {
    let (rows, per_row) = (memory::rows(state), memory::shape(state).per_row);
    let Some(view) = view_mut(state) else { return Vec::new() };
    view.trail.push((view.pid, view.cursor));
    let surplus = view.trail.len().saturating_sub(MemoryView::TRAIL);
    view.trail.drain(..surplus);
    view.pid = pid;
    go(view, va, rows, per_row);
    vec![inspect(state)]
}

/// Puts the cursor on an address and shows it, with the least scrolling that does.
fn go(view: &mut MemoryView, va: Va, rows: u64, per_row: u64) {
    view.cursor = va;
    if view.mode == MemoryMode::Code {
        view.top = va;
        return;
    }
    let row = va.0 & !(per_row - 1);
    let seen = view.top.0 <= row && row - view.top.0 < rows * per_row;
    if !seen || !view.top.0.is_multiple_of(per_row) {
        let near = row.abs_diff(view.top.0) <= 2 * rows * per_row;
        view.top = match (near, row > view.top.0) {
            (true, true) => Va(row.saturating_sub((rows - 1) * per_row)),
            _ => Va(row),
        };
    }
}

fn show(view: &mut MemoryView, mode: MemoryMode, rows: u64, per_row: u64) {
    view.mode = mode;
    view.scroll = 0;
    go(view, view.cursor, rows, per_row);
}

/// Moves by rows.
fn step(view: &mut MemoryView, held: Option<&MemoryDetail>, rows: u64, per_row: u64, by: i64) {
    match view.mode {
        MemoryMode::Bytes => {
            let bytes = by.unsigned_abs().saturating_mul(per_row);
            let to = if by > 0 { view.cursor.0.saturating_add(bytes) } else { view.cursor.0.saturating_sub(bytes) };
            go(view, Va(to), rows, per_row);
        }
        MemoryMode::Code => step_code(view, held, rows, by),
        MemoryMode::Walk => view.scroll = view.scroll.saturating_add_signed(by as isize),
    }
}

fn step_code(view: &mut MemoryView, held: Option<&MemoryDetail>, rows: u64, by: i64) {
    let Some(held) = held else { return };
    let Some(here) = memory::line_of(held, view.cursor) else {
        // Nothing is known here: on to the next page, or back to the one before.
        let page = view.cursor.0 & !(PAGE - 1);
        let to = if by > 0 { page.saturating_add(PAGE) } else { view.cursor.0.saturating_sub(1) & !(PAGE - 1) };
        (view.cursor, view.top) = (Va(to), Va(to));
        return;
    };
    let wanted = here.saturating_add_signed(by as isize);
    let last = memory::lines(held).count().saturating_sub(1);
    let Some(line) = memory::lines(held).nth(wanted.min(last)) else { return };
    if wanted == here && by < 0 {
        // The first known instruction: the page before may be there or not.
        let to = Va(view.cursor.0.saturating_sub(1) & !(PAGE - 1));
        (view.cursor, view.top) = (to, to);
        return;
    }
    if wanted > last && here == last {
        let to = line.address.0.saturating_add(memory::length(line).max(1));
        (view.cursor, view.top) = (Va(to), Va(to));
        return;
    }
    view.cursor = line.address;
    if view.cursor < view.top {
        view.top = view.cursor;
    }
    // As many instructions down as bring the cursor into sight.
    let is_seen = |top| {
        let shown = memory::code_rows(held, top, rows);
        shown.contains(&memory::CodeRow::Line(line))
    };
    let tops: Vec<Va> = memory::lines(held).map(|line| line.address).filter(|address| *address >= view.top).collect();
    if let Some(top) = tops.into_iter().find(|top| is_seen(*top)) {
        view.top = top;
    }
}

/// Moves by bytes.
fn shift(view: &mut MemoryView, rows: u64, per_row: u64, by: i64) {
    if view.mode != MemoryMode::Walk {
        let to = view.cursor.0.saturating_add_signed(by);
        go(view, Va(to), rows, per_row);
    }
}

/// Where what is under the cursor points to.
fn pointed(view: &MemoryView, held: Option<&MemoryDetail>) -> Result<Va, &'static str> {
    let held = held.ok_or("follow: this memory is not read yet")?;
    if view.mode == MemoryMode::Code {
        let line = memory::line_of(held, view.cursor).and_then(|nth| memory::lines(held).nth(nth));
        return line.and_then(|line| line.target).ok_or("follow: this instruction names no address");
    }
    match memory::word(held, view.cursor) {
        None => Err("follow: the word under the cursor is not mapped"),
        Some(0) => Err("follow: the word under the cursor is zero"),
        // Bits 63 to 56 are alike in every address, with 4 levels and with 5.
        Some(word) if !matches!(word >> 56, 0 | 0xff) => Err("follow: the word under the cursor is no address"),
        Some(word) => Ok(Va(word)),
    }
}

/// What was typed is searched for, from behind the cursor on.
pub(super) fn search(state: &mut UiState, text: String, patterns: Vec<crate::engine::command::Pattern>) -> Vec<Effect> {
    let Some(view) = view_mut(state) else { return Vec::new() };
    view.search = Some(Found { text, patterns, ..Found::default() });
    search_from(view, view.cursor)
}

fn search_from(view: &mut MemoryView, after: Va) -> Vec<Effect> {
    let (Some(found), Some(from)) = (&mut view.search, after.checked_add(1)) else { return Vec::new() };
    found.under_way = true;
    let patterns = found.patterns.clone();
    vec![Effect::Send(Command::Search { pid: view.pid, from, length: u64::MAX, patterns })]
}

/// A search has ended with these matches.
pub fn found(state: &mut UiState, places: Vec<Va>, more: bool) -> Vec<Effect> {
    let Some(view) = view_mut(state) else { return Vec::new() };
    let Some(found) = view.search.as_mut().filter(|found| found.under_way) else { return Vec::new() };
    found.under_way = false;
    let text = found.text.clone();
    let first = places.first().copied();
    if first.is_some() {
        (found.places, found.more) = (places, more);
    }
    let (pid, cursor) = (view.pid, view.cursor);
    match first {
        Some(first) => jump(state, pid, first),
        None => {
            let from = crate::ui::format::Address(cursor.0);
            let words = if more {
                format!("the search for '{text}' from {from} on was given up before anything was found")
            } else {
                format!("'{text}' is not found from {from} on")
            };
            state.notify(Severity::Info, words);
            Vec::new()
        }
    }
}

fn next_match(state: &mut UiState) -> Vec<Effect> {
    let Some(view) = view_mut(state) else { return Vec::new() };
    let Some(found) = &view.search else {
        return refuse(state, "search-next: nothing was searched for; press / for it");
    };
    let (pid, cursor, more) = (view.pid, view.cursor, found.more);
    match found.places.iter().find(|place| **place > cursor).copied() {
        Some(place) => jump(state, pid, place),
        None if more => search_from(view, cursor),
        None if found.places.is_empty() => refuse_empty_search(state, "search-next"),
        None => refuse(state, "search-next: this is the last match"),
    }
}

fn previous_match(state: &mut UiState) -> Vec<Effect> {
    let Some(view) = view_mut(state) else { return Vec::new() };
    let Some(found) = &view.search else {
        return refuse(state, "search-previous: nothing was searched for; press / for it");
    };
    let (pid, cursor) = (view.pid, view.cursor);
    if found.places.is_empty() {
        return refuse_empty_search(state, "search-previous");
    }
    match found.places.iter().rev().find(|place| **place < cursor).copied() {
        Some(place) => jump(state, pid, place),
        None => refuse(state, "search-previous: this is the first match"),
    }
}

/// There is no match to go to.
fn refuse_empty_search(state: &mut UiState, action: &str) -> Vec<Effect> {
    let text = view_mut(state).and_then(|view| view.search.as_ref()).map_or_else(String::new, |it| it.text.clone());
    refuse(state, &format!("{action}: there is no match of '{text}'; press / to search for something else"))
}

/// The address of what is selected, or of what the topmost popup shows, and its address space.
pub(super) fn selected_address(state: &UiState, snapshot: &Snapshot) -> Option<(Option<u32>, Va)> {
    match state.popups.last() {
        Some(Popup::Detail { subject, .. }) => match subject {
            Subject::Process(pid) => {
                snapshot.processes.iter().find(|row| row.pid == *pid).map(|row| (row.pid, row.object))
            }
            Subject::Breakpoint(id) => return address_of(snapshot, RowKey::Breakpoint(*id)),
            Subject::Table(id) => return address_of(snapshot, RowKey::Table(*id)),
            Subject::Fault(id) => return address_of(snapshot, RowKey::Fault(*id)),
            Subject::Memory { .. } => None,
        }
        .and_then(|(pid, object)| address_of(snapshot, RowKey::Process(pid, object))),
        Some(Popup::Event { event, .. }) => event_address(snapshot, event),
        Some(Popup::Burst { events, .. }) => event_address(snapshot, events.last()?),
        Some(_) => None,
        None => address_of(snapshot, state.focused().selected?),
    }
}

fn address_of(snapshot: &Snapshot, row: RowKey) -> Option<(Option<u32>, Va)> {
    match row {
        RowKey::Process(pid, object) => {
            let process = snapshot.processes.iter().find(|row| row.pid == pid && row.object == object)?;
            // One that has no address space of its own is seen in the kernel's. One that runs is seen where it runs.
            let space = process.root.map(|_| pid);
            let running = snapshot.vcpus.iter().find(|vcpu| vcpu.pid == space && space.is_some());
            Some((space, running.map_or(object, |vcpu| vcpu.rip)))
        }
        RowKey::Breakpoint(id) => {
            // The id of a process that is gone may be another's.
            let is_it = |row: &&Breakpoint| row.id == id && row.state != BreakpointState::Ended;
            let row = snapshot.breakpoints.iter().find(is_it)?;
            let pid = match row.scope {
                Scope::Global => None,
                Scope::Process(pid) => Some(pid),
            };
            Some((pid, row.address))
        }
        RowKey::Table(id) => {
            let row = snapshot.page_tables.iter().find(|row| row.id == id && row.ended.is_none())?;
            Some((row.pid, row.address))
        }
        RowKey::Fault(id) => snapshot.faults.iter().find(|row| row.id == id).map(|row| (row.pid, row.address)),
        RowKey::Event(seq) => event_address(snapshot, snapshot.events.iter().find(|event| event.seq == seq)?),
    }
}

/// The first symbol or address that an event speaks of.
fn event_address(snapshot: &Snapshot, event: &Event) -> Option<(Option<u32>, Va)> {
    let words = event.text.split(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | ',' | ':')).take(32);
    let va = words.filter(|word| !word.is_empty()).find_map(|word| {
        let is_address = word.contains('`') || word.starts_with("0x");
        let address = || if is_address { word.parse::<Va>().ok().filter(|va| va.0 >= PAGE) } else { None };
        snapshot.symbols.place(word).ok().flatten().or_else(address)
    })?;
    let known = event.pid.filter(|pid| snapshot.processes.iter().any(|row| row.pid == *pid && row.root.is_some()));
    Some((known, va))
}
