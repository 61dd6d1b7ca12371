//! Linux, with no configuration: x86-64 kernels from 5.4 on.
//!
//! Everything comes out of guest memory: where the kernel is (`detect`), its symbols ([`kallsyms`]), the layout of its
//! structures ([`btf`], kept in `layout`), then its processes (`tasks`). Kernels are told apart by what they have, never by
//! their version. A kernel without type information needs a file of offsets. Imports the session and below; start at
//! [`LinuxOs::detect`].

pub mod btf;
mod bytes;
mod crossview;
mod current;
mod detail;
mod detect;
mod faults;
mod files;
pub mod kallsyms;
mod kernel;
mod layout;
mod maps;
mod missing;
mod module_symbols;
mod modules;
mod sockets;
mod syscalls;
mod tasks;
mod threads;
mod vital;

#[cfg(feature = "fuzzing")]
pub use self::layout::check_profile;

use std::sync::Arc;

use indexmap::IndexSet;

use self::{current::PerCpu, files::Namer, kernel::Kernel, layout::Layout, missing::SwapTypes, module_symbols::Named};
use super::{CurrentProcess, ProcessList, SystemCall, VitalSigns, VmiOs};
use crate::engine::{
    addr::{AddressContext, Pa, Va},
    arch::amd64::{Amd64, Amd64GpRegisters, Amd64Registers},
    driver::VmiRead,
    error::VmiError,
    session::{VmiCore, VmiProber, VmiSession, VmiState},
    snapshot::{MissingPage, Module, Process, ProcessDetail, ProcessKey},
    symbols::SymbolTable,
};

/// What is known of one guest's Linux kernel.
pub struct LinuxOs {
    version: String,
    base: Va,
    /// Where the image lies in guest-physical memory.
    image: Pa,
    root: Pa,
    /// Whether user mode has page tables of its own.
    isolated: bool,
    /// Where all physical memory is mapped (`page_offset_base`).
    direct_map: Va,
    init_task: Va,
    per_cpu: PerCpu,
    layout: Layout,
    /// By which function the kernel names what is in no tree of folders.
    namers: Vec<(Va, Namer)>,
    /// What entries of pages that are not mapped stand for.
    swap_types: SwapTypes,
    /// The kernel's own symbols: what facts are looked up in. No module can add to them.
    symbols: Arc<SymbolTable>,
    /// What people are shown and may name.
    named: Named,
}

