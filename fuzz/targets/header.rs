//! Reads any bytes as signature blocks: see `support::fuzz_bodies::header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| support::fuzz_bodies::header(bytes));
