//! The processes: as the kernel lists them, as its table of ids knows them and their threads, and as they run. A process
//! that only one side has hides, or is being hidden. The guest may run while we look; so a difference counts only if it
//! is still there, of the same process, when everything is read a second time.

use std::collections::{HashMap, HashSet};

use super::{
    WindowsOs,
    memory::{Memory, present},
};
use crate::engine::{
    addr::{Pa, Va},
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    os::ProcessList,
    session::VmiCore,
    snapshot::{Process, ProcessFlag, ProcessKey},
};

/// More processes than a guest can have; a longer list is a lie.
const MOST_PROCESSES: usize = 1 << 16;
/// Ids that are looked at at most.
const MOST_IDS: usize = 1 << 18;
/// CPUs that are looked at at most.
const MOST_CPUS: u64 = 256;

/// Threads of a process that are looked at at most: far beyond what real ones have.
pub(super) const MOST_THREADS: usize = 4096;
/// `_KTHREAD.State` of a thread that has ended (KTHREAD_STATE).
const TERMINATED: u8 = 4;

/// KOBJECTS: the type of a process's and of a thread's dispatcher header.
const PROCESS_OBJECT: u8 = 3;
pub(super) const THREAD_OBJECT: u8 = 6;

/// What the table of ids knows: type, id and object.
pub(super) struct Ids {
    entries: Vec<(u8, (u64, Va))>,
    /// Whether a part of it could not be read: then what it does not have is not missing.
    truncated: bool,
}

impl Ids {
    /// Ids and objects of one type.
    pub(super) fn of(&self, kind: u8) -> Vec<(u64, Va)> {
        self.entries.iter().filter(|&&(known, _)| known == kind).map(|&(_, entry)| entry).collect()
    }
}

/// What tells a process from another one that was given the same memory after it: object, id and start.
type Identity = (Va, u32, u64);

fn identity(process: &Process) -> Identity {
    (process.object, process.pid, process.start_ns)
}

/// A list without what a comparison has found that was cut short: only what the kernel's own list has.
fn uncompared(mut list: ProcessList, listed: &HashSet<Va>) -> ProcessList {
    list.processes.retain(|process| listed.contains(&process.object));
    list.processes.iter_mut().for_each(|process| process.flags.retain(|&flag| flag != ProcessFlag::Hidden));
    ProcessList { truncated: true, hidden_threads: Vec::new(), ..list }
}

