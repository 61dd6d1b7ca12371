//! The engine's thread: it owns driver, session and monitor; commands go in, snapshots come out.
//!
//! [`attach_demo`] and [`attach_qemu`] begin to open a guest and hand back the screen's end, which tells when the guest
//! is open, or why it cannot be opened; [`start_demo`] and [`start_qemu`] wait for that. Whatever ends the engine later is
//! a state that the last snapshot shows. This is the only place that knows all drivers.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{
    addr::{Gfn, VcpuId, View},
    arch::amd64::{Amd64, Amd64Registers},
    bpm::{BreakpointController, DebugController},
    command::{Attaching, Command, Done, Engine, Leaving, Request, Target},
    driver::{
        VmiDriver,
        qemu::{QemuDriver, QemuOptions, patience},
        sim::{SimDriver, SimOptions},
    },
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
    faults::InjectFaults,
    monitor::{Channels, Ended, Monitor, MonitorOptions, Platform, second_level},
    os::{VmiOs, linux::LinuxOs, windows::WindowsOs},
    profile::Profile,
    ptm::{Unguarded, WriteProtect},
    session::{Limits, VmiCore, VmiSession},
    snapshot::{Guest, SCHEMA, Snapshot, Status, clean},
};

/// How many commands may wait.
const COMMANDS: usize = 256;
/// How long it may take to open a guest and to set the first breakpoints in it. It is the time for all of that: each
/// answer on the way has a shorter one.
const ATTACH_TIME: Duration = Duration::from_secs(60);
/// What is left of it for the first breakpoints, however long the guest's kernel was looked for.
const START_TIME: Duration = Duration::from_secs(20);
/// How often a guest whose kernel is not up yet is looked at again.
const KERNEL_WAIT: Duration = Duration::from_millis(250);

/// What every kind of guest is started with.
#[derive(Clone, Debug, Default)]
pub struct StartOptions {
    /// Whether everything that changes the guest is refused, at the driver.
    pub read_only: bool,
    /// Breakpoints to set at once.
    pub breaks: Vec<Target>,
    /// Addresses to monitor at once.
    pub watches: Vec<Target>,
    /// Hits a second above which a breakpoint is taken out; `None` is what suits the driver.
    pub storm_limit: Option<u32>,
    /// A file of facts on the guest's kernel, where they cannot be found in it.
    pub profile: Option<PathBuf>,
}

/// The built-in guest.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Everything that happens in it follows from this number.
    pub seed: u64,
    /// How many processes it starts with; `None` is what its model has.
    pub processes: Option<u32>,
    /// Whether it runs in virtual time, as far as [`Command::Advance`] says.
    pub lock_step: bool,
}

impl Platform for SimDriver {
    const KIND: &'static str = "demo";
    const TABLE_POLL: Option<Duration> = None;
    const REPORTS_SWITCHES: bool = true;
    const VCPU_POLL: Duration = Duration::from_millis(33);
    type Tap = BreakpointController<Self>;
    type Guard = WriteProtect;
    type Delivery = InjectFaults;

    fn storm_limit(_: &VmiCore<Self>) -> u32 {
        20_000
    }
    fn enter(vmi: &VmiCore<Self>) -> Result<View, VmiError> {
        second_level::enter(vmi)
    }
    fn leave(vmi: &VmiCore<Self>, view: View) -> Result<(), VmiError> {
        second_level::leave(vmi, view)
    }
    fn is_left_over(tap: &Self::Tap, vmi: &VmiCore<Self>, event: &VmiEvent<Amd64>) -> bool {
        tap.is_left_over(vmi, event)
    }
    fn guest_wrote(tap: &mut Self::Tap, vmi: &VmiCore<Self>, gfn: Gfn) -> Result<(), VmiError> {
        tap.guest_wrote(vmi, gfn).map(|_| ())
    }
    fn step_over(vmi: &VmiCore<Self>) -> VmiEventResponse<Amd64> {
        VmiEventResponse::fast_singlestep(vmi.default_view())
    }
    fn step_and_tell(vmi: &VmiCore<Self>) -> VmiEventResponse<Amd64> {
        VmiEventResponse::singlestep().with_view(vmi.default_view())
    }
    fn stepped(view: View) -> VmiEventResponse<Amd64> {
        VmiEventResponse::default().with_view(view)
    }
}

impl Platform for QemuDriver {
    const KIND: &'static str = "qemu";
    /// Memory is mapped or read from the process: a poll stops nothing, a watchpoint would stop the guest for 10 ms.
    const TABLE_POLL: Option<Duration> = Some(Duration::from_millis(20));
    const REPORTS_SWITCHES: bool = false;
    const VCPU_POLL: Duration = Duration::from_millis(250);
    type Tap = DebugController<Self>;
    type Guard = Unguarded;
    type Delivery = InjectFaults;

