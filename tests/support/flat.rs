//! A guest that is nothing but memory, views and a list of the calls that were made.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use vmscope::engine::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId, View},
    arch::amd64::{Amd64, Amd64Registers, EventMonitor, Interrupt},
    driver::{
        MemoryAccess, MemoryAccessOptions, VmiDebugControl, VmiDriver, VmiEventControl, VmiInfo, VmiQueryProtection,
        VmiQueryRegisters, VmiRead, VmiSetProtection, VmiSetRegisters, VmiViewControl, VmiVmControl, VmiWrite,
    },
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
    snapshot::{Capability, Unavailable},
};

const PAGE: u64 = 0x1000;

/// A call of the driver, with what it was given.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Read {
        pa: Pa,
        bytes: usize,
    },
    Write {
        pa: Pa,
        bytes: Vec<u8>,
    },
    MemoryAccess {
        gfn: Gfn,
        view: View,
    },
    SetMemoryAccess {
        gfn: Gfn,
        view: View,
        access: MemoryAccess,
        options: MemoryAccessOptions,
    },
    Registers(VcpuId),
    SetRegisters(VcpuId),
    CreateView(MemoryAccess),
    DestroyView(View),
    SwitchToView(View),
    ChangeViewGfn {
        view: View,
        old: Gfn,
        new: Gfn,
    },
    ResetViewGfn {
        view: View,
        gfn: Gfn,
    },
    MonitorEnable(EventMonitor),
    MonitorDisable(EventMonitor),
    Wait(Duration),
    Pause,
    Resume,
    AllocateGfn,
    AllocateGfnAt(Gfn),
    FreeGfn(Gfn),
    InjectInterrupt(VcpuId, Interrupt),
    ResetState,
    SetBreakpoint(Va),
    ClearBreakpoint(Va),
    SetWatchpoint(Va),
    ClearWatchpoint(Va),
    /// What a test wrote into the log by [`FlatDriver::note`].
    Note(&'static str),
}

impl Call {
    /// Whether the call would change the guest.
    pub fn is_change(&self) -> bool {
        !matches!(
            self,
            Self::Read { .. } | Self::MemoryAccess { .. } | Self::Registers(_) | Self::Wait(_) | Self::Note(_)
        )
    }
}

/// What a wait for an event answers, in order; when nothing is left, waits time out.
#[expect(clippy::large_enum_variant, reason = "a handful of them in a test")]
pub enum Scripted {
    Event(VmiEvent<Amd64>),
    Timeout,
    Interrupted,
    Error(VmiError),
}

#[derive(Clone, Default)]
struct FlatView {
    default_access: MemoryAccess,
    shown: HashMap<Gfn, Gfn>,
    access: HashMap<Gfn, MemoryAccess>,
}

/// Decides which call fails.
type Chooser = Box<dyn FnMut(&Call) -> bool>;

/// What the vCPUs do before a call.
type Vcpus = Box<dyn FnMut(&FlatDriver, &Call)>;

/// The driver. Its guest memory is `frames` frames from 0; frames of `allocate_gfn` lie behind it.
pub struct FlatDriver {
    frames: u64,
    memory: RefCell<Vec<u8>>,
    extra: RefCell<BTreeMap<Gfn, Box<[u8; PAGE as usize]>>>,
    views: RefCell<BTreeMap<View, FlatView>>,
    next_view: Cell<u16>,
    registers: RefCell<Vec<Amd64Registers>>,
    breakpoints: RefCell<BTreeMap<Va, u32>>,
    watchpoints: RefCell<BTreeMap<(Va, u64), u32>>,
    script: RefCell<VecDeque<Scripted>>,
    responses: RefCell<Vec<VmiEventResponse<Amd64>>>,
    paused: Cell<i64>,
    calls: RefCell<Vec<Call>>,
    log_reads: Cell<bool>,
    direct: Cell<bool>,
    fail: RefCell<Option<Chooser>>,
    vcpus: RefCell<Option<Vcpus>>,
    failures: Cell<u64>,
}

impl FlatDriver {
    pub fn new(frames: u64) -> Self {
        let default = FlatView { default_access: MemoryAccess::RWX, ..FlatView::default() };
        Self {
            frames,
            memory: RefCell::new(vec![0; (frames * PAGE) as usize]),
            extra: RefCell::default(),
            views: RefCell::new(BTreeMap::from([(View(0), default)])),
            next_view: Cell::new(1),
            registers: RefCell::new(vec![Amd64Registers::default(); 2]),
            breakpoints: RefCell::default(),
            watchpoints: RefCell::default(),
            script: RefCell::default(),
            responses: RefCell::default(),
            paused: Cell::new(0),
            calls: RefCell::default(),
            log_reads: Cell::new(false),
            direct: Cell::new(true),
            fail: RefCell::default(),
            vcpus: RefCell::default(),
            failures: Cell::new(0),
        }
    }

