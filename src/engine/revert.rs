//! Reverts: snapshots that replace their origins when the pool is set up
//! (`docs/spec/engine/storage-stack.md` §9.6).
//!
//! The records alone decide which reverts are done ([`plan`]). A revert takes three steps:
//!
//! 1. Bring the snapshot's thin device up under the origin's name. Nothing durable has happened
//!    yet. If this fails, both filesystems are set up as they are, and the revert stays scheduled
//!    until the next set-up.
//! 2. Write an entry to the journal. This is the commit point.
//! 3. Change the records, delete the origin's old thin device, change the identity of the XFS. Each
//!    of these can be repeated. A step that fails now is done at the next set-up, as the journal
//!    says; meanwhile the pool runs with the outcome.
//!
//! The identity is written to blocks that the snapshot may share, so the write needs space. A pool
//! that is not in the table yet gets no space from a check, and a write that waits for space would
//! wait for a minute. So the thin pool gets space before any revert, and the old thin device is
//! deleted, which frees its space, before the identity is written. If the space still does not
//! suffice, the XFS keeps the snapshot's UUID until the next set-up. The UUID stays unique, since
//! the snapshot is gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    base::{
        ids::{FsUuid, PoolUuid},
        units::DataBlocks,
    },
    engine::{
        dm_names::Role,
        error::{Error, Result},
        mdv::Mdv,
        metadata::{FilesystemRecord, Journal, Revert},
        pool::Pool,
        stack, thin_devices,
        undo::Rollback,
        xfs,
    },
    platform::{Platform, dm::Visibility},
    view::Availability,
};

/// Why a scheduled revert is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// The origin does not exist, so there is nothing to replace.
    #[error("its origin does not exist")]
    NoOrigin,
    /// Several snapshots name the same origin, so it is unclear which one is meant.
    #[error("several snapshots are to replace the same origin")]
    Several,
    /// The result would depend on the order of the reverts.
    #[error("a filesystem is to replace another and to be replaced itself")]
    Chained,
}

/// Which of the scheduled reverts are to be done, and why the others are not.
pub fn plan(records: &[FilesystemRecord]) -> (Vec<Revert>, Vec<(FsUuid, Ignored)>) {
    let by_uuid: BTreeMap<FsUuid, &FilesystemRecord> = records.iter().map(|record| (record.uuid, record)).collect();
    let (mut planned, mut ignored) = (Vec::new(), Vec::new());
    for snapshot in records.iter().filter(|record| record.merge) {
        match snapshot.origin.and_then(|origin| by_uuid.get(&origin)) {
            Some(origin) => planned.push(Revert {
                origin: origin.uuid,
                replaced: origin.thin_id,
                snapshot: snapshot.uuid,
                thin_id: snapshot.thin_id,
            }),
            None => ignored.push((snapshot.uuid, Ignored::NoOrigin)),
        }
    }
    let mut keep = |planned: Vec<Revert>, is_clear: &dyn Fn(&Revert) -> bool, otherwise| {
        let (clear, unclear): (Vec<_>, Vec<_>) = planned.into_iter().partition(is_clear);
        ignored.extend(unclear.iter().map(|revert: &Revert| (revert.snapshot, otherwise)));
        clear
    };
    let mut uses: BTreeMap<FsUuid, usize> = BTreeMap::new();
    planned.iter().for_each(|revert: &Revert| *uses.entry(revert.origin).or_default() += 1);
    let planned = keep(planned, &|revert| uses[&revert.origin] == 1, Ignored::Several);
    let origins: BTreeSet<FsUuid> = planned.iter().map(|revert| revert.origin).collect();
    let snapshots: BTreeSet<FsUuid> = planned.iter().map(|revert| revert.snapshot).collect();
    let is_clear = |revert: &Revert| !snapshots.contains(&revert.origin) && !origins.contains(&revert.snapshot);
    (keep(planned, &is_clear, Ignored::Chained), ignored)
}

