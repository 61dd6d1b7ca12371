//! How far the terminal is behind: what decides when the next frame may go.
//!
//! A line that takes 960 bytes a second is given thousands at once, because the kernel, ssh and multiplexers keep what they
//! cannot pass on, and a key would be answered behind all of it. So there is one frame on its way at a time. When it has
//! arrived, a terminal that answers questions says so: a frame ends with `CSI 5 n`. For one that answers none, arrival is
//! reckoned from how fast the kernel was seen to take bytes while it was full; it does not say how much it holds
//! (`TIOCOUTQ` is always 0 on a pseudo-terminal).

use std::time::{Duration, Instant};

/// Bytes a second of a line that has never been full: no frame waits for it.
const FAST: f64 = 1e6;
/// How many bytes a full line holds: the kernel's pseudo-terminals 12 KiB, most others less.
const HELD: f64 = 12_288.0;
/// How many bytes of room a pseudo-terminal tells of (Linux, `n_tty_check_unthrottle`).
const ROOM: usize = 4096;
/// The slowest line that is reckoned with, in bytes a second.
const SLOWEST: f64 = 100.0;
/// How long a full line is watched before its speed is believed.
const WATCHED: Duration = Duration::from_millis(250);
/// After how long without a byte a full line is taken to stand, as when the user holds it, which says nothing of its speed.
const STANDS: Duration = Duration::from_secs(2);
/// By how much a line that was not full again may be faster than believed.
const FASTER: f64 = 1.01;
/// How long a frame waits at most; the line or its answer may have been lost.
const LONGEST: Duration = Duration::from_secs(5);

/// What is known of a line. All times are the caller's.
#[derive(Debug)]
pub(super) struct Flow {
    /// Bytes a second, as far as it is known.
    rate: f64,
    /// Bytes that are believed to be on their way, and when.
    queued: f64,
    at: Instant,
    /// When the line had taken all that there was.
    done_at: Instant,
    /// Whether it is full, as it was when bytes were last refused.
    is_full: bool,
    /// When it was full for the last time, and how many bytes it has taken since.
    mark: Option<(Instant, usize)>,
    /// Whether this terminal has ever answered.
    answers: bool,
    /// Answers that have not come, and when the last one was asked for.
    asked: u32,
    asked_at: Instant,
}

