//! Whatever a guest puts into its names, whatever the size: the screen is drawn and nothing gets out that moves a terminal.

#[path = "screens/fixture.rs"]
#[allow(dead_code, reason = "the fixture has more than this test needs")]
mod fixture;

use proptest::prelude::*;
use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};
use vmscope::{
    engine::{command::Subject, snapshot::*},
    ui::{
        self, export, rows,
        state::{
            AddDialog, Ask, Candidate, Choice, Choose, Column, Confirm, Contents, FindDialog, Found, MemoryMode,
            MemoryView, PaneId, Popup, Purpose, Severity, Sort, Then, UiState,
        },
        theme::Theme,
    },
};

/// Strings that break screens: controls, escape sequences, bidi, wide, zero-width, combining, very long.
fn nasty() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<char>().prop_map(String::from),
        Just("\x1b[2J\x1b]0;owned\x07".to_owned()),
        Just("\u{202e}\u{2066}gpj.exe".to_owned()),
        Just("e\u{301}\u{200d}\u{feff}\u{ad}".to_owned()),
        Just("日本語👩‍👩‍👧".to_owned()),
        Just("\u{9b}31m\u{85}\r\n\t\0".to_owned()),
        Just("<&>\"']]>".to_owned()),
        Just("x".repeat(10_000)),
        "[ -~]{0,20}",
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// The guest of the fixture with every string and many a number replaced.
fn hostile(word: &str, number: u64) -> Snapshot {
    let mut snapshot = fixture::snapshot();
    let word = || word.to_owned();
    snapshot.taken_at_ns = number;
    snapshot.notice = Some(word().into());
    snapshot.guest =
        Part::new(Guest { name: word(), version: word(), memory_bytes: number, ..Guest::clone(&snapshot.guest) });
    let mut processes = fixture::processes();
    for process in &mut processes {
        process.name = word();
        process.start_ns = number;
    }
    // Every process is its neighbour's parent, the first one the last one's.
    let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
    for (process, pid) in processes.iter_mut().zip(pids.iter().cycle().skip(1)) {
        process.ppid = *pid;
    }
    snapshot.processes = Part::new(processes);
    let mut breakpoints = fixture::breakpoints();
    for breakpoint in &mut breakpoints {
        breakpoint.symbol = word();
        breakpoint.tag = word();
        breakpoint.error = Some(word());
        breakpoint.hits = number;
        breakpoint.rates = vec![number; 3];
    }
    snapshot.breakpoints = Part::new(breakpoints);
    let mut tables = fixture::tables();
    for table in &mut tables {
        table.symbol = word();
        table.tag = word();
        table.page_bytes = number;
        table.changes = number;
        table.last_change_ns = Some(number);
    }
    snapshot.page_tables = Part::new(tables);
    let mut faults = fixture::faults();
    for fault in &mut faults {
        fault.asked_by = word();
        fault.note = word();
        fault.age_ns = number;
    }
    snapshot.faults = Part::new(faults);
    let mut events = fixture::events();
    for event in &mut events {
        event.process = word();
        event.text = word();
        event.at_ns = number;
    }
    snapshot.events = Part::new(events);
    snapshot.event_rates = Part::new(vec![number, 0, number]);
    snapshot.counters.dropped = number;
    snapshot
}

fn process_detail(word: &str, number: u64) -> Detail {
    let region = Region { start: Va(number), end: Va(0), protection: word.to_owned(), name: word.to_owned() };
    Detail::Process(ProcessDetail {
        process: Process { pid: 648, name: word.to_owned(), ..Process::default() },
        command_line: Some(word.to_owned()),
        executable: Some(word.to_owned()),
        working_directory: Some(word.to_owned()),
        root_directory: Some(word.to_owned()),
        credentials: vec![(word.to_owned(), word.to_owned())],
        threads: vec![ThreadInfo { name: word.to_owned(), state: word.to_owned(), ..ThreadInfo::default() }],
        regions: vec![region],
        modules: vec![Module { base: Va(number), size: number, name: word.to_owned(), hidden: true }],
        handles: vec![(number, word.to_owned())],
        missing: vec![Va(number)],
        truncated: vec!["threads", "handles"],
        unavailable: vec![word.to_owned()],
    })
}

