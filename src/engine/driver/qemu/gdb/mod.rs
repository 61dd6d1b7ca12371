//! A client of QEMU's gdb stub (GDB manual, appendix E; QEMU: `gdbstub/`).
//!
//! [`packet`] and [`stop`] are pure functions of bytes, [`target`] and [`registers`] read the register description,
//! [`wire`] carries packets, and [`Gdb`] knows their meaning. None of them knows who wants the guest to run.
//!
//! What QEMU's stub needs that others do not: connecting stops the guest, and so does any byte sent while it runs; a
//! second client is never answered; `?` drops all breakpoints; `P` does nothing before the description was read; stop
//! replies come unasked (7.2 reports a stop by somebody else while a reply is awaited), and unread ones can block it.

mod packet;
mod registers;
mod step_bits;
mod stop;
mod target;
mod wire;

use std::{
    fmt,
    os::fd::RawFd,
    sync::{Arc, Mutex},
    time::Instant,
};

use self::step_bits::StepBits;
#[cfg(feature = "fuzzing")]
pub use self::{
    packet::{Decoder, LARGEST, Piece, encode},
    target::{Register, registers as described_registers},
};
pub use self::{
    packet::{from_hex, to_hex},
    registers::RegisterFile,
    stop::{Stop, Thread},
    wire::Wire,
};
use super::{
    patience,
    qmp::Qmp,
    transport::{Address, Stream},
};
use crate::engine::{addr::VcpuId, arch::amd64::Amd64Registers, error::VmiError, snapshot::clean};

/// Bytes of one `M` packet; QEMU takes 4096 characters.
const WRITE_PIECE: usize = 1024;
/// Parts of a file of the target description.
const MOST_PARTS: usize = 256;
/// More vCPUs than QEMU can have.
const MOST_THREADS: usize = 4096;

/// A connection to a stub.
#[derive(Debug)]
pub struct Gdb {
    wire: Wire,
    threads: Vec<Thread>,
    /// Whether there was more than one vCPU at some time: QEMU's pointer to the selected one may be stale then, and it uses it.
    has_had_several: bool,
    /// Whether a vCPU may be unplugged while the guest runs.
    pub unpluggable: bool,
    file: RegisterFile,
    step_bits: Option<StepBits>,
    /// The thread that `g`, `P` and `m` are about (`Hg`), and the stops seen when it was selected: a stop selects the
    /// thread that it reports.
    selected: Option<(Thread, u64)>,
    /// The same for `Z` and `z` (`Hc`).
    aimed: Option<(Thread, u64)>,
    /// Registers read since the guest stopped, and the stops seen when they were.
    read: (u64, Vec<(Thread, Amd64Registers)>),
}

impl Gdb {
    /// Connects: the guest stops, and breakpoints that a former client left are gone.
    ///
    /// # Errors
    /// A sentence: nobody listens, somebody else holds the stub, or it is not QEMU's.
    pub fn connect(address: &Address, qmp: Arc<Mutex<Qmp>>) -> Result<Self, VmiError> {
        within_bounds(address, || Self::over(Wire::connect(address, qmp)?))
    }

    /// The same over a socket that is connected already; `name` is what messages call the stub.
    ///
    /// # Errors
    /// As [`Gdb::connect`].
    pub fn on(stream: Stream, name: &str, qmp: Arc<Mutex<Qmp>>) -> Result<Self, VmiError> {
        within_bounds(&name, || Self::over(Wire::over(stream, &name, qmp)?))
    }

