//! The symbols of loaded modules: each brought its own table (`struct mod_kallsyms` in `include/linux/module.h`), which the
//! kernel keeps for `/proc/kallsyms`.
//!
//! A module may be there that hides, may go while it is read, and may claim any address: a symbol counts only inside of its
//! own module's memory, so that none can give a name to a place in the kernel or in another module.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::{
    bytes::{string_at, u16_at, u32_at, u64_at},
    kernel::Kernel,
};
use crate::engine::{
    addr::Va,
    arch::amd64::Amd64,
    driver::VmiRead,
    symbols::{PerCpuArea, SymbolTable, SymbolTableBuilder, module_of},
};

/// Symbols of a module that are read: the largest have some ten thousand.
const MOST_SYMBOLS: u64 = 1 << 17;
/// Bytes of all names of a module.
const MOST_STRINGS: u64 = 8 << 20;
/// Symbols of all modules, and bytes of their names.
const MOST_IN_ALL: usize = 1 << 19;
const MOST_BYTES_IN_ALL: usize = 16 << 20;
/// Longest name (`KSYM_NAME_LEN`).
const LONGEST: usize = 512;
/// Largest part of a module's memory.
const MOST_MEMORY: u64 = 1 << 30;
/// An ELF symbol (ELF-64 object file format): name at 0, section at 6, value at 8.
const SYMBOL_BYTES: usize = 24;
/// `MODULE_STATE_UNFORMED`: nothing in it can be relied on yet.
const UNFORMED: u32 = 3;

/// The names that people are shown and may use.
pub(super) struct Named(ArcSwap<State>);

struct State {
    symbols: Arc<SymbolTable>,
    modules: Vec<Loaded>,
    /// Whether this kernel tells the symbols of its modules.
    follows: bool,
}

/// A module whose symbols were read.
#[derive(Clone)]
struct Loaded {
    identity: Identity,
    symbols: Arc<Vec<(String, Va)>>,
}

/// What tells a module from another one that has taken its place, and its start from the time behind it: then its table
/// is another one.
#[derive(Clone, PartialEq, Eq)]
struct Identity {
    object: Va,
    name: String,
    base: Va,
    state: u32,
    table: Va,
}

/// What is left of what the symbols of all modules may take.
struct Room {
    symbols: usize,
    bytes: usize,
}

impl Room {
    fn is_empty(&self) -> bool {
        self.symbols == 0 || self.bytes == 0
    }

    /// How many of a module's symbols, from the first one on, have room.
    fn take(&mut self, symbols: &[(String, Va)]) -> usize {
        let mut fitting = 0;
        for (name, _) in symbols.iter().take(self.symbols) {
            let Some(left) = self.bytes.checked_sub(name.len()) else {
                self.bytes = 0;
                break;
            };
            self.bytes = left;
            fitting += 1;
        }
        self.symbols -= fitting;
        fitting
    }
}

impl Named {
    pub(super) fn new(kernel: &SymbolTable, offsets: &[u64], follows: bool) -> Self {
        let area = || {
            let area = kernel.lookup("__per_cpu_start")?..kernel.lookup("__per_cpu_end")?;
            // A kernel for one CPU has its variables where their symbols say.
            kernel.lookup("__per_cpu_offset").map(|_| PerCpuArea::new(area, offsets.to_vec()))
        };
        let symbols = area().map_or_else(|| kernel.clone(), |area| kernel.with_per_cpu(area));
        Self(ArcSwap::from_pointee(State { symbols: Arc::new(symbols), modules: Vec::new(), follows }))
    }

    pub(super) fn symbols(&self) -> Arc<SymbolTable> {
        Arc::clone(&self.0.load().symbols)
    }

