//! The fault loop: every missing page from request to resolution, and what is never injected. Random operations are in
//! `model`.

mod model;
#[path = "../support/mod.rs"]
mod support;

use std::cell::Cell;

use indexmap::IndexSet;
use support::{Call, FlatDriver, FlatOs, Tables, core};
use vmscope::engine::{
    addr::{AddressContext, Pa, Va, VcpuId},
    arch::amd64::{Amd64, Amd64Registers, Interrupt, Segment},
    error::VmiError,
    faults::{FaultLoop, FaultPolicy, InjectFaults, InjectionPoint, WaitForGuest, WatchChange},
    session::{VmiCore, VmiProber, VmiSession},
    snapshot::{FaultId, FaultState},
};

const CPU: VcpuId = VcpuId(0);
const PAGE: Va = Va(0x7f00_0000_1000);
/// One of which the kernel says that it has no memory region.
const UNSERVABLE: Va = Va(0x7f00_0000_4000);
const KERNEL_PAGE: Va = Va(0xffff_8000_0000_5000);
const POLICY: FaultPolicy =
    FaultPolicy { automatic: true, kernel_context: false, max_attempts: 3, attempt_ns: 1000, capacity: 8 };

/// A kernel that isolates its page tables.
fn os() -> FlatOs {
    FlatOs {
        base: Va(0xffff_8000_0000_0000),
        root: Pa(0x2000),
        isolates: true,
        unservable: Some(UNSERVABLE),
        ..FlatOs::default()
    }
}

/// A guest with one empty address space, and where its one vCPU is.
struct Guest {
    vmi: VmiCore<FlatDriver>,
    os: FlatOs,
    next: Cell<u64>,
    root: Pa,
    now: Cell<u64>,
}

fn guest() -> Guest {
    let vmi = core(64);
    let next = Cell::new(16);
    let root = Tables::new(vmi.driver(), &next, 4).root();
    assert_eq!(root.0 % 0x2000, 0, "an even root, see os()");
    Guest { vmi, os: os(), next, root, now: Cell::new(0) }
}

fn user(root: Pa) -> Amd64Registers {
    Amd64Registers { cr3: root.0, cs: Segment { selector: 0x33, base: 0, long: true }, ..Default::default() }
}

fn kernel(root: Pa, interruptible: bool) -> Amd64Registers {
    let mut registers = Amd64Registers { cr3: root.0, ..Default::default() };
    registers.gp.rflags = if interruptible { Amd64Registers::RFLAGS_IF } else { 0 };
    registers
}

impl Guest {
    fn ctx(&self, va: Va) -> AddressContext {
        AddressContext { va, root: self.root }
    }

    /// The guest maps a page.
    fn map(&self, va: Va) {
        let mut table = self.root.0;
        for shift in [39, 30, 21] {
            let at = table + (va.0 >> shift & 511) * 8;
            table = self.next.get() * 0x1000;
            self.next.set(self.next.get() + 1);
            self.vmi.driver().poke64(at, table | 7);
        }
        self.vmi.driver().poke64(table + (va.0 >> 12 & 511) * 8, 0x5007);
    }

    /// A vCPU stands somewhere at an event: what is injected.
    fn visit(&self, faults: &mut FaultLoop, vcpu: VcpuId, registers: &Amd64Registers) -> Option<FaultId> {
        let session = VmiSession::new(&self.vmi, &self.os);
        self.vmi.flush_v2p_cache();
        faults.inject_next(session.with_registers(registers), vcpu, self.now.get()).expect("nothing fails")
    }

    fn injected(&self) -> Vec<(VcpuId, Interrupt)> {
        let injection = |call| match call {
            Call::InjectInterrupt(vcpu, interrupt) => Some((vcpu, interrupt)),
            _ => None,
        };
        self.vmi.driver().take_calls().into_iter().filter_map(injection).collect()
    }
}

fn note(faults: &FaultLoop, id: FaultId) -> String {
    let row = faults.rows(0, |_| None).into_iter().find(|row| row.id == id);
    row.map(|row| row.note).unwrap_or_default()
}

