//! The guest's pager, its stores to page tables, and page faults that are injected.

use std::{collections::BTreeSet, time::Duration};

use indexmap::IndexSet;
use vmscope::engine::{
    addr::{AddressContext, Gfn, Va, VcpuId},
    arch::{Architecture, EventReason, amd64::*},
    driver::{
        MemoryAccess, MemoryAccessOptions, VmiVmControl,
        sim::{SimDriver, SimOptions, SimProcess},
    },
    error::VmiError,
    event::VmiEventResponse,
    os::VmiOs,
    session::VmiProber,
};

use crate::Guest;

/// Start of a process's private region of 2 MiB: its environment block lies in it.
fn region(guest: &Guest, process: &SimProcess) -> Va {
    let peb = guest.core.read_u64((process.object + 0x550, guest.kernel_root())).expect("in memory");
    Va(peb & !0x1f_ffff)
}

fn named(guest: &Guest, name: &str) -> SimProcess {
    guest.driver().processes().into_iter().find(|process| process.name == name).expect("runs")
}

/// The frame of the table that maps the start of a process's region.
fn table(guest: &Guest, process: &SimProcess) -> Option<Gfn> {
    let walk = Amd64::translation(&guest.core, region(guest, process), process.root);
    let last = walk.entries().last()?;
    (last.level == PageTableLevel::Pt).then(|| last.table())
}

#[test]
fn pages_go_and_come_back_and_tables_do_too() {
    let guest = Guest::new(SimOptions::default());
    let watched: Vec<_> = guest
        .driver()
        .processes()
        .into_iter()
        .filter(|process| process.name == "svchost.exe")
        .map(|process| (region(&guest, &process) + 0x43000, process.root))
        .collect();
    assert!(watched.len() > 5);
    let (mut ins, mut outs, mut tables) = (0, 0, 0);
    let mut before = vec![None; watched.len()];
    for _ in 0..400 {
        guest.run(Duration::from_millis(25), |_| VmiEventResponse::default());
        guest.core.flush_v2p_cache();
        for ((heap, root), before) in watched.iter().zip(&mut before) {
            let walk = Amd64::translation(&guest.core, *heap, *root);
            let now = walk.pa().is_some();
            match *before {
                Some(false) if now => ins += 1,
                Some(true) if !now => outs += 1,
                _ => {}
            }
            tables += u32::from(walk.fault() == Some(TranslationFault::NotPresent(PageTableLevel::Pd)));
            *before = Some(now);
        }
    }
    assert!(ins > 5 && outs > 5 && tables > 0, "{ins} in, {outs} out, {tables} times no table");
}

#[test]
fn stores_to_a_protected_table_are_reported_and_page_walks_only_if_asked_for() {
    for ignore in [true, false] {
        let guest = Guest::new(SimOptions::default());
        let process = named(&guest, "explorer.exe");
        let frame = table(&guest, &process).expect("in memory at first");
        let view = guest.core.default_view();
        let options = MemoryAccessOptions { ignore_page_walk_updates: ignore };
        guest.core.set_memory_access_with_options(frame, view, MemoryAccess::RX, options).expect("exists");
        guest.core.monitor_enable(EventMonitor::Singlestep).expect("supported");
        let aside = guest.core.create_view(MemoryAccess::RWX).expect("views");
        let (mut stores, mut walks, mut steps) = (0, 0, 0);
        let mut written = None;
        guest.run(Duration::from_secs(4), |event| {
            if event.reason().is_singlestep() {
                steps += 1;
                if let Some((pa, before)) = written.take() {
                    assert_ne!(guest.core.read_u64(pa).expect("in memory"), before);
                }
                return VmiEventResponse::default().with_view(view);
            }
            let access = event.reason().as_memory_access().expect("a write");
            assert_eq!((access.access, access.pa.0 >> 12), (MemoryAccess::W, frame.0));
            written = Some((access.pa, guest.core.read_u64(access.pa).expect("in memory")));
            // The kernel stores through its map of all memory; a walk is for the address being translated.
            if access.va.0 >> 63 != 0 && event.registers().cpl() == 0 {
                stores += 1
            } else {
                walks += 1
            }
            VmiEventResponse::singlestep().with_view(aside)
        });
        assert!(stores > 5, "{stores} stores");
        assert_eq!(steps, stores + walks);
        assert_eq!(walks > 0, !ignore, "{walks} walks");
    }
}

/// A place where a fault can be injected: a system call of the process, interrupts on.
fn in_process(guest: &Guest, process: &SimProcess) -> VcpuId {
    guest.hide_breakpoint("nt!NtClose");
    let address = guest.symbol("nt!NtClose").0;
    let default = guest.core.default_view();
    guest.run_until(|event| {
        let registers = event.registers();
        let here = registers.gp.rip == address && registers.root() == process.root;
        let response = match event.reason().as_memory_access() {
            None if registers.gp.rip != address => VmiEventResponse::reinject_interrupt(),
            _ => VmiEventResponse::fast_singlestep(default),
        };
        (response, here.then(|| event.vcpu_id()))
    })
}

