//! Which picture is on the screen: the live one, a frozen one, or one of the last minutes.
//!
//! Freezing is keeping an `Arc`; the guest runs on. Scrolling back is a bounded ring of them, one a second.

use std::{collections::VecDeque, sync::Arc};

use crate::{engine::snapshot::Snapshot, ui::state::Past};

/// How many pictures are kept.
const KEPT: usize = 300;
/// How far apart they are, in nanoseconds of the snapshot's clock.
const APART_NS: u64 = 1_000_000_000;

/// How far a big step goes, in nanoseconds of the snapshot's clock.
const FAR_NS: u64 = 60_000_000_000;

/// The pictures of a run.
#[derive(Debug)]
pub struct History {
    live: Arc<Snapshot>,
    kept: VecDeque<Arc<Snapshot>>,
    held: Option<Arc<Snapshot>>,
    /// Whether the held picture was the newest one when it was taken hold of.
    frozen: bool,
}

impl History {
    /// A history that begins with a picture.
    pub fn new(live: Arc<Snapshot>) -> Self {
        Self { live, kept: VecDeque::new(), held: None, frozen: false }
    }

    /// Takes a newer picture; answers whether it is one.
    pub fn digest(&mut self, snapshot: Arc<Snapshot>) -> bool {
        if snapshot.serial == self.live.serial {
            return false;
        }
        let due = match self.kept.back() {
            Some(last) => snapshot.taken_at_ns.saturating_sub(last.taken_at_ns) >= APART_NS,
            None => true,
        };
        if due {
            self.kept.push_back(Arc::clone(&snapshot));
            if self.kept.len() > KEPT {
                self.kept.pop_front();
            }
        }
        self.live = snapshot;
        true
    }

    /// The newest picture.
    pub fn live(&self) -> &Arc<Snapshot> {
        &self.live
    }

    /// The picture to draw. What a popup shows is always live: one can freeze the lists and still inspect.
    pub fn shown(&self) -> Arc<Snapshot> {
        match &self.held {
            None => Arc::clone(&self.live),
            Some(held) => Arc::new(Snapshot {
                detail: self.live.detail.clone(),
                search: self.live.search.clone(),
                ..Snapshot::clone(held)
            }),
        }
    }

    /// What the screen says about a picture that is not the newest one.
    pub fn past(&self) -> Option<Past> {
        let held = self.held.as_ref()?;
        Some(Past {
            behind_ns: self.live.taken_at_ns.saturating_sub(held.taken_at_ns),
            status_now: self.live.status,
            steps_back: match self.frozen {
                true => 0,
                // The newest kept one is a step back from the live one as well.
                false => self.kept.iter().filter(|kept| kept.taken_at_ns > held.taken_at_ns).count().max(1),
            },
            steps_kept: self.kept.len(),
        })
    }

    /// Holds the newest picture, or goes back to the live ones.
    pub fn freeze(&mut self) {
        self.frozen = self.held.is_none();
        self.held = if self.frozen { Some(Arc::clone(&self.live)) } else { None };
    }

    /// Goes to the picture before the shown one; answers whether there is one.
    pub fn back(&mut self) -> bool {
        let from = self.held.as_ref().unwrap_or(&self.live).taken_at_ns;
        let earlier = self.kept.iter().rev().find(|kept| kept.taken_at_ns < from).map(Arc::clone);
        let found = earlier.is_some();
        self.frozen &= !found;
        self.held = earlier.or(self.held.take());
        found
    }

    /// Goes a minute back, or to the first picture; answers whether there is an earlier one.
    pub fn far_back(&mut self) -> bool {
        let from = self.held.as_ref().unwrap_or(&self.live).taken_at_ns;
        let wanted = from.saturating_sub(FAR_NS);
        let earlier = self.kept.iter().filter(|kept| kept.taken_at_ns < from);
        let found = earlier.min_by_key(|kept| (kept.taken_at_ns.abs_diff(wanted), kept.taken_at_ns)).map(Arc::clone);
        let is_some = found.is_some();
        self.frozen &= !is_some;
        self.held = found.or(self.held.take());
        is_some
    }

    /// Goes a minute forward, in the end to the live pictures.
    pub fn far_forward(&mut self) {
        self.frozen = false;
        if let Some(held) = self.held.take() {
            let wanted = held.taken_at_ns.saturating_add(FAR_NS);
            self.held = self.kept.iter().find(|kept| kept.taken_at_ns >= wanted).map(Arc::clone);
        }
    }

    /// Goes to the picture after the shown one, in the end to the live ones.
    pub fn forward(&mut self) {
        self.frozen = false;
        if let Some(held) = self.held.take() {
            self.held = self.kept.iter().find(|kept| kept.taken_at_ns > held.taken_at_ns).map(Arc::clone);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { taken_at_ns: seconds * 1_000_000_000, ..Snapshot::default() })
    }

    #[test]
    fn freezing_keeps_the_picture_and_time_goes_on() {
        let mut history = History::new(at(0));
        history.digest(at(5));
        history.digest(at(10));
        history.freeze();
        history.digest(at(13));
        assert_eq!(history.shown().taken_at_ns, 10_000_000_000);
        let past = history.past().map(|past| (past.behind_ns, past.steps_back));
        assert_eq!(past, Some((3_000_000_000, 0)), "frozen, however many pictures there are since");
        assert!(history.back());
        assert_eq!(history.past().map(|past| past.steps_back), Some(2), "and now on the way back");
        history.forward();
        history.freeze();
        assert_eq!(history.shown().taken_at_ns, 13_000_000_000);
        assert!(history.past().is_none());
    }

    #[test]
    fn going_back_is_bounded_and_ends_live_again() {
        let mut history = History::new(at(0));
        for second in 1..=400 {
            history.digest(at(second));
        }
        let mut steps = 0;
        while history.back() {
            steps += 1;
        }
        assert_eq!(steps, KEPT - 1);
        assert_eq!(history.shown().taken_at_ns, 101_000_000_000);
        assert_eq!(history.past().map(|past| past.steps_back), Some(KEPT - 1));
        while history.past().is_some() {
            history.forward();
        }
        assert_eq!(history.shown().taken_at_ns, 400_000_000_000);
    }

    #[test]
    fn big_steps_go_a_minute_and_stop_at_both_ends() {
        let mut history = History::new(at(0));
        for second in 1..=100 {
            history.digest(at(second));
        }
        assert!(history.far_back());
        assert_eq!(history.shown().taken_at_ns, 40_000_000_000);
        assert!(history.far_back());
        assert_eq!(history.shown().taken_at_ns, 1_000_000_000);
        assert!(!history.far_back());
        assert_eq!(history.shown().taken_at_ns, 1_000_000_000);
        history.far_forward();
        assert_eq!(history.shown().taken_at_ns, 61_000_000_000);
        history.far_forward();
        assert!(history.past().is_none());
    }

    #[test]
    fn the_same_picture_again_is_no_news() {
        let mut history = History::new(at(0));
        let snapshot = at(1);
        assert!(history.digest(Arc::clone(&snapshot)));
        assert!(!history.digest(snapshot));
    }
}
