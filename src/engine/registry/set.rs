//! The devices found of one pool, and what they say about the pool.
//!
//! Several devices may carry one identity. The set keeps them all, and one of them counts
//! ([`ties`](crate::engine::ties)). While it is unclear which one counts, the pool does not start.
//! Devices that the newest metadata does not name are left aside.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        name::Name,
    },
    engine::{
        bda::Bda,
        encryption::{EncryptionError, Info},
        error::Error,
        luks_devices::device::LuksDevice,
        metadata::{HeaderFlags, MetadataVersion, PoolMetadata},
        pool::Pool,
        ties::{Carrier, Choice, Doubt, Ties},
    },
    platform::{BlockDevice, DeviceNumber, Timestamp},
    view,
};

/// The reason shown for a pool that is down although nothing is wrong with it.
pub const STOPPED: &str = "it was stopped by request";
/// The reason shown for a pool that is down but will soon run.
pub const BEING_SET_UP: &str = "it is being set up";

/// A device that was found, with its BDA as read.
#[derive(Debug, Clone)]
pub struct FoundDevice {
    /// The device.
    pub device: BlockDevice,
    /// Its BDA.
    pub bda: Bda,
    /// The newest pool metadata on the device with its stamp, if there is any. `Err`: the metadata
    /// cannot be read.
    pub metadata: Option<Result<(Timestamp, Arc<PoolMetadata>), String>>,
    /// The devices below this device, if it is the crypt device on a LUKS device. Empty: it is not
    /// a crypt device.
    pub within: BTreeSet<DeviceNumber>,
}

impl FoundDevice {
    /// Whether the device carries the mark that the pool metadata does not name it yet.
    pub fn is_uncommitted(&self) -> bool {
        self.bda.header().flags.contains(HeaderFlags::UNCOMMITTED)
    }

    fn id(&self) -> DevUuid {
        self.bda.header().device
    }

    /// Whether the metadata says that the pool is being destroyed, and the pool has not been used
    /// since.
    fn is_condemned(&self) -> bool {
        matches!(&self.metadata, Some(Ok((stamp, metadata))) if metadata.is_condemned(*stamp))
    }

    fn lists(&self, device: DevUuid) -> bool {
        matches!(&self.metadata, Some(Ok((_, metadata))) if metadata.devices().any(|listed| listed == device))
    }
}

/// What was found on a block device.
#[derive(Debug, Clone)]
pub enum Seen {
    /// A BDA.
    Area(FoundDevice),
    /// A LUKS device whose crypt device is a block device of a pool.
    LuksDevice(LuksDevice),
}

impl Seen {
    /// The UUID of the pool.
    pub fn pool(&self) -> PoolUuid {
        match self {
            Seen::Area(found) => found.bda.header().pool,
            Seen::LuksDevice(luks_device) => luks_device.token.pool,
        }
    }

    /// The UUID of the device within the pool, as the device itself states it.
    pub fn id(&self) -> DevUuid {
        match self {
            Seen::Area(found) => found.id(),
            Seen::LuksDevice(luks_device) => luks_device.id(),
        }
    }

    /// The block device.
    pub fn device(&self) -> &BlockDevice {
        match self {
            Seen::Area(found) => &found.device,
            Seen::LuksDevice(luks_device) => &luks_device.device,
        }
    }
}

/// All devices with one identity.
#[derive(Debug, Clone, Default)]
struct Copies {
    areas: Vec<FoundDevice>,
    luks_devices: Vec<LuksDevice>,
}

impl Copies {
    /// Adds a device as seen. Drops what was known about the same device or node.
    fn add(&mut self, seen: Seen) {
        let device = seen.device();
        let is_same = |known: &BlockDevice| known.number == device.number || known.path == device.path;
        match &seen {
            Seen::Area(found) => {
                self.areas.retain(|known| {
                    !is_same(&known.device) && (found.within.is_empty() || known.within != found.within)
                });
                self.luks_devices.retain(|known| !is_same(&known.device));
            }
            Seen::LuksDevice(_) => {
                self.luks_devices.retain(|known| !is_same(&known.device));
                self.areas.retain(|known| !is_same(&known.device));
            }
        }
        match seen {
            Seen::Area(found) => self.areas.push(found),
            Seen::LuksDevice(luks_device) => self.luks_devices.push(luks_device),
        }
    }

