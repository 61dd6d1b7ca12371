//! The memory view, by keys alone.

use std::sync::Arc;

use vmscope::{
    app::update::{self, Effect},
    engine::{
        command::{Command, Subject, Target},
        snapshot::{
            BreakpointId, BreakpointState, CodeLine, Detail, Event, EventKind, MemoryDetail, Part, Process, Scope,
            SearchProgress, Snapshot, Va, Vcpu,
        },
    },
    ui::{
        memory,
        state::{MemoryMode, MemoryView, Popup},
    },
};

use crate::user::{User, breakpoint, snapshot};

/// Rows of memory on a screen of 120 × 40: header, footer, border and the line on the cursor are taken off.
const ROWS: u64 = 35;

fn looked_at(pid: Option<u32>, va: u64) -> Command {
    Command::Inspect(Some(Subject::Memory { pid, va: Va(va), length: ROWS as u32 * 16 }))
}

fn view(user: &User) -> &MemoryView {
    match user.popup() {
        Some(Popup::Memory(view)) => view,
        other => panic!("{other:?}"),
    }
}

/// What the engine would have read: bytes that count up, words at multiples of 0x100 that point 0x1000 on.
fn answer(user: &mut User) {
    let view = view(user).clone();
    let (from, length) = (if view.mode == MemoryMode::Walk { view.cursor } else { view.top }, ROWS * 16);
    let byte = |at: u64| match at % 0x100 {
        nth @ 0..8 => (at - nth + 0x1000).to_le_bytes()[nth as usize],
        nth => nth as u8,
    };
    // Every instruction is four bytes and goes 0x40 on.
    let line = |at: u64| CodeLine {
        address: Va(at),
        bytes: "90909090".into(),
        text: "nop".into(),
        target: at.is_multiple_of(8).then_some(Va(at + 0x40)),
        ..CodeLine::default()
    };
    let detail = MemoryDetail {
        pid: view.pid,
        va: from,
        bytes: (0..length).map(|nth| (from.0 + nth < 0x9000).then(|| byte(from.0 + nth))).collect(),
        changed: vec![None; length as usize],
        code: (0..80).map(|nth| line(from.0 + nth * 4)).collect(),
        before: (1..=80).rev().map(|nth| line(from.0 - nth * 4)).collect(),
        ..MemoryDetail::default()
    };
    user.snapshot.detail = Some(Arc::new(Detail::Memory(detail)));
    user.settle();
}

fn at(va: &str) -> User {
    let mut user = User::new();
    assert_eq!(user.commands(&format!("m '{va}' enter")).len(), 1);
    answer(&mut user);
    user
}

#[test]
fn the_cursor_moves_by_bytes_rows_and_pages_and_scrolls_when_it_must() {
    let mut user = at("0x2000");
    assert!(user.commands("j l l").is_empty(), "what is on the screen needs no new look");
    assert_eq!(view(&user).cursor, Va(0x2012));
    assert_eq!(user.commands("h k k"), [looked_at(None, 0x1ff0)]);
    assert_eq!(view(&user).cursor, Va(0x1ff1));
    answer(&mut user);
    assert_eq!(user.commands("pgdn"), [looked_at(None, 0x2000)], "the least that shows the cursor");
    answer(&mut user);
    user.press("end");
    assert_eq!(view(&user).cursor, Va(0x2fff));
    user.press("home");
    assert_eq!(view(&user).cursor, Va(0x2000));
}

#[test]
fn both_ends_of_the_address_space_hold() {
    for (start, keys) in [("0x0", "k h pgup home"), ("0xffffffffffffffff", "j l pgdn end tab end tab j")] {
        let mut user = User::new();
        user.press(&format!("m '{start}' enter"));
        user.press(keys);
        user.press("tab pgup pgdn tab w w esc");
        assert!(user.popup().is_none());
    }
}

#[test]
fn pointers_are_followed_and_gone_back_from() {
    let mut user = at("0x2004");
    assert_eq!(user.commands("enter"), [looked_at(None, 0x3000)]);
    answer(&mut user);
    assert_eq!(user.commands("o"), [looked_at(None, 0x4000)]);
    answer(&mut user);
    assert_eq!(user.commands("backspace backspace"), [looked_at(None, 0x3000), looked_at(None, 0x2000)]);
    assert_eq!(view(&user).cursor, Va(0x2004), "the very byte");
    assert!(user.commands("backspace").is_empty() && user.notice().contains("where it began"));
    answer(&mut user);
    user.press("j");
    assert!(user.commands("enter").is_empty() && user.notice().contains("no address"), "{}", user.notice());
    let mut user = at("0x9000");
    assert!(user.commands("enter").is_empty() && user.notice().contains("not mapped"));
    let target = Target { place: "0x9000".into(), pid: None, started_ns: None };
    assert_eq!(user.commands("r"), [Command::RequestPage { target }]);
}

