//! Variables that every CPU has of its own: their symbol is not where any of them is.

use std::ops::Range;

use crate::engine::addr::Va;

/// The symbols of per-CPU variables, and how far each CPU's own are from them (`include/asm-generic/percpu.h`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerCpuArea {
    /// From `__per_cpu_start` to `__per_cpu_end`: from 0 on up to 6.14, since then in the kernel's image.
    symbols: Range<Va>,
    /// What to add for each CPU.
    offsets: Vec<u64>,
}

impl PerCpuArea {
    /// The area of the symbols in a range; a CPU's own variables are `offsets[cpu]` away.
    pub fn new(symbols: Range<Va>, offsets: Vec<u64>) -> Self {
        Self { symbols, offsets }
    }

    /// Whether a symbol at this address is one of them.
    pub(super) fn contains(&self, va: Va) -> bool {
        self.symbols.contains(&va)
    }

    /// How many CPUs there are.
    pub(super) fn cpus(&self) -> usize {
        self.offsets.len()
    }

    /// Where a CPU has its own; `None` where there is no such CPU.
    pub(super) fn on(&self, va: Va, cpu: usize) -> Option<Va> {
        self.offsets.get(cpu).map(|offset| Va(va.0.wrapping_add(*offset)))
    }

    /// Whose own an address is: the address of its symbol, and the CPU.
    pub(super) fn owner(&self, va: Va) -> Option<(Va, usize)> {
        let at = |offset: &u64| Some(Va(va.0.wrapping_sub(*offset))).filter(|symbol| self.contains(*symbol));
        self.offsets.iter().enumerate().find_map(|(cpu, offset)| at(offset).map(|symbol| (symbol, cpu)))
    }
}
