//! Any bytes read as metadata areas: see `bodies::mda`.
#![no_main]

#[path = "../bodies.rs"]
#[allow(dead_code, reason = "each target has one body of several")]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::mda(bytes));
