//! Destroys and renames pools (`docs/spec/engine/storage-stack.md` §10.2, `engine-behaviour.md`
//! §9).
//!
//! The write of `destroying` decides a destruction. Only then are the layers below the thin pool
//! taken down, because a crypt device could not be brought up again without a key. A device is
//! wiped once no layer lies on it any more.

use crate::{
    base::{
        ids::{FsUuid, PoolUuid},
        name::Name,
        pool_ref::PoolRef,
    },
    engine::{
        Engine,
        bda::Choose,
        claims::{Claim, Key},
        error::{Error, Result},
        luks_devices::volume_keys,
        ops::{
            bring_up::consider_named,
            links::{announce, when_linked},
            pool_access::{drain_pool, drained, readable, write_pool},
            read_devices::{Reach, find_members},
        },
        pool::Pool,
        registry::DeviceSet,
        request::{Access, Granted, Mode, Step},
        setup::{self, DeviceToWipe},
        take_down,
    },
    platform::{PendingLinks, Platform, Timestamp},
    view::Availability,
};

/// Destroys a pool that has no filesystems. `false`: no such pool is running.
pub fn destroy_pool(uuid: PoolUuid) -> Step<Result<bool>> {
    drain_pool(uuid, drained, move |engine, pool, drain| {
        let Ok(pool) = pool else { return Step::Done(Ok(false)) };
        let destroyed = match destroy(engine, pool) {
            Ok(destroyed) => destroyed,
            Err(error) => {
                pool.note_failure(&error);
                return Step::Done(Err(error));
            }
        };
        Step::locked(Access::Table(Mode::Exclusive), move |engine, granted| {
            if let Granted::Table(table) = granted {
                let ended = table.remove(uuid);
                let mut registry = engine.registry();
                registry.note_ended(uuid);
                if let Destroyed::Partly(set) = destroyed {
                    registry.add_stopped(uuid, *set);
                }
                drop(registry);
                ended.iter().for_each(|pool| consider_named(engine, pool.name()));
            }
            drop(drain);
            Step::Done(Ok(true))
        })
    })
}

/// How far a decided destruction has come.
enum Destroyed {
    /// It is complete, as far as devices could be wiped.
    Wiped,
    /// Some of the pool's devices could not be taken down. The rest is done when its devices are
    /// next looked at.
    Partly(Box<DeviceSet>),
}

fn destroy(engine: &Engine, pool: &mut Pool) -> Result<Destroyed> {
    let platform = engine.platform();
    if !pool.filesystems.is_empty() {
        let filesystems = pool.filesystems.values().map(|filesystem| filesystem.name.clone()).collect();
        return Err(Error::HasFilesystems { pool: pool.name().clone(), filesystems });
    }
    if pool.filesystems.failed().len() > 0 {
        // These filesystems may hold all data that their user has, and the next set-up may bring
        // them back.
        let filesystems = pool.filesystems.failed().map(|record| record.name.clone()).collect();
        return Err(Error::HasFailedFilesystems { pool: pool.name().clone(), filesystems });
    }
    let uuid = pool.uuid();
    if pool.meta().destroying.is_none() && find_members(engine, pool) == Reach::None {
        return Err(Error::DevicesGone { pool: pool.name().clone() });
    }
    // As for a stop: devices that only a key can bring up again stay up until the commit point.
    let decided = take_down::take_filesystems_down(platform, uuid)
        .and_then(|()| take_down::take_thin_pool_down(platform, &mut pool.stack))
        .and_then(|()| match pool.meta().destroying {
            // A request that has panicked since has decided the destruction; the pool's LUKS
            // devices may be closed.
            Some(_) => Ok(()),
            // A daemon that does not know this key finds a stopped pool. If a user starts the pool
            // there, the start is recorded, and the destruction is void.
            None => pool.change(platform, Choose::Everywhere, |meta| {
                meta.destroying = Some(Timestamp::default());
                meta.started = Some(false);
                Ok(())
            }),
        });
    if let Err(cause) = decided {
        return Err(setup::back_up_after(platform, pool, cause));
    }
    pool.set_gone(true);
    let mut take_down = || take_down::take_backstore_down(platform, &mut pool.stack, uuid);
    if let Err(error) = take_down().or_else(|_| take_down()) {
        let (name, what) = (pool.name(), error.sentence());
        log::error!("pool {name} is destroyed, but some of its devices could not be taken down or wiped yet: {what}");
        let mut set = DeviceSet::of(pool, false);
        set.partial = true;
        return Ok(Destroyed::Partly(Box::new(set)));
    }
    // The destruction is decided and recorded. A device that cannot be wiped now is wiped when the
    // daemon next sees it.
    let devices = pool.meta().device_entries().filter_map(|(_, entry)| {
        let member = pool.members.get(entry.uuid)?;
        let (parts, stamp) = (pool.meta().luks_device_on(entry.uuid), member.bda.last_update());
        Some(DeviceToWipe { path: &member.device.path, luks_device: member.luks_device.as_ref(), parts, stamp })
    });
    setup::wipe_destroyed(platform, devices);
    volume_keys::forget(platform, uuid);
    Ok(Destroyed::Wiped)
}