impl LinuxOs {
    /// Finds the kernel of a guest from the registers of any of its vCPUs, in user mode or not. The driver need not
    /// know `lstar` and `idt_base`; without them the check that a kernel is what is mapped is weaker. Sets the core's
    /// paging levels.
    ///
    /// `profile` is the text of a file of offsets, for kernels that carry no type information; what it says overrules
    /// the kernel's own. `docs/linux.md` describes it.
    ///
    /// # Errors
    /// [`VmiError::Os`] with what was not found: the guest is not up yet, is not Linux, or needs a profile.
    pub fn detect<Driver>(
        core: &VmiCore<Driver>,
        registers: &Amd64Registers,
        profile: Option<&str>,
    ) -> Result<Self, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        detect::detect(core, registers, profile)
    }

    /// Whether the kernel keeps page tables of their own for user mode (kernel page-table isolation).
    pub fn is_isolated(&self) -> bool {
        self.isolated
    }

    /// The root that a process is known by, of the two that it has where page tables are isolated.
    fn known_root(&self, root: Pa) -> Pa {
        if self.isolated { Pa(root.0 & !0x1000) } else { root }
    }

    /// The loaded modules of the kernel, the one that was loaded last first, those that hide from the list at its end.
    ///
    /// # Errors
    /// [`VmiError::Os`] where the kernel has no modules; others where the list cannot be read.
    pub fn kernel_modules<Driver>(&self, core: &VmiCore<Driver>) -> Result<Vec<Module>, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let _look = core.look();
        Ok(self.kernel(core).kernel_modules()?.0)
    }

    /// Reads of this kernel's memory.
    fn kernel<'a, Driver>(&'a self, core: &'a VmiCore<Driver>) -> Kernel<'a, Driver>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        Kernel { core, os: self }
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> VmiOs<Driver> for LinuxOs {
    fn name(&self) -> &'static str {
        "linux"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn kernel_image_base(&self) -> Va {
        self.base
    }

    fn kernel_root(&self) -> Pa {
        self.root
    }

    fn symbols(&self) -> Arc<SymbolTable> {
        self.named.symbols()
    }

    fn refresh_symbols(&self, vmi: VmiSession<'_, Driver, Self>) -> bool {
        let _look = vmi.core().look();
        self.kernel(vmi.core()).refresh_module_symbols()
    }

    fn missing_module<'a>(&self, place: &'a str) -> Option<&'a str> {
        self.named.missing_module(place)
    }

    fn process_root(&self, root: Pa) -> Pa {
        self.known_root(root)
    }

    fn processes(&self, vmi: VmiSession<'_, Driver, Self>) -> Result<ProcessList, VmiError> {
        let _look = vmi.core().look();
        self.kernel(vmi.core()).processes()
    }

    fn process_again(&self, vmi: VmiSession<'_, Driver, Self>, known: ProcessKey) -> Result<Option<Process>, VmiError> {
        let _look = vmi.core().look();
        self.kernel(vmi.core()).process_again(known)
    }

    fn uptime_ns(&self, vmi: VmiSession<'_, Driver, Self>) -> Option<u64> {
        let _look = vmi.core().look();
        self.kernel(vmi.core()).uptime_ns()
    }

    fn is_mapped(&self, vmi: VmiState<'_, Driver, Self>) -> Option<bool> {
        let _look = vmi.core().look();
        self.kernel(vmi.core()).is_mapped(vmi.registers())
    }

    fn vital_signs(&self, vmi: VmiSession<'_, Driver, Self>) -> Option<VitalSigns> {
        let _look = vmi.core().look();
        let signs = self.kernel(vmi.core()).vital_signs();
        // A look that was cut short proves nothing.
        vmi.cut().is_none().then_some(signs)
    }

    fn current_process(&self, vmi: VmiState<'_, Driver, Self>) -> Result<Option<CurrentProcess>, VmiError> {
        let _look = vmi.core().look();
        self.kernel(vmi.core()).current(vmi.registers())
    }

    fn process_detail(
        &self,
        vmi: VmiSession<'_, Driver, Self>,
        process: &Process,
        prober: &VmiProber,
    ) -> Result<ProcessDetail, VmiError> {
        let _look = vmi.core().look();
        self.kernel(vmi.core()).detail(process, prober)
    }

    fn program(&self, vmi: VmiSession<'_, Driver, Self>, process: &Process) -> Option<String> {
        let kernel = self.kernel(vmi.core());
        let task = kernel.task(process.object).ok().filter(|task| task.tgid == process.pid)?;
        kernel.executable(&task)
    }

    /// The calling convention of the kernel (System V AMD64 ABI, section 3.2.3): six registers, then the stack above
    /// the return address.
    fn function_argument(&self, vmi: VmiState<'_, Driver, Self>, index: u32) -> Result<u64, VmiError> {
        let gp = &vmi.registers().gp;
        match [gp.rdi, gp.rsi, gp.rdx, gp.rcx, gp.r8, gp.r9].get(index as usize) {
            Some(value) => Ok(*value),
            None => vmi.read_u64(Va(gp.rsp) + 8 + u64::from(index - 6) * 8),
        }
    }

    fn system_call(&self, vmi: VmiState<'_, Driver, Self>) -> Option<SystemCall> {
        let _look = vmi.core().look();
        self.kernel(vmi.core()).system_call(vmi.registers())
    }

    /// Where the kernel sends the signal of a fault that it could not serve (`kernel/signal.c`).
    fn fault_refused_at(&self) -> Option<Va> {
        self.symbols.lookup("force_sig_fault")
    }

    fn refused_fault(
        &self,
        vmi: VmiState<'_, Driver, Self>,
        waiting: &IndexSet<AddressContext>,
    ) -> Result<Option<AddressContext>, VmiError> {
        Ok(self.refused(vmi.registers(), waiting))
    }

    fn unrefused(&self, vmi: VmiState<'_, Driver, Self>) -> Result<Option<Amd64GpRegisters>, VmiError> {
        Ok(Some(faults::returned(vmi.registers(), vmi.return_address()?)))
    }

    fn unservable(&self, vmi: VmiSession<'_, Driver, Self>, page: AddressContext) -> Result<Option<String>, VmiError> {
        let _look = vmi.core().look();
        self.kernel(vmi.core()).unservable(page)
    }

    fn missing_page(
        &self,
        vmi: VmiSession<'_, Driver, Self>,
        page: AddressContext,
    ) -> Result<Option<MissingPage>, VmiError> {
        self.kernel(vmi.core()).missing_page(page)
    }

    fn user_returns(&self, vmi: VmiSession<'_, Driver, Self>, root: Pa) -> Result<Vec<Va>, VmiError> {
        let _look = vmi.core().look();
        self.kernel(vmi.core()).user_returns(root)
    }
}
