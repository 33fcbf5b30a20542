//! Encrypted pools on the simulated machine, run step by step: they are created, unlocked, bound,
//! stopped and started.

// Tests unwrap also in helper functions; clippy recognizes only functions marked as tests.
#![allow(clippy::unwrap_used)]

mod bindings;
mod clones;
mod destroy;
mod online;
mod start;
mod together;
mod under_way;
