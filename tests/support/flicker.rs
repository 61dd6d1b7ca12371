//! A guest whose memory is another one at every read, as page tables are that a running guest rewrites during a walk.

use std::cell::RefCell;

use vmscope::engine::{
    addr::{Gfn, Pa},
    arch::amd64::Amd64,
    driver::{VmiDriver, VmiInfo, VmiRead},
    error::VmiError,
    snapshot::{Capability, Unavailable},
};

use super::Rng;

/// The driver. Of its memory nothing is true but its size; it can nothing but read.
pub struct Flicker {
    frames: u64,
    rng: RefCell<Rng>,
    direct: bool,
}

impl Flicker {
    pub fn new(frames: u64, seed: u64, direct: bool) -> Self {
        Self { frames, rng: RefCell::new(Rng::new(seed)), direct }
    }

    /// An entry: mostly of a table or page that exists, now and then nothing, a large page, or anything.
    fn entry(&self) -> u64 {
        let mut rng = self.rng.borrow_mut();
        match rng.below(12) {
            0 => 0,
            1 => rng.below(self.frames) << 12 | 0x87,
            2 => (self.frames + rng.below(4)) << 12 | 7,
            3 => rng.next(),
            _ => rng.below(self.frames) << 12 | 7,
        }
    }
}

impl VmiDriver for Flicker {
    type Architecture = Amd64;

    fn info(&self) -> Result<VmiInfo, VmiError> {
        Ok(VmiInfo { max_gfn: Gfn(self.frames - 1), ..VmiInfo::default() })
    }

    fn capabilities(&self) -> (Vec<Capability>, Vec<Unavailable>) {
        (Vec::new(), Vec::new())
    }

    fn clock_ns(&self) -> u64 {
        0
    }
}

impl VmiRead for Flicker {
    fn read_physical(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), VmiError> {
        if pa.0 / 4096 >= self.frames {
            return Err(VmiError::OutOfBounds(pa));
        }
        buffer.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.entry().to_le_bytes()[..part.len()]));
        Ok(())
    }

    fn is_direct(&self) -> bool {
        self.direct
    }
}
