//! Who makes the guest run and stop.
//!
//! Without the stub that is QMP's `stop` and `cont`; with it, the stub's own packets. The guest stands for one of four
//! reasons: we paused it (`pauses`), somebody else did (`foreign`), an event waits for its answer, or breakpoints are
//! being changed; the last two end with the next wait for events, so that any number of changes cost one stop.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    QemuOptions, cpu_text,
    events::Place,
    gdb::{Gdb, Stop, Thread},
    guard::Guard,
    identity::Identity,
    int3::Patch,
    leftover, plugs,
    points::Point,
    qmp::Qmp,
    run_state::Outside,
    transport::Address,
};
use crate::engine::{
    addr::{Pa, Va, VcpuId},
    arch::amd64::{Amd64, Amd64Registers},
    driver::News,
    error::VmiError,
    event::VmiEvent,
    snapshot::RunState,
};

/// How long a stop may take after it was asked for, before QMP is asked whether the guest runs.
const STOP_TIME: Duration = Duration::from_secs(1);
/// How often a guest that does not stop is asked again.
const STOP_ATTEMPTS: u32 = 4;

/// The guest's run state and everything that changes it.
pub(super) struct Control {
    pub(super) monitor: Arc<Mutex<Qmp>>,
    pub(super) pid: Option<u32>,
    pub(super) vcpus: Vec<VcpuId>,
    pub(super) kvm: bool,
    pub(super) identity: Identity,
    pub(super) gdb_option: Option<Address>,
    pub(super) guardian_program: Option<PathBuf>,

    pub(super) stub: Option<Gdb>,
    /// Where the stub is: an address, or the device that it is reached by (see `channel`).
    pub(super) stub_address: Option<String>,
    pub(super) stub_is_ours: bool,
    pub(super) guard: Option<Guard>,
    /// Whether something was done to the guest that was not taken back for certain: written down before it is done.
    pub(super) touched: bool,
    /// Whether freeing the guest was given up, and is left to others.
    pub(super) gave_up: bool,
    /// What the user is to know of a session that nobody guards.
    pub(super) unguarded: Option<String>,

    /// Whether the guest runs, as far as we know.
    pub(super) running: bool,
    /// Pauses of ours that were not taken back.
    pub(super) pauses: u32,
    /// Somebody else has stopped the guest, or the guest itself (a panic, a shutdown).
    pub(super) foreign: bool,
    /// What QEMU says of all that is not our doing.
    pub(super) outside: Outside,

    pub(super) breakpoints: BTreeMap<Va, Point>,
    /// How many were set so far.
    pub(super) points_set: u64,
    /// What may be in guest memory, written down before QEMU is asked for it.
    pub(super) patches: Vec<Patch>,
    /// Whether this processor lets a vCPU past an instruction breakpoint with RF set; `None` until it was tried.
    pub(super) honours_rf: Option<bool>,
    /// vCPUs that were let past a breakpoint so.
    pub(super) let_past: Vec<(VcpuId, Place)>,
    pub(super) watchpoints: BTreeSet<(Va, u64, u8)>,
    pub(super) pending: VecDeque<VmiEvent<Amd64>>,
    /// vCPUs that stand at a breakpoint whose hit was reported: to be stepped over it before they go on.
    pub(super) passed: Vec<(VcpuId, Place)>,
    /// vCPUs whose next step was asked for.
    pub(super) step_wanted: Vec<VcpuId>,
    /// Instructions whose hits were reported and that come again, because they have not been executed.
    pub(super) retried: VecDeque<Place>,
    /// The IDT's base by vCPU: the stub does not tell it.
    pub(super) idt: BTreeMap<VcpuId, u64>,
    pub(super) resets: u64,
    pub(super) shut_down: bool,
    /// When the guest stopped for the events that are not answered yet.
    pub(super) hit_at: Option<Instant>,
    /// How long the guest stands for a hit, as a running mean; zero before the first.
    pub(super) overhead: Duration,
    pub(super) notices: Vec<String>,
}

