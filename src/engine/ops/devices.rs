//! Operations on a pool's devices, and the look at how full it is (`spec/engine/storage-stack.md` §10.4, 12).

use std::path::PathBuf;

use crate::{
    engine::{
        Engine,
        bda::Choose,
        claims::{Claim, Key},
        devices::{self, Candidate},
        dm_names::Role,
        error::{Error, Result},
        ids::{DevUuid, PoolUuid},
        metadata::{MetadataVersion, PoolMetadata},
        name::Name,
        plan::sector_rules::{self, SectorSizes},
        pool::Pool,
        request::{Access, Mode, Next, PoolRef},
        setup, stack,
        undo::Rollback,
    },
    platform::{BlockDevice, Geometry, Platform, dm::Visibility},
    view::Tier,
};

/// Adds data devices; gives the new ones, none if all are there already.
pub fn add_data_devices(uuid: PoolUuid, paths: Vec<PathBuf>) -> Next<Result<Vec<DevUuid>>> {
    Next::act(move |engine| {
        let found = match devices::find(engine.platform(), &paths) {
            Ok(found) => found,
            Err(error) => return Next::Done(Err(error)),
        };
        if engine.claims().is_claimed(&Key::Drain(uuid)) {
            return Next::Parked(Box::new(add_data_devices(uuid, paths)));
        }
        // Work in the pool is claimed as well, so that it is not taken down meanwhile.
        let keys = found.iter().map(|device| Key::Device(device.number)).chain([Key::Growth(uuid)]);
        let Some(claim) = engine.claims().claim(keys) else {
            return Next::Parked(Box::new(add_data_devices(uuid, paths)));
        };
        Next::under(Access::Pool(PoolRef::Uuid(uuid), Mode::Shared), move |_, granted| {
            let pool = match super::readable(granted, uuid) {
                Ok(pool) => pool,
                Err(error) => return Next::Done(Err(error)),
            };
            match new_ones(pool, found) {
                Ok(found) if found.is_empty() => Next::Done(Ok(Vec::new())),
                Ok(found) => {
                    let tier = sector_sizes(pool, Tier::Data);
                    let (version, mut meta) = (pool.version(), pool.meta.clone());
                    Next::act(move |engine| {
                        let platform = engine.platform();
                        let made = examine(engine, uuid, found, &tier).and_then(|candidates| {
                            let planned = devices::plan(platform, uuid, version, candidates);
                            // Only to see whether they have room for what is reserved on them, before they are written.
                            planned.iter().try_for_each(|new| meta.add_data_devices(&[new.into()]))?;
                            Rollback::new().guard(platform, |undo| devices::initialize(platform, planned, undo))
                        });
                        match made {
                            Ok((initialized, undo)) => take_in(uuid, initialized, undo, claim),
                            Err(error) => Next::Done(Err(error)),
                        }
                    })
                }
                Err(error) => Next::Done(Err(error)),
            }
        })
    })
}

/// The devices that are not in the data tier yet.
fn new_ones(pool: &Pool, found: Vec<BlockDevice>) -> Result<Vec<BlockDevice>> {
    pool.check_requests()?;
    let mut new = Vec::new();
    for device in found {
        match pool.tier_of(device.number) {
            Some((_, Tier::Data)) => {}
            Some((_, tier)) => return Err(Error::InOtherTier { path: device.path, tier }),
            None => new.push(device),
        }
    }
    Ok(new)
}

fn examine(
    engine: &Engine,
    pool: PoolUuid,
    found: Vec<BlockDevice>,
    tier: &[sector_rules::Member],
) -> Result<Vec<Candidate>> {
    let candidates = found
        .into_iter()
        .map(|device| devices::examine(engine, device, Some(pool)))
        .collect::<Result<Vec<Candidate>>>()?;
    sector_rules::check_added(tier, candidates.iter().map(|candidate| sizes_of(&candidate.geometry)))?;
    Ok(candidates)
}

