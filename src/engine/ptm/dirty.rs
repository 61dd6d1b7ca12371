//! Entries that were written to and not processed yet.

use std::collections::BTreeMap;

use crate::engine::addr::{Pa, VcpuId, View};

/// A written place in a view, as a store began there; what it reached is found when it is processed.
pub(super) type Mark = (Pa, View);

/// A list in which a place that is there many times takes no more room than twice.
#[derive(Default)]
struct Marks(Vec<Mark>);

impl Marks {
    fn push(&mut self, mark: Mark) {
        if self.0.last() == Some(&mark) {
            return;
        }
        if self.0.len() == self.0.capacity() {
            self.0.sort_unstable();
            self.0.dedup();
            // At least half of the room is free after this, so that sorting stays rare.
            self.0.reserve(self.0.len() + 16);
        }
        self.0.push(mark);
    }
}

/// Marks by vCPU: that a vCPU is about to write says nothing about the entry until this vCPU has made its step.
#[derive(Default)]
pub(super) struct Dirty {
    by_vcpu: BTreeMap<VcpuId, Marks>,
    /// The last store of each vCPU that reached no monitored entry. It may be under way still when one of the entries that
    /// it reaches comes to be monitored.
    passing: BTreeMap<VcpuId, Mark>,
    /// Entries known to have changed, or whose processing failed: due at the next call, whichever vCPU it is for.
    due: Marks,
}

impl Dirty {
    pub(super) fn mark(&mut self, vcpu: VcpuId, mark: Mark) {
        self.by_vcpu.entry(vcpu).or_default().push(mark);
    }

    /// Notes a store that reaches no monitored entry.
    pub(super) fn pass(&mut self, vcpu: VcpuId, mark: Mark) {
        self.passing.insert(vcpu, mark);
    }

    /// Makes marks of the stores that passed and reach a monitored entry by now, as `reaches` says.
    pub(super) fn mark_passing(&mut self, reaches: impl Fn(Mark) -> bool) {
        let Self { by_vcpu, passing, .. } = self;
        passing.retain(|&vcpu, &mut mark| {
            let is_reached = reaches(mark);
            if is_reached {
                by_vcpu.entry(vcpu).or_default().push(mark);
            }
            !is_reached
        });
    }

    /// Makes an entry due, unless a vCPU's step will bring it up anyway; `reaches` says whether a mark does.
    pub(super) fn note(&mut self, entry: Mark, reaches: impl Fn(Mark) -> bool) {
        if !self.by_vcpu.values().flat_map(|marks| &marks.0).any(|&mark| reaches(mark)) {
            self.due.push(entry);
        }
    }

    /// Makes an entry due once more.
    pub(super) fn retry(&mut self, entry: Mark) {
        self.due.push(entry);
    }

    /// What a vCPU marked, and what is due anyway.
    pub(super) fn take(&mut self, vcpu: VcpuId, marks: &mut Vec<Mark>) {
        marks.append(&mut self.due.0);
        if let Some(own) = self.by_vcpu.get_mut(&vcpu) {
            marks.append(&mut own.0);
        }
        // It has made its step.
        self.passing.remove(&vcpu);
    }

    /// Forgets what is due anyway: everything is about to be looked at.
    pub(super) fn clear_due(&mut self) {
        self.due.0.clear();
    }

    pub(super) fn clear(&mut self) {
        self.by_vcpu.clear();
        self.passing.clear();
        self.clear_due();
    }
}
