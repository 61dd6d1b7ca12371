//! Packets to and from a stub, with acknowledgements, deadlines and stops that come unasked.

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    packet::{self, Decoder, Piece},
    stop::Stop,
};
use crate::engine::{
    driver::qemu::{
        patience,
        qmp::Qmp,
        transport::{Address, Stream, check_flood, wait_readable},
    },
    error::VmiError,
    snapshot::clean,
};

/// How long the stub may take to answer.
const REPLY_TIME: Duration = Duration::from_secs(5);
/// The same for the first answer: a second client never gets one.
const FIRST_REPLY_TIME: Duration = Duration::from_secs(2);
/// How long a packet may go unacknowledged before it is found out whether QEMU has taken it at all.
const ACK_TIME: Duration = Duration::from_millis(100);
/// How long connecting may take in all, with everything that is asked about the stub: usually some milliseconds.
pub const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How often a packet is sent.
const SEND_ATTEMPTS: usize = 8;

/// How much of what a stub has said first is kept for messages.
const MOST_BEGINNING: usize = 120;
/// Stops that are kept until somebody asks for them; QEMU has one at a time.
const MOST_STOPS: usize = 1024;

/// A connection that packets go over.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    /// What messages call the stub: its address, or the device in QEMU that it is reached by.
    address: String,
    decoder: Decoder,
    stops: VecDeque<Stop>,
    /// How many stops have come in.
    stops_seen: u64,
    /// Whether a packet came in that was not acknowledged yet. That is done with the next packet that is sent: a byte by
    /// itself would wake QEMU once more, and pause a guest that somebody else has set running.
    owes_ack: bool,
    /// The beginning of what has come in.
    began: Vec<u8>,
    /// The last packet that was sent, for messages.
    asked: String,
    /// Whether the connection stands. From then on a packet and its answer are one thing, whoever wants to leave.
    stands: bool,
    /// The monitor of the same QEMU.
    qmp: Arc<Mutex<Qmp>>,
    /// Why nothing can be said any more.
    lost: Option<String>,
}

impl Wire {
    /// Connects and asks why the guest has stopped, which drops all breakpoints.
    ///
    /// # Errors
    /// A sentence: nobody listens, or somebody else holds the stub.
    pub fn connect(address: &Address, qmp: Arc<Mutex<Qmp>>) -> Result<Self, VmiError> {
        let stream = Stream::connect(address, FIRST_REPLY_TIME)
            .map_err(|error| VmiError::driver(format!("connecting to QEMU's gdb stub at {address}"), error))?;
        Self::over(stream, address, qmp)
    }

    /// The same over a socket that is connected already.
    ///
    /// # Errors
    /// As [`Wire::connect`].
    pub fn over(stream: Stream, address: &impl fmt::Display, qmp: Arc<Mutex<Qmp>>) -> Result<Self, VmiError> {
        let mut wire = Self {
            stream,
            address: address.to_string(),
            decoder: Decoder::default(),
            stops: VecDeque::new(),
            stops_seen: 0,
            owes_ack: false,
            began: Vec::new(),
            asked: String::new(),
            stands: false,
            qmp,
            lost: None,
        };
        // A second client is not even heard.
        match wire.ask_why() {
            Ok(Some(_)) => Ok(wire),
            // Whatever listens there, the guest itself is not lost with it.
            Err(VmiError::Lost(why)) => {
                Err(VmiError::Invalid(wire.no_stub().unwrap_or_else(|| format!("no gdb stub was found: {why}"))))
            }
            Err(error) => Err(error),
            Ok(None) => Err(VmiError::Invalid(wire.no_stub().unwrap_or_else(|| {
                format!(
                    "the gdb stub at {address} does not answer: another debugger holds it (it serves one at a time), or \
                     it is no gdb stub; end that debugger first, or leave --gdb out"
                )
            }))),
        }
    }

    /// What else listens there, if what has come in is not a stub's.
    fn no_stub(&self) -> Option<String> {
        let said = clean(String::from_utf8_lossy(&self.began).trim(), 60);
        let what = if said.is_empty() || self.began.starts_with(b"$") || self.began.starts_with(b"+") {
            return None;
        } else if said.starts_with("{\"QMP\"") {
            "QEMU's QMP socket and not its gdb stub".to_owned()
        } else {
            format!("not a gdb stub: it says '{said}'")
        };
        Some(format!(
            "no gdb stub was found: {} is {what}; give the address of QEMU's -gdb option, or leave --gdb out",
            self.address
        ))
    }

    /// The connection stands.
    pub fn settle(&mut self) {
        self.stands = true;
    }

    /// Asks why the guest has stopped. The answer is a stop reply, like the unasked one that may come before it.
    fn ask_why(&mut self) -> Result<Option<Stop>, VmiError> {
        "?".clone_into(&mut self.asked);
        self.send_bytes(&packet::encode(b"?"))?;
        self.wait_stop(Instant::now() + FIRST_REPLY_TIME)
    }

