//! Guest memory that lies: lists that bite their tails, lengths and trees without an end, tables that are not there.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use indexmap::IndexSet;
use proptest::{prelude::*, test_runner::TestRunner};
use vmscope::engine::{
    addr::{Pa, Va, VcpuId},
    arch::amd64::Amd64,
    driver::{
        VmiDriver, VmiInfo, VmiQueryRegisters, VmiRead,
        sim::{SimDriver, SimOptions, SimProcess},
    },
    error::VmiError,
    event::VmiEventResponse,
    os::{
        ProcessList, VmiOs,
        windows::{Profile, WindowsOs},
    },
    session::{Limits, VmiCore, VmiProber, VmiSession},
    snapshot::{Capability, Process, ProcessDetail, ProcessFlag, Unavailable},
};

use crate::Guest;

const PID: u64 = 0x440;
const LINKS: u64 = 0x448;
const CREATE_TIME: u64 = 0x468;
const NAME: u64 = 0x5a8;
const THREADS: u64 = 0x5e0;
const VAD_ROOT: u64 = 0x7d8;
const TOKEN: u64 = 0x4b8;
const OBJECT_TABLE: u64 = 0x570;
/// Of a `_HANDLE_TABLE`.
const TABLE_CODE: u64 = 8;

fn guest() -> Guest {
    let guest = Guest::new(SimOptions::default());
    guest.run(Duration::from_millis(100), |_| VmiEventResponse::default());
    guest
}

fn write(guest: &Guest, va: Va, bytes: &[u8]) {
    guest.core.write((va, guest.kernel_root()), bytes).expect("mapped");
}

fn write_u64(guest: &Guest, va: Va, value: u64) {
    write(guest, va, &value.to_le_bytes());
}

fn list(guest: &Guest) -> ProcessList {
    guest.core.flush_v2p_cache();
    guest.os.processes(guest.session()).expect("the head can be read")
}

fn process(guest: &Guest, name: &str) -> SimProcess {
    guest.driver().processes().into_iter().find(|process| process.name == name).expect("runs")
}

fn detail(guest: &Guest, pid: u32) -> ProcessDetail {
    let row = list(guest).processes.into_iter().find(|row| row.pid == pid).expect("listed");
    guest.os.process_detail(guest.session(), &row, &VmiProber::new(&IndexSet::new())).expect("readable")
}

/// The same by the object: a hidden one may be on no list.
fn detail_of(guest: &Guest, object: Va) -> ProcessDetail {
    guest.core.flush_v2p_cache();
    let row = Process { object, ..Process::default() };
    guest.os.process_detail(guest.session(), &row, &VmiProber::new(&IndexSet::new())).expect("readable")
}

#[test]
fn a_list_that_bites_its_tail_is_cut() {
    let guest = guest();
    let (first, second) = (process(&guest, "smss.exe").object, process(&guest, "lsass.exe").object);
    write_u64(&guest, second + LINKS, (first + LINKS).0);
    let list = list(&guest);
    assert!(list.truncated);
    assert!(list.processes.len() < 20);
    assert!(list.processes.iter().all(|process| !process.flags.contains(&ProcessFlag::Hidden)));
}

#[test]
fn a_list_that_leads_nowhere_is_cut() {
    let guest = guest();
    let object = process(&guest, "lsass.exe").object;
    for wild in [0, 0x1000, 0xffff_ffff_ffff_f000, u64::MAX, 0x8000_0000_0000_0000] {
        write_u64(&guest, object + LINKS, wild);
        let list = list(&guest);
        assert!(list.truncated, "{wild:#x}");
        assert!(list.processes.iter().any(|process| process.name == "lsass.exe"));
    }
}

#[test]
fn a_name_cannot_drive_the_terminal() {
    let guest = guest();
    let object = process(&guest, "notepad.exe");
    write(&guest, object.object + NAME, b"\x1b[31m\x07\xff\xfe12345678");
    let row = list(&guest).processes.into_iter().find(|row| row.pid == object.pid).expect("listed");
    assert!(row.name.starts_with("␛[31m␇\u{fffd}"), "{}", row.name);
    assert!(row.name.chars().all(|c| !c.is_control()));
}

