//! What the engine's tests share: a guest of plain memory whose driver can fail on demand ([`FlatDriver`]) with a kernel of
//! few words ([`FlatOs`]), one that never reads the same twice ([`Flicker`]), and a builder of page tables ([`Tables`]).
//! Start at `flat.rs`.
//!
//! It is for error paths and exact call sequences; what a running guest does is tested on the built-in one.

#![allow(dead_code, unused_imports, missing_docs, reason = "every test binary uses its own part of this")]

mod flat;
mod flicker;
pub mod linux;
mod os;
mod tables;

pub use self::{
    flat::{Call, FlatDriver, Scripted},
    flicker::Flicker,
    os::FlatOs,
    tables::{PageSize, Tables},
};

use vmscope::engine::session::VmiCore;

/// A core on a flat guest of so many frames, its call log empty.
pub fn core(frames: u64) -> VmiCore<FlatDriver> {
    let vmi = VmiCore::new(FlatDriver::new(frames)).expect("a flat guest always answers");
    vmi.driver().take_calls();
    vmi
}

/// Xorshift64*: the same numbers on every machine.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 33) % end
    }

    /// Whether an event of this probability (in percent) happens.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
