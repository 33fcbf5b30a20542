//! Assembles a pool from its devices: brings up its layers from the bottom to the top, then its
//! filesystems, and completes its record.

use std::collections::BTreeSet;

use super::{
    activate::{Activated, Activation},
    journal, past_cache,
    thin_pool::bring_up_thin_pool,
    unlock::{discard_unrecorded, encryption_of, note_encryption, open_luks_device},
    unrecorded_cache,
    wiping::{self, DeviceToWipe},
};
use crate::{
    base::{ids::PoolUuid, name::Name, units::Sectors},
    engine::{
        bda::{self, Bda, Choose, Repair},
        dm_names::Role,
        error::{Error, Result},
        luks_devices::{device::LuksDevice, lifecycle::UnlockOptions},
        mdv::Mdv,
        metadata::{self, FilesystemRecord, HeaderFlags, Journal, MetadataVersion, PoolMetadata, pool::Tier},
        pool::{Filesystem, Member, Members, Pool, sector_sizes},
        registry::{DeviceSet, FoundDevice},
        request::{Part, Step},
        revert,
        stack::Stack,
        thin_devices, thin_growth,
        thin_status::PoolStatus,
        undo::{Rollback, When},
    },
    platform::{DeviceNumber, Platform},
    view::Availability,
};

/// What set-up does with the pool's cache tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheTier {
    /// The pool keeps using it.
    Keep,
    /// The pool runs without it from now on. No data is lost: every write goes to the data devices
    /// as well.
    Drop,
}

/// A pool with everything up except the filesystems.
pub(in crate::engine) struct Assembly {
    pool: Pool,
    thin_pool: DeviceNumber,
    /// Logical sector size of the thin pool.
    sector: Sectors,
    records: Vec<FilesystemRecord>,
    /// Devices of a cache that the pool gives up, each with the LUKS device below it, if any;
    /// `None` if the pool had no cache or keeps it.
    former: Option<Vec<(FoundDevice, Option<LuksDevice>)>>,
    undo: Rollback,
}

/// Brings up everything of a pool except its filesystems. All its devices must exist; devices of
/// the cache tier may be missing if the cache is to be dropped. `unlock` says how the pool may be
/// unlocked. `None`: the caller holds the lock of the pool, so no key can be derived now, and the
/// LUKS devices must already be open.
///
/// # Errors
/// Device-mapper devices that were made are removed again; those that were adopted stay.
pub(in crate::engine) fn assemble(
    platform: &dyn Platform,
    uuid: PoolUuid,
    set: &DeviceSet,
    mut meta: PoolMetadata,
    cache: CacheTier,
    unlock: Option<&UnlockOptions>,
    opened: Rollback,
) -> Result<Assembly> {
    // The pool has been used since its destruction was decided; otherwise it would not be set up.
    meta.destroying = None;
    let tier = meta.backstore.cache_tier.take_if(|_| cache == CacheTier::Drop);
    let former = tier.as_ref().map(|tier| devices_of(tier, set));
    let ((pool, thin_pool, records), undo) =
        opened.guard(platform, |undo| assemble_layers(platform, uuid, set, meta, tier, unlock, undo))?;
    // If the sector size is unknown, the kernel decides for each filesystem size whether it accepts
    // it.
    let sector = pool.sector_size(platform).unwrap_or_else(|error| {
        log::warn!("pool {}: cannot read its sector size: {}", pool.name(), error.sentence());
        Sectors(1)
    });
    Ok(Assembly { pool, thin_pool, sector, records, former, undo })
}

