//! The monitor: the session's handler, which composes everything below it and serves the screen.
//!
//! `answer` answers the guest's events, `command` applies what the user asks between events, `refresh` reads processes,
//! vCPUs and page tables again, `owners` knows whose a row is, `exec_exit` what becomes of it with its process, `publish`
//! makes snapshots of it all, `reset` goes over to the kernel that a guest runs after a reset. What differs between drivers
//! is [`Platform`].
//! Imports everything in the engine but the worker.

mod ages;
mod answer;
mod command;
mod detail;
mod disasm;
mod exec_exit;
mod kernel_watch;
mod log;
mod machine;
mod missing;
mod modules;
mod owners;
mod platform;
mod publish;
mod refresh;
mod reset;
mod resolve;
mod rows;
mod search;
mod standby;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use indexmap::IndexMap;

pub(in crate::engine) use self::platform::second_level;
pub use self::platform::{Platform, STORM_SECONDS};

use self::{
    ages::Reads,
    kernel_watch::KernelWatch,
    log::EventLog,
    missing::Returns,
    owners::Owners,
    publish::Publisher,
    refresh::Due,
    rows::{BreakpointRow, TableRow},
    search::Search,
    standby::Standby,
};
use super::{
    addr::{AddressContext, Gfn, VcpuId, View},
    arch::amd64::Amd64,
    bpm::BreakpointManager,
    command::{Answer, Command, Done, Request, Subject, Target},
    error::VmiError,
    event::VmiEventResponse,
    faults::{Delivers, FaultLoop, FaultPolicy},
    os::VmiOs,
    ptm::PageTableMonitor,
    session::{Interrupted, VmiContext, VmiHandler, VmiSession},
    snapshot::{BreakpointId, Detail, Process, Run, Scope, Snapshot, TableId},
};

/// The longest wait for an event: a command is answered within a frame.
const WAIT: Duration = Duration::from_millis(10);

/// The same while a search is under way, which goes on in between.
const SEARCH_WAIT: Duration = Duration::from_millis(2);

/// What the engine's user may set before it starts.
#[derive(Clone, Debug, Default)]
pub struct MonitorOptions {
    /// Whether everything that changes the guest is refused.
    pub read_only: bool,
    /// Whether the guest runs only as far as [`Command::Advance`] says.
    pub lock_step: bool,
    /// Breakpoints to set at once.
    pub breaks: Vec<Target>,
    /// Addresses to monitor at once.
    pub watches: Vec<Target>,
    /// Hits a second above which a breakpoint is taken out, so that neither guest nor screen freezes; `None` is the
    /// driver's own ([`Platform::storm_limit`]).
    pub storm_limit: Option<u32>,
}

/// The engine's ends of the queues that lead to the screen.
#[derive(Clone, Debug)]
pub struct Channels {
    /// Where snapshots are published.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Pinged after each.
    pub changed: Sender<()>,
    /// Commands.
    pub requests: Receiver<Request>,
}

/// What a breakpoint in the manager is there for; each purpose has its own at any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Purpose {
    /// A row of the user's.
    Row,
    /// The guest's exception dispatch, while pages are injected.
    Refusal,
    /// Where a thread returns to user mode, whose process a page waits for.
    Return,
}

/// Why an address is monitored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Watcher {
    /// A row of the user's.
    Row,
    /// A breakpoint that arms and disarms with its page.
    Breakpoint,
    /// A missing page.
    Fault,
}

/// A vCPU that is executing one instruction outside of our view.
#[derive(Clone, Copy, Debug)]
struct Step {
    view: View,
    /// The frame that the instruction writes to.
    gfn: Gfn,
}

/// Why the monitor has ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Asked,
    /// The guest was reset, or its kernel was replaced by another: see [`Monitor::forget_kernel`].
    Reset,
}