#[test]
fn instructions_are_moved_through_both_ways_and_followed() {
    let mut user = at("0x2000");
    user.press("tab");
    answer(&mut user);
    assert_eq!(view(&user).mode, MemoryMode::Code);
    assert!(user.commands("j j").is_empty());
    assert_eq!(view(&user).cursor, Va(0x2008));
    assert_eq!(user.commands("k k k"), [looked_at(None, 0x1ffc)], "instructions before the first one");
    answer(&mut user);
    assert_eq!(user.commands("pgup"), [looked_at(None, 0x1ffc - ROWS * 4)]);
    answer(&mut user);
    user.press("j j");
    let (cursor, top) = (view(&user).cursor, view(&user).top);
    assert_eq!((cursor, top), (Va(0x1ffc - ROWS * 4 + 8), Va(0x1ffc - ROWS * 4)));
    assert_eq!(user.commands("enter"), [looked_at(None, cursor.0 + 0x40)]);
    answer(&mut user);
    user.press("j");
    assert!(user.commands("enter").is_empty() && user.notice().contains("names no address"));
    user.press("tab");
    assert_eq!(view(&user).mode, MemoryMode::Walk);
    user.press("w");
    assert_eq!(view(&user).mode, MemoryMode::Bytes);
}

#[test]
fn it_opens_at_what_is_selected() {
    let mut rich = snapshot();
    let mut set = breakpoint(1, BreakpointState::Active);
    set.scope = Scope::Process(648);
    rich.breakpoints = Part::new(vec![set]);
    let process = |pid: u32, root: bool| Process {
        pid,
        name: format!("p{pid}"),
        object: Va(0xffff_8000_0000_0000 + u64::from(pid) * 0x1000),
        root: root.then(Default::default),
        ..Process::default()
    };
    rich.processes = Part::new(vec![process(4, false), process(648, true), process(900, true)]);
    rich.vcpus = Part::new(vec![Vcpu {
        pid: Some(900),
        rip: Va(0x7ff6_0000_1230),
        registers: vec![("rsp", 0xe0_1230)],
        ..Vcpu::default()
    }]);
    let event = |seq, text: &str| Event {
        seq,
        kind: EventKind::Breakpoint,
        pid: Some(648),
        text: text.into(),
        ..snapshot().events[0].clone()
    };
    rich.events = Part::new(vec![event(0, "nt!NtCreateKey+0x10(0x1)"), event(1, "7ffa`1c2a0000 was unmapped")]);
    let at = |keys: &str| {
        let mut user = User::with(rich.clone());
        user.commands(keys).pop()
    };
    assert_eq!(at("2 M"), Some(looked_at(Some(648), 0x1000)));
    assert_eq!(at("2 enter M"), Some(looked_at(Some(648), 0x1000)), "from its popup");
    assert_eq!(at("3 M"), Some(looked_at(None, 0)));
    assert_eq!(at("4 M"), Some(looked_at(None, 0x7000)));
    assert_eq!(at("5 home M"), Some(looked_at(Some(648), 0x2010)));
    assert_eq!(at("5 end M"), Some(looked_at(Some(648), 0x7ffa_1c2a_0000)));
    assert_eq!(at("home M"), Some(looked_at(None, 0xffff_8000_0000_4000)), "no address space of its own");
    assert_eq!(at("home j m enter"), Some(looked_at(Some(648), 0xffff_8000_0028_8000)), "m and enter alone");
    assert_eq!(at("end M"), Some(looked_at(Some(900), 0x7ff6_0000_1230)), "where it runs");
    assert_eq!(at("m 'rsp' enter"), Some(looked_at(None, 0xe0_1230)), "a register");
    assert_eq!(at("4 w"), Some(Command::Inspect(Some(Subject::Memory { pid: None, va: Va(0x7000), length: 16 }))));
    // In the view, another address stays in its space unless it names one.
    assert_eq!(at("2 M g '0x5000' enter"), Some(looked_at(Some(648), 0x5000)));
    assert_eq!(at("2 M g '0x5000@900' enter"), Some(looked_at(Some(900), 0x5000)));
    let mut user = User::with(Snapshot { events: Part::default(), ..rich.clone() });
    assert!(user.commands("5 M").is_empty() && user.notice().contains("nothing with an address"));
}

