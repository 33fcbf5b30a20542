//! The engine's operations on a simulated machine, run step by step without threads and locks: what
//! they refuse, find and keep, and how they interleave.

// Tests unwrap also in helper functions; clippy recognizes only functions marked as tests.
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
