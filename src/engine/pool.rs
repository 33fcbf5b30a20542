//! A running pool: its record, devices, stack and filesystems, what restricts it, and the view that
//! clients get.
//!
//! Both metadata versions share this type. They differ only in the metadata's codec and in the list
//! of layers. The pool metadata is itself the state, so no second description of the layout can
//! disagree with it.
//!
//! Each part of a pool is a type that keeps its own invariants. An operation on several parts is a
//! method of [`Pool`], here or in a separate file:
//!
//! | Part | What it is | What needs other parts as well |
//! |---|---|---|
//! | `record` | the pool metadata | `commit`: the only place that changes it |
//! | `members` | the block devices | `space`, `sector_sizes` |
//! | `filesystems` | the filesystems: set up, failed, pending | |
//! | `growth_monitor` | what checks remember about the thin pool | |
//! | `encryption_state` | how the pool is unlocked, and the re-encryption job | `encryption` |
//! | `restrictions` | what restricts the pool | `availability` |
//! | `projection` | the pool as clients see it | `show` |
//!
//! The parts do not depend on [`Pool`].

mod availability;
mod commit;
mod encryption;
mod encryption_state;
mod filesystems;
mod growth_monitor;
mod members;
mod projection;
mod record;
mod restrictions;
pub(in crate::engine) mod sector_sizes;
mod show;
mod space;

pub use self::{
    commit::RESERVE_BYTES,
    filesystems::Filesystem,
    members::{Member, Members},
};
use self::{
    encryption_state::PoolEncryption, filesystems::Filesystems, growth_monitor::GrowthMonitor, projection::Projection,
    record::PoolRecord, restrictions::Restrictions,
};
use crate::{
    base::{
        ids::{DevUuid, FsUuid, PoolUuid},
        name::Name,
        units::{Bytes, SECTOR, Sectors},
    },
    engine::{
        dm_names::{self, Role},
        error::{Error, Result},
        layout::{self, NewDevice},
        metadata::{FilesystemRecord, MetadataVersion, PoolMetadata, pool::DeviceSegment},
        plan::{sizes, watching::Watched},
        stack::{Base, Piece, Shape, Stack},
        thin_status::{self, PoolStatus},
    },
    platform::{DeviceNumber, Platform},
    view::DeviceTier,
};

/// A running pool.
pub struct Pool {
    /// The name under which the daemon finds the pool. During a rename the metadata already has the
    /// new name.
    name: Name,
    /// What is recorded of the pool.
    record: PoolRecord,
    /// The devices of both tiers.
    pub(super) members: Members,
    /// Its layers.
    pub(super) stack: Stack,
    /// Its filesystems.
    pub(super) filesystems: Filesystems,
    /// The pool has given up its devices. Only its entry in the table is left.
    gone: bool,
    /// What checks remember about the thin pool.
    pub(super) growth: GrowthMonitor,
    /// How the pool is encrypted.
    encryption: PoolEncryption,
    /// What restricts the pool.
    restrictions: Restrictions,
    /// The pool as clients see it.
    projection: Projection,
}

impl Pool {
    /// Makes a pool without filesystems. Its backstore is up and described by `meta`.
    pub(super) fn new(
        uuid: PoolUuid,
        name: Name,
        version: MetadataVersion,
        meta: PoolMetadata,
        members: Members,
        stack: Stack,
    ) -> Pool {
        let mut pool = Pool {
            projection: Projection::new(uuid, name.clone(), version),
            name,
            record: PoolRecord::new(uuid, version, meta),
            members,
            stack,
            filesystems: Filesystems::default(),
            gone: false,
            growth: GrowthMonitor::default(),
            encryption: PoolEncryption::default(),
            restrictions: Restrictions::default(),
        };
        pool.show();
        pool
    }

    /// Its identifier.
    pub fn uuid(&self) -> PoolUuid {
        self.record.uuid()
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its metadata version.
    pub fn version(&self) -> MetadataVersion {
        self.record.version()
    }

    /// The pool metadata as recorded on the devices. See [`Pool::on_record`] for the one exception.
    pub(super) fn meta(&self) -> &PoolMetadata {
        self.record.meta()
    }

    /// The recorded name, from which links are made. It differs from [`Pool::name`] only during a
    /// rename.
    pub fn recorded_name(&self) -> Name {
        Name::new(&self.meta().name).unwrap_or_else(|_| self.name.clone())
    }

    /// Whether the pool has given up its devices.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    pub(super) fn set_gone(&mut self, gone: bool) {
        self.gone = gone;
    }

