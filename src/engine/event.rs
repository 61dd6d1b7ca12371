//! What a driver tells of the guest, and what it is told to do about it.

use super::{
    addr::{VcpuId, View},
    arch::{Architecture, Registers},
};

/// Something that a vCPU did and that was being monitored. The vCPU waits until the event is answered.
#[derive(Clone, Copy, Debug)]
pub struct VmiEvent<Arch: Architecture> {
    vcpu: VcpuId,
    view: Option<View>,
    registers: Arch::Registers,
    reason: Arch::EventReason,
}

impl<Arch: Architecture> VmiEvent<Arch> {
    /// An event as a driver reports it.
    pub fn new(vcpu: VcpuId, view: Option<View>, registers: Arch::Registers, reason: Arch::EventReason) -> Self {
        Self { vcpu, view, registers, reason }
    }

    /// The vCPU.
    pub fn vcpu_id(&self) -> VcpuId {
        self.vcpu
    }

    /// The view that the vCPU was in; `None` on drivers without views.
    pub fn view(&self) -> Option<View> {
        self.view
    }

    /// The registers at the event.
    pub fn registers(&self) -> &Arch::Registers {
        &self.registers
    }

    /// What happened.
    pub fn reason(&self) -> &Arch::EventReason {
        &self.reason
    }
}

/// What a vCPU is to do after its event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmiEventAction {
    /// Go on.
    #[default]
    Continue,
    /// Do not let the access (or the register write) happen; go on behind the instruction.
    Deny,
    /// Give the guest the interrupt that was intercepted.
    ReinjectInterrupt,
    /// One instruction, then a singlestep event; off again unless that one asks for it too.
    Singlestep,
    /// One instruction in the response's view, then back to the event's view; no event.
    FastSinglestep,
    /// Let the hypervisor emulate the instruction.
    Emulate,
}

/// The answer to an event: one action, and optionally another view and other general-purpose registers.
#[derive(Clone, Copy, Debug)]
pub struct VmiEventResponse<Arch: Architecture> {
    /// What to do.
    pub action: VmiEventAction,
    /// The view to go on in.
    pub view: Option<View>,
    /// General-purpose registers to go on with.
    pub registers: Option<<Arch::Registers as Registers>::GpRegisters>,
}

impl<Arch: Architecture> Default for VmiEventResponse<Arch> {
    fn default() -> Self {
        Self { action: VmiEventAction::Continue, view: None, registers: None }
    }
}

impl<Arch: Architecture> VmiEventResponse<Arch> {
    fn action(action: VmiEventAction) -> Self {
        Self { action, ..Self::default() }
    }

    /// [`VmiEventAction::Deny`].
    pub fn deny() -> Self {
        Self::action(VmiEventAction::Deny)
    }

    /// [`VmiEventAction::ReinjectInterrupt`].
    pub fn reinject_interrupt() -> Self {
        Self::action(VmiEventAction::ReinjectInterrupt)
    }

    /// [`VmiEventAction::Singlestep`].
    pub fn singlestep() -> Self {
        Self::action(VmiEventAction::Singlestep)
    }

    /// [`VmiEventAction::FastSinglestep`] in the given view.
    pub fn fast_singlestep(view: View) -> Self {
        Self::action(VmiEventAction::FastSinglestep).with_view(view)
    }

    /// [`VmiEventAction::Emulate`].
    pub fn emulate() -> Self {
        Self::action(VmiEventAction::Emulate)
    }

    /// The same, in another view.
    pub fn with_view(self, view: View) -> Self {
        Self { view: Some(view), ..self }
    }

    /// The same, with other general-purpose registers.
    pub fn with_registers(self, registers: <Arch::Registers as Registers>::GpRegisters) -> Self {
        Self { registers: Some(registers), ..self }
    }
}
