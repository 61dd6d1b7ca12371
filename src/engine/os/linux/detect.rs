//! Finding a kernel in the memory of a guest of which nothing is known but a vCPU's registers.
//!
//! x86-64 Linux maps its image into the top 2 GiB of every address space, somewhere at random, physically contiguous
//! (`Documentation/arch/x86/x86_64/mm.rst`). The page tables show where it is and which part is read-only data; that part
//! is read as a whole, and holds the symbols and the type information. Under kernel page-table isolation a vCPU in user
//! mode runs on a table that maps next to nothing of the kernel; the full table is the page in front of it.

use std::sync::Arc;

use super::{
    LinuxOs,
    btf::{self, Btf},
    bytes::u64_at,
    current::PerCpu,
    files::namers,
    kallsyms,
    layout::{Facts, Layout},
    missing::SwapTypes,
    module_symbols::Named,
};
use crate::engine::{
    addr::{Pa, Va},
    arch::amd64::{Amd64, Amd64Registers, PageTableEntry, PageTableLevel},
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
    snapshot::clean,
    symbols::SymbolTable,
};

/// Where the image may be: the gigabyte from here on (`__START_KERNEL_map`, `KERNEL_IMAGE_SIZE`).
const IMAGE_REGION: Va = Va(0xffff_ffff_8000_0000);
/// No image is larger.
const MOST_IMAGE: u64 = 256 << 20;
/// No more of an image is copied at a time: the read-only data of the largest kernels, those with everything for debugging,
/// have half of this.
const MOST_COPY: u64 = 80 << 20;
/// Bytes that are copied between two looks at the budget.
const PIECE: usize = 1 << 20;
/// No more CPUs than this are looked at (`NR_CPUS` is at most 8192).
const MOST_CPUS: u64 = 8192;

/// A stretch of the image that is mapped with the same permissions.
#[derive(Clone, Copy)]
struct Run {
    va: Va,
    pa: Pa,
    bytes: u64,
    read_only_data: bool,
}

/// The mapping of a kernel's image.
struct Image {
    root: Pa,
    base: Va,
    pa: Pa,
    end: Va,
    runs: Vec<Run>,
}

pub(super) fn detect<Driver>(
    core: &VmiCore<Driver>,
    registers: &Amd64Registers,
    profile: Option<&str>,
) -> Result<LinuxOs, VmiError>
where
    Driver: VmiRead<Architecture = Amd64>,
{
    let _look = core.look();
    let found = find(core, registers, profile);
    // What was not found in a look that was cut may be there.
    match core.cut() {
        Some(_) if found.is_err() => Err(VmiError::CutShort),
        _ => found,
    }
}

