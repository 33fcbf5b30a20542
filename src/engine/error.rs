//! What can go wrong in the engine.

use crate::{
    engine::{ids::PoolUuid, name::NameError},
    platform,
};

/// Result of an engine operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("there is no running pool with UUID {0}")]
    NoPool(PoolUuid),
    #[error(transparent)]
    Platform(#[from] platform::Error),
}
