//! The guest's kernel: Windows 10 (19041) as far as anyone looks at it from outside.
//!
//! Two halves. `code` is what the vCPUs execute, at the addresses of the real build; this module and its children are
//! the kernel's model, which that code asks by VMCALL: `schedule` (which thread is next), `pager` (which page goes and
//! comes), `process` (starts and exits), `objects` (their structures, the CID table), `worker` (the system thread:
//! trimming, deletion, integrity check, self-patching), `boot` (memory as it is after booting), `user` (programs),
//! `contents` (their pages), `space` (frames, page tables), `namespace` (object types, names, files, keys), `handles`,
//! `tokens`, `modules`. The structures are at the offsets of `facts`.
//!
//! Simplified against the real one: the CID table has one handle range for processes and threads and no locks; the
//! kernel reaches page tables through a map of all RAM instead of the self-map; processes have at most two threads; an
//! object's counts of references stay as they were at first, and all handles of a process to its data file lead to one
//! file object.

mod boot;
mod code;
mod contents;
mod facts;
mod handles;
mod modules;
mod namespace;
mod objects;
mod pager;
mod process;
mod schedule;
mod space;
mod tokens;
mod user;
mod worker;

use self::{
    code::Call,
    facts::Facts,
    namespace::Namespace,
    objects::{CidTable, Objects},
    pager::Pager,
    process::{Process, Thread},
    schedule::{Scheduler, ThreadId},
    space::{FRAME, Frames, PRESENT, Space},
    user::{NOWHERE, Program},
    worker::Worker,
};
use super::{SimProcess, memory::Memory, random::Random, vcpu::Vcpu};
use crate::engine::addr::{Pa, Va};

/// The kernel's model.
pub(super) struct Kernel {
    facts: Facts,
    random: Random,
    /// Virtual address of the image.
    base: u64,
    /// Virtual address of the map of all RAM.
    direct: u64,
    /// The system process's page tables, whose upper half every process has.
    system: Space,
    frames: Frames,
    objects: Objects,
    cid: CidTable,
    names: Namespace,
    programs: Vec<Program>,
    /// Where the system's library is loaded in every process.
    library: u64,
    /// Processes by the number of their object's place.
    processes: Vec<Option<Process>>,
    threads: Vec<Option<Thread>>,
    scheduler: Scheduler,
    pager: Pager,
    worker: Worker,
    /// How long a process sleeps between its rounds, on average.
    pause_ns: u64,
    /// What the last exceptions that were refused were about, to notice one that does not end.
    refused: (u64, u32),
}

impl Kernel {
    /// Times the integrity check found code that was not the kernel's.
    pub(super) fn tampers(&self) -> u64 {
        self.worker.tampers()
    }

    /// Times the kernel changed its own code.
    pub(super) fn patches(&self) -> u64 {
        self.worker.patches()
    }

    /// All processes in order of pid.
    pub(super) fn processes(&self) -> Vec<SimProcess> {
        let mut all: Vec<_> = self
            .processes
            .iter()
            .flatten()
            .filter(|process| process.is_known && process.pid != 0)
            .map(|process| SimProcess {
                pid: process.pid as u32,
                ppid: process.ppid as u32,
                name: process.name.clone(),
                root: Pa(process.space.root),
                object: Va(process.object),
                hidden: process.hidden,
                exiting: process.exited_at.is_some(),
            })
            .collect();
        all.sort_by_key(|process| process.pid);
        all
    }

    /// Whether an interrupt waits for a vCPU.
    pub(super) fn interrupt_due(&self, vcpu: usize, now: u64) -> bool {
        self.scheduler.interrupt_due(vcpu, now)
    }

    /// Takes it.
    pub(super) fn take_interrupt(&mut self, vcpu: usize, now: u64) -> Option<u8> {
        self.scheduler.take_interrupt(vcpu, now)
    }

    /// When a halted vCPU has something to do again.
    pub(super) fn deadline(&self, vcpu: usize) -> u64 {
        self.scheduler.deadline(vcpu)
    }

