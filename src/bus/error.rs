//! Errors that end the use of the bus.

use std::io;

/// An error of the bus. Each one ends the daemon.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("the system bus cannot be reached: {0}; start it, or set DBUS_SYSTEM_BUS_ADDRESS to another")]
    NoBus(String),
    #[error("the name {name} on the bus is not to be had: {why}")]
    Name { name: &'static str, why: String },
    #[error("the name {0} on the bus was lost; see what else has taken it")]
    NameLost(&'static str),
    #[error("the connection to the bus was lost; see why the bus has ended")]
    Lost,
    #[error("waiting for the bus failed")]
    Wait(#[source] io::Error),
}
