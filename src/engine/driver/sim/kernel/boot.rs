//! Memory and vCPUs as they are when the guest has booted.

use super::{
    Kernel,
    code::{Code, PATCHED, SERVICE_COUNT, SERVICES, own},
    contents::image_header,
    facts::Facts,
    namespace::{Namespace, POOL_PAGES},
    objects::{CidTable, Objects, PLACE, THREADS_AT},
    pager::Pager,
    process::Thread,
    schedule::{CLOCK_VECTOR, Scheduler},
    space::{Frames, KERNEL, NO_EXECUTE, Space, USER_READ},
    user::{Habits, IMAGE_BYTES, LIBRARY, MODULES32, Program, image_path, library_code, path32, program_code},
    worker::Worker,
};
use crate::engine::{
    arch::amd64::{Amd64GpRegisters, Amd64Registers, PageTableLevel, Segment},
    driver::sim::{
        SimOptions,
        memory::Memory,
        random::Random,
        vcpu::{KERNEL_CS, KERNEL_SS, Vcpu, segment},
    },
    error::VmiError,
};

/// Processes of a freshly booted system: name, parent. The first ones of this list make up a small guest; it goes on
/// with [`MORE`].
const FIRST: &[(&str, &str)] = &[
    ("Registry", "System"),
    ("smss.exe", "System"),
    ("csrss.exe", "smss.exe"),
    ("wininit.exe", "smss.exe"),
    ("winlogon.exe", "smss.exe"),
    ("services.exe", "wininit.exe"),
    ("lsass.exe", "wininit.exe"),
    ("svchost.exe", "services.exe"),
    ("explorer.exe", "winlogon.exe"),
    ("csrss.exe", "smss.exe"),
    ("svchost.exe", "services.exe"),
    ("fontdrvhost.exe", "wininit.exe"),
    ("dwm.exe", "winlogon.exe"),
    ("svchost.exe", "services.exe"),
    ("svchost.exe", "services.exe"),
    ("MemCompression", "System"),
    ("svchost.exe", "services.exe"),
    ("spoolsv.exe", "services.exe"),
    ("MsMpEng.exe", "services.exe"),
    ("svchost.exe", "services.exe"),
    ("svchost.exe", "services.exe"),
    ("sihost.exe", "svchost.exe"),
    ("taskhostw.exe", "svchost.exe"),
    ("SearchIndexer.exe", "services.exe"),
    ("svchost.exe", "services.exe"),
    ("SearchApp.exe", "svchost.exe"),
    ("RuntimeBroker.exe", "svchost.exe"),
    ("StartMenuExperienceHost.exe", "svchost.exe"),
    ("OneDrive.exe", "explorer.exe"),
    ("svchost.exe", "services.exe"),
    ("notepad.exe", "explorer.exe"),
    ("chrome.exe", "explorer.exe"),
    ("chrome.exe", "chrome.exe"),
    ("chrome.exe", "chrome.exe"),
    ("svchost.exe", "services.exe"),
    ("game_guard.exe", "explorer.exe"),
    ("svchost.exe", "services.exe"),
    ("cmd.exe", "explorer.exe"),
];

/// What a larger guest has more of.
const MORE: &[(&str, &str)] = &[
    ("svchost.exe", "services.exe"),
    ("chrome.exe", "chrome.exe"),
    ("RuntimeBroker.exe", "svchost.exe"),
    ("cmd.exe", "explorer.exe"),
    ("notepad.exe", "explorer.exe"),
];

/// The process that hides itself.
const ROOTKIT: (&str, &str) = ("wdmaudhlp.exe", "services.exe");

/// Programs that are started and end while the guest runs.
const SHORT_LIVED: &[&str] = &["dllhost.exe", "conhost.exe", "backgroundTaskHost.exe", "WmiPrvSE.exe"];

/// Processes with no program: nothing of them runs in user mode.
const MINIMAL: &[&str] = &["Registry", "MemCompression"];

/// From this process on, regions are made when they are first touched.
const EAGER: usize = 256;

/// Services that programs call in one round, about.
const CALLS_PER_ROUND: u64 = 8;
/// Services called in a second by all programs together, about.
const CALLS_PER_SECOND: u64 = 1_500;

