//! Stock QEMU 7.2 and newer, TCG and KVM: QMP, guest memory from outside, and the gdb stub.
//!
//! A QMP socket is enough. Looking (memory, registers, processes) goes through `memory` and the monitor and neither
//! stops nor changes the guest; the gdb stub, which stops the guest when somebody connects, is started and used only
//! when something has to stop (breakpoints, watchpoints, steps), and ended on leaving. Imports addresses, architecture,
//! errors and the driver traits. Start at [`QemuDriver::attach`], then `control` (who makes the guest run and stop).

mod attach;
mod channel;
mod command_line;
mod control;
mod cpu_text;
pub mod descriptor;
mod events;
mod exception;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gdb;
mod guard;
pub mod guardian;
pub mod guests;
mod identity;
mod int3;
mod leftover;
pub mod libvirt;
mod mapping;
mod memory;
mod mtree;
pub mod patience;
mod plugs;
mod points;
mod process;
mod qmp;
mod run_state;
mod state_folder;
mod state_places;
mod steps;
mod stub;
mod transport;

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

pub use self::memory::MemoryPath;
use self::{control::Control, memory::Memory};
use super::{
    MemoryAccess, News, VmiDebugControl, VmiDriver, VmiEventControl, VmiInfo, VmiQueryRegisters, VmiRead,
    VmiSetRegisters, VmiStep, VmiVmControl, VmiWrite,
};
use crate::engine::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId},
    arch::{
        Architecture,
        amd64::{
            Amd64, Amd64EventReason, Amd64Registers, EventMonitor, ExceptionVector, Interrupt, PageTableEntry,
            PageTableLevel,
        },
    },
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
    snapshot::{Capability, Run, Unavailable, clean},
};

/// Which QEMU, and what may be done with it. With none of the addresses, the only QEMU on this machine is meant.
#[derive(Clone, Debug, Default)]
pub struct QemuOptions {
    /// The QMP socket: `unix:PATH` or `HOST:PORT`.
    pub qmp: Option<String>,
    /// A libvirt domain: its name, id or UUID.
    pub domain: Option<String>,
    /// libvirt's address for that; else where libvirt's own variable says, else root's libvirt and the user's.
    pub connect: Option<String>,
    /// The process, whose QMP socket is then read from its command line.
    pub pid: Option<u32>,
    /// The gdb stub where one listens already; else one is found or started through QMP when it is needed.
    pub gdb: Option<String>,
    /// The file that holds the guest's memory; else it is found.
    pub memory: Option<PathBuf>,
    /// Never change the guest.
    pub read_only: bool,
    /// The program that frees the guest when this process dies, called as [`guardian::main`] wants it: for one that calls
    /// that itself, [`guardian::this_program`]. With `None`, nobody does before the next session on this guest, and
    /// [`VmiDriver::warning`] says so.
    pub guardian: Option<PathBuf>,
}

/// A guest in QEMU.
pub struct QemuDriver {
    memory: RefCell<Memory>,
    control: RefCell<Control>,
    name: String,
    memory_file: Option<PathBuf>,
    kvm: bool,
    read_only: bool,
    attached: Instant,
    /// When the INT3 in guest memory were looked after last.
    patches_seen: Cell<Instant>,
    /// Why guest memory is gone, once a read has found that it is.
    memory_lost: RefCell<Option<String>>,
}

/// How long the user is shown how the guest was found.
const NOTICE_TIME: Duration = Duration::from_secs(15);
/// How often INT3 in guest memory are looked after.
const PATCHES_PERIOD: Duration = Duration::from_secs(1);

impl QemuDriver {
    /// Attaches to a guest. It is neither stopped nor changed.
    ///
    /// # Errors
    /// One sentence: no QEMU or several, a socket that is not QEMU's or serves somebody else, another architecture, a
    /// memory file that does not fit.
    pub fn attach(options: QemuOptions) -> Result<Self, VmiError> {
        let attach::Found { mut qmp, pid } = attach::find(&options)?;
        let target = qmp.execute("query-target", json!({}))?;
        let target = target.get("arch").and_then(Value::as_str).unwrap_or("unknown");
        if target != "x86_64" {
            let target = clean(target, 20);
            return Err(VmiError::Invalid(format!(
                "this QEMU runs a {target} guest; only x86_64 guests are understood"
            )));
        }
        let memory = Memory::open(&mut qmp, pid, options.memory.as_deref())?;
        let name =
            qmp.execute("query-name", json!({}))?.get("name").and_then(Value::as_str).map(|name| clean(name, 60));
        let name = name.unwrap_or_else(|| pid.map_or_else(|| "qemu".to_owned(), |pid| format!("qemu-{pid}")));
        let kvm = qmp.execute("query-kvm", json!({}))?.get("enabled") == Some(&Value::Bool(true));
        let control = Control::new(qmp, pid, kvm, &options)?;
        Ok(Self {
            memory: RefCell::new(memory),
            control: RefCell::new(control),
            name,
            memory_file: options.memory,
            kvm,
            read_only: options.read_only,
            attached: Instant::now(),
            patches_seen: Cell::new(Instant::now()),
            memory_lost: RefCell::new(None),
        })
    }

