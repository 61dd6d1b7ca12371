//! What the live tests share: a real Linux guest in a real QEMU.
//!
//! `guest` boots one with `scripts/guest`, runs commands in it over its serial console and reads their exact output.
//! It knows nothing of vmscope: what it says about the guest comes from the guest. Imports only the standard library
//! and serde_json. Start at [`guest::Guest::boot`].

pub mod guest;
