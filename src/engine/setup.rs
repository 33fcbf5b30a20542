//! Sets up a pool from the contents of its devices (`docs/spec/engine/engine-behaviour.md` §8,
//! `storage-stack.md` §8), and inserts pools into the table.
//!
//! If a former daemon has left the stack up, the daemon adopts it layer by layer.

mod activate;
mod assembly;
mod journal;
mod past_cache;
mod restore;
mod thin_pool;
mod unlock;
mod unrecorded_cache;
mod wiping;

pub use self::assembly::CacheTier;
pub(super) use self::{
    assembly::assemble,
    journal::finish_destroy,
    restore::back_up_after,
    unlock::drop_luks_device,
    wiping::{DeviceToWipe, wipe_destroyed},
};
use crate::engine::{
    claims::Claim,
    error::{Error, Result},
    pool::Pool,
    request::{Access, Granted, Mode, Step},
};

/// Inserts a pool into the table. Afterwards gives back the claim on its name, with all other keys
/// in the same set.
pub(super) fn insert(pool: Pool, claim: Claim) -> Step<Result<()>> {
    Step::locked(Access::Table(Mode::Exclusive), move |engine, granted| {
        let Granted::Table(table) = granted else { return Step::Done(Err(Error::NoPool(pool.uuid()))) };
        let (uuid, name) = (pool.uuid(), pool.name().clone());
        let devices: Vec<_> = pool.members.nodes().collect();
        let inserted = match table.insert(pool) {
            Ok(()) => {
                engine.registry().note_running(uuid, devices);
                Ok(())
            }
            // The name is claimed, and the identifier is random or that of a stopped pool, so only
            // a defect can lead here.
            Err(_) => Err(Error::PoolNameTaken(name)),
        };
        drop(claim);
        Step::Done(inserted)
    })
}
