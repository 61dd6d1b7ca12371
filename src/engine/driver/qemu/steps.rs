//! One vCPU, one instruction: over the breakpoint that it stands at, or on the user's command.
//!
//! TCG steps over a breakpoint that it starts on. KVM does not: a processor that is entered at an instruction breakpoint
//! hits it again, and executes an INT3 again. There a breakpoint in a debug register is passed with RF set (Intel SDM
//! volume 3B, section 18.3.1.1), where that was seen to work, and any other is taken out for the step.

use std::time::{Duration, Instant};

use super::{
    control::Control,
    events::Place,
    gdb::{Stop, Thread},
    points::Placement,
};
use crate::engine::{
    addr::{Gfn, Va, VcpuId},
    arch::amd64::{Amd64EventReason, Amd64Registers},
    error::VmiError,
    event::VmiEvent,
};

/// How long a step may take before the guest is asked to stop.
const STEP_TIME: Duration = Duration::from_secs(2);
/// With several vCPUs at a breakpoint at the same moment, a step of QEMU 7.2 sometimes stops before its instruction.
const STEP_ATTEMPTS: u32 = 3;
/// In bytes (Intel SDM volume 2A, section 2.3.11).
const LONGEST_INSTRUCTION: u64 = 15;

/// How a step ended.
enum Stepped {
    Done,
    /// It hit a watchpoint, whose event is pending.
    Watched,
    /// The vCPU did not come to an instruction.
    Not,
}

impl Control {
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
            Some(Stop::Exited) => Err(VmiError::Lost("the guest is gone: QEMU has ended".into())),
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
