//! Parts of a snapshot: shared while they do not change.

use std::{ops::Deref, sync::Arc};

use serde::{Serialize, Serializer};

use super::Serial;

/// A part of a snapshot: data that never change, shared by all its clones, with a number that is theirs alone.
///
/// Parts with the same [`Part::id`] are one and the same, whatever snapshot, engine run or moment they come from, so that
/// what was derived from a part needs no second look until the number is another.
#[derive(Clone, Debug, Default)]
pub struct Part<T>(Arc<Numbered<T>>);

#[derive(Debug, Default)]
struct Numbered<T> {
    serial: Serial,
    data: T,
}

impl<T> Part<T> {
    /// A part that is no other.
    pub fn new(data: T) -> Self {
        Self(Arc::new(Numbered { serial: Serial::default(), data }))
    }

    /// Replaces the data with others; equal ones change nothing.
    pub fn set(&mut self, data: T)
    where
        T: PartialEq,
    {
        if self.0.data != data {
            *self = Self::new(data);
        }
    }

    /// The number of these data: no other part in this process has it or ever had it.
    pub fn id(&self) -> u64 {
        self.0.serial.number()
    }
}

impl<T> Deref for Part<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.data
    }
}

impl<T: Serialize> Serialize for Part<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.data.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_another_one_only_when_its_data_change() {
        let mut part = Part::new(vec![1]);
        let (first, shared) = (part.id(), part.clone());
        part.set(vec![1]);
        assert_eq!((part.id(), shared.id()), (first, first));
        part.set(vec![2]);
        assert_ne!(part.id(), first);
        part.set(vec![1]);
        assert_ne!(part.id(), first, "data that come back are not the ones that were there");
        assert_eq!((shared.id(), shared.as_slice()), (first, [1].as_slice()));
        assert_ne!(Part::<u8>::default().id(), Part::<u8>::default().id());
    }
}
