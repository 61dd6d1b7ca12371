//! A client of QEMU's gdb stub (GDB manual, appendix E; QEMU: `gdbstub/`).
//!
//! [`packet`] and [`stop`] are pure functions of bytes, [`target`] and [`registers`] read the register description, and
//! [`Gdb`] speaks the protocol. It knows nothing of breakpoint policy or of who wants the guest to run.
//!
//! What QEMU's stub needs that others do not: connecting stops the guest, and so does any byte sent while it runs; a
//! second client is never answered; `?` drops all breakpoints; `P` does nothing before the description was read; stop
//! replies come unasked (7.2 reports a stop by somebody else while a reply is awaited), and unread ones can block it.

mod packet;
mod registers;
mod stop;
mod target;

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

pub use self::stop::{Stop, Thread};
use self::{
    packet::{Decoder, Piece, from_hex, to_hex},
    registers::RegisterFile,
};
use serde_json::json;

use super::{
    qmp::Qmp,
    transport::{Address, Stream, wait_readable},
};
use crate::engine::{arch::amd64::Amd64Registers, error::VmiError, snapshot::clean};

/// How long the stub may take to answer.
const REPLY_TIME: Duration = Duration::from_secs(5);
/// The same for the first answer: a second client never gets one.
const FIRST_REPLY_TIME: Duration = Duration::from_secs(2);
/// How long a packet may go unacknowledged before it is found out whether QEMU has taken it at all.
const ACK_TIME: Duration = Duration::from_millis(100);
/// How often a packet is sent.
const SEND_ATTEMPTS: usize = 8;
/// Bytes of one `M` packet; QEMU takes 4096 characters.
const WRITE_PIECE: usize = 1024;
/// Parts of a file of the target description.
const MOST_PARTS: usize = 256;
/// More vCPUs than QEMU can have.
const MOST_THREADS: usize = 4096;

/// A connection to a stub.
#[derive(Debug)]
pub struct Gdb {
    stream: Stream,
    address: Address,
    decoder: Decoder,
    stops: VecDeque<Stop>,
    threads: Vec<Thread>,
    file: Option<RegisterFile>,
    /// The monitor of the same QEMU.
    qmp: Arc<Mutex<Qmp>>,
    /// The thread that registers are read of.
    selected: Option<Thread>,
    lost: Option<String>,
}

impl Gdb {
    /// Connects: the guest stops, and breakpoints that a former client left are gone.
    ///
    /// # Errors
    /// A sentence: nobody listens, somebody else holds the stub, or it is not QEMU's.
    pub fn connect(address: &Address, qmp: Arc<Mutex<Qmp>>) -> Result<Self, VmiError> {
        let stream = Stream::connect(address, FIRST_REPLY_TIME)
            .map_err(|error| VmiError::driver(format!("connecting to QEMU's gdb stub at {address}"), error))?;
        let mut gdb = Self {
            stream,
            address: address.clone(),
            decoder: Decoder::default(),
            stops: VecDeque::new(),
            threads: Vec::new(),
            file: None,
            qmp,
            selected: None,
            lost: None,
        };
        // Its answer is a stop reply, like the unasked one that may come before it. A second client is not even heard.
        gdb.send_bytes(&packet::encode(b"?"))?;
        let Some(_) = gdb.wait_stop(Instant::now() + FIRST_REPLY_TIME)? else {
            return Err(VmiError::Invalid(format!(
                "the gdb stub at {address} does not answer: another debugger holds it (it serves one at a time); end \
                 that one first"
            )));
        };
        let features = gdb.command(b"qSupported:multiprocess+;vContSupported+;xmlRegisters=i386")?;
        gdb.stops.clear();
        let features: Vec<&[u8]> = features.split(|&byte| byte == b';').collect();
        if !features.contains(&&b"qXfer:features:read+"[..]) || !features.contains(&&b"multiprocess+"[..]) {
            return Err(gdb.strange("it does not describe its registers"));
        }
        let registers = target::registers(&mut |file| gdb.description(file))?;
        gdb.file = RegisterFile::new(&registers);
        if gdb.file.is_none() {
            return Err(gdb.strange("its registers are not those of an x86-64 processor"));
        }
        gdb.list_threads()?;
        Ok(gdb)
    }

    /// The socket's descriptor, for waiting on it.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// The thread of a vCPU.
    pub fn thread(&self, vcpu: crate::engine::addr::VcpuId) -> Option<Thread> {
        self.threads.iter().copied().find(|thread| thread.vcpu() == vcpu)
    }

