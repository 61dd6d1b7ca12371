//! The engine: a virtual-machine-introspection session on a thread of its own.
//!
//! Floors from the ground up; a floor imports only what is below it, and nothing here knows `ui` or `app`:
//! addresses, errors, events and symbols; `arch` (AMD64 paging, registers, events); `driver` (capability traits and
//! the drivers); `session` (reads, caches, event loop, prober); `os` (Linux, Windows); `bpm`, `ptm` and `faults`
//! (breakpoints, page tables, missing pages); `monitor` (composes them all); `worker` (the thread).
//!
//! The screen knows two modules: [`snapshot`] (what exists) and [`command`] (what can be asked). Start there.

pub mod addr;
pub mod arch;
pub mod bpm;
pub mod command;
pub mod driver;
pub mod error;
pub mod event;
pub mod faults;
pub mod monitor;
pub mod os;
pub mod profile;
pub mod ptm;
pub mod session;
pub mod snapshot;
pub mod symbols;
pub mod worker;
