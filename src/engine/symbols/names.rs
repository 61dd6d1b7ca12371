//! The names of one kernel, or of its modules, and their addresses.
//!
//! The text of all names is one allocation, so that the 150,000 symbols of a Linux kernel cost a few MiB and build in
//! milliseconds.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
    sync::OnceLock,
};

use memchr::memmem;

use super::Va;

/// One symbol: where its name lies in the text of all.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) va: Va,
    pub(super) start: u32,
    pub(super) length: u32,
}

/// Names and their addresses.
#[derive(Default)]
pub(super) struct Names {
    /// All names, one behind the other.
    text: String,
    /// Sorted by address, then by name.
    by_address: Vec<Entry>,
    /// Whole name → index.
    whole: NameIndex,
    /// Name behind the `!` of a qualified one → index.
    bare: NameIndex,
    /// Made when it is first asked for, because only completion needs it.
    by_name: OnceLock<ByName>,
}

/// The symbols in the order of their names.
struct ByName {
    /// Indices into `by_address`, sorted by name.
    order: Vec<u32>,
    /// Where each index of `by_address` is in `order`.
    rank: Vec<u32>,
    /// Indices into `by_address`, sorted by where their names lie in the text.
    in_text: Vec<u32>,
}

impl Names {
    pub(super) fn new(text: String, mut entries: Vec<Entry>) -> Self {
        let name = |entry: &Entry| name_in(&text, *entry);
        entries.sort_by_key(|entry| entry.va);
        for same in entries.chunk_by_mut(|a, b| a.va == b.va) {
            if same.len() > 1 {
                same.sort_by(|a, b| name(a).cmp(name(b)));
            }
        }
        let qualified = text.contains('!');
        let mut names = Self { text, by_address: entries, ..Self::default() };
        let mut whole = NameIndex::new(names.len());
        let mut bare = NameIndex::new(if qualified { names.len() } else { 0 });
        for i in 0..names.len() as u32 {
            let name = names.name_at(i);
            whole.insert(name, i, |other| names.name_at(other));
            if qualified && let Some((_, short)) = name.split_once('!') {
                bare.insert(short, i, |other| bare_name(names.name_at(other)));
            }
        }
        (names.whole, names.bare) = (whole, bare);
        names
    }

    pub(super) fn len(&self) -> usize {
        self.by_address.len()
    }

    pub(super) fn name_at(&self, index: u32) -> &str {
        self.by_address.get(index as usize).map_or("", |&entry| name_in(&self.text, entry))
    }

    pub(super) fn address_at(&self, index: u32) -> Va {
        self.by_address.get(index as usize).map_or(Va(0), |entry| entry.va)
    }

    fn by_name(&self) -> &ByName {
        self.by_name.get_or_init(|| {
            // The first bytes as a number settle nearly every comparison without a visit to the text.
            let key = |i: u32| {
                let mut first = [0; 8];
                for (to, from) in first.iter_mut().zip(self.name_at(i).bytes()) {
                    *to = from;
                }
                (u64::from_be_bytes(first), i)
            };
            let all = 0..self.by_address.len() as u32;
            let mut keys: Vec<(u64, u32)> = all.clone().map(key).collect();
            keys.sort_unstable_by(|a, b| {
                a.0.cmp(&b.0).then_with(|| self.name_at(a.1).cmp(self.name_at(b.1))).then(a.1.cmp(&b.1))
            });
            let order: Vec<u32> = keys.into_iter().map(|(_, i)| i).collect();
            let mut rank = vec![0; order.len()];
            for (place, &i) in order.iter().enumerate() {
                if let Some(rank) = rank.get_mut(i as usize) {
                    *rank = place as u32;
                }
            }
            let mut in_text: Vec<u32> = all.collect();
            in_text.sort_by_key(|&i| self.start_at(i));
            ByName { order, rank, in_text }
        })
    }

    fn start_at(&self, index: u32) -> u32 {
        self.by_address.get(index as usize).map_or(0, |entry| entry.start)
    }

    /// The places in the order of names of the first `limit` symbols that contain `wanted`, sorted: one search through
    /// the text of all names, however many of them there are.
    pub(super) fn containing(&self, wanted: &str, limit: usize) -> BTreeSet<u32> {
        let names = self.by_name();
        let mut best = BTreeSet::new();
        for at in memmem::find_iter(self.text.as_bytes(), wanted) {
            let place = names.in_text.partition_point(|&i| self.start_at(i) as usize <= at);
            let Some(&index) = place.checked_sub(1).and_then(|place| names.in_text.get(place)) else { continue };
            let end = self.start_at(index) as usize + self.name_at(index).len();
            // The end of one name and the beginning of the next are no match.
            if let (true, Some(&rank)) = (at + wanted.len() <= end, names.rank.get(index as usize))
                && (best.len() < limit || best.last().is_some_and(|last| rank < *last))
            {
                best.insert(rank);
                if best.len() > limit {
                    best.pop_last();
                }
            }
        }
        best
    }

    /// The address of the first symbol with this whole name.
    pub(super) fn whole(&self, name: &str) -> Option<Va> {
        self.whole.get(name, |i| self.name_at(i)).map(|index| self.address_at(index))
    }

