//! Any bytes read as an entry of the journal: see `bodies::journal`.
#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code, reason = "each target has one body of several")]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::journal(bytes));
