//! When the lists were read last: a list that could not be read again says how old it is.
//!
//! A guest caught in a change, memory that cannot be read, a list that takes long to read: the last list stays on the screen
//! then, and must not pass for the present.

use crate::engine::snapshot::Ages;

/// From this age on a list is older than it should be: every one of them is read at least once a second.
const OLD_NS: u64 = 3_000_000_000;

/// When each list was read last, on the guest's clock.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pub(super) processes: Option<u64>,
    pub(super) vcpus: Option<u64>,
    pub(super) tables: Option<u64>,
    /// Since when the guest has been running.
    running_since: Option<u64>,
}

impl Reads {
    /// The ages to show. What was read of a guest that stands is as good as new until it has run again for a while.
    pub(super) fn ages(&mut self, now: u64, runs: bool) -> Ages {
        if !runs {
            self.running_since = None;
            return Ages::default();
        }
        let since = *self.running_since.get_or_insert(now);
        let age = |read: Option<u64>| Some(now.saturating_sub(read?.max(since))).filter(|age| *age >= OLD_NS);
        Ages { processes: age(self.processes), vcpus: age(self.vcpus), page_tables: age(self.tables) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_guests_lists_grow_old() {
        let mut reads = Reads { processes: Some(0), ..Reads::default() };
        assert_eq!(reads.ages(0, true), Ages::default());
        assert_eq!(reads.ages(OLD_NS - 1, true), Ages::default());
        assert_eq!(reads.ages(14_000_000_000, true).processes, Some(14_000_000_000));
        assert_eq!(reads.ages(20_000_000_000, false), Ages::default());
        assert_eq!(reads.ages(21_000_000_000, true), Ages::default(), "it has just begun to run again");
        assert_eq!(reads.ages(25_000_000_000, true).processes, Some(4_000_000_000));
        reads.processes = Some(25_000_000_000);
        assert_eq!(reads.ages(26_000_000_000, true), Ages::default());
    }
}
