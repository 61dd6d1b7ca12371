//! The page table monitor: monitoring and unmonitoring with dense tables and with a table for every address.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use vmscope::engine::{
    addr::{Pa, Va, View},
    ptm::PageTableMonitor,
    session::VmiCore,
};

use crate::{
    memory::{BASE, Layout},
    ours,
    table::Table,
    theirs,
};

fn round(n: u64, mut monitor: impl FnMut(u64), mut unmonitor: impl FnMut(u64)) -> (Duration, Duration, u64) {
    let repeats = (1000 / n).max(1);
    let (mut on, mut off) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..repeats {
        let start = Instant::now();
        (0..n).for_each(&mut monitor);
        on += start.elapsed();
        let start = Instant::now();
        (0..n).for_each(&mut unmonitor);
        off += start.elapsed();
    }
    (on, off, n * repeats)
}

fn compare(table: &mut Table, label: &str, step: u64, n: u64) {
    let layout = Rc::new(Layout::new(n, step, 0));
    let root = layout.root;
    let core = VmiCore::new(ours::Flat::new(&layout)).unwrap();
    let their_core = vmi_core::VmiCore::new(theirs::Flat::new(&layout)).unwrap();
    let mut ours = PageTableMonitor::<ours::Flat>::new();
    let mut theirs = vmi_utils::ptm::PageTableMonitor::<theirs::Flat>::new();
    let ours = std::cell::RefCell::new(&mut ours);
    let theirs = std::cell::RefCell::new(&mut theirs);
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
            None,
        );
    }
}

pub fn run(table: &mut Table) {
    for n in [1, 1_000, 100_000] {
        compare(table, "dense tables", 0x1000, n);
    }
    for n in [1_000, 100_000] {
        compare(table, "a table for every address", 0x20_0000, n);
    }
}