    fn forget(&mut self, is_meant: impl Fn(&BlockDevice) -> bool) {
        // The crypt device goes with the LUKS device below it. A LUKS device that was only closed
        // stays.
        let gone: Vec<DeviceNumber> = self
            .luks_devices
            .iter()
            .map(|luks_device| &luks_device.device)
            .filter(|d| is_meant(d))
            .map(|d| d.number)
            .collect();
        self.luks_devices.retain(|luks_device| !is_meant(&luks_device.device));
        let goes_with = |found: &FoundDevice| gone.iter().any(|luks_device| found.within.contains(luks_device));
        self.areas.retain(|found| !is_meant(&found.device) && !goes_with(found));
    }

    fn devices(&self) -> impl Iterator<Item = &BlockDevice> {
        let areas = self.areas.iter().map(|found| &found.device);
        areas.chain(self.luks_devices.iter().map(|luks_device| &luks_device.device))
    }

    fn is_empty(&self) -> bool {
        self.areas.is_empty() && self.luks_devices.is_empty()
    }

    /// The LUKS devices, and the BDAs that do not lie on a LUKS device.
    fn outer(&self) -> Vec<&BlockDevice> {
        let luks_devices = self.luks_devices.iter().map(|luks_device| &luks_device.device);
        luks_devices.chain(self.bare().map(|found| &found.device)).collect()
    }

    /// BDAs that do not lie on a known LUKS device.
    fn bare(&self) -> impl Iterator<Item = &FoundDevice> {
        let is_inside = |found: &&FoundDevice| {
            self.luks_devices.iter().any(|luks_device| found.within.contains(&luks_device.device.number))
        };
        self.areas.iter().filter(move |found| !is_inside(found))
    }

    fn choose(&self, ties: &Ties) -> Choice {
        let luks_devices =
            self.luks_devices.iter().map(|luks_device| Carrier { number: luks_device.device.number, area: None });
        let areas = self.bare().map(|found| Carrier {
            number: found.device.number,
            area: Some((*found.bda.header(), found.bda.last_update())),
        });
        ties.choose(&luks_devices.chain(areas).collect::<Vec<_>>())
    }
}

/// The devices found of one pool.
#[derive(Debug, Clone, Default)]
pub struct DeviceSet {
    seen: BTreeMap<DevUuid, Copies>,
    ties: Ties,
    /// The device that counts for each identity; any of them while it is unclear which one counts.
    devices: BTreeMap<DevUuid, FoundDevice>,
    /// The LUKS devices below members, opened or not.
    luks_devices: BTreeMap<DevUuid, LuksDevice>,
    /// Clashes: identities with the nodes of the devices between which it is unclear which one
    /// counts.
    clashes: BTreeMap<DevUuid, Vec<PathBuf>>,
    /// Some of the pool's device-mapper devices are up.
    pub partial: bool,
    /// What went wrong at the last set-up or take-down.
    pub trouble: Option<Arc<str>>,
    /// The pool is being set up.
    pub being_set_up: bool,
    /// The pool was not set up because another pool with its name runs.
    pub awaits_name: bool,
}

/// What a set of devices says about its pool.
#[derive(Debug, Clone)]
pub enum DeviceSetVerdict {
    /// Metadata was found, and every device that it names.
    Complete(Arc<PoolMetadata>),
    /// Metadata was found; these devices are missing.
    Incomplete(Arc<PoolMetadata>, Vec<DevUuid>),
    /// The newest metadata is on this device and does not name it.
    Stranger(Arc<PoolMetadata>, DevUuid),
    /// Several devices, with these nodes, claim this identity. The metadata, if it can be read.
    Clash(Option<Arc<PoolMetadata>>, DevUuid, Vec<PathBuf>),
    /// The metadata says that the pool is being destroyed.
    Destroying(Arc<PoolMetadata>),
    /// Some members lie on LUKS devices that are closed.
    Locked,
    /// No device has metadata, and every device is marked as not committed: an interrupted creation
    /// has left them behind.
    NeverCommitted,
    /// There is no metadata, or it cannot be read.
    Unreadable(String),
}

