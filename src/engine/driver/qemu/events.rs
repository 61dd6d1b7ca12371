//! From stops to events and back: what a vCPU stopped for, and how it goes on.
//!
//! Each hit is reported once. The stub stops all vCPUs and names one; another that came to a breakpoint at the same
//! moment has not executed the instruction yet, and runs into it again by itself as soon as the guest goes on. The one
//! that was reported is stepped over the instruction alone, the others standing, and only if the breakpoint is still
//! there. If the instruction faults on the way, it comes again after the fault was handled: that is not a new hit.

use std::time::{Duration, Instant};

use super::{
    control::Control,
    gdb::{Stop, Thread},
    points::watch_access,
    transport::wait_readable,
};
use crate::engine::{
    addr::{Gfn, Va, VcpuId},
    arch::amd64::{Amd64, Amd64EventReason, Amd64GpRegisters, Amd64Registers},
    error::VmiError,
    event::{VmiEvent, VmiEventAction, VmiEventResponse},
};

/// How long a step may take before the guest is asked to stop.
const STEP_TIME: Duration = Duration::from_secs(2);
/// With several vCPUs at a breakpoint at the same moment, a step of QEMU 7.2 sometimes stops before its instruction.
const STEP_ATTEMPTS: u32 = 3;
/// Instructions that come again and are remembered.
const MOST_RETRIED: usize = 64;
/// QEMU's bits for a step without interrupts and timers, and for one with them.
const STEP_QUIETLY: u8 = 7;
const STEP_WITH_INTERRUPTS: u8 = 1;

/// A vCPU's state at a breakpoint: what tells an instruction that comes again (after a fault of its own, or because its
/// vCPU was interrupted before it) from a new hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub va: Va,
    root: u64,
    gp: Amd64GpRegisters,
}

impl Place {
    fn of(registers: &Amd64Registers) -> Self {
        let mut gp = registers.gp;
        // An instruction that comes again after a fault has RF set (Intel SDM volume 3B, section 18.3.1.1).
        gp.rflags &= !(1 << 16);
        Self { va: Va(gp.rip), root: registers.cr3, gp }
    }
}

/// How a step ended.
enum Stepped {
    Done,
    /// It hit a watchpoint, whose event is pending.
    Watched,
    /// The vCPU did not come to an instruction.
    Not,
}

impl Control {
    pub fn events_pending(&self) -> usize {
        self.pending.len()
    }

    /// Lets the guest run until it stops for something of ours.
    pub fn next_event(&mut self, timeout: Duration) -> Result<VmiEvent<Amd64>, VmiError> {
        let event = self.wait(Instant::now() + timeout);
        self.explained(event)
    }

    fn wait(&mut self, deadline: Instant) -> Result<VmiEvent<Amd64>, VmiError> {
        loop {
            self.listen()?;
            if self.wants_to_run() && self.pending.is_empty() {
                self.go_on()?;
            }
            while let Some(stop) = self.stub.as_mut().map_or(Ok(None), |stub| stub.poll_stop())? {
                self.stopped(stop)?;
            }
            while let Some(event) = self.pending.pop_front() {
                if self.is_current(&event) {
                    return Ok(event);
                }
            }
            if self.wants_to_run() && !self.running {
                continue;
            }
            let qmp = self.qmp().fd();
            let stub = self.stub.as_ref().map_or(-1, |stub| stub.fd());
            if wait_readable(&[qmp, stub], deadline)? == (false, false) {
                return Err(VmiError::Timeout);
            }
        }
    }

    /// A hit whose breakpoint was taken out before it was reported never happened: the instruction was not executed.
    fn is_current(&self, event: &VmiEvent<Amd64>) -> bool {
        match event.reason() {
            Amd64EventReason::DebugBreakpoint { va, .. } => self.breakpoints.contains_key(va),
            Amd64EventReason::DebugWatchpoint { va, .. } => self.watchpoints.iter().any(|(watched, ..)| watched == va),
            _ => true,
        }
    }

