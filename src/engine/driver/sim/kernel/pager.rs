//! Paging: private pages of processes, and the tables that map them, leave memory and come back on a page fault.
//!
//! A page goes in two steps, as on Windows: its entry becomes a transition entry, the frame keeps the bytes; later the
//! entry names a slot of the page file (`_MMPTE_TRANSITION`, `_MMPTE_SOFTWARE`). The stores to the entries are the
//! kernel's own instructions; what is here decides on them and moves the bytes.

use std::collections::{BTreeSet, VecDeque};

use super::{
    Kernel,
    contents::{Contents, page},
    process::Process,
    space::{FRAME, NO_EXECUTE, PRESENT, USER},
};
use crate::engine::{
    addr::Va,
    arch::amd64::{Amd64Registers, PageTableLevel},
    driver::sim::memory::{Frame, Memory},
    error::VmiError,
};

/// `_MMPTE_SOFTWARE`: PageFileAllocated, Protection MM_READWRITE; the slot is in bits 63:32 (PageFileHigh).
const PAGED_OUT: u64 = 1 << 2 | 4 << 5;
/// `_MMPTE_TRANSITION`: Transition, Protection MM_READWRITE; the frame is in bits 47:12.
const TRANSITION: u64 = 1 << 11;
const IN_TRANSITION: u64 = TRANSITION | 4 << 5;

/// How a page fault goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// The page is there.
    Now,
    /// Store an entry and ask again.
    Store {
        /// Its physical address.
        at: u64,
        /// Its new value.
        value: u64,
    },
    /// The thread waits; ask again when it runs.
    Later,
    /// There is no such page.
    Never,
}

/// What a slot of the page file holds.
#[derive(Debug)]
enum Stored {
    Free,
    /// The tables of a region that was never touched.
    Region,
    /// A private page, by its number, that was never written.
    Fresh(u64),
    /// A frame that is being written out.
    Frame(u64),
    Bytes(Box<Frame>),
}

/// A page in transition.
#[derive(Clone, Copy, Debug)]
struct Standby {
    place: usize,
    serial: u64,
    va: u64,
    frame: u64,
    since: u64,
}

/// The page file and what is on its way.
#[derive(Debug, Default)]
pub(super) struct Pager {
    slots: Vec<Stored>,
    free: Vec<usize>,
    /// Entries that a fault is about to store.
    filling: BTreeSet<u64>,
    standby: VecDeque<Standby>,
    /// A frame that goes once the store that takes it from its process was made.
    leaving: Option<(usize, u64)>,
    /// The process whose pages all go.
    swapping: Option<(usize, u64)>,
}

/// How long a page stays in transition.
const STANDBY_NS: u64 = 300_000_000;

impl Pager {
    fn keep(&mut self, stored: Stored) -> usize {
        if let Some(slot) = self.free.pop() {
            if let Some(place) = self.slots.get_mut(slot) {
                *place = stored;
            }
            return slot;
        }
        self.slots.push(stored);
        self.slots.len() - 1
    }

    fn take(&mut self, slot: usize) -> Stored {
        match self.slots.get_mut(slot) {
            Some(place) if !matches!(place, Stored::Free) => {
                self.free.push(slot);
                std::mem::replace(place, Stored::Free)
            }
            _ => Stored::Free,
        }
    }

    /// An entry for tables that are made when they are needed.
    pub(super) fn later(&mut self) -> u64 {
        paged_out(self.keep(Stored::Region))
    }
}

fn paged_out(slot: usize) -> u64 {
    // Slot 0 would look like a page of zeros on demand.
    (slot as u64 + 1) << 32 | PAGED_OUT
}

fn slot_of(entry: u64) -> Option<usize> {
    (entry >> 32).checked_sub(1).map(|slot| slot as usize)
}

fn is_transition(entry: u64) -> bool {
    entry & (PRESENT | TRANSITION) == TRANSITION
}

/// The entry of a private page that is in memory.
fn resident(frame: u64, level: PageTableLevel) -> u64 {
    frame | USER | if level == PageTableLevel::Pt { NO_EXECUTE } else { 0 }
}

/// The pages of a region.
fn pages() -> impl Iterator<Item = u64> {
    (0..2 * page::STACK)
        .chain([page::PEB, page::TEB, page::PARAMETERS, page::MODULES])
        .chain(page::HEAP..page::HEAP + page::HEAP_PAGES)
}

