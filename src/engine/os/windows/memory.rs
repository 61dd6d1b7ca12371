//! Reads of one address space of a Windows guest.

use super::WindowsOs;
use crate::engine::{
    addr::{AddressContext, Pa, Va},
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
    snapshot::clean,
};

/// Characters of a string that are read at most.
pub(super) const MOST_CHARACTERS: u64 = 4096;

/// A guest's memory under one translation root, and what is known of its kernel.
pub(super) struct Memory<'a, Driver: VmiRead<Architecture = Amd64>> {
    pub(super) core: &'a VmiCore<Driver>,
    pub(super) os: &'a WindowsOs,
    root: Pa,
}

impl<Driver: VmiRead<Architecture = Amd64>> Clone for Memory<'_, Driver> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> Copy for Memory<'_, Driver> {}

impl WindowsOs {
    /// The kernel's memory, in the address space that has all of it.
    pub(super) fn memory<'a, Driver>(&'a self, core: &'a VmiCore<Driver>) -> Memory<'a, Driver>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        Memory { core, os: self, root: self.root }
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> Memory<'_, Driver> {
    /// The memory of a process.
    pub(super) fn of(self, root: Pa) -> Self {
        Self { root, ..self }
    }

    fn at(&self, va: Va) -> AddressContext {
        AddressContext { va, root: self.root }
    }

    pub(super) fn read(&self, va: Va, buffer: &mut [u8]) -> Result<(), VmiError> {
        self.core.read(self.at(va), buffer)
    }

    pub(super) fn u8(&self, va: Va) -> Result<u8, VmiError> {
        self.core.read_u8(self.at(va))
    }

    pub(super) fn u16(&self, va: Va) -> Result<u16, VmiError> {
        self.core.read_u16(self.at(va))
    }

    pub(super) fn u32(&self, va: Va) -> Result<u32, VmiError> {
        self.core.read_u32(self.at(va))
    }

    pub(super) fn u64(&self, va: Va) -> Result<u64, VmiError> {
        self.core.read_u64(self.at(va))
    }

    pub(super) fn pointer(&self, va: Va) -> Result<Va, VmiError> {
        self.core.read_va64(self.at(va))
    }

    /// A pointer of four or eight bytes.
    pub(super) fn pointer_of(&self, va: Va, bytes: usize) -> Result<Va, VmiError> {
        self.core.read_va(self.at(va), bytes)
    }

    /// A `_UNICODE_STRING`, cleaned; no more than [`MOST_CHARACTERS`] of it, with an ellipsis where that cuts it.
    pub(super) fn string(&self, va: Va) -> Result<String, VmiError> {
        let buffer = self.pointer(va + self.os.offsets.string_buffer)?;
        self.text(buffer, self.u16(va)?)
    }

    /// A `_UNICODE_STRING32`, as 32-bit processes have it.
    pub(super) fn string32(&self, va: Va) -> Result<String, VmiError> {
        let buffer = self.pointer_of(va + 4, 4)?;
        self.text(buffer, self.u16(va)?)
    }

    /// UTF-16 text of a length in bytes, cleaned.
    fn text(&self, at: Va, bytes: u16) -> Result<String, VmiError> {
        let whole = u64::from(bytes / 2);
        let characters = whole.min(MOST_CHARACTERS);
        let mut text = vec![0; characters as usize * 2];
        self.read(at, &mut text)?;
        let units: Vec<u16> = text.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
        let mut text = clean(&String::from_utf16_lossy(&units), MOST_CHARACTERS as usize);
        text.push_str(if whole > characters { "…" } else { "" });
        Ok(text)
    }
}

/// A value whose page may be missing, or behind what a look may read: whoever puts values together asks the core whether
/// the look was cut.
pub(super) fn present<T>(result: Result<T, VmiError>) -> Result<Option<T>, VmiError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_page_fault() => Ok(None),
        Err(VmiError::CutShort) => Ok(None),
        Err(error) => Err(error),
    }
}
