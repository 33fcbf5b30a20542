//! Replays the journal of the metadata volume: takes back interrupted creations, and destructions
//! that were not decided; completes decided destructions, and interrupted reverts.

use crate::{
    base::units::Sectors,
    engine::{
        dm_names::{self, Role},
        error::{Error, Result},
        mdv::Mdv,
        metadata::{FilesystemRecord, Journal, Pending},
        pool::Pool,
        revert,
        setup::activate::Activation,
        thin_devices,
        undo::Rollback,
        xfs,
    },
    platform::Platform,
};

/// Takes back or completes the creations, destructions and reverts that were under way when the last
/// daemon ended. An entry that cannot be completed now stays until the next set-up: a device that
/// is still open must not keep the pool from starting.
pub(super) fn replay(
    platform: &dyn Platform,
    pool: &mut Pool,
    journal: &[Journal],
    records: &mut Vec<FilesystemRecord>,
    undo: &mut Rollback,
) {
    for entry in journal {
        if let Journal::Revert(revert) = entry {
            log::info!("pool {}: completing the revert of filesystem {}", pool.name(), revert.origin);
            pool.filesystems.note_thin_id(revert.replaced.max(revert.thin_id));
            // `finish` removes the entry itself, or leaves it in place.
            revert::finish(platform, pool, records, revert, undo);
            continue;
        }
        let replayed = replay_entry(platform, pool, entry, records, undo);
        let ended = replayed.and_then(|()| Ok(Mdv::new(platform, pool.uuid()).end(entry)?));
        if let Err(error) = ended {
            log::warn!("pool {}: {entry:?} stays until the next set-up: {}", pool.name(), error.sentence());
        }
        for pending in entry.pending() {
            pool.filesystems.note_thin_id(pending.thin_id);
            let is_recorded = records.iter().any(|record| record.uuid == pending.uuid);
            if matches!(entry, Journal::Destroy(_)) && !is_recorded {
                // As `finish_destroy` does; an earlier run may have done only a part of it.
                let snapshots = records.iter_mut().filter(|record| record.origin == Some(pending.uuid));
                snapshots.for_each(|record| record.origin = pending.new_origin);
            }
        }
    }
}

fn replay_entry(
    platform: &dyn Platform,
    pool: &Pool,
    entry: &Journal,
    records: &mut Vec<FilesystemRecord>,
    undo: &mut Rollback,
) -> Result<()> {
    if entry.is_undecided(records) {
        return take_back(platform, pool, entry.pending(), records, undo);
    }
    for pending in entry.pending() {
        // Filesystems whose destruction continues are not among the records.
        let is_recorded = records.iter().any(|record| record.uuid == pending.uuid);
        match (entry, is_recorded) {
            (Journal::Destroy(_), true) => log::warn!(
                "pool {}: filesystem {} was to be destroyed and has been changed since; keeping it",
                pool.name(),
                pending.uuid
            ),
            (Journal::Destroy(_), false) => {
                log::info!("pool {}: completing the destruction of filesystem {}", pool.name(), pending.uuid);
                Mdv::new(platform, pool.uuid()).remove(pending.uuid)?;
                finish_destroy(platform, pool, pending, records)?;
            }
            (_, true) => {}
            (_, false) => {
                log::info!("pool {}: filesystem {} was never completed; removing it", pool.name(), pending.uuid);
                delete_thin(platform, pool, pending, records)?;
            }
        }
    }
    Ok(())
}

/// Takes back a destruction that was not decided: writes the records again that are missing. Since
/// the daemon was killed, another one may have used their names or numbers, or may have destroyed
/// the filesystems itself. Then the destruction of these is completed.
fn take_back(
    platform: &dyn Platform,
    pool: &Pool,
    kept: &[Pending],
    records: &mut Vec<FilesystemRecord>,
    undo: &mut Rollback,
) -> Result<()> {
    for pending in kept {
        if records.iter().any(|record| record.uuid == pending.uuid) {
            log::info!(
                "pool {}: the destruction of filesystem {} was not decided; keeping it",
                pool.name(),
                pending.uuid
            );
            continue;
        }
        let is_free = |was: &&FilesystemRecord| {
            records.iter().all(|record| record.name != was.name && record.thin_id != was.thin_id)
        };
        match pending.was.as_ref().filter(is_free) {
            Some(was) if thin_exists(platform, pool, was, undo)? => {
                log::info!(
                    "pool {}: the destruction of filesystem {} was not decided; recording it again",
                    pool.name(),
                    pending.uuid
                );
                Mdv::new(platform, pool.uuid()).save(was)?;
                records.push(was.clone());
            }
            _ => {
                log::warn!(
                    "pool {}: filesystem {} has been replaced since its destruction began; completing that",
                    pool.name(),
                    pending.uuid
                );
                finish_destroy(platform, pool, pending, records)?;
            }
        }
    }
    Ok(())
}

/// Whether the thin device of a filesystem exists. If it does, it is up afterwards.
fn thin_exists(platform: &dyn Platform, pool: &Pool, record: &FilesystemRecord, undo: &mut Rollback) -> Result<bool> {
    let thin_pool = pool.stack.number(Role::ThinPool).ok_or(Error::NoPool(pool.uuid()))?;
    let sector = pool.sector_size(platform).unwrap_or(Sectors(1));
    match Activation::new(pool.uuid(), thin_pool, record, sector).up(platform, undo) {
        Ok(_) => Ok(true),
        Err(Error::Platform(error)) if error.errno() == Some(nix::libc::ENODATA) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Completes the destruction of a filesystem once its record is removed: passes its origin to its
/// snapshots, deletes its thin device. Each step can be repeated. `survivors` are the records of the
/// pool's other filesystems.
///
/// # Errors
/// When a step fails. The journal entry stays, and the next set-up continues the destruction.
pub(in crate::engine) fn finish_destroy(
    platform: &dyn Platform,
    pool: &Pool,
    pending: &Pending,
    survivors: &mut [FilesystemRecord],
) -> Result<()> {
    let mdv = Mdv::new(platform, pool.uuid());
    for snapshot in survivors.iter_mut().filter(|record| record.origin == Some(pending.uuid)) {
        snapshot.origin = pending.new_origin;
        mdv.save(snapshot)?;
    }
    delete_thin(platform, pool, pending, survivors)
}

/// Removes a thin device that no record names: its device-mapper device, if it is up, and the
/// device in the thin pool.
fn delete_thin(platform: &dyn Platform, pool: &Pool, pending: &Pending, records: &[FilesystemRecord]) -> Result<()> {
    // Another daemon that ran in between may have given the thin device number to another
    // filesystem.
    if records.iter().any(|record| record.thin_id == pending.thin_id) {
        return Ok(());
    }
    let name = dm_names::filesystem(pool.uuid(), pending.uuid);
    if platform.dm_find(&name)?.is_some() {
        xfs::leave(platform, pending.uuid)?;
        platform.dm_remove(&name)?;
    }
    thin_devices::delete_thin_id(platform, &Role::ThinPool.name(pool.uuid()), pending.thin_id)?;
    Ok(())
}
