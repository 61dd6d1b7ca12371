//! Page tables that the guest changes between any two calls of the driver: what is guarded raises an event, all else is
//! written unseen. Whatever the monitor was doing at that moment, in the end it knows what is true.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use super::*;
use crate::support::Rng;

/// Frames of tables; what is no table at first may become one.
const TABLES: std::ops::Range<u64> = 16..26;
/// Addresses that share all, some or no tables.
const ADDRESSES: [u64; 5] = [0, 0x1000, 0x20_0000, 0x4000_0000, 0x80_0000_0000];

/// A store that raised an event.
#[derive(Clone, Copy)]
struct Store {
    entry: u64,
    value: u64,
}

struct Vcpus {
    rng: Rng,
    runs: bool,
    /// Stores that wait for the answer to their event.
    held: Vec<Store>,
    /// Stores whose event was answered: they may be made at any moment.
    stepping: Vec<Store>,
    unseen: u64,
}

impl Vcpus {
    fn store(&mut self) -> Store {
        let table = TABLES.start + self.rng.below(TABLES.end - TABLES.start);
        // The places of the addresses, and one beside them.
        let entry = (table << 12) + [0, 0, 0, 8, 8][self.rng.below(5) as usize];
        let value = match self.rng.below(8) {
            0 if self.rng.percent(50) => 0,
            0..3 => 0x20_0000 | 0x87,
            3 => (64 + self.rng.below(8)) << 12 | 7,
            // Beyond memory.
            4 => 999 << 12 | 7,
            _ => (TABLES.start + self.rng.below(TABLES.end - TABLES.start)) << 12 | 7,
        };
        Store { entry, value }
    }

    fn run(&mut self, driver: &FlatDriver) {
        if !self.runs {
            return;
        }
        if self.rng.percent(40)
            && let Some(store) = self.stepping.pop()
        {
            driver.poke64(store.entry, store.value);
        }
        if self.rng.percent(30) {
            let store = self.store();
            if driver.access(VIEW, Gfn(store.entry >> 12)).is_some_and(|access| access.contains(MemoryAccess::W)) {
                driver.poke64(store.entry, store.value);
                self.unseen += 1;
            } else if self.held.len() < 4 {
                self.held.push(store);
            }
        }
    }
}

/// The vCPUs that have a store on its way, one each; vCPU 0's marks are processed meanwhile.
const STEPPING: std::ops::RangeInclusive<u16> = 1..=4;

fn run(rounds: u64, seed: u64, failing: bool) {
    let guest = guest(8);
    let vmi = &guest.vmi;
    let rng = Rng::new(seed);
    let vcpus = Vcpus { rng, runs: true, held: Vec::new(), stepping: Vec::new(), unseen: 0 };
    let vcpus = Rc::new(RefCell::new(vcpus));
    let mine = Rc::clone(&vcpus);
    vmi.driver().run_between_calls(move |driver, _| mine.borrow_mut().run(driver));
    let mut ptm = Ptm::new();
    let mut rng = Rng::new(seed + 1);
    // What was told of each address.
    let mut told: BTreeMap<Va, Option<Pa>> = BTreeMap::new();
    let mut changes = 0;
    for _ in 0..rounds {
        (0..6).for_each(|_| vcpus.borrow_mut().run(vmi.driver()));
        // Some stores are answered now and made during what comes.
        let held = std::mem::take(&mut vcpus.borrow_mut().held);
        for (store, vcpu) in held.into_iter().zip(STEPPING) {
            ptm.mark_dirty_entry(Pa(store.entry), VIEW, VcpuId(vcpu));
            vcpus.borrow_mut().stepping.push(store);
        }
        if failing {
            vmi.driver().fail_nth(rng.below(10));
        }
        let ctx = guest.ctx(Va(ADDRESSES[rng.below(5) as usize]));
        let mut events = Vec::new();
        let done = match rng.below(12) {
            0..4 => ptm.monitor(vmi, ctx, VIEW, "a"),
            4 => ptm.unmonitor(vmi, ctx, VIEW),
            5 if rng.percent(30) => ptm.unmonitor_by_force(vmi, ctx, VIEW),
            6 if rng.percent(5) => ptm.unmonitor_all(vmi),
            _ => ptm.process_dirty_entries(vmi, CPU).map(|found| events = found),
        };
        vmi.driver().stop_failing();
        assert!(failing || done.is_ok(), "{done:?}");
        // The steps are over, and the guest stands still.
        vcpus.borrow_mut().runs = false;
        for store in std::mem::take(&mut vcpus.borrow_mut().stepping) {
            vmi.driver().poke64(store.entry, store.value);
        }
        for vcpu in STEPPING {
            events.extend(ptm.process_dirty_entries(vmi, VcpuId(vcpu)).expect("nothing fails"));
        }
        for event in &events {
            let update = event.update();
            let pa = event.is_page_in().then_some(update.pa);
            let before = told.insert(update.ctx.va, pa);
            assert!(before.is_none_or(|before| before != pa), "told twice: {event:?}");
            changes += 1;
        }
        let states: BTreeMap<Va, Option<Pa>> = ptm.states().map(|state| (state.ctx.va, state.pa)).collect();
        for (va, pa) in &states {
            vmi.flush_v2p_cache();
            assert_eq!(*pa, vmi.translate_address(guest.ctx(*va)).ok(), "{va} is not where it is said to be");
            assert_eq!(told.entry(*va).or_insert(*pa), pa, "a change of {va} was not told");
        }
        told.retain(|va, _| states.contains_key(va));
        vcpus.borrow_mut().runs = true;
        vmi.driver().take_calls();
    }
    vcpus.borrow_mut().runs = false;
    ptm.unmonitor_all(vmi).expect("nothing fails");
    assert_eq!(guest.protected(), []);
    let unseen = vcpus.borrow().unseen;
    assert!(changes > rounds / 20 && unseen > rounds / 10, "too little happened: {changes} changes, {unseen} unseen");
}

#[test]
fn tables_that_change_between_all_calls_are_known_in_the_end() {
    run(6_000, 11, false);
    run(6_000, 12, false);
}

#[test]
fn and_so_they_are_where_calls_fail() {
    run(6_000, 13, true);
}
