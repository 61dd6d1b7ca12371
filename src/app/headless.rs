//! A run without a terminal: the same loop, over a screen in memory and scripted keys.
//!
//! Order of the end: the keys, then the end condition, then the screenshots, then the engine leaves the guest. The time of
//! `--for` counts from the beginning, attaching included, and ends a run whatever the guest or the engine do.
//! In virtual time the guest advances only when nothing else is to be done, ten ticks at a time, and every picture is
//! looked at, so that two runs are the same byte for byte.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;

use super::{
    attaching::Opening,
    console::{Console, Input, Next, Situation},
    script::{Condition, Script, Step},
};
use crate::engine::snapshot::{Snapshot, Status};

/// How long the engine may take to get into the guest.
const ATTACH_BOUND: Duration = Duration::from_secs(120);
/// How long `wait:CONDITION` waits.
const WAIT_BOUND: Duration = Duration::from_secs(60);
/// How far the guest is advanced at a time, in ticks of a millisecond.
const STRIDE: u64 = 10;

/// When a run is over, after its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// At once; in virtual time after all ticks.
    #[default]
    AfterKeys,
    /// When a condition holds.
    Until(Condition),
    /// After a time: of all of the run, or in virtual time of what follows the keys.
    For(Duration),
    /// When a condition holds, which has to be within a time.
    UntilWithin(Condition, Duration),
}

impl End {
    /// How long a run in real time may last.
    const fn longest(&self) -> Option<Duration> {
        match self {
            Self::For(time) | Self::UntilWithin(_, time) => Some(*time),
            Self::AfterKeys | Self::Until(_) => None,
        }
    }
}

/// What a run does.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The keys.
    pub keys: Script,
    /// The end.
    pub end: End,
    /// Ticks of virtual time, `None` for real time.
    pub ticks: Option<u64>,
}

/// Scripted keys as a console.
#[derive(Debug)]
pub struct Scripted {
    inputs: Receiver<Input>,
    steps: VecDeque<Step>,
    end: End,
    ticks: Option<u64>,
    advanced: u64,
    opening: Opening,
    /// Since when the engine has been looking for the guest's kernel.
    attaching_since: Option<Instant>,
    /// When the step at the front began to wait.
    waiting_since: Option<Duration>,
}

impl Scripted {
    /// A console that does what the plan says, once the guest is open; only signals come from `inputs`.
    pub fn new(plan: Plan, inputs: Receiver<Input>, opening: Opening) -> Self {
        Self {
            inputs,
            steps: plan.keys.steps.into(),
            end: plan.end,
            ticks: plan.ticks,
            advanced: 0,
            opening,
            attaching_since: None,
            waiting_since: None,
        }
    }

    /// Whether the guest was open at some time.
    pub const fn has_seen_a_guest(&self) -> bool {
        self.opening.is_done()
    }

    /// The script's clock. In virtual time it counts the ticks asked for: that is the guest's time, except that it goes on
    /// while the guest is paused.
    const fn now(&self, situation: &Situation<'_>) -> Duration {
        match self.ticks {
            Some(_) => Duration::from_millis(self.advanced),
            None => situation.now,
        }
    }

    /// Lets time pass while something is waited for, `left` of it at most.
    fn pass(&mut self, left: Duration, what: &dyn Fn() -> String) -> Next {
        let Some(ticks) = self.ticks else {
            return Next::WaitFor(left);
        };
        match STRIDE.min(ticks.saturating_sub(self.advanced)) {
            0 => Next::Fail(format!("the {ticks} ticks have passed while the run waited {}; add ticks", what())),
            stride => {
                self.advanced += stride;
                Next::Advance(stride)
            }
        }
    }

    /// Waits for a time; `None` when it has passed.
    fn wait_time(&mut self, time: Duration, now: Duration) -> Option<Next> {
        let since = *self.waiting_since.get_or_insert(now);
        let left = (since + time).saturating_sub(now);
        if left.is_zero() {
            return None;
        }
        Some(self.pass(left, &|| format!("for {time:?}")))
    }

    /// Waits for a condition, for a bounded time of real time unless `bound` is `None`.
    fn wait_until(
        &mut self,
        condition: &Condition,
        situation: &Situation<'_>,
        bound: Option<Duration>,
    ) -> Option<Next> {
        if condition.holds(situation.snapshot) {
            return None;
        }
        let (reached, now) = (condition.now(situation.snapshot), self.now(situation));
        let since = *self.waiting_since.get_or_insert(now);
        let left = bound.map_or(Duration::MAX, |bound| (since + bound).saturating_sub(now));
        if left.is_zero() && self.ticks.is_none() {
            let bound = bound.unwrap_or_default().as_secs();
            return Some(Next::Fail(format!(
                "waited {bound} s for {condition} in vain: the counter is at {reached}; see the screenshot or --log-file for what the guest did"
            )));
        }
        let left = if bound.is_some() { left } else { WAIT_BOUND };
        Some(self.pass(left, &|| format!("for {condition}, the counter is at {reached}")))
    }