impl DeviceSetVerdict {
    /// Why the pool cannot be set up; `None` if it can.
    pub fn obstacle(self, uuid: PoolUuid) -> Option<Error> {
        let named = |metadata: &PoolMetadata, error: &dyn Fn(Name) -> Error| match Name::new(&metadata.name) {
            Ok(name) => error(name),
            Err(cause) => cause.into(),
        };
        Some(match self {
            DeviceSetVerdict::Complete(_) => return None,
            DeviceSetVerdict::Incomplete(metadata, missing) => {
                let total = metadata.devices().count();
                named(&metadata, &|pool| Error::DevicesMissing { pool, missing: missing.clone(), total })
            }
            DeviceSetVerdict::Stranger(metadata, device) => {
                named(&metadata, &|pool| Error::ExtraDevice { pool, device })
            }
            DeviceSetVerdict::Clash(metadata, device, paths) => {
                let pool = metadata.map_or_else(|| uuid.to_string(), |metadata| metadata.name.clone());
                Error::Clash { pool, device, paths }
            }
            DeviceSetVerdict::Destroying(_) => Error::Destroyed(uuid),
            DeviceSetVerdict::Locked => Error::Locked { pool: uuid },
            DeviceSetVerdict::NeverCommitted => Error::NoMetadata(uuid),
            DeviceSetVerdict::Unreadable(why) => Error::Unusable { pool: uuid, why },
        })
    }
}

impl DeviceSet {
    /// The devices of a pool, with the metadata that was just written. With `closed`, the LUKS
    /// devices have been closed, so the crypt devices are gone.
    pub fn of(pool: &Pool, closed: bool) -> DeviceSet {
        let mut set = DeviceSet::default();
        for (uuid, member) in pool.members.iter() {
            if let Some(luks_device) = &member.luks_device {
                set.add(Seen::LuksDevice(luks_device.clone()));
            }
            if !closed || member.luks_device.is_none() {
                // Devices of the cache tier hold no metadata.
                let holds_metadata = pool.meta().data_devices().any(|data| data == *uuid);
                let stamp = member.bda.last_update().unwrap_or_default();
                let metadata = holds_metadata.then(|| Ok((stamp, Arc::new(pool.meta().stamped(stamp)))));
                let within = member.luks_device.iter().map(|luks_device| luks_device.device.number).collect();
                set.add(Seen::Area(FoundDevice {
                    device: member.device.clone(),
                    bda: member.bda.clone(),
                    metadata,
                    within,
                }));
            }
        }
        set
    }

    /// The device that counts for each identity.
    pub fn devices(&self) -> impl Iterator<Item = &FoundDevice> {
        self.devices.values()
    }

    /// The LUKS device below a member.
    pub fn luks_device(&self, device: DevUuid) -> Option<&LuksDevice> {
        self.luks_devices.get(&device)
    }

    /// The LUKS devices that count.
    pub fn luks_devices(&self) -> impl Iterator<Item = &LuksDevice> {
        self.luks_devices.values()
    }

    /// The LUKS devices that are closed.
    pub fn closed(&self) -> impl Iterator<Item = &LuksDevice> {
        self.luks_devices.values().filter(|luks_device| !self.devices.contains_key(&luks_device.id()))
    }

    /// Every LUKS device, and every BDA that does not lie on one, whether it counts or not.
    pub fn all(&self) -> Vec<Seen> {
        let each = |copies: &Copies| {
            let luks_devices = copies.luks_devices.iter().cloned().map(Seen::LuksDevice);
            luks_devices.chain(copies.bare().cloned().map(Seen::Area)).collect::<Vec<_>>()
        };
        self.seen.values().flat_map(each).collect()
    }

    /// What is known of this device.
    pub fn known_of(&self, device: &BlockDevice) -> Vec<Seen> {
        let is_meant = |known: &BlockDevice| (device.number, &device.path) == (known.number, &known.path);
        self.clone().everything().into_iter().filter(|seen| is_meant(seen.device())).collect()
    }

