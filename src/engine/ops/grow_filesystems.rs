//! The check of a pool's filesystems: those that are mounted and more than half full are extended
//! (`docs/spec/engine/storage-stack.md` §9.5).
//!
//! # Order, and why it survives a power cut
//!
//! Record, then thin device, then XFS: a size is never smaller in an earlier one of these than in a later one. An XFS that is
//! larger than its device is not mounted by any kernel, and its end is lost; an XFS that is smaller than its device, or a
//! device that was made smaller than its record says, is merely extended once more. So a step is not taken back when the
//! next one fails, not even the extension of the XFS: it may have succeeded. The exception is a size of which the kernel makes no table,
//! now or ever: the former record is written again, or the filesystem could not be set up any more.
//!
//! The pool is held for records and tables only. How full filesystems are is asked, and XFS are extended, without a
//! lock and side by side.

use std::{any::Any, collections::HashMap};

use crate::{
    base::{
        ids::{FsUuid, PoolUuid},
        pool_ref::PoolRef,
        units::{Bytes, Sectors},
    },
    engine::{
        Engine,
        claims::{Claim, Key},
        dm_names::Role,
        error::{Error, Result},
        ops::filesystems::save_record,
        plan::{
            growth::{self, Extension},
            sizes,
        },
        pool::{Filesystem, Pool},
        request::{Access, Mode, Next, Part},
        stack, thin_devices,
        thin_status::State,
        undo::Rollback,
        xfs,
    },
    platform::{self, DeviceNumber, Mount, Platform, Usage, dm::Visibility},
};

/// A mounted filesystem, looked at without a lock.
struct Seen {
    id: FsUuid,
    mount: Mount,
    usage: Usage,
}

/// Checks the filesystems of a pool; what goes wrong is logged.
pub fn check_filesystems(uuid: PoolUuid) -> Next<()> {
    check_filesystems_now(uuid).map(move |checked| {
        if let Err(error) = checked {
            log::warn!("check of the filesystems of pool {uuid}: {}", error.sentence());
        }
    })
}

/// As [`check_filesystems`], and tells what went wrong first; the other filesystems are extended all the same. Nothing is
/// done while another such check of the pool is under way: an XFS that takes its time must not heap them up.
pub fn check_filesystems_now(uuid: PoolUuid) -> Next<Result<()>> {
    Next::under(Access::Pool(PoolRef::Uuid(uuid), Mode::Shared), move |engine, granted| {
        let Ok(pool) = super::readable(granted, uuid) else { return Next::Done(Ok(())) };
        if pool.check_changes().is_err() || pool.filesystems.is_empty() || !may_grow(pool) {
            return Next::Done(Ok(()));
        }
        let Ok(claim) = engine.claims().claim([Key::Extension(uuid)]) else { return Next::Done(Ok(())) };
        let filesystems = pool.filesystems.iter().map(|(id, filesystem)| (*id, filesystem.number)).collect();
        Next::act(move |engine| match look(engine.platform(), filesystems) {
            Ok((seen, failed)) if seen.is_empty() => Next::Done(failed),
            Ok((seen, failed)) => extend(uuid, seen).map(|extended| failed.and(extended)),
            Err(error) => Next::Done(Err(error)),
        })
        .map(move |checked| {
            drop(claim);
            checked
        })
    })
}

/// A thin pool that is full, or does not work, would hold the extension up.
fn may_grow(pool: &Pool) -> bool {
    pool.thin_state().is_none_or(|state| state == State::ReadWrite)
}

/// Looks how full the mounted ones are; those that are less than half full are left out. Unmounted ones are left alone.
/// Gives also the first error of those that could not be looked at.
fn look(platform: &dyn Platform, filesystems: Vec<(FsUuid, DeviceNumber)>) -> Result<(Vec<Seen>, Result<()>)> {
    let numbers: Vec<DeviceNumber> = filesystems.iter().map(|(_, number)| *number).collect();
    let mut first: HashMap<DeviceNumber, Mount> = HashMap::new();
    for mount in platform.mounts(&numbers)? {
        first.entry(mount.number).or_insert(mount);
    }
    let (mut seen, mut failed) = (Vec::new(), Ok(()));
    for (id, number) in filesystems {
        let Some(mount) = first.remove(&number) else { continue };
        match platform.usage(&mount) {
            Ok(usage) if usage.used.0.saturating_mul(2) > usage.total.0 => seen.push(Seen { id, mount, usage }),
            Ok(_) => {}
            // It has been unmounted meanwhile. How full another file system is must not decide anything of this one.
            Err(platform::Error::OtherMount { .. }) => {}
            Err(error) => failed = failed.and(Err(error.into())),
        }
    }
    Ok((seen, failed))
}

