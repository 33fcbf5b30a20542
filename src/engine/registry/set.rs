//! The devices found of one pool, and what they say of it.
//!
//! Several devices may carry one identity. All are kept, and one of them counts ([`ties`](crate::engine::ties)); while it
//! cannot be told which, the pool does not start. Devices that the newest metadata does not name are left aside.

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
        luks_device::LuksDevice,
        metadata::{HeaderFlags, MetadataVersion, PoolMetadata},
        pool::Pool,
        ties::{Carrier, Choice, Doubt, Ties},
    },
    platform::{BlockDevice, DeviceNumber, Timestamp},
    view,
};

/// Why a pool does not run with which nothing is wrong.
pub const STOPPED: &str = "it was stopped by request";
/// Why a pool does not run that will soon.
pub const BEING_SET_UP: &str = "it is being set up";

/// A device found, with its Stratis area as read.
#[derive(Debug, Clone)]
pub struct Found {
    /// The device.
    pub device: BlockDevice,
    /// Its area.
    pub bda: Bda,
    /// The newest pool metadata on it with its stamp, if it has any. `Err`: it has some that cannot be read.
    pub metadata: Option<Result<(Timestamp, Arc<PoolMetadata>), String>>,
    /// What it lies on, if it has been opened from a container. Empty: it lies in the open.
    pub within: BTreeSet<DeviceNumber>,
}

impl Found {
    /// Whether it carries the mark that its pool's metadata does not name it yet.
    pub fn is_uncommitted(&self) -> bool {
        self.bda.header().flags.contains(HeaderFlags::UNCOMMITTED)
    }

    fn id(&self) -> DevUuid {
        self.bda.header().device
    }

    /// Whether its metadata says that its pool is being destroyed, and nobody has used the pool since.
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
    /// A Stratis area.
    Area(Found),
    /// A LUKS2 container that a Stratis device lies in.
    Container(LuksDevice),
}

impl Seen {
    /// The pool.
    pub fn pool(&self) -> PoolUuid {
        match self {
            Seen::Area(found) => found.bda.header().pool,
            Seen::Container(luks_device) => luks_device.token.pool,
        }
    }

    /// The device of the pool that it says it is.
    pub fn id(&self) -> DevUuid {
        match self {
            Seen::Area(found) => found.id(),
            Seen::Container(luks_device) => luks_device.id(),
        }
    }

    /// The block device.
    pub fn device(&self) -> &BlockDevice {
        match self {
            Seen::Area(found) => &found.device,
            Seen::Container(luks_device) => &luks_device.device,
        }
    }
}

/// Everything that carries one identity.
#[derive(Debug, Clone, Default)]
struct Copies {
    areas: Vec<Found>,
    containers: Vec<LuksDevice>,
}

impl Copies {
    /// Takes in what was seen; what was known of the same device or node before is past.
    fn add(&mut self, seen: Seen) {
        let device = seen.device();
        let is_same = |known: &BlockDevice| known.number == device.number || known.path == device.path;
        match &seen {
            Seen::Area(found) => {
                self.areas.retain(|known| {
                    !is_same(&known.device) && (found.within.is_empty() || known.within != found.within)
                });
                self.containers.retain(|known| !is_same(&known.device));
            }
            Seen::Container(_) => {
                self.containers.retain(|known| !is_same(&known.device));
                self.areas.retain(|known| !is_same(&known.device));
            }
        }
        match seen {
            Seen::Area(found) => self.areas.push(found),
            Seen::Container(luks_device) => self.containers.push(luks_device),
        }
    }

    fn forget(&mut self, is_meant: impl Fn(&BlockDevice) -> bool) {
        // What is in a container goes with it; a container that is closed stays.
        let gone: Vec<DeviceNumber> = self
            .containers
            .iter()
            .map(|luks_device| &luks_device.device)
            .filter(|d| is_meant(d))
            .map(|d| d.number)
            .collect();
        self.containers.retain(|luks_device| !is_meant(&luks_device.device));
        let goes_with = |found: &Found| gone.iter().any(|container| found.within.contains(container));
        self.areas.retain(|found| !is_meant(&found.device) && !goes_with(found));
    }

