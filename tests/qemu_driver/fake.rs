//! A peer that behaves as QEMU does on its two sockets, with a machine that follows a script.
//!
//! What it models is what the driver has to cope with: a byte sent to the stub of a running guest stops it and is lost;
//! a vCPU at a breakpoint hits it again when it goes on; a stop names one vCPU of several; stops come unasked.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Write},
    os::unix::{
        fs::FileExt,
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, RwLock},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use vmscope::engine::{
    driver::qemu::{QemuDriver, QemuOptions, descriptor},
    error::VmiError,
};

use crate::devices::Devices;

/// Where the tests' breakpoint is, in guest-virtual and in guest-physical memory.
pub const BREAKPOINT: u64 = 0xffff_ffff_8100_0010;
pub const BREAKPOINT_PA: u64 = 0x20_0010;
/// Elsewhere in the kernel.
pub const ELSEWHERE: u64 = 0xffff_ffff_8100_0800;
pub const ROOT: u64 = 0x1000;
/// The resume flag.
const RF: u32 = 1 << 16;
const STACK: u64 = 0xffff_8880_0000_4000;
/// The interrupt table, the task state segment and the kernel's stack, in one page, and that page.
pub const TABLES: u64 = 0xffff_fe00_0000_0000;
pub const TABLES_PA: u64 = 0x8000;
pub const TASK: u64 = TABLES + 0x400;
pub const KERNEL_STACK: u64 = TABLES + 0x1000;

/// What happens when the guest goes on.
#[derive(Clone, Debug)]
pub enum Act {
    /// These vCPUs come to an address; the last one is named.
    Come(Vec<usize>, u64),
    /// A vCPU stops at an address for no reason of ours.
    Trap(usize, u64),
    /// A vCPU hits the watchpoint that covers an address.
    Watch(usize, u64),
    /// Somebody else sets the guest running after the next stop was answered this many times (`g` packets).
    ContinueAfterReads(usize),
}

pub struct Machine {
    pub running: bool,
    pub status: &'static str,
    pub rip: [u64; 2],
    pub rax: [u64; 2],
    pub rsp: [u64; 2],
    /// CS, SS and CR2.
    pub segments: [(u32, u32); 2],
    pub cr2: [u64; 2],
    pub rflags: [u32; 2],
    pub points: Vec<String>,
    /// Every packet and every command that changes something, in order.
    pub log: Vec<String>,
    pub script: VecDeque<Act>,
    /// Steps that stop before their instruction.
    pub sticky_steps: usize,
    /// Steps that fault: the vCPU comes to a handler and the instruction comes again.
    pub faulting_steps: usize,
    pub stub_is_taken: bool,
    /// What packets begin with that are taken, and never answered.
    pub swallows: Option<&'static str>,
    pub silent: bool,
    /// The stub describes its registers in parts that never come to an end, each after a while.
    pub endless: bool,
    pub architecture: &'static str,
    /// KVM: four debug registers, INT3 in memory, and no way past a breakpoint but RF or without it.
    pub kvm: bool,
    /// Whether RF lets a vCPU past a breakpoint in a debug register.
    pub honours_rf: bool,
    /// What `z0` has QEMU do: nothing, though it says `OK`.
    pub forgets_int3: bool,
    /// What `Z0` has QEMU do: write this far from where it should.
    pub misses_by: u64,
    /// Whether nothing maps the kernel's image any more.
    pub unmapped: bool,
    /// The instruction at the breakpoint is a jump to itself.
    pub jumps_to_itself: bool,
    /// vCPUs at a breakpoint do not come to run.
    pub stands_still: bool,
    /// CR3.
    pub root: [u64; 2],
    /// vCPUs that are plugged in, of the two that there can be.
    pub vcpus: usize,
    continue_after: Option<usize>,
    /// What an exception has pushed: error code, rip, cs, flags, rsp, ss.
    frame: [u64; 6],
    gdb: Option<UnixStream>,
    /// Where the stub listens.
    pub gdb_address: Option<String>,
    /// Descriptors and character devices that it was given; `None` is a QEMU that takes none.
    pub devices: Option<Devices>,
    qmp: Vec<UnixStream>,
    selected: usize,
    aimed: usize,
    unanswered: bool,
    saved: std::collections::BTreeMap<u64, u8>,
    physical: bool,
    memory: File,
}

