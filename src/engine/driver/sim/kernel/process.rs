//! Processes and threads: how they start, run and end.

use super::{
    Kernel,
    contents::page,
    objects::{PLACE, PROCESS_AT, THREADS_AT},
    schedule::ThreadId,
    space::{FRAME, NO_EXECUTE, PRESENT, Space, USER},
};
use crate::engine::{
    arch::amd64::PageTableLevel,
    driver::sim::{
        memory::Memory,
        vcpu::{USER_CS, USER_SS},
    },
    error::VmiError,
};

/// Values of `_KTHREAD.State` (KTHREAD_STATE).
pub(super) mod state {
    /// Ready to run.
    pub(in super::super) const READY: u8 = 1;
    /// Running.
    pub(in super::super) const RUNNING: u8 = 2;
    /// Ended.
    pub(in super::super) const TERMINATED: u8 = 4;
    /// Waiting.
    pub(in super::super) const WAITING: u8 = 5;
}

/// How long an ended process stays on the list.
const GONE_AFTER_NS: u64 = 250_000_000;

/// A process.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) pid: u64,
    pub(super) ppid: u64,
    pub(super) name: String,
    pub(super) program: Option<usize>,
    pub(super) space: Space,
    /// Virtual address of its `_EPROCESS`.
    pub(super) object: u64,
    /// Start of its private region; 0 where it has none.
    pub(super) region: u64,
    pub(super) threads: Vec<ThreadId>,
    /// Off the list by its own doing.
    pub(super) hidden: bool,
    /// On the list and in the CID table (or hidden).
    pub(super) is_known: bool,
    pub(super) exited_at: Option<u64>,
    /// Tells processes apart that have had the same place.
    pub(super) serial: u64,
}

/// A thread.
#[derive(Clone, Debug)]
pub(super) struct Thread {
    pub(super) process: usize,
    pub(super) vcpu: usize,
    pub(super) tid: u64,
    /// Virtual address of its `_ETHREAD`.
    pub(super) object: u64,
    /// Where it starts: in user mode for a program's thread.
    pub(super) start: u64,
    /// User stack; 0 for a system thread.
    pub(super) user_stack: u64,
    pub(super) started: bool,
    /// It waits for good, as far as we are concerned.
    pub(super) dormant: bool,
    /// The page-table entry that its fault waits for.
    pub(super) input_for: Option<u64>,
    /// The page-table entry that its fault is filling, and with what.
    pub(super) filling: Option<(u64, u64)>,
}

