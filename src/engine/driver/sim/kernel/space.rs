//! Physical frames and the building of page tables, from the machine's side: what a boot loader and a memory manager
//! would have done before the guest is first looked at.

use std::collections::VecDeque;

use crate::engine::{addr::Va, arch::amd64::PageTableLevel, driver::sim::memory::Memory, error::VmiError};

/// Present.
pub(super) const PRESENT: u64 = 1;
/// Present and writable, kernel only.
pub(super) const KERNEL: u64 = 0x3;
/// Present, writable, user.
pub(super) const USER: u64 = 0x7;
/// Present, read-only, user.
pub(super) const USER_READ: u64 = 0x5;
/// Maps a large page.
const LARGE: u64 = 0x80;
/// No execution.
pub(super) const NO_EXECUTE: u64 = 1 << 63;
/// The frame's bits.
pub(super) const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Frames of RAM that are not in use.
#[derive(Debug)]
pub(super) struct Frames {
    next: u64,
    end: u64,
    freed: VecDeque<u64>,
}

impl Frames {
    pub(super) fn new(first: u64, end: u64) -> Self {
        Self { next: first, end, freed: VecDeque::new() }
    }

    /// The physical address of a frame of zeros.
    pub(super) fn take(&mut self) -> Result<u64, VmiError> {
        self.take_run(1)
    }

    /// The first physical address of frames that follow each other.
    pub(super) fn take_run(&mut self, count: u64) -> Result<u64, VmiError> {
        if count == 1
            && let Some(frame) = self.freed.pop_front()
        {
            return Ok(frame << 12);
        }
        let first = self.next;
        if count > self.end.saturating_sub(first) {
            return Err(VmiError::Invalid(
                "the built-in guest's memory is full: ask for fewer processes (--processes)".to_owned(),
            ));
        }
        self.next += count;
        Ok(first << 12)
    }

    /// How many are left.
    pub(super) fn left(&self) -> u64 {
        self.end - self.next + self.freed.len() as u64
    }

    /// Gives a frame back, without its contents.
    pub(super) fn free(&mut self, memory: &mut Memory, pa: u64) {
        memory.clear(pa >> 12);
        self.freed.push_back(pa >> 12);
    }
}

/// Page tables under one root.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub(super) root: u64,
    pub(super) levels: u8,
}

impl Space {
    /// The physical address of the entry of a level, with the tables above it made where they are missing.
    pub(super) fn entry(
        self,
        memory: &mut Memory,
        frames: &mut Frames,
        va: u64,
        at: PageTableLevel,
    ) -> Result<u64, VmiError> {
        let user = va >> 63 == 0;
        let mut table = self.root;
        for &level in PageTableLevel::walk(self.levels) {
            let entry = table + level.index(Va(va)) * 8;
            if level == at {
                return Ok(entry);
            }
            let value = memory.read_u64(entry).unwrap_or(0);
            table = if value & PRESENT != 0 {
                value & FRAME
            } else {
                let frame = frames.take()?;
                memory.write_u64(entry, frame | if user { USER } else { KERNEL });
                frame
            };
        }
        Ok(table)
    }

    /// Maps pages that follow each other physically.
    pub(super) fn map(
        self,
        memory: &mut Memory,
        frames: &mut Frames,
        (va, pa, pages): (u64, u64, u64),
        flags: u64,
    ) -> Result<(), VmiError> {
        for page in 0..pages {
            let entry = self.entry(memory, frames, va + page * 0x1000, PageTableLevel::Pt)?;
            memory.write_u64(entry, (pa + page * 0x1000) | flags);
        }
        Ok(())
    }

    /// Maps all of RAM by large pages.
    pub(super) fn map_all(self, memory: &mut Memory, frames: &mut Frames, va: u64) -> Result<(), VmiError> {
        for pa in (0..memory.ram_frames() << 12).step_by(2 << 20) {
            let entry = self.entry(memory, frames, va + pa, PageTableLevel::Pd)?;
            memory.write_u64(entry, pa | KERNEL | LARGE | NO_EXECUTE);
        }
        Ok(())
    }

    /// The entry that a walk ends at: its level, where it is, its value. The walk ends at a page or at the first entry
    /// that is not present.
    pub(super) fn walk(self, memory: &Memory, va: u64) -> (PageTableLevel, u64, u64) {
        let mut table = self.root;
        let mut last = (PageTableLevel::Pt, 0, 0);
        for &level in PageTableLevel::walk(self.levels) {
            let entry = table + level.index(Va(va)) * 8;
            let value = memory.read_u64(entry).unwrap_or(0);
            last = (level, entry, value);
            if value & PRESENT == 0 || value & LARGE != 0 {
                break;
            }
            table = value & FRAME;
        }
        last
    }
}