#[test]
fn a_table_of_ids_that_is_not_one_hides_nothing_and_breaks_nothing() {
    let guest = guest();
    let table = guest.core.read_u64((guest.symbol("nt!PspCidTable"), guest.kernel_root())).expect("mapped");
    for code in [0, 1, 2, 3, u64::MAX, guest.symbol("nt!NtCreateFile").0 | 2, table | 2] {
        write_u64(&guest, Va(table) + 8, code);
        let list = list(&guest);
        assert!(!list.truncated && list.processes.len() >= 39, "{code:#x}");
    }
}

#[test]
fn threads_and_regions_without_an_end_are_cut() {
    let guest = guest();
    let process = process(&guest, "explorer.exe");
    let kernel = |va: Va| guest.core.read_u64((va, guest.kernel_root())).expect("mapped");
    let thread = Va(kernel(process.object + THREADS));
    write_u64(&guest, thread, thread.0);
    let root = Va(kernel(process.object + VAD_ROOT));
    write_u64(&guest, root, root.0);
    write_u64(&guest, root + 8, root.0);
    let detail = detail(&guest, process.pid);
    assert!(detail.truncated.contains(&"threads") && detail.truncated.contains(&"regions"), "{:?}", detail.truncated);
}

#[test]
fn strings_and_modules_of_a_process_may_be_anything() {
    let guest = guest();
    let process = process(&guest, "explorer.exe");
    let peb = guest.core.read_u64((process.object + 0x550, guest.kernel_root())).expect("mapped");
    // Both pointers of the environment block into itself: lengths and links are what lies there.
    for target in [peb, 0, u64::MAX, 0xffff_8000_0000_0000, guest.kernel_root().0] {
        guest.core.write_u64((Va(peb) + 0x18, process.root), target).expect("in memory");
        guest.core.write_u64((Va(peb) + 0x20, process.root), target).expect("in memory");
        let detail = detail(&guest, process.pid);
        assert!(detail.modules.len() <= 1024);
        assert!(detail.command_line.is_none_or(|line| line.chars().count() <= 4097));
    }
}

/// The entries of the table of ids that name an object are cleared.
fn forget_id(guest: &Guest, object: Va) {
    let kernel = |va: u64| guest.core.read_u64((Va(va), guest.kernel_root())).expect("mapped");
    let top = kernel(kernel(guest.symbol("nt!PspCidTable").0) + TABLE_CODE) & !3;
    let pages = (0..512).map(|slot| kernel(top + slot * 8)).take_while(|&page| page != 0);
    let entries = pages.flat_map(|page| (0..256).map(move |index| page + index * 16));
    let named: Vec<u64> = entries.filter(|&at| (kernel(at) as i64 >> 16) as u64 & !0xf == object.0).collect();
    assert_eq!(named.len(), 1);
    write_u64(guest, Va(named[0]), 0);
}

fn unlink(guest: &Guest, links: Va) {
    let at = |va: Va| guest.core.read_u64((va, guest.kernel_root())).expect("mapped");
    let (next, before) = (at(links), at(links + 8));
    write_u64(guest, Va(before), next);
    write_u64(guest, Va(next) + 8, before);
}

fn hidden(guest: &Guest) -> Vec<String> {
    names_of_hidden(list(guest))
}

fn names_of_hidden(list: ProcessList) -> Vec<String> {
    let hidden = list.processes.into_iter().filter(|process| process.flags.contains(&ProcessFlag::Hidden));
    hidden.map(|process| process.name).collect()
}

/// What a guest does while it is looked at.
type Change = Box<dyn FnOnce(&Guest)>;

/// A guest that runs while it is looked at: it changes before the second read of what a look starts with.
struct Meanwhile {
    guest: Rc<Guest>,
    start: Pa,
    looks: Cell<usize>,
    change: RefCell<Option<Change>>,
}

impl Meanwhile {
    fn core(guest: &Rc<Guest>, start: Va, change: impl FnOnce(&Guest) + 'static) -> VmiCore<Self> {
        let start = guest.core.translate_address((start, guest.kernel_root())).expect("mapped");
        let change = RefCell::new(Some(Box::new(change) as Change));
        VmiCore::new(Self { guest: guest.clone(), start, looks: Cell::new(0), change }).expect("a machine")
    }
}

impl VmiDriver for Meanwhile {
    type Architecture = Amd64;

