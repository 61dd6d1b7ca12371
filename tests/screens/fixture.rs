//! A guest with something in every pane, built by hand.

use std::sync::Arc;

use vmscope::{
    engine::{command::Subject, snapshot::*},
    ui::state::{Found, KeyHint, MemoryMode, MemoryView, Popup, UiState},
};

const SECOND: u64 = 1_000_000_000;

fn process(pid: u32, ppid: u32, name: &str, threads: u32, flags: &[ProcessFlag]) -> Process {
    let kernel = flags.contains(&ProcessFlag::Kernel);
    Process {
        pid,
        ppid,
        name: name.to_owned(),
        root: (!kernel || pid == 4).then_some(Pa(0x1a_5000 + u64::from(pid) * 0x1000)),
        threads,
        start_ns: u64::from(pid) * SECOND / 64,
        uid: None,
        flags: flags.to_vec(),
        object: Va(0xffff_e001_0000_0000 + u64::from(pid) * 0x80),
    }
}

pub fn processes() -> Vec<Process> {
    use ProcessFlag::{Exiting, Hidden, Kernel, Wow64};
    let mut list = vec![
        process(4, 0, "System", 142, &[Kernel]),
        process(92, 4, "Registry", 4, &[Kernel]),
        process(348, 4, "smss.exe", 2, &[]),
        process(452, 444, "csrss.exe", 11, &[]),
        process(528, 444, "wininit.exe", 1, &[]),
        process(536, 520, "csrss.exe", 12, &[]),
        process(612, 520, "winlogon.exe", 5, &[]),
        process(640, 528, "services.exe", 8, &[]),
        process(648, 528, "lsass.exe", 9, &[]),
        process(760, 640, "svchost.exe", 18, &[]),
        process(812, 640, "svchost.exe", 12, &[]),
        process(1_204, 612, "explorer.exe", 61, &[]),
        process(2_316, 1_204, "setup32.exe", 3, &[Wow64]),
        process(2_480, 760, "ghost.exe", 2, &[Hidden]),
        process(2_504, 1_204, "notepad.exe", 0, &[Exiting]),
    ];
    list.extend((0..20).map(|n| process(3_000 + n * 4, 640, "svchost.exe", 3 + n % 7, &[])));
    list
}

fn hit(n: u64) -> Hit {
    Hit {
        call: None,
        at_ns: 61 * SECOND + n * 130_000_000,
        vcpu: VcpuId((n % 2) as u16),
        pid: Some(if n.is_multiple_of(3) { 1_204 } else { 648 }),
        process: if n.is_multiple_of(3) { "explorer.exe" } else { "lsass.exe" }.to_owned(),
        args: vec![0x1f4 + n, 0x8010_0080, 0xd8_4c1f_f6c0, 0xd8_4c1f_f5f8],
        registers: vec![
            ("rax", 0x55),
            ("rcx", 0x1f4 + n),
            ("rdx", 0x8010_0080),
            ("rsp", 0xffff_b10c_2d4f_f8e8),
            ("rip", 0xffff_f803_1c2a_41f0),
        ],
    }
}

fn breakpoint(id: u64, symbol: &str, address: u64, state: BreakpointState, hits: u64) -> Breakpoint {
    Breakpoint {
        id: BreakpointId(id),
        symbol: symbol.to_owned(),
        address: Va(address),
        scope: Scope::Global,
        view: View(1),
        pa: (state == BreakpointState::Active).then_some(Pa(address & 0xfff_ffff)),
        state,
        visible: false,
        tag: String::new(),
        hits,
        rates: if state == BreakpointState::Active { (0..20).map(|n| (n * hits) % 23).collect() } else { Vec::new() },
        last_hits: (0..hits.min(6)).map(hit).collect(),
        error: None,
    }
}

pub fn breakpoints() -> Vec<Breakpoint> {
    use BreakpointState::{Active, Disabled, Failed, Pending};
    vec![
        breakpoint(1, "nt!NtCreateFile", 0xffff_f803_1c2a_41f0, Active, 1_204),
        Breakpoint {
            tag: "files".to_owned(),
            visible: true,
            ..breakpoint(2, "nt!NtOpenProcess+0x14", 0xffff_f803_1c2b_0014, Active, 7)
        },
        Breakpoint { scope: Scope::Process(648), ..breakpoint(3, "ntdll!LdrLoadDll", 0x7ffa_1c2a_0000, Pending, 0) },
        breakpoint(4, "nt!MmAccessFault", 0xffff_f803_1c30_0e10, Disabled, 52_311),
        Breakpoint {
            error: Some("storm: more than 10,000 hits a second".to_owned()),
            ..breakpoint(5, "nt!KiPageFault", 0xffff_f803_1c31_0000, Disabled, 1_048_576)
        },
        Breakpoint {
            error: Some("nt!Missing is not a symbol of this kernel".to_owned()),
            ..breakpoint(6, "", 0xffff_f803_1fff_f000, Failed, 0)
        },
    ]
}

