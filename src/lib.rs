//! `stratisd`: a storage daemon for Linux. It manages pools of block devices with thinly provisioned
//! XFS filesystems, and serves them over D-Bus as `org.storage.stratis3`.
//!
//! This library is the whole daemon; the programs in `src/bin` are thin. It is not an interface for
//! other programs: clients use the bus.
//!
//! # Rooms
//!
//! | room | what it is | start reading at |
//! |---|---|---|
//! | [`daemon`] | which threads exist, what connects them, start and stop | [`daemon::run`] |
//! | [`bus`] | the D-Bus interface, computed from one table of members | the module's picture |
//! | [`watch`] | udev, device-mapper events and timers, turned into requests | [`watch::DeviceWatch`] |
//! | [`engine`] | pools: operations, discovery, metadata, planning | [`engine::ops`] |
//! | [`view`] | the published state, as immutable values | [`view::View`] |
//! | [`platform`] | what the engine asks of a machine, by one trait | [`platform::Platform`] |
//! | [`base`] | identifiers, names, units, error chains: every room may use them | [`base::ids`] |
//!
//! Arrows point one way: `bin → daemon → {bus, watch} → {engine, view} → platform`, with [`base`] and
//! the crate `threads` (lock, parking, workers) below all of them. [`platform::linux`] is the only room
//! that makes system calls; [`platform::sim`] is a machine in memory, on which the tests and
//! `stratisd --sim` run the same engine.
//!
//! # Where to read on
//!
//! - `docs/architecture.md`: the code map, with the life of a request, the lock, commit points and recipes for changes
//! - `docs/glossary.md`: each term once
//! - `docs/spec/`: the formats on disk, the device-mapper tables and the interface on the bus
//! - `CONTRIBUTING.md`: how to submit a change, and what checks it

pub mod base;
pub mod bus;
pub mod daemon;
pub mod engine;
pub mod platform;
pub mod view;
pub mod watch;
