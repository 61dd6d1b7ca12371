//! The capability traits, on the built-in guest.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{SimDriver, machine::Machine, pace::nanoseconds, view::Views};
use crate::engine::{
    addr::{Gfn, Pa, VcpuId, View},
    arch::amd64::{Amd64, Amd64Registers, EventMonitor, Interrupt},
    driver::{
        MemoryAccess, MemoryAccessOptions, VmiDriver, VmiEventControl, VmiInfo, VmiQueryProtection, VmiQueryRegisters,
        VmiRead, VmiSetProtection, VmiSetRegisters, VmiStep, VmiViewControl, VmiVmControl, VmiWrite,
    },
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
    snapshot::{Capability, Unavailable},
};

impl SimDriver {
    /// Refuses what would change the guest of a read-only session.
    fn may_change(&self, what: &'static str) -> Result<(), VmiError> {
        if self.read_only { Err(VmiError::ReadOnly { what }) } else { Ok(()) }
    }
}

fn in_memory(machine: &Machine, gfn: Gfn) -> Result<u64, VmiError> {
    if machine.memory.exists(gfn.0) { Ok(gfn.0) } else { Err(VmiError::OutOfBounds(Pa(gfn.0.wrapping_shl(12)))) }
}

impl VmiDriver for SimDriver {
    type Architecture = Amd64;

    fn info(&self) -> Result<VmiInfo, VmiError> {
        let machine = self.machine.borrow();
        let frames = machine.memory.ram_frames();
        Ok(VmiInfo {
            name: "WIN10-19041".to_owned(),
            vcpus: machine.vcpus.len() as u16,
            memory_bytes: frames << 12,
            max_gfn: Gfn(frames - 1),
        })
    }

    fn capabilities(&self) -> (Vec<Capability>, Vec<Unavailable>) {
        use Capability as C;
        let look = vec![C::Read, C::Registers, C::TablePolling, C::Pause];
        let touch =
            [C::Write, C::Breakpoints, C::HiddenBreakpoints, C::TableWrites, C::FaultInjection, C::Step, C::Views];
        if !self.read_only {
            return (look.into_iter().chain(touch).collect(), Vec::new());
        }
        let why = "this session is read-only: start without --read-only";
        (look, touch.into_iter().map(|what| Unavailable { what, why: why.to_owned() }).collect())
    }

    fn clock_ns(&self) -> u64 {
        self.machine.borrow().now
    }

    fn resets(&self) -> u64 {
        self.resets.get()
    }
}

impl VmiRead for SimDriver {
    fn read_physical(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), VmiError> {
        self.machine.borrow().memory.read(pa.0, buffer)
    }

    #[inline]
    fn read_physical_u64(&self, pa: Pa) -> Result<u64, VmiError> {
        self.machine.borrow().memory.read_u64(pa.0).ok_or_else(|| VmiError::OutOfBounds(pa))
    }

    #[inline]
    fn is_direct(&self) -> bool {
        true
    }
}

impl VmiWrite for SimDriver {
    fn write_physical(&self, pa: Pa, bytes: &[u8]) -> Result<(), VmiError> {
        self.may_change("a write to guest memory")?;
        self.machine.borrow_mut().memory.write(pa.0, bytes)
    }

    fn copy_page_patched(
        &self,
        from: Gfn,
        to: Gfn,
        offset: usize,
        patch: &[u8],
        saved: &mut [u8],
    ) -> Result<(), VmiError> {
        self.may_change("a write to guest memory")?;
        let copied = self.machine.borrow_mut().memory.copy_patched(from.0, to.0, offset, patch, saved);
        copied.ok_or_else(|| VmiError::OutOfBounds(Pa(from.0 << 12)))
    }
}

impl VmiQueryProtection for SimDriver {
    fn memory_access(&self, gfn: Gfn, view: View) -> Result<MemoryAccess, VmiError> {
        let machine = self.machine.borrow();
        machine.views.access(view, in_memory(&machine, gfn)?)
    }
}

