//! A small QMP client (QEMU's documentation, "QEMU Machine Protocol Specification").
//!
//! The `qapi` crate does not fit: it blocks without bounds on the length of a reply and on the time until it comes.
//! Here each reply has a deadline and a largest size, and a peer that breaks either is given up for good.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    libvirt::LOST,
    patience,
    transport::{Address, Stream, check_flood, wait_readable},
};
use crate::engine::{error::VmiError, snapshot::clean};

/// How long QEMU may take to answer. Its main loop holds everything up while it saves or migrates a machine.
const REPLY_TIME: Duration = Duration::from_secs(5);
/// The longest line that is taken: QEMU's longest replies (memory as text) have some hundred KiB.
const LONGEST_LINE: usize = 8 << 20;
/// Events that are kept until somebody asks for them.
const MOST_EVENTS: usize = 1024;
/// The longest event whose data are kept.
const LONGEST_EVENT: usize = 4096;

/// What QEMU has said on its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name, in capitals.
    pub name: String,
    /// What belongs to it; `null` where there is nothing, or too much.
    pub data: Value,
}

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: Stream,
    address: Address,
    received: Vec<u8>,
    /// How much of `received` is known to hold no end of line.
    searched: usize,
    events: VecDeque<Event>,
    last_id: u64,
    /// The last command, for messages.
    asked: String,
    version: (u64, u64),
    /// Why nothing can be said any more.
    lost: Option<String>,
}

impl Qmp {
    /// Connects, checks the greeting and leaves negotiation mode.
    ///
    /// # Errors
    /// A sentence that tells a socket that is not QEMU's from one that serves somebody else.
    pub fn connect(address: &Address, greeting_time: Duration) -> Result<Self, VmiError> {
        let stream = Stream::connect(address, greeting_time).map_err(|error| match error.kind() {
            // A sentence already.
            _ if matches!(address, Address::Libvirt(_)) => VmiError::Invalid(error.to_string()),
            io::ErrorKind::TimedOut => VmiError::Invalid(no_greeting(address)),
            _ => VmiError::Invalid(format!(
                "connecting to QEMU's QMP socket {address}: {error}; check that QEMU runs and listens there ('vmscope \
                 guests' lists what runs here)"
            )),
        })?;
        Self::over(stream, address, greeting_time)
    }