pub struct Fake {
    pub folder: tempfile::TempDir,
    pub machine: Arc<Mutex<Machine>>,
    pub changed: Arc<Condvar>,
}

/// All fakes are the same process, and so the same guest to a session that looks for what a dead one has left: the test
/// of that writes, all others read.
pub static ATTACHING: RwLock<()> = RwLock::new(());

pub fn attach(options: QemuOptions) -> Result<QemuDriver, VmiError> {
    let _guard = ATTACHING.read();
    QemuDriver::attach(options)
}

type Shared = (Arc<Mutex<Machine>>, Arc<Condvar>);

impl Fake {
    /// A guest that runs, with two vCPUs and 4 MiB of memory around a hole.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ram");
        let memory = File::options().read(true).write(true).create(true).truncate(true).open(path).expect("a file");
        memory.set_len(4 << 20).expect("room");
        // One large page maps the kernel: PML4[511] → PDPT[510] → PD[8].
        for (at, entry) in [(ROOT + 511 * 8, 0x2003u64), (0x2000 + 510 * 8, 0x3003), (0x3000 + 8 * 8, 0x20_0083)] {
            memory.write_at(&entry.to_le_bytes(), at).expect("room");
        }
        // PML4[508] → PDPT[0] → PD[0] → PT[0]; a page-fault gate to ELSEWHERE, and RSP0.
        for (at, entry) in [(ROOT + 508 * 8, 0x4003), (0x4000, 0x5003), (0x5000, 0x6003), (0x6000, TABLES_PA | 3)] {
            memory.write_at(&u64::to_le_bytes(entry), at).expect("room");
        }
        let gate = [0x8100_8e00_0010_0800, 0xffff_ffff, 0, 0].map(u64::to_le_bytes).concat();
        memory.write_at(&gate, TABLES_PA + 14 * 16).expect("room");
        memory.write_at(&KERNEL_STACK.to_le_bytes(), TABLES_PA + (TASK - TABLES) + 4).expect("room");
        let machine = Machine {
            running: true,
            status: "running",
            rip: [ELSEWHERE; 2],
            rax: [0; 2],
            rsp: [STACK; 2],
            segments: [(0x10, 0x18); 2],
            cr2: [0; 2],
            rflags: [0x246; 2],
            points: Vec::new(),
            log: Vec::new(),
            script: VecDeque::new(),
            sticky_steps: 0,
            faulting_steps: 0,
            stub_is_taken: false,
            swallows: None,
            silent: false,
            endless: false,
            architecture: "x86_64",
            kvm: false,
            honours_rf: true,
            forgets_int3: false,
            misses_by: 0,
            unmapped: false,
            jumps_to_itself: false,
            stands_still: false,
            root: [ROOT; 2],
            vcpus: 2,
            continue_after: None,
            frame: [0; 6],
            gdb: None,
            gdb_address: None,
            devices: None,
            qmp: Vec::new(),
            selected: 0,
            aimed: 0,
            unanswered: false,
            saved: std::collections::BTreeMap::new(),
            physical: false,
            memory,
        };
        let fake = Self { folder, machine: Arc::new(Mutex::new(machine)), changed: Arc::new(Condvar::new()) };
        let listener = UnixListener::bind(fake.path("qmp")).expect("a socket");
        let shared = fake.shared();
        thread::spawn(move || {
            // QEMU serves one client at a time.
            for stream in listener.incoming().flatten() {
                serve_qmp(&shared, stream);
            }
        });
        fake
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn options(&self) -> QemuOptions {
        QemuOptions {
            qmp: Some(format!("unix:{}", self.path("qmp").display())),
            memory: Some(self.path("ram")),
            ..QemuOptions::default()
        }
    }

    pub fn attach(&self) -> QemuDriver {
        attach(self.options()).expect("it attaches")
    }

    pub fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().expect("no panic")
    }

    /// The log so far, and forgets it.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().log)
    }

    /// Waits until something is true of the machine.
    pub fn wait_until(&self, mut is_so: impl FnMut(&Machine) -> bool) -> bool {
        let limit = Duration::from_secs(20);
        let (_guard, result) =
            self.changed.wait_timeout_while(self.lock(), limit, |machine| !is_so(machine)).expect("no panic");
        !result.timed_out()
    }

    fn shared(&self) -> Shared {
        (Arc::clone(&self.machine), Arc::clone(&self.changed))
    }
}

