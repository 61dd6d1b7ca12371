//! The fault loop against a naive model: random requests, answers of the guest, commands, lapses of time, visits of
//! vCPUs and refusals of the driver. `VMSCOPE_OPS` sets the number of operations (100,000 unless told otherwise).

use std::collections::{BTreeMap, BTreeSet};

use vmscope::engine::{
    addr::{AddressContext, Va, VcpuId},
    arch::amd64::{Amd64Registers, ExceptionVector, Segment},
    faults::{FaultLoop, FaultPolicy, InjectFaults, WatchChange},
    session::VmiSession,
    snapshot::{FaultId, FaultState},
};

use crate::{
    Os,
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
    let os = Os(Default::default());
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
                let fresh =
                    Page { id, state: FaultState::Pending, attempts: 0, vcpu: None, injected_at: 0, sticky: false };
                match model.get_mut(&page) {
                    Some(old) if old.state == FaultState::Resolved => *old = fresh,
                    Some(old) => assert_eq!(old.id, id, "step {step}: one row for a page"),
                    None => _ = model.insert(page, fresh),
                }
            }
            3 => {
                let expected = known.filter(|page| page.state != FaultState::Resolved && !page.sticky);
                let told =
                    if rng.percent(50) { faults.on_page_in(ctx, now) } else { faults.on_translation_ok(ctx, now) };
                assert_eq!(told, expected.map(|page| page.id), "step {step}");
                if told.is_some() {
                    model.entry(page).and_modify(|page| page.state = FaultState::Resolved);
                }
            }
            4 => {
                let told =
                    if rng.percent(50) { faults.on_refused(ctx, now) } else { faults.on_unservable(ctx, "x", now) };
                assert_eq!(told.is_some(), before.is_some_and(is_open), "step {step}");
                if told.is_some() {
                    model.entry(page).and_modify(|page| page.state = FaultState::Suppressed);
                }
            }
            5 => {
                now += rng.below(40);
                faults.tick(now);
                for page in model.values_mut().filter(|page| page.state == FaultState::Injected) {
                    if now - page.injected_at >= policy.attempt_ns {
                        let again = page.attempts < policy.max_attempts;
                        page.state = if again { FaultState::Pending } else { FaultState::Suppressed };
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
                            let anew =
                                Page { state: FaultState::Pending, attempts: 0, vcpu: None, sticky: false, ..old };
                            model.insert(page, anew);
                        }
                    }
                    1 => {
                        faults.suppress(old.id, now).expect("the row is there");
                        model.insert(page, Page { state: FaultState::Suppressed, sticky: true, ..old });
                    }
                    2 => {
                        faults.clear(old.id).expect("the row is there");
                        model.remove(&page);
                    }
                    _ => assert_eq!(faults.want(old.id).is_ok(), old.state == FaultState::Pending, "step {step}"),
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
                let failures = vmi.driver().failures();
                let session = VmiSession::new(&vmi, &os);
                let result = faults.inject_next(session.with_registers(&registers), vcpu, now);
                vmi.driver().stop_failing();
                let refused = vmi.driver().failures() > failures;
                assert_eq!(result.is_err(), refused, "step {step}");
                let calls = vmi.driver().take_calls();
                let injected = result.ok().flatten();
                assert!(!busy || calls.is_empty(), "step {step}: one in flight per vCPU");
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