    /// The same over a socket that is connected already.
    ///
    /// # Errors
    /// As [`Qmp::connect`].
    pub fn over(stream: Stream, address: &Address, greeting_time: Duration) -> Result<Self, VmiError> {
        let mut qmp = Self {
            stream,
            address: address.clone(),
            received: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            last_id: 0,
            asked: String::new(),
            version: (0, 0),
            lost: None,
        };
        let deadline = Instant::now() + greeting_time;
        // A gdb stub has stopped its guest for us: that is not kept waiting for the end of a line. Whatever goes wrong
        // here goes wrong below as well.
        if wait_readable(&[qmp.fd()], deadline).is_ok_and(|(ready, _)| ready) {
            let _ = qmp.stream.read_available(&mut qmp.received);
        }
        if qmp.received.starts_with(b"$T") {
            return Err(qmp.let_go_of_a_stub());
        }
        let greeting = match qmp.line(deadline) {
            Ok(Some(line)) => line,
            // What has been said so far is no line of JSON, or nothing was said.
            Ok(None) if qmp.received.is_empty() => return Err(VmiError::Invalid(no_greeting(address))),
            Ok(None) if qmp.received.starts_with(b"{\"QMP\"") => {
                let why = format!("it has begun to greet and not come to an end in {} s", greeting_time.as_secs_f32());
                return Err(VmiError::Invalid(format!(
                    "QEMU's QMP socket {address} cannot be used: {why}; look whether QEMU hangs"
                )));
            }
            Ok(None) => std::mem::take(&mut qmp.received),
            Err(error) => return Err(qmp.no_qmp(&error)),
        };
        let version = serde_json::from_slice::<Value>(&greeting).ok().and_then(|greeting| {
            let version = greeting.get("QMP")?.get("version")?.get("qemu")?;
            Some((version.get("major")?.as_u64()?, version.get("minor")?.as_u64()?))
        });
        let Some(version) = version else {
            let said = said(&greeting);
            // QEMU's human monitor, which -monitor opens.
            let what = if said.starts_with("QEMU ") && said.contains("monitor") {
                "QEMU's human monitor and not its QMP socket"
            } else {
                "not a QMP socket"
            };
            return Err(VmiError::Invalid(format!(
                "{address} is {what}: it greets with '{said}'; give the one of QEMU's -qmp option"
            )));
        };
        qmp.version = version;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Gives this connection up and makes a new one to the same socket: QEMU serves one at a time.
    ///
    /// # Errors
    /// As [`Qmp::connect`]; nothing can be said any more then.
    pub fn reconnect(&mut self, greeting_time: Duration) -> Result<(), VmiError> {
        self.hang_up();
        *self = Self::connect(&self.address, greeting_time)?;
        Ok(())
    }

    /// Gives this connection up.
    pub fn hang_up(&mut self) {
        self.stream.hang_up();
        self.lost.get_or_insert_with(|| "the connection to QEMU's monitor was given up".into());
    }

    /// Why nobody greets there as QEMU does.
    fn no_qmp(&self, error: &io::Error) -> VmiError {
        if let Some(error) = patience::broken_off(error) {
            return error;
        }
        let (address, said) = (&self.address, said(&self.received));
        let why = match error.kind() {
            _ if is_end(error) && said.is_empty() => "it hung up without a word".to_owned(),
            _ if is_end(error) => format!("it hung up after '{said}'"),
            _ => format!("{error}, and it begins with '{said}'"),
        };
        VmiError::Invalid(format!("{address} is not a QMP socket: {why}; give the one of QEMU's -qmp option"))
    }

    /// A gdb stub stops its guest for whoever connects, says so, and leaves it stopped: detach lets it run again.
    fn let_go_of_a_stub(&mut self) -> VmiError {
        let deadline = Instant::now() + REPLY_TIME;
        let sent = self.stream.send(b"+$D;1#b0", deadline);
        let heard = sent.is_ok() && wait_readable(&[self.fd()], deadline).is_ok_and(|(heard, _)| heard);
        let guest =
            if heard { "the guest, which that had stopped, runs again" } else { "the guest may be stopped now" };
        VmiError::Invalid(format!(
            "{} is QEMU's gdb stub and not its QMP socket; give the one of QEMU's -qmp option ({guest})",
            self.address
        ))
    }

    /// QEMU's major and minor version.
    pub fn version(&self) -> (u64, u64) {
        self.version
    }

    /// Where it is connected.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The process, user and group at the other end of a Unix socket.
    pub fn peer(&self) -> Option<(u32, u32, u32)> {
        self.stream.peer()
    }

    /// The socket's descriptor, for waiting on it.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Executes a command and gives its `return` value.
    ///
    /// # Errors
    /// [`VmiError::Driver`] with QEMU's own words when it refuses; [`VmiError::Lost`] when it is gone or silent.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, VmiError> {
        self.request(command, arguments, None)
    }

    /// Hands QEMU a descriptor, which it then knows by this name (QMP `getfd`).
    ///
    /// # Errors
    /// [`VmiError::Unsupported`] when the monitor is not at the end of a Unix socket; else as [`Qmp::execute`].
    pub fn pass_descriptor(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), VmiError> {
        if let Stream::Tcp(_) = self.stream {
            return Err(VmiError::Unsupported { what: "handing a descriptor to QEMU over TCP" });
        }
        self.request("getfd", json!({ "fdname": name }), Some(descriptor)).map(drop)
    }

