//! Which task runs on a CPU.

use super::{LinuxOs, kernel::Kernel};
use crate::engine::{
    addr::{Pa, Va, VcpuId},
    arch::amd64::{Amd64, Amd64Registers},
    driver::VmiRead,
    error::VmiError,
    os::{CurrentProcess, VmiOs},
    session::VmiCore,
};

/// Data that each CPU has of its own.
pub(super) struct PerCpu {
    /// What to add to the address of a per-CPU symbol, by CPU number; what GS holds in the kernel.
    pub(super) offsets: Vec<u64>,
    /// The per-CPU address of the pointer to the running task: `current_task`, or in `pcpu_hot` from 6.2 to 6.14.
    pub(super) current_task: Option<Va>,
}

impl PerCpu {
    /// The base of the CPU that has these registers. In user mode the kernel's GS is put by, in the kernel it is in use;
    /// in the few instructions after an entry it is the other way round, so whichever is a CPU's base is taken. A value
    /// that is the base of no CPU is not followed: user code may load GS with what it likes.
    fn base(&self, registers: &Amd64Registers) -> Option<u64> {
        let mut bases = [registers.gs.base, registers.kernel_gs_base];
        if registers.cpl() == 3 {
            bases.reverse();
        }
        bases.into_iter().find(|base| self.offsets.contains(base))
    }
}

impl LinuxOs {
    /// The process that runs on a vCPU, without its registers: vCPUs have the numbers that Linux gives its CPUs.
    /// `None` where there is no such CPU.
    ///
    /// # Errors
    /// When the kernel's per-CPU data cannot be read.
    pub fn current_process_of<Driver>(
        &self,
        core: &VmiCore<Driver>,
        vcpu: VcpuId,
    ) -> Result<Option<CurrentProcess>, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let _look = core.look();
        match self.per_cpu.offsets.get(usize::from(vcpu.0)) {
            Some(&base) => self.kernel(core).current_at(base),
            None => Ok(None),
        }
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// The process that runs on the vCPU with these registers.
    pub(super) fn current(&self, registers: &Amd64Registers) -> Result<Option<CurrentProcess>, VmiError> {
        match self.os.per_cpu.base(registers) {
            Some(base) => self.current_at(base),
            None if registers.cpl() == 3 => self.current_in(VmiOs::<Driver>::process_root(self.os, registers.root())),
            None => Ok(None),
        }
    }

    /// The process that runs on some CPU in an address space: drivers that do not stop the guest may not know
    /// IA32_KERNEL_GS_BASE, and in user mode it is the only register that tells the CPU.
    fn current_in(&self, root: Pa) -> Result<Option<CurrentProcess>, VmiError> {
        for &base in &self.os.per_cpu.offsets {
            let Some(object) = self.current_task_at(base).ok().flatten() else { continue };
            let mm = self.pointer(object + self.os.layout.task.mm).ok().filter(|mm| !mm.is_null());
            if mm.and_then(|mm| self.root_of(mm)) == Some(root) {
                return self.current_at(base);
            }
        }
        Ok(None)
    }

    /// The task that runs on the CPU whose own data are at this base.
    pub(super) fn current_task_at(&self, base: u64) -> Result<Option<Va>, VmiError> {
        let Some(variable) = self.os.per_cpu.current_task else { return Ok(None) };
        Ok(Some(self.pointer(variable + base)?).filter(|task| !task.is_null()))
    }

    fn current_at(&self, base: u64) -> Result<Option<CurrentProcess>, VmiError> {
        let Some(object) = self.current_task_at(base)? else { return Ok(None) };
        let task = self.task(object)?;
        let (tid, leader) = (task.pid, task.leader);
        // The process goes by the name of its first thread.
        let process = if leader == object || leader.is_null() { task } else { self.task(leader)? };
        let (pid, start_ns) = (process.tgid, process.start_ns);
        Ok(Some(CurrentProcess { pid, tid, name: process.name, object: process.object, start_ns }))
    }
}
