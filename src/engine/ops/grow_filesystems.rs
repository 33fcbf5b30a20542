//! The check of a pool's filesystems: those that are mounted and more than half full are extended
//! (`docs/spec/engine/storage-stack.md` §9.5).
//!
//! # Order, and why it survives a power cut
//!
//! The record is changed first, then the thin device, then the XFS. So the recorded size is never
//! smaller than the device, and the device is never smaller than the XFS. No kernel mounts an XFS
//! that is larger than its device, and the end of that XFS is lost. In the other direction there is
//! no damage: an XFS smaller than its device, or a device smaller than its record says, is simply
//! extended again. So no step is taken back when the next one fails. That holds for the extension
//! of the XFS too, which may have succeeded despite the error. The exception is a size whose table
//! the kernel refuses for good: the former record is written again, because otherwise the
//! filesystem could no longer be set up.
//!
//! The pool is locked only for records and tables. The usage of the filesystems is read, and XFS is
//! extended, without a lock and side by side.

use std::{any::Any, collections::HashMap};

use crate::{
    base::{
        ids::{FsUuid, PoolUuid},
        units::{Bytes, Sectors},
    },
    engine::{
        Engine,
        claims::{Claim, Key},
        dm_names::Role,
        error::{Error, Result},
        ops::{
            filesystems::save_record,
            pool_access::{change, readable, writable},
        },
        plan::{
            growth::{self, Extension},
            sizes,
        },
        pool::{Filesystem, Pool},
        request::{Part, Step},
        stack, thin_devices,
        thin_status::State,
        undo::Rollback,
        xfs,
    },
    platform::{self, DeviceNumber, Mount, Platform, Usage, dm::Visibility},
};

/// A mounted filesystem, as read without a lock.
struct MountedFilesystem {
    id: FsUuid,
    mount: Mount,
    usage: Usage,
}

/// Checks the filesystems of a pool; errors are logged.
pub fn check_filesystems(uuid: PoolUuid) -> Step<()> {
    check_filesystems_now(uuid).map(move |checked| {
        if let Err(error) = checked {
            log::warn!("could not check the filesystems of pool {uuid}: {}", error.sentence());
        }
    })
}

/// As [`check_filesystems`], but returns the first error; the other filesystems are extended all
/// the same. Does nothing while another such check of the pool is under way: checks must not pile
/// up behind a slow XFS.
pub fn check_filesystems_now(uuid: PoolUuid) -> Step<Result<()>> {
    Step::read(uuid, move |engine, granted| {
        let Ok(pool) = readable(granted, uuid) else { return Step::Done(Ok(())) };
        if pool.check_changes().is_err() || pool.filesystems.is_empty() || !may_grow(pool) {
            return Step::Done(Ok(()));
        }
        let Ok(claim) = engine.claims().claim([Key::Extension(uuid)]) else { return Step::Done(Ok(())) };
        let filesystems = pool.filesystems.iter().map(|(id, filesystem)| (*id, filesystem.number)).collect();
        Step::blocking(move |engine| match look(engine.platform(), filesystems) {
            Ok((seen, failed)) if seen.is_empty() => Step::Done(failed),
            Ok((seen, failed)) => extend(uuid, seen).map(|extended| failed.and(extended)),
            Err(error) => Step::Done(Err(error)),
        })
        .map(move |checked| {
            drop(claim);
            checked
        })
    })
}

/// Whether filesystems may be extended: a thin pool that is full or does not work would block the
/// extension.
fn may_grow(pool: &Pool) -> bool {
    pool.growth.thin_state().is_none_or(|state| state == State::ReadWrite)
}

/// Reads how full the mounted filesystems are, and returns those that are at least half full.
/// Unmounted filesystems are left alone. Also returns the first error of those that could not be
/// read.
fn look(
    platform: &dyn Platform,
    filesystems: Vec<(FsUuid, DeviceNumber)>,
) -> Result<(Vec<MountedFilesystem>, Result<()>)> {
    let numbers: Vec<DeviceNumber> = filesystems.iter().map(|(_, number)| *number).collect();
    let mut first: HashMap<DeviceNumber, Mount> = HashMap::new();
    for mount in platform.mounts(&numbers)? {
        first.entry(mount.number).or_insert(mount);
    }
    let (mut seen, mut failed) = (Vec::new(), Ok(()));
    for (id, number) in filesystems {
        let Some(mount) = first.remove(&number) else { continue };
        match platform.usage(&mount) {
            Ok(usage) if usage.used.0.saturating_mul(2) > usage.total.0 => {
                seen.push(MountedFilesystem { id, mount, usage })
            }
            Ok(_) => {}
            // The filesystem has been unmounted meanwhile. The usage of another file system must
            // not decide about this one.
            Err(platform::Error::OtherMount { .. }) => {}
            Err(error) => failed = failed.and(Err(error.into())),
        }
    }
    Ok((seen, failed))
}

