//! Reads any bytes as pool metadata: see `support::fuzz_bodies::pool_json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| support::fuzz_bodies::pool_json(bytes));