impl VmiSetProtection for SimDriver {
    fn set_memory_access_with_options(
        &self,
        gfn: Gfn,
        view: View,
        access: MemoryAccess,
        options: MemoryAccessOptions,
    ) -> Result<(), VmiError> {
        self.may_change("a change of page access")?;
        let mut machine = self.machine.borrow_mut();
        let gfn = in_memory(&machine, gfn)?;
        machine.views.set_access(view, gfn, access, options)
    }
}

impl VmiQueryRegisters for SimDriver {
    fn registers(&self, vcpu: VcpuId) -> Result<Amd64Registers, VmiError> {
        Ok(self.machine.borrow().vcpu(vcpu)?.registers)
    }
}

impl VmiSetRegisters for SimDriver {
    fn set_registers(&self, vcpu: VcpuId, registers: Amd64Registers) -> Result<(), VmiError> {
        self.may_change("a change of registers")?;
        self.machine.borrow_mut().vcpu_mut(vcpu)?.registers = registers;
        Ok(())
    }
}

impl VmiViewControl for SimDriver {
    fn default_view(&self) -> View {
        Views::DEFAULT
    }

    fn create_view(&self, default_access: MemoryAccess) -> Result<View, VmiError> {
        self.may_change("a new view")?;
        self.machine.borrow_mut().views.create(default_access)
    }

    fn destroy_view(&self, view: View) -> Result<(), VmiError> {
        self.may_change("the removal of a view")?;
        let mut machine = self.machine.borrow_mut();
        machine.views.destroy(view)?;
        machine.leave_view(view);
        Ok(())
    }

    fn switch_to_view(&self, view: View) -> Result<(), VmiError> {
        self.may_change("a switch of views")?;
        let mut machine = self.machine.borrow_mut();
        if !machine.views.exists(view) {
            return Err(VmiError::ViewNotFound(view));
        }
        for cpu in &mut machine.vcpus {
            cpu.view = view;
            cpu.fast_return = cpu.fast_return.map(|_| view);
        }
        Ok(())
    }

    fn change_view_gfn(&self, view: View, old_gfn: Gfn, new_gfn: Gfn) -> Result<(), VmiError> {
        self.may_change("a change of a view")?;
        let mut machine = self.machine.borrow_mut();
        let (old, new) = (in_memory(&machine, old_gfn)?, in_memory(&machine, new_gfn)?);
        machine.views.show(view, old, new)
    }

    fn reset_view_gfn(&self, view: View, gfn: Gfn) -> Result<(), VmiError> {
        self.may_change("a change of a view")?;
        self.machine.borrow_mut().views.reset(view, gfn.0)
    }
}

impl VmiEventControl for SimDriver {
    fn monitor_enable(&self, option: EventMonitor) -> Result<(), VmiError> {
        self.machine.borrow_mut().monitors.enable(option);
        Ok(())
    }

    fn monitor_disable(&self, option: EventMonitor) -> Result<(), VmiError> {
        self.machine.borrow_mut().monitors.disable(option);
        Ok(())
    }

    fn events_pending(&self) -> usize {
        self.machine.borrow().pending.len()
    }

    fn event_processing_overhead(&self) -> Duration {
        self.overhead.get()
    }

    fn wait_for_event<Handler>(&self, timeout: Duration, mut handler: Handler) -> Result<(), VmiError>
    where
        Handler: FnMut(&VmiEvent<Amd64>) -> VmiEventResponse<Amd64>,
    {
        let timeout_ns = nanoseconds(timeout);
        let deadline = self.machine.borrow().now.saturating_add(timeout_ns);
        let wall_deadline = Instant::now().checked_add(timeout);
        loop {
            let started = Instant::now();
            // An event that comes up while another one is answered is for the next wait.
            let count = self.machine.borrow().pending.len();
            for _ in 0..count {
                let Some(event) = self.machine.borrow_mut().pending.pop_front() else { break };
                let response = handler(&event);
                let answered = Instant::now();
                self.machine.borrow_mut().answer(&event, response);
                self.overhead.set(answered.elapsed());
            }
            if count > 0 {
                return Ok(());
            }
            let out_of_time = match (self.real_time, wall_deadline) {
                (true, Some(wall_deadline)) => started >= wall_deadline,
                (true, None) => false,
                (false, _) => self.machine.borrow().now >= deadline,
            };
            if out_of_time {
                return Err(VmiError::Timeout);
            }
            if !self.real_time {
                let mut machine = self.machine.borrow_mut();
                if machine.pauses > 0 {
                    return Err(VmiError::Timeout);
                }
                machine.run(deadline);
                continue;
            }
            let sleep = self.run_in_real_time(started);
            if self.machine.borrow().pending.is_empty() {
                let left = wall_deadline.map_or(sleep, |at| at.saturating_duration_since(Instant::now()));
                thread::park_timeout(sleep.min(left));
            }
        }
    }
}

