//! What the screen looks like: every pane and popup at four sizes, as text and as styles.

#[path = "screens/fixture.rs"]
mod fixture;
#[path = "screens/form.rs"]
mod form;

use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};
use tui_input::Input;
use vmscope::{
    engine::{
        command::Subject,
        snapshot::{Ages, BreakpointId, Counters, Part, Process, Run, RunState, SearchProgress, Snapshot, Status, Va},
    },
    ui::{
        self, export, rows,
        state::{
            AddDialog, AddField, Ask, Candidate, Choice, Choose, ColorDepth, Column, Confirm, Contents, FindDialog,
            MemoryMode, MemoryView, PaneId, Past, Popup, Purpose, RowKey, Severity, Sort, Then, UiState,
        },
        theme::Theme,
    },
};

const SIZES: [(u16, u16); 4] = [(40, 12), (80, 24), (120, 40), (240, 67)];

fn draw(snapshot: &Snapshot, ui: &mut UiState, theme: &Theme) -> Buffer {
    rows::settle(snapshot, ui);
    let mut terminal = Terminal::new(TestBackend::new(ui.size.0, ui.size.1)).unwrap();
    terminal.draw(|frame| ui::render(frame, snapshot, ui, theme)).unwrap();
    terminal.backend().buffer().clone()
}

/// Leaves the picture in the folder that `SCREENS` names, for looking at it.
fn picture(name: &str, buffer: &Buffer, theme: &Theme) {
    if let Some(folder) = std::env::var_os("SCREENS") {
        let file = std::path::Path::new(&folder).join(name).with_extension("png");
        std::fs::write(file, export::png(buffer, theme).unwrap()).unwrap();
    }
}

