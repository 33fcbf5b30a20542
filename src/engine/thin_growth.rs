//! Carries out the growth of a thin pool: records it and puts it in place. `engine/plan/growth.rs`
//! plans when a thin pool grows, and by how much. `engine/ops/check.rs`, which checks pools,
//! explains the order of record and tables, and why it survives a power cut.

use crate::{
    base::units::Sectors,
    engine::{
        bda::Choose,
        error::{Error, Result},
        metadata::{FilesystemRecord, PoolMetadata},
        plan::growth::{self, Fill, Growth},
        pool::Pool,
        stack::Layer,
        thin_status::PoolStatus,
        undo::Rollback,
    },
    platform::Platform,
};

/// Gives a thin pool the space that it lacks during the set-up of its pool, as far as the pool has
/// any. `records` are the records of the filesystems, which are not set up yet. A failure is only
/// logged, because the code that needs the space checks for it.
///
/// # Errors
/// When it is unknown which state is on record.
pub fn give_space(platform: &dyn Platform, pool: &mut Pool, records: &[FilesystemRecord]) -> Result<()> {
    if pool.check_changes().is_err() {
        return Ok(());
    }
    match grow_at_set_up(platform, pool, records) {
        Err(error) if error.is_unsure() => Err(error),
        Err(error) => {
            log::warn!("pool {}: cannot extend its thin pool during set-up: {}", pool.name(), error.sentence());
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn grow_at_set_up(platform: &dyn Platform, pool: &mut Pool, records: &[FilesystemRecord]) -> Result<()> {
    let status = pool.thin_pool_status(platform)?;
    if status.is_damaged() {
        return Ok(());
    }
    let filesystems = records.iter().map(|record| record.size).fold(Sectors::ZERO, Sectors::saturating_add);
    let facts = growth::GrowthFacts { filesystems, ..facts(pool, None, Some(fill(&status))) };
    carry_out(platform, pool, &growth::pool(&facts)).map(drop)
}

/// How full a thin pool with this status is.
pub fn fill(status: &PoolStatus) -> Fill {
    Fill {
        metadata_free: status.metadata_total.saturating_sub(status.metadata_used),
        metadata_low_water: status.metadata_low_water,
        data_free: status.data_total.saturating_sub(status.data_used),
    }
}

/// The facts from which growth is planned.
pub fn facts(pool: &Pool, metadata_needed: Option<Sectors>, fill: Option<Fill>) -> growth::GrowthFacts {
    growth::GrowthFacts {
        usable: pool.usable_size(),
        available: pool.growable(),
        metadata: pool.thin_metadata(),
        metadata_needed,
        fs_limit: pool.fs_limit(),
        fill,
        overprovisioning: pool.overprovisioning(),
        filesystems: pool.filesystems.size(),
        metadata_exhausted: pool.growth.is_metadata_exhausted(),
        writes_fail: pool.meta().thinpool_dev.errors_if_no_space(),
    }
}

/// Records a plan and puts it in place. `false`: the plan changes nothing.
pub fn carry_out(platform: &dyn Platform, pool: &mut Pool, plan: &Growth) -> Result<bool> {
    let writes_fail = pool.meta().thinpool_dev.errors_if_no_space();
    if (plan.metadata, plan.data, plan.writes_fail) == (Sectors::ZERO, Sectors::ZERO, writes_fail) {
        return Ok(false);
    }
    let available = pool.growable();
    if pool.growth.is_refused(plan, available) {
        return Ok(false);
    }
    let former = pool.meta().clone();
    let (version, headers) = (pool.version(), pool.headers_as_found());
    let extended = pool.change(platform, Choose::Some(platform.random()), |meta| {
        meta.extend(version, &headers.iter().collect::<Vec<_>>(), plan.metadata, plan.data)?;
        meta.thinpool_dev.set_errors_if_no_space(plan.writes_fail);
        Ok(())
    });
    match extended {
        // No more space can be handed out. So writes must fail when the thin pool is full, as on
        // devices without space.
        Err(full @ Error::RecordFull { .. }) if !writes_fail => {
            pool.change(platform, Choose::Some(platform.random()), |meta| {
                meta.thinpool_dev.set_errors_if_no_space(true);
                Ok(())
            })?;
            follow(platform, pool)?;
            return Err(full);
        }
        extended => extended?,
    }
    if plan.writes_fail && !writes_fail {
        log::warn!("pool {} has allocated all its space; writes fail once the thin pool is full", pool.name());
    }
    for (what, more) in [("metadata", plan.metadata), ("data", plan.data)] {
        if more > Sectors::ZERO {
            log::info!("pool {}: its thin pool gets {} more for {what}", pool.name(), more.readable());
        }
    }
    follow_or_back(platform, pool, former).inspect_err(|error| {
        pool.growth.note_failed(plan, available, error.is_refusal());
    })?;
    Ok(true)
}

/// As [`follow`], after a growth from the `former` state. If the kernel refuses the growth for
/// good, it is taken back, provided that the kernel has not seen any part of it. Otherwise the pool
/// could never grow again.
///
/// # Errors
/// When the kernel refuses a table.
pub fn follow_or_back(platform: &dyn Platform, pool: &mut Pool, former: PoolMetadata) -> Result<()> {
    let refused = match follow(platform, pool) {
        Err(refused) if refused.is_refusal() => refused,
        followed => return followed,
    };
    let is_former = |layer: &Layer| pool.stack.is_as(platform, layer).unwrap_or(false);
    if !pool.shape_of(&former).layers().iter().all(is_former) {
        return Err(refused);
    }
    log::error!("pool {} cannot grow, because the kernel refuses its table: {}", pool.name(), refused.sentence());
    pool.growth.note_behind(false);
    Err(pool.take_back(platform, former, refused))
}

/// Loads the tables that the record asks for and makes them live.
///
/// # Errors
/// When the kernel refuses a table. The next check tries again.
pub fn follow(platform: &dyn Platform, pool: &mut Pool) -> Result<()> {
    let layers = pool.shape().layers();
    // Tables that became live before an error stay: the record asks for them.
    let mut nothing_to_undo = Rollback::new();
    let followed = pool.stack.ensure_all(platform, layers, &mut nothing_to_undo);
    nothing_to_undo.forget();
    pool.growth.note_behind(followed.is_err());
    followed
}

/// As [`follow`], for requests that are complete once the record is written. An error is only
/// logged.
pub fn follow_or_later(platform: &dyn Platform, pool: &mut Pool) {
    if let Err(error) = follow(platform, pool) {
        let what = error.sentence();
        log::warn!("pool {}: cannot load its tables now, the next check tries again: {what}", pool.name());
    }
}
