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
        mdv::{Journal, Mdv, Pending},
        metadata::{self, FilesystemRecord, HeaderFlags, PoolMetadata},
        name::Name,
        pool::{self, Filesystem, Member, Pool},
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

    let (pool, undo) = Rollback::new().guard(platform, |undo| {
        let mut stack = Stack::new(uuid);
        let mut meta = meta;
        // The low water mark is the right one from the start: a pool is looked at anyway when it has been set up.
        let mut shape = pool::shape(version, &meta, &members);
        stack.ensure_all(platform, shape.backstore(), undo)?;
        stack.move_to_cap(platform, &shape)?;
        super::ops::clear_unrecorded_cache(platform, &mut stack, &shape)?;
        stack.ensure(platform, &shape.mdv(), undo)?;
        let mdv = Mdv::new(platform, uuid);
        undo.push("unmount the metadata volume", move |platform| Mdv::new(platform, uuid).unmount());
        mdv.mount(&platform.dm_node(&stack.name(Role::Mdv)))?;
        let records = mdv.records()?;
        let repaired = bring_up_thin_pool(platform, &mut stack, &mut shape, &mut meta, undo)?;

        let mut pool = Pool::new(uuid, name, version, meta, members, stack);
        work_off_journal(platform, &mut pool, records, undo)?;
        judge(&mut pool);
        let grown: Vec<_> =
            pool.headers().into_iter().filter(|header| header.flags.contains(HeaderFlags::GROWN)).collect();
        if repaired || pool.meta.needs_completion() || !grown.is_empty() {
            let limit = pool.fs_limit();
            pool.commit(platform, Choose::Some(platform.random()), |meta| {
                meta.complete(limit);
                grown.iter().try_for_each(|header| meta.reserve_integrity(header))
            })?;
        }
        Ok(pool)
    })?;
    undo.forget();
    let mut pool = pool;
    pool.confirm_members(platform);
    pool.refresh(platform);
    Ok(pool)
}

fn members(platform: &dyn Platform, set: &DeviceSet, meta: &PoolMetadata) -> Result<BTreeMap<DevUuid, Member>> {
    let listed: BTreeSet<_> = meta.devices().collect();
    set.devices()
        .filter(|found| listed.contains(&found.bda.header().device))
        .map(|found| {
            let geometry = platform.geometry(&found.device.path)?;
            if let Err(shrunk) = found.bda.check_size(&found.device.path, geometry.size) {
                // What is lost may be space that nothing uses yet, such as that held for integrity data.
                match geometry.size < meta.used_up_to(found.bda.header().device) {
                    true => return Err(shrunk.into()),
                    false => log::warn!("{shrunk}"),
                }
            }
            let member = Member { device: found.device.clone(), geometry, bda: found.bda.clone() };
            Ok((found.bda.header().device, member))
        })
        .collect()
}

/// Brings up the thin pool and its two devices; gives whether its metadata was repaired, so that the swap is recorded.
fn bring_up_thin_pool(
    platform: &dyn Platform,
    stack: &mut Stack,
    shape: &mut Shape,
    meta: &mut PoolMetadata,
    undo: &mut Rollback,
) -> Result<bool> {
    stack.ensure(platform, &shape.thin_meta(), undo)?;
    let runs = platform.dm_find(&stack.name(Role::ThinPool))?.is_some();
    let node = platform.dm_node(&stack.name(Role::ThinMeta));
    // Metadata of a thin pool that runs is the kernel's; nobody else may read it.
    let damage = match runs {
        true => None,
        false => platform.run(Program::ThinCheck, &["--auto-repair", &node.to_string_lossy()]).err(),
    };
    let repaired = damage.is_some();
    if let Some(error) = damage {
        log::warn!("the thin pool's metadata is damaged ({error}); repairing it into the spare");
        stack.ensure(platform, &shape.thin_meta_spare(), undo)?;
        let spare = platform.dm_node(&stack.name(Role::ThinMetaSpare));
        platform.run(Program::ThinRepair, &["-i", &node.to_string_lossy(), "-o", &spare.to_string_lossy()])?;
        stack.remove(platform, Role::ThinMeta)?;
        stack.remove(platform, Role::ThinMetaSpare)?;
        std::mem::swap(&mut shape.thin_meta, &mut shape.thin_meta_spare);
        std::mem::swap(&mut meta.flex_devs.thin_meta_dev, &mut meta.flex_devs.thin_meta_dev_spare);
        stack.ensure(platform, &shape.thin_meta(), undo)?;
    }
    stack.ensure(platform, &shape.thin_data(), undo)?;
    stack.ensure(platform, &shape.thin_pool(), undo)?;
    Ok(repaired)
}

/// Takes back what was being created and completes what was being destroyed when the last daemon ended, then sets up the
/// filesystems that there are.
fn work_off_journal(
    platform: &dyn Platform,
    pool: &mut Pool,
    mut records: Vec<FilesystemRecord>,
    undo: &mut Rollback,
) -> Result<()> {
    let mdv = Mdv::new(platform, pool.uuid());
    for entry in mdv.journal()? {
        match &entry {
            Journal::Create(pending) => {
                for unborn in pending.iter().filter(|unborn| records.iter().all(|record| record.uuid != unborn.uuid)) {
                    log::info!("pool {}: filesystem {} was never completed; removing it", pool.name(), unborn.uuid);
                    delete_thin(platform, pool, unborn, &records)?;
                }
            }
            Journal::Destroy(pending) => {
                for doomed in pending {
                    log::info!("pool {}: completing the destruction of filesystem {}", pool.name(), doomed.uuid);
                    records.retain(|record| record.uuid != doomed.uuid);
                    finish_destroy(platform, pool, doomed, &mut records)?;
                }
            }
        }
        mdv.end(&entry)?;
    }
    for record in records {
        pool.note_thin_id(record.thin_id);
        let (uuid, name) = (record.uuid, record.name.clone());
        if let Err(error) = set_up_filesystem(platform, pool, record, undo) {
            log::error!("filesystem {name} ({uuid}) of pool {} is left out: {}", pool.name(), error.sentence());
        }
    }
    Ok(())
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
    let layers = pool.shape().layers();
    let mut undo = Rollback::new();
    pool.stack.ensure_all(platform, layers, &mut undo)?;
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

/// Records of all filesystems of a pool.
pub(super) fn records(pool: &Pool) -> impl Iterator<Item = &FilesystemRecord> {
    pool.filesystems.values().map(|filesystem| &filesystem.record)
}

/// Identifiers of the filesystems whose origin is `origin`.
pub(super) fn snapshots_of(pool: &Pool, origin: FsUuid) -> Vec<FsUuid> {
    records(pool).filter(|record| record.origin == Some(origin)).map(|record| record.uuid).collect()
}