    // --- Memory, as the guest sees it -------------------------------------------------------------------------------

    /// Writes memory behind the engine's back.
    pub fn poke(&self, pa: u64, bytes: &[u8]) {
        self.copy(Pa(pa), bytes.len(), |at, memory| memory.copy_from_slice(&bytes[at..at + memory.len()]))
            .expect("poke beyond memory");
    }

    pub fn poke64(&self, pa: u64, value: u64) {
        self.poke(pa, &value.to_le_bytes());
    }

    pub fn peek(&self, pa: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.copy(Pa(pa), length, |at, memory| bytes[at..at + memory.len()].copy_from_slice(memory))
            .expect("peek beyond memory");
        bytes
    }

    pub fn peek64(&self, pa: u64) -> u64 {
        u64::from_le_bytes(self.peek(pa, 8).try_into().expect("eight bytes"))
    }

    /// Runs `f` on each page's part of a range: (offset in the range, the memory).
    fn copy(&self, pa: Pa, length: usize, mut f: impl FnMut(usize, &mut [u8])) -> Result<(), VmiError> {
        let mut at = 0;
        while at < length {
            let here = pa + at as u64;
            let offset = (here.0 % PAGE) as usize;
            let part = (length - at).min(PAGE as usize - offset);
            let gfn = Gfn(here.0 / PAGE);
            if gfn.0 < self.frames {
                let from = here.0 as usize;
                f(at, &mut self.memory.borrow_mut()[from..from + part]);
            } else {
                let mut extra = self.extra.borrow_mut();
                let page = extra.get_mut(&gfn).ok_or(VmiError::OutOfBounds(here))?;
                f(at, &mut page[offset..offset + part]);
            }
            at += part;
        }
        Ok(())
    }

    fn exists(&self, gfn: Gfn) -> bool {
        gfn.0 < self.frames || self.extra.borrow().contains_key(&gfn)
    }

    // --- What a test looks at ---------------------------------------------------------------------------------------

    /// The frame that a view shows at `gfn`.
    pub fn shown_frame(&self, view: View, gfn: Gfn) -> Gfn {
        self.views.borrow().get(&view).and_then(|view| view.shown.get(&gfn)).copied().unwrap_or(gfn)
    }

    /// Bytes as a vCPU in a view would fetch them.
    pub fn fetch(&self, view: View, pa: Pa, length: usize) -> Vec<u8> {
        let gfn = self.shown_frame(view, Gfn(pa.0 / PAGE));
        self.peek(gfn.0 * PAGE + pa.0 % PAGE, length)
    }

    /// The permissions of a frame; `None` where the view does not exist.
    pub fn access(&self, view: View, gfn: Gfn) -> Option<MemoryAccess> {
        let views = self.views.borrow();
        let view = views.get(&view)?;
        Some(view.access.get(&gfn).copied().unwrap_or(view.default_access))
    }

    /// All (view, frame, shown frame) that differ from the identity.
    pub fn remapped(&self) -> BTreeSet<(View, Gfn, Gfn)> {
        let views = self.views.borrow();
        views.iter().flat_map(|(&id, view)| view.shown.iter().map(move |(&old, &new)| (id, old, new))).collect()
    }

    /// All (view, frame) whose permissions differ from the view's default, with these permissions.
    pub fn restricted(&self) -> BTreeMap<(View, Gfn), MemoryAccess> {
        let views = self.views.borrow();
        let all = views.iter().flat_map(|(&id, view)| {
            let other = view.access.iter().filter(|(_, access)| **access != view.default_access);
            other.map(move |(&gfn, &access)| ((id, gfn), access))
        });
        all.collect()
    }

    /// The frames that were allocated and not freed.
    pub fn allocated(&self) -> BTreeSet<Gfn> {
        self.extra.borrow().keys().copied().collect()
    }

    /// The stub's breakpoints; a second one at an address counts.
    pub fn breakpoints(&self) -> BTreeMap<Va, u32> {
        self.breakpoints.borrow().clone()
    }

    /// The stub's watchpoints by (address, bytes).
    pub fn watchpoints(&self) -> BTreeMap<(Va, u64), u32> {
        self.watchpoints.borrow().clone()
    }

    /// Pauses minus resumes.
    pub fn pauses(&self) -> i64 {
        self.paused.get()
    }

