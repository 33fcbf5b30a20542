//! What is done to a cache before anything is written past it.
//!
//! A pool that is started without its cache is written to before that is on record: its metadata volume is mounted, its thin
//! pool's metadata repaired, a revert carried out. The blocks that the cache holds of all that are out of date from then on,
//! and a start that fails, or is cut short, leads back to the cache. So the cache is emptied first. Nothing is lost: every
//! write has gone to the data devices as well. A cache that cannot be emptied is given up on record before.

use crate::{
    base::units::Sectors,
    engine::{
        bda::Choose,
        containers,
        error::{Error, Result},
        metadata::pool::Tier,
        plan::sizes,
        pool::Pool,
        registry::DeviceSet,
    },
    platform::Platform,
};

/// Makes sure that nothing out of date is ever read from a cache that a pool is set up without. Nothing of the pool is up.
///
/// # Errors
/// When the cache can neither be emptied nor given up on record.
pub(super) fn leave(platform: &dyn Platform, pool: &mut Pool, set: &DeviceSet, tier: &Tier) -> Result<()> {
    let Err(error) = empty(platform, pool, set, tier) else { return Ok(()) };
    log::warn!("pool {}: its cache is given up, and cannot be emptied before: {}", pool.name(), error.sentence());
    let (old, new) = (pool.on_record(), pool.meta.clone());
    pool.commit(platform, Choose::Everywhere, Some(&old), new)
}

/// Empties a cache that is not up: to the kernel, a cache whose metadata begins with zeros is a new one. Tried twice, since a
/// cache that stays as it is has to be given up for good.
///
/// # Errors
/// When a device is missing or cannot be written.
fn empty(platform: &dyn Platform, pool: &Pool, set: &DeviceSet, tier: &Tier) -> Result<()> {
    let metadata = tier.blockdev.allocs.get(1).map_or(&[][..], Vec::as_slice);
    let mut left = sizes::METADATA_ZEROED;
    for segment in metadata {
        let length = segment.length.min(left);
        if length == Sectors::ZERO {
            break;
        }
        let found = set.devices().find(|found| found.bda.header().device == segment.parent);
        let missing = || Error::NoDevice { pool: pool.name().clone(), device: segment.parent };
        let path = &found.ok_or_else(missing)?.device.path;
        let wipe = || containers::wipe(platform, path, segment.start, length);
        wipe().or_else(|_| wipe())?;
        left = left.saturating_sub(length);
    }
    Ok(())
}