fn habits(name: &str) -> Habits {
    Habits {
        spawns: matches!(name, "services.exe" | "explorer.exe"),
        short_lived: SHORT_LIVED.contains(&name),
        faults: matches!(name, "SearchApp.exe" | "csrss.exe"),
        traps: name == "game_guard.exe",
        wow64: name == "OneDrive.exe",
    }
}

impl Kernel {
    /// Boots: memory, kernel, processes, vCPUs.
    pub(in super::super) fn boot(options: SimOptions, memory: &mut Memory) -> Result<(Self, Vec<Vcpu>), VmiError> {
        let facts = Facts::new()?;
        let vcpus = usize::from(options.vcpus.clamp(1, 16));
        let count = options.processes.clamp(3, 10_000);
        let mut random = Random::new(options.seed);
        // The first 16 MiB belong to firmware and boot loader.
        let mut frames = Frames::new(0x1000 + random.below(0x1000), memory.ram_frames());
        let system = Space { root: frames.take()?, levels: if options.la57 { 5 } else { 4 } };
        // Kernel address space randomisation.
        let base = 0xffff_f800_0000_0000 + ((0x80 + random.below(0x3e00)) << 21);
        let direct = 0xffff_b400_0000_0000 + (random.below(256) << 30);
        let pa = frames.take_run(facts.image_size >> 12)?;

        let places = count + count / 8 + 64 + vcpus;
        let threads = places + 256 + vcpus;
        let objects = Objects {
            va: 0xffff_a000_0000_0000 + (random.below(0x1_0000) << 21),
            pa: frames.take_run(places as u64 * PLACE / 0x1000)?,
            stacks_va: 0xffff_f300_0000_0000 + (random.below(0x1_0000) << 21),
            stacks_pa: frames.take_run(threads as u64)?,
            free: (0..places).collect(),
            free_threads: (vcpus..threads).collect(),
            serial: 0,
        };
        system.map_all(memory, &mut frames, direct)?;
        let code_pages = facts.symbol("NtBuildNumber")? >> 12;
        let all_pages = facts.image_size >> 12;
        system.map(memory, &mut frames, (base, pa, code_pages), KERNEL)?;
        let data = (base + code_pages * 0x1000, pa + code_pages * 0x1000, all_pages - code_pages);
        system.map(memory, &mut frames, data, KERNEL | NO_EXECUTE)?;
        let object_pages = places as u64 * PLACE / 0x1000;
        system.map(memory, &mut frames, (objects.va, objects.pa, object_pages), KERNEL | NO_EXECUTE)?;
        for id in 0..threads as u64 {
            let stack = (objects.stacks_va + id * Objects::STACK_STRIDE, objects.stacks_pa + id * 0x1000, 1);
            system.map(memory, &mut frames, stack, KERNEL | NO_EXECUTE)?;
        }
        let cid = CidTable { top: frames.take()?, next: 4 * (16 + random.below(8)), free: Default::default() };

        let mut code = Code { facts: &facts, memory, base, pa, written: Vec::new() };
        code.write()?;
        let written: Vec<u64> = code.written.iter().map(|&(_, rva)| rva).collect();
        memory.write(pa, &image_header(facts.image_size))?;
        let worker = Worker::new(memory, (base, pa), &written, facts.symbol(PATCHED)?);

        let pool = frames.take_run(POOL_PAGES)?;
        let names = Namespace::new((direct + pool, pool), random.below(256) as u8);
        let library = 0x7ffc_0000_0000 + (random.below(0x3000) << 16);
        let mut kernel = Self {
            base,
            direct,
            system,
            frames,
            objects,
            cid,
            names,
            programs: Vec::new(),
            library,
            processes: (0..places).map(|_| None).collect(),
            threads: (0..threads).map(|_| None).collect(),
            scheduler: Scheduler::new(0..vcpus),
            pager: Pager::default(),
            worker,
            pause_ns: count as u64 * CALLS_PER_ROUND * 1_000_000_000 / CALLS_PER_SECOND,
            refused: (0, 0),
            random,
            facts,
        };
        kernel.names.furnish(memory, &kernel.facts, pa)?;
        kernel.load_programs(memory)?;
        kernel.write_data(memory, pa)?;
        kernel.load_modules(memory, pa)?;
        kernel.start_system(memory, pa, vcpus)?;
        kernel.start_processes(memory, pa, count)?;
        let cpus = (0..vcpus).map(|id| kernel.vcpu(memory, pa, id, options.la57)).collect::<Result<_, _>>()?;
        Ok((kernel, cpus))
    }