impl WindowsOs {
    /// The list, with the hidden ones at its end.
    pub(super) fn list<Driver>(&self, core: &VmiCore<Driver>) -> Result<ProcessList, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let is_hidden = |process: &Process| process.flags.contains(&ProcessFlag::Hidden);
        let memory = self.memory(core);
        let (first, listed) = memory.both_sides()?;
        if core.cut().is_some() {
            return Ok(uncompared(first, &listed));
        }
        let suspects: HashSet<Identity> = first.processes.iter().filter(|p| is_hidden(p)).map(identity).collect();
        if suspects.is_empty() && first.hidden_threads.is_empty() {
            return Ok(first);
        }
        core.flush_gfn_cache();
        core.flush_v2p_cache();
        let (mut second, listed_again) = memory.both_sides()?;
        if core.cut().is_some() {
            return Ok(uncompared(first, &listed));
        }
        let listed = listed_again;
        second.processes.retain(|process| listed.contains(&process.object) || suspects.contains(&identity(process)));
        second.hidden_threads.retain(|thread| first.hidden_threads.contains(thread));
        for process in second.processes.iter_mut().filter(|process| !suspects.contains(&identity(process))) {
            process.flags.retain(|&flag| flag != ProcessFlag::Hidden);
        }
        Ok(second)
    }

    /// A process as it is now: by its object while that is of a process which lives, else by the list, because what is
    /// freed keeps its bytes for a while.
    pub(super) fn again<Driver>(&self, core: &VmiCore<Driver>, known: ProcessKey) -> Result<Option<Process>, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let is_it = |process: &Process| process.key() == known;
        let process = self.memory(core).process(known.object)?;
        if is_it(&process) && !process.flags.contains(&ProcessFlag::Exiting) {
            return Ok(Some(process));
        }
        let list = self.list(core)?;
        let found = list.processes.into_iter().find(is_it);
        if found.is_none() && list.truncated {
            return Err(VmiError::os("the list of processes is cut short"));
        }
        Ok(found)
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> Memory<'_, Driver> {
    /// Everything, read once; and the objects that the kernel's own list has.
    fn both_sides(&self) -> Result<(ProcessList, HashSet<Va>), VmiError> {
        let mut list = ProcessList::default();
        let mut seen = HashSet::new();
        let head = self.os.process_head;
        let mut link = self.pointer(head)?;
        while link != head {
            let object = link - self.os.offsets.links;
            if link.0 >> 63 == 0 || seen.len() >= MOST_PROCESSES || !seen.insert(object) {
                list.truncated = true;
                break;
            }
            let process = self.process(object)?;
            if self.core.keep(size_of::<Process>() + process.name.len()).is_err() {
                list.truncated = true;
                break;
            }
            list.processes.push(process);
            let Some(next) = present(self.pointer(link))? else {
                list.truncated = true;
                break;
            };
            link = next;
        }
        // Without the table there is only one view.
        if let Some(ids) = present(self.known_ids())? {
            self.compare(&mut list, &seen, &ids)?;
            list.hidden_threads = self.hidden_threads(&list.processes, &ids)?;
        }
        list.truncated |= self.core.cut().is_some();
        Ok((list, seen))
    }

    /// Threads with an id that are not in their process's list, as ids of process and thread.
    fn hidden_threads(&self, processes: &[Process], ids: &Ids) -> Result<Vec<(u32, u32)>, VmiError> {
        let o = &self.os.offsets;
        // Processes whose lists were read to their end, and everything in these.
        let (mut judged, mut listed) = (HashMap::new(), HashSet::new());
        let mut seen = HashSet::new();
        for process in processes {
            if let Some(threads) = present(self.thread_objects(process.object, &mut seen))?.flatten() {
                judged.insert(process.object, process.pid);
                listed.extend(threads);
            }
        }
        let mut hidden = Vec::new();
        for (id, thread) in ids.of(THREAD_OBJECT).into_iter().filter(|(_, thread)| !listed.contains(thread)) {
            let process = present(self.pointer(thread + o.thread_process))?.unwrap_or_default();
            let own = present(self.u64(thread + o.cid + o.cid_thread))?;
            let state = present(self.u8(thread + o.thread_state))?;
            if let Some(&pid) = judged.get(&process)
                && own == Some(id)
                && state != Some(TERMINATED)
            {
                hidden.push((pid, id as u32));
            }
        }
        Ok(if self.core.cut().is_some() { Vec::new() } else { hidden })
    }

    /// The threads in a process's list, unread; `None` where it does not come to its end, or leads into what is `seen` in
    /// that of another process.
    fn thread_objects(&self, process: Va, seen: &mut HashSet<Va>) -> Result<Option<Vec<Va>>, VmiError> {
        let o = &self.os.offsets;
        let head = process + o.thread_list;
        let mut threads = Vec::new();
        let mut link = self.pointer(head)?;
        while link != head {
            if threads.len() >= MOST_THREADS || !seen.insert(link) {
                return Ok(None);
            }
            threads.push(link - o.thread_links);
            link = self.pointer(link)?;
        }
        Ok(Some(threads))
    }

    fn compare(&self, list: &mut ProcessList, listed: &HashSet<Va>, ids: &Ids) -> Result<(), VmiError> {
        let processes = ids.of(PROCESS_OBJECT);
        let mut known: HashSet<Va> = processes.iter().map(|&(_, object)| object).collect();
        for process in &mut list.processes {
            // One that ends has given its id back already.
            let is_missing = !ids.truncated && !known.contains(&process.object);
            if is_missing && !process.flags.contains(&ProcessFlag::Exiting) {
                process.flags.push(ProcessFlag::Hidden);
            }
        }
        // What a walk that was cut short did not come to is not hidden.
        if list.truncated {
            return Ok(());
        }
        known.extend(listed);
        let unlisted = processes.into_iter().filter(|(_, object)| !listed.contains(object));
        // Whoever took a process out of both may have left its threads, and what runs cannot hide from its CPU.
        let mut behind = Vec::new();
        for object in ids.of(THREAD_OBJECT).into_iter().map(|(_, thread)| thread).chain(self.running()?) {
            let process = present(self.pointer(object + self.os.offsets.thread_process))?.unwrap_or_default();
            if !process.is_null() && known.insert(process) {
                behind.push(process);
            }
        }
        let behind = behind.into_iter().filter_map(|process| Some((self.id_of(process)?, process)));
        for (id, object) in unlisted.chain(behind) {
            let mut process = self.process(object)?;
            let is_full = list.processes.len() >= MOST_PROCESSES;
            if is_full || self.core.keep(size_of::<Process>() + process.name.len()).is_err() {
                list.truncated = true;
                break;
            }
            if u64::from(process.pid) == id && !process.flags.contains(&ProcessFlag::Exiting) {
                process.flags.push(ProcessFlag::Hidden);
                list.processes.push(process);
            }
        }
        Ok(())
    }

    /// The id of what should be a process; `None` where it is none, and for the idle process, which has no place in any
    /// list.
    fn id_of(&self, object: Va) -> Option<u64> {
        let o = &self.os.offsets;
        let is_process = self.u8(object + o.object_type).is_ok_and(|kind| kind == PROCESS_OBJECT);
        self.u64(object + o.pid).ok().filter(|&id| is_process && id != 0 && id >> 32 == 0)
    }

    /// The threads that the CPUs run.
    fn running(&self) -> Result<Vec<Va>, VmiError> {
        let mut threads = Vec::new();
        for cpu in 0..MOST_CPUS {
            let block = present(self.pointer(self.os.processors + cpu * 8))?.unwrap_or_default();
            if block.0 >> 63 == 0 {
                break;
            }
            threads.extend(present(self.pointer(block + self.os.offsets.current_thread))?);
        }
        Ok(threads)
    }

    /// A process from its object; what lies on a missing page stays empty.
    fn process(&self, object: Va) -> Result<Process, VmiError> {
        let o = &self.os.offsets;
        let word = |offset: u64| Ok::<_, VmiError>(present(self.u64(object + offset))?.unwrap_or_default());
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
            name: present(self.os.name(self.core, object))?.unwrap_or_default(),
            root: (root != 0).then_some(Pa(root)),
            threads: present(self.u32(object + o.active_threads))?.unwrap_or_default(),
            start_ns: self.os.since_boot(word(o.create_time)?),
            uid: None,
            flags: flags.into_iter().filter(|(is, _)| *is).map(|(_, flag)| flag).collect(),
            object,
        })
    }

    /// What `PspCidTable` knows: processes and threads, in order of id.
    pub(super) fn known_ids(&self) -> Result<Ids, VmiError> {
        let table = self.pointer(self.os.cid_table)?;
        let mut entries = Vec::new();
        let table = self.table(table, MOST_IDS)?;
        for (id, object) in table.used {
            if let Some(kind) = present(self.u8(object + self.os.offsets.object_type))? {
                entries.push((kind, (id, object)));
            }
        }
        Ok(Ids { entries, truncated: table.truncated || self.core.cut().is_some() })
    }
}