    fn hit_cost(vmi: &VmiCore<Self>) -> Option<Duration> {
        Some(vmi.event_processing_overhead()).filter(|cost| !cost.is_zero())
    }
    /// The rate at which the guest stands half of the time, by what its hits have cost so far.
    fn storm_limit(vmi: &VmiCore<Self>) -> u32 {
        let stands = vmi.event_processing_overhead().as_nanos().max(1);
        u32::try_from(500_000_000 / stands).unwrap_or(u32::MAX).clamp(20, 20_000)
    }
    fn enter(_: &VmiCore<Self>) -> Result<View, VmiError> {
        Ok(View::default())
    }
    fn leave(_: &VmiCore<Self>, _: View) -> Result<(), VmiError> {
        Ok(())
    }
    /// The stub reports its own breakpoints only: what is unknown was removed.
    fn is_left_over(_: &Self::Tap, _: &VmiCore<Self>, _: &VmiEvent<Amd64>) -> bool {
        true
    }
    /// The stub's breakpoints are not in guest memory.
    fn guest_wrote(_: &mut Self::Tap, _: &VmiCore<Self>, _: Gfn) -> Result<(), VmiError> {
        Ok(())
    }
    /// The stub steps over its own breakpoints.
    fn step_over(_: &VmiCore<Self>) -> VmiEventResponse<Amd64> {
        VmiEventResponse::default()
    }
    fn step_and_tell(_: &VmiCore<Self>) -> VmiEventResponse<Amd64> {
        VmiEventResponse::default()
    }
    fn stepped(_: View) -> VmiEventResponse<Amd64> {
        VmiEventResponse::default()
    }
}

/// Starts the built-in guest and its engine.
///
/// # Errors
/// One sentence: what was tried, why it failed, what to do.
pub fn start_demo(demo: DemoOptions, start: StartOptions) -> Result<Engine, String> {
    opened(attach_demo(demo, start)?)
}

/// Waits until the guest is open.
fn opened(attaching: Attaching) -> Result<Engine, String> {
    match attaching.opened.recv() {
        Ok(opened) => opened.map(|()| attaching.engine),
        Err(_) => Err("the engine ended before the guest was open".into()),
    }
}

/// Begins to start the built-in guest and its engine.
///
/// # Errors
/// One sentence, when that cannot even begin.
pub fn attach_demo(demo: DemoOptions, start: StartOptions) -> Result<Attaching, String> {
    let profile = match &start.profile {
        Some(path) => {
            Profile::parse(&read_profile(path)?).map_err(|error| format!("profile {}: {error}", path.display()))?
        }
        None => Profile::builtin().map_err(|error| error.to_string())?,
    };
    let model = SimOptions::default();
    let options = SimOptions {
        seed: demo.seed,
        processes: demo.processes.map_or(model.processes, |processes| processes as usize),
        real_time: !demo.lock_step,
        read_only: start.read_only,
        ..model
    };
    spawn(
        start,
        demo.lock_step,
        move || SimDriver::new(options),
        move |core| {
            let registers = core.registers(VcpuId(0))?;
            WindowsOs::detect(core, &registers, profile.clone())
        },
    )
}

/// Attaches to a QEMU guest and starts an engine on it.
///
/// # Errors
/// As [`start_demo`].
pub fn start_qemu(qemu: QemuOptions, start: StartOptions) -> Result<Engine, String> {
    opened(attach_qemu(qemu, start)?)
}

/// Begins to attach to a QEMU guest.
///
/// # Errors
/// As [`attach_demo`].
pub fn attach_qemu(qemu: QemuOptions, start: StartOptions) -> Result<Attaching, String> {
    let profile = start.profile.as_deref().map(read_profile).transpose()?;
    let qemu = QemuOptions { read_only: start.read_only, ..qemu };
    spawn(
        start,
        false,
        move || QemuDriver::attach(qemu),
        move |core| {
            let mut last = VmiError::os("the guest has no vCPU");
            let mut seen_paging = false;
            // A vCPU may be anywhere, in its boot loader or in user mode; one that shows the kernel is enough.
            for vcpu in core.driver().vcpu_ids() {
                let registers: Amd64Registers = match core.registers(vcpu) {
                    Ok(registers) => registers,
                    Err(error @ VmiError::Lost(_)) => return Err(error),
                    // Unplugged in between.
                    Err(error) => {
                        last = error;
                        continue;
                    }
                };
                match LinuxOs::detect(core, &registers, profile.as_deref()) {
                    Ok(os) => return Ok(os),
                    // One that pages tells more of the system than one that was never started.
                    Err(error) => {
                        let pages = registers.cr0 & (1 << 31) != 0;
                        if pages || !seen_paging {
                            last = error;
                        }
                        seen_paging |= pages;
                    }
                }
            }
            Err(last)
        },
    )
}