impl SimDriver {
    /// Lets virtual time come up with the wall clock; answers how long there will be nothing to do.
    fn run_in_real_time(&self, started: Instant) -> Duration {
        const NAP: Duration = Duration::from_millis(1);
        const LONG: Duration = Duration::from_millis(500);
        let mut machine = self.machine.borrow_mut();
        let mut pace = self.pace.borrow_mut();
        if machine.pauses > 0 {
            pace.stop();
            return LONG;
        }
        let target = pace.target(started, machine.now);
        machine.run(target);
        let ended = Instant::now();
        pace.give_up(ended, machine.now);
        let idle = pace.wall(machine.next_activity()).map_or(LONG, |at| at.saturating_duration_since(ended));
        // At least as long asleep as awake: a guest in full swing gets half a core.
        idle.max(ended.saturating_duration_since(started)).clamp(NAP, LONG)
    }
}

impl VmiVmControl for SimDriver {
    fn pause(&self) -> Result<(), VmiError> {
        self.machine.borrow_mut().pauses += 1;
        self.pace.borrow_mut().stop();
        Ok(())
    }

    fn resume(&self) -> Result<(), VmiError> {
        let mut machine = self.machine.borrow_mut();
        machine.pauses = machine.pauses.saturating_sub(1);
        Ok(())
    }

    fn allocate_gfn(&self) -> Result<Gfn, VmiError> {
        self.may_change("an allocation of guest memory")?;
        let memory = &mut self.machine.borrow_mut().memory;
        let full = || VmiError::Invalid("there is no free frame above the guest's memory".to_owned());
        let gfn = memory.free_above().ok_or_else(full)?;
        memory.allocate_above(gfn);
        Ok(Gfn(gfn))
    }

    fn allocate_gfn_at(&self, gfn: Gfn) -> Result<(), VmiError> {
        self.may_change("an allocation of guest memory")?;
        if self.machine.borrow_mut().memory.allocate_above(gfn.0) {
            Ok(())
        } else {
            Err(VmiError::Frame(gfn, "allocated: it is in use or out of range"))
        }
    }

    fn free_gfn(&self, gfn: Gfn) -> Result<(), VmiError> {
        self.may_change("the release of guest memory")?;
        if self.machine.borrow_mut().memory.free(gfn.0) {
            Ok(())
        } else {
            Err(VmiError::Frame(gfn, "freed: it was not allocated"))
        }
    }

    fn inject_interrupt(&self, vcpu: VcpuId, interrupt: Interrupt) -> Result<(), VmiError> {
        self.may_change("the injection of an interrupt")?;
        let mut machine = self.machine.borrow_mut();
        let cpu = machine.vcpu_mut(vcpu)?;
        if cpu.injected.is_some() || cpu.delivering.is_some() {
            return Err(VmiError::Invalid(format!("an interrupt is on its way into vCPU {vcpu} already: retry later")));
        }
        cpu.injected = Some(interrupt);
        Ok(())
    }

    fn reset_state(&self) -> Result<(), VmiError> {
        self.machine.borrow_mut().reset();
        Ok(())
    }
}

impl VmiStep for SimDriver {
    fn step(&self, vcpu: VcpuId) -> Result<(), VmiError> {
        self.may_change("a single step")?;
        self.machine.borrow_mut().step(vcpu)
    }
}
