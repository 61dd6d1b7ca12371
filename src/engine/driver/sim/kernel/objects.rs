//! The kernel's objects in guest memory: `_EPROCESS`, `_ETHREAD`, the tree of VADs, the table of ids.

use std::collections::VecDeque;

use super::{
    Kernel,
    contents::page,
    process::{Process, state},
    schedule::ThreadId,
    user::{Habits, IMAGE_BYTES, LIBRARY, MODULES32, image_path, path32},
};
use crate::engine::{driver::sim::memory::Memory, error::VmiError};

/// KOBJECTS: the type of a dispatcher object.
const PROCESS_OBJECT: u64 = 3;
const THREAD_OBJECT: u64 = 6;

/// Bytes of a process's place: its object, those of its threads, its handles, its token, its VADs, small objects of its
/// own. In front of each object is room for its header.
pub(super) const PLACE: u64 = 0x4000;
pub(super) const PROCESS_AT: u64 = 0x80;
pub(super) const THREADS_AT: [u64; 2] = [0xb00, 0x1400];
const WOW64_AT: u64 = 0x1fc0;
/// A page of entries.
pub(super) const HANDLES_AT: u64 = 0x2000;
pub(super) const TOKEN_AT: u64 = 0x3030;
const VADS_AT: u64 = 0x3680;
/// Distance of two VADs: the longer form and a bit of room.
const VAD: u64 = 0x90;

/// Where the small objects of a process lie in its place.
pub(super) struct Own {
    pub(super) port: u64,
    pub(super) table: u64,
    pub(super) event: u64,
    pub(super) mutant: u64,
    pub(super) mutant_name: u64,
    pub(super) file: u64,
    pub(super) file_name: u64,
}

pub(super) const OWN: Own = Own {
    port: 0x1d00,
    table: 0x3600,
    event: 0x3c70,
    mutant: 0x3ce0,
    mutant_name: 0x3e30,
    file: 0x3d50,
    file_name: 0x3ec0,
};

/// The places of process objects and kernel stacks: both contiguous, physically and virtually.
#[derive(Debug)]
pub(super) struct Objects {
    pub(super) va: u64,
    pub(super) pa: u64,
    pub(super) stacks_va: u64,
    pub(super) stacks_pa: u64,
    pub(super) free: VecDeque<usize>,
    pub(super) free_threads: VecDeque<ThreadId>,
    pub(super) serial: u64,
}

impl Objects {
    /// Distance of two stacks: one page, and one that is not mapped.
    pub(super) const STACK_STRIDE: u64 = 0x2000;

    pub(super) fn physical(&self, va: u64) -> u64 {
        self.pa + va.wrapping_sub(self.va)
    }

    /// The top of a thread's kernel stack.
    pub(super) fn stack_top(&self, id: ThreadId) -> u64 {
        self.stacks_va + id as u64 * Self::STACK_STRIDE + 0x1000
    }

    pub(super) fn stack_physical(&self, id: ThreadId) -> u64 {
        self.stacks_pa + id as u64 * 0x1000 + 0x1000
    }
}

/// `PspCidTable`: a `_HANDLE_TABLE` of two levels whose entries name process and thread objects.
#[derive(Debug)]
pub(super) struct CidTable {
    /// Physical address of the upper level, a page of pointers to pages of 256 entries.
    pub(super) top: u64,
    pub(super) next: u64,
    pub(super) free: VecDeque<u64>,
}

impl CidTable {
    /// How many freed ids wait before the first of them is used again.
    const REST: usize = 32;
    /// Ids end here: 512 pages of 256 entries, 4 apart.
    const END: u64 = 512 * 256 * 4;
}

impl Kernel {
    /// An unused id.
    pub(super) fn take_id(&mut self) -> Result<u64, VmiError> {
        if self.cid.free.len() > CidTable::REST
            && let Some(id) = self.cid.free.pop_front()
        {
            return Ok(id);
        }
        self.cid.next += 4 * (1 + self.random.below(4));
        if self.cid.next < CidTable::END {
            Ok(self.cid.next)
        } else {
            let all_used = || VmiError::Invalid("the built-in guest has no more process ids".to_owned());
            self.cid.free.pop_front().ok_or_else(all_used)
        }
    }

