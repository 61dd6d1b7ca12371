//! QMP to a domain of libvirt's, whose own monitor connection libvirt holds.
//!
//! A thread speaks QMP on one end of a socket pair and passes each command on through `virsh qemu-monitor-command`, so the
//! rest of the driver talks to a domain as to any QEMU. Descriptors that come with `getfd` are handed to virsh, which hands
//! them on. QEMU's events come from `virsh qemu-monitor-event`; since none of them says that it has begun to listen, and
//! libvirt may be started anew meanwhile, the run state is asked for once a second as well.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Domain,
    child::{Running, is_end},
    virsh::{self, Failure, Virsh},
};
use crate::engine::{
    driver::qemu::{
        descriptor, patience,
        transport::{Stream, wait_readable},
    },
    error::VmiError,
    snapshot::clean,
};

/// How long a command may take. The client's own patience (`qmp`) ends a little later, so that the reason is told.
const COMMAND_TIME: Duration = Duration::from_millis(4500);
/// How often the run state is looked at.
const STATUS_POLL: Duration = Duration::from_secs(1);
/// The longest request, and the longest line of an event, that is taken.
const LONGEST: usize = 1 << 20;
/// The event by which a client hears that the domain is gone, and why (`data.why`). It is no event of QEMU's.
pub const LOST: &str = "VMSCOPE_LOST";

/// Connects to a running domain's monitor.
///
/// # Errors
/// A sentence, as the text of the error.
pub fn connect(domain: &Domain, timeout: Duration) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let domain = domain.clone();
    let (opened, is_open) = sync_channel(1);
    thread::Builder::new().name("libvirt".into()).spawn(move || {
        if let Some(mut bridge) = Bridge::open(domain, theirs, &opened) {
            bridge.serve();
        }
    })?;
    let deadline = Instant::now() + timeout.max(COMMAND_TIME + Duration::from_millis(500));
    loop {
        patience::check()?;
        let look = patience::next_look(deadline).saturating_duration_since(Instant::now());
        match is_open.recv_timeout(look) {
            Ok(Ok(())) => return Ok(ours),
            Ok(Err(error)) => return Err(io::Error::other(error.to_string())),
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(_) => {
                return Err(io::Error::other("libvirt does not answer: 'virsh list' would tell whether it hangs"));
            }
        }
    }
}

struct Bridge {
    domain: Domain,
    virsh: Virsh,
    events: Option<Running>,
    client: Stream,
    requests: Vec<u8>,
    /// A descriptor that came in with the last bytes.
    passed: Option<OwnedFd>,
    lines: Vec<u8>,
    /// Whether the guest runs, as the client was told last.
    running: Option<bool>,
    looked: Instant,
}

/// Why a bridge ends.
enum End {
    /// The client has gone.
    Client,
    /// The domain or libvirt has.
    Domain(String),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Client
    }
}

impl Bridge {
    fn open(domain: Domain, client: UnixStream, opened: &SyncSender<Result<(), VmiError>>) -> Option<Self> {
        let refuse = |failure: Failure| {
            let _ = opened.send(Err(domain.refusal(failure)));
        };
        // Before anything is asked, so that little is missed.
        let events = virsh::listen(&domain.uri, &domain.uuid).ok();
        let virsh = Virsh::start(&domain.uri).map_err(refuse).ok()?;
        let mut bridge = Self {
            domain: domain.clone(),
            virsh,
            events,
            client: Stream::Unix(client),
            requests: Vec::new(),
            passed: None,
            lines: Vec::new(),
            running: None,
            looked: Instant::now(),
        };
        let version = match bridge.command(&json!({ "execute": "query-version" })) {
            Ok(reply) => reply.get("return").cloned(),
            Err(failure) => {
                refuse(failure);
                return None;
            }
        };
        let greeting = json!({ "QMP": { "version": version, "capabilities": [] } });
        bridge.say(&greeting).ok()?;
        opened.send(Ok(())).ok()?;
        Some(bridge)
    }

