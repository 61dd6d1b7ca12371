//! What an open popup shows, read fresh while it is open.

use std::sync::Arc;

use super::{
    Monitor, Platform,
    disasm::{MAX_INSTRUCTION, disassemble, lead_up, start_before},
    now,
    refresh::walk_of,
};
use crate::engine::{
    addr::{AddressContext, Pa, Va},
    command::Subject,
    os::VmiOs,
    session::{VmiProber, VmiSession},
    snapshot::{
        BreakpointDetail, BreakpointId, BreakpointState, CodeLine, Detail, Fault, FaultState, MemoryDetail,
        MissingPage, Table,
    },
};

/// The longest stretch of memory that a popup shows.
const MEMORY: u32 = 64 * 1024;
/// Lines of disassembly in a breakpoint's popup.
const CODE_LINES: usize = 24;
/// Lines of disassembly of a stretch of memory, in it and before it.
const MEMORY_LINES: usize = 160;
/// How many bytes before a stretch of memory are looked at for the instructions that lead up to it.
const LEAD: u64 = 1024;

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// Reads the subject of the open popup again.
    pub(super) fn refresh_detail(&mut self, vmi: VmiSession<'_, D, Os>) {
        let Some(subject) = self.subject.clone() else {
            self.detail = None;
            return;
        };
        let detail = match subject {
            Subject::Process(pid) => self.process_detail(vmi, pid),
            Subject::Breakpoint(id) => self.breakpoint_detail(vmi, id),
            Subject::Table(id) => match self.tables.get(&id) {
                Some(row) => {
                    let missing = if row.ended.is_none() { missing_of(vmi, row.ctx) } else { None };
                    Ok(Detail::Table(Table { missing, ..row.shown(self.mapping(row.ctx, row.view)) }))
                }
                None => Err("this address is not monitored any more".into()),
            },
            Subject::Fault(id) => {
                let rows = self.faults.rows(vmi.driver().clock_ns(), |root| self.pid_of(root));
                rows.into_iter()
                    .find(|row| row.id == id)
                    .map(|row| {
                        let is_open = row.state != FaultState::Resolved;
                        let ctx = AddressContext { va: row.address, root: row.root };
                        Detail::Fault(Fault { missing: is_open.then(|| missing_of(vmi, ctx)).flatten(), ..row })
                    })
                    .ok_or_else(|| "this page is not waited for any more".into())
            }
            Subject::Memory { pid, va, length } => self.memory_detail(vmi, pid, va, length),
        };
        let detail = detail.unwrap_or_else(Detail::Gone);
        if self.detail.as_deref() != Some(&detail) {
            self.detail = Some(Arc::new(detail));
        }
    }

    fn process_detail(&mut self, vmi: VmiSession<'_, D, Os>, pid: u32) -> Result<Detail, String> {
        let process = self.inspected(vmi, pid)?;
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        let prober = VmiProber::new(self.faults.suppressed_set());
        let read = vmi.underlying_os().process_detail(vmi, &process, &prober);
        let mut detail = read.map_err(|error| format!("could not read process {pid}: {error}"))?;
        let who = format!("details of {} ({pid})", process.name);
        for page in prober.page_faults() {
            if !detail.missing.contains(&page.va) {
                detail.missing.push(page.va);
            }
            // Waited for, not injected: nobody asked for more than a look.
            self.faults.request(page, &who, vmi.driver().clock_ns());
            self.own_pages(page, &process);
        }
        self.follow_faults(vmi);
        Ok(Detail::Process(detail))
    }

    fn breakpoint_detail(&mut self, vmi: VmiSession<'_, D, Os>, id: BreakpointId) -> Result<Detail, String> {
        let clock = vmi.driver().clock_ns();
        let Some(row) = self.breakpoints.get_mut(&id) else { return Err("this breakpoint is gone".into()) };
        let breakpoint = row.shown(clock);
        // What is at the root of a process that is gone is another's.
        let is_over = row.state == BreakpointState::Ended;
        let code = if is_over { Vec::new() } else { code_around(vmi, row.ctx, CODE_LINES) };
        Ok(Detail::Breakpoint(BreakpointDetail { breakpoint, code }))
    }

    fn memory_detail(
        &mut self,
        vmi: VmiSession<'_, D, Os>,
        pid: Option<u32>,
        va: Va,
        length: u32,
    ) -> Result<Detail, String> {
        let process = pid.map(|pid| self.inspected(vmi, pid)).transpose()?;
        let root = Self::root_of(vmi, process.as_ref())?;
        let length = length.min(MEMORY) as usize;
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        let bytes = read_there(vmi, va, root, length);
        let there: Vec<u8> = bytes.iter().map_while(|byte| *byte).collect();
        let symbols = vmi.underlying_os().symbols();
        let code = disassemble(&there, va, va, (length / 2).min(MEMORY_LINES), &symbols);
        let lead = LEAD.min(va.0) as usize;
        let mut leading: Vec<u8> =
            read_there(vmi, va - lead as u64, root, lead).into_iter().rev().map_while(|byte| byte).collect();
        leading.reverse();
        let before = lead_up(&leading, va, MEMORY_LINES, &symbols);
        let walk = walk_of(vmi, AddressContext { va, root });
        let missing = if bytes.first() == Some(&None) { missing_of(vmi, AddressContext { va, root }) } else { None };
        let changed = vec![None; bytes.len()];
        let mut memory = MemoryDetail { pid, root, va, changed, bytes, code, before, walk, missing };
        if let Some(Detail::Memory(old)) = self.detail.as_deref() {
            note_changes(&mut memory, old, now(vmi));
        }
        Ok(Detail::Memory(memory))
    }
}

