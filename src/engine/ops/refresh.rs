//! Forgets what is known of pools and reads everything again (`docs/spec/engine/engine-behaviour.md`
//! §8).

use crate::{
    base::ids::PoolUuid,
    engine::{
        Engine,
        dm_names::Role,
        error::Result,
        mdv::Mdv,
        ops::{
            bring_up::admissible,
            discover::discover,
            links::{announce, when_linked},
            pool_access::{drain_pool, writable},
            read_devices::renew,
        },
        pool::Pool,
        registry::DeviceSet,
        request::{Access, Granted, Mode, Step},
        setup::{self, CacheTier},
        undo::Rollback,
    },
    platform::PendingLinks,
    view::Availability,
};

/// Forgets what is known about pools and reads everything again. Running pools are read from their
/// devices, and those of their device-mapper devices that are up are adopted; then all other
/// devices are read, as at the start of the daemon. A running pool that cannot be read continues as
/// it is, and the error says so.
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

/// Runs a chain for each item, even if earlier ones fail. Returns the first error.
fn one_by_one<T: Send + 'static>(mut items: Vec<T>, each: fn(T) -> Step<Result<()>>) -> Step<Result<()>> {
    match items.pop() {
        None => Step::Done(Ok(())),
        Some(item) => each(item)
            .then(move |result| Step::brief(move |_| one_by_one(items, each).map(move |others| result.and(others)))),
    }
}

fn refresh_pool(uuid: PoolUuid) -> Step<Result<()>> {
    // If the recorded size is ahead of the crypt device, the volume key is needed to extend the
    // crypt device, and no key is derived while the pool is locked.
    super::encryption::load_by_keyring(uuid).then(move |()| refresh_undisturbed(uuid))
}

/// Reads a pool again when no work is under way in it; during such work, its unfinished devices
/// would be taken for left over.
fn refresh_undisturbed(uuid: PoolUuid) -> Step<Result<()>> {
    let refreshed = drain_pool(uuid, writable, move |engine, pool, drain| {
        // The pool has ended meanwhile.
        let Ok(pool) = pool else { return Step::Done(Ok(())) };
        let refreshed = adopt(engine, pool);
        if pool.lacks_volume_key() {
            engine.begin(format!("volume key of pool {uuid}"), super::encryption::load_volume_key(uuid));
        }
        if pool.job().is_some() {
            // A re-encryption job that is under way continues by itself, but it may have been
            // halted.
            engine.begin(format!("re-encryption job of pool {uuid}"), super::reencryption_job::resume(uuid));
        }
        drop(drain);
        match refreshed {
            Ok(links) => when_linked(links, Ok(())),
            Err(error) => Step::Done(Err(error)),
        }
    });
    refreshed.then(move |refreshed| {
        let checked = super::check_pool(uuid).then(move |()| super::check_filesystems(uuid));
        checked.map(|()| refreshed)
    })
}

/// Reads a running pool from its devices and adopts those of its device-mapper devices that are up.
fn adopt(engine: &Engine, pool: &mut Pool) -> Result<Option<Box<dyn PendingLinks>>> {
    let platform = engine.platform();
    let uuid = pool.uuid();
    let mut set = DeviceSet::of(pool, false);
    let unread = renew(engine, uuid, &mut set);
    let adopted = admissible(uuid, &set, CacheTier::Keep)
        .map_err(|error| unread.unwrap_or(error))
        .and_then(|metadata| {
            let opened = Rollback::new();
            setup::assemble(platform, uuid, &set, (*metadata).clone(), CacheTier::Keep, None, opened)
        })
        .and_then(|assembly| assembly.build_now(platform));
    match adopted {
        Ok(fresh) => {
            pool.become_as_read(fresh);
            engine.registry().note_running(uuid, pool.members.nodes());
            Ok(announce(engine, pool, pool.filesystems.values()))
        }
        Err(cause) => {
            // The failed set-up may have unmounted the metadata volume.
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
