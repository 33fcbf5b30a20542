//! The library under the programs of stratisd: everything but the bus, so that a program that uses
//! only this library does not need libdbus (`core/Cargo.toml`). The library `stratisd` adds the
//! bus, and re-exports everything else.
//!
//! # Rooms
//!
//! | room | what it is | start reading at |
//! |---|---|---|
//! | [`rpc_front_end`] | the socket as a front end of the daemon | its one implementation |
//! | [`min_client`] | what `stratis-min` does | [`min_client::run`] |
//! | [`cli`] | command lines of programs | one file for each |
//! | [`daemon`] | which threads exist, what connects them, start and stop | [`daemon::run`] |
//! | [`watch`] | udev, device-mapper events and timers, turned into requests | [`watch::DeviceWatch`] |
//! | [`rpc`] | the socket of the early-boot daemon, both ends | the module's picture |
//! | [`service`] | what a daemon offers to clients, in any protocol | [`service::Submit`] |
//! | [`engine`] | pools: operations, discovery, metadata, planning | [`engine::ops`] |
//! | [`view`] | the published state, as immutable values | [`view::View`] |
//! | [`platform`] | what the engine asks of a machine, by one trait | [`platform::Platform`] |
//! | [`base`] | identifiers, names, units, error chains: every room may use them | [`base::ids`] |
//!
//! Arrows point one way: `rpc_front_end → {daemon, rpc} → {watch, service} → {engine, view} →
//! platform`, with [`base`] and the crate `threads` (lock, parking, workers) below all of them.
//! [`platform::linux`] is the only room that makes system calls; [`platform::sim`] is a machine in
//! memory, on which the tests and `stratisd --sim` run the same engine.

pub mod base;
pub mod cli;
pub mod daemon;
pub mod engine;
pub mod min_client;
pub mod platform;
pub mod rpc;
pub mod rpc_front_end;
pub mod service;
pub mod view;
pub mod watch;
