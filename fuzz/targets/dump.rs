//! Reads any bytes as the beginning of a device: see `support::fuzz_bodies::dump`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| support::fuzz_bodies::dump(bytes));