impl Kernel {
    /// Makes a process with its threads, on no list yet. The first threads' ids follow the process's own.
    pub(super) fn make_process(
        &mut self,
        memory: &mut Memory,
        (name, program, ppid): (&str, Option<usize>, u64),
        pid: Option<u64>,
        (threads, lazy): (usize, bool),
        now: u64,
    ) -> Result<usize, VmiError> {
        // Room for its tables and the pages that it will touch.
        if self.objects.free.is_empty() || self.objects.free_threads.len() < threads || self.frames.left() < 64 {
            return Err(VmiError::Invalid(
                "the built-in guest has no room for another process: ask for fewer (--processes)".to_owned(),
            ));
        }
        let pid = match pid {
            Some(pid) => pid,
            None => self.take_id()?,
        };
        let root = if pid == 4 || pid == 0 { self.system.root } else { self.frames.take()? };
        let place = self.objects.free.pop_front().unwrap_or(0);
        self.objects.serial += 1;
        let space = Space { root, levels: self.system.levels };
        let program_info = program.and_then(|program| self.programs.get(program)).cloned();
        // A 32-bit process has all of its own memory below 2 GiB.
        let region = program_info.as_ref().map_or(0, |program| match program.habits.wow64 {
            true => 0x1000_0000 + (self.random.below(0x300) << 21),
            false => 0x10_0000_0000 + (self.random.below(0x3_0000) << 21),
        });
        let mut process = Process {
            pid,
            ppid,
            // As much as the process object keeps.
            name: name.chars().take(14).collect(),
            program,
            space,
            object: self.objects.va + place as u64 * PLACE + PROCESS_AT,
            region,
            threads: Vec::new(),
            hidden: false,
            is_known: false,
            exited_at: None,
            serial: self.objects.serial,
        };
        if root != self.system.root {
            // Everything of the kernel is mapped alike in every address space.
            for index in 256..512 {
                let entry = memory.read_u64(self.system.root + index * 8).unwrap_or(0);
                if entry != 0 {
                    memory.write_u64(root + index * 8, entry);
                }
            }
        }
        let vcpu = place % self.vcpu_count();
        for index in 0..threads {
            let tid = self.take_id()?;
            let Some(id) = self.objects.free_threads.pop_front() else { break };
            let thread = Thread {
                process: place,
                vcpu,
                tid,
                object: self.objects.va + place as u64 * PLACE + THREADS_AT.get(index).copied().unwrap_or(0),
                start: program_info.as_ref().map_or(0, |program| program.entry),
                user_stack: if region == 0 { 0 } else { region + (index as u64 + 1) * page::STACK * 0x1000 - 0x28 },
                started: false,
                // One loop per process; a second thread only exists.
                dormant: index > 0 || region == 0,
                input_for: None,
                filling: None,
            };
            process.threads.push(id);
            if let Some(slot) = self.threads.get_mut(id) {
                *slot = Some(thread);
            }
        }
        let habits = program_info.as_ref().map(|program| program.habits).unwrap_or_default();
        self.write_process(memory, &process, habits, now)?;
        let made = process.clone();
        if let Some(slot) = self.processes.get_mut(place) {
            *slot = Some(process);
        }
        if let Some(program) = program_info {
            let tables = space.entry(memory, &mut self.frames, program.base, PageTableLevel::Pml4)?;
            memory.write_u64(tables, program.tables | USER);
            let low = space.entry(memory, &mut self.frames, region, PageTableLevel::Pml4)?;
            let entry = if lazy { self.pager.later() } else { self.build_region(memory, &made)? | USER };
            memory.write_u64(low, entry);
        }
        Ok(place)
    }

    /// How many vCPUs there are.
    fn vcpu_count(&self) -> usize {
        self.scheduler.vcpus().max(1)
    }

    /// `_KTHREAD.State`.
    pub(super) fn set_state(&self, memory: &mut Memory, id: ThreadId, state: u8) {
        if let Some(thread) = self.thread(id) {
            let _ = memory.write(self.objects.physical(thread.object) + self.facts.thread_state, &[state]);
        }
    }

    /// Makes a thread the running one; its object's address. A thread's first run finds the way to its start on its
    /// kernel stack.
    pub(super) fn start_running(&mut self, memory: &mut Memory, id: ThreadId) -> u64 {
        self.set_state(memory, id, state::RUNNING);
        let Some(thread) = self.threads.get_mut(id).and_then(Option::as_mut) else { return 0 };
        let object = thread.object;
        if std::mem::replace(&mut thread.started, true) {
            return object;
        }
        let (start, user_stack) = (thread.start, thread.user_stack);
        let symbol = |name: &str| self.base + self.facts.symbol(name).unwrap_or(0);
        let frame = if user_stack == 0 {
            vec![symbol("KiStartSystemThread"), start]
        } else {
            let flags = 0x202;
            vec![symbol("KiStartUserThread"), start, u64::from(USER_CS), flags, user_stack, u64::from(USER_SS)]
        };
        let size = frame.len() as u64 * 8;
        for (i, value) in frame.iter().enumerate() {
            memory.write_u64(self.objects.stack_physical(id) - size + i as u64 * 8, *value);
        }
        let pa = self.objects.physical(object);
        memory.write_u64(pa + self.facts.kernel_stack, self.objects.stack_top(id) - size);
        object
    }

    fn place_of(&self, object: u64) -> Option<usize> {
        let place = usize::try_from(object.checked_sub(self.objects.va)? / PLACE).ok()?;
        (self.process(place)?.object == object).then_some(place)
    }