    /// Loads the library and every program once; all processes of a program share the tables that map them.
    fn load_programs(&mut self, memory: &mut Memory) -> Result<(), VmiError> {
        let (header, code) = (self.frames.take()?, self.frames.take()?);
        memory.write(header, &image_header(IMAGE_BYTES))?;
        memory.write(code, &library_code(self.library)?)?;
        // A space only to build in; what it maps at the library is shared.
        let shared = Space { root: self.frames.take()?, levels: 4 };
        shared.map(memory, &mut self.frames, (self.library, header, 1), USER_READ | NO_EXECUTE)?;
        shared.map(memory, &mut self.frames, (self.library + 0x1000, code, 1), USER_READ)?;
        let from = shared.entry(memory, &mut self.frames, self.library, PageTableLevel::Pdpt)?;
        let library_tables = memory.read_u64(from).unwrap_or(0);

        self.names.image(memory, &self.facts, LIBRARY)?;
        for (_, _, name) in MODULES32 {
            self.names.image(memory, &self.facts, &path32(name))?;
        }
        let all = FIRST.iter().chain(MORE).chain([&ROOTKIT]).map(|&(name, _)| name);
        for name in all.chain(SHORT_LIVED.iter().copied()) {
            if MINIMAL.contains(&name) || self.programs.iter().any(|program| program.name == name) {
                continue;
            }
            let base = 0x7ff6_0000_0000 + (self.random.below(0x3000) << 16);
            let habits = habits(name);
            self.names.image(memory, &self.facts, &image_path(name))?;
            let (bytes, bad) = program_code(base, self.library, &self.facts, habits)?;
            let (header, code) = (self.frames.take()?, self.frames.take()?);
            memory.write(header, &image_header(IMAGE_BYTES))?;
            memory.write(code, &bytes)?;
            let space = Space { root: self.frames.take()?, levels: 4 };
            space.map(memory, &mut self.frames, (base, header, 1), USER_READ | NO_EXECUTE)?;
            space.map(memory, &mut self.frames, (base + 0x1000, code, 1), USER_READ)?;
            let to = space.entry(memory, &mut self.frames, self.library, PageTableLevel::Pdpt)?;
            memory.write_u64(to, library_tables);
            let top = space.entry(memory, &mut self.frames, base, PageTableLevel::Pml4)?;
            let tables = memory.read_u64(top).unwrap_or(0) & super::FRAME;
            // The building root has done its work.
            self.frames.free(memory, space.root);
            self.programs.push(Program { name, habits, base, tables, entry: base + 0x1000, bad });
        }
        self.frames.free(memory, shared.root);
        Ok(())
    }

