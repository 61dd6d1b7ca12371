//! Names and addresses of a kernel, both ways: what the screen completes and what the engine resolves.
//!
//! Immutable once built, shared by `Arc` between the engine and every snapshot. The text of all names is one
//! allocation, so that the 150,000 symbols of a Linux kernel cost a few MiB and build in milliseconds.

use std::collections::HashMap;

use super::addr::Va;

/// The symbols of one guest's kernel (and later of its modules).
///
/// A name may be qualified by a module (`nt!NtCreateFile`); [`SymbolTable::lookup`] takes it with or without.
#[derive(Default)]
pub struct SymbolTable {
    /// All names, one behind the other.
    text: String,
    /// `(address, start in text, length)`, sorted by address, then by name.
    by_address: Vec<(Va, u32, u32)>,
    /// Indices into `by_address`, sorted by name.
    by_name: Vec<u32>,
    /// Unqualified name → index of the first symbol that has it.
    short: HashMap<String, u32>,
}

impl SymbolTable {
    /// Builds a table. Where a name occurs twice, [`SymbolTable::lookup`] answers the lowest address.
    pub fn new<S: AsRef<str>>(symbols: impl IntoIterator<Item = (S, Va)>) -> Self {
        let mut text = String::new();
        let mut by_address = Vec::new();
        for (name, va) in symbols {
            let name = name.as_ref();
            let (Ok(start), Ok(length)) = (u32::try_from(text.len()), u32::try_from(name.len())) else {
                break;
            };
            text.push_str(name);
            by_address.push((va, start, length));
        }
        let slice = |s: u32, l: u32| text.get(s as usize..(s as usize + l as usize)).unwrap_or("");
        by_address.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| slice(a.1, a.2).cmp(slice(b.1, b.2))));
        let mut by_name: Vec<u32> = (0..by_address.len() as u32).collect();
        let name_of = |i: u32| by_address.get(i as usize).map_or("", |&(_, s, l)| slice(s, l));
        by_name.sort_by(|&a, &b| name_of(a).cmp(name_of(b)).then(a.cmp(&b)));
        let mut short = HashMap::new();
        for (i, &(_, s, l)) in by_address.iter().enumerate() {
            if let Some((_, bare)) = slice(s, l).split_once('!') {
                short.entry(bare.to_owned()).or_insert(i as u32);
            }
        }
        Self { text, by_address, by_name, short }
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
        self.by_address
            .get(index as usize)
            .and_then(|&(_, s, l)| self.text.get(s as usize..s as usize + l as usize))
            .unwrap_or("")
    }

    fn address_at(&self, index: u32) -> Va {
        self.by_address.get(index as usize).map_or(Va(0), |entry| entry.0)
    }

    /// The address of a symbol by its name, qualified or bare, exact.
    pub fn lookup(&self, name: &str) -> Option<Va> {
        let at = self.by_name.partition_point(|&i| self.name_at(i) < name);
        match self.by_name.get(at) {
            Some(&i) if self.name_at(i) == name => Some(self.address_at(i)),
            _ => self.short.get(name).map(|&i| self.address_at(i)),
        }
    }

    /// The symbol at or before `va` and the distance to it in bytes; `None` before the first one.
    pub fn nearest(&self, va: Va) -> Option<(&str, u64)> {
        let after = self.by_address.partition_point(|entry| entry.0 <= va);
        let last = after.checked_sub(1)?;
        let address = self.by_address.get(last)?.0;
        // Several names at one address: the first in order of name, always the same one.
        let first = self.by_address.partition_point(|entry| entry.0 < address);
        Some((self.name_at(first as u32), va - address))
    }

    /// `name` or `name+0x1f` for an address that lies no more than `reach` bytes behind a symbol.
    pub fn describe(&self, va: Va, reach: u64) -> Option<String> {
        match self.nearest(va)? {
            (name, 0) => Some(name.to_owned()),
            (name, distance) if distance <= reach => Some(format!("{name}+{distance:#x}")),
            _ => None,
        }
    }

    /// Up to `limit` names that begin with `prefix` (qualified or bare), then those that contain it, in order.
    pub fn complete(&self, prefix: &str, limit: usize) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        if prefix.is_empty() {
            return self.by_name.iter().take(limit).map(|&i| self.name_at(i)).collect();
        }
        let from = self.by_name.partition_point(|&i| self.name_at(i) < prefix);
        for &i in self.by_name.iter().skip(from) {
            let name = self.name_at(i);
            if found.len() >= limit || !name.starts_with(prefix) {
                break;
            }
            found.push(name);
        }
        for wanted in [0, 1] {
            for &i in &self.by_name {
                if found.len() >= limit {
                    return found;
                }
                let name = self.name_at(i);
                let bare = name.split_once('!').map_or(name, |(_, bare)| bare);
                let matches = if wanted == 0 { bare.starts_with(prefix) } else { name.contains(prefix) };
                if matches && !found.contains(&name) {
                    found.push(name);
                }
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
    fn completes_prefixes_before_other_matches() {
        assert_eq!(table().complete("Nt", 10), ["nt!NtCreateFile", "nt!NtOpenFile"]);
        assert_eq!(table().complete("Create", 10), ["nt!NtCreateFile", "nt!ZwCreateFile"]);
        assert_eq!(table().complete("nt!", 1), ["nt!NtCreateFile"]);
    }
}
