//! Guest memory that both engines and the floor read: one allocation, laid out once.

use std::cell::Cell;

/// Flat guest-physical memory in 64-bit words; shared so that every driver sees the same bytes.
pub struct Memory {
    words: Box<[Cell<u64>]>,
}

impl Memory {
    pub fn new(pages: u64) -> Self {
        Self { words: vec![Cell::new(0); pages as usize * 512].into_boxed_slice() }
    }

    pub fn pages(&self) -> u64 {
        self.words.len() as u64 / 512
    }

    #[inline]
    pub fn get(&self, pa: u64) -> Option<u64> {
        self.words.get(pa as usize / 8).map(Cell::get)
    }

    pub fn set(&self, pa: u64, value: u64) {
        self.words[pa as usize / 8].set(value);
    }

    /// The bytes of a page, for the peer, whose drivers lend pages out. Nothing writes while they are borrowed.
    pub fn page(&self, gfn: u64) -> Option<*const u8> {
        let start = gfn as usize * 512;
        self.words.get(start..start + 512).map(|page| page.as_ptr().cast())
    }

    /// Copies bytes; whole aligned words at once, as a memory copy would.
    pub fn read(&self, pa: u64, buffer: &mut [u8]) -> Option<()> {
        if pa & 7 == 0 && buffer.len() & 7 == 0 {
            let words = self.words.get(pa as usize / 8..(pa as usize + buffer.len()) / 8)?;
            for (chunk, word) in buffer.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *chunk = word.get().to_le_bytes();
            }
            return Some(());
        }
        for (i, byte) in buffer.iter_mut().enumerate() {
            let at = pa + i as u64;
            *byte = (self.get(at & !7)? >> (8 * (at & 7))) as u8;
        }
        Some(())
    }

    /// Writes bytes, as [`Memory::read`] reads them.
    pub fn write(&self, pa: u64, bytes: &[u8]) -> Option<()> {
        if pa & 7 == 0 && bytes.len() & 7 == 0 {
            let words = self.words.get(pa as usize / 8..(pa as usize + bytes.len()) / 8)?;
            for (chunk, word) in bytes.as_chunks::<8>().0.iter().zip(words) {
                word.set(u64::from_le_bytes(*chunk));
            }
            return Some(());
        }
        for (i, &byte) in bytes.iter().enumerate() {
            let at = pa + i as u64;
            let shift = 8 * (at & 7);
            let word = self.get(at & !7)?;
            self.set(at & !7, word & !(0xff << shift) | u64::from(byte) << shift);
        }
        Some(())
    }

    /// Copies a page.
    pub fn copy_page(&self, gfn: u64, buffer: &mut [u8; 4096]) -> Option<()> {
        self.read(gfn * 4096, buffer)
    }
}

/// A guest: `n` pages mapped from `BASE` on, `step` bytes apart (0x1000: dense tables; 0x20_0000: a table per page).
pub struct Layout {
    pub memory: Memory,
    pub root: u64,
    pub guest_pages: u64,
}

pub const BASE: u64 = 0x7f00_0000_0000;

impl Layout {
    pub fn new(n: u64, step: u64, shadow_pages: u64) -> Self {
        let tables = if step == 0x1000 { n / 512 + 64 } else { n + n / 512 + 64 };
        let data = 16 + tables;
        let memory = Memory::new(data + n + shadow_pages);
        let mut next = 16;
        let mut take = || {
            next += 1;
            next - 1
        };
        let root = take();
        for i in 0..n {
            let va = BASE + i * step;
            let mut table = root;
            for shift in [39, 30, 21] {
                let slot = table * 4096 + ((va >> shift) & 0x1ff) * 8;
                let entry = memory.get(slot).unwrap();
                table = if entry & 1 == 0 {
                    let new = take();
                    memory.set(slot, (new << 12) | 7);
                    new
                } else {
                    entry >> 12
                };
            }
            memory.set(table * 4096 + ((va >> 12) & 0x1ff) * 8, ((data + i) << 12) | 7);
        }
        assert!(next <= data);
        Self { memory, root: root << 12, guest_pages: data + n }
    }
}

/// The plain floor: a walk and a cache with nothing around them.
#[inline]
pub fn walk(memory: &Memory, va: u64, root: u64) -> Option<u64> {
    let mut table = root;
    for shift in [39u32, 30, 21, 12] {
        let entry = memory.get(table + ((va >> shift) & 0x1ff) * 8)?;
        if entry & 1 == 0 {
            return None;
        }
        table = entry & 0x000f_ffff_ffff_f000;
        if entry & 0x80 != 0 && (shift == 30 || shift == 21) {
            let mask = (1u64 << shift) - 1;
            return Some((table & !mask) | (va & mask));
        }
    }
    Some(table | (va & 0xfff))
}

#[derive(Clone, Copy)]
struct Slot {
    page: u64,
    root: u64,
    frame: u64,
    generation: u64,
}

/// A page-granular cache in front of [`walk`].
pub struct FloorCache {
    slots: Vec<Slot>,
    generation: u64,
}

impl FloorCache {
    pub fn new(slots: usize) -> Self {
        Self { slots: vec![Slot { page: !0, root: 0, frame: 0, generation: 0 }; slots], generation: 1 }
    }

    #[inline]
    pub fn get(&mut self, memory: &Memory, va: u64, root: u64) -> Option<u64> {
        let page = va >> 12;
        let at = (page ^ (root >> 12).wrapping_mul(0x9e37)) as usize & (self.slots.len() - 1);
        let slot = &mut self.slots[at];
        if slot.page == page && slot.root == root && slot.generation == self.generation {
            return Some(slot.frame | (va & 0xfff));
        }
        let pa = walk(memory, va, root)?;
        *slot = Slot { page, root, frame: pa & !0xfff, generation: self.generation };
        Some(pa)
    }

    pub fn flush(&mut self) {
        self.generation += 1;
    }
}
