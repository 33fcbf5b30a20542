//! Errors that end the use of the bus.

use std::io;

/// An error of the bus. Each one ends the daemon.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("cannot reach the system bus: {0}; start it, or set DBUS_SYSTEM_BUS_ADDRESS")]
    NoBus(String),
    #[error("cannot acquire bus name {name}: {why}")]
    Name { name: &'static str, why: String },
    #[error("the bus name {0} was lost; check which program has taken it")]
    NameLost(&'static str),
    #[error("the connection to the bus was lost; check why the bus ended")]
    Lost,
    #[error("cannot wait for the bus")]
    Wait(#[source] io::Error),
}