/// A view of memory at any address, at the ends of the address space too.
fn memory_view(number: u64, mode: MemoryMode) -> Popup {
    let found = Found { patterns: vec![vec![None; 3]], places: vec![Va(number)], ..Found::default() };
    let search = Some(found);
    Popup::Memory(MemoryView { cursor: Va(number), top: Va(number), mode, scroll: 7, search, ..MemoryView::default() })
}

/// Popups with hostile contents.
fn popups(word: &str, number: u64) -> Vec<(Popup, Option<Detail>)> {
    let code = vec![CodeLine {
        bytes: word.to_owned(),
        text: word.to_owned(),
        symbol: word.to_owned(),
        here: true,
        address: Va(number),
        target: Some(Va(number)),
    }];
    let walk = WalkEntry { level: "PT", entry: number, previous: Some(!number), ..WalkEntry::default() };
    let memory = MemoryDetail {
        va: Va(number),
        bytes: vec![Some(0x1b), None, Some(0x9b)],
        changed: vec![Some(number); 2],
        before: code.clone(),
        code: code.clone(),
        walk: vec![walk],
        missing: Some(MissingPage {
            what: word.to_owned(),
            pa: Some(Pa(number)),
            readable_at: Some(Va(number)),
            comes_by_fault: true,
            advice: word.to_owned(),
        }),
        ..MemoryDetail::default()
    };
    let breakpoint = Breakpoint { tag: word.to_owned(), ..fixture::breakpoints().swap_remove(0) };
    let mut dialog = AddDialog {
        place: word.into(),
        process: Some((1, word.to_owned())),
        error: Some(word.to_owned()),
        ..AddDialog::new(Purpose::Breakpoint)
    };
    dialog.candidates = vec![Candidate { name: word.to_owned(), address: Some(Va(number)) }; 12];
    dialog.chosen = Some(usize::MAX);
    let confirm = Confirm {
        title: word.to_owned(),
        text: word.to_owned(),
        yes: word.to_owned(),
        no: word.to_owned(),
        chosen_yes: true,
        then: Then::Leave,
    };
    let ask = Ask {
        contents: Contents::Screen,
        title: word.to_owned(),
        label: word.to_owned(),
        input: word.into(),
        hint: word.to_owned(),
        does: word.to_owned(),
        error: Some(word.to_owned()),
    };
    let choose = Choose {
        choice: Choice::Cell,
        title: word.to_owned(),
        items: vec![(word.to_owned(), word.to_owned()); 30],
        chosen: usize::MAX,
        does: word.to_owned(),
    };
    vec![
        (Popup::Detail { subject: Subject::Process(648), scroll: 3 }, Some(process_detail(word, number))),
        (
            Popup::detail(Subject::Breakpoint(breakpoint.id)),
            Some(Detail::Breakpoint(BreakpointDetail { breakpoint, code })),
        ),
        (memory_view(number, MemoryMode::Bytes), Some(Detail::Memory(memory.clone()))),
        (memory_view(number, MemoryMode::Code), Some(Detail::Memory(memory.clone()))),
        (memory_view(number, MemoryMode::Walk), Some(Detail::Memory(memory))),
        (memory_view(number, MemoryMode::Code), Some(Detail::Gone(word.to_owned()))),
        (Popup::Find(FindDialog { input: word.into(), error: Some(word.to_owned()), ..FindDialog::default() }), None),
        (Popup::detail(Subject::Table(TableId(1))), Some(Detail::Gone(word.to_owned()))),
        (
            Popup::Event {
                event: Event { text: word.to_owned(), process: word.to_owned(), ..fixture::events().swap_remove(0) },
                scroll: 1,
            },
            None,
        ),
        (
            Popup::Burst {
                events: vec![
                    Event {
                        text: word.to_owned(),
                        process: word.to_owned(),
                        at_ns: number,
                        ..fixture::events().swap_remove(0)
                    };
                    3
                ],
                scroll: 1,
            },
            None,
        ),
        (Popup::Burst { events: Vec::new(), scroll: 0 }, None),
        (Popup::Help { search: word.into(), scroll: usize::MAX }, None),
        (Popup::Palette { input: word.into(), found: vec![0, 3, usize::MAX], chosen: usize::MAX }, None),
        (Popup::Add(dialog), None),
        (Popup::Confirm(confirm), None),
        (Popup::Ask(ask), None),
        (Popup::Choose(choose), None),
        (Popup::Sort { pane: PaneId::Events, chosen: usize::MAX }, None),
        (Popup::Filter { pane: PaneId::Processes, input: word.into(), before: String::new() }, None),
        (Popup::Message { title: word.to_owned(), text: word.to_owned(), severity: Severity::Error, scroll: 9 }, None),
    ]
}

