//! Breakpoints while the vCPUs run: between any two calls of the driver the guest reads, executes and writes the pages in
//! every view. It never reads a breakpoint, never executes stale code, and loses no write.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use super::*;
use crate::support::Rng;

const PAGES: [Gfn; 3] = [CODE, OTHER, Gfn(6)];
const OFFSETS: [u64; 3] = [0x100, 0x101, 0xfff];
/// The contents of the pages have no such byte: where one is, we put it there.
const INT3: u8 = 0xcc;

/// A write that raised an event, or that a vCPU makes in the default view after one: the page of a view, the offset, the
/// byte.
#[derive(Clone, Copy)]
struct Store {
    gfn: Gfn,
    offset: usize,
    byte: u8,
}

/// All vCPUs of the guest, and what they know of the pages.
struct Vcpus {
    views: Vec<View>,
    truth: BTreeMap<Gfn, Vec<u8>>,
    /// Stores of vCPUs that wait for the answer to their event.
    held: Vec<Store>,
    /// Stores that were made in the default view and that the engine has not been told of yet.
    untold: Vec<Store>,
    rng: Rng,
    writes: bool,
    /// How often something was done that an open page with a breakpoint would spoil.
    reads: u64,
    stores: u64,
    fetches: u64,
}

impl Vcpus {
    fn new(vmi: &Core, views: &[View], seed: u64) -> Rc<RefCell<Self>> {
        let truth = PAGES.map(|gfn| (gfn, vmi.driver().peek(gfn.0 << 12, 0x1000)));
        let rng = Rng::new(seed);
        let (reads, stores, fetches) = (0, 0, 0);
        let (held, untold, truth) = (Vec::new(), Vec::new(), truth.into());
        let vcpus = Self { views: views.to_vec(), truth, held, untold, rng, writes: true, reads, stores, fetches };
        let vcpus = Rc::new(RefCell::new(vcpus));
        let mine = Rc::clone(&vcpus);
        vmi.driver().run_between_calls(move |driver, call| mine.borrow_mut().run(driver, Some(call)));
        vcpus
    }

    fn store(&mut self, gfn: Gfn) -> Store {
        // Near the breakpoints, and on them.
        let offset = (OFFSETS[self.rng.below(3) as usize] + self.rng.below(3)).saturating_sub(1).min(0xfff) as usize;
        Store { gfn, offset, byte: self.rng.below(0xc0) as u8 }
    }

    fn run(&mut self, driver: &FlatDriver, next: Option<&Call>) {
        if let Some(Call::FreeGfn(frame)) = next {
            assert!(
                !driver.peek(frame.0 << 12, 0x1000).contains(&INT3),
                "{frame} is given back with a breakpoint in it"
            );
        }
        for view in self.views.clone() {
            for gfn in PAGES {
                let Some(access) = driver.access(view, gfn) else { continue };
                let shown = driver.fetch(view, Pa(gfn.0 << 12), 0x1000);
                let is_untold =
                    |offset: usize| self.untold.iter().any(|store| (store.gfn, store.offset) == (gfn, offset));
                let truth = &self.truth[&gfn];
                let differ = |(_, (shown, truth)): &(usize, (&u8, &u8))| shown != truth;
                let differs = if shown == *truth { 0 } else { shown.len() };
                for (offset, (shown, truth)) in shown.iter().zip(truth).take(differs).enumerate().filter(differ) {
                    let is_ours = *shown == INT3 && OFFSETS.contains(&(offset as u64));
                    assert!(
                        is_ours || is_untold(offset) || !access.contains(MemoryAccess::X),
                        "{gfn}+{offset:#x} in view {view} executes {shown:#x}, not {truth:#x}, before {next:?}"
                    );
                    assert!(
                        !access.contains(MemoryAccess::R),
                        "{gfn}+{offset:#x} in view {view} reads {shown:#x}, not {truth:#x}, before {next:?}"
                    );
                }
                self.fetches += u64::from(driver.shown_frame(view, gfn) != gfn);
                self.reads += u64::from(access.contains(MemoryAccess::R));
                if self.writes && self.rng.percent(8) {
                    let store = self.store(gfn);
                    if access.contains(MemoryAccess::W) {
                        self.truth.get_mut(&gfn).expect("a page")[store.offset] = store.byte;
                        driver.poke((driver.shown_frame(view, gfn).0 << 12) + store.offset as u64, &[store.byte]);
                        // In another view the page may have breakpoints, and such a write is not noticed there.
                        self.untold.push(store);
                        self.stores += 1;
                    } else if self.rng.percent(70) {
                        self.held.push(store);
                    } else {
                        // Its event was answered before this operation.
                        self.step(driver, store);
                    }
                }
            }
        }
        for gfn in PAGES {
            let page = driver.peek(gfn.0 << 12, 0x1000);
            assert!(page == self.truth[&gfn], "{gfn} itself is not what the guest wrote, before {next:?}");
        }
    }

    /// A vCPU makes its store in the default view.
    fn step(&mut self, driver: &FlatDriver, store: Store) {
        self.truth.get_mut(&store.gfn).expect("a page")[store.offset] = store.byte;
        driver.poke((store.gfn.0 << 12) + store.offset as u64, &[store.byte]);
        self.untold.push(store);
        self.stores += 1;
    }
}

