//! Hashing that keeps neighbours together.

use std::hash::{BuildHasher, Hash};

use hashbrown::DefaultHashBuilder;

/// Hashes page numbers for a [`hashbrown::HashTable`] so that pages that follow each other lie side by side in
/// the table, in order: breakpoints of one module then touch few cache lines. Runs of 64 pages are spread by a seeded
/// hash, which a guest that chooses its addresses cannot foresee.
#[derive(Clone, Default)]
pub(super) struct NearHasher(DefaultHashBuilder);

impl NearHasher {
    /// The hash of a page of a space (whatever else tells keys apart).
    #[inline]
    pub(super) fn hash(&self, space: impl Hash, page: u64) -> u64 {
        let run = self.0.hash_one((space, page >> 6));
        // The low bits choose the place; the high bits are the tag by which the places of a group are told apart.
        ((run & !0x3f) | (page & 0x3f)) ^ (page << 60)
    }
}
