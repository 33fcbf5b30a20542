//! The filesystems of a pool: those that are set up, those that could not be set up, and those that
//! are being created. Names, thin device numbers and sizes count until the filesystem is gone, in
//! whichever of the three groups it is.

use std::{
    collections::{BTreeMap, btree_map},
    ops::Bound,
};

use crate::{
    base::{ids::FsUuid, name::Name, units::Sectors},
    engine::metadata::{FilesystemRecord, filesystem::THIN_ID_MAX},
    platform::DeviceNumber,
    view,
};

/// A filesystem of the pool.
#[derive(Debug, Clone)]
pub struct Filesystem {
    /// Its record.
    pub record: FilesystemRecord,
    /// Its name.
    pub name: Name,
    /// Its thin device.
    pub number: DeviceNumber,
}

impl Filesystem {
    /// The filesystem as clients see it, with this much of it in use.
    pub(super) fn view(&self, used: Option<Sectors>) -> view::FilesystemView {
        view::FilesystemView {
            uuid: self.record.uuid,
            name: self.name.clone(),
            created: self.record.created,
            size: self.record.size,
            used: used.map(Sectors::bytes),
            size_limit: self.record.fs_size_limit,
            origin: self.record.origin,
            merge_scheduled: self.record.merge,
        }
    }
}

/// A filesystem that is recorded but could not be set up.
#[derive(Debug, Clone)]
struct FailedFilesystem {
    record: FilesystemRecord,
    /// Why the set-up failed.
    reason: String,
}

/// The filesystems of a pool.
#[derive(Debug, Default)]
pub struct Filesystems {
    set_up: BTreeMap<FsUuid, Filesystem>,
    /// Filesystems that could not be set up. Their names, number and sizes still count: otherwise
    /// the pool would give them out again. Their contents are not given up, because the next set-up
    /// of the pool may bring them back.
    failed: Vec<FailedFilesystem>,
    /// Filesystems that are being created, with their sizes. They count against the limits for
    /// other new filesystems.
    pending: BTreeMap<FsUuid, Sectors>,
    /// The next thin device number to give out.
    next_thin_id: u32,
}

impl Filesystems {
    // ---- set up ----

    /// Whether none is set up.
    pub fn is_empty(&self) -> bool {
        self.set_up.is_empty()
    }

    /// How many are set up.
    pub fn len(&self) -> usize {
        self.set_up.len()
    }

    /// Whether the filesystem is set up.
    pub fn contains(&self, uuid: FsUuid) -> bool {
        self.set_up.contains_key(&uuid)
    }

    /// Finds a filesystem that is set up.
    pub fn get(&self, uuid: FsUuid) -> Option<&Filesystem> {
        self.set_up.get(&uuid)
    }

