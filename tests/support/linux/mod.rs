//! A Linux kernel that never runs: an image with symbols and type information, page tables, tasks and what hangs on
//! them, written into flat memory by the rules of the kernel's source. Its structures are small and its offsets are its
//! own, so that nothing but the type information tells them. Start at [`Machine`].

mod btf;
mod files;
mod kallsyms;
mod machine;
mod objects;

pub use self::{
    btf::BtfWriter,
    kallsyms::{ALIGNMENTS, Form, aligned_tables, tables},
    machine::{FACTS, Machine, Options, Spawn, offset, symbols},
};
