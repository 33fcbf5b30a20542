//! How a request names a pool.

use std::fmt;

use super::{ids::PoolUuid, name::Name};

/// The pool that a request is about. A name is resolved when the lock is granted, not before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PoolRef {
    /// By identifier.
    Uuid(PoolUuid),
    /// By its current name.
    Name(Name),
}

impl fmt::Display for PoolRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolRef::Uuid(uuid) => write!(f, "UUID {uuid}"),
            PoolRef::Name(name) => write!(f, "name {name}"),
        }
    }
}

impl From<PoolUuid> for PoolRef {
    fn from(uuid: PoolUuid) -> PoolRef {
        PoolRef::Uuid(uuid)
    }
}

impl From<Name> for PoolRef {
    fn from(name: Name) -> PoolRef {
        PoolRef::Name(name)
    }
}