    /// The filesystems that are set up, with their identifiers.
    pub fn iter(&self) -> btree_map::Iter<'_, FsUuid, Filesystem> {
        self.set_up.iter()
    }

    /// The identifiers of the filesystems that are set up.
    pub fn keys(&self) -> btree_map::Keys<'_, FsUuid, Filesystem> {
        self.set_up.keys()
    }

    /// The filesystems that are set up.
    pub fn values(&self) -> btree_map::Values<'_, FsUuid, Filesystem> {
        self.set_up.values()
    }

    /// The filesystems that are set up and come after this one; `None`: all of them.
    pub fn after(&self, uuid: Option<FsUuid>) -> btree_map::Range<'_, FsUuid, Filesystem> {
        self.set_up.range((uuid.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded))
    }

    /// Finds a filesystem that is set up by its name.
    pub fn named(&self, name: &Name) -> Option<(FsUuid, &Filesystem)> {
        // A pool has few names, and only requests that write to disk look them up. A second index
        // would have to be kept consistent.
        self.set_up.iter().find(|(_, filesystem)| filesystem.name == *name).map(|(uuid, found)| (*uuid, found))
    }

    /// Adds a filesystem that is set up, or updates one that has changed.
    pub(super) fn put(&mut self, filesystem: Filesystem) {
        self.set_up.insert(filesystem.record.uuid, filesystem);
    }

    /// Removes a filesystem that is set up.
    pub(super) fn remove(&mut self, uuid: FsUuid) -> Option<Filesystem> {
        self.set_up.remove(&uuid)
    }

    /// Notes the number that the thin device of a filesystem has now, if the filesystem is set up.
    pub fn set_number(&mut self, uuid: FsUuid, number: DeviceNumber) -> Option<&Filesystem> {
        let filesystem = self.set_up.get_mut(&uuid)?;
        filesystem.number = number;
        Some(filesystem)
    }

    // ---- failed ----

    /// Adds a filesystem that could not be set up.
    pub(super) fn add_failed(&mut self, record: FilesystemRecord, reason: String) {
        self.failed.push(FailedFilesystem { record, reason });
    }

    /// Records of the filesystems that could not be set up.
    pub fn failed(&self) -> impl ExactSizeIterator<Item = &FilesystemRecord> {
        self.failed.iter().map(|failed| &failed.record)
    }

    /// The filesystems that could not be set up, as clients see them.
    pub(super) fn view_failed(&self) -> impl Iterator<Item = view::FailedFilesystemView> {
        self.failed.iter().map(|FailedFilesystem { record, reason }| view::FailedFilesystemView {
            uuid: record.uuid,
            name: record.name.clone(),
            reason: reason.clone(),
        })
    }

    // ---- all that are recorded ----

    /// Records of all filesystems, including those that could not be set up.
    pub fn records(&self) -> impl Iterator<Item = &FilesystemRecord> {
        self.set_up.values().map(|filesystem| &filesystem.record).chain(self.failed())
    }

    /// How many filesystems are recorded, set up or not.
    pub fn recorded(&self) -> usize {
        self.set_up.len().saturating_add(self.failed.len())
    }

    /// Makes `new_origin` the origin of the snapshots of a removed filesystem. Returns the changed
    /// snapshots that are set up; the caller has to put them into the pool.
    pub fn pass_on_origin(&mut self, gone: FsUuid, new_origin: Option<FsUuid>) -> Vec<Filesystem> {
        let is_snapshot = |record: &FilesystemRecord| record.origin == Some(gone);
        for failed in self.failed.iter_mut().filter(|failed| is_snapshot(&failed.record)) {
            failed.record.origin = new_origin;
        }
        let mut snapshots: Vec<_> = self.set_up.values().filter(|found| is_snapshot(&found.record)).cloned().collect();
        snapshots.iter_mut().for_each(|snapshot| snapshot.record.origin = new_origin);
        snapshots
    }

    // ---- pending ----

    /// Notes filesystems that are being created, with their sizes.
    pub fn add_pending(&mut self, filesystems: impl IntoIterator<Item = (FsUuid, Sectors)>) {
        self.pending.extend(filesystems);
    }

    /// Notes that a filesystem is no longer being created.
    pub fn remove_pending(&mut self, uuid: FsUuid) {
        self.pending.remove(&uuid);
    }

    /// Sizes of the filesystems that are being created.
    pub fn pending_sizes(&self) -> impl ExactSizeIterator<Item = Sectors> {
        self.pending.values().copied()
    }

    /// Sum of the sizes of all filesystems, including those that could not be set up and those
    /// being created.
    pub fn size(&self) -> Sectors {
        let sizes = self.records().map(|record| record.size).chain(self.pending_sizes());
        sizes.fold(Sectors::ZERO, Sectors::saturating_add)
    }

    // ---- thin device numbers ----

    /// A thin device number that is not in use and was not used in this run; `None`: all 2^24 have
    /// been given out.
    pub(super) fn take_thin_id(&mut self) -> Option<u32> {
        let id = self.next_thin_id;
        if id > THIN_ID_MAX {
            return None;
        }
        self.next_thin_id += 1;
        Some(id)
    }

    /// Marks all thin device numbers up to `id` as taken.
    pub fn note_thin_id(&mut self, id: u32) {
        self.next_thin_id = self.next_thin_id.max(id.saturating_add(1));
    }

    /// Marks all thin device numbers as taken that `former` has given out.
    pub(super) fn follow_on(&mut self, former: &Filesystems) {
        self.next_thin_id = self.next_thin_id.max(former.next_thin_id);
    }
}
