//! The machine: memory, views and vCPUs in virtual time, and what happens between an event and its answer.
//!
//! vCPUs take turns, some instructions each; with all of them in HLT time jumps to the next interrupt. An event stops
//! everything until it was answered, so that a run depends on nothing but the seed and the calls.

use std::collections::VecDeque;

use super::{
    cpu::{Core, DecodeCache, Flow, Stop, Tlb},
    kernel::Kernel,
    memory::Memory,
    vcpu::{Monitors, Vcpu},
    view::Views,
};
use crate::engine::{
    addr::{Gfn, VcpuId},
    arch::amd64::{Amd64, Amd64EventReason, EventInterrupt, EventMonitor, ExceptionVector, Interrupt, InterruptType},
    error::VmiError,
    event::{VmiEvent, VmiEventAction, VmiEventResponse},
};

/// What one instruction costs, in virtual nanoseconds.
const INSTRUCTION_NS: u64 = 20;
/// What one event costs, in virtual nanoseconds: time passes also in a storm of events.
const EVENT_NS: u64 = 1_000;
/// Instructions until the next vCPU's turn.
const TURN: usize = 64;

/// An event and the vCPU that waits for its answer.
pub(super) type Event = VmiEvent<Amd64>;

/// The machine.
pub(super) struct Machine {
    pub(super) memory: Memory,
    pub(super) views: Views,
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) kernel: Kernel,
    pub(super) monitors: Monitors,
    /// Events that wait for their answer.
    pub(super) pending: VecDeque<Event>,
    /// Pauses that were not taken back.
    pub(super) pauses: u32,
    /// Virtual time in nanoseconds.
    pub(super) now: u64,
    decoded: DecodeCache,
    tlb: Tlb,
    turn: usize,
}

impl Machine {
    pub(super) fn new(memory: Memory, vcpus: Vec<Vcpu>, kernel: Kernel) -> Self {
        Self {
            views: Views::new(memory.ram_frames()),
            tlb: Tlb::new(memory.ram_frames()),
            memory,
            vcpus,
            kernel,
            monitors: Monitors::default(),
            pending: VecDeque::new(),
            pauses: 0,
            now: 0,
            decoded: DecodeCache::new(),
            turn: 0,
        }
    }

    /// Goes on with what a reset has left: other RAM, another kernel. What the session has set of views and monitors stays,
    /// and every vCPU is in the view that it was in; time goes on.
    pub(super) fn boot_again(&mut self, memory: Memory, vcpus: Vec<Vcpu>, kernel: Kernel) {
        self.memory.take_ram(memory);
        self.kernel = kernel;
        self.pending.clear();
        self.decoded = DecodeCache::new();
        self.tlb.flush();
        for (vcpu, mut new) in self.vcpus.iter_mut().zip(vcpus) {
            new.view = vcpu.view;
            *vcpu = new;
        }
    }

    /// A vCPU by its number.
    pub(super) fn vcpu(&self, id: VcpuId) -> Result<&Vcpu, VmiError> {
        self.vcpus.get(usize::from(id.0)).ok_or(VmiError::VcpuNotFound(id))
    }

    /// The same to change it.
    pub(super) fn vcpu_mut(&mut self, id: VcpuId) -> Result<&mut Vcpu, VmiError> {
        self.vcpus.get_mut(usize::from(id.0)).ok_or(VmiError::VcpuNotFound(id))
    }

    /// Runs until an event is pending or virtual time has come to `until`. Does nothing while paused.
    pub(super) fn run(&mut self, until: u64) {
        // Anything may have been changed from outside since the last time.
        self.tlb.flush();
        let count = self.vcpus.len();
        while self.pending.is_empty() && self.pauses == 0 && self.now < until {
            let turns = (0..count).map(|i| (self.turn + i) % count);
            let Some(id) = turns.into_iter().find(|&id| self.is_runnable(id)) else {
                self.now = self.next_activity().clamp(self.now + 1, until);
                continue;
            };
            for _ in 0..TURN {
                self.tick(id);
                let stands = self.vcpus.get(id).is_none_or(|cpu| cpu.halted || cpu.waiting);
                if stands || !self.pending.is_empty() || self.now >= until {
                    break;
                }
            }
            self.turn = (id + 1) % count;
        }
    }

