//! Runs without a terminal, over a small engine that answers commands and counts hits.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{self, Output, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError, Select, Sender, bounded};
use serde_json::Value;
use vmscope::{
    app::{
        console::Input,
        event_loop::Setup,
        headless::{End, Plan},
        screenshot::{Screenshot, json},
        start,
    },
    engine::{
        command::{Attaching, Command, Done, Engine, Leaving, Request},
        snapshot::{
            Breakpoint, BreakpointDetail, BreakpointId, BreakpointState, Capability, CodeLine, Detail, Event,
            EventKind, Fault, FaultId, FaultState, Hit, MemoryDetail, Module, Part, Process, ProcessDetail, Region,
            SCHEMA, Scope, Snapshot, Status, Table, ThreadInfo, Unavailable, Va, Vcpu, View, WalkEntry,
        },
    },
};

/// What an engine does besides answering.
#[derive(Clone, Copy, Default)]
struct Manner {
    /// Lets time pass by itself instead of by `Advance`.
    real_time: bool,
    /// Ends, as by a mistake of its own, when it is asked to pause.
    dies: bool,
    /// Ends, as by a mistake of its own, before it has read the first command.
    hears_nothing: bool,
    /// Lets no time pass while it is paused.
    stands_still: bool,
    /// Loses the guest when it is asked to pause.
    loses: bool,
    /// Finds no kernel.
    seeks: bool,
    /// Is asked to pause and never answers.
    mute: bool,
}

/// The thread's side of an engine.
struct Fake {
    manner: Manner,
    snapshot: Snapshot,
    published: Arc<ArcSwap<Snapshot>>,
    changed: Sender<()>,
}

fn engine(manner: Manner) -> Engine {
    let published = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (requests, receiver) = bounded(64);
    let (changed, pings) = bounded(1);
    let process = |pid: u32, name: &str| Process { pid, name: name.into(), ..Process::default() };
    let snapshot = Snapshot {
        schema: SCHEMA,
        status: Status::Running,
        driver: "demo",
        processes: Part::new(vec![process(4, "System"), process(648, "lsass.exe")]),
        capabilities: Part::new(vec![Capability::Read, Capability::Breakpoints, Capability::Pause]),
        ..Snapshot::default()
    };
    let fake = Fake { manner, snapshot, published: Arc::clone(&published), changed };
    thread::spawn(move || fake.run(&receiver));
    Engine { snapshot: published, requests, changed: pings, leaving: Leaving::default() }
}

