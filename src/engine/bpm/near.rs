//! Hashing that keeps neighbours together.

use std::hash::{BuildHasher, Hash};

use hashbrown::DefaultHashBuilder;

/// Hashes page numbers for a [`hashbrown::HashTable`] so that sixteen pages that follow each other fall into one group of
/// the table, in order: breakpoints of one module then touch few cache lines. Runs of sixteen are spread by a seeded
/// hash, which a guest that chooses its addresses cannot foresee.
#[derive(Clone, Default)]
pub(super) struct NearHasher(DefaultHashBuilder);

impl NearHasher {
    /// The hash of a page of a space (whatever else tells keys apart).
    #[inline]
    pub(super) fn hash(&self, space: impl Hash, page: u64) -> u64 {
        let run = self.0.hash_one((space, page >> 4));
        // The low bits choose the place; the high bits are the tag by which the places of a group are told apart.
        ((run & !0xf) | (page & 0xf)) ^ (page << 60)
    }
}
