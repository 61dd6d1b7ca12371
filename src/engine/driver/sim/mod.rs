//! The built-in guest: a small deterministic AMD64 machine with a Windows-like kernel, so that the program has something
//! true to watch where there is no hypervisor, and its tests a guest instead of a mock.
//!
//! `memory`, `view`, `vcpu` and `cpu` are the hardware: frames, second-level mappings, instructions that are fetched and
//! executed. `machine` runs it in virtual time and turns what was asked for into events; `driver` puts the capability
//! traits on top. `kernel` is what runs inside. A seed and the sequence of calls decide everything. Imports addresses,
//! errors, events, `arch`, the driver traits and the profile of facts. Start at `machine`, then `kernel`.

mod cpu;
mod driver;
mod kernel;
mod machine;
mod memory;
mod pace;
mod random;
mod vcpu;
mod view;

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use self::{kernel::Kernel, machine::Machine, memory::Memory, pace::Pace};
use crate::engine::{
    addr::{Pa, Va},
    error::VmiError,
};

/// What guest to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimOptions {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Processes at the start, 3 to 10,000; more and fewer are cut to that.
    pub processes: usize,
    /// Whether virtual time follows the wall clock; else it passes only in waits, as fast as the host can.
    pub real_time: bool,
    /// Whether every change of the guest is refused.
    pub read_only: bool,
    /// Virtual CPUs, 1 to 16; more and fewer are cut to that.
    pub vcpus: u16,
    /// Five levels of page tables instead of four.
    pub la57: bool,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self { seed: 1, processes: 40, real_time: false, read_only: false, vcpus: 2, la57: false }
    }
}

/// A process as the guest itself has it: what a process list should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimProcess {
    /// Process id.
    pub pid: u32,
    /// Parent's id.
    pub ppid: u32,
    /// Image name.
    pub name: String,
    /// Physical address of its top page table.
    pub root: Pa,
    /// Address of its `_EPROCESS`.
    pub object: Va,
    /// Whether it took itself off the list of processes.
    pub hidden: bool,
    /// Whether it has exited and waits to be taken off the list.
    pub exiting: bool,
}

/// The built-in guest.
///
/// As on Xen, the end of a single step is reported only while `EventMonitor::Singlestep` is enabled, and no external
/// interrupt is taken during one. An answer that names a view that does not exist leaves the vCPU in the one it is in.
pub struct SimDriver {
    machine: RefCell<Machine>,
    pace: RefCell<Pace>,
    overhead: Cell<Duration>,
    real_time: bool,
    read_only: bool,
    options: SimOptions,
    resets: Cell<u64>,
}

impl SimDriver {
    /// RAM of the guest in bytes.
    pub const MEMORY_BYTES: u64 = 512 << 20;

    /// A guest that has just finished booting.
    ///
    /// # Errors
    /// When the built-in profile lacks a fact, or the processes do not fit into the guest's memory.
    pub fn new(options: SimOptions) -> Result<Self, VmiError> {
        let mut memory = Memory::new(Self::MEMORY_BYTES);
        let (kernel, vcpus) = Kernel::boot(options, &mut memory)?;
        Ok(Self {
            machine: RefCell::new(Machine::new(memory, vcpus, kernel)),
            pace: RefCell::default(),
            overhead: Cell::default(),
            real_time: options.real_time,
            read_only: options.read_only,
            options,
            resets: Cell::new(0),
        })
    }

    /// Presses the machine's reset button: the guest has booted again, its kernel is somewhere else, all processes are new.
    /// This is no act of the session's, so a read-only one does not refuse it.
    ///
    /// # Errors
    /// As [`SimDriver::new`]; the guest is as it was.
    pub fn press_reset(&self) -> Result<(), VmiError> {
        let resets = self.resets.get() + 1;
        let mut memory = Memory::new(Self::MEMORY_BYTES);
        let seed = self.options.seed.wrapping_add(resets << 32);
        let (kernel, vcpus) = Kernel::boot(SimOptions { seed, ..self.options }, &mut memory)?;
        self.machine.borrow_mut().boot_again(memory, vcpus, kernel);
        self.resets.set(resets);
        Ok(())
    }

    /// How often the guest found its own code changed.
    pub fn tamper_count(&self) -> u64 {
        self.machine.borrow().kernel.tampers()
    }

    /// How often the guest legitimately changed its own code.
    pub fn patch_count(&self) -> u64 {
        self.machine.borrow().kernel.patches()
    }

    /// The guest's processes in order of pid, hidden ones included.
    pub fn processes(&self) -> Vec<SimProcess> {
        self.machine.borrow().kernel.processes()
    }
}
