//! Guest-physical memory: RAM whose frames exist on the host only once they were written, and frames above it that a
//! session allocates for its shadow pages.

use std::collections::BTreeMap;

use crate::engine::{addr::Pa, error::VmiError};

/// The bytes of one frame.
pub(super) type Frame = [u8; 4096];

/// A frame of zeros, for those that nobody wrote.
static ZEROS: Frame = [0; 4096];

/// Guest-physical memory.
pub(super) struct Memory {
    ram: Vec<Option<Box<Frame>>>,
    above: BTreeMap<u64, Box<Frame>>,
}

impl Memory {
    /// How far above RAM a session may allocate frames.
    const ABOVE: u64 = 1 << 24;

    pub(super) fn new(bytes: u64) -> Self {
        let frames = (bytes >> 12) as usize;
        Self { ram: std::iter::repeat_with(|| None).take(frames).collect(), above: BTreeMap::new() }
    }

    /// Takes over the RAM of another memory; the frames above stay.
    pub(super) fn take_ram(&mut self, other: Self) {
        self.ram = other.ram;
    }

    /// Frames of RAM.
    pub(super) fn ram_frames(&self) -> u64 {
        self.ram.len() as u64
    }

    /// Whether there is memory at this frame.
    pub(super) fn exists(&self, gfn: u64) -> bool {
        gfn < self.ram_frames() || self.above.contains_key(&gfn)
    }

    #[inline]
    pub(super) fn frame(&self, gfn: u64) -> Option<&Frame> {
        match self.ram.get(usize::try_from(gfn).ok()?) {
            Some(Some(frame)) => Some(frame),
            Some(None) => Some(&ZEROS),
            None => self.above.get(&gfn).map(|frame| &**frame),
        }
    }

    #[inline]
    fn frame_mut(&mut self, gfn: u64) -> Option<&mut Frame> {
        match self.ram.get_mut(usize::try_from(gfn).ok()?) {
            Some(frame) => Some(frame.get_or_insert_with(|| Box::new([0; 4096]))),
            None => self.above.get_mut(&gfn).map(|frame| &mut **frame),
        }
    }

    /// Eight bytes that lie in one page.
    #[inline]
    pub(super) fn read_u64(&self, pa: u64) -> Option<u64> {
        let frame = self.frame(pa >> 12)?;
        let at = (pa & 0xfff) as usize;
        Some(u64::from_le_bytes(*frame.get(at..at + 8)?.first_chunk()?))
    }

    /// Sixteen bytes that lie in one page.
    #[inline]
    pub(super) fn read_chunk(&self, pa: u64) -> Option<&[u8; 16]> {
        self.frame(pa >> 12)?.get((pa & 0xfff) as usize..)?.first_chunk()
    }

    /// Eight bytes that lie in one page; where there is no memory, nothing happens.
    #[inline]
    pub(super) fn write_u64(&mut self, pa: u64, value: u64) {
        let at = (pa & 0xfff) as usize;
        if let Some(bytes) = self.frame_mut(pa >> 12).and_then(|frame| frame.get_mut(at..at + 8)) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Copies memory out.
    #[inline]
    pub(super) fn read(&self, pa: u64, buffer: &mut [u8]) -> Result<(), VmiError> {
        let mut at = pa;
        let mut rest = buffer;
        while !rest.is_empty() {
            let offset = (at & 0xfff) as usize;
            let (part, tail) = rest.split_at_mut(rest.len().min(4096 - offset));
            let source = self.frame(at >> 12).and_then(|frame| frame.get(offset..offset + part.len()));
            part.copy_from_slice(source.ok_or_else(|| VmiError::OutOfBounds(Pa(at)))?);
            at = at.checked_add(part.len() as u64).ok_or(VmiError::OutOfBounds(Pa(at)))?;
            rest = tail;
        }
        Ok(())
    }

    /// Copies memory in: all of it, or nothing and an error.
    pub(super) fn write(&mut self, pa: u64, bytes: &[u8]) -> Result<(), VmiError> {
        let last = pa.checked_add((bytes.len() as u64).saturating_sub(1)).ok_or(VmiError::OutOfBounds(Pa(pa)))?;
        if let Some(gap) = (pa >> 12..=last >> 12).find(|&gfn| !self.exists(gfn)) {
            return Err(VmiError::OutOfBounds(Pa((gap << 12).max(pa))));
        }
        let mut at = pa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = (at & 0xfff) as usize;
            let (part, tail) = rest.split_at(rest.len().min(4096 - offset));
            if let Some(target) = self.frame_mut(at >> 12).and_then(|frame| frame.get_mut(offset..offset + part.len()))
            {
                target.copy_from_slice(part);
            }
            at = at.wrapping_add(part.len() as u64);
            rest = tail;
        }
        Ok(())
    }

