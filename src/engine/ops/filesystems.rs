//! Creating, destroying and renaming filesystems (`docs/spec/engine/storage-stack.md` §9).

use std::{
    any::Any,
    collections::HashMap,
    path::{Path, PathBuf},
};

use crate::{
    base::{
        ids::{FsUuid, PoolUuid},
        name::Name,
        units::{SECTOR, Sectors},
    },
    engine::{
        Engine,
        awaited_links::AwaitedMark,
        claims::{Claim, Key},
        dm_names::Role,
        error::{Error, Result},
        mdv::Mdv,
        metadata::{FilesystemRecord, Journal, Pending, Rest},
        ops::{
            links::{announce, when_linked},
            pool_access::write_pool,
        },
        plan::{sizes, watching::Watched},
        pool::{Filesystem, Pool},
        request::{Part, Step, Wait},
        setup, stack, thin_devices,
        thin_status::{self, State},
        undo::{Rollback, When},
        xfs::{self, Discard},
    },
    platform::{self, DeviceNumber, PendingLinks, Platform, WriteStep, dm::Visibility},
};

/// The description of a new filesystem.
#[derive(Debug, Clone)]
pub struct NewFilesystem {
    /// Its name.
    pub name: Name,
    /// Size of the thin device; the default if `None`.
    pub size: Option<Sectors>,
    /// The size past which the filesystem will not grow.
    pub size_limit: Option<Sectors>,
}

impl NewFilesystem {
    fn size(&self) -> Sectors {
        self.size.unwrap_or(sizes::FILESYSTEM_DEFAULT)
    }
}

/// A thin device that has been made for a filesystem that is not in the pool yet.
pub(super) struct PendingFilesystem {
    pub filesystem: Filesystem,
    pub device: String,
}

/// Thin devices made by one request, with the undo that removes them.
pub(super) struct Batch {
    pub pending_filesystems: Vec<PendingFilesystem>,
    pub journal: Journal,
    pub undo: Rollback,
    pub claim: Claim,
    /// While this mark is held, a device event without a link is no reason to ask for the link.
    awaited: AwaitedMark,
}

/// Creates filesystems, all or none, and runs their mkfs side by side. Returns the new filesystems;
/// none if all exist already. If the daemon is killed while it writes their records, each
/// filesystem exists either completely or not at all, so some of them may be missing. Clients never
/// see that: no revision of the D-Bus interface takes more than one filesystem in a call
/// (`docs/spec/dbus/dbus-api.md` §2.4). The next set-up must not remove the existing ones either: a
/// journal entry may be left over, and it cannot tell a filesystem that was destroyed since from
/// one that was never completed.
pub fn create_filesystems(uuid: PoolUuid, new: Vec<NewFilesystem>) -> Step<Result<Vec<(FsUuid, Name)>>> {
    write_pool(uuid, move |engine, pool| {
        let wanted = match admissible(engine.platform(), pool, &new) {
            Ok(wanted) if wanted.is_empty() => return Step::Done(Ok(Vec::new())),
            Ok(wanted) => wanted,
            Err(error) => return Step::Done(Err(error)),
        };
        if !is_settled(engine, pool, new.len(), wanted.iter().map(NewFilesystem::size)) {
            return Step::parked(Wait::Progress(uuid), create_filesystems(uuid, new));
        }
        let names = wanted.iter().map(|new| Key::Filesystem(uuid, new.name.clone()));
        let claim = match engine.claims().claim_work(uuid, names) {
            Ok(claim) => claim,
            Err(taken) => return Step::parked(taken, create_filesystems(uuid, new)),
        };
        let usable = pool.usable_size();
        match begin(engine, pool, wanted, claim) {
            Ok(batch) => format(uuid, batch, usable),
            Err(error) => {
                pool.note_failure(&error);
                Step::Done(Err(error))
            }
        }
    })
}

