//! Setting up a pool from what is on its devices (`spec/engine/engine-behaviour.md` §8, `storage-stack.md` §8), and putting
//! pools into the table.
//!
//! A stack that is already up, left by a daemon that ran before, is adopted layer by layer.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    engine::{
        bda::Choose,
        claims::Claim,
        dm_names::{self, Role},
        error::{Error, Result},
        ids::{DevUuid, FsUuid, PoolUuid},
        layout,
        mdv::{Journal, Mdv, Pending},
        metadata::{self, FilesystemRecord, PoolMetadata},
        name::Name,
        plan::sizes,
        pool::{Filesystem, Member, Pool},
        registry::DeviceSet,
        request::{Access, Granted, Mode, Next},
        stack::{Ensured, Shape, Stack, ensure_device},
        undo::Rollback,
    },
    platform::{self, Platform, Program, dm::Visibility},
    view::Availability,
};

/// Puts a pool into the table; the claim on its name (and whatever else it holds) is given back afterwards.
pub(super) fn insert(pool: Pool, claim: Claim) -> Next<Result<()>> {
    Next::under(Access::Table(Mode::Exclusive), move |engine, granted| {
        let Granted::Table(table) = granted else { return Next::Done(Err(Error::NoPool(pool.uuid()))) };
        let (uuid, name) = (pool.uuid(), pool.name().clone());
        let devices: Vec<_> = pool.paths().collect();
        let inserted = match table.insert(pool) {
            Ok(()) => {
                engine.registry().note_running(uuid, devices);
                Ok(())
            }
            // Its name is claimed and its identifier is random or parked, so only a defect can bring us here.
            Err(_) => Err(Error::PoolNameTaken(name)),
        };
        drop(claim);
        Next::Done(inserted)
    })
}

/// Sets a pool up on its devices, all of which are there.
///
/// # Errors
/// Device-mapper devices that were made are removed again; those that were adopted stay.
pub(super) fn set_up(platform: &dyn Platform, uuid: PoolUuid, set: &DeviceSet, meta: PoolMetadata) -> Result<Pool> {
    let name = Name::new(&meta.name)?;
    let version = set.version().ok_or(Error::MixedVersions(uuid))?;
    if meta.is_encrypted() {
        return Err(Error::Encrypted { pool: name });
    }
    let members = members(platform, set, &meta)?;
    let headers: Vec<_> = members.values().map(|member| *member.bda.header()).collect();
    metadata::pool::check_members(&meta, &headers)
        .and_then(|()| metadata::pool::check(&meta, version, &headers))
        .map_err(|source| Error::Broken { pool: name.clone(), source })?;

    let (mut pool, undo) = Rollback::new().guard(platform, |undo| {
        let mut pool = Pool::new(uuid, name, version, meta, members, Stack::new(uuid));
        let shape = shape_at_set_up(&pool);
        for layer in shape.backstore() {
            pool.stack.ensure(platform, &layer, undo)?;
        }
        pool.stack.ensure(platform, &shape.mdv(), undo)?;
        let mdv = Mdv::new(platform, uuid);
        undo.push("unmount the metadata volume", move |platform| Mdv::new(platform, uuid).unmount());
        mdv.mount(&platform.dm_node(&pool.stack.name(Role::Mdv)))?;
        let journal = mdv.journal()?;
        let mut records = mdv.records(&journal)?;
        bring_up_thin_pool(platform, &mut pool, undo)?;
        work_off_journal(platform, &mut pool, &journal, &mut records);
        set_up_filesystems(platform, &mut pool, records, undo);
        judge(&mut pool);
        complete_metadata(platform, &mut pool)?;
        Ok(pool)
    })?;
    undo.forget();
    pool.confirm_members(platform);
    pool.refresh(platform);
    Ok(pool)
}

/// Layers as they are set up. The thin pool's mark is its whole size, so that an event comes early; it is set right when the
/// pool is extended.
fn shape_at_set_up(pool: &Pool) -> Shape {
    pool.shape(sizes::blocks(layout::total(&pool.meta.flex_devs.thin_data_dev)))
}

/// Saves what old daemons did not record. A pool that is not to be changed is used as it is.
fn complete_metadata(platform: &dyn Platform, pool: &mut Pool) -> Result<()> {
    if !pool.meta.needs_completion() {
        return Ok(());
    }
    if let Err(error) = pool.check_changes() {
        log::warn!("the metadata of pool {} lacks keys that are not added: {}", pool.name(), error.sentence());
        return Ok(());
    }
    let limit = pool.fs_limit();
    pool.commit(platform, Choose::Some(platform.random()), |meta| {
        meta.complete(limit);
        Ok(())
    })
}

fn members(platform: &dyn Platform, set: &DeviceSet, meta: &PoolMetadata) -> Result<BTreeMap<DevUuid, Member>> {
    let listed: BTreeSet<_> = meta.devices().collect();
    set.devices()
        .filter(|found| listed.contains(&found.bda.header().device))
        .map(|found| {
            let geometry = platform.geometry(&found.device.path)?;
            found.bda.check_size(&found.device.path, geometry.size)?;
            let member = Member { device: found.device.clone(), geometry, bda: found.bda.clone() };
            Ok((found.bda.header().device, member))
        })
        .collect()
}