    /// The answers to the scripted events so far.
    pub fn responses(&self) -> Vec<VmiEventResponse<Amd64>> {
        self.responses.borrow().clone()
    }

    // --- The log, failures, events ----------------------------------------------------------------------------------

    /// The calls so far, failed ones too; reads only after [`FlatDriver::log_reads`].
    pub fn calls(&self) -> Vec<Call> {
        self.calls.borrow().clone()
    }

    /// The calls so far, and forgets them.
    pub fn take_calls(&self) -> Vec<Call> {
        self.calls.take()
    }

    pub fn log_reads(&self, log: bool) {
        self.log_reads.set(log);
    }

    /// Writes a line of the test's own into the log.
    pub fn note(&self, what: &'static str) {
        self.calls.borrow_mut().push(Call::Note(what));
    }

    /// Makes every call fail that `choose` wants to.
    pub fn fail_if(&self, choose: impl FnMut(&Call) -> bool + 'static) {
        *self.fail.borrow_mut() = Some(Box::new(choose));
    }

    /// Makes the `n`th call from now fail, once; 0 is the next. Reads count.
    pub fn fail_nth(&self, n: u64) {
        self.fail_nth_of(n, |_| true);
    }

    /// Makes the `n`th call from now fail that would change the guest, once; 0 is the next.
    pub fn fail_nth_change(&self, n: u64) {
        self.fail_nth_of(n, Call::is_change);
    }

    /// Makes the `n`th call of a kind fail, once; 0 is the next.
    pub fn fail_nth_of(&self, n: u64, kind: fn(&Call) -> bool) {
        let mut seen = 0;
        self.fail_if(move |call| {
            let counts = kind(call);
            let fails = counts && seen == n;
            seen += u64::from(counts);
            fails
        });
    }

    pub fn stop_failing(&self) {
        *self.fail.borrow_mut() = None;
    }

    /// How many calls were made to fail.
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// Whether reads are cheap ([`VmiRead::is_direct`]); they are unless told otherwise.
    pub fn set_direct(&self, direct: bool) {
        self.direct.set(direct);
    }

    pub fn set_vcpu_registers(&self, vcpu: VcpuId, registers: Amd64Registers) {
        self.registers.borrow_mut()[usize::from(vcpu.0)] = registers;
    }

    /// Appends to what waits will answer.
    pub fn script(&self, what: impl IntoIterator<Item = Scripted>) {
        self.script.borrow_mut().extend(what);
    }

    /// Has the guest run before every call, as on a machine whose vCPUs nobody stopped.
    pub fn run_between_calls(&self, vcpus: impl FnMut(&Self, &Call) + 'static) {
        *self.vcpus.borrow_mut() = Some(Box::new(vcpus));
    }

    fn called(&self, call: Call) -> Result<(), VmiError> {
        // While they run they make no call.
        let vcpus = self.vcpus.borrow_mut().take();
        if let Some(mut vcpus) = vcpus {
            if self.paused.get() == 0 {
                vcpus(self, &call);
            }
            *self.vcpus.borrow_mut() = Some(vcpus);
        }
        let fails = self.fail.borrow_mut().as_mut().is_some_and(|choose| choose(&call));
        let name = if fails { format!("{call:?}") } else { String::new() };
        if self.log_reads.get() || !matches!(call, Call::Read { .. }) {
            self.calls.borrow_mut().push(call);
        }
        if fails {
            self.failures.set(self.failures.get() + 1);
            return Err(VmiError::driver(name, "the test wants it to fail"));
        }
        Ok(())
    }

    fn with_view<T>(&self, view: View, f: impl FnOnce(&mut FlatView) -> T) -> Result<T, VmiError> {
        self.views.borrow_mut().get_mut(&view).map(f).ok_or(VmiError::ViewNotFound(view))
    }

    fn check_gfn(&self, gfn: Gfn) -> Result<(), VmiError> {
        if self.exists(gfn) { Ok(()) } else { Err(VmiError::OutOfBounds(Pa(gfn.0.wrapping_mul(PAGE)))) }
    }
}

impl VmiDriver for FlatDriver {
    type Architecture = Amd64;

    fn info(&self) -> Result<VmiInfo, VmiError> {
        Ok(VmiInfo {
            name: "flat".into(),
            vcpus: self.registers.borrow().len() as u16,
            memory_bytes: self.frames * PAGE,
            max_gfn: Gfn(self.frames.saturating_sub(1)),
        })
    }

    fn capabilities(&self) -> (Vec<Capability>, Vec<Unavailable>) {
        (vec![Capability::FaultInjection], Vec::new())
    }

    fn clock_ns(&self) -> u64 {
        0
    }
}

