//! The end of attaching: one deadline over all of it, and the user's wish to leave.
//!
//! Every answer of QEMU's has a deadline of its own. A peer that keeps each of them and never comes to an end would hold
//! us all the same, and with us the guest, which stands while its gdb stub is spoken to. So whoever begins something that
//! takes many answers says how long that may take in all ([`at_most`]), and every wait on the way ends with it, or when
//! the user wants to leave ([`until_left`]). What belongs together is waited for as a whole ([`whole`]): a packet whose
//! answer nobody took would be taken for the answer to the next one. And taking things back ends when it is done
//! ([`unhurried`]).
//!
//! The limit belongs to the thread that waits; the guardian has none.

use std::{
    cell::RefCell,
    fmt, io,
    time::{Duration, Instant},
};

use crate::engine::{command::Leaving, error::VmiError};

/// How long a wait goes on before it is looked again whether the user wants to leave.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, Default)]
struct Limit {
    /// When it ends, how long it was, and what for.
    end: Option<(Instant, Duration, String)>,
    leaving: Leaving,
}

thread_local! {
    static LIMIT: RefCell<Limit> = RefCell::default();
}

/// Puts the limit of before back, after a panic too.
struct Restored(Limit);

impl Drop for Restored {
    fn drop(&mut self) {
        let before = std::mem::take(&mut self.0);
        LIMIT.with_borrow_mut(|limit| *limit = before);
    }
}

fn within<T>(limit: Limit, work: impl FnOnce() -> T) -> T {
    let _restored = Restored(LIMIT.replace(limit));
    work()
}

/// Does something that may take so long in all, or as long as what it is a part of; `what` is what messages call it.
pub fn at_most<T>(time: Duration, what: impl fmt::Display, work: impl FnOnce() -> T) -> T {
    let mut limit = LIMIT.with_borrow(Clone::clone);
    let end = Instant::now() + time;
    if limit.end.as_ref().is_none_or(|(before, ..)| end < *before) {
        limit.end = Some((end, time, what.to_string()));
    }
    within(limit, work)
}

/// Does something that ends when the user wants to leave.
pub fn until_left<T>(leaving: &Leaving, work: impl FnOnce() -> T) -> T {
    let mut limit = LIMIT.with_borrow(Clone::clone);
    limit.leaving = leaving.clone();
    within(limit, work)
}

/// Does something that is not to be broken off in the middle.
///
/// # Errors
/// When there is no time left to begin it.
pub fn whole<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    check()?;
    Ok(unhurried(work))
}

/// Does something that takes as long as it takes: taking back what was done.
pub fn unhurried<T>(work: impl FnOnce() -> T) -> T {
    within(Limit::default(), work)
}

/// Whether there is time left.
///
/// # Errors
/// [`Impatient`], as `Interrupted`.
pub fn check() -> io::Result<()> {
    LIMIT.with_borrow(|limit| {
        let why = if limit.leaving.is_wanted() {
            Impatient::Left
        } else {
            match &limit.end {
                Some((end, time, what)) if Instant::now() >= *end => Impatient::Late(*time, what.clone()),
                _ => return Ok(()),
            }
        };
        Err(io::Error::new(io::ErrorKind::Interrupted, why))
    })
}

/// How long to wait before the next [`check`], at most until the deadline.
pub fn next_look(deadline: Instant) -> Instant {
    let limited = LIMIT.with_borrow(|limit| limit.end.is_some() || limit.leaving.can_be_wanted());
    if limited { deadline.min(Instant::now() + LOOK) } else { deadline }
}

/// Why a wait was broken off.
#[derive(Debug)]
pub enum Impatient {
    /// The user wants to leave.
    Left,
    /// All of it, answered in time or not, has taken too long.
    Late(Duration, String),
}

impl fmt::Display for Impatient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => f.write_str("it was broken off because you left"),
            Self::Late(time, what) => write!(
                f,
                "{what} was given up after {} s: every single answer came in time, but there was no end to them",
                time.as_secs()
            ),
        }
    }
}

impl std::error::Error for Impatient {}

/// The error of a wait that was broken off; `None` when that is not why it failed.
pub fn broken_off(error: &io::Error) -> Option<VmiError> {
    (error.kind() == io::ErrorKind::Interrupted).then(|| VmiError::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_limit_counts_and_ends_with_its_work() {
        assert!(check().is_ok());
        at_most(Duration::ZERO, "attaching", || {
            at_most(Duration::from_secs(60), "connecting", || {
                assert!(check().is_err_and(|error| error.to_string().starts_with("attaching was given up")));
                assert!(whole(|| ()).is_err());
            });
        });
        assert!(check().is_ok());
        let inside = at_most(Duration::from_secs(60), "attaching", || whole(|| at_most(Duration::ZERO, "it", check)));
        assert!(inside.is_ok_and(|checked| checked.is_err()));
    }

    #[test]
    fn who_wants_to_leave_is_heard_at_once() {
        let leaving = Leaving::new();
        until_left(&leaving, || {
            at_most(Duration::from_secs(60), "attaching", || {
                assert!(check().is_ok());
                leaving.want();
                let error = check().expect_err("the user has left");
                assert!(broken_off(&error).is_some_and(|error| error.to_string().contains("you left")));
            });
        });
        assert!(check().is_ok());
    }
}
