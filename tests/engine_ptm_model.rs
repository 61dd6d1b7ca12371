//! The page table monitor against a naive model that walks everything anew after every step.
//!
//! The guest is hostile: it writes anything into any entry, so that tables share tables, point at themselves, at data
//! and beyond memory, and serve at several levels at once. The driver fails at random calls. `VMSCOPE_OPS` sets the
//! number of operations (100,000 unless told otherwise).

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::{FlatDriver, Rng, core};
use vmscope::engine::{
    addr::{AddressContext, Gfn, Pa, VcpuId, View},
    driver::{MemoryAccess, VmiSetProtection, VmiViewControl},
    error::VmiError,
    ptm::{PageTableMonitor, PageTableMonitorEvent, TableGuard, Unguarded, WriteProtect},
    session::VmiCore,
};

/// Frames of the guest; tables may be in the first [`TABLES`], the rest is data.
const FRAMES: u64 = 24;
const TABLES: u64 = 14;
/// The entries of a table that are used: neighbours, and the last one.
const SLOTS: [u64; 4] = [0, 1, 3, 511];
const VCPUS: u16 = 3;
const VIEWS: [View; 2] = [View(0), View(1)];

fn operations() -> u64 {
    std::env::var("VMSCOPE_OPS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

/// A monitored address in the model: how often, and what was last reported (or found when it was first monitored).
struct Watch {
    references: u32,
    reported: Option<Pa>,
}

/// How one walk goes: the entries that were read, top level first, and the end.
struct Walk {
    entries: Vec<Pa>,
    pa: Option<Pa>,
}

struct World<Guard: TableGuard<FlatDriver>> {
    vmi: VmiCore<FlatDriver>,
    ptm: PageTableMonitor<FlatDriver, u64, Guard>,
    rng: Rng,
    levels: u32,
    watches: BTreeMap<(AddressContext, View), Watch>,
    /// Marks that were made and not processed.
    marks: BTreeMap<VcpuId, BTreeSet<(Pa, View)>>,
    /// What the frames' permissions are without us.
    base: BTreeMap<(View, Gfn), MemoryAccess>,
    /// Whether a call failed since everything was last known to be settled.
    failed: bool,
    guarded: bool,
}

impl<Guard: TableGuard<FlatDriver>> World<Guard> {
    fn new(seed: u64, levels: u8, guarded: bool) -> Self {
        let vmi = core(FRAMES);
        vmi.set_paging_levels(levels);
        vmi.driver().create_view(MemoryAccess::RWX).expect("a second view");
        let mut base = BTreeMap::new();
        for view in VIEWS {
            for frame in 0..FRAMES {
                let access = if frame % 5 == 4 { MemoryAccess::RX } else { MemoryAccess::RWX };
                vmi.driver().set_memory_access(Gfn(frame), view, access).expect("frames exist");
                base.insert((view, Gfn(frame)), access);
            }
        }
        vmi.driver().take_calls();
        Self {
            vmi,
            ptm: PageTableMonitor::default(),
            rng: Rng::new(seed),
            levels: levels.into(),
            watches: BTreeMap::new(),
            marks: BTreeMap::new(),
            base,
            failed: false,
            guarded,
        }
    }

    // --- The naive walk ---------------------------------------------------------------------------------------------

    fn walk(&self, ctx: AddressContext) -> Walk {
        let mut walk = Walk { entries: Vec::new(), pa: None };
        let mut table = ctx.root.0;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            if table / 4096 >= FRAMES {
                return walk;
            }
            let at = table + (ctx.va.0 >> shift & 511) * 8;
            walk.entries.push(Pa(at));
            let entry = self.vmi.driver().peek64(at);
            let (present, large) = (entry & 1 != 0, entry & 0x80 != 0);
            let address = entry & 0x000f_ffff_ffff_f000;
            if !present || (large && level > 2) {
                return walk;
            }
            if level == 0 || large {
                let size = 1u64 << shift;
                walk.pa = Some(Pa((address & !(size - 1)) + (ctx.va.0 & (size - 1))));
                return walk;
            }
            table = address;
        }
        walk
    }

    // --- Random things ----------------------------------------------------------------------------------------------

    fn address(&mut self) -> AddressContext {
        let mut va = self.rng.below(3) * 8 + self.rng.below(2) * 0x120;
        for level in 0..self.levels {
            let slots = if level < 2 { 3 } else { 4 };
            va |= SLOTS[self.rng.below(slots) as usize] << (12 + 9 * level);
        }
        let unused = 64 - (12 + 9 * self.levels);
        let va = ((va << unused) as i64 >> unused) as u64;
        AddressContext::new(va, self.rng.below(4) * 4096)
    }

    fn entry_value(&mut self, old: u64) -> u64 {
        match self.rng.below(10) {
            0 => 0,
            1 => old & !1,
            2 => old | 1,
            3 => old ^ (0x60 | 6 | 1 << 63),
            4 => old ^ 0x80,
            5 => (FRAMES + self.rng.below(4)) << 12 | 7,
            6 => (TABLES + self.rng.below(FRAMES - TABLES)) << 12 | 7,
            _ => self.rng.below(TABLES) << 12 | 7,
        }
    }

    fn known(&mut self) -> Option<(AddressContext, View)> {
        let count = self.watches.len() as u64;
        if count == 0 {
            return None;
        }
        let at = self.rng.below(count) as usize;
        self.watches.keys().nth(at).copied()
    }

    // --- Operations -------------------------------------------------------------------------------------------------

    fn step(&mut self) {
        let fails = self.rng.percent(12);
        if fails {
            let n = self.rng.below(12);
            self.vmi.driver().fail_nth(n);
        }
        let before = self.vmi.driver().failures();
        match self.rng.below(100) {
            0..20 => self.monitor(),
            20..34 => self.unmonitor(),
            34..35 => self.unmonitor_many(),
            35..70 => self.guest_writes(),
            _ if self.guarded => {
                let vcpu = VcpuId(self.rng.below(VCPUS.into()) as u16);
                self.process(vcpu);
            }
            _ => self.poll(),
        }
        self.vmi.driver().stop_failing();
        self.failed |= self.vmi.driver().failures() != before;
        self.check_always();
        if self.rng.percent(15) {
            self.settle();
        }
        if self.is_settled() {
            self.check_settled();
        }
        self.vmi.driver().take_calls();
    }

    fn monitor(&mut self) {
        let (ctx, view) = match self.known() {
            Some(known) if self.rng.percent(25) => known,
            _ => (self.address(), VIEWS[self.rng.below(2) as usize]),
        };
        let now = self.walk(ctx).pa;
        let tag = self.rng.next();
        match self.ptm.monitor(&self.vmi, ctx, view, tag) {
            Ok(()) => {
                let watch = self.watches.entry((ctx, view)).or_insert(Watch { references: 0, reported: now });
                watch.references += 1;
            }
            Err(error) => assert!(matches!(error, VmiError::Driver { .. }), "{error}"),
        }
    }

    fn unmonitor(&mut self) {
        let (ctx, view) = match self.known() {
            Some(known) if self.rng.percent(90) => known,
            _ => (self.address(), VIEWS[0]),
        };
        // Whether it fails or not, one reference is gone.
        let _ = self.ptm.unmonitor(&self.vmi, ctx, view);
        if let Some(watch) = self.watches.get_mut(&(ctx, view)) {
            watch.references -= 1;
            if watch.references == 0 {
                self.watches.remove(&(ctx, view));
            }
        }
    }

    fn unmonitor_many(&mut self) {
        if self.rng.percent(20) {
            let _ = self.ptm.unmonitor_all(&self.vmi);
            self.watches.clear();
            self.marks.clear();
        } else {
            let view = VIEWS[self.rng.below(2) as usize];
            let _ = self.ptm.unmonitor_view(&self.vmi, view);
            self.watches.retain(|(_, of), _| *of != view);
        }
    }

    /// A vCPU is about to write an entry, and writes it.
    fn guest_writes(&mut self) {
        let slot = SLOTS[self.rng.below(4) as usize];
        let entry = Pa(self.rng.below(TABLES) * 4096 + slot * 8);
        let vcpu = VcpuId(self.rng.below(VCPUS.into()) as u16);
        if self.guarded {
            let monitored = self.is_settled().then(|| self.entries());
            for view in VIEWS {
                let byte = self.rng.below(8);
                let marked = self.ptm.mark_dirty_entry(entry + byte, view, vcpu);
                if let Some(monitored) = &monitored {
                    let reach = entry.0..=(entry.0 + byte + 63).min(entry.0 | 0xfff);
                    let expected = monitored.iter().any(|&(at, of)| of == view && reach.contains(&at.0));
                    assert_eq!(marked, expected, "a write at {entry}+{byte} in view {view}");
                }
                if marked {
                    self.marks.entry(vcpu).or_default().insert((entry, view));
                }
            }
        }
        let value = self.vmi.driver().peek64(entry.0);
        let value = self.entry_value(value);
        self.vmi.driver().poke64(entry.0, value);
    }

    fn process(&mut self, vcpu: VcpuId) {
        let marks = self.marks.remove(&vcpu).unwrap_or_default();
        let events = self.ptm.process_dirty_entries(&self.vmi, vcpu);
        // Where nothing is marked, a change that `monitor` met is due at any call.
        if self.guarded && marks.is_empty() && !self.failed {
            assert_eq!(events.as_ref().ok().map(Vec::len), Some(0), "vCPU {vcpu} has written nothing");
        }
        let exact = self.is_settled();
        self.apply(events, exact);
    }

    fn poll(&mut self) {
        let events = self.ptm.poll(&self.vmi);
        let exact = !self.failed;
        self.apply(events, exact);
    }

    /// Takes events into the model; they must fit what was reported before, and be complete if `exact`.
    fn apply(&mut self, events: Result<Vec<PageTableMonitorEvent>, VmiError>, exact: bool) {
        let events = match events {
            Ok(events) => events,
            Err(error) => {
                assert!(matches!(error, VmiError::Driver { .. }), "{error}");
                return;
            }
        };
        let mut seen = BTreeMap::<_, u32>::new();
        for event in &events {
            let update = event.update();
            let Some(watch) = self.watches.get_mut(&(update.ctx, update.view)) else {
                panic!("{event:?} is about an address that is not monitored");
            };
            *seen.entry((update.ctx, update.view)).or_default() += 1;
            let (before, after) = match event {
                PageTableMonitorEvent::PageIn(_) => (None, Some(update.pa)),
                PageTableMonitorEvent::PageOut(_) => (Some(update.pa), None),
            };
            assert_eq!(watch.reported, before, "{event:?} does not follow from what was reported before");
            watch.reported = after;
        }
        if exact {
            for ((ctx, view), count) in seen {
                let most = if self.watches[&(ctx, view)].reported.is_some() { 2 } else { 1 };
                assert!(count <= most, "{count} events for {ctx} in one call");
            }
        }
    }

    /// Processes everything until nothing is left to do.
    fn settle(&mut self) {
        // The first call may still answer an earlier failure, the second one delivers what it kept.
        for _ in 0..2 {
            for vcpu in 0..VCPUS {
                self.process(VcpuId(vcpu));
            }
            if !self.guarded {
                self.poll();
            }
        }
        self.ptm.unmonitor(&self.vmi, AddressContext::new(0x5000u64, 0x7000u64), View(7)).expect("nothing fails now");
        self.failed = false;
        if !self.guarded {
            self.check_settled();
        }
    }

    fn is_settled(&self) -> bool {
        self.guarded && !self.failed && self.marks.values().all(BTreeSet::is_empty)
    }

    // --- Checks -----------------------------------------------------------------------------------------------------

    /// All monitored entries by the model.
    fn entries(&self) -> BTreeSet<(Pa, View)> {
        let all = self
            .watches
            .keys()
            .flat_map(|&(ctx, view)| self.walk(ctx).entries.into_iter().map(move |entry| (entry, view)));
        all.collect()
    }

    /// What holds after every call, failed or not.
    fn check_always(&self) {
        assert_eq!(self.ptm.monitored_addresses(), self.watches.len());
        for state in self.ptm.states() {
            assert_eq!(state.references, self.watches[&(state.ctx, state.view)].references);
        }
        let mut changed = 0;
        for (&(view, gfn), &base) in &self.base {
            let access = self.vmi.driver().access(view, gfn).expect("views stay");
            assert!(access == base || access == base.without(MemoryAccess::W), "frame {gfn} is {access:?}");
            changed += usize::from(access != base);
        }
        assert!(changed <= self.ptm.monitored_tables(), "a table is protected that is not in the books");
    }

    /// What holds when everything is processed: the books, what is installed and what is true are the same.
    fn check_settled(&self) {
        let entries = self.entries();
        let tables: BTreeSet<(View, Gfn)> = entries.iter().map(|&(pa, view)| (view, Gfn(pa.0 >> 12))).collect();
        assert_eq!(self.ptm.monitored_entries(), entries.len(), "entries");
        assert_eq!(self.ptm.monitored_tables(), tables.len(), "tables");
        let mut paged_in = 0;
        for (&(ctx, view), watch) in &self.watches {
            let walk = self.walk(ctx);
            assert_eq!(watch.reported, walk.pa, "{ctx} in view {view}: reported and true");
            let state = self.ptm.state(ctx, view).expect("monitored");
            assert_eq!(state.pa, walk.pa, "{ctx} in view {view}: books and true");
            let known: Vec<Pa> = self.ptm.entries(ctx, view).iter().map(|entry| entry.entry_pa).collect();
            assert_eq!(known, walk.entries, "{ctx} in view {view}: the walk");
            paged_in += usize::from(walk.pa.is_some());
        }
        assert_eq!(self.ptm.paged_in_entries(), paged_in);
        for (&(view, gfn), &base) in &self.base {
            let guarded = self.guarded && tables.contains(&(view, gfn));
            let expected = if guarded { base.without(MemoryAccess::W) } else { base };
            assert_eq!(self.vmi.driver().access(view, gfn), Some(expected), "frame {gfn} in view {view}");
        }
    }

    fn run(mut self, seed: u64, steps: u64) {
        for step in 0..steps {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.step()));
            if let Err(panic) = result {
                eprintln!("seed {seed}, {} levels, step {step}", self.levels);
                std::panic::resume_unwind(panic);
            }
        }
        self.settle();
        self.ptm.unmonitor_all(&self.vmi).expect("nothing fails now");
        self.watches.clear();
        self.check_settled();
        assert_eq!(self.ptm.monitored_tables(), 0);
    }
}

#[test]
fn write_protection_agrees_with_the_model() {
    for (seed, levels) in [(1, 4), (2, 4), (3, 5)] {
        World::<WriteProtect>::new(seed, levels, true).run(seed, operations() / 4);
    }
}

#[test]
fn polling_agrees_with_the_model() {
    for (seed, levels) in [(4, 4), (5, 5)] {
        World::<Unguarded>::new(seed, levels, false).run(seed, operations() / 4);
    }
}