    /// Finds out anew where the guest's memory is, after some was plugged in or out.
    fn follow_memory(&self) {
        let mut control = self.control.borrow_mut();
        if !std::mem::take(&mut control.outside.memory_changed) {
            return;
        }
        let opened = Memory::open(&mut control.qmp(), control.pid, self.memory_file.as_deref());
        let told = match opened {
            Ok(memory) => {
                let (old, new) = (self.memory.borrow().bytes(), memory.bytes());
                *self.memory.borrow_mut() = memory;
                if old == new {
                    return;
                }
                let what = if new > old { "plugged in" } else { "unplugged" };
                format!("{} MiB of memory {what}: there are {} MiB now", new.abs_diff(old) >> 20, new >> 20)
            }
            Err(error) => format!("the guest's memory has changed, and where it is now could not be found: {error}"),
        };
        control.outside.tell(News::Changed(told));
    }

    /// Whether the gdb stub is connected.
    pub fn is_stub_attached(&self) -> bool {
        self.control.borrow().is_stub_attached()
    }

    /// How guest memory is read.
    pub fn memory_path(&self) -> MemoryPath {
        self.memory.borrow().path()
    }

    /// QEMU's process, where it is on this machine.
    pub fn pid(&self) -> Option<u32> {
        self.control.borrow().pid
    }

    /// QEMU's major and minor version.
    pub fn version(&self) -> (u64, u64) {
        self.control.borrow().qmp().version()
    }

    /// Whether the guest stands still, whoever stopped it; held at an event is not paused.
    pub fn is_paused(&self) -> bool {
        self.control.borrow().is_paused()
    }

    /// What the user should know about how this guest was found, as sentences: repairs after a session that died.
    pub fn notices(&self) -> Vec<String> {
        self.control.borrow().notices.clone()
    }

    /// The event with the frame of its instruction, if it is one that has a frame.
    fn with_frame(&self, event: VmiEvent<Amd64>) -> VmiEvent<Amd64> {
        let registers = event.registers();
        let frame = || self.frame(Va(registers.gp.rip), registers).unwrap_or_default();
        let reason = match *event.reason() {
            Amd64EventReason::DebugBreakpoint { va, .. } => Amd64EventReason::DebugBreakpoint { va, gfn: frame() },
            Amd64EventReason::Singlestep { .. } => Amd64EventReason::Singlestep { gfn: frame() },
            _ => return event,
        };
        VmiEvent::new(event.vcpu_id(), event.view(), *registers, reason)
    }

    /// The frame behind an address in a vCPU's address space.
    fn frame(&self, va: Va, registers: &Amd64Registers) -> Option<Gfn> {
        let mut table = registers.root();
        for &level in PageTableLevel::walk(registers.paging_levels()) {
            let entry = PageTableEntry(self.read_physical_u64(table + level.index(va) * 8).ok()?);
            if !entry.is_present() || entry.has_reserved_bits(level) {
                return None;
            }
            table = entry.address(level);
            if entry.is_leaf(level) {
                return Some(Amd64::gfn_from_pa(table + (va.0 & (level.page_bytes() - 1))));
            }
        }
        None
    }

    /// Looks now and then whether the INT3 in guest memory are still there: a kernel that patches its own code overwrites
    /// them. They are set again, over what is there now.
    fn look_after_patches(&self) {
        let in_memory = self.control.borrow().in_memory();
        if in_memory.is_empty() || self.patches_seen.get().elapsed() < PATCHES_PERIOD {
            return;
        }
        self.patches_seen.set(Instant::now());
        for (va, pa) in in_memory {
            let mut byte = [0];
            if self.read_physical(pa, &mut byte).is_err() || byte == [int3::INT3] {
                continue;
            }
            match self.control.borrow_mut().set_again(va) {
                Ok(()) => {
                    tracing::info!(%va, "the guest has overwritten a breakpoint with code of its own; it was set again")
                }
                Err(error) => {
                    tracing::warn!(%va, "the guest has overwritten a breakpoint, and it could not be set again: {error}")
                }
            }
        }
    }

