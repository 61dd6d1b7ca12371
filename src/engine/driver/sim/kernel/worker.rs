//! The system's worker thread: it trims memory, deletes ended processes, checks that the kernel's code is as it was
//! written, and now and then changes some of it itself.

use std::collections::VecDeque;

use super::{
    Kernel,
    code::{CHECKED_BYTES, PATCHES, checksum, own},
};
use crate::engine::driver::sim::memory::Memory;

/// Time between two trims, integrity checks, patches, swaps.
const TRIM_NS: u64 = 20_000_000;
const CHECK_NS: u64 = 50_000_000;
const PATCH_NS: u64 = 1_500_000_000;
const SWAP_NS: u64 = 400_000_000;

/// Routines that one check reads.
const ROUTINES_AT_ONCE: u64 = 8;

/// A routine whose code is checked.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    /// Bytes from the image's base.
    pub(super) rva: u64,
    /// What it should read.
    pub(super) bytes: [u8; CHECKED_BYTES as usize],
}

/// The worker's plans.
#[derive(Debug)]
pub(super) struct Worker {
    /// Virtual and physical address of the image.
    base: u64,
    pa: u64,
    checked: Vec<Checked>,
    position: u64,
    /// Where the kernel changes its own code, from the image's base, and which form is there.
    patched_at: u64,
    form: usize,
    /// Ended processes: when they go, their objects.
    deletions: VecDeque<(u64, u64)>,
    next_trim: u64,
    next_check: u64,
    next_patch: u64,
    next_swap: u64,
    tampers: u64,
    patches: u64,
    /// A changed routine was found and not told of yet.
    alarm: bool,
    told: bool,
}

impl Worker {
    pub(super) fn new(memory: &mut Memory, (base, pa): (u64, u64), routines: &[u64], patched_at: u64) -> Self {
        let checked = routines
            .iter()
            .map(|&rva| {
                let mut bytes = [0; CHECKED_BYTES as usize];
                let _ = memory.read(pa + rva, &mut bytes);
                Checked { rva, bytes }
            })
            .collect();
        let worker = Self {
            base,
            pa,
            checked,
            position: 0,
            patched_at,
            form: 0,
            deletions: VecDeque::new(),
            next_trim: TRIM_NS,
            next_check: CHECK_NS,
            next_patch: PATCH_NS,
            next_swap: SWAP_NS,
            tampers: 0,
            patches: 0,
            alarm: false,
            told: false,
        };
        worker.write_table(memory);
        worker
    }

    /// The table that the check compares with: address and checksum of every routine.
    fn write_table(&self, memory: &mut Memory) {
        for (index, checked) in self.checked.iter().enumerate() {
            let at = self.pa + own::CHECKED + index as u64 * 16;
            memory.write_u64(at, self.base + checked.rva);
            memory.write_u64(at + 8, checksum(&checked.bytes));
        }
    }

    pub(super) fn tampers(&self) -> u64 {
        self.tampers
    }

    pub(super) fn patches(&self) -> u64 {
        self.patches
    }

    pub(super) fn delete_at(&mut self, at: u64, object: u64) {
        self.deletions.push_back((at, object));
    }

    pub(super) fn tampered(&mut self) {
        self.tampers += 1;
        self.alarm = true;
    }

    /// What the kernel writes into its own code next, and where.
    pub(super) fn patch(&self) -> (u64, u64) {
        let bytes = PATCHES.get(1 - self.form).copied().unwrap_or_default();
        (u64::from(u16::from_le_bytes(bytes)), self.base + self.patched_at)
    }

    /// It has been written: that is how the code should read from now on.
    pub(super) fn patched(&mut self, memory: &mut Memory) {
        self.form = 1 - self.form;
        self.patches += 1;
        let bytes = PATCHES.get(self.form).copied().unwrap_or_default();
        for checked in &mut self.checked {
            for (i, byte) in bytes.iter().enumerate() {
                let at = (self.patched_at + i as u64).wrapping_sub(checked.rva) as usize;
                if let Some(place) = checked.bytes.get_mut(at) {
                    *place = *byte;
                }
            }
        }
        self.write_table(memory);
    }
}

impl Kernel {
    /// What the worker does next: RAX, RCX, RDX, R8, R9 for its code.
    pub(super) fn work(&mut self, memory: &mut Memory, vcpu: usize, now: u64) -> (u64, u64, u64, u64, u64) {
        self.finish_write_out(memory);
        let call = |routine: u64, first: u64, second: u64| (2, routine, 0, first, second);
        let routine = |kernel: &Self, name: &str| kernel.base + kernel.facts.symbol(name).unwrap_or(0);

        if std::mem::take(&mut self.worker.alarm) && !std::mem::replace(&mut self.worker.told, true) {
            let made = self.make_process(memory, ("TAMPERED.exe", None, 4), None, (1, false), now);
            if let Some(process) = made.ok().and_then(|place| self.process(place)) {
                return call(routine(self, "PspInsertProcess"), process.object, 0);
            }
        }
        if let Some(&(at, object)) = self.worker.deletions.front()
            && at <= now
        {
            self.worker.deletions.pop_front();
            return call(routine(self, "PspProcessDelete"), object, 0);
        }
        if self.worker.next_check <= now {
            self.worker.next_check = now + CHECK_NS;
            let count = self.worker.checked.len() as u64;
            let first = self.worker.position;
            let some = ROUTINES_AT_ONCE.min(count - first);
            self.worker.position = (first + some) % count.max(1);
            return call(routine(self, "FsRtlMdlReadCompleteDevEx"), first, some);
        }
        if self.worker.next_patch <= now {
            self.worker.next_patch = now + PATCH_NS;
            return call(routine(self, "KeBalanceSetManager"), 0, 0);
        }
        let store = |kernel: &Self, (at, value): (u64, u64)| (1, value, kernel.direct + at, 0, 0);
        if let Some(change) = self.swap(memory) {
            return store(self, change);
        }
        if self.worker.next_swap <= now {
            self.worker.next_swap = now + SWAP_NS;
            self.choose_swap();
        }
        if self.worker.next_trim <= now {
            self.worker.next_trim = now + TRIM_NS;
            if let Some(change) = self.trim(memory, now) {
                return store(self, change);
            }
        }
        let deletion = self.worker.deletions.front().map_or(u64::MAX, |&(at, _)| at);
        let w = &self.worker;
        let next = w.next_check.min(w.next_patch).min(w.next_trim).min(w.next_swap).min(deletion);
        self.wait_until(memory, vcpu, next.max(now + 1));
        (0, 0, 0, 0, 0)
    }
}
