//! The rows of a list at one moment, shared with those of the moment before as far as they are the same.
//!
//! A row that did not change is one row in every picture, and so is a block of such rows: a list of thousands that hardly
//! changes costs a pointer for some dozens of its rows. Blocks begin at certain names, not at certain places, so that a
//! row that goes or comes moves no other one into another block.

use std::{collections::HashMap, sync::Arc};

use super::weight::{Row, block_bytes};

/// One in so many names begins a block.
const BLOCK: u64 = 32;
/// The most rows in a block.
const LONGEST: usize = 128;

/// A list of rows.
#[derive(Debug)]
pub(super) struct Rows<T>(Vec<Arc<Block<T>>>);

/// Consecutive rows of a list.
type Block<T> = Box<[Arc<T>]>;

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Whether a block begins with a row of this name: 32 in a row shall not, so the name is mixed first.
const fn begins(name: u64) -> bool {
    (name.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).is_multiple_of(BLOCK)
}

/// What a row costs that no other picture has.
fn row_bytes<T: Row>(row: &T) -> usize {
    block_bytes(size_of::<T>() + 2 * size_of::<usize>()) + row.heap_bytes()
}

/// What a block costs besides its rows.
fn frame_bytes<T>(block: &Block<T>) -> usize {
    block_bytes(size_of::<Block<T>>() + 2 * size_of::<usize>()) + block_bytes(block.len() * size_of::<Arc<T>>())
}

impl<T: Row> Rows<T> {
    /// Keeps a list, given what is kept of it from before; adds what that costs to `bytes`.
    pub(super) fn new(list: &[T], before: &Self, bytes: &mut usize) -> Self {
        let blocks: HashMap<u64, &Arc<Block<T>>> =
            before.0.iter().filter_map(|block| Some((block.first()?.name(), block))).collect();
        // Only needed where a block is not the same.
        let mut rows: Option<HashMap<u64, &Arc<T>>> = None;
        let mut kept = Vec::new();
        let mut left = list;
        while let Some(first) = left.first() {
            let inside = left.iter().skip(1).take(LONGEST - 1).take_while(|row| !begins(row.name())).count();
            let (block, behind) = left.split_at(inside + 1);
            left = behind;
            let same = blocks.get(&first.name()).filter(|old| old.iter().map(AsRef::as_ref).eq(block));
            kept.push(same.map_or_else(
                || {
                    let rows = rows.get_or_insert_with(|| {
                        before.0.iter().flat_map(|block| block.iter()).map(|row| (row.name(), row)).collect()
                    });
                    let keep = |row: &T| match rows.get(&row.name()).filter(|old| old.as_ref() == row) {
                        Some(old) => Arc::clone(old),
                        None => {
                            *bytes += row_bytes(row);
                            Arc::new(row.clone())
                        }
                    };
                    let block: Block<T> = block.iter().map(keep).collect();
                    *bytes += frame_bytes(&block);
                    Arc::new(block)
                },
                |old| Arc::clone(old),
            ));
        }
        kept.shrink_to_fit();
        *bytes += block_bytes(kept.len() * size_of::<Arc<Block<T>>>());
        Self(kept)
    }

    /// The list as it was.
    pub(super) fn list(&self) -> Vec<T> {
        self.0.iter().flat_map(|block| block.iter()).map(|row| row.as_ref().clone()).collect()
    }

    /// Lets go of the list; takes what nothing else needed off `bytes`.
    pub(super) fn release(self, bytes: &mut usize) {
        *bytes = bytes.saturating_sub(block_bytes(self.0.len() * size_of::<Arc<Block<T>>>()));
        for block in self.0.into_iter().filter_map(Arc::into_inner) {
            *bytes = bytes.saturating_sub(frame_bytes(&block));
            for row in block.into_iter().filter_map(Arc::into_inner) {
                *bytes = bytes.saturating_sub(row_bytes(&row));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::snapshot::Process;

    fn list(pids: impl Iterator<Item = u32>) -> Vec<Process> {
        pids.map(|pid| Process { pid, name: format!("process-{pid}"), ..Process::default() }).collect()
    }

    #[test]
    fn only_what_changed_costs_and_all_of_it_comes_back() {
        let mut bytes = 0;
        let first = list(0..5_000);
        let a = Rows::new(&first, &Rows::default(), &mut bytes);
        let whole = bytes;
        // The same again, then one row changed, one gone from the front, one new at the end.
        let b = Rows::new(&first, &a, &mut bytes);
        assert!(bytes - whole < whole / 100, "{} of {whole} for nothing new", bytes - whole);
        let mut second = list(1..5_001);
        second[2_500].threads = 7;
        let before = bytes;
        let c = Rows::new(&second, &b, &mut bytes);
        assert!(bytes - before < whole / 50, "{} of {whole} for three rows", bytes - before);
        assert_eq!(a.list(), first);
        assert_eq!(b.list(), first);
        assert_eq!(c.list(), second);
        a.release(&mut bytes);
        b.release(&mut bytes);
        assert_eq!(c.list(), second, "whatever went before");
        c.release(&mut bytes);
        assert_eq!(bytes, 0, "what was counted is counted off");
    }

    #[test]
    fn rows_of_one_name_and_in_any_order_come_back_as_they_were() {
        let mut bytes = 0;
        let mut rows = list([5, 5, 3, 5, 0, 32, 32, 1].into_iter());
        rows[1].name = "another".into();
        let a = Rows::new(&rows, &Rows::default(), &mut bytes);
        assert_eq!(a.list(), rows);
        rows.reverse();
        let b = Rows::new(&rows, &a, &mut bytes);
        assert_eq!(b.list(), rows);
        let c = Rows::new(&[], &b, &mut bytes);
        assert!(c.list().is_empty());
        for rows in [a, b, c] {
            rows.release(&mut bytes);
        }
        assert_eq!(bytes, 0);
    }
}
