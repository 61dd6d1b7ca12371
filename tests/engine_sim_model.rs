//! Breakpoints and page tables against a naive model, on the built-in guest as it lives.
//!
//! The guest runs between the operations: its pager takes pages and whole tables away and brings them back elsewhere, it
//! reads and patches its own code, processes end. `VMSCOPE_OPS` sets the number of operations (100,000 unless told
//! otherwise). Failing drivers and hostile tables are in `engine_bpm_model.rs` and `engine_ptm_model.rs`.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use support::Rng;
use vmscope::engine::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId, View},
    arch::{
        EventReason,
        amd64::{Amd64, EventMonitor, ExceptionVector},
    },
    bpm::{Breakpoint, BreakpointController, BreakpointManager},
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
    ptm::{PageEntryUpdate, PageTableMonitor, PageTableMonitorEvent},
    session::VmiCore,
};

type Int3 = BreakpointController<SimDriver>;

/// Functions that the guest runs often, and some that it never does.
const FUNCTIONS: &[&str] =
    &["NtClose", "NtReadFile", "NtWriteFile", "NtCreateFile", "KiDispatchException", "MmAccessFault", "NtOpenProcess"];
const KEYS: u8 = 2;

fn operations() -> u64 {
    std::env::var("VMSCOPE_OPS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

struct World {
    core: VmiCore<SimDriver>,
    engine: Engine,
    rng: Rng,
    /// Functions, mapped alike everywhere, and pages of processes, each in its own space.
    kernel: Vec<Va>,
    user: Vec<AddressContext>,
    roots: Vec<Pa>,
    /// The model: breakpoint → (global, tag).
    known: BTreeMap<(AddressContext, View, u8), (bool, u64)>,
    /// How often each address of a process is monitored.
    watched: BTreeMap<AddressContext, u32>,
}

/// What answers the guest's events, as the monitor does.
struct Engine {
    bpm: BreakpointManager<Int3, u8, u64>,
    ptm: PageTableMonitor<SimDriver, ()>,
    /// The view that the guest runs in, and one that it does not.
    views: [View; 2],
    /// vCPUs that make a step, and the page with breakpoints that they write to.
    steps: BTreeMap<VcpuId, Option<Gfn>>,
    hits: u64,
    moves: u64,
    patches: u64,
}

impl Engine {
    fn answer(&mut self, core: &VmiCore<SimDriver>, event: &VmiEvent<Amd64>) -> VmiEventResponse<Amd64> {
        let aside = VmiEventResponse::fast_singlestep(core.default_view());
        let vcpu = event.vcpu_id();
        if event.reason().is_singlestep() {
            let code = self.steps.remove(&vcpu).expect("a step that was asked for");
            let events = self.ptm.process_dirty_entries(core, vcpu).expect("nothing fails");
            self.moves += events.len() as u64;
            self.bpm.handle_ptm_events(core, events).expect("nothing fails");
            if let Some(gfn) = code {
                self.patches += 1;
                self.bpm.controller_mut().guest_wrote(core, gfn).expect("nothing fails");
            }
            return VmiEventResponse::default().with_view(self.views[0]);
        }
        if event.reason().as_software_breakpoint().is_some() {
            if (0..KEYS).any(|key| self.bpm.contains_by_event(event, key)) {
                self.hits += 1;
                return aside;
            }
            let own = Int3::is_breakpoint(core, event).expect("readable");
            return if own { VmiEventResponse::reinject_interrupt() } else { aside };
        }
        let Some(access) = event.reason().as_memory_access() else { return VmiEventResponse::default() };
        let view = event.view().expect("the built-in guest has views");
        if !access.access.contains(MemoryAccess::W) {
            return aside;
        }
        let gfn = Gfn(access.pa.0 >> 12);
        let table = self.ptm.mark_dirty_entry(access.pa, view, vcpu);
        let code = self.bpm.contains_page(view, gfn).then_some(gfn);
        if !table && code.is_none() {
            return aside;
        }
        self.steps.insert(vcpu, code);
        VmiEventResponse::singlestep().with_view(core.default_view())
    }
}

impl World {
    fn new(seed: u64, la57: bool) -> Self {
        let options = SimOptions { seed, la57, ..SimOptions::default() };
        let core = VmiCore::new(SimDriver::new(options).expect("boots")).expect("a machine");
        let registers = core.registers(VcpuId(0)).expect("a vCPU");
        let os = WindowsOs::detect(&core, &registers, Profile::builtin().expect("compiled in")).expect("a Windows");
        let symbols = VmiOs::<SimDriver>::symbols(&os);
        let kernel: Vec<Va> = FUNCTIONS.iter().filter_map(|name| symbols.lookup(&format!("nt!{name}"))).collect();
        assert!(kernel.len() > 4);
        let root = VmiOs::<SimDriver>::kernel_root(&os);
        let processes = core.driver().processes().into_iter().filter(|process| process.name == "svchost.exe").take(6);
        let (mut user, mut roots) = (Vec::new(), vec![root]);
        for process in processes {
            let block = core.read_u64((process.object + 0x550, root)).expect("in memory");
            roots.push(process.root);
            // Pages of its private region of 2 MiB, which the pager works on.
            let pages = [0x43, 0x44, 0x80, 0x1ff];
            user.extend(pages.map(|page| AddressContext::new((block & !0x1f_ffff) + page * 0x1000 + 8, process.root)));
        }
        assert!(user.len() > 12);
        let views = [(); 2].map(|()| core.create_view(MemoryAccess::RWX).expect("views"));
        core.switch_to_view(views[0]).expect("exists");
        core.monitor_enable(EventMonitor::Interrupt(ExceptionVector::BREAKPOINT)).expect("supported");
        core.monitor_enable(EventMonitor::Singlestep).expect("supported");
        let engine = Engine {
            bpm: BreakpointManager::new(),
            ptm: PageTableMonitor::new(),
            views,
            steps: BTreeMap::new(),
            hits: 0,
            moves: 0,
            patches: 0,
        };
        Self {
            core,
            engine,
            rng: Rng::new(seed),
            kernel,
            user,
            roots,
            known: BTreeMap::new(),
            watched: BTreeMap::new(),
        }
    }

    /// Lets the guest run, and then until no vCPU is in the middle of a step.
    fn run(&mut self, time: Duration) {
        let Self { core, engine, .. } = self;
        let end = core.driver().clock_ns() + time.as_nanos() as u64;
        while core.driver().clock_ns() < end || !engine.steps.is_empty() {
            let left = Duration::from_nanos(end.saturating_sub(core.driver().clock_ns()).max(1000));
            match core.wait_for_event(left, |event| engine.answer(core, event)) {
                Ok(()) | Err(VmiError::Timeout) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    // --- Operations -------------------------------------------------------------------------------------------------

    fn step(&mut self) {
        match self.rng.below(100) {
            0..45 => self.insert(),
            45..85 => self.remove(),
            85..97 => self.page_out_by_hand(),
            97..98 => {
                let view = self.engine.views[self.rng.below(2) as usize];
                let any = self.known.keys().any(|key| key.1 == view);
                assert_eq!(self.engine.bpm.remove_by_view(&self.core, view).ok(), Some(any));
                self.forget(|key| key.1 == view);
            }
            _ => {
                let time = Duration::from_micros(self.rng.below(20_000));
                self.run(time);
            }
        }
    }

    /// A breakpoint in a function, for all address spaces or for one, or in a page of a process, which is then watched.
    fn choose(&mut self) -> (Breakpoint<u8, u64>, bool) {
        let (key, tag) = (self.rng.below(KEYS.into()) as u8, self.rng.next());
        if self.rng.percent(60) {
            let at = self.rng.below(self.user.len() as u64) as usize;
            let AddressContext { va, root } = self.user[at];
            let ctx = AddressContext { va: va + self.rng.below(3), root };
            return (Breakpoint::new(ctx, self.engine.views[0]).with_key(key).with_tag(tag), false);
        }
        let va = self.kernel[self.rng.below(self.kernel.len() as u64) as usize];
        let root = self.roots[self.rng.below(self.roots.len() as u64) as usize];
        let view = self.engine.views[self.rng.below(2) as usize];
        // One kind for each address, or its owner would have it in both.
        let global = va.0 >> 4 & 1 == 0;
        let breakpoint = Breakpoint::new((va, root), view).with_key(key).with_tag(tag);
        (if global { breakpoint.global() } else { breakpoint }, true)
    }

    fn insert(&mut self) {
        let (breakpoint, is_kernel) = self.choose();
        let (ctx, view, key) = (breakpoint.ctx(), breakpoint.view(), breakpoint.key());
        let is_known = self.known.contains_key(&(ctx, view, key));
        if !is_kernel && !is_known {
            self.engine.ptm.monitor(&self.core, ctx, view, ()).expect("nothing fails");
            *self.watched.entry(ctx).or_default() += 1;
        }
        self.core.flush_v2p_cache();
        let new = self.engine.bpm.insert(&self.core, breakpoint).expect("nothing fails");
        assert!(!(new && is_known), "{ctx} is there already");
        self.known.entry((ctx, view, key)).or_insert((breakpoint.is_global(), breakpoint.tag()));
        self.check(ctx, view);
    }

    fn remove(&mut self) {
        let count = self.known.len() as u64;
        if count == 0 {
            return;
        }
        let at = self.rng.below(count) as usize;
        let (&(ctx, view, key), &(global, _)) = self.known.iter().nth(at).expect("counted");
        let breakpoint = Breakpoint::new(ctx, view).with_key(key).with_tag(0);
        let breakpoint = if global { breakpoint.global() } else { breakpoint };
        assert_eq!(self.engine.bpm.remove(&self.core, breakpoint).ok(), Some(true));
        self.forget(|other| {
            *other == (ctx, view, key) || global && (other.0.va, other.1, other.2) == (ctx.va, view, key)
        });
        assert_eq!(self.engine.bpm.remove(&self.core, breakpoint).ok(), Some(false));
        self.check(ctx, view);
    }

    /// Takes breakpoints out of the model, and out of the page table monitor what was watched for them.
    fn forget(&mut self, which: impl Fn(&(AddressContext, View, u8)) -> bool) {
        let gone: Vec<_> = self.known.keys().filter(|key| which(key)).copied().collect();
        for key in gone {
            self.known.remove(&key);
            if let Some(count) = self.watched.get_mut(&key.0) {
                self.engine.ptm.unmonitor(&self.core, key.0, key.1).expect("nothing fails");
                *count -= 1;
                if *count == 0 {
                    self.watched.remove(&key.0);
                }
            }
        }
    }

    /// Old and made-up news of the page tables: they leave things as they are.
    fn page_out_by_hand(&mut self) {
        let ctx = self.user[self.rng.below(self.user.len() as u64) as usize];
        let pa = Pa(self.rng.below(0x1000) << 12 | ctx.va.0 & 0xfff);
        if self.core.translate_address(ctx).ok() == Some(pa) {
            return;
        }
        let update = PageEntryUpdate { view: self.engine.views[0], ctx, pa };
        let changed = self.engine.bpm.handle_ptm_event(&self.core, &PageTableMonitorEvent::PageOut(update));
        assert_eq!(changed.ok(), Some(false));
    }

    // --- What must hold ---------------------------------------------------------------------------------------------

    /// Where a breakpoint has to be armed now.
    fn place(&self, ctx: AddressContext) -> Option<Pa> {
        self.core.translate_address(ctx).ok()
    }

    /// The guest and the books at one address.
    fn check(&self, ctx: AddressContext, view: View) {
        self.core.flush_v2p_cache();
        let mine: Vec<_> = self.known.iter().filter(|((at, of, _), _)| (*at, *of) == (ctx, view)).collect();
        let states: Vec<_> =
            self.engine.bpm.breakpoints_at(ctx).filter(|state| state.breakpoint.view() == view).collect();
        assert_eq!(states.len(), mine.len(), "{ctx}");
        let pa = self.place(ctx);
        for state in states {
            let breakpoint = state.breakpoint;
            let &(global, tag) = self.known.get(&(ctx, view, breakpoint.key())).expect("known to the model");
            assert_eq!((breakpoint.is_global(), state.pa), (global, pa), "{ctx}");
            // A further root of a global one goes by the first one's tag.
            assert!(global || breakpoint.tag() == tag, "{ctx}");
        }
        if let Some(pa) = pa {
            self.check_page(view, Gfn(pa.0 >> 12));
        }
    }

    /// A page of a view: shown as the guest has it but for the breakpoints, and those the guest cannot see.
    fn check_page(&self, view: View, gfn: Gfn) {
        let points: BTreeSet<u64> = self
            .known
            .keys()
            .filter(|key| key.1 == view)
            .filter_map(|key| self.place(key.0))
            .filter(|pa| pa.0 >> 12 == gfn.0)
            .map(|pa| pa.0 & 0xfff)
            .collect();
        let access = self.core.memory_access(gfn, view).expect("both exist");
        let shadow = self.engine.bpm.controller().interceptor().shadow(view, gfn);
        assert_eq!(self.engine.bpm.contains_page(view, gfn), !points.is_empty());
        let Some(shadow) = shadow else {
            assert!(points.is_empty() && access.contains(MemoryAccess::RX), "{gfn}: {access:?}");
            return;
        };
        assert_eq!(access, MemoryAccess::X, "{gfn}");
        let mut page = self.core.read_page(gfn).expect("in memory");
        let shown = self.core.read_page(shadow).expect("ours");
        assert!(points.iter().all(|&at| shown[at as usize] == 0xcc), "{gfn}");
        // The guest's writes raise events in the view that it runs in.
        if view == self.engine.views[0] {
            points.iter().for_each(|&at| page[at as usize] = 0xcc);
            assert!(shown == page, "{gfn} is shown as it was once");
        }
    }

    fn check_all(&self) {
        self.core.flush_v2p_cache();
        assert_eq!(self.engine.bpm.len(), self.known.len());
        let places: BTreeSet<_> = self.known.keys().map(|&(ctx, view, _)| (ctx, view)).collect();
        places.iter().for_each(|&(ctx, view)| self.check(ctx, view));
        let ptm = &self.engine.ptm;
        assert_eq!(ptm.monitored_addresses(), self.watched.len());
        for (&ctx, &references) in &self.watched {
            let state = ptm.state(ctx, self.engine.views[0]).expect("monitored");
            assert_eq!((state.pa, state.references), (self.place(ctx), references), "{ctx}");
            for entry in ptm.entries(ctx, self.engine.views[0]) {
                let access = self.core.memory_access(Gfn(entry.entry_pa.0 >> 12), self.engine.views[0]);
                assert!(access.is_ok_and(|access| !access.contains(MemoryAccess::W)), "{}", entry.entry_pa);
                assert_eq!(self.core.read_u64(entry.entry_pa).ok().map(meaning), Some(meaning(entry.value)));
            }
        }
        let pages = self.engine.bpm.controller().interceptor().shadow_pages();
        assert!(pages <= places.len());
        assert_eq!(self.core.driver().tamper_count(), 0, "the guest never sees a breakpoint");
    }

    /// Everything is taken back: the guest lives on as if nobody had been there.
    fn end(mut self) {
        self.engine.bpm.clear(&self.core).expect("nothing fails");
        self.engine.ptm.unmonitor_all(&self.core).expect("nothing fails");
        assert!(self.engine.bpm.is_empty() && self.engine.ptm.monitored_tables() == 0);
        for view in self.engine.views {
            for gfn in (0..SimDriver::MEMORY_BYTES >> 12).map(Gfn) {
                assert_eq!(self.core.memory_access(gfn, view).ok(), Some(MemoryAccess::RWX), "{gfn}");
            }
        }
        let (hits, patches) = (self.engine.hits, self.engine.patches);
        self.run(Duration::from_millis(100));
        assert_eq!((self.engine.hits, self.engine.patches), (hits, patches));
        assert_eq!(self.core.driver().tamper_count(), 0);
    }
}

/// An entry without its accessed and dirty bits, which the processor sets by itself.
fn meaning(entry: u64) -> u64 {
    entry & !0x60
}

fn live(seed: u64, la57: bool, operations: u64) {
    let mut world = World::new(seed, la57);
    for n in 0..operations {
        world.step();
        if n % 256 == 0 {
            world.check_all();
        }
    }
    world.check_all();
    let Engine { hits, moves, patches, .. } = &world.engine;
    let lived = *hits > operations / 400 && *moves > operations / 10_000 && *patches > operations / 20_000;
    assert!(lived, "{hits} hits, {moves} moves, {patches} patches");
    world.end();
}

#[test]
fn books_and_guest_agree_while_it_lives_with_four_levels() {
    live(1, false, operations() / 2);
}

#[test]
fn books_and_guest_agree_while_it_lives_with_five_levels() {
    live(2, true, operations() / 2);
}