/// Popups by name, over the panes that they belong to.
fn popups() -> Vec<(&'static str, Snapshot, UiState)> {
    let mut all = Vec::new();
    let base = || fixture::screen((0, 0));
    for (name, subject, detail) in fixture::details() {
        let snapshot = Snapshot { detail: Some(detail.into()), ..fixture::snapshot() };
        all.push((name, snapshot, UiState { popups: vec![Popup::detail(subject)], ..base() }));
    }
    for (name, mode) in
        [("memory-bytes", MemoryMode::Bytes), ("memory-code", MemoryMode::Code), ("memory-walk", MemoryMode::Walk)]
    {
        let (popup, detail) = fixture::memory(mode);
        let snapshot = Snapshot { detail: Some(detail.into()), ..fixture::snapshot() };
        all.push((name, snapshot.clone(), UiState { popups: vec![popup.clone()], ..base() }));
        if mode == MemoryMode::Bytes {
            let error = "'48 8' is not bytes: write two hexadecimal digits for each".to_owned();
            let dialog = FindDialog { input: "48 8".into(), error: Some(error), ..FindDialog::default() };
            let asked = UiState { popups: vec![popup.clone(), Popup::Find(dialog)], ..base() };
            all.push(("memory-find", snapshot.clone(), asked));
            let search = SearchProgress { at: Va(0x7ffa_2000_0000), read_bytes: 412 << 20, found: 3 };
            let searching = Snapshot { search: Some(search.into()), ..snapshot };
            all.push(("memory-searching", searching, UiState { popups: vec![popup], ..base() }));
        }
    }
    let waits = Popup::Memory(MemoryView::at(None, Va(0xffff_f803_1c2a_41f5)));
    all.push(("memory-waiting", fixture::snapshot(), UiState { popups: vec![waits], ..base() }));
    let mut with =
        |name, popup: Popup| all.push((name, fixture::snapshot(), UiState { popups: vec![popup], ..base() }));
    with("waiting", Popup::detail(Subject::Process(648)));
    with("event", Popup::Event { event: fixture::events().swap_remove(6), scroll: 0 });
    with("burst", Popup::Burst { events: fixture::burst(), scroll: 0 });
    with("help", Popup::Help { search: Input::default(), scroll: 0 });
    with("help-search", Popup::Help { search: "guest run".into(), scroll: 0 });
    with("palette", Popup::Palette { input: "s".into(), found: vec![7, 9, 0, 8, 10], chosen: 1 });
    let table = fixture::snapshot().symbols;
    let candidates = table.complete("nt!NtCre", 8).into_iter();
    with(
        "add-breakpoint",
        Popup::Add(AddDialog {
            place: "nt!NtCre".into(),
            candidates: candidates.map(|name| Candidate { address: table.lookup(&name), name }).collect(),
            chosen: Some(1),
            process: Some((648, "lsass.exe".to_owned())),
            ..AddDialog::new(Purpose::Breakpoint)
        }),
    );
    with(
        "add-watch-error",
        Popup::Add(AddDialog {
            place: "main@lsass".into(),
            tag: "heap".into(),
            field: AddField::Tag,
            error: Some("'main@lsass': what follows '@' must be a process id, a whole number".to_owned()),
            ..AddDialog::new(Purpose::Watch)
        }),
    );
    with("add-page", Popup::Add(AddDialog::new(Purpose::Page)));
    with("sort", Popup::Sort { pane: PaneId::Processes, chosen: 2 });
    with(
        "quit",
        Popup::Confirm(Confirm {
            title: "Quit?".to_owned(),
            text: "2 breakpoints are in the guest. They are taken out before vmscope ends; the guest runs on."
                .to_owned(),
            yes: "quit".to_owned(),
            no: "stay".to_owned(),
            chosen_yes: false,
            then: Then::Leave,
        }),
    );
    let ask = |file: &str, error: Option<&str>| Ask {
        contents: Contents::Screen,
        title: "Export".into(),
        label: "file".into(),
        input: file.into(),
        hint: ".txt, .ansi, .svg or .png for the screen, .json for the snapshot itself".into(),
        does: "write".into(),
        error: error.map(str::to_owned),
    };
    with("export", Popup::Ask(ask("vmscope-WIN10-19045-12s.svg", None)));
    let refused = "cannot write /no/such/a.svg: No such file or directory (os error 2); choose another file or folder";
    with("export-error", Popup::Ask(ask("/no/such/a.svg", Some(refused))));
    with(
        "theme",
        Popup::Choose(Choose {
            choice: Choice::Theme("dark".into()),
            title: "Theme".into(),
            items: Theme::names().map(|name| (name.to_owned(), "built in".to_owned())).collect(),
            chosen: 1,
            does: "keep".into(),
        }),
    );
    with(
        "message",
        Popup::Message {
            title: "The engine ended".to_owned(),
            text: "the guest's QMP socket was closed: QEMU has ended.\nStart the guest again and attach anew."
                .to_owned(),
            severity: Severity::Error,
            scroll: 0,
        },
    );
    let mut filtered = UiState {
        popups: vec![Popup::Filter { pane: PaneId::Processes, input: "svc(".into(), before: String::new() }],
        ..base()
    };
    filtered.focused_mut().filter.set("svc");
    filtered.focused_mut().filter.set("svc(");
    all.push(("filter", fixture::snapshot(), filtered));
    all
}

