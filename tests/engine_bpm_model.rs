//! Random operations on the breakpoint manager, against a naive model and against what is really in the guest.
//!
//! After every operation, failed ones included, the manager's books are compared with the model's list and with the
//! flat guest's views, permissions, shadow bytes and stub breakpoints. `VMSCOPE_OPS` sets the number of operations for
//! each controller.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::{Call, FlatDriver, Rng, core};
use vmscope::engine::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId, View},
    arch::{
        EventMemoryAccess,
        amd64::{Amd64, Amd64EventReason, Amd64Registers, EventInterrupt, Interrupt},
    },
    bpm::{Breakpoint, BreakpointController, BreakpointManager, DebugController, MemoryController, TapController},
    driver::{MemoryAccess, VmiViewControl},
    error::VmiError,
    event::VmiEvent,
    ptm::{PageEntryUpdate, PageTableMonitorEvent},
    session::VmiCore,
};

const FRAMES: u64 = 6;
const FIRST: u64 = 2;
const ROOTS: [Pa; 4] = [Pa(0x10_0000), Pa(0x10_1000), Pa(0x20_0000), Pa(0x30_0000)];
const VAS: [Va; 6] = [
    Va(0x7f00_0000_1000),
    Va(0x7f00_0000_1001),
    Va(0x7f00_0000_1fff),
    Va(0x7f00_0000_2001),
    Va(0xffff_8000_0000_0000),
    Va(0xffff_8000_0000_0fff),
];

type Manager<C> = BreakpointManager<C, u8, u32>;
type Wanted = Breakpoint<u8, u32>;
/// (key, view, address, root)
type Name = (u8, View, Va, Pa);

/// One breakpoint in one address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    global: bool,
    tag: u32,
    pa: Option<Pa>,
}

/// What is wanted, as a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model(BTreeMap<Name, Entry>);

fn name_of(breakpoint: &Wanted) -> Name {
    (breakpoint.key(), breakpoint.view(), breakpoint.ctx().va, breakpoint.ctx().root)
}

fn place(gfn: Gfn, va: Va) -> Pa {
    Pa(gfn.0 << 12 | va.0 & 0xfff)
}

impl Model {
    fn of<C: TapController>(manager: &Manager<C>) -> Self {
        let state = manager.breakpoints().map(|state| {
            let breakpoint = state.breakpoint;
            let entry = Entry { global: breakpoint.is_global(), tag: breakpoint.tag(), pa: state.pa };
            (name_of(&breakpoint), entry)
        });
        let model = Self(state.collect());
        assert_eq!(model.0.len(), manager.len(), "no breakpoint is kept twice");
        model
    }

    fn group(&self, key: u8, view: View, va: Va) -> impl Iterator<Item = (&Name, &Entry)> {
        let same = move |name: &Name| (name.0, name.1, name.2) == (key, view, va);
        self.0.iter().filter(move |(name, entry)| entry.global && same(name))
    }

    /// What the controller must have been given: (view, place) and the addresses there.
    fn installed(&self) -> BTreeMap<(View, Pa), BTreeSet<Va>> {
        let mut all: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (name, entry) in &self.0 {
            if let Some(pa) = entry.pa {
                all.entry((name.1, pa)).or_default().insert(name.2);
            }
        }
        all
    }

    fn insert(&mut self, wanted: &Wanted, pa: Option<Pa>) -> Result<bool, ()> {
        let name = name_of(wanted);
        if let Some(entry) = self.0.get_mut(&name) {
            if entry.global != wanted.is_global() {
                return Err(());
            }
            entry.pa = pa.or(entry.pa);
            return Ok(false);
        }
        let mut tag = wanted.tag();
        let mut new = true;
        if wanted.is_global() {
            if let Some((_, first)) = self.group(name.0, name.1, name.2).next() {
                tag = first.tag;
            }
            new = pa.is_none() || !self.group(name.0, name.1, name.2).any(|(_, entry)| entry.pa == pa);
        }
        self.0.insert(name, Entry { global: wanted.is_global(), tag, pa });
        Ok(new)
    }

    /// The names that a removal takes away.
    fn removed_by(&self, wanted: &Wanted) -> BTreeSet<Name> {
        let name = name_of(wanted);
        let global = match self.0.get(&name) {
            Some(entry) => entry.global,
            None => wanted.is_global(),
        };
        if global {
            return self.group(name.0, name.1, name.2).map(|(name, _)| *name).collect();
        }
        self.0.keys().filter(|found| **found == name).copied().collect()
    }