    /// The same over a wire that is connected already.
    ///
    /// # Errors
    /// As [`Gdb::connect`].
    pub fn over(mut wire: Wire) -> Result<Self, VmiError> {
        let features = wire.command(b"qSupported:multiprocess+;vContSupported+;xmlRegisters=i386")?;
        wire.forget_stops();
        let features: Vec<&[u8]> = features.split(|&byte| byte == b';').collect();
        if !features.contains(&&b"qXfer:features:read+"[..]) || !features.contains(&&b"multiprocess+"[..]) {
            return Err(strange(wire.address(), "it does not describe its registers"));
        }
        let registers = target::registers(&mut |file| description(&mut wire, file))?;
        let Some(file) = RegisterFile::new(&registers) else {
            return Err(strange(wire.address(), "its registers are not those of an x86-64 processor"));
        };
        let threads = list_threads(&mut wire)?;
        let step_bits = StepBits::parse(&wire.command(b"qqemu.sstepbits")?);
        wire.settle();
        Ok(Self {
            wire,
            has_had_several: threads.len() > 1,
            threads,
            unpluggable: false,
            file,
            step_bits,
            selected: None,
            aimed: None,
            read: (0, Vec::new()),
        })
    }

    /// The socket's descriptor, for waiting on it.
    pub fn fd(&self) -> RawFd {
        self.wire.fd()
    }

    /// The thread of a vCPU.
    pub fn thread(&self, vcpu: VcpuId) -> Option<Thread> {
        self.threads.iter().copied().find(|thread| thread.vcpu() == vcpu)
    }

    /// The threads of all vCPUs.
    pub fn all_threads(&self) -> Vec<Thread> {
        self.threads.clone()
    }

