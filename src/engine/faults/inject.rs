//! When and how a page fault gets into the guest.

use super::{FaultLoop, record::Why, space_of};
use crate::engine::{
    addr::{AddressContext, Pa, Va, VcpuId},
    arch::{
        Architecture, Registers,
        amd64::{Amd64, Amd64Registers, Interrupt, is_canonical},
    },
    driver::{VmiDriver, VmiRead, VmiVmControl},
    error::VmiError,
    os::VmiOs,
    session::{VmiCore, VmiState},
    snapshot::{self, FaultId, FaultState},
};

/// What kind of code a vCPU is in, if a page fault may come up there at any instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectionPoint {
    /// User mode.
    User,
    /// Kernel code with interrupts on.
    Kernel,
}

/// What the fault loop must know of an architecture.
pub trait FaultAdapter: Architecture {
    /// Where the vCPU is; `None` where nothing may be injected.
    fn injection_point(registers: &Self::Registers) -> Option<InjectionPoint>;

    /// The page fault of a read at a page that is not present.
    fn page_fault(va: Va, point: InjectionPoint) -> Self::Interrupt;

    /// Whether some page table could map the address.
    fn is_canonical(va: Va, levels: u8) -> bool;
}

impl FaultAdapter for Amd64 {
    fn injection_point(registers: &Amd64Registers) -> Option<InjectionPoint> {
        if registers.is_user_mode() {
            Some(InjectionPoint::User)
        } else {
            (registers.gp.rflags & Amd64Registers::RFLAGS_IF != 0).then_some(InjectionPoint::Kernel)
        }
    }

    /// Error code of a read that found no page: bit 2 (user) or nothing (Intel SDM volume 3A, section 4.7).
    fn page_fault(va: Va, point: InjectionPoint) -> Interrupt {
        Interrupt::page_fault(va.0, if point == InjectionPoint::User { 4 } else { 0 })
    }

    fn is_canonical(va: Va, levels: u8) -> bool {
        is_canonical(va, levels)
    }
}

/// Whether a driver's page faults can be injected at all.
pub trait Delivers {
    /// Whether they can; a [`FaultLoop`] may still be told not to.
    const INJECTS: bool;
}

/// How a page fault gets into the guest of a driver.
pub trait FaultDelivery<Driver: VmiDriver>: Delivers {
    /// Makes a vCPU take a page fault before its next instruction.
    ///
    /// # Errors
    /// When it cannot be done, or not now.
    fn deliver(vmi: &VmiCore<Driver>, vcpu: VcpuId, va: Va, point: InjectionPoint) -> Result<(), VmiError>;
}

/// Injects page faults through the hypervisor.
#[derive(Clone, Copy, Debug, Default)]
pub struct InjectFaults;

impl Delivers for InjectFaults {
    const INJECTS: bool = true;
}

impl<Driver> FaultDelivery<Driver> for InjectFaults
where
    Driver: VmiVmControl,
    Driver::Architecture: FaultAdapter,
{
    fn deliver(vmi: &VmiCore<Driver>, vcpu: VcpuId, va: Va, point: InjectionPoint) -> Result<(), VmiError> {
        vmi.inject_interrupt(vcpu, Driver::Architecture::page_fault(va, point))
    }
}

/// Injects nothing: pages come when the guest needs them itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct WaitForGuest;

impl Delivers for WaitForGuest {
    const INJECTS: bool = false;
}

impl<Driver: VmiDriver> FaultDelivery<Driver> for WaitForGuest {
    fn deliver(_: &VmiCore<Driver>, _: VcpuId, _: Va, _: InjectionPoint) -> Result<(), VmiError> {
        Err(VmiError::Unsupported { what: "injecting a page fault" })
    }
}

impl<Delivery: Delivers> FaultLoop<Delivery> {
    /// Which pages may be injected where a vCPU is: those of the current process in user mode, those of the kernel's
    /// half in interruptible kernel code, if the policy allows that.
    fn servable_space(&self, point: InjectionPoint, current: Pa) -> Option<Option<Pa>> {
        match point {
            InjectionPoint::User => Some(Some(current)),
            InjectionPoint::Kernel => self.policy.kernel_context.then_some(None),
        }
    }

    /// Whether a page may be injected where a vCPU is, and as what. `current` is the root that the current process is
    /// known by (`VmiOs::process_root`).
    pub fn may_inject<Arch: FaultAdapter>(
        &self,
        registers: &Arch::Registers,
        current: Pa,
        page: AddressContext,
    ) -> Option<InjectionPoint> {
        let point = Arch::injection_point(registers)?;
        (self.servable_space(point, current)? == space_of(page)).then_some(point)
    }

