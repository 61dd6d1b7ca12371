//! The fault loop: the life of every page that a read or a breakpoint needed and did not find.
//!
//! asked for → pending → injected (a vCPU, an attempt) → resolved; or suppressed, because the guest refused the page,
//! the attempts ran out, no page table could map it, or the user gave it up. Where a driver cannot inject, a page stays
//! pending until the guest brings it in by itself.
//!
//! Imports the session, the OS layer's trait and below; knows neither breakpoints nor the page table monitor and tells
//! its caller what to watch ([`WatchChange`]). Start at [`FaultLoop`]; `record` is one page, `inject` how and when a
//! page fault is injected. The invariants are in `docs/engine.md`.

mod inject;
mod record;

pub use self::{
    inject::{Delivers, FaultAdapter, FaultDelivery, InjectFaults, InjectionPoint, WaitForGuest},
    record::FaultChange,
};

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    marker::PhantomData,
};

use indexmap::IndexSet;

use self::record::{Record, Why};
use super::{
    addr::{AddressContext, Pa, Va, VcpuId},
    arch::amd64::is_canonical,
    error::VmiError,
    snapshot::{self, Fault, FaultId, FaultState},
};

/// Bounds and permissions of a [`FaultLoop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPolicy {
    /// Whether pages are injected without being asked one by one ([`FaultLoop::want`]).
    pub automatic: bool,
    /// Whether pages of the kernel's half may be injected into interruptible kernel code. Only for kernels that page
    /// themselves; others take it for a bug of their own.
    pub kernel_context: bool,
    /// Injections after which a page is given up.
    pub max_attempts: u32,
    /// How long an injected fault may take in nanoseconds of the driver's clock, before the attempt counts as failed.
    pub attempt_ns: u64,
    /// How many pages are kept. When they are full, resolved ones are forgotten first, then suppressed ones; when all
    /// are open, no more can be asked for.
    pub capacity: usize,
}

impl Default for FaultPolicy {
    fn default() -> Self {
        Self { automatic: true, kernel_context: false, max_attempts: 3, attempt_ns: 1_000_000_000, capacity: 4096 }
    }
}

/// What the owner of the page table monitor is to do for the fault loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchChange {
    /// Monitor this page. If it turns out to be mapped already: [`FaultLoop::on_translation_ok`]; if it cannot be
    /// monitored: [`FaultLoop::on_unservable`].
    Watch(AddressContext),
    /// Stop monitoring it.
    Unwatch(AddressContext),
}

/// The missing pages of a guest. `Delivery` is how a page fault gets into the guest: [`InjectFaults`], or
/// [`WaitForGuest`] for drivers that cannot. Times are nanoseconds of the driver's clock.
///
/// Everything is by page (4 KiB) and address space: a second request for a page joins the first one.
pub struct FaultLoop<Delivery = InjectFaults> {
    policy: FaultPolicy,
    records: BTreeMap<FaultId, Record>,
    by_page: HashMap<AddressContext, FaultId>,
    /// Pending pages by address space; `None` is the kernel's half, which is in every one.
    pending: BTreeMap<Option<Pa>, BTreeSet<FaultId>>,
    in_flight: BTreeMap<VcpuId, FaultId>,
    suppressed: IndexSet<AddressContext>,
    watched: BTreeSet<AddressContext>,
    watch_changes: Vec<WatchChange>,
    changes: VecDeque<FaultChange>,
    next_id: u64,
    injecting: bool,
    delivery: PhantomData<Delivery>,
}

/// How many changes are kept for somebody who does not ask for them.
const MAX_CHANGES: usize = 4096;

/// The page that an address lies in.
fn page_of(ctx: AddressContext) -> AddressContext {
    AddressContext { va: Va(ctx.va.0 & !0xfff), ..ctx }
}

/// Where a page is looked for when a vCPU is at a good place: the kernel's half is in every address space.
fn space_of(page: AddressContext) -> Option<Pa> {
    (page.va.0 >> 63 == 0).then_some(page.root)
}

