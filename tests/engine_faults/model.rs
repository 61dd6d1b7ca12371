//! The fault loop against a naive model: random requests, answers of the guest, commands, lapses of time, visits of
//! vCPUs and refusals of the driver. `VMSCOPE_OPS` sets the number of operations (100,000 unless told otherwise).

use std::collections::{BTreeMap, BTreeSet};

use vmscope::engine::{
    addr::{AddressContext, Pa, Va, VcpuId},
    arch::amd64::{Amd64, Amd64Registers, ExceptionVector, Segment},
    faults::{FaultLoop, FaultPolicy, InjectFaults, WatchChange},
    session::VmiSession,
    snapshot::{FaultId, FaultState},
};

use crate::{
    UNSERVABLE, os,
    support::{Call, Rng, core},
};

const VCPUS: u64 = 2;
const ROOTS: u64 = 3;
const PAGES: u64 = 6;

/// A page in the model.
#[derive(Clone, Copy)]
struct Page {
    id: FaultId,
    state: FaultState,
    attempts: u32,
    vcpu: Option<VcpuId>,
    injected_at: u64,
    /// Given up by the user.
    sticky: bool,
    /// The user wants it injected.
    wanted: bool,
    /// The driver refused it: not before.
    not_before: u64,
}

impl Page {
    fn fresh(id: FaultId) -> Self {
        let state = FaultState::Pending;
        Self { id, state, attempts: 0, vcpu: None, injected_at: 0, sticky: false, wanted: false, not_before: 0 }
    }

    fn close(&mut self, state: FaultState) {
        self.state = state;
        self.wanted = false;
    }
}

/// What is to be injected next in an address space (`None`: the kernel's half): what the user wants, then the oldest.
fn due(model: &BTreeMap<AddressContext, Page>, space: Option<Pa>, policy: &FaultPolicy, now: u64) -> Option<FaultId> {
    let space_of = |ctx: &AddressContext| (ctx.va.0 >> 63 == 0).then_some(ctx.root);
    let is_due = |(ctx, page): &(&AddressContext, &Page)| {
        space_of(ctx) == space
            && page.state == FaultState::Pending
            && page.not_before <= now
            && (page.wanted || policy.automatic)
    };
    model.iter().filter(is_due).map(|(_, page)| (!page.wanted, page.id)).min().map(|(_, id)| id)
}

