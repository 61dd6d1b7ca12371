//! Parts of a snapshot: shared while they do not change.

use std::{ops::Deref, sync::Arc};

use serde::{Serialize, Serializer};

/// A part of a snapshot: shared data and the number of its last change.
///
/// Two parts with the same generation (of one engine run) hold the same data, so that lists derived from a part
/// need no rebuilding until its generation moves.
#[derive(Clone, Debug, Default)]
pub struct Part<T> {
    /// Counts the changes of this part.
    pub generation: u64,
    /// The data.
    pub data: Arc<T>,
}

impl<T> Part<T> {
    /// A part in its first generation.
    pub fn new(data: T) -> Self {
        Self { generation: 1, data: Arc::new(data) }
    }

    /// Replaces the data; the generation moves only when they differ.
    pub fn set(&mut self, data: T)
    where
        T: PartialEq,
    {
        if *self.data != data {
            self.generation += 1;
            self.data = Arc::new(data);
        }
    }
}

impl<T> Deref for Part<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T: Serialize> Serialize for Part<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.data.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_moves_only_when_its_data_change() {
        let mut part = Part::new(vec![1]);
        part.set(vec![1]);
        assert_eq!(part.generation, 1);
        part.set(vec![2]);
        assert_eq!(part.generation, 2);
    }
}