/// Brings up the thin pool and its two devices.
fn bring_up_thin_pool(platform: &dyn Platform, pool: &mut Pool, undo: &mut Rollback) -> Result<()> {
    let shape = shape_at_set_up(pool);
    pool.stack.ensure(platform, &shape.thin_meta(), undo)?;
    // Metadata of a thin pool that runs is the kernel's; nobody else may read it.
    if platform.dm_find(&pool.stack.name(Role::ThinPool))?.is_none() {
        let node = platform.dm_node(&pool.stack.name(Role::ThinMeta));
        if let Err(error) = platform.run(Program::ThinCheck, &["--auto-repair", &node.to_string_lossy()]) {
            log::warn!("the thin pool's metadata is damaged ({error}); repairing it into the spare");
            repair_thin_metadata(platform, pool, &shape, undo)?;
        }
    }
    let shape = shape_at_set_up(pool);
    pool.stack.ensure(platform, &shape.thin_data(), undo)?;
    pool.stack.ensure(platform, &shape.thin_pool(), undo)?;
    Ok(())
}

/// Repairs damaged thin metadata into the spare, which takes its place. That is recorded while neither is in use: a device
/// that is there is never other than the metadata says, and nothing written by the repaired thin pool can be lost by going
/// back to what was damaged.
fn repair_thin_metadata(platform: &dyn Platform, pool: &mut Pool, shape: &Shape, undo: &mut Rollback) -> Result<()> {
    pool.stack.ensure(platform, &shape.thin_meta_spare(), undo)?;
    let [damaged, spare] = [Role::ThinMeta, Role::ThinMetaSpare].map(|role| platform.dm_node(&pool.stack.name(role)));
    platform.run(Program::ThinRepair, &["-i", &damaged.to_string_lossy(), "-o", &spare.to_string_lossy()])?;
    pool.stack.remove(platform, Role::ThinMeta)?;
    pool.stack.remove(platform, Role::ThinMetaSpare)?;
    pool.commit(platform, Choose::Some(platform.random()), |meta| {
        let flex = &mut meta.flex_devs;
        std::mem::swap(&mut flex.thin_meta_dev, &mut flex.thin_meta_dev_spare);
        Ok(())
    })?;
    pool.stack.ensure(platform, &shape_at_set_up(pool).thin_meta(), undo).map(drop)
}

/// Takes back what was being created and completes what was being destroyed when the last daemon ended. An entry that cannot
/// be worked off now stays until the next set-up: a device that somebody still has open is no reason to withhold the pool.
fn work_off_journal(platform: &dyn Platform, pool: &mut Pool, journal: &[Journal], records: &mut [FilesystemRecord]) {
    for entry in journal {
        let worked_off = work_off(platform, pool, entry, records);
        let ended = worked_off.and_then(|()| Ok(Mdv::new(platform, pool.uuid()).end(entry)?));
        if let Err(error) = ended {
            log::warn!("pool {}: {entry:?} stays until the next set-up: {}", pool.name(), error.sentence());
        }
        for pending in entry.pending() {
            pool.note_thin_id(pending.thin_id);
            if entry.destroys(pending.uuid) {
                // As finish_destroy does, of which not all may have been done.
                let snapshots = records.iter_mut().filter(|record| record.origin == Some(pending.uuid));
                snapshots.for_each(|record| record.origin = pending.heir);
            }
        }
    }
}

fn work_off(platform: &dyn Platform, pool: &Pool, entry: &Journal, records: &mut [FilesystemRecord]) -> Result<()> {
    for pending in entry.pending() {
        if entry.destroys(pending.uuid) {
            log::info!("pool {}: completing the destruction of filesystem {}", pool.name(), pending.uuid);
            finish_destroy(platform, pool, pending, records)?;
        } else if records.iter().all(|record| record.uuid != pending.uuid) {
            log::info!("pool {}: filesystem {} was never completed; removing it", pool.name(), pending.uuid);
            delete_thin(platform, pool, pending, records)?;
        }
    }
    Ok(())
}

fn set_up_filesystems(platform: &dyn Platform, pool: &mut Pool, records: Vec<FilesystemRecord>, undo: &mut Rollback) {
    for record in records {
        pool.note_thin_id(record.thin_id);
        if let Err(error) = set_up_filesystem(platform, pool, record.clone(), undo) {
            let (name, uuid, why) = (&record.name, record.uuid, error.sentence());
            log::error!("filesystem {name} ({uuid}) of pool {} is left out: {why}", pool.name());
            pool.left_out.push(record);
        }
    }
}

fn set_up_filesystem(
    platform: &dyn Platform,
    pool: &mut Pool,
    record: FilesystemRecord,
    undo: &mut Rollback,
) -> Result<()> {
    let name = Name::new(&record.name)?;
    let thin_pool = pool.stack.number(Role::ThinPool).ok_or(Error::NoPool(pool.uuid()))?;
    let table = super::ops::thin_table(thin_pool, record.thin_id, record.size);
    let device = pool.thin_name(record.uuid);
    let (number, ensured) = ensure_device(platform, &device, &table, Visibility::Public, undo)?;
    if ensured == Ensured::Adopted {
        log::debug!("filesystem {name} of pool {} was up already", pool.name());
    }
    pool.put_filesystem(platform, Filesystem { record, name, number });
    Ok(())
}