fn assemble_layers(
    platform: &dyn Platform,
    uuid: PoolUuid,
    set: &DeviceSet,
    meta: PoolMetadata,
    former_cache: Option<Tier>,
    unlock: Option<&UnlockOptions>,
    undo: &mut Rollback,
) -> Result<(Pool, DeviceNumber, Vec<FilesystemRecord>)> {
    let name = Name::new(&meta.name)?;
    let version = set.version().ok_or(Error::MixedVersions(uuid))?;
    // Check this before any device of the pool is brought up: at boot, no user has said yet how to
    // unlock the pool.
    let method = unlock.and_then(|unlock| unlock.method);
    if meta.is_encrypted() && method.is_none() && platform.dm_find(&Role::Crypt.name(uuid))?.is_none() {
        return Err(Error::NoUnlockMethod { pool: name });
    }
    let mut members = members(platform, set, &meta)?;
    let encryption = encryption_of(platform, uuid, &mut members, &meta.name)?;
    let headers = members.headers();
    metadata::pool::check_members(&meta, &headers)
        .and_then(|()| metadata::pool::check(&meta, version, &headers))
        .map_err(|source| Error::Broken { pool: name.clone(), source })?;

    let mut pool = Pool::new(uuid, name, version, meta, members, Stack::new(uuid));
    pool.set_up_without(former_cache.clone());
    if let Some(tier) = &former_cache {
        past_cache::leave(platform, &mut pool, set, tier)?;
    }
    note_encryption(platform, &mut pool, encryption);
    let below = pool.shape().backstore().into_iter().filter(|layer| layer.role != Role::Crypt);
    pool.stack.ensure_all(platform, below, undo)?;
    if version == MetadataVersion::V2 {
        open_luks_device(platform, &mut pool, unlock, undo)?;
    }
    let shape = pool.shape();
    if shape.cap() == Role::OriginSub {
        // If the creation of a cache had begun and could not be taken back, the devices that lie on
        // the cache are moved off it.
        pool.stack.find(platform, Role::Cache)?;
    }
    pool.stack.move_to_cap(platform, &shape)?;
    unrecorded_cache::remove(platform, &mut pool.stack, &shape)?;
    // The record names the devices of a cache that is given up until the record is rewritten. They
    // are closed when they are wiped.
    discard_unrecorded(platform, set, &pool.on_record());
    pool.stack.ensure(platform, &shape.mdv(), undo)?;
    let mdv = Mdv::new(platform, uuid);
    undo.push(When::Always, "unmount the metadata volume", move |platform| Mdv::new(platform, uuid).unmount());
    mdv.mount(&platform.dm_node(&pool.stack.name(Role::Mdv)))?;
    let journal = mdv.journal()?;
    let mut records = mdv.records(&journal)?;
    bring_up_thin_pool(platform, &mut pool, undo)?;
    let reverts = journal.iter().any(|entry| matches!(entry, Journal::Revert(_)));
    if reverts || !revert::plan(&records).0.is_empty() {
        // Only a check finds more space, and only for a pool in the table. The writes of a revert
        // must not wait for that.
        thin_growth::give_space(platform, &mut pool, &records)?;
    }
    journal::replay(platform, &mut pool, &journal, &mut records, undo);
    revert::carry_out(platform, &mut pool, &mut records, undo)?;
    let thin_pool = pool.stack.number(Role::ThinPool).ok_or(Error::NoPool(uuid))?;
    Ok((pool, thin_pool, records))
}

impl Assembly {
    /// How to bring up the thin device of a filesystem.
    fn activation(&self, record: &FilesystemRecord) -> Activation {
        Activation::new(self.pool.uuid(), self.thin_pool, record, self.sector)
    }

    /// Sets up the filesystems side by side, which completes the pool.
    pub fn build(self) -> Step<Result<Pool>> {
        let part = |record: &FilesystemRecord| -> Part {
            let activation = self.activation(record);
            Box::new(move |engine| Box::new(activation.run(engine.platform())))
        };
        let parts = self.records.iter().map(part).collect();
        Step::Parallel(
            parts,
            Box::new(move |engine, results| {
                let activated =
                    results.into_iter().map(|part| part?.downcast::<Activated>().ok().map(|activated| *activated));
                Step::Done(self.complete(engine.platform(), activated.collect()))
            }),
        )
    }

