//! What keys do: the pure part of the application, driven by the same scripts as headless runs.

mod memory;
mod mouse;
mod user;

use std::{fs, path::Path};

use vmscope::{
    app::{
        action::{ACTIONS, Action, Place, keys_document},
        config::Config,
        keymap::{self, Keymap},
        update::{self, Effect},
    },
    engine::{
        command::{Command, Subject, Target},
        snapshot::{
            BreakpointId, BreakpointState, Capability, Event, EventKind, Fault, FaultId, Guest, Part, Process, Run,
            RunState, Scope, Snapshot, Status, TableId, Unavailable, Va, VcpuId,
        },
    },
    ui::state::{Choice, Choose, Column, Confirm, Contents, PaneId, Past, Popup, RowKey, Then},
};

use user::{User, breakpoint, snapshot};

fn place(text: &str) -> Target {
    Target::parse(text).unwrap()
}

#[test]
fn the_keys_document_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/keys.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, keys_document()).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), keys_document(), "run the tests with UPDATE_DOCS=1 to renew it");
}

#[test]
fn every_action_has_its_own_name_and_words() {
    for (index, entry) in ACTIONS.iter().enumerate() {
        assert!(ACTIONS[..index].iter().all(|other| other.name != entry.name && other.action != entry.action));
        assert!(!entry.doc.is_empty() && !entry.short.is_empty() && !entry.places.is_empty(), "{}", entry.name);
    }
}

#[test]
fn focus_moves_by_number_and_in_turn() {
    let mut user = User::new();
    user.press("3");
    assert_eq!(user.state.focus, PaneId::Tables);
    user.press("tab tab shift-tab");
    assert_eq!(user.state.focus, PaneId::Faults);
    user.press("6 tab");
    assert_eq!(user.state.focus, PaneId::Processes);
    user.press("z");
    assert!(user.state.zoom);
}

#[test]
fn the_selection_moves_and_stops_at_both_ends() {
    let mut user = User::new();
    user.press("j j j j k");
    assert_eq!(user.state.focused().selected, Some(RowKey::Process(648, Va(648))));
    user.press("end home");
    assert_eq!(user.state.focused().position, 0);
    user.press("5 home pgdn");
    let shown = user.state.focused().position;
    assert!(shown > 1 && shown < 40, "{shown}");
    user.press("end");
    assert!(user.state.focused().follow);
}

#[test]
fn a_filter_works_while_it_is_typed_and_says_when_it_is_wrong() {
    let mut user = User::new();
    user.press("/ 'lsa'");
    assert_eq!(user.state.focused().rows.len(), 1);
    user.press("'('");
    assert!(user.state.focused().filter.error().is_some());
    assert_eq!(user.state.focused().rows.len(), 1, "the last good expression is kept");
    user.press("backspace enter");
    assert!(user.popup().is_none());
    assert_eq!(user.state.focused().rows.len(), 1);
    user.press("/ 'x' esc");
    assert_eq!(user.state.focused().filter.text(), "lsa", "esc goes back to the filter before");
    user.press("esc");
    assert_eq!(user.state.focused().rows.len(), 3);
}

#[test]
fn a_column_is_chosen_to_sort_by() {
    let mut user = User::new();
    user.press("s j j enter");
    assert_eq!((user.state.focused().sort.column, user.state.focused().sort.descending), (Column::Name, false));
    user.press("S");
    assert!(user.state.focused().sort.descending);
    user.press("t");
    assert!(user.state.tree);
}