    fn finish(&mut self, situation: &Situation<'_>) -> Next {
        let waiting = match self.end.clone() {
            End::AfterKeys => match self.ticks {
                Some(ticks) if self.advanced < ticks => Some(self.pass(Duration::MAX, &String::new)),
                _ => None,
            },
            End::Until(condition) => self.wait_until(&condition, situation, None),
            // Real time counts from the beginning: see `over`.
            End::For(_) if self.ticks.is_none() => Some(Next::Wait),
            End::For(time) => self.wait_time(time, self.now(situation)),
            End::UntilWithin(condition, _) => self.wait_until(&condition, situation, None),
        };
        waiting.unwrap_or(Next::End)
    }

    /// The end of a run whose time is over.
    fn over(&self, time: Duration, situation: &Situation<'_>) -> Next {
        let passed = format!("the {time:?} of --for have passed");
        if self.opening.is_under_way() {
            return Next::Fail(format!("{passed} on the way into the guest: {}", notice(situation.snapshot)));
        }
        if situation.snapshot.status == Status::Attaching {
            return Next::Fail(format!(
                "{passed}, and no kernel was found in the guest: {}",
                notice(situation.snapshot)
            ));
        }
        if let Some(doing) = situation.busy {
            return Next::Fail(format!("{passed} while the engine was still at work ({doing})"));
        }
        match (self.steps.len(), &self.end) {
            (0, End::UntilWithin(condition, _)) if !condition.holds(situation.snapshot) => {
                let reached = condition.now(situation.snapshot);
                Next::Fail(format!("{passed} without {condition}: the counter is at {reached}"))
            }
            (0, _) => Next::End,
            (left, _) => Next::Fail(format!("{passed} before the keys were done: {left} of them were left")),
        }
    }

    /// The next step of a run that has time left.
    fn step(&mut self, situation: &Situation<'_>) -> Next {
        match situation.snapshot.status {
            Status::Attaching if !situation.engine_ended => {
                let since = *self.attaching_since.get_or_insert_with(Instant::now);
                let left = ATTACH_BOUND.saturating_sub(since.elapsed());
                let bound = ATTACH_BOUND.as_secs();
                return if left.is_zero() {
                    let why = notice(situation.snapshot);
                    Next::Fail(format!("the engine did not get into the guest within {bound} s: {why}"))
                } else {
                    Next::WaitFor(left)
                };
            }
            Status::Lost => return Next::Fail(notice(situation.snapshot).to_owned()),
            _ if situation.engine_ended => {
                return Next::Fail(
                    "the engine has ended before the run was over; a log (--log-file) may say why".into(),
                );
            }
            _ => self.attaching_since = None,
        }
        while let Some(step) = self.steps.front().cloned() {
            let waiting = match &step {
                Step::Key(_) => None,
                Step::Pause(time) => self.wait_time(*time, self.now(situation)),
                Step::Until(condition) => self.wait_until(condition, situation, Some(WAIT_BOUND)),
            };
            if let Some(next) = waiting {
                return next;
            }
            self.steps.pop_front();
            self.waiting_since = None;
            if let Step::Key(key) = step {
                return Next::Press(key);
            }
        }
        self.finish(situation)
    }
}

/// What the engine says of itself.
fn notice(snapshot: &Snapshot) -> &str {
    snapshot.notice.as_deref().unwrap_or("the engine gave no reason")
}

impl Console for Scripted {
    fn inputs(&self) -> &Receiver<Input> {
        &self.inputs
    }

    fn is_scripted(&self) -> bool {
        true
    }

    fn is_virtual(&self) -> bool {
        self.ticks.is_some()
    }

    fn longest(&self) -> Option<Duration> {
        if self.ticks.is_some() { None } else { self.end.longest() }
    }

    fn is_attaching(&self) -> bool {
        self.opening.is_under_way()
    }

    fn next(&mut self, situation: &Situation<'_>) -> Next {
        if let Err(why) = self.opening.look() {
            return Next::Fail(why);
        }
        let Some(longest) = self.longest() else { return self.step(situation) };
        let left = longest.saturating_sub(situation.now);
        if left.is_zero() {
            return self.over(longest, situation);
        }
        match self.step(situation) {
            Next::Wait => Next::WaitFor(left),
            Next::WaitFor(time) => Next::WaitFor(time.min(left)),
            next => next,
        }
    }
}
