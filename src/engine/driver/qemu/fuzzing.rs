//! What the fuzz targets reach of this driver: its parsers, and its two clients on any connected socket.

pub use super::{
    cpu_text::{CpuText, parse as cpu_text},
    gdb::{
        Decoder, Gdb, LARGEST, Piece, Register, RegisterFile, Stop, Thread, Wire, described_registers, encode,
        from_hex, to_hex,
    },
    mtree::{RamRange, parse as mtree},
    qmp::Qmp,
    transport::{Address, Stream},
};
