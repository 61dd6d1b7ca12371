//! How virtual time follows the wall clock.

use std::time::{Duration, Instant};

/// The pace of a guest in real time: an instant and the virtual time that belongs to it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    anchor: Option<(Instant, u64)>,
}

impl Pace {
    /// How far virtual time may be behind before the rest is given up: a guest that cannot keep up must not eat a core.
    const LAG_NS: u64 = 20_000_000;

    /// Where virtual time should be at `wall`, given that it is at `now`; at first, and after a pause, that is where it is.
    pub(super) fn target(&mut self, wall: Instant, now: u64) -> u64 {
        let &mut (start, base) = self.anchor.get_or_insert((wall, now));
        base.saturating_add(nanoseconds(wall.saturating_duration_since(start)))
    }

    /// The wall clock's time of a virtual time.
    pub(super) fn wall(&self, virtual_ns: u64) -> Option<Instant> {
        let (start, base) = self.anchor?;
        start.checked_add(Duration::from_nanos(virtual_ns.saturating_sub(base)))
    }

    /// Gives up time that the guest could not make use of: `now` is the earliest virtual time that `wall` may have.
    pub(super) fn give_up(&mut self, wall: Instant, now: u64) {
        if self.target(wall, now) > now.saturating_add(Self::LAG_NS) {
            self.anchor = Some((wall, now.saturating_add(Self::LAG_NS)));
        }
    }

    /// Forgets the wall clock while the guest stands still.
    pub(super) fn stop(&mut self) {
        self.anchor = None;
    }
}

/// A duration in nanoseconds, as far as they fit.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_follows_and_what_cannot_be_caught_up_is_given_up() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.target(start, 500), 500);
        assert_eq!(pace.target(start + Duration::from_nanos(70), 500), 570);
        let late = start + Duration::from_secs(1);
        pace.give_up(late, 1_000);
        assert_eq!(pace.target(late, 1_000), 1_000 + Pace::LAG_NS);
        pace.stop();
        assert_eq!(pace.target(late + Duration::from_secs(9), 1_000), 1_000);
    }
}
