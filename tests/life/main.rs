//! What a pool goes through besides growing: it is stopped and started, filesystems are reverted, everything is read anew,
//! its cache is given up, its thin pool fails. On the simulated machine, chain by chain, and at the end on the bus.

#[path = "../engine/bench.rs"]
#[allow(dead_code, reason = "shared with other tests, of which each needs a part")]
mod bench;
#[path = "../engine/disks.rs"]
#[allow(dead_code, reason = "as above")]
mod disks;
mod health;
mod refresh;
mod revert;
#[path = "../engine/scheduler.rs"]
#[allow(dead_code, reason = "as above")]
mod scheduler;
mod stop_start;
mod together;
mod wire;
mod without_cache;