    /// Data of the image: version, system call table, interrupt table, roots of lists.
    fn write_data(&mut self, memory: &mut Memory, pa: u64) -> Result<(), VmiError> {
        let f = &self.facts;
        let at = |name: &str| f.symbol(name).map(|rva| pa + rva);
        // NtBuildNumber: a free build has 0xF in the upper nibble.
        memory.write(at("NtBuildNumber")?, &(0xf000_0000 | f.build).to_le_bytes())?;
        memory.write(at("NtBuildLab")?, format!("{}.1.amd64fre.vb_release.191206-1406\0", f.build).as_bytes())?;
        memory.write_u64(at("KeBootTime")?, self.boot_time());
        let head = self.base + f.symbol("PsActiveProcessHead")?;
        memory.write_u64(at("PsActiveProcessHead")?, head);
        memory.write_u64(at("PsActiveProcessHead")? + 8, head);
        memory.write_u64(at("PspCidTable")?, self.base + own::CID_TABLE);
        memory.write_u64(pa + own::CID_TABLE + f.table_code, (self.direct + self.cid.top) | 1);

        let table = f.symbol("KiServiceTable")?;
        memory.write_u64(at("KeServiceDescriptorTable")?, self.base + table);
        memory.write_u64(at("KeServiceDescriptorTable")? + 0x10, u64::from(SERVICE_COUNT));
        let data = f.symbol("NtBuildNumber")?;
        let known = |name: &str| SERVICES.iter().any(|&(_, service, _)| service == name);
        let mut others =
            f.symbols().filter(|&(name, rva)| name.starts_with("Nt") && rva < data && !known(name)).map(|(_, rva)| rva);
        for number in 0..SERVICE_COUNT {
            let (rva, arguments) = match SERVICES.iter().find(|&&(known, ..)| known == number) {
                Some(&(_, name, arguments)) => (f.symbol(name)?, arguments),
                None => (others.next().unwrap_or(f.symbol("NtClose")?), 0),
            };
            // Distance from the table, shifted, and the number of arguments on the stack.
            let entry = ((rva as i64 - table as i64) as i32) << 4 | arguments as i32;
            memory.write(pa + table + u64::from(number) * 4, &entry.to_le_bytes())?;
        }

        for vector in 0..=255u8 {
            let (handler, privilege) = match vector {
                0 => ("KiDivideErrorFault", 0),
                1 => ("KiDebugTrapOrFault", 0),
                3 => ("KiBreakpointTrap", 3),
                6 => ("KiInvalidOpcodeFault", 0),
                8 => ("KiDoubleFaultAbort", 0),
                13 => ("KiGeneralProtectionFault", 0),
                14 => ("KiPageFault", 0),
                CLOCK_VECTOR => ("HalpTimerClockInterrupt", 0),
                _ => ("KiInterruptDispatch", 0),
            };
            let va = self.base + f.symbol(handler)?;
            // Interrupt gate, Intel SDM volume 3A, figure 6-8.
            let low =
                va & 0xffff | u64::from(KERNEL_CS) << 16 | (0x8e00 | privilege << 13) << 32 | (va >> 16 & 0xffff) << 48;
            let gate = pa + own::IDT + u64::from(vector) * 16;
            memory.write_u64(gate, low);
            memory.write_u64(gate + 8, va >> 32);
        }
        Ok(())
    }

    /// The idle process and the system process.
    fn start_system(&mut self, memory: &mut Memory, pa: u64, vcpus: usize) -> Result<(), VmiError> {
        let idle = self.make_process(memory, ("Idle", None, 0), Some(0), (0, false), 0)?;
        for vcpu in 0..vcpus {
            // An idle thread each, in a place of its own.
            let place = self.objects.free.pop_front().unwrap_or(0) as u64;
            let thread = Thread {
                process: idle,
                vcpu,
                tid: 0,
                object: self.objects.va + place * PLACE + THREADS_AT[0],
                start: self.base + self.facts.symbol("KiIdleLoop")?,
                user_stack: 0,
                started: true,
                dormant: true,
                input_for: None,
                filling: None,
            };
            if let Some(slot) = self.threads.get_mut(vcpu) {
                *slot = Some(thread);
            }
        }
        if let Some(process) = self.process_mut(idle) {
            process.threads = (0..vcpus).collect();
        }
        self.rewrite_threads(memory, idle);

        let system = self.make_process(memory, ("System", None, 0), Some(4), (2, false), 0)?;
        let worker = self.process(system).and_then(|process| process.threads.first().copied()).unwrap_or(0);
        let start = self.base + self.facts.symbol("ExpWorkerThread")?;
        if let Some(thread) = self.threads.get_mut(worker).and_then(Option::as_mut) {
            thread.start = start;
            thread.vcpu = 0;
            thread.dormant = false;
        }
        self.rewrite_threads(memory, system);
        self.link(memory, pa, system)?;
        self.admit(memory, system, 1_000_000);
        let object = |place: usize| self.process(place).map_or(0, |process| process.object);
        memory.write_u64(pa + self.facts.symbol("PsInitialSystemProcess")?, object(system));
        memory.write_u64(pa + self.facts.symbol("PsIdleProcess")?, object(idle));
        Ok(())
    }