    fn info(&self) -> Result<VmiInfo, VmiError> {
        self.guest.driver().info()
    }

    fn capabilities(&self) -> (Vec<Capability>, Vec<Unavailable>) {
        (Vec::new(), Vec::new())
    }

    fn clock_ns(&self) -> u64 {
        self.guest.driver().clock_ns()
    }
}

impl VmiRead for Meanwhile {
    fn read_physical(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), VmiError> {
        self.looks.set(self.looks.get() + usize::from(pa == self.start));
        if self.looks.get() == 2
            && let Some(change) = self.change.take()
        {
            change(&self.guest);
        }
        self.guest.driver().read_physical(pa, buffer)
    }

    fn is_direct(&self) -> bool {
        true
    }
}

#[test]
fn a_process_that_left_list_and_ids_is_known_by_its_threads_and_by_its_cpu() {
    let guest = guest();
    assert_eq!(hidden(&guest), ["wdmaudhlp.exe"], "the guest's own rootkit");
    let process = process(&guest, "explorer.exe");
    unlink(&guest, process.object + LINKS);
    assert_eq!(hidden(&guest), ["explorer.exe", "wdmaudhlp.exe"]);
    forget_id(&guest, process.object);
    assert_eq!(hidden(&guest), ["wdmaudhlp.exe", "explorer.exe"], "its threads have ids");
    for thread in detail_of(&guest, process.object).threads {
        forget_id(&guest, thread.object);
    }
    assert_eq!(hidden(&guest), ["wdmaudhlp.exe"], "nothing of it is anywhere");
    guest.hide_breakpoint("nt!NtCreateFile");
    let found = guest.run_until(|event| {
        let runs = event.registers().root() == process.root;
        (VmiEventResponse::fast_singlestep(guest.core.default_view()), runs.then(|| hidden(&guest)))
    });
    assert_eq!(found, ["wdmaudhlp.exe", "explorer.exe"], "while it runs");
}

#[test]
fn a_thread_that_left_its_process_list_is_hidden() {
    let guest = guest();
    let detail = list(&guest).processes.into_iter().map(|row| detail(&guest, row.pid)).find(|d| d.threads.len() == 2);
    let before = detail.expect("some process has two threads");
    let victim = before.threads[1].clone();
    let kernel = |va: Va| guest.core.read_u64((va, guest.kernel_root())).expect("mapped");
    let (first, second) = (kernel(before.process.object + THREADS), kernel(before.process.object + THREADS + 8));
    unlink(&guest, Va(second));
    let threads = detail_of(&guest, before.process.object).threads;
    assert_eq!((threads.len(), threads[0].object, threads[1].object), (2, before.threads[0].object, victim.object));
    assert!(!threads[0].hidden && threads[1].hidden);
    assert_eq!(list(&guest).hidden_threads, [(before.process.pid, victim.tid)]);
    assert_ne!(first, second);
    // An entry that names it under another id is none of its own.
    forget_id(&guest, victim.object);
    assert_eq!(detail_of(&guest, before.process.object).threads.len(), 1);
    assert!(list(&guest).hidden_threads.is_empty());
}

#[test]
fn what_is_another_process_at_the_second_look_hides_from_nobody() {
    let guest = Rc::new(guest());
    let (listed, rootkit) = (process(&guest, "explorer.exe").object, process(&guest, "wdmaudhlp.exe").object);
    forget_id(&guest, listed);
    let found = |at: Va, value: u64| {
        let change = move |guest: &Guest| write_u64(guest, at, value);
        let core = Meanwhile::core(&guest, guest.symbol("nt!PsActiveProcessHead"), change);
        let list = guest.os.processes(VmiSession::new(&core, &guest.os)).expect("the head can be read");
        assert!(core.driver().change.borrow().is_none(), "it was looked at twice");
        assert!(list.processes.iter().any(|process| process.object == listed), "it stays listed");
        names_of_hidden(list)
    };
    let kernel = |va: Va| guest.core.read_u64((va, guest.kernel_root())).expect("mapped");
    let later = |object: Va| kernel(object + CREATE_TIME) + 10_000;
    assert_eq!(found(listed + PID, kernel(listed + PID)), ["explorer.exe", "wdmaudhlp.exe"], "nothing changed");
    assert_eq!(found(listed + CREATE_TIME, later(listed)), ["wdmaudhlp.exe"], "without an id, and younger");
    assert_eq!(found(listed + PID, 40_000), ["wdmaudhlp.exe"], "without an id, and of another one before");
    assert_eq!(found(rootkit + CREATE_TIME, later(rootkit)), ["explorer.exe"], "on no list, and younger");
}