    /// All vCPUs have stopped: finds out why, and makes an event of it if it is ours.
    pub fn stopped(&mut self, stop: Stop) -> Result<(), VmiError> {
        let was_running = std::mem::replace(&mut self.running, false);
        match stop {
            Stop::Exited => Err(VmiError::Lost("QEMU has ended".into())),
            Stop::At { signal: Stop::TRAP, thread: Some(thread), watch } => {
                let started = Instant::now();
                self.trapped(thread, watch)?;
                let spent = started.elapsed();
                self.overhead = if self.overhead.is_zero() { spent } else { (self.overhead * 7 + spent) / 8 };
                Ok(())
            }
            // A byte of ours has stopped a guest that somebody else had set running.
            Stop::At { .. } if !was_running => Ok(()),
            // Not asked for by us: somebody else's `stop`, or the guest has panicked or shut down.
            Stop::At { .. } => {
                if !self.is_running_now()? {
                    self.foreign = true;
                    return self.note_foreign();
                }
                Ok(())
            }
        }
    }

    fn trapped(&mut self, thread: Thread, watch: Option<u64>) -> Result<(), VmiError> {
        let vcpu = thread.vcpu();
        if !self.vcpus.contains(&vcpu) {
            // Plugged in since it was last looked.
            self.look_at_vcpus()?;
        }
        // One that is gone has nothing to tell.
        let Some(registers) = self.registers_if_there(vcpu)? else { return Ok(()) };
        let va = Va(registers.gp.rip);
        if let Some(event) = watch.and_then(|address| self.watch_event(vcpu, registers, Va(address))) {
            self.pending.push_back(event);
        } else if self.breakpoints.contains_key(&va) && !self.is_known(vcpu, va, &registers) {
            self.pending.push_back(self.breakpoint_event(vcpu, va, registers));
        }
        // Anything else is the stop of a breakpoint that is gone, or a step that somebody else asked for.
        Ok(())
    }

    /// Whether this hit was reported already: the vCPU has not moved since, or it retries an instruction that faulted.
    /// Then it will be stepped over without another event.
    fn is_known(&mut self, vcpu: VcpuId, va: Va, registers: &Amd64Registers) -> bool {
        let is_pending = |event: &VmiEvent<Amd64>| event.vcpu_id() == vcpu && event.registers().gp.rip == va.0;
        if self.passed.iter().any(|&(passed, place)| passed == vcpu && place.va == va)
            || self.pending.iter().any(is_pending)
        {
            return true;
        }
        let place = Place::of(registers);
        let before = self.retried.len();
        self.retried.retain(|retried| *retried != place);
        let comes_again = self.retried.len() != before;
        if comes_again {
            self.passed.push((vcpu, place));
        }
        comes_again
    }

    /// A reported instruction will come again.
    fn note_retry(&mut self, place: Place) {
        if self.retried.len() == MOST_RETRIED {
            self.retried.pop_front();
        }
        self.retried.push_back(place);
    }

    fn breakpoint_event(&self, vcpu: VcpuId, va: Va, registers: Amd64Registers) -> VmiEvent<Amd64> {
        // The driver fills the frame in, which it reads the page tables for.
        VmiEvent::new(vcpu, None, registers, Amd64EventReason::DebugBreakpoint { va, gfn: Gfn(0) })
    }

    fn watch_event(&self, vcpu: VcpuId, registers: Amd64Registers, va: Va) -> Option<VmiEvent<Amd64>> {
        let &(va, _, kind) = self.watchpoints.iter().find(|&&(watched, bytes, _)| va - watched < bytes.max(1))?;
        let access = watch_access(kind);
        Some(VmiEvent::new(vcpu, None, registers, Amd64EventReason::DebugWatchpoint { va, access }))
    }

