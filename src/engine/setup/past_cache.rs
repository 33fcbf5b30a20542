//! Protects the data from a cache that the pool is started without.
//!
//! A pool that is started without its cache is written to before the record says so: its metadata
//! volume is mounted, its thin metadata repaired, a revert carried out. From then on, the cache
//! holds out-of-date copies of those blocks, and after a start that fails or is interrupted the
//! next start would use the cache again. So the cache is emptied first. No data is lost: every
//! write has gone to the data devices as well. If the cache cannot be emptied, it is given up on
//! record before anything is written.

use crate::{
    base::units::Sectors,
    engine::{
        bda::Choose,
        error::{Error, Result},
        luks_devices::lifecycle,
        metadata::pool::Tier,
        plan::sizes,
        pool::Pool,
        registry::DeviceSet,
    },
    platform::Platform,
};

/// Makes sure that no out-of-date data is ever read from a cache that a pool is set up without. No
/// device of the pool is up yet.
///
/// # Errors
/// When the cache can neither be emptied nor given up on record.
pub(super) fn leave(platform: &dyn Platform, pool: &mut Pool, set: &DeviceSet, tier: &Tier) -> Result<()> {
    let Err(error) = empty(platform, pool, set, tier) else { return Ok(()) };
    log::warn!("pool {}: giving up its cache, because it cannot be emptied: {}", pool.name(), error.sentence());
    let (old, new) = (pool.on_record(), pool.meta().clone());
    pool.commit(platform, Choose::Everywhere, Some(&old), new)
}

/// Empties a cache that is not up. The kernel takes a cache for new if its metadata begins with
/// zeros. Tries twice, since a cache that cannot be emptied has to be given up for good.
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
        let wipe = || lifecycle::wipe(platform, path, segment.start, length);
        wipe().or_else(|_| wipe())?;
        left = left.saturating_sub(length);
    }
    Ok(())
}