#[test]
fn a_search_is_typed_runs_and_is_stepped_through() {
    let mut user = at("0x2000");
    let search = |from: u64, patterns: Vec<Vec<Option<u8>>>| Command::Search {
        pid: None,
        from: Va(from),
        length: u64::MAX,
        patterns,
    };
    assert!(user.commands("/ '4' enter").is_empty());
    assert!(matches!(user.popup(), Some(Popup::Find(dialog)) if dialog.error.is_some()), "half a byte");
    assert_eq!(user.commands("'8 ?? 05' enter"), [search(0x2001, vec![vec![Some(0x48), None, Some(5)]])]);
    let found = |user: &mut User, places: &[u64], more| {
        let effects = update::memory::found(&mut user.state, places.iter().map(|&place| Va(place)).collect(), more);
        user.settle();
        effects
    };
    assert_eq!(found(&mut user, &[0x5003, 0x5008, 0x8000], true), [Effect::Send(looked_at(None, 0x5000))]);
    assert_eq!(view(&user).cursor, Va(0x5003));
    user.press("n");
    assert_eq!(view(&user).cursor, Va(0x5008));
    user.press("n N N");
    assert_eq!(view(&user).cursor, Va(0x5003));
    assert!(user.commands("N").is_empty() && user.notice().contains("first match"));
    assert_eq!(
        user.commands("n n n").last(),
        Some(&search(0x8001, vec![vec![Some(0x48), None, Some(5)]])),
        "more behind"
    );
    assert!(found(&mut user, &[], false).is_empty());
    assert!(user.notice().contains("not found from 8000 on"), "{}", user.notice());

    let text = vec![b"MZ".iter().map(|b| Some(*b)).collect(), vec![Some(b'M'), Some(0), Some(b'Z'), Some(0)]];
    assert_eq!(user.commands("/ ctrl-u tab 'MZ' enter"), [search(0x8001, text)]);
    // A search that is under way is given up before the view is closed.
    user.snapshot.search = Some(Arc::new(SearchProgress::default()));
    assert_eq!(user.commands("esc"), [Command::CancelSearch]);
    assert!(found(&mut user, &[], true).is_empty() && user.notice().contains("given up"));
    user.snapshot.search = None;
    for (key, name) in [("n", "search-next"), ("N", "search-previous")] {
        assert!(user.commands(key).is_empty());
        assert_eq!(user.notice(), format!("{name}: there is no match of 'MZ'; press / to search for something else"));
    }
    assert_eq!(user.commands("/ ctrl-u tab tab 'nt!NtCreateKey' enter").len(), 1);
    user.press("esc");
    assert!(user.popup().is_none());
    assert!(found(&mut user, &[0x1], false).is_empty(), "nobody looks any more");
}

#[test]
fn rows_of_memory_are_copied() {
    let copied = |user: &mut User, key: &str| match user.press(key).as_slice() {
        [Effect::Copy(text)] => text.clone(),
        other => panic!("{other:?}"),
    };
    let mut user = at("0x2000");
    assert_eq!(copied(&mut user, "j y"), "2010  10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f  ................");
    assert_eq!(copied(&mut user, "Y").lines().count() as u64, ROWS);
    let mut user = at("0x9000");
    assert!(copied(&mut user, "y").starts_with("9000  ?? ??"));
    user.press("tab");
    answer(&mut user);
    assert_eq!(copied(&mut user, "j y"), "9004  90909090              nop");
    assert_eq!(copied(&mut user, "Y").lines().count() as u64, ROWS);
}

#[test]
fn closing_shows_again_what_was_below() {
    let mut user = User::new();
    user.press("2 enter M");
    let below = Command::Inspect(Some(Subject::Breakpoint(BreakpointId(1))));
    assert_eq!(user.commands("q"), [below]);
    assert_eq!(user.commands("q"), [Command::Inspect(None)]);
}

#[test]
fn the_mouse_puts_the_cursor_and_follows() {
    let mut user = at("0x2000");
    let body = memory::body(memory::area(&user.state));
    let shape = memory::shape(&user.state);
    let (x, y) = (body.x + shape.byte(9) + 1, body.y + 2);
    user.click(x, y, 0);
    assert_eq!(view(&user).cursor, Va(0x2029));
    user.click(body.x + shape.letter(3), y, 1000);
    assert_eq!(view(&user).cursor, Va(0x2023));
    user.click(body.x + shape.byte(1), body.y, 2000);
    let followed = user.click(body.x + shape.byte(1), body.y, 2100);
    assert_eq!(followed, [Effect::Send(looked_at(None, 0x3000))]);
    user.mouse(crossterm::event::MouseEventKind::ScrollDown, x, y, 3000);
    assert_eq!(view(&user).cursor, Va(0x3030));
    assert!(user.click(0, 0, 4000).is_empty() && user.popup().is_some(), "the header is not outside of it");
}
