//! Any bytes read as filesystem-level JSON: see `bodies::fs_json`.
#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code, reason = "each target has one body of several")]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::fs_json(bytes));
