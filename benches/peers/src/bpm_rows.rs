//! The breakpoint manager: insertion and removal with each controller, and the lookup that a hit costs.

use std::{cell::RefCell, hint::black_box, rc::Rc, time::Duration};

use vmi_core::VmiCore as TheirCore;
use vmi_utils::bpm as theirs_bpm;
use vmscope::engine::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId, View},
    arch::amd64::{Amd64, Amd64EventReason, Amd64Registers, EventInterrupt, Interrupt},
    bpm::{Breakpoint, BreakpointController, BreakpointManager, MemoryController, TapController},
    driver::{MemoryAccess, VmiSetProtection, VmiViewControl, VmiVmControl, VmiWrite},
    event::VmiEvent,
    session::VmiCore,
};

use crate::{
    core_rows::Rng,
    memory::{BASE, FloorCache, Layout},
    ours,
    table::{Table, round, timed},
    theirs,
};

const VIEW: u16 = 1;

fn ours_round<C: TapController<Driver = ours::Flat>>(
    core: &VmiCore<ours::Flat>,
    manager: &RefCell<BreakpointManager<C, (), &'static str>>,
    root: u64,
    n: u64,
) -> (Duration, Duration, u64) {
    let at = |i: u64| Breakpoint::new((Va(BASE + i * 4096), Pa(root)), View(VIEW)).with_tag("bench");
    round(
        n,
        |i| assert!(manager.borrow_mut().insert(core, at(i)).unwrap()),
        |i| assert!(manager.borrow_mut().remove(core, at(i)).unwrap()),
    )
}

fn theirs_round<C: theirs_bpm::TapController<Driver = theirs::Flat>>(
    core: &TheirCore<theirs::Flat>,
    manager: &RefCell<theirs_bpm::BreakpointManager<C>>,
    root: u64,
    n: u64,
) -> (Duration, Duration, u64) {
    let at = |i: u64| {
        theirs_bpm::Breakpoint::new((vmi_core::Va(BASE + i * 4096), vmi_core::Pa(root)), vmi_core::View(VIEW))
            .with_tag("bench")
    };
    round(
        n,
        |i| assert!(manager.borrow_mut().insert(core, at(i)).unwrap()),
        |i| assert!(manager.borrow_mut().remove(core, at(i)).unwrap()),
    )
}

/// What is left of a breakpoint without books: a translation, and the calls of the driver that a breakpoint takes.
struct Floor {
    layout: Rc<Layout>,
    driver: ours::Flat,
    cache: FloorCache,
    frames: Vec<Gfn>,
    shadows: bool,
}

impl Floor {
    fn new(n: u64, shadows: bool) -> Self {
        let layout = Rc::new(Layout::new(n, 0x1000, n + 8));
        let driver = ours::Flat::new(&layout);
        let frames = (0..n).map(|_| driver.allocate_gfn().unwrap()).collect();
        Self { layout, driver, cache: FloorCache::new(1 << 15), frames, shadows }
    }

    fn round(this: &RefCell<Self>, n: u64) -> (Duration, Duration, u64) {
        let page = |i: u64| {
            let Self { layout, cache, .. } = &mut *this.borrow_mut();
            Gfn(cache.get(&layout.memory, BASE + i * 4096, layout.root).unwrap() >> 12)
        };
        round(
            n,
            |i| {
                let gfn = page(i);
                let Self { driver, frames, shadows, .. } = &*this.borrow();
                if *shadows {
                    let frame = frames[i as usize];
                    driver.copy_page_patched(gfn, frame, 0, &[0xcc], &mut [0]).unwrap();
                    driver.change_view_gfn(View(VIEW), gfn, frame).unwrap();
                    driver.set_memory_access(gfn, View(VIEW), MemoryAccess::X).unwrap();
                } else {
                    driver.set_memory_access(gfn, View(VIEW), MemoryAccess::RW).unwrap();
                }
            },
            |i| {
                let gfn = page(i);
                let Self { driver, shadows, .. } = &*this.borrow();
                driver.set_memory_access(gfn, View(VIEW), MemoryAccess::RWX).unwrap();
                if *shadows {
                    driver.reset_view_gfn(View(VIEW), gfn).unwrap();
                }
            },
        )
    }
}