    /// The breakpoint behind an execution.
    fn at(&self, ctx: AddressContext, gfn: Gfn, view: View, key: u8) -> Option<(bool, u32)> {
        let pa = Some(place(gfn, ctx.va));
        let own = self.0.get(&(key, view, ctx.va, ctx.root)).filter(|entry| !entry.global && entry.pa == pa);
        let any = self.group(key, view, ctx.va).map(|(_, entry)| entry).find(|entry| entry.pa == pa);
        own.or(any).map(|entry| (entry.global, entry.tag))
    }
}

/// What the test must know of a controller.
trait Kind: TapController<Driver = FlatDriver> {
    const HAS_VIEWS: bool;
    fn event(ctx: AddressContext, gfn: Gfn, view: View) -> VmiEvent<Amd64>;
    /// The guest wrote to a page; may fail.
    fn wrote(&mut self, _: &VmiCore<FlatDriver>, _: Gfn) -> Result<(), VmiError> {
        Ok(())
    }
    /// Compares the guest with what must be in it. Pages in `loose` had more than one call fail and may be unmonitored.
    fn check(&self, driver: &FlatDriver, installed: &BTreeMap<(View, Pa), BTreeSet<Va>>, loose: &BTreeSet<(View, Gfn)>);
}

fn registers(ctx: AddressContext) -> Amd64Registers {
    let mut registers = Amd64Registers { cr3: ctx.root.0, ..Default::default() };
    registers.gp.rip = ctx.va.0;
    registers
}

fn pages(installed: &BTreeMap<(View, Pa), BTreeSet<Va>>) -> BTreeMap<(View, Gfn), BTreeSet<u64>> {
    let mut pages: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for &(view, pa) in installed.keys() {
        pages.entry((view, Gfn(pa.0 >> 12))).or_default().insert(pa.0 & 0xfff);
    }
    pages
}

fn check_access(
    driver: &FlatDriver,
    pages: &BTreeMap<(View, Gfn), BTreeSet<u64>>,
    loose: &BTreeSet<(View, Gfn)>,
    want: MemoryAccess,
) {
    let found = driver.restricted();
    for (page, access) in &found {
        assert!(pages.contains_key(page), "{page:?} is {access:?} without a breakpoint in it");
        assert_eq!(*access, want, "{page:?}");
    }
    for page in pages.keys().filter(|page| !loose.contains(page)) {
        assert!(found.contains_key(page), "{page:?} has breakpoints and is not monitored");
    }
}

impl Kind for BreakpointController<FlatDriver> {
    const HAS_VIEWS: bool = true;

    fn event(ctx: AddressContext, gfn: Gfn, view: View) -> VmiEvent<Amd64> {
        let interrupt = EventInterrupt { gfn, interrupt: Interrupt::breakpoint() };
        VmiEvent::new(VcpuId(0), Some(view), registers(ctx), Amd64EventReason::Interrupt(interrupt))
    }

    fn wrote(&mut self, vmi: &VmiCore<FlatDriver>, gfn: Gfn) -> Result<(), VmiError> {
        self.guest_wrote(vmi, gfn).map(|_| ())
    }

    fn check(
        &self,
        driver: &FlatDriver,
        installed: &BTreeMap<(View, Pa), BTreeSet<Va>>,
        loose: &BTreeSet<(View, Gfn)>,
    ) {
        let pages = pages(installed);
        check_access(driver, &pages, loose, MemoryAccess::X);
        let remapped = driver.remapped();
        let shown: BTreeSet<_> = remapped.iter().map(|&(view, gfn, _)| (view, gfn)).collect();
        assert_eq!(shown, pages.keys().copied().collect(), "shadows are shown where breakpoints are, and only there");
        let interceptor = self.interceptor();
        assert_eq!(interceptor.shadow_pages(), pages.len());
        assert_eq!(driver.allocated().len(), pages.len() + interceptor.spare_frames(), "no frame is lost");
        for (view, gfn, frame) in remapped {
            assert_eq!(interceptor.shadow(view, gfn), Some(frame));
            let mut want = driver.peek(gfn.0 << 12, 0x1000);
            for &offset in &pages[&(view, gfn)] {
                let saved = interceptor.saved_bytes(view, Pa(gfn.0 << 12 | offset));
                assert_eq!(saved, Some([want[offset as usize]].as_slice()));
                want[offset as usize] = 0xcc;
            }
            assert!(driver.peek(frame.0 << 12, 0x1000) == want, "the shadow of {gfn} in view {view} is wrong");
        }
    }
}