/// An XFS that is to be extended to the size of its device.
struct Extended {
    id: FsUuid,
    mount: Mount,
    /// Its size, as the kernel told before.
    before: Bytes,
    /// By how much its device is larger.
    growth: Sectors,
    /// Keeps it from being destroyed meanwhile.
    claim: Claim,
}

/// Records the new sizes and gives them to the thin devices, then has the XFS on them extended.
fn extend(uuid: PoolUuid, seen: Vec<Seen>) -> Next<Result<()>> {
    Next::write(uuid, move |engine, granted| {
        let Ok(pool) = super::writable(granted, uuid) else { return Next::Done(Ok(())) };
        // Whoever wants the pool for himself is not kept waiting; there will be another check.
        if pool.check_changes().is_err() || !may_grow(pool) || engine.claims().is_claimed(&Key::Drain(uuid)) {
            return Next::Done(Ok(()));
        }
        let (mut extended, mut failed) = (Vec::new(), Ok(()));
        let sector = match pool.sector_size(engine.platform()) {
            Ok(sector) => sector,
            Err(error) => return Next::Done(Err(error)),
        };
        for (seen, extension) in plan(pool, seen, sector) {
            if extension == Extension::None {
                continue;
            }
            let Ok(claim) = engine.claims().claim([Key::Origin(uuid, seen.id)]) else { continue };
            match extend_device(engine, pool, seen.id, extension) {
                Ok(()) => {
                    let Seen { id, mount, usage: Usage { total: before, .. } } = seen;
                    let growth = match extension {
                        Extension::By(growth) => growth,
                        // A quarter of the device at least.
                        Extension::None | Extension::Complete => Sectors(u64::MAX),
                    };
                    extended.push(Extended { id, mount, before, growth, claim });
                }
                Err(error) => {
                    pool.note_failure(&error);
                    log::warn!("filesystem {} of pool {} was not extended: {}", seen.id, pool.name(), error.sentence());
                    failed = failed.and(Err(error));
                }
            }
        }
        if extended.is_empty() { Next::Done(failed) } else { grow_xfs(uuid, extended).map(|grown| failed.and(grown)) }
    })
}

/// What is to be done with those that are still there.
fn plan(pool: &Pool, seen: Vec<Seen>, sector: Sectors) -> Vec<(Seen, Extension)> {
    let facts = |seen: Seen| {
        let record = &pool.filesystems.get(&seen.id)?.record;
        let Usage { total, used } = seen.usage;
        Some((seen, growth::Filesystem { size: record.size, limit: record.fs_size_limit, total, used }))
    };
    let (seen, facts): (Vec<Seen>, Vec<growth::Filesystem>) = seen.into_iter().filter_map(facts).unzip();
    let room = (!pool.overprovisioning()).then(|| pool.room().saturating_sub(pool.filesystems_size()));
    seen.into_iter().zip(growth::filesystems(&facts, room, sector)).collect()
}

fn extend_device(engine: &Engine, pool: &mut Pool, id: FsUuid, extension: Extension) -> Result<()> {
    let platform = engine.platform();
    let former = pool.filesystem(id)?.clone();
    let mut filesystem = former.clone();
    if let Extension::By(growth) = extension {
        filesystem.record.size = filesystem.record.size.checked_add(growth).unwrap_or(filesystem.record.size);
        save_record(engine, pool, &filesystem.record)?;
        let size = filesystem.record.size.readable();
        log::info!("filesystem {} of pool {} grows to {size}", filesystem.name, pool.name());
        pool.put_filesystem(platform, filesystem.clone());
    }
    let thin_pool = pool.stack.number(Role::ThinPool).ok_or(Error::NoPool(pool.uuid()))?;
    let table = thin_devices::thin_table(thin_pool, filesystem.record.thin_id, filesystem.record.size);
    let mut nothing_to_undo = Rollback::new();
    let extended =
        stack::ensure_device(platform, &pool.thin_name(id), &table, Visibility::Public, &mut nothing_to_undo);
    nothing_to_undo.forget();
    match extended {
        Err(refused) if refused.is_refusal() => Err(take_back(engine, pool, former, refused)),
        extended => extended.map(drop),
    }
}