#[test]
fn an_injected_fault_brings_a_page_in_by_the_guests_own_pager() {
    let guest = Guest::new(SimOptions::default());
    // A process whose parameters are paged out.
    let (process, page) = guest
        .driver()
        .processes()
        .into_iter()
        .filter(|process| process.name == "svchost.exe")
        .map(|process| (region(&guest, &process) + 0x20000, process))
        .find(|(va, process)| guest.core.translate_address((*va, process.root)).is_err())
        .map(|(va, process)| (process, va))
        .expect("not all are in memory");
    let row = guest.os.processes(guest.session()).expect("readable").processes;
    let row = row.into_iter().find(|row| row.pid == process.pid).expect("listed");
    let prober = VmiProber::new(&IndexSet::new());
    let detail = guest.os.process_detail(guest.session(), &row, &prober).expect("readable");
    assert_eq!(detail.command_line, None);
    assert!(detail.missing.contains(&page) && prober.page_faults().contains(&AddressContext::new(page, process.root)));

    let vcpu = in_process(&guest, &process);
    guest.driver().inject_interrupt(vcpu, Interrupt::page_fault(page.0, 0)).expect("none on its way");
    let second = guest.driver().inject_interrupt(vcpu, Interrupt::page_fault(page.0, 0));
    assert!(matches!(second, Err(VmiError::Invalid(_))), "one at a time");
    let mut present = false;
    for _ in 0..50 {
        guest.run(Duration::from_millis(1), |event| match event.reason().as_memory_access() {
            None if event.registers().gp.rip != guest.symbol("nt!NtClose").0 => VmiEventResponse::reinject_interrupt(),
            _ => VmiEventResponse::fast_singlestep(guest.core.default_view()),
        });
        guest.core.flush_v2p_cache();
        present |= guest.core.translate_address((page, process.root)).is_ok();
    }
    assert!(present);
    let detail = guest.os.process_detail(guest.session(), &row, &VmiProber::new(&IndexSet::new())).expect("readable");
    assert!(detail.command_line.is_some_and(|line| line.contains("svchost.exe -k netsvcs")));
}

#[test]
fn an_impossible_address_is_refused_by_the_exception_dispatcher() {
    let guest = Guest::new(SimOptions::default());
    let process = named(&guest, "lsass.exe");
    let wanted = AddressContext::new(0x1234_5000u64, process.root);
    let vcpu = in_process(&guest, &process);
    guest.driver().reset_state().expect("can be reset");
    guest.hide_breakpoint("nt!KiDispatchException");
    let refused_at = VmiOs::<SimDriver>::fault_refused_at(&guest.os);
    assert_eq!(refused_at, Some(guest.symbol("nt!KiDispatchException")));
    guest.driver().inject_interrupt(vcpu, Interrupt::page_fault(0x1234_5678, 0)).expect("none on its way");
    let waiting = IndexSet::from([AddressContext::new(0x9999_0000u64, process.root), wanted]);
    let refused = guest.run_until(|event| {
        let found = (Some(Va(event.registers().gp.rip)) == refused_at)
            .then(|| guest.os.refused_fault(guest.session().with_registers(event.registers()), &waiting))
            .and_then(|refused| refused.expect("the record is in memory"));
        let response = match event.reason().as_memory_access() {
            None if Some(Va(event.registers().gp.rip)) != refused_at => VmiEventResponse::reinject_interrupt(),
            _ => VmiEventResponse::fast_singlestep(guest.core.default_view()),
        };
        (response, found)
    });
    assert_eq!(refused, wanted);
    // The process goes on all the same.
    guest.driver().reset_state().expect("can be reset");
    let before = named(&guest, "lsass.exe");
    in_process(&guest, &before);
}

#[test]
fn the_processes_keep_their_pages_apart() {
    let guest = Guest::new(SimOptions::default());
    guest.run(Duration::from_secs(3), |_| VmiEventResponse::default());
    let mut frames = BTreeSet::new();
    let mut pages = 0;
    for process in guest.driver().processes() {
        if matches!(process.name.as_str(), "System" | "Registry" | "MemCompression") {
            continue;
        }
        let region = region(&guest, &process);
        for page in 0..0x50u64 {
            guest.core.flush_v2p_cache();
            if let Ok(pa) = guest.core.translate_address((region + page * 0x1000, process.root)) {
                pages += 1;
                frames.insert(pa);
            }
        }
    }
    assert!(pages > 100);
    assert_eq!(frames.len(), pages);
}
