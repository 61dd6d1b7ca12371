//! What a QEMU says: packets and register descriptions of its gdb stub, replies of its monitor, and whole sessions.

use std::{
    io::Write,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use vmscope::engine::{
    driver::qemu::fuzzing::{
        Address, Decoder, Gdb, LARGEST, Piece, Qmp, RegisterFile, Stop, Stream, Thread, Wire, cpu_text,
        described_registers, encode, from_hex, mtree, to_hex,
    },
    error::VmiError,
};

use crate::{is_printable, reader::Reader};

/// What fits into a socket's buffer without anybody reading.
const MOST_SAID: usize = 64 << 10;
const GREETING: &[u8] =
    b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 2, \"major\": 8}}}}\n{\"return\": {}, \"id\": 1}\n";

/// A connected socket whose peer has said all this and will say no more; the peer lives as long as its handle.
fn said(bytes: &[u8]) -> (Stream, UnixStream) {
    let (ours, mut peer) = UnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("a socket");
    peer.write_all(&bytes[..bytes.len().min(MOST_SAID)]).expect("room for it");
    peer.shutdown(Shutdown::Write).expect("a socket");
    (Stream::Unix(ours), peer)
}

fn address() -> Address {
    Address::Tcp("fuzz:1".into())
}

/// Whatever a peer says, what is told of it is one printable line.
fn told(error: &VmiError) {
    let text = error.to_string();
    assert!(is_printable(&text), "{text:?}");
}

fn pieces(bytes: &[u8], step: usize) -> Vec<Piece> {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for chunk in bytes.chunks(step) {
        decoder.input().extend_from_slice(chunk);
        found.extend(std::iter::from_fn(|| decoder.next_piece()));
    }
    found
}

/// A stream of packets: the same pieces however it is cut, and every packet bounded.
pub fn gdb_bytes(data: &[u8]) {
    let whole = pieces(data, data.len().max(1));
    assert_eq!(whole, pieces(data, 1));
    for piece in whole {
        let Piece::Packet(packet) = piece else { continue };
        assert!(packet.len() <= LARGEST);
        assert_eq!(pieces(&encode(&packet), 7), [Piece::Packet(packet.clone())]);
        if let Some(Stop::At { thread: Some(thread), .. }) = Stop::parse(&packet) {
            assert_eq!(Thread::parse(thread.text().as_bytes()), Some(thread));
        }
        if let Some(bytes) = from_hex(&packet) {
            assert_eq!(from_hex(to_hex(&bytes).as_bytes()), Some(bytes));
        }
    }
}

/// A register description of several files, and a register packet for it.
pub fn gdb_target(data: &[u8]) {
    let mut files = data.split(|&byte| byte == 0);
    let packet = files.next().unwrap_or_default();
    let files: Vec<String> = files.map(|file| String::from_utf8_lossy(file).into_owned()).collect();
    let mut fetched = 0;
    let registers = described_registers(&mut |_| {
        fetched += 1;
        files.get((fetched - 1) % files.len().max(1)).cloned().ok_or(VmiError::Timeout)
    });
    assert!(fetched <= 64);
    let registers = match registers {
        Ok(registers) => registers,
        Err(error) => return told(&error),
    };
    assert!(registers.len() <= 4096 && registers.is_sorted_by_key(|register| register.number));
    let Some(file) = RegisterFile::new(&registers) else { return };
    let Some(decoded) = file.decode(packet) else { return };
    assert!(file.changes(&decoded, &decoded).is_empty());
    let needed: usize = registers.iter().map(|register| register.bytes).sum();
    assert!(file.decode(&vec![0; needed]).is_some());
}

/// A whole session with a stub: connecting, registers, memory, breakpoints, running. The first byte chooses between raw
/// bytes and packets (cut at 0xff) with everything around them right.
pub fn gdb_session(data: &[u8]) {
    let mut reader = Reader(data);
    let bytes = if reader.u8() & 1 == 0 {
        reader.0.to_vec()
    } else {
        reader.0.split(|&byte| byte == 0xff).flat_map(|packet| [b"+".to_vec(), encode(packet)].concat()).collect()
    };
    let (monitor, _monitor_peer) = said(GREETING);
    let qmp = Qmp::over(monitor, &address(), Duration::ZERO).expect("a greeting");
    let (stream, _peer) = said(&bytes);
    let session = Wire::over(stream, &address(), Arc::new(Mutex::new(qmp))).and_then(Gdb::over);
    let mut gdb = match session {
        Ok(gdb) => gdb,
        Err(error) => return told(&error),
    };
    let Some(thread) = gdb.thread(vmscope::engine::addr::VcpuId(0)) else { return };
    let answers = [
        gdb.registers(thread).map(drop),
        gdb.read_virtual(thread, 0x1000, 8).map(|read| assert!(read.is_none_or(|read| read.len() == 8))),
        gdb.write_physical(u64::MAX, &[1, 2, 3]),
        gdb.point(true, 0, 0x1000, 1),
        gdb.step(thread),
        gdb.wait_stop(Instant::now()).map(drop),
        gdb.run(),
        gdb.poll_stop().map(drop),
        gdb.detach(),
    ];
    answers.into_iter().filter_map(Result::err).for_each(|error| told(&error));
}

/// A whole session with a monitor: greeting, commands, events.
pub fn qmp(data: &[u8]) {
    let (stream, _peer) = said(data);
    let mut qmp = match Qmp::over(stream, &address(), Duration::ZERO) {
        Ok(qmp) => qmp,
        Err(error) => return told(&error),
    };
    let answers = [
        qmp.execute("query-status", serde_json::json!({})).map(drop),
        qmp.human("info mtree -f", None).map(|text| monitor_text(text.as_bytes())),
        qmp.events().map(|events| assert!(events.len() <= 1024)),
        qmp.human("info registers", Some(0)).map(|text| monitor_text(text.as_bytes())),
        qmp.events().map(drop),
    ];
    answers.into_iter().filter_map(Result::err).for_each(|error| told(&error));
}

/// Output of the human monitor: ranges of RAM ascend without overlap, in memory and nothing but RAM.
pub fn monitor_text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut end = 0;
    for range in mtree(&text) {
        assert!(range.start >= end && range.start < range.end, "{range:?}");
        assert!(range.offset.checked_add(range.end - range.start).is_some(), "{range:?}");
        end = range.end;
    }
    if let Some(cpu) = cpu_text(&text) {
        assert_eq!(cpu.registers.lstar, 0);
        assert!(text.contains("CR3=") || text.contains("CR3 ="));
    }
}

