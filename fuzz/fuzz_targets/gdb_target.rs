//! `fuzz::gdb_target` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::gdb_target(data));