#[test]
fn a_breakpoint_is_added_by_name() {
    let mut user = User::new();
    let added =
        |place: &str, scope, tag: &str| Command::AddBreakpoint { target: self::place(place), scope, tag: tag.into() };
    assert_eq!(user.commands("2 a 'nt!NtCreateFile' enter"), [added("nt!NtCreateFile", Scope::Global, "")]);
    assert!(user.popup().is_none());
    assert_eq!(user.commands("a 'Open' tab enter"), [added("nt!NtOpenFile", Scope::Global, "")]);
    assert_eq!(user.commands("a 'NtC' down down enter"), [added("nt!NtCreateKey", Scope::Global, "")]);
    assert_eq!(user.commands("a '0x1000@648' enter"), [added("0x1000@648", Scope::Process(648), "")]);
    assert_eq!(
        user.commands("1 j 2 a '0x1000' tab space tab 'mine' enter"),
        [added("0x1000@648", Scope::Process(648), "mine")]
    );
}

#[test]
fn what_is_typed_wrongly_stays_in_the_dialog() {
    let mut user = User::new();
    assert!(user.commands("2 a enter").is_empty());
    assert!(
        matches!(user.popup(), Some(Popup::Add(dialog)) if dialog.error.as_deref().is_some_and(|e| e.contains("symbol or an address")))
    );
    assert!(user.commands("'main@x' enter").is_empty());
    assert!(
        matches!(user.popup(), Some(Popup::Add(dialog)) if dialog.error.as_deref().is_some_and(|e| e.contains("process id")))
    );
    user.press("esc");
    assert!(user.popup().is_none());
}

#[test]
fn rows_are_acted_on_one_by_one_or_marked() {
    let mut user = User::new();
    assert_eq!(user.commands("2 j space"), [Command::ToggleBreakpoint(BreakpointId(2))]);
    assert_eq!(user.commands("k d"), [Command::RemoveBreakpoint(BreakpointId(1))]);
    let both = [Command::ToggleBreakpoint(BreakpointId(1)), Command::ToggleBreakpoint(BreakpointId(2))];
    assert_eq!(user.commands("home v v space"), both);
    assert!(user.state.focused().marks.is_empty());
    assert_eq!(user.commands("3 d"), [Command::UnwatchAddress(TableId(9))]);
    assert_eq!(
        user.commands("a '0x9000' enter"),
        [Command::WatchAddress { target: place("0x9000"), tag: String::new() }]
    );
}

#[test]
fn every_action_is_for_all_marked_rows() {
    let fault = |id| Fault { id: FaultId(id), ..snapshot().faults[0].clone() };
    let mut many = snapshot();
    many.faults = Part::new((1..=3).map(fault).collect());
    let mut user = User::with(many);
    type Make = fn(FaultId) -> Command;
    let keys: [(&str, Make); 4] = [
        ("i", Command::InjectFault),
        ("x", Command::SuppressFault),
        ("r", Command::RetryFault),
        ("c", Command::ClearFault),
    ];
    for (key, command) in keys {
        assert_eq!(user.commands(&format!("4 V {key}")), [1, 2, 3].map(|id| command(FaultId(id))), "{key}");
        assert_eq!(user.commands(&format!("home v * {key}")), [2, 3].map(|id| command(FaultId(id))), "{key}");
    }
    user.press("V");
    assert_eq!(user.state.focused().marks.len(), 3);
    user.press("V");
    assert!(user.state.focused().marks.is_empty(), "all were marked");
    assert_eq!(user.press("1 / 'exe' enter V y"), [Effect::Copy("648\t0\tlsass.exe\t\n900\t0\tcalc.exe\t".into())]);
}

#[test]
fn a_deleted_breakpoint_comes_back_as_it_was() {
    let mut set = snapshot();
    let mut second = breakpoint(2, BreakpointState::Active);
    (second.scope, second.tag) = (Scope::Process(648), "mine".into());
    set.breakpoints = Part::new(vec![breakpoint(1, BreakpointState::Disabled), second]);
    let mut user = User::with(set);
    assert!(user.commands("2 u").is_empty());
    assert!(user.notice().contains("no breakpoint was deleted"));
    user.press("V d");
    let back = |at: &str, scope, tag: &str, enabled| {
        let target = self::place(at);
        Command::RestoreBreakpoint { target, scope, tag: tag.into(), enabled }
    };
    let both = [back("0x1000", Scope::Global, "", false), back("0x2000@648", Scope::Process(648), "mine", true)];
    user.press("home d");
    assert_eq!(user.commands("u"), both[..1]);
    assert_eq!(user.commands("u"), both, "the deletion before");
    assert!(user.commands("u").is_empty());
}