fn walk(mapped: bool) -> Vec<WalkEntry> {
    let level = |level, entry_pa, entry, previous, flags: &[&'static str]| WalkEntry {
        level,
        entry_pa: Pa(entry_pa),
        entry,
        previous,
        flags: flags.to_vec(),
    };
    let mut walk = vec![
        level("PML4", 0x22_d7f8, 0x1_0f06_7063, None, &["present", "writable", "accessed", "dirty"]),
        level("PDPT", 0x1_0f06_7068, 0x1_0f06_8063, None, &["present", "writable", "accessed", "dirty"]),
        level("PD", 0x1_0f06_8708, 0x0a00_0000_0120_8867, None, &["present", "writable", "user", "accessed"]),
    ];
    walk.push(if mapped {
        let flags = ["present", "writable", "user", "accessed", "dirty", "nx"];
        level("PT", 0x120_8d10, 0x8000_0000_01f4_0867, Some(0x8000_0000_01f4_0825), &flags)
    } else {
        level("PT", 0x120_8d10, 0x0000_2000_0000_0400, Some(0x8000_0000_01f4_0867), &[])
    });
    walk
}

pub fn tables() -> Vec<Table> {
    let table = |id, address, pid: Option<u32>, paged_in: bool, changes| Table {
        id: TableId(id),
        address: Va(address),
        root: Pa(pid.map_or(0x1a_d000, |pid| 0x1a_5000 + u64::from(pid) * 0x1000)),
        pid,
        paged_in,
        pa: paged_in.then_some(Pa(0x1f4_0000 + id * 0x1000)),
        page_bytes: if paged_in { 0x1000 } else { 0 },
        changes,
        last_change_ns: (changes > 0).then_some(60 * SECOND + id * 311_000_000),
        walk: walk(paged_in),
        ..Table::default()
    };
    vec![
        Table {
            symbol: "nt!MmPfnDatabase".to_owned(),
            page_bytes: 2 << 20,
            ..table(1, 0xffff_f803_1c9f_c000, None, true, 0)
        },
        Table { tag: "heap".to_owned(), ..table(2, 0x7ffa_1c2a_0000, Some(648), false, 8) },
        table(3, 0x7ffa_1c2a_1000, Some(648), true, 1_311),
        table(4, 0x2_41f0_0000, Some(1_204), true, 3),
    ]
}

pub fn faults() -> Vec<Fault> {
    let fault = |id, state, attempts, age_ms: u64, asked_by: &str, note: &str| Fault {
        id: FaultId(id),
        address: Va(0x7ffa_1c2a_0000 + id * 0x1000),
        root: Pa(0x44_d000),
        pid: Some(648),
        asked_by: asked_by.to_owned(),
        state,
        attempts,
        age_ns: age_ms * 1_000_000,
        vcpu: (attempts > 0).then_some(VcpuId(1)),
        note: note.to_owned(),
        missing: None,
    };
    vec![
        fault(1, FaultState::Pending, 0, 12, "process command line", "waits until lsass.exe runs in user mode"),
        fault(2, FaultState::Injected, 1, 3, "breakpoint ntdll!LdrLoadDll", "on its way through vCPU 1"),
        fault(3, FaultState::Resolved, 1, 4_210, "process modules", "came after 0.8 ms"),
        fault(4, FaultState::Suppressed, 3, 187_000, "user", "the guest refused it: KiDispatchException"),
    ]
}