    fn devices(&self) -> impl Iterator<Item = &BlockDevice> {
        let areas = self.areas.iter().map(|found| &found.device);
        areas.chain(self.containers.iter().map(|luks_device| &luks_device.device))
    }

    fn is_empty(&self) -> bool {
        self.areas.is_empty() && self.containers.is_empty()
    }

    /// Containers, and areas that lie in the open.
    fn outer(&self) -> Vec<&BlockDevice> {
        let containers = self.containers.iter().map(|luks_device| &luks_device.device);
        containers.chain(self.bare().map(|found| &found.device)).collect()
    }

    /// Areas that do not lie in a container which is known.
    fn bare(&self) -> impl Iterator<Item = &Found> {
        let is_inside = |found: &&Found| {
            self.containers.iter().any(|luks_device| found.within.contains(&luks_device.device.number))
        };
        self.areas.iter().filter(move |found| !is_inside(found))
    }

    fn choose(&self, ties: &Ties) -> Choice {
        let containers =
            self.containers.iter().map(|luks_device| Carrier { number: luks_device.device.number, area: None });
        let areas = self.bare().map(|found| Carrier {
            number: found.device.number,
            area: Some((*found.bda.header(), found.bda.last_update())),
        });
        ties.choose(&containers.chain(areas).collect::<Vec<_>>())
    }
}

/// The devices found of one pool.
#[derive(Debug, Clone, Default)]
pub struct DeviceSet {
    seen: BTreeMap<DevUuid, Copies>,
    ties: Ties,
    /// Of each identity the device that counts; while that cannot be told, any.
    devices: BTreeMap<DevUuid, Found>,
    /// The containers of those that lie in one, opened or not.
    containers: BTreeMap<DevUuid, LuksDevice>,
    /// Identities of which it cannot be told which device counts, with the nodes of those in question.
    clashes: BTreeMap<DevUuid, Vec<PathBuf>>,
    /// Some of the pool's device-mapper devices are up.
    pub partial: bool,
    /// What went wrong when it was last to be set up or taken down.
    pub trouble: Option<Arc<str>>,
    /// It is being set up.
    pub being_set_up: bool,
    /// It was not set up because another pool of its name runs.
    pub awaits_name: bool,
}

/// What a set of devices says of its pool.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Metadata was found and every device that it names.
    Complete(Arc<PoolMetadata>),
    /// Metadata was found; these devices are missing.
    Incomplete(Arc<PoolMetadata>, Vec<DevUuid>),
    /// The newest metadata is on this device and does not name it.
    Stranger(Arc<PoolMetadata>, DevUuid),
    /// Several devices, with these nodes, say that they are this one. The metadata, if it can be read.
    Clash(Option<Arc<PoolMetadata>>, DevUuid, Vec<PathBuf>),
    /// The metadata says that the pool is being destroyed.
    Destroying(Arc<PoolMetadata>),
    /// Some devices lie in containers that are not open.
    Locked,
    /// No device has metadata, and each is marked as not committed: left over from a creation cut short.
    NeverCommitted,
    /// There is no metadata, or it cannot be read.
    Unreadable(String),
}