/// Turns the records into those after a revert: the origin's record has the snapshot's thin device,
/// the snapshot's record is gone, and the snapshots of the snapshot have the origin as theirs.
/// Returns the records that differ; `None` if one of the two filesystems has been changed
/// meanwhile, so that nothing is left to do.
fn apply(records: &mut Vec<FilesystemRecord>, revert: &Revert) -> Option<Vec<FilesystemRecord>> {
    let snapshot = records.iter().find(|record| record.uuid == revert.snapshot).cloned();
    let origin = records.iter_mut().find(|record| record.uuid == revert.origin)?;
    let mut changed = Vec::new();
    match snapshot {
        // A client may have cancelled the revert.
        Some(snapshot)
            if snapshot.thin_id == revert.thin_id
                && snapshot.merge
                && [revert.replaced, revert.thin_id].contains(&origin.thin_id) =>
        {
            origin.thin_id = snapshot.thin_id;
            origin.size = snapshot.size;
            origin.fs_size_limit = snapshot.fs_size_limit;
            changed.push(origin.clone());
        }
        // The revert has been done before.
        None if origin.thin_id == revert.thin_id => {}
        _ => return None,
    }
    records.retain(|record| record.uuid != revert.snapshot);
    for record in records.iter_mut().filter(|record| record.origin == Some(revert.snapshot)) {
        record.origin = Some(revert.origin);
        changed.push(record.clone());
    }
    Some(changed)
}

/// Carries out the reverts that `records` schedule, before the filesystems are set up. Afterwards
/// `records` describe the outcome.
///
/// # Errors
/// When it is unknown whether a revert has been decided.
pub(super) fn carry_out(
    platform: &dyn Platform,
    pool: &mut Pool,
    records: &mut Vec<FilesystemRecord>,
    undo: &mut Rollback,
) -> Result<()> {
    let (planned, ignored) = plan(records);
    let name_of = |records: &[FilesystemRecord], id: FsUuid| {
        records.iter().find(|record| record.uuid == id).map_or_else(|| id.to_string(), |record| record.name.clone())
    };
    for (snapshot, why) in ignored {
        let snapshot = name_of(records, snapshot);
        log::warn!("pool {}: filesystem {snapshot} does not replace its origin: {why}", pool.name());
    }
    for revert in planned {
        let (origin, snapshot) = (name_of(records, revert.origin), name_of(records, revert.snapshot));
        if let Err(error) = decide(platform, pool, records, &revert, undo)? {
            let why = error.sentence();
            log::warn!("pool {}: filesystem {snapshot} does not replace {origin} now: {why}", pool.name());
            continue;
        }
        log::info!("pool {}: filesystem {snapshot} replaces {origin}", pool.name());
        finish(platform, pool, records, &revert, undo);
    }
    Ok(())
}

/// Completes a revert that has been decided. Afterwards `records` describe the outcome. What fails
/// now stays in the journal for the next set-up. Until then the filesystems must not be changed,
/// because the snapshot may still be a separate filesystem on disk.
pub(super) fn finish(
    platform: &dyn Platform,
    pool: &mut Pool,
    records: &mut Vec<FilesystemRecord>,
    revert: &Revert,
    undo: &mut Rollback,
) {
    apply(records, revert);
    // A single failure is no reason to leave the revert to the next set-up.
    let finished = settle(platform, pool, revert, undo).or_else(|_| settle(platform, pool, revert, undo));
    match finished {
        Ok(Settled::Wholly) => {}
        Ok(Settled::LacksSpace { needed, free }) => log::warn!(
            "pool {}: filesystem {} keeps the XFS UUID of the snapshot that has replaced it: writing its own may take {} data \
             blocks, and the thin pool has {} free; add a data device, then stop and start the pool",
            pool.name(),
            revert.origin,
            needed.0,
            free.0
        ),
        Err(error) => {
            let what = error.sentence();
            let reason = format!("a revert could not be completed ({what}); the next start of the pool completes it");
            pool.restrict(Availability::NoRequests, reason);
        }
    }
}