/// Takes initialized devices into the pool; the write of its metadata decides.
fn take_in(
    uuid: PoolUuid,
    initialized: Vec<devices::Initialized>,
    undo: Rollback,
    claim: Claim,
) -> Next<Result<Vec<DevUuid>>> {
    Next::write(uuid, move |engine, granted| {
        let platform = engine.platform();
        let pool = match super::writable(granted, uuid) {
            Ok(pool) => pool,
            Err(error) => return Next::Done(Err(undo.run(platform, error))),
        };
        // Another request may have restricted it meanwhile.
        if let Err(error) = pool.check_requests() {
            return Next::Done(Err(undo.run(platform, error)));
        }
        let added = pool.admit(initialized);
        let listed = pool.commit_devices(platform, &added);
        if let Err(error) = listed {
            pool.dismiss(&added);
            let error = undo.run(platform, error);
            pool.note_failure(&error);
            return Next::Done(Err(error));
        }
        undo.forget();
        pool.confirm_members(platform);
        if let Err(error) = use_new_space(platform, pool) {
            // The devices are in; the next check of the pool tries this again.
            log::warn!("pool {}: could not let the thin pool wait for space again: {}", pool.name(), error.sentence());
        }
        engine.registry().note_running(uuid, pool.paths());
        drop(claim);
        Next::Done(Ok(added))
    })
}

/// There is something to give to the thin pool again, so writes may wait for it instead of failing.
fn use_new_space(platform: &dyn Platform, pool: &mut Pool) -> Result<()> {
    if !pool.meta.thinpool_dev.errors_if_no_space() {
        return Ok(());
    }
    pool.commit(platform, Choose::Some(platform.random()), |meta| {
        meta.thinpool_dev.set_errors_if_no_space(false);
        Ok(())
    })?;
    let name = Role::ThinPool.name(pool.uuid());
    let Some(device) = platform.dm_find(&name)? else { return Ok(()) };
    let mut table = device.table;
    for line in &mut table {
        if let crate::platform::dm::Target::ThinPool { features, .. } = &mut line.target {
            *features = pool.meta.thinpool_dev.features();
        }
    }
    stack::replace_table(platform, &name, &table, Visibility::Private)
}

/// Sector sizes of a device.
pub(super) fn sizes_of(geometry: &Geometry) -> SectorSizes {
    SectorSizes { logical: geometry.logical, physical: geometry.physical }
}

/// The devices of a tier, as far as the rules of sector sizes look at them.
fn sector_sizes(pool: &Pool, tier: Tier) -> Vec<sector_rules::Member> {
    pool.meta
        .device_entries()
        .filter(|(of_tier, _)| *of_tier == tier)
        .filter_map(|(_, entry)| {
            let base = sizes_of(&pool.members.get(&entry.uuid)?.geometry);
            Some(sector_rules::Member { base, crypt: None, in_use: pool.meta.is_in_use(entry.uuid) })
        })
        .collect()
}

/// Refuses a pool whose tiers mix sector sizes in a way that may tear writes.
pub(in crate::engine) fn check_sector_sizes(pool: &Pool) -> Result<()> {
    for tier in [Tier::Data, Tier::Cache] {
        let sizes = sector_sizes(pool, tier);
        if !sizes.is_empty() {
            sector_rules::effective(&sizes)?;
        }
    }
    Ok(())
}

/// Sets or removes what the user says of a device. `false`: that is what it says already.
pub fn set_user_info(uuid: PoolUuid, device: DevUuid, info: Option<String>) -> Next<Result<bool>> {
    Next::write(uuid, move |engine, granted| {
        let pool = match super::writable(granted, uuid) {
            Ok(pool) => pool,
            Err(error) => return Next::Done(Err(error)),
        };
        let set = change_user_info(engine.platform(), pool, device, info);
        Next::Done(set.inspect_err(|error| pool.note_failure(error)))
    })
}

fn change_user_info(platform: &dyn Platform, pool: &mut Pool, device: DevUuid, info: Option<String>) -> Result<bool> {
    pool.check_requests()?;
    if let (MetadataVersion::V1, Some(info)) = (pool.version(), &info) {
        // Links were made of it once.
        Name::new(info)?;
    }
    let missing = || Error::NoDevice { pool: pool.name().clone(), device };
    let entry = |meta: &PoolMetadata| {
        meta.device_entries().find(|(_, entry)| entry.uuid == device).map(|(_, entry)| entry.user_info.clone())
    };
    if entry(&pool.meta).ok_or_else(missing)? == info {
        return Ok(false);
    }
    pool.commit(platform, Choose::Some(platform.random()), |meta| {
        meta.set_user_info(device, info);
        Ok(())
    })?;
    Ok(true)
}

/// Reads the usage of a pool and its filesystems anew.
pub fn check_pool(uuid: PoolUuid) -> Next<()> {
    Next::write(uuid, move |engine, granted| {
        if let Ok(pool) = super::writable(granted, uuid) {
            if pool.check_changes().is_ok() {
                pool.refresh(engine.platform());
                setup::judge_thin_pool(engine.platform(), pool);
            }
        }
        Next::Done(())
    })
}