    fn serve(&mut self) {
        let why = loop {
            match self.turn() {
                Ok(()) => {}
                Err(End::Client) => return,
                Err(End::Domain(why)) => break why,
            }
        };
        let _ = self.say(&json!({ "event": LOST, "data": { "why": why } }));
    }

    fn turn(&mut self) -> Result<(), End> {
        let events = self.events.as_ref().map_or(-1, Running::fd);
        let (asked, heard) = wait_readable(&[self.client.as_raw_fd(), events], self.looked + STATUS_POLL)?;
        if heard {
            self.hear()?;
        }
        if asked {
            self.take_requests()?;
        }
        if self.looked.elapsed() >= STATUS_POLL {
            self.look()?;
            self.looked = Instant::now();
        }
        Ok(())
    }

    fn say(&mut self, message: &Value) -> io::Result<()> {
        let mut text = message.to_string();
        text.push('\n');
        self.client.send(text.as_bytes(), Instant::now() + COMMAND_TIME)
    }

    /// Passes on the events that have come in.
    fn hear(&mut self) -> Result<(), End> {
        let Some(events) = &mut self.events else { return Ok(()) };
        if events.stream.read_available(&mut self.lines).is_err() || self.lines.len() > LONGEST {
            // Another one is started with the next look.
            self.events = None;
            self.lines.clear();
            return Ok(());
        }
        while let Some(line) = next_line(&mut self.lines) {
            if let Some((name, data)) = event(&String::from_utf8_lossy(&line), &self.domain.name) {
                self.note(&name);
                self.say(&json!({ "event": name, "data": data }))?;
            }
        }
        Ok(())
    }

    fn note(&mut self, event: &str) {
        match event {
            "STOP" => self.running = Some(false),
            "RESUME" => self.running = Some(true),
            _ => {}
        }
    }

    /// Asks for the run state; a change that was not told by an event is told now.
    fn look(&mut self) -> Result<(), End> {
        if self.events.is_none() {
            self.events = virsh::listen(&self.domain.uri, &self.domain.uuid).ok();
        }
        let reply = match self.command(&json!({ "execute": "query-status" })) {
            Ok(reply) => reply,
            Err(Failure::Refused(why)) => {
                return self.why_gone(&why).map_or(Ok(()), |why| Err(End::Domain(why)));
            }
            Err(failure) => return Err(End::Domain(self.domain.refusal(failure).to_string())),
        };
        let Some(runs) = reply.pointer("/return/running").and_then(Value::as_bool) else { return Ok(()) };
        if self.running.replace(runs).is_some_and(|told| told != runs) {
            self.say(&json!({ "event": if runs { "RESUME" } else { "STOP" } }))?;
        }
        Ok(())
    }

    fn take_requests(&mut self) -> Result<(), End> {
        let Stream::Unix(client) = &self.client else { return Err(End::Client) };
        match descriptor::receive(client, &mut self.requests) {
            Ok(Some(passed)) => self.passed = Some(passed),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if is_end(&error) => return Err(End::Client),
            Err(error) => return Err(error.into()),
        }
        if self.requests.len() > LONGEST {
            return Err(End::Client);
        }
        while let Some(line) = next_line(&mut self.requests) {
            let mut request: Value = serde_json::from_slice(&line).unwrap_or_default();
            let id = request.as_object_mut().and_then(|request| request.remove("id"));
            let mut reply = self.answer(&request)?;
            if let (Some(id), Some(reply)) = (id, reply.as_object_mut()) {
                reply.insert("id".into(), id);
            }
            self.say(&reply)?;
        }
        Ok(())
    }

    fn answer(&mut self, request: &Value) -> Result<Value, End> {
        let command = request.get("execute").and_then(Value::as_str);
        if command == Some("qmp_capabilities") {
            return Ok(json!({ "return": {} }));
        }
        let passed = self.passed.take().filter(|_| command == Some("getfd"));
        let reply = match &passed {
            Some(passed) => self.domain.pass(request, passed.as_fd(), Instant::now() + COMMAND_TIME),
            None => self.command(request),
        };
        match reply {
            Ok(reply) => Ok(reply),
            // Only the command has failed, unless the domain has ended.
            Err(Failure::Refused(why)) => match self.why_gone(&why) {
                Some(why) => Err(End::Domain(why)),
                None => Ok(json!({ "error": { "desc": format!("libvirt: {why}") } })),
            },
            Err(failure) => Err(End::Domain(self.domain.refusal(failure).to_string())),
        }
    }