#[test]
fn what_is_another_thread_at_the_second_look_hides_from_nobody() {
    let guest = Rc::new(guest());
    let details = list(&guest).processes.into_iter().map(|row| detail(&guest, row.pid));
    let before = details.into_iter().find(|detail| detail.threads.len() == 2).expect("some process has two threads");
    let (object, victim) = (before.process.object, before.threads[1].clone());
    let kernel = |va: Va| guest.core.read_u64((va, guest.kernel_root())).expect("mapped");
    let links = Va(kernel(object + THREADS + 8));
    unlink(&guest, links);
    let found = |change: Change| {
        let core = Meanwhile::core(&guest, object + THREADS, change);
        let session = VmiSession::new(&core, &guest.os);
        let detail = guest.os.process_detail(session, &before.process, &VmiProber::new(&IndexSet::new()));
        let threads = detail.expect("readable").threads;
        assert!(core.driver().change.borrow().is_none(), "it was looked at twice");
        threads.into_iter().map(|thread| (thread.tid, thread.hidden)).collect::<Vec<_>>()
    };
    let first = (before.threads[0].tid, false);
    assert_eq!(found(Box::new(|_| ())), [first, (victim.tid, true)], "nothing changed");
    // It was on its way into the list.
    let head = object + THREADS;
    let link_again = move |guest: &Guest| {
        let last = guest.core.read_u64((head + 8, guest.kernel_root())).expect("mapped");
        [(links, head.0), (links + 8, last), (Va(last), links.0), (head + 8, links.0)]
            .into_iter()
            .for_each(|(at, to)| write_u64(guest, at, to));
    };
    assert_eq!(found(Box::new(link_again)), [first, (victim.tid, false)]);
}

#[test]
fn a_table_of_ids_that_was_not_read_to_its_end_hides_nobody() {
    let guest = guest();
    let kernel = |va: Va| guest.core.read_u64((va, guest.kernel_root())).expect("mapped");
    let table = Va(kernel(guest.symbol("nt!PspCidTable")));
    // Two pages of entries, of which one is nowhere, and the other empty: all that are listed have no id that was seen.
    let base = VmiOs::<SimDriver>::kernel_image_base(&guest.os);
    let (middle, empty) = (base + 0x103_0000, base + 0x103_1000);
    assert!([middle, empty].iter().all(|va| kernel(*va) == 0 && kernel(*va + 8) == 0));
    write_u64(&guest, middle, empty.0);
    write_u64(&guest, middle + 8, 0xffff_ffff_ffff_f000);
    write_u64(&guest, table + TABLE_CODE, middle.0 | 1);
    let list = list(&guest);
    assert!(list.processes.len() >= 39);
    assert!(list.processes.iter().all(|process| !process.flags.contains(&ProcessFlag::Hidden)));
}

#[test]
fn a_look_that_is_cut_shows_what_it_has_and_hides_nobody() {
    let guest = guest();
    let whole = list(&guest);
    let object = process(&guest, "lsass.exe").object;
    let mut cuts = 0;
    for reads in (20..6000).step_by(37) {
        let limits = Limits { reads, kept: usize::MAX, time: Duration::MAX, time_if_awaited: Duration::MAX };
        guest.core.begin_round(limits);
        let Ok(list) = guest.os.processes(guest.session()) else { continue };
        assert_eq!(list.truncated, guest.core.cut().is_some(), "{reads}");
        cuts += usize::from(list.truncated);
        assert!(whole.processes.starts_with(&list.processes), "{reads}");
        assert_eq!(list.hidden_threads, []);
        guest.core.begin_round(limits);
        let detail = detail_of(&guest, object);
        assert!(guest.core.cut().is_none() || !detail.truncated.is_empty(), "{reads}: {:?}", detail.truncated);
        assert!(detail.threads.iter().all(|thread| !thread.hidden), "{reads}");
    }
    assert!(cuts > 10, "{cuts}");
    guest.core.begin_round(None);
}

