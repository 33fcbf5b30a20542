//! A running pool: its metadata, devices, stack and filesystems, and the view that clients get.
//!
//! Both metadata versions share this type. They differ only in the metadata's codec and in the list
//! of layers. The pool metadata is itself the state, so no second description of the layout can
//! disagree with it.

mod availability;
mod encryption;
mod record;
pub(in crate::engine) mod sector_sizes;

use std::{cmp::Ordering, collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    base::{
        ids::{DevUuid, FsUuid, PoolUuid},
        name::Name,
        units::{Bytes, DataBlocks, SECTOR, Sectors},
    },
    engine::{
        bda::{self, Bda},
        devices::{Candidate, Initialized},
        dm_names::{self, Role},
        encryption::Info,
        error::{Error, Result},
        layout::{self, NewDevice},
        luks_device::LuksDevice,
        metadata::{
            FilesystemRecord, HeaderFlags, MetadataVersion, PoolMetadata, StaticHeader,
            filesystem::THIN_ID_MAX,
            pool::{DeviceSegment, Tier as TierRecord},
        },
        plan::{growth::Growth, sizes, watching::Watched},
        stack::{Base, Piece, Shape, Stack},
        thin_status::{self, PoolStatus, State},
    },
    platform::{BlockDevice, DeviceNumber, Geometry, Platform},
    view::{self, Availability, Tier},
};

pub use self::record::RESERVE_BYTES;

/// A block device of the pool.
#[derive(Debug, Clone)]
pub struct Member {
    /// The device.
    pub device: BlockDevice,
    /// The size that the kernel reports now, and the sector sizes.
    pub geometry: Geometry,
    /// The device's BDA.
    pub bda: Bda,
    /// The LUKS2 container of the device, in an encrypted version 1 pool. `device` is then the
    /// crypt device on it.
    pub container: Option<LuksDevice>,
}

impl Member {
    /// Makes a member of a device that has just been initialized.
    pub fn of(candidate: Candidate, bda: Bda) -> Member {
        Member { device: candidate.device, geometry: candidate.geometry, bda, container: candidate.container }
    }

    /// The block device that users see: the container if there is one.
    pub fn outer(&self) -> &BlockDevice {
        self.container.as_ref().map_or(&self.device, |luks_device| &luks_device.device)
    }
}

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

/// A filesystem that is recorded but could not be set up.
#[derive(Debug, Clone)]
pub(super) struct LeftOut {
    /// Its record.
    pub record: FilesystemRecord,
    /// Why the set-up failed.
    pub reason: String,
}