impl Kind for MemoryController<FlatDriver> {
    const HAS_VIEWS: bool = true;

    fn event(ctx: AddressContext, gfn: Gfn, view: View) -> VmiEvent<Amd64> {
        let access = EventMemoryAccess { pa: place(gfn, ctx.va), va: ctx.va, access: MemoryAccess::X };
        VmiEvent::new(VcpuId(0), Some(view), registers(ctx), Amd64EventReason::MemoryAccess(access))
    }

    fn check(
        &self,
        driver: &FlatDriver,
        installed: &BTreeMap<(View, Pa), BTreeSet<Va>>,
        loose: &BTreeSet<(View, Gfn)>,
    ) {
        check_access(driver, &pages(installed), loose, MemoryAccess::RW);
        assert!(driver.remapped().is_empty());
    }
}

impl Kind for DebugController<FlatDriver> {
    const HAS_VIEWS: bool = false;

    fn event(ctx: AddressContext, gfn: Gfn, view: View) -> VmiEvent<Amd64> {
        let reason = Amd64EventReason::DebugBreakpoint { va: ctx.va, gfn };
        VmiEvent::new(VcpuId(0), (view != View(0)).then_some(view), registers(ctx), reason)
    }

    fn check(&self, driver: &FlatDriver, installed: &BTreeMap<(View, Pa), BTreeSet<Va>>, _: &BTreeSet<(View, Gfn)>) {
        let want: BTreeMap<Va, u32> = installed.values().flatten().map(|&va| (va, 1)).collect();
        assert_eq!(driver.breakpoints(), want, "each address is asked for once");
        assert!(driver.restricted().is_empty() && driver.remapped().is_empty());
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(Wanted, Option<Pa>),
    Remove(Wanted),
    RemoveByEvent(AddressContext, Gfn, View, u8),
    RemoveByView(View),
    Clear,
    PageIn(View, AddressContext, Pa),
    PageOut(View, AddressContext, Pa),
    Write(Pa, u8),
    /// The view is destroyed under the manager; all in it is removed then, and there is a new one.
    Vanish(usize),
}

struct Run<C: Kind> {
    vmi: VmiCore<FlatDriver>,
    manager: Manager<C>,
    model: Model,
    views: [View; 3],
    loose: BTreeSet<(View, Gfn)>,
    rng: Rng,
    done: u64,
    failed: u64,
}

impl<C: Kind> Run<C> {
    fn new(seed: u64) -> Self {
        let vmi = core(FIRST + FRAMES);
        let mut rng = Rng::new(seed);
        for page in 0..FRAMES {
            let bytes: Vec<u8> = (0..0x1000).map(|_| rng.next() as u8).collect();
            vmi.driver().poke((FIRST + page) << 12, &bytes);
        }
        let views = if C::HAS_VIEWS {
            std::array::from_fn(|_| vmi.create_view(MemoryAccess::RWX).expect("a view"))
        } else {
            [View(0); 3]
        };
        let (manager, model) = (Manager::new(), Model::default());
        Self { vmi, manager, model, views, loose: BTreeSet::new(), rng, done: 0, failed: 0 }
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.below(from.len() as u64) as usize]
    }

    fn gfn(&mut self) -> Gfn {
        Gfn(FIRST + self.rng.below(FRAMES))
    }

    fn ctx(&mut self) -> AddressContext {
        AddressContext::new(self.choose(&VAS), self.choose(&ROOTS))
    }

    fn wanted(&mut self) -> Wanted {
        let views = self.views;
        let tag = self.rng.below(1000) as u32;
        let wanted = Breakpoint::new(self.ctx(), self.choose(&views)).with_key(self.rng.below(2) as u8).with_tag(tag);
        if self.rng.percent(40) { wanted.global() } else { wanted }
    }

    /// A breakpoint that is there, if there is one.
    fn known(&mut self) -> Option<(Name, Entry)> {
        let nth = self.rng.below(self.model.0.len().max(1) as u64);
        self.model.0.iter().nth(nth as usize).map(|(name, entry)| (*name, *entry))
    }