    /// What the kernel's code asked by VMCALL.
    pub(super) fn call(&mut self, memory: &mut Memory, cpu: &mut Vcpu, vcpu: usize, now: u64) {
        let gp = cpu.registers.gp;
        let Some(call) = Call::from_number(gp.rax & 0xffff_ffff) else { return };
        let answer = &mut cpu.registers.gp;
        match call {
            Call::Pick => {
                let thread = self.scheduler.pick(vcpu, now).unwrap_or(0);
                answer.rax = self.start_running(memory, thread);
            }
            Call::Tick => {
                let preempted = self.scheduler.tick(vcpu, now);
                if let Some(thread) = preempted {
                    self.set_state(memory, thread, process::state::READY);
                }
                answer.rax = u64::from(preempted.is_some());
            }
            Call::Fault => {
                (answer.rax, answer.rcx, answer.rdx) = match self.fault(memory, vcpu, (gp.rcx, gp.rdx, gp.r8), now) {
                    pager::Served::Now => (0, 0, 0),
                    pager::Served::Store { at, value } => (1, value, self.direct + at),
                    pager::Served::Later => (2, 0, 0),
                    pager::Served::Never => (3, 0, 0),
                };
            }
            Call::Dispatch => answer.rax = self.dispatch(memory, vcpu, gp.rcx, gp.r8),
            Call::Handle => (answer.rdx, answer.rcx, answer.rax) = self.open_handle(memory, vcpu),
            Call::Close => answer.rcx = self.close_handle(vcpu, gp.rcx),
            Call::Input => answer.rax = u64::from(self.input(memory, vcpu, now)),
            Call::Delay => self.delay(memory, vcpu, now),
            Call::Create => answer.rax = self.create_by_program(memory, vcpu, now),
            Call::Created => self.created(memory, gp.rcx, now),
            Call::Exit => (answer.rax, answer.rdx) = self.exit(memory, vcpu, now),
            Call::Work => {
                let work = self.work(memory, vcpu, now);
                (answer.rax, answer.rcx, answer.rdx, answer.r8, answer.r9) = work;
            }
            Call::Deleted => self.deleted(memory, gp.rcx),
            Call::Tampered => self.worker.tampered(),
            Call::Patch => (answer.rax, answer.rdx) = self.worker.patch(),
            Call::Patched => self.worker.patched(memory),
            Call::BugCheck => {
                cpu.dead = true;
                cpu.halted = true;
            }
        }
    }

    /// The running thread of a vCPU and its process's place.
    fn running(&self, vcpu: usize) -> Option<(ThreadId, usize)> {
        let id = self.scheduler.current(vcpu)?;
        Some((id, self.thread(id)?.process))
    }

    fn thread(&self, id: ThreadId) -> Option<&Thread> {
        self.threads.get(id)?.as_ref()
    }

    fn process(&self, place: usize) -> Option<&Process> {
        self.processes.get(place)?.as_ref()
    }

    fn process_mut(&mut self, place: usize) -> Option<&mut Process> {
        self.processes.get_mut(place)?.as_mut()
    }

    /// Lets the running thread wait until a time.
    fn wait_until(&mut self, memory: &mut Memory, vcpu: usize, at: u64) {
        if let Some((thread, _)) = self.running(vcpu) {
            self.scheduler.wake_at(vcpu, thread, at);
            self.set_state(memory, thread, process::state::WAITING);
        }
    }

    /// A pause between two rounds of a program.
    fn delay(&mut self, memory: &mut Memory, vcpu: usize, now: u64) {
        let pause = self.pause_ns / 2 + self.random.below(self.pause_ns);
        self.wait_until(memory, vcpu, now + pause);
    }

    /// A read from a disk that has it in its cache, mostly.
    fn input(&mut self, memory: &mut Memory, vcpu: usize, now: u64) -> bool {
        if self.random.below(4) != 0 || self.scheduler.is_idle(vcpu) {
            return false;
        }
        let latency = 100_000 + self.random.below(1_500_000);
        self.wait_until(memory, vcpu, now + latency);
        true
    }

    /// An exception that nothing has served: where the thread goes on.
    fn dispatch(&mut self, memory: &mut Memory, vcpu: usize, record: u64, trap: u64) -> u64 {
        let read = |va: u64| self.read_kernel(memory, va);
        let rip = read(trap + code::trap::RIP);
        let user = read(trap + code::trap::CS) & 3 != 0;
        let status = read(record + self.facts.record_code) as u32;
        let wanted = read(record + self.facts.record_information + 8);
        let times = if self.refused.0 == rip { self.refused.1 + 1 } else { 0 };
        self.refused = (rip, times);
        let bug_check = self.base + self.facts.symbol("KeBugCheckEx").unwrap_or(0);
        let program = self
            .running(vcpu)
            .and_then(|(_, place)| self.process(place)?.program)
            .and_then(|program| self.programs.get(program));
        let handler = program.and_then(|program| program.bad);
        let exit = user::stub(self.library, "NtTerminateProcess");
        match handler {
            Some((bad, resume)) if user && rip == bad && wanted == NOWHERE => resume,
            // An access that was never made (an injected fault) is not made again either.
            _ if status == code::ACCESS_VIOLATION && times < 16 => rip,
            _ if status == code::BREAKPOINT => rip,
            _ if user => exit,
            _ => bug_check,
        }
    }

    /// Eight bytes of the kernel's address space; 0 where nothing is mapped.
    fn read_kernel(&self, memory: &Memory, va: u64) -> u64 {
        let (_, _, entry) = self.system.walk(memory, va);
        if entry & PRESENT == 0 {
            return 0;
        }
        memory.read_u64((entry & FRAME) | (va & 0xfff)).unwrap_or(0)
    }
}
