//! Reads any bytes as a filesystem record: see `support::fuzz_bodies::fs_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| support::fuzz_bodies::fs_json(bytes));
