//! The guest's kernel.

use super::{SimOptions, SimProcess, memory::Memory, vcpu::Vcpu};
use crate::engine::{arch::amd64::Amd64Registers, error::VmiError};

/// The kernel.
pub(super) struct Kernel {}

impl Kernel {
    pub(super) fn boot(options: SimOptions, _memory: &mut Memory) -> Result<(Self, Vec<Vcpu>), VmiError> {
        let halted = || Vcpu { halted: true, ..Vcpu::new(Amd64Registers::default(), 0) };
        Ok((Self {}, (0..options.vcpus).map(|_| halted()).collect()))
    }
    pub(super) fn call(&mut self, _memory: &mut Memory, _cpu: &mut Vcpu, _id: usize, _now: u64) {}
    pub(super) fn interrupt_due(&self, _id: usize, _now: u64) -> bool {
        false
    }
    pub(super) fn take_interrupt(&mut self, _id: usize, _now: u64) -> Option<u8> {
        None
    }
    pub(super) fn deadline(&self, _id: usize) -> u64 {
        u64::MAX
    }
    pub(super) fn tampers(&self) -> u64 {
        0
    }
    pub(super) fn patches(&self) -> u64 {
        0
    }
    pub(super) fn processes(&self) -> Vec<SimProcess> {
        Vec::new()
    }
}