    /// Numbers of the block devices, and of the crypt devices on open LUKS devices.
    pub fn numbers(&self) -> impl Iterator<Item = DeviceNumber> {
        let areas = self.devices.values().map(|found| found.device.number);
        areas.chain(self.luks_devices.values().map(|luks_device| luks_device.device.number))
    }

    /// Whether nothing is known of the pool any more.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    // ---- what is known of the devices ----

    /// Adds a device as seen. Drops what was known about the device, or about its node.
    pub fn add(&mut self, seen: Seen) {
        let id = seen.id();
        let device = seen.device().clone();
        self.forget_others(&device, id);
        self.seen.entry(id).or_default().add(seen);
        self.choose(id);
    }

    fn forget_others(&mut self, device: &BlockDevice, id: DevUuid) {
        let is_meant = |known: &BlockDevice| known.number == device.number || known.path == device.path;
        self.forget_in(|known| known != id, is_meant);
    }

    /// Forgets the device at this path. `false` if the set does not have it.
    pub fn forget(&mut self, path: &Path) -> bool {
        self.forget_in(|_| true, |known| known.path == path)
    }

    /// Forgets a device. `false` if the set does not have it.
    pub fn forget_number(&mut self, number: DeviceNumber) -> bool {
        self.forget_in(|_| true, |known| known.number == number)
    }

    fn forget_in(&mut self, of: impl Fn(DevUuid) -> bool, is_meant: impl Fn(&BlockDevice) -> bool) -> bool {
        let affected = self.seen.iter().filter(|(id, copies)| of(**id) && copies.devices().any(&is_meant));
        let affected: Vec<DevUuid> = affected.map(|(id, _)| *id).collect();
        for id in &affected {
            if let Some(copies) = self.seen.get_mut(id) {
                copies.forget(&is_meant);
            }
            self.choose(*id);
        }
        !affected.is_empty()
    }

    /// The nodes of all devices in the set.
    pub fn nodes(&self) -> impl Iterator<Item = &Path> {
        self.seen.values().flat_map(Copies::devices).map(|known| known.path.as_path())
    }

    /// Replaces what is known about the devices by what was just read from them.
    pub fn renew(&mut self, seen: Vec<Seen>) {
        self.seen.clear();
        (self.devices, self.luks_devices, self.clashes) = Default::default();
        seen.into_iter().for_each(|seen| self.add(seen));
    }

    /// Adds those devices of another set that this set does not know.
    pub fn absorb(&mut self, other: DeviceSet) {
        let known: BTreeSet<DeviceNumber> =
            self.seen.values().flat_map(Copies::devices).map(|device| device.number).collect();
        let others = other.everything();
        others.into_iter().filter(|seen| !known.contains(&seen.device().number)).for_each(|seen| self.add(seen));
    }

    /// Every device that was seen, including the crypt devices on LUKS devices.
    fn everything(self) -> Vec<Seen> {
        let each = |copies: Copies| {
            let luks_devices = copies.luks_devices.into_iter().map(Seen::LuksDevice);
            luks_devices.chain(copies.areas.into_iter().map(Seen::Area)).collect::<Vec<_>>()
        };
        self.seen.into_values().flat_map(each).collect()
    }

    /// Keeps the devices that are also in `now`, which has just been read. A crypt device whose
    /// LUKS device has been closed since stays if the LUKS device does.
    pub fn retain_known(&mut self, now: &DeviceSet) {
        self.luks_devices.retain(|device, _| now.luks_devices.contains_key(device));
        let luks_devices = &self.luks_devices;
        self.devices.retain(|device, _| luks_devices.contains_key(device) || now.devices.contains_key(device));
        let (devices, luks_devices) = (&self.devices, &self.luks_devices);
        self.seen.retain(|device, _| devices.contains_key(device) || luks_devices.contains_key(device));
    }

    // ---- several devices with one identity ----