    fn request(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, VmiError> {
        if let Some(why) = &self.lost {
            return Err(VmiError::Lost(why.clone()));
        }
        patience::check().map_err(|error| self.give_up(&error))?;
        command.clone_into(&mut self.asked);
        self.last_id += 1;
        let id = self.last_id;
        let mut text = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        text.push('\n');
        let deadline = Instant::now() + REPLY_TIME;
        let sent = match descriptor {
            Some(descriptor) => self.stream.send_with(text.as_bytes(), descriptor, deadline),
            None => self.stream.send(text.as_bytes(), deadline),
        };
        if let Err(error) = sent {
            // What it has said before may tell why.
            while self.message(Instant::now())?.is_some() {}
            return Err(self.give_up(&error));
        }
        loop {
            let reply = match self.message(deadline)? {
                Some(reply) => reply,
                None => return Err(self.give_up(&io::ErrorKind::TimedOut.into())),
            };
            let of = reply.get("id");
            let error = reply.get("error");
            // What QEMU could not read it refuses without an id. Anything else is the reply to a command that was given up.
            if of.and_then(Value::as_u64) != Some(id) && !(of.is_none() && error.is_some()) {
                continue;
            }
            let doing = || format!("asking QEMU to {command}");
            if let Some(error) = error {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(VmiError::driver(doing(), clean(why, 300)));
            }
            return match reply.get("return") {
                Some(value) => Ok(value.clone()),
                None => Err(VmiError::driver(doing(), "its reply has neither a result nor an error")),
            };
        }
    }

    /// Executes a line of the human monitor, for the vCPU of this index where one is named, and gives its output.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn human(&mut self, line: &str, vcpu: Option<u16>) -> Result<String, VmiError> {
        let mut arguments = json!({ "command-line": line });
        if let (Some(vcpu), Some(map)) = (vcpu, arguments.as_object_mut()) {
            map.insert("cpu-index".into(), vcpu.into());
        }
        match self.execute("human-monitor-command", arguments)? {
            Value::String(text) => Ok(text),
            _ => Err(VmiError::driver(format!("asking QEMU's monitor for '{line}'"), "its answer is not text")),
        }
    }

    /// The events that have come in since the last call, oldest first.
    ///
    /// # Errors
    /// [`VmiError::Lost`] when QEMU is gone.
    pub fn events(&mut self) -> Result<Vec<Event>, VmiError> {
        if let Some(why) = &self.lost {
            return Err(VmiError::Lost(why.clone()));
        }
        // Late replies are passed over.
        while self.message(Instant::now())?.is_some() {}
        Ok(self.events.drain(..).collect())
    }