    /// When something will happen by itself: now, while a vCPU runs.
    pub(super) fn next_activity(&self) -> u64 {
        let wake = |id: usize| if self.is_runnable(id) { self.now } else { self.kernel.deadline(id) };
        let able = |cpu: &Vcpu| !cpu.waiting && !cpu.dead;
        (0..self.vcpus.len()).filter(|&id| self.vcpus.get(id).is_some_and(able)).map(wake).min().unwrap_or(u64::MAX)
    }

    fn is_runnable(&self, id: usize) -> bool {
        self.vcpus.get(id).is_some_and(|cpu| {
            let woken = cpu.injected.is_some() || cpu.delivering.is_some();
            let interrupted = || cpu.is_interruptible() && self.kernel.interrupt_due(id, self.now);
            !cpu.waiting && !cpu.dead && (!cpu.halted || woken || interrupted())
        })
    }

    /// One interrupt or instruction on one vCPU.
    fn tick(&mut self, id: usize) {
        let Some(cpu) = self.vcpus.get_mut(id) else { return };
        if cpu.delivering.is_none() {
            if let Some(interrupt) = cpu.injected.take() {
                cpu.delivering = Some(interrupt);
            } else if cpu.is_interruptible()
                && let Some(vector) = self.kernel.take_interrupt(id, self.now)
            {
                cpu.delivering = Some(external(vector));
            }
        }
        if cpu.halted && cpu.delivering.is_none() {
            return;
        }
        self.now += INSTRUCTION_NS;
        let mut core = Core {
            cpu,
            memory: &mut self.memory,
            views: &self.views,
            monitors: &self.monitors,
            decoded: &mut self.decoded,
            tlb: &mut self.tlb,
            now: self.now,
        };
        // An exception is delivered in the same tick: an instruction and its fault are one step.
        let reason = loop {
            match core.step() {
                Ok(Flow::Done) => break None,
                Ok(Flow::Model) => {
                    core.tlb.flush();
                    self.kernel.call(core.memory, core.cpu, id, self.now);
                    break None;
                }
                Err(Stop::Event(reason)) => break Some(reason),
                Err(Stop::Exception(_)) if core.cpu.delivering.is_some() => {
                    core.escalate();
                    if core.cpu.dead {
                        return;
                    }
                }
                Err(Stop::Exception(interrupt)) => {
                    if core.monitors.on(EventMonitor::Interrupt(interrupt.vector)) {
                        let gfn = Gfn(core.peek(core.cpu.registers.gp.rip).unwrap_or(0) >> 12);
                        break Some(Amd64EventReason::Interrupt(EventInterrupt { gfn, interrupt }));
                    }
                    core.cpu.delivering = Some(interrupt);
                }
            }
        };
        match reason {
            Some(reason) => self.raise(id, reason),
            None => self.finish(id),
        }
    }

    /// What follows a finished instruction: the way back from another view, the end of a single step.
    fn finish(&mut self, id: usize) {
        let Some(cpu) = self.vcpus.get_mut(id) else { return };
        cpu.owes_step = false;
        if let Some(view) = cpu.fast_return.take() {
            cpu.view = view;
        }
        if std::mem::take(&mut cpu.singlestep) && self.monitors.on(EventMonitor::Singlestep) {
            let rip = cpu.registers.gp.rip;
            let gfn = Gfn(self.with_core(id, |core| core.peek(rip)).flatten().unwrap_or(0) >> 12);
            self.raise(id, Amd64EventReason::Singlestep { gfn });
        }
    }

    fn raise(&mut self, id: usize, reason: Amd64EventReason) {
        self.now += EVENT_NS;
        if let Some(cpu) = self.vcpus.get_mut(id) {
            cpu.waiting = true;
            self.pending.push_back(VmiEvent::new(VcpuId(id as u16), Some(cpu.view), cpu.registers, reason));
        }
    }

