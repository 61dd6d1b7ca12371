//! What a look at the guest may cost: reads, time, and what is kept of it.
//!
//! Each list has a bound of its own, but bounds multiply: 65,536 processes with 4,096 threads each are more than anybody
//! can wait for. So whatever is read of a guest's structures is paid from one budget for all of them. [`VmiCore::look`]
//! begins a look; every read of memory through the core pays from then on until the look ends, so that no walk can forget
//! to. A look whose budget is used up is *cut*: each further read fails at once with [`VmiError::CutShort`], walks end
//! where they are, and whoever shows their result marks it. A walk that was cut has not seen the end of anything: what it
//! lacks is not missing in the guest.
//!
//! The looks of one round share what the round may cost ([`VmiCore::begin_round`]); where nobody counts rounds, each look
//! is a round. Reads outside of looks, those of breakpoints and page tables, are free: they are as many as the user has
//! asked for, and none of them may fail because a guest was tedious before.
//!
//! A look ends early when somebody waits for the engine ([`VmiCore::set_waits`]), unless it has only begun.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use super::core::VmiCore;
use crate::engine::{driver::VmiRead, error::VmiError};

/// What a round may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Reads of guest memory, each of a page at most.
    pub reads: u64,
    /// Bytes that are kept of what was read.
    pub kept: usize,
    /// How long it may take.
    pub time: Duration,
    /// How long it may take while somebody waits.
    pub time_if_awaited: Duration,
}

impl Limits {
    /// For the structures of a running system: a hundred times what a busy server's cost. Where each read is a question to
    /// the hypervisor, as `is_slow` says, time is longer.
    pub const fn usual(is_slow: bool) -> Self {
        Self {
            reads: 1 << 20,
            kept: 24 << 20,
            time: Duration::from_secs(if is_slow { 30 } else { 2 }),
            time_if_awaited: Duration::from_millis(100),
        }
    }

    /// For the search for a kernel, which copies its image.
    pub const fn search(self) -> Self {
        Self { time: self.time.saturating_mul(10), ..self }
    }

    /// The same without a clock, for a guest whose every run is to be alike.
    pub const fn timeless(self) -> Self {
        Self { time: Duration::MAX, time_if_awaited: Duration::MAX, ..self }
    }
}

/// Why a look was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It has read, kept or waited more than it may.
    Spent,
    /// Somebody waits for the engine.
    Awaited,
}

/// Reads between two looks at the clock.
const SLICE: u64 = 64;
/// Slices between two times that the driver is asked to give back what it has touched.
const TRIM: u32 = 16;

/// What is left of a round.
#[derive(Clone, Copy)]
struct Purse {
    /// What the looks to come may still cost.
    limits: Limits,
    /// How long the looks before this one have taken.
    before: Duration,
    /// When this one began.
    began: Instant,
    cut: Option<Cut>,
}

impl Purse {
    fn new(limits: Limits) -> Self {
        Self { limits, before: Duration::ZERO, began: Instant::now(), cut: None }
    }

    fn taken(&self) -> Duration {
        self.before + self.began.elapsed()
    }
}

/// The budget of a core.
pub(super) struct Budget {
    /// Reads until there is more to do than to count them; 0 in a look that is cut.
    slice: Cell<u64>,
    /// Slices since the driver was last asked to trim.
    slices: Cell<u32>,
    /// How deep looks are nested.
    looks: Cell<u32>,
    purse: Cell<Option<Purse>>,
    /// Whether the purse outlives the look.
    is_round: Cell<bool>,
    waits: RefCell<Option<Box<dyn Fn() -> bool + Send>>>,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            slice: Cell::new(u64::MAX),
            slices: Cell::new(0),
            looks: Cell::new(0),
            purse: Cell::new(None),
            is_round: Cell::new(false),
            waits: RefCell::new(None),
        }
    }

    /// Pays for the read behind a slice, and for the next slice.
    fn next_slice(&self) -> Result<(), VmiError> {
        let purse = self.purse.get().filter(|_| self.looks.get() > 0);
        let Some(mut purse) = purse else {
            self.slice.set(u64::MAX);
            return Ok(());
        };
        let taken = purse.taken();
        if purse.cut.is_none() {
            if taken >= purse.limits.time || purse.limits.reads == 0 {
                purse.cut = Some(Cut::Spent);
            } else if taken >= purse.limits.time_if_awaited && self.is_awaited() {
                purse.cut = Some(Cut::Awaited);
            }
        }
        let slice = if purse.cut.is_some() { 0 } else { purse.limits.reads.min(SLICE) };
        purse.limits.reads -= slice;
        self.purse.set(Some(purse));
        self.slice.set(slice.saturating_sub(1));
        if slice == 0 { Err(VmiError::CutShort) } else { Ok(()) }
    }

    fn is_awaited(&self) -> bool {
        self.waits.borrow().as_ref().is_some_and(|waits| waits())
    }

    fn cut(&self) -> Option<Cut> {
        self.purse.get().and_then(|purse| purse.cut)
    }

    fn keep(&self, bytes: usize) -> Result<(), VmiError> {
        let Some(mut purse) = self.purse.get().filter(|_| self.looks.get() > 0) else { return Ok(()) };
        match purse.limits.kept.checked_sub(bytes) {
            Some(left) if purse.cut.is_none() => purse.limits.kept = left,
            _ => {
                purse.cut = purse.cut.or(Some(Cut::Spent));
                self.slice.set(0);
            }
        }
        self.purse.set(Some(purse));
        if purse.cut.is_some() { Err(VmiError::CutShort) } else { Ok(()) }
    }

    fn begin_round(&self, limits: Option<Limits>) {
        self.purse.set(limits.map(Purse::new));
        self.is_round.set(limits.is_some());
        self.slice.set(if self.looks.get() > 0 { 0 } else { u64::MAX });
    }
}