fn operations() -> u64 {
    std::env::var("VMSCOPE_OPS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

fn is_open(state: FaultState) -> bool {
    matches!(state, FaultState::Pending | FaultState::Injected)
}

#[test]
fn the_fault_loop_agrees_with_the_model() {
    for (seed, automatic, kernel_context) in [(1, true, false), (2, true, true), (3, false, true)] {
        let policy = FaultPolicy { automatic, kernel_context, max_attempts: 3, attempt_ns: 50, capacity: 1000 };
        run(seed, policy, operations() / 3);
    }
}

fn run(seed: u64, policy: FaultPolicy, steps: u64) {
    let rng = &mut Rng::new(seed);
    let vmi = core(8);
    let os = os();
    let mut faults = FaultLoop::<InjectFaults>::new(policy);
    let mut model = BTreeMap::<AddressContext, Page>::new();
    let mut watched = BTreeSet::new();
    let mut now = 0;

    for step in 0..steps {
        let half = if rng.percent(70) { 0x7f00_0000_0000 } else { 0xffff_8000_0000_0000 };
        let page = AddressContext::new(half + rng.below(PAGES) * 0x1000, rng.below(ROOTS) * 0x2000);
        let ctx = AddressContext { va: page.va + rng.below(0x1000), ..page };
        let vcpu = VcpuId(rng.below(VCPUS) as u16);
        let known = model.get(&page).copied();
        let before = known.map(|page| page.state);
        match rng.below(12) {
            0..3 => {
                let id = faults.request(ctx, "somebody", now).expect("room for all");
                match model.get_mut(&page) {
                    Some(old) if old.state == FaultState::Resolved => *old = Page::fresh(id),
                    Some(old) => assert_eq!(old.id, id, "step {step}: one row for a page"),
                    None => _ = model.insert(page, Page::fresh(id)),
                }
            }
            3 => {
                let expected = known.filter(|page| page.state != FaultState::Resolved && !page.sticky);
                let told =
                    if rng.percent(50) { faults.on_page_in(ctx, now) } else { faults.on_translation_ok(ctx, now) };
                assert_eq!(told, expected.map(|page| page.id), "step {step}");
                if told.is_some() {
                    model.entry(page).and_modify(|page| page.close(FaultState::Resolved));
                }
            }
            4 => {
                let told =
                    if rng.percent(50) { faults.on_refused(ctx, now) } else { faults.on_unservable(ctx, "x", now) };
                assert_eq!(told.is_some(), before.is_some_and(is_open), "step {step}");
                if told.is_some() {
                    model.entry(page).and_modify(|page| page.close(FaultState::Suppressed));
                }
            }
            5 => {
                now += rng.below(40);
                faults.tick(now);
                for page in model.values_mut().filter(|page| page.state == FaultState::Injected) {
                    if now - page.injected_at >= policy.attempt_ns {
                        match page.attempts < policy.max_attempts {
                            true => page.state = FaultState::Pending,
                            false => page.close(FaultState::Suppressed),
                        }
                    }
                }
            }
            6 => {
                let Some(old) = known else { continue };
                match rng.below(4) {
                    0 => {
                        let result = faults.retry(old.id, now);
                        assert_eq!(result.is_ok(), old.state != FaultState::Injected, "step {step}");
                        if result.is_ok() {
                            model.insert(page, Page { wanted: old.wanted, ..Page::fresh(old.id) });
                        }
                    }
                    1 => {
                        faults.suppress(old.id, now).expect("the row is there");
                        let given_up = Page { state: FaultState::Suppressed, sticky: true, wanted: false, ..old };
                        model.insert(page, given_up);
                    }
                    2 => {
                        faults.clear(old.id).expect("the row is there");
                        model.remove(&page);
                    }
                    _ => {
                        let may = page.va.0 >> 63 == 0 || policy.kernel_context;
                        let is_wanted = faults.want(old.id).is_ok();
                        assert_eq!(is_wanted, old.state == FaultState::Pending && may, "step {step}");
                        model.entry(page).and_modify(|page| page.wanted |= is_wanted);
                    }
                }
            }
            7 if rng.percent(10) => {
                faults.on_root_gone(page.root);
                model.retain(|other, _| other.root != page.root);
            }
            _ => {
                let user = rng.percent(60);
                let mut registers = Amd64Registers { cr3: page.root.0 + rng.below(2) * 0x1000, ..Default::default() };
                registers.cs = Segment { selector: if user { 0x33 } else { 0x10 }, base: 0, long: true };
                let interruptible = rng.percent(70);
                registers.gp.rflags = if interruptible { Amd64Registers::RFLAGS_IF } else { 0 };
                if rng.percent(15) {
                    vmi.driver().fail_nth_change(0);
                }
                let busy = faults.is_in_flight(vcpu);
                // What the kernel says that it would not serve is given up on the way.
                let space = if user { Some(page.root) } else { None };
                let is_safe = user || (interruptible && policy.kernel_context);
                let mut expected = None;
                if !busy && is_safe {
                    loop {
                        expected = due(&model, space, &policy, now);
                        let Some((at, row)) = model.iter_mut().find(|(_, row)| Some(row.id) == expected) else { break };
                        if !user || at.va != UNSERVABLE {
                            break;
                        }
                        row.close(FaultState::Suppressed);
                    }
                }
                let is_due = faults.is_due::<Amd64>(&registers, page.root, vcpu, now);
                let failures = vmi.driver().failures();
                let session = VmiSession::new(&vmi, &os);
                let result = faults.inject_next(session.with_registers(&registers), vcpu, now);
                vmi.driver().stop_failing();
                let refused = vmi.driver().failures() > failures;
                assert_eq!(result.is_err(), refused, "step {step}");
                let calls = vmi.driver().take_calls();
                let injected = result.ok().flatten();
                assert!(!busy || calls.is_empty(), "step {step}: one in flight per vCPU");
                assert_eq!(injected, expected.filter(|_| !refused), "step {step}: what is due is injected");
                assert!(is_due || expected.is_none(), "step {step}");
                if refused {
                    let row = model.values_mut().find(|row| Some(row.id) == expected).expect("something was due");
                    row.not_before = now + policy.attempt_ns / 16 + 1;
                }
                assert_eq!(calls.len(), usize::from(injected.is_some() || refused), "step {step}");
                for call in calls {
                    let Call::InjectInterrupt(on, interrupt) = call else { panic!("step {step}: {call:?}") };
                    let va = Va(interrupt.cr2 & !0xfff);
                    assert_eq!((on, interrupt.vector), (vcpu, ExceptionVector::PAGE_FAULT));
                    let kernel_half = va.0 >> 63 != 0;
                    assert_eq!(kernel_half, !user, "step {step}: the right half");
                    assert!(user || (interruptible && policy.kernel_context), "step {step}: a safe place");
                    assert_eq!(interrupt.error_code, Some(if user { 4 } else { 0 }));
                    let Some(id) = injected else { continue };
                    let (at, row) = model.iter_mut().find(|(_, row)| row.id == id).expect("known");
                    assert_eq!((at.va, row.state), (va, FaultState::Pending), "step {step}");
                    assert!(!user || at.root == page.root, "step {step}: the right address space");
                    row.state = FaultState::Injected;
                    row.attempts += 1;
                    row.vcpu = Some(vcpu);
                    row.injected_at = now;
                }
            }
        }

        // The books, the model and what follows from them.
        let rows = faults.rows(now, |_| None);
        assert_eq!(rows.len(), model.len(), "step {step}");
        let by_id: BTreeMap<FaultId, (AddressContext, Page)> =
            model.iter().map(|(&ctx, &page)| (page.id, (ctx, page))).collect();
        for row in &rows {
            let (ctx, page) = by_id[&row.id];
            assert_eq!(Va(row.address.0 & !0xfff), ctx.va, "step {step}");
            assert_eq!((row.state, row.attempts, row.vcpu), (page.state, page.attempts, page.vcpu), "step {step}");
            assert!(row.attempts <= policy.max_attempts && !row.note.is_empty());
        }
        let with = |wanted: fn(FaultState) -> bool| -> BTreeSet<AddressContext> {
            model.iter().filter(|(_, page)| wanted(page.state)).map(|(&ctx, _)| ctx).collect()
        };
        let suppressed: BTreeSet<_> = faults.suppressed_set().iter().copied().collect();
        assert_eq!(suppressed, with(|state| state == FaultState::Suppressed), "step {step}");
        let open: BTreeSet<_> = faults.open_pages().into_iter().collect();
        assert_eq!(open, with(is_open), "step {step}");
        assert_eq!(faults.open_count(), open.len());
        for change in faults.take_watch_changes() {
            match change {
                WatchChange::Watch(ctx) => assert!(watched.insert(ctx), "step {step}: {ctx} is watched already"),
                WatchChange::Unwatch(ctx) => assert!(watched.remove(&ctx), "step {step}: {ctx} is not watched"),
            }
        }
        assert_eq!(watched, open, "step {step}: what is waited for is watched");
        let flying = model.values().filter(|page| page.state == FaultState::Injected);
        let flying: Vec<VcpuId> = flying.filter_map(|page| page.vcpu).collect();
        assert_eq!(flying.len(), flying.iter().collect::<BTreeSet<_>>().len(), "step {step}: one for each vCPU");
        for vcpu in (0..VCPUS as u16).map(VcpuId) {
            assert_eq!(faults.is_in_flight(vcpu), flying.contains(&vcpu), "step {step}");
        }
        faults.take_changes();
    }
}
