//! Decides whether a known pool may run, and sets it up. Discovery does this for every pool that
//! may run, and a request does it for the pool that it starts.
//!
//! A pool is listed as stopped until the moment in which it is listed as running.

use std::{path::PathBuf, sync::Arc};

use crate::{
    base::{
        ids::{DevUuid, FsUuid, PoolUuid},
        name::Name,
        pool_ref::PoolRef,
    },
    engine::{
        Engine,
        bda::{self, Bda, Choose},
        claims::{Claim, Key},
        error::{Error, Result},
        luks_devices::lifecycle::UnlockOptions,
        metadata::PoolMetadata,
        ops::{
            leftovers::{self, clear_away},
            links::{announce, when_linked},
            read_devices::renew,
        },
        pool::Pool,
        registry::{DeviceSet, DeviceSetVerdict, STOPPED},
        request::{Granted, Step},
        setup::{self, CacheTier},
        take_down,
        undo::Rollback,
    },
};

/// Sets a pool up if all its devices exist and it is not to stay stopped.
pub(super) fn consider(uuid: PoolUuid) -> Step<()> {
    Step::brief(move |engine| {
        let claim = match engine.claims().claim([Key::Pool(uuid)]) {
            Ok(claim) => claim,
            Err(taken) => return Step::parked(taken, consider(uuid)),
        };
        Step::read(uuid, move |engine, granted| {
            // The registry also knows devices that claim to belong to a running pool. They are kept
            // beside the pool.
            let set = if matches!(granted, Granted::Read(_)) { None } else { engine.registry().get(uuid) };
            let Some(set) = set else { return Step::Done(()) };
            // A device of the pool may hang during set-up or take-down.
            Step::background(move |engine| judge(engine, uuid, set, claim))
        })
    })
}

/// Considers again the pools that were refused because a running pool had this name, which it no
/// longer has. The caller does not wait for that.
pub(super) fn consider_named(engine: &Engine, name: &Name) {
    let awaiting = engine.registry().awaiting(name);
    for pool in awaiting {
        engine.begin(format!("discovery of pool {pool}, whose name is free"), consider(pool));
    }
}

fn judge(engine: &Engine, uuid: PoolUuid, set: DeviceSet, claim: Claim) -> Step<()> {
    let mut trouble = None;
    let reason = match set.verdict() {
        // A daemon that was killed may have left some of the pool's devices up.
        DeviceSetVerdict::Complete(metadata) if metadata.started == Some(false) => {
            trouble = clear_away(engine, uuid, &set).err();
            engine.registry().note_recorded_stop(uuid);
            STOPPED.to_owned()
        }
        // The pool was stopped while its devices were gone.
        DeviceSetVerdict::Complete(metadata) if engine.registry().is_stop_unrecorded(uuid) => {
            let cleared = clear_away(engine, uuid, &set);
            trouble = cleared.and_then(|()| record_stop(engine, uuid, &set, &metadata)).err();
            STOPPED.to_owned()
        }
        DeviceSetVerdict::Complete(metadata) => {
            let brought_up =
                bring_up(uuid, set, metadata, CacheTier::Keep, UnlockOptions::default(), Rollback::new(), claim);
            return brought_up.map(move |result| match result {
                Ok(_) => {}
                Err(error) => log::info!("pool {uuid} is not set up: {}", error.sentence()),
            });
        }
        DeviceSetVerdict::Destroying(_) => {
            drop(leftovers::end(engine, uuid, &set));
            return Step::Done(());
        }
        // Devices of the pool that are still up keep the disks from being used.
        DeviceSetVerdict::NeverCommitted => {
            trouble = clear_away(engine, uuid, &set).err();
            if trouble.is_none() {
                drop(leftovers::end(engine, uuid, &set));
            }
            "its creation was never completed; its devices can be used for a new pool".to_owned()
        }
        other => {
            // A start or stop that was interrupted may have left some of the pool's LUKS devices
            // open.
            if matches!(other, DeviceSetVerdict::Locked) && !take_down::partly_up(engine.platform(), uuid) {
                trouble = clear_away(engine, uuid, &set).err();
            }
            other.obstacle(uuid).map_or_else(String::new, |error| error.sentence())
        }
    };
    log::info!("pool {uuid} is not set up: {reason}");
    let partial = take_down::partly_up(engine.platform(), uuid);
    engine.registry().note_down(uuid, partial, trouble.as_ref());
    Step::Done(())
}

/// Records a stop that could not be recorded when it was requested.
///
/// # Errors
/// When no device can be written.
pub(super) fn record_stop(engine: &Engine, uuid: PoolUuid, set: &DeviceSet, metadata: &PoolMetadata) -> Result<()> {
    let platform = engine.platform();
    let version = set.version().ok_or(Error::MixedVersions(uuid))?;
    let json = PoolMetadata { started: Some(false), ..metadata.clone() }.encode(version);
    let listed: Vec<DevUuid> = metadata.data_devices().collect();
    let data = set.devices().filter(|found| listed.contains(&found.bda.header().device));
    let mut areas: Vec<(PathBuf, Bda)> = data.map(|found| (found.device.path.clone(), found.bda.clone())).collect();
    let mut areas: Vec<_> = areas.iter_mut().map(|(path, bda)| (path.as_path(), bda)).collect();
    bda::save_to_pool(platform, &mut areas, &json, platform.now(), Choose::Everywhere)?;
    let mut now = set.clone();
    renew(engine, uuid, &mut now);
    let mut registry = engine.registry();
    registry.note_recorded_stop(uuid);
    registry.add_stopped(uuid, now);
    Ok(())
}