/// How many they are.
const PAGES: u64 = 2 * page::STACK + 4 + page::HEAP_PAGES;

/// The pages that every round of a program needs.
fn is_hot(number: u64) -> bool {
    number == page::STACK - 1 || number == page::HEAP
}

impl Kernel {
    fn contents(&self, process: &Process, number: u64) -> Frame {
        let tid = process.threads.first().and_then(|&id| self.thread(id)).map_or(0, |thread| thread.tid);
        let program = process.program.and_then(|program| self.programs.get(program));
        let base = program.map_or(0, |program| program.base);
        Contents {
            facts: &self.facts,
            region: process.region,
            pid: process.pid,
            tid,
            name: program.map_or(&process.name, |program| program.name),
            base,
            library: self.library,
        }
        .page(number)
    }

    /// Makes the tables of a process's region; the physical address of the upper one. Some of the pages are in memory.
    pub(super) fn build_region(&mut self, memory: &mut Memory, process: &Process) -> Result<u64, VmiError> {
        let (top, middle, low) = (self.frames.take()?, self.frames.take()?, self.frames.take()?);
        let va = Va(process.region);
        memory.write_u64(top + PageTableLevel::Pdpt.index(va) * 8, middle | USER);
        memory.write_u64(middle + PageTableLevel::Pd.index(va) * 8, low | USER);
        let wow64 = process.program.and_then(|program| self.programs.get(program)).is_some_and(|p| p.habits.wow64);
        // Those of the 32-bit half are never trimmed.
        let more = [page::PEB32, page::MODULES32].into_iter().filter(|_| wow64);
        for number in pages().chain(more) {
            let described = matches!(number, page::PARAMETERS | page::MODULES) && self.random.below(10) < 6;
            let always = matches!(number, page::PEB | page::TEB | page::PEB32 | page::MODULES32);
            let needed = is_hot(number) || always || described;
            let entry = if needed {
                let frame = self.frames.take()?;
                memory.write(frame, &self.contents(process, number))?;
                resident(frame, PageTableLevel::Pt)
            } else {
                paged_out(self.pager.keep(Stored::Fresh(number)))
            };
            memory.write_u64(low + number * 8, entry);
        }
        Ok(top)
    }

    /// One round of a page fault: what is to be done about `(error code, address, flags of the interrupted code)`.
    pub(super) fn fault(
        &mut self,
        memory: &mut Memory,
        vcpu: usize,
        (error, address, flags): (u64, u64, u64),
        now: u64,
    ) -> Served {
        let Some((id, place)) = self.running(vcpu) else { return Served::Never };
        let Some(process) = self.process(place).cloned() else { return Served::Never };
        let (level, at, entry) = process.space.walk(memory, address);
        // What this thread was about to store is in place, but for a fault that was injected in front of the store.
        match self.threads.get_mut(id).and_then(|t| t.as_mut()?.filling.take()) {
            Some((filling, value)) if filling == at && entry & PRESENT == 0 => {
                if let Some(thread) = self.threads.get_mut(id).and_then(Option::as_mut) {
                    thread.filling = Some((at, value));
                }
                return Served::Store { at, value };
            }
            Some((filling, _)) => {
                self.pager.filling.remove(&filling);
            }
            None => {}
        }
        if address >> 63 != 0 {
            return Served::Never;
        }
        if entry & PRESENT != 0 {
            if let Some(thread) = self.threads.get_mut(id).and_then(Option::as_mut) {
                thread.input_for = None;
            }
            let protected =
                error & 1 != 0 && (error & 2 != 0 && entry & 2 == 0 || error & 0x10 != 0 && entry >> 63 != 0);
            return if protected { Served::Never } else { Served::Now };
        }
        let inside = process.region != 0 && address.wrapping_sub(process.region) < 2 << 20;
        // Waiting is possible only where the interrupted code could be interrupted by the clock as well.
        if !inside || entry == 0 || flags & Amd64Registers::RFLAGS_IF == 0 || self.scheduler.is_idle(vcpu) {
            return Served::Never;
        }
        if self.pager.filling.contains(&at) {
            self.wait_until(memory, vcpu, now + 500_000);
            return Served::Later;
        }
        let value = if is_transition(entry) {
            resident(entry & FRAME & 0xffff_ffff_ffff, level)
        } else {
            let slot = slot_of(entry);
            let stored = slot.and_then(|slot| self.pager.slots.get(slot));
            let quick = match stored {
                Some(Stored::Frame(_)) => true,
                Some(Stored::Fresh(number)) => !matches!(*number, page::PEB..=page::MODULES),
                Some(Stored::Bytes(_) | Stored::Region) => false,
                Some(Stored::Free) | None => return Served::Never,
            };
            let waited = self.thread(id).is_some_and(|thread| thread.input_for == Some(at));
            if !quick && !waited {
                if let Some(thread) = self.threads.get_mut(id).and_then(Option::as_mut) {
                    thread.input_for = Some(at);
                }
                let latency = 800_000 + self.random.below(5_000_000);
                self.wait_until(memory, vcpu, now + latency);
                return Served::Later;
            }
            let Some(frame) = slot.and_then(|slot| self.bring_in(memory, &process, slot)) else {
                return Served::Never;
            };
            resident(frame, level)
        };
        if let Some(thread) = self.threads.get_mut(id).and_then(Option::as_mut) {
            thread.input_for = None;
            thread.filling = Some((at, value));
        }
        self.pager.filling.insert(at);
        Served::Store { at, value }
    }