impl Fake {
    fn run(mut self, requests: &Receiver<Request>) {
        if self.manner.seeks {
            self.snapshot.status = Status::Attaching;
            self.snapshot.notice = Some("no Linux kernel is mapped".into());
        }
        self.publish();
        let mut unanswered = Vec::new();
        if self.manner.hears_nothing {
            let mut select = Select::new();
            select.recv(requests);
            select.ready();
            return;
        }
        loop {
            let patience = if self.manner.real_time { Duration::from_millis(1) } else { Duration::from_secs(60) };
            match requests.recv_timeout(patience) {
                Ok(Request { command: Command::Pause, .. }) if self.manner.dies => return,
                Ok(Request { command: Command::Pause, answer }) if self.manner.mute => unanswered.push(answer),
                Ok(Request { command, answer }) => {
                    let done = self.apply(&command);
                    self.publish();
                    let _ = answer.send(done);
                    if command == Command::Quit {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.advance(1);
                    self.publish();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn publish(&mut self) {
        self.snapshot.counters.snapshots += 1;
        self.published.store(Arc::new(self.snapshot.clone()));
        let _ = self.changed.try_send(());
    }

    /// Every active breakpoint is hit each ten ticks.
    fn advance(&mut self, ticks: u64) {
        self.snapshot.taken_at_ns += ticks * 1_000_000;
        let mut rows = self.snapshot.breakpoints.to_vec();
        for row in rows.iter_mut().filter(|row| row.state == BreakpointState::Active) {
            if self.snapshot.taken_at_ns.is_multiple_of(10_000_000) {
                row.hits += 1;
                self.snapshot.counters.hits += 1;
            }
        }
        self.snapshot.breakpoints.set(rows);
    }

    fn apply(&mut self, command: &Command) -> Result<Done, String> {
        match command {
            Command::Advance(_) if self.manner.stands_still && self.snapshot.status == Status::Paused => {}
            Command::Advance(ticks) => self.advance(*ticks),
            Command::AddBreakpoint { target, .. } if target.place == "nowhere" => {
                return Err("cannot set a breakpoint on nowhere: there is no such symbol; check its name".into());
            }
            Command::AddBreakpoint { target, scope, tag } => {
                let mut rows = self.snapshot.breakpoints.to_vec();
                rows.push(Breakpoint { scope: *scope, tag: tag.clone(), ..row(&target.place) });
                self.snapshot.breakpoints.set(rows);
                return Ok(Done::Breakpoint(BreakpointId(1), format!("breakpoint on {target} is active")));
            }
            Command::ToggleBreakpoint(_) => {
                let mut rows = self.snapshot.breakpoints.to_vec();
                rows.iter_mut().for_each(|row| row.state = BreakpointState::Disabled);
                self.snapshot.breakpoints.set(rows);
            }
            Command::Pause if self.manner.loses => {
                self.snapshot.status = Status::Lost;
                self.snapshot.notice = Some("the guest is gone: QEMU has exited".into());
            }
            Command::Pause => self.snapshot.status = Status::Paused,
            Command::Inspect(subject) => {
                self.snapshot.detail = subject.as_ref().map(|subject| Arc::new(Detail::Gone(format!("{subject:?}"))));
            }
            _ => {}
        }
        Ok(Done::Quiet)
    }
}

fn row(symbol: &str) -> Breakpoint {
    Breakpoint {
        id: BreakpointId(1),
        symbol: symbol.into(),
        address: Va(0x1000),
        scope: Scope::Global,
        view: View(0),
        pa: None,
        state: BreakpointState::Active,
        visible: false,
        tag: String::new(),
        hits: 0,
        rates: Vec::new(),
        last_hits: Vec::new(),
        error: None,
    }
}

struct Run {
    ended: Result<(), String>,
    folder: tempfile::TempDir,
}

impl Run {
    fn text(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).unwrap()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.folder.path().join(name)).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes("out.json")).unwrap()
    }
}

const SHOTS: [&str; 5] = ["out.txt", "out.ansi", "out.svg", "out.png", "out.json"];

fn shots(folder: &Path) -> Vec<Screenshot> {
    SHOTS.iter().map(|name| folder.join(name).to_str().unwrap().parse().unwrap()).collect()
}

fn run(manner: Manner, plan: Plan) -> Run {
    let (_keep, signals) = bounded::<Input>(1);
    run_with(manner, plan, signals)
}

fn run_with(manner: Manner, plan: Plan, signals: Receiver<Input>) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::default();
    let ended = start::headless(engine(manner), setup, plan, None, &shots(folder.path()), signals);
    Run { ended, folder }
}

fn plan(keys: &str, ticks: Option<u64>) -> Plan {
    Plan { keys: keys.parse().unwrap(), end: End::AfterKeys, ticks }
}

#[test]
fn a_breakpoint_is_set_hit_and_taken_out_by_keys() {
    for (manner, ticks) in [(Manner::default(), Some(500)), (Manner { real_time: true, ..Manner::default() }, None)] {
        let run = run(manner, plan("2 a 'nt!NtCreateFile' enter wait:hits>=3 space", ticks));
        assert_eq!(run.ended, Ok(()));
        let json = run.json();
        assert_eq!(json["schema"], SCHEMA);
        assert_eq!(json["breakpoints"][0]["state"], "disabled");
        assert!(json["breakpoints"][0]["hits"].as_u64().unwrap() >= 3, "{json}");
        assert!(run.text("out.txt").contains("nt!NtCreateFile"));
    }
}

#[test]
fn virtual_time_gives_the_same_bytes_every_time() {
    let script = "2 a 'nt!NtCreateFile' enter wait:200ms enter wait:hits>=30 esc ? 'q' esc 1 t p";
    let first = run(Manner::default(), plan(script, Some(1000)));
    let second = run(Manner::default(), plan(script, Some(1000)));
    assert_eq!(first.ended, Ok(()));
    for name in SHOTS {
        assert!(first.bytes(name) == second.bytes(name), "{name} differs");
    }
    assert_eq!(first.json()["taken_at_ns"], 1_000_000_000);
}

#[test]
fn the_end_of_virtual_time_is_exact() {
    let end = |end, ticks| run(Manner::default(), Plan { end, ..plan("j", Some(ticks)) });
    assert_eq!(end(End::AfterKeys, 25).json()["taken_at_ns"], 25_000_000);
    assert_eq!(end(End::For(Duration::from_millis(50)), 1000).json()["taken_at_ns"], 50_000_000);
    let short = end(End::Until("hits>=1".parse().unwrap()), 30);
    assert!(short.ended.as_ref().is_err_and(|e| e.contains("30 ticks") && e.contains("hits>=1")), "{:?}", short.ended);
    assert_eq!(short.json()["taken_at_ns"], 30_000_000, "the screenshot is left all the same");
}

#[test]
fn a_wait_in_virtual_time_counts_guest_time() {
    let run = run(Manner::default(), Plan { end: End::For(Duration::ZERO), ..plan("wait:70ms p", Some(1000)) });
    assert_eq!(run.ended, Ok(()));
    assert_eq!((run.json()["taken_at_ns"].as_u64(), run.json()["status"].as_str()), (Some(70_000_000), Some("paused")));
}

#[test]
fn which_picture_is_shown_is_said() {
    for (keys, said) in [
        ("wait:10ms ]", "this is the live picture already"),
        ("wait:10ms }", "this is the live picture already"),
        ("wait:10ms f wait:1100ms", "FROZEN 1.1s behind"),
        ("wait:1100ms [", "BACK"),
        ("wait:10ms [ [ [", "there is no earlier picture"),
    ] {
        let run = run(Manner::default(), Plan { end: End::For(Duration::ZERO), ..plan(keys, Some(10_000)) });
        assert_eq!(run.ended, Ok(()), "{keys}");
        assert!(run.text("out.txt").contains(said), "{keys}: {}", run.text("out.txt"));
    }
}

#[test]
fn a_wait_passes_while_the_guest_is_paused() {
    let manner = Manner { stands_still: true, ..Manner::default() };
    let run = run(manner, plan("p wait:70ms j", Some(100)));
    assert_eq!(run.ended, Ok(()));
    assert_eq!(run.json()["taken_at_ns"], 0);
}

#[test]
fn a_condition_ends_a_run_in_real_time() {
    let manner = Manner { real_time: true, ..Manner::default() };
    let end = End::Until("hits>=2".parse().unwrap());
    let run = run(manner, Plan { end, ..plan("2 a '0x1000' enter", None) });
    assert_eq!(run.ended, Ok(()));
    assert!(run.json()["counters"]["hits"].as_u64().unwrap() >= 2);
}

#[test]
fn a_refused_breakpoint_comes_back_with_its_reason() {
    let run = run(Manner::default(), plan("2 a 'nowhere' enter", Some(10)));
    assert_eq!(run.ended, Ok(()));
    let text = run.text("out.txt");
    assert!(text.contains("nowhere") && text.contains("no such symbol"), "{text}");
}

#[test]
fn a_detail_is_part_of_the_picture() {
    let run = run(Manner::default(), plan("j enter f", Some(10)));
    assert!(run.json()["detail"]["gone"].as_str().unwrap().contains("Process(648)"));
}

#[test]
fn a_lost_guest_fails_a_script_with_its_reason() {
    let manner = Manner { loses: true, ..Manner::default() };
    let run = run(manner, plan("p j j", Some(100)));
    assert_eq!(run.ended, Err("the guest is gone: QEMU has exited".into()));
    assert_eq!(run.json()["status"], "lost");
}

#[test]
fn an_engine_that_dies_is_told_and_does_not_hang_the_run() {
    let dies = Manner { dies: true, ..Manner::default() };
    for manner in [dies, Manner { hears_nothing: true, ..Manner::default() }] {
        let run = run(manner, plan("p j j", Some(100)));
        assert!(run.ended.as_ref().is_err_and(|e| e.contains("the engine has ended")), "{:?}", run.ended);
        assert!(run.text("out.txt").contains("the engine has ended"));
    }
}

#[test]
fn a_signal_ends_a_run_and_is_told() {
    let (sender, signals) = bounded(1);
    sender.send(Input::Terminate("SIGTERM")).unwrap();
    let manner = Manner { real_time: true, ..Manner::default() };
    let run = run_with(manner, Plan { end: End::For(Duration::from_secs(600)), ..plan("", None) }, signals);
    assert_eq!(run.ended, Err("ended by SIGTERM before the run was over".into()));
}

#[test]
fn the_time_of_a_run_is_kept_whatever_guest_and_engine_do() {
    const SHORT: Duration = Duration::from_millis(200);
    let real = Manner { real_time: true, ..Manner::default() };
    let within = |manner, keys, end| run(manner, Plan { end, ..plan(keys, None) });
    let why = |run: Run| run.ended.expect_err("a sentence");
    // All is done in time.
    assert_eq!(within(real, "j wait:1ms j", End::For(SHORT)).ended, Ok(()));
    let hit = "2 a 'nt!NtCreateFile' enter";
    let until = |text: &str| End::UntilWithin(text.parse().unwrap(), Duration::from_secs(60));
    assert_eq!(within(real, hit, until("hits>=1")).ended, Ok(()));
    // What is waited for does not come, in the script or at its end.
    let said = why(within(real, "wait:hits>=5 j", End::For(SHORT)));
    assert!(said.contains("before the keys were done: 2"), "{said}");
    let said = why(within(real, "", End::UntilWithin("hits>=5".parse().unwrap(), SHORT)));
    assert!(said.contains("without hits>=5: the counter is at 0"), "{said}");
    // The engine does not answer.
    let said = why(within(Manner { mute: true, ..real }, "p", End::For(SHORT)));
    assert!(said.contains("still at work"), "{said}");
    // There is no kernel: that is told, and shown.
    let run = within(Manner { seeks: true, ..real }, "", End::For(SHORT));
    assert_eq!(run.json()["status"], "attaching");
    let said = why(run);
    assert!(said.contains("no kernel was found in the guest: no Linux kernel is mapped"), "{said}");
}

#[test]
fn a_guest_that_does_not_open_in_time_is_told_and_left() {
    let folder = tempfile::tempdir().unwrap();
    let (_keep, signals) = bounded::<Input>(1);
    let (_never, opened) = bounded(1);
    let engine = engine(Manner { real_time: true, seeks: true, ..Manner::default() });
    let leaving = Leaving::new();
    let guest = Attaching { engine: Engine { leaving: leaving.clone(), ..engine }, opened };
    let plan = Plan { end: End::For(Duration::from_millis(200)), ..plan("", None) };
    let ended = start::headless(guest, Setup::default(), plan, None, &shots(folder.path()), signals);
    assert!(ended.as_ref().is_err_and(|why| why.contains("on the way into the guest")), "{ended:?}");
    assert!(leaving.is_wanted(), "the engine is told before it reads commands");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "there was nothing to be seen");
}

