//! Stops pools (`docs/spec/engine/engine-behaviour.md` §4, 9, `storage-stack.md` §10.3).
//!
//! The write of `started: false` is the commit point of a stop. The steps before it are taken back
//! if one of them fails, and a power cut undoes them. The steps after it are only the rest of the
//! take-down. If that fails, the pool is *partially constructed*: it does not run, and some of its
//! device-mapper devices are up. Such a pool can be stopped again, which takes the rest down, or
//! started, which adopts the devices.

use crate::{
    base::{ids::PoolUuid, name::Name, pool_ref::PoolRef},
    engine::{
        Engine,
        bda::Choose,
        claims::Key,
        error::{Error, Result},
        luks_devices::volume_keys,
        ops::{
            bring_up::consider_named,
            filesystems, leftovers,
            links::{announce, when_linked},
            locate::{PoolState, locate},
            pool_access::{drain_pool, drained},
            read_devices::{Reach, find_members, renew, reread, settle_set},
        },
        pool::Pool,
        registry::{DeviceSet, DeviceSetVerdict},
        request::{Access, Granted, Mode, Share, Step},
        setup, take_down,
    },
    platform::{self, Platform},
};

/// The result of a stop.
#[derive(Debug)]
pub enum StopOutcome {
    /// The pool ran and has been stopped.
    Done(PoolUuid),
    /// The pool did not run. The leftovers of its last start have been removed: devices, or the
    /// reason of its failure.
    CleanedUp(PoolUuid),
    /// The pool did not run, and nothing was left of an earlier start.
    Already,
    /// The pool has been stopped, but some of its devices could not be taken down, because of this
    /// error.
    Partly(PoolUuid, Error),
}

/// Stops a pool. The pool stays stopped until a request starts it.
pub fn stop_pool(which: PoolRef) -> Step<Result<StopOutcome>> {
    locate(which).then(|found| match found {
        Ok(PoolState::Running(uuid)) => stop_running(uuid),
        Ok(PoolState::Stopped(uuid)) => clean_up(uuid),
        Err(error) => Step::Done(Err(error)),
    })
}

fn stop_running(uuid: PoolUuid) -> Step<Result<StopOutcome>> {
    drain_pool(uuid, drained, move |engine, pool, drain| {
        let Ok(pool) = pool else {
            drop(drain);
            return stop_pool(PoolRef::Uuid(uuid));
        };
        match stop(engine, pool) {
            Ok(left_up) => {
                let mut set = DeviceSet::of(pool, left_up.is_none());
                if left_up.is_none() {
                    forget_gone(engine, uuid, &mut set);
                }
                let beside = engine.registry().beside(uuid);
                set.absorb(beside.unwrap_or_default());
                settle_set(engine.platform(), uuid, &mut set);
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
                    ended.iter().for_each(|pool| consider_named(engine, pool.name()));
                    log::info!("pool {uuid} is stopped");
                    Step::Done(Ok(match left_up {
                        Some(error) if partial => StopOutcome::Partly(uuid, error),
                        _ => StopOutcome::Done(uuid),
                    }))
                })
            }
            Err(error) => {
                pool.note_failure(&error);
                // Filesystems that were taken down and brought up again have other device numbers.
                let links = announce(engine, pool, pool.filesystems.values());
                when_linked(links, Err(error))
            }
        }
    })
}

/// Refuses if a filesystem is mounted, before any device is taken down. That includes a filesystem
/// that could not be set up because its device was not in the expected state.
fn check_unmounted(platform: &dyn Platform, pool: &Pool) -> Result<()> {
    let set_up = pool.filesystems.values().map(|filesystem| (filesystem.name.clone(), filesystem.number));
    let failed = pool.filesystems.failed().filter_map(|record| {
        // The take-down itself notices what this lookup cannot find out.
        let device = platform.dm_find(&pool.thin_name(record.uuid)).ok()??;
        Some((Name::new(&record.name).ok()?, device.number))
    });
    filesystems::check_unmounted(platform, set_up.chain(failed))
}

/// Takes a pool down and records that it is stopped. Returns the error that left a device up, if
/// any.
///
/// # Errors
/// When a step fails before the record is written; the pool then runs as before.
fn stop(engine: &Engine, pool: &mut Pool) -> Result<Option<Error>> {
    let platform = engine.platform();
    let uuid = pool.uuid();
    check_unmounted(platform, pool)?;
    let was_decided = pool.meta().started == Some(false);
    let reach = match was_decided {
        // A request that has panicked since has decided the stop; the pool's LUKS devices may be
        // closed.
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
        // Layers cannot be brought up again on devices that are gone; the pool can be stopped once
        // more.
        Err(cause) if reach == Reach::None => return Err(cause),
        Err(cause) => return Err(setup::back_up_after(platform, pool, cause)),
        Ok(()) => {}
    }
    if reach == Reach::None {
        engine.registry().note_unrecorded_stop(uuid);
        log::warn!(
            "pool {} is stopped, but its devices are gone, so the stop is recorded when they are back",
            pool.name()
        );
    }
    pool.set_gone(true);
    let mut take_down = || {
        take_down::take_backstore_down(platform, &mut pool.stack, uuid)?;
        pool.members.close_luks_devices(platform)
    };
    // A single failure is no reason to leave a device up.
    let left_up = take_down().or_else(|_| take_down()).err();
    volume_keys::forget(platform, uuid);
    if let Some(error) = &left_up {
        log::error!(
            "pool {} is stopped, but some of its devices could not be taken down: {}",
            pool.name(),
            error.sentence()
        );
    }
    Ok(left_up)
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

/// Takes down all device-mapper devices of a pool that does not run.
fn clean_up(uuid: PoolUuid) -> Step<Result<StopOutcome>> {
    Step::slow(Share::Pool(uuid), move |engine| {
        let which = PoolRef::Uuid(uuid);
        let claim = match engine.claims().claim([Key::Pool(uuid)]) {
            Ok(claim) => claim,
            // The pool may run when this wait ends.
            Err(taken) => return Step::parked(taken, stop_pool(which)),
        };
        let platform = engine.platform();
        // The registry may be out of date: a start that panicked has not updated it.
        let partial =
            engine.registry().get(uuid).map(|set| set.partial || take_down::anything_up(platform, uuid, &set));
        match partial {
            // The pool has started meanwhile.
            None => {
                drop(claim);
                stop_pool(which)
            }
            // A failed start leaves no device up, only the reason of its failure. Removing the
            // reason counts as a change: blivet stops a pool after a wrong passphrase, and takes
            // "no change" for an error.
            Some(false) if engine.registry().forget_trouble(uuid) => Step::Done(Ok(StopOutcome::CleanedUp(uuid))),
            Some(false) => Step::Done(Ok(StopOutcome::Already)),
            Some(true) => {
                let mut set = engine.registry().get(uuid);
                let destroyed = set.as_mut().filter(|set| matches!(set.verdict(), DeviceSetVerdict::Destroying(_)));
                if let Some(set) = destroyed {
                    // The devices that were still up have kept the pool from being wiped.
                    let ended =
                        renew(engine, uuid, set).map_or(Ok(()), Err).and_then(|()| leftovers::end(engine, uuid, set));
                    if engine.registry().get(uuid).is_none() {
                        return Step::Done(Ok(StopOutcome::CleanedUp(uuid)));
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
                Step::Done(cleaned.map(|()| StopOutcome::CleanedUp(uuid)))
            }
        }
    })
}
