//! Encrypted pools are created, unlocked, bound, stopped and started on the simulated machine,
//! chain by chain.

// A test that cannot go on says where; clippy knows only functions marked as tests.
#![allow(clippy::unwrap_used)]

mod bindings;
mod clones;
mod destroy;
mod online;
mod start;
mod together;
mod under_way;