    /// The address of the first symbol whose name is this one behind its module.
    pub(super) fn bare(&self, name: &str) -> Option<Va> {
        self.bare.get(name, |i| bare_name(self.name_at(i))).map(|index| self.address_at(index))
    }

    /// The names and addresses of all symbols whose whole name (or, of qualified ones, bare name) is this one, each address
    /// once, in order: a look at every symbol, for what a person asks.
    pub(super) fn all(&self, name: &str, bare: bool) -> Vec<(&str, Va)> {
        let same = |own: &str| if bare { own.split_once('!').is_some_and(|(_, own)| own == name) } else { own == name };
        let mut found: Vec<(&str, Va)> = self.iter().filter(|(own, _)| same(own)).collect();
        found.dedup_by_key(|(_, va)| *va);
        found
    }

    /// The symbol at or before an address, and the distance to it.
    pub(super) fn nearest(&self, va: Va) -> Option<(&str, u64)> {
        let after = self.by_address.partition_point(|entry| entry.va <= va);
        let last = after.checked_sub(1)?;
        let address = self.by_address.get(last)?.va;
        // Several names at one address: the first in order of name, always the same one.
        let first = self.by_address.partition_point(|entry| entry.va < address);
        Some((self.name_at(first as u32), va - address))
    }

    pub(super) fn next_after(&self, va: Va) -> Option<Va> {
        self.by_address.get(self.by_address.partition_point(|entry| entry.va <= va)).map(|entry| entry.va)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Va)> {
        (0..self.by_address.len() as u32).map(|i| (self.name_at(i), self.address_at(i)))
    }

    /// The places in the order of names of those that begin with a prefix.
    pub(super) fn beginning(&self, prefix: &str, limit: usize) -> impl Iterator<Item = u32> {
        let order = &self.by_name().order;
        let from = order.partition_point(|&i| self.name_at(i) < prefix);
        let begins = order.iter().skip(from).take_while(move |&&i| self.name_at(i).starts_with(prefix)).take(limit);
        (from as u32..).zip(begins).map(|(rank, _)| rank)
    }

    /// The name and address at a place in the order of names, and which of how many symbols of that name it is, by address
    /// and from 0.
    pub(super) fn ranked(&self, rank: u32) -> (&str, Va, usize, usize) {
        let order = &self.by_name().order;
        let index = order.get(rank as usize).copied().unwrap_or(0);
        let name = self.name_at(index);
        let group = order.partition_point(|&i| self.name_at(i) < name);
        let same = order.iter().skip(group).take_while(|&&i| self.name_at(i) == name);
        let mut addresses: Vec<Va> = same.map(|&i| self.address_at(i)).collect();
        addresses.dedup();
        let va = self.address_at(index);
        (name, va, addresses.partition_point(|other| *other < va), addresses.len())
    }
}

fn name_in(text: &str, entry: Entry) -> &str {
    text.get(entry.start as usize..entry.start as usize + entry.length as usize).unwrap_or("")
}

pub(super) fn bare_name(name: &str) -> &str {
    name.split_once('!').map_or(name, |(_, bare)| bare)
}

/// Name → index by open addressing. The names themselves stay in the table's text.
#[derive(Default)]
struct NameIndex {
    /// Index plus one; 0 is free. A power of two of slots, at most half of them used.
    slots: Vec<u32>,
    /// Different in every run, so that a guest cannot choose names that collide.
    seed: u64,
}

impl NameIndex {
    fn new(names: usize) -> Self {
        let slots = if names == 0 { 0 } else { (names * 2).next_power_of_two() };
        Self { slots: vec![0; slots], seed: RandomState::new().build_hasher().finish() }
    }

    /// Where the search for a name begins: a multiplicative hash over words of eight bytes.
    #[inline]
    fn hash(&self, name: &str) -> usize {
        let (words, rest) = name.as_bytes().as_chunks::<8>();
        let last = rest.iter().fold(name.len() as u64, |value, &byte| (value << 8) | u64::from(byte));
        let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let hash = words.iter().fold(self.seed, |hash, word| mix(hash, u64::from_le_bytes(*word)));
        let hash = mix(hash, last);
        (hash ^ (hash >> 32)) as usize
    }

    /// The slots in the order in which a name looks for its own.
    #[inline]
    fn probe(&self, name: &str) -> impl Iterator<Item = usize> + use<> {
        let (mask, first) = (self.slots.len().wrapping_sub(1), self.hash(name));
        (0..self.slots.len()).map(move |step| first.wrapping_add(step) & mask)
    }

    /// Adds a name unless it is there already.
    #[inline]
    fn insert<'a>(&mut self, name: &str, index: u32, name_of: impl Fn(u32) -> &'a str) {
        for at in self.probe(name) {
            match self.slots.get_mut(at) {
                Some(slot) if *slot == 0 => {
                    *slot = index + 1;
                    return;
                }
                Some(slot) if name_of(*slot - 1) == name => return,
                _ => {}
            }
        }
    }

    fn get<'a>(&self, name: &str, name_of: impl Fn(u32) -> &'a str) -> Option<u32> {
        self.probe(name).map_while(|at| self.slots.get(at)?.checked_sub(1)).find(|&index| name_of(index) == name)
    }
}