impl Control {
    pub fn new(qmp: Qmp, pid: Option<u32>, kvm: bool, options: &QemuOptions) -> Result<Self, VmiError> {
        let identity = Identity::of(&qmp, pid);
        let monitor = Arc::new(Mutex::new(qmp));
        let notices = if options.read_only { Vec::new() } else { leftover::repair_all(&monitor, &identity)? };
        let vcpus = plugs::vcpus(&mut monitor.lock().unwrap_or_else(PoisonError::into_inner))?;
        let gdb_option = options.gdb.as_deref().map(str::parse).transpose()?.map(Address::absolute);
        let mut control = Self {
            monitor,
            pid,
            vcpus,
            kvm,
            identity,
            gdb_option,
            guardian_program: options.guardian.clone(),
            stub: None,
            stub_address: None,
            stub_is_ours: false,
            guard: None,
            touched: false,
            gave_up: false,
            unguarded: None,
            running: true,
            pauses: 0,
            foreign: false,
            outside: Outside::new(),
            breakpoints: BTreeMap::new(),
            points_set: 0,
            patches: Vec::new(),
            honours_rf: None,
            let_past: Vec::new(),
            watchpoints: BTreeSet::new(),
            pending: VecDeque::new(),
            passed: Vec::new(),
            step_wanted: Vec::new(),
            retried: VecDeque::new(),
            idt: BTreeMap::new(),
            resets: 0,
            shut_down: false,
            hit_at: None,
            overhead: Duration::ZERO,
            notices,
        };
        let status = control.status()?;
        control.running = status == RunState::Running;
        control.foreign = !control.running;
        let memory_bytes = plugs::memory_bytes(&mut control.qmp());
        control.outside.memory_bytes = memory_bytes;
        if status == RunState::Debug {
            control.notices.push(
                "the guest stands at a breakpoint that some other debugger has left (run state \"debug\"); resume it \
                 to let it run"
                    .into(),
            );
        }
        for notice in &control.notices {
            control.outside.tell(News::Said(notice.clone()));
        }
        Ok(control)
    }