    fn choose(&mut self, id: DevUuid) {
        self.devices.remove(&id);
        self.luks_devices.remove(&id);
        self.clashes.remove(&id);
        let Some(copies) = self.seen.get(&id).filter(|copies| !copies.is_empty()) else {
            self.seen.remove(&id);
            return;
        };
        let at = match copies.choose(&self.ties) {
            Choice::Counts(at) => at,
            Choice::Clash(clashing) => {
                let outer = copies.outer();
                let mut paths: Vec<PathBuf> = clashing.iter().map(|at| outer[*at].path.clone()).collect();
                paths.sort();
                self.clashes.insert(id, paths);
                clashing.first().copied().unwrap_or_default()
            }
        };
        self.take(id, at);
    }

    fn take(&mut self, id: DevUuid, at: usize) {
        let Some(copies) = self.seen.get(&id) else { return };
        match copies.luks_devices.get(at) {
            Some(luks_device) => {
                let inside = copies.areas.iter().find(|found| found.within.contains(&luks_device.device.number));
                self.devices.extend(inside.map(|found| (id, found.clone())));
                self.luks_devices.insert(id, luks_device.clone());
            }
            None => {
                let bare = copies.bare().nth(at.saturating_sub(copies.luks_devices.len()));
                self.devices.extend(bare.map(|found| (id, found.clone())));
            }
        }
    }

    /// What to ask the kernel before it is clear which devices count; `None`: nothing. `members`
    /// are the devices of the running pool; any other device may lie on or below one of them.
    pub fn doubt(&self, members: &[DeviceNumber]) -> Option<Doubt> {
        let mut doubt = Doubt { members: members.to_vec(), ..Doubt::default() };
        for (id, copies) in &self.seen {
            let outer = copies.outer();
            if outer.len() > 1 || !members.is_empty() {
                doubt.devices.extend(outer.into_iter().map(|device| (device.path.clone(), device.number)));
                if !copies.luks_devices.is_empty() {
                    doubt.contained.insert(*id);
                }
            }
        }
        (!doubt.devices.is_empty()).then_some(doubt)
    }

    /// Notes what the kernel says.
    pub fn note_ties(&mut self, ties: Ties) {
        self.forget_in(|_| true, |known| ties.is_gone(known.number));
        self.ties = ties;
        let ids: Vec<DevUuid> = self.seen.keys().copied().collect();
        ids.into_iter().for_each(|id| self.choose(id));
    }

    /// The devices that are left aside, with the reasons: clones, and devices that the newest
    /// metadata does not name. Excludes devices that lie below or on a device that counts or one of
    /// `members`.
    pub fn aside(&self, members: &BTreeMap<DeviceNumber, (PathBuf, DevUuid)>) -> Vec<view::LeftAsideView> {
        let listed = self.listed();
        let mut aside = Vec::new();
        for (id, copies) in &self.seen {
            let chosen = self.luks_devices.get(id).map(|luks_device| &luks_device.device);
            let chosen = chosen.or_else(|| self.devices.get(id).map(|found| &found.device));
            let member = members.values().find(|(_, member)| member == id);
            let is_member = |number| members.keys().any(|member| self.ties.are_one(*member, number));
            let is_listed = listed.as_ref().is_none_or(|listed| listed.contains(id));
            let is_left_over = self.devices.get(id).is_some_and(FoundDevice::is_uncommitted) && !is_listed;
            for device in copies.outer().into_iter().filter(|device| !is_left_over && !is_member(device.number)) {
                let reason = match (member, chosen) {
                    (Some((path, _)), _) => {
                        format!("it says that it is the device that the pool uses as {}", path.display())
                    }
                    _ if !members.is_empty() || !is_listed => "the pool's metadata does not name it".to_owned(),
                    (None, Some(chosen)) if !self.clashes.contains_key(id) => {
                        match self.ties.are_one(chosen.number, device.number) {
                            true => continue,
                            false => format!("it is a clone of {}, or an older copy of it", chosen.path.display()),
                        }
                    }
                    _ => continue,
                };
                aside.push(view::LeftAsideView { device: *id, path: device.path.clone(), reason: reason.into() });
            }
        }
        aside
    }