#[test]
fn a_screenshot_that_cannot_be_written_is_told() {
    let (_keep, signals) = bounded::<Input>(1);
    let setup = Setup::default();
    let nowhere = ["/nowhere/at/all.txt".parse().unwrap()];
    let ended = start::headless(engine(Manner::default()), setup, plan("", Some(10)), None, &nowhere, signals);
    assert!(ended.is_err_and(|e| e.contains("/nowhere/at/all.txt") && e.contains("--screenshot")));
}

/// A picture in which nothing is empty, so that every name of the JSON form occurs.
fn full(detail: Detail) -> Snapshot {
    let process = Process { pid: 4, ..Process::default() };
    let hit = Hit::default();
    let table = Table { walk: vec![WalkEntry::default()], ..Table::default() };
    Snapshot {
        vcpus: Part::new(vec![Vcpu::default()]),
        processes: Part::new(vec![process]),
        breakpoints: Part::new(vec![Breakpoint { last_hits: vec![hit], ..row("a") }]),
        page_tables: Part::new(vec![table]),
        faults: Part::new(vec![fault()]),
        events: Part::new(vec![Event {
            seq: 0,
            at_ns: 0,
            kind: EventKind::Vm,
            vcpu: None,
            pid: None,
            process: String::new(),
            text: String::new(),
        }]),
        unavailable: Part::new(vec![Unavailable { what: Capability::Views, why: String::new() }]),
        detail: Some(Arc::new(detail)),
        ..Snapshot::default()
    }
}

