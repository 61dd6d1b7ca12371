//! What the live tests share: a real Linux guest in a real QEMU.
//!
//! `guest` boots one with `scripts/guest`, runs commands in it over its serial console and reads their exact output.
//! It knows nothing of vmscope: what it says about the guest comes from the guest. `dashboard` is the program at such a
//! guest, `eyes` the engine without it, `lab` a host with KVM, `bytes` a guest's code as it must stay, `plain` a
//! gdb client to compare with, `libvirt` a libvirt of the test's own, `recorder` what vmscope
//! says to QEMU. Start at [`guest::Guest::boot`].

#![allow(dead_code, reason = "every test uses its part")]

pub mod bytes;
pub mod dashboard;
pub mod eyes;
pub mod guest;
pub mod lab;
pub mod libvirt;
pub mod plain;
pub mod processes;
pub mod recorder;