/// An XFS that has to be extended to the size of its device.
struct Extended {
    id: FsUuid,
    mount: Mount,
    /// The size of the XFS before, as the kernel reported it.
    before: Bytes,
    /// By how much the device has grown.
    growth: Sectors,
    /// Keeps the filesystem from being destroyed meanwhile.
    claim: Claim,
}

/// Records the new sizes, gives them to the thin devices, then extends the XFS on them.
fn extend(uuid: PoolUuid, seen: Vec<MountedFilesystem>) -> Step<Result<()>> {
    Step::write(uuid, move |engine, granted| {
        let Ok(pool) = writable(granted, uuid) else { return Step::Done(Ok(())) };
        // A request that wants to use the pool alone must not be kept waiting; there will be
        // another check.
        if pool.check_changes().is_err() || !may_grow(pool) || engine.claims().is_claimed(&Key::Drain(uuid)) {
            return Step::Done(Ok(()));
        }
        let (mut extended, mut failed) = (Vec::new(), Ok(()));
        let sector = match pool.sector_size(engine.platform()) {
            Ok(sector) => sector,
            Err(error) => return Step::Done(Err(error)),
        };
        for (seen, extension) in plan(pool, seen, sector) {
            if extension == Extension::None {
                continue;
            }
            let Ok(claim) = engine.claims().claim([Key::Origin(uuid, seen.id)]) else { continue };
            match extend_device(engine, pool, seen.id, extension) {
                Ok(()) => {
                    let MountedFilesystem { id, mount, usage: Usage { total: before, .. } } = seen;
                    let growth = match extension {
                        Extension::By(growth) => growth,
                        // At least a quarter of the device.
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
        if extended.is_empty() { Step::Done(failed) } else { grow_xfs(uuid, extended).map(|grown| failed.and(grown)) }
    })
}

/// What to do with those filesystems that still exist.
fn plan(pool: &Pool, seen: Vec<MountedFilesystem>, sector: Sectors) -> Vec<(MountedFilesystem, Extension)> {
    let facts = |seen: MountedFilesystem| {
        let record = &pool.filesystems.get(seen.id)?.record;
        let Usage { total, used } = seen.usage;
        Some((seen, growth::FilesystemFill { size: record.size, limit: record.fs_size_limit, total, used }))
    };
    let (seen, facts): (Vec<MountedFilesystem>, Vec<growth::FilesystemFill>) =
        seen.into_iter().filter_map(facts).unzip();
    let room = (!pool.overprovisioning()).then(|| pool.room().saturating_sub(pool.filesystems.size()));
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

/// Writes the former record of a filesystem again, because the kernel refuses the new size and the
/// device still has the former one. Returns the error to report.
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
        // The next set-up corrects the record.
        Err(error) => {
            log::error!("cannot record the size that filesystem {} has: {}", former.name, error.sentence());
            refused
        }
    }
}

/// Extends each XFS to the size of its device, side by side and without the pool's lock.
fn grow_xfs(uuid: PoolUuid, extended: Vec<Extended>) -> Step<Result<()>> {
    let part = |extended: &Extended| -> Part {
        let (mount, before, growth) = (extended.mount.clone(), extended.before, extended.growth);
        Box::new(move |engine| Box::new(xfs::extend(engine.platform(), &mount, before, growth)) as Box<dyn Any + Send>)
    };
    let parts = extended.iter().map(part).collect();
    Step::Parallel(
        parts,
        Box::new(move |_, results| {
            let (mut failed, mut grown) = (Ok(()), Vec::new());
            for (Extended { id, claim, .. }, result) in extended.into_iter().zip(results) {
                let result = match result.map(|any| any.downcast::<Result<()>>()) {
                    Some(Ok(result)) => *result,
                    _ => Err(Error::Panicked),
                };
                // The device has the new size; the next check extends the XFS again.
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

/// Shows the space that the extension of XFS has used: each extended XFS has more allocation
/// groups, and each group has a header.
fn show_use(uuid: PoolUuid, grown: Vec<(FsUuid, Claim)>) -> Step<()> {
    Step::write(uuid, move |engine, granted| {
        if let Ok(pool) = writable(granted, uuid) {
            pool.refresh_filesystems(engine.platform(), grown.iter().map(|(id, _)| *id));
            pool.refresh_thin_pool(engine.platform(), None);
        }
        drop(grown);
        Step::Done(())
    })
}

/// Sets or removes a filesystem's size limit. `false`: the filesystem already has that limit.
pub fn set_size_limit(uuid: PoolUuid, id: FsUuid, limit: Option<Sectors>) -> Step<Result<bool>> {
    change(uuid, move |engine, pool| change_size_limit(engine, pool, id, limit))
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
