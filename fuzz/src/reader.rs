//! Numbers out of the fuzzer's bytes; zeros when they have run out.

/// The bytes that are left.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `N` bytes.
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let here = self.take(N);
        out[..here.len()].copy_from_slice(here);
        out
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// The next bytes, fewer at the end.
    pub fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (here, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        here
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
