//! Reads any bytes as an entry of the journal: see `support::fuzz_bodies::journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| support::fuzz_bodies::journal(bytes));