fn find<Driver>(core: &VmiCore<Driver>, registers: &Amd64Registers, profile: Option<&str>) -> Result<LinuxOs, VmiError>
where
    Driver: VmiRead<Architecture = Amd64>,
{
    if is_32_bit(registers) {
        return Err(VmiError::os("the guest runs a 32-bit system, which vmscope does not read"));
    }
    if registers.cr3 == 0 || (registers.efer != 0 && !registers.is_long_mode()) {
        return Err(VmiError::os(
            "the guest is not in 64-bit mode: it is still in its boot loader, or runs another system",
        ));
    }
    core.set_paging_levels(registers.paging_levels());
    let image = Image::find(core, registers).ok_or_else(|| {
        VmiError::os(format!(
            "no Linux kernel is mapped under CR3 {:#x}: the guest is still in its boot loader, or runs another system",
            registers.cr3
        ))
    })?;
    let (memory, symbols) = image.symbols(core).ok_or_else(|| {
        VmiError::os(format!(
            "a kernel is mapped at {}, but it has no symbol table (kallsyms) that fits: it is not up yet, or not Linux",
            image.base
        ))
    })?;
    let need = |name: &str| {
        symbols.lookup(name).ok_or_else(|| VmiError::os(format!("the kernel at {} has no symbol {name}", image.base)))
    };

    let tables = need("init_top_pgt")?;
    let root = image.physical(tables);
    let kernel_root = match core.translate_address((image.base, root)) {
        Ok(pa) if pa == image.pa => root,
        _ => image.root,
    };
    let read_u64 = |va: Va| core.read_u64((va, kernel_root));
    let levels = core.paging_levels();
    let direct_map = match symbols.lookup("page_offset_base") {
        Some(va) => Va(read_u64(va)?),
        None if levels == 5 => Va(0xff11_0000_0000_0000),
        None => Va(0xffff_8880_0000_0000),
    };
    let version = version(core, &symbols, kernel_root);
    // SYSTEM_BOOTING (`include/linux/kernel.h`): where memory and each CPU's own data are is not settled yet.
    if let Some(state) = symbols.lookup("system_state")
        && core.read_u32((state, kernel_root))? == 0
    {
        return Err(VmiError::os(format!("{version} is still starting")));
    }

    let types = type_information(core, &symbols, &memory, kernel_root);
    let btf = types.as_deref().and_then(Btf::parse);
    if btf.is_none() && profile.is_none() {
        return Err(VmiError::os(format!(
            "{version} carries no type information (BTF): give a file of structure offsets with --profile FILE (docs/linux.md)"
        )));
    }
    let layout = Layout::new(&Facts::new(btf, profile)?)?;
    let current_task = match (symbols.lookup("pcpu_hot"), layout.hot_current) {
        (Some(hot), Some(offset)) => Some(hot + offset),
        _ => symbols.lookup("current_task"),
    };
    let offsets = per_cpu_offsets(core, &symbols, kernel_root);
    let init_task = need("init_task")?;
    let symbols = Arc::new(symbols);
    Ok(LinuxOs {
        version,
        base: image.base,
        image: image.pa,
        root: kernel_root,
        isolated: is_isolated(core, &symbols, tables, root),
        direct_map,
        init_task,
        named: Named::new(&symbols, &offsets, layout.module.is_some()),
        per_cpu: PerCpu { offsets, current_task },
        namers: namers(&symbols),
        swap_types: SwapTypes::new(&symbols, &layout),
        layout,
        symbols,
    })
}

/// Whether a vCPU pages without long mode, as no 64-bit system does once it is up: long mode needs PAE and is shown by
/// EFER.LMA (Intel SDM volume 3A, section 4.1.1). Firmware and boot loaders do not page, as a rule.
fn is_32_bit(registers: &Amd64Registers) -> bool {
    let (paging, extended) = (registers.cr0 & (1 << 31) != 0, registers.cr4 & (1 << 5) != 0);
    // A driver that does not know EFER says 0; without PAE it is certain all the same.
    paging && !registers.is_long_mode() && (!extended || registers.efer != 0)
}

