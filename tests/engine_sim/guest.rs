//! What lives in the guest: processes, system calls, checks of its own code, patches of it.

use std::{collections::BTreeSet, time::Duration};

use indexmap::IndexSet;
use vmscope::engine::{
    addr::{Gfn, Pa, Va},
    arch::{EventReason, amd64::*},
    driver::{
        MemoryAccess, VmiWrite,
        sim::{SimDriver, SimOptions},
    },
    event::VmiEventResponse,
    os::VmiOs,
    session::VmiProber,
    snapshot::{Process, ProcessDetail, ProcessFlag},
};

use crate::Guest;

type Row = (u32, u32, String, Pa, bool, bool);

/// What the guest says of its processes, in the form of a process list.
fn truth(guest: &Guest) -> Vec<Row> {
    let all = guest.driver().processes().into_iter();
    all.map(|p| (p.pid, p.ppid, p.name, p.root, p.hidden, p.exiting)).collect()
}

fn processes(guest: &Guest) -> Vec<Process> {
    guest.core.flush_v2p_cache();
    let list = guest.os.processes(guest.session()).expect("can be read");
    assert!(!list.truncated && list.hidden_threads.is_empty(), "{:?}", list.hidden_threads);
    list.processes
}

fn listed(guest: &Guest) -> Vec<Row> {
    let has = |process: &Process, flag| process.flags.contains(&flag);
    let row = |p: Process| {
        let (hidden, exiting) = (has(&p, ProcessFlag::Hidden), has(&p, ProcessFlag::Exiting));
        (p.pid, p.ppid, p.name, p.root.unwrap_or_default(), hidden, exiting)
    };
    let mut rows: Vec<_> = processes(guest).into_iter().map(row).collect();
    rows.sort();
    rows
}

#[test]
fn two_runs_from_one_seed_are_the_same_and_from_another_are_not() {
    let trace = |seed| {
        let guest = Guest::new(SimOptions { seed, ..SimOptions::default() });
        guest.core.monitor_enable(EventMonitor::Register(ControlRegister::Cr3)).expect("supported");
        let mut events = Vec::new();
        guest.run(Duration::from_secs(2), |event| {
            events.push((event.vcpu_id(), *event.registers(), *event.reason()));
            VmiEventResponse::default()
        });
        (events, guest.driver().processes())
    };
    let first = trace(7);
    assert!(first.0.len() > 200, "processes are switched: {}", first.0.len());
    assert!(first.0.iter().any(|(vcpu, ..)| vcpu.0 == 1), "on every vCPU");
    assert_eq!(first, trace(7));
    assert_ne!(first, trace(8));
}

#[test]
fn the_kernel_lies_elsewhere_for_every_seed() {
    let base =
        |seed| VmiOs::<SimDriver>::kernel_image_base(&Guest::new(SimOptions { seed, ..SimOptions::default() }).os);
    let bases: BTreeSet<Va> = (0..8).map(base).collect();
    assert_eq!(bases.len(), 8);
    assert!(bases.iter().all(|base| base.0 >> 36 == 0x0fff_ff80), "{bases:x?}");
}

#[test]
fn the_process_list_is_the_guests_own_while_processes_come_and_go() {
    for la57 in [false, true] {
        let guest = Guest::new(SimOptions { la57, ..SimOptions::default() });
        let mut pids = BTreeSet::new();
        let (mut exits, mut hidden) = (0, 0);
        for _ in 0..60 {
            guest.run(Duration::from_millis(100), |_| VmiEventResponse::default());
            let rows = listed(&guest);
            assert_eq!(rows, truth(&guest), "la57: {la57}");
            exits += rows.iter().filter(|row| row.5).count();
            hidden += rows.iter().filter(|row| row.4).count();
            pids.extend(rows.into_iter().map(|row| row.0));
        }
        assert!(pids.len() > 42, "processes start: {}", pids.len());
        assert!(exits > 0, "processes end");
        assert_eq!(hidden, 60, "one hides all the time");
        assert_eq!(guest.driver().tamper_count(), 0);
    }
}