#[test]
fn a_breakpoint_whose_process_is_gone_is_only_deleted() {
    let mut ended = breakpoint(1, BreakpointState::Ended);
    ended.scope = Scope::Process(648);
    let mut set = snapshot();
    set.breakpoints = Part::new(vec![ended]);
    let mut user = User::with(set);
    assert!(user.commands("2 M").is_empty(), "what has its id now is another process");
    assert!(user.notice().contains("nothing with an address"), "{}", user.notice());
    assert_eq!(user.commands("d"), [Command::RemoveBreakpoint(BreakpointId(1))]);
    assert!(user.commands("u").is_empty());
    assert!(user.notice().contains("no breakpoint was deleted"), "{}", user.notice());
}

#[test]
fn faults_have_their_own_keys() {
    let mut user = User::new();
    let id = FaultId(5);
    let expected =
        [Command::InjectFault(id), Command::SuppressFault(id), Command::RetryFault(id), Command::ClearFault(id)];
    assert_eq!(user.commands("4 i x r c"), expected);
    assert_eq!(user.commands("g '0x9000@648' enter"), [Command::RequestPage { target: place("0x9000@648") }]);
    assert!(user.commands("1 i x r").is_empty(), "these keys mean nothing elsewhere");
}

#[test]
fn a_detail_is_asked_for_and_given_up() {
    let mut user = User::new();
    assert_eq!(user.commands("j enter"), [Command::Inspect(Some(Subject::Process(648)))]);
    assert_eq!(user.commands("j j q"), [Command::Inspect(None)]);
    assert!(user.popup().is_none());
    assert_eq!(
        user.commands("2 enter esc"),
        [Command::Inspect(Some(Subject::Breakpoint(BreakpointId(1)))), Command::Inspect(None)]
    );
    assert!(user.commands("5 end enter").is_empty());
    assert!(matches!(user.popup(), Some(Popup::Event { event, .. }) if event.seq == 99));
}

#[test]
fn memory_is_looked_at_by_symbol_and_offset() {
    let mut user = User::new();
    // As many bytes as 35 rows of the screen show.
    let expected = Subject::Memory { pid: Some(648), va: Va(0x1010), length: 560 };
    assert_eq!(user.commands("m 'NtCreateFile+0x10@648' enter"), [Command::Inspect(Some(expected))]);
    user.press("esc m 'nonsense' enter");
    assert!(matches!(user.popup(), Some(Popup::Add(dialog)) if dialog.error.is_some()));
}

#[test]
fn the_guest_is_paused_and_stepped_as_it_is_now() {
    let mut user = User::new();
    assert_eq!(user.commands("p"), [Command::Pause]);
    assert!(user.commands("n").is_empty());
    assert!(user.notice().contains("not paused"));
    user.state.past = Some(Past { behind_ns: 1, status_now: Status::Paused, steps_back: 0, steps_kept: 1 });
    assert_eq!(user.commands("p n"), [Command::Resume, Command::Step(VcpuId(1))]);
}

#[test]
fn the_pause_key_says_what_it_would_do_to_a_guest_that_stands() {
    let stands = |status, state| User::with(Snapshot { status, run: Run::foreign(state), ..snapshot() });
    for (status, state, label) in [
        (Status::Paused, RunState::Paused, "resume guest"),
        (Status::Paused, RunState::IoError, "resume guest"),
        (Status::Paused, RunState::Suspended, "wake guest"),
        (Status::Attaching, RunState::Prelaunch, "start guest"),
    ] {
        let mut user = stands(status, state);
        assert_eq!(user.commands("p"), [Command::Resume], "{label}");
        let hint = user.state.footer.iter().find(|hint| hint.name == "pause-guest").expect("it is in the footer");
        assert_eq!((hint.label.as_str(), &hint.why_not), (label, &None));
    }
    let mut user = stands(Status::Paused, RunState::Postmigrate);
    assert!(user.commands("p").is_empty());
    assert!(user.notice().contains("migrated away"), "{}", user.notice());
    let hint = user.state.footer.iter().find(|hint| hint.name == "pause-guest").expect("it is in the footer");
    assert!(hint.why_not.is_some());
}