fn read_profile(path: &std::path::Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("could not read the profile {}: {error}", path.display()))
}

/// The time and the will that there are for attaching.
#[derive(Clone, Debug)]
struct Patience {
    until: Instant,
    leaving: Leaving,
}

impl Patience {
    fn begin() -> Self {
        Self { until: Instant::now() + ATTACH_TIME, leaving: Leaving::new() }
    }

    /// Does what belongs to attaching.
    fn attach<T>(&self, least: Duration, work: impl FnOnce() -> T) -> T {
        let left = self.until.saturating_duration_since(Instant::now()).max(least);
        self.until_left(|| patience::at_most(left, "attaching to the guest", work))
    }

    /// Does something that may last as long as the user likes.
    fn until_left<T>(&self, work: impl FnOnce() -> T) -> T {
        patience::until_left(&self.leaving, work)
    }
}

/// Runs an engine on a thread of its own.
fn spawn<D, Os>(
    start: StartOptions,
    lock_step: bool,
    open: impl FnOnce() -> Result<D, VmiError> + Send + 'static,
    detect: impl Fn(&VmiCore<D>) -> Result<Os, VmiError> + Send + 'static,
) -> Result<Attaching, String>
where
    D: Platform,
    Os: VmiOs<D>,
{
    let first = Snapshot {
        schema: SCHEMA,
        driver: D::KIND,
        read_only: start.read_only,
        notice: Some("opening the guest".into()),
        ..Snapshot::default()
    };
    let snapshot = Arc::new(ArcSwap::from_pointee(first));
    let patience = Patience::begin();
    let leaving = patience.leaving.clone();
    let (requests, commands) = bounded(COMMANDS);
    let (ping, changed) = bounded(1);
    let (opened, is_open) = bounded::<Result<(), String>>(1);
    let channels = Channels { snapshot: Arc::clone(&snapshot), changed: ping, requests: commands };
    let options = MonitorOptions {
        read_only: start.read_only,
        lock_step,
        breaks: start.breaks,
        watches: start.watches,
        storm_limit: start.storm_limit,
    };
    let thread = thread::Builder::new().name("engine".into()).spawn(move || {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let core = match patience.attach(Duration::ZERO, || open().and_then(VmiCore::new)) {
                Ok(core) => core,
                Err(error) => {
                    let _ = opened.send(Err(error.to_string()));
                    return Ok(());
                }
            };
            run(&core, options, channels.clone(), &patience, &detect, &opened)
        }));
        let notice = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => clean(&error, 2000),
            Err(panic) => {
                let why = clean(panic_text(panic.as_ref()), 200);
                format!("the engine failed inside ({why}); the guest was left running")
            }
        };
        tracing::error!("{notice}");
        let mut last = Snapshot::clone(&channels.snapshot.load());
        last.status = Status::Lost;
        last.notice = Some(notice.as_str().into());
        channels.snapshot.store(Arc::new(last));
        let _ = opened.send(Err(notice));
        let _ = channels.changed.try_send(());
    });
    thread.map_err(|error| format!("could not start the engine's thread: {error}"))?;
    Ok(Attaching { engine: Engine { snapshot, requests, changed, leaving }, opened: is_open })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

/// The life of an engine on an open guest.
fn run<D, Os>(
    core: &VmiCore<D>,
    options: MonitorOptions,
    channels: Channels,
    patience: &Patience,
    detect: &impl Fn(&VmiCore<D>) -> Result<Os, VmiError>,
    opened: &Sender<Result<(), String>>,
) -> Result<(), String>
where
    D: Platform,
    Os: VmiOs<D>,
{
    let info = core.info().map_err(|error| error.to_string())?;
    let mut first = Snapshot {
        schema: SCHEMA,
        driver: D::KIND,
        read_only: options.read_only,
        status: Status::Attaching,
        taken_at_ns: core.driver().clock_ns(),
        ..Snapshot::default()
    };
    first.guest.set(Guest {
        name: info.name,
        os: "unknown".into(),
        vcpus: info.vcpus,
        memory_bytes: info.memory_bytes,
        ..Guest::default()
    });
    // What can be done with the machine is known before its kernel is.
    let (capabilities, unavailable) = core.driver().capabilities();
    first.capabilities.set(capabilities);
    first.unavailable.set(unavailable);
    first.notice = Some("looking for the guest's kernel, and setting the first breakpoints".into());
    channels.snapshot.store(Arc::new(first.clone()));
    let _ = channels.changed.try_send(());
    first.notice = None;
    let commands = channels.requests.clone();
    let awaited = commands.clone();
    core.set_waits(move || !awaited.is_empty());
    let mut monitor = Monitor::new(options, channels, first);
    loop {
        let Some(os) = find_kernel(core, &mut monitor, &commands, patience, detect, opened)? else { return Ok(()) };
        let session = VmiSession::new(core, &os);
        let started = patience.attach(START_TIME, || monitor.start(session));
        match started {
            Ok(()) => {
                let _ = opened.try_send(Ok(()));
            }
            // A monitor that could not start takes back what it had set.
            Err(_) => monitor.stop(),
        }
        let handled = session.handle(&mut monitor);
        match (started, handled) {
            (Ok(()), Ok(Some(Ended::Reset))) => monitor.forget_kernel(core),
            // Who leaves asks for nothing any more.
            (Err(_), Ok(_)) if patience.leaving.is_wanted() => return Ok(()),
            (Err(why), _) => return Err(why),
            (Ok(()), handled) => return handled.map(|_| ()).map_err(|error| error.to_string()),
        }
    }
}