/// The requested filesystems that do not exist yet, if the request is allowed.
fn admissible(platform: &dyn Platform, pool: &Pool, new: &[NewFilesystem]) -> Result<Vec<NewFilesystem>> {
    pool.check_requests()?;
    check_limit(pool, new.len())?;
    // The default size is a multiple of any sector size.
    let asks = new.iter().any(|request| request.size.is_some() || request.size_limit.is_some());
    let sector = if asks { pool.sector_size(platform)? } else { Sectors(1) };
    let mut wanted: Vec<NewFilesystem> = Vec::new();
    for request in new {
        sizes::check_new_filesystem(request.size(), request.size_limit, sector)
            .map_err(|source| Error::FilesystemSize { name: request.name.clone(), source })?;
        let same_name = pool.filesystems.named(&request.name).map(|(_, existing)| existing.record.size);
        let same_name = same_name.or(wanted.iter().find(|other| other.name == request.name).map(NewFilesystem::size));
        match same_name {
            Some(existing) if existing == request.size() => {}
            Some(existing) => {
                let (name, requested) = (request.name.clone(), request.size());
                return Err(Error::OtherSize { name, existing, requested });
            }
            None => {
                pool.check_not_failed(&request.name)?;
                wanted.push(request.clone());
            }
        }
    }
    check_room(pool, wanted.iter().map(NewFilesystem::size))?;
    Ok(wanted)
}

/// Whether a request that the pool allows now would also be allowed once the filesystems that are
/// being made are complete. If not, the answer depends on whether those succeed, and the request
/// waits for that. Filesystems that a panic has left behind do not count as being made.
pub(super) fn is_settled(engine: &Engine, pool: &Pool, more: usize, sizes: impl Iterator<Item = Sectors>) -> bool {
    if !engine.claims().work_in(pool.uuid()) {
        return true;
    }
    check_limit(pool, more.saturating_add(pool.filesystems.pending_sizes().len())).is_ok()
        && check_room(pool, sizes.chain(pool.filesystems.pending_sizes())).is_ok()
}

/// Refuses more filesystems than the pool's limit. Requested names count even if they exist
/// already, and so do filesystems that could not be set up.
pub(super) fn check_limit(pool: &Pool, more: usize) -> Result<()> {
    let wanted = u64::try_from(pool.filesystems.recorded().saturating_add(more)).unwrap_or(u64::MAX);
    let limit = pool.fs_limit();
    match wanted <= limit {
        true => Ok(()),
        false => Err(Error::FilesystemLimit { pool: pool.name().clone(), limit, wanted }),
    }
}

/// Without overprovisioning, refuses filesystems that do not fit.
pub(super) fn check_room(pool: &Pool, more: impl IntoIterator<Item = Sectors>) -> Result<()> {
    if pool.overprovisioning() {
        return Ok(());
    }
    let needed = Sectors::checked_sum(pool.filesystems.records().map(|record| record.size).chain(more));
    let needed = needed.ok_or(sizes::SizeError::Overflow)?;
    let room = pool.room();
    match needed <= room {
        true => Ok(()),
        false => Err(Error::NoRoom { pool: pool.name().clone(), needed, room }),
    }
}

/// Makes the thin devices under the pool's lock, with messages to the thin pool and device-mapper
/// calls. No call here is slow.
fn begin(engine: &Engine, pool: &mut Pool, wanted: Vec<NewFilesystem>, claim: Claim) -> Result<Batch> {
    let platform = engine.platform();
    let created = platform.now().seconds;
    let mut records = Vec::new();
    for new in wanted {
        records.push(FilesystemRecord {
            name: new.name.as_str().to_owned(),
            uuid: FsUuid::from_random(platform.random()),
            thin_id: pool.take_thin_id()?,
            size: new.size(),
            created,
            fs_size_limit: new.size_limit,
            origin: None,
            merge: false,
            rest: Rest::default(),
        });
    }
    let thin_pool = Role::ThinPool.name(pool.uuid());
    make_thin(engine, pool, records, claim, |id| platform.dm_message(&thin_pool, &format!("create_thin {id}")))
}

/// Makes a thin device for each record. `create` makes the device with that number in the thin
/// pool.
pub(super) fn make_thin(
    engine: &Engine,
    pool: &mut Pool,
    records: Vec<FilesystemRecord>,
    claim: Claim,
    create: impl Fn(u32) -> platform::Result<()>,
) -> Result<Batch> {
    let platform = engine.platform();
    let uuid = pool.uuid();
    let awaited = AwaitedMark::note(engine.links_awaited(), records.iter().map(|record| record.uuid));
    let pending = |record: &FilesystemRecord| Pending {
        uuid: record.uuid,
        thin_id: record.thin_id,
        new_origin: None,
        was: None,
        by_removal: false,
    };
    let journal = Journal::Create(records.iter().map(pending).collect());
    let (pending_filesystems, undo) = Rollback::new().guard(platform, |undo| {
        let entry = journal.clone();
        // The entry stays as long as a thin device exists that it names: the device is named
        // nowhere else.
        undo.push(When::Last, "remove the entry from the journal", move |platform| {
            Mdv::new(platform, uuid).end(&entry)
        });
        Mdv::new(platform, uuid).begin(&journal)?;
        records.into_iter().map(|record| make_one(engine, pool, record, &create, undo)).collect::<Result<Vec<_>>>()
    })?;
    pool.filesystems
        .add_pending(pending_filesystems.iter().map(|new| (new.filesystem.record.uuid, new.filesystem.record.size)));
    Ok(Batch { pending_filesystems, journal, undo, claim, awaited })
}