impl<Delivery: Delivers> FaultLoop<Delivery> {
    /// A loop without pages.
    pub fn new(policy: FaultPolicy) -> Self {
        Self {
            policy,
            records: BTreeMap::new(),
            by_page: HashMap::new(),
            pending: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            suppressed: IndexSet::new(),
            watched: BTreeSet::new(),
            watch_changes: Vec::new(),
            changes: VecDeque::new(),
            next_id: 1,
            injecting: true,
            delivery: PhantomData,
        }
    }

    /// The bounds and permissions.
    pub fn policy(&self) -> &FaultPolicy {
        &self.policy
    }

    /// Whether pages may be injected from now on: a session may be read-only, or its guest of a kind for which the driver
    /// cannot. Where they may not, they are waited for.
    pub fn set_injecting(&mut self, injecting: bool) {
        self.injecting = injecting;
    }

    /// Whether pages are injected.
    fn injects(&self) -> bool {
        Delivery::INJECTS && self.injecting
    }

    /// Whether a page may ever be injected: one of the kernel's half only where the policy allows it.
    fn may_ever_inject(&self, ctx: AddressContext) -> bool {
        self.injects() && (self.policy.kernel_context || space_of(ctx).is_some())
    }

    /// Asks for the page of an address, under the root that its process is known by (`VmiOs::process_root`). A page
    /// that is open already, or suppressed, keeps its state; one that was there before is asked for anew. `None` when
    /// as many pages are open as may be.
    pub fn request(&mut self, ctx: AddressContext, asked_by: &str, now_ns: u64) -> Option<FaultId> {
        let page = page_of(ctx);
        if let Some(&id) = self.by_page.get(&page) {
            let record = self.records.get_mut(&id)?;
            record.ask(asked_by);
            if record.state() == FaultState::Resolved {
                record.restart(ctx.va, now_ns);
                self.set(id, Why::Waiting, now_ns);
            }
            return Some(id);
        }
        if self.records.len() >= self.policy.capacity && !self.make_room() {
            return None;
        }
        let id = FaultId(self.next_id);
        self.next_id += 1;
        self.records.insert(id, Record::new(ctx, asked_by, now_ns));
        self.by_page.insert(page, id);
        // Canonical or not does not depend on the guest's levels for an address that is not even with five.
        let why = if is_canonical(ctx.va, 5) { Why::Waiting } else { Why::unmappable() };
        self.set(id, why, now_ns);
        Some(id)
    }

    /// Asks for several pages; answers how many of them could be taken on.
    pub fn request_all(
        &mut self,
        pages: impl IntoIterator<Item = AddressContext>,
        asked_by: &str,
        now_ns: u64,
    ) -> usize {
        pages.into_iter().filter_map(|ctx| self.request(ctx, asked_by, now_ns)).count()
    }

    /// Forgets the oldest page that nobody waits for; resolved ones first.
    fn make_room(&mut self) -> bool {
        let oldest = |state| self.records.iter().find(|(_, record)| record.state() == state).map(|(&id, _)| id);
        match oldest(FaultState::Resolved).or_else(|| oldest(FaultState::Suppressed)) {
            Some(id) => {
                self.forget(id);
                true
            }
            None => false,
        }
    }

    /// The one place where a page changes its state: all indices follow it here.
    fn set(&mut self, id: FaultId, why: Why, now_ns: u64) {
        let Some(ctx) = self.records.get(&id).map(|record| record.ctx) else { return };
        let injects = self.may_ever_inject(ctx);
        let Some(record) = self.records.get_mut(&id) else { return };
        let page = page_of(ctx);
        if record.set(why, now_ns) {
            if self.changes.len() == MAX_CHANGES {
                self.changes.pop_front();
            }
            self.changes.push_back(record.change(id, injects));
        }
        let state = record.state();
        self.index(id, page, Some(state));
    }

