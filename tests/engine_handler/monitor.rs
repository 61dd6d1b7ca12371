//! The whole engine on the built-in guest, ended in the middle of its work: nothing of it stays in the guest.

use std::{
    cell::{Cell, RefCell},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use crossbeam_channel::{Sender, bounded};
use indexmap::IndexSet;
use vmscope::engine::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId, View},
    command::{Request, Target},
    driver::{
        MemoryAccess, VmiDriver,
        sim::{SimDriver, SimOptions},
    },
    error::VmiError,
    monitor::{Channels, Monitor, MonitorOptions},
    os::{CurrentProcess, ProcessList, VmiOs, windows::WindowsOs},
    profile::Profile,
    session::{VmiCore, VmiProber, VmiSession, VmiState},
    snapshot::{Process, ProcessDetail, Snapshot},
    symbols::SymbolTable,
};

/// What happens at some hit of a breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The engine is told to end.
    Quit,
    /// The OS layer panics while an event is answered.
    PanicAtEvent,
    /// The OS layer panics between events.
    PanicInPoll,
}

/// An OS layer that ends the session when it has been asked for the current process often enough.
struct Fragile {
    os: WindowsOs,
    way: Way,
    asked: Cell<u32>,
    requests: RefCell<Option<Sender<Request>>>,
}

impl Fragile {
    fn session<'a>(&'a self, vmi: VmiSession<'a, SimDriver, Self>) -> VmiSession<'a, SimDriver, WindowsOs> {
        VmiSession::new(vmi.core(), &self.os)
    }

    fn is_over(&self) -> bool {
        self.asked.get() > 50
    }
}

impl VmiOs<SimDriver> for Fragile {
    fn name(&self) -> &'static str {
        "fragile"
    }
    fn version(&self) -> &str {
        "1"
    }
    fn kernel_image_base(&self) -> Va {
        VmiOs::<SimDriver>::kernel_image_base(&self.os)
    }
    fn kernel_root(&self) -> Pa {
        VmiOs::<SimDriver>::kernel_root(&self.os)
    }
    fn symbols(&self) -> Arc<SymbolTable> {
        VmiOs::<SimDriver>::symbols(&self.os)
    }
    fn processes(&self, vmi: VmiSession<'_, SimDriver, Self>) -> Result<ProcessList, VmiError> {
        assert!(self.way != Way::PanicInPoll || !self.is_over(), "on purpose");
        self.os.processes(self.session(vmi))
    }
    fn current_process(&self, vmi: VmiState<'_, SimDriver, Self>) -> Result<Option<CurrentProcess>, VmiError> {
        self.asked.set(self.asked.get() + 1);
        if self.is_over() {
            assert_ne!(self.way, Way::PanicAtEvent, "on purpose");
            if self.way == Way::Quit {
                self.requests.take();
            }
        }
        self.os.current_process(self.session(vmi.session()).with_registers(vmi.registers()))
    }
    fn process_detail(
        &self,
        vmi: VmiSession<'_, SimDriver, Self>,
        process: &Process,
        prober: &VmiProber,
    ) -> Result<ProcessDetail, VmiError> {
        self.os.process_detail(self.session(vmi), process, prober)
    }
    fn function_argument(&self, vmi: VmiState<'_, SimDriver, Self>, index: u32) -> Result<u64, VmiError> {
        self.os.function_argument(self.session(vmi.session()).with_registers(vmi.registers()), index)
    }
    fn refused_fault(
        &self,
        _: VmiState<'_, SimDriver, Self>,
        _: &IndexSet<AddressContext>,
    ) -> Result<Option<AddressContext>, VmiError> {
        Ok(None)
    }
}

#[test]
fn an_engine_that_breaks_leaves_a_guest_as_it_was() {
    for way in [Way::Quit, Way::PanicAtEvent, Way::PanicInPoll] {
        let options = SimOptions { seed: 5, real_time: false, ..SimOptions::default() };
        let core = VmiCore::new(SimDriver::new(options).expect("the guest starts")).expect("a core");
        let registers = core.registers(VcpuId(0)).expect("a vCPU");
        let os = WindowsOs::detect(&core, &registers, Profile::builtin().expect("a profile")).expect("a kernel");
        let (sender, requests) = bounded(1);
        let os = Fragile { os, way, asked: Cell::new(0), requests: RefCell::new(Some(sender)) };
        let target = |place: &str| Target::parse(place).expect("a place");
        let options = MonitorOptions {
            breaks: ["nt!NtCreateFile", "nt!NtClose", "nt!NtQuerySystemInformation"].map(target).into(),
            watches: ["nt!NtClose", "0xfffff7c000000000"].map(target).into(),
            ..MonitorOptions::default()
        };
        let (changed, _) = bounded(1);
        let slot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let channels = Channels { snapshot: slot, changed, requests };
        let session = VmiSession::new(&core, &os);
        let mut monitor = Monitor::new(options, channels, Snapshot::default());
        monitor.start(session).expect("breakpoints and watches");
        let default = core.default_view();
        let ours = View(default.0 + 1);
        let max = core.info().expect("info").max_gfn.0;
        let is_restricted = |gfn| core.memory_access(Gfn(gfn), ours).is_ok_and(|access| access != MemoryAccess::RWX);
        assert!((0..=max).any(is_restricted), "there is something to take back");

        let ended = catch_unwind(AssertUnwindSafe(|| session.handle(monitor)));
        assert_eq!(ended.is_err(), way != Way::Quit, "{way:?}");
        assert!(os.is_over(), "{way:?}");
        // No view of ours, no page that anybody is kept from, no event, and a guest that runs.
        assert!(matches!(core.memory_access(Gfn(1), ours), Err(VmiError::ViewNotFound(_))), "{way:?}");
        assert!((0..=max).all(|gfn| core.memory_access(Gfn(gfn), default).ok() == Some(MemoryAccess::RWX)), "{way:?}");
        let before = core.driver().clock_ns();
        let waited = core.wait_for_event(Duration::from_secs(2), |event| panic!("{way:?}: {event:?}"));
        assert!(matches!(waited, Err(VmiError::Timeout)), "{way:?}: {waited:?}");
        assert_eq!(core.driver().clock_ns() - before, 2_000_000_000, "{way:?}: the guest runs");
        assert_eq!(core.driver().tamper_count(), 0, "{way:?}: the guest found its own code changed");
    }
}
