//! What the live tests share: a real Linux guest in a real QEMU.
//!
//! `guest` boots one with `scripts/guest`, runs commands in it over its serial console and reads their exact output.
//! It knows nothing of vmscope: what it says about the guest comes from the guest. `dashboard` is the program at such a
//! guest, `eyes` the engine without it, `agree` compares the two, `libvirt` is a libvirt of the test's own. Start at [`guest::Guest::boot`].

#![allow(dead_code, reason = "every test uses its part")]

pub mod agree;
pub mod dashboard;
pub mod eyes;
pub mod guest;
pub mod libvirt;