#[test]
fn tables_of_handles_of_every_level_are_read_and_endless_ones_are_cut() {
    let guest = guest();
    let process = process(&guest, "lsass.exe");
    let kernel = |va: Va| guest.core.read_u64((va, guest.kernel_root())).expect("mapped");
    let table = Va(kernel(process.object + OBJECT_TABLE));
    let page = kernel(table + TABLE_CODE);
    let handles = || detail_of(&guest, process.object).handles;
    let truncated = || detail_of(&guest, process.object).truncated.contains(&"handles");
    let before = handles();
    assert!(page & 3 == 0 && before.len() > 5 && !truncated());

    // Three pages of the kernel's image that nothing uses hold the levels.
    let base = VmiOs::<SimDriver>::kernel_image_base(&guest.os);
    let free = |number: u64| base + 0x103_0000 + number * 0x1000;
    let (top, middle, empty) = (free(0), free(1), free(2));
    assert!([top, middle, empty].iter().all(|va| kernel(*va) == 0 && kernel(*va + 8) == 0));
    write_u64(&guest, middle, empty.0);
    write_u64(&guest, middle + 8, page);
    write_u64(&guest, table + TABLE_CODE, middle.0 | 1);
    let shifted: Vec<_> = before.iter().map(|(handle, text)| (handle + 1024, text.clone())).collect();
    assert_eq!((handles(), truncated()), (shifted.clone(), false));
    write_u64(&guest, top, middle.0);
    write_u64(&guest, table + TABLE_CODE, top.0 | 2);
    assert_eq!((handles(), truncated()), (shifted, false));

    // Levels that lead to themselves, to user memory, to nothing; a kind of table that does not exist.
    for (at, value) in [(top, top.0 | 2), (top, top.0), (middle, top.0), (middle, 0x1000), (middle, u64::MAX - 4095)] {
        write_u64(&guest, at, value);
        assert!(handles().len() <= 4096);
        assert!(truncated(), "{at}: {value:#x}");
    }
    write_u64(&guest, table + TABLE_CODE, page | 3);
    assert!(handles().is_empty() && truncated());
    for code in [0, 1, 2, u64::MAX, 0xffff_8000_0000_0001] {
        write_u64(&guest, table + TABLE_CODE, code);
        assert!(handles().is_empty(), "{code:#x}");
    }
}

#[test]
fn headers_names_and_types_may_lead_anywhere() {
    let guest = guest();
    let process = process(&guest, "lsass.exe");
    let kernel = |va: Va| guest.core.read_u64((va, guest.kernel_root())).expect("mapped");
    let entry = Va(kernel(Va(kernel(process.object + OBJECT_TABLE)) + TABLE_CODE)) + 16;
    let header = Va((kernel(entry) as i64 >> 16) as u64 & !0xf);
    let first = || detail_of(&guest, process.object).handles.remove(0).1;
    assert_eq!(first(), r"Directory \KnownDlls");
    // A directory that lies in itself, a name without an end, a name in escape sequences.
    write_u64(&guest, header - 0x40, (header + 0x30).0);
    let text = first();
    assert!(text.starts_with(r"Directory …\KnownDlls") && text.chars().count() <= 1025, "{text}");
    write(&guest, header - 0x38, &[0xff, 0xff, 0xff, 0xff]);
    assert!(first().chars().count() <= 1025);
    write_u64(&guest, header - 0x30, header.0);
    assert!(first().chars().all(|c| !c.is_control()));
    // Every type that an index can name.
    for index in 0..=255u8 {
        write(&guest, header + 0x18, &[index]);
        assert!(first().chars().count() <= 1025);
    }
}

#[test]
fn tokens_without_an_end_are_cut() {
    let guest = guest();
    let process = process(&guest, "lsass.exe");
    let kernel = |va: Va| guest.core.read_u64((va, guest.kernel_root())).expect("mapped");
    let token = Va(kernel(process.object + TOKEN) & !0xf);
    let groups = Va(kernel(token + 0x98));
    let sid = Va(kernel(groups));
    write(&guest, sid + 1, &[0xff]);
    let user = detail_of(&guest, process.object).credentials.remove(0).1;
    assert_eq!(user.matches('-').count(), 2 + 15, "{user}");
    // As many groups as can be said: what lies behind the array are no ids.
    write(&guest, token + 0x7c, &u32::MAX.to_le_bytes());
    let detail = detail_of(&guest, process.object);
    assert!(detail.credentials.is_empty() || detail.truncated.contains(&"credentials"));
    for wild in [0, 7, 0x1000, u64::MAX, 0xffff_8000_0000_0000] {
        write_u64(&guest, process.object + TOKEN, wild);
        assert!(detail_of(&guest, process.object).credentials.is_empty(), "{wild:#x}");
    }
}

