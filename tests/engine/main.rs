//! The engine's operations on a simulated machine, chain by chain, without threads and locks: what they refuse, what they
//! find, what they leave as it is, and what becomes of several that are under way at once.

// A test that cannot go on says where; clippy knows only functions marked as tests.
#![allow(clippy::unwrap_used)]

// Shared with other tests, each of which uses a part of it.
#[allow(dead_code)]
mod bench;
mod discovery;
mod disks;
mod filesystems;
mod identity;
mod input;
mod interleaved;
mod links;
mod old_pools;
mod other_daemon;
mod restart;
mod scheduler;
#[path = "../crash/state.rs"]
#[allow(dead_code, reason = "shared with the crash tests")]
mod state;
mod witness;