/// What there is of a page that is not mapped, where the kernel's books can be read.
pub(super) fn missing_of<D: Platform, Os: VmiOs<D>>(
    vmi: VmiSession<'_, D, Os>,
    ctx: AddressContext,
) -> Option<MissingPage> {
    vmi.underlying_os().missing_page(vmi, ctx).unwrap_or_else(|error| {
        tracing::debug!(%error, "could not look up what there is of a missing page");
        None
    })
}

/// The bytes of a stretch of memory, page by page; a page that is not there gives none.
fn read_there<D: Platform, Os>(vmi: VmiSession<'_, D, Os>, va: Va, root: Pa, length: usize) -> Vec<Option<u8>> {
    let mut bytes: Vec<Option<u8>> = Vec::with_capacity(length);
    while bytes.len() < length {
        let here = va + bytes.len() as u64;
        let room = (4096 - (here.0 & 0xfff) as usize).min(length - bytes.len());
        let mut part = vec![0; room];
        match vmi.read((here, root), &mut part) {
            Ok(()) => bytes.extend(part.into_iter().map(Some)),
            Err(_) => bytes.extend(std::iter::repeat_n(None, room)),
        }
    }
    bytes
}

/// Notes which bytes differ from those that were read before; a page that came or went is no change of its bytes.
fn note_changes(memory: &mut MemoryDetail, old: &MemoryDetail, at_ns: u64) {
    if (old.pid, old.root) != (memory.pid, memory.root) {
        return;
    }
    for (nth, (byte, changed)) in memory.bytes.iter().zip(&mut memory.changed).enumerate() {
        let before = usize::try_from((memory.va + nth as u64) - old.va).ok();
        let Some((before, at)) = before.and_then(|before| old.bytes.get(before).zip(old.changed.get(before))) else {
            continue;
        };
        *changed = match (byte, before) {
            (Some(now), Some(then)) if now != then => Some(at_ns),
            _ => *at,
        };
    }
}

/// Instructions around an address. What the guest executes from a patched shadow page is read here from the guest's own
/// frame, so these are its own bytes.
fn code_around<D: Platform, Os: VmiOs<D>>(
    vmi: VmiSession<'_, D, Os>,
    ctx: AddressContext,
    lines: usize,
) -> Vec<CodeLine> {
    let symbols = vmi.underlying_os().symbols();
    // A page that ends in the middle still gives the instructions before it.
    let read = |va: Va, length: usize| {
        let mut bytes = vec![0; length];
        if vmi.read((va, ctx.root), &mut bytes).is_ok() {
            return Some(bytes);
        }
        let room = (4096 - (va.0 & 0xfff) as usize).min(length);
        bytes.truncate(room);
        vmi.read((va, ctx.root), &mut bytes).is_ok().then_some(bytes)
    };
    let from = start_before(ctx.va, &symbols, read);
    let bytes = read(from, lines * MAX_INSTRUCTION as usize).unwrap_or_default();
    disassemble(&bytes, from, ctx.va, lines, &symbols)
}