/// Brings the snapshot's thin device up in the origin's place and writes the journal entry. The
/// inner result says whether the revert has been decided.
fn decide(
    platform: &dyn Platform,
    pool: &Pool,
    records: &[FilesystemRecord],
    revert: &Revert,
    undo: &mut Rollback,
) -> Result<Result<()>> {
    let Some(snapshot) = records.iter().find(|record| record.uuid == revert.snapshot) else { return Ok(Ok(())) };
    let device = pool.thin_name(revert.origin);
    let mut prepare = || {
        let own = pool.thin_name(revert.snapshot);
        if platform.dm_find(&own)?.is_some() {
            return Err(Error::StillUp(own));
        }
        let thin_pool = pool.stack.number(Role::ThinPool).ok_or(Error::NoPool(pool.uuid()))?;
        let table = thin_devices::thin_table(thin_pool, snapshot.thin_id, snapshot.size);
        // If the origin's device is still up, it has another table.
        stack::ensure_device(platform, &device, &table, Visibility::Public, undo).map(drop)
    };
    if let Err(error) = prepare().or_else(|_| prepare()) {
        return Ok(Err(error));
    }
    let mdv = Mdv::new(platform, pool.uuid());
    let entry = Journal::Revert(*revert);
    if let Err(error) = mdv.begin(&entry).or_else(|_| mdv.begin(&entry)) {
        // The entry may have reached the disk despite the error.
        mdv.end(&entry)?;
        stack::remove_if_up(platform, &device)?;
        return Ok(Err(error));
    }
    Ok(Ok(()))
}

/// How far a decided revert has come.
enum Settled {
    /// It is complete.
    Wholly,
    /// The revert is complete except for the identity of the XFS. The journal entry stays.
    LacksSpace { needed: DataBlocks, free: DataBlocks },
}

fn settle(platform: &dyn Platform, pool: &mut Pool, revert: &Revert, undo: &mut Rollback) -> Result<Settled> {
    let uuid = pool.uuid();
    let mdv = Mdv::new(platform, uuid);
    let mut records = mdv.records(&mdv.journal()?)?;
    if let Some(changed) = apply(&mut records, revert) {
        // The origin's record first: the snapshot's thin device is always named by some record.
        changed.iter().try_for_each(|record| mdv.save(record))?;
        mdv.remove(revert.snapshot)?;
        delete_replaced(platform, uuid, &records, revert)?;
        if let lacking @ Settled::LacksSpace { .. } = identify(platform, pool, &records, revert, undo)? {
            return Ok(lacking);
        }
    }
    mdv.end(&Journal::Revert(*revert))?;
    Ok(Settled::Wholly)
}

/// Writes the origin's UUID into the XFS that was the snapshot's, if the thin pool has enough
/// space.
fn identify(
    platform: &dyn Platform,
    pool: &mut Pool,
    records: &[FilesystemRecord],
    revert: &Revert,
    undo: &mut Rollback,
) -> Result<Settled> {
    let Some(record) = records.iter().find(|record| record.uuid == revert.origin) else { return Ok(Settled::Wholly) };
    let thin_pool = pool.stack.number(Role::ThinPool).ok_or(Error::NoPool(pool.uuid()))?;
    let table = thin_devices::thin_table(thin_pool, record.thin_id, record.size);
    let device = pool.thin_name(revert.origin);
    // The device is up already, unless there was a power cut in between.
    stack::ensure_device(platform, &device, &table, Visibility::Public, undo)?;
    let needed = xfs::blocks_to_identify(platform, &platform.dm_node(&device), revert.origin)?;
    let status = pool.thin_pool_status(platform)?;
    let free = status.data_total.saturating_sub(status.data_used);
    if free < needed {
        return Ok(Settled::LacksSpace { needed, free });
    }
    xfs::identify(platform, &device, revert.origin, false)?;
    Ok(Settled::Wholly)
}

fn delete_replaced(
    platform: &dyn Platform,
    pool: PoolUuid,
    records: &[FilesystemRecord],
    revert: &Revert,
) -> Result<()> {
    // Another daemon that ran in between may have given the thin device number to another
    // filesystem.
    if records.iter().any(|record| record.thin_id == revert.replaced) {
        return Ok(());
    }
    Ok(thin_devices::delete_thin_id(platform, &Role::ThinPool.name(pool), revert.replaced)?)
}

#[cfg(test)]
#[path = "revert_tests.rs"]
mod tests;