pub fn events() -> Vec<Event> {
    let event = |seq: u64, kind, pid: Option<u32>, process: &str, text: &str| Event {
        seq,
        at_ns: 50 * SECOND + seq * 123_000_000,
        kind,
        vcpu: pid.map(|_| VcpuId((seq % 2) as u16)),
        pid,
        process: process.to_owned(),
        text: text.to_owned(),
    };
    use EventKind::{Breakpoint, Engine, Fault, Hidden, PageIn, PageOut, ProcessExit, ProcessStart, Vm};
    let mut events = vec![
        event(0, Vm, None, "", "attached to WIN10-19045: 2 vCPUs, kernel at fffff803`1c000000"),
        event(1, ProcessStart, Some(2_316), "setup32.exe", "started by explorer.exe (1204)"),
        event(2, Hidden, Some(2_480), "ghost.exe", "runs but is not in the kernel's process list"),
        event(3, PageOut, Some(648), "lsass.exe", "7ffa`1c2a0000 was unmapped"),
        event(4, PageIn, Some(648), "lsass.exe", "7ffa`1c2a1000 maps 1f43000"),
        event(5, Fault, Some(648), "lsass.exe", "7ffa`1c2a2000 injected on vCPU 1"),
        event(6, Engine, None, "", "storm: nt!KiPageFault hit 12,004 times in a second and was taken out"),
        event(7, ProcessExit, Some(2_504), "notepad.exe", "exit code 0"),
    ];
    events.extend((8..60).map(|seq| {
        event(seq, Breakpoint, Some(648), "lsass.exe", "nt!NtCreateFile(0x1f4, 0x80100080, 0xd84c1ff6c0, 0xd84c1ff5f8)")
    }));
    events
}

/// Two processes hitting two breakpoints in turn, a page, and one of them again.
pub fn storm() -> Vec<Event> {
    let mut events = events();
    events.truncate(8);
    let (mut seq, mut at_ns) = (8, 55 * SECOND);
    let mut push = |kind, pid, process: &str, text: String, gap: u64| {
        at_ns += gap;
        let process = process.to_owned();
        events.push(Event { seq, at_ns, kind, vcpu: Some(VcpuId((seq % 2) as u16)), pid: Some(pid), process, text });
        seq += 1;
    };
    for n in 0..40u64 {
        push(EventKind::Breakpoint, 648, "lsass.exe", format!("nt!NtCreateFile({n:#x}, 0x80100080)"), 31_000_000);
        if n % 4 == 0 {
            push(EventKind::Breakpoint, 1_204, "explorer.exe", format!("nt!NtClose({n:#x})"), 2_000_000);
        }
    }
    push(EventKind::PageOut, 648, "lsass.exe", "7ffa`1c2a0000 was unmapped".to_owned(), 400_000_000);
    push(EventKind::Breakpoint, 648, "lsass.exe", "nt!NtCreateFile(0x1f4, 0x80100080)".to_owned(), 2_500_000_000);
    events
}

/// The events of one burst.
pub fn burst() -> Vec<Event> {
    storm().into_iter().filter(|event| event.text.starts_with("nt!NtClose")).collect()
}

/// The whole guest.
pub fn snapshot() -> Snapshot {
    use Capability::*;
    Snapshot {
        schema: SCHEMA,
        taken_at_ns: 62 * SECOND + 345_000_000,
        status: Status::Running,
        driver: "demo",
        guest: Part::new(Guest {
            name: "WIN10-19045".to_owned(),
            os: "windows".to_owned(),
            version: "10.0.19045".to_owned(),
            kernel_base: Some(Va(0xffff_f803_1c00_0000)),
            vcpus: 2,
            memory_bytes: 512 << 20,
            paging_levels: 4,
            booted_at_ns: None,
        }),
        vcpus: Part::new(
            (0..2)
                .map(|id| Vcpu { id: VcpuId(id), rip: Va(0xffff_f803_1c2a_41f0), pid: Some(648), ..Vcpu::default() })
                .collect(),
        ),
        processes: Part::new(processes()),
        breakpoints: Part::new(breakpoints()),
        page_tables: Part::new(tables()),
        tables_monitored: 31,
        faults: Part::new(faults()),
        events: Part::new(events()),
        counters: Counters { events: 60, hits: 52, faults_pending: 1, snapshots: 812, ..Counters::default() },
        event_rates: Part::new(vec![310, 420, 900, 1_240, 800, 1_100, 1_300, 700, 650, 900, 1_000, 1_240]),
        capabilities: Part::new(vec![
            Read,
            Write,
            Registers,
            Breakpoints,
            HiddenBreakpoints,
            TableWrites,
            FaultInjection,
            Pause,
            Views,
        ]),
        unavailable: Part::new(vec![Unavailable { what: Step, why: "this guest cannot be stepped".to_owned() }]),
        symbols: Arc::new(SymbolTable::new([
            ("nt!NtCreateFile", Va(0xffff_f803_1c2a_41f0)),
            ("nt!NtCreateKey", Va(0xffff_f803_1c2a_5000)),
        ])),
        ..Snapshot::default()
    }
}

