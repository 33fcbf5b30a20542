//! Stopping and starting pools, and looking at everything anew (`spec/engine/engine-behaviour.md` §4, 8, 9,
//! `storage-stack.md` §10.3).
//!
//! A stop is decided by the write of `started: false`. What comes before it is taken back if something fails, and undone by
//! a power cut; what comes after it is only the rest of the take-down. If that fails the pool is *partially constructed*: it
//! does not run, and some of its device-mapper devices are up. It can be stopped again, which cleans up, or started, which
//! adopts them.
//!
//! A start is set-up by request. The pool is listed as stopped until the moment in which it is listed as running.

use std::sync::Arc;

use crate::{
    engine::{
        Engine,
        bda::Choose,
        claims::{Claim, Key},
        containers::{self, Unlock},
        dm_names::Role,
        encased::Encased,
        error::{Error, Result},
        ids::{DevUuid, FsUuid, PoolUuid},
        mdv::Mdv,
        metadata::PoolMetadata,
        name::Name,
        ops::discover::{self, discover},
        pool::Pool,
        registry::{DeviceSet, Seen, Verdict},
        request::{Access, Granted, Mode, Next, PoolRef, Share, Wait},
        setup::{self, CacheTier},
        undo::Rollback,
    },
    platform::{self, PendingLinks, Platform},
    view::Availability,
};

/// Where a pool was found.
enum Place {
    /// It runs.
    Running(PoolUuid),
    /// It is known and does not run.
    Stopped(PoolUuid),
}

/// Finds a pool.
fn locate(which: PoolRef) -> Next<Result<Place>> {
    Next::under(Access::Pool(which.clone(), Mode::Shared), move |engine, granted| match granted {
        Granted::Read(pool) => Next::Done(Ok(Place::Running(pool.uuid()))),
        _ => {
            let stopped = engine.registry().resolve(&which);
            match stopped {
                Ok(uuid) => Next::Done(Ok(Place::Stopped(uuid))),
                // It may have come up between the two looks.
                Err(error) => Next::under(Access::Pool(which, Mode::Shared), move |_, granted| match granted {
                    Granted::Read(pool) => Next::Done(Ok(Place::Running(pool.uuid()))),
                    _ => Next::Done(Err(error)),
                }),
            }
        }
    })
}

// ---- stop ----

/// What came of a stop.
#[derive(Debug)]
pub enum Stopped {
    /// The pool ran and has been stopped.
    Done(PoolUuid),
    /// The pool did not run; what was up of it has been taken down.
    CleanedUp(PoolUuid),
    /// The pool did not run, and nothing of it was up.
    Already,
    /// The pool has been stopped, but some of its devices could not be taken down, because of this.
    Partly(PoolUuid, Error),
}

/// Stops a pool. It stays stopped until it is started by request.
pub fn stop_pool(which: PoolRef) -> Next<Result<Stopped>> {
    locate(which).then(|found| match found {
        Ok(Place::Running(uuid)) => stop_running(uuid),
        Ok(Place::Stopped(uuid)) => clean_up(uuid),
        Err(error) => Next::Done(Err(error)),
    })
}

fn stop_running(uuid: PoolUuid) -> Next<Result<Stopped>> {
    Next::brief(move |engine| match engine.claims().claim([Key::Drain(uuid)]) {
        Ok(drain) => stop_drained(uuid, drain),
        Err(taken) => Next::parked(taken, stop_running(uuid)),
    })
}