    // ---- what the devices say about the pool ----

    /// The device with the newest metadata, and that metadata. The latest stamp counts. If that
    /// metadata cannot be read, no other metadata takes its place
    /// (`docs/spec/engine/ondisk-metadata.md` §3.8).
    fn newest(&self) -> Option<(&FoundDevice, Result<&Arc<PoolMetadata>, &String>)> {
        let dated = self.devices.values().filter_map(|found| {
            let stamp = found.bda.last_update()?;
            Some((stamp, found, found.metadata.as_ref()?))
        });
        let (_, found, metadata) = dated.max_by_key(|(stamp, found, _)| (*stamp, found.lists(found.id())))?;
        Some((found, metadata.as_ref().map(|(_, metadata)| metadata)))
    }

    /// The devices that the newest metadata names; `None` if no metadata can be read.
    fn listed(&self) -> Option<BTreeSet<DevUuid>> {
        match self.newest()? {
            (_, Ok(metadata)) => Some(metadata.devices().collect()),
            _ => None,
        }
    }

    /// What the set says about its pool.
    pub fn verdict(&self) -> DeviceSetVerdict {
        let newest = self.newest();
        let metadata = newest.and_then(|(_, metadata)| metadata.ok());
        let listed: Option<BTreeSet<DevUuid>> = metadata.map(|metadata| metadata.devices().collect());
        let counts = |device: &DevUuid| listed.as_ref().is_none_or(|listed| listed.contains(device));
        let mut closed = self.closed().map(LuksDevice::id);
        if newest.is_none() && closed.next().is_none() && self.devices.values().all(FoundDevice::is_uncommitted) {
            return DeviceSetVerdict::NeverCommitted;
        }
        let is_condemned = newest.is_some_and(|(holder, _)| holder.is_condemned());
        if !is_condemned {
            if let Some((device, paths)) = self.clashes.iter().find(|(device, _)| counts(device)) {
                return DeviceSetVerdict::Clash(metadata.cloned(), *device, paths.clone());
            }
            // A closed LUKS device may be left over from an addition. It locks the pool unless the
            // metadata on the open devices does not name it.
            if self.closed().any(|luks_device| counts(&luks_device.id())) {
                return DeviceSetVerdict::Locked;
            }
        }
        let (holder, metadata) = match newest {
            None => return DeviceSetVerdict::Unreadable("no device holds pool metadata".to_owned()),
            Some((_, Err(error))) => return DeviceSetVerdict::Unreadable(error.clone()),
            Some((holder, Ok(metadata))) => (holder, Arc::clone(metadata)),
        };
        if is_condemned {
            return DeviceSetVerdict::Destroying(metadata);
        }
        // A device whose addition was interrupted is not part of the pool and does not block it.
        if !counts(&holder.id()) && !holder.is_uncommitted() {
            return DeviceSetVerdict::Stranger(metadata, holder.id());
        }
        let missing: Vec<DevUuid> = metadata.devices().filter(|uuid| !self.devices.contains_key(uuid)).collect();
        match missing.is_empty() {
            true => DeviceSetVerdict::Complete(metadata),
            false => DeviceSetVerdict::Incomplete(metadata, missing),
        }
    }

    /// How the LUKS devices can be unlocked; `None` if there are none.
    ///
    /// # Errors
    /// If some devices are encrypted and some are not.
    pub fn encryption(&self) -> Result<Option<Info>, EncryptionError> {
        let listed = self.listed();
        let counts = |device: &DevUuid| listed.as_ref().is_none_or(|listed| listed.contains(device));
        let bare = self.devices.keys().filter(|device| counts(device) && !self.luks_devices.contains_key(device));
        let luks_devices = self.luks_devices.iter().filter(|(device, _)| counts(device));
        Info::of_devices(luks_devices.map(|(_, luks_device)| Some(&luks_device.bindings)).chain(bare.map(|_| None)))
    }

    /// Whether metadata that counts names this device as a member.
    pub fn lists(&self, device: DevUuid) -> bool {
        // The metadata does not count if the pool was never committed or is being destroyed.
        !matches!(self.verdict(), DeviceSetVerdict::NeverCommitted | DeviceSetVerdict::Destroying(_))
            && self.devices().any(|found| found.lists(device))
    }