    /// Copies a frame of RAM into one above it, with `patch` at an offset; what was there goes to `saved`. `None` where
    /// there are no such frames.
    pub(super) fn copy_patched(
        &mut self,
        from: u64,
        to: u64,
        offset: usize,
        patch: &[u8],
        saved: &mut [u8],
    ) -> Option<()> {
        let target = self.above.get_mut(&to)?;
        let source = self.ram.get(usize::try_from(from).ok()?)?;
        target.copy_from_slice(source.as_ref().map_or(&ZEROS, |frame| &**frame));
        for ((byte, saved), new) in target.iter_mut().skip(offset).zip(saved).zip(patch) {
            *saved = std::mem::replace(byte, *new);
        }
        Some(())
    }

    /// Makes a frame of RAM zero and gives its host memory back.
    pub(super) fn clear(&mut self, gfn: u64) {
        if let Some(frame) = usize::try_from(gfn).ok().and_then(|gfn| self.ram.get_mut(gfn)) {
            *frame = None;
        }
    }

    /// The lowest free frame above RAM.
    pub(super) fn free_above(&self) -> Option<u64> {
        let first = self.ram_frames();
        (first..first + Self::ABOVE).find(|gfn| !self.above.contains_key(gfn))
    }

    /// Makes a frame above RAM; `false` when it is in use, is RAM, or lies absurdly high.
    pub(super) fn allocate_above(&mut self, gfn: u64) -> bool {
        let first = self.ram_frames();
        if !(first..first + Self::ABOVE).contains(&gfn) || self.above.contains_key(&gfn) {
            return false;
        }
        self.above.insert(gfn, Box::new([0; 4096]));
        true
    }

    /// Takes a frame above RAM away; `false` when there was none.
    pub(super) fn free(&mut self, gfn: u64) -> bool {
        self.above.remove(&gfn).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_memory_is_zero_and_the_end_is_known() {
        let mut memory = Memory::new(0x4000);
        let mut bytes = [1; 16];
        memory.read(0x1ff8, &mut bytes).expect("in RAM");
        assert_eq!(bytes, [0; 16]);
        memory.write(0x1ffe, &[1, 2, 3, 4]).expect("in RAM");
        memory.read(0x1ffc, &mut bytes).expect("in RAM");
        assert_eq!(&bytes[..6], &[0, 0, 1, 2, 3, 4]);
        assert!(matches!(memory.read(0x3ff8, &mut bytes), Err(VmiError::OutOfBounds(Pa(0x4000)))));
        assert!(matches!(memory.write(0x3ff8, &bytes), Err(VmiError::OutOfBounds(Pa(0x4000)))));
        assert_eq!(memory.read_u64(0x3ff8), Some(0), "a refused write writes nothing");
        assert!(matches!(memory.read(u64::MAX - 3, &mut bytes), Err(VmiError::OutOfBounds(_))));
    }

    #[test]
    fn a_patched_copy_is_the_page_but_for_the_patch() {
        let mut memory = Memory::new(0x2000);
        assert!(memory.allocate_above(2));
        let mut saved = [0; 2];
        memory.write(0x1ffc, &[1, 2, 3, 4]).expect("in RAM");
        assert_eq!(memory.copy_patched(1, 2, 0xffd, &[7, 8], &mut saved), Some(()));
        let mut bytes = [0; 4];
        memory.read(0x2ffc, &mut bytes).expect("allocated");
        assert_eq!((bytes, saved), ([1, 7, 8, 4], [2, 3]));
        // A frame that nobody wrote is zeros, over whatever the other one held.
        assert_eq!(memory.copy_patched(0, 2, 0, &[9], &mut saved[..1]), Some(()));
        memory.read(0x2ffc, &mut bytes).expect("allocated");
        assert_eq!((bytes, saved), ([0; 4], [0, 3]));
        assert_eq!(memory.copy_patched(0, 3, 0, &[9], &mut saved[..1]), None);
        assert_eq!(memory.copy_patched(2, 2, 0, &[9], &mut saved[..1]), None);
    }

    #[test]
    fn frames_above_ram_come_and_go() {
        let mut memory = Memory::new(0x4000);
        assert_eq!(memory.free_above(), Some(4));
        assert!(memory.allocate_above(4) && !memory.allocate_above(4) && !memory.allocate_above(3));
        assert_eq!(memory.free_above(), Some(5));
        memory.write(0x4000, &[7]).expect("allocated");
        assert!(memory.free(4) && !memory.free(4) && !memory.exists(4));
    }
}