impl Machine {
    fn event(&mut self, name: &str) {
        let line = json!({ "event": name, "timestamp": { "seconds": 0, "microseconds": 0 } }).to_string() + "\r\n";
        self.qmp.retain_mut(|stream| stream.write_all(line.as_bytes()).is_ok());
    }

    pub fn stop(&mut self, status: &'static str) {
        if self.running {
            self.running = false;
            self.status = status;
            self.event("STOP");
        }
    }

    /// Somebody or something has made the guest stand; not every such thing is told by an event.
    pub fn stand(&mut self, status: &'static str, event: Option<&str>) {
        self.running = false;
        self.status = status;
        if let Some(event) = event {
            self.event(event);
        }
    }

    /// Somebody ends the stub; breakpoints are the machine's, and stay.
    pub fn end_stub(&mut self) {
        if let Some(gdb) = self.gdb.take() {
            let _ = gdb.shutdown(std::net::Shutdown::Both);
        }
        self.gdb_address = None;
        self.devices.iter_mut().for_each(Devices::end_stub);
    }

    /// A vCPU is unplugged, wherever it was.
    pub fn unplug(&mut self) {
        self.vcpus = 1;
        self.rip[1] = ELSEWHERE;
    }

    /// The button: every vCPU goes back to its firmware, whether it runs or not.
    pub fn reset(&mut self) {
        self.rip = [0xfff0; 2];
        self.event("RESET");
    }

