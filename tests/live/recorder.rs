//! A peer in between: passes on what vmscope and QEMU say to each other, and keeps what vmscope says.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;

/// What stands before one of QEMU's sockets.
pub struct Recorder {
    folder: tempfile::TempDir,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    /// Stands before this socket.
    pub fn before(socket: PathBuf) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let said = Arc::<Mutex<Vec<u8>>>::default();
        let listener = UnixListener::bind(folder.path().join("in")).expect("a socket");
        let kept = Arc::clone(&said);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let qemu = UnixStream::connect(&socket).expect("QEMU listens");
                let (from, to) = (qemu.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
                thread::spawn(move || pass(from, to, |_| {}));
                let kept = Arc::clone(&kept);
                thread::spawn(move || pass(client, qemu, |bytes| kept.lock().expect("no panic").extend(bytes)));
            }
        });
        Self { folder, said }
    }

    /// The address to be given to vmscope.
    pub fn address(&self) -> String {
        format!("unix:{}", Path::join(self.folder.path(), "in").display())
    }

    /// All bytes so far, which are forgotten then.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.said.lock().expect("no panic"))
    }

    /// The same as QMP commands: their names, and the lines of the human monitor.
    pub fn take_commands(&self) -> Vec<String> {
        let said = self.take();
        let lines = said.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let command = |line: &[u8]| {
            let command: Value = serde_json::from_slice(line).expect("vmscope speaks JSON");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            match text(&command["execute"]).as_str() {
                "human-monitor-command" => text(&command["arguments"]["command-line"]),
                name => name.to_owned(),
            }
        };
        lines.map(command).collect()
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, mut keep: impl FnMut(&[u8])) {
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = buffer.get(..count).unwrap_or_default();
        keep(bytes);
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    // The other side hears of the end as well.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
