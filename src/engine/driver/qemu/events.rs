//! From stops to events and back: what a vCPU stopped for, and how it goes on.
//!
//! Each hit is reported once. The stub stops all vCPUs and names one; another one that stands at a breakpoint at that
//! moment has hit it as well. Before the guest goes on, each of them is brought past its breakpoint alone, the others
//! standing, and only if the breakpoint is still there. If the instruction faults on the way, it comes again after the
//! fault was handled: that is not a new hit.
//!
//! How a vCPU gets past: TCG steps over a breakpoint that it starts on. KVM does not: a processor that is entered at an
//! instruction breakpoint hits it again, and executes an INT3 again. There a breakpoint in a debug register is passed with
//! RF set (Intel SDM volume 3B, section 18.3.1.1), where that was seen to work, and any other is taken out for the step.

use std::time::{Duration, Instant};

use super::{
    control::Control,
    gdb::{Stop, Thread},
    points::{Placement, watch_access},
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
/// In bytes (Intel SDM volume 2A, section 2.3.11).
const LONGEST_INSTRUCTION: u64 = 15;
/// Instructions that come again and are remembered.
const MOST_RETRIED: usize = 64;

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
        // An instruction that comes again after a fault has RF set.
        gp.rflags &= !Amd64Registers::RFLAGS_RF;
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
                let at = Instant::now();
                self.trapped(thread, watch)?;
                if !self.pending.is_empty() {
                    self.hit_at.get_or_insert(at);
                }
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
        let reported = thread.vcpu();
        if !self.vcpus.contains(&reported) {
            // Plugged in since it was last looked.
            self.look_at_vcpus()?;
        }
        // One that is gone has nothing to report.
        let Some(registers) = self.registers_if_there(reported)? else { return Ok(()) };
        if self.running {
            return Ok(());
        }
        match watch.and_then(|address| self.watch_event(reported, registers, Va(address))) {
            Some(event) => self.pending.push_back(event),
            None => self.stands(reported, &registers),
        }
        for vcpu in self.vcpus.clone().into_iter().filter(|&vcpu| vcpu != reported) {
            // One that was plugged in or out meanwhile is none of the stub's.
            let Some(registers) = self.stopped_registers(vcpu)? else { continue };
            self.stands(vcpu, &registers);
        }
        // Anything else is the stop of a breakpoint that is gone, or a step that somebody else asked for.
        Ok(())
    }

    /// A vCPU of a stopped guest: if it stands at a breakpoint, it has hit it.
    fn stands(&mut self, vcpu: VcpuId, registers: &Amd64Registers) {
        let va = Va(registers.gp.rip);
        if self.breakpoints.contains_key(&va)
            && !self.has_yet_to_go(vcpu, registers)
            && !self.is_known(vcpu, va, registers)
        {
            self.pending.push_back(self.breakpoint_event(vcpu, va, *registers));
        }
    }

    /// Whether a vCPU was let past this breakpoint with RF set and has not come to run since: RF is set still.
    fn has_yet_to_go(&mut self, vcpu: VcpuId, registers: &Amd64Registers) -> bool {
        let here = (vcpu, Place::of(registers));
        let has = registers.gp.rflags & Amd64Registers::RFLAGS_RF != 0 && self.let_past.contains(&here);
        if !has {
            self.let_past.retain(|&(let_past, _)| let_past != vcpu);
        }
        has
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

    /// Brings the vCPUs whose hits were reported past their breakpoints, and does the steps that were asked for. Each stays
    /// in the books until it is done: if somebody else sets the guest running in between, its hit is still known.
    pub fn step_over(&mut self) -> Result<(), VmiError> {
        while let Some(&(vcpu, place)) = self.passed.first() {
            if self.running {
                return Ok(());
            }
            let Some(registers) = self.stopped_registers(vcpu)? else {
                self.passed.retain(|&(gone, _)| gone != vcpu);
                continue;
            };
            if registers.gp.rip != place.va.0 {
                // Somebody else had set the guest running, and the vCPU took an interrupt first.
                self.note_retry(place);
            } else if let Stepped::Not = self.get_past(vcpu, place, &registers)? {
                return Ok(());
            }
            self.passed.retain(|passed| *passed != (vcpu, place));
        }
        while let Some(&vcpu) = self.step_wanted.first() {
            if self.running {
                return Ok(());
            }
            let Some(registers) = self.stopped_registers(vcpu)? else {
                self.step_wanted.retain(|&gone| gone != vcpu);
                continue;
            };
            if let Stepped::Not = self.step_from(vcpu, &registers, false)? {
                return Ok(());
            }
            self.report_step(vcpu)?;
        }
        Ok(())
    }

    /// Brings one vCPU past the breakpoint that it stands at, by a step if one was asked for.
    fn get_past(&mut self, vcpu: VcpuId, place: Place, registers: &Amd64Registers) -> Result<Stepped, VmiError> {
        let step_wanted = self.step_wanted.contains(&vcpu);
        let in_register = match self.breakpoints.get(&place.va) {
            Some(point) => point.placement == Placement::Register,
            None if step_wanted => false,
            None => return Ok(Stepped::Done),
        };
        if in_register && !step_wanted && self.honours_rf == Some(true) {
            self.set_rf(vcpu, registers)?;
            self.let_past.push((vcpu, place));
            return Ok(Stepped::Done);
        }
        let stepped = self.step_from(vcpu, registers, false)?;
        if !matches!(stepped, Stepped::Not) {
            self.report_step(vcpu)?;
        }
        Ok(stepped)
    }

    fn set_rf(&mut self, vcpu: VcpuId, registers: &Amd64Registers) -> Result<(), VmiError> {
        let Some(stub) = &mut self.stub else { return Ok(()) };
        let thread = stub.thread(vcpu).ok_or(VmiError::VcpuNotFound(vcpu))?;
        let mut new = *registers;
        new.gp.rflags |= Amd64Registers::RFLAGS_RF;
        stub.change_registers(thread, &new).map(drop)
    }

    /// Lets one vCPU do one instruction, over the breakpoint that it may stand at.
    fn step_from(&mut self, vcpu: VcpuId, before: &Amd64Registers, interrupts: bool) -> Result<Stepped, VmiError> {
        let va = Va(before.gp.rip);
        let Some(point) = self.breakpoints.get(&va).copied().filter(|point| point.placement != Placement::Translator)
        else {
            return self.step_one(vcpu, before, interrupts);
        };
        if point.placement == Placement::Register && self.honours_rf != Some(false) {
            self.set_rf(vcpu, before)?;
            let (stepped, moved) = self.try_step(vcpu, before, interrupts)?;
            if moved {
                self.honours_rf = Some(true);
            }
            if moved || self.honours_rf == Some(true) || matches!(stepped, Stepped::Not | Stepped::Watched) {
                return Ok(stepped);
            }
        }
        self.lift(va, vcpu, &point)?;
        let stepped = self.step_one(vcpu, before, interrupts);
        // Whatever has become of the step: the breakpoint goes back before anything runs. Somebody else may have set the
        // guest running.
        self.hold()?;
        self.put_back(va, &point)?;
        if let (Ok(Stepped::Done), Placement::Register, None) = (&stepped, point.placement, self.honours_rf) {
            // Past it without the breakpoint, but not with RF: unless it is a jump to itself.
            let after = self.stopped_registers(vcpu)?;
            self.honours_rf = after.filter(|after| after.gp.rip != va.0).map(|_| false);
        }
        stepped
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
        match self.step_from(vcpu, &registers, halted)? {
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
    fn step_one(&mut self, vcpu: VcpuId, before: &Amd64Registers, interrupts: bool) -> Result<Stepped, VmiError> {
        let attempts = if self.kvm { 1 } else { STEP_ATTEMPTS };
        for _ in 1..attempts {
            let (stepped, moved) = self.try_step(vcpu, before, interrupts)?;
            if moved || matches!(stepped, Stepped::Not | Stepped::Watched) {
                return Ok(stepped);
            }
        }
        // An instruction that changes nothing: a jump to itself.
        self.try_step(vcpu, before, interrupts).map(|(stepped, _)| stepped)
    }

    /// One try at that, and whether any register has changed.
    fn try_step(
        &mut self,
        vcpu: VcpuId,
        before: &Amd64Registers,
        interrupts: bool,
    ) -> Result<(Stepped, bool), VmiError> {
        let Some(stub) = &mut self.stub else { return Ok((Stepped::Not, false)) };
        let thread = stub.thread(vcpu).ok_or(VmiError::VcpuNotFound(vcpu))?;
        if interrupts {
            stub.let_interrupts_in(true)?;
        }
        stub.step(thread)?;
        let mut stop = stub.wait_stop(Instant::now() + STEP_TIME)?;
        let in_time = stop.is_some();
        if !in_time {
            stub.interrupt()?;
            stop = stub.wait_stop(Instant::now() + STEP_TIME)?;
        }
        if interrupts {
            stub.let_interrupts_in(false)?;
        }
        // One that came to the next instruction has done this one, and nothing else is asked of it.
        if in_time
            && let Some(Stop::At { signal: Stop::TRAP, watch: None, .. }) = stop
            && !self.step_wanted.contains(&vcpu)
            && let Some(rip) = stub.instruction_pointer(thread)?
            && (1..=LONGEST_INSTRUCTION).contains(&rip.wrapping_sub(before.gp.rip))
        {
            return Ok((Stepped::Done, true));
        }
        let after = stub.registers(thread)?;
        let moved = Place::of(&after).gp != Place::of(before).gp;
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
        // An instruction that was executed leads a few bytes on, or somewhere by itself.
        let is_next = after.gp.rip.wrapping_sub(va.0) <= LONGEST_INSTRUCTION;
        if !self.breakpoints.contains_key(&va) || is_next || after.cpl() != 0 || after.gp.rsp == before.gp.rsp {
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
