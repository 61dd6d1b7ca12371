//! The packets of the gdb remote protocol as pure functions of bytes (GDB manual, appendix E.1 "Overview").
//!
//! `$DATA#CC`, CC being the sum of DATA's bytes in hexadecimal. In DATA, `}` escapes the next byte (which is then xored
//! with 0x20), and `X*N` means X and N - 29 more of it.

/// The largest packet that is taken, before and after its runs are expanded. QEMU's largest have 4 KiB.
pub const LARGEST: usize = 1 << 20;

/// A piece of what a stub says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// `+`: our packet came through.
    Ack,
    /// `-`: our packet was damaged.
    Nack,
    /// A packet's contents, with escapes and runs expanded.
    Packet(Vec<u8>),
    /// A packet that was damaged on the way, or whose contents make no sense.
    Damaged,
}

/// Cuts a stream of bytes into pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    received: Vec<u8>,
}

impl Decoder {
    /// Where newly received bytes are appended.
    pub fn input(&mut self) -> &mut Vec<u8> {
        &mut self.received
    }

    /// The next complete piece. Bytes outside of packets that mean nothing are passed over.
    pub fn next_piece(&mut self) -> Option<Piece> {
        loop {
            let (first, piece) = self.next_of_any_kind()?;
            // `%` is a notification: not answered, and none is asked for.
            if first != b'%' {
                return Some(piece);
            }
        }
    }

    /// The next piece with its first byte.
    fn next_of_any_kind(&mut self) -> Option<(u8, Piece)> {
        let start = self.received.iter().position(|byte| matches!(byte, b'+' | b'-' | b'$' | b'%'));
        self.received.drain(..start.unwrap_or(self.received.len()));
        let &first = self.received.first()?;
        let (bytes, piece) = match first {
            b'+' => (1, Piece::Ack),
            b'-' => (1, Piece::Nack),
            _ => {
                let Some(end) = self.received.iter().position(|&byte| byte == b'#') else {
                    if self.received.len() <= LARGEST {
                        return None;
                    }
                    self.received.clear();
                    return Some((b'$', Piece::Damaged));
                };
                let sum = self.received.get(end + 1..end + 3)?;
                let sum = std::str::from_utf8(sum).ok().and_then(|sum| u8::from_str_radix(sum, 16).ok());
                let data = self.received.get(1..end).unwrap_or_default();
                let piece = match expand(data) {
                    Some(packet) if sum == Some(checksum(data)) => Piece::Packet(packet),
                    _ => Piece::Damaged,
                };
                (end + 3, piece)
            }
        };
        self.received.drain(..bytes.min(self.received.len()));
        Some((first, piece))
    }
}

fn checksum(data: &[u8]) -> u8 {
    data.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// A packet ready to be sent.
pub fn encode(contents: &[u8]) -> Vec<u8> {
    let mut packet = vec![b'$'];
    for &byte in contents {
        if matches!(byte, b'#' | b'$' | b'}' | b'*') {
            packet.extend([b'}', byte ^ 0x20]);
        } else {
            packet.push(byte);
        }
    }
    let sum = checksum(packet.get(1..).unwrap_or_default());
    packet.extend(format!("#{sum:02x}").bytes());
    packet
}

/// Expands escapes and runs; `None` when they make no sense or grow too large.
fn expand(data: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(data.len());
    let mut bytes = data.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'}' => out.push(bytes.next()? ^ 0x20),
            b'*' => {
                let &last = out.last()?;
                let more = usize::from(*bytes.next()?).checked_sub(29)?;
                out.resize(out.len() + more, last);
            }
            _ => out.push(byte),
        }
        if out.len() > LARGEST {
            return None;
        }
    }
    Some(out)
}

/// Bytes as hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hexadecimal digits as bytes; a register that cannot be read (`xx`) is 0.
pub fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |digit: u8| match digit {
        b'x' => Some(0),
        _ => char::from(digit).to_digit(16).map(|value| value as u8),
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2).map(|pair| Some((digit(*pair.first()?)? << 4) | digit(*pair.get(1)?)?)).collect()
}

/// A hexadecimal number, without a prefix.
pub fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with('+'))?;
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(bytes: &[u8]) -> Vec<Piece> {
        let mut decoder = Decoder::default();
        decoder.input().extend_from_slice(bytes);
        std::iter::from_fn(|| decoder.next_piece()).collect()
    }

    fn packet(contents: &[u8]) -> Piece {
        Piece::Packet(contents.to_vec())
    }

    #[test]
    fn the_manuals_examples() {
        // GDB manual: `0* ` is four zeros.
        assert_eq!(pieces(b"$0* #7a"), [packet(b"0000")]);
        assert_eq!(pieces(b"+$T05thread:p01.01;#06+"), [Piece::Ack, packet(b"T05thread:p01.01;"), Piece::Ack]);
        assert_eq!(pieces(b"$a}\x03b#43"), [packet(b"a#b")]);
        assert_eq!(pieces(b"-$OK#9a"), [Piece::Nack, packet(b"OK")]);
        assert_eq!(pieces(b"junk$#00"), [packet(b"")]);
        assert_eq!(pieces(b"%Stop:T05#99$OK#9a"), [packet(b"OK")]);
        assert_eq!(pieces(&[&b"%#00".repeat(200_000)[..], b"$OK#9a"].concat()), [packet(b"OK")]);
    }

    #[test]
    fn damage_is_told() {
        assert_eq!(pieces(b"$OK#9b$OK#9a"), [Piece::Damaged, packet(b"OK")]);
        assert_eq!(pieces(b"$*!#4b"), [Piece::Damaged]);
        assert_eq!(pieces(b"$OK#zz"), [Piece::Damaged]);
        assert_eq!(pieces(b"$OK#9"), []);
        let mut long = vec![b'$'];
        long.resize(LARGEST + 2, b'a');
        assert_eq!(pieces(&long), [Piece::Damaged]);
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(from_hex(b"00ffxx"), Some(vec![0, 255, 0]));
        assert_eq!(from_hex(b"0"), None);
        assert_eq!(from_hex(b"0g"), None);
        assert_eq!(number(b"+1"), None);
        assert_eq!(number(b"fffffffff0000000"), Some(0xffff_ffff_f000_0000));
        assert_eq!(number(b"1ffffffffffffffff"), None);
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_arrives(contents: Vec<u8>, cut: prop::sample::Index) {
            let bytes = encode(&contents);
            let (first, second) = bytes.split_at(cut.index(bytes.len()));
            let mut decoder = Decoder::default();
            decoder.input().extend_from_slice(first);
            let early = decoder.next_piece();
            decoder.input().extend_from_slice(second);
            prop_assert_eq!(early.or_else(|| decoder.next_piece()), Some(Piece::Packet(contents)));
            prop_assert_eq!(decoder.next_piece(), None);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(b"$#%+-}*0a".to_vec())], 0..200)) {
            for piece in pieces(&bytes) {
                if let Piece::Packet(contents) = piece {
                    prop_assert!(contents.len() <= LARGEST);
                }
            }
        }

        #[test]
        fn hex_goes_both_ways(bytes: Vec<u8>) {
            prop_assert_eq!(from_hex(to_hex(&bytes).as_bytes()), Some(bytes));
        }
    }
}