    fn description(&mut self, file: &str) -> Result<String, VmiError> {
        let mut text = Vec::new();
        for _ in 0..MOST_PARTS {
            let request = format!("qXfer:features:read:{file}:{:x},ffb", text.len());
            let reply = self.command(request.as_bytes())?;
            match reply.split_first() {
                Some((b'm', part)) if !part.is_empty() => text.extend_from_slice(part),
                Some((b'l', part)) => {
                    text.extend_from_slice(part);
                    return Ok(String::from_utf8_lossy(&text).into_owned());
                }
                _ => break,
            }
        }
        Err(self.strange("its register description cannot be read"))
    }

    fn list_threads(&mut self) -> Result<(), VmiError> {
        let mut request: &[u8] = b"qfThreadInfo";
        while self.threads.len() < MOST_THREADS {
            let reply = self.command(request)?;
            let Some(list) = reply.strip_prefix(b"m") else { break };
            self.threads.extend(list.split(|&byte| byte == b',').filter_map(Thread::parse));
            request = b"qsThreadInfo";
        }
        if self.threads.is_empty() { Err(self.strange("it has no threads")) } else { Ok(()) }
    }

    /// The registers of a vCPU of a stopped guest; the IDT's base and LSTAR are not among them.
    ///
    /// # Errors
    /// What the stub says.
    pub fn registers(&mut self, thread: Thread) -> Result<Amd64Registers, VmiError> {
        self.select(thread)?;
        let reply = self.command(b"g")?;
        let registers = from_hex(&reply).and_then(|bytes| self.file.as_ref()?.decode(&bytes));
        registers.ok_or_else(|| self.refused("g", &reply))
    }

    /// Makes the registers of a vCPU of a stopped guest these, and looks whether they are.
    ///
    /// # Errors
    /// What the stub says.
    pub fn set_registers(&mut self, thread: Thread, new: &Amd64Registers) -> Result<(), VmiError> {
        let old = self.registers(thread)?;
        let changes = self.file.as_ref().map(|file| file.changes(&old, new)).unwrap_or_default();
        for (number, bytes) in &changes {
            self.expect_ok(&format!("P{number:x}={}", to_hex(bytes)))?;
        }
        if changes.is_empty() {
            return Ok(());
        }
        let now = self.registers(thread)?;
        let left = self.file.as_ref().map(|file| file.changes(&now, new)).unwrap_or_default();
        if left.is_empty() {
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
        let reply = self.command(format!("m{address:x},{bytes:x}").as_bytes())?;
        Ok(from_hex(&reply).filter(|read| read.len() == bytes))
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

    /// Chooses whether single steps keep interrupts and timers out (QEMU's bits: 1 step, 2 no interrupts, 4 no timers).
    ///
    /// # Errors
    /// What the stub says.
    pub fn set_step_bits(&mut self, bits: u8) -> Result<(), VmiError> {
        self.expect_ok(&format!("Qqemu.sstep={bits:x}"))
    }

    /// Lets all vCPUs run.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn run(&mut self) -> Result<(), VmiError> {
        self.stops.clear();
        self.send(b"vCont;c")
    }

    /// Lets one vCPU do one instruction while the others stand.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn step(&mut self, thread: Thread) -> Result<(), VmiError> {
        self.stops.clear();
        self.send(format!("vCont;s:{}", thread.text()).as_bytes())
    }

    /// Asks a running guest to stop; the stop comes as [`Stop`].
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn interrupt(&mut self) -> Result<(), VmiError> {
        self.send_bytes(&[3])
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
        loop {
            if let Some(stop) = self.stops.pop_front() {
                return Ok(Some(stop));
            }
            match self.packet(deadline)? {
                // A reply that nobody waits for any more is passed over.
                Some(packet) => {
                    if let Some(stop) = Stop::parse(&packet) {
                        self.note(stop);
                    }
                }
                None => return Ok(None),
            }
        }
    }

    fn note(&mut self, stop: Stop) {
        self.stops.push_back(stop);
        // QEMU selects the vCPU that it reports.
        self.selected = None;
    }

    fn select(&mut self, thread: Thread) -> Result<(), VmiError> {
        if self.selected != Some(thread) {
            self.selected = None;
            self.expect_ok(&format!("Hg{}", thread.text()))?;
            self.selected = Some(thread);
        }
        Ok(())
    }

    fn expect_ok(&mut self, packet: &str) -> Result<(), VmiError> {
        let reply = self.command(packet.as_bytes())?;
        if reply == b"OK" { Ok(()) } else { Err(self.refused(packet, &reply)) }
    }