    /// With the guest stopped: drops all breakpoints and watchpoints, on every vCPU, and learns which vCPUs there are now.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn begin_again(&mut self) -> Result<(), VmiError> {
        self.anchor()?;
        self.wire.drop_points()?;
        (self.selected, self.aimed) = (None, None);
        self.read.1.clear();
        self.threads = list_threads(&mut self.wire)?;
        self.has_had_several |= self.threads.len() > 1;
        Ok(())
    }

    /// The registers of a vCPU of a stopped guest; the IDT's base and LSTAR are not among them.
    ///
    /// # Errors
    /// What the stub says.
    pub fn registers(&mut self, thread: Thread) -> Result<Amd64Registers, VmiError> {
        let stops = self.wire.stops_seen();
        if self.read.0 != stops {
            self.read = (stops, Vec::new());
        }
        self.read.1.retain(|(read, _)| *read != thread);
        self.select(thread)?;
        let reply = self.wire.command(b"g")?;
        let registers = from_hex(&reply).and_then(|bytes| self.file.decode(&bytes));
        let registers = registers.ok_or_else(|| self.refused("g", &reply))?;
        // A stop that came in with the reply is of another moment.
        if self.wire.stops_seen() == stops {
            self.read.1.push((thread, registers));
        }
        Ok(registers)
    }

    /// The same, as read since the guest stopped: registers of a guest that stands do not change by themselves.
    ///
    /// # Errors
    /// What the stub says.
    pub fn known_registers(&mut self, thread: Thread) -> Result<Amd64Registers, VmiError> {
        let is_now = self.read.0 == self.wire.stops_seen();
        match self.read.1.iter().find(|(read, _)| is_now && *read == thread) {
            Some((_, registers)) => Ok(*registers),
            None => self.registers(thread),
        }
    }

    /// Makes the registers of a vCPU of a stopped guest these, without a look whether they are; returns whether there was
    /// anything to change.
    ///
    /// # Errors
    /// What the stub says.
    pub fn change_registers(&mut self, thread: Thread, new: &Amd64Registers) -> Result<bool, VmiError> {
        let old = self.known_registers(thread)?;
        let changes = self.file.changes(&old, new);
        if changes.is_empty() {
            return Ok(false);
        }
        self.select(thread)?;
        self.read.1.clear();
        for (number, bytes) in &changes {
            self.expect_ok(&format!("P{number:x}={}", to_hex(bytes)))?;
        }
        Ok(true)
    }

    /// Makes the registers of a vCPU of a stopped guest these, and looks whether they are.
    ///
    /// # Errors
    /// What the stub says.
    pub fn set_registers(&mut self, thread: Thread, new: &Amd64Registers) -> Result<(), VmiError> {
        self.registers(thread)?;
        if !self.change_registers(thread, new)? {
            return Ok(());
        }
        let now = self.registers(thread)?;
        if self.file.changes(&now, new).is_empty() {
            return Ok(());
        }
        Err(VmiError::driver(format!("setting registers of vCPU {}", thread.vcpu()), "the stub ignored some of them"))
    }

    /// Reads the stack or other memory as a vCPU sees it; `None` where nothing is mapped.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn read_virtual(&mut self, thread: Thread, address: u64, bytes: usize) -> Result<Option<Vec<u8>>, VmiError> {
        self.select(thread)?;
        let reply = self.wire.command(format!("m{address:x},{bytes:x}").as_bytes())?;
        Ok(from_hex(&reply).filter(|read| read.len() == bytes))
    }

    /// Reads a few bytes of guest-physical memory; `None` where there is no memory.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn read_physical(&mut self, address: u64, bytes: usize) -> Result<Option<Vec<u8>>, VmiError> {
        self.expect_ok("Qqemu.PhyMemMode:1")?;
        let reply = self.wire.command(format!("m{address:x},{bytes:x}").as_bytes());
        self.expect_ok("Qqemu.PhyMemMode:0")?;
        Ok(from_hex(&reply?).filter(|read| read.len() == bytes))
    }

    /// Writes guest-physical memory.
    ///
    /// # Errors
    /// What the stub says.
    pub fn write_physical(&mut self, address: u64, bytes: &[u8]) -> Result<(), VmiError> {
        self.expect_ok("Qqemu.PhyMemMode:1")?;
        let mut written = Ok(());
        for (piece, at) in bytes.chunks(WRITE_PIECE).zip((0u64..).step_by(WRITE_PIECE)) {
            let address = address.wrapping_add(at);
            written =
                written.and_then(|()| self.expect_ok(&format!("M{address:x},{:x}:{}", piece.len(), to_hex(piece))));
        }
        written.and(self.expect_ok("Qqemu.PhyMemMode:0"))
    }

    /// Sets (`Z`) or clears (`z`) a breakpoint or watchpoint. Kinds: 0 software, 1 hardware breakpoint; 2 write, 3 read,
    /// 4 access watchpoint.
    ///
    /// # Errors
    /// What the stub says.
    pub fn point(&mut self, set: bool, kind: u8, address: u64, bytes: u64) -> Result<(), VmiError> {
        let letter = if set { 'Z' } else { 'z' };
        self.expect_ok(&format!("{letter}{kind},{address:x},{bytes:x}"))
    }

    /// Makes a vCPU the one through whose address space `Z0` and `z0` reach guest memory under KVM.
    ///
    /// # Errors
    /// What the stub says.
    pub fn aim(&mut self, thread: Thread) -> Result<(), VmiError> {
        if self.has_had_several && self.aimed != Some((thread, self.wire.stops_seen())) {
            self.expect_ok(&format!("Hc{}", thread.text()))?;
            self.aimed = Some((thread, self.wire.stops_seen()));
        }
        Ok(())
    }

    /// Chooses whether single steps let interrupts and timers in. A stub that offers no choice is left alone.
    ///
    /// # Errors
    /// What the stub says.
    pub fn let_interrupts_in(&mut self, let_in: bool) -> Result<(), VmiError> {
        let Some(bits) = self.step_bits else { return Ok(()) };
        let bits = if let_in { bits.with_interrupts } else { bits.quiet };
        self.expect_ok(&format!("Qqemu.sstep={bits:x}"))
    }

    /// Makes the first vCPU, which cannot be unplugged, the stub's current one for everything: QEMU uses its pointers to those
    /// at the next stop, whatever has become of the vCPUs (`gdbserver_state.c_cpu` and `g_cpu`).
    fn anchor(&mut self) -> Result<(), VmiError> {
        (self.aimed, self.selected) = (None, None);
        let Some(first) = self.threads.first().map(|thread| thread.text()) else { return Ok(()) };
        self.expect_ok(&format!("Hc{first}"))?;
        self.expect_ok(&format!("Hg{first}"))
    }

    /// Lets all vCPUs run.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn run(&mut self) -> Result<(), VmiError> {
        if self.unpluggable {
            self.anchor()?;
        }
        self.wire.forget_stops();
        self.read.1.clear();
        self.wire.send(b"vCont;c")
    }

    /// Lets one vCPU do one instruction while the others stand.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn step(&mut self, thread: Thread) -> Result<(), VmiError> {
        self.wire.forget_stops();
        self.read.1.clear();
        self.wire.send(format!("vCont;s:{}", thread.text()).as_bytes())
    }

    /// Asks a running guest to stop; the stop comes as [`Stop`].
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn interrupt(&mut self) -> Result<(), VmiError> {
        self.wire.interrupt()
    }

    /// Lets go of the guest, which then runs, without breakpoints.
    ///
    /// # Errors
    /// What the stub says.
    pub fn detach(&mut self) -> Result<(), VmiError> {
        self.expect_ok("D;1")
    }

    /// A stop that has come in; does not wait.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn poll_stop(&mut self) -> Result<Option<Stop>, VmiError> {
        self.wait_stop(Instant::now())
    }

    /// The next stop, or `None` when the deadline has passed.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn wait_stop(&mut self, deadline: Instant) -> Result<Option<Stop>, VmiError> {
        let stop = self.wire.wait_stop(deadline)?;
        // QEMU selects the vCPU that it reports a breakpoint, a watchpoint or a step of (`gdb_set_stop_cpu`).
        if let Some(Stop::At { signal: Stop::TRAP, thread: Some(thread), .. }) = stop
            && !self.wire.has_stops()
        {
            self.selected = Some((thread, self.wire.stops_seen()));
            self.aimed = self.selected;
        }
        Ok(stop)
    }

    fn select(&mut self, thread: Thread) -> Result<(), VmiError> {
        if self.has_had_several && self.selected != Some((thread, self.wire.stops_seen())) {
            self.expect_ok(&format!("Hg{}", thread.text()))?;
            self.selected = Some((thread, self.wire.stops_seen()));
        }
        Ok(())
    }

    fn expect_ok(&mut self, packet: &str) -> Result<(), VmiError> {
        let reply = self.wire.command(packet.as_bytes())?;
        if reply == b"OK" { Ok(()) } else { Err(self.refused(packet, &reply)) }
    }

    fn refused(&self, packet: &str, reply: &[u8]) -> VmiError {
        let said = clean(&String::from_utf8_lossy(reply), 40);
        let why = if said.is_empty() { "it does not know that packet".to_owned() } else { format!("it says '{said}'") };
        VmiError::driver(format!("asking the gdb stub at {} for {}", self.wire.address(), clean(packet, 40)), why)
    }
}

