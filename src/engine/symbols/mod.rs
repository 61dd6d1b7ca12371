//! Names and addresses of a kernel and its modules, both ways: what the screen completes and what the engine resolves.
//!
//! Immutable once built, shared by `Arc` between the engine and every snapshot. The kernel's own names stay as they are
//! while modules come and go (`names` holds either); `place` reads what people write and words what they are shown;
//! `per_cpu` knows which names stand for one variable on every CPU. Imports addresses. Start at [`SymbolTable`].

mod complete;
mod names;
mod per_cpu;
mod place;

use std::sync::Arc;

use self::names::{Entry, Names};
pub use self::per_cpu::PerCpuArea;
pub(in crate::engine) use self::place::{is_cpu, module_of, respelt};
use super::addr::Va;

/// The symbols of one guest's kernel and of its modules.
///
/// A name may be qualified by a module (`nt!NtCreateFile`); [`SymbolTable::lookup`] takes it with or without.
#[derive(Clone, Default)]
pub struct SymbolTable {
    kernel: Arc<Names>,
    /// Of modules that come and go; empty where there are none.
    modules: Arc<Names>,
    per_cpu: Option<Arc<PerCpuArea>>,
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
    pub fn build(self) -> SymbolTable {
        SymbolTable { kernel: Arc::new(Names::new(self.text, self.entries)), ..SymbolTable::default() }
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

    /// The same kernel's symbols with those of other modules. The kernel's own names are shared, not copied.
    pub fn with_modules(&self, modules: SymbolTable) -> Self {
        Self { modules: modules.kernel, ..self.clone() }
    }

    /// The same symbols, of which those in an area stand for a variable on each CPU.
    pub fn with_per_cpu(&self, area: PerCpuArea) -> Self {
        Self { per_cpu: Some(Arc::new(area)), ..self.clone() }
    }

    fn layers(&self) -> [&Names; 2] {
        [&self.kernel, &self.modules]
    }

    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.layers().map(Names::len).iter().sum()
    }

    /// Whether there is no symbol at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of a symbol by its name, qualified or bare, exact: of several with one name the kernel's, and the
    /// lowest. For what is known of a kernel; what a person writes is for [`SymbolTable::place`], which asks which one.
    pub fn lookup(&self, name: &str) -> Option<Va> {
        let layers = self.layers();
        let whole = layers.iter().find_map(|names| names.whole(name));
        whole.or_else(|| layers.iter().find_map(|names| names.bare(name)))
    }

    /// The symbol at or before `va` and the distance to it in bytes; `None` before the first one.
    pub fn nearest(&self, va: Va) -> Option<(&str, u64)> {
        let found = self.layers().into_iter().filter_map(|names| names.nearest(va));
        // Of equals the kernel's.
        found.reduce(|best, next| if next.1 < best.1 { next } else { best })
    }

    /// The first address behind `va` that has a symbol.
    pub fn next_after(&self, va: Va) -> Option<Va> {
        self.layers().into_iter().filter_map(|names| names.next_after(va)).min()
    }

    /// `name` or `name+0x1f` for an address that lies no more than `reach` bytes behind a symbol.
    pub fn describe(&self, va: Va, reach: u64) -> Option<String> {
        match self.nearest(va)? {
            (name, 0) => Some(name.to_owned()),
            (name, distance) if distance <= reach => Some(format!("{name}+{distance:#x}")),
            _ => None,
        }
    }

    /// Every symbol, the kernel's first, each in order of address.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Va)> {
        self.layers().into_iter().flat_map(Names::iter)
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
        // A name that several have is there once for each address.
        let mut sorted: Vec<(String, String)> = Vec::new();
        let mut distinct: Vec<&String> = names.iter().collect();
        distinct.sort_unstable();
        distinct.dedup();
        for name in distinct {
            let addresses: std::collections::BTreeSet<Va> =
                table.iter().filter(|(other, _)| other == name).map(|(_, va)| va).collect();
            let choice = |nth| match addresses.len() {
                1 => name.clone(),
                _ => format!("{name}#{nth}"),
            };
            sorted.extend((1..=addresses.len()).map(|nth| (name.clone(), choice(nth))));
        }
        for wanted in ["s", "sys_10", "m!sys_3", "99", "ys_1", "_", "!", "0", "1m", "no such", ""] {
            let with = |test: &dyn Fn(&str) -> bool| {
                sorted.iter().filter(|(name, _)| test(name)).map(|(_, choice)| choice.clone()).collect::<Vec<_>>()
            };
            let mut plain = with(&|name| name.starts_with(wanted));
            plain.extend(with(&|name| super::names::bare_name(name).starts_with(wanted)));
            plain.extend(with(&|name| name.contains(wanted)));
            let mut expected: Vec<String> = Vec::new();
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