/// Writes the record of a filesystem again that its device still has the size of, because the kernel refuses another. Gives
/// the error to be told.
fn take_back(engine: &Engine, pool: &mut Pool, former: Filesystem, refused: Error) -> Error {
    let platform = engine.platform();
    let size = platform.dm_find(&pool.thin_name(former.record.uuid)).ok().flatten().map(|device| device.size());
    let recorded = pool.filesystem(former.record.uuid).map(|filesystem| filesystem.record.size);
    let is_ahead = size.is_some_and(|size| size <= former.record.size) && recorded.ok() != Some(former.record.size);
    if !is_ahead {
        return refused;
    }
    match save_record(engine, pool, &former.record) {
        Ok(()) => {
            pool.put_filesystem(platform, former);
            refused
        }
        // The next set-up corrects it.
        Err(error) => {
            log::error!("cannot record the size that filesystem {} has: {}", former.name, error.sentence());
            refused
        }
    }
}

/// Extends XFS to the size of their devices, side by side, the pool released meanwhile.
fn grow_xfs(uuid: PoolUuid, extended: Vec<Extended>) -> Next<Result<()>> {
    let part = |extended: &Extended| -> Part {
        let (mount, before, growth) = (extended.mount.clone(), extended.before, extended.growth);
        Box::new(move |engine| Box::new(xfs::extend(engine.platform(), &mount, before, growth)) as Box<dyn Any + Send>)
    };
    let parts = extended.iter().map(part).collect();
    Next::Together(
        parts,
        Box::new(move |_, results| {
            let (mut failed, mut grown) = (Ok(()), Vec::new());
            for (Extended { id, claim, .. }, result) in extended.into_iter().zip(results) {
                let result = match result.map(|any| any.downcast::<Result<()>>()) {
                    Some(Ok(result)) => *result,
                    _ => Err(Error::Panicked),
                };
                // Its device has the new size; the next check tries again.
                if let Err(error) = result {
                    log::warn!("the XFS of filesystem {id} of pool {uuid} was not extended: {}", error.sentence());
                    failed = failed.and(Err(error));
                }
                grown.push((id, claim));
            }
            show_use(uuid, grown).map(move |()| failed)
        }),
    )
}

/// Shows what the extension of XFS has written: each has more allocation groups, and each group a header.
fn show_use(uuid: PoolUuid, grown: Vec<(FsUuid, Claim)>) -> Next<()> {
    Next::write(uuid, move |engine, granted| {
        if let Ok(pool) = super::writable(granted, uuid) {
            pool.refresh_filesystems(engine.platform(), grown.iter().map(|(id, _)| *id));
            pool.refresh_thin_pool(engine.platform(), None);
        }
        drop(grown);
        Next::Done(())
    })
}

/// Sets or removes a filesystem's size limit. `false`: that is what it has.
pub fn set_size_limit(uuid: PoolUuid, id: FsUuid, limit: Option<Sectors>) -> Next<Result<bool>> {
    super::change(uuid, move |engine, pool| change_size_limit(engine, pool, id, limit))
}

fn change_size_limit(engine: &Engine, pool: &mut Pool, id: FsUuid, limit: Option<Sectors>) -> Result<bool> {
    pool.check_requests()?;
    let mut filesystem = pool.filesystem(id)?.clone();
    if filesystem.record.fs_size_limit == limit {
        return Ok(false);
    }
    let sector = limit.map_or(Ok(Sectors(1)), |_| pool.sector_size(engine.platform()))?;
    sizes::check_limit(filesystem.record.size, limit, sector)
        .map_err(|source| Error::SizeLimit { name: filesystem.name.clone(), source })?;
    filesystem.record.fs_size_limit = limit;
    save_record(engine, pool, &filesystem.record)?;
    pool.put_filesystem(engine.platform(), filesystem);
    Ok(true)
}
