//! Encrypted pools: made, unlocked, bound, stopped and started, on the simulated machine, chain by chain.

// A test that cannot go on says where; clippy knows only functions marked as tests.
#![allow(clippy::unwrap_used)]

#[path = "../engine/bench.rs"]
#[allow(dead_code, reason = "shared with other tests, of which each needs a part")]
mod bench;
mod bindings;
mod clones;
mod destroy;
#[path = "../engine/disks.rs"]
#[allow(dead_code, reason = "as above")]
mod disks;
mod keys;
mod online;
#[path = "../engine/scheduler.rs"]
mod scheduler;
mod start;
mod together;
mod under_way;