/// A running pool.
pub struct Pool {
    uuid: PoolUuid,
    /// The name under which the daemon finds the pool. During a rename the metadata already has the
    /// new name.
    name: Name,
    version: MetadataVersion,
    /// The pool metadata as recorded on the devices. See [`Pool::on_record`] for the one exception.
    pub(super) meta: PoolMetadata,
    /// The recorded cache tier, if the pool was set up without it.
    former_cache: Option<TierRecord>,
    /// The devices of both tiers.
    pub(super) members: BTreeMap<DevUuid, Member>,
    /// Its layers.
    pub(super) stack: Stack,
    /// Its filesystems.
    pub(super) filesystems: BTreeMap<FsUuid, Filesystem>,
    /// Filesystems that could not be set up. Their names, number and sizes still count: otherwise
    /// the pool would give them out again. Their contents are not given up, because the next set-up
    /// of the pool may bring them back.
    left_out: Vec<LeftOut>,
    /// Filesystems that are being created, with their sizes. They count against the limits for
    /// other new filesystems.
    pub(super) unborn: BTreeMap<FsUuid, Sectors>,
    /// The next thin device number to give out.
    next_thin_id: u32,
    /// The pool has given up its devices. Only its entry in the table is left.
    gone: bool,
    /// The thin metadata could not grow as it should, and nothing has changed since that might make
    /// it possible.
    pub(super) metadata_exhausted: bool,
    /// The kernel's tables lag behind the recorded metadata.
    pub(super) is_behind: bool,
    /// A growth that the kernel refused, with the space available then. The pool does not try that
    /// growth again until the space changes.
    pub(super) refused: Option<(Growth, Sectors)>,
    /// The size that the thin metadata should have, as computed for this much space and this many
    /// filesystems.
    pub(super) metadata_needed: Option<((Sectors, u64), Sectors)>,
    /// The low-water mark at which the kernel should raise an event; `None`: the usual one.
    pub(super) low_water: Option<DataBlocks>,
    /// When to check the pool again. No event tells that somebody is writing.
    pub(super) look_again: Option<Duration>,
    /// How long no write was seen, as far as the checks can tell.
    pub(super) quiet: Duration,
    /// Data blocks in use at the last check.
    data_used: Option<DataBlocks>,
    /// State of the thin pool at the last check.
    thin_state: Option<State>,
    /// Data blocks in use, as clients see them; `None` if the thin pool does not report them.
    blocks_shown: Option<DataBlocks>,
    /// How the pool can be unlocked; `None` if it is not encrypted.
    encryption: Option<Info>,
    /// The pool's volume key is in the daemon's keyring (version 2).
    volume_key_loaded: bool,
    /// The re-encryption job on the pool's data that is running, or that was interrupted and will
    /// continue soon.
    pub(super) work: Option<Arc<view::Work>>,
    /// The worst known damage: how far it restricts the pool, and why. It stays until the next
    /// set-up of the pool.
    damage: Option<(Availability, Arc<str>)>,
    /// Why the record is unsure, if it is: the next set-up may find a state that was to be taken
    /// back. The record is sure again once the former state has been written once more.
    unsure: Option<Arc<str>>,
    /// The thin pool is out of metadata space and could not get any. This ends by itself once there
    /// is some.
    starved: bool,
    shown: view::Pool,
    changed: bool,
}

impl Pool {
    /// Makes a pool without filesystems. Its backstore is up and described by `meta`.
    pub(super) fn new(
        uuid: PoolUuid,
        name: Name,
        version: MetadataVersion,
        meta: PoolMetadata,
        members: BTreeMap<DevUuid, Member>,
        stack: Stack,
    ) -> Pool {
        let shown = view::Pool {
            uuid,
            name: name.clone(),
            metadata_version: version.number(),
            encryption: None,
            volume_key_loaded: false,
            last_reencrypt: None,
            work: None,
            availability: Availability::Full,
            restriction: None,
            has_cache: false,
            fs_limit: sizes::FS_LIMIT,
            overprovisioning: true,
            no_alloc_space: false,
            total: Sectors::ZERO,
            allocated: Sectors::ZERO,
            used: None,
            filesystems: imbl::OrdMap::new(),
            left_out: Arc::default(),
            devices: imbl::OrdMap::new(),
        };
        let mut pool = Pool {
            uuid,
            name,
            version,
            meta,
            former_cache: None,
            members,
            stack,
            filesystems: BTreeMap::new(),
            left_out: Vec::new(),
            unborn: BTreeMap::new(),
            next_thin_id: 0,
            gone: false,
            metadata_exhausted: false,
            is_behind: false,
            refused: None,
            metadata_needed: None,
            low_water: None,
            look_again: None,
            quiet: Duration::ZERO,
            data_used: None,
            thin_state: None,
            blocks_shown: None,
            encryption: None,
            volume_key_loaded: false,
            work: None,
            damage: None,
            unsure: None,
            starved: false,
            shown,
            changed: true,
        };
        pool.show();
        pool
    }