    /// As [`Assembly::build`], one filesystem after the other, for a pool whose filesystems are
    /// up already.
    ///
    /// # Errors
    /// As [`assemble`].
    pub fn build_now(self, platform: &dyn Platform) -> Result<Pool> {
        let activated = self.records.iter().map(|record| Some(self.activation(record).run(platform))).collect();
        self.complete(platform, activated)
    }

    /// Adds the filesystems to the pool and writes what has to be recorded. `None`: bringing up a
    /// filesystem panicked.
    fn complete(self, platform: &dyn Platform, activated: Vec<Option<Activated>>) -> Result<Pool> {
        let Assembly { mut pool, records, former, mut undo, .. } = self;
        let devices: Vec<Result<(DeviceNumber, Sectors)>> = activated
            .into_iter()
            .map(|activated| {
                let Activated { device, undo: others } = activated.ok_or(Error::Panicked)?;
                undo.append(others);
                device
            })
            .collect();
        let drops_cache = former.is_some();
        let mut former = former.unwrap_or_default();
        let (status, undo) = undo.guard(platform, |undo| {
            for (record, device) in records.into_iter().zip(devices) {
                pool.filesystems.note_thin_id(record.thin_id);
                match device.and_then(|(number, size)| Ok((Name::new(&record.name)?, number, size))) {
                    Ok((name, number, size)) => {
                        let record = correct_size(platform, &pool, record, size);
                        pool.put_filesystem(platform, Filesystem { record, name, number });
                    }
                    Err(error) => pool.add_failed_filesystem(record, error.sentence()),
                }
            }
            let status = pool.thin_pool_status(platform).ok();
            judge(&mut pool, status.as_ref());
            former.iter_mut().for_each(|(found, _)| disown(platform, found, undo));
            complete_metadata(platform, &mut pool, drops_cache).map(|()| status)
        })?;
        undo.forget();
        pool.members.confirm(platform);
        pool.refresh(platform, status);
        // A change of the bindings may have been interrupted.
        if pool.check_changes().is_ok() {
            if let Err(error) = pool.record_bindings(platform) {
                log::warn!("pool {}: cannot record its unlock methods: {}", pool.name(), error.sentence());
            }
        }
        let to_wipe = former.iter().map(|(found, luks_device)| {
            let (path, luks_device) = (found.device.path.as_path(), luks_device.as_ref());
            DeviceToWipe { path, luks_device, parts: Vec::new(), stamp: None }
        });
        for (DeviceToWipe { path, .. }, error) in wiping::wipe_each(platform, to_wipe.collect()) {
            log::error!("cannot wipe {}, which is no longer a cache device: {}", path.display(), error.sentence());
        }
        Ok(pool)
    }
}

/// Returns the record of a filesystem with the size that its thin device has been brought up with.
/// If that size is new, the record is also written to disk; if the write fails, the next set-up
/// corrects the record.
fn correct_size(platform: &dyn Platform, pool: &Pool, mut record: FilesystemRecord, size: Sectors) -> FilesystemRecord {
    let recorded = std::mem::replace(&mut record.size, size);
    if recorded != size {
        let (name, pool_name) = (&record.name, pool.name());
        log::warn!("filesystem {name} of pool {pool_name} has {}, not the recorded {}", size.bytes(), recorded.bytes());
        if let Err(error) = pool.check_changes().and_then(|()| Mdv::new(platform, pool.uuid()).save(&record)) {
            log::warn!("cannot record the size of filesystem {name} of pool {pool_name}: {}", error.sentence());
        }
    }
    record
}

/// The devices of a tier that exist, each with the LUKS device below it, if any.
fn devices_of(tier: &Tier, set: &DeviceSet) -> Vec<(FoundDevice, Option<LuksDevice>)> {
    let listed: BTreeSet<_> = tier.blockdev.devs.iter().map(|entry| entry.uuid).collect();
    let former = set.devices().filter(|found| listed.contains(&found.bda.header().device));
    former.map(|found| (found.clone(), set.luks_device(found.bda.header().device).cloned())).collect()
}