fn compare<O, T>(table: &mut Table, controller: &str, n: u64)
where
    O: TapController<Driver = ours::Flat>,
    T: theirs_bpm::TapController<Driver = theirs::Flat>,
{
    let layout = Rc::new(Layout::new(n, 0x1000, n + 8));
    let root = layout.root;
    let ours_core = VmiCore::new(ours::Flat::new(&layout)).unwrap();
    // Shadow frames of both would be the same ones: each has a layout of its own.
    let their_layout = Rc::new(Layout::new(n, 0x1000, n + 8));
    let theirs_core = TheirCore::new(theirs::Flat::new(&their_layout)).unwrap();
    let ours = RefCell::new(BreakpointManager::<O, (), &'static str>::new());
    let theirs = RefCell::new(theirs_bpm::BreakpointManager::<T>::new());
    let floor = RefCell::new(Floor::new(n, controller == "INT3"));
    for (what, second) in [("insert", false), ("remove", true)] {
        let pick = move |(inserting, removing, count): (Duration, Duration, u64)| {
            (if second { removing } else { inserting }, count)
        };
        table.row(
            format!("bpm {what}, {controller}, N = {n}"),
            &mut || pick(ours_round(&ours_core, &ours, root, n)),
            &mut || pick(theirs_round(&theirs_core, &theirs, root, n)),
            Some(&mut || pick(Floor::round(&floor, n))),
        );
    }
}

fn lookup(table: &mut Table, n: u64) {
    let layout = Rc::new(Layout::new(n, 0x1000, n + 8));
    let their_layout = Rc::new(Layout::new(n, 0x1000, n + 8));
    let root = layout.root;
    let core = VmiCore::new(ours::Flat::new(&layout)).unwrap();
    let their_core = TheirCore::new(theirs::Flat::new(&their_layout)).unwrap();
    let mut manager = BreakpointManager::<BreakpointController<ours::Flat>, (), &'static str>::new();
    let mut their_manager = theirs_bpm::BreakpointManager::<theirs_bpm::BreakpointController<theirs::Flat>>::new();
    for i in 0..n {
        let va = BASE + i * 4096;
        manager.insert(&core, Breakpoint::new((Va(va), Pa(root)), View(VIEW)).global().with_tag("b")).unwrap();
        let theirs = theirs_bpm::Breakpoint::new((vmi_core::Va(va), vmi_core::Pa(root)), vmi_core::View(VIEW));
        their_manager.insert(&their_core, theirs.global().with_tag("b")).unwrap();
    }
    let places: Vec<(u64, u64)> = (0..n).map(|i| (BASE + i * 4096, root)).collect();
    let mut rng = Rng(0x5555_1234_9876_abcd);
    let (mut events, mut their_events) = (Vec::new(), Vec::new());
    for _ in 0..4096 {
        let va = BASE + (rng.next() % n) * 4096;
        let pa = core.translate_address(AddressContext::new(va, root)).unwrap();
        let mut registers = Amd64Registers { cr3: root, ..Amd64Registers::default() };
        registers.gp.rip = va;
        let interrupt = EventInterrupt { gfn: Gfn(pa.0 >> 12), interrupt: Interrupt::breakpoint() };
        let reason = Amd64EventReason::Interrupt(interrupt);
        events.push(VmiEvent::<Amd64>::new(VcpuId(0), Some(View(VIEW)), registers, reason));
        their_events.push(their_event(va, root, pa.0 >> 12));
    }
    table.row(
        format!("bpm get_by_event, global, N = {n}"),
        &mut || {
            timed(4096, || {
                events.iter().for_each(|event| {
                    black_box(manager.get_by_event(event, ()).unwrap());
                })
            })
        },
        &mut || {
            timed(4096, || {
                their_events.iter().for_each(|event| {
                    black_box(their_manager.get_by_event(event, ()).unwrap());
                })
            })
        },
        Some(&mut || {
            timed(4096, || {
                events.iter().for_each(|event| {
                    let at = ((event.registers().gp.rip - BASE) >> 12) as usize;
                    black_box(places.get(at).filter(|place| **place == (event.registers().gp.rip, root)));
                })
            })
        }),
    );
}

fn their_event(va: u64, root: u64, gfn: u64) -> vmi_core::VmiEvent<vmi_arch_amd64::Amd64> {
    use vmi_arch_amd64::{EventInterrupt, EventReason, ExceptionVector, Interrupt, InterruptType, Registers};
    let registers = Registers { rip: va, cr3: root.into(), ..Default::default() };
    let interrupt = Interrupt {
        vector: ExceptionVector::Breakpoint,
        typ: InterruptType::SoftwareException,
        error_code: 0xffff_ffff,
        instruction_length: 1,
        extra: 0,
    };
    let reason = EventReason::Interrupt(EventInterrupt { gfn: vmi_core::Gfn(gfn), interrupt });
    vmi_core::VmiEvent::new(vmi_core::VcpuId(0), Default::default(), Some(vmi_core::View(VIEW)), registers, reason)
}

pub fn run(table: &mut Table) {
    for n in [1, 1_000, 100_000] {
        compare::<MemoryController<ours::Flat>, theirs_bpm::MemoryController<theirs::Flat>>(table, "memory", n);
        compare::<BreakpointController<ours::Flat>, theirs_bpm::BreakpointController<theirs::Flat>>(table, "INT3", n);
        lookup(table, n);
    }
}