fn fault() -> Fault {
    Fault {
        id: FaultId(1),
        address: Va(0),
        root: Default::default(),
        pid: None,
        asked_by: String::new(),
        state: FaultState::Pending,
        attempts: 0,
        age_ns: 0,
        vcpu: None,
        note: String::new(),
        missing: None,
    }
}

fn names(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                found.insert(name.clone());
                names(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| names(value, found)),
        _ => {}
    }
}

#[test]
fn every_name_of_the_json_form_is_documented() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/snapshot.md")).unwrap();
    let code = vec![CodeLine::default()];
    let process = ProcessDetail {
        threads: vec![ThreadInfo::default()],
        regions: vec![Region::default()],
        modules: vec![Module::default()],
        ..ProcessDetail::default()
    };
    let details = [
        Detail::Process(process),
        Detail::Breakpoint(BreakpointDetail { breakpoint: row("a"), code: code.clone() }),
        Detail::Table(Table::default()),
        Detail::Fault(fault()),
        Detail::Memory(MemoryDetail { code, ..MemoryDetail::default() }),
        Detail::Gone(String::new()),
    ];
    let mut found = BTreeSet::new();
    for detail in details {
        let text = json(&full(detail)).unwrap();
        assert!(text.ends_with("}\n"));
        names(&serde_json::from_str(&text).unwrap(), &mut found);
    }
    let missing: Vec<_> = found.iter().filter(|name| !document.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/snapshot.md does not name {missing:?}");
    assert!(document.contains(&format!("| `schema` | {SCHEMA} |")));
}

