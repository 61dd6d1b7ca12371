//! What rows cost in memory: their own size and what they point at, as an allocator gives it out.

use crate::engine::snapshot::{Breakpoint, Event, Fault, Guest, Hit, Process, Table, Unavailable, Vcpu, WalkEntry};

/// What a block of memory costs: allocators give it out in steps of 16 bytes, with a word for themselves.
pub(super) const fn block_bytes(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let whole = (bytes + 8).next_multiple_of(16);
    if whole < 32 { 32 } else { whole }
}

fn text(text: &str) -> usize {
    block_bytes(text.len())
}

fn texts<T: AsRef<str>>(given: &Option<T>) -> usize {
    given.as_ref().map_or(0, |given| text(given.as_ref()))
}

fn list<T>(list: &[T], each: impl Fn(&T) -> usize) -> usize {
    block_bytes(size_of_val(list)) + list.iter().map(each).sum::<usize>()
}

fn plain<T>(list: &[T]) -> usize {
    block_bytes(size_of_val(list))
}

/// What costs memory besides its own size.
pub(super) trait Weight {
    /// The memory that it points at and that is its own, in bytes. It is what a copy of it has, so no more than needed.
    fn heap_bytes(&self) -> usize;
}

/// A row of a list that is kept.
pub(super) trait Row: Weight + Clone + PartialEq {
    /// What the row is found by in the list of the moment before. Two rows may have the same.
    fn name(&self) -> u64;
}

impl Weight for Process {
    fn heap_bytes(&self) -> usize {
        text(&self.name) + plain(&self.flags)
    }
}

impl Row for Process {
    fn name(&self) -> u64 {
        self.pid.into()
    }
}

impl Weight for Hit {
    fn heap_bytes(&self) -> usize {
        text(&self.process) + plain(&self.args) + texts(&self.call) + plain(&self.registers)
    }
}

impl Weight for Breakpoint {
    fn heap_bytes(&self) -> usize {
        let hits = list(&self.last_hits, Hit::heap_bytes);
        text(&self.symbol) + text(&self.tag) + plain(&self.rates) + hits + texts(&self.error)
    }
}

impl Row for Breakpoint {
    fn name(&self) -> u64 {
        self.id.0
    }
}

impl Weight for Table {
    fn heap_bytes(&self) -> usize {
        let walk = list(&self.walk, |entry: &WalkEntry| plain(&entry.flags));
        text(&self.symbol) + text(&self.tag) + texts(&self.ended) + walk
    }
}

impl Row for Table {
    fn name(&self) -> u64 {
        self.id.0
    }
}

impl Weight for Fault {
    fn heap_bytes(&self) -> usize {
        text(&self.asked_by) + text(&self.note)
    }
}

impl Row for Fault {
    fn name(&self) -> u64 {
        self.id.0
    }
}

impl Weight for Event {
    fn heap_bytes(&self) -> usize {
        text(&self.process) + text(&self.text)
    }
}

impl Row for Event {
    fn name(&self) -> u64 {
        self.seq
    }
}

impl Weight for Vcpu {
    fn heap_bytes(&self) -> usize {
        plain(&self.registers)
    }
}

impl Row for Vcpu {
    fn name(&self) -> u64 {
        self.id.0.into()
    }
}

impl Weight for Guest {
    fn heap_bytes(&self) -> usize {
        text(&self.name) + text(&self.os) + text(&self.version)
    }
}

impl Weight for Unavailable {
    fn heap_bytes(&self) -> usize {
        text(&self.why)
    }
}