    /// Sends a packet and gives its answer; stops that come in between are kept.
    fn command(&mut self, packet: &[u8]) -> Result<Vec<u8>, VmiError> {
        self.send(packet)?;
        let deadline = Instant::now() + REPLY_TIME;
        loop {
            match self.packet(deadline)? {
                Some(reply) => match Stop::parse(&reply) {
                    Some(stop) => self.note(stop),
                    None => return Ok(reply),
                },
                None => return Err(self.give_up(&io::ErrorKind::TimedOut.into())),
            }
        }
    }

    /// Sends a packet and waits until it is acknowledged. When somebody else sets the guest running at the same moment,
    /// QEMU takes the packet's first byte for a request to stop and drops the rest: then it is sent again. Silence alone
    /// does not prove that, and a packet must not be executed twice: QEMU has to answer twice on its monitor meanwhile,
    /// which its one main loop does only when it has read what was sent before.
    fn send(&mut self, packet: &[u8]) -> Result<(), VmiError> {
        let bytes = packet::encode(packet);
        for _ in 0..SEND_ATTEMPTS {
            self.send_bytes(&bytes)?;
            if self.wait_ack(Instant::now() + ACK_TIME)? {
                return Ok(());
            }
            for _ in 0..2 {
                let mut qmp = self.qmp.lock().unwrap_or_else(PoisonError::into_inner);
                qmp.execute("query-status", json!({}))?;
            }
            if self.wait_ack(Instant::now() + ACK_TIME)? {
                return Ok(());
            }
        }
        Err(self.give_up(&io::ErrorKind::TimedOut.into()))
    }

    fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), VmiError> {
        if let Some(why) = &self.lost {
            return Err(VmiError::Lost(why.clone()));
        }
        self.stream.send(bytes, Instant::now() + REPLY_TIME).map_err(|error| self.give_up(&error))
    }

    /// Waits for an acknowledgement; stops on the way are kept.
    fn wait_ack(&mut self, deadline: Instant) -> Result<bool, VmiError> {
        loop {
            match self.piece(deadline)? {
                Some(Piece::Ack) => return Ok(true),
                Some(Piece::Packet(packet)) => {
                    if let Some(stop) = Stop::parse(&packet) {
                        self.note(stop);
                    }
                }
                Some(_) => {}
                None => return Ok(false),
            }
        }
    }

    /// The next packet; `None` when the deadline has passed.
    fn packet(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, VmiError> {
        loop {
            match self.piece(deadline)? {
                Some(Piece::Packet(packet)) => return Ok(Some(packet)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// The next piece, acknowledged if it is a packet; `None` when the deadline has passed.
    fn piece(&mut self, deadline: Instant) -> Result<Option<Piece>, VmiError> {
        if let Some(why) = &self.lost {
            return Err(VmiError::Lost(why.clone()));
        }
        loop {
            match self.decoder.next_piece() {
                // Local sockets damage nothing: these are not the bytes of a stub.
                Some(Piece::Nack | Piece::Damaged) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, "it does not speak the gdb protocol");
                    return Err(self.give_up(&error));
                }
                Some(piece) => {
                    if let Piece::Packet(_) = piece {
                        self.send_bytes(b"+")?;
                    }
                    return Ok(Some(piece));
                }
                None => {}
            }
            match self.stream.read_available(self.decoder.input()) {
                Ok(0) => {}
                Ok(_) => continue,
                Err(error) => return Err(self.give_up(&error)),
            }
            match wait_readable(&[self.stream.as_raw_fd()], deadline) {
                Ok((true, _)) => {}
                Ok((false, _)) => return Ok(None),
                Err(error) => return Err(self.give_up(&error)),
            }
        }
    }

    fn give_up(&mut self, error: &io::Error) -> VmiError {
        let at = &self.address;
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                format!("QEMU has ended or closed its gdb stub at {at}")
            }
            io::ErrorKind::TimedOut => format!(
                "the gdb stub at {at} has not answered for {} s: QEMU hangs, or something has stopped its process",
                REPLY_TIME.as_secs()
            ),
            _ => format!("the gdb stub at {at} broke: {error}"),
        };
        self.lost = Some(why.clone());
        VmiError::Lost(why)
    }

    fn refused(&self, packet: &str, reply: &[u8]) -> VmiError {
        let said = clean(&String::from_utf8_lossy(reply), 40);
        let why = if said.is_empty() { "it does not know that packet".to_owned() } else { format!("it says '{said}'") };
        VmiError::driver(format!("asking the gdb stub at {} for {}", self.address, clean(packet, 40)), why)
    }

    fn strange(&self, why: &str) -> VmiError {
        VmiError::Invalid(format!("{} is not the gdb stub of a QEMU with an x86-64 guest: {why}", self.address))
    }
}
