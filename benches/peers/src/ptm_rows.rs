//! The page table monitor: monitoring and unmonitoring with dense tables and with a table for every address.

use std::{cell::RefCell, hint::black_box, rc::Rc, time::Duration};

use vmscope::engine::{
    addr::{Gfn, Pa, Va, View},
    driver::{MemoryAccess, VmiQueryProtection, VmiSetProtection},
    ptm::{PageTableMonitor, Unguarded},
    session::VmiCore,
};

use crate::{
    memory::{BASE, Layout, walk},
    ours,
    table::{Table, round, timed},
    theirs,
};

/// What is left of a monitor without books: a walk, a count for each table, and the calls of the driver.
struct Floor {
    layout: Rc<Layout>,
    driver: ours::Flat,
    counts: Vec<u32>,
}

impl Floor {
    fn new(n: u64, step: u64) -> Self {
        let layout = Rc::new(Layout::new(n, step, 0));
        let driver = ours::Flat::new(&layout);
        let counts = vec![0; layout.memory.pages() as usize];
        Self { layout, driver, counts }
    }

    /// The tables on the way to an address.
    fn tables(&self, va: u64) -> [u64; 4] {
        let mut table = self.layout.root;
        [39u32, 30, 21, 12].map(|shift| {
            let here = table >> 12;
            table = self.layout.memory.get(table + ((va >> shift) & 0x1ff) * 8).unwrap() & 0x000f_ffff_ffff_f000;
            here
        })
    }

    fn monitor(&mut self, va: u64) {
        for gfn in self.tables(va) {
            if self.counts[gfn as usize] == 0 {
                let found = self.driver.memory_access(Gfn(gfn), View(1)).unwrap();
                self.driver.set_memory_access(Gfn(gfn), View(1), found.without(MemoryAccess::W)).unwrap();
            }
            self.counts[gfn as usize] += 1;
        }
    }

    fn unmonitor(&mut self, va: u64) {
        for gfn in self.tables(va) {
            self.counts[gfn as usize] -= 1;
            if self.counts[gfn as usize] == 0 {
                self.driver.set_memory_access(Gfn(gfn), View(1), MemoryAccess::RWX).unwrap();
            }
        }
    }
}

fn compare(table: &mut Table, label: &str, step: u64, n: u64) {
    let layout = Rc::new(Layout::new(n, step, 0));
    let root = layout.root;
    let core = VmiCore::new(ours::Flat::new(&layout)).unwrap();
    let their_core = vmi_core::VmiCore::new(theirs::Flat::new(&layout)).unwrap();
    let ours = RefCell::new(PageTableMonitor::<ours::Flat>::new());
    let theirs = RefCell::new(vmi_utils::ptm::PageTableMonitor::<theirs::Flat>::new());
    let floor = RefCell::new(Floor::new(n, step));
    for (what, second) in [("monitor", false), ("unmonitor", true)] {
        let pick = move |(on, off, count): (Duration, Duration, u64)| (if second { off } else { on }, count);
        table.row(
            format!("ptm {what}, {label}, N = {n}"),
            &mut || {
                let at = |i: u64| (Va(BASE + i * step), Pa(root));
                pick(round(
                    n,
                    |i| ours.borrow_mut().monitor(&core, at(i), View(1), "bench").unwrap(),
                    |i| ours.borrow_mut().unmonitor(&core, at(i), View(1)).unwrap(),
                ))
            },
            &mut || {
                let at = |i: u64| (vmi_core::Va(BASE + i * step), vmi_core::Pa(root));
                pick(round(
                    n,
                    |i| theirs.borrow_mut().monitor(&their_core, at(i), vmi_core::View(1), "bench").unwrap(),
                    |i| theirs.borrow_mut().unmonitor(&their_core, at(i), vmi_core::View(1)).unwrap(),
                ))
            },
            Some(&mut || {
                pick(round(
                    n,
                    |i| floor.borrow_mut().monitor(BASE + i * step),
                    |i| floor.borrow_mut().unmonitor(BASE + i * step),
                ))
            }),
        );
    }
}

/// One poll of 10,000 addresses, by the address: at 10 Hz a nanosecond of it is 0.01 % of a core. Theirs has no polling;
/// its user would translate every address anew.
fn poll(table: &mut Table, label: &str, step: u64) {
    const N: u64 = 10_000;
    let layout = Rc::new(Layout::new(N, step, 0));
    let (memory, root) = (&layout.memory, layout.root);
    let core = VmiCore::new(ours::Flat::new(&layout)).unwrap();
    let mut their_core = vmi_core::VmiCore::new(theirs::Flat::new(&layout)).unwrap();
    their_core.disable_v2p_cache();
    their_core.disable_gfn_cache();
    let mut polled = PageTableMonitor::<ours::Flat, (), Unguarded>::polling();
    for i in 0..N {
        polled.monitor(&core, (Va(BASE + i * step), Pa(root)), View(1), ()).unwrap();
    }
    table.row(
        format!("ptm poll of 10,000 addresses, by the address, {label}"),
        &mut || timed(N, || assert!(polled.poll(&core).unwrap().is_empty())),
        &mut || {
            timed(N, || {
                for i in 0..N {
                    let at = (vmi_core::Va(BASE + i * step), vmi_core::Pa(root));
                    black_box(their_core.translate_address(at).unwrap());
                }
            })
        },
        Some(&mut || {
            timed(N, || {
                for i in 0..N {
                    black_box(walk(memory, BASE + i * step, root));
                }
            })
        }),
    );
}

pub fn run(table: &mut Table) {
    for n in [1, 1_000, 100_000] {
        compare(table, "dense tables", 0x1000, n);
    }
    for n in [1_000, 100_000] {
        compare(table, "a table for every address", 0x20_0000, n);
    }
    poll(table, "dense tables", 0x1000);
    poll(table, "a table for every address", 0x20_0000);
}