impl Verdict {
    /// Why the pool cannot be set up; `None` if it can.
    pub fn obstacle(self, uuid: PoolUuid) -> Option<Error> {
        let named = |metadata: &PoolMetadata, error: &dyn Fn(Name) -> Error| match Name::new(&metadata.name) {
            Ok(name) => error(name),
            Err(cause) => cause.into(),
        };
        Some(match self {
            Verdict::Complete(_) => return None,
            Verdict::Incomplete(metadata, missing) => {
                let total = metadata.devices().count();
                named(&metadata, &|pool| Error::DevicesMissing { pool, missing: missing.clone(), total })
            }
            Verdict::Stranger(metadata, device) => named(&metadata, &|pool| Error::ExtraDevice { pool, device }),
            Verdict::Clash(metadata, device, paths) => {
                let pool = metadata.map_or_else(|| uuid.to_string(), |metadata| metadata.name.clone());
                Error::Clash { pool, device, paths }
            }
            Verdict::Destroying(_) => Error::Destroyed(uuid),
            Verdict::Locked => Error::Locked { pool: uuid },
            Verdict::NeverCommitted => Error::NoMetadata(uuid),
            Verdict::Unreadable(why) => Error::Unusable { pool: uuid, why },
        })
    }
}

impl DeviceSet {
    /// The devices of a pool, with its metadata as it has just been written. Containers that were `closed` do not show what is
    /// in them.
    pub fn of(pool: &Pool, closed: bool) -> DeviceSet {
        let mut set = DeviceSet::default();
        for (uuid, member) in &pool.members {
            if let Some(luks_device) = &member.container {
                set.add(Seen::Container(luks_device.clone()));
            }
            if !closed || member.container.is_none() {
                // Devices of the cache tier hold none.
                let holds_metadata = pool.meta.data_devices().any(|data| data == *uuid);
                let stamp = member.bda.last_update().unwrap_or_default();
                let metadata = holds_metadata.then(|| Ok((stamp, Arc::new(pool.meta.stamped(stamp)))));
                let within = member.container.iter().map(|luks_device| luks_device.device.number).collect();
                set.add(Seen::Area(Found { device: member.device.clone(), bda: member.bda.clone(), metadata, within }));
            }
        }
        set
    }

    /// Of each identity the device that counts.
    pub fn devices(&self) -> impl Iterator<Item = &Found> {
        self.devices.values()
    }

    /// The container that a device lies in.
    pub fn container(&self, device: DevUuid) -> Option<&LuksDevice> {
        self.containers.get(&device)
    }

    /// The containers that count.
    pub fn containers(&self) -> impl Iterator<Item = &LuksDevice> {
        self.containers.values()
    }

    /// The containers that do not show what is in them.
    pub fn closed(&self) -> impl Iterator<Item = &LuksDevice> {
        self.containers.values().filter(|luks_device| !self.devices.contains_key(&luks_device.id()))
    }

    /// Everything that was seen and lies in no container, whether it counts or not.
    pub fn all(&self) -> Vec<Seen> {
        let each = |copies: &Copies| {
            let containers = copies.containers.iter().cloned().map(Seen::Container);
            containers.chain(copies.bare().cloned().map(Seen::Area)).collect::<Vec<_>>()
        };
        self.seen.values().flat_map(each).collect()
    }

    /// What is known of this device.
    pub fn known_of(&self, device: &BlockDevice) -> Vec<Seen> {
        let is_meant = |known: &BlockDevice| (device.number, &device.path) == (known.number, &known.path);
        self.clone().everything().into_iter().filter(|seen| is_meant(seen.device())).collect()
    }

    /// The block devices, and what is in containers that are open.
    pub fn numbers(&self) -> impl Iterator<Item = DeviceNumber> {
        let areas = self.devices.values().map(|found| found.device.number);
        areas.chain(self.containers.values().map(|luks_device| luks_device.device.number))
    }

    /// Whether nothing is known of it any more.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    // ---- what is known of its devices ----

    /// Adds what was seen of a device. What was known of it, or of its node, is past.
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

    /// Forgets the device at this path. `false`: it is not here.
    pub fn forget(&mut self, path: &Path) -> bool {
        self.forget_in(|_| true, |known| known.path == path)
    }

    /// Forgets a device. `false`: it is not here.
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

    /// The nodes of all devices that are here.
    pub fn nodes(&self) -> impl Iterator<Item = &Path> {
        self.seen.values().flat_map(Copies::devices).map(|known| known.path.as_path())
    }

