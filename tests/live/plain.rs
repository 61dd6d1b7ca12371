//! The plainest gdb client that counts a breakpoint's hits: what vmscope's own time for a hit is compared with.
//!
//! It does what is needed under KVM and no more, on one vCPU: read the registers, get over the breakpoint (with RF set
//! where it is in hardware; else by a step with the INT3 out), go on.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

/// How a breakpoint is in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Z1`: a debug register.
    Hardware,
    /// `Z0`: an INT3 in the guest's memory.
    Software,
}

/// A client that counts hits on a thread of its own.
pub struct Client {
    end: Sender<()>,
    thread: JoinHandle<u32>,
}

impl Client {
    /// Connects and sets a breakpoint; returns once it is in the guest and the guest runs.
    pub fn at(socket: &Path, address: u64, kind: Kind) -> Self {
        let mut stub = Stub::connect(socket);
        let point = format!("{},{address:x},1", if kind == Kind::Hardware { 1 } else { 0 });
        assert_eq!(stub.ask(&format!("Z{point}")), "OK", "the stub takes the breakpoint");
        stub.send("vCont;c");
        let (end, ended) = channel();
        let thread = thread::spawn(move || stub.count(address, &point, kind, &ended));
        Self { end, thread }
    }

    /// Takes the breakpoint out and detaches; answers how many hits there were.
    pub fn leave(self) -> u32 {
        self.end.send(()).expect("the client listens");
        self.thread.join().expect("the client counts")
    }
}

struct Stub {
    stream: UnixStream,
    pending: Vec<u8>,
}

impl Stub {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the stub listens");
        stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket takes a time-out");
        let mut stub = Self { stream, pending: Vec::new() };
        stub.ask("qSupported:multiprocess+;vContSupported+;xmlRegisters=i386");
        // Without them the stub does nothing on `P`.
        for file in ["target.xml", "i386-64bit.xml"] {
            stub.ask(&format!("qXfer:features:read:{file}:0,ffb"));
        }
        stub
    }

    fn count(&mut self, address: u64, point: &str, kind: Kind, ended: &Receiver<()>) -> u32 {
        let mut hits = 0;
        loop {
            let Some(stop) = self.packet() else {
                if ended.try_recv() == Err(TryRecvError::Empty) {
                    continue;
                }
                self.stream.write_all(&[3]).expect("the stub listens");
                while self.packet().is_none() {}
                assert_eq!(self.ask(&format!("z{point}")), "OK", "the breakpoint goes");
                assert_eq!(self.ask("D;1"), "OK", "the stub lets go");
                return hits;
            };
            assert!(stop.starts_with('T'), "a stop: {stop}");
            let registers = self.ask("g");
            let number = |at: usize, bytes: usize| {
                let digits = registers.get(2 * at..2 * (at + bytes)).expect("a whole set of registers");
                let bytes =
                    (0..bytes).rev().map(|i| u64::from_str_radix(&digits[2 * i..2 * i + 2], 16).expect("digits"));
                bytes.fold(0, |value, byte| value << 8 | byte)
            };
            // Sixteen registers of eight bytes come before RIP, and EFLAGS behind it.
            if number(128, 8) == address {
                hits += 1;
                match kind {
                    Kind::Hardware => {
                        let flags = (number(136, 4) as u32 | 1 << 16).swap_bytes();
                        assert_eq!(self.ask(&format!("P11={flags:08x}")), "OK", "RF can be set");
                    }
                    Kind::Software => {
                        self.ask(&format!("z{point}"));
                        self.send("vCont;s:p1.1");
                        while self.packet().is_none() {}
                        self.ask(&format!("Z{point}"));
                    }
                }
            }
            self.send("vCont;c");
        }
    }

    fn send(&mut self, text: &str) {
        let sum = text.bytes().fold(0u8, u8::wrapping_add);
        write!(self.stream, "${text}#{sum:02x}").expect("the stub listens");
    }

    /// Asks and answers; a stop that was on its way is passed over, for the guest stands anyway.
    fn ask(&mut self, text: &str) -> String {
        self.send(text);
        loop {
            match self.packet() {
                Some(answer) if answer.starts_with(['T', 'S']) => {}
                Some(answer) => return answer,
                None => {}
            }
        }
    }

    /// The next packet, or none within the socket's time-out.
    fn packet(&mut self) -> Option<String> {
        loop {
            if let Some(start) = self.pending.iter().position(|&byte| byte == b'$')
                && let Some(length) = self.pending[start..].iter().position(|&byte| byte == b'#')
                && self.pending.len() >= start + length + 3
            {
                let text = String::from_utf8_lossy(&self.pending[start + 1..start + length]).into_owned();
                self.pending.drain(..start + length + 3);
                self.stream.write_all(b"+").expect("the stub listens");
                return Some(text);
            }
            let mut chunk = [0; 8192];
            match self.stream.read(&mut chunk) {
                Ok(0) => panic!("the stub is gone"),
                Ok(length) => self.pending.extend_from_slice(&chunk[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                Err(error) => panic!("the stub: {error}"),
            }
        }
    }
}
