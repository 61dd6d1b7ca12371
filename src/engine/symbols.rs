//! Names and addresses of a kernel, both ways: what the screen completes and what the engine resolves.
//!
//! Immutable once built, shared by `Arc` between the engine and every snapshot. The text of all names is one
//! allocation, so that the 150,000 symbols of a Linux kernel cost a few MiB and build in milliseconds.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, Hasher, RandomState},
    sync::OnceLock,
};

use memchr::memmem;

use super::addr::Va;

/// One symbol: where its name lies in the table's text.
#[derive(Clone, Copy)]
struct Entry {
    va: Va,
    start: u32,
    length: u32,
}

/// The symbols of one guest's kernel (and later of its modules).
///
/// A name may be qualified by a module (`nt!NtCreateFile`); [`SymbolTable::lookup`] takes it with or without.
#[derive(Default)]
pub struct SymbolTable {
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

/// Collects the symbols of a [`SymbolTable`] with one copy of each name and no allocation of its own per symbol.
#[derive(Default)]
pub struct SymbolTableBuilder {
    text: String,
    entries: Vec<Entry>,
}

impl SymbolTableBuilder {
    /// A builder with room for so many symbols with so many bytes of names.
    pub fn with_capacity(symbols: usize, text: usize) -> Self {
        Self { text: String::with_capacity(text), entries: Vec::with_capacity(symbols) }
    }

    /// Adds a symbol whose name is these parts, one behind the other. Beyond 4 GiB of names symbols are dropped.
    #[inline]
    pub fn push<'a>(&mut self, va: Va, parts: impl IntoIterator<Item = &'a str>) {
        let start = self.text.len();
        for part in parts {
            self.text.push_str(part);
        }
        match (u32::try_from(start), u32::try_from(self.text.len())) {
            (Ok(start), Ok(end)) => self.entries.push(Entry { va, start, length: end - start }),
            _ => self.text.truncate(start),
        }
    }

    /// The table. Symbols that came in order of address cost no sorting.
    pub fn build(mut self) -> SymbolTable {
        let name = |entry: &Entry| name_in(&self.text, *entry);
        self.entries.sort_by_key(|entry| entry.va);
        for same in self.entries.chunk_by_mut(|a, b| a.va == b.va) {
            if same.len() > 1 {
                same.sort_by(|a, b| name(a).cmp(name(b)));
            }
        }
        let qualified = self.text.contains('!');
        let mut table = SymbolTable { text: self.text, by_address: self.entries, ..SymbolTable::default() };
        table.whole = NameIndex::new(table.by_address.len());
        table.bare = NameIndex::new(if qualified { table.by_address.len() } else { 0 });
        let (mut whole, mut bare) = (std::mem::take(&mut table.whole), std::mem::take(&mut table.bare));
        for i in 0..table.by_address.len() as u32 {
            let name = table.name_at(i);
            whole.insert(name, i, |other| table.name_at(other));
            if qualified && let Some((_, short)) = name.split_once('!') {
                bare.insert(short, i, |other| bare_name(table.name_at(other)));
            }
        }
        SymbolTable { whole, bare, ..table }
    }
}

fn name_in(text: &str, entry: Entry) -> &str {
    text.get(entry.start as usize..entry.start as usize + entry.length as usize).unwrap_or("")
}

