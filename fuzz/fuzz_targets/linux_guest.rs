//! `fuzz::linux_guest` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::linux_guest(data));