#[test]
fn what_cannot_be_done_says_why() {
    let mut limited = snapshot();
    limited.capabilities = Part::new(vec![Capability::Read]);
    limited.unavailable = Part::new(vec![Unavailable { what: Capability::Pause, why: "a dump does not run".into() }]);
    let mut user = User::with(limited);
    assert!(user.commands("p").is_empty());
    assert_eq!(user.notice(), "pause-guest: a dump does not run");
    assert!(user.commands("2 a").is_empty());
    assert!(user.popup().is_none() && user.notice().contains("not supported"));
    let greyed = user.state.footer.iter().find(|hint| hint.name == "toggle").and_then(|hint| hint.why_not.clone());
    assert!(greyed.is_some_and(|why| why.contains("not supported")));

    let mut user = User::with(Snapshot { read_only: true, ..snapshot() });
    assert!(user.commands("2 space a p").is_empty());
    assert!(user.notice().contains("--read-only"));
    assert!(user.commands("1 enter").len() == 1, "looking is always possible");
}

#[test]
fn quitting_asks_only_when_something_is_set() {
    let mut user = User::new();
    assert_eq!(user.press("q"), [Effect::Leave]);
    let mut set = snapshot();
    set.breakpoints = Part::new(vec![breakpoint(1, BreakpointState::Active)]);
    let mut user = User::with(set);
    assert!(user.press("q").is_empty());
    assert!(user.press("n").is_empty());
    assert!(user.popup().is_none());
    assert!(user.press("q tab enter").is_empty(), "the other answer was chosen");
    let said = |user: &mut User| {
        user.press("q");
        let Some(Popup::Confirm(question)) = user.popup() else { panic!("{:?}", user.popup()) };
        let text = question.text.clone();
        user.press("n");
        text
    };
    assert!(said(&mut user).contains("forgotten"));
    user.state.kept = true;
    assert!(said(&mut user).contains("kept for the next run"));
    assert_eq!(user.press("q y"), [Effect::Leave]);
    assert_eq!(user.press("ctrl-c ctrl-c"), [Effect::Leave]);
}

#[test]
fn the_palette_finds_actions_by_their_words() {
    let mut user = User::new();
    assert_eq!(user.press(": 'freez' enter"), [Effect::Freeze]);
    assert_eq!(user.commands("ctrl-p 'pause' enter"), [Command::Pause]);
    assert!(user.press(": 'inject' enter").is_empty());
    assert!(user.notice().contains("works in: Faults"), "{}", user.notice());
    user.press(": 'zzzzzz' enter");
    assert!(user.popup().is_none());
    for entry in ACTIONS {
        user.press(&format!("1 : '{}'", entry.name));
        let Some(Popup::Palette { found, .. }) = user.popup() else { panic!("{:?}", user.popup()) };
        let first = found.first().and_then(|&index| user.state.help.get(index)).map(|hint| hint.name.as_str());
        assert_eq!(first, Some(entry.name), "a whole name goes before everything else");
        user.press("esc");
    }
    user.press(": 'filt'");
    let Some(Popup::Palette { found, .. }) = user.popup() else { panic!("{:?}", user.popup()) };
    assert_eq!(user.state.help[found[0]].name, "filter", "the beginning of a name goes before words about others");
    user.press("esc");
    assert!(user.popup().is_none());
}