/// Renames a pool. `false`: the pool already has that name.
pub fn rename_pool(uuid: PoolUuid, name: Name) -> Step<Result<bool>> {
    Step::brief(move |engine| {
        let claim = match engine.claims().claim_work(uuid, [Key::PoolName(name.clone()), Key::Rename(uuid)]) {
            Ok(claim) => claim,
            Err(taken) => return Step::parked(taken, rename_pool(uuid, name)),
        };
        let which = PoolRef::Name(name.clone());
        Step::read(which, move |_, granted| match granted {
            Granted::Read(other) if other.uuid() != uuid => Step::Done(Err(Error::PoolNameTaken(name))),
            _ => rename_claimed(uuid, name, claim),
        })
    })
}

/// Records the name of a pool, also in the headers of its LUKS devices: while these are closed,
/// they are identified by that name.
fn record_name(platform: &dyn Platform, pool: &mut Pool, name: &Name) -> Result<()> {
    let former = pool.meta().name.clone();
    let named = |pool: &mut Pool, name: &str| -> Result<()> {
        pool.members.luks_devices_mut().try_for_each(|luks_device| luks_device.rename(platform, name))
    };
    let recorded = named(pool, name.as_str()).and_then(|()| {
        pool.change(platform, Choose::Some(platform.random()), |meta| {
            meta.name = name.as_str().to_owned();
            Ok(())
        })
    });
    recorded.map_err(|cause| match named(pool, &former) {
        Ok(()) => cause,
        Err(error) => Error::Rollback {
            cause: Box::new(cause),
            failures: vec![("put the former name into the headers again".to_owned(), error)],
            leaves: Availability::NoRequests,
        },
    })
}

fn rename_claimed(uuid: PoolUuid, name: Name, claim: Claim) -> Step<Result<bool>> {
    write_pool(uuid, move |engine, pool| {
        if pool.recorded_name() == name {
            return Step::Done(Ok(false));
        }
        // The headers of LUKS devices hold the name, too, and other requests may be changing these
        // headers.
        let mut headers = None;
        if pool.luks_devices().next().is_some() {
            if let Err(error) = pool.check_no_job() {
                return Step::Done(Err(error));
            }
            headers = match engine.claims().claim([Key::Encryption(uuid)]) {
                Ok(headers) => Some(headers),
                Err(taken) => return Step::parked(taken, rename_claimed(uuid, name, claim)),
            };
        }
        let recorded = pool.check_changes().and_then(|()| record_name(engine.platform(), pool, &name));
        drop(headers);
        if let Err(error) = recorded {
            pool.note_failure(&error);
            return Step::Done(Err(error));
        }
        Step::locked(Access::Table(Mode::Exclusive), move |engine, granted| {
            let Granted::Table(table) = granted else { return Step::Done(Err(Error::NoPool(uuid))) };
            let Some(pool) = table.rename(uuid, name.clone()) else { return Step::Done(Err(Error::NoPool(uuid))) };
            let former = pool.name().clone();
            pool.set_name(name);
            drop(claim);
            consider_named(engine, &former);
            announce_all(uuid, None, Vec::new())
        })
    })
}

/// How many filesystem names are announced to udev before the pool is released. Each announcement
/// is a write to a file of the kernel.
const TOLD_AT_ONCE: usize = 256;

/// Announces to udev the names of all filesystems that come after the given one, and waits for the
/// links. Names are announced in batches under the pool's lock. With the whole table locked, all
/// pools would wait; without any lock, a name that is assigned meanwhile could be announced before
/// the former name.
fn announce_all(uuid: PoolUuid, after: Option<FsUuid>, mut links: Vec<Box<dyn PendingLinks>>) -> Step<Result<bool>> {
    Step::read(uuid, move |engine, granted| {
        let Ok(pool) = readable(granted, uuid) else { return wait_for_all(links) };
        let mut next = pool.filesystems.after(after).take(TOLD_AT_ONCE).peekable();
        if next.peek().is_none() {
            return wait_for_all(links);
        }
        let mut last = after;
        let some = next.inspect(|(uuid, _)| last = Some(**uuid)).map(|(_, filesystem)| filesystem);
        links.extend(announce(engine, pool, some));
        announce_all(uuid, last, links)
    })
}

/// Waits for links in the reverse of the order in which they were requested from udev: when the
/// last ones exist, the others do as well.
fn wait_for_all(mut links: Vec<Box<dyn PendingLinks>>) -> Step<Result<bool>> {
    match links.pop() {
        None => Step::Done(Ok(true)),
        Some(last) => when_linked(Some(last), ()).then(move |()| wait_for_all(links)),
    }
}