    fn op(&mut self) -> Op {
        let views = self.views;
        let (ctx, gfn, view) = (self.ctx(), self.gfn(), self.choose(&views));
        match self.rng.below(100) {
            0..32 => {
                let wanted = self.wanted();
                let pa = self.rng.percent(75).then(|| place(gfn, wanted.ctx().va));
                Op::Insert(wanted, pa)
            }
            32..50 => match self.known() {
                Some((name, entry)) if self.rng.percent(80) => {
                    let ctx = AddressContext::new(name.2, name.3);
                    let wanted = Breakpoint::new(ctx, name.1).with_key(name.0).with_tag(0);
                    Op::Remove(if entry.global { wanted.global() } else { wanted })
                }
                _ => Op::Remove(self.wanted()),
            },
            50..60 => match self.known() {
                Some((name, Entry { pa: Some(pa), .. })) => {
                    let root = if self.rng.percent(50) { name.3 } else { ctx.root };
                    Op::RemoveByEvent(AddressContext::new(name.2, root), Gfn(pa.0 >> 12), name.1, name.0)
                }
                _ => Op::RemoveByEvent(ctx, gfn, view, self.rng.below(2) as u8),
            },
            60..62 => Op::RemoveByView(view),
            62 if self.rng.percent(50) => Op::Clear,
            63 if C::HAS_VIEWS => Op::Vanish(self.rng.below(3) as usize),
            62..79 => match self.known() {
                Some((name, _)) => Op::PageIn(name.1, AddressContext::new(name.2, name.3), place(gfn, name.2)),
                None => Op::PageIn(view, ctx, place(gfn, ctx.va)),
            },
            79..92 => match self.known() {
                Some((name, Entry { pa: Some(pa), .. })) if self.rng.percent(80) => {
                    Op::PageOut(name.1, AddressContext::new(name.2, name.3), pa)
                }
                _ => Op::PageOut(view, ctx, place(gfn, ctx.va)),
            },
            _ => {
                let at = match self.known() {
                    Some((_, Entry { pa: Some(pa), .. })) if self.rng.percent(60) => pa,
                    _ => place(gfn, Va(self.rng.below(0x1000))),
                };
                Op::Write(at, if self.rng.percent(30) { 0xcc } else { self.rng.next() as u8 })
            }
        }
    }

    /// Does it, and answers what must be known of the answer.
    fn apply(&mut self, op: &Op) -> Result<Option<bool>, VmiError> {
        let Self { vmi, manager, .. } = self;
        match *op {
            Op::Insert(wanted, pa) => manager.insert_with_hint(vmi, wanted, pa).map(Some),
            Op::Remove(wanted) => manager.remove(vmi, wanted).map(Some),
            Op::RemoveByEvent(ctx, gfn, view, key) => manager.remove_by_event(vmi, &C::event(ctx, gfn, view), key),
            Op::RemoveByView(view) => manager.remove_by_view(vmi, view).map(Some),
            Op::Clear => manager.clear(vmi).map(|()| None),
            Op::PageIn(view, ctx, pa) => {
                let event = PageTableMonitorEvent::PageIn(PageEntryUpdate { view, ctx, pa });
                manager.handle_ptm_event(vmi, &event).map(Some)
            }
            Op::PageOut(view, ctx, pa) => {
                let event = PageTableMonitorEvent::PageOut(PageEntryUpdate { view, ctx, pa });
                manager.handle_ptm_event(vmi, &event).map(Some)
            }
            Op::Write(pa, value) => {
                vmi.driver().poke(pa.0, &[value]);
                manager.controller_mut().wrote(vmi, Gfn(pa.0 >> 12)).map(|()| None)
            }
            Op::Vanish(_) => Ok(None),
        }
    }