#[test]
fn a_key_that_does_nothing_says_why() {
    let mut user = User::new();
    let mut says = |keys: &str, why: &str| {
        user.press(keys);
        assert_eq!(user.notice(), why, "{keys}");
    };
    says("1 i", "inject-fault works in: Faults");
    says("enter z", "zoom works in every pane");
    says("esc Q", "Q is no key of any action; ? lists all keys");
    says("6 s", "sort works in every pane but: Log");
    says("6 d", "delete works in: Breakpoints, Page tables");
    assert_eq!(user.state.notices.len(), 1, "one takes the place of the other");
    let mut nothing = snapshot();
    nothing.faults = Part::new(Vec::new());
    let mut user = User::with(nothing);
    for key in ["enter", "v", "i", "ctrl-y"] {
        user.state.notices.clear();
        assert!(user.press(&format!("4 {key}")).is_empty());
        assert_eq!(user.notice(), "nothing is selected in the faults", "{key}");
        assert!(user.popup().is_none(), "{key}");
    }
}

#[test]
fn a_page_key_moves_what_is_read_by_its_own_height() {
    let mut user = User::new();
    user.press("2 enter pgdn");
    assert!(matches!(user.popup(), Some(Popup::Detail { scroll: 0, .. })), "there is not more than a page of it");
    user.press("esc ? pgdn");
    let Some(Popup::Help { scroll, .. }) = user.popup() else { panic!("{:?}", user.popup()) };
    assert!((30..40).contains(scroll), "{scroll} of 40 lines, though the pane below has far fewer");
}

#[test]
fn help_is_searched_by_typing() {
    let mut user = User::new();
    user.press("? 'break'");
    assert!(matches!(user.popup(), Some(Popup::Help { search, .. }) if search.value() == "break"));
    user.press("down pgdn esc");
    assert!(user.popup().is_none());
    assert_eq!(user.state.help.len(), ACTIONS.len());
}

#[test]
fn the_footer_shows_the_keys_of_the_place() {
    let mut user = User::new();
    let names = |user: &User| user.state.footer.iter().map(|hint| hint.name.clone()).collect::<Vec<_>>();
    assert!(names(&user).contains(&"tree".to_owned()));
    user.press("4");
    assert_eq!(user.state.footer.first().map(|hint| (hint.key.as_str(), hint.label.as_str())), Some(("i", "inject")));
    user.press("enter");
    assert_eq!(update::place(&user.state), Place::Popup);
    assert!(names(&user).contains(&"close".to_owned()) && !names(&user).contains(&"inject-fault".to_owned()));
}

#[test]
fn a_row_is_copied_with_its_facts() {
    let mut user = User::new();
    assert_eq!(user.press("j y"), [Effect::Copy("648\t0\tlsass.exe\t".into())]);
    assert_eq!(
        user.press("2 v v y"),
        [Effect::Copy("nt!Function1\t0x1000\tglobal\t1\t\nnt!Function2\t0x2000\tglobal\t2\t".into())]
    );
}

#[test]
fn bursts_are_one_row_that_opens() {
    let event = |seq: u64| Event {
        kind: EventKind::Breakpoint,
        pid: Some(648),
        at_ns: seq * 100_000_000,
        text: if seq == 3 { "nt!NtOpenFile(0x0)".into() } else { format!("nt!NtClose({seq:#x})") },
        ..snapshot().events[seq as usize].clone()
    };
    let upto = |last: u64| Snapshot { events: Part::new((0..=last).map(event).collect()), ..snapshot() };
    let mut user = User::with(upto(5));
    user.press("5 home");
    assert_eq!(user.state.focused().rows.len(), 2);
    assert_eq!(user.state.focused().selected, Some(RowKey::Event(0)));
    // The burst goes on and the selection stays on it.
    user.snapshot = upto(9);
    user.settle();
    assert_eq!((user.state.focused().selected, user.state.focused().rows.len()), (Some(RowKey::Event(0)), 2));
    user.press("enter");
    assert!(matches!(user.popup(), Some(Popup::Burst { events, .. }) if events.len() == 9));
    user.press("esc");
    let copied = user.press("y");
    assert!(matches!(copied.as_slice(), [Effect::Copy(text)] if text.lines().count() == 9), "{copied:?}");
    user.press("g");
    assert_eq!(user.state.focused().rows.len(), 10);
    user.press("enter");
    assert!(matches!(user.popup(), Some(Popup::Event { event, .. }) if event.seq == 0));
    user.press("esc g / '0x5' enter enter");
    assert!(
        matches!(user.popup(), Some(Popup::Event { event, .. }) if event.seq == 5),
        "only what the filter lets through"
    );
}

