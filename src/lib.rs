//! `stratisd`: a storage daemon for Linux. It manages pools of block devices with thinly provisioned
//! XFS filesystems, and serves them over D-Bus as `org.storage.stratis3`.
//!
//! This library is the whole daemon; the programs in `src/bin` are thin. It is not an interface for
//! other programs: clients use the bus.
//!
//! # Rooms
//!
//! Two libraries share the folder `src`. [`stratis_core`] (`src/core.rs`) is everything that does not
//! need libdbus; this one adds the bus, and re-exports the rooms of the other.
//!
//! | room | what it is | start reading at |
//! |---|---|---|
//! | [`bus_front_end`] | the bus as a front end of the daemon | its one implementation |
//! | [`bus`] | the D-Bus interface, computed from one table of members | the module's picture |
//! | [`tools`] | programs beside the daemon | [`tools::doctor`] |
//! | [`stratis_core`] | all other rooms | its table of rooms |
//!
//! Arrows point one way: `bin → bus_front_end → {daemon, bus} → {watch, service} → {engine, view} →
//! platform`, with [`base`] and the crate `threads` (lock, parking, workers) below all of them.
//!
//! # Further reading
//!
//! - `docs/architecture.md`: the code map, with the life of a request, the lock, commit points and recipes for changes
//! - `docs/glossary.md`: each term once
//! - `docs/spec/`: the formats on disk, the device-mapper tables and the interface on the bus
//! - `CONTRIBUTING.md`: how to submit a change, and what checks it

pub mod bus;
pub mod bus_front_end;
pub mod tools;

pub use stratis_core::{base, cli, daemon, engine, min_client, platform, rpc, rpc_front_end, service, view, watch};