/// New work in the pool waits while `drain` is held, so the work under way comes to an end.
fn stop_drained(uuid: PoolUuid, drain: Claim) -> Next<Result<Stopped>> {
    Next::alone(uuid, move |engine, granted| {
        let Ok(pool) = super::drained(granted, uuid) else {
            drop(drain);
            return stop_pool(PoolRef::Uuid(uuid));
        };
        if engine.claims().work_in(uuid) {
            return Next::parked(Wait::Idle(uuid), stop_drained(uuid, drain));
        }
        match stop(engine, pool) {
            Ok(left_up) => {
                let mut set = DeviceSet::of(pool, left_up.is_none());
                set.partial = left_up.is_some() && setup::anything_up(engine.platform(), uuid, &set);
                set.trouble = left_up.as_ref().filter(|_| set.partial).map(|error| {
                    format!("it was stopped, but some of it could not be taken down: {}", error.sentence()).into()
                });
                Next::under(Access::Table(Mode::Exclusive), move |engine, granted| {
                    let Granted::Table(table) = granted else { return Next::Done(Err(Error::NoPool(uuid))) };
                    drop(table.remove(uuid));
                    let partial = set.partial;
                    let mut registry = engine.registry();
                    registry.note_ended(uuid);
                    registry.park(uuid, set);
                    drop(registry);
                    drop(drain);
                    log::info!("pool {uuid} is stopped");
                    Next::Done(Ok(match left_up {
                        Some(error) if partial => Stopped::Partly(uuid, error),
                        _ => Stopped::Done(uuid),
                    }))
                })
            }
            Err(error) => {
                pool.note_failure(&error);
                // Filesystems that were taken down and brought up again have other device numbers.
                let links = super::announce(engine, pool, pool.filesystems.values());
                super::when_linked(links, Err(error))
            }
        }
    })
}

/// Refuses while a filesystem is mounted, before anything is taken down; also one that could not be set up because its device
/// was not as it should be.
fn check_unmounted(platform: &dyn Platform, pool: &Pool) -> Result<()> {
    let set_up = pool.filesystems.values().map(|filesystem| (filesystem.name.clone(), filesystem.number));
    let left_out = pool.left_out().filter_map(|record| {
        // What cannot be told here is found by the take-down itself.
        let device = platform.dm_find(&pool.thin_name(record.uuid)).ok()??;
        Some((Name::new(&record.name).ok()?, device.number))
    });
    super::check_unmounted(platform, set_up.chain(left_out))
}

/// Takes a pool down and records that it is stopped. Gives why something is still up, if it is.
///
/// # Errors
/// Before the record is written; the pool runs as before then.
fn stop(engine: &Engine, pool: &mut Pool) -> Result<Option<Error>> {
    let platform = engine.platform();
    let uuid = pool.uuid();
    check_unmounted(platform, pool)?;
    let decided = setup::take_filesystems_down(platform, uuid)
        .and_then(|()| setup::take_thin_pool_down(platform, &mut pool.stack))
        .and_then(|()| match pool.meta.destroying || pool.meta.started == Some(false) {
            // By a request that panicked after that; its devices may be closed.
            true => Ok(()),
            false => pool.change(platform, Choose::Some(platform.random()), |meta| {
                meta.started = Some(false);
                Ok(())
            }),
        });
    if let Err(cause) = decided {
        return Err(setup::back_up_after(platform, pool, cause));
    }
    pool.set_gone(true);
    let mut take_down = || {
        setup::take_backstore_down(platform, &mut pool.stack, uuid)?;
        pool.close_devices(platform)
    };
    // One failure is not yet a reason to leave something up.
    let left_up = take_down().or_else(|_| take_down()).err();
    forget_volume_key(platform, uuid);
    if let Some(error) = &left_up {
        log::error!("pool {} is stopped, but some of it is still up: {}", pool.name(), error.sentence());
    }
    Ok(left_up)
}

/// Forgets the volume key of a pool that is down.
pub(in crate::engine) fn forget_volume_key(platform: &dyn Platform, uuid: PoolUuid) {
    if let Err(error) = platform.volume_key_unset(&containers::volume_key_name(uuid)) {
        log::error!("the volume key of pool {uuid} could not be removed from the keyring: {error}");
    }
}

