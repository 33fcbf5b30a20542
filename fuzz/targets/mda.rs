//! Reads any bytes as a metadata area: see `support::fuzz_bodies::mda`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| support::fuzz_bodies::mda(bytes));