    /// Applies the answer to an event. The guest goes on with the next wait.
    pub fn answer(&mut self, event: &VmiEvent<Amd64>, response: &VmiEventResponse<Amd64>) -> Result<(), VmiError> {
        let vcpu = event.vcpu_id();
        if !self.vcpus.contains(&vcpu) {
            // Unplugged while its event was answered.
            return Ok(());
        }
        let mut rip = event.registers().gp.rip;
        if let Some(gp) = response.registers.filter(|gp| *gp != event.registers().gp) {
            let now = self.registers(vcpu)?;
            // Somebody may have set it running or stepped it since.
            if !self.running && now.gp == event.registers().gp {
                self.set_registers(vcpu, &Amd64Registers { gp, ..now })?;
                rip = gp.rip;
            }
        }
        if let &Amd64EventReason::DebugBreakpoint { va, .. } = event.reason()
            && va.0 == rip
        {
            let place = Place::of(&Amd64Registers {
                gp: response.registers.unwrap_or(event.registers().gp),
                ..*event.registers()
            });
            self.passed.push((vcpu, place));
        }
        if response.action == VmiEventAction::Singlestep {
            self.step_wanted.push(vcpu);
        }
        Ok(())
    }

    /// Moves the vCPUs whose hits were reported off their breakpoints, and does the steps that were asked for. Each stays
    /// in the books until it is done: if somebody else sets the guest running in between, its hit is still known.
    pub fn step_over(&mut self) -> Result<(), VmiError> {
        while let Some(&(vcpu, place)) = self.passed.first() {
            let Some(registers) = self.registers_if_there(vcpu)? else { continue };
            if self.running {
                return Ok(());
            }
            let to_do = self.breakpoints.contains_key(&place.va) || self.step_wanted.contains(&vcpu);
            if registers.gp.rip != place.va.0 {
                // Somebody else had set the guest running, and the vCPU took an interrupt first.
                self.note_retry(place);
            } else if to_do {
                if let Stepped::Not = self.step_one(vcpu, &registers, STEP_QUIETLY)? {
                    return Ok(());
                }
                self.report_step(vcpu)?;
            }
            self.passed.retain(|passed| *passed != (vcpu, place));
        }
        while let Some(&vcpu) = self.step_wanted.first() {
            let Some(registers) = self.registers_if_there(vcpu)? else { continue };
            if self.running {
                return Ok(());
            }
            if let Stepped::Not = self.step_one(vcpu, &registers, STEP_QUIETLY)? {
                return Ok(());
            }
            self.report_step(vcpu)?;
        }
        Ok(())
    }

    fn report_step(&mut self, vcpu: VcpuId) -> Result<(), VmiError> {
        if self.step_wanted.contains(&vcpu) {
            self.step_wanted.retain(|&wanted| wanted != vcpu);
            let registers = self.registers(vcpu)?;
            let reason = Amd64EventReason::Singlestep { gfn: Gfn(0) };
            self.pending.push_back(VmiEvent::new(vcpu, None, registers, reason));
        }
        Ok(())
    }

    /// One instruction of one vCPU, on the user's command.
    pub fn step(&mut self, vcpu: VcpuId) -> Result<(), VmiError> {
        self.listen()?;
        if !self.vcpus.contains(&vcpu) {
            return Err(VmiError::VcpuNotFound(vcpu));
        }
        if self.running || self.wants_to_run() {
            return Err(VmiError::Invalid("the guest runs: pause it before stepping".into()));
        }
        self.may_be_stepped()?;
        self.attach_stub()?;
        let registers = self.registers(vcpu)?;
        let va = Va(registers.gp.rip);
        if self.breakpoints.contains_key(&va) && !self.is_known(vcpu, va, &registers) {
            // A step does not stop at a breakpoint that it starts on: the hit would be lost.
            self.pending.push_back(self.breakpoint_event(vcpu, va, registers));
        }
        // A vCPU in HLT goes on with an interrupt only.
        let halted = self.monitor_registers(vcpu)?.halted;
        let bits = if halted { STEP_WITH_INTERRUPTS } else { STEP_QUIETLY };
        match self.step_one(vcpu, &registers, bits)? {
            Stepped::Not if halted => Err(VmiError::Invalid(format!(
                "vCPU {vcpu} waits for an interrupt (HLT) and none came within {} s: step another one",
                STEP_TIME.as_secs()
            ))),
            Stepped::Not => Err(VmiError::Invalid(format!("vCPU {vcpu} did not get to its next instruction"))),
            Stepped::Done | Stepped::Watched => {
                self.passed.retain(|&(passed, _)| passed != vcpu);
                Ok(())
            }
        }
    }

