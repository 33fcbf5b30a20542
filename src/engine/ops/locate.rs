//! Finds the pool that a request names: among the running pools or among the stopped ones.

use crate::{
    base::{ids::PoolUuid, pool_ref::PoolRef},
    engine::{
        error::Result,
        request::{Granted, Step},
    },
};

/// Where a pool was found.
pub(super) enum PoolState {
    /// It runs.
    Running(PoolUuid),
    /// It is known and does not run.
    Stopped(PoolUuid),
}

/// Finds a pool.
pub(super) fn locate(which: PoolRef) -> Step<Result<PoolState>> {
    Step::read(which.clone(), move |engine, granted| match granted {
        Granted::Read(pool) => Step::Done(Ok(PoolState::Running(pool.uuid()))),
        _ => {
            let stopped = engine.registry().resolve(&which);
            match stopped {
                Ok(uuid) => Step::Done(Ok(PoolState::Stopped(uuid))),
                // The pool may have started between the two lookups.
                Err(error) => Step::read(which, move |_, granted| match granted {
                    Granted::Read(pool) => Step::Done(Ok(PoolState::Running(pool.uuid()))),
                    _ => Step::Done(Err(error)),
                }),
            }
        }
    })
}