impl VmiRead for FlatDriver {
    fn read_physical(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), VmiError> {
        self.called(Call::Read { pa, bytes: buffer.len() })?;
        self.copy(pa, buffer.len(), |at, memory| buffer[at..at + memory.len()].copy_from_slice(memory))
    }

    fn is_direct(&self) -> bool {
        self.direct.get()
    }
}

impl VmiWrite for FlatDriver {
    fn write_physical(&self, pa: Pa, bytes: &[u8]) -> Result<(), VmiError> {
        self.called(Call::Write { pa, bytes: bytes.to_vec() })?;
        self.copy(pa, bytes.len(), |at, memory| memory.copy_from_slice(&bytes[at..at + memory.len()]))
    }
}

impl VmiQueryProtection for FlatDriver {
    fn memory_access(&self, gfn: Gfn, view: View) -> Result<MemoryAccess, VmiError> {
        self.called(Call::MemoryAccess { gfn, view })?;
        self.check_gfn(gfn)?;
        self.access(view, gfn).ok_or(VmiError::ViewNotFound(view))
    }
}

impl VmiSetProtection for FlatDriver {
    fn set_memory_access_with_options(
        &self,
        gfn: Gfn,
        view: View,
        access: MemoryAccess,
        options: MemoryAccessOptions,
    ) -> Result<(), VmiError> {
        self.called(Call::SetMemoryAccess { gfn, view, access, options })?;
        self.check_gfn(gfn)?;
        self.with_view(view, |view| {
            view.access.insert(gfn, access);
        })
    }
}

impl VmiQueryRegisters for FlatDriver {
    fn registers(&self, vcpu: VcpuId) -> Result<Amd64Registers, VmiError> {
        self.called(Call::Registers(vcpu))?;
        self.registers.borrow().get(usize::from(vcpu.0)).copied().ok_or(VmiError::VcpuNotFound(vcpu))
    }
}

impl VmiSetRegisters for FlatDriver {
    fn set_registers(&self, vcpu: VcpuId, registers: Amd64Registers) -> Result<(), VmiError> {
        self.called(Call::SetRegisters(vcpu))?;
        let mut all = self.registers.borrow_mut();
        *all.get_mut(usize::from(vcpu.0)).ok_or(VmiError::VcpuNotFound(vcpu))? = registers;
        Ok(())
    }
}

impl VmiViewControl for FlatDriver {
    fn default_view(&self) -> View {
        View(0)
    }

    fn create_view(&self, default_access: MemoryAccess) -> Result<View, VmiError> {
        self.called(Call::CreateView(default_access))?;
        let view = View(self.next_view.get());
        self.next_view.set(view.0 + 1);
        self.views.borrow_mut().insert(view, FlatView { default_access, ..FlatView::default() });
        Ok(view)
    }

    fn destroy_view(&self, view: View) -> Result<(), VmiError> {
        self.called(Call::DestroyView(view))?;
        self.views.borrow_mut().remove(&view).map(|_| ()).ok_or(VmiError::ViewNotFound(view))
    }

    fn switch_to_view(&self, view: View) -> Result<(), VmiError> {
        self.called(Call::SwitchToView(view))?;
        self.with_view(view, |_| ())
    }

    fn change_view_gfn(&self, view: View, old_gfn: Gfn, new_gfn: Gfn) -> Result<(), VmiError> {
        self.called(Call::ChangeViewGfn { view, old: old_gfn, new: new_gfn })?;
        self.check_gfn(old_gfn)?;
        self.check_gfn(new_gfn)?;
        self.with_view(view, |view| {
            view.shown.insert(old_gfn, new_gfn);
        })
    }

    fn reset_view_gfn(&self, view: View, gfn: Gfn) -> Result<(), VmiError> {
        self.called(Call::ResetViewGfn { view, gfn })?;
        self.with_view(view, |view| {
            view.shown.remove(&gfn);
            view.access.remove(&gfn);
        })
    }
}

impl VmiEventControl for FlatDriver {
    fn monitor_enable(&self, option: EventMonitor) -> Result<(), VmiError> {
        self.called(Call::MonitorEnable(option))
    }

    fn monitor_disable(&self, option: EventMonitor) -> Result<(), VmiError> {
        self.called(Call::MonitorDisable(option))
    }

    fn events_pending(&self) -> usize {
        self.script.borrow().iter().filter(|step| matches!(step, Scripted::Event(_))).count()
    }

    fn event_processing_overhead(&self) -> Duration {
        Duration::ZERO
    }

