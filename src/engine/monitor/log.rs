//! What happened: a bounded list of events, totals and rates.

use std::collections::VecDeque;

use crate::engine::{
    addr::VcpuId,
    snapshot::{Counters, Event, EventKind, Part, cleaned},
};

/// How many events a snapshot holds.
const CAPACITY: usize = 1000;
/// Characters of an event's text.
const LONGEST: usize = 2000;
/// How many seconds of event rates are kept.
const RATE_SECONDS: usize = 60;
/// One second of the guest's clock.
pub(super) const SECOND: u64 = 1_000_000_000;

/// Counts per second, the newest last.
#[derive(Clone, Debug)]
pub(super) struct Rates {
    seconds: VecDeque<u64>,
    keep: usize,
    second: u64,
    now: u64,
}

impl Rates {
    pub(super) fn new(keep: usize) -> Self {
        Self { seconds: VecDeque::with_capacity(keep), keep, second: 0, now: 0 }
    }

    /// Closes the seconds that have passed.
    pub(super) fn advance(&mut self, clock_ns: u64) {
        let second = clock_ns / SECOND;
        let passed = second.saturating_sub(self.second);
        // A long pause leaves as many empty seconds as are shown, no more.
        for step in 0..passed.min(self.keep as u64 + 1) {
            if self.seconds.len() == self.keep {
                self.seconds.pop_front();
            }
            self.seconds.push_back(if step == 0 { self.now } else { 0 });
        }
        if passed > 0 {
            self.second = second;
            self.now = 0;
        }
    }

    /// Counts one.
    pub(super) fn count(&mut self, clock_ns: u64) {
        self.advance(clock_ns);
        self.now += 1;
    }

    /// What was counted in the seconds that are kept and in this one.
    pub(super) fn total(&self) -> u64 {
        self.seconds.iter().sum::<u64>().saturating_add(self.now)
    }

    pub(super) fn to_vec(&self) -> Vec<u64> {
        self.seconds.iter().copied().collect()
    }
}

/// The events of a session.
#[derive(Debug)]
pub(super) struct EventLog {
    events: VecDeque<Event>,
    next: u64,
    published: u64,
    changed: bool,
    part: Part<Vec<Event>>,
    rates: Rates,
    rates_part: Part<Vec<u64>>,
    /// Totals; `events` and `dropped` are kept here, the others by whoever causes them.
    pub(super) counters: Counters,
}

impl EventLog {
    pub(super) fn new() -> Self {
        Self {
            events: VecDeque::with_capacity(CAPACITY),
            next: 0,
            published: 0,
            changed: false,
            part: Part::default(),
            rates: Rates::new(RATE_SECONDS),
            rates_part: Part::default(),
            counters: Counters::default(),
        }
    }

    /// Adds an event; the oldest one gives way, and counts as dropped if no snapshot ever showed it.
    pub(super) fn push(
        &mut self,
        at_ns: u64,
        kind: EventKind,
        place: (Option<VcpuId>, Option<u32>, String),
        text: String,
    ) {
        if self.events.len() == CAPACITY
            && let Some(oldest) = self.events.pop_front()
        {
            self.counters.dropped += u64::from(oldest.seq >= self.published);
        }
        let (vcpu, pid, process) = place;
        // What made it up may be the words of a peer.
        let (process, text) = (cleaned(process, LONGEST), cleaned(text, LONGEST));
        self.events.push_back(Event { seq: self.next, at_ns, kind, vcpu, pid, process, text });
        self.next += 1;
        self.counters.events += 1;
        self.rates.count(at_ns);
        self.changed = true;
    }

    /// Adds an event that happened on no vCPU and in no process.
    pub(super) fn say(&mut self, at_ns: u64, kind: EventKind, text: impl Into<String>) {
        self.push(at_ns, kind, (None, None, String::new()), text.into());
    }

    /// The parts for a snapshot.
    pub(super) fn publish(&mut self, clock_ns: u64) -> (Part<Vec<Event>>, Part<Vec<u64>>) {
        self.published = self.next;
        if self.changed {
            self.changed = false;
            self.part = Part::new(self.events.iter().cloned().collect());
        }
        self.rates.advance(clock_ns);
        self.rates_part.set(self.rates.to_vec());
        (self.part.clone(), self.rates_part.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_snapshot_showed_counts_as_dropped() {
        let mut log = EventLog::new();
        let fill = |log: &mut EventLog, n| (0..n).for_each(|i| log.say(i, EventKind::Vm, "x"));
        fill(&mut log, CAPACITY as u64);
        assert_eq!(log.publish(0).0.len(), CAPACITY);
        fill(&mut log, CAPACITY as u64);
        assert_eq!(log.counters.dropped, 0);
        fill(&mut log, 3);
        assert_eq!(log.counters.dropped, 3);
        assert_eq!(log.publish(0).0.first().map(|event| event.seq), Some(CAPACITY as u64 + 3));
    }

    #[test]
    fn rates_are_per_second_and_quiet_seconds_are_zero() {
        let mut rates = Rates::new(4);
        (0..5).for_each(|_| rates.count(0));
        rates.count(SECOND);
        rates.advance(4 * SECOND);
        assert_eq!(rates.to_vec(), [5, 1, 0, 0]);
        rates.advance(1000 * SECOND);
        assert_eq!(rates.to_vec(), [0, 0, 0, 0]);
    }

    #[test]
    fn an_unchanged_list_is_shared() {
        let mut log = EventLog::new();
        log.say(0, EventKind::Vm, "x");
        let first = log.publish(0).0;
        let second = log.publish(1).0;
        assert_eq!(first.id(), second.id());
    }
}
