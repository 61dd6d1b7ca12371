//! Guest memory that both engines and the floor read: one allocation, laid out once.

use std::cell::Cell;

/// A page, where a page of a real guest would lie: neither engine pays for entries or copies that straddle.
#[repr(C, align(4096))]
struct Page([Cell<u64>; 512]);

/// Flat guest-physical memory in 64-bit words; every page was written once, so that none of them is the host's page of
/// zeros.
pub struct Memory {
    pages: Box<[Page]>,
}

impl Memory {
    pub fn new(pages: u64) -> Self {
        Self { pages: (0..pages).map(|_| Page([const { Cell::new(0) }; 512])).collect() }
    }

    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    #[inline]
    pub fn get(&self, pa: u64) -> Option<u64> {
        Some(self.pages.get((pa >> 12) as usize)?.0[(pa as usize >> 3) & 511].get())
    }

    pub fn set(&self, pa: u64, value: u64) {
        self.pages[(pa >> 12) as usize].0[(pa as usize >> 3) & 511].set(value);
    }

    /// The bytes of a page.
    #[inline]
    pub fn page(&self, gfn: u64) -> Option<*const u8> {
        self.pages.get(gfn as usize).map(|page| page.0.as_ptr().cast())
    }

    /// Where the bytes of an access begin, if they lie in one page; no engine asks for more at once here.
    #[inline]
    fn bytes(&self, pa: u64, length: usize) -> Option<*mut u8> {
        let offset = pa as usize & 0xfff;
        let page = self.page(pa >> 12).filter(|_| offset + length <= 4096)?;
        // SAFETY: the offset is within the page.
        Some(unsafe { page.add(offset) }.cast_mut())
    }

    /// Copies bytes of one page out.
    #[inline]
    pub fn read(&self, pa: u64, buffer: &mut [u8]) -> Option<()> {
        let from = self.bytes(pa, buffer.len())?;
        // SAFETY: as many bytes of a page of cells, which no reference covers.
        unsafe { std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), buffer.len()) };
        Some(())
    }

    /// Copies bytes into one page.
    #[inline]
    pub fn write(&self, pa: u64, bytes: &[u8]) -> Option<()> {
        let to = self.bytes(pa, bytes.len())?;
        // SAFETY: as many bytes of a page of cells, which may change behind a shared reference. (`copy`, because the
        // peer lends a page of this memory out and writes from it.)
        unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) };
        Some(())
    }

    /// Copies a page to another place of this memory.
    #[inline]
    pub fn copy(&self, from: u64, to: u64) -> Option<()> {
        let (from, to) = (self.page(from)?, self.page(to)?);
        // SAFETY: two pages of cells; the same one twice is no overlap that `copy` would mind.
        unsafe { std::ptr::copy(from, to.cast_mut(), 4096) };
        Some(())
    }
}

/// What a driver's hypervisor keeps for each frame, in two views: arrays, as the processor's own tables are. A hash map
/// here would add to both engines what neither of them costs.
pub struct Views<Access> {
    access: [Box<[Cell<Access>]>; 2],
    shown: [Box<[Cell<u64>]>; 2],
}

impl<Access: Copy> Views<Access> {
    pub fn new(memory: &Memory, access: Access) -> Self {
        let frames = || 0..memory.pages();
        Self {
            access: std::array::from_fn(|_| frames().map(|_| Cell::new(access)).collect()),
            shown: std::array::from_fn(|_| frames().map(Cell::new).collect()),
        }
    }

    /// The permissions of a frame in a view.
    pub fn access(&self, view: u16, gfn: u64) -> Option<&Cell<Access>> {
        self.access.get(usize::from(view))?.get(gfn as usize)
    }

    /// The frame that a view shows.
    pub fn shown(&self, view: u16, gfn: u64) -> Option<&Cell<u64>> {
        self.shown.get(usize::from(view))?.get(gfn as usize)
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