/// Runs the program itself in a folder of its own.
fn vmscope(arguments: &[&str], folder: &Path) -> Output {
    let mut command = process::Command::new(env!("CARGO_BIN_EXE_vmscope"));
    command.args(arguments).current_dir(folder).env("XDG_CONFIG_HOME", folder.join("config")).env("HOME", folder);
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn the_built_in_guest_lives_the_same_life_twice() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    let live = |name: &str| {
        let shots = ["txt", "ansi", "svg", "png", "json"].map(|extension| format!("{name}.{extension}"));
        let keys = "2 a 'nt!NtCreateFile' enter wait:hits>=3 space 1 j enter wait:50ms";
        let mut arguments = vec!["demo", "--seed", "7", "--ticks", "400", "--headless", "--keys", keys];
        shots.iter().for_each(|shot| arguments.extend(["--screenshot", shot]));
        let output = vmscope(&arguments, folder.path());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        shots.map(|shot| read(&shot))
    };
    assert!(live("first") == live("second"));
}

#[test]
fn a_breakpoint_in_the_built_in_guest_is_hit_and_taken_out() {
    let folder = tempfile::tempdir().unwrap();
    let keys = "2 a 'nt!NtCreateFile' enter wait:hits>=3 space";
    let output = vmscope(&["demo", "--headless", "--keys", keys, "--screenshot", "out.json"], folder.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&std::fs::read(folder.path().join("out.json")).unwrap()).unwrap();
    let breakpoint = &json["breakpoints"][0];
    assert_eq!(breakpoint["state"], "disabled");
    let hits = breakpoint["last_hits"].as_array().unwrap();
    assert!(hits.len() >= 3 && hits.iter().all(|hit| hit["process"].as_str().is_some_and(|name| !name.is_empty())));
}