/// Looks for the guest's kernel until it is there; `None` when the user leaves before.
fn find_kernel<D, Os>(
    core: &VmiCore<D>,
    monitor: &mut Monitor<D, Os>,
    commands: &Receiver<Request>,
    patience: &Patience,
    detect: &impl Fn(&VmiCore<D>) -> Result<Os, VmiError>,
    opened: &Sender<Result<(), String>>,
) -> Result<Option<Os>, String>
where
    D: Platform,
    Os: VmiOs<D>,
{
    loop {
        core.flush_gfn_cache();
        core.flush_v2p_cache();
        monitor.begin_seeking(core);
        // For the registers of all vCPUs together.
        core.begin_round(Limits::search(core.usual_limits()));
        let detected = match core.driver().lost() {
            Some(why) => Err(VmiError::Lost(why)),
            None => patience.until_left(|| detect(core)),
        };
        match detected {
            Ok(os) => return Ok(Some(os)),
            Err(error @ VmiError::Lost(_)) => return Err(error.to_string()),
            Err(error) => {
                let _ = opened.try_send(Ok(()));
                monitor.seek(core, &error.to_string());
            }
        }
        match commands.recv_timeout(KERNEL_WAIT) {
            Ok(mut request) => loop {
                let answer = match request.command {
                    Command::Quit | Command::StandBy | Command::ComeBack => Ok(Done::Quiet),
                    // One that was not started, or was paused by somebody, has no other way to its kernel.
                    Command::Resume => monitor.resume_without_kernel(core),
                    _ => Err("the guest's kernel is not found yet: wait until it has booted".to_owned()),
                };
                let _ = request.answer.send(answer);
                match request.command {
                    Command::Quit => return Ok(None),
                    // Nothing is done while the process is stopped.
                    Command::StandBy => match commands.recv() {
                        Ok(next) => request = next,
                        Err(_) => return Ok(None),
                    },
                    _ => break,
                }
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// An engine whose search for the kernel panics the `nth` time, and finds nothing before.
    fn fragile(nth: u32) -> Result<Engine, String> {
        let asked = AtomicU32::new(0);
        let open = || SimDriver::new(SimOptions::default());
        let search = move |_: &VmiCore<SimDriver>| -> Result<WindowsOs, VmiError> {
            assert!(asked.fetch_add(1, Ordering::Relaxed) < nth, "on\u{1b} purpose");
            Err(VmiError::os("nothing there"))
        };
        opened(spawn(StartOptions::default(), false, open, search)?)
    }

    #[test]
    fn an_engine_that_panics_before_the_guest_is_open_is_an_error() {
        let error = fragile(0).expect_err("it panics");
        assert!(error.contains("failed inside (on\u{241b} purpose)"), "{error}");
    }

    #[test]
    fn an_engine_that_panics_later_leaves_a_snapshot_that_says_lost() {
        let engine = fragile(2).expect("a guest without a kernel yet is open");
        // Until the engine's end of the channel is gone; whoever asks something then is told by the channel.
        while engine.changed.recv().is_ok() {}
        let last = engine.snapshot.load();
        assert_eq!(last.status, Status::Lost);
        let notice = last.notice.as_deref().unwrap_or_default();
        assert!(notice.contains("on\u{241b} purpose") && notice.contains("left running"), "{notice}");
        assert_eq!(last.guest.vcpus, 2, "what was seen stays to be looked at");
        let (answer, answered) = bounded(1);
        let sent = engine.requests.send(super::super::command::Request { command: Command::Refresh, answer });
        assert!(sent.is_err() || answered.recv().is_err(), "nobody answers, and nobody waits for ever");
    }
}