    /// Its identifier.
    pub fn uuid(&self) -> PoolUuid {
        self.uuid
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its metadata version.
    pub fn version(&self) -> MetadataVersion {
        self.version
    }

    /// The recorded name, from which links are made. It differs from [`Pool::name`] only during a
    /// rename.
    pub fn recorded_name(&self) -> Name {
        Name::new(&self.meta.name).unwrap_or_else(|_| self.name.clone())
    }

    /// The pool as clients see it now.
    pub fn view(&self) -> Arc<view::Pool> {
        Arc::new(self.shown.clone())
    }

    /// The pool as clients see it, if that changed since the last call.
    pub fn take_change(&mut self) -> Option<Arc<view::Pool>> {
        std::mem::take(&mut self.changed).then(|| self.view())
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
        fresh.next_thin_id = fresh.next_thin_id.max(self.next_thin_id);
        fresh.show();
        fresh.changed = true;
        *self = fresh;
    }

    /// Gives the pool the name that its metadata already has.
    pub(super) fn set_name(&mut self, name: Name) {
        self.name = name;
        self.show();
    }

    // ---- devices ----

    /// The pool's devices, both containers and the crypt devices on them: device number, node,
    /// identifier.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (DeviceNumber, PathBuf, DevUuid)> {
        let outer = self.members.iter().filter(|(_, member)| member.container.is_some());
        let outer = outer.map(|(uuid, member)| (member.outer(), *uuid));
        let all = self.members.iter().map(|(uuid, member)| (&member.device, *uuid)).chain(outer);
        all.map(|(device, uuid)| (device.number, device.path.clone(), uuid))
    }

    /// The member with this device number and its tier, if the pool has one.
    pub(super) fn tier_of(&self, number: DeviceNumber) -> Option<(DevUuid, Tier)> {
        let is_meant = |member: &Member| [member.device.number, member.outer().number].contains(&number);
        let (uuid, _) = self.members.iter().find(|(_, member)| is_meant(member))?;
        let tier = if self.meta.data_devices().any(|data| data == *uuid) { Tier::Data } else { Tier::Cache };
        Some((*uuid, tier))
    }

    /// Makes newly initialized devices members. The metadata does not name them yet.
    pub(super) fn admit(&mut self, initialized: Vec<Initialized>) -> Vec<DevUuid> {
        let admit = |Initialized { candidate, bda }: Initialized| {
            let uuid = bda.header().device;
            self.members.insert(uuid, Member::of(candidate, bda));
            uuid
        };
        initialized.into_iter().map(admit).collect()
    }

    /// Drops members that [`Pool::admit`] added.
    pub(super) fn dismiss(&mut self, devices: &[DevUuid]) {
        self.members.retain(|uuid, _| !devices.contains(uuid));
    }

