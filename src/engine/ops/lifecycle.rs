//! Stops, starts and refreshes pools (`docs/spec/engine/engine-behaviour.md` §4, 8, 9,
//! `storage-stack.md` §10.3).
//!
//! The write of `started: false` is the commit point of a stop. What comes before it is taken back
//! if something fails, and undone by a power cut. What comes after it is only the rest of the
//! take-down. If that fails, the pool is *partially constructed*: it does not run, and some of its
//! device-mapper devices are up. Such a pool can be stopped again, which takes the rest down, or
//! started, which adopts the devices.
//!
//! A start is a set-up on request. The pool is listed as stopped until the moment in which it is
//! listed as running.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    base::{
        ids::{DevUuid, FsUuid, PoolUuid},
        name::Name,
        pool_ref::PoolRef,
    },
    engine::{
        Engine,
        bda::{self, Bda, Choose, Repair},
        claims::{Claim, Key},
        containers::Unlock,
        dm_names::Role,
        error::{Error, Result},
        luks_device::LuksDevice,
        mdv::Mdv,
        metadata::{PoolMetadata, StaticHeader},
        ops::discover::{self, discover},
        pool::Pool,
        registry::{DeviceSet, Seen, Verdict},
        request::{Access, Granted, Mode, Share, Step, Wait},
        setup::{self, CacheTier},
        take_down,
        undo::Rollback,
        volume_keys,
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
fn locate(which: PoolRef) -> Step<Result<Place>> {
    Step::locked(Access::Pool(which.clone(), Mode::Shared), move |engine, granted| match granted {
        Granted::Read(pool) => Step::Done(Ok(Place::Running(pool.uuid()))),
        _ => {
            let stopped = engine.registry().resolve(&which);
            match stopped {
                Ok(uuid) => Step::Done(Ok(Place::Stopped(uuid))),
                // The pool may have come up between the two looks.
                Err(error) => Step::locked(Access::Pool(which, Mode::Shared), move |_, granted| match granted {
                    Granted::Read(pool) => Step::Done(Ok(Place::Running(pool.uuid()))),
                    _ => Step::Done(Err(error)),
                }),
            }
        }
    })
}

// ---- stop ----

/// The result of a stop.
#[derive(Debug)]
pub enum Stopped {
    /// The pool ran and has been stopped.
    Done(PoolUuid),
    /// The pool did not run; the devices of it that were up have been taken down.
    CleanedUp(PoolUuid),
    /// The pool did not run, and nothing of it was up.
    Already,
    /// The pool has been stopped, but some of its devices could not be taken down, because of this
    /// error.
    Partly(PoolUuid, Error),
}

/// Stops a pool. The pool stays stopped until a request starts it.
pub fn stop_pool(which: PoolRef) -> Step<Result<Stopped>> {
    locate(which).then(|found| match found {
        Ok(Place::Running(uuid)) => stop_running(uuid),
        Ok(Place::Stopped(uuid)) => clean_up(uuid),
        Err(error) => Step::Done(Err(error)),
    })
}

fn stop_running(uuid: PoolUuid) -> Step<Result<Stopped>> {
    Step::brief(move |engine| match engine.claims().claim([Key::Drain(uuid)]) {
        Ok(drain) => stop_drained(uuid, drain),
        Err(taken) => Step::parked(taken, stop_running(uuid)),
    })
}

/// While `drain` is held, new work in the pool waits, so the work under way comes to an end.
fn stop_drained(uuid: PoolUuid, drain: Claim) -> Step<Result<Stopped>> {
    Step::alone(uuid, move |engine, granted| {
        let Ok(pool) = super::drained(granted, uuid) else {
            drop(drain);
            return stop_pool(PoolRef::Uuid(uuid));
        };
        if engine.claims().work_in(uuid) {
            return Step::parked(Wait::Idle(uuid), stop_drained(uuid, drain));
        }
        match stop(engine, pool) {
            Ok(left_up) => {
                let mut set = DeviceSet::of(pool, left_up.is_none());
                if left_up.is_none() {
                    forget_gone(engine, uuid, &mut set);
                }
                let beside = engine.registry().beside(uuid);
                set.absorb(beside.unwrap_or_default());
                discover::settle_set(engine.platform(), uuid, &mut set);
                set.partial = left_up.is_some() && take_down::anything_up(engine.platform(), uuid, &set);
                set.trouble = left_up.as_ref().filter(|_| set.partial).map(|error| {
                    format!("it was stopped, but some of it could not be taken down: {}", error.sentence()).into()
                });
                Step::locked(Access::Table(Mode::Exclusive), move |engine, granted| {
                    let Granted::Table(table) = granted else { return Step::Done(Err(Error::NoPool(uuid))) };
                    let ended = table.remove(uuid);
                    let partial = set.partial;
                    let mut registry = engine.registry();
                    registry.note_ended(uuid);
                    registry.add_stopped(uuid, set);
                    drop(registry);
                    drop(drain);
                    ended.iter().for_each(|pool| discover::consider_named(engine, pool.name()));
                    log::info!("pool {uuid} is stopped");
                    Step::Done(Ok(match left_up {
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

/// Refuses if a filesystem is mounted, before anything is taken down. That includes a filesystem
/// that could not be set up because its device was not as it should be.
fn check_unmounted(platform: &dyn Platform, pool: &Pool) -> Result<()> {
    let set_up = pool.filesystems.values().map(|filesystem| (filesystem.name.clone(), filesystem.number));
    let left_out = pool.left_out().filter_map(|record| {
        // The take-down itself finds what this lookup cannot tell.
        let device = platform.dm_find(&pool.thin_name(record.uuid)).ok()??;
        Some((Name::new(&record.name).ok()?, device.number))
    });
    super::check_unmounted(platform, set_up.chain(left_out))
}

/// Takes a pool down and records that it is stopped. Returns the error that left something up, if
/// any.
///
/// # Errors
/// When something fails before the record is written; the pool then runs as before.
fn stop(engine: &Engine, pool: &mut Pool) -> Result<Option<Error>> {
    let platform = engine.platform();
    let uuid = pool.uuid();
    check_unmounted(platform, pool)?;
    let was_decided = pool.meta.destroying.is_some() || pool.meta.started == Some(false);
    let reach = match was_decided {
        // A request that then panicked has decided the stop; the pool's devices may be closed.
        true => Reach::First,
        false => find_members(engine, pool),
    };
    let decided = take_down::take_filesystems_down(platform, uuid)
        .and_then(|()| take_down::take_thin_pool_down(platform, &mut pool.stack))
        .and_then(|()| {
            let choose = match reach {
                _ if was_decided => return Ok(()),
                Reach::None => return Ok(()),
                Reach::First => Choose::Some(platform.random()),
                Reach::Others => Choose::Everywhere,
            };
            pool.change(platform, choose, |meta| {
                meta.started = Some(false);
                Ok(())
            })
        });
    match decided {
        // Nothing can be brought up again on devices that are gone; the pool can be stopped once
        // more.
        Err(cause) if reach == Reach::None => return Err(cause),
        Err(cause) => return Err(setup::back_up_after(platform, pool, cause)),
        Ok(()) => {}
    }
    if reach == Reach::None {
        engine.registry().note_unrecorded_stop(uuid);
        log::warn!(
            "pool {} is stopped, but that could not be recorded, since its devices are gone; it is recorded when they are back",
            pool.name()
        );
    }
    pool.set_gone(true);
    let mut take_down = || {
        take_down::take_backstore_down(platform, &mut pool.stack, uuid)?;
        pool.close_devices(platform)
    };
    // A single failure is no reason to leave something up.
    let left_up = take_down().or_else(|_| take_down()).err();
    volume_keys::forget(platform, uuid);
    if let Some(error) = &left_up {
        log::error!("pool {} is stopped, but some of it is still up: {}", pool.name(), error.sentence());
    }
    Ok(left_up)
}

/// Which data devices of a running pool can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The first, and so, as a rule, all of them.
    First,
    /// Not the first, but others.
    Others,
    /// None of them.
    None,
}

/// Finds out which data devices of a pool can still be reached. A device that has come back under
/// another node is the same device: from now on its metadata is written there. The pool's tables
/// still lead to the dead device.
pub(super) fn find_members(engine: &Engine, pool: &mut Pool) -> Reach {
    let platform = engine.platform();
    let beside = engine.registry().beside(pool.uuid()).unwrap_or_default();
    let data: Vec<DevUuid> = pool.meta.data_devices().collect();
    for (place, device) in data.into_iter().enumerate() {
        let Some(member) = pool.members.get_mut(&device) else { continue };
        let is_there = |path: &Path, header: &StaticHeader| {
            // A device that is taken for gone is not told of the stop, so a single error is no
            // proof.
            let load = || Bda::load(platform, path, Repair::ReadOnly);
            let found = load().or_else(|_| load()).or_else(|_| load()).ok().flatten();
            found.filter(|found| (found.header().pool, found.header().device) == (header.pool, header.device))
        };
        let header = *member.bda.header();
        let mut found = is_there(&member.device.path, &header).is_some();
        if let Some(back) = beside.devices().find(|back| back.bda.header().device == device).filter(|_| !found) {
            if let Some(bda) = is_there(&back.device.path, &header) {
                log::info!("{} is back as {}", member.device.path.display(), back.device.path.display());
                (member.device, member.bda, found) = (back.device.clone(), bda, true);
            }
        }
        match (found, place) {
            (true, 0) => return Reach::First,
            (true, _) => return Reach::Others,
            (false, _) => {}
        }
    }
    Reach::None
}

/// Forgets the devices of a stopped pool that are gone. If none of them could be reached, the
/// existence of a node proves nothing: a device that cannot be read is gone, too.
fn forget_gone(engine: &Engine, uuid: PoolUuid, set: &mut DeviceSet) {
    let unreachable = engine.registry().is_stop_unrecorded(uuid);
    for known in set.all() {
        let device = known.device();
        let is_gone = match engine.platform().find_device(&device.path) {
            Ok(found) => {
                found.number != device.number || unreachable && !reread(engine, &known).is_ok_and(|now| !now.is_empty())
            }
            Err(error) => matches!(error, platform::Error::NoDevice { .. }),
        };
        if is_gone {
            log::warn!("{} of pool {uuid} is gone", device.path.display());
            set.forget_number(device.number);
        }
    }
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

/// Takes down what is up of a pool that does not run.
fn clean_up(uuid: PoolUuid) -> Step<Result<Stopped>> {
    Step::slow(Share::Pool(uuid), move |engine| {
        let which = PoolRef::Uuid(uuid);
        let claim = match engine.claims().claim([Key::Pool(uuid)]) {
            Ok(claim) => claim,
            // The pool may run when this wait ends.
            Err(taken) => return Step::parked(taken, stop_pool(which)),
        };
        let platform = engine.platform();
        // What is known may be out of date: a start that panicked has not reported.
        let partial =
            engine.registry().get(uuid).map(|set| set.partial || take_down::anything_up(platform, uuid, &set));
        match partial {
            // The pool has come up meanwhile.
            None => {
                drop(claim);
                stop_pool(which)
            }
            Some(false) => Step::Done(Ok(Stopped::Already)),
            Some(true) => {
                let mut set = engine.registry().get(uuid);
                let destroyed = set.as_mut().filter(|set| matches!(set.verdict(), Verdict::Destroying(_)));
                if let Some(set) = destroyed {
                    // The devices that are still up have kept the pool from being wiped.
                    let ended =
                        renew(engine, uuid, set).map_or(Ok(()), Err).and_then(|()| discover::end(engine, uuid, set));
                    if engine.registry().get(uuid).is_none() {
                        return Step::Done(Ok(Stopped::CleanedUp(uuid)));
                    }
                    if let Err(error) = ended {
                        return Step::Done(Err(error));
                    }
                }
                let clean_up = || take_down::clean_up(platform, uuid, set.as_ref());
                let cleaned = clean_up().or_else(|_| clean_up());
                let is_up = |set| take_down::anything_up(platform, uuid, set);
                let partial = cleaned.is_err() && set.as_ref().is_some_and(is_up);
                engine.registry().note_down(uuid, partial, cleaned.as_ref().err());
                if !partial {
                    // The registry kept these devices while the pool was up.
                    for known in set.iter().flat_map(DeviceSet::all) {
                        let path = &known.device().path;
                        if matches!(platform.find_device(path), Err(platform::Error::NoDevice { .. })) {
                            engine.registry().remove_path(path);
                        }
                    }
                }
                Step::Done(cleaned.map(|()| Stopped::CleanedUp(uuid)))
            }
        }
    })
}

// ---- start ----

/// Refuses unlock parameters that a pool without encryption has no use for.
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

/// Starts a pool. `None`: the pool runs already.
pub fn start_pool(which: PoolRef, unlock: Unlock, cache: CacheTier) -> Step<Result<Option<Started>>> {
    locate(which).then(move |found| match found {
        Ok(Place::Running(uuid)) => already(uuid, unlock, cache),
        Ok(Place::Stopped(uuid)) => start_stopped(uuid, unlock, cache),
        Err(error) => Step::Done(Err(error)),
    })
}

fn already(uuid: PoolUuid, unlock: Unlock, cache: CacheTier) -> Step<Result<Option<Started>>> {
    let which = PoolRef::Uuid(uuid);
    Step::locked(Access::Pool(which.clone(), Mode::Shared), move |_, granted| match granted {
        Granted::Read(pool) if pool.is_encrypted() => Step::Done(Ok(None)),
        Granted::Read(pool) => Step::Done(check_unneeded(&unlock, pool.name()).map(|()| None)),
        // The pool has been stopped meanwhile.
        _ => start_pool(which, unlock, cache),
    })
}

fn start_stopped(uuid: PoolUuid, unlock: Unlock, cache: CacheTier) -> Step<Result<Option<Started>>> {
    Step::slow(Share::Pool(uuid), move |engine| {
        let claim = match engine.claims().claim([Key::Pool(uuid)]) {
            Ok(claim) => claim,
            // The pool may run when this wait ends, and still be known as one that does not: an
            // event of one of its devices may say so.
            Err(taken) => return Step::parked(taken, start_pool(PoolRef::Uuid(uuid), unlock, cache)),
        };
        let Some(mut set) = engine.registry().get(uuid) else {
            drop(claim);
            return start_pool(PoolRef::Uuid(uuid), unlock, cache);
        };
        let platform = engine.platform();
        let mut unread = None;
        let ready = engine.check_ending().and_then(|()| {
            unread = renew(engine, uuid, &mut set);
            Rollback::new().guard(platform, |undo| {
                open_devices(engine, &mut set, &unlock, undo)?;
                // A device that cannot be read may say that the others are not left over.
                if unread.is_none() {
                    discover::end(engine, uuid, &set)?;
                }
                admissible(uuid, &set, cache)
            })
        });
        // A device that cannot be read counts as missing; its error is the reason.
        let ready = ready.map_err(|error| match (error, unread) {
            (Error::DevicesMissing { .. } | Error::Unusable { .. } | Error::NoMetadata(_), Some(unread)) => unread,
            (error, _) => error,
        });
        let (metadata, opened) = match ready {
            Ok(ready) => ready,
            Err(error) => return not_up(engine, uuid, error).map(|started| started.map(Some)),
        };
        let ready = Name::new(&metadata.name).map_err(Error::from).and_then(|name| {
            check_unlock(&unlock, &name, metadata.is_encrypted() || set.containers().next().is_some())?;
            if cache == CacheTier::Drop && set.partial {
                // What is up may lie on the cache.
                take_down::clean_up(platform, uuid, None)?;
            }
            Ok(())
        });
        match ready {
            Ok(()) => bring_up(uuid, set, metadata, cache, unlock, opened, claim).map(|started| started.map(Some)),
            Err(error) => Step::Done(Err(opened.run(platform, error))),
        }
    })
}

/// Opens the containers of a pool's devices and reads their contents. A container that cannot be
/// opened does no harm if the other devices say that it does not belong to the pool.
fn open_devices(engine: &Engine, set: &mut DeviceSet, unlock: &Unlock, undo: &mut Rollback) -> Result<()> {
    if matches!(set.verdict(), Verdict::Clash(..)) {
        // It is unknown which container to open.
        return Ok(());
    }
    let closed: Vec<LuksDevice> = set.closed().cloned().collect();
    let mut failed = None;
    for luks_device in closed {
        let opened =
            luks_device.open(engine.platform(), unlock, undo).and_then(|device| discover::read(engine, device));
        match opened {
            Ok(found) => found.into_iter().for_each(|found| set.add(Seen::Area(found))),
            Err(error) => failed = failed.or(Some((luks_device.device.path, error))),
        }
    }
    match failed {
        Some((path, error)) if matches!(set.verdict(), Verdict::Complete(_)) => {
            log::warn!("{} is not opened, and the pool does not need it: {}", path.display(), error.sentence());
            Ok(())
        }
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Reads the devices again: much may have happened to them since the pool was stopped. If a device
/// cannot be read, it is removed from the set, and the error is returned. Each device is tried
/// twice, because a cache may be given up for lack of its devices.
pub(super) fn renew(engine: &Engine, uuid: PoolUuid, set: &mut DeviceSet) -> Option<Error> {
    let mut seen = Vec::new();
    let mut unread = None;
    for known in set.all() {
        let path = &known.device().path;
        match reread(engine, &known).or_else(|_| reread(engine, &known)) {
            Ok(now) if now.is_empty() => log::warn!("{} is not a device of the pool any more", path.display()),
            Ok(now) => seen.extend(now),
            Err(error) => {
                log::warn!("{} could not be read: {}", path.display(), error.sentence());
                unread = unread.or(Some(error));
            }
        }
    }
    set.renew(seen);
    discover::settle_set(engine.platform(), uuid, set);
    unread
}

/// Reads what is at the node of a device now, if the node still belongs to that device; for an open
/// container, also its contents.
fn reread(engine: &Engine, known: &Seen) -> Result<Vec<Seen>> {
    let platform = engine.platform();
    let device = match platform.find_device(&known.device().path) {
        Err(platform::Error::NoDevice { .. }) => return Ok(Vec::new()),
        device => device?,
    };
    let mut now: Vec<Seen> = match known {
        Seen::Area(_) => discover::read(engine, device)?.map(Seen::Area).into_iter().collect(),
        Seen::Container(_) => LuksDevice::read(platform, &device)?.map(Seen::Container).into_iter().collect(),
    };
    now.retain(|now| (now.pool(), now.id()) == (known.pool(), known.id()));
    if let Some(Seen::Container(luks_device)) = now.first() {
        if let Some(opened) = luks_device.opened(platform)? {
            now.extend(discover::read(engine, opened)?.map(Seen::Area));
        }
    }
    Ok(now)
}

/// The metadata of a pool that may be set up. Devices of a cache that is to be dropped may be
/// missing.
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

/// Claims the pool's name, makes sure that no running pool has it, and sets the pool up. `claim` is
/// the claim on the pool.
///
/// # Errors
/// The pool then does not run. Whether some of it is up has been noted.
pub(super) fn bring_up(
    uuid: PoolUuid,
    set: DeviceSet,
    metadata: Arc<PoolMetadata>,
    cache: CacheTier,
    unlock: Unlock,
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
        Step::locked(Access::Pool(PoolRef::Name(name.clone()), Mode::Shared), move |_, granted| {
            let taken = matches!(granted, Granted::Read(_));
            // A device of the pool may not answer, for hours or for ever, and must not keep others
            // from a worker.
            Step::background(move |engine| {
                if taken {
                    let refused = not_up(engine, uuid, opened.run(engine.platform(), Error::NameRuns(name.clone())));
                    return refused.then(move |refused| unless_free(name, refused));
                }
                engine.registry().note_being_set_up(uuid);
                let platform = engine.platform();
                match setup::lay_foundation(platform, uuid, &set, (*metadata).clone(), cache, Some(&unlock), opened) {
                    Ok(foundation) => foundation.build().then(move |built| {
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

/// Looks again at a name for which a pool was refused: the pool that had the name may have gone
/// before the refusal was noted.
fn unless_free<T: Send + 'static>(name: Name, refused: T) -> Step<T> {
    Step::locked(Access::Pool(PoolRef::Name(name.clone()), Mode::Shared), move |engine, granted| {
        if matches!(granted, Granted::NoPool) {
            discover::consider_named(engine, &name);
        }
        Step::Done(refused)
    })
}

fn not_up(engine: &Engine, uuid: PoolUuid, error: Error) -> Step<Result<Started>> {
    let partial = take_down::partly_up(engine.platform(), uuid);
    engine.registry().note_down(uuid, partial, Some(&error));
    Step::Done(Err(error))
}

/// Inserts a pool that has been set up into the table, where it replaces what was known of it as a
/// stopped pool.
fn show(engine: &Engine, pool: Pool, claim: Claim, name_claim: Claim) -> Step<Result<Started>> {
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
        Step::blocking(move |engine| {
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

/// Forgets what is known of pools and reads everything again. Running pools are read from their
/// devices, and what is up of them is adopted; then all other devices are read, as at the start. A
/// running pool that cannot be read goes on as it is, and the error says so.
pub fn refresh() -> Step<Result<()>> {
    Step::locked(Access::Table(Mode::Shared), |_, granted| {
        let Granted::Table(table) = granted else { return Step::Done(Ok(())) };
        let running: Vec<PoolUuid> = table.list().into_iter().map(|(uuid, _)| uuid).collect();
        one_by_one(running, refresh_pool).then(|refreshed| {
            Step::blocking(move |engine| match discover(engine) {
                Ok(chains) => one_by_one(chains, |chain| chain.map(Ok)).map(move |_| refreshed),
                Err(error) => Step::Done(refreshed.and(Err(error))),
            })
        })
    })
}

/// Runs a chain for each item, whether or not the others fail. Returns the first error.
fn one_by_one<T: Send + 'static>(mut items: Vec<T>, each: fn(T) -> Step<Result<()>>) -> Step<Result<()>> {
    match items.pop() {
        None => Step::Done(Ok(())),
        Some(item) => each(item)
            .then(move |result| Step::brief(move |_| one_by_one(items, each).map(move |others| result.and(others)))),
    }
}

fn refresh_pool(uuid: PoolUuid) -> Step<Result<()>> {
    // If the record is ahead of the opened container, the container's volume key is needed, and no
    // key is derived while the pool is locked.
    super::encryption::load_by_keyring(uuid).then(move |()| refresh_undisturbed(uuid))
}

fn refresh_undisturbed(uuid: PoolUuid) -> Step<Result<()>> {
    Step::brief(move |engine| match engine.claims().claim([Key::Drain(uuid)]) {
        Ok(drain) => refresh_drained(uuid, drain).then(move |refreshed| {
            let checked = super::check_pool(uuid).then(move |()| super::check_filesystems(uuid));
            checked.map(|()| refreshed)
        }),
        Err(taken) => Step::parked(taken, refresh_undisturbed(uuid)),
    })
}

/// Reads a pool again when no work is under way in it; reading would take that work for left over.
fn refresh_drained(uuid: PoolUuid, drain: Claim) -> Step<Result<()>> {
    Step::alone(uuid, move |engine, granted| {
        // The pool has ended meanwhile.
        let Ok(pool) = super::writable(granted, uuid) else { return Step::Done(Ok(())) };
        if engine.claims().work_in(uuid) {
            return Step::parked(Wait::Idle(uuid), refresh_drained(uuid, drain));
        }
        let refreshed = adopt(engine, pool);
        if pool.lacks_volume_key() {
            engine.begin(format!("volume key of pool {uuid}"), super::encryption::load_volume_key(uuid));
        }
        if pool.work.is_some() {
            // A re-encryption job that is under way goes on by itself, but it may have been halted.
            engine.begin(format!("work on the data of pool {uuid}"), super::online::resume(uuid));
        }
        drop(drain);
        match refreshed {
            Ok(links) => super::when_linked(links, Ok(())),
            Err(error) => Step::Done(Err(error)),
        }
    })
}

/// Reads a running pool from its devices and adopts what is up of it.
fn adopt(engine: &Engine, pool: &mut Pool) -> Result<Option<Box<dyn PendingLinks>>> {
    let platform = engine.platform();
    let uuid = pool.uuid();
    let mut set = DeviceSet::of(pool, false);
    let unread = renew(engine, uuid, &mut set);
    let adopted = admissible(uuid, &set, CacheTier::Keep)
        .map_err(|error| unread.unwrap_or(error))
        .and_then(|metadata| {
            let opened = Rollback::new();
            setup::lay_foundation(platform, uuid, &set, (*metadata).clone(), CacheTier::Keep, None, opened)
        })
        .and_then(|foundation| foundation.build_now(platform));
    match adopted {
        Ok(fresh) => {
            pool.become_as_read(fresh);
            engine.registry().note_running(uuid, pool.nodes());
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