fn make_one(
    engine: &Engine,
    pool: &Pool,
    record: FilesystemRecord,
    create: &impl Fn(u32) -> platform::Result<()>,
    undo: &mut Rollback,
) -> Result<PendingFilesystem> {
    let platform = engine.platform();
    let thin_pool = Role::ThinPool.name(pool.uuid());
    let id = record.thin_id;
    let undo_in = thin_pool.clone();
    // Push the undo first: a message that fails may have been carried out. The thin device stays if
    // its record does.
    undo.push(When::Last, format!("delete thin device {id}"), move |platform| {
        thin_devices::delete_thin_id(platform, &undo_in, id)
    });
    match create(id) {
        // The thin device was left over by a daemon that keeps no journal. No record names the
        // number; otherwise it would not have been assigned.
        Err(error) if error.errno() == Some(nix::libc::EEXIST) => {
            log::warn!("pool {}: thin device {id} exists without a record; replacing it", pool.name());
            thin_devices::delete_thin_id(platform, &thin_pool, id)?;
            create(id)?;
        }
        // A write has hit the failure, and no check has run since.
        Err(error) if error.errno() == Some(nix::libc::EOPNOTSUPP) => return Err(refusal(pool, platform, error)),
        other => other?,
    }
    let number = pool.stack.number(Role::ThinPool).ok_or(Error::NoPool(pool.uuid()))?;
    let device = pool.thin_name(record.uuid);
    let table = thin_devices::thin_table(number, id, record.size);
    let (number, _) = stack::ensure_device(platform, &device, &table, Visibility::Public, undo)?;
    let name = Name::new(&record.name)?;
    Ok(PendingFilesystem { filesystem: Filesystem { record, name, number }, device })
}

/// Why the thin pool accepts no messages.
fn refusal(pool: &Pool, platform: &dyn Platform, error: platform::Error) -> Error {
    let status = platform.dm_status(&Role::ThinPool.name(pool.uuid())).unwrap_or_default();
    match status.first().and_then(|text| thin_status::state(text)) {
        Some(State::OutOfMetadataSpace) => Error::MetadataExhausted { pool: pool.name().clone() },
        _ => error.into(),
    }
}
/// How much is zeroed at each end of a new filesystem's device: a block of the thin pool, which
/// mkfs allocates in any case.
const END_BYTES: usize = 1 << 20;

/// Formats the new filesystems of a pool with this usable size.
fn format(uuid: PoolUuid, batch: Batch, usable: Sectors) -> Step<Result<Vec<(FsUuid, Name)>>> {
    complete_each(uuid, batch, move |platform, device, id| {
        let node = platform.dm_node(device);
        let size = platform.geometry(&node)?.size;
        clear_ends(platform, &node, size)?;
        let parameters = sizes::xfs_parameters(size, usable);
        // A new thin device holds no other data that could be discarded.
        xfs::make(platform, &node, uuid::Uuid::from_bytes(*id.as_bytes()), parameters, Discard::No)
    })
}

/// Writes zeros to the places where signatures may be. A block that the thin pool gives to a
/// filesystem holds the former data of the disk, and mkfs writes only parts of the blocks at both
/// ends. If signatures of another file system remained there, blkid could not determine the type,
/// and so neither could mount.
fn clear_ends(platform: &dyn Platform, node: &Path, size: Sectors) -> Result<()> {
    let zeros = vec![0; END_BYTES];
    let last = (size.0 * SECTOR).saturating_sub(END_BYTES as u64);
    Ok(platform.write(node, &[WriteStep::At(0, &zeros), WriteStep::At(last, &zeros)])?)
}