#[test]
fn a_cell_or_a_whole_pane_is_copied() {
    let mut user = User::new();
    user.press("j ctrl-y");
    assert!(matches!(user.popup(), Some(Popup::Choose(choose)) if choose.items.len() == 3), "an empty cell is none");
    assert_eq!(user.press("j j enter"), [Effect::Copy("lsass.exe".into())]);
    assert_eq!(user.state.copied.as_ref().map(|copied| copied.what.as_str()), Some("the name"));
    assert!(user.press("ctrl-y q").is_empty() && user.popup().is_none());
    user.press("/ 'lsa' enter");
    assert_eq!(user.press("Y"), [Effect::Copy("pid\tppid\tname\troot\n648\t0\tlsass.exe\t".into())]);
    assert_eq!(user.state.copied.as_ref().map(|copied| copied.what.as_str()), Some("the one row of the processes"));
    assert_eq!(user.notice(), "", "what became of it is said by who sent it");
    user.press("esc / 'nothing' enter");
    assert!(user.press("Y y").is_empty());

    let process = |pid| Process { pid, name: "a-rather-long-name.exe".into(), ..Process::default() };
    let mut user = User::with(Snapshot { processes: Part::new((0..10_000).map(process).collect()), ..snapshot() });
    assert!(user.press("Y").is_empty(), "more than a terminal takes");
    assert!(user.notice().contains("not copied") && user.notice().contains("filter the pane"), "{}", user.notice());
    // It is kept all the same, for a file.
    assert!(user.notice().ends_with(": W"), "{}", user.notice());
    let effects = user.press("W enter");
    assert!(matches!(effects.as_slice(), [Effect::SaveCopied { file, overwrite: false }] if file == "vmscope-0s.txt"));
    assert!(user.state.copied.is_some_and(|copied| copied.text.lines().count() == 10_001));
}

#[test]
fn what_was_copied_is_written_to_a_file_on_request() {
    let mut user = User::new();
    assert!(user.press("W").is_empty() && user.popup().is_none());
    assert_eq!(user.notice(), "nothing was copied yet");
    user.press("y W");
    assert!(matches!(user.popup(), Some(Popup::Ask(ask)) if ask.contents == Contents::Copied));
    user.press("ctrl-u");
    let saved = |overwrite| Effect::SaveCopied { file: "rows.txt".into(), overwrite };
    assert_eq!(user.press("'rows.txt' enter"), [saved(false)]);
    user.state.popups.push(Popup::Confirm(Confirm {
        title: "Overwrite".into(),
        text: String::new(),
        yes: "overwrite".into(),
        no: "keep".into(),
        chosen_yes: true,
        then: Then::OverwriteCopied("rows.txt".into()),
    }));
    assert_eq!(user.press("enter"), [saved(true)]);
}