    /// Makes every index agree with a page's state; `None` is a page that is forgotten.
    fn index(&mut self, id: FaultId, page: AddressContext, state: Option<FaultState>) {
        let space = space_of(page);
        if state == Some(FaultState::Pending) {
            self.pending.entry(space).or_default().insert(id);
        } else if let Some(ids) = self.pending.get_mut(&space) {
            ids.remove(&id);
            if ids.is_empty() {
                self.pending.remove(&space);
            }
        }
        if state != Some(FaultState::Injected) {
            self.in_flight.retain(|_, flying| *flying != id);
        }
        if state == Some(FaultState::Suppressed) {
            self.suppressed.insert(page);
        } else {
            self.suppressed.shift_remove(&page);
        }
        let open = matches!(state, Some(FaultState::Pending | FaultState::Injected));
        if open && self.watched.insert(page) {
            self.watch_changes.push(WatchChange::Watch(page));
        } else if !open && self.watched.remove(&page) {
            self.watch_changes.push(WatchChange::Unwatch(page));
        }
    }

    fn forget(&mut self, id: FaultId) {
        if let Some(record) = self.records.remove(&id) {
            let page = page_of(record.ctx);
            self.by_page.remove(&page);
            self.index(id, page, None);
        }
    }

    // --- What the guest did -----------------------------------------------------------------------------------------

    /// The page of an address was mapped. Answers its row, if it was waited for.
    pub fn on_page_in(&mut self, ctx: AddressContext, now_ns: u64) -> Option<FaultId> {
        self.came(ctx, now_ns)
    }

    /// A translation of an address succeeded: its page is there. Answers its row, if it was waited for.
    pub fn on_translation_ok(&mut self, ctx: AddressContext, now_ns: u64) -> Option<FaultId> {
        self.came(ctx, now_ns)
    }

    fn came(&mut self, ctx: AddressContext, now_ns: u64) -> Option<FaultId> {
        let id = *self.by_page.get(&page_of(ctx))?;
        let record = self.records.get(&id)?;
        // What the user gave up stays given up: the page may go again.
        if record.state() == FaultState::Resolved || record.is_given_up() {
            return None;
        }
        let why = Why::CameIn { injections: record.attempts };
        self.set(id, why, now_ns);
        Some(id)
    }

    /// The guest's own exception dispatch refused the page (`VmiOs::refused_fault`): it is asked for no more. Answers
    /// its row, if it was waited for.
    pub fn on_refused(&mut self, ctx: AddressContext, now_ns: u64) -> Option<FaultId> {
        self.close(ctx, Why::RefusedByGuest, now_ns)
    }

    /// The page can never come, for a reason that is said in the row. Answers its row, if it was waited for.
    pub fn on_unservable(&mut self, ctx: AddressContext, reason: &str, now_ns: u64) -> Option<FaultId> {
        self.close(ctx, Why::Unservable(snapshot::clean(reason, 200)), now_ns)
    }

    fn close(&mut self, ctx: AddressContext, why: Why, now_ns: u64) -> Option<FaultId> {
        let id = *self.by_page.get(&page_of(ctx))?;
        if !self.records.get(&id)?.is_open() {
            return None;
        }
        self.set(id, why, now_ns);
        Some(id)
    }

    /// An address space is gone: nothing of it is waited for, and a new one at the same root starts afresh.
    pub fn on_root_gone(&mut self, root: Pa) {
        let gone: Vec<FaultId> =
            self.records.iter().filter(|(_, record)| record.ctx.root == root).map(|(&id, _)| id).collect();
        for id in gone {
            self.forget(id);
        }
    }

    /// Lets time pass: an injected fault that took too long is tried again, or given up after the last attempt.
    pub fn tick(&mut self, now_ns: u64) {
        let late: Vec<FaultId> = self.in_flight.values().copied().filter(|id| self.is_late(*id, now_ns)).collect();
        for id in late {
            let attempts = self.records.get(&id).map_or(0, |record| record.attempts);
            let why =
                if attempts < self.policy.max_attempts { Why::Again { attempts } } else { Why::NoMore { attempts } };
            self.set(id, why, now_ns);
        }
    }