/// Carries out what is left of a filesystem's destruction once that has been decided: its record, its snapshots' origin,
/// its thin device. Each step can be repeated. `survivors` are the records of the pool's other filesystems.
///
/// # Errors
/// When a step fails; the entry of the journal stays, and the next set-up goes on with it.
pub(super) fn finish_destroy(
    platform: &dyn Platform,
    pool: &Pool,
    doomed: &Pending,
    survivors: &mut [FilesystemRecord],
) -> Result<()> {
    let mdv = Mdv::new(platform, pool.uuid());
    for snapshot in survivors.iter_mut().filter(|record| record.origin == Some(doomed.uuid)) {
        snapshot.origin = doomed.heir;
        mdv.save(snapshot)?;
    }
    mdv.remove(doomed.uuid)?;
    delete_thin(platform, pool, doomed, survivors)
}

/// Removes a thin device that no record names: its device-mapper device, if it is up, and the device in the thin pool.
pub(super) fn delete_thin(
    platform: &dyn Platform,
    pool: &Pool,
    pending: &Pending,
    records: &[FilesystemRecord],
) -> Result<()> {
    // Another daemon that ran in between may have given the number to another filesystem.
    if records.iter().any(|record| record.thin_id == pending.thin_id) {
        return Ok(());
    }
    let name = dm_names::filesystem(pool.uuid(), pending.uuid);
    if platform.dm_find(&name)?.is_some() {
        platform.dm_remove(&name)?;
    }
    delete_thin_id(platform, &Role::ThinPool.name(pool.uuid()), pending.thin_id)?;
    Ok(())
}

/// Deletes a device in a thin pool; one that is not there is deleted already.
pub(super) fn delete_thin_id(platform: &dyn Platform, thin_pool: &str, id: u32) -> platform::Result<()> {
    match platform.dm_message(thin_pool, &format!("delete {id}")) {
        Err(error) if error.errno() == Some(nix::libc::ENODATA) => Ok(()),
        other => other,
    }
}

/// Restricts a pool whose devices break the rule of sector sizes (`spec/engine/storage-stack.md` §12).
fn judge(pool: &mut Pool) {
    if let Err(error) = super::ops::check_sector_sizes(pool) {
        pool.restrict(Availability::NoPoolChanges, error.sentence());
    }
}

/// Takes a pool's stack down, from the top (`spec/engine/storage-stack.md` §10.3). Filesystems have been removed before.
///
/// # Errors
/// When a device is busy; what was taken down before stays down.
pub(super) fn take_down(platform: &dyn Platform, stack: &mut Stack, uuid: PoolUuid) -> Result<()> {
    for role in [Role::ThinPool, Role::ThinData, Role::ThinMeta, Role::ThinMetaSpare] {
        stack.remove(platform, role)?;
    }
    Mdv::new(platform, uuid).unmount()?;
    for role in [Role::Mdv, Role::Crypt, Role::Cache, Role::CacheSub, Role::CacheMeta, Role::OriginSub] {
        stack.remove(platform, role)?;
    }
    Ok(())
}

/// Brings a pool's stack up again after a take-down that failed half way.
///
/// # Errors
/// When that fails too.
pub(super) fn bring_up_again(platform: &dyn Platform, pool: &mut Pool) -> Result<()> {
    let shape = pool.shape(sizes::low_water(layout::total(&pool.meta.flex_devs.thin_data_dev)));
    let layers =
        shape.backstore().into_iter().chain([shape.mdv(), shape.thin_meta(), shape.thin_data(), shape.thin_pool()]);
    let mut undo = Rollback::new();
    for layer in layers {
        pool.stack.ensure(platform, &layer, &mut undo)?;
    }
    undo.forget();
    Mdv::new(platform, pool.uuid()).mount(&platform.dm_node(&pool.stack.name(Role::Mdv)))?;
    Ok(())
}

/// Whether any device-mapper device of the pool is up, filesystems not counted.
pub(super) fn partly_up(platform: &dyn Platform, pool: PoolUuid) -> bool {
    match platform.dm_list() {
        Ok(list) => Role::ALL.iter().any(|role| list.iter().any(|device| device.name == role.name(pool))),
        Err(error) => {
            log::warn!("could not list device-mapper devices: {error}");
            false
        }
    }
}

/// Records of all filesystems of a pool, also of those that could not be set up.
pub(super) fn records(pool: &Pool) -> impl Iterator<Item = &FilesystemRecord> {
    pool.filesystems.values().map(|filesystem| &filesystem.record).chain(&pool.left_out)
}

/// Identifiers of the filesystems whose origin is `origin`.
pub(super) fn snapshots_of(pool: &Pool, origin: FsUuid) -> Vec<FsUuid> {
    records(pool).filter(|record| record.origin == Some(origin)).map(|record| record.uuid).collect()
}