    pub(super) fn missing_module<'a>(&self, place: &'a str) -> Option<&'a str> {
        let state = self.0.load();
        let module = module_of(place).filter(|_| state.follows)?;
        state.modules.iter().all(|loaded| loaded.identity.name != module).then_some(module)
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// Reads the tables of modules that are new; whether there is any change.
    pub(super) fn refresh_module_symbols(&self) -> bool {
        let named = &self.os.named;
        let old = named.0.load();
        if !old.follows {
            return false;
        }
        self.core.flush_gfn_cache();
        self.core.flush_v2p_cache();
        // A list that cannot be read now says nothing of what is loaded.
        let Ok((objects, truncated)) = self.module_objects() else { return false };
        let mut identities: Vec<Identity> = objects.into_iter().filter_map(|object| self.identity(object)).collect();
        // What a list that was cut short does not have may be there all the same, as long as its structure says so.
        if truncated || self.core.cut().is_some() {
            let found: HashSet<Va> = identities.iter().map(|identity| identity.object).collect();
            let lacking = old.modules.iter().map(|loaded| &loaded.identity);
            let lacking = lacking.filter(|identity| !found.contains(&identity.object));
            let is_there = |known: &&Identity| {
                self.identity(known.object).map_or(self.core.cut().is_some(), |identity| identity == **known)
            };
            identities.extend(lacking.filter(is_there).cloned().collect::<Vec<_>>());
        }
        if identities.iter().eq(old.modules.iter().map(|loaded| &loaded.identity)) {
            return false;
        }
        let known: HashMap<Va, &Loaded> = old.modules.iter().map(|loaded| (loaded.identity.object, loaded)).collect();
        let mut room = Room { symbols: MOST_IN_ALL, bytes: MOST_BYTES_IN_ALL };
        let mut modules = Vec::with_capacity(identities.len());
        let mut builder = SymbolTableBuilder::default();
        for identity in identities {
            let known = known.get(&identity.object).filter(|loaded| loaded.identity == identity);
            let symbols = match known {
                Some(loaded) => Arc::clone(&loaded.symbols),
                None if room.is_empty() => Arc::default(),
                None => {
                    let read = self.symbols_of(identity.object);
                    // It is read at the next look: until then it counts as not loaded yet.
                    if read.is_none() && self.core.cut().is_some() {
                        continue;
                    }
                    Arc::new(read.unwrap_or_default())
                }
            };
            let fitting = room.take(&symbols);
            let symbols = if fitting == symbols.len() {
                symbols
            } else {
                Arc::new(symbols.iter().take(fitting).cloned().collect())
            };
            for (name, va) in symbols.iter() {
                builder.push(*va, [identity.name.as_str(), "!", name]);
            }
            modules.push(Loaded { identity, symbols });
        }
        let symbols = Arc::new(old.symbols.with_modules(builder.build()));
        named.0.store(Arc::new(State { symbols, modules, follows: true }));
        true
    }

    /// A module that has a table; `None` also for one that is gone by now.
    fn identity(&self, object: Va) -> Option<Identity> {
        let layout = self.os.layout.module.as_ref()?;
        let symbols = layout.symbols.as_ref()?;
        let state = self.u32(object + symbols.state).ok().filter(|state| *state != UNFORMED)?;
        let table = self.existing(object + symbols.table)?;
        let module = self.module(object, false).ok()?;
        Some(Identity { object, name: module.name, base: module.base, state, table })
    }

    fn symbols_of(&self, object: Va) -> Option<Vec<(String, Va)>> {
        let layout = self.os.layout.module.as_ref()?.symbols.as_ref()?;
        let table = self.existing(object + layout.table)?;
        let memory: Vec<Range<Va>> = layout.memory.iter().filter_map(|&part| self.part(object, part)).collect();
        let count = u64::from(self.u32(table + layout.count).ok()?).min(MOST_SYMBOLS);
        let mut symbols = vec![0; count as usize * SYMBOL_BYTES];
        self.read(self.existing(table + layout.symbols)?, &mut symbols).ok()?;
        let (symbols, _) = symbols.as_chunks::<SYMBOL_BYTES>();
        // Section 0 is SHN_UNDEF: what the module only uses.
        let own = |symbol: &&[u8; SYMBOL_BYTES]| u16_at(*symbol, 6) != Some(0);
        let found: Vec<(usize, Va)> = symbols
            .iter()
            .filter(own)
            .filter_map(|symbol| Some((u32_at(symbol, 0)? as usize, Va(u64_at(symbol, 8)?))))
            .filter(|(_, va)| memory.iter().any(|part| part.contains(va)))
            .collect();
        let strings =
            self.strings(self.existing(table + layout.strings)?, found.iter().map(|(name, _)| *name).max()?)?;
        let name = |at: usize| {
            let text = string_at(&strings, at, LONGEST)?;
            let text: String =
                text.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }).collect();
            Some(text).filter(|text| !text.is_empty())
        };
        Some(found.into_iter().filter_map(|(at, va)| Some((name(at)?, va))).collect())
    }

    fn part(&self, object: Va, (base, size): (u64, u64)) -> Option<Range<Va>> {
        let base = self.existing(object + base)?;
        let size = u64::from(self.u32(object + size).ok()?).min(MOST_MEMORY);
        // The upper half only: a name for an address of a process would be a lie.
        (base.0 >> 63 != 0).then_some(())?;
        Some(base..base.checked_add(size)?)
    }

    /// The strings up to the last of them, whose start is given.
    fn strings(&self, va: Va, last: usize) -> Option<Vec<u8>> {
        let last = u64::try_from(last).ok().filter(|last| *last < MOST_STRINGS)?;
        let mut bytes = vec![0; last as usize];
        self.read(va, &mut bytes).ok()?;
        let end = self.core.read_string_bytes_limited((va + last, self.os.root), LONGEST).ok()?;
        bytes.extend(end);
        bytes.push(0);
        Some(bytes)
    }
}
