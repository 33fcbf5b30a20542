//! Snapshots, and the order that one is to take the place of its origin (`spec/engine/storage-stack.md` §9.3, 9.6). The
//! revert itself is done when the pool is next set up: see [`revert`](crate::engine::revert).

use crate::{
    engine::{
        Engine,
        claims::{Claim, Key},
        dm_names::Role,
        error::{Error, Result},
        ids::{FsUuid, PoolUuid},
        metadata::{FilesystemRecord, Rest},
        name::Name,
        ops::filesystems::{self, Batch},
        pool::Pool,
        request::{Next, Wait},
        undo::mended,
    },
    platform::{Platform, Program, dm::Visibility},
};

/// Makes a snapshot. `None`: a filesystem of that name and of the origin's size exists already.
pub fn snapshot_filesystem(uuid: PoolUuid, origin: FsUuid, name: Name) -> Next<Result<Option<FsUuid>>> {
    Next::write(uuid, move |engine, granted| {
        let pool = match super::writable(granted, uuid) {
            Ok(pool) => pool,
            Err(error) => return Next::Done(Err(error)),
        };
        match exists(pool, origin, &name) {
            Ok(false) => {}
            Ok(true) => return Next::Done(Ok(None)),
            Err(error) => return Next::Done(Err(error)),
        }
        let size = pool.filesystem(origin).map(|origin| origin.record.size).ok();
        if !filesystems::is_settled(engine, pool, 1, size.into_iter()) {
            return Next::parked(Wait::Progress(uuid), snapshot_filesystem(uuid, origin, name));
        }
        // The origin is claimed too: it may not be destroyed while its snapshot is not yet complete.
        let keys = [Key::Filesystem(uuid, name.clone()), Key::Origin(uuid, origin)];
        let claim = match engine.claims().claim_work(uuid, keys) {
            Ok(claim) => claim,
            Err(taken) => return Next::parked(taken, snapshot_filesystem(uuid, origin, name)),
        };
        match begin(engine, pool, origin, &name, claim) {
            Ok((batch, mounted)) => complete(uuid, batch, mounted),
            Err(error) => {
                pool.note_failure(&error);
                Next::Done(Err(error))
            }
        }
    })
}

/// Whether there is a filesystem that may pass for the snapshot already; refuses what may not be done.
fn exists(pool: &Pool, origin: FsUuid, name: &Name) -> Result<bool> {
    pool.check_requests()?;
    let requested = pool.filesystem(origin)?.record.size;
    filesystems::check_limit(pool, 1)?;
    match pool.filesystem_named(name).map(|(_, found)| found.record.size) {
        Some(existing) if existing == requested => return Ok(true),
        Some(existing) => return Err(Error::OtherSize { name: name.clone(), existing, requested }),
        None => {}
    }
    pool.check_left_out(name)?;
    filesystems::check_room(pool, [requested])?;
    Ok(false)
}

/// Takes the snapshot, its origin held still for the moment. Gives also whether the origin is mounted.
fn begin(engine: &Engine, pool: &mut Pool, origin: FsUuid, name: &Name, claim: Claim) -> Result<(Batch, bool)> {
    let platform = engine.platform();
    let source = pool.filesystem(origin)?.clone();
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
    let device = pool.thin_name(origin);
    let thin_pool = Role::ThinPool.name(pool.uuid());
    let batch = filesystems::make_thin(engine, pool, vec![record], claim, |id| {
        let message = format!("create_snap {id} {}", source.record.thin_id);
        // Whatever happens, the origin must go on. A second try costs nothing against a file system that hangs.
        let resume = || {
            let resumed = platform.dm_resume(&device, Visibility::Public);
            resumed.or_else(|_| platform.dm_resume(&device, Visibility::Public))
        };
        let take = || platform.dm_suspend(&device, true).and_then(|()| platform.dm_message(&thin_pool, &message));
        let taken = mended(take, || drop(resume()));
        mended(resume, || drop(resume()))?;
        taken
    })?;
    Ok((batch, mounted))
}

/// Gives the snapshot an identity of its own, the pool released meanwhile, and takes it into the pool.
fn complete(uuid: PoolUuid, batch: Batch, mounted: bool) -> Next<Result<Option<FsUuid>>> {
    filesystems::complete_each(uuid, batch, move |platform, device, id| give_identity(platform, device, id, mounted))
        .map(|created| created.map(|created| created.into_iter().next().map(|(id, _)| id)))
}

/// Writes a UUID into the XFS on a snapshot's device. A log that has not been replayed, as that of an origin that was
/// mounted, does not let it be changed; mounting it for a moment replays it.
pub(in crate::engine) fn give_identity(platform: &dyn Platform, device: &str, id: FsUuid, mounted: bool) -> Result<()> {
    let node = platform.dm_node(device);
    let write_uuid = || {
        platform
            .run(Program::XfsDb, &["-x", "-c", &format!("uuid {}", id.hyphenated()), &node.to_string_lossy()])
            .map(drop)
    };
    if !mounted && write_uuid().is_ok() {
        return Ok(());
    }
    let at = format!("stratis_mp_{}", id.simple());
    // Also after a mount that is said to have failed; somebody who looks at new mounts may hold it for a moment.
    let unmount = || platform.unmount(&at).or_else(|_| platform.unmount(&at));
    let mounted = mended(|| platform.mount(&node, &at, "nouuid"), || drop(unmount()));
    let unmounted = mended(unmount, || drop(unmount()));
    mounted.and(unmounted)?;
    Ok(write_uuid()?)
}

/// Lets a snapshot take the place of its origin at the next start of the pool, or not. `false`: so it is already.
pub fn schedule_revert(uuid: PoolUuid, snapshot: FsUuid, scheduled: bool) -> Next<Result<bool>> {
    super::change(uuid, move |engine, pool| schedule(engine, pool, snapshot, scheduled))
}

fn schedule(engine: &Engine, pool: &mut Pool, snapshot: FsUuid, scheduled: bool) -> Result<bool> {
    pool.check_requests()?;
    let mut filesystem = pool.filesystem(snapshot)?.clone();
    let name = filesystem.name.clone();
    // The origin need not exist any more; that it is recorded will do, also for taking the order back.
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

/// Refuses reverts of which the order would matter.
fn may_replace(pool: &Pool, name: Name, snapshot: FsUuid, origin: FsUuid) -> Result<()> {
    let scheduled = || pool.records().filter(|record| record.merge);
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