impl Image {
    /// The image that a vCPU's tables map; under isolation the table in front is tried as well, and the one that maps
    /// more wins.
    fn find<Driver>(core: &VmiCore<Driver>, registers: &Amd64Registers) -> Option<Self>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let root = registers.root();
        let mut candidates = vec![Pa(root.0 & !0x1000), root];
        candidates.dedup();
        let images = candidates.into_iter().filter_map(|root| {
            let image = Self::under(core, root)?;
            let entry = kernel_entry(core, root, registers)?;
            (entry >= image.base && entry < image.end).then_some(image)
        });
        // Of equals the first: without isolation another process's tables may lie in front, and do as well.
        images.reduce(|best, next| if next.mapped() > best.mapped() { next } else { best })
    }

    fn mapped(&self) -> u64 {
        self.runs.iter().map(|run| run.bytes).sum()
    }

    /// Goes through the tables of the image's region.
    fn under<Driver>(core: &VmiCore<Driver>, root: Pa) -> Option<Self>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let mut table = root;
        for &level in PageTableLevel::walk(core.paging_levels()) {
            if level == PageTableLevel::Pd {
                break;
            }
            let entry = PageTableEntry(core.read_entry(table + level.index(IMAGE_REGION) * 8).ok()?);
            if !entry.is_present() || entry.is_leaf(level) {
                return None;
            }
            table = entry.address(level);
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |index: u64, entry: PageTableEntry, level: PageTableLevel| {
            let bytes = level.page_bytes();
            let run = Run {
                va: IMAGE_REGION + index * bytes,
                pa: entry.address(level),
                bytes,
                read_only_data: entry.0 & (1 << 63) != 0 && entry.0 & 2 == 0,
            };
            match runs.last_mut() {
                Some(last)
                    if last.va + last.bytes == run.va
                        && last.pa + last.bytes == run.pa
                        && last.read_only_data == run.read_only_data =>
                {
                    last.bytes += bytes;
                }
                _ => runs.push(run),
            }
        };
        for (i, entry) in read_table(core, table)?.enumerate() {
            if entry.is_present() && entry.is_leaf(PageTableLevel::Pd) {
                add(i as u64, entry, PageTableLevel::Pd);
            } else if entry.is_present() {
                let Some(small) = read_table(core, entry.address(PageTableLevel::Pd)) else { continue };
                for (k, entry) in small.enumerate().filter(|(_, entry)| entry.is_present()) {
                    add((i * 512 + k) as u64, entry, PageTableLevel::Pt);
                }
            }
        }
        let first = *runs.first()?;
        // All of the image is one stretch of physical memory; what is not part of it is something else.
        runs.retain(|run| run.va - first.va == run.pa - first.pa && run.va - first.va < MOST_IMAGE);
        let last = *runs.last()?;
        Some(Self { root, base: first.va, pa: first.pa, end: last.va + last.bytes, runs })
    }

    fn physical(&self, va: Va) -> Pa {
        self.pa + (va - self.base)
    }

    /// The symbols, and a copy of the memory that holds them. Usually this is the read-only data, else the whole image.
    fn symbols<Driver>(&self, core: &VmiCore<Driver>) -> Option<(Memory, SymbolTable)>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let mut stretches: Vec<(Va, u64)> =
            self.runs.iter().filter(|run| run.read_only_data).map(|run| (run.va, run.bytes)).collect();
        stretches.sort_by_key(|stretch| std::cmp::Reverse(stretch.1));
        stretches.truncate(4);
        stretches.push((self.base, self.end - self.base));
        stretches.into_iter().find_map(|(va, bytes)| {
            let copy = copy(core, self.physical(va), bytes)?;
            // Whoever waits is heard between two stretches: what is done with each is bounded.
            core.spend(PIECE as u64 / 4096).ok()?;
            let symbols = kallsyms::parse(&copy, va, self.base)?;
            Some((Memory { va, bytes: copy }, symbols))
        })
    }
}

/// Copies guest-physical memory, as much as may be.
fn copy<Driver: VmiRead>(core: &VmiCore<Driver>, from: Pa, bytes: u64) -> Option<Vec<u8>> {
    let mut copy = vec![0; bytes.min(MOST_COPY) as usize];
    for (index, piece) in copy.chunks_mut(PIECE).enumerate() {
        core.spend(piece.len().div_ceil(4096) as u64).ok()?;
        core.driver().read_physical(from + (index * PIECE) as u64, piece).ok()?;
    }
    Some(copy)
}

/// A copy of guest memory.
struct Memory {
    va: Va,
    bytes: Vec<u8>,
}

impl Memory {
    fn get(&self, from: Va, to: Va) -> Option<&[u8]> {
        self.bytes.get(usize::try_from(from - self.va).ok()?..usize::try_from(to - self.va).ok()?)
    }
}

fn read_table<Driver: VmiRead>(
    core: &VmiCore<Driver>,
    table: Pa,
) -> Option<impl Iterator<Item = PageTableEntry> + use<Driver>> {
    core.spend(1).ok()?;
    let mut page = Box::new([0; 4096]);
    core.driver().read_physical(table, page.as_mut_slice()).ok()?;
    Some((0..512).map_while(move |i| u64_at(page.as_slice(), i * 8).map(PageTableEntry)))
}

