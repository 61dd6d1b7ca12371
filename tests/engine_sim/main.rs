//! The built-in guest through the capability traits and the Windows layer: what it does (`guest`), what is reported and
//! how answers work (`events`), instructions (`instructions`), paging and injected faults (`paging`), the driver's own rules
//! (`driver`), and the Windows layer in memory that lies (`hostile`).

mod driver;
mod events;
mod guest;
mod hostile;
mod instructions;
mod paging;

use std::time::Duration;

use vmscope::engine::{
    addr::{Gfn, Pa, Va, VcpuId, View},
    arch::amd64::{Amd64, EventMonitor, ExceptionVector},
    driver::{
        MemoryAccess, VmiDriver,
        sim::{SimDriver, SimOptions},
    },
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
    os::{
        VmiOs,
        windows::{Profile, WindowsOs},
    },
    session::{VmiCore, VmiSession},
};

type Event = VmiEvent<Amd64>;
type Response = VmiEventResponse<Amd64>;

/// A guest with its core and its Windows layer.
struct Guest {
    core: VmiCore<SimDriver>,
    os: WindowsOs,
}

impl Guest {
    fn new(options: SimOptions) -> Self {
        let core = VmiCore::new(SimDriver::new(options).expect("boots")).expect("a machine");
        let registers = core.registers(VcpuId(0)).expect("a vCPU");
        let os = WindowsOs::detect(&core, &registers, Profile::builtin().expect("compiled in")).expect("a Windows");
        Self { core, os }
    }

    fn driver(&self) -> &SimDriver {
        self.core.driver()
    }

    fn session(&self) -> VmiSession<'_, SimDriver, WindowsOs> {
        VmiSession::new(&self.core, &self.os)
    }

    fn kernel_root(&self) -> Pa {
        VmiOs::<SimDriver>::kernel_root(&self.os)
    }

    fn symbol(&self, name: &str) -> Va {
        VmiOs::<SimDriver>::symbols(&self.os).lookup(name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// The physical address of a kernel symbol.
    fn physical(&self, name: &str) -> Pa {
        self.core.translate_address((self.symbol(name), self.kernel_root())).expect("mapped")
    }

    /// Runs for some virtual time with a handler for every event.
    fn run(&self, time: Duration, mut handler: impl FnMut(&Event) -> Response) {
        let end = self.driver().clock_ns() + time.as_nanos() as u64;
        while self.driver().clock_ns() < end {
            let left = Duration::from_nanos(end - self.driver().clock_ns());
            match self.core.wait_for_event(left, &mut handler) {
                Ok(()) | Err(VmiError::Timeout) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Runs until the handler is content, for ten virtual seconds at most.
    fn run_until<T>(&self, mut handler: impl FnMut(&Event) -> (Response, Option<T>)) -> T {
        let end = self.driver().clock_ns() + 10_000_000_000;
        let mut found = None;
        while found.is_none() {
            let now = self.driver().clock_ns();
            assert!(now < end, "nothing came of it in ten seconds");
            let waited = self.core.wait_for_event(Duration::from_nanos(end - now), |event| {
                let (response, result) = handler(event);
                found = result;
                response
            });
            assert!(matches!(waited, Ok(()) | Err(VmiError::Timeout)));
        }
        found.expect("the loop ends with it")
    }

    /// A breakpoint in a shadow page of a new view that all vCPUs are in, as the breakpoint manager makes it: the guest
    /// may execute the page but neither read nor write it.
    fn hide_breakpoint(&self, name: &str) -> (View, Gfn) {
        let pa = self.physical(name);
        let gfn = Gfn(pa.0 >> 12);
        let view = self.core.create_view(MemoryAccess::RWX).expect("views");
        let shadow = self.core.allocate_gfn().expect("frames");
        let page = self.core.read_page(gfn).expect("in memory");
        self.core.write(Pa(shadow.0 << 12), &page[..]).expect("writable");
        self.core.write_u8(Pa((shadow.0 << 12) + (pa.0 & 0xfff)), 0xcc).expect("writable");
        self.core.change_view_gfn(view, gfn, shadow).expect("both exist");
        self.core.set_memory_access(gfn, view, MemoryAccess::X).expect("both exist");
        self.core.switch_to_view(view).expect("exists");
        self.core.monitor_enable(EventMonitor::Interrupt(ExceptionVector::BREAKPOINT)).expect("supported");
        self.core.monitor_enable(EventMonitor::Singlestep).expect("supported");
        (view, gfn)
    }
}