/// Screens in states other than the usual one.
fn states() -> Vec<(&'static str, Snapshot, UiState)> {
    let base = || fixture::screen((0, 0));
    let mut tree = UiState { tree: true, zoom: true, ..base() };
    tree.focused_mut().filter.set("exe");
    let mut marked = UiState { focus: PaneId::Breakpoints, ..base() };
    marked.focused_mut().marks = [1, 3].map(|id| RowKey::Breakpoint(BreakpointId(id))).into();
    marked.focused_mut().sort = Sort { column: Column::Hits, descending: true };
    let mut none = base();
    none.focused_mut().filter.set("no such process");
    let past = Past { behind_ns: 12_300_000_000, status_now: Status::Paused, steps_back: 0, steps_kept: 40 };
    let mut noticed = base();
    noticed.notify(Severity::Info, "breakpoint on nt!NtCreateFile set");
    noticed.notify(Severity::Warning, "storm: nt!KiPageFault hit 12,004 times in a second and was taken out");
    noticed
        .notify(Severity::Error, "nt!Missing: this kernel has no such symbol; check the spelling, or give an address");
    let lost = Snapshot {
        status: Status::Lost,
        notice: Some("QEMU closed the connection: the guest has ended; start it again and attach anew".into()),
        ..fixture::snapshot()
    };
    let busy = Snapshot {
        status: Status::Paused,
        read_only: true,
        processes_truncated: true,
        counters: Counters { dropped: 18_204, ..fixture::snapshot().counters },
        ..fixture::snapshot()
    };
    let by_other = Snapshot { status: Status::Paused, run: Run::foreign(RunState::Paused), ..fixture::snapshot() };
    let io_error = Snapshot { run: Run::foreign(RunState::IoError), ..by_other.clone() };
    let waits = Snapshot { run: Run::foreign(RunState::Inmigrate), ..fixture::attaching() };
    let seconds = |count: u64| Some(count * 1_000_000_000);
    let old = Snapshot {
        ages: Ages { processes: seconds(14), vcpus: None, page_tables: seconds(187) },
        ..fixture::snapshot()
    };
    let bursts = UiState { focus: PaneId::Events, zoom: true, grouped: true, ..base() };
    let storm = Snapshot { events: Part::new(fixture::storm()), ..fixture::snapshot() };
    vec![
        ("bursts", storm.clone(), bursts),
        ("one-by-one", storm, UiState { focus: PaneId::Events, zoom: true, ..base() }),
        ("running", fixture::snapshot(), base()),
        ("attaching", fixture::attaching(), base()),
        ("paused-by-other", by_other, base()),
        ("io-error", io_error, base()),
        ("inmigrate", waits, base()),
        ("old-lists", old, base()),
        ("empty", Snapshot { status: Status::Running, notice: None, ..fixture::attaching() }, base()),
        ("lost", lost, base()),
        ("paused-truncated", busy, base()),
        ("frozen", fixture::snapshot(), UiState { past: Some(past), ..base() }),
        ("back", fixture::snapshot(), UiState { past: Some(Past { steps_back: 3, ..past }), ..base() }),
        ("tree-zoomed", fixture::snapshot(), tree),
        ("marked-sorted", fixture::snapshot(), marked),
        ("filtered-away", fixture::snapshot(), none),
        ("notices", fixture::snapshot(), noticed),
        ("ascii", fixture::snapshot(), UiState { ascii: true, ..base() }),
    ]
}

