//! `stratisd`: a storage daemon that manages pools of block devices and serves them over D-Bus as
//! `org.storage.stratis3`.
//!
//! The rooms and the direction of the arrows between them are described in `docs/architecture.md`:
//! `bin → daemon → {bus, watch} → {engine, view} → platform`, and the `threads` crate below all.

pub mod bus;
pub mod daemon;
pub mod engine;
pub mod platform;
pub mod view;
pub mod watch;
