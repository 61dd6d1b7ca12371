//! The registers of a vCPU together with the session: reads in the current address space.

use std::ops::Deref;

use super::{NoOS, VmiSession};
use crate::engine::{
    addr::{AccessContext, Pa, Va},
    arch::Registers,
    driver::{RegistersOf, VmiDriver, VmiRead},
    error::VmiError,
};

/// A session and the registers of a vCPU. Reads take a bare [`Va`] and use the current address space; the methods of
/// [`VmiCore`](super::VmiCore), which take any context, are reached through [`VmiSession::core`].
pub struct VmiState<'a, Driver: VmiDriver, Os = NoOS> {
    session: VmiSession<'a, Driver, Os>,
    registers: &'a RegistersOf<Driver>,
}

impl<Driver: VmiDriver, Os> Clone for VmiState<'_, Driver, Os> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Driver: VmiDriver, Os> Copy for VmiState<'_, Driver, Os> {}

impl<'a, Driver: VmiDriver, Os> Deref for VmiState<'a, Driver, Os> {
    type Target = VmiSession<'a, Driver, Os>;
    fn deref(&self) -> &Self::Target {
        &self.session
    }
}

macro_rules! current_space {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// As the same method of [`VmiCore`](super::VmiCore).
            pub fn $name(&self, va: Va $(, $arg: $ty)*) -> Result<$out, VmiError> {
                self.core().$name(self.access_context(va) $(, $arg)*)
            }
        )*
    };
}

impl<'a, Driver: VmiDriver, Os> VmiState<'a, Driver, Os> {
    /// A state of a session and registers.
    pub fn new(session: VmiSession<'a, Driver, Os>, registers: &'a RegistersOf<Driver>) -> Self {
        Self { session, registers }
    }

    /// The session.
    pub fn session(&self) -> VmiSession<'a, Driver, Os> {
        self.session
    }

    /// The registers.
    pub fn registers(&self) -> &'a RegistersOf<Driver> {
        self.registers
    }

    /// The translation root of the current address space.
    pub fn translation_root(&self, va: Va) -> Pa {
        self.registers.translation_root(va)
    }

    /// An access in the current address space.
    pub fn access_context(&self, va: Va) -> AccessContext {
        self.registers.access_context(va)
    }
}

impl<Driver: VmiRead, Os> VmiState<'_, Driver, Os> {
    current_space! {
        /// Copies memory of the current address space.
        read(buffer: &mut [u8]) -> ();
        /// One byte.
        read_u8() -> u8;
        /// Two bytes, little-endian.
        read_u16() -> u16;
        /// Four bytes, little-endian.
        read_u32() -> u32;
        /// Eight bytes, little-endian.
        read_u64() -> u64;
        /// 1, 2, 4 or 8 bytes, little-endian.
        read_uint(size: usize) -> u64;
        /// A zero-terminated string, at most `limit` bytes of it.
        read_string_limited(limit: usize) -> String;
        /// A zero-terminated UTF-16 string, at most `limit` units of it.
        read_wstring_limited(limit: usize) -> String;
    }

    /// Translates an address of the current address space.
    ///
    /// # Errors
    /// As [`VmiCore::translate_address`](super::VmiCore::translate_address).
    pub fn translate_address(&self, va: Va) -> Result<Pa, VmiError> {
        self.core().translate_address((va, self.translation_root(va)))
    }

    /// The return address of a function whose first instruction is about to run.
    ///
    /// # Errors
    /// As a read of the stack.
    pub fn return_address(&self) -> Result<Va, VmiError> {
        self.registers.return_address(self.core())
    }
}