impl Flow {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            rate: FAST,
            queued: 0.0,
            at: now,
            done_at: now,
            is_full: false,
            mark: None,
            answers: false,
            asked: 0,
            asked_at: now,
        }
    }

    /// The line has taken bytes.
    pub(super) fn took(&mut self, bytes: usize, now: Instant) {
        self.pass(now);
        if let Some((_, taken)) = &mut self.mark {
            *taken += bytes;
        }
        if !self.is_full {
            self.queued = (self.queued + bytes as f64).min(HELD);
        }
    }

    /// The line takes nothing more at present.
    pub(super) fn is_full(&mut self, now: Instant) {
        let (since, taken) = *self.mark.get_or_insert((now, 0));
        let watched = now.saturating_duration_since(since);
        // What it took from one time that it was full to the next is what it passed on. It has done so all the time, unless
        // that is more than it holds.
        if taken > 0 && watched >= WATCHED {
            let least = if taken as f64 >= HELD { self.rate } else { 0.0 };
            self.rate = (taken as f64 / watched.as_secs_f64()).max(least).clamp(SLOWEST, FAST);
            self.mark = Some((now, 0));
        } else if taken == 0 && watched >= STANDS {
            self.mark = Some((now, 0));
        }
        (self.queued, self.at, self.is_full) = (HELD, now, true);
    }

    /// The line has taken all that there was.
    pub(super) fn done(&mut self, now: Instant) {
        if !std::mem::take(&mut self.is_full) {
            self.rate = (self.rate * FASTER).min(FAST);
        } else if let (true, Some((since, taken))) = (self.rate >= FAST, self.mark) {
            // A first guess: a pseudo-terminal tells of room when it has some thousand bytes of it.
            let watched = now.saturating_duration_since(since);
            if watched >= WATCHED {
                self.rate = (taken.max(ROOM) as f64 / watched.as_secs_f64()).clamp(SLOWEST, FAST);
            }
        }
        (self.at, self.done_at) = (now, now);
    }

    /// A question goes out.
    pub(super) const fn ask(&mut self, now: Instant) {
        self.asked += 1;
        self.asked_at = now;
    }

    /// An answer has come.
    pub(super) const fn answered(&mut self) {
        self.answers = true;
        self.asked = self.asked.saturating_sub(1);
    }

    /// Nothing is on its way any more, and no answer will come.
    pub(super) const fn discarded(&mut self) {
        (self.queued, self.is_full, self.mark, self.asked) = (0.0, false, None, 0);
    }

    /// Whether the terminal says how far it is.
    pub(super) const fn answers(&self) -> bool {
        self.answers
    }

    /// How many answers have not come, and since when.
    pub(super) const fn unanswered(&self) -> Option<Instant> {
        if self.asked > 0 { Some(self.asked_at) } else { None }
    }

    /// Whether the line has not kept up: what is on its way will take a while.
    pub(super) fn is_behind(&mut self, now: Instant) -> bool {
        if self.answers {
            self.asked > 0 && now.saturating_duration_since(self.asked_at) > WATCHED
        } else {
            self.wait(now).is_some_and(|time| time > WATCHED)
        }
    }

    /// How long the next frame has to wait; `None` when it may go.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.pass(now);
        let left = if self.answers {
            if self.asked == 0 {
                return None;
            }
            let left = LONGEST.saturating_sub(now.saturating_duration_since(self.asked_at));
            if left.is_zero() {
                self.asked = 0;
            }
            left
        } else if self.rate >= FAST {
            return None;
        } else {
            let longest = LONGEST.saturating_sub(now.saturating_duration_since(self.done_at));
            longest.min(Duration::from_secs_f64(self.queued / self.rate))
        };
        Some(left).filter(|left| *left > Duration::from_millis(1))
    }

    /// Lets time pass on the line.
    fn pass(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        // What is full stays so: what it passes on makes room that is taken at once.
        if !self.is_full {
            self.queued = (self.queued - passed * self.rate).max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line that holds 12 KiB, passes on 960 bytes a second, and makes room in steps, as a pseudo-terminal does.
    struct Line {
        now: Instant,
        holds: f64,
        room: usize,
        rate: f64,
        step: usize,
    }

    impl Line {
        fn new(rate: f64, step: usize) -> Self {
            Self { now: Instant::now(), holds: 0.0, room: 12_288, rate, step }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.holds = (self.holds - self.rate * time.as_secs_f64()).max(0.0);
            let room = 12_288 - self.holds.ceil() as usize;
            if room >= self.room + self.step || self.holds == 0.0 {
                self.room = room;
            }
        }

        /// Writes a frame as the writer does, trying again every tenth of a second; answers what was on its way before it.
        fn write(&mut self, flow: &mut Flow, mut bytes: usize) -> f64 {
            let before = self.holds;
            while bytes > 0 {
                let taken = bytes.min(self.room).min(1024);
                if taken == 0 {
                    flow.is_full(self.now);
                    self.pass(Duration::from_millis(100));
                    continue;
                }
                (self.room, self.holds, bytes) = (self.room - taken, self.holds + taken as f64, bytes - taken);
                flow.took(taken, self.now);
            }
            flow.done(self.now);
            before
        }

        /// Waits as the loop does, at least until the next frame would be made.
        fn wait(&mut self, flow: &mut Flow) -> Duration {
            let since = self.now;
            self.pass(Duration::from_millis(33));
            while let Some(time) = flow.wait(self.now) {
                assert!(self.now - since < 2 * LONGEST, "it is never waited without an end");
                self.pass(time);
            }
            self.now - since
        }
    }

    #[test]
    fn a_slow_line_has_one_frame_on_its_way() {
        for step in [1, 256, 4096] {
            let mut line = Line::new(960.0, step);
            let mut flow = Flow::new(line.now);
            let began = line.now;
            let (mut sent, mut before, mut frames) = (0, Vec::new(), 0);
            line.write(&mut flow, 9_000);
            while line.now - began < Duration::from_secs(300) {
                line.wait(&mut flow);
                // The first minute is for learning.
                let is_known = line.now - began > Duration::from_secs(60);
                let queued = line.write(&mut flow, 1_500);
                if is_known {
                    before.push(queued);
                    (sent, frames) = (sent + 1_500, frames + 1);
                }
            }
            before.sort_by(f64::total_cmp);
            let usual = before[before.len() / 2];
            assert!(usual < 6_000.0, "step {step}: usually {usual} bytes were on their way before a frame");
            assert!(sent > 240 * 960 / 3, "step {step}: and the line is used: {sent} bytes in {frames} frames");
        }
    }

    #[test]
    fn a_line_that_keeps_up_is_never_waited_for_and_one_that_stood_is_soon_trusted_again() {
        let mut line = Line::new(1e6, 1);
        let mut flow = Flow::new(line.now);
        for _ in 0..100 {
            line.write(&mut flow, 3_000);
            assert!(line.wait(&mut flow) <= Duration::from_millis(33));
        }
        // Somebody holds the terminal for a minute.
        line.rate = 0.0;
        while line.room > 0 {
            line.write(&mut flow, line.room.min(3_000));
        }
        for _ in 0..600 {
            flow.is_full(line.now);
            line.pass(Duration::from_millis(100));
        }
        line.rate = 1e6;
        line.pass(Duration::from_millis(100));
        let back = line.now;
        let mut frames = 0;
        while line.now - back < Duration::from_secs(60) {
            line.write(&mut flow, 1_500);
            line.wait(&mut flow);
            frames += 1;
        }
        assert!(frames > 100, "{frames} frames in the minute after");
    }

    #[test]
    fn a_terminal_that_answers_is_waited_for_until_it_has_or_for_a_bounded_time() {
        let start = Instant::now();
        let mut flow = Flow::new(start);
        flow.ask(start);
        assert_eq!(flow.wait(start), None, "who has never answered may never do");
        flow.answered();
        assert_eq!(flow.wait(start), None);
        flow.ask(start);
        assert!(flow.wait(start).is_some() && !flow.is_behind(start));
        assert!(flow.is_behind(start + Duration::from_secs(1)));
        flow.answered();
        assert_eq!(flow.wait(start), None);
        flow.ask(start);
        assert_eq!(flow.wait(start + LONGEST), None, "an answer that was lost stops nothing");
        assert_eq!(flow.unanswered(), None);
    }
}