/// A guest of which nothing is known yet.
pub fn attaching() -> Snapshot {
    Snapshot {
        schema: SCHEMA,
        status: Status::Attaching,
        driver: "qemu",
        notice: Some("looking for the kernel in 512 MiB of guest memory".into()),
        ..Snapshot::default()
    }
}

fn code(address: u64, bytes: &str, text: &str, symbol: &str, here: bool) -> CodeLine {
    CodeLine {
        address: Va(address),
        bytes: bytes.to_owned(),
        text: text.to_owned(),
        symbol: symbol.to_owned(),
        here,
        target: None,
    }
}

fn instructions() -> Vec<CodeLine> {
    let base = 0xffff_f803_1c2a_41f0;
    vec![
        code(base - 4, "cccccccc", "int3", "", false),
        code(base, "4c8bdc", "mov r11, rsp", "nt!NtCreateFile", true),
        code(base + 3, "4881ec88000000", "sub rsp, 0x88", "nt!NtCreateFile+0x3", false),
        code(base + 10, "33c0", "xor eax, eax", "nt!NtCreateFile+0xa", false),
        code(base + 12, "498943f0", "mov qword ptr [r11-0x10], rax", "nt!NtCreateFile+0xc", false),
        code(base + 16, "e8eb0f0000", "call nt!IopCreateFile", "nt!NtCreateFile+0x10", false),
        code(base + 21, "4881c488000000", "add rsp, 0x88", "nt!NtCreateFile+0x15", false),
        code(base + 28, "c3", "ret", "nt!NtCreateFile+0x1c", false),
    ]
}

/// What each detail popup shows.
pub fn details() -> Vec<(&'static str, Subject, Detail)> {
    let lsass = processes().into_iter().find(|process| process.pid == 648).unwrap_or_default();
    let region = |start, size, protection: &str, name: &str| Region {
        start: Va(start),
        end: Va(start + size),
        protection: protection.to_owned(),
        name: name.to_owned(),
    };
    let module = |base, size, name: &str| Module { base: Va(base), size, name: name.to_owned(), hidden: false };
    let process = ProcessDetail {
        process: lsass,
        command_line: Some(r"C:\Windows\system32\lsass.exe".to_owned()),
        executable: None,
        working_directory: None,
        root_directory: None,
        credentials: vec![
            ("user".to_owned(), r"NT AUTHORITY\SYSTEM".to_owned()),
            ("token".to_owned(), "ffffc10a`2b34d060".to_owned()),
        ],
        threads: (0..9)
            .map(|n| ThreadInfo {
                tid: 652 + n * 4,
                name: if n == 0 { "main".to_owned() } else { String::new() },
                state: if n == 3 { "running" } else { "waiting" }.to_owned(),
                object: Va(0xffff_e001_0400_0080 + u64::from(n) * 0x700),
                hidden: n == 8,
            })
            .collect(),
        regions: vec![
            region(0x7ff7_0000_0000, 0x1_2000, "r-xp", r"\Windows\System32\lsass.exe"),
            region(0x241_f000_0000, 0x10_0000, "rw-p", "heap"),
            region(0x7ffa_1c2a_0000, 0x1f_8000, "r-xp", r"\Windows\System32\ntdll.dll"),
        ],
        modules: vec![
            module(0x7ff7_0000_0000, 0x1_2000, "lsass.exe"),
            module(0x7ffa_1c2a_0000, 0x1f_8000, "ntdll.dll"),
        ],
        handles: vec![(4, r"\Device\KsecDD".to_owned()), (8, r"\Registry\Machine\SAM".to_owned())],
        missing: vec![Va(0x7ffa_1c2a_0000)],
        truncated: vec!["handles"],
        unavailable: vec!["open files: the profile of this kernel has no offsets for them".to_owned()],
    };
    let mut breakpoint = breakpoints().swap_remove(0);
    breakpoint.tag = "files".to_owned();
    let table = tables().swap_remove(2);
    let fault = faults().swap_remove(0);
    vec![
        ("process", Subject::Process(648), Detail::Process(process)),
        (
            "breakpoint",
            Subject::Breakpoint(breakpoint.id),
            Detail::Breakpoint(BreakpointDetail { breakpoint, code: instructions() }),
        ),
        ("walk", Subject::Table(table.id), Detail::Table(table)),
        ("fault", Subject::Fault(fault.id), Detail::Fault(fault)),
        ("gone", Subject::Process(9_999), Detail::Gone("process 9999 has ended".to_owned())),
    ]
}

