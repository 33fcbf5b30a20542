//! A running pool: its metadata, its devices, its stack, its filesystems, and what clients see of it.
//!
//! One type for both metadata versions: what differs is in the metadata's codec and in the list of layers. The pool-level
//! metadata is itself the state, so there is no second description of the layout that could disagree with it.

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
    /// Its size now, and its sector sizes.
    pub geometry: Geometry,
    /// Its Stratis area.
    pub bda: Bda,
    /// The container that it lies in: a version 1 pool that is encrypted. `device` is what has been opened of it then.
    pub container: Option<LuksDevice>,
}

impl Member {
    /// A device that has just been initialized.
    pub fn of(candidate: Candidate, bda: Bda) -> Member {
        Member { device: candidate.device, geometry: candidate.geometry, bda, container: candidate.container }
    }

    /// The block device that people know.
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
    /// Why it could not be.
    pub reason: String,
}

/// A running pool.
pub struct Pool {
    uuid: PoolUuid,
    /// The name it is found by. Metadata is ahead of it for the moment of a rename.
    name: Name,
    version: MetadataVersion,
    /// What is recorded on its devices: see [`Pool::on_record`].
    pub(super) meta: PoolMetadata,
    /// The recorded cache tier that it is set up without.
    former_cache: Option<TierRecord>,
    /// Its devices, data and cache.
    pub(super) members: BTreeMap<DevUuid, Member>,
    /// Its layers.
    pub(super) stack: Stack,
    /// Its filesystems.
    pub(super) filesystems: BTreeMap<FsUuid, Filesystem>,
    /// Filesystems that could not be set up. Their names, their number and their sizes count, or they would be given out
    /// again, and what is in them is not given up: they may be back when the pool is next set up.
    left_out: Vec<LeftOut>,
    /// Filesystems in the making, with their sizes: they count for what may be made beside them.
    pub(super) unborn: BTreeMap<FsUuid, Sectors>,
    /// The next thin device number to give out.
    next_thin_id: u32,
    /// Its devices have been given up; only its entry in the table is still there.
    gone: bool,
    /// Its thin metadata could not grow as it should, and nothing has changed since that might let it.
    pub(super) metadata_exhausted: bool,
    /// The kernel's tables are behind what is recorded.
    pub(super) is_behind: bool,
    /// A growth that the kernel has refused, with the space that there was: it is not asked for again while that is the same.
    pub(super) refused: Option<(Growth, Sectors)>,
    /// Size that its thin metadata should have, as found out for this much space and so many filesystems.
    pub(super) metadata_needed: Option<((Sectors, u64), Sectors)>,
    /// With so few free data blocks the kernel is to raise an event; `None`: with the usual number.
    pub(super) low_water: Option<DataBlocks>,
    /// It is to be looked at again after this time, since no event will tell that somebody writes.
    pub(super) look_again: Option<Duration>,
    /// How long nobody was seen to write, as far as that was looked at.
    pub(super) quiet: Duration,
    /// Data blocks that were in use when it was last looked at.
    data_used: Option<DataBlocks>,
    /// State of its thin pool when it was last looked at.
    thin_state: Option<State>,
    /// Data blocks in use, as clients see them; `None` if the thin pool does not say.
    blocks_shown: Option<DataBlocks>,
    /// How it can be unlocked; `None`: it is not encrypted.
    encryption: Option<Info>,
    /// Its volume key is in the daemon's keyring (version 2).
    volume_key_loaded: bool,
    /// The work on its data that is under way, or that was cut short and goes on soon.
    pub(super) work: Option<Arc<view::Work>>,
    /// What is known to be wrong with it, worst first: how far that restricts it, and why. It stays until the pool is next set
    /// up.
    damage: Option<(Availability, Arc<str>)>,
    /// Why its record is unsure, if it is: the next set-up may find a state that was to be taken back. That ends when the former
    /// state has been written once more.
    unsure: Option<Arc<str>>,
    /// Its thin pool is out of metadata space, and could not be given any. That ends by itself when there is some.
    starved: bool,
    shown: view::Pool,
    changed: bool,
}

impl Pool {
    /// A pool whose backstore is up and described by `meta`, without filesystems yet.
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

