//! Numbers that tell one value from every other.

use std::sync::atomic::{AtomicU64, Ordering};

/// The number of the next serial.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The identity of the value that holds it: a number that no other value in this process has or ever had.
///
/// An address cannot be that, because the allocator gives it to the next value of that size, and a count of changes
/// cannot, because another run of the engine counts the same. A clone is a value of its own and gets its own number;
/// values that are shared, by `Arc`, share their serial with everything else.
#[derive(Debug, PartialEq, Eq)]
pub struct Serial(u64);

impl Serial {
    /// The number, for a place that remembers which value it has seen.
    pub const fn number(&self) -> u64 {
        self.0
    }
}

impl Default for Serial {
    fn default() -> Self {
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Clone for Serial {
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_serial_is_given_twice_on_any_thread() {
        let draw = || {
            let first = Serial::default();
            [first.clone().number(), first.number(), Serial::default().number()]
        };
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(move || [(); 100].map(|()| draw()))).collect();
        let mut all: Vec<u64> =
            threads.into_iter().flat_map(|thread| thread.join().expect("drawn")).flatten().collect();
        let drawn = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), drawn);
    }
}
