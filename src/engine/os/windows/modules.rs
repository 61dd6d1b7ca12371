//! Lists of loaded modules: the kernel's own, and those that the loader keeps in each process, for 32-bit code too.

use std::collections::HashSet;

use super::memory::Memory;
use crate::engine::{addr::Va, arch::amd64::Amd64, driver::VmiRead, error::VmiError, snapshot::Module};

/// Modules of one list that are read at most.
const MOST_MODULES: usize = 1024;

/// Where a list's entries have what.
struct Form {
    /// Bytes of a pointer.
    pointer: usize,
    links: u64,
    base: u64,
    size: u64,
    name: u64,
}

/// `LDR_DATA_TABLE_ENTRY32`, the same in every version: the loader's entries with pointers of four bytes.
const FORM_32: Form = Form { pointer: 4, links: 0, base: 0x18, size: 0x20, name: 0x2c };
/// `PEB_LDR_DATA32.InLoadOrderModuleList`.
const LIST_32: u64 = 0xc;

impl<Driver: VmiRead<Architecture = Amd64>> Memory<'_, Driver> {
    /// The kernel and its modules, in the order in which they were loaded. The flag tells that there are more.
    pub(super) fn kernel_modules(&self) -> Result<(Vec<Module>, bool), VmiError> {
        // _KLDR_DATA_TABLE_ENTRY begins as the loader's entries in user mode do.
        self.module_list(self.os.kernel_modules, &self.form_64())
    }

    /// The modules that the loader of a process keeps, in the order in which they were loaded.
    pub(super) fn process_modules(&self, peb: Va) -> Result<(Vec<Module>, bool), VmiError> {
        let o = &self.os.offsets;
        let head = self.pointer(peb + o.ldr)? + o.modules;
        self.module_list(head, &self.form_64())
    }

    /// The modules of a process's 32-bit code.
    pub(super) fn process_modules_32(&self, peb: Va) -> Result<(Vec<Module>, bool), VmiError> {
        let head = self.pointer_of(peb + self.os.offsets.peb32_ldr, 4)? + LIST_32;
        self.module_list(head, &FORM_32)
    }

    fn form_64(&self) -> Form {
        let o = &self.os.offsets;
        Form { pointer: 8, links: o.module_links, base: o.module_base, size: o.module_size, name: o.module_name }
    }

    fn module_list(&self, head: Va, form: &Form) -> Result<(Vec<Module>, bool), VmiError> {
        let mut modules = Vec::new();
        let mut seen = HashSet::new();
        let mut link = self.pointer_of(head, form.pointer)?;
        while link != head {
            if modules.len() >= MOST_MODULES || !seen.insert(link) {
                return Ok((modules, true));
            }
            let entry = link - form.links;
            let name = entry + form.name;
            let name = if form.pointer == 4 { self.string32(name)? } else { self.string(name)? };
            if self.core.keep(size_of::<Module>() + name.len()).is_err() {
                return Ok((modules, true));
            }
            modules.push(Module {
                base: self.pointer_of(entry + form.base, form.pointer)?,
                size: u64::from(self.u32(entry + form.size)?),
                name,
                ..Module::default()
            });
            link = self.pointer_of(link, form.pointer)?;
        }
        Ok((modules, false))
    }
}
