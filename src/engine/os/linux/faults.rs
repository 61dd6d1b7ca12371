//! What the kernel makes of a page fault from user mode (`arch/x86/mm/fault.c`), before it comes and while it runs.

use indexmap::IndexSet;

use super::{LinuxOs, kernel::Kernel, tasks::TaskRecord};
use crate::engine::{
    addr::{AddressContext, Pa, Va},
    arch::amd64::{Amd64, Amd64GpRegisters, Amd64Registers},
    driver::VmiRead,
    error::VmiError,
    os::VmiOs,
};

/// Threads whose way back to user mode is looked up.
const MOST_RETURNS: usize = 16;
/// Bytes of a kernel stack, without and with KASAN (`THREAD_SIZE` in `arch/x86/include/asm/page_64_types.h`).
const STACK_BYTES: [u64; 2] = [0x4000, 0x8000];
/// Bytes above that structure, in kernels without and with FRED (`TOP_OF_KERNEL_STACK_PADDING` in
/// `arch/x86/include/asm/thread_info.h`).
const PADDING: [u64; 2] = [0, 16];
/// `struct pt_regs` at the top of a kernel stack: its size, and where RIP and CS are in it.
const SAVED_BYTES: u64 = 21 * 8;
const SAVED_RIP: u64 = 16 * 8;
const SAVED_CS: u64 = 17 * 8;
/// `__USER_CS`.
const USER_CS: u64 = 0x33;

impl LinuxOs {
    /// `force_sig_fault(signal, code, address)` in the address space of the fault: the page among `waiting` that it
    /// refuses.
    pub(super) fn refused(
        &self,
        registers: &Amd64Registers,
        waiting: &IndexSet<AddressContext>,
    ) -> Option<AddressContext> {
        let root = self.known_root(registers.root());
        let page = |va: Va| va.0 >> 12;
        let is_refused =
            |waiting: &&AddressContext| waiting.root == root && page(waiting.va) == page(Va(registers.gp.rdx));
        waiting.iter().find(is_refused).copied()
    }
}

/// The registers behind the return of the function whose first instruction is about to run.
pub(super) fn returned(registers: &Amd64Registers, to: Va) -> Amd64GpRegisters {
    Amd64GpRegisters { rip: to.0, rsp: registers.gp.rsp.wrapping_add(8), rax: 0, ..registers.gp }
}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// A process by its address space.
    pub(super) fn process_in(&self, root: Pa) -> Result<Option<TaskRecord>, VmiError> {
        let (tasks, truncated) = self.task_list()?;
        let is_it = |task: &TaskRecord| !task.mm.is_null() && self.root_of(task.mm) == Some(root);
        match tasks.into_iter().find(is_it) {
            // What is missing from a part of the list has not ended.
            None if truncated || self.core.cut().is_some() => {
                Err(VmiError::os("the list of processes is cut short: retry later"))
            }
            found => Ok(found),
        }
    }

    /// Where the threads of an address space go on in user mode.
    pub(super) fn user_returns(&self, root: Pa) -> Result<Vec<Va>, VmiError> {
        let (Some(stack), Some(process)) = (self.os.layout.task_stack, self.process_in(root)?) else {
            return Ok(Vec::new());
        };
        let threads = self.threads(&process).map(|(threads, _)| threads).unwrap_or_default();
        let mut places: Vec<Va> = Vec::new();
        for thread in threads.into_iter().take(MOST_RETURNS) {
            let Ok(base) = self.pointer(thread.object + stack) else { continue };
            let tops = STACK_BYTES.iter().flat_map(|bytes| PADDING.map(|padding| base + (bytes - padding)));
            let place = tops.into_iter().find_map(|top| self.saved_rip(top));
            places.extend(place.filter(|place| !places.contains(place)));
        }
        Ok(places)
    }

    /// The user's RIP at the top of a kernel stack.
    fn saved_rip(&self, top: Va) -> Option<Va> {
        let saved = top - SAVED_BYTES;
        let rip = self.pointer(saved + SAVED_RIP).ok()?;
        // With FRED the selector has flags above it.
        let cs = self.pointer(saved + SAVED_CS).ok()?.0 & 0xffff;
        (cs == USER_CS && !rip.is_null() && !VmiOs::<Driver>::is_kernel_address(self.os, rip)).then_some(rip)
    }
}
