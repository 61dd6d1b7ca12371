//! Why the guest stopped (GDB manual, appendix E.3 "Stop Reply Packets").

use super::packet::number;
use crate::engine::addr::VcpuId;

/// A thread as QEMU names it: `pPROCESS.THREAD`, or the thread alone before the two sides agreed on processes. QEMU's
/// threads are its vCPUs, counted from 1; the process is the vCPU's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The process; 1 on every machine with one cluster.
    pub process: u32,
    /// The thread.
    pub thread: u32,
}

impl Thread {
    /// Reads `p01.02` or `02`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let id = |text: &[u8]| number(text).and_then(|id| u32::try_from(id).ok()).filter(|&id| id != 0);
        match text.strip_prefix(b"p") {
            Some(text) => {
                let dot = text.iter().position(|&byte| byte == b'.')?;
                Some(Self { process: id(text.get(..dot)?)?, thread: id(text.get(dot + 1..)?)? })
            }
            None => Some(Self { process: 1, thread: id(text)? }),
        }
    }

    /// The vCPU.
    pub fn vcpu(self) -> VcpuId {
        VcpuId(u16::try_from(self.thread.saturating_sub(1)).unwrap_or(u16::MAX))
    }

    /// The form that a stub understands.
    pub fn text(self) -> String {
        format!("p{:x}.{:x}", self.process, self.thread)
    }
}

/// A stop reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All vCPUs have stopped.
    At {
        /// The signal: [`Stop::TRAP`] for breakpoints, watchpoints and steps, others after a pause.
        signal: u8,
        /// The vCPU that it is about.
        thread: Option<Thread>,
        /// The address of the watchpoint, if it was one.
        watch: Option<u64>,
    },
    /// QEMU ends.
    Exited,
}

impl Stop {
    /// SIGTRAP.
    pub const TRAP: u8 = 5;

    /// Reads a stop reply; `None` when the packet is something else. No other reply starts with these letters:
    /// hexadecimal digits are sent in lower case.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (&kind, rest) = packet.split_first()?;
        match kind {
            b'W' | b'X' => Some(Self::Exited),
            b'S' | b'T' => {
                let signal = u8::try_from(number(rest.get(..2)?)?).ok()?;
                let (mut thread, mut watch) = (None, None);
                for pair in rest.get(2..)?.split(|&byte| byte == b';') {
                    let Some(colon) = pair.iter().position(|&byte| byte == b':') else { continue };
                    let (name, value) = (pair.get(..colon)?, pair.get(colon + 1..)?);
                    match name {
                        b"thread" => thread = Thread::parse(value),
                        b"watch" | b"rwatch" | b"awatch" => watch = number(value),
                        _ => {}
                    }
                }
                Some(Self::At { signal, thread, watch })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn qemus_stop_replies() {
        let at = |signal, thread: Option<(u32, u32)>, watch| {
            let thread = thread.map(|(process, thread)| Thread { process, thread });
            Some(Stop::At { signal, thread, watch })
        };
        for (text, want) in [
            ("T05thread:p01.02;", at(5, Some((1, 2)), None)),
            ("T02thread:01;", at(2, Some((1, 1)), None)),
            ("T05thread:p01.01;watch:ffff888000001000;", at(5, Some((1, 1)), Some(0xffff_8880_0000_1000))),
            ("T05thread:p01.01;awatch:10;", at(5, Some((1, 1)), Some(16))),
            ("S05", at(5, None, None)),
            ("T05thread:p0.0;", at(5, None, None)),
            ("W00", Some(Stop::Exited)),
            ("OK", None),
            ("T5", None),
            ("", None),
            ("E22", None),
        ] {
            assert_eq!(Stop::parse(text.as_bytes()), want, "{text}");
        }
        let thread = Thread { process: 1, thread: 18 };
        assert_eq!((thread.vcpu(), thread.text()), (VcpuId(17), "p1.12".to_owned()));
        assert_eq!(Thread::parse(thread.text().as_bytes()), Some(thread));
    }

    proptest! {
        #[test]
        fn any_packet_is_survived(packet: Vec<u8>, prefix in "(T05|S|W|T05thread:|T05thread:p1\\.|)") {
            let mut bytes = prefix.into_bytes();
            bytes.extend(packet);
            let _ = Stop::parse(&bytes);
        }
    }
}