/// Compares each screen at each size with its kept forms: one file a screen for the text, one for the styles.
fn compare(group: &str, screens: Vec<(&'static str, Snapshot, UiState)>) {
    let theme = Theme::default();
    for (name, snapshot, mut ui) in screens {
        let (mut text, mut styles) = (String::new(), String::new());
        for size in SIZES {
            ui.size = size;
            let buffer = draw(&snapshot, &mut ui, &theme);
            picture(&format!("{group}-{name}-{}x{}", size.0, size.1), &buffer, &theme);
            let heading = format!("== {}x{}\n", size.0, size.1);
            text += &(heading.clone() + &form::text(&buffer));
            styles += &(heading + &form::styles(&buffer, &theme));
        }
        insta::assert_snapshot!(format!("{group}-{name}-text"), text);
        insta::assert_snapshot!(format!("{group}-{name}-styles"), styles);
    }
}

#[test]
fn a_list_where_another_one_was_is_another_list() {
    let list = |pid: u32| Part::new(vec![Process { pid, object: Va(pid.into()), ..Process::default() }]);
    let place = |part: &Part<Vec<Process>>| std::ptr::from_ref::<Vec<Process>>(part).addr();
    let mut ui = fixture::screen((80, 24));
    let first = Snapshot { processes: list(4), ..Snapshot::default() };
    rows::settle(&first, &mut ui);
    ui.pane_mut(PaneId::Processes).marks = [RowKey::Process(4, Va(4))].into();
    let was = place(&first.processes);
    drop(first);
    // Lists of the same size, kept until one lies where the first one lay.
    let mut kept = Vec::new();
    let again = (5..1_000).map(list).find_map(|part| {
        let is_there = place(&part) == was;
        kept.push(part.clone());
        is_there.then_some(part)
    });
    let again = Snapshot { processes: again.expect("the allocator uses memory again"), ..Snapshot::default() };
    rows::settle(&again, &mut ui);
    assert!(ui.pane(PaneId::Processes).marks.is_empty(), "the marked row is gone");
}

#[test]
fn every_state_of_the_screen() {
    compare("state", states());
}

#[test]
fn every_popup() {
    compare("popup", popups());
}

/// The other panes show what they have to when they are alone.
#[test]
fn every_pane_zoomed() {
    let zoomed = |focus| UiState { focus, zoom: true, ..fixture::screen((0, 0)) };
    let named = PaneId::ALL.map(|id| {
        let name = match id {
            PaneId::Processes => "processes",
            PaneId::Breakpoints => "breakpoints",
            PaneId::Tables => "tables",
            PaneId::Faults => "faults",
            PaneId::Events => "events",
            PaneId::Log => "log",
        };
        (name, fixture::snapshot(), zoomed(id))
    });
    compare("pane", named.into());
}

/// Themes change colours, never text.
#[test]
fn every_theme_shows_the_same_text() {
    let mut texts = Vec::new();
    for name in Theme::names() {
        let theme = Theme::builtin(name).unwrap();
        for depth in [ColorDepth::TrueColor, ColorDepth::Ansi256, ColorDepth::Ansi16, ColorDepth::Mono] {
            let theme = theme.reduced(depth);
            let mut ui = fixture::screen((100, 30));
            ui.notify(Severity::Error, "something went wrong");
            ui.popups.push(Popup::Sort { pane: PaneId::Processes, chosen: 1 });
            let buffer = draw(&fixture::snapshot(), &mut ui, &theme);
            picture(&format!("theme-{name}-{depth:?}"), &buffer, &theme);
            texts.push(export::text(&buffer));
            if depth == ColorDepth::TrueColor {
                insta::assert_snapshot!(format!("theme-{name}-styles"), form::styles(&buffer, &theme));
            }
        }
    }
    texts.dedup();
    assert_eq!(texts.len(), 1);
}

/// A selection, a mark and a state can be told apart without any colour.
#[test]
fn nothing_is_told_by_colour_alone() {
    let theme = Theme::builtin("mono").unwrap();
    let mut ui = UiState { focus: PaneId::Breakpoints, ..fixture::screen((120, 40)) };
    let text = export::text(&draw(&fixture::snapshot(), &mut ui, &theme));
    for shown in [
        "● nt!NtCreateFile",
        "◐ ntdll!LdrLoadDll",
        "○ nt!MmAccessFault",
        "! (no symbol)",
        "● RUNNING",
        "○ out",
        "● in",
        "▸●",
    ] {
        assert!(text.contains(shown), "{shown} in\n{text}");
    }
}

#[test]
fn ascii_mode_draws_ascii_only() {
    for (_, snapshot, mut ui) in states().into_iter().chain(popups()) {
        ui.ascii = true;
        ui.size = (120, 40);
        let text = export::text(&draw(&snapshot, &mut ui, &Theme::default()));
        let other: Vec<char> = text.chars().filter(|c| !c.is_ascii()).collect();
        assert!(other.is_empty(), "{other:?} in\n{text}");
    }
}

#[test]
fn a_picture_has_the_size_of_its_cells_and_the_colours_of_its_theme() {
    let light = Theme::builtin("light").unwrap();
    let buffer = draw(&fixture::snapshot(), &mut fixture::screen((80, 24)), &light);
    let svg = export::svg(&buffer, &light);
    assert!(svg.starts_with("<svg ") && svg.contains(r#"width="732" height="468""#), "{}", &svg[..200]);
    assert!(svg.contains(r##"fill="#fbfcfd""##), "the theme's background");
    assert!(!svg.contains("@font-face") && !svg.contains("data:"), "nothing is embedded");
    let png = export::png(&buffer, &light).unwrap();
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    assert_eq!(&png[16..24], [0, 0, 2, 220, 0, 0, 1, 212], "732 by 468 pixels");
    assert_eq!(png, export::png(&buffer, &light).unwrap(), "the same screen, the same bytes");
}