    /// Writes an entry of the CID table; 0 frees it.
    pub(super) fn set_id(&mut self, memory: &mut Memory, id: u64, object: u64) -> Result<(), VmiError> {
        let index = id / 4;
        let slot = self.cid.top + index / 256 * 8;
        let mut page = memory.read_u64(slot).unwrap_or(0);
        if page == 0 {
            page = self.direct + self.frames.take()?;
            memory.write_u64(slot, page);
        }
        // _HANDLE_TABLE_ENTRY: bit 0 unlocked, the object's address without its upper 16 and lower 4 bits from bit 20 on.
        let entry = if object == 0 { 0 } else { (object & 0xffff_ffff_fff0) << 16 | 1 };
        memory.write_u64(page - self.direct + index % 256 * 16, entry);
        Ok(())
    }

    pub(super) fn write_process(
        &mut self,
        memory: &mut Memory,
        process: &Process,
        habits: Habits,
        now: u64,
    ) -> Result<(), VmiError> {
        let f = &self.facts;
        let pa = self.objects.physical(process.object);
        // The place may have been another's.
        for page in 0..PLACE / 0x1000 {
            memory.clear((pa >> 12) + page);
        }
        let boot = self.boot_time();
        memory.write_u64(pa + f.dispatcher_type, PROCESS_OBJECT);
        memory.write_u64(pa + f.directory_table_base, process.space.root);
        memory.write_u64(pa + f.pid, process.pid);
        let links = process.object + f.links;
        memory.write_u64(pa + f.links, links);
        memory.write_u64(pa + f.links + 8, links);
        memory.write_u64(pa + f.create_time, boot + now / 100);
        memory.write_u64(pa + f.parent, process.ppid);
        let mut name = [0; 15];
        for (to, from) in name.iter_mut().take(14).zip(process.name.bytes()) {
            *to = from;
        }
        let _ = memory.write(pa + f.image_file_name, &name);
        if process.region != 0 {
            memory.write_u64(pa + f.peb, process.region + page::PEB * 0x1000);
            let base = process.program.and_then(|program| self.programs.get(program)).map_or(0, |p| p.base);
            memory.write_u64(pa + f.section_base, base);
        }
        if habits.wow64 {
            let wow64 = process.object - PROCESS_AT + WOW64_AT;
            memory.write_u64(pa + f.wow64, wow64);
            let at = self.objects.physical(wow64);
            memory.write_u64(at + f.wow64_peb, process.region + page::PEB32 * 0x1000);
            // IMAGE_FILE_MACHINE_I386.
            let _ = memory.write(at + f.wow64_machine, &0x14c_u16.to_le_bytes());
        }
        let _ = memory.write(pa + f.active_threads, &(process.threads.len() as u32).to_le_bytes());
        self.write_threads(memory, process);
        self.write_regions(memory, process, habits);
        self.write_token(memory, process);
        self.write_handles(memory, process)
    }

    /// Writes the thread objects of a process once more, after a change.
    pub(super) fn rewrite_threads(&self, memory: &mut Memory, place: usize) {
        if let Some(process) = self.process(place) {
            self.write_threads(memory, process);
        }
    }

