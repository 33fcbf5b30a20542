//! Takes snapshots and schedules reverts (`docs/spec/engine/storage-stack.md` §9.3, 9.6). The
//! revert itself is carried out when the pool is next set up: see
//! [`revert`](crate::engine::revert).

use std::{cell::RefCell, sync::Arc};

use crate::{
    base::{
        ids::{FsUuid, PoolUuid},
        name::Name,
    },
    engine::{
        Engine,
        claims::{Claim, Key},
        dm_names::Role,
        error::{Error, Result},
        metadata::{FilesystemRecord, Rest},
        ops::{
            filesystems::{self, Batch},
            pool_access::{change, write_pool},
        },
        pool::Pool,
        request::{Step, Wait},
        xfs,
    },
    platform::{self, Platform, dm::Visibility},
    view::Availability,
};

/// Makes a snapshot. `None`: a filesystem of that name and of the origin's size already exists.
pub fn snapshot_filesystem(uuid: PoolUuid, origin: FsUuid, name: Name) -> Step<Result<Option<FsUuid>>> {
    write_pool(uuid, move |engine, pool| {
        match exists(pool, origin, &name) {
            Ok(false) => {}
            Ok(true) => return Step::Done(Ok(None)),
            Err(error) => return Step::Done(Err(error)),
        }
        let size = pool.filesystem(origin).map(|origin| origin.record.size).ok();
        if !filesystems::is_settled(engine, pool, 1, size.into_iter()) {
            return Step::parked(Wait::Progress(uuid), snapshot_filesystem(uuid, origin, name));
        }
        // The origin is claimed too: it must not be destroyed before its snapshot is complete.
        let keys = [Key::Filesystem(uuid, name.clone()), Key::Origin(uuid, origin)];
        let claim = match engine.claims().claim_work(uuid, keys) {
            Ok(claim) => claim,
            Err(taken) => return Step::parked(taken, snapshot_filesystem(uuid, origin, name)),
        };
        match plan(engine, pool, origin, &name, claim) {
            Ok(planned) => take(uuid, planned),
            Err(error) => {
                pool.note_failure(&error);
                Step::Done(Err(error))
            }
        }
    })
}

/// Whether a filesystem exists that passes for the requested snapshot. Refuses a request that is
/// not allowed.
fn exists(pool: &Pool, origin: FsUuid, name: &Name) -> Result<bool> {
    pool.check_requests()?;
    let requested = pool.filesystem(origin)?.record.size;
    filesystems::check_limit(pool, 1)?;
    match pool.filesystems.named(name).map(|(_, found)| found.record.size) {
        Some(existing) if existing == requested => return Ok(true),
        Some(existing) => return Err(Error::OtherSize { name: name.clone(), existing, requested }),
        None => {}
    }
    pool.check_not_failed(name)?;
    filesystems::check_room(pool, [requested])?;
    Ok(false)
}

/// A snapshot that has been checked and may be taken.
struct PlannedSnapshot {
    record: FilesystemRecord,
    /// Number and name of the origin's thin device.
    origin: (u32, String),
    /// The origin is mounted, so the log of its XFS may have to be replayed.
    mounted: bool,
    claim: Claim,
}

/// Plans the snapshot. From here on it counts as a filesystem that is being made.
fn plan(engine: &Engine, pool: &mut Pool, origin: FsUuid, name: &Name, claim: Claim) -> Result<PlannedSnapshot> {
    let platform = engine.platform();
    let source = pool.filesystem(origin)?.clone();
    if !super::check::has_data_space(platform, pool)? {
        return Err(Error::PoolFull { pool: pool.name().clone(), origin: source.name });
    }
    let record = FilesystemRecord {
        name: name.as_str().to_owned(),
        uuid: FsUuid::from_random(platform.random()),
        thin_id: pool.take_thin_id()?,
        size: source.record.size,
        created: platform.now().seconds,
        fs_size_limit: source.record.fs_size_limit,
        origin: Some(origin),
        merge: false,
        rest: Rest::default(),
    };
    let mounted = !platform.mount_points(source.number)?.is_empty();
    pool.filesystems.add_pending([(record.uuid, record.size)]);
    Ok(PlannedSnapshot { record, origin: (source.record.thin_id, pool.thin_name(origin)), mounted, claim })
}

/// A suspended filesystem device. Dropping this value resumes it.
struct SuspendedDevice {
    platform: Arc<dyn Platform>,
    device: String,
    is_over: bool,
}

impl SuspendedDevice {
    /// Writes out the I/O in flight and holds back new I/O.
    fn hold(platform: Arc<dyn Platform>, device: String) -> Result<SuspendedDevice> {
        // Built before the suspend: a suspend that fails or panics may still have taken effect.
        let suspended = SuspendedDevice { platform, device, is_over: false };
        suspended.platform.dm_suspend(&suspended.device, true)?;
        Ok(suspended)
    }

    fn release(mut self) -> platform::Result<()> {
        self.resume()
    }

    fn resume(&mut self) -> platform::Result<()> {
        // A second attempt costs little, compared with a file system that hangs.
        let resume = || self.platform.dm_resume(&self.device, Visibility::Public);
        let resumed = resume().or_else(|_| resume());
        self.is_over |= resumed.is_ok();
        resumed
    }
}

