//! Writes a kernel's symbol tables, in the orders and forms that kernels have had.

use vmscope::engine::addr::Va;

/// Names per marker.
const GROUP: usize = 256;

/// Where the offsets are and how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Offsets first, per-CPU symbols absolute; sequence numbers of so many bytes.
    Before(usize),
    /// Offsets last, per-CPU symbols absolute.
    Behind,
    /// Offsets last and all unsigned.
    Unsigned,
    /// Offsets last, each relative to itself.
    OwnAddress,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Before(0), Self::Before(3), Self::Before(4), Self::Behind, Self::Unsigned, Self::OwnAddress];

    /// Whether the offsets come first.
    pub fn is_before(self) -> bool {
        matches!(self, Self::Before(_))
    }

    /// Whether addresses outside of the kernel's image can be written.
    pub fn has_absolute(self) -> bool {
        matches!(self, Self::Before(_) | Self::Behind)
    }
}

/// What kernels have aligned their tables to, and what a next one might.
pub const ALIGNMENTS: [usize; 4] = [4, 8, 16, 64];

/// The tables as they lie in memory at `at`, aligned as up to 6.19.
pub fn tables(symbols: &[(String, Va)], at: Va, form: Form) -> Vec<u8> {
    aligned_tables(symbols, at, form, 8)
}

/// The tables as they lie in memory at `at`, each at a multiple of `alignment`. The compression has two tokens only:
/// "sys_" and "read".
pub fn aligned_tables(symbols: &[(String, Va)], at: Va, form: Form, alignment: usize) -> Vec<u8> {
    let base = symbols.iter().map(|(_, va)| va.0).filter(|va| va >> 63 != 0).min().unwrap_or(0);
    // An odd multiple: where the tables lie must not make them look as if they were aligned to more.
    let mut out = Output { bytes: vec![0xee; 3 * alignment], at, base, form, alignment };
    if let Form::Before(_) = form {
        out.offsets(symbols);
    }
    out.align();
    out.bytes.extend((symbols.len() as u32).to_le_bytes());
    out.align();
    out.names(symbols);
    if let Form::Before(bytes) = form {
        out.sequence(symbols.len(), bytes);
    }
    out.tokens();
    if !matches!(form, Form::Before(_)) {
        out.offsets(symbols);
        out.sequence(symbols.len(), 3);
    }
    out.bytes.extend([0xee; 16]);
    out.bytes
}

struct Output {
    bytes: Vec<u8>,
    at: Va,
    base: u64,
    form: Form,
    alignment: usize,
}

impl Output {
    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(self.alignment), 0);
    }

    fn offsets(&mut self, symbols: &[(String, Va)]) {
        self.align();
        for (_, va) in symbols {
            let own = self.at.0.wrapping_add(self.bytes.len() as u64);
            let value = match self.form {
                Form::Unsigned => va.0.wrapping_sub(self.base),
                Form::OwnAddress => va.0.wrapping_sub(own),
                _ if va.0 >> 63 == 0 => va.0,
                _ => self.base.wrapping_sub(1).wrapping_sub(va.0),
            };
            self.bytes.extend((value as u32).to_le_bytes());
        }
        self.align();
        if self.form != Form::OwnAddress {
            self.bytes.extend(self.base.to_le_bytes());
        }
    }

    /// The names, and the position of every 256th of them.
    fn names(&mut self, symbols: &[(String, Va)]) {
        let start = self.bytes.len();
        let mut markers = Vec::new();
        for (i, (name, _)) in symbols.iter().enumerate() {
            if i % GROUP == 0 {
                markers.push((self.bytes.len() - start) as u32);
            }
            let name = format!("T{name}").replace("sys_", "\x01").replace("read", "\u{c8}");
            let codes: Vec<u8> = name.chars().map(|c| c as u8).collect();
            if codes.len() < 128 {
                self.bytes.push(codes.len() as u8);
            } else {
                self.bytes.extend([codes.len() as u8 & 0x7f | 0x80, (codes.len() >> 7) as u8]);
            }
            self.bytes.extend(codes);
        }
        self.align();
        markers.iter().for_each(|marker| self.bytes.extend(marker.to_le_bytes()));
    }

    /// The order of the names; nobody reads it, so it is any numbers.
    fn sequence(&mut self, count: usize, bytes: usize) {
        self.align();
        for i in 0..count as u32 {
            self.bytes.extend(&i.wrapping_mul(7919).to_be_bytes()[4 - bytes..]);
        }
    }

    fn tokens(&mut self) {
        self.align();
        let mut index = Vec::new();
        let table = self.bytes.len();
        for code in 0..=255u8 {
            index.extend(((self.bytes.len() - table) as u16).to_le_bytes());
            match code {
                1 => self.bytes.extend(b"sys_"),
                200 => self.bytes.extend(b"read"),
                code if code.is_ascii_graphic() => self.bytes.push(code),
                _ => {}
            }
            self.bytes.push(0);
        }
        self.align();
        self.bytes.extend(index);
    }
}