/// Marks a device as not named by pool metadata, before the metadata without the device is written.
/// If the device is not wiped afterwards, it must not keep the pool from starting.
fn disown(platform: &dyn Platform, found: &mut FoundDevice, undo: &mut Rollback) {
    let path = found.device.path.clone();
    let at = path.clone();
    undo.push(When::Unused, format!("take the mark off {}", path.display()), move |platform| -> Result<()> {
        // Read from disk: a write that failed may have set the mark.
        if let Some(mut bda) = Bda::load(platform, &at, Repair::ReadOnly)? {
            bda::clear_flags(platform, &mut [(&at, &mut bda)], HeaderFlags::UNCOMMITTED).remove(0)?;
        }
        Ok(())
    });
    if let Err(error) = found.bda.set_flags(platform, &path, HeaderFlags::UNCOMMITTED) {
        log::warn!("cannot mark {} as given up by its pool: {error}", path.display());
    }
}

/// Records that the pool is started, and adds what old daemons did not record. A pool that must not
/// be changed is used as it is, with one exception: if the pool runs without its cache, the cache
/// is out of date from now on and must never be used again.
fn complete_metadata(platform: &dyn Platform, pool: &mut Pool, cache_dropped: bool) -> Result<()> {
    let grown: Vec<_> =
        pool.members.headers().into_iter().filter(|header| header.flags.contains(HeaderFlags::GROWN)).collect();
    if !pool.meta().needs_completion() && !cache_dropped && grown.is_empty() {
        return Ok(());
    }
    if let Some(error) = pool.check_changes().err().filter(|_| !cache_dropped) {
        log::warn!("the metadata of pool {} lacks keys that are not added: {}", pool.name(), error.sentence());
        return Ok(());
    }
    let (old, mut new) = (pool.on_record(), pool.meta().clone());
    new.complete(pool.fs_limit());
    // The growth of these devices was interrupted before it could be recorded.
    for header in &grown {
        if let Err(error) = new.reserve_integrity(header) {
            // Another daemon has given the space to the thin pool meanwhile.
            let (device, what) = (header.device, error.sentence());
            log::warn!(
                "pool {}: no space for integrity data is reserved on device {device}, which has grown: {what}",
                new.name
            );
        }
    }
    // A single device with an older record would be enough to set the pool up with the cache that
    // it has given up.
    let choose = if cache_dropped { Choose::Everywhere } else { Choose::Some(platform.random()) };
    pool.commit(platform, choose, Some(&old), new)
}

fn members(platform: &dyn Platform, set: &DeviceSet, meta: &PoolMetadata) -> Result<Members> {
    let listed: BTreeSet<_> = meta.devices().collect();
    set.devices()
        .filter(|found| listed.contains(&found.bda.header().device))
        .map(|found| {
            let geometry = platform.geometry(&found.device.path)?;
            let luks_device = set.luks_device(found.bda.header().device).cloned();
            if let Err(shrunk) = found.bda.check_size(&found.device.path, geometry.size) {
                // The missing space may be space that nothing uses yet, such as the space reserved
                // for integrity data.
                match geometry.size < meta.used_up_to(found.bda.header().device) {
                    true => return Err(shrunk.into()),
                    false => log::warn!("{shrunk}"),
                }
            }
            let member = Member { device: found.device.clone(), geometry, bda: found.bda.clone(), luks_device };
            Ok((found.bda.header().device, member))
        })
        .collect()
}

/// Restricts a pool whose devices break the rule of sector sizes
/// (`docs/spec/engine/storage-stack.md` §12), or whose thin pool is not working properly.
fn judge(pool: &mut Pool, status: Option<&PoolStatus>) {
    if let Err(error) = sector_sizes::check(pool) {
        pool.restrict(Availability::NoPoolChanges, error.sentence());
    }
    thin_devices::judge_thin_pool(pool, status);
}
