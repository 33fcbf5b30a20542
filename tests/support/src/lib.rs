//! Code that the tests and benchmarks of `stratisd` share.
//!
//! - Processes: [`processes`], a private [`bus`], the [`daemon`] on it, and a [`client`].
//! - The engine on a simulated machine: the [`bench`](mod@bench) runs chains of steps one after the
//!   other, and the [`scheduler`] interleaves them. [`state`] is the state of a machine as a user
//!   can see it, [`disks`] writes disks as other daemons leave them, and [`keys`] is for encrypted
//!   pools.
//! - The worked examples of the specification: [`examples`].
//! - The comparisons of the simulation with the kernel: [`alike`]. The bodies of the fuzz targets:
//!   [`fuzz_bodies`].
//!
//! Unit tests in `src/` use only [`bus`], [`processes`] and [`examples`]. Cargo compiles the
//! library a second time for them, and the types of the two copies differ.

// A panic says where a test failed. Clippy allows `unwrap` only in functions marked as tests.
#![allow(clippy::unwrap_used)]

pub mod alike;
pub mod bench;
pub mod bus;
pub mod client;
pub mod daemon;
pub mod disks;
pub mod examples;
pub mod fuzz_bodies;
pub mod keys;
pub mod pools;
pub mod processes;
pub mod scheduler;
pub mod state;