/// Makes filesystems on the thin devices, side by side and without the pool's lock, and adds them
/// to the pool. If one of them fails or panics, all are given up.
pub(super) fn complete_each(
    uuid: PoolUuid,
    batch: Batch,
    make: impl Fn(&dyn Platform, &str, FsUuid) -> Result<()> + Copy + Send + 'static,
) -> Step<Result<Vec<(FsUuid, Name)>>> {
    let part = |pending_filesystem: &PendingFilesystem| -> Part {
        let (device, uuid) = (pending_filesystem.device.clone(), pending_filesystem.filesystem.record.uuid);
        Box::new(move |engine| {
            // A daemon that is to stop could not wait for hundreds of them.
            let made = engine.check_ending().and_then(|()| make(engine.platform(), &device, uuid));
            Box::new(made) as Box<dyn Any + Send>
        })
    };
    let parts = batch.pending_filesystems.iter().map(part).collect();
    Step::Parallel(
        parts,
        Box::new(move |_, results| {
            let made =
                results.into_iter().try_for_each(|result| match result.map(|any| any.downcast::<Result<()>>()) {
                    Some(Ok(result)) => *result,
                    _ => Err(Error::Panicked),
                });
            finish(uuid, batch, made)
        }),
    )
}

/// Adds new filesystems to the pool, or gives them up if `made` is an error.
fn finish(uuid: PoolUuid, batch: Batch, made: Result<()>) -> Step<Result<Vec<(FsUuid, Name)>>> {
    write_pool(uuid, move |engine, pool| {
        let platform = engine.platform();
        // The pool still exists: a request that takes it down waits for the claims that the batch
        // holds.
        let Batch { pending_filesystems, journal, undo, claim, awaited } = batch;
        for new in &pending_filesystems {
            pool.filesystems.remove_pending(new.filesystem.record.uuid);
        }
        let committed = undo.guard(platform, |undo| {
            made?;
            pool.check_requests()?;
            for PendingFilesystem { filesystem, .. } in &pending_filesystems {
                let id = filesystem.record.uuid;
                undo.push(When::Always, format!("remove the record of {id}"), move |platform| {
                    Mdv::new(platform, uuid).remove(id)
                });
                Mdv::new(platform, uuid).save(&filesystem.record)?;
            }
            Ok(())
        });
        match committed {
            Ok(((), undo)) => undo.forget(),
            Err(error) => {
                pool.note_failure(&error);
                return Step::Done(Err(error));
            }
        }
        if let Err(error) = Mdv::new(platform, uuid).end(&journal) {
            log::warn!(
                "could not remove a journal entry of pool {}, which the next set-up removes: {error}",
                pool.name()
            );
        }
        let created: Vec<(FsUuid, Name)> =
            pending_filesystems.iter().map(|new| (new.filesystem.record.uuid, new.filesystem.name.clone())).collect();
        let links = announce(engine, pool, pending_filesystems.iter().map(|new| &new.filesystem));
        drop(awaited);
        let watched = pending_filesystems.iter().map(|new| Watched::new(&new.filesystem.record, Sectors::ZERO));
        let watched: Vec<Watched> = watched.filter(Watched::may_grow).collect();
        // The suspend of a snapshot's origin has written out the data in flight.
        let origins: Vec<FsUuid> = pending_filesystems.iter().filter_map(|new| new.filesystem.record.origin).collect();
        pending_filesystems.into_iter().for_each(|new| pool.put_filesystem(platform, new.filesystem));
        pool.refresh_filesystems(platform, origins);
        let status = pool.refresh_thin_pool(platform, None);
        // Without a mounted filesystem to watch, the low-water mark stays that of the others.
        if !watched.is_empty() {
            // If the use passes the mark meanwhile, the next timed check notices.
            let _ = super::check::arm_or_later(platform, pool, status, watched);
        }
        drop(claim);
        when_linked(links, Ok(created))
    })
}

/// Destroys filesystems, all or none. Returns those that existed.
pub fn destroy_filesystems(uuid: PoolUuid, to_destroy: Vec<FsUuid>) -> Step<Result<Vec<FsUuid>>> {
    write_pool(uuid, move |engine, pool| {
        let mut existing: Vec<FsUuid> =
            to_destroy.iter().filter(|id| pool.filesystems.contains(**id)).copied().collect();
        existing.sort_unstable();
        existing.dedup();
        let origins = existing.iter().map(|id| Key::Origin(uuid, *id));
        if let Some(taken) = origins.into_iter().find(|origin| engine.claims().is_claimed(origin)) {
            return Step::parked(taken, destroy_filesystems(uuid, to_destroy));
        }
        if existing.is_empty() {
            return Step::Done(Ok(existing));
        }
        match destroy(engine, pool, &existing) {
            Ok(()) => Step::Done(Ok(existing)),
            Err(error) => {
                pool.note_failure(&error);
                when_linked(find_again(engine, pool, &existing), Err(error))
            }
        }
    })
}