    /// Puts what a slot holds into a frame; `None` when memory is full.
    fn bring_in(&mut self, memory: &mut Memory, process: &Process, slot: usize) -> Option<u64> {
        if self.frames.left() < 8 {
            return None;
        }
        match self.pager.take(slot) {
            Stored::Free => None,
            Stored::Frame(frame) => Some(frame),
            Stored::Region => self.build_region(memory, process).ok(),
            Stored::Fresh(number) => {
                let frame = self.frames.take().ok()?;
                memory.write(frame, &self.contents(process, number)).ok()?;
                Some(frame)
            }
            Stored::Bytes(bytes) => {
                let frame = self.frames.take().ok()?;
                memory.write(frame, &*bytes).ok()?;
                Some(frame)
            }
        }
    }

    /// The store that takes the next page away, if there is one to take: `(entry's physical address, value)`.
    pub(super) fn trim(&mut self, memory: &mut Memory, now: u64) -> Option<(u64, u64)> {
        while let Some(&standby) = self.pager.standby.front() {
            if now.saturating_sub(standby.since) < STANDBY_NS {
                break;
            }
            self.pager.standby.pop_front();
            let Some(process) = self.process(standby.place).filter(|process| process.serial == standby.serial) else {
                continue;
            };
            let (level, at, entry) = process.space.walk(memory, standby.va);
            let still = level == PageTableLevel::Pt && is_transition(entry) && entry & FRAME == standby.frame;
            if still && !self.pager.filling.contains(&at) {
                return Some(self.write_out(at, standby.frame));
            }
        }
        for _ in 0..4 {
            let place = self.random.below(self.processes.len() as u64) as usize;
            let Some(number) = pages().nth(self.random.below(PAGES) as usize) else { continue };
            let Some(process) = self.process(place).filter(|process| self.may_trim(process)) else { continue };
            let va = process.region + number * 0x1000;
            let (level, at, entry) = process.space.walk(memory, va);
            if level == PageTableLevel::Pt && entry & PRESENT != 0 && !is_hot(number) {
                let frame = entry & FRAME;
                let standby = Standby { place, serial: process.serial, va, frame, since: now };
                self.pager.standby.push_back(standby);
                return Some((at, frame | IN_TRANSITION));
            }
        }
        None
    }

    fn may_trim(&self, process: &Process) -> bool {
        let busy = |id: &usize| self.thread(*id).is_some_and(|thread| thread.filling.is_some());
        process.region != 0 && process.is_known && process.exited_at.is_none() && !process.threads.iter().any(busy)
    }

    /// The store that names a slot of the page file; the frame goes when it was made.
    fn write_out(&mut self, at: u64, frame: u64) -> (u64, u64) {
        let slot = self.pager.keep(Stored::Frame(frame));
        self.pager.leaving = Some((slot, frame));
        (at, paged_out(slot))
    }

    /// Moves the frame of the last store into the page file, unless a fault has taken it back already.
    pub(super) fn finish_write_out(&mut self, memory: &mut Memory) {
        let Some((slot, frame)) = self.pager.leaving.take() else { return };
        let Some(stored) = self.pager.slots.get_mut(slot) else { return };
        if matches!(stored, Stored::Frame(kept) if *kept == frame) {
            let mut bytes = Box::new([0; 4096]);
            if memory.read(frame, &mut bytes[..]).is_ok() {
                *stored = Stored::Bytes(bytes);
                self.frames.free(memory, frame);
            }
        }
    }

