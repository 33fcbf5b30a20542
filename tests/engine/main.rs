//! The engine's operations on a simulated machine, run step by step without threads and locks: what
//! they refuse, find and keep, and how they interleave.

// A failed unwrap shows where a test stopped. Clippy allows it only in functions marked as tests,
// not in their helpers.
#![allow(clippy::unwrap_used)]

mod discovery;
mod filesystems;
mod identity;
mod input;
mod interleaved;
mod links;
mod old_pools;
mod other_daemon;
mod restart;
mod witness;