/// Samples.
pub mod samples {
    use super::GREETING;

    const TARGET: &str = "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>\
        <architecture>i386:x86-64</architecture><xi:include href=\"core.xml\"/></target>";
    const CORE: &str = "<feature name='core'><!-- <reg name=\"ghost\" bitsize=\"64\"/> -->\
        <reg name=\"rax\" bitsize=\"64\" type=\"int64\"/><reg name=\"rsp\" bitsize=\"64\"/>\
        <reg name=\"rip\" bitsize=\"64\"/><reg name=\"eflags\" bitsize=\"32\"/><reg name=\"cs\" bitsize=\"32\"/>\
        <reg name=\"cr3\" bitsize=\"64\" regnum=\"10\"/><reg name=\"efer\" bitsize=\"64\"/></feature>";

    /// Packets of every form.
    pub fn gdb_bytes() -> Vec<Vec<u8>> {
        [
            &b"$0* #7a"[..],
            b"+$T05thread:p01.01;#06+",
            b"$a}\x03b#43-$OK#9a",
            b"%Stop:T05#99$OK#9a",
            b"$T05thread:p01.01;watch:ffff888000001000;#",
            b"$*!#4b$#00",
        ]
        .map(<[u8]>::to_vec)
        .to_vec()
    }

    /// A description of two files.
    pub fn gdb_target() -> Vec<Vec<u8>> {
        let packet = "\u{1}".repeat(64);
        vec![[packet.as_bytes(), TARGET.as_bytes(), CORE.as_bytes()].join(&0)]
    }

    /// A session from the first packet to the last.
    pub fn gdb_session() -> Vec<Vec<u8>> {
        let registers = "11".repeat(48);
        let packets: Vec<Vec<u8>> = [
            "T05thread:p01.01;",
            "PacketSize=1000;qXfer:features:read+;multiprocess+;vContSupported+",
            &format!("l{TARGET}"),
            &format!("m{}", &CORE[..100]),
            &format!("l{}", &CORE[100..]),
            "mp01.01",
            "mp01.02,p01.03",
            "l",
            "OK",
            &registers,
            "0102030405060708",
            "OK",
            "OK",
            "OK",
            "OK",
            "T05thread:p01.01;",
            "T05thread:p01.02;watch:1000;",
            "OK",
        ]
        .map(|packet| packet.as_bytes().to_vec())
        .to_vec();
        let framed = [vec![1], packets.join(&0xff)].concat();
        let raw = packets.iter().flat_map(|packet| [b"+".to_vec(), super::encode(packet)].concat());
        vec![framed, [0].into_iter().chain(raw).collect()]
    }

    /// A session with replies, a refusal and events.
    pub fn qmp() -> Vec<Vec<u8>> {
        let mut text = GREETING.to_vec();
        text.extend(b"{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n");
        text.extend(b"{\"return\": {\"status\": \"running\"}, \"id\": 2}\n");
        text.extend(b"{\"return\": \"FlatView #0\\r\\n AS \\\"memory\\\", root: system\\r\\n  0-fff (prio 0, ram): r\", \"id\": 3}\n");
        text.extend(b"{\"event\": \"RESUME\"}\n{\"id\": 4, \"error\": {\"class\": \"GenericError\", \"desc\": \"no \\u001b[2J\"}}\n");
        vec![text, b"{\"hello\": 1}\n".to_vec(), b"SSH-2.0-x\r\n".to_vec()]
    }

    /// `info mtree -f` and `info registers`.
    pub fn monitor_text() -> Vec<Vec<u8>> {
        let tree = "FlatView #2\r\n AS \"memory\", root: system\r\n Root memory region: system\r\n\
            \x20 0000000000000000-000000000009ffff (prio 0, ram): ram KVM\r\n\
            \x20 00000000000c0000-00000000000c9fff (prio 0, rom): ram @00000000000c0000 KVM\r\n\
            \x20 00000000000ca000-00000000bfffffff (prio 0, ram): ram @00000000000ca000 KVM\r\n\
            \x20 00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram KVM\r\n\
            \x20 0000000100000000-000000017fffffff (prio 0, ram): ram @00000000c0000000 KVM\r\n\r\nFlatView #3\r\n";
        let registers = "RAX=000000000001ad40 RBX=0\r\nR8 =0000000000000017 R9 =1\r\n\
            RIP=ffffffffb3217a0b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\
            CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r\nGS =0000 ffff8eea9f300000 0 0\r\n\
            IDT=     fffffe0000000000 00000fff\r\nCR0=80050033 CR2=0 CR3=0000000016e02000 CR4=000006a0\r\nEFER=d01\r\n";
        vec![tree.into(), registers.into()]
    }
}
