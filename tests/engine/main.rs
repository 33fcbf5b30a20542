//! The engine's operations on a simulated machine, chain by chain, without threads and locks: what they refuse, what they
//! find, what they leave as it is, and what becomes of several that are under way at once.

// A test that cannot go on says where; clippy knows only functions marked as tests.
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