#[test]
fn a_screen_is_exported_to_a_file_of_a_good_name() {
    let mut named = snapshot();
    named.guest = Part::new(Guest { name: "../my guest\x1b".into(), ..Guest::default() });
    named.taken_at_ns = 12_300_000_000;
    let mut user = User::with(named);
    user.press("e");
    let export = |file: &str, overwrite| Effect::Export { file: file.into(), overwrite };
    assert_eq!(user.press("enter"), [export("vmscope-my-guest-12s.svg", false)]);
    assert!(user.press("e ctrl-u enter").is_empty());
    assert!(matches!(user.popup(), Some(Popup::Ask(ask)) if ask.error.is_some()), "a name is needed");
    assert_eq!(user.press("'/a b.png' enter"), [export("/a b.png", false)]);
    assert!(user.popup().is_none());
    assert!(user.press("e esc").is_empty());
    let question = |then| Confirm {
        title: "Overwrite".into(),
        text: String::new(),
        yes: "overwrite".into(),
        no: "keep".into(),
        chosen_yes: false,
        then,
    };
    user.state.popups.push(Popup::Confirm(question(Then::Overwrite("a.png".into()))));
    assert!(user.press("enter").is_empty(), "keeping is chosen at first");
    user.state.popups.push(Popup::Confirm(question(Then::Overwrite("a.png".into()))));
    assert_eq!(user.press("y"), [export("a.png", true)]);
}

#[test]
fn a_theme_is_shown_while_it_is_chosen() {
    let mut user = User::new();
    assert_eq!(user.press("T"), [Effect::ChooseTheme]);
    let choose = || {
        let items = ["dark", "light", "mono"].map(|name| (name.to_owned(), String::new())).into();
        Popup::Choose(Choose {
            choice: Choice::Theme("light".into()),
            title: "Theme".into(),
            items,
            chosen: 1,
            does: "keep".into(),
        })
    };
    let theme = |name: &str| Effect::Theme(name.into());
    user.state.popups.push(choose());
    assert_eq!(
        user.press("j k k k enter"),
        [theme("mono"), theme("light"), theme("dark"), theme("dark"), theme("dark")]
    );
    user.state.popups.push(choose());
    assert_eq!(user.press("end esc"), [theme("mono"), theme("light")], "as it was before");
    assert!(user.popup().is_none());
    assert_eq!(user.press(": 'reload-theme' enter"), [Effect::ReloadTheme]);
}

#[test]
fn lists_to_choose_from_follow_the_users_keys() {
    let mut user = User::new();
    user.keymap = Keymap::new(&[("down".into(), vec!["n".into()]), ("step".into(), Vec::new())]).unwrap();
    user.press("s n n enter");
    assert_eq!(user.state.focused().sort.column, Column::Name);
    user.press("ctrl-y n");
    assert!(matches!(user.popup(), Some(Popup::Choose(choose)) if choose.chosen == 1));
}

#[test]
fn a_paste_goes_into_the_open_field_only() {
    let mut user = User::new();
    update::popup::paste(&mut user.state, &user.snapshot, "q");
    assert!(user.popup().is_none());
    user.press("/");
    update::popup::paste(&mut user.state, &user.snapshot, "lsass\nrm -rf");
    user.settle();
    assert_eq!(user.state.focused().filter.text(), "lsass");
}

#[test]
fn the_log_shows_more_or_less_of_a_chosen_part() {
    let mut user = User::new();
    user.press("6 +");
    assert!(user.state.log.targets, "something must be chosen first");
    user.press("j + - k t");
    assert!(!user.state.log.targets);
    assert!(user.press("/").is_empty() && user.popup().is_none(), "lines of the log are not rows");
}

#[test]
fn the_documented_configuration_is_one() {
    let document = include_str!("../../docs/configuration.md");
    let sample = document.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let config = Config::parse(sample).unwrap();
    assert_eq!(config.theme.as_deref(), Some("light"));
    let keymap = Keymap::new(&config.keys()).unwrap();
    assert_eq!(keymap.keys_of(Action::Quit).collect::<Vec<_>>(), ["ctrl-q"]);
    let names = document.split_once("A key is").unwrap().1;
    for name in ["shift-tab", "pgdn", "backspace", "delete", "insert", "f24"] {
        assert!(names.contains(name.trim_end_matches(char::is_numeric)) && keymap::parse(name).is_ok(), "{name}");
    }
}
