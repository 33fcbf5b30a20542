//! The life of a pool on the simulated machine: it fills up and grows, gets and loses a cache, is
//! stopped and started, its filesystems are extended and reverted, its devices change, and its thin
//! pool fails. Chains run step by step; `wire` does the same over the bus.

// A failed unwrap shows where a test stopped. Clippy allows it only in functions marked as tests,
// not in their helpers.
#![allow(clippy::unwrap_used)]

mod cache;
mod cost;
mod devices;
mod every_device;
mod extend;
mod fill;
mod full;
mod full_record;
mod health;
mod left_out;
mod low_water;
mod refresh;
mod revert;
mod sizes;
mod snapshots;
mod starved;
mod stop_start;
mod stop_under_load;
mod taken_back;
mod together;
mod usage;
mod wire;
mod without_cache;