#[test]
fn ten_thousand_processes_fit_and_three_do() {
    for processes in [10_000, 3] {
        let guest = Guest::new(SimOptions { processes, ..SimOptions::default() });
        guest.run(Duration::from_millis(500), |_| VmiEventResponse::default());
        let rows = listed(&guest);
        assert!(rows.len() >= processes);
        assert_eq!(rows, truth(&guest));
    }
}

#[test]
fn a_hit_of_a_hidden_breakpoint_has_process_and_arguments_and_the_guest_notices_nothing() {
    let guest = Guest::new(SimOptions::default());
    let (view, gfn) = guest.hide_breakpoint("nt!NtCreateFile");
    let address = guest.symbol("nt!NtCreateFile");
    let (mut hits, mut reads, mut names) = (0, 0, BTreeSet::new());
    guest.run(Duration::from_secs(2), |event| {
        let state = guest.session().with_registers(event.registers());
        assert_eq!(event.view(), Some(view));
        if let Some(frame) = event.reason().as_software_breakpoint() {
            if event.registers().gp.rip != address.0 {
                // One program runs breakpoints of its own.
                assert!(event.registers().cpl() == 3);
                return VmiEventResponse::reinject_interrupt();
            }
            assert_eq!(frame, gfn);
            hits += 1;
            let process = guest.os.current_process(state).expect("readable").expect("running");
            let own = guest.driver().processes().into_iter().find(|p| p.pid == process.pid).expect("known");
            assert_eq!((own.root, &own.name), (event.registers().root(), &process.name));
            names.insert(process.name);
            let argument = |index| guest.os.function_argument(state, index).expect("on the stack");
            let attributes = Va(argument(2));
            assert_eq!(state.read_u32(attributes).expect("OBJECT_ATTRIBUTES"), 0x30);
            let name = state.read_u64(attributes + 0x10).expect("its name");
            let text = state.read_u64(Va(name) + 8).expect("its text");
            assert!(state.read_wstring_limited(Va(text), 64).expect("text").starts_with("\\??\\C:\\ProgramData\\"));
            assert_eq!((argument(1), argument(5), argument(8)), (0x8010_0080, 0x80, 0x60));
            let back = state.return_address().expect("on the stack");
            let caller = guest.symbol("nt!KiSystemCall64");
            assert!((caller..caller + 0x200).contains(&back));
        } else {
            let access = event.reason().as_memory_access().expect("nothing else is monitored");
            assert_eq!(access.access, MemoryAccess::R, "the guest reads its own code");
            reads += 1;
        }
        VmiEventResponse::fast_singlestep(guest.core.default_view())
    });
    assert!(hits > 200, "{hits} hits");
    assert!(reads > 100, "{reads} reads");
    assert!(names.len() > 20, "{names:?}");
    assert_eq!(guest.driver().tamper_count(), 0);
}

#[test]
fn a_system_call_is_told_by_the_name_of_its_service() {
    let guest = Guest::new(SimOptions::default());
    guest.hide_breakpoint("nt!KiSystemCall64");
    let entry = guest.symbol("nt!KiSystemCall64");
    let mut calls = BTreeSet::new();
    guest.run(Duration::from_secs(1), |event| {
        let state = guest.session().with_registers(event.registers());
        if event.reason().as_software_breakpoint().is_some() {
            if event.registers().gp.rip != entry.0 {
                return VmiEventResponse::reinject_interrupt();
            }
            let call = guest.os.system_call(state).expect("every one has a name");
            let name = call.text.split('(').next().unwrap_or_default().to_owned();
            if name == "NtCreateFile" {
                // The second one is in a register, the ninth on the stack of user mode.
                assert_eq!((call.arguments.len(), call.arguments[1], call.arguments[8]), (11, 0x8010_0080, 0x60));
            }
            calls.insert(name);
            let mut other = *event.registers();
            other.gp.rax = 0x1fff;
            assert_eq!(guest.os.system_call(guest.session().with_registers(&other)), None, "no such service");
        }
        VmiEventResponse::fast_singlestep(guest.core.default_view())
    });
    for name in ["NtCreateFile", "NtReadFile", "NtClose", "NtDelayExecution"] {
        assert!(calls.contains(name), "{calls:?}");
    }
}

