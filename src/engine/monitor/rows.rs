//! The rows of the breakpoint and page-table panes: what the user asked for, whatever the guest's pages do.

use std::collections::VecDeque;

use super::{log::Rates, platform::STORM_SECONDS};
use crate::engine::{
    addr::{AddressContext, Pa, View},
    snapshot::{Breakpoint, BreakpointId, BreakpointState, Hit, ProcessKey, Scope, Table, TableId, WalkEntry},
};

/// How many hits a row remembers.
const HITS: usize = 32;
/// How many seconds of rates a row shows.
const RATE_SECONDS: usize = 20;

fn recent() -> Rates {
    Rates::new(STORM_SECONDS as usize - 1)
}

/// A breakpoint as the user wants it.
#[derive(Debug)]
pub(super) struct BreakpointRow {
    pub(super) id: BreakpointId,
    pub(super) symbol: String,
    pub(super) ctx: AddressContext,
    pub(super) scope: Scope,
    /// The process of a scope that is one.
    pub(super) owner: Option<ProcessKey>,
    pub(super) tag: String,
    pub(super) view: View,
    pub(super) state: BreakpointState,
    pub(super) pa: Option<Pa>,
    /// Whether the guest can see it by reading its own code.
    pub(super) visible: bool,
    pub(super) hits: u64,
    pub(super) rates: Rates,
    /// Hits since it was armed, as far as they tell a storm.
    recent: Rates,
    pub(super) last_hits: VecDeque<Hit>,
    pub(super) error: Option<String>,
    /// Whether it waits for its module, and nothing of it is in the guest.
    pub(super) unloaded: bool,
}

impl BreakpointRow {
    pub(super) fn new(id: BreakpointId, symbol: String, ctx: AddressContext, scope: Scope, tag: String) -> Self {
        Self {
            id,
            symbol,
            ctx,
            scope,
            owner: None,
            tag,
            view: View(0),
            state: BreakpointState::Disabled,
            pa: None,
            visible: false,
            hits: 0,
            rates: Rates::new(RATE_SECONDS),
            recent: recent(),
            last_hits: VecDeque::new(),
            error: None,
            unloaded: false,
        }
    }

    /// It waits for its module to be loaded.
    pub(super) fn await_module(&mut self, why: String) {
        self.armed();
        self.pa = None;
        self.error = Some(why);
        self.unloaded = true;
    }

    /// Whether it is meant to be in the guest.
    pub(super) fn is_on(&self) -> bool {
        matches!(self.state, BreakpointState::Active | BreakpointState::Pending)
    }

    /// It is in the guest now, or waits for its page; what was before says nothing on what it does from now on.
    pub(super) fn armed(&mut self) {
        self.state = BreakpointState::Pending;
        self.error = None;
        self.recent = recent();
    }

    /// Its process is gone; nothing of it is in the guest.
    pub(super) fn end(&mut self, why: String) {
        self.state = BreakpointState::Ended;
        self.pa = None;
        self.error = Some(why);
    }

    /// Another process came by, which costs the guest as much as a hit does.
    pub(super) fn passed_by(&mut self, at_ns: u64) {
        self.recent.count(at_ns);
    }

    /// Whether it has hit more often than so many times a second.
    pub(super) fn is_storm(&self, limit: u32) -> bool {
        self.recent.total() > u64::from(limit) * u64::from(STORM_SECONDS)
    }

    /// What to call it in a sentence.
    pub(super) fn name(&self) -> String {
        if self.symbol.is_empty() { self.ctx.va.to_string() } else { self.symbol.clone() }
    }

    pub(super) fn record(&mut self, hit: Hit) {
        self.hits += 1;
        self.rates.count(hit.at_ns);
        self.recent.count(hit.at_ns);
        if self.last_hits.len() == HITS {
            self.last_hits.pop_front();
        }
        self.last_hits.push_back(hit);
    }

    pub(super) fn shown(&mut self, clock_ns: u64) -> Breakpoint {
        self.rates.advance(clock_ns);
        Breakpoint {
            id: self.id,
            symbol: self.symbol.clone(),
            address: self.ctx.va,
            scope: self.scope,
            view: self.view,
            pa: self.pa,
            state: self.state,
            visible: self.visible,
            tag: self.tag.clone(),
            hits: self.hits,
            rates: self.rates.to_vec(),
            last_hits: self.last_hits.iter().cloned().collect(),
            error: self.error.clone(),
        }
    }
}

/// A monitored address as the user wants it.
#[derive(Debug)]
pub(super) struct TableRow {
    pub(super) id: TableId,
    pub(super) symbol: String,
    pub(super) ctx: AddressContext,
    pub(super) pid: Option<u32>,
    /// The process that `pid` named.
    pub(super) owner: Option<ProcessKey>,
    /// Why it is over: its process is gone.
    pub(super) ended: Option<String>,
    pub(super) view: View,
    pub(super) tag: String,
    pub(super) changes: u64,
    pub(super) last_change_ns: Option<u64>,
    /// The walk that was shown last, and the entries before their last change.
    pub(super) walk: Vec<WalkEntry>,
}

impl TableRow {
    /// Takes a new walk, remembering what each changed entry was before.
    pub(super) fn update_walk(&mut self, mut walk: Vec<WalkEntry>) {
        for entry in &mut walk {
            let before = self.walk.iter().find(|old| old.entry_pa == entry.entry_pa && old.level == entry.level);
            entry.previous =
                before.and_then(|old| if old.entry == entry.entry { old.previous } else { Some(old.entry) });
        }
        self.walk = walk;
    }

    pub(super) fn shown(&self, mapped: Option<(Pa, u64)>) -> Table {
        Table {
            id: self.id,
            address: self.ctx.va,
            symbol: self.symbol.clone(),
            root: self.ctx.root,
            pid: self.pid,
            view: self.view,
            tag: self.tag.clone(),
            paged_in: mapped.is_some(),
            pa: mapped.map(|(pa, _)| pa),
            page_bytes: mapped.map_or(0, |(_, bytes)| bytes),
            changes: self.changes,
            last_change_ns: self.last_change_ns,
            ended: self.ended.clone(),
            walk: self.walk.clone(),
            missing: None,
        }
    }
}