    /// Asks why the stopped guest has stopped, for the sake of what that does in QEMU: every breakpoint is dropped.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn drop_points(&mut self) -> Result<(), VmiError> {
        self.forget_stops();
        match self.ask_why()? {
            Some(_) => Ok(()),
            None => Err(self.give_up(&io::ErrorKind::TimedOut.into())),
        }
    }

    /// What messages call the stub.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The socket's descriptor, for waiting on it.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// How many stops have come in so far.
    pub fn stops_seen(&self) -> u64 {
        self.stops_seen
    }

    /// Whether there are stops that nobody has asked for.
    pub fn has_stops(&self) -> bool {
        !self.stops.is_empty()
    }

    /// Forgets the stops that nobody has asked for.
    pub fn forget_stops(&mut self) {
        self.stops.clear();
    }

    /// Asks a running guest to stop.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn interrupt(&mut self) -> Result<(), VmiError> {
        // QEMU takes any byte for the answer to a packet that was not acknowledged.
        let bytes: &[u8] = if std::mem::take(&mut self.owes_ack) { b"+\x03" } else { b"\x03" };
        self.send_bytes(bytes)
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

    /// Sends a packet and gives its answer; stops that come in between are kept.
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn command(&mut self, packet: &[u8]) -> Result<Vec<u8>, VmiError> {
        self.as_a_whole(|wire| wire.exchange(packet))
    }

    /// Once the connection stands, nothing that is said over it is broken off in the middle.
    fn as_a_whole<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, VmiError>) -> Result<T, VmiError> {
        if !self.stands {
            return work(self);
        }
        match patience::whole(|| work(self)) {
            Ok(result) => result,
            Err(error) => Err(self.give_up(&error)),
        }
    }

    fn exchange(&mut self, packet: &[u8]) -> Result<Vec<u8>, VmiError> {
        self.send_and_see(packet)?;
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
    ///
    /// # Errors
    /// When the stub is gone.
    pub fn send(&mut self, packet: &[u8]) -> Result<(), VmiError> {
        self.as_a_whole(|wire| wire.send_and_see(packet))
    }

    fn send_and_see(&mut self, packet: &[u8]) -> Result<(), VmiError> {
        self.asked = clean(&String::from_utf8_lossy(packet), 40);
        let mut bytes = packet::encode(packet);
        if std::mem::take(&mut self.owes_ack) {
            bytes.insert(0, b'+');
        }
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
                    self.owes_ack |= matches!(piece, Piece::Packet(_));
                    return Ok(Some(piece));
                }
                None => {}
            }
            // Without time to wait for anything, what is there is read; else there is hardly ever anything yet.
            if Instant::now() < deadline {
                match wait_readable(&[self.stream.as_raw_fd()], deadline) {
                    Ok((true, _)) => {}
                    Ok((false, _)) => return Ok(None),
                    Err(error) => return Err(self.give_up(&error)),
                }
            }
            let before = self.decoder.input().len();
            let read = self.stream.read_available(self.decoder.input());
            let room = MOST_BEGINNING.saturating_sub(self.began.len());
            self.began.extend(self.decoder.input().iter().skip(before).take(room));
            match read {
                Ok(0) if Instant::now() >= deadline => return Ok(None),
                Ok(0) => {}
                Ok(_) => match check_flood(deadline) {
                    Ok(()) => continue,
                    Err(error) => return Err(self.give_up(&error)),
                },
                Err(error) => return Err(self.give_up(&error)),
            }
        }
    }

    /// Says what has become of the stub, and whether QEMU is still there without it.
    fn give_up(&mut self, error: &io::Error) -> VmiError {
        if let Some(error) = patience::broken_off(error) {
            return error;
        }
        let still = {
            let mut qmp = self.qmp.lock().unwrap_or_else(PoisonError::into_inner);
            patience::whole(|| qmp.execute("query-status", json!({})))
        };
        let still = match still {
            // Then that is what there is to tell.
            Ok(Err(VmiError::Lost(why))) => {
                self.lost = Some(why.clone());
                return VmiError::Lost(why);
            }
            Ok(Ok(_)) => ", though QEMU answers on its QMP socket",
            _ => "",
        };
        let (at, asked) = (&self.address, &self.asked);
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                format!("the gdb stub at {at} was closed after '{asked}'{still}")
            }
            io::ErrorKind::TimedOut => {
                format!("the gdb stub at {at} has not answered '{asked}' for {} s{still}", REPLY_TIME.as_secs())
            }
            _ => format!("the gdb stub at {at} cannot be used any more, since '{asked}' was asked: {error}"),
        };
        self.lost = Some(why.clone());
        VmiError::Lost(why)
    }

    fn note(&mut self, stop: Stop) {
        if self.stops.len() == MOST_STOPS {
            self.stops.pop_front();
        }
        self.stops.push_back(stop);
        self.stops_seen = self.stops_seen.wrapping_add(1);
    }
}