/// Whatever is written over what the layer reads of a process, it answers, and within its bounds.
#[test]
fn damaged_objects_never_panic() {
    let guest = guest();
    let system = process(&guest, "System");
    let victims = ["lsass.exe", "explorer.exe", "OneDrive.exe"].map(|name| process(&guest, name));
    let kernel = |va: Va| guest.core.read_u64((va, guest.kernel_root())).expect("mapped");
    let mut targets: Vec<(Va, u64)> = Vec::new();
    for victim in &victims {
        targets.push((victim.object - 0x80, 0x4000));
        targets.push((Va(kernel(victim.object + OBJECT_TABLE)), 0x80));
    }
    targets.push((Va(kernel(guest.symbol("nt!PsLoadedModuleList"))), 0xa0));
    targets.push((guest.symbol("nt!ObTypeIndexTable"), 0x800));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: ProptestConfig::default().cases.max(3200) / 8,
        failure_persistence: None,
        ..Default::default()
    });
    let writes = (
        0..targets.len(),
        any::<prop::sample::Index>(),
        prop_oneof![
            any::<u64>(),
            Just(0),
            Just(u64::MAX),
            (0..4u64).prop_map(move |n| (system.object - 0x80).0 + n * 8),
        ],
    );
    let told = |object: Va| {
        let row = Process { pid: 1, root: Some(victims[0].root), object, ..Process::default() };
        guest.os.process_detail(guest.session(), &row, &VmiProber::new(&IndexSet::new()))
    };
    let outcome = runner.run(&writes, |(target, at, value)| {
        let (from, bytes) = targets[target];
        write_u64(&guest, from + (at.index(bytes as usize) as u64 & !7), value);
        guest.core.flush_v2p_cache();
        let list = guest.os.processes(guest.session()).expect("the head is as it was");
        prop_assert!(list.processes.len() < 200);
        for object in victims.iter().map(|victim| victim.object).chain([system.object]) {
            let Ok(detail) = told(object) else { continue };
            prop_assert!(detail.handles.len() <= 4096 && detail.threads.len() <= 4096 && detail.modules.len() <= 4096);
            let handles = detail.handles.iter().map(|(_, text)| text);
            let mut texts = handles.chain(detail.credentials.iter().map(|(_, text)| text));
            prop_assert!(texts.all(|text| text.chars().all(|c| !c.is_control())));
        }
        Ok(())
    });
    outcome.expect("answers");
}

#[test]
fn what_is_not_a_windows_is_said_in_a_sentence() {
    let guest = guest();
    let mut registers = guest.driver().registers(VcpuId(0)).expect("a vCPU");
    let detect = |registers: &_, profile| {
        let core: &VmiCore<_> = &guest.core;
        WindowsOs::detect(core, registers, profile).map(|_| ()).expect_err("not this").to_string()
    };
    let profile = || Profile::builtin().expect("compiled in");
    // Without LSTAR the interrupt table leads to the kernel as well.
    registers.lstar = 0;
    assert!(WindowsOs::detect(&guest.core, &registers, profile()).is_ok());
    let mut other = profile();
    other.build = 26100;
    let message = detect(&registers, other);
    assert!(message.contains("26100") && message.contains("build 19041") && message.contains("--profile"), "{message}");
    registers.lstar = 0x7fff_0000_0000;
    assert!(detect(&registers, profile()).contains("no kernel is running yet"));
    registers.lstar = process(&guest, "System").object.0;
    assert!(detect(&registers, profile()).contains("is the guest a 64-bit Windows?"));
    registers.efer = 0;
    assert!(detect(&registers, profile()).contains("64-bit mode"));
    registers = guest.driver().registers(VcpuId(0)).expect("a vCPU");
    registers.cr3 = Pa(0).0;
    assert!(!detect(&registers, profile()).is_empty());
}