    /// Puts what has just been read of its devices in place of what was known of them.
    pub fn renew(&mut self, seen: Vec<Seen>) {
        self.seen.clear();
        (self.devices, self.containers, self.clashes) = Default::default();
        seen.into_iter().for_each(|seen| self.add(seen));
    }

    /// Takes in the devices of another set of which nothing is known here.
    pub fn absorb(&mut self, other: DeviceSet) {
        let known: BTreeSet<DeviceNumber> =
            self.seen.values().flat_map(Copies::devices).map(|device| device.number).collect();
        let others = other.everything();
        others.into_iter().filter(|seen| !known.contains(&seen.device().number)).for_each(|seen| self.add(seen));
    }

    /// Everything that was seen, what is in containers included.
    fn everything(self) -> Vec<Seen> {
        let each = |copies: Copies| {
            let containers = copies.containers.into_iter().map(Seen::Container);
            containers.chain(copies.areas.into_iter().map(Seen::Area)).collect::<Vec<_>>()
        };
        self.seen.into_values().flat_map(each).collect()
    }

    /// Keeps the devices that are the same in what has been read `now`. Of one in a container that has been closed since it is
    /// the container that tells.
    pub fn retain_known(&mut self, now: &DeviceSet) {
        self.containers.retain(|device, _| now.containers.contains_key(device));
        let containers = &self.containers;
        self.devices.retain(|device, _| containers.contains_key(device) || now.devices.contains_key(device));
        let (devices, containers) = (&self.devices, &self.containers);
        self.seen.retain(|device, _| devices.contains_key(device) || containers.contains_key(device));
    }

    // ---- several devices with one identity ----

    fn choose(&mut self, id: DevUuid) {
        self.devices.remove(&id);
        self.containers.remove(&id);
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
        match copies.containers.get(at) {
            Some(luks_device) => {
                let inside = copies.areas.iter().find(|found| found.within.contains(&luks_device.device.number));
                self.devices.extend(inside.map(|found| (id, found.clone())));
                self.containers.insert(id, luks_device.clone());
            }
            None => {
                let bare = copies.bare().nth(at.saturating_sub(copies.containers.len()));
                self.devices.extend(bare.map(|found| (id, found.clone())));
            }
        }
    }

    /// What the kernel has to be asked before it can be told which devices count; `None`: nothing. Of `members`, devices of the
    /// running pool, no other may be a part.
    pub fn doubt(&self, members: &[DeviceNumber]) -> Option<Doubt> {
        let mut doubt = Doubt { members: members.to_vec(), ..Doubt::default() };
        for (id, copies) in &self.seen {
            let outer = copies.outer();
            if outer.len() > 1 || !members.is_empty() {
                doubt.devices.extend(outer.into_iter().map(|device| (device.path.clone(), device.number)));
                if !copies.containers.is_empty() {
                    doubt.contained.insert(*id);
                }
            }
        }
        (!doubt.devices.is_empty()).then_some(doubt)
    }

    /// Takes note of what the kernel says.
    pub fn note_ties(&mut self, ties: Ties) {
        self.forget_in(|_| true, |known| ties.is_gone(known.number));
        self.ties = ties;
        let ids: Vec<DevUuid> = self.seen.keys().copied().collect();
        ids.into_iter().for_each(|id| self.choose(id));
    }