    fn start_processes(&mut self, memory: &mut Memory, pa: u64, count: usize) -> Result<(), VmiError> {
        let mut parents = vec![("System", 4)];
        let ordinary = count - 2;
        let others = (FIRST.len()..ordinary).map(|i| MORE.get(i % MORE.len()).copied().unwrap_or(ROOTKIT));
        let all = FIRST.iter().copied().take(ordinary).chain(others).chain([ROOTKIT]);
        for (index, (name, parent)) in all.enumerate() {
            let program = self.programs.iter().position(|program| program.name == name);
            let ppid = parents.iter().find(|&&(known, _)| known == parent).map_or(4, |&(_, pid)| pid);
            let threads = if index < 100 && self.random.below(3) == 0 { 2 } else { 1 };
            // Booting took its time, too.
            let started = 10_000 * (index as u64 + 1);
            let place = self.make_process(memory, (name, program, ppid), None, (threads, index >= EAGER), started)?;
            let hidden = (name, parent) == ROOTKIT;
            let pid = self.process(place).map_or(0, |process| process.pid);
            if !parents.iter().any(|&(known, _)| known == name) {
                parents.push((name, pid));
            }
            if hidden {
                if let Some(process) = self.process_mut(place) {
                    process.hidden = true;
                }
            } else {
                self.link(memory, pa, place)?;
            }
            let first_run = 1_000_000 + self.random.below(self.pause_ns);
            self.admit(memory, place, first_run);
        }
        Ok(())
    }

    /// Puts a process at the end of the list of processes.
    fn link(&mut self, memory: &mut Memory, pa: u64, place: usize) -> Result<(), VmiError> {
        let head = self.facts.symbol("PsActiveProcessHead")?;
        let (links, head_va) = (self.facts.links, self.base + head);
        let to_pa = |va: u64| if va == head_va { pa + head } else { self.objects.pa + (va - self.objects.va) };
        let Some(process) = self.process(place) else { return Ok(()) };
        let entry = process.object + links;
        let last = memory.read_u64(pa + head + 8).unwrap_or(head_va);
        memory.write_u64(to_pa(entry), head_va);
        memory.write_u64(to_pa(entry) + 8, last);
        memory.write_u64(to_pa(last), entry);
        memory.write_u64(pa + head + 8, entry);
        Ok(())
    }

    /// Registers and per-processor data of a vCPU that is about to enter its idle loop.
    fn vcpu(&mut self, memory: &mut Memory, pa: u64, id: usize, la57: bool) -> Result<Vcpu, VmiError> {
        let f = &self.facts;
        let at = own::PCR + id as u64 * 0x1_0000;
        let (pcr, pcr_pa) = (self.base + at, pa + at);
        let tss = self.base + own::TSS + id as u64 * 0x80;
        let idt = self.base + own::IDT;
        let idle = self.thread(id).map_or(0, |thread| thread.object);
        let top = self.objects.stack_top(id);
        memory.write_u64(pcr_pa + f.pcr_self, pcr);
        memory.write_u64(pcr_pa + f.pcr_current_prcb, pcr + f.pcr_prcb);
        memory.write_u64(pcr_pa + f.pcr_idt, idt);
        memory.write_u64(pcr_pa + f.pcr_tss, tss);
        let prcb = pcr_pa + f.pcr_prcb;
        memory.write_u64(prcb + f.prcb_current_thread, idle);
        memory.write_u64(prcb + f.prcb_idle_thread, idle);
        memory.write_u64(prcb + f.prcb_rsp_base, top);
        memory.write(prcb + f.prcb_number, &(id as u32).to_le_bytes())?;
        memory.write_u64(pa + f.symbol("KiProcessorBlock")? + id as u64 * 8, pcr + f.pcr_prcb);
        memory.write_u64(pa + own::TSS + id as u64 * 0x80 + f.tss_rsp0, top);
        let gp =
            Amd64GpRegisters { rip: self.base + f.symbol("KiIdleLoop")?, rsp: top, rflags: 2, ..Default::default() };
        let registers = Amd64Registers {
            gp,
            cs: segment(KERNEL_CS),
            ss: segment(KERNEL_SS),
            fs: Segment::default(),
            gs: Segment { selector: 0x2b, base: pcr, long: false },
            kernel_gs_base: 0,
            // PG, AM, WP, NE, ET, MP, PE.
            cr0: 0x8005_0033,
            cr2: 0,
            cr3: self.system.root,
            // OSXMMEXCPT, OSFXSR, PGE, MCE, PAE, DE; LA57.
            cr4: 0x6f8 | if la57 { Amd64Registers::CR4_LA57 } else { 0 },
            // NXE, LMA, LME, SCE.
            efer: 0xd01,
            lstar: self.base + f.symbol("KiSystemCall64")?,
            idt_base: idt,
        };
        Ok(Vcpu::new(registers, tss))
    }
}
