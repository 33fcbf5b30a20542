//! Starts stopped pools on request (`docs/spec/engine/engine-behaviour.md` §4, 9).

use crate::{
    base::{ids::PoolUuid, name::Name, pool_ref::PoolRef},
    engine::{
        Engine,
        claims::Key,
        error::{Error, Result},
        luks_devices::{device::LuksDevice, lifecycle::UnlockOptions},
        ops::{
            bring_up::{Started, admissible, bring_up, not_up},
            leftovers,
            locate::{PoolState, locate},
            read_devices::{read, renew},
        },
        registry::{DeviceSet, DeviceSetVerdict, Seen},
        request::{Granted, Share, Step},
        setup::CacheTier,
        take_down,
        undo::Rollback,
    },
};

/// Starts a pool. `None`: the pool is already running.
pub fn start_pool(which: PoolRef, unlock: UnlockOptions, cache: CacheTier) -> Step<Result<Option<Started>>> {
    locate(which).then(move |found| match found {
        Ok(PoolState::Running(uuid)) => already(uuid, unlock, cache),
        Ok(PoolState::Stopped(uuid)) => start_stopped(uuid, unlock, cache),
        Err(error) => Step::Done(Err(error)),
    })
}

fn already(uuid: PoolUuid, unlock: UnlockOptions, cache: CacheTier) -> Step<Result<Option<Started>>> {
    let which = PoolRef::Uuid(uuid);
    Step::read(which.clone(), move |_, granted| match granted {
        Granted::Read(pool) if pool.is_encrypted() => Step::Done(Ok(None)),
        Granted::Read(pool) => Step::Done(check_unneeded(&unlock, pool.name()).map(|()| None)),
        // The pool has been stopped meanwhile.
        _ => start_pool(which, unlock, cache),
    })
}

fn start_stopped(uuid: PoolUuid, unlock: UnlockOptions, cache: CacheTier) -> Step<Result<Option<Started>>> {
    Step::slow(Share::Pool(uuid), move |engine| {
        let claim = match engine.claims().claim([Key::Pool(uuid)]) {
            Ok(claim) => claim,
            // When this wait ends, the pool may be running although the registry still lists it as
            // stopped, because of an event of one of its devices.
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
                // The metadata on a device that cannot be read may say that the other devices are
                // not left over.
                if unread.is_none() {
                    leftovers::end(engine, uuid, &set)?;
                }
                admissible(uuid, &set, cache)
            })
        });
        // A device that cannot be read counts as missing; its error is the reason to report.
        let ready = ready.map_err(|error| match (error, unread) {
            (Error::DevicesMissing { .. } | Error::Unusable { .. } | Error::NoMetadata(_), Some(unread)) => unread,
            (error, _) => error,
        });
        let (metadata, opened) = match ready {
            Ok(ready) => ready,
            Err(error) => return not_up(engine, uuid, error).map(|started| started.map(Some)),
        };
        let ready = Name::new(&metadata.name).map_err(Error::from).and_then(|name| {
            check_unlock(&unlock, &name, metadata.is_encrypted() || set.luks_devices().next().is_some())?;
            if cache == CacheTier::Drop && set.partial {
                // The devices that are up may lie on the cache.
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

/// Opens the LUKS devices of a pool and reads the contents of their crypt devices. A LUKS device
/// that cannot be opened does no harm if the other devices say that it does not belong to the pool.
fn open_devices(engine: &Engine, set: &mut DeviceSet, unlock: &UnlockOptions, undo: &mut Rollback) -> Result<()> {
    if matches!(set.verdict(), DeviceSetVerdict::Clash(..)) {
        // It is unknown which LUKS device to open.
        return Ok(());
    }
    let closed: Vec<LuksDevice> = set.closed().cloned().collect();
    let mut failed = None;
    for luks_device in closed {
        let opened = luks_device.open(engine.platform(), unlock, undo).and_then(|device| read(engine, device));
        match opened {
            Ok(found) => found.into_iter().for_each(|found| set.add(Seen::Area(found))),
            Err(error) => failed = failed.or(Some((luks_device.device.path, error))),
        }
    }
    match failed {
        Some((path, error)) if matches!(set.verdict(), DeviceSetVerdict::Complete(_)) => {
            log::warn!("could not open {}, which the pool does not need: {}", path.display(), error.sentence());
            Ok(())
        }
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Refuses unlock parameters that a pool without encryption has no use for.
fn check_unneeded(unlock: &UnlockOptions, pool: &Name) -> Result<()> {
    let given = match unlock {
        UnlockOptions { method: Some(_), .. } => "the unlock method",
        UnlockOptions { passphrase: Some(_), .. } => "a passphrase",
        _ => return Ok(()),
    };
    Err(Error::NotEncrypted { pool: pool.clone(), given })
}

fn check_unlock(unlock: &UnlockOptions, pool: &Name, encrypted: bool) -> Result<()> {
    match (encrypted, unlock.method) {
        (false, _) => check_unneeded(unlock, pool),
        (true, None) => Err(Error::NoUnlockMethod { pool: pool.clone() }),
        (true, Some(_)) => Ok(()),
    }
}