/// A look at the guest: until it goes, reads of memory are paid for. One in another is part of that.
#[must_use = "a look ends when it is dropped"]
pub struct Look<'a>(&'a Budget);

impl Look<'_> {
    /// Whether it was cut short, and why.
    pub fn cut(&self) -> Option<Cut> {
        self.0.cut()
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        let budget = self.0;
        budget.looks.set(budget.looks.get().saturating_sub(1));
        if budget.looks.get() > 0 {
            return;
        }
        // What is left of the slice is given back, so that many short looks do not cost more than a long one.
        match budget.purse.get() {
            Some(mut purse) if budget.is_round.get() => {
                purse.limits.reads = purse.limits.reads.saturating_add(budget.slice.get());
                purse.before = purse.taken();
                budget.purse.set(Some(purse));
            }
            _ => budget.purse.set(None),
        }
        budget.slice.set(u64::MAX);
    }
}

impl<Driver: VmiRead> VmiCore<Driver> {
    /// Pays for a read, where there is a look to pay for.
    #[inline]
    pub(super) fn pay(&self) -> Result<(), VmiError> {
        match self.budget.slice.get() {
            0 => self.next_slice(),
            left => {
                self.budget.slice.set(left - 1);
                Ok(())
            }
        }
    }

    #[cold]
    fn next_slice(&self) -> Result<(), VmiError> {
        let slices = self.budget.slices.get() + 1;
        self.budget.slices.set(slices % TRIM);
        if slices == TRIM && self.cut().is_none() {
            self.driver.trim();
        }
        self.budget.next_slice()
    }

    /// Begins a look, of the round under way or a round by itself.
    pub fn look(&self) -> Look<'_> {
        let budget = &self.budget;
        if budget.looks.get() == 0 {
            let purse = match budget.purse.get() {
                Some(purse) => Purse { began: Instant::now(), ..purse },
                None => {
                    budget.is_round.set(false);
                    Purse::new(Limits::usual(!self.driver.is_direct()))
                }
            };
            budget.purse.set(Some(purse));
            budget.slice.set(0);
        }
        budget.looks.set(budget.looks.get() + 1);
        Look(budget)
    }

    /// Begins a round: what all looks up to the next one may cost together; with `None`, each of them is by itself.
    pub fn begin_round(&self, limits: impl Into<Option<Limits>>) {
        self.budget.begin_round(limits.into());
    }

    /// What a round usually costs on this driver.
    pub fn usual_limits(&self) -> Limits {
        Limits::usual(!self.driver.is_direct())
    }

    /// Whether the look under way was cut short, and why. What it has found is not all.
    pub fn cut(&self) -> Option<Cut> {
        self.budget.cut()
    }

    /// Pays for bytes that are kept of what was read.
    ///
    /// # Errors
    /// [`VmiError::CutShort`] when the look may keep no more.
    pub fn keep(&self, bytes: usize) -> Result<(), VmiError> {
        self.budget.keep(bytes)
    }

    /// Pays for work on copies of guest memory as for so many reads.
    ///
    /// # Errors
    /// [`VmiError::CutShort`] when the look may do no more.
    pub fn spend(&self, reads: u64) -> Result<(), VmiError> {
        (0..reads).try_for_each(|_| self.pay())
    }

    /// Tells how a look learns that somebody waits for the engine; asked often, so it must be cheap.
    pub fn set_waits(&self, waits: impl Fn() -> bool + Send + 'static) {
        *self.budget.waits.borrow_mut() = Some(Box::new(waits));
    }
}
