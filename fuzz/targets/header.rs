//! Any bytes read as signature blocks: see `bodies::header`.
#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code, reason = "each target has one body of several")]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::header(bytes));
