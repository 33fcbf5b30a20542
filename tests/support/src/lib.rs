//! What the tests and benchmarks of `stratisd` share.
//!
//! - Processes: [`processes`], a private [`bus`], the [`daemon`] on it, and a [`client`].
//! - The engine on a simulated machine: the [`bench`](mod@bench) runs chains of steps one after the
//!   other, the [`scheduler`] interleaves them; [`state`] is what a user could tell of a machine,
//!   [`disks`] writes what other daemons leave on disks, [`keys`] is for encrypted pools.
//! - The worked examples of the specification: [`examples`].
//! - The simulation beside the kernel: [`alike`]. What fuzz targets do with bytes: [`fuzz_bodies`].
//!
//! Unit tests in `src/` use [`bus`], [`processes`] and [`examples`] only. Cargo compiles the library a
//! second time for them, and the types of the two copies differ.

// Panics say where a test failed; clippy knows only functions marked as tests.
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
