//! The engine's operations on a simulated machine, chain by chain, without threads and locks: what
//! they refuse, find and keep, and what happens when several are under way.

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
