//! `fuzz::page_walk` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::page_walk(data));