    /// Replaces this pool by `fresh`, which was just read from the devices. The pool keeps the name
    /// under which it is found. Thin device numbers given out in this run are not given out again.
    pub(super) fn become_as_read(&mut self, mut fresh: Pool) {
        fresh.name = self.name.clone();
        fresh.filesystems.follow_on(&self.filesystems);
        fresh.show();
        fresh.projection.mark_changed();
        *self = fresh;
    }

    /// Gives the pool the name that its metadata already has.
    pub(super) fn set_name(&mut self, name: Name) {
        self.name = name;
        self.show();
    }

    // ---- devices and layers ----

    /// The member with this device number and its tier, if the pool has one.
    pub(super) fn tier_of(&self, number: DeviceNumber) -> Option<(DevUuid, DeviceTier)> {
        let uuid = self.members.with_number(number)?;
        let tier =
            if self.meta().data_devices().any(|data| data == uuid) { DeviceTier::Data } else { DeviceTier::Cache };
        Some((uuid, tier))
    }

    /// The metadata with the admitted devices in it. `change` gets their records to be added.
    ///
    /// # Errors
    /// Those of `change`.
    pub(super) fn plan_devices(
        &self,
        admitted: &[DevUuid],
        change: impl FnOnce(&mut PoolMetadata, &[NewDevice<'_>]) -> Result<()>,
    ) -> Result<PoolMetadata> {
        let members = admitted.iter().filter_map(|uuid| self.members.get(*uuid));
        let new: Vec<NewDevice<'_>> = members
            .map(|member| NewDevice { header: member.bda.header(), hardware_info: member.device.wwn.as_deref() })
            .collect();
        let mut meta = self.meta().clone();
        change(&mut meta, &new)?;
        Ok(meta)
    }

    /// Notes the size of a data device as the kernel reports it now.
    pub(super) fn note_size(&mut self, device: DevUuid, size: Sectors) {
        self.members.note_size(device, size);
        self.show();
    }

    /// The stack that the pool's metadata asks for.
    pub(super) fn shape(&self) -> Shape {
        self.shape_of(self.meta())
    }

    /// The stack that `meta`, another state of the pool's metadata, asks for.
    pub(super) fn shape_of(&self, meta: &PoolMetadata) -> Shape {
        let usual = shape(self.version(), meta, &self.members);
        Shape { low_water: self.growth.low_water(usual.low_water), ..usual }
    }

    /// Logical sector size of the thin pool. The kernel refuses a thin device whose size is not a
    /// multiple of it.
    ///
    /// # Errors
    /// When the kernel does not report it.
    pub(super) fn sector_size(&self, platform: &dyn Platform) -> Result<Sectors> {
        let geometry = platform.geometry(&platform.dm_node(&Role::ThinPool.name(self.uuid())))?;
        Ok(Sectors(u64::from(geometry.logical) / SECTOR).max(Sectors(1)))
    }

    // ---- filesystems ----

    /// Finds a filesystem by its identifier.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn filesystem(&self, uuid: FsUuid) -> Result<&Filesystem> {
        self.filesystems.get(uuid).ok_or_else(|| Error::NoFilesystem { pool: self.name.clone(), filesystem: uuid })
    }

    /// Name of a filesystem's thin device.
    pub(super) fn thin_name(&self, filesystem: FsUuid) -> String {
        dm_names::filesystem(self.uuid(), filesystem)
    }

    /// A thin device number that is not in use and was not used in this run.
    ///
    /// # Errors
    /// When all 2^24 have been given out.
    pub(super) fn take_thin_id(&mut self) -> Result<u32> {
        self.filesystems.take_thin_id().ok_or_else(|| Error::ThinIdsUsedUp { pool: self.name.clone() })
    }

    /// Adds a filesystem, or updates one that has changed.
    pub(super) fn put_filesystem(&mut self, platform: &dyn Platform, filesystem: Filesystem) {
        self.projection.show_filesystem(filesystem.view(self.thin_usage(platform, &filesystem)));
        self.filesystems.put(filesystem);
    }

    /// Removes a filesystem from the pool.
    pub(super) fn drop_filesystem(&mut self, uuid: FsUuid) -> Option<Filesystem> {
        self.projection.hide_filesystem(uuid);
        self.filesystems.remove(uuid)
    }

    /// Notes a filesystem that could not be set up.
    pub(super) fn add_failed_filesystem(&mut self, record: FilesystemRecord, reason: String) {
        log::error!("filesystem {} ({}) of pool {} is left out: {reason}", record.name, record.uuid, self.name);
        self.filesystems.add_failed(record, reason);
        self.projection.show_failed(self.filesystems.view_failed());
    }

    /// Refuses the name of a recorded filesystem that could not be set up.
    pub(super) fn check_not_failed(&self, name: &Name) -> Result<()> {
        match self.filesystems.failed().any(|record| record.name == name.as_str()) {
            true => Err(Error::FailedFilesystem { pool: self.name.clone(), name: name.clone() }),
            false => Ok(()),
        }
    }

    /// The filesystems whose space is watched, with the last known values.
    pub(super) fn watched(&self) -> impl Iterator<Item = Watched> {
        self.filesystems.iter().map(|(id, filesystem)| {
            let used = self.projection.used_by(*id).and_then(Bytes::sectors);
            Watched::new(&filesystem.record, used.unwrap_or_default())
        })
    }

    // ---- what the kernel reports ----

    fn thin_usage(&self, platform: &dyn Platform, filesystem: &Filesystem) -> Option<Sectors> {
        let status = platform.dm_status(&self.thin_name(filesystem.record.uuid)).ok()?;
        thin_status::mapped(status.first()?)
    }

    /// Reads the status of the thin pool.
    ///
    /// # Errors
    /// When the kernel does not report it.
    pub(super) fn thin_pool_status(&mut self, platform: &dyn Platform) -> Result<PoolStatus> {
        let lines = platform.dm_status(&Role::ThinPool.name(self.uuid()))?;
        let text = lines.first().map_or("", String::as_str);
        self.growth.note_thin_state(&self.name, text);
        PoolStatus::parse(text)
            .ok_or_else(|| Error::ThinStatus { pool: self.name.clone(), status: text.chars().take(80).collect() })
    }

    /// Reads how full some of the filesystems are and updates the view. Skips filesystems that no
    /// longer exist.
    pub(super) fn refresh_filesystems(&mut self, platform: &dyn Platform, which: impl IntoIterator<Item = FsUuid>) {
        for filesystem in which.into_iter().filter_map(|id| self.filesystems.get(id)) {
            self.projection.show_filesystem(filesystem.view(self.thin_usage(platform, filesystem)));
        }
    }

    /// Reads how full the thin pool and the filesystems are and updates the view. `known` is the
    /// status of the thin pool if the caller has just read it. Returns the current status, if there
    /// is one.
    pub(super) fn refresh(&mut self, platform: &dyn Platform, known: Option<PoolStatus>) -> Option<PoolStatus> {
        let all: Vec<FsUuid> = self.filesystems.keys().copied().collect();
        self.refresh_filesystems(platform, all);
        self.refresh_thin_pool(platform, known)
    }

    /// As [`Pool::refresh`], but for the thin pool only: one query, however many filesystems there
    /// are.
    pub(super) fn refresh_thin_pool(
        &mut self,
        platform: &dyn Platform,
        known: Option<PoolStatus>,
    ) -> Option<PoolStatus> {
        let status = known.map_or_else(|| self.thin_pool_status(platform), Ok);
        let status = status.inspect_err(|error| log::warn!("pool {}: {}", self.name, error.sentence())).ok();
        self.projection.note_blocks_used(status.map(|status| status.data_used));
        self.show();
        status
    }
}

/// The stack that `meta` asks for on these devices.
pub(super) fn shape(version: MetadataVersion, meta: &PoolMetadata, members: &Members) -> Shape {
    let pieces = |segments: &[DeviceSegment]| -> Vec<Piece> {
        let piece = |segment: &DeviceSegment| {
            let member = members.get(segment.parent)?;
            let base = Base::Device(member.device.number);
            Some(Piece { base, start: segment.start, length: segment.length })
        };
        segments.iter().filter_map(piece).collect()
    };
    let flex = &meta.flex_devs;
    Shape {
        version,
        data: pieces(meta.data_segments()),
        cache: meta.cache_segments().map(|(blocks, metadata)| (pieces(metadata), pieces(blocks))),
        mdv: flex.meta_dev.clone(),
        thin_meta: flex.thin_meta_dev.clone(),
        thin_meta_spare: flex.thin_meta_dev_spare.clone(),
        thin_data: flex.thin_data_dev.clone(),
        low_water: sizes::low_water(layout::total(&flex.thin_data_dev)),
        features: meta.thinpool_dev.features(),
        crypt_header: meta.is_encrypted().then(|| meta.crypt_reserved()),
    }
}
