//! Breakpoints and watchpoints: where QEMU keeps each, and who gets a debug register.
//!
//! Under TCG they are the translator's, outside of the guest, any number of them. KVM has the four debug registers of the
//! processor (Intel SDM volume 3B, section 18.2), for the guest as a whole; a guest that reads its code does not see those
//! either. Further breakpoints are INT3 in guest memory (see [`super::int3`]), and only in the kernel, whose text is the
//! same in every address space. So an address of a process always gets a debug register: one of the kernel's moves into
//! memory for it, and back when a register is free again.

use super::{
    control::Control,
    gdb::Gdb,
    int3::{self, Patch},
};
use crate::engine::{
    addr::{AddressContext, Pa, Va, VcpuId},
    driver::MemoryAccess,
    error::VmiError,
};

/// The debug registers that hold an address, DR0 to DR3.
const DEBUG_REGISTERS: usize = 4;
/// The stub's kinds of breakpoints (GDB manual, appendix E.2, packet `Z`).
const SOFTWARE: u8 = 0;
const HARDWARE: u8 = 1;

/// Where a breakpoint is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// In QEMU's translator (TCG).
    Translator,
    /// In a debug register of every vCPU.
    Register,
    /// As INT3 in guest memory.
    Memory,
}

/// A breakpoint in the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub placement: Placement,
    pa: Pa,
    root: Pa,
    /// How many were set before it.
    age: u64,
}

impl Point {
    fn kind(&self) -> u8 {
        if self.placement == Placement::Register { HARDWARE } else { SOFTWARE }
    }
}

/// Whether an address is in the half that belongs to processes.
fn is_user(va: Va) -> bool {
    va.0 >> 63 == 0
}

impl Control {
    /// Sets a breakpoint at an address that maps to `pa` in its address space.
    pub fn set_breakpoint(&mut self, ctx: AddressContext, pa: Pa) -> Result<(), VmiError> {
        if self.breakpoints.contains_key(&ctx.va) {
            // The stub would count it twice.
            return Ok(());
        }
        self.attach_stub()?;
        self.hold()?;
        let age = self.points_set;
        self.points_set += 1;
        let mut point = Point { placement: Placement::Translator, pa, root: ctx.root, age };
        if self.kvm {
            point.placement = self.deal(ctx.va, &point)?;
        } else {
            self.ask(true, ctx.va, SOFTWARE)?;
        }
        self.breakpoints.insert(ctx.va, point);
        Ok(())
    }

    pub fn clear_breakpoint(&mut self, va: Va) -> Result<(), VmiError> {
        let Some(&point) = self.breakpoints.get(&va) else { return Ok(()) };
        self.listen()?;
        self.hold()?;
        match point.placement {
            Placement::Memory => self.take_from_memory(va)?,
            Placement::Translator | Placement::Register => self.ask(false, va, point.kind())?,
        }
        self.breakpoints.remove(&va);
        self.retried.retain(|retried| retried.va != va);
        if point.placement == Placement::Register {
            self.deal_free_register();
        }
        Ok(())
    }

    /// Whether the guest can read that there is a breakpoint.
    pub fn is_visible(&self, va: Va) -> bool {
        self.breakpoints.get(&va).is_some_and(|point| point.placement == Placement::Memory)
    }

    /// Takes a breakpoint out for a step, which it is put back after.
    pub fn lift(&mut self, va: Va, vcpu: VcpuId, point: &Point) -> Result<(), VmiError> {
        self.aim(vcpu)?;
        self.ask(false, va, point.kind())
    }

    /// Puts a breakpoint back that [`Control::lift`] has taken out.
    pub fn put_back(&mut self, va: Va, point: &Point) -> Result<(), VmiError> {
        let put = self.ask(true, va, point.kind());
        match point.placement {
            // The step may have led to where the kernel is not mapped.
            Placement::Memory if put.is_err() => self.write_int3(va, point),
            _ => put,
        }
    }

    fn aim(&mut self, vcpu: VcpuId) -> Result<(), VmiError> {
        let Some(stub) = &mut self.stub else { return Ok(()) };
        match stub.thread(vcpu) {
            Some(thread) if self.kvm => stub.aim(thread),
            _ => Ok(()),
        }
    }

    fn ask(&mut self, set: bool, va: Va, kind: u8) -> Result<(), VmiError> {
        self.stub.as_mut().map_or(Ok(()), |stub| stub.point(set, kind, va.0, 1))
    }

    /// Finds a place for a breakpoint under KVM and puts it there.
    fn deal(&mut self, va: Va, point: &Point) -> Result<Placement, VmiError> {
        let asked = match self.free_register(is_user(va)) {
            Ok(()) => self.ask(true, va, HARDWARE),
            Err(error) => Err(error),
        };
        match asked {
            Ok(()) => Ok(Placement::Register),
            Err(error) if is_user(va) || matches!(error, VmiError::Lost(_)) => Err(error),
            Err(_) => self.write_int3(va, point).map(|()| Placement::Memory),
        }
    }

