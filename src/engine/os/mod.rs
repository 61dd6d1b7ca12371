//! Operating systems: what the bytes of a guest mean.
//!
//! [`VmiOs`] is what the monitor asks of a layer; `linux` finds everything in guest memory by itself, `windows` takes
//! facts from a profile. Imports the session and below. Everything read here is a claim of a hostile guest: walks are
//! bounded, strings are cleaned before they leave.

pub mod linux;
pub mod windows;

use std::sync::Arc;

use indexmap::IndexSet;

use super::{
    addr::{AddressContext, Pa, Va},
    arch::Registers,
    driver::{RegistersOf, VmiRead},
    error::VmiError,
    session::{VmiProber, VmiSession, VmiState},
    snapshot::{MissingPage, Process, ProcessDetail, ProcessKey},
    symbols::SymbolTable,
};

/// By what a kernel that runs is told from one whose memory only has not been used again yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VitalSigns {
    /// Whether what was found of it is where it was: its image, its name, its map of memory.
    pub is_intact: bool,
    /// Its count of timer ticks, which never falls; `None` where it cannot be read.
    pub ticks: Option<u64>,
}

/// The general-purpose registers of a driver's architecture.
pub type GpOf<Driver> = <RegistersOf<Driver> as Registers>::GpRegisters;

/// A guest's list of processes, as its kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessList {
    /// The processes in the order of the guest's list, the hidden ones last.
    pub processes: Vec<Process>,
    /// Whether the list, or its comparison with what else the kernel knows, was cut short: by a cycle, a missing page, or the
    /// bounds of a list or a look. What it does not have is neither hidden nor gone.
    pub truncated: bool,
    /// Threads that are missing from their process's own list, as ids of process and thread.
    pub hidden_threads: Vec<(u32, u32)>,
}

/// Which process runs on a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CurrentProcess {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Short name, cleaned.
    pub name: String,
    /// Address of the kernel's process structure.
    pub object: Va,
    /// When the process started, as in [`Process::start_ns`].
    pub start_ns: u64,
}

impl CurrentProcess {
    /// What the process is known by.
    pub fn key(&self) -> ProcessKey {
        ProcessKey { pid: self.pid, start_ns: self.start_ns, object: self.object }
    }
}

/// A system call that is about to be served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemCall {
    /// Name and arguments in a line, cleaned.
    pub text: String,
    /// The arguments.
    pub arguments: Vec<u64>,
}

/// An operating-system layer, made for one guest.
pub trait VmiOs<Driver: VmiRead>: Sized {
    /// "linux" or "windows".
    fn name(&self) -> &'static str;

    /// The kernel's version in a line, cleaned.
    fn version(&self) -> &str;

    /// Where the kernel's image starts.
    fn kernel_image_base(&self) -> Va;

    /// A translation root under which all of the kernel is mapped.
    fn kernel_root(&self) -> Pa;

    /// The symbols of the kernel and of its modules, as they were read last.
    fn symbols(&self) -> Arc<SymbolTable>;

    /// Reads the symbols of modules that were loaded since the last time and forgets those of modules that are gone; whether
    /// [`VmiOs::symbols`] has changed.
    fn refresh_symbols(&self, _vmi: VmiSession<'_, Driver, Self>) -> bool {
        false
    }