#[test]
fn a_page_is_asked_for_injected_and_resolved() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let ctx = guest.ctx(PAGE + 0x123);
    let id = faults.request(ctx, "command line", 10).expect("room");
    assert_eq!(faults.state(guest.ctx(PAGE)), Some(FaultState::Pending));
    assert_eq!(faults.take_watch_changes(), [WatchChange::Watch(guest.ctx(PAGE))]);

    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), Some(id));
    let interrupt = Interrupt::page_fault(ctx.va.0, 4);
    assert_eq!(guest.injected(), [(CPU, interrupt)], "a read from user mode of a page that is not present");
    let row = faults.rows(500, |_| Some(648)).remove(0);
    assert_eq!((row.state, row.attempts, row.vcpu, row.pid), (FaultState::Injected, 1, Some(CPU), Some(648)));
    assert_eq!((row.asked_by.as_str(), row.age_ns, row.address), ("command line", 490, ctx.va));

    assert_eq!(faults.on_page_in(guest.ctx(PAGE), 600), Some(id));
    assert_eq!(note(&faults, id), "came in after 1 injection");
    assert_eq!(faults.take_watch_changes(), [WatchChange::Unwatch(guest.ctx(PAGE))]);
    assert_eq!(faults.on_page_in(guest.ctx(PAGE), 700), None, "that is no news");
    let states: Vec<FaultState> = faults.take_changes().iter().map(|change| change.state).collect();
    assert_eq!(states, [FaultState::Pending, FaultState::Injected, FaultState::Resolved]);
    assert_eq!(faults.rows(9999, |_| None)[0].age_ns, 590, "the age ends with the wait");
}

#[test]
fn changes_that_nobody_asks_for_are_bounded() {
    let guest = guest();
    let mut faults = FaultLoop::<WaitForGuest>::new(POLICY);
    let id = faults.request(guest.ctx(PAGE), "test", 0).expect("room");
    for now in 0..3000 {
        faults.suppress(id, now).expect("there is such a row");
        faults.retry(id, now).expect("it is not on its way");
    }
    let changes = faults.take_changes();
    assert_eq!(changes.len(), 4096);
    assert_eq!(changes.last().map(|change| change.state), Some(FaultState::Pending), "the oldest are lost");
    assert!(faults.take_changes().is_empty());
}

#[test]
fn only_the_right_place_is_good_enough() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    faults.request(guest.ctx(PAGE), "test", 0);
    faults.request(guest.ctx(KERNEL_PAGE), "test", 0);
    let other = Pa(guest.root.0 + 0x6000);
    for registers in [user(other), kernel(guest.root, true), kernel(guest.root, false)] {
        assert_eq!(guest.visit(&mut faults, CPU, &registers), None);
    }
    assert_eq!(guest.injected(), []);
    let at = |registers: &Amd64Registers, va| faults.may_inject::<Amd64>(registers, guest.root, guest.ctx(va));
    assert_eq!(at(&user(guest.root), PAGE), Some(InjectionPoint::User));
    assert_eq!(at(&user(guest.root), KERNEL_PAGE), None, "the guest would take it for an attack");
    assert_eq!(at(&kernel(guest.root, true), KERNEL_PAGE), None, "not without permission");

    let mut faults = FaultLoop::<InjectFaults>::new(FaultPolicy { kernel_context: true, ..POLICY });
    faults.request(guest.ctx(PAGE), "test", 0);
    let id = faults.request(guest.ctx(KERNEL_PAGE), "test", 0);
    assert_eq!(guest.visit(&mut faults, CPU, &kernel(other, false)), None);
    assert_eq!(guest.visit(&mut faults, CPU, &kernel(other, true)), id, "the kernel's half is in every space");
    assert_eq!(guest.injected(), [(CPU, Interrupt::page_fault(KERNEL_PAGE.0, 0))]);
}

#[test]
fn a_process_with_two_roots_is_one_process() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let id = faults.request(guest.ctx(PAGE), "test", 0);
    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root + 0x1000)), id);
}

#[test]
fn one_is_in_flight_for_each_vcpu() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let ids: Vec<_> = (0..3).map(|page| faults.request(guest.ctx(PAGE + page * 0x1000), "test", 0)).collect();
    let at = user(guest.root);
    assert_eq!(guest.visit(&mut faults, CPU, &at), ids[0]);
    assert_eq!(guest.visit(&mut faults, CPU, &at), None);
    assert_eq!(guest.visit(&mut faults, VcpuId(1), &at), ids[1]);
    faults.on_page_in(guest.ctx(PAGE), 1);
    assert!(!faults.is_in_flight(CPU));
    assert_eq!(guest.visit(&mut faults, CPU, &at), ids[2]);
}

#[test]
fn attempts_are_bounded() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let id = faults.request(guest.ctx(PAGE), "test", 0).expect("room");
    for attempt in 1..=3u64 {
        assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), Some(id));
        faults.tick(guest.now.get() + 999);
        assert_eq!(faults.state(guest.ctx(PAGE)), Some(FaultState::Injected), "it may still come");
        guest.now.set(attempt * 1000);
        faults.tick(guest.now.get());
    }
    assert_eq!(faults.state(guest.ctx(PAGE)), Some(FaultState::Suppressed));
    assert_eq!(note(&faults, id), "given up after 3 injections without effect");
    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), None);
    assert_eq!(guest.injected().len(), 3);
    assert!(faults.suppressed_set().contains(&guest.ctx(PAGE)));

    let prober = VmiProber::new(faults.suppressed_set());
    assert!(prober.check_result::<()>(Err(VmiError::page_fault(guest.ctx(PAGE + 8)))).is_ok());
    assert!(prober.error_for_page_faults().is_ok(), "nobody asks for it again");
    assert_eq!(faults.request(guest.ctx(PAGE), "somebody else", 5000), Some(id));
    assert_eq!(faults.state(guest.ctx(PAGE)), Some(FaultState::Suppressed));
    faults.retry(id, 6000).expect("the row is there");
    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), Some(id));
}