    /// The next reply; events on the way are put aside. `None` when the deadline has passed.
    fn message(&mut self, deadline: Instant) -> Result<Option<Value>, VmiError> {
        loop {
            let line = match self.line(deadline) {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.give_up(&error)),
            };
            let Ok(mut message) = serde_json::from_slice::<Value>(&line) else {
                let why = format!("what comes from there is not JSON: '{}'", said(&line));
                return Err(self.give_up(&io::Error::new(io::ErrorKind::InvalidData, why)));
            };
            let Some(event) = message.get("event") else { return Ok(Some(message)) };
            if let (Address::Libvirt(_), Some(LOST)) = (&self.address, event.as_str()) {
                let why = message.pointer("/data/why").and_then(Value::as_str).unwrap_or_default();
                let why = clean(why, 300);
                self.lost = Some(why.clone());
                return Err(VmiError::Lost(why));
            }
            let name = event.as_str().unwrap_or_default().to_owned();
            let data = message.get_mut("data").filter(|_| line.len() <= LONGEST_EVENT).map(Value::take);
            if self.events.len() == MOST_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(Event { name, data: data.unwrap_or_default() });
        }
    }

    /// The next line without its end; `None` when the deadline has passed.
    fn line(&mut self, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
        loop {
            let unsearched = self.received.get(self.searched..).unwrap_or_default();
            if let Some(end) = unsearched.iter().position(|&byte| byte == b'\n') {
                let rest = self.received.split_off(self.searched + end + 1);
                let mut line = std::mem::replace(&mut self.received, rest);
                line.truncate(self.searched + end);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.received.len();
            if self.received.len() > LONGEST_LINE {
                let why = format!("it has sent more than {} MiB without an end of line", LONGEST_LINE >> 20);
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            if self.stream.read_available(&mut self.received)? != 0 {
                check_flood(deadline)?;
            } else if !wait_readable(&[self.stream.as_raw_fd()], deadline)?.0 {
                return Ok(None);
            }
        }
    }

    fn give_up(&mut self, error: &io::Error) -> VmiError {
        // What is broken off by us can go on: a reply that comes later is known by its id.
        if let Some(error) = patience::broken_off(error) {
            return error;
        }
        let (address, asked) = (&self.address, &self.asked);
        let why = match error.kind() {
            _ if is_end(error) => "the guest is gone: QEMU has ended or closed its QMP socket".to_owned(),
            io::ErrorKind::TimedOut => format!(
                "QEMU has not answered '{asked}' on {address} for {} s: it hangs, or something has stopped its process",
                REPLY_TIME.as_secs()
            ),
            _ => format!("the QMP socket {address} cannot be used any more, since '{asked}' was asked: {error}"),
        };
        self.lost = Some(why.clone());
        VmiError::Lost(why)
    }
}

/// Whether the peer has gone.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// The beginning of what a peer has said.
fn said(bytes: &[u8]) -> String {
    clean(String::from_utf8_lossy(bytes.get(..200).unwrap_or(bytes)).trim_end(), 60)
}

fn no_greeting(address: &Address) -> String {
    format!(
        "{address} does not greet: another client holds this QMP socket (QEMU serves one at a time), or it is not \
         QEMU's QMP socket; end the other client or give QEMU a second -qmp option"
    )
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 7, "minor": 2}}}}"#;

    /// A client of a peer that has said this, and the peer.
    fn client(said: &str) -> (Qmp, UnixStream) {
        let (ours, mut peer) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("a socket");
        peer.write_all(format!("{GREETING}\n{{\"return\": {{}}, \"id\": 1}}\n{said}").as_bytes()).expect("room");
        let address = Address::Tcp("test:1".into());
        (Qmp::over(Stream::Unix(ours), &address, REPLY_TIME).expect("a greeting"), peer)
    }

    #[test]
    fn replies_are_told_from_events_and_from_late_ones() {
        let (mut qmp, _peer) = client(
            "{\"event\": \"STOP\"}\n{\"return\": 1, \"id\": 1}\n{\"return\": 2, \"id\": 2}\n\
             {\"error\": {\"desc\": \"no \\u001b[2J\"}, \"id\": 3}\n",
        );
        assert_eq!(qmp.execute("x", json!({})).ok(), Some(json!(2)));
        let refused = qmp.execute("y", json!({})).expect_err("refused").to_string();
        assert_eq!(refused, "asking QEMU to y: no \u{241b}[2J");
        assert_eq!(qmp.events().ok(), Some(vec![Event { name: "STOP".to_owned(), data: Value::Null }]));
    }

    #[test]
    fn events_bring_what_belongs_to_them_unless_it_is_too_much() {
        let long = "x".repeat(LONGEST_EVENT);
        let (mut qmp, _peer) = client(&format!(
            "{{\"event\": \"RESET\", \"data\": {{\"guest\": true}}}}\n{{\"event\": \"RESET\", \"data\": \"{long}\"}}\n"
        ));
        let data: Vec<Value> = qmp.events().expect("events").into_iter().map(|event| event.data).collect();
        assert_eq!(data, [json!({ "guest": true }), Value::Null]);
    }
}