    /// Chooses a process whose pages all go, and then the table that maps them.
    pub(super) fn choose_swap(&mut self) {
        for _ in 0..4 {
            let place = self.random.below(self.processes.len() as u64) as usize;
            if let Some(process) = self.process(place).filter(|process| self.may_swap(place, process)) {
                self.pager.swapping = Some((place, process.serial));
                return;
            }
        }
    }

    fn may_swap(&self, place: usize, process: &Process) -> bool {
        let runs = |vcpu| self.running(vcpu).is_some_and(|(_, running)| running == place);
        let waits = |id: &usize| self.thread(*id).is_some_and(|thread| thread.input_for.is_some() || !thread.started);
        self.may_trim(process) && !(0..self.scheduler.vcpus()).any(runs) && !process.threads.first().is_some_and(waits)
    }

    /// The next store of taking all pages of the chosen process away.
    pub(super) fn swap(&mut self, memory: &mut Memory) -> Option<(u64, u64)> {
        let (place, serial) = self.pager.swapping?;
        let chosen = self.process(place).filter(|p| p.serial == serial && self.may_swap(place, p));
        let Some(process) = chosen else {
            self.pager.swapping = None;
            return None;
        };
        let (space, region) = (process.space, process.region);
        for number in pages() {
            let (level, at, entry) = space.walk(memory, region + number * 0x1000);
            if level != PageTableLevel::Pt {
                self.pager.swapping = None;
                return None;
            }
            if entry & PRESENT != 0 || is_transition(entry) {
                return Some(self.write_out(at, entry & FRAME & 0xffff_ffff_ffff));
            }
        }
        self.pager.swapping = None;
        let mut table = space.root;
        let walk = PageTableLevel::walk(space.levels).iter().take_while(|&&level| level != PageTableLevel::Pd);
        for &level in walk {
            table = memory.read_u64(table + level.index(Va(region)) * 8)? & FRAME;
        }
        let at = table + PageTableLevel::Pd.index(Va(region)) * 8;
        let entry = memory.read_u64(at).filter(|entry| entry & PRESENT != 0)?;
        Some(self.write_out(at, entry & FRAME))
    }

    /// Gives everything back that a process's region has in memory and in the page file.
    pub(super) fn release_region(&mut self, memory: &mut Memory, process: &Process) {
        if process.region == 0 {
            return;
        }
        let va = Va(process.region);
        let mut table = process.space.root;
        if process.space.levels == 5 {
            table = memory.read_u64(table + PageTableLevel::Pml5.index(va) * 8).unwrap_or(0) & FRAME;
        }
        for level in [PageTableLevel::Pml4, PageTableLevel::Pdpt] {
            let entry = memory.read_u64(table + level.index(va) * 8).unwrap_or(0);
            if level != PageTableLevel::Pml4 {
                self.frames.free(memory, table);
            }
            if entry & PRESENT == 0 {
                self.release_entry(memory, entry);
                return;
            }
            table = entry & FRAME;
        }
        let entry = memory.read_u64(table + PageTableLevel::Pd.index(va) * 8).unwrap_or(0);
        self.frames.free(memory, table);
        let mut low = [0; 4096];
        if entry & PRESENT != 0 {
            let _ = memory.read(entry & FRAME, &mut low);
            self.frames.free(memory, entry & FRAME);
        } else if let Some(slot) = slot_of(entry) {
            match self.pager.take(slot) {
                Stored::Bytes(bytes) => low = *bytes,
                Stored::Frame(frame) => {
                    let _ = memory.read(frame, &mut low);
                    self.frames.free(memory, frame);
                }
                Stored::Free | Stored::Region | Stored::Fresh(_) => {}
            }
        }
        for entry in low.as_chunks::<8>().0 {
            self.release_entry(memory, u64::from_le_bytes(*entry));
        }
    }

    fn release_entry(&mut self, memory: &mut Memory, entry: u64) {
        if entry & PRESENT != 0 || is_transition(entry) {
            self.frames.free(memory, entry & FRAME & 0xffff_ffff_ffff);
        } else if let Some(slot) = slot_of(entry)
            && let Stored::Frame(frame) = self.pager.take(slot)
        {
            self.frames.free(memory, frame);
        }
    }
}
