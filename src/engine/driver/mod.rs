//! Drivers: how a particular kind of virtual machine is read, changed and followed.
//!
//! A driver implements the capability traits that it has, and code asks for no more of them than it needs. Methods
//! take `&self`; a driver is used by one thread. What only the running hypervisor knows is told by
//! [`VmiDriver::capabilities`]. This is the only floor with `unsafe` code: memory that a running guest shares with us
//! is copied out with volatile reads and never borrowed.

pub mod fatal;
pub mod qemu;
pub mod sim;
pub mod xenstore;

use std::{fmt, time::Duration};

use super::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId, View},
    arch::Architecture,
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
    snapshot::{Capability, Run, Unavailable},
};

/// The registers of a driver's architecture.
pub type RegistersOf<Driver> = <<Driver as VmiDriver>::Architecture as Architecture>::Registers;

/// Permissions of guest-physical memory in a view (Intel SDM volume 3C, table 28-6).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct MemoryAccess(u8);

impl MemoryAccess {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Read.
    pub const R: Self = Self(1);
    /// Write.
    pub const W: Self = Self(2);
    /// Execute.
    pub const X: Self = Self(4);
    /// Read and write.
    pub const RW: Self = Self(3);
    /// Read and execute.
    pub const RX: Self = Self(5);
    /// Write and execute.
    pub const WX: Self = Self(6);
    /// Everything.
    pub const RWX: Self = Self(7);

    /// Whether all of `other` is allowed.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What either allows.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This without `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for MemoryAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |bit: Self, c| if self.contains(bit) { c } else { '-' };
        write!(f, "{}{}{}", letter(Self::R, 'r'), letter(Self::W, 'w'), letter(Self::X, 'x'))
    }
}

/// Options of a permission change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryAccessOptions {
    /// The processor's own page walks may set accessed and dirty bits in a page without write permission, without an
    /// event (Intel: EPT paging-write control).
    pub ignore_page_walk_updates: bool,
}

/// What a driver knows of the machine as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmiInfo {
    /// What people call the machine.
    pub name: String,
    /// How many virtual CPUs.
    pub vcpus: u16,
    /// Guest RAM in bytes.
    pub memory_bytes: u64,
    /// The highest frame of guest RAM.
    pub max_gfn: Gfn,
}

/// The base of every driver.
pub trait VmiDriver: 'static {
    /// The guest's architecture.
    type Architecture: Architecture;

    /// The machine.
    ///
    /// # Errors
    /// When the guest is gone.
    fn info(&self) -> Result<VmiInfo, VmiError>;

    /// What can be done with this guest, as far as the driver goes; feeds the screen's greyed keys.
    fn capabilities(&self) -> (Vec<Capability>, Vec<Unavailable>);

    /// The time of this guest in nanoseconds: virtual where the driver keeps one, else since the driver was opened.
    fn clock_ns(&self) -> u64;

    /// Why the guest is gone, once any call has found that it is. Whoever reads it in passing may drop such an error among
    /// others; whoever runs the session asks here, and ends it.
    fn lost(&self) -> Option<String> {
        None
    }

    /// How often the guest was reset since the driver was opened: each time everything learnt of its kernel is void.
    fn resets(&self) -> u64 {
        0
    }

    /// What the hypervisor says of the guest as a whole; `None` where nobody but us can stop it. A guest that is held for
    /// a moment, at an event or for a change of breakpoints, runs.
    fn run(&self) -> Option<Run> {
        None
    }

    /// What has happened to the machine from outside since the last call, oldest first. To be asked often: this is also
    /// when the driver follows a machine that was changed.
    fn news(&self) -> Vec<News> {
        Vec::new()
    }

    /// What the user should know for as long as it is so, beside what can and cannot be done.
    fn warning(&self) -> Option<String> {
        None
    }

    /// The vCPUs that there are now, in order: after one was unplugged their numbers have a gap.
    fn vcpu_ids(&self) -> Vec<VcpuId> {
        (0..self.info().map_or(0, |info| info.vcpus)).map(VcpuId).collect()
    }
}