    fn write_threads(&self, memory: &mut Memory, process: &Process) {
        let f = &self.facts;
        let head = process.object + f.thread_list;
        let mut before = head;
        for &id in &process.threads {
            let Some(thread) = self.thread(id) else { continue };
            let pa = self.objects.physical(thread.object);
            let top = self.objects.stack_top(id);
            memory.write_u64(pa + f.dispatcher_type, THREAD_OBJECT);
            memory.write_u64(pa + f.initial_stack, top);
            memory.write_u64(pa + f.stack_base, top);
            memory.write_u64(pa + f.stack_limit, top - 0x1000);
            memory.write_u64(pa + f.kernel_stack, top);
            memory.write_u64(pa + f.apc_state + f.apc_process, process.object);
            memory.write_u64(pa + f.thread_process, process.object);
            if process.region != 0 {
                memory.write_u64(pa + f.teb, process.region + page::TEB * 0x1000);
            }
            memory.write_u64(pa + f.cid, process.pid);
            memory.write_u64(pa + f.cid + f.cid_thread, thread.tid);
            memory.write_u64(pa + f.start_address, thread.start);
            memory.write_u64(pa + f.win32_start_address, thread.start);
            let _ = memory.write(pa + f.thread_state, &[state::WAITING]);
            let links = thread.object + f.thread_links;
            memory.write_u64(self.objects.physical(before), links);
            memory.write_u64(pa + f.thread_links + 8, before);
            before = links;
        }
        memory.write_u64(self.objects.physical(before), head);
        memory.write_u64(self.objects.physical(head) + 8, before);
    }

    /// The tree under `_EPROCESS.VadRoot`: `_MMVAD_SHORT` for private memory, `_MMVAD` for images.
    fn write_regions(&self, memory: &mut Memory, process: &Process, habits: Habits) {
        let Some(program) = process.program.and_then(|program| self.programs.get(program)) else { return };
        // MM_READWRITE, MM_READONLY, MM_EXECUTE_WRITECOPY; VadImageMap.
        const PRIVATE: u64 = 4 << 7 | 1 << 20;
        const IMAGE: u64 = 7 << 7 | 2 << 4;
        let own = |first: u64, pages: u64| {
            let start = process.region / 0x1000 + first;
            (start, start + pages - 1, PRIVATE, 0)
        };
        let image = |base: u64, bytes: u64, path: &str| {
            let section = self.names.find(&format!("section of {path}"));
            (base / 0x1000, (base + bytes) / 0x1000 - 1, IMAGE, section)
        };
        let mut regions = vec![
            own(0, 2 * page::STACK),
            own(page::PEB, 2),
            own(page::PARAMETERS, 2),
            own(page::HEAP, page::HEAP_PAGES),
            image(program.base, IMAGE_BYTES, &image_path(program.name)),
            image(self.library, IMAGE_BYTES, LIBRARY),
        ];
        if habits.wow64 {
            regions.extend(MODULES32.iter().map(|&(base, bytes, name)| image(base, bytes, &path32(name))));
            regions.push(own(page::PEB32, 1));
            regions.push(own(page::MODULES32, 1));
        }
        regions.sort_unstable();
        let at = |index: usize| process.object - PROCESS_AT + VADS_AT + index as u64 * VAD;
        let root = self.objects.physical(process.object) + self.facts.vad_root;
        // The middle of each half is the root of its subtree.
        let mut halves = vec![(0, regions.len(), root, 0)];
        while let Some((from, to, link, parent)) = halves.pop() {
            if from >= to {
                continue;
            }
            let middle = (from + to) / 2;
            let Some(&(start, end, flags, section)) = regions.get(middle) else { continue };
            let f = &self.facts;
            let pa = self.objects.physical(at(middle));
            memory.write_u64(link, at(middle));
            memory.write_u64(pa + f.vad_parent, parent);
            let _ = memory.write(pa + f.vad_start, &(start as u32).to_le_bytes());
            let _ = memory.write(pa + f.vad_end, &(end as u32).to_le_bytes());
            let _ = memory.write(pa + f.vad_start_high, &[(start >> 32) as u8]);
            let _ = memory.write(pa + f.vad_end_high, &[(end >> 32) as u8]);
            let _ = memory.write(pa + f.vad_flags, &(flags as u32).to_le_bytes());
            memory.write_u64(pa + f.vad_subsection, section);
            halves.push((from, middle, pa + f.vad_left, at(middle)));
            halves.push((middle + 1, to, pa + f.vad_right, at(middle)));
        }
    }
}