fn bare_name(name: &str) -> &str {
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

impl SymbolTable {
    /// Builds a table. Where a name occurs twice, [`SymbolTable::lookup`] answers the lowest address.
    pub fn new<S: AsRef<str>>(symbols: impl IntoIterator<Item = (S, Va)>) -> Self {
        let mut builder = SymbolTableBuilder::default();
        for (name, va) in symbols {
            builder.push(va, [name.as_ref()]);
        }
        builder.build()
    }

    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether there is no symbol at all.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    fn name_at(&self, index: u32) -> &str {
        self.by_address.get(index as usize).map_or("", |&entry| name_in(&self.text, entry))
    }

    fn address_at(&self, index: u32) -> Va {
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
    fn containing(&self, wanted: &str, limit: usize) -> BTreeSet<u32> {
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

    /// The address of a symbol by its name, qualified or bare, exact.
    pub fn lookup(&self, name: &str) -> Option<Va> {
        let index = self
            .whole
            .get(name, |i| self.name_at(i))
            .or_else(|| self.bare.get(name, |i| bare_name(self.name_at(i))))?;
        Some(self.address_at(index))
    }

    /// The symbol at or before `va` and the distance to it in bytes; `None` before the first one.
    pub fn nearest(&self, va: Va) -> Option<(&str, u64)> {
        let after = self.by_address.partition_point(|entry| entry.va <= va);
        let last = after.checked_sub(1)?;
        let address = self.by_address.get(last)?.va;
        // Several names at one address: the first in order of name, always the same one.
        let first = self.by_address.partition_point(|entry| entry.va < address);
        Some((self.name_at(first as u32), va - address))
    }

    /// The first address behind `va` that has a symbol.
    pub fn next_after(&self, va: Va) -> Option<Va> {
        self.by_address.get(self.by_address.partition_point(|entry| entry.va <= va)).map(|entry| entry.va)
    }

    /// `name` or `name+0x1f` for an address that lies no more than `reach` bytes behind a symbol.
    pub fn describe(&self, va: Va, reach: u64) -> Option<String> {
        match self.nearest(va)? {
            (name, 0) => Some(name.to_owned()),
            (name, distance) if distance <= reach => Some(format!("{name}+{distance:#x}")),
            _ => None,
        }
    }

    /// Up to `limit` names that begin with `prefix` (qualified or bare), then those that contain it, in order; each name
    /// once.
    pub fn complete(&self, prefix: &str, limit: usize) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        let mut take = |rank: usize| {
            let name = self.by_name().order.get(rank).map_or("", |&i| self.name_at(i));
            if found.len() < limit && !found.contains(&name) {
                found.push(name);
            }
            found.len() < limit
        };
        let order = &self.by_name().order;
        let from = order.partition_point(|&i| self.name_at(i) < prefix);
        let begins = order.iter().skip(from).take_while(|&&i| self.name_at(i).starts_with(prefix));
        let full = !begins.enumerate().all(|(nth, _)| take(from + nth));
        if full || prefix.is_empty() {
            return found;
        }
        // A name may be there several times, and among the matches before.
        for wanted in [format!("!{prefix}"), prefix.to_owned()] {
            if !self.containing(&wanted, 4 * limit).into_iter().all(|rank| take(rank as usize)) {
                break;
            }
        }
        found
    }

    /// Every symbol, in order of address.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Va)> {
        (0..self.by_address.len() as u32).map(|i| (self.name_at(i), self.address_at(i)))
    }
}

impl std::fmt::Debug for SymbolTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SymbolTable({} symbols)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> SymbolTable {
        SymbolTable::new([
            ("nt!NtOpenFile", Va(0x3000)),
            ("nt!NtCreateFile", Va(0x2000)),
            ("nt!ZwCreateFile", Va(0x2000)),
        ])
    }

    #[test]
    fn finds_names_with_and_without_their_module() {
        assert_eq!(table().lookup("nt!NtCreateFile"), Some(Va(0x2000)));
        assert_eq!(table().lookup("NtOpenFile"), Some(Va(0x3000)));
        assert_eq!(table().lookup("NtOpen"), None);
    }

    #[test]
    fn names_an_address_by_what_is_at_or_before_it() {
        let table = table();
        assert_eq!(table.nearest(Va(0x2004)), Some(("nt!NtCreateFile", 4)));
        assert_eq!(table.nearest(Va(0x1fff)), None);
        assert_eq!(table.describe(Va(0x3000), 0).as_deref(), Some("nt!NtOpenFile"));
        assert_eq!(table.describe(Va(0x4000), 0x100), None);
    }

    #[test]
    fn of_two_symbols_with_one_name_the_lower_counts() {
        let table = SymbolTable::new([("b", Va(0x20)), ("a", Va(0x30)), ("a", Va(0x10)), ("m!a", Va(0x5))]);
        assert_eq!(table.lookup("a"), Some(Va(0x10)));
        assert_eq!(table.lookup("m!a"), Some(Va(0x5)));
        assert_eq!(table.iter().map(|(_, va)| va.0).collect::<Vec<_>>(), [0x5, 0x10, 0x20, 0x30]);
        assert_eq!(table.next_after(Va(0x10)), Some(Va(0x20)));
        assert_eq!(SymbolTable::default().lookup("a"), None);
    }

    #[test]
    fn a_builder_joins_parts_and_finds_every_name() {
        let mut builder = SymbolTableBuilder::with_capacity(1000, 0);
        for i in 0..1000u64 {
            builder.push(Va(i / 3), ["sys_", &i.to_string()]);
        }
        let table = builder.build();
        assert_eq!(table.len(), 1000);
        for i in 0..1000 {
            assert_eq!(table.lookup(&format!("sys_{i}")), Some(Va(i / 3)));
        }
        assert_eq!(table.nearest(Va(1)), Some(("sys_3", 0)));
    }

    #[test]
    fn completes_among_many_as_a_plain_search_would() {
        let many = if cfg!(miri) { 60 } else { 2000u64 };
        let names: Vec<String> =
            (0..many).map(|i| format!("{}sys_{}", ["", "m!"][(i % 2) as usize], i * 7919 % 1009)).collect();
        let table = SymbolTable::new(names.iter().enumerate().map(|(i, name)| (name, Va(i as u64 * 31 % 977))));
        let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        sorted.dedup();
        for wanted in ["s", "sys_10", "m!sys_3", "99", "ys_1", "_", "!", "0", "1m", "no such", ""] {
            let with =
                |test: &dyn Fn(&str) -> bool| sorted.iter().copied().filter(|name| test(name)).collect::<Vec<_>>();
            let mut plain = with(&|name| name.starts_with(wanted));
            plain.extend(with(&|name| bare_name(name).starts_with(wanted)));
            plain.extend(with(&|name| name.contains(wanted)));
            let mut expected: Vec<&str> = Vec::new();
            plain.into_iter().for_each(|name| {
                if !expected.contains(&name) {
                    expected.push(name)
                }
            });
            expected.truncate(8);
            assert_eq!(table.complete(wanted, 8), expected, "{wanted}");
        }
    }

    #[test]
    fn completes_prefixes_before_other_matches() {
        assert_eq!(table().complete("Nt", 10), ["nt!NtCreateFile", "nt!NtOpenFile"]);
        assert_eq!(table().complete("Create", 10), ["nt!NtCreateFile", "nt!ZwCreateFile"]);
        assert_eq!(table().complete("nt!", 1), ["nt!NtCreateFile"]);
    }
}
