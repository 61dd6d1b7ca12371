//! Loaded modules of the kernel (`struct module`).

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
    /// The modules in the kernel's list, the one that was loaded last first: where their code is, and how much.
    pub(super) fn kernel_modules(&self) -> Result<Vec<Module>, VmiError> {
        let unknown = || VmiError::os("this kernel does not tell where its list of modules is");
        let head = self.os.symbols.lookup("modules").ok_or_else(unknown)?;
        let layout = self.os.layout.module.as_ref().ok_or_else(unknown)?;
        let mut modules = Vec::new();
        let mut seen = HashSet::new();
        let mut next = self.pointer(head)?;
        while next != head && modules.len() < MOST_MODULES && seen.insert(next) {
            let object = next - layout.list;
            let name = self.core.read_string_limited((object + layout.name, self.os.root), LONGEST_NAME)?;
            modules.push(Module {
                base: self.pointer(object + layout.base)?,
                size: u64::from(self.u32(object + layout.size)?),
                name: clean(&name, LONGEST_NAME),
                hidden: false,
            });
            next = self.pointer(next).unwrap_or(Va(0));
        }
        Ok(modules)
    }
}