    /// The monitor. Not to be held while the stub is spoken to, which asks the monitor as well.
    pub fn qmp(&self) -> MutexGuard<'_, Qmp> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_running_now(&mut self) -> Result<bool, VmiError> {
        Ok(self.status()? == RunState::Running)
    }

    pub fn vcpus(&self) -> u16 {
        u16::try_from(self.vcpus.len()).unwrap_or(u16::MAX)
    }

    pub fn is_stub_attached(&self) -> bool {
        self.stub.is_some()
    }

    /// Whether anything of ours is in the guest or keeps it from running.
    pub fn is_touched(&self) -> bool {
        self.stub.is_some() || self.stub_address.is_some() || self.pauses > 0 || !self.patches.is_empty()
    }

    /// Whether the guest is to run as far as pauses go.
    pub fn wants_to_run(&self) -> bool {
        self.pauses == 0 && !self.foreign
    }

    pub fn is_paused(&self) -> bool {
        !self.running && !self.wants_to_run()
    }

    pub fn ask_monitor(&mut self, line: &str) -> Result<String, VmiError> {
        let answer = self.qmp().human(line, None);
        self.explained(answer)
    }

    /// The same error, with the reason for the end if it was told.
    pub fn explained<T>(&self, result: Result<T, VmiError>) -> Result<T, VmiError> {
        match result {
            Err(VmiError::Lost(_)) if self.shut_down => {
                Err(VmiError::Lost("the guest is gone: it was shut down, and QEMU has ended".into()))
            }
            other => other,
        }
    }

    /// Takes note of what QEMU has said on its own, before anything is sent: a byte sent to the stub of a guest that
    /// somebody else has set running again would stop it.
    pub fn listen(&mut self) -> Result<(), VmiError> {
        let events = self.qmp().events();
        let events = self.explained(events)?;
        let (mut last, mut resumed, mut ask) = (None, false, false);
        for event in &events {
            ask |= self.outside.hear(event);
            match event.name.as_str() {
                "STOP" => last = Some(false),
                "RESUME" => {
                    last = Some(true);
                    resumed = true;
                }
                "RESET" => {
                    self.resets += 1;
                    self.shut_down = false;
                    self.idt.clear();
                    // No vCPU is where it was: no hit is left to be told of or to be stepped over.
                    self.pending.clear();
                    self.passed.clear();
                    self.step_wanted.clear();
                    self.retried.clear();
                    self.let_past.clear();
                }
                "SHUTDOWN" => self.shut_down = true,
                _ => {}
            }
        }
        // What we did ourselves is told as well, late and in order: only a contradiction is looked into.
        if !self.running && (last == Some(true) || (resumed && self.foreign)) {
            match self.status()? {
                RunState::Running => self.set_running_by_others()?,
                // Set running by somebody else, and stopped by a breakpoint of ours.
                RunState::Debug if self.foreign => {
                    self.foreign = false;
                    self.note_foreign()?;
                }
                _ => {}
            }
        } else if self.running && last == Some(false) && self.stub.is_none() && !self.is_running_now()? {
            // With the stub, a stop reply comes.
            self.running = false;
            self.foreign = true;
            self.note_foreign()?;
        } else if resumed && self.stub.is_none() {
            self.outside.tell(News::Interrupted);
        }
        if ask || self.outside.is_due() { self.look_around() } else { Ok(()) }
    }

    /// Somebody else has let the guest run; that wins. The stub (from QEMU 8.1 on) reports the next stop only to who
    /// has let it run, so we take it over.
    pub fn set_running_by_others(&mut self) -> Result<(), VmiError> {
        self.foreign = false;
        self.running = true;
        self.outside.tell(News::Interrupted);
        if self.stub.is_some() {
            self.hold()?;
            self.go_on()?;
        }
        self.note_foreign()
    }

    /// Stops the guest if it runs; the stub must be connected. Hits that come at the same moment become events.
    pub fn hold(&mut self) -> Result<(), VmiError> {
        for _ in 0..STOP_ATTEMPTS {
            if !self.running {
                return Ok(());
            }
            let Some(stub) = &mut self.stub else { return Ok(()) };
            stub.interrupt()?;
            match stub.wait_stop(Instant::now() + STOP_TIME)? {
                Some(stop) => {
                    self.running = false;
                    if let Stop::At { signal: Stop::TRAP, .. } | Stop::Exited = stop {
                        self.stopped(stop)?;
                    }
                }
                // Stopped by somebody else at that moment, or not heard.
                None => self.running = self.is_running_now()?,
            }
        }
        if self.running { Err(self.stuck()) } else { Ok(()) }
    }

    pub fn stuck(&self) -> VmiError {
        VmiError::Lost(format!(
            "the guest does not stop when asked to, for {} s: QEMU hangs",
            (STOP_TIME * STOP_ATTEMPTS).as_secs()
        ))
    }

    /// Lets the guest run, over the breakpoints that vCPUs stand at. Returns with the guest still stopped when a step on
    /// the way gave an event.
    pub fn go_on(&mut self) -> Result<(), VmiError> {
        if self.running {
            return Ok(());
        }
        if self.stub.is_none() {
            self.qmp().execute("cont", json!({}))?;
        } else {
            self.step_over()?;
            if !self.pending.is_empty() || self.foreign || self.running {
                return Ok(());
            }
            if let Some(stub) = &mut self.stub {
                stub.run()?;
            }
            if let Some(at) = self.hit_at.take() {
                let stood = at.elapsed();
                self.overhead = if self.overhead.is_zero() { stood } else { (self.overhead * 7 + stood) / 8 };
            }
        }
        self.running = true;
        Ok(())
    }

    pub fn pause(&mut self) -> Result<(), VmiError> {
        self.touch()?;
        self.listen()?;
        if self.stub.is_some() {
            self.hold()?;
        } else if self.running {
            let stopped = self.qmp().execute("stop", json!({}));
            self.explained(stopped)?;
            self.running = false;
        }
        // However long that lasts is not what a hit costs.
        self.hit_at = None;
        self.pauses = self.pauses.saturating_add(1);
        Ok(())
    }

    /// Takes one pause back; without one, the user means that whoever stopped the guest is overruled.
    pub fn resume(&mut self) -> Result<(), VmiError> {
        self.listen()?;
        if self.pauses == 0 && self.foreign {
            return self.overrule();
        }
        self.pauses = self.pauses.saturating_sub(1);
        if self.pauses == 0 {
            self.yield_to_others()?;
        }
        if self.wants_to_run() {
            let ran = self.go_on();
            self.explained(ran)?;
        }
        // A pause of somebody else's after this is not to be ended for one of ours.
        if self.touched && !self.is_touched() { self.untouch() } else { Ok(()) }
    }

    /// The thread of a vCPU, with the stub connected and the guest stopped; `None` when it is to be asked for by the
    /// monitor.
    fn thread(&self, vcpu: VcpuId) -> Result<Option<Thread>, VmiError> {
        if !self.vcpus.contains(&vcpu) {
            return Err(VmiError::VcpuNotFound(vcpu));
        }
        match &self.stub {
            Some(stub) if !self.running => stub.thread(vcpu).map(Some).ok_or(VmiError::VcpuNotFound(vcpu)),
            _ => Ok(None),
        }
    }

    pub fn registers(&mut self, vcpu: VcpuId) -> Result<Amd64Registers, VmiError> {
        self.listen()?;
        let thread = self.thread(vcpu)?;
        if let (Some(thread), Some(stub)) = (thread, &mut self.stub) {
            let mut registers = stub.registers(thread)?;
            registers.idt_base = match self.idt.get(&vcpu) {
                Some(&base) if base != 0 => base,
                _ => self.monitor_registers(vcpu)?.registers.idt_base,
            };
            return Ok(registers);
        }
        Ok(self.monitor_registers(vcpu)?.registers)
    }

    /// The registers of a vCPU while the guest stands; `None` where the stub has no such vCPU.
    pub fn stopped_registers(&mut self, vcpu: VcpuId) -> Result<Option<Amd64Registers>, VmiError> {
        let Some(stub) = &mut self.stub else { return Ok(None) };
        let Some(thread) = stub.thread(vcpu) else { return Ok(None) };
        match stub.known_registers(thread) {
            Ok(registers) => {
                let idt_base = self.idt.get(&vcpu).copied().unwrap_or_default();
                Ok(Some(Amd64Registers { idt_base, ..registers }))
            }
            Err(error @ VmiError::Lost(_)) => Err(error),
            Err(error) => {
                self.look_at_vcpus()?;
                if self.vcpus.contains(&vcpu) { Err(error) } else { Ok(None) }
            }
        }
    }

    pub fn monitor_registers(&mut self, vcpu: VcpuId) -> Result<cpu_text::CpuText, VmiError> {
        let text = self.qmp().human("info registers", Some(vcpu.0));
        let cpu = cpu_text::parse(&self.explained(text)?);
        let cpu = cpu.ok_or_else(|| VmiError::driver("reading registers from QEMU's monitor", "it printed none"))?;
        self.idt.insert(vcpu, cpu.registers.idt_base);
        Ok(cpu)
    }

    pub fn set_registers(&mut self, vcpu: VcpuId, registers: &Amd64Registers) -> Result<(), VmiError> {
        self.attach_stub()?;
        self.hold()?;
        let thread = self.thread(vcpu)?.ok_or(VmiError::VcpuNotFound(vcpu))?;
        match &mut self.stub {
            Some(stub) => stub.set_registers(thread, registers),
            None => Err(VmiError::VcpuNotFound(vcpu)),
        }
    }

    pub fn write_physical(&mut self, pa: Pa, bytes: &[u8]) -> Result<(), VmiError> {
        self.attach_stub()?;
        self.hold()?;
        self.stub.as_mut().map_or(Ok(()), |stub| stub.write_physical(pa.0, bytes))
    }
}