    fn start(&mut self) {
        if !self.running {
            self.running = true;
            self.status = "running";
            self.event("RESUME");
        }
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, |sum, byte| sum.wrapping_add(byte));
        self.unanswered = true;
        if let Some(gdb) = &mut self.gdb {
            let _ = gdb.write_all(format!("${packet}#{sum:02x}").as_bytes());
        }
    }

    /// What `stop` by somebody else, or a byte sent while the guest runs, does.
    pub fn pause(&mut self) {
        if self.running {
            self.stop("paused");
            self.send("T02thread:p01.01;");
        }
    }

    fn trap(&mut self, vcpu: usize, more: &str) {
        self.stop("debug");
        // QEMU selects the vCPU that it reports.
        self.selected = vcpu;
        self.aimed = vcpu;
        self.send(&format!("T05thread:p01.{:02x};{more}", vcpu + 1));
    }

    fn has_breakpoint(&self, va: u64) -> bool {
        self.points.contains(&format!("0,{va:x},1")) || self.points.contains(&format!("1,{va:x},1"))
    }

    /// Whether a vCPU that is entered now is kept where it stands.
    fn is_held(&self, vcpu: usize) -> bool {
        let va = self.rip[vcpu];
        let by_register = self.points.contains(&format!("1,{va:x},1"));
        let resumes = self.honours_rf && self.rflags[vcpu] & RF != 0;
        self.points.contains(&format!("0,{va:x},1")) || (by_register && !resumes)
    }

    /// Where the kernel's image is, for a vCPU that maps it.
    fn translate(&self, vcpu: usize, va: u64) -> Option<u64> {
        (va >> 21 == BREAKPOINT >> 21 && !self.unmapped && self.root[vcpu] == ROOT)
            .then_some(0x20_0000 + (va & 0x1f_ffff))
    }

    pub fn byte(&self, pa: u64) -> u8 {
        let mut byte = [0];
        self.memory.read_at(&mut byte, pa).expect("memory");
        byte[0]
    }

    pub fn write(&self, pa: u64, bytes: &[u8]) {
        self.memory.write_at(bytes, pa).expect("room");
    }

    /// `Z0` and `z0` under KVM; whether it says `OK`.
    fn int3(&mut self, set: bool, va: u64) -> bool {
        let Some(pa) = self.translate(self.aimed, va) else { return false };
        if set {
            let pa = pa + self.misses_by;
            self.saved.insert(va, self.byte(pa));
            self.write(pa, &[0xcc]);
        } else if let Some(byte) =
            self.saved.remove(&va).filter(|_| !self.forgets_int3 && self.byte(pa + self.misses_by) == 0xcc)
        {
            self.write(pa + self.misses_by, &[byte]);
        }
        true
    }

    pub fn go(&mut self) {
        self.start();
        for vcpu in 0..2 {
            if self.has_breakpoint(self.rip[vcpu]) && !self.stands_still {
                if self.is_held(vcpu) {
                    return self.trap(vcpu, "");
                }
                self.rflags[vcpu] &= !RF;
                if self.jumps_to_itself {
                    return self.trap(vcpu, "");
                }
                self.rip[vcpu] += 4;
            }
        }
        match self.script.pop_front() {
            Some(Act::Come(vcpus, va)) => {
                for &vcpu in &vcpus {
                    self.rip[vcpu] = va;
                    self.rsp[vcpu] = STACK;
                }
                if let Some(&last) = vcpus.last().filter(|_| self.has_breakpoint(va)) {
                    self.trap(last, "");
                }
            }
            Some(Act::Trap(vcpu, va)) => {
                self.rip[vcpu] = va;
                self.trap(vcpu, "");
            }
            Some(Act::Watch(vcpu, address)) => self.trap(vcpu, &format!("watch:{address:x};")),
            Some(Act::ContinueAfterReads(count)) => {
                self.continue_after = Some(count);
                self.go();
            }
            None => {}
        }
    }

    fn step(&mut self, vcpu: usize) {
        self.start();
        if self.sticky_steps > 0 {
            self.sticky_steps -= 1;
        } else if self.kvm && self.is_held(vcpu) {
            // It hits the breakpoint again.
        } else if self.faulting_steps > 0 {
            self.faulting_steps -= 1;
            self.frame = [2, self.rip[vcpu], 0x10, 0x246, self.rsp[vcpu], 0x18];
            self.rip[vcpu] = ELSEWHERE;
            self.rsp[vcpu] -= 48;
        } else {
            self.rip[vcpu] += if self.jumps_to_itself { 0 } else { 4 };
            self.rflags[vcpu] &= !RF;
        }
        self.trap(vcpu, "");
    }

    /// The registers of the description below.
    fn registers(&self, vcpu: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for value in [self.rax[vcpu], self.rsp[vcpu], self.rip[vcpu]] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(self.rflags[vcpu].to_le_bytes());
        bytes.extend(self.segments[vcpu].0.to_le_bytes());
        bytes.extend(self.segments[vcpu].1.to_le_bytes());
        for value in [0x8000_0001u64, self.cr2[vcpu], self.root[vcpu], 0x20, 0xd01] {
            bytes.extend(value.to_le_bytes());
        }
        bytes
    }

    fn set_registers(&mut self, vcpu: usize, bytes: &[u8]) {
        let wide = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let narrow = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        (self.rax[vcpu], self.rsp[vcpu], self.rip[vcpu]) = (wide(0), wide(8), wide(16));
        (self.rflags[vcpu], self.segments[vcpu], self.cr2[vcpu]) = (narrow(24), (narrow(28), narrow(32)), wide(44));
        self.root[vcpu] = wide(52);
    }

    fn packet(&mut self, packet: &str) {
        let quiet = ["g", "m", "q", "H", "?"].iter().any(|prefix| packet.starts_with(prefix));
        if !quiet {
            self.log.push(packet.to_owned());
        }
        if self.swallows.is_some_and(|prefix| packet.starts_with(prefix)) {
            if let Some(point) = packet.strip_prefix('Z') {
                self.points.push(point.to_owned());
            }
            return;
        }
        let reply = match packet {
            "?" => {
                for va in self.saved.keys().copied().collect::<Vec<_>>() {
                    self.int3(false, va);
                }
                self.saved.clear();
                self.points.clear();
                "T05thread:01;".to_owned()
            }
            "g" => {
                self.send(&hex(&self.registers(self.selected)));
                if let Some(left) = self.continue_after.take() {
                    match left {
                        0 | 1 => self.go(),
                        more => self.continue_after = Some(more - 1),
                    }
                }
                return;
            }
            "vCont;c" => return self.go(),
            "D;1" => {
                self.points.clear();
                self.send("OK");
                return self.start();
            }
            "qfThreadInfo" if self.vcpus == 1 => "mp01.01".to_owned(),
            "qfThreadInfo" => "mp01.01,p01.02".to_owned(),
            "qsThreadInfo" => "l".to_owned(),
            _ if packet.starts_with("qSupported") => "PacketSize=1000;qXfer:features:read+;multiprocess+".to_owned(),
            _ if self.endless && packet.starts_with("qXfer") => {
                self.log.push("described".to_owned());
                thread::sleep(Duration::from_millis(10));
                "m ".to_owned()
            }
            _ if packet.starts_with("qXfer:features:read:target.xml:0,") => DESCRIPTION.to_owned(),
            _ if packet == format!("m{:x},30", self.rsp[self.selected]) => {
                hex(&self.frame.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
            }
            "Hcp1.1" => "OK".to_owned(),
            _ if packet.starts_with("Hg") && packet.ends_with('2') && self.vcpus == 1 => "E22".to_owned(),
            _ if packet.starts_with("Hg") => {
                self.selected = usize::from(packet.ends_with('2'));
                "OK".to_owned()
            }
            _ if packet.starts_with("vCont;s:") => {
                let vcpu = usize::from(packet.ends_with('2'));
                return self.step(vcpu);
            }
            "qqemu.sstepbits" if self.kvm => "ENABLE=1,NOIRQ=2".to_owned(),
            _ if packet.starts_with("Hc") => {
                self.aimed = usize::from(packet.ends_with('2'));
                "OK".to_owned()
            }
            _ if self.kvm
                && packet.starts_with("Z1")
                && self.points.iter().filter(|p| p.starts_with('1')).count() == 4 =>
            {
                "E22".to_owned()
            }
            _ if self.kvm
                && (packet.starts_with("Z0") || packet.starts_with("z0"))
                && !self.int3(packet.starts_with('Z'), address(packet)) =>
            {
                "E22".to_owned()
            }
            _ if packet.starts_with('m') && self.physical => {
                let length = packet.rsplit_once(',').expect("a length").1;
                let mut bytes = vec![0; usize::from_str_radix(length, 16).expect("a length")];
                match self.memory.read_exact_at(
                    &mut bytes,
                    u64::from_str_radix(packet[1..].split_once(',').expect("a place").0, 16).expect("a place"),
                ) {
                    Ok(()) => hex(&bytes),
                    Err(_) => "E14".to_owned(),
                }
            }
            _ if packet.starts_with('m') && self.kvm => {
                let (place, length) = packet[1..].split_once(',').expect("a length");
                let place = u64::from_str_radix(place, 16).expect("a place");
                let mut bytes = vec![0; usize::from_str_radix(length, 16).expect("a length")];
                match self.translate(self.selected, place) {
                    Some(pa) => {
                        self.memory.read_exact_at(&mut bytes, pa).expect("memory");
                        hex(&bytes)
                    }
                    None => "E14".to_owned(),
                }
            }
            _ if packet.starts_with('Z') => {
                self.points.push(packet[1..].to_owned());
                "OK".to_owned()
            }
            _ if packet.starts_with('z') => match self.points.iter().position(|point| *point == packet[1..]) {
                Some(index) => {
                    self.points.remove(index);
                    "OK".to_owned()
                }
                None => "E22".to_owned(),
            },
            "Qqemu.PhyMemMode:1" | "Qqemu.PhyMemMode:0" => {
                self.physical = packet.ends_with('1');
                "OK".to_owned()
            }
            _ if packet.starts_with('M') && self.physical => {
                let (place, digits) = packet[1..].split_once(':').expect("contents");
                let (address, _) = place.split_once(',').expect("a length");
                let address = u64::from_str_radix(address, 16).expect("an address");
                let digits = digits.as_bytes().chunks(2);
                let bytes: Vec<u8> = digits
                    .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits"))
                    .collect();
                self.memory.write_at(&bytes, address).expect("room");
                "OK".to_owned()
            }
            _ if packet.starts_with('P') => {
                // As described below: eight registers, three of them of four bytes.
                const PLACES: [usize; 9] = [0, 8, 16, 24, 28, 32, 36, 44, 52];
                let (number, value) = packet[1..].split_once('=').expect("a value");
                let place = PLACES[usize::from_str_radix(number, 16).expect("a number")];
                let mut bytes = self.registers(self.selected);
                for (at, pair) in value.as_bytes().chunks(2).enumerate() {
                    let digits = std::str::from_utf8(pair).expect("digits");
                    bytes[place + at] = u8::from_str_radix(digits, 16).expect("digits");
                }
                self.set_registers(self.selected, &bytes);
                "OK".to_owned()
            }
            _ if packet.starts_with("Qqemu.sstep=") => "OK".to_owned(),
            _ => String::new(),
        };
        self.send(&reply);
    }

    fn human(&mut self, line: &str, shared: &Shared, vcpu: usize) -> String {
        match line {
            "info mtree -f" => MAP.to_owned(),
            "info registers" => format!(
                "RAX={:016x} RSP=ffff888000004000\r\nRIP={:016x} RFL=00000246 [---Z-P-] HLT=0\r\n\
                 CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r\nIDT=     fffffe0000000000 00000fff\r\n\
                 TR =0040 {TASK:016x} 00004087 00008900 DPL=0 TSS64-avl\r\n\
                 CR0=80000001 CR2=0 CR3={ROOT:016x} CR4=00000020\r\nEFER=0000000000000d01\r\n",
                self.rax[vcpu], self.rip[vcpu]
            ),
            "gdbserver none" => {
                self.log.push(line.to_owned());
                self.end_stub();
                "Disabled gdbserver\r\n".to_owned()
            }
            _ if line.starts_with("gdbserver chardev:") => {
                let label = line.strip_prefix("gdbserver chardev:").unwrap_or_default();
                match self.devices.as_mut().and_then(|devices| devices.start_stub(label)) {
                    Some(stream) => {
                        self.log.push("gdbserver chardev".to_owned());
                        serve_gdb(shared, move || Some(stream));
                        format!("Waiting for gdb connection on device 'chardev:{label}'\r\n")
                    }
                    None => format!("Could not open gdbserver on device 'chardev:{label}'\r\n"),
                }
            }
            _ => match line.strip_prefix("gdbserver unix:") {
                Some(_) if self.gdb_address.is_some() => "duplicate yank instance\r\n".to_owned(),
                Some(rest) => {
                    self.log.push("gdbserver".to_owned());
                    let path = rest.split(',').next().expect("a path").to_owned();
                    let listener = UnixListener::bind(&path).expect("a socket");
                    serve_gdb(shared, move || Some(listener.accept().ok()?.0));
                    self.gdb_address = Some(path);
                    "Waiting for gdb connection\r\n".to_owned()
                }
                None => format!("unknown command: '{line}'\r\n"),
            },
        }
    }

    fn execute(&mut self, command: &str, arguments: &Value, shared: &Shared) -> Option<Value> {
        Some(match command {
            "qmp_capabilities" => json!({}),
            "query-target" => json!({ "arch": self.architecture }),
            "query-name" => json!({ "name": "fake\u{1b}[31m" }),
            "query-kvm" => json!({ "enabled": self.kvm, "present": true }),
            "query-cpus-fast" => (0..self.vcpus).map(|vcpu| json!({ "cpu-index": vcpu })).collect(),
            "query-status" => json!({ "running": self.running, "status": self.status }),
            "query-chardev" if self.devices.as_ref().is_some_and(Devices::any) => self.devices.as_ref()?.query(),
            "query-chardev" => match (&self.gdb_address, self.stub_is_taken) {
                (_, true) => json!([{ "label": "gdb", "filename": "unix:/run/gdb,server=on" }]),
                (Some(path), _) => {
                    json!([{ "label": "gdb", "filename": format!("disconnected:unix:{path},server=on") }])
                }
                (None, _) => json!([]),
            },
            "stop" => {
                self.log.push(command.to_owned());
                self.pause();
                json!({})
            }
            "system_wakeup" => {
                self.log.push(command.to_owned());
                self.running = true;
                self.status = "running";
                self.event("WAKEUP");
                json!({})
            }
            "cont" => {
                self.log.push(command.to_owned());
                self.go();
                json!({})
            }
            "human-monitor-command" => {
                let line = arguments.get("command-line")?.as_str()?.to_owned();
                let vcpu = arguments.get("cpu-index").and_then(Value::as_u64).unwrap_or(0);
                Value::String(self.human(&line, shared, vcpu as usize))
            }
            _ => return self.devices.as_mut()?.execute(command, arguments),
        })
    }
}