/// Connecting takes many answers, and has to come to an end: the guest stands meanwhile.
fn within_bounds<T>(name: &impl fmt::Display, connect: impl FnOnce() -> Result<T, VmiError>) -> Result<T, VmiError> {
    patience::at_most(wire::CONNECT_TIME, format_args!("connecting to the gdb stub at {name}"), connect)
}

/// A file of the target description.
fn description(wire: &mut Wire, file: &str) -> Result<String, VmiError> {
    let mut text = Vec::new();
    for _ in 0..MOST_PARTS {
        let request = format!("qXfer:features:read:{file}:{:x},ffb", text.len());
        let reply = wire.command(request.as_bytes())?;
        match reply.split_first() {
            Some((b'm', part)) if !part.is_empty() => text.extend_from_slice(part),
            Some((b'l', part)) => {
                text.extend_from_slice(part);
                return Ok(String::from_utf8_lossy(&text).into_owned());
            }
            _ => break,
        }
    }
    Err(strange(wire.address(), "its register description cannot be read"))
}

fn list_threads(wire: &mut Wire) -> Result<Vec<Thread>, VmiError> {
    let mut threads = Vec::new();
    let mut request: &[u8] = b"qfThreadInfo";
    for _ in 0..MOST_THREADS {
        let reply = wire.command(request)?;
        let Some(list) = reply.strip_prefix(b"m") else { break };
        threads.extend(list.split(|&byte| byte == b',').filter_map(Thread::parse));
        request = b"qsThreadInfo";
    }
    threads.truncate(MOST_THREADS);
    if threads.is_empty() { Err(strange(wire.address(), "it has no threads")) } else { Ok(threads) }
}