    /// The module of a place such as `dummy!dummy_xmit`, if it is one that the kernel may load but has not loaded now.
    fn missing_module<'a>(&self, _place: &'a str) -> Option<&'a str> {
        None
    }

    /// The root that a process is known by, given the one in a CR3: the same one, but for kernel page-table isolation.
    fn process_root(&self, root: Pa) -> Pa {
        root
    }

    /// Whether an address belongs to the kernel's half, mapped alike in every address space.
    fn is_kernel_address(&self, va: Va) -> bool {
        va.0 >> 63 != 0
    }

    /// All processes. Pages that are missing shorten an entry, not the list.
    ///
    /// # Errors
    /// When the head of the list cannot be read.
    fn processes(&self, vmi: VmiSession<'_, Driver, Self>) -> Result<ProcessList, VmiError>;

    /// A process as it is now; `None` when it is gone. Cheaper than the list, where the layer can tell from the process's
    /// structure.
    ///
    /// # Errors
    /// When that cannot be told: nothing is readable, or the list was cut short.
    fn process_again(&self, vmi: VmiSession<'_, Driver, Self>, known: ProcessKey) -> Result<Option<Process>, VmiError> {
        let list = self.processes(vmi)?;
        let found = list.processes.into_iter().find(|process| process.key() == known);
        if found.is_none() && list.truncated {
            return Err(VmiError::os("the list of processes is cut short"));
        }
        Ok(found)
    }

    /// How long the guest has been up, in nanoseconds, by the clock that its processes' start times count on; `None` where
    /// that is not read.
    fn uptime_ns(&self, _vmi: VmiSession<'_, Driver, Self>) -> Option<u64> {
        None
    }

    /// Whether the address space of the vCPU whose registers the state has maps this kernel where it was found; `None`
    /// where the registers do not tell, as those of firmware or of a vCPU that was never started.
    fn is_mapped(&self, _vmi: VmiState<'_, Driver, Self>) -> Option<bool> {
        None
    }

    /// Signs of life of the kernel that was found; `None` where they are not read.
    fn vital_signs(&self, _vmi: VmiSession<'_, Driver, Self>) -> Option<VitalSigns> {
        None
    }

    /// The process that runs on the vCPU whose registers the state has; `None` where the kernel is not far enough.
    ///
    /// # Errors
    /// When the kernel's per-CPU data cannot be read.
    fn current_process(&self, vmi: VmiState<'_, Driver, Self>) -> Result<Option<CurrentProcess>, VmiError>;

    /// More of one process. Missing pages are asked for through the prober and leave their part empty.
    ///
    /// # Errors
    /// Any but missing pages.
    fn process_detail(
        &self,
        vmi: VmiSession<'_, Driver, Self>,
        process: &Process,
        prober: &VmiProber,
    ) -> Result<ProcessDetail, VmiError>;

    /// The file of the program that a process runs, as the kernel calls it; `None` where the layer does not tell.
    fn program(&self, _vmi: VmiSession<'_, Driver, Self>, _process: &Process) -> Option<String> {
        None
    }

    /// The `index`th argument (from 0) of the function whose first instruction is about to run.
    ///
    /// # Errors
    /// As a read of the stack, for arguments that are passed there.
    fn function_argument(&self, vmi: VmiState<'_, Driver, Self>, index: u32) -> Result<u64, VmiError>;

    /// The system call that the function whose first instruction is about to run serves: one of the kernel's ways in, or a
    /// function of a call that is given the registers of user mode. `None` for any other function.
    fn system_call(&self, _vmi: VmiState<'_, Driver, Self>) -> Option<SystemCall> {
        None
    }

    /// Where the guest's kernel takes an exception that it could not serve: a hit there in the address space of an
    /// injected fault says that the page will not come (Windows: `KiDispatchException`; Linux: `force_sig_fault`).
    fn fault_refused_at(&self) -> Option<Va> {
        None
    }

    /// Pages that an event at `refused_at` says will not come: the faulting address, if it is one of `waiting`.
    ///
    /// # Errors
    /// As a read of the exception's record.
    fn refused_fault(
        &self,
        _vmi: VmiState<'_, Driver, Self>,
        _waiting: &IndexSet<AddressContext>,
    ) -> Result<Option<AddressContext>, VmiError> {
        Ok(None)
    }

    /// The registers with which the vCPU at `fault_refused_at` goes on as if that function had done nothing: for a fault
    /// that was injected, of which the interrupted program is to hear nothing. `None` where it does no harm.
    ///
    /// # Errors
    /// As a read of the stack.
    fn unrefused(&self, _vmi: VmiState<'_, Driver, Self>) -> Result<Option<GpOf<Driver>>, VmiError> {
        Ok(None)
    }

    /// Why the kernel would not serve a read at an address of the user's half, as far as its own books tell; `None` where
    /// it would, or where that is only told by trying ([`VmiOs::refused_fault`]).
    ///
    /// # Errors
    /// When its books cannot be read.
    fn unservable(
        &self,
        _vmi: VmiSession<'_, Driver, Self>,
        _page: AddressContext,
    ) -> Result<Option<String>, VmiError> {
        Ok(None)
    }

    /// What there is of a page that an address space does not map, by the entry in its place and the kernel's books;
    /// `None` where it is mapped, or where the layer does not tell.
    ///
    /// # Errors
    /// When its books cannot be read.
    fn missing_page(
        &self,
        _vmi: VmiSession<'_, Driver, Self>,
        _page: AddressContext,
    ) -> Result<Option<MissingPage>, VmiError> {
        Ok(None)
    }

    /// Where the threads of an address space that are in the kernel will go on in user mode, a few at most. For drivers
    /// that do not report switches of address spaces; empty where that is not known.
    ///
    /// # Errors
    /// As a read of the threads.
    fn user_returns(&self, _vmi: VmiSession<'_, Driver, Self>, _root: Pa) -> Result<Vec<Va>, VmiError> {
        Ok(Vec::new())
    }
}