/// The address in a `Z` or `z` packet.
fn address(packet: &str) -> u64 {
    u64::from_str_radix(packet.split(',').nth(1).expect("an address"), 16).expect("an address")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve_qmp((machine, changed): &Shared, stream: UnixStream) {
    let mut out = stream.try_clone().expect("a socket");
    let greeting =
        json!({ "QMP": { "version": { "qemu": { "major": 7, "minor": 2, "micro": 22 } }, "capabilities": [] } });
    let _ = out.write_all((greeting.to_string() + "\r\n").as_bytes());
    machine.lock().expect("no panic").qmp.push(stream.try_clone().expect("a socket"));
    let mut received = Vec::new();
    loop {
        let Some(end) = received.iter().position(|&byte| byte == b'\n') else {
            let Ok(passed) = descriptor::receive(&stream, &mut received) else { return };
            if let (Some(passed), Some(devices)) = (passed, &mut machine.lock().expect("no panic").devices) {
                devices.passed = Some(passed);
            }
            continue;
        };
        let line: Vec<u8> = received.drain(..=end).collect();
        let request: Value = serde_json::from_slice(&line).expect("JSON");
        let command = request["execute"].as_str().expect("a command");
        let mut guard = machine.lock().expect("no panic");
        if guard.silent {
            continue;
        }
        let shared = (Arc::clone(machine), Arc::clone(changed));
        let reply = match guard.execute(command, &request["arguments"], &shared) {
            Some(value) => json!({ "return": value, "id": request["id"] }),
            None => json!({ "error": { "class": "CommandNotFound", "desc": "no such command" }, "id": request["id"] }),
        };
        let _ = out.write_all((reply.to_string() + "\r\n").as_bytes());
        drop(guard);
        changed.notify_all();
    }
}

fn serve_gdb((machine, changed): &Shared, connect: impl FnOnce() -> Option<UnixStream> + Send + 'static) {
    let (machine, changed) = (Arc::clone(machine), Arc::clone(changed));
    thread::spawn(move || {
        let Some(mut stream) = connect() else { return };
        {
            let mut machine = machine.lock().expect("no panic");
            machine.gdb = stream.try_clone().ok();
            machine.pause();
        }
        let mut packet: Option<Vec<u8>> = None;
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte) {
            let mut machine = machine.lock().expect("no panic");
            let [byte] = byte;
            // While a packet of ours is not answered, any byte is taken for the answer.
            let unanswered = std::mem::take(&mut machine.unanswered);
            if unanswered && byte != b'+' && byte != b'$' {
                machine.unanswered = true;
            } else if byte == b'+' {
                // It answers a packet of ours, whatever the guest does.
            } else if machine.running {
                // The byte stops the guest and is lost.
                machine.pause();
                packet = None;
            } else if byte == b'$' {
                packet = Some(Vec::new());
            } else if let Some(bytes) = &mut packet {
                bytes.push(byte);
                if bytes.len() >= 3 && bytes[bytes.len() - 3] == b'#' {
                    let text = String::from_utf8_lossy(&bytes[..bytes.len() - 3]).into_owned();
                    packet = None;
                    let _ = stream.write_all(b"+");
                    machine.packet(&text);
                }
            }
            drop(machine);
            changed.notify_all();
        }
    });
}