    fn may_change(&self, what: &'static str) -> Result<(), VmiError> {
        if self.read_only { Err(VmiError::ReadOnly { what }) } else { Ok(()) }
    }
}

impl VmiDriver for QemuDriver {
    type Architecture = Amd64;

    fn info(&self) -> Result<VmiInfo, VmiError> {
        let (control, memory) = (self.control.borrow(), self.memory.borrow());
        Ok(VmiInfo {
            name: self.name.clone(),
            vcpus: control.vcpus(),
            // What the machine was given, of which some may lie under the firmware.
            memory_bytes: control.outside.memory_bytes.unwrap_or_else(|| memory.bytes()),
            max_gfn: Gfn(memory.end().saturating_sub(1) >> 12),
        })
    }

    fn capabilities(&self) -> (Vec<Capability>, Vec<Unavailable>) {
        let mut can = vec![Capability::Read, Capability::Registers, Capability::TablePolling];
        let mut cannot = Vec::new();
        let mut refuse = |what, why: &str| cannot.push(Unavailable { what, why: why.to_owned() });
        let steering = [Capability::Write, Capability::Breakpoints, Capability::Pause, Capability::Step];
        if self.read_only {
            for what in steering {
                refuse(what, "the session is read-only; start without --read-only");
            }
        } else {
            can.extend(steering);
        }
        match (self.read_only, self.kvm) {
            (true, _) => refuse(Capability::HiddenBreakpoints, "the session is read-only; start without --read-only"),
            (false, true) => refuse(
                Capability::HiddenBreakpoints,
                "under KVM the gdb stub writes INT3 into the guest's memory, which the guest can read",
            ),
            (false, false) => can.push(Capability::HiddenBreakpoints),
        }
        refuse(
            Capability::TableWrites,
            "QEMU reports no writes to page tables; they are read again several times a second",
        );
        match (self.read_only, self.kvm) {
            (true, _) => refuse(Capability::FaultInjection, "the session is read-only; start without --read-only"),
            (false, true) => refuse(
                Capability::FaultInjection,
                "not under KVM; a missing page is watched until the guest brings it in by itself",
            ),
            (false, false) => can.push(Capability::FaultInjection),
        }
        refuse(Capability::Views, "QEMU has no second-level page tables of ours (no altp2m)");
        (can, cannot)
    }

