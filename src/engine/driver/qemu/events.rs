//! From stops to events and back: what a vCPU stopped for, and how it goes on.
//!
//! Each hit is reported once. The stub stops all vCPUs and names one; another one that stands at a breakpoint at that
//! moment has hit it as well. Before the guest goes on, each of them is brought past its breakpoint alone, the others
//! standing, and only if the breakpoint is still there. If the instruction faults on the way, it comes again after the
//! fault was handled: that is not a new hit. How a vCPU is brought past is told in `steps`.

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

/// Instructions that come again and are remembered.
const MOST_RETRIED: usize = 64;

/// A vCPU's state at a breakpoint: what tells an instruction that comes again (after a fault of its own, or because its
/// vCPU was interrupted before it) from a new hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub va: Va,
    root: u64,
    pub gp: Amd64GpRegisters,
}

impl Place {
    pub fn of(registers: &Amd64Registers) -> Self {
        let mut gp = registers.gp;
        // An instruction that comes again after a fault has RF set.
        gp.rflags &= !Amd64Registers::RFLAGS_RF;
        Self { va: Va(gp.rip), root: registers.cr3, gp }
    }
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
            Stop::Exited => Err(VmiError::Lost("the guest is gone: QEMU has ended".into())),
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
    pub(super) fn is_known(&mut self, vcpu: VcpuId, va: Va, registers: &Amd64Registers) -> bool {
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
    pub(super) fn note_retry(&mut self, place: Place) {
        if self.retried.len() == MOST_RETRIED {
            self.retried.pop_front();
        }
        self.retried.push_back(place);
    }

    pub(super) fn breakpoint_event(&self, vcpu: VcpuId, va: Va, registers: Amd64Registers) -> VmiEvent<Amd64> {
        // The driver fills the frame in, which it reads the page tables for.
        VmiEvent::new(vcpu, None, registers, Amd64EventReason::DebugBreakpoint { va, gfn: Gfn(0) })
    }

    pub(super) fn watch_event(&self, vcpu: VcpuId, registers: Amd64Registers, va: Va) -> Option<VmiEvent<Amd64>> {
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
}