/// Something that has happened to a machine and that was not our doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A sentence for the user.
    Said(String),
    /// vCPUs or memory were plugged in or out: [`VmiDriver::info`] and [`VmiDriver::vcpu_ids`] say something new.
    Changed(String),
    /// Somebody has stopped the guest and let it go on. Another guest's memory may be in it now: a snapshot was loaded, or
    /// a migration has come in.
    Interrupted,
}

/// Reading guest-physical memory.
pub trait VmiRead: VmiDriver {
    /// Copies guest-physical memory, all of it or an error. The range may run over any number of pages, as long as
    /// they follow each other physically.
    ///
    /// # Errors
    /// [`VmiError::OutOfBounds`] where there is no RAM, with the first such address; others where the driver failed.
    fn read_physical(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), VmiError>;

    /// Eight bytes, little-endian, that lie in one page: the read that page walks are made of.
    ///
    /// # Errors
    /// As [`VmiRead::read_physical`].
    #[inline]
    fn read_physical_u64(&self, pa: Pa) -> Result<u64, VmiError> {
        let mut bytes = [0; 8];
        self.read_physical(pa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Copies one page.
    ///
    /// # Errors
    /// As [`VmiRead::read_physical`].
    fn read_page(&self, gfn: Gfn, buffer: &mut [u8; 4096]) -> Result<(), VmiError> {
        self.read_physical(Self::Architecture::pa_from_gfn(gfn), buffer)
    }

    /// Whether a read costs little more than a memory access, so that keeping copies of pages would only make them
    /// stale.
    #[inline]
    fn is_direct(&self) -> bool {
        false
    }

    /// Called now and then while much is read: a driver that maps the guest's memory gives back what it has touched.
    fn trim(&self) {}
}

/// Writing guest-physical memory.
pub trait VmiWrite: VmiDriver {
    /// Copies bytes into guest-physical memory, as [`VmiRead::read_physical`].
    ///
    /// # Errors
    /// [`VmiError::ReadOnly`] in a read-only session; [`VmiError::OutOfBounds`] where there is no RAM.
    fn write_physical(&self, pa: Pa, bytes: &[u8]) -> Result<(), VmiError>;

    /// Copies a page into another frame, with `patch` in the place of the bytes at `offset` (which lie in the page);
    /// those bytes go to `saved`, which is as long. Worth a driver's own code where it can do with one copy.
    ///
    /// # Errors
    /// As [`VmiRead::read_page`] and [`VmiWrite::write_physical`].
    fn copy_page_patched(
        &self,
        from: Gfn,
        to: Gfn,
        offset: usize,
        patch: &[u8],
        saved: &mut [u8],
    ) -> Result<(), VmiError>
    where
        Self: VmiRead,
    {
        let mut page = [0; 4096];
        self.read_page(from, &mut page)?;
        for ((byte, saved), new) in page.iter_mut().skip(offset).zip(saved).zip(patch) {
            *saved = std::mem::replace(byte, *new);
        }
        self.write_physical(Self::Architecture::pa_from_gfn(to), &page)
    }
}

/// Asking for the permissions of a frame.
pub trait VmiQueryProtection: VmiDriver {
    /// The permissions of a frame in a view.
    ///
    /// # Errors
    /// [`VmiError::ViewNotFound`], [`VmiError::OutOfBounds`].
    fn memory_access(&self, gfn: Gfn, view: View) -> Result<MemoryAccess, VmiError>;
}

/// Changing the permissions of a frame.
pub trait VmiSetProtection: VmiDriver {
    /// Sets the permissions of a frame in a view; an access that they do not allow raises an event.
    ///
    /// # Errors
    /// [`VmiError::ViewNotFound`], [`VmiError::OutOfBounds`], [`VmiError::ReadOnly`].
    fn set_memory_access(&self, gfn: Gfn, view: View, access: MemoryAccess) -> Result<(), VmiError> {
        self.set_memory_access_with_options(gfn, view, access, MemoryAccessOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`VmiSetProtection::set_memory_access`].
    fn set_memory_access_with_options(
        &self,
        gfn: Gfn,
        view: View,
        access: MemoryAccess,
        options: MemoryAccessOptions,
    ) -> Result<(), VmiError>;
}

/// Reading registers.
pub trait VmiQueryRegisters: VmiDriver {
    /// All registers of a vCPU. On a running vCPU they are those of some recent moment.
    ///
    /// # Errors
    /// [`VmiError::VcpuNotFound`]; others where the driver failed.
    fn registers(&self, vcpu: VcpuId) -> Result<RegistersOf<Self>, VmiError>;
}

/// Changing registers.
pub trait VmiSetRegisters: VmiDriver {
    /// Sets the registers of a vCPU that is paused or waits in an event.
    ///
    /// # Errors
    /// [`VmiError::VcpuNotFound`], [`VmiError::ReadOnly`].
    fn set_registers(&self, vcpu: VcpuId, registers: RegistersOf<Self>) -> Result<(), VmiError>;
}

/// Views: second-level page tables, several per machine.
pub trait VmiViewControl: VmiDriver {
    /// The view that a machine without us runs in.
    fn default_view(&self) -> View;

    /// Makes a view in which every frame maps to itself with these permissions.
    ///
    /// # Errors
    /// When the hypervisor has no more views, or [`VmiError::ReadOnly`].
    fn create_view(&self, default_access: MemoryAccess) -> Result<View, VmiError>;

    /// Destroys a view; vCPUs in it fall back to the default view.
    ///
    /// # Errors
    /// [`VmiError::ViewNotFound`].
    fn destroy_view(&self, view: View) -> Result<(), VmiError>;

    /// Puts all vCPUs into a view.
    ///
    /// # Errors
    /// [`VmiError::ViewNotFound`].
    fn switch_to_view(&self, view: View) -> Result<(), VmiError>;

    /// Makes a frame show another frame's contents in a view. Its permissions stay what they are, at every moment: a page
    /// that was closed shows nothing to a vCPU that runs meanwhile. A driver whose hypervisor takes over the permissions
    /// of `new_gfn` (Xen's altp2m) gives them to that one first.
    ///
    /// # Errors
    /// [`VmiError::ViewNotFound`], [`VmiError::OutOfBounds`], [`VmiError::ReadOnly`].
    fn change_view_gfn(&self, view: View, old_gfn: Gfn, new_gfn: Gfn) -> Result<(), VmiError>;

    /// Makes a frame show its own contents again, with the view's default permissions, both in one.
    ///
    /// # Errors
    /// [`VmiError::ViewNotFound`].
    fn reset_view_gfn(&self, view: View, gfn: Gfn) -> Result<(), VmiError>;
}

/// Events.
pub trait VmiEventControl: VmiDriver {
    /// Starts reporting something.
    ///
    /// # Errors
    /// [`VmiError::Unsupported`] where the driver cannot.
    fn monitor_enable(&self, option: <Self::Architecture as Architecture>::EventMonitor) -> Result<(), VmiError>;

    /// Stops reporting something; not being on is not an error.
    ///
    /// # Errors
    /// When the driver failed.
    fn monitor_disable(&self, option: <Self::Architecture as Architecture>::EventMonitor) -> Result<(), VmiError>;

    /// How many events wait for an answer.
    fn events_pending(&self) -> usize;

    /// How long the guest stands for one event, measured; zero before the first.
    fn event_processing_overhead(&self) -> Duration;

    /// Lets the guest run until at least one event was answered by `handler`.
    ///
    /// # Errors
    /// [`VmiError::Timeout`] when none came; [`VmiError::Interrupted`] after a signal; [`VmiError::Lost`] when the
    /// guest is gone.
    fn wait_for_event<Handler>(&self, timeout: Duration, handler: Handler) -> Result<(), VmiError>
    where
        Handler: FnMut(&VmiEvent<Self::Architecture>) -> VmiEventResponse<Self::Architecture>;
}

/// The machine as a whole.
pub trait VmiVmControl: VmiDriver {
    /// Stops all vCPUs; counts: as many resumes set it running again.
    ///
    /// # Errors
    /// [`VmiError::Lost`].
    fn pause(&self) -> Result<(), VmiError>;

    /// Takes one pause back.
    ///
    /// # Errors
    /// [`VmiError::Lost`].
    fn resume(&self) -> Result<(), VmiError>;

    /// A frame that the guest does not use, for shadow pages.
    ///
    /// # Errors
    /// When there is none, or [`VmiError::Unsupported`].
    fn allocate_gfn(&self) -> Result<Gfn, VmiError>;

    /// A frame of our choice.
    ///
    /// # Errors
    /// [`VmiError::Frame`] when it is in use.
    fn allocate_gfn_at(&self, gfn: Gfn) -> Result<(), VmiError>;

    /// Gives a frame back.
    ///
    /// # Errors
    /// [`VmiError::Frame`] when it was not allocated.
    fn free_gfn(&self, gfn: Gfn) -> Result<(), VmiError>;

    /// Makes a vCPU take an interrupt before its next instruction.
    ///
    /// # Errors
    /// [`VmiError::Unsupported`], [`VmiError::ReadOnly`], or that one is on its way already.
    fn inject_interrupt(
        &self,
        vcpu: VcpuId,
        interrupt: <Self::Architecture as Architecture>::Interrupt,
    ) -> Result<(), VmiError>;

    /// Takes every change of the machine's state back that outlives a session: single-stepping, monitors, breakpoints
    /// of the hypervisor, views other than the default one.
    ///
    /// # Errors
    /// When the driver failed; what could be taken back was.
    fn reset_state(&self) -> Result<(), VmiError>;

    /// Whether anything was done to the guest that has to be taken back. A guest that was only looked at is not
    /// stopped, not even for a moment, when a session on it ends.
    fn is_touched(&self) -> bool {
        true
    }
}

/// Breakpoints and watchpoints that the hypervisor keeps (QEMU's gdb stub), outside of guest memory where it can.
pub trait VmiDebugControl: VmiDriver {
    /// Stops every vCPU that comes to this virtual address, in every address space. `ctx` is one in which it maps to `pa`,
    /// for a hypervisor that has to write to guest memory.
    ///
    /// # Errors
    /// [`VmiError::ReadOnly`]; [`VmiError::NoDebugRegister`]; that the hypervisor refused.
    fn set_breakpoint(&self, ctx: AddressContext, pa: Pa) -> Result<(), VmiError>;

    /// Takes a breakpoint out.
    ///
    /// # Errors
    /// When the hypervisor refused.
    fn clear_breakpoint(&self, va: Va) -> Result<(), VmiError>;

    /// Whether the guest can see this breakpoint by reading its own code. May change as others come and go.
    fn is_breakpoint_visible(&self, _va: Va) -> bool {
        false
    }

    /// Reports accesses to up to 8 bytes.
    ///
    /// # Errors
    /// [`VmiError::ReadOnly`], or that the hypervisor refused.
    fn set_watchpoint(&self, va: Va, bytes: u64, access: MemoryAccess) -> Result<(), VmiError>;

    /// Takes a watchpoint out.
    ///
    /// # Errors
    /// When the hypervisor refused.
    fn clear_watchpoint(&self, va: Va, bytes: u64, access: MemoryAccess) -> Result<(), VmiError>;
}

/// Single steps of a paused machine, on the user's command.
pub trait VmiStep: VmiDriver {
    /// One instruction on one vCPU; the others stand still.
    ///
    /// # Errors
    /// [`VmiError::ReadOnly`], [`VmiError::VcpuNotFound`], or that the machine is not paused.
    fn step(&self, vcpu: VcpuId) -> Result<(), VmiError>;
}

/// Reading and writing memory.
pub trait VmiMemory: VmiRead + VmiWrite {}
impl<T: VmiRead + VmiWrite> VmiMemory for T {}

/// Asking for and changing permissions.
pub trait VmiProtection: VmiQueryProtection + VmiSetProtection {}
impl<T: VmiQueryProtection + VmiSetProtection> VmiProtection for T {}

/// Everything that a driver with second-level page tables has: what hidden breakpoints need.
pub trait VmiFullDriver:
    VmiMemory + VmiProtection + VmiQueryRegisters + VmiSetRegisters + VmiEventControl + VmiViewControl + VmiVmControl
{
}
impl<T> VmiFullDriver for T where
    T: VmiMemory
        + VmiProtection
        + VmiQueryRegisters
        + VmiSetRegisters
        + VmiEventControl
        + VmiViewControl
        + VmiVmControl
{
}
