//! The kernel's loaded modules: `PsLoadedModuleList` and the first page of each image.

use super::{
    Kernel,
    contents::image_header,
    namespace::string,
    space::{KERNEL, NO_EXECUTE},
};
use crate::engine::{driver::sim::memory::Memory, error::VmiError};

/// Modules behind the kernel itself: name, folder, size.
const MODULES: &[(&str, &str, u64)] = &[
    ("hal.dll", "\\SystemRoot\\system32\\", 0x6000),
    ("kd.dll", "\\SystemRoot\\system32\\", 0xb000),
    ("CLFS.SYS", "\\SystemRoot\\System32\\drivers\\", 0x6a000),
    ("CI.dll", "\\SystemRoot\\system32\\", 0xe3000),
    ("ACPI.sys", "\\SystemRoot\\System32\\drivers\\", 0xcc000),
    ("Ntfs.sys", "\\SystemRoot\\System32\\Drivers\\", 0x2d8000),
    ("tcpip.sys", "\\SystemRoot\\System32\\drivers\\", 0x2eb000),
    ("win32kfull.sys", "\\SystemRoot\\System32\\", 0x3b5000),
];

/// Bytes of an entry that the kernel uses (`_KLDR_DATA_TABLE_ENTRY`, whose beginning is that of the loader's own).
const ENTRY_BYTES: u64 = 0xa0;

impl Kernel {
    /// Lists the kernel and its modules, each mapped behind the one before it.
    pub(super) fn load_modules(&mut self, memory: &mut Memory, image: u64) -> Result<(), VmiError> {
        let head = self.facts.symbol("PsLoadedModuleList")?;
        let kernel = ("ntoskrnl.exe", "\\SystemRoot\\system32\\", self.facts.image_size);
        // As a loader's large pages would place them: not next to each other.
        let mut base = self.base;
        let mut before = (self.base + head, image + head);
        for &(name, folder, bytes) in [kernel].iter().chain(MODULES) {
            if base != self.base {
                let frame = self.frames.take()?;
                memory.write(frame, &image_header(bytes))?;
                self.system.map(memory, &mut self.frames, (base, frame, 1), KERNEL | NO_EXECUTE)?;
            }
            let f = &self.facts;
            let name_text = self.names.text(memory, name)?;
            let path_text = self.names.text(memory, &format!("{folder}{name}"))?;
            let (va, pa) = self.names.take(ENTRY_BYTES)?;
            memory.write_u64(pa + f.module_base, base);
            let _ = memory.write(pa + f.module_size, &(bytes as u32).to_le_bytes());
            string(memory, f, pa + f.module_name, name_text);
            string(memory, f, pa + f.module_path, path_text);
            // InLoadOrderLinks is the entry's first field.
            memory.write_u64(before.1, va);
            memory.write_u64(pa + 8, before.0);
            before = (va, pa);
            base += bytes.next_multiple_of(0x20_0000) + 0x20_0000;
        }
        memory.write_u64(before.1, self.base + head);
        memory.write_u64(image + head + 8, before.0);
        Ok(())
    }
}