#[test]
fn the_guest_may_refuse() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let id = faults.request(guest.ctx(PAGE), "test", 0).expect("room");
    guest.visit(&mut faults, CPU, &user(guest.root));
    assert_eq!(faults.open_pages(), IndexSet::from([guest.ctx(PAGE)]));
    assert_eq!(faults.on_refused(guest.ctx(PAGE + 0x10), 5), Some(id));
    assert_eq!(note(&faults, id), "refused by the guest's exception dispatch");
    assert!(!faults.is_in_flight(CPU));
    assert_eq!((faults.open_count(), faults.suppressed_set().len()), (0, 1));
    assert_eq!(faults.on_refused(guest.ctx(PAGE + 0x9000), 5), None, "nobody waits for that one");
    assert_eq!(faults.on_page_in(guest.ctx(PAGE), 6), Some(id), "it came all the same");
    assert!(faults.suppressed_set().is_empty());
}

#[test]
fn what_the_user_gives_up_stays_given_up() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let id = faults.request(guest.ctx(PAGE), "test", 0).expect("room");
    faults.suppress(id, 1).expect("the row is there");
    assert_eq!(faults.on_page_in(guest.ctx(PAGE), 2), None);
    assert_eq!(faults.state(guest.ctx(PAGE)), Some(FaultState::Suppressed));
    faults.clear(id).expect("the row is there");
    assert!(faults.suppressed_set().is_empty());
    let error = faults.clear(id).expect_err("no such row");
    assert!(error.to_string().contains("cleared"), "{error}");
}

#[test]
fn a_page_that_is_there_is_not_injected() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    faults.request(guest.ctx(PAGE), "test", 0);
    let missing = faults.request(guest.ctx(PAGE + 0x1000), "test", 0);
    guest.map(PAGE);
    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), missing);
    assert_eq!(faults.state(guest.ctx(PAGE)), Some(FaultState::Resolved));
}

#[test]
fn a_driver_that_refuses_is_not_pestered() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let ids: Vec<_> = (0..2).filter_map(|page| faults.request(guest.ctx(PAGE + page * 0x1000), "test", 0)).collect();
    guest.vmi.driver().fail_nth_change(0);
    let session = VmiSession::new(&guest.vmi, &guest.os);
    let at = user(guest.root);
    assert!(faults.inject_next(session.with_registers(&at), CPU, 0).is_err());
    guest.vmi.driver().stop_failing();
    assert!(note(&faults, ids[0]).starts_with("could not be injected"), "{}", note(&faults, ids[0]));
    assert_eq!(guest.visit(&mut faults, CPU, &at), Some(ids[1]), "others get their turn");
    faults.on_page_in(guest.ctx(PAGE + 0x1000), 1);
    assert_eq!(guest.visit(&mut faults, CPU, &at), None, "not at every event");
    guest.now.set(1000);
    assert_eq!(guest.visit(&mut faults, CPU, &at), Some(ids[0]));
}

#[test]
fn what_the_kernel_would_not_serve_is_not_injected() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let id = faults.request(guest.ctx(UNSERVABLE), "test", 0).expect("room");
    let next = faults.request(guest.ctx(PAGE), "test", 0);
    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), next, "and the next one has its turn");
    assert_eq!(faults.state(guest.ctx(UNSERVABLE)), Some(FaultState::Suppressed));
    assert_eq!(note(&faults, id), "cannot come: there is no␛[31m region");
    assert_eq!(guest.injected().len(), 1);
}

#[test]
fn a_loop_that_may_not_inject_waits_and_says_so() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(FaultPolicy { automatic: false, ..POLICY });
    let kernels = faults.request(guest.ctx(KERNEL_PAGE), "test", 0).expect("room");
    assert!(note(&faults, kernels).contains("by itself"), "{}", note(&faults, kernels));
    assert!(faults.want(kernels).expect_err("the kernel's").to_string().contains("kernel"));
    let id = faults.request(guest.ctx(PAGE), "test", 0).expect("room");
    assert_eq!(faults.want(id).ok(), Some(guest.ctx(PAGE)));
    assert_eq!(faults.awaited_roots(0), [guest.root]);
    faults.set_injecting(false);
    assert!(faults.awaited_roots(0).is_empty() && !faults.waits_for(guest.root, 0));
    assert!(!faults.is_due::<Amd64>(&user(guest.root), guest.root, CPU, 0));
    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), None);
    assert_eq!(note(&faults, id), "waits for the guest to bring it in by itself");
    assert!(faults.want(id).is_err());
    faults.on_page_in(guest.ctx(PAGE), 1);
    assert_eq!(faults.state(guest.ctx(PAGE)), Some(FaultState::Resolved));
}