    fn wait_for_event<Handler>(&self, timeout: Duration, mut handler: Handler) -> Result<(), VmiError>
    where
        Handler: FnMut(&VmiEvent<Amd64>) -> VmiEventResponse<Amd64>,
    {
        self.called(Call::Wait(timeout))?;
        let step = if timeout.is_zero() {
            let mut script = self.script.borrow_mut();
            let pending = script.iter().position(|step| matches!(step, Scripted::Event(_)));
            pending.and_then(|at| script.remove(at))
        } else {
            self.script.borrow_mut().pop_front()
        };
        match step {
            Some(Scripted::Event(event)) => {
                let response = handler(&event);
                self.responses.borrow_mut().push(response);
                Ok(())
            }
            Some(Scripted::Timeout) | None => Err(VmiError::Timeout),
            Some(Scripted::Interrupted) => Err(VmiError::Interrupted),
            Some(Scripted::Error(error)) => Err(error),
        }
    }
}

impl VmiVmControl for FlatDriver {
    fn pause(&self) -> Result<(), VmiError> {
        self.called(Call::Pause)?;
        self.paused.set(self.paused.get() + 1);
        Ok(())
    }

    fn resume(&self) -> Result<(), VmiError> {
        self.called(Call::Resume)?;
        self.paused.set(self.paused.get() - 1);
        Ok(())
    }

    fn allocate_gfn(&self) -> Result<Gfn, VmiError> {
        self.called(Call::AllocateGfn)?;
        let mut extra = self.extra.borrow_mut();
        let gfn = (self.frames..).map(Gfn).find(|gfn| !extra.contains_key(gfn)).expect("frames never run out");
        // A frame of the hypervisor's is not clean.
        extra.insert(gfn, Box::new([0xee; PAGE as usize]));
        Ok(gfn)
    }

    fn allocate_gfn_at(&self, gfn: Gfn) -> Result<(), VmiError> {
        self.called(Call::AllocateGfnAt(gfn))?;
        if self.exists(gfn) {
            return Err(VmiError::Frame(gfn, "allocated: it is in use"));
        }
        self.extra.borrow_mut().insert(gfn, Box::new([0xee; PAGE as usize]));
        Ok(())
    }

    fn free_gfn(&self, gfn: Gfn) -> Result<(), VmiError> {
        self.called(Call::FreeGfn(gfn))?;
        let shown = self.remapped().into_iter().find(|(_, _, new)| *new == gfn);
        assert!(shown.is_none(), "frame {gfn} was freed while a view still shows it: {shown:?}");
        match self.extra.borrow_mut().remove(&gfn) {
            Some(_) => Ok(()),
            None => Err(VmiError::Frame(gfn, "freed: it was not allocated")),
        }
    }

    fn inject_interrupt(&self, vcpu: VcpuId, interrupt: Interrupt) -> Result<(), VmiError> {
        self.called(Call::InjectInterrupt(vcpu, interrupt))
    }

    fn reset_state(&self) -> Result<(), VmiError> {
        self.called(Call::ResetState)
    }
}

impl FlatDriver {
    fn insert<K: Ord>(points: &RefCell<BTreeMap<K, u32>>, key: K) {
        *points.borrow_mut().entry(key).or_default() += 1;
    }

    fn take<K: Ord>(points: &RefCell<BTreeMap<K, u32>>, key: K) -> Result<(), VmiError> {
        let mut points = points.borrow_mut();
        match points.get_mut(&key) {
            None => return Err(VmiError::Invalid("the stub has nothing there".into())),
            Some(1) => _ = points.remove(&key),
            Some(count) => *count -= 1,
        }
        Ok(())
    }
}

impl VmiDebugControl for FlatDriver {
    fn set_breakpoint(&self, ctx: AddressContext, _: Pa) -> Result<(), VmiError> {
        let va = ctx.va;
        self.called(Call::SetBreakpoint(va))?;
        Self::insert(&self.breakpoints, va);
        Ok(())
    }

    fn clear_breakpoint(&self, va: Va) -> Result<(), VmiError> {
        self.called(Call::ClearBreakpoint(va))?;
        Self::take(&self.breakpoints, va)
    }

    fn set_watchpoint(&self, va: Va, bytes: u64, _: MemoryAccess) -> Result<(), VmiError> {
        self.called(Call::SetWatchpoint(va))?;
        Self::insert(&self.watchpoints, (va, bytes));
        Ok(())
    }

    fn clear_watchpoint(&self, va: Va, bytes: u64, _: MemoryAccess) -> Result<(), VmiError> {
        self.called(Call::ClearWatchpoint(va))?;
        Self::take(&self.watchpoints, (va, bytes))
    }
}