/// Composes breakpoints, page tables, faults and an OS layer on one guest, and serves the screen.
pub struct Monitor<D: Platform, Os: VmiOs<D>> {
    options: MonitorOptions,
    requests: Receiver<Request>,
    publisher: Publisher,
    log: EventLog,
    bpm: BreakpointManager<D::Tap, Purpose, BreakpointId>,
    ptm: PageTableMonitor<D, Watcher, D::Guard>,
    faults: FaultLoop<D::Delivery>,
    breakpoints: IndexMap<BreakpointId, BreakpointRow>,
    tables: IndexMap<TableId, TableRow>,
    next_row: u64,
    view: Option<View>,
    steps: HashMap<VcpuId, Step>,
    processes: Vec<Process>,
    seen_processes: bool,
    /// Ids of process and thread.
    hidden_threads: Vec<(u32, u32)>,
    /// Pauses of the user's: 0 or 1.
    paused: bool,
    /// How the guest was when that was last told.
    last_run: Run,
    subject: Option<Subject>,
    detail: Option<Arc<Detail>>,
    search: Option<Search>,
    refusal_at: Option<AddressContext>,
    returns: Returns,
    owners: Owners,
    /// Whether switches of address spaces are reported, because a page waits for one.
    follows_cr3: bool,
    /// How many more instructions a vCPU is followed on its way to user mode.
    followed: HashMap<VcpuId, u32>,
    due: Due,
    /// In lock-step: the clock at which the guest stops until the next [`Command::Advance`], and who waits for it.
    advance: Option<(u64, Sender<Answer>)>,
    /// On the way to standing by while the process is stopped.
    standby: Option<Standby>,
    /// How long the next wait for an event may last.
    wait: Duration,
    quit: bool,
    /// Resets of the guest when its kernel was looked for, and whether there was another kernel before.
    resets: u64,
    was_reset_before: bool,
    /// What has become of the kernel before, as a sentence.
    lost_by: &'static str,
    kernel: KernelWatch,
    reads: Reads,
    os: std::marker::PhantomData<Os>,
}

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// A monitor with nothing set; `first` is the snapshot that the attaching engine published last.
    pub fn new(options: MonitorOptions, channels: Channels, first: Snapshot) -> Self {
        Self {
            options,
            requests: channels.requests.clone(),
            publisher: Publisher::new(channels, first),
            log: EventLog::new(),
            bpm: BreakpointManager::new(),
            ptm: PageTableMonitor::default(),
            faults: fault_loop(),
            breakpoints: IndexMap::new(),
            tables: IndexMap::new(),
            next_row: 1,
            view: None,
            steps: HashMap::new(),
            processes: Vec::new(),
            seen_processes: false,
            hidden_threads: Vec::new(),
            paused: false,
            last_run: Run::default(),
            subject: None,
            detail: None,
            search: None,
            refusal_at: None,
            returns: Returns::default(),
            owners: Owners::default(),
            follows_cr3: false,
            followed: HashMap::new(),
            due: Due::default(),
            advance: None,
            standby: None,
            wait: WAIT,
            quit: false,
            resets: 0,
            was_reset_before: false,
            lost_by: reset::BY_RESET,
            kernel: KernelWatch::default(),
            reads: Reads::default(),
            os: std::marker::PhantomData,
        }
    }

    /// Reads the guest for the first time and sets what the command line asked for; after a reset, what was set before.
    ///
    /// # Errors
    /// One sentence when a breakpoint or a watch of the command line cannot be set; the guest is as it was.
    pub fn start(&mut self, vmi: VmiSession<'_, D, Os>) -> Result<(), String> {
        self.follow_machine(vmi.core());
        self.describe_guest(vmi);
        if self.was_reset_before {
            self.set_again(vmi);
        }
        self.refresh_all(vmi);
        for target in std::mem::take(&mut self.options.breaks) {
            let scope = target.pid.map_or(Scope::Global, Scope::Process);
            let set = self.add_breakpoint(vmi, target, scope, String::new());
            told(&set);
            set.map_err(|error| format!("--break: {error}"))?;
        }
        for target in std::mem::take(&mut self.options.watches) {
            let set = self.add_watch(vmi, target, String::new());
            told(&set);
            set.map_err(|error| format!("--watch: {error}"))?;
        }
        self.publish(vmi);
        Ok(())
    }

    /// Ends the session at its first poll: what was set is taken back by the teardown.
    pub fn stop(&mut self) {
        self.quit = true;
    }

    /// The view that we install things in, made when it is first needed: a session that only looks changes nothing.
    fn view(&mut self, vmi: VmiSession<'_, D, Os>) -> Result<View, VmiError> {
        match self.view {
            Some(view) => Ok(view),
            None => {
                let view = D::enter(vmi.core())?;
                self.view = Some(view);
                Ok(view)
            }
        }
    }

    /// Whether the guest has yet to run as far as the last [`Command::Advance`] said; answers that command when not.
    fn is_advancing(&mut self, vmi: VmiSession<'_, D, Os>) -> bool {
        let Some((until, answer)) = self.advance.take() else { return false };
        let left = until.saturating_sub(vmi.driver().clock_ns());
        if left > 0 && !self.paused {
            // To the tick, not beyond it: runs are told apart by the clock.
            self.wait = WAIT.min(Duration::from_nanos(left));
            self.advance = Some((until, answer));
            return true;
        }
        self.refresh_all(vmi);
        self.publish(vmi);
        // Nobody waiting for the answer is not an error.
        let _ = answer.send(Ok(Done::Quiet));
        false
    }

    /// Applies the commands that wait. In lock-step, waits for the next [`Command::Advance`].
    fn serve(&mut self, vmi: VmiSession<'_, D, Os>) {
        if self.is_standing_by(vmi) || self.is_advancing(vmi) {
            return;
        }
        loop {
            let request = if self.options.lock_step {
                // Nothing to do until somebody asks; a bounded wait, so that a lost guest is noticed.
                match self.requests.recv_timeout(Duration::from_secs(1)) {
                    Ok(request) => request,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return self.quit = true,
                }
            } else {
                match self.requests.try_recv() {
                    Ok(request) => request,
                    Err(TryRecvError::Empty) => return,
                    Err(TryRecvError::Disconnected) => return self.quit = true,
                }
            };
            let Request { command, answer } = request;
            match command {
                Command::Quit => {
                    let _ = answer.send(Ok(Done::Quiet));
                    return self.quit = true;
                }
                Command::Advance(ticks) if self.options.lock_step => {
                    let until = vmi.driver().clock_ns().saturating_add(ticks.saturating_mul(1_000_000));
                    self.advance = Some((until, answer));
                    if self.is_advancing(vmi) {
                        return;
                    }
                }
                Command::Search { pid, from, length, patterns } => {
                    self.begin_search(vmi, pid, (from, length), patterns, answer);
                }
                Command::StandBy => {
                    self.stand_by(vmi, answer);
                    if self.standby.is_some() {
                        return;
                    }
                }
                command => {
                    let result = self.apply(vmi, command);
                    told(&result);
                    self.publish(vmi);
                    // Nobody waiting for the answer is not an error.
                    let _ = answer.send(result);
                }
            }
        }
    }
}