fn destroy(engine: &Engine, pool: &mut Pool, to_destroy: &[FsUuid]) -> Result<()> {
    let platform = engine.platform();
    let uuid = pool.uuid();
    pool.check_requests_for_space()?;
    let pending = to_destroy.iter().map(|id| may_go(pool, *id, to_destroy)).collect::<Result<Vec<_>>>()?;
    let filesystems = to_destroy.iter().filter_map(|id| pool.filesystems.get(*id));
    check_unmounted(platform, filesystems.map(|filesystem| (filesystem.name.clone(), filesystem.number)))?;
    let journal = Journal::Destroy(pending.clone());
    let ((), undo) = Rollback::new().guard(platform, |undo| {
        for id in to_destroy {
            stack::remove_device(platform, &pool.thin_name(*id), Visibility::Public, undo)?;
        }
        let entry = journal.clone();
        // The entry stays as long as a record is missing: it holds the record.
        undo.push(When::Last, "remove the entry from the journal", move |platform| {
            Mdv::new(platform, uuid).end(&entry)
        });
        Mdv::new(platform, uuid).begin(&journal)?;
        // The removal of the last record is the commit point. A removal that fails may have reached
        // the disk, so it is taken back as well. If that fails too, the next set-up may destroy the
        // filesystems. They must not be written to until then, so their devices stay down.
        for record in pending.iter().filter_map(|gone| gone.was.clone()) {
            let id = record.uuid;
            undo.push(When::Always, format!("write the record of {id} again"), move |platform| {
                Mdv::new(platform, uuid).save(&record)
            });
            Mdv::new(platform, uuid).remove(id)?;
        }
        Ok(())
    })?;
    undo.forget();
    // Space is free again, and less space is promised to filesystems.
    pool.growth.retry_metadata();
    // From here on the filesystems are gone. What fails now is done at the next set-up, as the
    // journal says. These records are as on disk: the records in memory get their new origins
    // earlier.
    let survivors =
        pool.filesystems.records().filter(|record| !to_destroy.contains(&record.uuid)).cloned().collect::<Vec<_>>();
    for id in to_destroy {
        pool.drop_filesystem(*id);
    }
    pass_on_origins(engine, pool, &pending);
    // Every step can be repeated; a single failure is no reason to leave it to the next set-up.
    let cleaned =
        clean_up(engine, pool, &pending, &survivors).or_else(|_| clean_up(engine, pool, &pending, &survivors));
    let ended = cleaned.and_then(|()| Ok(Mdv::new(platform, uuid).end(&journal)?));
    if let Err(error) = ended {
        let what = error.sentence();
        log::warn!(
            "could not remove all of the destroyed filesystems of pool {}, which the next set-up completes: {what}",
            pool.name()
        );
    }
    let status = pool.refresh_thin_pool(platform, None);
    if pool.is_starved() {
        // The destruction of filesystems may have freed the space that the thin pool lacked.
        thin_devices::judge_thin_pool(pool, status.as_ref());
    }
    Ok(())
}

/// After a destruction that was taken back: devices that were made again have other numbers and no
/// links yet.
fn find_again(engine: &Engine, pool: &mut Pool, spared: &[FsUuid]) -> Option<Box<dyn PendingLinks>> {
    let platform = engine.platform();
    let mut moved = Vec::new();
    for id in spared {
        let device = pool.thin_name(*id);
        // Try once more after an error: the same error may have caused the rollback.
        let found = platform.dm_find(&device).or_else(|_| platform.dm_find(&device)).ok().flatten();
        match found {
            Some(device) => moved.extend(pool.filesystems.set_number(*id, device.number).cloned()),
            None => {
                if let Some(filesystem) = pool.drop_filesystem(*id) {
                    let reason = "its destruction failed and could not be taken back; stop and start the pool";
                    pool.add_failed_filesystem(filesystem.record, reason.to_owned());
                }
            }
        }
    }
    announce(engine, pool, &moved)
}