/// Memory of a process: the end of a page that is there, and one that is not. Some of it changed now, some before.
pub fn memory(mode: MemoryMode) -> (Popup, Detail) {
    let va = Va(0x7ffa_1c2a_0e00);
    let (length, there) = (67 * 32, 0x200);
    let changed = |nth: u64| match nth {
        35..39 => Some(62 * SECOND),
        53 => Some(20 * SECOND),
        _ => None,
    };
    let first = instructions().first().map_or(Va(0), |line| line.address);
    let detail = MemoryDetail {
        pid: Some(648),
        root: Pa(0x44_d000),
        va: if mode == MemoryMode::Walk { va + 0x21 } else { va },
        bytes: (0u64..length).map(|n| (n < there).then(|| (n.wrapping_mul(37) % 256) as u8)).collect(),
        changed: (0..length).map(changed).collect(),
        code: (0..12u64)
            .flat_map(|nth| {
                let at = move |line: CodeLine| CodeLine { address: va + nth * 37 + (line.address - first), ..line };
                instructions().into_iter().map(at)
            })
            .collect(),
        before: Vec::new(),
        walk: walk(true),
        missing: None,
    };
    let found = Found {
        text: "94 b9".to_owned(),
        patterns: vec![vec![Some(0x94), Some(0xb9)]],
        places: vec![va + 4, va + 0x104],
        more: true,
        ..Found::default()
    };
    let view =
        MemoryView { pid: Some(648), cursor: va + 0x21, top: va, mode, search: Some(found), ..MemoryView::default() };
    (Popup::Memory(view), Detail::Memory(detail))
}

fn hint(name: &str, key: &str, label: &str, doc: &str, group: &str) -> KeyHint {
    let [name, key, label, doc, group] = [name, key, label, doc, group].map(str::to_owned);
    KeyHint { name, key, label, doc, group, why_not: None }
}

/// Keys as the application would give them.
pub fn keys() -> Vec<KeyHint> {
    let why = Some("this guest cannot be stepped".to_owned());
    vec![
        hint(
            "toggle",
            "space",
            "toggle",
            "Take the breakpoint out of the guest and keep its row, or put it back",
            "Breakpoints",
        ),
        hint("add", "a", "add", "Set a breakpoint, or watch an address, by symbol or address", "Breakpoints"),
        hint("delete", "d delete", "delete", "Take the breakpoint out and forget it", "Breakpoints"),
        hint("request-page", "g", "request", "Ask for a page by symbol or address", "Faults"),
        hint("detail", "enter", "detail", "Show everything about the selected row", "In every pane"),
        hint("filter", "/", "filter", "Show only rows that match a regular expression", "In every pane"),
        hint("clear-filter", "esc", "all rows", "Show all rows again", "In every pane"),
        hint("sort", "s", "sort", "Sort by the next column", "In every pane"),
        hint("pause-guest", "p", "pause guest", "Stop the guest's processors, or let them run", "Everywhere"),
        KeyHint {
            why_not: why,
            ..hint("step", "n", "step", "Run one instruction of the first processor", "Everywhere")
        },
        hint("freeze", "f", "freeze view", "Hold the picture still while the guest runs on", "Everywhere"),
        hint("help", "? f1", "help", "List all keys", "Everywhere"),
        hint("palette", ":", "palette", "Find an action by its name", "Everywhere"),
        hint("quit", "q", "quit", "Take everything out of the guest and leave", "Everywhere"),
    ]
}

/// A screen as it starts.
pub fn screen(size: (u16, u16)) -> UiState {
    let footer =
        keys().into_iter().map(|hint| KeyHint { key: hint.key.split(' ').next().unwrap_or("").to_owned(), ..hint });
    let footer = footer.filter(|hint| hint.name != "clear-filter" && hint.name != "request-page").collect();
    UiState { size, footer, help: keys(), virtual_time: true, grouped: false, ..UiState::default() }
}
