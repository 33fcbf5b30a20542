//! The system bus: the only user of the `dbus` crate.

pub mod job;
pub mod outcome;
pub mod tree;
