//! The limits of a pool: how many filesystems it may have, and whether it may be overprovisioned
//! (`docs/spec/engine/storage-stack.md` §10.7).

use crate::{
    base::{ids::PoolUuid, units::Sectors},
    engine::{
        bda::Choose,
        error::{Error, Result},
        layout,
        ops::{
            check::and_use,
            pool_access::{change, read_pool, write_pool},
        },
        plan::{
            growth::{self, Exhausted},
            sizes,
        },
        pool::Pool,
        request::Step,
        thin_devices::thin_metadata_size,
        thin_growth::{facts, follow_or_back},
    },
    platform::Platform,
};

/// Raises the number of filesystems that a pool may have, and allocates thin metadata for as many.
pub fn set_fs_limit(uuid: PoolUuid, limit: u64) -> Step<Result<()>> {
    read_pool(uuid, move |_, pool| {
        match may_have(pool, limit).map(|()| pool.usable_size()) {
            Err(error) => Step::Done(Err(error)),
            Ok(usable) => Step::blocking(move |engine| match thin_metadata_size(engine.platform(), usable, limit) {
                Err(error) => Step::Done(Err(error)),
                Ok(needed) => write_pool(uuid, move |engine, pool| {
                    if pool.usable_size() != usable {
                        // The pool has grown meanwhile and needs a different amount of metadata.
                        return set_fs_limit(uuid, limit);
                    }
                    let raised = raise(engine.platform(), pool, limit, needed);
                    Step::Done(raised.inspect_err(|error| pool.note_failure(error)))
                }),
            }),
        }
    })
}

fn may_have(pool: &Pool, limit: u64) -> Result<()> {
    pool.check_changes()?;
    let maximum = sizes::fs_limit_max(layout::total(&pool.meta().flex_devs.meta_dev));
    let name = || pool.name().clone();
    match pool.fs_limit() {
        now if limit <= now => Err(Error::FilesystemLimitNotRaised { pool: name(), limit: now }),
        _ if limit > maximum => Err(Error::FilesystemLimitTooHigh { pool: name(), maximum }),
        _ => Ok(()),
    }
}

fn raise(platform: &dyn Platform, pool: &mut Pool, limit: u64, needed: Sectors) -> Result<()> {
    may_have(pool, limit)?;
    let asked = growth::GrowthFacts { metadata_exhausted: false, ..facts(pool, Some(needed), None) };
    let plan = growth::pool(&asked);
    let name = || pool.name().clone();
    match plan.exhausted {
        Some(Exhausted::Devices) => return Err(Error::MetadataExhausted { pool: name() }),
        Some(Exhausted::Promised) => return Err(Error::MetadataPromised { pool: name() }),
        None => {}
    }
    let former = pool.meta().clone();
    let (version, headers) = (pool.version(), pool.headers_as_found());
    pool.change(platform, Choose::Some(platform.random()), |meta| {
        meta.extend(version, &headers.iter().collect::<Vec<_>>(), plan.metadata, Sectors::ZERO)?;
        meta.thinpool_dev.fs_limit = Some(limit);
        Ok(())
    })?;
    pool.growth.note_metadata_needed(pool.metadata_demand(), needed);
    if plan.metadata > Sectors::ZERO {
        if let Err(error) = follow_or_back(platform, pool, former) {
            if pool.fs_limit() != limit {
                return Err(error);
            }
            log::warn!(
                "could not extend the thin metadata of pool {}, which the next check tries again: {}",
                pool.name(),
                error.sentence()
            );
        }
    }
    Ok(())
}

/// Allows or forbids overprovisioning. `false`: the setting is the same already.
pub fn set_overprovisioning(uuid: PoolUuid, allowed: bool) -> Step<Result<bool>> {
    let chain = change(uuid, move |engine, pool| change_overprovisioning(engine.platform(), pool, allowed));
    and_use(uuid, chain, move |changed| *changed && allowed)
}

fn change_overprovisioning(platform: &dyn Platform, pool: &mut Pool, allowed: bool) -> Result<bool> {
    pool.check_changes()?;
    if pool.overprovisioning() == allowed {
        return Ok(false);
    }
    let (needed, room) = (pool.filesystems.size(), pool.room());
    if !allowed && needed > room {
        return Err(Error::NoRoom { pool: pool.name().clone(), needed, room });
    }
    pool.change(platform, Choose::Some(platform.random()), |meta| {
        meta.thinpool_dev.enable_overprov = Some(allowed);
        Ok(())
    })?;
    // The space promised to filesystems may have kept the metadata from growing.
    if allowed {
        pool.growth.retry_metadata();
    }
    Ok(true)
}