#[test]
fn the_user_decides_where_nothing_is_automatic() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(FaultPolicy { automatic: false, ..POLICY });
    let ids: Vec<_> = (0..2).filter_map(|page| faults.request(guest.ctx(PAGE + page * 0x1000), "test", 0)).collect();
    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), None);
    faults.want(ids[1]).expect("it is pending");
    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), Some(ids[1]));
    let error = faults.want(ids[1]).expect_err("once is enough");
    assert!(error.to_string().contains("on its way"), "{error}");
    assert!(faults.retry(ids[1], 0).is_err());
    faults.tick(1000);
    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), Some(ids[1]), "what is wanted is tried again");
}

#[test]
fn drivers_that_cannot_inject_wait_for_the_guest() {
    let guest = guest();
    let mut faults = FaultLoop::<WaitForGuest>::new(POLICY);
    let id = faults.request(guest.ctx(PAGE), "test", 0).expect("room");
    assert_eq!(faults.take_watch_changes(), [WatchChange::Watch(guest.ctx(PAGE))]);
    let session = VmiSession::new(&guest.vmi, &guest.os);
    let at = user(guest.root);
    assert_eq!(faults.inject_next(session.with_registers(&at), CPU, 0).ok(), Some(None));
    let error = faults.want(id).expect_err("it cannot");
    assert!(error.to_string().contains("watched"), "{error}");
    assert_eq!(faults.rows(0, |_| None)[0].note, "waits for the guest to bring it in by itself");
    faults.on_page_in(guest.ctx(PAGE), 1);
    assert_eq!(faults.rows(0, |_| None)[0].note, "the guest brought it in by itself");
}

#[test]
fn addresses_that_no_table_can_map_are_given_up_at_once() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let never = guest.ctx(Va(0x00dd_0000_0000_0000));
    let id = faults.request(guest.ctx(Va(0xdead_beef_0000_0000)), "a lie of the guest's", 0).expect("room");
    assert!(note(&faults, id).contains("canonical"));
    assert!(faults.retry(id, 0).is_err());
    // Canonical with five levels, and this guest has four.
    faults.request(never, "another one", 0);
    assert_eq!(guest.visit(&mut faults, CPU, &user(guest.root)), None);
    assert_eq!(faults.state(never), Some(FaultState::Suppressed));
    assert_eq!(guest.injected(), []);
}

#[test]
fn the_list_is_bounded_and_open_pages_are_never_dropped() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let page = |number: u64| guest.ctx(PAGE + number * 0x1000);
    assert_eq!(faults.request_all((0..20).map(page), "a liar", 0), 8);
    faults.on_page_in(page(3), 1);
    faults.on_refused(page(0), 1);
    assert!(faults.request(page(100), "test", 2).is_some(), "the resolved one makes room");
    assert_eq!((faults.state(page(3)), faults.state(page(0))), (None, Some(FaultState::Suppressed)));
    assert!(faults.request(page(101), "test", 2).is_some(), "then the suppressed one");
    assert_eq!(faults.request(page(102), "test", 2), None);
    assert_eq!(faults.open_count(), 8);
}

#[test]
fn a_process_takes_its_pages_along() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    let other = AddressContext { root: Pa(0x8000), ..guest.ctx(PAGE) };
    faults.request(guest.ctx(PAGE), "test", 0);
    let id = faults.request(guest.ctx(PAGE + 0x1000), "test", 0).expect("room");
    faults.suppress(id, 0).expect("the row is there");
    faults.request(other, "test", 0);
    guest.visit(&mut faults, CPU, &user(guest.root));
    faults.on_root_gone(guest.root);
    assert!(!faults.is_in_flight(CPU));
    assert_eq!(faults.open_pages(), IndexSet::from([other]));
    assert!(faults.suppressed_set().is_empty(), "a new process at this root starts afresh");
}

#[test]
fn who_asks_is_remembered_and_cleaned() {
    let guest = guest();
    let mut faults = FaultLoop::<InjectFaults>::new(POLICY);
    for name in ["a\u{1b}[31m", "b", "b", "c", "d", "e"] {
        faults.request(guest.ctx(PAGE), name, 0);
    }
    assert_eq!(faults.rows(0, |_| None)[0].asked_by, "a␛[31m, b, c and 2 more");
}
