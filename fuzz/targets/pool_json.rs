//! Any bytes read as pool-level JSON: see `bodies::pool_json`.
#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code, reason = "each target has one body of several")]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::pool_json(bytes));