    /// What the model says of an operation that does not fail: its answer, and the model after it. `Err` where it must
    /// be refused.
    fn expect(&self, op: &Op) -> Result<(Option<bool>, Model), ()> {
        let mut after = self.model.clone();
        let answer = match op {
            Op::Insert(wanted, pa) => Some(after.insert(wanted, *pa)?),
            Op::Remove(wanted) => {
                let names = after.removed_by(wanted);
                after.0.retain(|name, _| !names.contains(name));
                Some(!names.is_empty())
            }
            &Op::RemoveByEvent(ctx, gfn, view, key) => {
                let own = |name: &Name, entry: &Entry| {
                    name.0 == key && (name.2, name.3) == (ctx.va, ctx.root) && !entry.global
                };
                // What did not cause the event stays.
                let hit = after.at(ctx, gfn, view, key);
                after.0.retain(|name, entry| match hit {
                    Some((true, _)) => !(entry.global && name.0 == key && name.2 == ctx.va),
                    Some((false, _)) => !own(name, entry),
                    None => true,
                });
                let left = after.installed().keys().any(|(v, pa)| *v == view && Gfn(pa.0 >> 12) == gfn);
                hit.map(|_| !left)
            }
            Op::RemoveByView(view) => {
                let before = after.0.len();
                after.0.retain(|name, _| name.1 != *view);
                Some(after.0.len() < before)
            }
            Op::Clear => {
                after.0.clear();
                None
            }
            &Op::PageIn(view, ctx, pa) => Some(after.page(view, ctx, |_| Some(pa))),
            &Op::PageOut(view, ctx, pa) => Some(after.page(view, ctx, |old| old.filter(|old| *old != pa))),
            Op::Write(..) | Op::Vanish(_) => None,
        };
        Ok((answer, after))
    }

    /// Whether an operation may change a breakpoint.
    fn touches(op: &Op, name: &Name) -> bool {
        match op {
            Op::Insert(wanted, _) => name_of(wanted) == *name,
            Op::Remove(wanted) => {
                let wanted = name_of(wanted);
                (wanted.0, wanted.1, wanted.2) == (name.0, name.1, name.2)
            }
            Op::RemoveByEvent(ctx, _, _, key) => name.0 == *key && name.2 == ctx.va,
            Op::RemoveByView(view) => name.1 == *view,
            Op::Clear => true,
            Op::PageIn(view, ctx, _) | Op::PageOut(view, ctx, _) => {
                name.1 == *view && (name.2, name.3) == (ctx.va, ctx.root)
            }
            Op::Write(..) | Op::Vanish(_) => false,
        }
    }

    /// The guest and the books agree with the model.
    fn check(&mut self, op: &Op) {
        let found = Model::of(&self.manager);
        assert_eq!(found, self.model, "after {op:?}");
        let installed = self.model.installed();
        self.loose.retain(|page| installed.keys().any(|(view, pa)| *page == (*view, Gfn(pa.0 >> 12))));
        self.manager.controller().check(self.vmi.driver(), &installed, &self.loose);
        // A question of each kind.
        let views = self.views;
        let (ctx, gfn, view, key) = (self.ctx(), self.gfn(), self.choose(&views), self.rng.below(2) as u8);
        let event = C::event(ctx, gfn, view);
        let hit = self.manager.get_by_event(&event, key);
        assert_eq!(hit.map(|hit| (hit.is_global(), hit.tag())), self.model.at(ctx, gfn, view, key));
        assert_eq!(self.manager.contains_by_event(&event, key), hit.is_some());
        let active =
            |(name, entry): (&Name, &Entry)| (name.0, name.2, name.3) == (key, ctx.va, ctx.root) && entry.pa.is_some();
        assert_eq!(self.manager.contains_by_address(ctx, key), self.model.0.iter().any(active));
        let page = installed.keys().any(|(v, pa)| (*v, Gfn(pa.0 >> 12)) == (view, gfn));
        assert_eq!(self.manager.contains_page(view, gfn), page);
        self.vmi.driver().take_calls();
    }

    /// An operation that no call of the driver's fails.
    fn step(&mut self, op: &Op) {
        if let Op::Vanish(nth) = *op {
            let view = self.views[nth];
            self.vmi.driver().destroy_view(view).expect("the view is there");
            let any = self.model.0.keys().any(|name| name.1 == view);
            assert_eq!(self.manager.remove_by_view(&self.vmi, view).expect("a view that is gone is no error"), any);
            self.model.0.retain(|name, _| name.1 != view);
            self.views[nth] = self.vmi.create_view(MemoryAccess::RWX).expect("a view");
            return self.check(op);
        }
        let answer = self.apply(op);
        match (self.expect(op), answer) {
            (Ok((want, after)), Ok(answer)) => {
                assert_eq!(answer, want, "{op:?}");
                self.model = after;
            }
            (Err(()), Err(VmiError::Invalid(_))) => {}
            (want, answer) => panic!("{op:?}: expected {want:?}, got {answer:?}"),
        }
        if matches!(op, Op::Clear) {
            assert!(self.vmi.driver().allocated().is_empty(), "all frames are given back");
            assert!(self.vmi.driver().restricted().is_empty(), "all pages are open");
        }
        self.check(op);
    }

