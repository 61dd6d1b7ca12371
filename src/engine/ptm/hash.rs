//! Hash maps for keys of a few integers.
//!
//! Frame numbers come from the guest's page tables, so every map has a seed of its own; nothing may depend on the
//! order in which a map is walked.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, Hasher, RandomState},
};

/// A map with the fast hasher.
pub(super) type FastMap<K, V> = HashMap<K, V, Seed>;
/// A set with the fast hasher.
pub(super) type FastSet<K> = HashSet<K, Seed>;

/// Makes hashers that start from one random number.
#[derive(Clone)]
pub(super) struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0u64))
    }
}

impl BuildHasher for Seed {
    type Hasher = Folded;
    #[inline]
    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

/// Multiplies to 128 bits and folds the halves: one multiplication an integer, all bits of the result good.
pub(super) struct Folded(u64);

impl Hasher for Folded {
    #[inline]
    fn write_u64(&mut self, value: u64) {
        let wide = u128::from(self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        self.0 = (wide as u64) ^ (wide >> 64) as u64;
    }

    #[inline]
    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