    fn is_late(&self, id: FaultId, now_ns: u64) -> bool {
        self.records.get(&id).is_some_and(|record| now_ns.saturating_sub(record.since_ns) >= self.policy.attempt_ns)
    }

    // --- What the user wants ----------------------------------------------------------------------------------------

    fn row(&mut self, id: FaultId) -> Result<&mut Record, VmiError> {
        self.records
            .get_mut(&id)
            .ok_or_else(|| VmiError::Invalid(format!("there is no fault {id}: it has been cleared")))
    }

    /// Asks once more, whatever became of the page before, with a fresh count of attempts. Answers which one it is.
    ///
    /// # Errors
    /// A sentence for the user: there is no such row, or a page fault is on its way.
    pub fn retry(&mut self, id: FaultId, now_ns: u64) -> Result<AddressContext, VmiError> {
        let record = self.row(id)?;
        if record.state() == FaultState::Injected {
            return Err(VmiError::Invalid(format!(
                "cannot ask again for {}: a page fault is on its way through the guest",
                record.ctx
            )));
        }
        if !is_canonical(record.ctx.va, 5) {
            return Err(VmiError::Invalid(format!(
                "cannot ask for {}: it is not a canonical address, so no page table can map it",
                record.ctx
            )));
        }
        record.restart(record.ctx.va, now_ns);
        let ctx = record.ctx;
        self.set(id, Why::Waiting, now_ns);
        Ok(ctx)
    }

    /// Never asks for the page again, until [`FaultLoop::retry`].
    ///
    /// # Errors
    /// A sentence for the user: there is no such row.
    pub fn suppress(&mut self, id: FaultId, now_ns: u64) -> Result<(), VmiError> {
        self.row(id)?;
        self.set(id, Why::GivenUp, now_ns);
        Ok(())
    }

    /// Forgets the page and all about it.
    ///
    /// # Errors
    /// A sentence for the user: there is no such row.
    pub fn clear(&mut self, id: FaultId) -> Result<(), VmiError> {
        self.row(id)?;
        self.forget(id);
        Ok(())
    }

    // --- What is known ----------------------------------------------------------------------------------------------

    /// The pages that are asked for no more: for [`VmiProber::new`](crate::engine::session::VmiProber::new).
    pub fn suppressed_set(&self) -> &IndexSet<AddressContext> {
        &self.suppressed
    }

    /// The pages that are waited for, oldest first: for `VmiOs::refused_fault`.
    pub fn open_pages(&self) -> IndexSet<AddressContext> {
        self.records.values().filter(|record| record.is_open()).map(|record| page_of(record.ctx)).collect()
    }

    /// Whether any page of an address space was asked for.
    pub fn has_pages_in(&self, root: Pa) -> bool {
        self.records.values().any(|record| record.ctx.root == root)
    }

    /// How many pages are waited for.
    pub fn open_count(&self) -> usize {
        self.watched.len()
    }

    /// Whether a vCPU has a fault on its way.
    pub fn is_in_flight(&self, vcpu: VcpuId) -> bool {
        self.in_flight.contains_key(&vcpu)
    }

    /// The state of the page of an address.
    pub fn state(&self, ctx: AddressContext) -> Option<FaultState> {
        self.records.get(self.by_page.get(&page_of(ctx))?).map(Record::state)
    }

    /// The rows for the screen, oldest first; `pid_of` names the process of a root.
    pub fn rows(&self, now_ns: u64, pid_of: impl Fn(Pa) -> Option<u32>) -> Vec<Fault> {
        let row =
            |(&id, record): (&FaultId, &Record)| record.row(id, now_ns, self.may_ever_inject(record.ctx), &pid_of);
        self.records.iter().map(row).collect()
    }

    /// The changes of state since the last call, oldest first; at most the last 4096.
    pub fn take_changes(&mut self) -> Vec<FaultChange> {
        self.changes.drain(..).collect()
    }

    /// What is to be done with the page table monitor since the last call, in order. Every page is watched once.
    pub fn take_watch_changes(&mut self) -> Vec<WatchChange> {
        std::mem::take(&mut self.watch_changes)
    }
}