    /// Makes sure that a debug register is free; one that the kernel's breakpoints have is vacated if that is `urgent`.
    fn free_register(&mut self, urgent: bool) -> Result<(), VmiError> {
        let in_register = |point: &Point| point.placement == Placement::Register;
        let mut taken: Vec<(Va, Point)> =
            self.breakpoints.iter().filter(|(_, point)| in_register(point)).map(|(&va, &point)| (va, point)).collect();
        if taken.len() + self.watchpoints.len() < DEBUG_REGISTERS {
            return Ok(());
        }
        if urgent {
            // The newest first: who has been hidden longest stays so.
            taken.sort_by_key(|(_, point)| std::cmp::Reverse(point.age));
            for &(va, point) in taken.iter().filter(|&&(va, _)| !is_user(va)) {
                // Both are in for a moment, and the guest stands.
                match self.write_int3(va, &point) {
                    Ok(()) => {}
                    Err(error @ VmiError::Lost(_)) => return Err(error),
                    Err(_) => continue,
                }
                self.ask(false, va, HARDWARE)?;
                if let Some(point) = self.breakpoints.get_mut(&va) {
                    point.placement = Placement::Memory;
                }
                return Ok(());
            }
        }
        let mut places: Vec<Va> = taken.into_iter().map(|(va, _)| va).collect();
        places.extend(self.watchpoints.iter().map(|&(va, ..)| va));
        Err(VmiError::NoDebugRegister { taken: places })
    }

    /// Gives a register that has become free to a breakpoint that is in guest memory.
    fn deal_free_register(&mut self) {
        let in_memory = |(_, point): &(&Va, &Point)| point.placement == Placement::Memory;
        let Some((&va, _)) = self.breakpoints.iter().filter(in_memory).min_by_key(|(_, point)| point.age) else {
            return;
        };
        if self.ask(true, va, HARDWARE).is_err() {
            return;
        }
        let moved = self.take_from_memory(va);
        let placement = if moved.is_ok() { Placement::Register } else { Placement::Memory };
        if let Some(point) = self.breakpoints.get_mut(&va) {
            point.placement = placement;
        }
        if let Err(error) = moved {
            tracing::warn!(%error, "a breakpoint stays in guest memory although a debug register is free");
            if let Err(error) = self.ask(false, va, HARDWARE) {
                tracing::warn!(%error, "and keeps that register");
            }
        }
    }

    /// Has QEMU write an INT3, and looks whether it is where it was meant to be.
    fn write_int3(&mut self, va: Va, point: &Point) -> Result<(), VmiError> {
        self.with_stub(|control, stub| {
            let mut patch = match control.patches.iter().find(|patch| patch.va == va.0) {
                Some(known) => known.clone(),
                None => Patch::of(stub, va, point.pa)?,
            };
            let mut note = |patch: &Patch| control.note_patch(patch);
            note(&patch)?;
            let result =
                int3::reach(stub, &mut patch, point.root, &mut note, |stub| stub.point(true, SOFTWARE, va.0, 1));
            let result = match result {
                Ok(()) if patch.is_in(stub)? => return Ok(()),
                Ok(()) => {
                    let doing = format!("setting a breakpoint at {va} in guest memory");
                    stub.point(false, SOFTWARE, va.0, 1).and(Err(VmiError::driver(
                        doing,
                        "QEMU wrote to another place than the kernel's page tables say",
                    )))
                }
                Err(error) => Err(error),
            };
            // Whatever has gone wrong, nothing stays.
            patch.repair(stub)?;
            control.forget_patch(va)?;
            result
        })
    }

    /// Takes an INT3 out of guest memory, and looks whether the guest's byte is there again.
    fn take_from_memory(&mut self, va: Va) -> Result<(), VmiError> {
        let point = self.breakpoints.get(&va).copied();
        self.with_stub(|control, stub| {
            let Some(mut patch) = control.patches.iter().find(|patch| patch.va == va.0).cloned() else { return Ok(()) };
            let mut note = |patch: &Patch| control.note_patch(patch);
            let root = point.map_or(Pa(0), |point| point.root);
            let taken = int3::reach(stub, &mut patch, root, &mut note, |stub| stub.point(false, SOFTWARE, va.0, 1));
            if let Err(error @ VmiError::Lost(_)) = taken {
                return Err(error);
            }
            patch.repair(stub)?;
            control.forget_patch(va)?;
            // What QEMU could not reach it still has in its list.
            if taken.is_err() { control.renew_list(stub, Some(va)) } else { Ok(()) }
        })
    }

