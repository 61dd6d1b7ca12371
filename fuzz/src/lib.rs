//! Fuzz targets: one function each, which takes any bytes and asserts what must hold of the answer.
//!
//! A target panics where the engine breaks a promise: it does not only look for panics of the engine's own. The same
//! functions serve libFuzzer (`fuzz_targets/`) and the plain loop over changed samples (`examples/samples.rs`). [`TARGETS`] lists
//! them; each has samples that lead it past the first check.

mod guest;
mod kernel;
mod peer;
mod reader;
#[path = "../../tests/support/mod.rs"]
mod support;
mod user;
mod walk;

pub use self::{
    guest::linux_guest,
    kernel::{btf, kallsyms, profile},
    peer::{gdb_bytes, gdb_session, gdb_target, monitor_text, qmp},
    user::{clean, config, keys},
    walk::page_walk,
};

/// A target with what it starts from.
pub struct Target {
    /// Its name, also that of its file in `fuzz_targets/`.
    pub name: &'static str,
    /// The target.
    pub run: fn(&[u8]),
    /// Inputs that make sense.
    pub samples: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($module:ident::$name:ident)*) => {
        &[$(Target { name: stringify!($name), run: $name, samples: $module::samples::$name }),*]
    };
}

/// All targets.
pub const TARGETS: &[Target] = targets! {
    walk::page_walk
    kernel::kallsyms kernel::btf kernel::profile
    guest::linux_guest
    peer::gdb_bytes peer::gdb_session peer::gdb_target peer::qmp peer::monitor_text
    user::keys user::config user::clean
};

/// Whether a text may go to a terminal as it is.
fn is_printable(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c))
}
