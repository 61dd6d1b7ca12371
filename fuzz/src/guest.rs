//! A whole small Linux guest whose memory is changed anywhere: the layer must find something or say that it did not,
//! every list ends, and nothing unprintable comes out.

use vmscope::engine::{
    addr::Va,
    os::{VmiOs, linux::LinuxOs},
    session::{VmiProber, VmiSession},
};

use crate::{
    is_printable,
    reader::Reader,
    support::{
        FlatDriver,
        linux::{Form, Machine, Options, Spawn},
    },
};

/// Changes of one input: enough for a chain of lies, few enough that most of the kernel stays.
const MOST_CHANGES: usize = 24;

fn machine(flags: u8) -> Machine {
    let form = Form::ALL[usize::from(flags >> 2) % Form::ALL.len()];
    let machine = Machine::new(Options { levels: 4 + (flags & 1), isolated: flags & 2 != 0, form, btf: true });
    let spawn = |pid, name, arguments| machine.spawn(Spawn { pid, name, arguments });
    let init = spawn(1, "init", Some("/sbin/init --quiet"));
    spawn(2, "kthreadd", None);
    let shell = spawn(7, "sh", Some("sh"));
    machine.add_thread(shell, 8, "worker");
    let file = machine.file(&["bin", "sh"]);
    machine.open(init, &[file, Va(0), file]);
    machine.set_regions(init, &[(0x40_0000, 0x40_2000, 5, file), (0x60_0000, 0x60_1000, 3, Va(0))]);
    machine.load_module("veth", Va(0xffff_ffff_c000_0000), 0x4000);
    machine.set_current(1, init);
    machine.enqueue(0, shell);
    machine
}

/// See the module.
pub fn linux_guest(data: &[u8]) {
    let mut reader = Reader(data);
    let flags = reader.u8();
    let machine = machine(flags);
    let driver = machine.core.driver();
    driver.set_direct(flags & 0x40 == 0);
    let late = flags & 0x80 != 0;
    let change = |reader: &mut Reader<'_>| {
        let areas = machine.used();
        for _ in 0..MOST_CHANGES {
            if reader.is_empty() {
                break;
            }
            let (area, at, kind) = (reader.u8(), reader.u32(), reader.u8());
            let (from, to) = areas[usize::from(area) % areas.len()];
            let at = from + u64::from(at) % (to - from - 8);
            let value = match kind {
                // A pointer to somewhere else in the kernel's heap or data.
                0..128 => {
                    let (from, to) = areas[usize::from(kind) % areas.len()];
                    (machine.direct + from + u64::from(reader.u32()) % (to - from)).0
                }
                _ => reader.u64(),
            };
            match kind % 4 {
                0 => driver.poke(at, &value.to_le_bytes()[..4]),
                1 => driver.poke(at, &value.to_le_bytes()[..1]),
                // Pointers are aligned.
                _ => driver.poke64(at & !7, value),
            }
        }
    };
    if !late {
        change(&mut reader);
    }
    let registers = machine.registers(flags & 0x20 != 0);
    let os = match LinuxOs::detect(&machine.core, &registers, None) {
        Ok(os) => os,
        Err(error) => return assert!(is_printable(&error.to_string()), "{error:?}"),
    };
    change(&mut reader);
    assert!(is_printable(VmiOs::<FlatDriver>::version(&os)));
    let vmi = VmiSession::new(&machine.core, &os);
    if let Ok(modules) = os.kernel_modules(&machine.core) {
        assert!(modules.iter().all(|module| is_printable(&module.name)));
    }
    if let Ok(Some(current)) = os.current_process(vmi.with_registers(&registers)) {
        assert!(is_printable(&current.name));
    }
    let Ok(list) = os.processes(vmi) else { return };
    // Memory for more tasks than this does not exist.
    assert!(list.processes.len() < 0x1_0000);
    for process in list.processes.iter().take(8) {
        assert!(is_printable(&process.name), "{process:?}");
        assert!(process.root.is_none_or(|root| root.0 & 0xfff == 0), "{process:?}");
        let prober = VmiProber::new(&Default::default());
        if let Ok(detail) = os.process_detail(vmi, process, &prober) {
            let lines = format!("{detail:?}");
            assert!(is_printable(&lines), "{lines}");
        }
    }
}

/// Samples.
pub mod samples {
    /// The guest as it is, and with a lie or two.
    pub fn linux_guest() -> Vec<Vec<u8>> {
        let mut samples: Vec<Vec<u8>> = (0..=23).map(|flags| vec![flags]).collect();
        let change = |area: u8, at: u32, kind: u8, value: u32| {
            let mut out = vec![area];
            out.extend(at.to_le_bytes());
            out.push(kind);
            out.extend(value.to_le_bytes());
            out
        };
        for flags in [0x08, 0x88, 0xc9, 0xa8] {
            for at in (0..0x2000u32).step_by(0x188) {
                let mut sample = vec![flags];
                sample.extend(change(2, at, 6, at * 3));
                sample.extend(change(2, at + 8, 14, at));
                samples.push(sample);
            }
        }
        samples
    }
}
