//! Loaded modules of the kernel, and what else knows them.

use super::facts::Facts;

/// A loaded module of the kernel (`include/linux/module.h`).
pub(in super::super) struct KernelModule {
    pub(in super::super) list: u64,
    pub(in super::super) name: u64,
    pub(in super::super) base: u64,
    pub(in super::super) size: u64,
}

impl KernelModule {
    pub(super) fn new(facts: &Facts<'_>) -> Option<Self> {
        Some(Self {
            list: facts.at("module", "list")?,
            name: facts.at("module", "name")?,
            // From 6.4 on an array, whose first element is the code.
            base: facts.any("module", &["mem.base", "core_layout.base"])?,
            size: facts.any("module", &["mem.size", "core_layout.size"])?,
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
