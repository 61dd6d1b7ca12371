//! More of one process: what its own pages say (command line, modules: through the prober, they may be paged out) and
//! what the kernel keeps (threads, address space).

use super::WindowsOs;
use crate::engine::{
    addr::{AccessContext, AddressContext, Va},
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    session::{VmiCore, VmiProber},
    snapshot::{Module, Process, ProcessDetail, Region, ThreadInfo, clean},
};

/// Bounds of the walks: far beyond what real processes have.
const MOST_THREADS: usize = 4096;
const MOST_REGIONS: usize = 1 << 14;
const MOST_MODULES: usize = 1024;
/// Characters of a string that are shown at most.
const MOST_CHARACTERS: u64 = 4096;

/// `_KTHREAD.State` (KTHREAD_STATE).
const STATES: [&str; 9] = [
    "initialized",
    "ready",
    "running",
    "standby",
    "terminated",
    "waiting",
    "transition",
    "deferred-ready",
    "gate-wait",
];

/// `_MMVAD_FLAGS.Protection`, its lower three bits.
const PROTECTIONS: [&str; 8] = ["---", "r--", "--x", "r-x", "rw-", "rwc", "rwx", "rwxc"];

impl WindowsOs {
    pub(super) fn detail<Driver>(
        &self,
        core: &VmiCore<Driver>,
        process: &Process,
        prober: &VmiProber,
    ) -> Result<ProcessDetail, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let mut detail = ProcessDetail { process: process.clone(), ..ProcessDetail::default() };
        detail.unavailable = vec![
            "credentials: access tokens are not read on Windows yet".to_owned(),
            "handles: handle tables are not read on Windows yet".to_owned(),
        ];
        prober.probe(|| self.threads(core, process, &mut detail))?;
        let peb = prober.probe(|| core.read_va64(self.kernel(process.object + self.offsets.peb)))?.unwrap_or_default();
        match process.root {
            Some(root) if !peb.is_null() => {
                let peb = AddressContext { va: peb, root };
                detail.command_line = prober.probe(|| self.command_line(core, peb))?;
                prober.probe(|| self.modules(core, peb, &mut detail))?;
                prober.probe(|| self.regions(core, process, &mut detail))?;
            }
            _ => detail.unavailable.push("command line, modules, regions: the process has no user mode".to_owned()),
        }
        detail.missing = prober.page_faults().iter().map(|missing| missing.va).collect();
        Ok(detail)
    }

    fn threads<Driver>(
        &self,
        core: &VmiCore<Driver>,
        process: &Process,
        detail: &mut ProcessDetail,
    ) -> Result<(), VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let o = &self.offsets;
        let head = process.object + o.thread_list;
        let mut link = core.read_va64(self.kernel(head))?;
        while link != head {
            if detail.threads.len() >= MOST_THREADS {
                detail.truncated.push("threads");
                break;
            }
            let object = link - o.thread_links;
            let state = core.read_u8(self.kernel(object + o.thread_state))?;
            let start = core.read_va64(self.kernel(object + o.start_address))?;
            detail.threads.push(ThreadInfo {
                tid: core.read_u64(self.kernel(object + o.cid + o.cid_thread))? as u32,
                name: self.symbols.describe(start, 0).unwrap_or_else(|| format!("start {start}")),
                state: STATES.get(usize::from(state)).copied().unwrap_or("unknown").to_owned(),
                object,
            });
            link = core.read_va64(self.kernel(link))?;
        }
        Ok(())
    }

    fn command_line<Driver>(&self, core: &VmiCore<Driver>, peb: AddressContext) -> Result<String, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let parameters = core.read_va64(at(peb, peb.va + self.offsets.parameters))?;
        self.string(core, AddressContext { va: parameters + self.offsets.command_line, ..peb })
    }

    /// A `_UNICODE_STRING`, cleaned; no more than [`MOST_CHARACTERS`] of it.
    fn string<Driver>(&self, core: &VmiCore<Driver>, string: AddressContext) -> Result<String, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let characters = u64::from(core.read_u16(string)?) / 2;
        let buffer = core.read_va64(at(string, string.va + self.offsets.string_buffer))?;
        let mut bytes = vec![0; (characters.min(MOST_CHARACTERS) * 2) as usize];
        core.read(at(string, buffer), &mut bytes)?;
        let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
        Ok(clean(&String::from_utf16_lossy(&units), MOST_CHARACTERS as usize))
    }

    fn modules<Driver>(
        &self,
        core: &VmiCore<Driver>,
        peb: AddressContext,
        detail: &mut ProcessDetail,
    ) -> Result<(), VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let o = &self.offsets;
        let ldr = core.read_va64(at(peb, peb.va + o.ldr))?;
        let head = ldr + o.modules;
        let mut link = core.read_va64(at(peb, head))?;
        while link != head {
            if detail.modules.len() >= MOST_MODULES {
                detail.truncated.push("modules");
                break;
            }
            let entry = link - o.module_links;
            detail.modules.push(Module {
                base: core.read_va64(at(peb, entry + o.module_base))?,
                size: u64::from(core.read_u32(at(peb, entry + o.module_size))?),
                name: self.string(core, AddressContext { va: entry + o.module_name, ..peb })?,
            });
            link = core.read_va64(at(peb, link))?;
        }
        Ok(())
    }

    /// The tree of address ranges, in order.
    fn regions<Driver>(
        &self,
        core: &VmiCore<Driver>,
        process: &Process,
        detail: &mut ProcessDetail,
    ) -> Result<(), VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let o = &self.offsets;
        let mut open = vec![core.read_va64(self.kernel(process.object + o.vad_root))?];
        while let Some(node) = open.pop() {
            if node.is_null() {
                continue;
            }
            if detail.regions.len() >= MOST_REGIONS {
                detail.truncated.push("regions");
                break;
            }
            let number = |low: u64, high: u64| -> Result<u64, VmiError> {
                let high = u64::from(core.read_u8(self.kernel(node + high))?);
                Ok(high << 32 | u64::from(core.read_u32(self.kernel(node + low))?))
            };
            let start = Va(number(o.vad_start, o.vad_start_high)? << 12);
            let end = Va((number(o.vad_end, o.vad_end_high)? + 1) << 12);
            let flags = core.read_u32(self.kernel(node + o.vad_flags))?;
            let protection = PROTECTIONS.get((flags >> 7 & 7) as usize).copied().unwrap_or("---");
            let image = flags >> 4 & 7 == 2;
            let module = detail.modules.iter().find(|module| module.base == start).map(|module| module.name.clone());
            let name = module.unwrap_or_else(|| if image { "image" } else { "" }.to_owned());
            let private = if flags >> 20 & 1 != 0 { "p" } else { "s" };
            detail.regions.push(Region { start, end, protection: format!("{protection}{private}"), name });
            open.push(core.read_va64(self.kernel(node + o.vad_left))?);
            open.push(core.read_va64(self.kernel(node + o.vad_right))?);
        }
        detail.regions.sort_by_key(|region| region.start);
        Ok(())
    }
}

fn at(space: AddressContext, va: Va) -> AccessContext {
    AccessContext::Paging(AddressContext { va, ..space })
}
