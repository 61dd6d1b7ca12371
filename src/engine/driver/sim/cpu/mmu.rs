//! The memory management unit: page walks with accessed and dirty bits (Intel SDM volume 3A, sections 4.5 to 4.8),
//! then the view's permissions and remapping (volume 3C, section 29.3), for every access that a vCPU makes.

use super::{Core, Stop, protection};
use crate::engine::{
    addr::{Pa, Va},
    arch::{
        EventMemoryAccess,
        amd64::{Amd64EventReason, Interrupt, PageTableEntry, PageTableLevel, is_canonical},
    },
    driver::MemoryAccess,
};

const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;

/// What an access is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Read,
    Write,
    /// Read, change, write back.
    Modify,
    Execute,
}

impl Need {
    pub(super) const fn access(self) -> MemoryAccess {
        match self {
            Self::Read => MemoryAccess::R,
            Self::Write => MemoryAccess::W,
            Self::Modify => MemoryAccess::RW,
            Self::Execute => MemoryAccess::X,
        }
    }

    const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Modify)
    }
}

/// Where some bytes lie: in one page, or at the end of one and the start of another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    first: (u64, usize),
    second: (u64, usize),
}

impl Core<'_> {
    /// The address in the machine's memory that an access ends at, behind page tables and view.
    #[inline]
    pub(super) fn resolve(&mut self, va: u64, need: Need, user: bool) -> Result<u64, Stop> {
        let (page, root, view) = (va >> 12, self.cpu.registers.cr3, self.cpu.view);
        // What is emulated is allowed only this once.
        if self.cpu.emulate {
            let gpa = self.translate(va, need, user)?;
            return self.through_view(gpa, va, need.access());
        }
        if let Some(frame) = self.tlb.get(page, root, view, user, need) {
            return Ok(frame << 12 | va & 0xfff);
        }
        let gpa = self.translate(va, need, user)?;
        let host = self.through_view(gpa, va, need.access())?;
        self.tlb.put(page, root, view, (user, need), host >> 12);
        Ok(host)
    }

    /// The guest-physical address of a virtual one, with accessed and dirty bits set on the way.
    fn translate(&mut self, va: u64, need: Need, user: bool) -> Result<u64, Stop> {
        let levels = self.cpu.registers.paging_levels();
        if !is_canonical(Va(va), levels) {
            return Err(protection());
        }
        let fault = |present: bool, reserved: bool| {
            let code = u32::from(present)
                | u32::from(need.writes()) << 1
                | u32::from(user) << 2
                | u32::from(reserved) << 3
                | u32::from(need == Need::Execute) << 4;
            Stop::Exception(Interrupt::page_fault(va, code))
        };
        let mut table = self.cpu.registers.root().0;
        let mut rights = WRITABLE | USER;
        for &level in PageTableLevel::walk(levels) {
            let at = table + level.index(Va(va)) * 8;
            let host = self.through_view(at, va, MemoryAccess::R)?;
            self.tlb.walked(host >> 12);
            let raw = self.memory.read_u64(host).unwrap_or(0);
            let entry = PageTableEntry(raw);
            if !entry.is_present() {
                return Err(fault(false, false));
            }
            if entry.has_reserved_bits(level) {
                return Err(fault(true, true));
            }
            rights = rights & raw | (rights | raw) & NO_EXECUTE;
            let leaf = entry.is_leaf(level);
            if leaf {
                let refused = user && rights & USER == 0
                    || need.writes() && rights & WRITABLE == 0
                    || need == Need::Execute && rights & NO_EXECUTE != 0;
                if refused {
                    return Err(fault(true, false));
                }
            }
            let marks = if leaf && need.writes() { ACCESSED | DIRTY } else { ACCESSED };
            if raw & marks != marks {
                self.mark(at, va, raw | marks)?;
            }
            if leaf {
                return Ok(entry.address(level).0 + (va & (level.page_bytes() - 1)));
            }
            table = entry.address(level).0;
        }
        Err(fault(false, false))
    }

    /// Writes an entry back with its accessed and dirty bits.
    fn mark(&mut self, at: u64, va: u64, entry: u64) -> Result<(), Stop> {
        let mapping = self.views.get(self.cpu.view, at >> 12);
        let allowed = mapping.options.ignore_page_walk_updates || self.cpu.emulate;
        if !allowed && !mapping.access.contains(MemoryAccess::W) {
            return Err(violation(at, va, MemoryAccess::W));
        }
        self.memory.write_u64(mapping.shows << 12 | at & 0xfff, entry);
        Ok(())
    }

    /// The same translation without side effects, of whatever is mapped.
    pub(in crate::engine::driver::sim) fn peek(&self, va: u64) -> Option<u64> {
        let levels = self.cpu.registers.paging_levels();
        let mut table = self.cpu.registers.root().0;
        for &level in PageTableLevel::walk(levels) {
            let entry = PageTableEntry(self.memory.read_u64(table + level.index(Va(va)) * 8)?);
            if !entry.is_present() {
                return None;
            }
            if entry.is_leaf(level) {
                return Some(entry.address(level).0 + (va & (level.page_bytes() - 1)));
            }
            table = entry.address(level).0;
        }
        None
    }

    /// What the current view shows at a guest-physical address, if it allows the access.
    #[inline]
    pub(super) fn through_view(&self, gpa: u64, va: u64, access: MemoryAccess) -> Result<u64, Stop> {
        let mapping = self.views.get(self.cpu.view, gpa >> 12);
        if !mapping.access.contains(access) && !self.cpu.emulate {
            return Err(violation(gpa, va, access));
        }
        Ok(mapping.shows << 12 | gpa & 0xfff)
    }

    /// Finds up to a page of bytes for an access; nothing is written before all of it was found.
    pub(super) fn locate(&mut self, va: u64, length: usize, need: Need, user: bool) -> Result<Place, Stop> {
        let room = 4096 - (va & 0xfff) as usize;
        let first = self.resolve(va, need, user)?;
        if length <= room {
            return Ok(Place { first: (first, length), second: (0, 0) });
        }
        let behind = va.wrapping_add(room as u64);
        let second = self.resolve(behind, need, user)?;
        Ok(Place { first: (first, room), second: (second, length - room) })
    }

    /// Up to eight bytes, little-endian.
    pub(super) fn get(&self, place: Place) -> u64 {
        if place.first.1 == 8 {
            return self.memory.read_u64(place.first.0).unwrap_or(u64::MAX);
        }
        let mut bytes = [0xff; 8];
        let total = (place.first.1 + place.second.1).min(8);
        if let Some((head, tail)) = bytes.get_mut(..total).and_then(|b| b.split_at_mut_checked(place.first.1)) {
            // Where there is no memory the bytes stay ones.
            let _ = self.memory.read(place.first.0, head);
            let _ = self.memory.read(place.second.0, tail);
        }
        if total < 8 { u64::from_le_bytes(bytes) & ((1 << (total * 8)) - 1) } else { u64::from_le_bytes(bytes) }
    }

    /// Writes bytes to a place of their length; writes to where there is no memory are lost.
    pub(super) fn put(&mut self, place: Place, bytes: &[u8]) {
        if let Some((head, tail)) = bytes.split_at_checked(place.first.1) {
            let _ = self.memory.write(place.first.0, head);
            self.tlb.written(place.first.0 >> 12);
            if !tail.is_empty() {
                let _ = self.memory.write(place.second.0, tail);
                self.tlb.written(place.second.0 >> 12);
            }
        }
    }

    /// Reads up to eight bytes.
    pub(super) fn load(&mut self, va: u64, size: usize, user: bool) -> Result<u64, Stop> {
        let place = self.locate(va, size, Need::Read, user)?;
        Ok(self.get(place))
    }

    /// Writes up to eight bytes.
    pub(super) fn store(&mut self, va: u64, size: usize, value: u64, user: bool) -> Result<(), Stop> {
        let place = self.locate(va, size, Need::Write, user)?;
        self.put(place, value.to_le_bytes().get(..size).unwrap_or(&[]));
        Ok(())
    }
}

fn violation(gpa: u64, va: u64, access: MemoryAccess) -> Stop {
    Stop::Event(Amd64EventReason::MemoryAccess(EventMemoryAccess { pa: Pa(gpa), va: Va(va), access }))
}