    /// Lets one vCPU do one instruction while the others stand.
    fn step_one(&mut self, vcpu: VcpuId, before: &Amd64Registers, bits: u8) -> Result<Stepped, VmiError> {
        for _ in 1..STEP_ATTEMPTS {
            let (stepped, moved) = self.try_step(vcpu, before, bits)?;
            if moved || matches!(stepped, Stepped::Not | Stepped::Watched) {
                return Ok(stepped);
            }
        }
        // An instruction that changes nothing: a jump to itself.
        self.try_step(vcpu, before, bits).map(|(stepped, _)| stepped)
    }

    /// One try at that, and whether any register has changed.
    fn try_step(&mut self, vcpu: VcpuId, before: &Amd64Registers, bits: u8) -> Result<(Stepped, bool), VmiError> {
        let Some(stub) = &mut self.stub else { return Ok((Stepped::Not, false)) };
        let thread = stub.thread(vcpu).ok_or(VmiError::VcpuNotFound(vcpu))?;
        if bits != STEP_QUIETLY {
            stub.set_step_bits(bits)?;
        }
        stub.step(thread)?;
        let mut stop = stub.wait_stop(Instant::now() + STEP_TIME)?;
        let in_time = stop.is_some();
        if !in_time {
            stub.interrupt()?;
            stop = stub.wait_stop(Instant::now() + STEP_TIME)?;
        }
        if bits != STEP_QUIETLY {
            stub.set_step_bits(STEP_QUIETLY)?;
        }
        let after = stub.registers(thread)?;
        let moved = after.gp != before.gp;
        match stop {
            Some(Stop::At { signal: Stop::TRAP, watch, .. }) => {
                self.note_fault(thread, before, &after)?;
                let event = watch.and_then(|address| self.watch_event(vcpu, after, Va(address)));
                if event.is_none() {
                    return Ok((Stepped::Done, moved));
                }
                self.pending.extend(event);
                Ok((Stepped::Watched, moved))
            }
            Some(Stop::Exited) => Err(VmiError::Lost("QEMU has ended".into())),
            Some(stop @ Stop::At { .. }) => {
                if in_time {
                    self.stopped(stop)?;
                }
                Ok((if moved { Stepped::Done } else { Stepped::Not }, moved))
            }
            None => Err(self.stuck()),
        }
    }

    /// Remembers an instruction with a breakpoint that has not been executed by its step, because it faulted: the
    /// exception's frame on the new stack names it and the old stack (Intel SDM volume 3A, figure 6-9).
    fn note_fault(&mut self, thread: Thread, before: &Amd64Registers, after: &Amd64Registers) -> Result<(), VmiError> {
        let va = Va(before.gp.rip);
        let Some(stub) = &mut self.stub else { return Ok(()) };
        if !self.breakpoints.contains_key(&va) || after.cpl() != 0 || after.gp.rsp == before.gp.rsp {
            return Ok(());
        }
        let Some(bytes) = stub.read_virtual(thread, after.gp.rsp, 48)? else { return Ok(()) };
        let words: Vec<u64> =
            bytes.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_le_bytes).collect();
        let frame = |words: &[u64]| words.first() == Some(&va.0) && words.get(3) == Some(&before.gp.rsp);
        // With and without an error code.
        if frame(&words) || words.get(1..).is_some_and(frame) {
            self.note_retry(Place::of(before));
        }
        Ok(())
    }
}
