//! What a socket is connected to (`struct socket`, `struct sock` in `include/net/sock.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::kernel::Kernel;
use crate::engine::{addr::Va, arch::amd64::Amd64, driver::VmiRead};

/// Address families (`include/linux/socket.h`).
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Names of those that have no address to show.
const FAMILIES: [(u16, &str); 5] = [(16, "netlink"), (17, "packet"), (29, "can"), (38, "alg"), (40, "vsock")];
/// Protocols (`include/uapi/linux/in.h`).
const PROTOCOLS: [(u16, &str); 6] = [(1, "icmp"), (6, "tcp"), (17, "udp"), (58, "icmp6"), (132, "sctp"), (255, "raw")];
const TCP: u16 = 6;
/// `include/net/tcp_states.h`, from 1 on.
const TCP_STATES: [&str; 12] = [
    "established",
    "syn sent",
    "syn received",
    "fin wait 1",
    "fin wait 2",
    "time wait",
    "closed",
    "close wait",
    "last ack",
    "listening",
    "closing",
    "new syn received",
];
/// Bytes of a Unix socket's name (`UNIX_PATH_MAX`).
const MOST_NAME: u64 = 108;

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// Protocol, both ends and state of the socket behind a file; `None` where that cannot be read.
    pub(super) fn socket(&self, file: Va) -> Option<String> {
        let layout = self.os.layout.sockets.as_ref()?;
        let sock = self.existing(self.existing(file + layout.private)? + layout.sock)?;
        let number = |at: u64| self.core.read_u16((sock + at, self.os.root)).ok();
        let family = number(layout.family)?;
        match family {
            AF_UNIX => Some(match self.unix_name(sock) {
                Some(name) => format!("unix {name}"),
                None => "unix".to_owned(),
            }),
            AF_INET | AF_INET6 => {
                let protocol = number(layout.protocol)? & layout.protocol_mask;
                let address = |v4: u64, v6: u64| self.address(sock, family == AF_INET6, v4, v6);
                let ours = SocketAddr::new(address(layout.source, layout.source6)?, number(layout.source_port)?);
                // In the network's byte order.
                let port = number(layout.destination_port)?.swap_bytes();
                let theirs = SocketAddr::new(address(layout.destination, layout.destination6)?, port);
                let name = PROTOCOLS.iter().find(|(known, _)| *known == protocol);
                let name = name.map_or_else(|| format!("protocol {protocol}"), |(_, name)| (*name).to_owned());
                let mut text = format!("{name} {ours}");
                if port != 0 {
                    text = format!("{text} → {theirs}");
                }
                if protocol == TCP {
                    let state = self.core.read_u8((sock + layout.state, self.os.root)).ok()?;
                    let state = TCP_STATES.get(usize::from(state).checked_sub(1)?)?;
                    text = format!("{text} {state}");
                }
                Some(text)
            }
            _ => Some(match FAMILIES.iter().find(|(known, _)| *known == family) {
                Some((_, name)) => (*name).to_owned(),
                None => format!("address family {family}"),
            }),
        }
    }

    fn address(&self, sock: Va, is_v6: bool, v4: u64, v6: u64) -> Option<IpAddr> {
        if !is_v6 {
            let mut bytes = [0; 4];
            self.read(sock + v4, &mut bytes).ok()?;
            return Some(Ipv4Addr::from(bytes).into());
        }
        let mut bytes = [0; 16];
        self.read(sock + v6, &mut bytes).ok()?;
        let address = Ipv6Addr::from(bytes);
        Some(address.to_ipv4_mapped().map_or(address.into(), IpAddr::from))
    }

    /// The name that a Unix socket is bound to; one that begins with a zero byte is in no file system and is shown with
    /// an @, as in `/proc/net/unix`.
    fn unix_name(&self, sock: Va) -> Option<String> {
        let layout = self.os.layout.unix.as_ref()?;
        let address = self.existing(sock + layout.address)?;
        // Behind the family, two bytes.
        let length = u64::from(self.u32(address + layout.length).ok()?).checked_sub(2)?.min(MOST_NAME);
        let mut bytes = vec![0; length as usize];
        self.read(address + layout.name + 2, &mut bytes).ok()?;
        let text = match bytes.as_slice() {
            [] => return None,
            [0, name @ ..] => format!("@{}", String::from_utf8_lossy(name).replace('\0', "@")),
            name => String::from_utf8_lossy(name).trim_end_matches('\0').to_owned(),
        };
        Some(text)
    }
}