/// Takes down what is up of a pool that does not run.
fn clean_up(uuid: PoolUuid) -> Next<Result<Stopped>> {
    Next::slow(Share::Pool(uuid), move |engine| {
        let which = PoolRef::Uuid(uuid);
        let claim = match engine.claims().claim([Key::Pool(uuid)]) {
            Ok(claim) => claim,
            // By then it may run.
            Err(taken) => return Next::parked(taken, stop_pool(which)),
        };
        let platform = engine.platform();
        // What is known may be out of date: a start that panicked has not told.
        let partial = engine.registry().get(uuid).map(|set| set.partial || setup::anything_up(platform, uuid, &set));
        match partial {
            // It has come up meanwhile.
            None => {
                drop(claim);
                stop_pool(which)
            }
            Some(false) => Next::Done(Ok(Stopped::Already)),
            Some(true) => {
                let mut set = engine.registry().get(uuid);
                let destroyed = set.as_mut().filter(|set| matches!(set.verdict(), Verdict::Destroying(_)));
                if let Some(set) = destroyed {
                    // What is up is what has kept it from being wiped.
                    let ended = renew(engine, set).and_then(|()| discover::end(engine, uuid, set));
                    if engine.registry().get(uuid).is_none() {
                        return Next::Done(Ok(Stopped::CleanedUp(uuid)));
                    }
                    if let Err(error) = ended {
                        return Next::Done(Err(error));
                    }
                }
                let clean_up = || setup::clean_up(platform, uuid, set.as_ref());
                let cleaned = clean_up().or_else(|_| clean_up());
                let is_up = |set| setup::anything_up(platform, uuid, set);
                let partial = cleaned.is_err() && set.as_ref().is_some_and(is_up);
                engine.registry().note_down(uuid, partial, cleaned.as_ref().err());
                Next::Done(cleaned.map(|()| Stopped::CleanedUp(uuid)))
            }
        }
    })
}

// ---- start ----

/// Refuses what a pool that is not encrypted has no use for.
fn check_unneeded(unlock: &Unlock, pool: &Name) -> Result<()> {
    let given = match unlock {
        Unlock { method: Some(_), .. } => "a way to unlock it",
        Unlock { passphrase: Some(_), .. } => "a passphrase",
        _ => return Ok(()),
    };
    Err(Error::NotEncrypted { pool: pool.clone(), given })
}