/// Checks that a filesystem may be destroyed, and returns the journal's description of it.
fn may_go(pool: &Pool, id: FsUuid, to_destroy: &[FsUuid]) -> Result<Pending> {
    let filesystem = pool.filesystem(id)?;
    let record = &filesystem.record;
    let name = filesystem.name.clone();
    if record.merge || pool.filesystems.records().any(|snapshot| snapshot.origin == Some(id) && snapshot.merge) {
        return Err(Error::RevertScheduled { name });
    }
    // The new origin of its snapshots is the nearest origin that is not destroyed as well.
    let mut new_origin = record.origin;
    while let Some(next) = new_origin.filter(|origin| to_destroy.contains(origin)) {
        new_origin = pool.filesystem(next)?.record.origin;
    }
    Ok(Pending { uuid: id, thin_id: record.thin_id, new_origin, was: Some(record.clone()), by_removal: true })
}

/// Passes the origins of destroyed filesystems on to their snapshots. The view does not wait for
/// the disk: the journal makes sure that the records follow.
fn pass_on_origins(engine: &Engine, pool: &mut Pool, pending: &[Pending]) {
    for gone in pending {
        for snapshot in pool.filesystems.pass_on_origin(gone.uuid, gone.new_origin) {
            pool.put_filesystem(engine.platform(), snapshot);
        }
    }
}

fn clean_up(engine: &Engine, pool: &Pool, pending: &[Pending], survivors: &[FilesystemRecord]) -> Result<()> {
    let mut survivors = survivors.to_vec();
    pending.iter().try_for_each(|gone| setup::finish_destroy(engine.platform(), pool, gone, &mut survivors))
}

/// Renames a filesystem. `false`: it already has that name.
pub fn rename_filesystem(uuid: PoolUuid, id: FsUuid, name: Name) -> Step<Result<bool>> {
    write_pool(uuid, move |engine, pool| {
        let taken = Key::Filesystem(uuid, name.clone());
        if engine.claims().is_claimed(&taken) {
            return Step::parked(taken, rename_filesystem(uuid, id, name));
        }
        match rename(engine, pool, id, name) {
            Ok(None) => Step::Done(Ok(false)),
            Ok(Some(renamed)) => {
                let links = announce(engine, pool, [&renamed]);
                when_linked(links, Ok(true))
            }
            Err(error) => {
                pool.note_failure(&error);
                Step::Done(Err(error))
            }
        }
    })
}

fn rename(engine: &Engine, pool: &mut Pool, id: FsUuid, name: Name) -> Result<Option<Filesystem>> {
    pool.check_requests()?;
    let mut renamed = pool.filesystem(id)?.clone();
    if renamed.name == name {
        return Ok(None);
    }
    pool.check_not_failed(&name)?;
    if pool.filesystems.named(&name).is_some() {
        return Err(Error::FilesystemNameTaken { pool: pool.name().clone(), name });
    }
    renamed.record.name = name.as_str().to_owned();
    renamed.name = name;
    save_record(engine, pool, &renamed.record)?;
    pool.put_filesystem(engine.platform(), renamed.clone());
    Ok(Some(renamed))
}

/// Replaces the pool's record of a filesystem by a changed one.
///
/// # Errors
/// When the record cannot be written. The old one is then written again, because the new one may
/// have reached the disk.
pub(super) fn save_record(engine: &Engine, pool: &Pool, record: &FilesystemRecord) -> Result<()> {
    let platform = engine.platform();
    let mdv = Mdv::new(platform, pool.uuid());
    let old = pool.filesystem(record.uuid)?.record.clone();
    mdv.save(record).map_err(|cause| match mdv.save(&old) {
        Ok(()) => cause,
        Err(error) => Error::Rollback {
            cause: Box::new(cause),
            failures: vec![("write the former record again".to_owned(), error)],
            leaves: crate::view::Availability::NoRequests,
        },
    })
}

/// Refuses if one of these filesystems is mounted. Reads the mounts once, however many filesystems
/// there are.
pub(super) fn check_unmounted(
    platform: &dyn Platform,
    filesystems: impl Iterator<Item = (Name, DeviceNumber)>,
) -> Result<()> {
    let filesystems: Vec<(Name, DeviceNumber)> = filesystems.collect();
    let numbers: Vec<DeviceNumber> = filesystems.iter().map(|(_, number)| *number).collect();
    let mut mounts: HashMap<DeviceNumber, Vec<PathBuf>> = HashMap::new();
    for mount in platform.mounts(&numbers)? {
        mounts.entry(mount.number).or_default().push(mount.shown());
    }
    for (name, number) in filesystems {
        if let Some(mount_points) = mounts.remove(&number) {
            return Err(Error::Mounted { name, mount_points });
        }
    }
    Ok(())
}