    /// The metadata with the admitted devices in it. `change` gets their records.
    ///
    /// # Errors
    /// Those of `change`.
    pub(super) fn plan_devices(
        &self,
        admitted: &[DevUuid],
        change: impl FnOnce(&mut PoolMetadata, &[NewDevice<'_>]) -> Result<()>,
    ) -> Result<PoolMetadata> {
        let members = admitted.iter().filter_map(|uuid| self.members.get(uuid));
        let new: Vec<NewDevice<'_>> = members
            .map(|member| NewDevice { header: member.bda.header(), hardware_info: member.device.wwn.as_deref() })
            .collect();
        let mut meta = self.meta.clone();
        change(&mut meta, &new)?;
        Ok(meta)
    }

    /// Signature blocks of its devices.
    pub(super) fn headers(&self) -> Vec<StaticHeader> {
        self.members.values().map(|member| *member.bda.header()).collect()
    }

    /// Signature blocks of the devices, for allocating space. Where a device has shrunk, the block
    /// gives only the size that is left, because the kernel accepts no table that goes past the end
    /// of a device.
    pub(super) fn headers_as_found(&self) -> Vec<StaticHeader> {
        let mut headers = self.headers();
        for header in &mut headers {
            let found = self.members.get(&header.device).map_or(header.device_size, |member| member.geometry.size);
            header.device_size = header.device_size.min(found.max(self.meta.used_up_to(header.device)));
        }
        headers
    }

    /// Space of a device that could be handed out if the device had not shrunk.
    fn lost(&self, device: DevUuid) -> Sectors {
        let Some(member) = self.members.get(&device) else { return Sectors::ZERO };
        let end = member.bda.header().device_size.saturating_sub(self.meta.integrity_reserved(device));
        end.saturating_sub(member.geometry.size.max(self.meta.used_up_to(device)))
    }

    /// The stack that the pool's metadata asks for.
    pub(super) fn shape(&self) -> Shape {
        self.shape_of(&self.meta)
    }

    /// The stack that `meta`, another state of the pool's metadata, asks for.
    pub(super) fn shape_of(&self, meta: &PoolMetadata) -> Shape {
        let usual = shape(self.version, meta, &self.members);
        Shape { low_water: self.low_water.unwrap_or(usual.low_water), ..usual }
    }

    /// Repairs the signature blocks of the devices, once the metadata tells how unfinished requests
    /// ended: rewrites damaged copies and clears the marks of those requests. A signature block
    /// that cannot be written does no harm beside such metadata; the next set-up tries again.
    pub(super) fn confirm_members(&mut self, platform: &dyn Platform) {
        let marks = HeaderFlags::UNCOMMITTED.with(HeaderFlags::GROWN);
        let members = self.members.values_mut();
        let mut devices: Vec<_> = members.map(|member| (member.device.path.as_path(), &mut member.bda)).collect();
        // This writes nothing if there is nothing to do.
        let cleared = bda::clear_flags(platform, &mut devices, marks);
        for ((path, _), cleared) in devices.into_iter().zip(cleared) {
            if let Err(error) = cleared {
                log::warn!("cannot write the header of {}: {}", path.display(), Error::from(error).sentence());
            }
        }
    }

    // ---- filesystems ----

    /// Finds a filesystem by its identifier.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn filesystem(&self, uuid: FsUuid) -> Result<&Filesystem> {
        self.filesystems.get(&uuid).ok_or_else(|| Error::NoFilesystem { pool: self.name.clone(), filesystem: uuid })
    }

    /// Finds a filesystem by its name.
    pub(super) fn filesystem_named(&self, name: &Name) -> Option<(FsUuid, &Filesystem)> {
        // A pool has few names, and only requests that write to disk look them up. A second index
        // would have to be kept consistent.
        self.filesystems.iter().find(|(_, filesystem)| filesystem.name == *name).map(|(uuid, found)| (*uuid, found))
    }

    /// Notes a filesystem that could not be set up.
    pub(super) fn leave_out(&mut self, record: FilesystemRecord, reason: String) {
        log::error!("filesystem {} ({}) of pool {} is left out: {reason}", record.name, record.uuid, self.name);
        self.left_out.push(LeftOut { record, reason });
        let shown = self.left_out.iter().map(|LeftOut { record, reason }| view::LeftOut {
            uuid: record.uuid,
            name: record.name.clone(),
            reason: reason.clone(),
        });
        self.shown.left_out = shown.collect();
        self.changed = true;
    }

    /// Records of the filesystems that could not be set up.
    pub(super) fn left_out(&self) -> impl ExactSizeIterator<Item = &FilesystemRecord> {
        self.left_out.iter().map(|left_out| &left_out.record)
    }

    /// Records of all filesystems, including those that could not be set up.
    pub(super) fn records(&self) -> impl Iterator<Item = &FilesystemRecord> {
        self.filesystems.values().map(|filesystem| &filesystem.record).chain(self.left_out())
    }

    /// How many filesystems are recorded, set up or not.
    pub(super) fn recorded(&self) -> usize {
        self.filesystems.len().saturating_add(self.left_out.len())
    }

    /// Refuses the name of a recorded filesystem that could not be set up.
    pub(super) fn check_left_out(&self, name: &Name) -> Result<()> {
        match self.left_out().any(|record| record.name == name.as_str()) {
            true => Err(Error::LeftOut { pool: self.name.clone(), name: name.clone() }),
            false => Ok(()),
        }
    }

    /// Makes `heir` the origin of the snapshots of a removed filesystem. Returns the changed
    /// snapshots that are set up; the caller has to put them into the pool.
    pub(super) fn pass_on_origin(&mut self, gone: FsUuid, heir: Option<FsUuid>) -> Vec<Filesystem> {
        let is_snapshot = |record: &FilesystemRecord| record.origin == Some(gone);
        for left_out in self.left_out.iter_mut().filter(|left_out| is_snapshot(&left_out.record)) {
            left_out.record.origin = heir;
        }
        let mut snapshots: Vec<_> =
            self.filesystems.values().filter(|found| is_snapshot(&found.record)).cloned().collect();
        snapshots.iter_mut().for_each(|snapshot| snapshot.record.origin = heir);
        snapshots
    }

    /// Name of a filesystem's thin device.
    pub(super) fn thin_name(&self, filesystem: FsUuid) -> String {
        dm_names::filesystem(self.uuid, filesystem)
    }

    /// A thin device number that is not in use and was not used in this run.
    ///
    /// # Errors
    /// When all 2^24 have been given out.
    pub(super) fn take_thin_id(&mut self) -> Result<u32> {
        let id = self.next_thin_id;
        if id > THIN_ID_MAX {
            return Err(Error::ThinIdsUsedUp { pool: self.name.clone() });
        }
        self.next_thin_id += 1;
        Ok(id)
    }

    /// Marks all thin device numbers up to `id` as taken.
    pub(super) fn note_thin_id(&mut self, id: u32) {
        self.next_thin_id = self.next_thin_id.max(id.saturating_add(1));
    }

    /// Adds a filesystem, or updates one that has changed.
    pub(super) fn put_filesystem(&mut self, platform: &dyn Platform, filesystem: Filesystem) {
        let used = self.thin_usage(platform, &filesystem);
        let shown = filesystem.view(used);
        self.shown.filesystems.insert(shown.uuid, Arc::new(shown));
        self.filesystems.insert(filesystem.record.uuid, filesystem);
        self.changed = true;
    }

    /// Removes a filesystem from the pool.
    pub(super) fn drop_filesystem(&mut self, uuid: FsUuid) -> Option<Filesystem> {
        self.shown.filesystems.remove(&uuid);
        self.changed = true;
        self.filesystems.remove(&uuid)
    }

    fn thin_usage(&self, platform: &dyn Platform, filesystem: &Filesystem) -> Option<Sectors> {
        let status = platform.dm_status(&self.thin_name(filesystem.record.uuid)).ok()?;
        thin_status::mapped(status.first()?)
    }

    // ---- sizes (`docs/spec/engine/storage-stack.md` §4, 11) ----

    /// Logical sector size of the thin pool. The kernel refuses a thin device whose size is not a
    /// multiple of it.
    ///
    /// # Errors
    /// When the kernel does not report it.
    pub(super) fn sector_size(&self, platform: &dyn Platform) -> Result<Sectors> {
        let geometry = platform.geometry(&platform.dm_node(&Role::ThinPool.name(self.uuid)))?;
        Ok(Sectors(u64::from(geometry.logical) / SECTOR).max(Sectors(1)))
    }

    /// Space that Stratis' own metadata takes on the data devices.
    pub(super) fn metadata_size(&self) -> Sectors {
        let of_device = |uuid: DevUuid| {
            let area = self.members.get(&uuid).map_or(Sectors::ZERO, |member| member.bda.header().extended_size());
            area.saturating_add(self.meta.integrity_reserved(uuid))
        };
        let devices = self.meta.data_devices().map(of_device).fold(Sectors::ZERO, Sectors::saturating_add);
        devices.saturating_add(self.meta.crypt_reserved())
    }

    /// Recorded size of all data devices.
    pub(super) fn total_size(&self) -> Sectors {
        let size = |uuid: DevUuid| self.members.get(&uuid).map_or(Sectors::ZERO, |m| m.bda.header().device_size);
        self.meta.data_devices().map(size).fold(Sectors::ZERO, Sectors::saturating_add)
    }

    /// Space of the data devices that is available to the layers above.
    pub(super) fn usable_size(&self) -> Sectors {
        self.total_size().saturating_sub(self.metadata_size())
    }

    /// Usable space that has not been handed out.
    pub(super) fn available(&self) -> Sectors {
        let lost =
            self.meta.data_devices().map(|device| self.lost(device)).fold(Sectors::ZERO, Sectors::saturating_add);
        self.usable_size().saturating_sub(self.meta.handed_out()).saturating_sub(lost)
    }

    /// Space that the thin pool can get now. During a re-encryption job there is none, because the
    /// container cannot be made larger.
    pub(super) fn growable(&self) -> Sectors {
        match &self.work {
            Some(_) if self.version == MetadataVersion::V2 => self.available().min(self.meta.taken_ahead(self.version)),
            _ => self.available(),
        }
    }

    /// Size of the thin pool's metadata device.
    pub(super) fn thin_metadata(&self) -> Sectors {
        layout::total(&self.meta.flex_devs.thin_meta_dev)
    }

    /// Space left for filesystems if all of them are as large as they say.
    pub(super) fn room(&self) -> Sectors {
        sizes::room(self.usable_size(), self.thin_metadata())
    }

    /// Sum of the sizes of all filesystems, including those that could not be set up and those
    /// being created.
    pub(super) fn filesystems_size(&self) -> Sectors {
        let sizes = self.records().map(|record| record.size).chain(self.unborn.values().copied());
        sizes.fold(Sectors::ZERO, Sectors::saturating_add)
    }

    /// The filesystems whose space is watched, with the last known values.
    pub(super) fn watched(&self) -> impl Iterator<Item = Watched> {
        self.filesystems.iter().map(|(id, filesystem)| {
            let used = self.shown.filesystems.get(id).and_then(|shown| shown.used);
            Watched::new(&filesystem.record, used.and_then(Bytes::sectors).unwrap_or_default())
        })
    }

    /// State of the thin pool at the last check.
    pub(super) fn thin_state(&self) -> Option<State> {
        self.thin_state
    }

    /// Notes the state of the thin pool and logs a change.
    fn note_thin_state(&mut self, text: &str) {
        let state = thin_status::state(text);
        let before = std::mem::replace(&mut self.thin_state, state);
        match state {
            _ if before == state || before.is_none() && state == Some(State::ReadWrite) => {}
            Some(State::ReadWrite) => log::info!("the thin pool of {} works normally again", self.name),
            Some(state) => log::warn!("the thin pool of {} {}", self.name, state.says()),
            None => log::warn!("the thin pool of {} does not tell its state", self.name),
        }
    }

    /// Reads the status of the thin pool.
    ///
    /// # Errors
    /// When the kernel does not report it.
    pub(super) fn thin_pool_status(&mut self, platform: &dyn Platform) -> Result<PoolStatus> {
        let lines = platform.dm_status(&Role::ThinPool.name(self.uuid))?;
        let text = lines.first().map_or("", String::as_str);
        self.note_thin_state(text);
        PoolStatus::parse(text)
            .ok_or_else(|| Error::ThinStatus { pool: self.name.clone(), status: text.chars().take(80).collect() })
    }

    /// Reads how full some of the filesystems are and updates the view. Skips filesystems that are
    /// gone.
    pub(super) fn refresh_filesystems(&mut self, platform: &dyn Platform, which: impl IntoIterator<Item = FsUuid>) {
        for filesystem in which.into_iter().filter_map(|id| self.filesystems.get(&id)) {
            let shown = filesystem.view(self.thin_usage(platform, filesystem));
            if self.shown.filesystems.get(&shown.uuid).is_none_or(|known| **known != shown) {
                self.shown.filesystems.insert(shown.uuid, Arc::new(shown));
                self.changed = true;
            }
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

    /// As [`Pool::refresh`], but for the thin pool only: one query however many filesystems there
    /// are.
    pub(super) fn refresh_thin_pool(
        &mut self,
        platform: &dyn Platform,
        known: Option<PoolStatus>,
    ) -> Option<PoolStatus> {
        let status = known.map_or_else(|| self.thin_pool_status(platform), Ok);
        let status = status.inspect_err(|error| log::warn!("pool {}: {}", self.name, error.sentence())).ok();
        self.blocks_shown = status.map(|status| status.data_used);
        self.show();
        status
    }

    /// Notes how many data blocks are in use, `time` after the last check.
    pub(super) fn note_use(&mut self, used: DataBlocks, time: Duration) {
        match self.data_used.replace(used) {
            Some(before) if before == used => self.quiet = self.quiet.saturating_add(time),
            _ => self.quiet = Duration::ZERO,
        }
    }

    /// Notes the size of a data device as the kernel reports it now.
    pub(super) fn note_size(&mut self, device: DevUuid, size: Sectors) {
        if let Some(member) = self.members.get_mut(&device) {
            let (path, known) = (member.device.path.display(), member.bda.header().device_size);
            let (now, recorded) = (size.readable(), known.readable());
            match size.cmp(&known) {
                _ if member.geometry.size == size => {}
                Ordering::Less => log::warn!("{path} has shrunk to {now} from {recorded}: data in it may be lost"),
                Ordering::Equal => log::info!("{path} has its recorded size of {recorded} again"),
                Ordering::Greater => log::info!("{path} now has {now}; grow it in the pool to use that"),
            }
            member.geometry.size = size;
            self.show();
        }
    }

    /// Updates the view from the metadata and the members.
    pub(super) fn show(&mut self) {
        let mut shown = self.shown.clone();
        shown.name = self.name.clone();
        shown.last_reencrypt = self.meta.last_reencrypt;
        shown.encryption = self.encryption.as_ref().map(Info::view);
        shown.volume_key_loaded = self.volume_key_loaded;
        shown.work = self.work.clone();
        shown.has_cache = self.meta.backstore.cache_tier.is_some();
        shown.fs_limit = self.fs_limit();
        shown.overprovisioning = self.overprovisioning();
        shown.no_alloc_space = self.meta.thinpool_dev.errors_if_no_space();
        shown.total = self.total_size();
        shown.allocated = self.meta.allocated(self.version).saturating_add(self.metadata_size());
        let other = self.meta.flexible_metadata_size().saturating_add(self.metadata_size());
        shown.used = self.blocks_shown.map(|blocks| sizes::sectors(blocks).saturating_add(other));
        let listed = self.meta.device_entries().filter_map(|(tier, entry)| {
            let member = self.members.get(&entry.uuid)?;
            let header = member.bda.header();
            let size_now = member.geometry.size;
            Some(view::Device {
                uuid: entry.uuid,
                tier,
                node: member.device.path.clone(),
                physical: member.outer().path.clone(),
                hardware_info: entry.hardware_info.clone(),
                user_info: entry.user_info.clone(),
                initialized: header.initialized,
                size: header.device_size,
                new_size: (size_now != header.device_size).then_some(size_now),
                in_use: self.meta.is_in_use(entry.uuid),
                sector_bytes: (member.geometry.logical, member.geometry.physical),
            })
        });
        // Unchanged values keep their allocation, so that a comparison does not look into them.
        let mut devices = imbl::OrdMap::new();
        for device in listed {
            let kept = self.shown.devices.get(&device.uuid).filter(|known| ***known == device).cloned();
            devices.insert(device.uuid, kept.unwrap_or_else(|| Arc::new(device)));
        }
        shown.devices = devices;
        if shown != self.shown {
            self.shown = shown;
            self.changed = true;
        }
    }

    /// Largest number of filesystems.
    pub(super) fn fs_limit(&self) -> u64 {
        let recorded = u64::try_from(self.recorded()).unwrap_or(u64::MAX);
        self.meta.thinpool_dev.fs_limit.unwrap_or(sizes::FS_LIMIT.max(recorded))
    }

    /// Whether the filesystems together may be larger than the pool.
    pub(super) fn overprovisioning(&self) -> bool {
        self.meta.thinpool_dev.enable_overprov.unwrap_or(true)
    }
}

impl Filesystem {
    fn view(&self, used: Option<Sectors>) -> view::Filesystem {
        view::Filesystem {
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

/// The stack that `meta` asks for on these devices.
pub(super) fn shape(version: MetadataVersion, meta: &PoolMetadata, members: &BTreeMap<DevUuid, Member>) -> Shape {
    let pieces = |segments: &[DeviceSegment]| -> Vec<Piece> {
        let piece = |segment: &DeviceSegment| {
            let member = members.get(&segment.parent)?;
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