#[test]
fn the_guest_notices_a_visible_patch_and_says_so() {
    let guest = Guest::new(SimOptions::default());
    let pa = guest.physical("nt!NtVdmControl");
    guest.run(Duration::from_secs(1), |_| VmiEventResponse::default());
    guest.driver().write_physical(pa, &[0xcc]).expect("writable");
    guest.run(Duration::from_secs(1), |_| VmiEventResponse::default());
    assert_eq!(guest.driver().tamper_count(), 0, "a service that nothing checks");

    let pa = guest.physical("nt!IopCreateFile") + 0x60;
    // Behind its last instruction, so that only the check sees it.
    let byte = guest.core.read_u8(pa).expect("in memory");
    guest.driver().write_physical(pa, &[byte ^ 1]).expect("writable");
    guest.run(Duration::from_secs(1), |_| VmiEventResponse::default());
    let noticed = guest.driver().tamper_count();
    assert!(noticed > 0);
    assert!(processes(&guest).iter().any(|process| process.name == "TAMPERED.exe"));
    assert_eq!(listed(&guest), truth(&guest));

    guest.driver().write_physical(pa, &[byte]).expect("writable");
    guest.run(Duration::from_secs(1), |_| VmiEventResponse::default());
    let after = guest.driver().tamper_count();
    guest.run(Duration::from_secs(1), |_| VmiEventResponse::default());
    assert_eq!(guest.driver().tamper_count(), after, "it is as it was again");
}

#[test]
fn the_guest_patches_itself_and_finds_that_right() {
    let guest = Guest::new(SimOptions::default());
    let pa = guest.physical("nt!NtQuerySystemInformation");
    let view = guest.core.default_view();
    let protect = |access| guest.core.set_memory_access(Gfn(pa.0 >> 12), view, access);
    protect(MemoryAccess::RX).expect("exists");
    let mut writes = Vec::new();
    guest.run(Duration::from_secs(5), |event| {
        let access = event.reason().as_memory_access().expect("nothing else is monitored");
        assert_eq!((access.pa, access.access), (pa, MemoryAccess::W));
        assert_eq!(access.va, guest.symbol("nt!NtQuerySystemInformation"));
        writes.push(guest.core.read_u16(pa).expect("in memory"));
        VmiEventResponse::emulate()
    });
    assert_eq!(writes.len() as u64, guest.driver().patch_count());
    assert!(writes.len() > 2 && writes.windows(2).all(|pair| pair[0] != pair[1]), "{writes:x?}");
    assert_eq!(guest.driver().tamper_count(), 0);
}

fn detail(guest: &Guest, process: &Process) -> ProcessDetail {
    let prober = VmiProber::new(&IndexSet::new());
    guest.os.process_detail(guest.session(), process, &prober).expect("can be read")
}

/// A process by its name, in detail.
fn detail_of(guest: &Guest, name: &str) -> ProcessDetail {
    let process = processes(guest).into_iter().find(|process| process.name == name).expect("runs");
    detail(guest, &process)
}

fn credential<'a>(detail: &'a ProcessDetail, name: &str) -> &'a str {
    let found = detail.credentials.iter().find(|(known, _)| known == name);
    found.map_or_else(|| panic!("no {name}: {:?}", detail.credentials), |(_, value)| value)
}

/// A program's whole name, of which the process object keeps 14 characters.
fn whole(name: &str) -> &str {
    let long = [
        "fontdrvhost.exe",
        "StartMenuExperienceHost.exe",
        "RuntimeBroker.exe",
        "SearchIndexer.exe",
        "backgroundTaskHost.exe",
    ];
    long.into_iter().find(|long| long.starts_with(name)).unwrap_or(name)
}