    /// The devices that are left aside: clones, and those that the newest metadata does not name. With the reasons. Those that
    /// are one device with one that counts, or with one of `members`, are not among them.
    pub fn aside(&self, members: &BTreeMap<DeviceNumber, (PathBuf, DevUuid)>) -> Vec<view::LeftAside> {
        let listed = self.listed();
        let mut aside = Vec::new();
        for (id, copies) in &self.seen {
            let chosen = self.containers.get(id).map(|luks_device| &luks_device.device);
            let chosen = chosen.or_else(|| self.devices.get(id).map(|found| &found.device));
            let member = members.values().find(|(_, member)| member == id);
            let is_member = |number| members.keys().any(|member| self.ties.are_one(*member, number));
            let is_listed = listed.as_ref().is_none_or(|listed| listed.contains(id));
            let is_left_over = self.devices.get(id).is_some_and(Found::is_uncommitted) && !is_listed;
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
                aside.push(view::LeftAside { device: *id, path: device.path.clone(), reason: reason.into() });
            }
        }
        aside
    }

    // ---- what they say of the pool ----

    /// The device with the newest metadata, and that metadata. The one with the greatest stamp counts, and if it cannot be read no
    /// other does (`docs/spec/engine/ondisk-metadata.md` §3.8).
    fn newest(&self) -> Option<(&Found, Result<&Arc<PoolMetadata>, &String>)> {
        let dated = self.devices.values().filter_map(|found| {
            let stamp = found.bda.last_update()?;
            Some((stamp, found, found.metadata.as_ref()?))
        });
        let (_, found, metadata) = dated.max_by_key(|(stamp, found, _)| (*stamp, found.lists(found.id())))?;
        Some((found, metadata.as_ref().map(|(_, metadata)| metadata)))
    }

    /// The devices that the newest metadata names; `None`: there is none that can be read.
    fn listed(&self) -> Option<BTreeSet<DevUuid>> {
        match self.newest()? {
            (_, Ok(metadata)) => Some(metadata.devices().collect()),
            _ => None,
        }
    }

    /// What the set means for its pool.
    pub fn verdict(&self) -> Verdict {
        let newest = self.newest();
        let metadata = newest.and_then(|(_, metadata)| metadata.ok());
        let listed: Option<BTreeSet<DevUuid>> = metadata.map(|metadata| metadata.devices().collect());
        let counts = |device: &DevUuid| listed.as_ref().is_none_or(|listed| listed.contains(device));
        let mut closed = self.closed().map(LuksDevice::id);
        if newest.is_none() && closed.next().is_none() && self.devices.values().all(Found::is_uncommitted) {
            return Verdict::NeverCommitted;
        }
        let is_condemned = newest.is_some_and(|(holder, _)| holder.is_condemned());
        if !is_condemned {
            if let Some((device, paths)) = self.clashes.iter().find(|(device, _)| counts(device)) {
                return Verdict::Clash(metadata.cloned(), *device, paths.clone());
            }
            // What is closed may be left over of an addition. Devices that are open and name all others decide.
            if self.closed().any(|luks_device| counts(&luks_device.id())) {
                return Verdict::Locked;
            }
        }
        let (holder, metadata) = match newest {
            None => return Verdict::Unreadable("no device holds pool metadata".to_owned()),
            Some((_, Err(error))) => return Verdict::Unreadable(error.clone()),
            Some((holder, Ok(metadata))) => (holder, Arc::clone(metadata)),
        };
        if is_condemned {
            return Verdict::Destroying(metadata);
        }
        // A device whose addition was cut short is not part of the pool and does not stand in its way.
        if !counts(&holder.id()) && !holder.is_uncommitted() {
            return Verdict::Stranger(metadata, holder.id());
        }
        let missing: Vec<DevUuid> = metadata.devices().filter(|uuid| !self.devices.contains_key(uuid)).collect();
        match missing.is_empty() {
            true => Verdict::Complete(metadata),
            false => Verdict::Incomplete(metadata, missing),
        }
    }

    /// How its containers can be unlocked; `None` if it has none.
    ///
    /// # Errors
    /// If some of its devices are encrypted and some are not.
    pub fn encryption(&self) -> Result<Option<Info>, EncryptionError> {
        let listed = self.listed();
        let counts = |device: &DevUuid| listed.as_ref().is_none_or(|listed| listed.contains(device));
        let bare = self.devices.keys().filter(|device| counts(device) && !self.containers.contains_key(device));
        let containers = self.containers.iter().filter(|(device, _)| counts(device));
        Info::of_devices(containers.map(|(_, luks_device)| Some(&luks_device.bindings)).chain(bare.map(|_| None)))
    }

    /// Whether metadata that counts names this device as a member.
    pub fn lists(&self, device: DevUuid) -> bool {
        // Of a pool that never was or is to be no more, nothing counts.
        !matches!(self.verdict(), Verdict::NeverCommitted | Verdict::Destroying(_))
            && self.devices().any(|found| found.lists(device))
    }

    /// The metadata version, if all devices have one.
    pub fn version(&self) -> Option<MetadataVersion> {
        let listed = self.listed();
        let counts = |device: &DevUuid| listed.as_ref().is_none_or(|listed| listed.contains(device));
        let inside = self.containers.keys().filter(|device| counts(device)).map(|_| MetadataVersion::V1);
        let open = self.devices.iter().filter(|(device, _)| counts(device));
        let mut versions = open.map(|(_, found)| found.bda.header().version).chain(inside);
        let first = versions.next()?;
        versions.all(|version| version == first).then_some(first)
    }

    // ---- what clients see ----

    /// The pool's name, if it can be told.
    pub fn name(&self) -> Option<Name> {
        match self.verdict() {
            Verdict::Complete(meta)
            | Verdict::Incomplete(meta, _)
            | Verdict::Stranger(meta, _)
            | Verdict::Clash(Some(meta), ..) => Name::new(&meta.name).ok(),
            Verdict::Locked | Verdict::Clash(None, ..) => {
                let mut names = self.containers.values().map(|luks_device| luks_device.token.pool_name.as_deref());
                let first = names.next()??;
                names.all(|name| name == Some(first)).then(|| Name::new(first).ok())?
            }
            _ => None,
        }
    }

    /// The pool as clients see it; `None`: it is not shown.
    pub fn view(&self, uuid: PoolUuid) -> Option<view::StoppedPool> {
        let verdict = self.verdict();
        // Left-overs belong to nobody and are shown to nobody, but for what is up of one and has to be stopped.
        match verdict {
            Verdict::NeverCommitted => return None,
            Verdict::Destroying(_) if !self.partial => return None,
            _ => {}
        }
        // Until that resolves itself nothing can be said of a pool of which some devices are encrypted and some are not.
        let encryption = self.encryption().ok()?;
        let features = match &verdict {
            Verdict::Complete(meta) => Some(meta.features_view()),
            _ => None,
        };
        Some(view::StoppedPool {
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

    /// The block devices: those of containers instead of what is in them, and all of those of which one counts.
    fn shown(&self) -> Vec<(PathBuf, DevUuid)> {
        let listed = self.listed();
        let counts = |device: &&DevUuid| listed.as_ref().is_none_or(|listed| listed.contains(*device));
        let mut shown = Vec::new();
        for id in self.seen.keys().filter(counts) {
            let container = self.containers.get(id).map(|luks_device| &luks_device.device);
            let chosen = container.or_else(|| self.devices.get(id).map(|found| &found.device));
            match (self.clashes.get(id), chosen) {
                (Some(paths), _) => shown.extend(paths.iter().map(|path| (path.clone(), *id))),
                (None, Some(device)) => shown.push((device.path.clone(), *id)),
                (None, None) => {}
            }
        }
        shown
    }

    /// Why the pool does not run. What its devices say comes first: they may have changed since something went wrong.
    fn reason(&self, uuid: PoolUuid, verdict: Verdict) -> Option<Arc<str>> {
        let was_stopped = matches!(&verdict, Verdict::Complete(metadata) if metadata.started == Some(false));
        if self.being_set_up {
            return Some(BEING_SET_UP.into());
        }
        let obstacle = verdict.obstacle(uuid).map(|error| error.sentence().into());
        obstacle.or_else(|| self.trouble.clone()).or_else(|| was_stopped.then(|| STOPPED.into()))
    }
}
