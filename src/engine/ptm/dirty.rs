//! Entries that were written to and not processed yet.

use std::collections::BTreeMap;

use super::hash::FastSet;
use crate::engine::addr::{Pa, VcpuId, View};

/// An entry in a view.
pub(super) type Entry = (u64, u16);

/// The name of an entry.
#[inline]
pub(super) fn entry(pa: Pa, view: View) -> Entry {
    (pa.0, view.0)
}

/// Marks by vCPU: that a vCPU is about to write says nothing about the entry until this vCPU has made its step.
#[derive(Default)]
pub(super) struct Dirty {
    by_vcpu: BTreeMap<VcpuId, FastSet<Entry>>,
    /// Entries known to have changed, or whose processing failed: due at the next call, whichever vCPU it is for.
    due: FastSet<Entry>,
}

impl Dirty {
    pub(super) fn mark(&mut self, vcpu: VcpuId, entry: Entry) {
        self.by_vcpu.entry(vcpu).or_default().insert(entry);
    }

    /// Makes an entry due, unless a vCPU's step will bring it up anyway.
    pub(super) fn note(&mut self, entry: Entry) {
        if !self.by_vcpu.values().any(|marks| marks.contains(&entry)) {
            self.due.insert(entry);
        }
    }

    /// Makes an entry due once more.
    pub(super) fn retry(&mut self, entry: Entry) {
        self.due.insert(entry);
    }

    /// What a vCPU marked, and what is due anyway.
    pub(super) fn take(&mut self, vcpu: VcpuId, entries: &mut Vec<Entry>) {
        self.take_due(entries);
        if let Some(marks) = self.by_vcpu.get_mut(&vcpu) {
            entries.extend(marks.drain());
        }
    }

    /// What is due anyway.
    pub(super) fn take_due(&mut self, entries: &mut Vec<Entry>) {
        entries.extend(self.due.drain());
    }

    pub(super) fn clear(&mut self) {
        self.by_vcpu.clear();
        self.due.clear();
    }
}