#[test]
fn a_process_in_detail() {
    let guest = Guest::new(SimOptions::default());
    guest.run(Duration::from_millis(300), |_| VmiEventResponse::default());
    let mut missing = 0;
    let mut complete = 0;
    for process in processes(&guest) {
        let detail = detail(&guest, &process);
        assert!(detail.truncated.is_empty() && detail.unavailable.is_empty(), "{detail:?}");
        assert_eq!(detail.threads.len() as u32, process.threads, "{}", process.name);
        assert!(detail.threads.iter().all(|thread| !thread.hidden));
        if process.flags.contains(&ProcessFlag::Kernel) {
            assert!(matches!(process.name.as_str(), "System" | "Registry" | "MemCompression"), "{}", process.name);
            assert_eq!(detail.command_line.as_deref(), Some(""), "it has none");
            assert!(detail.missing.is_empty() && detail.regions.is_empty());
            continue;
        }
        let wow64 = process.flags.contains(&ProcessFlag::Wow64);
        assert_eq!(detail.regions.len(), if wow64 { 10 } else { 6 });
        assert!(detail.regions.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let library = r"\Windows\System32\ntdll.dll";
        assert!(detail.regions.iter().any(|region| region.name == library && region.protection == "rwxcs"));
        assert!(
            detail.modules.iter().any(|module| module.name == "ntdll.dll"),
            "the tree of regions has it in any case"
        );
        assert_eq!(detail.threads[0].name, format!("{}+0x1000", whole(&process.name)));
        missing += detail.missing.len();
        if detail.missing.is_empty() {
            complete += 1;
            assert!(detail.command_line.expect("there").contains(&process.name[..4]));
            assert_eq!(detail.modules[1].name, "ntdll.dll");
        }
    }
    assert!(missing > 0, "some pages are paged out");
    assert!(complete > 0, "some processes are all there");
}

#[test]
fn the_kernels_modules_are_those_of_the_system_process() {
    let guest = Guest::new(SimOptions::default());
    let detail = detail_of(&guest, "System");
    let names: Vec<&str> = detail.modules.iter().map(|module| module.name.as_str()).collect();
    assert_eq!(names[..2], ["ntoskrnl.exe", "hal.dll"]);
    assert!(names.contains(&"tcpip.sys"));
    assert_eq!(detail.modules[0].base, VmiOs::<SimDriver>::kernel_image_base(&guest.os));
    assert_eq!(detail.modules[0].size, 0x104_6000);
    for module in &detail.modules {
        assert_eq!(guest.core.read_u16((module.base, guest.kernel_root())).expect("mapped"), 0x5a4d, "{module:?}");
    }
}

#[test]
fn handles_lead_to_what_they_are() {
    let guest = Guest::new(SimOptions::default());
    let lsass = detail_of(&guest, "lsass.exe");
    let text = |what: &str| {
        let found = lsass.handles.iter().find(|(_, text)| text.starts_with(what));
        found.map_or_else(|| panic!("no {what}: {:?}", lsass.handles), |(_, text)| text.as_str())
    };
    assert_eq!(lsass.handles[0], (4, r"Directory \KnownDlls".to_owned()));
    assert_eq!(lsass.handles[1], (8, "Event".to_owned()));
    assert_eq!(text("Key"), r"Key \REGISTRY\MACHINE\SYSTEM\ControlSet001\Control\Session Manager");
    assert_eq!(text("File"), r"File \Device\HarddiskVolume2\Windows\System32");
    assert_eq!(text("Section"), r"Section \BaseNamedObjects\__ComCatalogCache__");
    let pid = lsass.process.pid;
    let named = format!(r"Mutant \Sessions\1\BaseNamedObjects\SM0:{pid}:304:WilStaging_02");
    assert_eq!(text("Mutant"), named);
    assert_eq!(text("Process"), format!("Process {} wininit.exe", lsass.process.ppid));
    assert_eq!(text("Thread"), format!("Thread {} of {pid}", lsass.threads[0].tid));
    assert_eq!(text("Token"), "Token of S-1-5-18 SYSTEM");
    let system = detail_of(&guest, "System");
    assert!(system.handles.iter().any(|(_, text)| text == r"File \Device\HarddiskVolume2\pagefile.sys"));
    // More than a page of entries: a level of pointers above them.
    let explorer = detail_of(&guest, "explorer.exe");
    let last = explorer.handles.last().expect("has some");
    assert_eq!((last.0, last.1.as_str()), (299 * 4, "Event"));
    assert!(explorer.handles.len() > 44);
}

#[test]
fn a_file_that_a_program_opens_is_in_its_table_until_it_is_closed() {
    let guest = Guest::new(SimOptions::default());
    guest.hide_breakpoint("nt!NtReadFile");
    let read = guest.symbol("nt!NtReadFile");
    let mut hits = 0;
    guest.run(Duration::from_secs(1), |event| {
        if event.reason().as_software_breakpoint().is_some() && event.registers().gp.rip == read.0 {
            let state = guest.session().with_registers(event.registers());
            let current = guest.os.current_process(state).expect("readable").expect("running");
            let handle = guest.os.function_argument(state, 0).expect("a register");
            let process = Process { pid: current.pid, object: current.object, ..Process::default() };
            let open =
                detail(&guest, &process).handles.into_iter().filter(|(_, text)| text.contains("\\ProgramData\\"));
            let open: Vec<_> = open.collect();
            let [(number, text)] = open.as_slice() else { panic!("one, the others are closed: {open:?}") };
            assert_eq!(*number, handle);
            assert!(text.ends_with(&format!("state-{}.dat", current.pid)), "{text}");
            hits += 1;
        } else if event.reason().as_software_breakpoint().is_some() {
            return VmiEventResponse::reinject_interrupt();
        }
        VmiEventResponse::fast_singlestep(guest.core.default_view())
    });
    assert!(hits > 50, "{hits} reads");
}

#[test]
fn tokens_say_who_a_process_acts_as() {
    let guest = Guest::new(SimOptions::default());
    let system = detail_of(&guest, "lsass.exe");
    assert_eq!(credential(&system, "user"), "S-1-5-18 SYSTEM");
    assert_eq!((credential(&system, "session"), credential(&system, "integrity")), ("0", "system"));
    assert_eq!(credential(&system, "elevation"), "full");
    assert!(credential(&system, "privileges").contains("SeTcb, "));
    assert!(credential(&system, "disabled").contains("SeLoadDriver"));
    let person = detail_of(&guest, "notepad.exe");
    assert_eq!(credential(&person, "user"), "S-1-5-21-3623811015-3361044348-30300820-1001");
    assert_eq!((credential(&person, "session"), credential(&person, "integrity")), ("1", "medium"));
    assert_eq!(credential(&person, "elevation"), "limited");
    assert!(credential(&person, "groups").contains("S-1-5-32-544 Administrators (deny only)"));
    assert_eq!(credential(&person, "privileges"), "SeChangeNotify");
    let elevated = detail_of(&guest, "cmd.exe");
    assert_eq!((credential(&elevated, "elevation"), credential(&elevated, "integrity")), ("full", "high"));
    assert!(credential(&elevated, "privileges").starts_with("SeDebug"));
}

#[test]
fn a_32_bit_process_has_modules_of_both_kinds() {
    let guest = Guest::new(SimOptions::default());
    let detail = detail_of(&guest, "OneDrive.exe");
    assert!(detail.process.flags.contains(&ProcessFlag::Wow64));
    let low: Vec<_> = detail.modules.iter().filter(|module| module.base.0 < 1 << 32).collect();
    assert_eq!(low.len(), 2, "{:?}", detail.modules);
    assert_eq!((low[0].name.as_str(), low[0].base, low[0].size), ("ntdll.dll", Va(0x77a0_0000), 0x1a_4000));
    assert_eq!(low[1].name, "kernel32.dll");
    let high = detail.modules.iter().filter(|module| module.base.0 >= 1 << 32).map(|module| module.name.as_str());
    assert_eq!(high.collect::<BTreeSet<_>>(), BTreeSet::from(["OneDrive.exe", "ntdll.dll"]));
    let library = r"\Windows\SysWOW64\ntdll.dll";
    assert!(detail.regions.iter().any(|region| region.name == library && region.start == Va(0x77a0_0000)));
}