    fn command(&mut self, request: &Value) -> Result<Value, Failure> {
        let json = virsh::quote_json(&request.to_string());
        let line = format!("qemu-monitor-command --domain {} --cmd {json}", self.domain.uuid);
        reply(&self.virsh.ask(&line, Instant::now() + COMMAND_TIME)?)
    }

    /// Why the domain is gone, if it is, given what libvirt said when it was asked something else.
    fn why_gone(&mut self, said: &str) -> Option<String> {
        let name = &self.domain.name;
        let line = format!("domstate --domain {} --reason", self.domain.uuid);
        match self.virsh.ask(&line, Instant::now() + COMMAND_TIME) {
            Ok(state) if state.starts_with("shut off") || state.starts_with("crashed") => {
                Some(format!("the libvirt domain '{name}' has ended: {}", clean(&state, 60)))
            }
            Ok(_) => None,
            Err(Failure::Refused(_)) => Some(format!("the libvirt domain '{name}' has ended: {said}")),
            Err(failure) => Some(self.domain.refusal(failure).to_string()),
        }
    }
}

/// QEMU's reply in what virsh has printed.
pub fn reply(printed: &str) -> Result<Value, Failure> {
    match serde_json::from_str::<Value>(printed) {
        Ok(reply) if reply.get("return").is_some() || reply.get("error").is_some() => Ok(reply),
        _ => Err(Failure::Broken(format!("virsh answers '{}' where QEMU's reply was wanted", clean(printed, 60)))),
    }
}

/// The first line without its end, if it has come in whole.
fn next_line(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let rest = bytes.split_off(end + 1);
    let mut line = std::mem::replace(bytes, rest);
    line.truncate(end);
    Some(line)
}

/// Name and data of an event, from `event STOP at 1795935312.788251 for domain 'NAME': DATA`, where the data are JSON or
/// `<null>`.
fn event(line: &str, domain: &str) -> Option<(String, Value)> {
    let (name, rest) = line.strip_prefix("event ")?.split_once(" at ")?;
    let is_name = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_uppercase() || b"_0123456789".contains(&b));
    if !is_name || name == LOST {
        return None;
    }
    let data = rest.split_once(" for domain ").and_then(|(_, rest)| rest.strip_prefix(&format!("'{domain}': ")));
    Some((name.to_owned(), data.and_then(|data| serde_json::from_str(data).ok()).unwrap_or(Value::Null)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_what_virsh_prints() {
        let of = |line: &str| event(line, "my 'guest': x");
        assert_eq!(
            of("event STOP at 1795935312.788251 for domain 'my 'guest': x': <null>"),
            Some(("STOP".into(), Value::Null))
        );
        let reset =
            of("event RESET at 1.2 for domain 'my 'guest': x': {\"guest\":false,\"reason\":\"host-qmp-system-reset\"}");
        assert_eq!(reset, Some(("RESET".into(), json!({ "guest": false, "reason": "host-qmp-system-reset" }))));
        // Of a domain that was given another name the data are left out.
        assert_eq!(of("event RESET at 1.2 for domain 'other': {}"), Some(("RESET".into(), Value::Null)));
        for line in ["", "event", "event  at ", "event stop at 1 for domain 'x': <null>", "event VMSCOPE_LOST at 1"] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    #[test]
    fn only_qemus_replies_are_replies() {
        assert!(reply("{\"return\":{},\"id\":\"libvirt-1\"}").is_ok());
        assert!(reply("{\"error\":{\"desc\":\"no\"}}").is_ok());
        for said in ["", "{}", "[1]", "virsh # \u{1b}[2J", "{\"return\":"] {
            let Err(Failure::Broken(why)) = reply(said) else { panic!("{said}") };
            assert!(!why.contains('\u{1b}'), "{why}");
        }
    }
}
