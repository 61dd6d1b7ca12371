//! Which thread runs where: ready queues and timers, one set per vCPU (a thread stays on its vCPU).

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

/// A thread's number in the kernel's table.
pub(super) type ThreadId = usize;

/// How long a thread runs before others of the same vCPU get their turn.
const QUANTUM_NS: u64 = 15_625_000;

/// The vector of the clock's interrupt.
pub(super) const CLOCK_VECTOR: u8 = 0xd1;

#[derive(Debug)]
struct Queue {
    ready: VecDeque<ThreadId>,
    /// Wake-up time, order of arrival, thread.
    timers: BinaryHeap<Reverse<(u64, u64, ThreadId)>>,
    idle: ThreadId,
    current: ThreadId,
    quantum_end: u64,
    /// The running thread waits already and is about to switch by itself.
    leaving: bool,
    /// An interrupt has woken the idle loop, which has not looked for work yet.
    woken: bool,
}

/// The scheduler.
#[derive(Debug)]
pub(super) struct Scheduler {
    queues: Vec<Queue>,
    arrivals: u64,
}

impl Scheduler {
    /// A scheduler of vCPUs that run their idle threads.
    pub(super) fn new(idle: impl IntoIterator<Item = ThreadId>) -> Self {
        let queue = |idle| Queue {
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            idle,
            current: idle,
            quantum_end: 0,
            leaving: false,
            woken: false,
        };
        Self { queues: idle.into_iter().map(queue).collect(), arrivals: 0 }
    }

    /// How many vCPUs there are.
    pub(super) fn vcpus(&self) -> usize {
        self.queues.len()
    }

    /// The thread that runs on a vCPU.
    pub(super) fn current(&self, vcpu: usize) -> Option<ThreadId> {
        self.queues.get(vcpu).map(|queue| queue.current)
    }

    /// Whether a vCPU is in its idle thread.
    pub(super) fn is_idle(&self, vcpu: usize) -> bool {
        self.queues.get(vcpu).is_none_or(|queue| queue.current == queue.idle)
    }

    /// Makes a thread wait until a time.
    pub(super) fn wake_at(&mut self, vcpu: usize, thread: ThreadId, at: u64) {
        self.arrivals += 1;
        if let Some(queue) = self.queues.get_mut(vcpu) {
            queue.timers.push(Reverse((at, self.arrivals, thread)));
            queue.leaving |= thread == queue.current;
        }
    }

    /// Forgets a thread that is neither running nor will run again.
    pub(super) fn forget(&mut self, vcpu: usize, thread: ThreadId) {
        if let Some(queue) = self.queues.get_mut(vcpu) {
            queue.ready.retain(|&other| other != thread);
            queue.timers.retain(|Reverse((_, _, other))| *other != thread);
        }
    }

    /// Takes the next thread of a vCPU off its queue and makes it the running one; the idle thread where there is none.
    pub(super) fn pick(&mut self, vcpu: usize, now: u64) -> Option<ThreadId> {
        let queue = self.queues.get_mut(vcpu)?;
        queue.wake(now);
        queue.woken = false;
        queue.leaving = false;
        queue.current = queue.ready.pop_front().unwrap_or(queue.idle);
        queue.quantum_end = now + QUANTUM_NS;
        Some(queue.current)
    }

    /// Whether the running thread must give way; it is ready again then.
    pub(super) fn tick(&mut self, vcpu: usize, now: u64) -> Option<ThreadId> {
        let queue = self.queues.get_mut(vcpu)?;
        queue.wake(now);
        if queue.current == queue.idle || queue.leaving || queue.ready.is_empty() {
            return None;
        }
        queue.ready.push_back(queue.current);
        Some(queue.current)
    }

    /// Whether the clock interrupts a vCPU now.
    pub(super) fn interrupt_due(&self, vcpu: usize, now: u64) -> bool {
        let Some(queue) = self.queues.get(vcpu) else { return false };
        let work = !queue.ready.is_empty() || queue.timers.peek().is_some_and(|Reverse((at, ..))| *at <= now);
        if queue.current == queue.idle { work && !queue.woken } else { work && now >= queue.quantum_end }
    }

    /// Takes that interrupt.
    pub(super) fn take_interrupt(&mut self, vcpu: usize, now: u64) -> Option<u8> {
        if !self.interrupt_due(vcpu, now) {
            return None;
        }
        let queue = self.queues.get_mut(vcpu)?;
        queue.woken = true;
        queue.quantum_end = now + QUANTUM_NS;
        Some(CLOCK_VECTOR)
    }

    /// When a halted vCPU has something to do again.
    pub(super) fn deadline(&self, vcpu: usize) -> u64 {
        let Some(queue) = self.queues.get(vcpu) else { return u64::MAX };
        if queue.ready.is_empty() { queue.timers.peek().map_or(u64::MAX, |Reverse((at, ..))| *at) } else { 0 }
    }
}

impl Queue {
    fn wake(&mut self, now: u64) {
        while let Some(&Reverse((at, _, thread))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            self.ready.push_back(thread);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_wake_in_order_and_take_turns() {
        let mut scheduler = Scheduler::new([100]);
        scheduler.wake_at(0, 1, 50);
        scheduler.wake_at(0, 2, 20);
        assert!(!scheduler.interrupt_due(0, 10) && scheduler.is_idle(0));
        assert_eq!(scheduler.deadline(0), 20);
        assert_eq!(scheduler.take_interrupt(0, 60), Some(CLOCK_VECTOR));
        assert_eq!(scheduler.take_interrupt(0, 60), None, "once until the idle loop has looked");
        assert_eq!(scheduler.pick(0, 60), Some(2));
        assert!(!scheduler.interrupt_due(0, 61), "not before its time is up");
        assert_eq!(scheduler.tick(0, 61 + QUANTUM_NS), Some(2));
        assert_eq!(scheduler.pick(0, 61 + QUANTUM_NS), Some(1));
        scheduler.forget(0, 2);
        assert_eq!(scheduler.pick(0, 62 + QUANTUM_NS), Some(100));
    }
}