fn draw(snapshot: &Snapshot, ui: &UiState) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(ui.size.0, ui.size.1)).unwrap();
    terminal.draw(|frame| ui::render(frame, snapshot, ui, &Theme::default())).unwrap();
    terminal.backend().buffer().clone()
}

/// What must not be in any export, line ends apart.
fn moves_a_terminal(c: char) -> bool {
    c != '\n'
        && (c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'))
}

/// Takes `ESC [ digits and semicolons m` out; what is left must be harmless.
fn without_colours(ansi: &str) -> String {
    let mut parts = ansi.split("\x1b[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        out.push_str(rest.strip_prefix('m').unwrap_or("\x1b"));
    }
    out
}

fn check(buffer: &Buffer) -> Result<(), TestCaseError> {
    let text = export::text(buffer);
    prop_assert!(!text.contains(moves_a_terminal), "text: {:?}", text.chars().find(|&c| moves_a_terminal(c)));
    prop_assert!(!without_colours(&export::ansi(buffer)).contains(moves_a_terminal));
    prop_assert!(!export::svg(buffer, &Theme::default()).contains(moves_a_terminal));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(384) / 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_guest_at_any_size(word in nasty(), number in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], width in 0u16..300, height in 0u16..300, tree: bool, zoom: bool, settled: bool) {
        let mut ui = UiState { tree, zoom, ascii: settled && tree, ..fixture::screen((width, height)) };
        ui.notify(Severity::Warning, word.as_str());
        ui.focus = PaneId::from_number((number % 6 + 1) as u8).unwrap_or_default();
        ui.focused_mut().filter.set(word.get(..word.len().min(3)).unwrap_or(""));
        let snapshot = hostile(&word, number);
        if settled {
            rows::settle(&snapshot, &mut ui);
        }
        check(&draw(&snapshot, &ui))?;
    }

    #[test]
    fn any_popup_at_any_size(word in nasty(), number in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], width in 0u16..140, height in 0u16..60) {
        for (popup, detail) in popups(&word, number) {
            let mut snapshot = fixture::snapshot();
            snapshot.detail = detail.map(Into::into);
            let mut ui = UiState { popups: vec![popup], ..fixture::screen((width, height)) };
            rows::settle(&snapshot, &mut ui);
            check(&draw(&snapshot, &ui))?;
        }
    }
}

/// Every size up to a large one, so that no border, title or column computes itself off the screen.
#[test]
fn every_small_size_draws() {
    let snapshot = fixture::snapshot();
    for width in 0..100 {
        for height in 0..32 {
            let mut ui = fixture::screen((width, height));
            rows::settle(&snapshot, &mut ui);
            let buffer = draw(&snapshot, &ui);
            if width >= 20 && height >= 5 {
                let text = export::text(&buffer);
                assert!(text.contains("RUNNING") && text.contains("1 Proc"), "{width}x{height}\n{text}");
            }
        }
    }
}

/// Every order of every pane is a permutation, both ways.
#[test]
fn sorting_loses_no_row() {
    let snapshot = hostile("\u{202e}x", 7);
    for pane in PaneId::ALL {
        for column in rows::columns(pane) {
            for descending in [false, true] {
                let mut ui = UiState { grouped: false, ..UiState::default() };
                ui.pane_mut(pane).sort = Sort { column: column.id, descending };
                rows::settle(&snapshot, &mut ui);
                let state = ui.pane(pane);
                let mut seen: Vec<u32> = state.rows.from(0).map(|row| row.index).collect();
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..state.rows.total() as u32), "{pane:?} {:?}", Column::Pid);
                ui.grouped = true;
                rows::settle(&snapshot, &mut ui);
                let state = ui.pane(pane);
                let folded: usize = state.rows.from(0).map(|row| 1 + row.folded as usize).sum();
                assert_eq!(folded, state.rows.total(), "{pane:?} in bursts");
            }
        }
    }
}