    fn clock_ns(&self) -> u64 {
        u64::try_from(self.attached.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn lost(&self) -> Option<String> {
        let why = self.memory_lost.borrow().clone()?;
        // Memory goes with QEMU, and then its monitor may know what has happened to it.
        match self.control.borrow_mut().ask_status() {
            Err(VmiError::Lost(why)) => Some(why),
            _ => Some(why),
        }
    }

    fn resets(&self) -> u64 {
        self.control.borrow().resets
    }

    fn run(&self) -> Option<Run> {
        Some(self.control.borrow().run_state())
    }

    fn news(&self) -> Vec<News> {
        self.follow_memory();
        let mut control = self.control.borrow_mut();
        control.look_after_guard();
        control.take_news()
    }

    /// That nobody guards this session; and, for the first moments, what was found of sessions that died.
    fn warning(&self) -> Option<String> {
        let found = if self.attached.elapsed() < NOTICE_TIME { self.notices() } else { Vec::new() };
        let said: Vec<String> = self.control.borrow().warning().into_iter().chain(found).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    fn vcpu_ids(&self) -> Vec<VcpuId> {
        self.control.borrow().vcpus.clone()
    }
}

impl VmiRead for QemuDriver {
    fn read_physical(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), VmiError> {
        let read = self.memory.borrow().read(pa, buffer, &mut |line| self.control.borrow_mut().ask_monitor(line));
        if let Err(VmiError::Lost(why)) = &read {
            self.memory_lost.borrow_mut().get_or_insert_with(|| why.clone());
        }
        read
    }

    #[inline]
    fn read_physical_u64(&self, pa: Pa) -> Result<u64, VmiError> {
        if let Some(value) = self.memory.borrow().read_mapped_u64(pa) {
            return Ok(value);
        }
        let mut bytes = [0; 8];
        self.read_physical(pa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    #[inline]
    fn is_direct(&self) -> bool {
        self.memory.borrow().is_direct()
    }

    fn trim(&self) {
        self.memory.borrow().trim();
    }
}

impl VmiWrite for QemuDriver {
    /// Writes through the gdb stub, which tells QEMU's translator that code may have changed; a running guest is held
    /// until the next wait for events.
    fn write_physical(&self, pa: Pa, bytes: &[u8]) -> Result<(), VmiError> {
        self.may_change("writing guest memory")?;
        self.control.borrow_mut().write_physical(pa, bytes)
    }
}

impl VmiQueryRegisters for QemuDriver {
    fn registers(&self, vcpu: VcpuId) -> Result<Amd64Registers, VmiError> {
        let mut control = self.control.borrow_mut();
        let registers = control.registers(vcpu);
        control.explained(registers)
    }
}

impl VmiSetRegisters for QemuDriver {
    fn set_registers(&self, vcpu: VcpuId, registers: Amd64Registers) -> Result<(), VmiError> {
        self.may_change("setting registers")?;
        self.control.borrow_mut().set_registers(vcpu, &registers)
    }
}

impl VmiEventControl for QemuDriver {
    fn monitor_enable(&self, option: EventMonitor) -> Result<(), VmiError> {
        match option {
            EventMonitor::Interrupt(ExceptionVector::BREAKPOINT) | EventMonitor::Singlestep => Ok(()),
            _ => Err(VmiError::Unsupported { what: "this event (QEMU reports breakpoints, watchpoints and steps)" }),
        }
    }

    fn monitor_disable(&self, _: EventMonitor) -> Result<(), VmiError> {
        Ok(())
    }

    fn events_pending(&self) -> usize {
        self.control.borrow().events_pending()
    }

    fn event_processing_overhead(&self) -> Duration {
        self.control.borrow().overhead
    }

    fn wait_for_event<Handler>(&self, timeout: Duration, mut handler: Handler) -> Result<(), VmiError>
    where
        Handler: FnMut(&VmiEvent<Amd64>) -> VmiEventResponse<Amd64>,
    {
        self.look_after_patches();
        let event = self.control.borrow_mut().next_event(timeout)?;
        let event = self.with_frame(event);
        let response = handler(&event);
        self.control.borrow_mut().answer(&event, &response)
    }
}

impl VmiVmControl for QemuDriver {
    fn pause(&self) -> Result<(), VmiError> {
        self.may_change("pausing the guest")?;
        self.control.borrow_mut().pause()
    }

    fn resume(&self) -> Result<(), VmiError> {
        self.may_change("resuming the guest")?;
        self.control.borrow_mut().resume()
    }

    fn allocate_gfn(&self) -> Result<Gfn, VmiError> {
        Err(VmiError::Unsupported { what: "adding a page to a QEMU guest" })
    }

    fn allocate_gfn_at(&self, _: Gfn) -> Result<(), VmiError> {
        self.allocate_gfn().map(drop)
    }

    fn free_gfn(&self, _: Gfn) -> Result<(), VmiError> {
        Err(VmiError::Unsupported { what: "taking a page from a QEMU guest" })
    }

    /// Under TCG, the processor's exceptions, into 64-bit user mode, while the guest stands.
    fn inject_interrupt(&self, vcpu: VcpuId, interrupt: Interrupt) -> Result<(), VmiError> {
        self.may_change("injecting an interrupt")?;
        self.deliver_exception(vcpu, interrupt)
    }

    /// Takes out all breakpoints and watchpoints and lets go of the gdb stub.
    fn reset_state(&self) -> Result<(), VmiError> {
        self.control.borrow_mut().leave()
    }

    fn is_touched(&self) -> bool {
        self.control.borrow().is_touched()
    }
}

impl VmiDebugControl for QemuDriver {
    /// A running guest is held until the next wait for events, so that several changes cost one stop.
    fn set_breakpoint(&self, ctx: AddressContext, pa: Pa) -> Result<(), VmiError> {
        self.may_change("setting a breakpoint")?;
        self.control.borrow_mut().set_breakpoint(ctx, pa)
    }

    fn clear_breakpoint(&self, va: Va) -> Result<(), VmiError> {
        self.control.borrow_mut().clear_breakpoint(va)
    }

    fn is_breakpoint_visible(&self, va: Va) -> bool {
        self.control.borrow().is_visible(va)
    }

    /// Under TCG a stop reports one watchpoint, and one that another vCPU hit at the same moment comes late or under
    /// the wrong address: whoever needs every change reads the memory again at each of these events.
    fn set_watchpoint(&self, va: Va, bytes: u64, access: MemoryAccess) -> Result<(), VmiError> {
        self.may_change("setting a watchpoint")?;
        self.control.borrow_mut().set_watchpoint(va, bytes, access)
    }

    fn clear_watchpoint(&self, va: Va, bytes: u64, access: MemoryAccess) -> Result<(), VmiError> {
        self.control.borrow_mut().clear_watchpoint(va, bytes, access)
    }
}

impl VmiStep for QemuDriver {
    fn step(&self, vcpu: VcpuId) -> Result<(), VmiError> {
        self.may_change("stepping a vCPU")?;
        self.control.borrow_mut().step(vcpu)
    }
}
