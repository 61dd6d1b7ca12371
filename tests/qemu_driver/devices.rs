//! The part of the fake QEMU that takes descriptors and makes character devices of them.

use std::{
    collections::BTreeMap,
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use serde_json::{Value, json};

/// Descriptors and devices by their names.
#[derive(Debug, Default)]
pub struct Devices {
    refused: &'static str,
    /// A descriptor that came with the last command.
    pub passed: Option<OwnedFd>,
    named: BTreeMap<String, OwnedFd>,
    devices: BTreeMap<String, UnixStream>,
    stub: Option<String>,
}

impl Devices {
    /// Of a QEMU that refuses one of `getfd`, `chardev-add` and `gdbserver` (of a device).
    pub fn refusing(refused: &'static str) -> Self {
        Self { refused, ..Self::default() }
    }

    /// With a stub on a device, as a session has that is connected by the other end.
    pub fn with_stub(label: &str, stream: UnixStream) -> Self {
        let devices = [(label.to_owned(), stream)].into();
        Self { devices, stub: Some(label.to_owned()), ..Self::default() }
    }

    /// With a device that somebody made who died before there was a stub on it.
    pub fn and_lost(mut self, label: &str, stream: UnixStream) -> Self {
        self.devices.insert(label.to_owned(), stream);
        self
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.devices.is_empty() && self.stub.is_none()
    }

    /// Whether there are devices.
    pub fn any(&self) -> bool {
        !self.devices.is_empty()
    }

    /// What `query-chardev` says.
    pub fn query(&self) -> Value {
        let of = |(label, stream): (&String, &UnixStream)| {
            let filename = if is_connected(stream) { "unix:".to_owned() } else { format!("disconnected:fd:{label}") };
            json!({ "label": label, "filename": filename, "frontend-open": true })
        };
        self.devices.iter().map(of).collect()
    }

    /// `gdbserver chardev:LABEL`.
    pub fn start_stub(&mut self, label: &str) -> Option<UnixStream> {
        if self.refused == "gdbserver" {
            return None;
        }
        let stream = self.devices.get(label)?.try_clone().expect("a socket");
        self.stub = Some(label.to_owned());
        Some(stream)
    }

    /// `gdbserver none`: the device goes with it.
    pub fn end_stub(&mut self) {
        if let Some(stream) = self.stub.take().and_then(|label| self.devices.remove(&label)) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// The commands about them; `None` is refused.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Option<Value> {
        if command == self.refused {
            self.passed = None;
            return None;
        }
        let name = |key: &str| arguments.get(key).and_then(Value::as_str).map(str::to_owned);
        match command {
            "getfd" => drop(self.named.insert(name("fdname")?, self.passed.take()?)),
            "closefd" => drop(self.named.remove(&name("fdname")?)?),
            "chardev-add" => {
                let descriptor = arguments.pointer("/backend/data/addr/data/str")?.as_str()?;
                assert_eq!(arguments.pointer("/backend/data/server"), Some(&json!(false)));
                let stream = UnixStream::from(self.named.remove(descriptor)?);
                self.devices.insert(name("id")?, stream);
            }
            // The stub's is busy.
            "chardev-remove" if self.stub == name("id") => return None,
            "chardev-remove" => drop(self.devices.remove(&name("id")?)?),
            _ => return None,
        }
        Some(json!({}))
    }
}

/// Whether somebody holds the other end: else even nothing cannot be written.
fn is_connected(mut stream: &UnixStream) -> bool {
    stream.write(&[]).is_ok()
}