    /// A process is on the list: into the CID table with it, and its threads may run.
    pub(super) fn created(&mut self, memory: &mut Memory, object: u64, now: u64) {
        let Some(place) = self.place_of(object) else { return };
        let first = now + 1_000 + self.random.below(1_000_000);
        self.admit(memory, place, first);
    }

    /// The same with the time at which its threads begin to run.
    pub(super) fn admit(&mut self, memory: &mut Memory, place: usize, first_run: u64) {
        let Some(process) = self.process_mut(place) else { return };
        process.is_known = true;
        let (pid, object, threads) = (process.pid, process.object, process.threads.clone());
        // Without room for another page of the table the process is only on the list.
        let _ = self.set_id(memory, pid, object);
        for id in threads {
            let Some(thread) = self.thread(id).cloned() else { continue };
            let _ = self.set_id(memory, thread.tid, thread.object);
            if !thread.dormant {
                self.scheduler.wake_at(thread.vcpu, id, first_run);
            }
        }
    }

    /// A program's wish for another process; the new object, or 0 while there are many already.
    pub(super) fn create_by_program(&mut self, memory: &mut Memory, vcpu: usize, now: u64) -> u64 {
        let Some(parent) = self.running(vcpu).and_then(|(_, place)| self.process(place)).map(|parent| parent.pid)
        else {
            return 0;
        };
        let short = |program: usize| self.programs.get(program).is_some_and(|program| program.habits.short_lived);
        let programs: Vec<usize> = (0..self.programs.len()).filter(|&program| short(program)).collect();
        let pick = self.random.below(programs.len() as u64) as usize;
        let Some(&program) = programs.get(pick) else { return 0 };
        self.create(memory, program, parent, now)
    }

    /// Makes a process of a program; its object, or 0 where there is no room.
    pub(super) fn create(&mut self, memory: &mut Memory, program: usize, parent: u64, now: u64) -> u64 {
        let Some(name) = self.programs.get(program).map(|program| program.name) else { return 0 };
        self.make_process(memory, (name, Some(program), parent), None, (1, false), now)
            .ok()
            .and_then(|place| self.process(place))
            .map_or(0, |process| process.object)
    }

    /// The running process ends: its object and the time.
    pub(super) fn exit(&mut self, memory: &mut Memory, vcpu: usize, now: u64) -> (u64, u64) {
        let Some((_, place)) = self.running(vcpu) else { return (0, 0) };
        let ended = self.boot_time() + now / 100;
        let Some(process) = self.process_mut(place) else { return (0, 0) };
        process.exited_at = Some(now);
        let (object, threads) = (process.object, process.threads.clone());
        for id in threads {
            self.set_state(memory, id, state::TERMINATED);
            self.scheduler.forget(vcpu, id);
        }
        self.worker.delete_at(now + GONE_AFTER_NS, object);
        (object, ended)
    }

    /// A process is off the list: everything of it goes.
    pub(super) fn deleted(&mut self, memory: &mut Memory, object: u64) {
        let Some(place) = self.place_of(object) else { return };
        let Some(process) = self.processes.get_mut(place).and_then(Option::take) else { return };
        let _ = self.set_id(memory, process.pid, 0);
        self.cid.free.push_back(process.pid);
        for &id in &process.threads {
            if let Some(thread) = self.threads.get_mut(id).and_then(Option::take) {
                let _ = self.set_id(memory, thread.tid, 0);
                self.cid.free.push_back(thread.tid);
            }
            self.objects.free_threads.push_back(id);
        }
        self.release_region(memory, &process);
        if process.space.levels == 5 {
            // The private table between the root and the shared ones.
            let entry = memory.read_u64(process.space.root).unwrap_or(0);
            if entry & PRESENT != 0 {
                self.frames.free(memory, entry & FRAME & !NO_EXECUTE);
            }
        }
        self.frames.free(memory, process.space.root);
        self.objects.free.push_back(place);
    }

    /// The time of booting as `KeBootTime` has it: 100 ns since 1601 (here 2020-10-20, 12:00 UTC).
    pub(super) fn boot_time(&self) -> u64 {
        132_476_688_000_000_000
    }
}