    /// Takes what is left in guest memory out of it, all that can be.
    pub fn repair_patches(&mut self) -> Result<(), VmiError> {
        let mut result = Ok(());
        for patch in self.patches.clone() {
            let repaired = self.with_stub(|control, stub| {
                patch.repair(stub)?;
                control.forget_patch(Va(patch.va))
            });
            result = result.and(repaired);
        }
        result
    }

    /// An INT3 that the guest has overwritten, patching its own code, is set again over what is there now.
    pub fn set_again(&mut self, va: Va) -> Result<(), VmiError> {
        let Some(&point) = self.breakpoints.get(&va).filter(|point| point.placement == Placement::Memory) else {
            return Ok(());
        };
        self.listen()?;
        self.hold()?;
        self.take_from_memory(va)?;
        self.write_int3(va, &point)
    }

    /// The breakpoints that are in guest memory: where, and the physical address.
    pub fn in_memory(&self) -> Vec<(Va, Pa)> {
        let in_memory = self.breakpoints.iter().filter(|(_, point)| point.placement == Placement::Memory);
        in_memory.map(|(&va, point)| (va, point.pa)).collect()
    }

    /// Drops QEMU's list of breakpoints and gives it ours again, for the vCPUs that there are now.
    pub fn renew_list(&mut self, stub: &mut Gdb, without: Option<Va>) -> Result<(), VmiError> {
        stub.begin_again()?;
        for (&va, point) in self.breakpoints.iter().filter(|&(&va, _)| Some(va) != without) {
            let set = match self.patches.iter().find(|patch| patch.va == va.0) {
                Some(patch) => {
                    let ask = |stub: &mut Gdb| stub.point(true, SOFTWARE, va.0, 1);
                    int3::reach(stub, &mut patch.clone(), point.root, &mut |_| Ok(()), ask)
                }
                None => stub.point(true, point.kind(), va.0, 1),
            };
            if let Err(error) = set {
                tracing::warn!(%error, %va, "a breakpoint could not be set again; turn it off and on");
            }
        }
        for &(va, bytes, kind) in &self.watchpoints {
            stub.point(true, kind, va.0, bytes)?;
        }
        Ok(())
    }

    fn note_patch(&mut self, patch: &Patch) -> Result<(), VmiError> {
        match self.patches.iter_mut().find(|known| known.va == patch.va) {
            Some(known) if known == patch => return Ok(()),
            Some(known) => *known = patch.clone(),
            None => self.patches.push(patch.clone()),
        }
        self.write_state()
    }

    fn forget_patch(&mut self, va: Va) -> Result<(), VmiError> {
        self.patches.retain(|patch| patch.va != va.0);
        self.write_state()
    }

    /// Works with the stub and with everything else; without a stub there is nothing to do.
    pub fn with_stub(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Gdb) -> Result<(), VmiError>,
    ) -> Result<(), VmiError> {
        let Some(mut stub) = self.stub.take() else { return Ok(()) };
        let result = work(self, &mut stub);
        self.stub = Some(stub);
        result
    }

    pub fn set_watchpoint(&mut self, va: Va, bytes: u64, access: MemoryAccess) -> Result<(), VmiError> {
        let watchpoint = (va, bytes, watch_kind(access)?);
        if self.watchpoints.contains(&watchpoint) {
            return Ok(());
        }
        self.attach_stub()?;
        self.hold()?;
        if self.kvm {
            self.free_register(true)?;
        }
        if let Some(stub) = &mut self.stub {
            stub.point(true, watchpoint.2, va.0, bytes)?;
            self.watchpoints.insert(watchpoint);
        }
        Ok(())
    }

    pub fn clear_watchpoint(&mut self, va: Va, bytes: u64, access: MemoryAccess) -> Result<(), VmiError> {
        let watchpoint = (va, bytes, watch_kind(access)?);
        if !self.watchpoints.contains(&watchpoint) {
            return Ok(());
        }
        self.listen()?;
        self.hold()?;
        if let Some(stub) = &mut self.stub {
            stub.point(false, watchpoint.2, va.0, bytes)?;
        }
        self.watchpoints.remove(&watchpoint);
        if self.kvm {
            self.deal_free_register();
        }
        Ok(())
    }
}

/// The stub's kind of watchpoint.
fn watch_kind(access: MemoryAccess) -> Result<u8, VmiError> {
    match access {
        MemoryAccess::W => Ok(2),
        MemoryAccess::R => Ok(3),
        MemoryAccess::RW => Ok(4),
        _ => Err(VmiError::Unsupported { what: "a watchpoint on anything but reads and writes" }),
    }
}

/// What a watchpoint of this kind watches for.
pub(super) fn watch_access(kind: u8) -> MemoryAccess {
    match kind {
        2 => MemoryAccess::W,
        3 => MemoryAccess::R,
        _ => MemoryAccess::RW,
    }
}