impl<D: Platform, Os: VmiOs<D>> VmiHandler<D, Os> for Monitor<D, Os> {
    type Output = Ended;

    fn poll(&mut self, vmi: VmiSession<'_, D, Os>) -> Option<Ended> {
        if !self.quit {
            self.serve(vmi);
        }
        if self.quit {
            return Some(Ended::Asked);
        }
        if self.follow_machine(vmi.core()) {
            self.kernel.interrupted = Some(Instant::now());
            // Its kernel is looked at with the vCPUs, and now rather than later.
            self.due.vcpus = None;
        }
        if self.was_reset(vmi.core()) {
            self.lost_by = reset::BY_RESET;
            return Some(Ended::Reset);
        }
        if let Some(by) = self.kernel.replaced.take() {
            self.lost_by = by;
            return Some(Ended::Reset);
        }
        self.continue_search(vmi);
        self.refresh_due(vmi);
        if !self.options.lock_step && self.publisher.is_due() {
            self.publish_news(vmi);
        }
        None
    }

    fn handle_event(&mut self, vmi: VmiContext<'_, D, Os>) -> VmiEventResponse<Amd64> {
        if let Some(standby) = &mut self.standby {
            standby.heard = true;
        }
        self.answer(vmi)
    }

    fn handle_interrupted(&mut self, _: VmiSession<'_, D, Os>) -> Interrupted {
        self.quit = true;
        Interrupted::End
    }

    fn timeout(&self) -> Option<Duration> {
        Some(if self.search.is_some() { self.wait.min(SEARCH_WAIT) } else { self.wait })
    }

    fn cleanup(&mut self, vmi: VmiSession<'_, D, Os>) {
        let said = |what: &str, result: Result<(), VmiError>| {
            if let Err(error) = result {
                tracing::warn!(%error, "could not take {what} out of the guest");
            }
        };
        let cleared = self.bpm.clear(vmi.core());
        let is_clear = cleared.is_ok();
        said("all breakpoints", cleared);
        said("all page table monitoring", self.ptm.unmonitor_all(vmi.core()));
        if let Some(view) = self.view.take() {
            said("our view", D::leave(vmi.core(), view));
        }
        if !is_clear {
            // What the view still showed went with it, and its frames can be given back now.
            said("the rest of the breakpoints", self.bpm.clear(vmi.core()));
        }
        if std::mem::take(&mut self.paused) {
            said("the pause", vmi.core().resume());
        }
    }
}

/// The missing pages of a guest: what the user does not ask for is only waited for.
fn fault_loop<Delivery: Delivers>() -> FaultLoop<Delivery> {
    FaultLoop::new(FaultPolicy { automatic: false, ..FaultPolicy::default() })
}

/// Writes an answer to the log.
fn told(answer: &Answer) {
    match answer {
        Ok(Done::Quiet | Done::Found(..)) => {}
        Ok(Done::Said(text) | Done::Breakpoint(_, text) | Done::Table(_, text) | Done::Fault(_, text)) => {
            tracing::info!("{text}");
        }
        Err(error) => tracing::warn!("{error}"),
    }
}

/// The moment of an event: what every event line begins with.
fn now<D: Platform, Os>(vmi: VmiSession<'_, D, Os>) -> u64 {
    vmi.driver().clock_ns()
}

/// Whether a duration has passed since the last time, which then becomes now.
fn elapsed(last: &mut Option<Instant>, period: Duration) -> bool {
    let now = Instant::now();
    match last {
        Some(before) if now.duration_since(*before) < period => false,
        _ => {
            *last = Some(now);
            true
        }
    }
}