    /// An operation during which calls of the driver's fail; then the same without.
    fn failing_step(&mut self, op: &Op) {
        let single = self.rng.percent(60);
        let failures = self.vmi.driver().failures();
        if single {
            self.vmi.driver().fail_nth(self.rng.below(5));
        } else {
            let mut rng = Rng::new(self.rng.next());
            self.vmi.driver().fail_if(move |_: &Call| rng.percent(50));
        }
        let answer = self.apply(op);
        self.vmi.driver().stop_failing();
        let failed = self.vmi.driver().failures() - failures;
        self.failed += u64::from(failed > 0);
        if failed == 0 {
            match (self.expect(op), answer) {
                (Ok((want, after)), Ok(answer)) => {
                    assert_eq!(answer, want);
                    self.model = after;
                }
                (Err(()), Err(VmiError::Invalid(_))) => {}
                (want, answer) => panic!("{op:?}: expected {want:?}, got {answer:?}"),
            }
            return self.check(op);
        }
        assert!(answer.is_err(), "{op:?}: an error of the driver was swallowed");
        // What the operation is about may have been done in part, and the books say how far; all else stands.
        let found = Model::of(&self.manager);
        let wanted_pa = match op {
            Op::Insert(_, pa) => *pa,
            Op::PageIn(_, _, pa) => Some(*pa),
            _ => None,
        };
        for (name, entry) in &self.model.0 {
            match found.0.get(name) {
                Some(now) if now == entry => {}
                Some(now) => {
                    assert!(Self::touches(op, name), "{op:?} changed {name:?}");
                    assert!(now.pa.is_none() || now.pa == wanted_pa, "{op:?}: {entry:?} became {now:?}");
                    assert_eq!((now.global, now.tag), (entry.global, entry.tag));
                }
                None => assert!(Self::touches(op, name), "{op:?} lost {name:?}"),
            }
        }
        for (name, entry) in &found.0 {
            let inserted = matches!(op, Op::Insert(wanted, _) if name_of(wanted) == *name);
            assert!(self.model.0.contains_key(name) || inserted && !single, "{op:?} left {name:?} {entry:?}");
        }
        self.model = found;
        if failed > 1 {
            let installed = self.model.installed();
            self.loose.extend(installed.keys().map(|(view, pa)| (*view, Gfn(pa.0 >> 12))));
            // What could not be undone is made up for by any later call.
            let _ = self.manager.controller_mut().remove_breakpoint(&self.vmi, Pa(0), self.views[0]);
        }
        if let Op::Write(pa, _) = op {
            // The shadow is behind until the write is told again.
            let told = self.manager.controller_mut().wrote(&self.vmi, Gfn(pa.0 >> 12));
            told.expect("a retry works");
        }
        self.check(op);
        self.step(op);
    }

    fn run(mut self, operations: u64) {
        while self.done < operations {
            let op = self.op();
            if !matches!(op, Op::Vanish(_)) && self.rng.percent(15) {
                self.failing_step(&op);
            } else {
                self.step(&op);
            }
            self.done += 1;
        }
        assert!(self.failed > operations / 100, "only {} of {operations} operations failed", self.failed);
        self.step(&Op::Clear);
        assert!(self.manager.is_empty());
    }
}

impl Model {
    /// A page came or went: sets the place of every breakpoint there, and answers whether that changed one.
    fn page(&mut self, view: View, ctx: AddressContext, to: impl Fn(Option<Pa>) -> Option<Pa>) -> bool {
        let mut changed = false;
        for (name, entry) in &mut self.0 {
            if name.1 == view && (name.2, name.3) == (ctx.va, ctx.root) {
                let new = to(entry.pa);
                changed |= new != entry.pa;
                entry.pa = new;
            }
        }
        changed
    }
}

fn operations() -> u64 {
    std::env::var("VMSCOPE_OPS").ok().and_then(|text| text.parse().ok()).unwrap_or(34_000)
}

#[test]
fn shadow_pages_follow_the_books() {
    Run::<BreakpointController<FlatDriver>>::new(1).run(operations());
}

#[test]
fn permissions_follow_the_books() {
    Run::<MemoryController<FlatDriver>>::new(2).run(operations());
}

#[test]
fn stub_breakpoints_follow_the_books() {
    Run::<DebugController<FlatDriver>>::new(3).run(operations());
}