#[test]
fn the_next_key_is_about_what_was_just_added() {
    let folder = tempfile::tempdir().unwrap();
    let keys =
        "2 a 'nt!NtCreateFile' enter a 'nt!NtClose' enter space 3 a 'nt!NtCreateFile' enter a 'nt!NtClose' enter d";
    let output =
        vmscope(&["demo", "--ticks", "100", "--headless", "--keys", keys, "--screenshot", "out.json"], folder.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&std::fs::read(folder.path().join("out.json")).unwrap()).unwrap();
    let states = json["breakpoints"].as_array().unwrap().iter().map(|row| (&row["symbol"], &row["state"]));
    let (first, second) = (("nt!NtCreateFile".into(), "active".into()), ("nt!NtClose".into(), "disabled".into()));
    assert_eq!(states.collect::<Vec<_>>(), [(&first.0, &first.1), (&second.0, &second.1)]);
    let tables = json["page_tables"].as_array().unwrap().iter().map(|row| &row["address"]);
    assert_eq!(tables.collect::<Vec<_>>(), [&json["breakpoints"][0]["address"]]);
}

#[test]
fn a_process_of_the_kernels_has_no_command_line_and_the_kernels_modules() {
    let folder = tempfile::tempdir().unwrap();
    let keys = "wait:processes>=10 / 'System' enter enter";
    let said = |shot: &str| {
        let output =
            vmscope(&["demo", "--ticks", "100", "--headless", "--keys", keys, "--screenshot", shot], folder.path());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read_to_string(folder.path().join(shot)).unwrap()
    };
    let text = said("out.txt");
    assert!(text.contains("command line    none: it runs in the kernel"), "{text}");
    assert!(text.contains("S-1-5-18 SYSTEM") && !text.contains("not mapped"), "{text}");
    let json: Value = serde_json::from_str(&said("out.json")).unwrap();
    let detail = &json["detail"]["process"];
    assert_eq!((&detail["command_line"], &detail["modules"][0]["name"]), (&"".into(), &"ntoskrnl.exe".into()));
}

#[test]
fn wrong_use_is_one_sentence_and_status_2() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    at("broken.toml", "text = [");
    at("keys.toml", "[keys]\nquit = 'z'\n");
    at("unknown.toml", "colour = 'red'\n");
    for (arguments, said) in [
        (["--theme", "nosuch"], "nosuch"),
        (["--theme", "broken.toml"], "broken.toml"),
        (["--config", "nosuch.toml"], "nosuch.toml"),
        (["--config", "keys.toml"], "bound to both"),
        (["--config", "unknown.toml"], "colour"),
        (["--size", "0x0"], "not a screen size"),
        (["--until", "hots>=1"], "not a counter"),
    ] {
        let output = vmscope(&[&["--headless"], &arguments[..]].concat(), folder.path());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
}

#[test]
fn what_cannot_be_started_is_one_sentence_and_status_1() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, said) in [
        (&["qemu", "--qmp", "unix:nosuch.sock", "--headless"][..], "nosuch.sock"),
        (&["demo", "--headless", "--log-file", "no/such/folder/log"][..], "no/such/folder/log"),
        (&["demo", "--headless", "--ticks", "20", "--keys", "wait:hits>=1"][..], "hits>=1"),
    ] {
        let output = vmscope(arguments, folder.path());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(text.contains(said) && text.lines().count() == 1, "{arguments:?}: {text}");
    }
}