    /// The name as recorded: the one that links are made from. Differs from [`Pool::name`] for the moment of a rename.
    pub fn recorded_name(&self) -> Name {
        Name::new(&self.meta.name).unwrap_or_else(|_| self.name.clone())
    }

    /// What clients see of it now.
    pub fn view(&self) -> Arc<view::Pool> {
        Arc::new(self.shown.clone())
    }

    /// What clients see of it, if that changed since this was last called.
    pub fn take_change(&mut self) -> Option<Arc<view::Pool>> {
        std::mem::take(&mut self.changed).then(|| self.view())
    }

    /// Whether its devices have been given up.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    pub(super) fn set_gone(&mut self, gone: bool) {
        self.gone = gone;
    }

    /// Takes over what has been read anew from its devices. It is found by the same name as before, and thin device
    /// numbers that were given out in this run are not given out again.
    pub(super) fn become_as_read(&mut self, mut fresh: Pool) {
        fresh.name = self.name.clone();
        fresh.next_thin_id = fresh.next_thin_id.max(self.next_thin_id);
        fresh.show();
        fresh.changed = true;
        *self = fresh;
    }

    /// Gives it the name that its metadata has already.
    pub(super) fn set_name(&mut self, name: Name) {
        self.name = name;
        self.show();
    }

    // ---- devices ----

    /// Its devices: numbers, nodes, identifiers. Containers and what is in them.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (DeviceNumber, PathBuf, DevUuid)> {
        let outer = self.members.iter().filter(|(_, member)| member.container.is_some());
        let outer = outer.map(|(uuid, member)| (member.outer(), *uuid));
        let all = self.members.iter().map(|(uuid, member)| (&member.device, *uuid)).chain(outer);
        all.map(|(device, uuid)| (device.number, device.path.clone(), uuid))
    }

    /// The tier that a device number is in, if it is the pool's.
    pub(super) fn tier_of(&self, number: DeviceNumber) -> Option<(DevUuid, Tier)> {
        let is_meant = |member: &Member| [member.device.number, member.outer().number].contains(&number);
        let (uuid, _) = self.members.iter().find(|(_, member)| is_meant(member))?;
        let tier = if self.meta.data_devices().any(|data| data == *uuid) { Tier::Data } else { Tier::Cache };
        Some((*uuid, tier))
    }

    /// Takes newly initialized devices in as members. They are not in the metadata yet.
    pub(super) fn admit(&mut self, initialized: Vec<Initialized>) -> Vec<DevUuid> {
        let admit = |Initialized { candidate, bda }: Initialized| {
            let uuid = bda.header().device;
            self.members.insert(uuid, Member::of(candidate, bda));
            uuid
        };
        initialized.into_iter().map(admit).collect()
    }

    /// Takes devices that were admitted out again.
    pub(super) fn dismiss(&mut self, devices: &[DevUuid]) {
        self.members.retain(|uuid, _| !devices.contains(uuid));
    }

    /// The metadata with admitted devices in it. `change` is given their records.
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

    /// Signature blocks of its devices, to hand out space by: of a device that has shrunk only what is left of it. The kernel
    /// makes no table that leads past the end of a device.
    pub(super) fn headers_as_found(&self) -> Vec<StaticHeader> {
        let mut headers = self.headers();
        for header in &mut headers {
            let found = self.members.get(&header.device).map_or(header.device_size, |member| member.geometry.size);
            header.device_size = header.device_size.min(found.max(self.meta.used_up_to(header.device)));
        }
        headers
    }

    /// Space of a device that could be handed out, had the device not shrunk.
    fn lost(&self, device: DevUuid) -> Sectors {
        let Some(member) = self.members.get(&device) else { return Sectors::ZERO };
        let end = member.bda.header().device_size.saturating_sub(self.meta.integrity_reserved(device));
        end.saturating_sub(member.geometry.size.max(self.meta.used_up_to(device)))
    }

    /// The stack that the metadata asks for.
    pub(super) fn shape(&self) -> Shape {
        self.shape_of(&self.meta)
    }

    /// The stack that other metadata of it asks for.
    pub(super) fn shape_of(&self, meta: &PoolMetadata) -> Shape {
        let usual = shape(self.version, meta, &self.members);
        Shape { low_water: self.low_water.unwrap_or(usual.low_water), ..usual }
    }

    /// Mends the headers of the devices, once the metadata says what unfinished requests have come to: writes damaged copies
    /// anew, and takes the marks of such requests off. One that cannot be written does no harm beside such metadata; it is
    /// tried again at the next set-up.
    pub(super) fn confirm_members(&mut self, platform: &dyn Platform) {
        let marks = HeaderFlags::UNCOMMITTED.with(HeaderFlags::GROWN);
        let members = self.members.values_mut();
        let mut devices: Vec<_> = members.map(|member| (member.device.path.as_path(), &mut member.bda)).collect();
        // Nothing is written where nothing is to be done.
        let cleared = bda::clear_flags(platform, &mut devices, marks);
        for ((path, _), cleared) in devices.into_iter().zip(cleared) {
            if let Err(error) = cleared {
                log::warn!("cannot write the header of {}: {}", path.display(), Error::from(error).sentence());
            }
        }
    }

    // ---- filesystems ----

    /// A filesystem by identifier.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn filesystem(&self, uuid: FsUuid) -> Result<&Filesystem> {
        self.filesystems.get(&uuid).ok_or_else(|| Error::NoFilesystem { pool: self.name.clone(), filesystem: uuid })
    }

    /// A filesystem by name.
    pub(super) fn filesystem_named(&self, name: &Name) -> Option<(FsUuid, &Filesystem)> {
        // Names are few per pool and asked for by requests that write to disk; a second index would have to be kept true.
        self.filesystems.iter().find(|(_, filesystem)| filesystem.name == *name).map(|(uuid, found)| (*uuid, found))
    }

    /// Takes note of a filesystem that could not be set up.
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

    /// Records of all filesystems, also of those that could not be set up.
    pub(super) fn records(&self) -> impl Iterator<Item = &FilesystemRecord> {
        self.filesystems.values().map(|filesystem| &filesystem.record).chain(self.left_out())
    }

    /// How many filesystems are recorded, set up or not.
    pub(super) fn recorded(&self) -> usize {
        self.filesystems.len().saturating_add(self.left_out.len())
    }

    /// Refuses a name that belongs to a filesystem which is recorded but could not be set up.
    pub(super) fn check_left_out(&self, name: &Name) -> Result<()> {
        match self.left_out().any(|record| record.name == name.as_str()) {
            true => Err(Error::LeftOut { pool: self.name.clone(), name: name.clone() }),
            false => Ok(()),
        }
    }

    /// Lets the snapshots of a filesystem that is gone have its origin. Gives those that are set up, changed; they are not
    /// put into the pool yet.
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

    /// A thin device number that is not in use and was not in this run.
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

    /// Thin device numbers up to this one are taken.
    pub(super) fn note_thin_id(&mut self, id: u32) {
        self.next_thin_id = self.next_thin_id.max(id.saturating_add(1));
    }

    /// Adds a filesystem, or shows one that has changed.
    pub(super) fn put_filesystem(&mut self, platform: &dyn Platform, filesystem: Filesystem) {
        let used = self.thin_usage(platform, &filesystem);
        let shown = filesystem.view(used);
        self.shown.filesystems.insert(shown.uuid, Arc::new(shown));
        self.filesystems.insert(filesystem.record.uuid, filesystem);
        self.changed = true;
    }

    /// Takes a filesystem out.
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

    /// Logical sector size of the thin pool. The kernel refuses a thin device whose size is no multiple of it.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn sector_size(&self, platform: &dyn Platform) -> Result<Sectors> {
        let geometry = platform.geometry(&platform.dm_node(&Role::ThinPool.name(self.uuid)))?;
        Ok(Sectors(u64::from(geometry.logical) / SECTOR).max(Sectors(1)))
    }

    /// Space of the data devices that Stratis' own metadata takes.
    pub(super) fn metadata_size(&self) -> Sectors {
        let of_device = |uuid: DevUuid| {
            let area = self.members.get(&uuid).map_or(Sectors::ZERO, |member| member.bda.header().extended_size());
            area.saturating_add(self.meta.integrity_reserved(uuid))
        };
        let devices = self.meta.data_devices().map(of_device).fold(Sectors::ZERO, Sectors::saturating_add);
        devices.saturating_add(self.meta.crypt_reserved())
    }

    /// Size of all data devices, as recorded.
    pub(super) fn total_size(&self) -> Sectors {
        let size = |uuid: DevUuid| self.members.get(&uuid).map_or(Sectors::ZERO, |m| m.bda.header().device_size);
        self.meta.data_devices().map(size).fold(Sectors::ZERO, Sectors::saturating_add)
    }

    /// Space of the data devices that upper layers may have.
    pub(super) fn usable_size(&self) -> Sectors {
        self.total_size().saturating_sub(self.metadata_size())
    }

    /// What of the usable space has not been handed out.
    pub(super) fn available(&self) -> Sectors {
        let lost =
            self.meta.data_devices().map(|device| self.lost(device)).fold(Sectors::ZERO, Sectors::saturating_add);
        self.usable_size().saturating_sub(self.meta.handed_out()).saturating_sub(lost)
    }

    /// What can be given to the thin pool now: while its data is being worked on, its container cannot be made larger.
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

    /// What is left for filesystems together, all of them as large as they say.
    pub(super) fn room(&self) -> Sectors {
        sizes::room(self.usable_size(), self.thin_metadata())
    }

    /// Sum of the filesystems' sizes, with those that could not be set up and those in the making.
    pub(super) fn filesystems_size(&self) -> Sectors {
        let sizes = self.records().map(|record| record.size).chain(self.unborn.values().copied());
        sizes.fold(Sectors::ZERO, Sectors::saturating_add)
    }

    /// The filesystems whose space is watched, with what was last seen of them.
    pub(super) fn watched(&self) -> impl Iterator<Item = Watched> {
        self.filesystems.iter().map(|(id, filesystem)| {
            let used = self.shown.filesystems.get(id).and_then(|shown| shown.used);
            Watched::new(&filesystem.record, used.and_then(Bytes::sectors).unwrap_or_default())
        })
    }

    /// State of the thin pool when it was last looked at.
    pub(super) fn thin_state(&self) -> Option<State> {
        self.thin_state
    }

    /// Takes note of the state of the thin pool, and tells of a change.
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

    /// Status of the thin pool.
    ///
    /// # Errors
    /// When it does not say.
    pub(super) fn thin_pool_status(&mut self, platform: &dyn Platform) -> Result<PoolStatus> {
        let lines = platform.dm_status(&Role::ThinPool.name(self.uuid))?;
        let text = lines.first().map_or("", String::as_str);
        self.note_thin_state(text);
        PoolStatus::parse(text)
            .ok_or_else(|| Error::ThinStatus { pool: self.name.clone(), status: text.chars().take(80).collect() })
    }

    /// Reads anew how full some of the filesystems are, for clients; those that are gone are left out.
    pub(super) fn refresh_filesystems(&mut self, platform: &dyn Platform, which: impl IntoIterator<Item = FsUuid>) {
        for filesystem in which.into_iter().filter_map(|id| self.filesystems.get(&id)) {
            let shown = filesystem.view(self.thin_usage(platform, filesystem));
            if self.shown.filesystems.get(&shown.uuid).is_none_or(|known| **known != shown) {
                self.shown.filesystems.insert(shown.uuid, Arc::new(shown));
                self.changed = true;
            }
        }
    }

    /// Reads anew how full the thin pool and the filesystems are, for clients. `known` is the thin pool's status if it has just
    /// been read; gives it as it is now, if it can be told.
    pub(super) fn refresh(&mut self, platform: &dyn Platform, known: Option<PoolStatus>) -> Option<PoolStatus> {
        let all: Vec<FsUuid> = self.filesystems.keys().copied().collect();
        self.refresh_filesystems(platform, all);
        self.refresh_thin_pool(platform, known)
    }

    /// As [`Pool::refresh`], for the thin pool only, which is one question however many filesystems there are.
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

    /// Takes note of how many data blocks are in use, `time` after the look before.
    pub(super) fn note_use(&mut self, used: DataBlocks, time: Duration) {
        match self.data_used.replace(used) {
            Some(before) if before == used => self.quiet = self.quiet.saturating_add(time),
            _ => self.quiet = Duration::ZERO,
        }
    }

    /// Takes note of a data device's size as the kernel sees it now.
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

    /// Brings what clients see up to date with the metadata and the members.
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
        // Values that did not change keep their place in memory, so that a comparison does not look into them.
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

    /// Whether filesystems may be larger together than the pool.
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

/// The stack that metadata asks for, on these devices.
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
