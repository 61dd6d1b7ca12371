//! A guest that is reset under the engine: the monitor leaves the old kernel, finds the new one and sets its rows again.

use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use vmscope::engine::{
    addr::VcpuId,
    arch::amd64::Amd64,
    command::{Answer, Command, Request, Target},
    driver::{
        VmiDriver,
        sim::{SimDriver, SimOptions},
    },
    event::VmiEventResponse,
    monitor::{Channels, Ended, Monitor, MonitorOptions},
    os::windows::{Profile, WindowsOs},
    session::{Interrupted, VmiContext, VmiCore, VmiHandler, VmiSession},
    snapshot::{BreakpointState, EventKind, Scope, Snapshot, Status},
};

type Watched = Monitor<SimDriver, WindowsOs>;
type Session<'a> = VmiSession<'a, SimDriver, WindowsOs>;

/// A monitor, and something that happens while it runs.
struct Meanwhile<'a, F> {
    monitor: &'a mut Watched,
    happens: F,
}

impl<F: FnMut(Session<'_>)> VmiHandler<SimDriver, WindowsOs> for Meanwhile<'_, F> {
    type Output = Ended;

    fn poll(&mut self, vmi: Session<'_>) -> Option<Ended> {
        (self.happens)(vmi);
        self.monitor.poll(vmi)
    }

    fn handle_event(&mut self, vmi: VmiContext<'_, SimDriver, WindowsOs>) -> VmiEventResponse<Amd64> {
        self.monitor.handle_event(vmi)
    }

    fn handle_interrupted(&mut self, vmi: Session<'_>) -> Interrupted {
        self.monitor.handle_interrupted(vmi)
    }

    fn timeout(&self) -> Option<std::time::Duration> {
        self.monitor.timeout()
    }

    fn cleanup(&mut self, vmi: Session<'_>) {
        self.monitor.cleanup(vmi);
    }
}

/// The screen's end of the engine.
struct Screen {
    snapshot: Arc<ArcSwap<Snapshot>>,
    requests: Sender<Request>,
    _changed: Receiver<()>,
}

impl Screen {
    fn ask(&self, command: Command) -> Receiver<Answer> {
        let (answer, answered) = bounded(1);
        self.requests.send(Request { command, answer }).expect("the monitor listens");
        answered
    }

    fn breakpoint(&self, place: &str) -> Receiver<Answer> {
        let target = Target::parse(place).expect("a place");
        self.ask(Command::AddBreakpoint { target, scope: Scope::Global, tag: place.to_owned() })
    }

    fn now(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }
}

fn monitor() -> (Watched, Screen) {
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (requests, commands) = unbounded();
    let (ping, changed) = bounded(1);
    let channels = Channels { snapshot: Arc::clone(&snapshot), changed: ping, requests: commands };
    let monitor = Monitor::new(MonitorOptions::default(), channels, Snapshot::default());
    (monitor, Screen { snapshot, requests, _changed: changed })
}

fn detect(core: &VmiCore<SimDriver>) -> WindowsOs {
    core.flush_gfn_cache();
    core.flush_v2p_cache();
    let registers = core.registers(VcpuId(0)).expect("a vCPU");
    WindowsOs::detect(core, &registers, Profile::builtin().expect("compiled in")).expect("a Windows")
}

/// Runs the monitor on the kernel of now, with something that happens before each wait.
fn run(core: &VmiCore<SimDriver>, monitor: &mut Watched, happens: impl FnMut(Session<'_>)) -> Ended {
    monitor.begin_seeking(core);
    let os = detect(core);
    let session = VmiSession::new(core, &os);
    monitor.start(session).expect("it starts");
    session.handle(Meanwhile { monitor, happens }).expect("no error").expect("an end")
}

#[test]
fn a_reset_leaves_the_old_kernel_and_sets_its_rows_in_the_new_one() {
    let core = VmiCore::new(SimDriver::new(SimOptions::default()).expect("boots")).expect("a machine");
    let (mut monitor, screen) = monitor();
    let lsass = core.driver().processes().into_iter().find(|process| process.name == "lsass.exe").expect("runs");
    let answers = [
        screen.breakpoint("nt!NtCreateFile"),
        screen.breakpoint("nt!NtVdmControl"),
        screen.breakpoint(&format!("0x10000@{}", lsass.pid)),
        screen.ask(Command::WatchAddress {
            target: Target::parse("nt!NtBuildNumber").expect("a place"),
            tag: "build".into(),
        }),
        screen.ask(Command::WatchAddress {
            target: Target::parse(&format!("0x20000@{}", lsass.pid)).expect("a place"),
            tag: String::new(),
        }),
    ];
    let mut off = false;
    let ended = run(&core, &mut monitor, |vmi| {
        let snapshot = screen.now();
        if let Some(row) = snapshot.breakpoints.get(1).filter(|_| !off) {
            screen.ask(Command::ToggleBreakpoint(row.id));
            off = true;
        }
        let hits = snapshot.breakpoints.first().map_or(0, |row| row.hits);
        let is_off = snapshot.breakpoints.get(1).is_some_and(|row| row.state == BreakpointState::Disabled);
        if hits >= 3 && is_off && vmi.driver().resets() == 0 {
            vmi.driver().press_reset().expect("boots");
        }
    });
    assert_eq!(ended, Ended::Reset);
    for answer in answers {
        answer.recv().expect("an answer").expect("it was set");
    }
    let before = screen.now();

    monitor.forget_kernel(&core);
    monitor.seek(&core, "it boots");
    let waiting = screen.now();
    assert_eq!(waiting.status, Status::Attaching);
    assert_eq!(waiting.notice.as_deref(), Some("the guest was reset; no kernel found yet, looking again: it boots"));
    assert!(waiting.processes.is_empty());
    let states: Vec<_> = waiting.breakpoints.iter().map(|row| (row.state, row.pa)).collect();
    assert_eq!(
        states,
        [(BreakpointState::Pending, None), (BreakpointState::Disabled, None), (BreakpointState::Ended, None)]
    );
    let why = format!("ended: its process {} (lsass.exe) is gone: the guest was reset", lsass.pid);
    assert_eq!(waiting.breakpoints[2].error.as_ref(), Some(&why));
    let ended: Vec<_> = waiting.page_tables.iter().map(|row| row.ended.as_ref()).collect();
    assert_eq!(ended, [None, Some(&why)]);
    let told = |s: &Snapshot, what: &str| s.events.iter().any(|e| e.kind == EventKind::Vm && e.text.contains(what));
    assert!(told(&waiting, "the guest was reset"));

    let hits = before.breakpoints[0].hits;
    let toggled = screen.ask(Command::ToggleBreakpoint(waiting.breakpoints[2].id));
    let mut quit = false;
    let ended = run(&core, &mut monitor, |_| {
        let row = screen.now().breakpoints[0].hits;
        if row >= hits + 3 && !quit {
            quit = true;
            screen.ask(Command::Quit);
        }
    });
    let refused = toggled.recv().expect("an answer").expect_err("its process is gone");
    assert!(refused.contains(&why) && refused.contains("delete it"), "{refused}");
    assert_eq!(ended, Ended::Asked);
    let after = screen.now();
    assert_eq!((after.status, after.notice.as_deref()), (Status::Running, None));
    assert!(told(&after, "the kernel was found again") && told(&after, "1 breakpoint is set again"));
    assert_ne!(after.guest.kernel_base, before.guest.kernel_base);
    for (old, new) in before.breakpoints.iter().zip(after.breakpoints.iter()).take(2) {
        assert_eq!((old.id, &old.symbol, &old.tag, old.state), (new.id, &new.symbol, &new.tag, new.state));
        assert_ne!(old.address, new.address, "the kernel is somewhere else");
        assert_eq!(after.symbols.lookup(&new.symbol), Some(new.address));
    }
    assert!(after.breakpoints[0].pa.is_some());
    let table = &after.page_tables[0];
    assert_eq!((table.symbol.as_str(), table.tag.as_str(), table.paged_in), ("nt!NtBuildNumber", "build", true));
    assert!(!after.processes.is_empty());
    assert!(after.processes.iter().all(|process| process.object != lsass.object || process.name == "lsass.exe"));
    assert_eq!(core.driver().tamper_count(), 0, "the new kernel found nothing of ours in its code");
}

#[test]
fn a_paused_guest_is_left_alone_until_it_runs() {
    let core = VmiCore::new(SimDriver::new(SimOptions::default()).expect("boots")).expect("a machine");
    let (mut monitor, screen) = monitor();
    screen.ask(Command::Pause);
    let mut rounds = 0;
    let ended = run(&core, &mut monitor, |vmi| {
        rounds += 1;
        match rounds {
            2 => vmi.driver().press_reset().expect("boots"),
            5 => drop(screen.ask(Command::Resume)),
            6 => panic!("the reset was not noticed"),
            _ => {}
        }
    });
    assert_eq!((ended, rounds), (Ended::Reset, 5));
}
