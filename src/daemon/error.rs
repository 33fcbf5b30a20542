//! Why the daemon ends.

use std::io;

use threads::group::SpawnError;

use super::{front_end::FrontEndError, machine, stop::Stuck};
use crate::platform;

/// Why the daemon did not start or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("cannot create an eventfd to wake a thread")]
    Waker(#[source] io::Error),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    FrontEnd(FrontEndError),
    #[error("cannot receive device events")]
    Events(#[source] platform::Error),
    #[error("cannot scan this machine for pools: {0}")]
    Discovery(String),
    #[error("thread {name} ended{why}; the daemon cannot run without it")]
    ThreadEnded { name: String, why: String },
    #[error(transparent)]
    Stuck(#[from] Stuck),
}
