//! Loaded modules of the kernel, and what else knows them.

use super::facts::Facts;

/// A loaded module of the kernel (`include/linux/module.h`).
pub(in super::super) struct KernelModule {
    pub(in super::super) list: u64,
    pub(in super::super) name: u64,
    /// Of the code.
    pub(in super::super) base: u64,
    pub(in super::super) size: u64,
    pub(in super::super) symbols: Option<ModuleSymbols>,
}

/// A module's symbols, as it brought them (`struct mod_kallsyms`), and where they may lie.
pub(in super::super) struct ModuleSymbols {
    /// `module.state`.
    pub(in super::super) state: u64,
    /// `module.kallsyms`: those of the whole module while it starts, then of what stays.
    pub(in super::super) table: u64,
    pub(in super::super) symbols: u64,
    pub(in super::super) count: u64,
    pub(in super::super) strings: u64,
    /// Where the base and the size of each part of its memory are.
    pub(in super::super) memory: Vec<(u64, u64)>,
}

impl ModuleSymbols {
    /// Parts of a module's memory at most (`MOD_MEM_NUM_TYPES` is 7).
    const MOST_PARTS: u64 = 16;

    fn new(facts: &Facts<'_>) -> Option<Self> {
        let module = |name| facts.at("module", name);
        let pair = |base, size| module(base).zip(module(size));
        // From 6.4 on an array with a part for each kind of memory; before, one part for what stays and one for the start.
        let memory = match pair("mem.base", "mem.size") {
            Some((base, size)) => {
                let part = facts.size_of("module_memory").filter(|part| *part > 0);
                let step = part.unwrap_or(0);
                let parts = part.zip(facts.bytes("module", "mem")).map_or(1, |(part, all)| all / part);
                (0..parts.min(Self::MOST_PARTS)).map(|nth| (base + nth * step, size + nth * step)).collect()
            }
            None => [("core_layout.base", "core_layout.size"), ("init_layout.base", "init_layout.size")]
                .into_iter()
                .filter_map(|(base, size)| pair(base, size))
                .collect(),
        };
        Some(Self {
            state: module("state")?,
            table: module("kallsyms")?,
            symbols: facts.at("mod_kallsyms", "symtab")?,
            count: facts.at("mod_kallsyms", "num_symtab")?,
            strings: facts.at("mod_kallsyms", "strtab")?,
            memory,
        })
    }
}

impl KernelModule {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            list: facts.at("module", "list")?,
            name: facts.at("module", "name")?,
            // From 6.4 on an array, whose first element is the code.
            base: facts.any("module", &["mem.base", "core_layout.base"])?,
            size: facts.any("module", &["mem.size", "core_layout.size"])?,
            symbols: ModuleSymbols::new(facts),
        })
    }
}

/// The set of folders in `/sys/module` (`include/linux/kobject.h`, `include/linux/module.h`).
pub(in super::super) struct ModuleFolders {
    pub(in super::super) list: u64,
    pub(in super::super) entry: u64,
    /// `module_kobject.kobj`, `.mod`.
    pub(in super::super) kobject: u64,
    pub(in super::super) module: u64,
}

impl ModuleFolders {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            list: facts.at("kset", "list")?,
            entry: facts.at("kobject", "entry")?,
            kobject: facts.at("module_kobject", "kobj")?,
            module: facts.at("module_kobject", "mod")?,
        })
    }
}

/// The tree of modules by address, the first of its two copies (`include/linux/rbtree_latch.h`, `kernel/module/internal.h`).
pub(in super::super) struct ModuleTree {
    pub(in super::super) root: u64,
    /// `mod_tree_node.node.node`, `.mod`.
    pub(in super::super) node: u64,
    pub(in super::super) module: u64,
    pub(in super::super) left: u64,
    pub(in super::super) right: u64,
}

impl ModuleTree {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            root: facts.at("mod_tree_root", "root.tree.rb_node")?,
            node: facts.at("mod_tree_node", "node.node")?,
            module: facts.at("mod_tree_node", "mod")?,
            left: facts.at("rb_node", "rb_left")?,
            right: facts.at("rb_node", "rb_right")?,
        })
    }
}