    fn with_core<T>(&mut self, id: usize, f: impl FnOnce(&mut Core<'_>) -> T) -> Option<T> {
        let cpu = self.vcpus.get_mut(id)?;
        Some(f(&mut Core {
            cpu,
            memory: &mut self.memory,
            views: &self.views,
            monitors: &self.monitors,
            decoded: &mut self.decoded,
            tlb: &mut self.tlb,
            now: self.now,
        }))
    }

    /// Does what an answer says.
    pub(super) fn answer(&mut self, event: &Event, response: VmiEventResponse<Amd64>) {
        let id = usize::from(event.vcpu_id().0);
        let Some(cpu) = self.vcpus.get_mut(id) else { return };
        // A reset while the event was answered has let the vCPU go already.
        if !std::mem::take(&mut cpu.waiting) {
            return;
        }
        if let Some(registers) = response.registers {
            cpu.registers.gp = registers;
        }
        let moved = cpu.registers.gp.rip != event.registers().gp.rip;
        let interrupt = match event.reason() {
            Amd64EventReason::Interrupt(event) => Some(event.interrupt),
            _ => None,
        };
        let instruction = matches!(
            event.reason(),
            Amd64EventReason::WriteCr { .. }
                | Amd64EventReason::WriteMsr { .. }
                | Amd64EventReason::CpuId { .. }
                | Amd64EventReason::Hypercall
                | Amd64EventReason::Io { .. }
        );
        cpu.granted = instruction && !moved && response.action != VmiEventAction::Deny;
        match response.action {
            VmiEventAction::Continue => {}
            VmiEventAction::Deny => {
                cpu.delivering = None;
                // What was denied is over.
                cpu.owes_step = false;
                if !moved && !matches!(event.reason(), Amd64EventReason::Singlestep { .. }) {
                    let length = self.with_core(id, |core| core.length_here()).unwrap_or(0);
                    if let Some(cpu) = self.vcpus.get_mut(id) {
                        cpu.registers.gp.rip = cpu.registers.gp.rip.wrapping_add(length);
                    }
                }
            }
            VmiEventAction::ReinjectInterrupt => cpu.delivering = interrupt.or(cpu.delivering),
            VmiEventAction::Singlestep => cpu.singlestep = true,
            VmiEventAction::FastSinglestep => cpu.fast_return = Some(cpu.view),
            VmiEventAction::Emulate => cpu.emulate = true,
        }
        if let (Some(view), Some(cpu)) = (response.view, self.vcpus.get_mut(id))
            && self.views.exists(view)
        {
            cpu.view = view;
        }
        if self.pauses > 0 && self.vcpus.get(id).is_some_and(|cpu| cpu.owes_step) {
            self.tlb.flush();
            self.tick(id);
        }
    }

    /// One instruction on one vCPU of the paused machine. From HLT it goes on with the interrupt that ends it.
    pub(super) fn step(&mut self, id: VcpuId) -> Result<(), VmiError> {
        if self.pauses == 0 {
            return Err(VmiError::Invalid("a single step needs the guest paused: pause it first".to_owned()));
        }
        let cpu = self.vcpu_mut(id)?;
        if cpu.waiting {
            return Err(VmiError::Invalid(format!("vCPU {id} waits in an event that was not answered yet")));
        }
        cpu.owes_step = true;
        if cpu.halted {
            self.now = self.now.max(self.kernel.deadline(usize::from(id.0)));
        }
        self.tlb.flush();
        self.tick(usize::from(id.0));
        Ok(())
    }

    /// Puts all vCPUs that are in a view that is going into the default view.
    pub(super) fn leave_view(&mut self, view: crate::engine::addr::View) {
        for cpu in &mut self.vcpus {
            if cpu.view == view {
                cpu.view = Views::DEFAULT;
            }
            if cpu.fast_return == Some(view) {
                cpu.fast_return = Some(Views::DEFAULT);
            }
        }
    }

    /// Takes back what a session set: steps, monitors, views, events without an answer.
    pub(super) fn reset(&mut self) {
        self.pending.clear();
        self.monitors.clear();
        self.views.reset_all();
        self.vcpus.iter_mut().for_each(Vcpu::reset);
    }
}

fn external(vector: u8) -> Interrupt {
    Interrupt {
        vector: ExceptionVector(vector),
        kind: InterruptType::External,
        error_code: None,
        instruction_length: 0,
        cr2: 0,
    }
}