impl Drop for SuspendedDevice {
    fn drop(&mut self) {
        if !self.is_over {
            if let Err(error) = self.resume() {
                log::error!("{} is left suspended: {error}", self.device);
            }
        }
    }
}

/// Takes the snapshot, with its origin suspended.
///
/// The suspend first writes out the data in flight. If the thin pool is just running out of space,
/// the suspend waits until a check of the pool has found more. So the pool is not locked during the
/// suspend.
fn take(uuid: PoolUuid, planned: PlannedSnapshot) -> Step<Result<Option<FsUuid>>> {
    Step::blocking(move |engine| {
        let suspended = SuspendedDevice::hold(engine.shared_platform(), planned.origin.1.clone());
        write_pool(uuid, move |engine, pool| {
            let (snapshot, mounted) = (planned.record.uuid, planned.mounted);
            let origin = planned.origin.1.clone();
            match suspended.and_then(|suspended| begin(engine, pool, planned, suspended)) {
                Ok(batch) => complete(uuid, batch, mounted),
                Err(error) => {
                    let error = go_on(engine.platform(), &origin, error);
                    pool.filesystems.remove_pending(snapshot);
                    pool.note_failure(&error);
                    Step::Done(Err(error))
                }
            }
        })
    })
}

fn begin(engine: &Engine, pool: &mut Pool, planned: PlannedSnapshot, suspended: SuspendedDevice) -> Result<Batch> {
    let platform = engine.platform();
    // Another request may have restricted the pool meanwhile.
    pool.check_requests()?;
    let PlannedSnapshot { record, origin: (origin, _), claim, .. } = planned;
    let thin_pool = Role::ThinPool.name(pool.uuid());
    let suspended = RefCell::new(Some(suspended));
    filesystems::make_thin(engine, pool, vec![record], claim, |id| {
        let taken = platform.dm_message(&thin_pool, &format!("create_snap {id} {origin}"));
        if taken.as_ref().is_err_and(|error| error.errno() == Some(nix::libc::EEXIST)) {
            // `make_thin` takes the snapshot again, and the origin has to be suspended then, too.
            return taken;
        }
        suspended.take().map_or(Ok(()), SuspendedDevice::release)?;
        taken
    })
}

/// After a failed snapshot: resumes the origin if it is still suspended. Returns the error to
/// report.
fn go_on(platform: &dyn Platform, origin: &str, cause: Error) -> Error {
    if platform.dm_find(origin).is_ok_and(|found| found.is_none_or(|device| !device.suspended)) {
        return cause;
    }
    match platform.dm_resume(origin, Visibility::Public) {
        Ok(()) => cause,
        Err(error) => Error::Rollback {
            cause: Box::new(cause),
            failures: vec![(format!("resume {origin}"), error.into())],
            leaves: Availability::NoRequests,
        },
    }
}

/// Gives the snapshot a new identity, without the pool's lock, and adds it to the pool.
fn complete(uuid: PoolUuid, batch: Batch, mounted: bool) -> Step<Result<Option<FsUuid>>> {
    filesystems::complete_each(uuid, batch, move |platform, device, id| xfs::identify(platform, device, id, mounted))
        .map(|created| created.map(|created| created.into_iter().next().map(|(id, _)| id)))
}

/// Schedules a revert to this snapshot for the next start of the pool, or cancels it. `false`: the
/// record says so already.
pub fn schedule_revert(uuid: PoolUuid, snapshot: FsUuid, scheduled: bool) -> Step<Result<bool>> {
    change(uuid, move |engine, pool| schedule(engine, pool, snapshot, scheduled))
}

fn schedule(engine: &Engine, pool: &mut Pool, snapshot: FsUuid, scheduled: bool) -> Result<bool> {
    pool.check_requests()?;
    let mut filesystem = pool.filesystem(snapshot)?.clone();
    let name = filesystem.name.clone();
    // The origin need not exist any more: it is enough that the record names it, also to cancel a
    // revert.
    let Some(origin) = filesystem.record.origin else { return Err(Error::NoOrigin { name }) };
    if filesystem.record.merge == scheduled {
        return Ok(false);
    }
    if scheduled {
        may_replace(pool, name, snapshot, origin)?;
    }
    filesystem.record.merge = scheduled;
    filesystems::save_record(engine, pool, &filesystem.record)?;
    pool.put_filesystem(engine.platform(), filesystem);
    Ok(true)
}

/// Refuses reverts whose outcome would depend on their order.
fn may_replace(pool: &Pool, name: Name, snapshot: FsUuid, origin: FsUuid) -> Result<()> {
    let scheduled = || pool.filesystems.records().filter(|record| record.merge);
    if let Some(origin) = scheduled().find(|record| record.uuid == origin) {
        return Err(Error::OriginScheduled { name, origin: origin.name.clone() });
    }
    if let Some(sibling) = scheduled().find(|record| record.origin == Some(origin)) {
        return Err(Error::SiblingScheduled { name, sibling: sibling.name.clone() });
    }
    match scheduled().find(|record| record.origin == Some(snapshot)) {
        Some(other) => Err(Error::SnapshotScheduled { name, snapshot: other.name.clone() }),
        None => Ok(()),
    }
}