    /// Injects the page that is due on a vCPU which stands at an event (or is paused), if there is one and it is safe:
    /// those that the user wants first, then the oldest. Answers its row. Pages that turn out to be there are resolved
    /// on the way.
    ///
    /// # Errors
    /// When the driver could not read or inject; the page stays pending and its row says why.
    pub fn inject_next<Driver, Os>(
        &mut self,
        vmi: VmiState<'_, Driver, Os>,
        vcpu: VcpuId,
        now_ns: u64,
    ) -> Result<Option<FaultId>, VmiError>
    where
        Driver: VmiRead,
        Driver::Architecture: FaultAdapter,
        Os: VmiOs<Driver>,
        Delivery: FaultDelivery<Driver>,
    {
        let registers = vmi.registers();
        let current = vmi.underlying_os().process_root(registers.translation_root(Va(0)));
        let Some((point, space)) = self.place::<Driver::Architecture>(registers, current, vcpu) else {
            return Ok(None);
        };
        while let Some((id, ctx)) = self.due(space, now_ns) {
            if !Driver::Architecture::is_canonical(ctx.va, vmi.core().paging_levels()) {
                self.set(id, Why::unmappable(), now_ns);
                continue;
            }
            match vmi.core().translate_address(ctx) {
                Ok(_) => {
                    self.on_translation_ok(ctx, now_ns);
                    continue;
                }
                Err(error) if error.is_page_fault() => {}
                Err(error) => return Err(error),
            }
            let delivered = match Self::unservable(vmi, ctx, point) {
                Ok(None) => Delivery::deliver(vmi.core(), vcpu, ctx.va, point),
                Ok(Some(why)) => {
                    self.set(id, Why::Unservable(snapshot::clean(&why, 200)), now_ns);
                    continue;
                }
                Err(error) => Err(error),
            };
            if let Err(error) = delivered {
                if let Some(record) = self.records.get_mut(&id) {
                    // Others get their turn, and a driver that always refuses is not asked at every event.
                    record.not_before_ns = now_ns.saturating_add(self.policy.attempt_ns / 16).saturating_add(1);
                }
                self.set(id, Why::DriverRefused(snapshot::clean(&error.to_string(), 200)), now_ns);
                return Err(error);
            }
            if let Some(record) = self.records.get_mut(&id) {
                record.attempts = record.attempts.saturating_add(1);
                record.vcpu = Some(vcpu);
            }
            self.in_flight.insert(vcpu, id);
            self.set(id, Why::OnItsWay, now_ns);
            return Ok(Some(id));
        }
        Ok(None)
    }

    /// Why the guest's kernel would not serve a page.
    fn unservable<Driver, Os>(
        vmi: VmiState<'_, Driver, Os>,
        ctx: AddressContext,
        point: InjectionPoint,
    ) -> Result<Option<String>, VmiError>
    where
        Driver: VmiRead,
        Os: VmiOs<Driver>,
    {
        match point {
            InjectionPoint::User => vmi.underlying_os().unservable(vmi.session(), ctx),
            InjectionPoint::Kernel => Ok(None),
        }
    }

    /// Where a vCPU is, and the pages that may be injected there; `None` where none may.
    fn place<Arch: FaultAdapter>(
        &self,
        registers: &Arch::Registers,
        current: Pa,
        vcpu: VcpuId,
    ) -> Option<(InjectionPoint, Option<Pa>)> {
        if !self.injects() || self.pending.is_empty() || self.in_flight.contains_key(&vcpu) {
            return None;
        }
        let point = Arch::injection_point(registers)?;
        Some((point, self.servable_space(point, current)?))
    }

    /// Whether [`FaultLoop::inject_next`] has something to do on a vCPU with these registers.
    pub fn is_due<Arch: FaultAdapter>(
        &self,
        registers: &Arch::Registers,
        current: Pa,
        vcpu: VcpuId,
        now_ns: u64,
    ) -> bool {
        let place = self.place::<Arch>(registers, current, vcpu);
        place.is_some_and(|(_, space)| self.due(space, now_ns).is_some())
    }

    /// Whether a page waits that could be injected as soon as its address space (the root that its process is known
    /// by) runs in user mode: then it is worth following that process there.
    pub fn waits_for(&self, root: Pa, now_ns: u64) -> bool {
        self.injects() && self.due(Some(root), now_ns).is_some()
    }

    /// The user address spaces of pages that wait to be injected.
    pub fn awaited_roots(&self, now_ns: u64) -> Vec<Pa> {
        self.pending.keys().flatten().copied().filter(|&root| self.waits_for(root, now_ns)).collect()
    }

    /// Whether any page of a user address space waits to be injected.
    pub fn waits_for_any(&self, now_ns: u64) -> bool {
        self.pending.keys().flatten().any(|&root| self.waits_for(root, now_ns))
    }

    /// The page to inject next in an address space.
    fn due(&self, space: Option<Pa>, now_ns: u64) -> Option<(FaultId, AddressContext)> {
        let due = |id: &FaultId| {
            let record = self.records.get(id).filter(|record| record.not_before_ns <= now_ns)?;
            (record.wanted || self.policy.automatic).then_some((*id, record))
        };
        let mut all = self.pending.get(&space)?.iter().filter_map(due);
        let first = all.next()?;
        let (id, record) = if first.1.wanted { first } else { all.find(|(_, record)| record.wanted).unwrap_or(first) };
        Some((id, record.ctx))
    }

    /// The user wants the page now: it is injected at the next safe place, before all others. Answers which one it is.
    ///
    /// # Errors
    /// A sentence for the user: there is no such row, it is not pending, or this driver cannot inject.
    pub fn want(&mut self, id: FaultId) -> Result<AddressContext, VmiError> {
        let (ctx, state) = self.row(id).map(|record| (record.ctx, record.state()))?;
        let refuse = |why: &str| Err(VmiError::Invalid(format!("cannot inject a page fault at {ctx}: {why}")));
        match state {
            _ if !self.injects() => {
                refuse("nothing is injected here; the page is watched and resolves when the guest brings it in")
            }
            FaultState::Pending if space_of(ctx).is_none() && !self.policy.kernel_context => {
                refuse("it is the kernel's, and a kernel that does not page itself takes that for a bug of its own")
            }
            FaultState::Pending => {
                self.row(id)?.wanted = true;
                Ok(ctx)
            }
            FaultState::Injected => refuse("one is on its way already"),
            FaultState::Resolved => refuse("the page is there"),
            FaultState::Suppressed => refuse("it was given up; ask for it again first"),
        }
    }
}
