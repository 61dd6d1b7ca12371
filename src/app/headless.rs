//! A run without a terminal: the same loop, over a screen in memory and scripted keys.
//!
//! Order of the end: the keys, then the end condition, then the screenshots, then the engine leaves the guest.
//! In virtual time the guest advances only when nothing else is to be done, ten ticks at a time, and every picture is
//! looked at, so that two runs are the same byte for byte.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;

use super::{
    console::{Console, Input, Next, Situation},
    script::{Condition, Script, Step},
};
use crate::engine::snapshot::Status;

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
    /// After a time.
    For(Duration),
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
    began: Instant,
    /// When the step at the front began to wait.
    waiting_since: Option<Duration>,
}

impl Scripted {
    /// A console that does what the plan says; only signals come from `inputs`.
    pub fn new(plan: Plan, inputs: Receiver<Input>) -> Self {
        Self {
            inputs,
            steps: plan.keys.steps.into(),
            end: plan.end,
            ticks: plan.ticks,
            advanced: 0,
            began: Instant::now(),
            waiting_since: None,
        }
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
            End::For(time) => self.wait_time(time, self.now(situation)),
        };
        waiting.unwrap_or(Next::End)
    }
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

    fn next(&mut self, situation: &Situation<'_>) -> Next {
        let notice = || situation.snapshot.notice.as_deref().unwrap_or("the engine gave no reason").to_owned();
        match situation.snapshot.status {
            Status::Attaching if !situation.engine_ended => {
                let left = ATTACH_BOUND.saturating_sub(self.began.elapsed());
                let bound = ATTACH_BOUND.as_secs();
                return if left.is_zero() {
                    Next::Fail(format!("the engine did not get into the guest within {bound} s: {}", notice()))
                } else {
                    Next::WaitFor(left)
                };
            }
            Status::Lost => {
                let why = notice();
                let why = why.strip_prefix("the guest is gone: ").unwrap_or(&why);
                return Next::Fail(format!("the guest was lost: {why}"));
            }
            _ if situation.engine_ended => {
                return Next::Fail(
                    "the engine has ended before the run was over; a log (--log-file) may say why".into(),
                );
            }
            _ => {}
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
