//! Loaded modules of the kernel (`struct module`): its list, and what else knows them. A module that took itself off the
//! list still has its folder in `/sys/module` (`module_kset`), and its code is still found by address (`mod_tree`).

use std::collections::HashSet;

use super::kernel::Kernel;
use crate::engine::{
    addr::Va,
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    snapshot::{Module, clean},
};

/// Modules listed at most.
const MOST_MODULES: usize = 4096;
/// Longest name (`MODULE_NAME_LEN`).
const LONGEST_NAME: usize = 56;

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// The modules in the kernel's list, the one that was loaded last first, then those that hide from it: where their
    /// code is, and how much. The flag tells that the list does not come to its end.
    pub(super) fn kernel_modules(&self) -> Result<(Vec<Module>, bool), VmiError> {
        let (first, mut truncated) = self.module_list()?;
        let mut modules = Vec::with_capacity(first.len());
        for &object in &first {
            match self.module(object, false) {
                Ok(module) => modules.push(module),
                Err(VmiError::Translation(_) | VmiError::OutOfBounds(_) | VmiError::CutShort) => truncated = true,
                Err(error) => return Err(error),
            }
        }
        // A module comes and goes while we look: one that is hidden is so twice.
        let unlisted = self.unlisted_modules(&first);
        if !truncated && !unlisted.is_empty() {
            self.core.flush_gfn_cache();
            self.core.flush_v2p_cache();
            let (second, cut) = self.module_list()?;
            truncated |= cut;
            let still: HashSet<Va> = self.unlisted_modules(&second).into_iter().collect();
            let hidden = unlisted.into_iter().filter(|object| !cut && still.contains(object));
            modules.extend(hidden.filter_map(|object| self.module(object, true).ok()));
        }
        truncated |= self.core.cut().is_some();
        Ok((modules, truncated))
    }

    /// Where all modules are, the hidden ones last. The flag tells that there may be more.
    pub(super) fn module_objects(&self) -> Result<(Vec<Va>, bool), VmiError> {
        let (mut objects, truncated) = self.module_list()?;
        objects.extend(self.unlisted_modules(&objects));
        Ok((objects, truncated || self.core.cut().is_some()))
    }

    pub(super) fn module(&self, object: Va, hidden: bool) -> Result<Module, VmiError> {
        let unknown = || VmiError::os("this kernel does not tell where its list of modules is");
        let layout = self.os.layout.module.as_ref().ok_or_else(unknown)?;
        let name = self.core.read_string_limited((object + layout.name, self.os.root), LONGEST_NAME)?;
        Ok(Module {
            base: self.pointer(object + layout.base)?,
            size: u64::from(self.u32(object + layout.size)?),
            name: clean(&name, LONGEST_NAME),
            hidden,
        })
    }

    /// The objects in the list. The flag tells that it does not come to its end.
    fn module_list(&self) -> Result<(Vec<Va>, bool), VmiError> {
        let unknown = || VmiError::os("this kernel does not tell where its list of modules is");
        let head = self.os.symbols.lookup("modules").ok_or_else(unknown)?;
        let layout = self.os.layout.module.as_ref().ok_or_else(unknown)?;
        let (nodes, truncated) = self.list(head)?;
        Ok((nodes.into_iter().map(|node| node - layout.list).collect(), truncated))
    }

    /// The nodes of a list. The flag tells that it does not lead back to its head.
    fn list(&self, head: Va) -> Result<(Vec<Va>, bool), VmiError> {
        let mut nodes = Vec::new();
        let mut seen = HashSet::new();
        let mut next = self.pointer(head)?;
        while next != head {
            if nodes.len() >= MOST_MODULES || !seen.insert(next) {
                return Ok((nodes, true));
            }
            nodes.push(next);
            next = match self.pointer(next) {
                Ok(next) => next,
                Err(VmiError::Translation(_) | VmiError::OutOfBounds(_) | VmiError::CutShort) => {
                    return Ok((nodes, true));
                }
                Err(error) => return Err(error),
            };
        }
        Ok((nodes, false))
    }

    /// Modules that are known elsewhere, but not in the list.
    fn unlisted_modules(&self, listed: &[Va]) -> Vec<Va> {
        let mut seen: HashSet<Va> = listed.iter().copied().collect();
        let elsewhere = self.modules_with_folder().into_iter().flatten();
        let elsewhere = elsewhere.chain(self.modules_by_address().into_iter().flatten());
        elsewhere.filter(|object| object.0 >> 63 != 0 && seen.insert(*object)).collect()
    }

    /// The modules with a folder in `/sys/module`; those that are part of the image have none of their own.
    fn modules_with_folder(&self) -> Option<Vec<Va>> {
        let layout = self.os.layout.module_folders.as_ref()?;
        let set = self.pointer(self.os.symbols.lookup("module_kset")?).ok()?;
        let (nodes, _) = self.list(set + layout.list).ok()?;
        let module = |node: Va| self.pointer(node - layout.entry - layout.kobject + layout.module).ok();
        Some(nodes.into_iter().filter_map(module).filter(|module| !module.is_null()).collect())
    }

    /// The modules in the tree that finds them by an address of theirs.
    fn modules_by_address(&self) -> Option<Vec<Va>> {
        let layout = self.os.layout.module_tree.as_ref()?;
        let mut open = vec![self.pointer(self.os.symbols.lookup("mod_tree")? + layout.root).ok()?];
        let mut seen = HashSet::new();
        let mut modules = Vec::new();
        while let Some(node) = open.pop() {
            // A module has a node for each of its parts.
            if node.is_null() || seen.len() >= 4 * MOST_MODULES || !seen.insert(node) {
                continue;
            }
            modules.extend(self.pointer(node - layout.node + layout.module));
            open.extend([layout.left, layout.right].into_iter().filter_map(|side| self.pointer(node + side).ok()));
        }
        Some(modules)
    }
}
