//! Encrypted pools on the simulated machine, run step by step: they are created, unlocked, bound,
//! stopped and started.

// A failed unwrap shows where a test stopped. Clippy allows it only in functions marked as tests,
// not in their helpers.
#![allow(clippy::unwrap_used)]

mod beginning;
mod bindings;
mod clones;
mod context;
mod destroy;
mod online;
mod start;
mod together;
mod under_way;
