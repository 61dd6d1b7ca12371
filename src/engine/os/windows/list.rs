//! The processes: as the kernel lists them, and as its table of ids knows them. A process that only one of the two has
//! hides, or is being hidden.

use std::collections::HashSet;

use super::WindowsOs;
use crate::engine::{
    addr::{Pa, Va},
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    os::ProcessList,
    session::VmiCore,
    snapshot::{Process, ProcessFlag},
};

/// More processes than a guest can have; a longer list is a lie.
const MOST_PROCESSES: usize = 1 << 16;
/// Pages of the id table that are read at most; more processes and threads than that have no room anywhere.
const MOST_ID_PAGES: usize = 1 << 12;

/// KOBJECTS: the type of a process's dispatcher header.
const PROCESS_OBJECT: u8 = 3;

impl WindowsOs {
    /// The list, with the hidden ones at its end.
    pub(super) fn list<Driver>(&self, core: &VmiCore<Driver>) -> Result<ProcessList, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let mut list = ProcessList::default();
        let mut seen = HashSet::new();
        let mut link = core.read_va64(self.kernel(self.process_head))?;
        while link != self.process_head {
            let object = link - self.offsets.links;
            if link.0 >> 63 == 0 || seen.len() >= MOST_PROCESSES || !seen.insert(object) {
                list.truncated = true;
                break;
            }
            list.processes.push(self.process(core, object)?);
            match core.read_va64(self.kernel(link)) {
                Ok(next) => link = next,
                Err(error) if error.is_page_fault() => {
                    list.truncated = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        match self.known_ids(core) {
            Ok(ids) => self.compare(core, &mut list, &seen, &ids)?,
            // Without the table there is only one view.
            Err(error) if error.is_page_fault() => {}
            Err(error) => return Err(error),
        }
        Ok(list)
    }

    fn compare<Driver>(
        &self,
        core: &VmiCore<Driver>,
        list: &mut ProcessList,
        listed: &HashSet<Va>,
        ids: &[(u64, Va)],
    ) -> Result<(), VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let known: HashSet<Va> = ids.iter().map(|&(_, object)| object).collect();
        for process in &mut list.processes {
            // One that ends has given its id back already.
            if !known.contains(&process.object) && !process.flags.contains(&ProcessFlag::Exiting) {
                process.flags.push(ProcessFlag::Hidden);
            }
        }
        // What a walk that was cut short did not come to is not hidden.
        if list.truncated {
            return Ok(());
        }
        for &(id, object) in ids.iter().filter(|(_, object)| !listed.contains(object)) {
            let mut process = self.process(core, object)?;
            if u64::from(process.pid) == id && !process.flags.contains(&ProcessFlag::Exiting) {
                process.flags.push(ProcessFlag::Hidden);
                list.processes.push(process);
            }
        }
        Ok(())
    }

    /// A process from its object; what lies on a missing page stays empty.
    fn process<Driver>(&self, core: &VmiCore<Driver>, object: Va) -> Result<Process, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let o = &self.offsets;
        let word = |offset: u64| present(core.read_u64(self.kernel(object + offset)));
        let pid = word(o.pid)? as u32;
        let root = word(o.directory_table_base)? & 0x000f_ffff_ffff_f000;
        let peb = word(o.peb)?;
        let flags = [
            (pid == 4 || peb == 0, ProcessFlag::Kernel),
            (word(o.exit_time)? != 0, ProcessFlag::Exiting),
            (word(o.wow64)? != 0, ProcessFlag::Wow64),
        ];
        Ok(Process {
            pid,
            ppid: word(o.parent)? as u32,
            name: present(self.name(core, object))?,
            root: (root != 0).then_some(Pa(root)),
            threads: present(core.read_u32(self.kernel(object + o.active_threads)))?,
            start_ns: word(o.create_time)?.saturating_sub(self.boot_time).saturating_mul(100),
            uid: None,
            flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect(),
            object,
        })
    }

    /// The processes that `PspCidTable` knows: id and object. Its lower bits say how many levels it has; a page holds 512
    /// pointers, or 256 `_HANDLE_TABLE_ENTRY` with the object's address in the upper bits.
    fn known_ids<Driver>(&self, core: &VmiCore<Driver>) -> Result<Vec<(u64, Va)>, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let table = core.read_va64(self.kernel(self.cid_table))?;
        let code = core.read_u64(self.kernel(table + self.offsets.table_code))?;
        let mut pages = vec![Va(code & !3)];
        for _ in 0..(code & 3).min(2) {
            let mut below = Vec::new();
            for page in pages {
                // The page of a level is filled from the front.
                for pointer in self.words(core, page)?.into_iter().take_while(|&pointer| pointer != 0) {
                    if below.len() < MOST_ID_PAGES {
                        below.push(Va(pointer));
                    }
                }
            }
            pages = below;
        }
        let mut ids = Vec::new();
        for (page, number) in pages.into_iter().zip(0u64..) {
            let entries = match self.words(core, page) {
                Ok(words) => words,
                Err(error) if error.is_page_fault() => continue,
                Err(error) => return Err(error),
            };
            for (pair, index) in entries.as_chunks::<2>().0.iter().zip(0u64..) {
                let object = Va((pair[0] as i64 >> 16) as u64 & !0xf);
                if pair[0] == 0 || object.0 >> 63 == 0 {
                    continue;
                }
                if present(core.read_u8(self.kernel(object + self.offsets.object_type)))? == PROCESS_OBJECT {
                    ids.push(((number * 256 + index) * 4, object));
                }
            }
        }
        Ok(ids)
    }

    fn words<Driver>(&self, core: &VmiCore<Driver>, page: Va) -> Result<Vec<u64>, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let mut bytes = [0; 4096];
        core.read(self.kernel(page), &mut bytes)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }
}

/// A value whose page may be missing.
fn present<T: Default>(result: Result<T, VmiError>) -> Result<T, VmiError> {
    match result {
        Err(error) if error.is_page_fault() => Ok(T::default()),
        other => other,
    }
}