    /// The metadata version, if all devices have the same one.
    pub fn version(&self) -> Option<MetadataVersion> {
        let listed = self.listed();
        let counts = |device: &DevUuid| listed.as_ref().is_none_or(|listed| listed.contains(device));
        let inside = self.luks_devices.keys().filter(|device| counts(device)).map(|_| MetadataVersion::V1);
        let open = self.devices.iter().filter(|(device, _)| counts(device));
        let mut versions = open.map(|(_, found)| found.bda.header().version).chain(inside);
        let first = versions.next()?;
        versions.all(|version| version == first).then_some(first)
    }

    // ---- what clients see ----

    /// The pool's name, if it is known.
    pub fn name(&self) -> Option<Name> {
        match self.verdict() {
            DeviceSetVerdict::Complete(meta)
            | DeviceSetVerdict::Incomplete(meta, _)
            | DeviceSetVerdict::Stranger(meta, _)
            | DeviceSetVerdict::Clash(Some(meta), ..) => Name::new(&meta.name).ok(),
            DeviceSetVerdict::Locked | DeviceSetVerdict::Clash(None, ..) => {
                let mut names = self.luks_devices.values().map(|luks_device| luks_device.token.pool_name.as_deref());
                let first = names.next()??;
                names.all(|name| name == Some(first)).then(|| Name::new(first).ok())?
            }
            _ => None,
        }
    }

    /// The pool as clients see it; `None` if it is not shown.
    pub fn view(&self, uuid: PoolUuid) -> Option<view::StoppedPoolView> {
        let verdict = self.verdict();
        // Left-over devices belong to no pool and are not shown, unless some of their device-mapper
        // devices are up and have to be stopped.
        match verdict {
            DeviceSetVerdict::NeverCommitted => return None,
            DeviceSetVerdict::Destroying(_) if !self.partial => return None,
            _ => {}
        }
        // While some devices are encrypted and some are not, the view of the pool cannot be made.
        let encryption = self.encryption().ok()?;
        let features = match &verdict {
            DeviceSetVerdict::Complete(meta) => Some(meta.features_view()),
            _ => None,
        };
        Some(view::StoppedPoolView {
            uuid,
            name: self.name(),
            devices: self.shown(),
            metadata_version: self.version().map(MetadataVersion::number),
            features,
            encryption: encryption.map(|info| info.view()),
            partial: self.partial,
            reason: self.reason(uuid, verdict),
        })
    }

    /// The block devices: LUKS devices instead of the crypt devices on them, and each copy of a
    /// device whose copies clash.
    fn shown(&self) -> Vec<(PathBuf, DevUuid)> {
        let listed = self.listed();
        let counts = |device: &&DevUuid| listed.as_ref().is_none_or(|listed| listed.contains(*device));
        let mut shown = Vec::new();
        for id in self.seen.keys().filter(counts) {
            let luks_device = self.luks_devices.get(id).map(|luks_device| &luks_device.device);
            let chosen = luks_device.or_else(|| self.devices.get(id).map(|found| &found.device));
            match (self.clashes.get(id), chosen) {
                (Some(paths), _) => shown.extend(paths.iter().map(|path| (path.clone(), *id))),
                (None, Some(device)) => shown.push((device.path.clone(), *id)),
                (None, None) => {}
            }
        }
        shown
    }

    /// Why the pool does not run. What the devices say comes first: they may have changed since the
    /// last failure.
    fn reason(&self, uuid: PoolUuid, verdict: DeviceSetVerdict) -> Option<Arc<str>> {
        let was_stopped = matches!(&verdict, DeviceSetVerdict::Complete(metadata) if metadata.started == Some(false));
        if self.being_set_up {
            return Some(BEING_SET_UP.into());
        }
        let obstacle = verdict.obstacle(uuid).map(|error| error.sentence().into());
        obstacle.or_else(|| self.trouble.clone()).or_else(|| was_stopped.then(|| STOPPED.into()))
    }
}