fn check_unlock(unlock: &Unlock, pool: &Name, encrypted: bool) -> Result<()> {
    match (encrypted, unlock.method) {
        (false, _) => check_unneeded(unlock, pool),
        (true, None) => Err(Error::NoUnlockMethod { pool: pool.clone() }),
        (true, Some(_)) => Ok(()),
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

/// Starts a pool. `None`: it runs already.
pub fn start_pool(which: PoolRef, unlock: Unlock, cache: CacheTier) -> Next<Result<Option<Started>>> {
    locate(which).then(move |found| match found {
        Ok(Place::Running(uuid)) => already(uuid, unlock, cache),
        Ok(Place::Stopped(uuid)) => start_stopped(uuid, unlock, cache),
        Err(error) => Next::Done(Err(error)),
    })
}

fn already(uuid: PoolUuid, unlock: Unlock, cache: CacheTier) -> Next<Result<Option<Started>>> {
    let which = PoolRef::Uuid(uuid);
    Next::under(Access::Pool(which.clone(), Mode::Shared), move |_, granted| match granted {
        Granted::Read(pool) if pool.is_encrypted() => Next::Done(Ok(None)),
        Granted::Read(pool) => Next::Done(check_unneeded(&unlock, pool.name()).map(|()| None)),
        // It has been stopped meanwhile.
        _ => start_pool(which, unlock, cache),
    })
}

fn start_stopped(uuid: PoolUuid, unlock: Unlock, cache: CacheTier) -> Next<Result<Option<Started>>> {
    Next::slow(Share::Pool(uuid), move |engine| {
        let claim = match engine.claims().claim([Key::Pool(uuid)]) {
            Ok(claim) => claim,
            // By then it may run, and be known as one that does not all the same: an event of one of its devices may say so.
            Err(taken) => return Next::parked(taken, start_pool(PoolRef::Uuid(uuid), unlock, cache)),
        };
        let Some(mut set) = engine.registry().get(uuid) else {
            drop(claim);
            return start_pool(PoolRef::Uuid(uuid), unlock, cache);
        };
        let platform = engine.platform();
        let ready = engine.check_ending().and_then(|()| renew(engine, &mut set)).and_then(|()| {
            Rollback::new().guard(platform, |undo| {
                open_devices(engine, &mut set, &unlock, undo)?;
                discover::end(engine, uuid, &set)?;
                admissible(uuid, &set, cache)
            })
        });
        let (metadata, opened) = match ready {
            Ok(ready) => ready,
            Err(error) => return not_up(engine, uuid, error).map(|started| started.map(Some)),
        };
        let ready = Name::new(&metadata.name).map_err(Error::from).and_then(|name| {
            check_unlock(&unlock, &name, metadata.is_encrypted() || set.containers().next().is_some())?;
            if cache == CacheTier::Drop && set.partial {
                // What is up may lie on the cache.
                setup::clean_up(platform, uuid, None)?;
            }
            Ok(())
        });
        match ready {
            Ok(()) => bring_up(uuid, set, metadata, cache, unlock, opened, claim).map(|started| started.map(Some)),
            Err(error) => Next::Done(Err(opened.run(platform, error))),
        }
    })
}

/// Opens the containers of a pool's devices and reads what is in them.
fn open_devices(engine: &Engine, set: &mut DeviceSet, unlock: &Unlock, undo: &mut Rollback) -> Result<()> {
    let closed: Vec<Encased> = set.closed().cloned().collect();
    for encased in closed {
        let device = encased.open(engine.platform(), unlock, undo)?;
        if let Some(found) = discover::read(engine, device)? {
            set.add(Seen::Area(found));
        }
    }
    Ok(())
}

/// Reads the devices anew: much may have happened to them since the pool was stopped.
pub(super) fn renew(engine: &Engine, set: &mut DeviceSet) -> Result<()> {
    let platform = engine.platform();
    let mut seen = Vec::new();
    for known in set.containers() {
        let device = match platform.find_device(&known.device.path) {
            Err(platform::Error::NoDevice { .. }) => None,
            device => Some(device?),
        };
        let read = device.map(|device| Encased::read(platform, &device)).transpose()?.flatten();
        match read {
            Some(same) if same.id() == known.id() => {
                let opened = same.opened(platform)?.map(|device| discover::read(engine, device)).transpose()?.flatten();
                seen.extend(opened.map(Seen::Area));
                seen.push(Seen::Container(same));
            }
            _ => log::warn!("{} is not a device of the pool any more", known.device.path.display()),
        }
    }
    for known in set.devices().filter(|found| set.container(found.bda.header().device).is_none()) {
        let read = match engine.platform().find_device(&known.device.path) {
            // What is missing is told by what is found.
            Err(platform::Error::NoDevice { .. }) => None,
            device => discover::read(engine, device?)?,
        };
        match read {
            Some(same) if same.bda.header().device == known.bda.header().device => seen.push(Seen::Area(same)),
            _ => log::warn!("{} is not a device of the pool any more", known.device.path.display()),
        }
    }
    set.renew(seen);
    Ok(())
}

/// The metadata of a pool that may be set up; devices of a cache that is to be dropped may be missing.
fn admissible(uuid: PoolUuid, set: &DeviceSet, cache: CacheTier) -> Result<Arc<PoolMetadata>> {
    match set.verdict() {
        Verdict::Complete(metadata) => Ok(metadata),
        Verdict::Incomplete(metadata, missing)
            if cache == CacheTier::Drop
                && missing.iter().all(|device| metadata.data_devices().all(|data| data != *device)) =>
        {
            Ok(metadata)
        }
        other => Err(other.obstacle(uuid).unwrap_or(Error::NoMetadata(uuid))),
    }
}

/// Claims the pool's name, makes sure that no running pool has it, and sets the pool up. `claim` is that on the pool.
///
/// # Errors
/// The pool does not run then, and whether something of it is up has been noted.
pub(super) fn bring_up(
    uuid: PoolUuid,
    set: DeviceSet,
    metadata: Arc<PoolMetadata>,
    cache: CacheTier,
    unlock: Unlock,
    opened: Rollback,
    claim: Claim,
) -> Next<Result<Started>> {
    Next::brief(move |engine| {
        let name = match Name::new(&metadata.name) {
            Ok(name) => name,
            Err(error) => return not_up(engine, uuid, opened.run(engine.platform(), error.into())),
        };
        let name_claim = match engine.claims().claim([Key::PoolName(name.clone())]) {
            Ok(claim) => claim,
            Err(taken) => return Next::parked(taken, bring_up(uuid, set, metadata, cache, unlock, opened, claim)),
        };
        Next::under(Access::Pool(PoolRef::Name(name.clone()), Mode::Shared), move |_, granted| {
            let taken = matches!(granted, Granted::Read(_));
            // A device of it may not answer, for hours or for ever, and must not keep others from a worker.
            Next::long(move |engine| {
                if taken {
                    return not_up(engine, uuid, opened.run(engine.platform(), Error::NameRuns(name)));
                }
                engine.registry().note_being_set_up(uuid);
                let platform = engine.platform();
                match setup::lay_foundation(platform, uuid, &set, (*metadata).clone(), cache, Some(&unlock), opened) {
                    Ok(foundation) => foundation.build().then(move |built| {
                        Next::act(move |engine| match built {
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

fn not_up(engine: &Engine, uuid: PoolUuid, error: Error) -> Next<Result<Started>> {
    let partial = setup::partly_up(engine.platform(), uuid);
    engine.registry().note_down(uuid, partial, Some(&error));
    Next::Done(Err(error))
}

/// Puts a pool that has been set up into the table, where it takes the place of what was known of it as a stopped one.
fn show(engine: &Engine, pool: Pool, claim: Claim, name_claim: Claim) -> Next<Result<Started>> {
    log::info!("pool {} ({}) is set up", pool.name(), pool.uuid());
    let started = Started {
        pool: pool.uuid(),
        devices: pool.meta.devices().collect(),
        filesystems: pool.filesystems.keys().copied().collect(),
    };
    let links = super::announce(engine, &pool, pool.filesystems.values());
    let uuid = pool.uuid();
    let (locked, unfinished) = (pool.lacks_volume_key(), pool.work.is_some());
    setup::insert(pool, name_claim).then(move |inserted| {
        drop(claim);
        Next::act(move |engine| {
            if inserted.is_ok() && locked {
                engine.begin(format!("volume key of pool {uuid}"), super::encryption::load_volume_key(uuid));
            }
            if inserted.is_ok() && unfinished {
                engine.begin(format!("work on the data of pool {uuid}"), super::online::resume(uuid));
            }
            super::when_linked(links, inserted.map(|()| started))
        })
    })
}

// ---- refresh ----

/// Forgets what is known of pools and reads everything anew: running pools from their devices, with what is up adopted;
/// then all other devices, as at the start. A running pool that cannot be read anew goes on as it is, and the error tells.
pub fn refresh() -> Next<Result<()>> {
    Next::under(Access::Table(Mode::Shared), |_, granted| {
        let Granted::Table(table) = granted else { return Next::Done(Ok(())) };
        let running: Vec<PoolUuid> = table.list().into_iter().map(|(uuid, _)| uuid).collect();
        one_by_one(running, refresh_pool).then(|refreshed| {
            Next::act(move |engine| match discover(engine) {
                Ok(chains) => one_by_one(chains, |chain| chain.map(Ok)).map(move |_| refreshed),
                Err(error) => Next::Done(refreshed.and(Err(error))),
            })
        })
    })
}

/// Runs a chain for each item, all of them whatever comes of the others. Gives the first error.
fn one_by_one<T: Send + 'static>(mut items: Vec<T>, each: fn(T) -> Next<Result<()>>) -> Next<Result<()>> {
    match items.pop() {
        None => Next::Done(Ok(())),
        Some(item) => each(item)
            .then(move |result| Next::brief(move |_| one_by_one(items, each).map(move |others| result.and(others)))),
    }
}

fn refresh_pool(uuid: PoolUuid) -> Next<Result<()>> {
    // Where the record is ahead of the opened container its volume key is needed, and while the pool is held none is derived.
    super::encryption::load_by_keyring(uuid).then(move |()| refresh_undisturbed(uuid))
}

fn refresh_undisturbed(uuid: PoolUuid) -> Next<Result<()>> {
    Next::brief(move |engine| match engine.claims().claim([Key::Drain(uuid)]) {
        Ok(drain) => refresh_drained(uuid, drain).then(move |refreshed| {
            let checked = super::check_pool(uuid).then(move |()| super::check_filesystems(uuid));
            checked.map(|()| refreshed)
        }),
        Err(taken) => Next::parked(taken, refresh_undisturbed(uuid)),
    })
}

/// Reads a pool anew when no work is under way in it, which the new reading would take for left over.
fn refresh_drained(uuid: PoolUuid, drain: Claim) -> Next<Result<()>> {
    Next::alone(uuid, move |engine, granted| {
        // It has ended meanwhile.
        let Ok(pool) = super::writable(granted, uuid) else { return Next::Done(Ok(())) };
        if engine.claims().work_in(uuid) {
            return Next::parked(Wait::Idle(uuid), refresh_drained(uuid, drain));
        }
        let refreshed = adopt(engine, pool);
        if pool.lacks_volume_key() {
            engine.begin(format!("volume key of pool {uuid}"), super::encryption::load_volume_key(uuid));
        }
        if pool.work.is_some() {
            // Whoever was at it goes on by himself, but it may have been halted.
            engine.begin(format!("work on the data of pool {uuid}"), super::online::resume(uuid));
        }
        drop(drain);
        match refreshed {
            Ok(links) => super::when_linked(links, Ok(())),
            Err(error) => Next::Done(Err(error)),
        }
    })
}

/// Reads a running pool from its devices and adopts what is up of it.
fn adopt(engine: &Engine, pool: &mut Pool) -> Result<Option<Box<dyn PendingLinks>>> {
    let platform = engine.platform();
    let uuid = pool.uuid();
    let mut set = DeviceSet::of(pool, false);
    let adopted = renew(engine, &mut set)
        .and_then(|()| admissible(uuid, &set, CacheTier::Keep))
        .and_then(|metadata| {
            let opened = Rollback::new();
            setup::lay_foundation(platform, uuid, &set, (*metadata).clone(), CacheTier::Keep, None, opened)
        })
        .and_then(|foundation| foundation.build_now(platform));
    match adopted {
        Ok(fresh) => {
            pool.become_as_read(fresh);
            engine.registry().note_running(uuid, pool.paths());
            Ok(super::announce(engine, pool, pool.filesystems.values()))
        }
        Err(cause) => {
            // The set-up that failed may have unmounted it.
            let mount = || Mdv::new(platform, uuid).mount(&platform.dm_node(&Role::Mdv.name(uuid)));
            if let Err(error) = mount().or_else(|_| mount()) {
                pool.restrict(
                    Availability::NoPoolChanges,
                    format!("its metadata volume could not be mounted again: {error}"),
                );
            }
            Err(cause)
        }
    }
}