const DESCRIPTION: &str = "l<?xml version=\"1.0\"?><target><!-- <reg name=\"ghost\" bitsize=\"64\"/> -->\
    <feature name=\"org.gnu.gdb.i386.core\"><reg name=\"rax\" bitsize=\"64\"/><reg name=\"rsp\" bitsize=\"64\"/>\
    <reg name=\"rip\" bitsize=\"64\"/><reg name=\"eflags\" bitsize=\"32\"/><reg name=\"cs\" bitsize=\"32\"/>\
    <reg name=\"ss\" bitsize=\"32\"/><reg name=\"cr0\" bitsize=\"64\"/><reg name=\"cr2\" bitsize=\"64\"/><reg name=\"cr3\" bitsize=\"64\"/><reg name=\"cr4\" bitsize=\"64\"/>\
    <reg name=\"efer\" bitsize=\"64\"/></feature></target>";

const MAP: &str = "FlatView #0\r\n AS \"I/O\", root: io\r\n Root memory region: io\r\n\
    \x20 0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\r\n\r\nFlatView #1\r\n AS \"memory\", root: system\r\n\
    \x20AS \"cpu-memory-0\", root: system\r\n Root memory region: system\r\n\
    \x20 0000000000000000-000000000009ffff (prio 0, ram): pc.ram\r\n\
    \x20 00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\r\n\
    \x20 00000000000c0000-00000000000fffff (prio 0, rom): pc.ram @00000000000c0000\r\n\
    \x20 0000000000100000-00000000002fffff (prio 0, ram): pc.ram @0000000000100000\r\n\
    \x20 00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios\r\n\
    \x20 0000000100000000-00000001000fffff (prio 0, ram): pc.ram @0000000000300000\r\n\r\n";
