//! One missing page: where it is in its life, and the sentence about it.

use crate::engine::{
    addr::{AddressContext, Pa, Va, VcpuId},
    snapshot::{self, Fault, FaultId, FaultState},
};

/// Why a page is in its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Nothing was tried yet.
    Waiting,
    /// So many injections brought nothing; there may be another one.
    Again { attempts: u32 },
    /// The driver would not inject.
    DriverRefused(String),
    /// A page fault is on its way.
    OnItsWay,
    /// The page is there, after so many injections.
    CameIn { injections: u32 },
    /// The guest's exception dispatch refused it.
    RefusedByGuest,
    /// So many injections brought nothing, and there will be no more.
    NoMore { attempts: u32 },
    /// It can never come.
    Unservable(String),
    /// The user does not want it.
    GivenUp,
}

impl Why {
    /// No page table can map the address.
    pub(super) fn unmappable() -> Self {
        Self::Unservable("not a canonical address, no page table can map it".into())
    }
}

/// A page that changed its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultChange {
    /// Its row.
    pub id: FaultId,
    /// The address that was asked for.
    pub ctx: AddressContext,
    /// The new state.
    pub state: FaultState,
    /// The vCPU of the last injection.
    pub vcpu: Option<VcpuId>,
    /// A sentence on the state.
    pub note: String,
}

/// Askers whose names are kept; more are counted.
const MAX_ASKERS: usize = 3;

pub(super) struct Record {
    pub(super) ctx: AddressContext,
    askers: Vec<String>,
    more_askers: u32,
    why: Why,
    /// Whether its state was ever news.
    told: bool,
    pub(super) attempts: u32,
    /// Whether the user asked for an injection; stands until the page came or was given up.
    pub(super) wanted: bool,
    pub(super) vcpu: Option<VcpuId>,
    asked_ns: u64,
    /// When it came into its state.
    pub(super) since_ns: u64,
    /// Not to be injected before.
    pub(super) not_before_ns: u64,
}

impl Record {
    pub(super) fn new(ctx: AddressContext, asked_by: &str, now_ns: u64) -> Self {
        let mut record = Self {
            ctx,
            askers: Vec::new(),
            more_askers: 0,
            why: Why::Waiting,
            told: false,
            attempts: 0,
            wanted: false,
            vcpu: None,
            asked_ns: now_ns,
            since_ns: now_ns,
            not_before_ns: 0,
        };
        record.ask(asked_by);
        record
    }

    /// Remembers who asks.
    pub(super) fn ask(&mut self, asked_by: &str) {
        let name = snapshot::clean(asked_by, 80);
        if self.askers.contains(&name) {
            return;
        }
        if self.askers.len() < MAX_ASKERS {
            self.askers.push(name);
        } else {
            self.more_askers = self.more_askers.saturating_add(1);
        }
    }

    /// Starts its life anew.
    pub(super) fn restart(&mut self, va: Va, now_ns: u64) {
        self.ctx.va = va;
        self.attempts = 0;
        self.vcpu = None;
        self.asked_ns = now_ns;
        self.not_before_ns = 0;
        self.told = false;
    }

    /// Puts it into a state; answers whether that is news.
    pub(super) fn set(&mut self, why: Why, now_ns: u64) -> bool {
        self.since_ns = now_ns;
        let news = !self.told || self.why != why;
        self.why = why;
        self.told = true;
        if !self.is_open() {
            self.wanted = false;
        }
        news
    }

    pub(super) fn state(&self) -> FaultState {
        match self.why {
            Why::Waiting | Why::Again { .. } | Why::DriverRefused(_) => FaultState::Pending,
            Why::OnItsWay => FaultState::Injected,
            Why::CameIn { .. } => FaultState::Resolved,
            Why::RefusedByGuest | Why::NoMore { .. } | Why::Unservable(_) | Why::GivenUp => FaultState::Suppressed,
        }
    }

    /// Whether it is waited for.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state(), FaultState::Pending | FaultState::Injected)
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.why == Why::GivenUp
    }

    fn note(&self, injects: bool) -> String {
        let times = |n: u32| if n == 1 { "1 injection".to_owned() } else { format!("{n} injections") };
        match &self.why {
            Why::Waiting if !injects => "waits for the guest to bring it in by itself".into(),
            Why::Waiting if self.ctx.va.0 >> 63 != 0 => "waits for the kernel to be at a safe place".into(),
            Why::Waiting => "waits for its process to run in user mode".into(),
            Why::Again { attempts } => format!("{} brought nothing, waits for another one", times(*attempts)),
            Why::DriverRefused(why) => format!("could not be injected, waits for another chance: {why}"),
            Why::OnItsWay => match self.vcpu {
                Some(vcpu) => format!("page fault on its way on vCPU {vcpu}"),
                None => "page fault on its way".into(),
            },
            Why::CameIn { injections: 0 } => "the guest brought it in by itself".into(),
            Why::CameIn { injections } => format!("came in after {}", times(*injections)),
            Why::RefusedByGuest => "refused by the guest's exception dispatch".into(),
            Why::NoMore { attempts } => format!("given up after {} without effect", times(*attempts)),
            Why::Unservable(why) => format!("cannot come: {why}"),
            Why::GivenUp => "given up by the user".into(),
        }
    }

    pub(super) fn change(&self, id: FaultId, injects: bool) -> FaultChange {
        FaultChange { id, ctx: self.ctx, state: self.state(), vcpu: self.vcpu, note: self.note(injects) }
    }

    pub(super) fn row(&self, id: FaultId, now_ns: u64, injects: bool, pid_of: impl Fn(Pa) -> Option<u32>) -> Fault {
        let until = if self.is_open() { now_ns } else { self.since_ns };
        let mut asked_by = self.askers.join(", ");
        if self.more_askers > 0 {
            asked_by += &format!(" and {} more", self.more_askers);
        }
        Fault {
            id,
            address: self.ctx.va,
            root: self.ctx.root,
            pid: pid_of(self.ctx.root),
            asked_by,
            state: self.state(),
            attempts: self.attempts,
            age_ns: until.saturating_sub(self.asked_ns),
            vcpu: self.vcpu,
            note: self.note(injects),
            missing: None,
        }
    }
}