/// The vCPUs' events are answered: each makes its step, and the engine is told.
fn answer(vmi: &Core, manager: &mut BreakpointManager<Int3, u8>, vcpus: &Rc<RefCell<Vcpus>>) {
    for round in 0..3 {
        // In the end there is peace.
        vcpus.borrow_mut().writes = round < 2;
        let held = std::mem::take(&mut vcpus.borrow_mut().held);
        held.into_iter().for_each(|store| vcpus.borrow_mut().step(vmi.driver(), store));
        let mut told: Vec<Gfn> = vcpus.borrow().untold.iter().map(|store| store.gfn).collect();
        told.sort_unstable();
        told.dedup();
        for gfn in told {
            let stores = vcpus.borrow().untold.len();
            manager.controller_mut().guest_wrote(vmi, gfn).expect("followed");
            // Those that came while it was followed are told next.
            let mut nth = 0;
            vcpus.borrow_mut().untold.retain(|store| {
                nth += 1;
                store.gfn != gfn || nth > stores
            });
        }
    }
    let mut vcpus = vcpus.borrow_mut();
    assert!(vcpus.held.is_empty() && vcpus.untold.is_empty());
    vcpus.run(vmi.driver(), None);
    vcpus.writes = true;
    let shown: Vec<Gfn> = vmi.driver().remapped().into_iter().map(|(_, _, shown)| shown).collect();
    for frame in vmi.driver().allocated().into_iter().filter(|frame| !shown.contains(frame)) {
        assert!(
            !vmi.driver().peek(frame.0 << 12, 0x1000).contains(&INT3),
            "a breakpoint is left in spare frame {frame}"
        );
    }
}

/// One of all things that can be done to breakpoints.
fn operate(
    vmi: &Core,
    manager: &mut BreakpointManager<Int3, u8>,
    rng: &mut Rng,
    views: &[View],
) -> Result<(), VmiError> {
    let view = views[rng.below(2) as usize];
    let gfn = PAGES[rng.below(3) as usize];
    let va = Va(0x7f00_0000_0000 | rng.below(2) << 12 | OFFSETS[rng.below(3) as usize]);
    let root = [ROOT, ROOT2][rng.below(2) as usize];
    let breakpoint = Breakpoint::new((va, root), view).with_key(rng.below(2) as u8);
    // The first page of addresses is that of breakpoints for all address spaces.
    let breakpoint = if va.0 >> 12 & 1 == 0 { breakpoint.global() } else { breakpoint };
    let pa = in_page(gfn, va);
    match rng.below(12) {
        0..4 => manager.insert_with_hint(vmi, breakpoint, Some(pa)).map(drop),
        4..6 => manager.remove(vmi, breakpoint).map(drop),
        6 => manager.remove_by_event(vmi, &int3(view, gfn, va, root), 0).map(drop),
        7 => manager.handle_ptm_event(vmi, &page_in(view, (va, root), gfn)).map(drop),
        8 => manager.handle_ptm_event(vmi, &page_out(view, (va, root), gfn)).map(drop),
        9 => {
            let other = PAGES[rng.below(3) as usize];
            let moved = [page_out(view, (va, root), gfn), page_in(view, (va, root), other)];
            manager.handle_ptm_events(vmi, moved).map(drop)
        }
        10 if rng.percent(30) => manager.clear(vmi),
        _ => manager.remove_by_view(vmi, view).map(drop),
    }
}

/// `failing` makes calls of the driver fail, one in an operation or many.
fn run(operations: u64, seed: u64, failing: Option<u64>) {
    let (vmi, view, other) = guest();
    let vcpus = Vcpus::new(&vmi, &[view, other], seed);
    let mut manager = BreakpointManager::<Int3, u8>::new();
    let mut rng = Rng::new(seed + 1);
    for _ in 0..operations {
        match failing {
            Some(percent) if percent > 0 => {
                let mut rng = Rng::new(rng.next());
                vmi.driver().fail_if(move |_| rng.percent(percent));
            }
            Some(_) => vmi.driver().fail_nth(rng.below(12)),
            None => {}
        }
        let done = operate(&vmi, &mut manager, &mut rng, &[view, other]);
        vmi.driver().stop_failing();
        vmi.driver().take_calls();
        assert!(failing.is_some() || done.is_ok(), "{done:?}");
        if failing.is_some_and(|percent| percent > 0) {
            // What could not be undone is tried again with any later call.
            let removed = manager.controller_mut().remove_breakpoint(&vmi, Pa(0), view);
            removed.expect("nothing is there");
        }
        answer(&vmi, &mut manager, &vcpus);
    }
    manager.clear(&vmi).expect("cleared");
    answer(&vmi, &mut manager, &vcpus);
    assert!(untouched(&vmi) && vmi.driver().allocated().is_empty());
    let vcpus = vcpus.borrow();
    let seen = [vcpus.reads, vcpus.stores, vcpus.fetches];
    assert!(seen.iter().all(|count| *count > operations / 20), "the guest saw too little: {seen:?}");
}

#[test]
fn a_guest_that_runs_between_all_calls_sees_nothing_and_loses_nothing() {
    run(800, 1, None);
}

#[test]
fn nor_does_it_where_calls_fail() {
    run(500, 2, Some(0));
    run(500, 3, Some(20));
    run(300, 4, Some(40));
}