/// The metadata of a pool that may be set up. Devices of a cache that is to be dropped may be
/// missing.
pub(super) fn admissible(uuid: PoolUuid, set: &DeviceSet, cache: CacheTier) -> Result<Arc<PoolMetadata>> {
    match set.verdict() {
        DeviceSetVerdict::Complete(metadata) => Ok(metadata),
        DeviceSetVerdict::Incomplete(metadata, missing)
            if cache == CacheTier::Drop
                && missing.iter().all(|device| metadata.data_devices().all(|data| data != *device)) =>
        {
            Ok(metadata)
        }
        other => Err(other.obstacle(uuid).unwrap_or(Error::NoMetadata(uuid))),
    }
}

/// A pool that has been started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The pool.
    pub pool: PoolUuid,
    /// Its devices, data and cache.
    pub devices: Vec<DevUuid>,
    /// Its filesystems.
    pub filesystems: Vec<FsUuid>,
}

/// Claims the pool's name, makes sure that no running pool has it, and sets the pool up. `claim` is
/// the claim on the pool.
///
/// # Errors
/// When the pool cannot be set up. Whether some of its devices are up has been noted.
pub(super) fn bring_up(
    uuid: PoolUuid,
    set: DeviceSet,
    metadata: Arc<PoolMetadata>,
    cache: CacheTier,
    unlock: UnlockOptions,
    opened: Rollback,
    claim: Claim,
) -> Step<Result<Started>> {
    Step::brief(move |engine| {
        let name = match Name::new(&metadata.name) {
            Ok(name) => name,
            Err(error) => return not_up(engine, uuid, opened.run(engine.platform(), error.into())),
        };
        let name_claim = match engine.claims().claim([Key::PoolName(name.clone())]) {
            Ok(claim) => claim,
            Err(taken) => return Step::parked(taken, bring_up(uuid, set, metadata, cache, unlock, opened, claim)),
        };
        Step::read(PoolRef::Name(name.clone()), move |_, granted| {
            let taken = matches!(granted, Granted::Read(_));
            // A device of the pool may hang for hours or for ever, and must not occupy a worker.
            Step::background(move |engine| {
                if taken {
                    let refused = not_up(engine, uuid, opened.run(engine.platform(), Error::NameRuns(name.clone())));
                    return refused.then(move |refused| unless_free(name, refused));
                }
                engine.registry().note_being_set_up(uuid);
                let platform = engine.platform();
                match setup::assemble(platform, uuid, &set, (*metadata).clone(), cache, Some(&unlock), opened) {
                    Ok(assembly) => assembly.build().then(move |built| {
                        Step::blocking(move |engine| match built {
                            Ok(pool) => show(engine, pool, claim, name_claim),
                            Err(error) => not_up(engine, uuid, error),
                        })
                    }),
                    Err(error) => not_up(engine, uuid, error),
                }
            })
        })
    })
}

/// Checks again whether a name for which a pool was refused is free: the pool that had the name may
/// have gone before the refusal was noted.
fn unless_free<T: Send + 'static>(name: Name, refused: T) -> Step<T> {
    Step::read(PoolRef::Name(name.clone()), move |engine, granted| {
        if matches!(granted, Granted::NoPool) {
            consider_named(engine, &name);
        }
        Step::Done(refused)
    })
}

pub(super) fn not_up(engine: &Engine, uuid: PoolUuid, error: Error) -> Step<Result<Started>> {
    let partial = take_down::partly_up(engine.platform(), uuid);
    engine.registry().note_down(uuid, partial, Some(&error));
    Step::Done(Err(error))
}

/// Inserts a pool that has been set up into the table. Its entry replaces what was known about it
/// as a stopped pool.
fn show(engine: &Engine, pool: Pool, claim: Claim, name_claim: Claim) -> Step<Result<Started>> {
    log::info!("pool {} ({}) is set up", pool.name(), pool.uuid());
    let started = Started {
        pool: pool.uuid(),
        devices: pool.meta().devices().collect(),
        filesystems: pool.filesystems.keys().copied().collect(),
    };
    let links = announce(engine, &pool, pool.filesystems.values());
    let uuid = pool.uuid();
    let (locked, unfinished) = (pool.lacks_volume_key(), pool.job().is_some());
    setup::insert(pool, name_claim).then(move |inserted| {
        drop(claim);
        Step::blocking(move |engine| {
            if inserted.is_ok() && locked {
                engine.begin(format!("volume key of pool {uuid}"), super::encryption::load_volume_key(uuid));
            }
            if inserted.is_ok() && unfinished {
                engine.begin(format!("re-encryption job of pool {uuid}"), super::reencryption_job::resume(uuid));
            }
            when_linked(links, inserted.map(|()| started))
        })
    })
}