fn strange(address: &str, why: &str) -> VmiError {
    VmiError::Invalid(format!("{address} is not the gdb stub of a QEMU with an x86-64 guest: {why}"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
        thread,
        time::Duration,
    };

    use super::{super::transport::Stream, *};

    const DESCRIPTION: &str = "l<reg name=\"rax\" bitsize=\"64\"/><reg name=\"rip\" bitsize=\"64\"/>\
        <reg name=\"rsp\" bitsize=\"64\"/><reg name=\"cs\" bitsize=\"32\"/><reg name=\"cr3\" bitsize=\"64\"/>";

    /// Connects to a stub that answers a request for threads like this, whenever it is asked.
    fn connect(threads: &'static str) -> Result<Gdb, VmiError> {
        let pair = || {
            let (ours, peer) = UnixStream::pair().expect("a pair");
            ours.set_nonblocking(true).expect("a socket");
            (Stream::Unix(ours), peer)
        };
        let (monitor, mut qemu) = pair();
        let greeting =
            "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, \"minor\": 2}}}}\n{\"return\": {}, \"id\": 1}\n";
        qemu.write_all(greeting.as_bytes()).expect("room");
        let address: Address = "test:1".parse()?;
        let qmp = Qmp::over(monitor, &address, Duration::from_secs(5))?;
        let (stream, mut stub) = pair();
        let served = thread::spawn(move || {
            let (mut packet, mut byte) = (Vec::new(), [0]);
            while stub.read(&mut byte).is_ok_and(|read| read == 1) {
                packet.extend(byte);
                // A packet ends two digits behind its `#`.
                let Some(end) = packet.iter().position(|&byte| byte == b'#').filter(|end| end + 3 == packet.len())
                else {
                    continue;
                };
                let start = packet.iter().position(|&byte| byte == b'$').unwrap_or(end);
                let reply = match &packet[start + 1..end] {
                    b"?" => "T05thread:01;",
                    text if text.starts_with(b"qSupported") => "qXfer:features:read+;multiprocess+",
                    text if text.starts_with(b"qXfer") => DESCRIPTION,
                    _ => threads,
                };
                packet.clear();
                let answer = [b"+".to_vec(), packet::encode(reply.as_bytes())].concat();
                if stub.write_all(&answer).is_err() {
                    return;
                }
            }
        });
        let gdb = Wire::over(stream, &address, Arc::new(Mutex::new(qmp))).and_then(Gdb::over);
        drop(qemu);
        if gdb.is_err() {
            served.join().expect("no panic");
        }
        gdb
    }

    #[test]
    fn a_list_of_threads_without_an_end_or_a_thread_is_cut() {
        let error = connect("mp0.0").map(drop).expect_err("none of them is a thread").to_string();
        assert!(error.contains("it has no threads"), "{error}");
        let gdb = connect("mp1.1,p1.2").expect("two threads, over and over");
        assert_eq!(gdb.threads.len(), MOST_THREADS);
        assert_eq!(gdb.thread(VcpuId(1)), Some(Thread { process: 1, thread: 2 }));
    }
}
