//! Guest memory that lies: lists that bite their tails, lengths and trees without an end, tables that are not there.

use std::time::Duration;

use indexmap::IndexSet;
use vmscope::engine::{
    addr::{Pa, Va, VcpuId},
    driver::{
        VmiQueryRegisters,
        sim::{SimOptions, SimProcess},
    },
    event::VmiEventResponse,
    os::{
        ProcessList, VmiOs,
        windows::{Profile, WindowsOs},
    },
    session::{VmiCore, VmiProber},
    snapshot::{ProcessDetail, ProcessFlag},
};

use crate::Guest;

const LINKS: u64 = 0x448;
const NAME: u64 = 0x5a8;
const THREADS: u64 = 0x5e0;
const VAD_ROOT: u64 = 0x7d8;

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