/// An address in the kernel's code: the page fault's entry in the interrupt table, else the entry of SYSCALL; where
/// the driver knows neither, the start of the image's region counts as in it.
fn kernel_entry<Driver>(core: &VmiCore<Driver>, root: Pa, registers: &Amd64Registers) -> Option<Va>
where
    Driver: VmiRead<Architecture = Amd64>,
{
    if registers.idt_base == 0 {
        return if registers.lstar != 0 { Some(Va(registers.lstar)) } else { Some(IMAGE_REGION) };
    }
    // A gate: offset bits 15:0, selector, attributes, offset bits 31:16, offset bits 63:32 (SDM volume 3A, 6.14.1).
    let gate = Va(registers.idt_base) + 14 * 16;
    let low = core.read_u64((gate, root)).ok()?;
    let high = u64::from(core.read_u32((gate + 8, root)).ok()?);
    Some(Va(low & 0xffff | low >> 32 & 0xffff_0000 | high << 32))
}

/// Whether the kernel runs under page-table isolation: then its own top table is two pages, and the second one, for
/// user mode, maps the region of the image too, but by tables of its own.
fn is_isolated<Driver>(core: &VmiCore<Driver>, symbols: &SymbolTable, tables: Va, root: Pa) -> bool
where
    Driver: VmiRead<Architecture = Amd64>,
{
    let top = if core.paging_levels() == 5 { PageTableLevel::Pml5 } else { PageTableLevel::Pml4 };
    let slot = |table: Pa| {
        let entry = PageTableEntry(core.read_entry(table + top.index(IMAGE_REGION) * 8).ok()?);
        entry.is_present().then(|| entry.address(top))
    };
    let has_room = symbols.next_after(tables).is_some_and(|next| next - tables >= 0x2000);
    has_room && slot(root + 0x1000).is_some_and(|user| slot(root) != Some(user))
}

/// The type information: between its symbols, else by its first bytes.
fn type_information<'a, Driver>(
    core: &VmiCore<Driver>,
    symbols: &SymbolTable,
    memory: &'a Memory,
    root: Pa,
) -> Option<std::borrow::Cow<'a, [u8]>>
where
    Driver: VmiRead<Architecture = Amd64>,
{
    if let (Some(start), Some(stop)) = (symbols.lookup("__start_BTF"), symbols.lookup("__stop_BTF")) {
        if let Some(bytes) = memory.get(start, stop) {
            return Some(bytes.into());
        }
        let length = stop.checked_sub(start.0).filter(|length| length.0 <= MOST_COPY)?;
        let mut copy = vec![0; length.0 as usize];
        core.read((start, root), &mut copy).ok()?;
        return Some(copy.into());
    }
    let (words, _) = memory.bytes.as_chunks::<8>();
    let at = words.iter().position(|word| *word == btf::MAGIC)?;
    memory.bytes.get(at * 8..).map(Into::into)
}

/// `uname`'s words out of `linux_banner`: the release, and what follows the compiler.
pub(super) fn version<Driver>(core: &VmiCore<Driver>, symbols: &SymbolTable, root: Pa) -> String
where
    Driver: VmiRead<Architecture = Amd64>,
{
    let banner = symbols.lookup("linux_banner").and_then(|va| core.read_string_limited((va, root), 512).ok());
    let banner = banner.unwrap_or_default();
    let release = banner.strip_prefix("Linux version ").unwrap_or(&banner).split(' ').next().unwrap_or_default();
    let build = banner.find(") #").and_then(|at| banner.get(at + 2..)).unwrap_or_default();
    clean(format!("Linux {release} {build}").trim(), 200)
}

/// The base of each CPU's own data, in order of CPU number; one zero on a kernel for a single CPU.
fn per_cpu_offsets<Driver>(core: &VmiCore<Driver>, symbols: &SymbolTable, root: Pa) -> Vec<u64>
where
    Driver: VmiRead<Architecture = Amd64>,
{
    let Some(array) = symbols.lookup("__per_cpu_offset") else { return vec![0] };
    let count = symbols.lookup("nr_cpu_ids").and_then(|va| core.read_u32((va, root)).ok()).map(u64::from);
    let room = symbols.next_after(array).map_or(0, |next| (next - array) / 8);
    let count = count.unwrap_or(MOST_CPUS).min(room).min(MOST_CPUS);
    let mut bytes = vec![0; count as usize * 8];
    if core.read((array, root), &mut bytes).is_err() {
        return Vec::new();
    }
    bytes.as_chunks::<8>().0.iter().map(|offset| u64::from_le_bytes(*offset)).collect()
}
