//! What is known of devices whose pool does not run: sets of devices by pool, and their names
//! (`spec/engine/engine-behaviour.md` §2, 4).
//!
//! A value in memory. Devices are read before it is asked, so its mutex is never held over I/O.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    engine::{
        bda::Bda,
        encased::Encased,
        encryption::{EncryptionError, Info},
        error::{Error, Result},
        ids::{DevUuid, PoolUuid},
        metadata::{HeaderFlags, MetadataVersion, PoolMetadata},
        name::Name,
        pool::Pool,
        request::PoolRef,
    },
    platform::{BlockDevice, DeviceNumber, Timestamp},
    view,
};

/// A device found, with its Stratis area as read.
#[derive(Debug, Clone)]
pub struct Found {
    /// The device.
    pub device: BlockDevice,
    /// Its area.
    pub bda: Bda,
    /// The newest pool metadata on it with its stamp, if it has any. `Err`: it has some that cannot be read.
    pub metadata: Option<std::result::Result<(Timestamp, Arc<PoolMetadata>), String>>,
}

impl Found {
    /// Whether it carries the mark that its pool's metadata does not name it yet.
    pub fn is_uncommitted(&self) -> bool {
        self.bda.header().flags.contains(HeaderFlags::UNCOMMITTED)
    }
}

/// What was found on a block device.
#[derive(Debug, Clone)]
pub enum Seen {
    /// A Stratis area.
    Area(Found),
    /// A LUKS2 container that a Stratis device lies in.
    Container(Encased),
}

impl Seen {
    /// The pool.
    pub fn pool(&self) -> PoolUuid {
        match self {
            Seen::Area(found) => found.bda.header().pool,
            Seen::Container(encased) => encased.token.pool,
        }
    }

    /// The block device.
    pub fn device(&self) -> &BlockDevice {
        match self {
            Seen::Area(found) => &found.device,
            Seen::Container(encased) => &encased.device,
        }
    }
}

/// The devices found of one pool that does not run.
#[derive(Debug, Clone, Default)]
pub struct DeviceSet {
    devices: BTreeMap<DevUuid, Found>,
    /// The containers of those that lie in one, opened or not.
    containers: BTreeMap<DevUuid, Encased>,
    /// Some of the pool's device-mapper devices are up.
    pub partial: bool,
    /// What went wrong when it was last to be set up or taken down.
    pub trouble: Option<Arc<str>>,
    /// It is being set up.
    pub being_set_up: bool,
}

/// What a set of devices says of its pool.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Metadata was found and every device that it names.
    Complete(Arc<PoolMetadata>),
    /// Metadata was found; these devices are missing.
    Incomplete(Arc<PoolMetadata>, Vec<DevUuid>),
    /// Metadata was found; it does not name these devices.
    Surplus(Arc<PoolMetadata>, Vec<DevUuid>),
    /// The metadata says that the pool is being destroyed.
    Destroying(Arc<PoolMetadata>),
    /// Some devices lie in containers that are not open.
    Locked,
    /// No device has metadata, and each is marked as not committed: left over from a creation cut short.
    NeverCommitted,
    /// There is no metadata, it cannot be read, or the devices disagree.
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
            Verdict::Surplus(metadata, surplus) => {
                let device = surplus.first().copied()?;
                named(&metadata, &|pool| Error::ExtraDevice { pool, device })
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
        let metadata = Arc::new(pool.meta.clone());
        let containers = pool.members.iter().filter_map(|(uuid, member)| Some((*uuid, member.container.clone()?)));
        let shown = pool.members.iter().filter(|(_, member)| !closed || member.container.is_none());
        let devices = shown.map(|(uuid, member)| {
            // Devices of the cache tier hold none.
            let holds_metadata = pool.meta.data_devices().any(|data| data == *uuid);
            let stamp = member.bda.last_update().unwrap_or_default();
            let metadata = holds_metadata.then(|| Ok((stamp, Arc::clone(&metadata))));
            (*uuid, Found { device: member.device.clone(), bda: member.bda.clone(), metadata })
        });
        let (devices, containers) = (devices.collect(), containers.collect());
        DeviceSet { devices, containers, ..DeviceSet::default() }
    }

    /// The devices, by identifier.
    pub fn devices(&self) -> impl Iterator<Item = &Found> {
        self.devices.values()
    }

    /// The container that a device lies in.
    pub fn container(&self, device: DevUuid) -> Option<&Encased> {
        self.containers.get(&device)
    }

    /// All containers.
    pub fn containers(&self) -> impl Iterator<Item = &Encased> {
        self.containers.values()
    }

    /// The containers that do not show what is in them.
    pub fn closed(&self) -> impl Iterator<Item = &Encased> {
        self.containers.values().filter(|encased| !self.devices.contains_key(&encased.id()))
    }

    /// Forgets the device at this path, if it is here.
    fn forget(&mut self, path: &Path) {
        self.devices.retain(|_, found| found.device.path != path);
        self.containers.retain(|_, encased| encased.device.path != path);
    }

    /// The block devices, and what is in containers that are open.
    pub fn numbers(&self) -> impl Iterator<Item = DeviceNumber> {
        let areas = self.devices.values().map(|found| found.device.number);
        areas.chain(self.containers.values().map(|encased| encased.device.number))
    }

    /// Whether nothing is known of it any more.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.containers.is_empty()
    }

    /// How its containers can be unlocked; `None` if it has none.
    ///
    /// # Errors
    /// If some of its devices are encrypted and some are not.
    pub fn encryption(&self) -> std::result::Result<Option<Info>, EncryptionError> {
        let bare = self.devices.keys().filter(|device| !self.containers.contains_key(device)).map(|_| None);
        Info::of_devices(self.containers.values().map(|encased| Some(&encased.bindings)).chain(bare))
    }

    /// Whether metadata that counts names this device as a member.
    fn lists(&self, device: DevUuid) -> bool {
        let named =
            |found: &Found| matches!(&found.metadata, Some(Ok((_, meta))) if meta.devices().any(|uuid| uuid == device));
        // Of a pool that never was or is to be no more, nothing counts.
        !matches!(self.verdict(), Verdict::NeverCommitted | Verdict::Destroying(_)) && self.devices().any(named)
    }

    /// The metadata version, if all devices have one.
    pub fn version(&self) -> Option<MetadataVersion> {
        let inside = self.containers.values().map(|_| MetadataVersion::V1);
        let mut versions = self.devices.values().map(|found| found.bda.header().version).chain(inside);
        let first = versions.next()?;
        versions.all(|version| version == first).then_some(first)
    }

    /// Puts what has just been read of its devices in place of what was known of them.
    pub fn renew(&mut self, seen: Vec<Seen>) {
        self.devices.clear();
        self.containers.clear();
        seen.into_iter().for_each(|seen| self.add(seen));
    }

    /// Keeps the devices that are the same in what has been read `now`. Of one in a container that has been closed since it is
    /// the container that tells.
    pub fn retain_known(&mut self, now: &DeviceSet) {
        self.containers.retain(|device, _| now.containers.contains_key(device));
        let containers = &self.containers;
        self.devices.retain(|device, _| containers.contains_key(device) || now.devices.contains_key(device));
    }

    /// Adds what was seen of a device.
    pub fn add(&mut self, seen: Seen) {
        match seen {
            Seen::Area(found) => self.add_area(found),
            Seen::Container(encased) => self.add_container(encased),
        }
    }

    /// As with areas, the first one counts.
    fn add_container(&mut self, encased: Encased) {
        match self.containers.get(&encased.id()) {
            Some(known) if known.device.number != encased.device.number => log::warn!(
                "{} and {} both say that they are device {} of a pool; ignoring the second, as a clone of the first",
                known.device.path.display(),
                encased.device.path.display(),
                encased.id()
            ),
            _ => drop(self.containers.insert(encased.id(), encased)),
        }
    }

    /// Adds a device. One of the same identifier but another number stays as it is, with a warning: it may be a clone.
    fn add_area(&mut self, found: Found) {
        let uuid = found.bda.header().device;
        match self.devices.get(&uuid) {
            Some(known) if known.device.number != found.device.number => log::warn!(
                "{} and {} both say that they are device {uuid} of a pool; ignoring the second, as a clone of the first",
                known.device.path.display(),
                found.device.path.display()
            ),
            _ => drop(self.devices.insert(uuid, found)),
        }
    }

    /// The newest metadata of all devices (`spec/engine/ondisk-metadata.md` §3.8: that with the greatest stamp counts, and
    /// if it cannot be read no other does), and what it means for the devices found.
    pub fn verdict(&self) -> Verdict {
        let newest = self.devices.values().filter_map(|found| {
            let stamp = found.bda.last_update()?;
            Some((stamp, found.metadata.as_ref()?))
        });
        let newest = newest.max_by_key(|(stamp, _)| *stamp);
        // What is closed may be left over of an addition. Devices that are open and name all others decide.
        let counts = |closed: &Encased| match &newest {
            Some((_, Ok((_, metadata)))) => {
                !metadata.destroying && metadata.devices().any(|device| device == closed.id())
            }
            _ => true,
        };
        if self.closed().any(counts) {
            return Verdict::Locked;
        }
        let Some((_, newest)) = newest else {
            let uncommitted = Found::is_uncommitted;
            return match self.devices.values().all(uncommitted) {
                true => Verdict::NeverCommitted,
                false => Verdict::Unreadable("no device holds pool metadata".to_owned()),
            };
        };
        let metadata = match newest {
            Ok((_, metadata)) => Arc::clone(metadata),
            Err(error) => return Verdict::Unreadable(error.clone()),
        };
        if metadata.destroying {
            return Verdict::Destroying(metadata);
        }
        let listed: BTreeSet<DevUuid> = metadata.devices().collect();
        // A device whose addition was cut short is not part of the pool and does not stand in its way.
        let surplus = self.devices.iter().filter(|(uuid, found)| !listed.contains(uuid) && !found.is_uncommitted());
        let surplus: Vec<DevUuid> = surplus.map(|(uuid, _)| *uuid).collect();
        let missing: Vec<DevUuid> = listed.iter().filter(|uuid| !self.devices.contains_key(uuid)).copied().collect();
        match (missing.is_empty(), surplus.is_empty()) {
            (true, true) => Verdict::Complete(metadata),
            (_, false) => Verdict::Surplus(metadata, surplus),
            (false, true) => Verdict::Incomplete(metadata, missing),
        }
    }

    fn name(&self) -> Option<Name> {
        match self.verdict() {
            Verdict::Complete(meta) | Verdict::Incomplete(meta, _) | Verdict::Surplus(meta, _) => {
                Name::new(&meta.name).ok()
            }
            Verdict::Locked => {
                let mut names = self.containers.values().map(|encased| encased.token.pool_name.as_deref());
                let first = names.next()??;
                names.all(|name| name == Some(first)).then(|| Name::new(first).ok())?
            }
            _ => None,
        }
    }

    fn view(&self, uuid: PoolUuid) -> Option<view::StoppedPool> {
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
            devices: self.outer_paths().collect(),
            metadata_version: self.version().map(MetadataVersion::number),
            features,
            encryption: encryption.map(|info| info.view()),
            partial: self.partial,
            reason: self.reason(uuid, verdict),
        })
    }

    /// The block devices: those of containers instead of what is in them.
    fn outer_paths(&self) -> impl Iterator<Item = (PathBuf, DevUuid)> {
        let bare = self.devices.iter().filter(|(uuid, _)| !self.containers.contains_key(uuid));
        let bare = bare.map(|(uuid, found)| (found.device.path.clone(), *uuid));
        self.containers.iter().map(|(uuid, encased)| (encased.device.path.clone(), *uuid)).chain(bare)
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

/// Why a pool does not run with which nothing is wrong.
pub const STOPPED: &str = "it was stopped by request";

/// Why a pool does not run that will soon.
pub const BEING_SET_UP: &str = "it is being set up";

/// Everything known of pools that do not run.
#[derive(Debug, Default)]
pub struct Registry {
    sets: BTreeMap<PoolUuid, DeviceSet>,
    /// Devices of running pools: whose they are.
    running: HashMap<PathBuf, (PoolUuid, DevUuid)>,
    turns: Turns,
    version: u64,
    changed: bool,
}

/// When pools came to run and ceased to. What was read of the devices of one before is out of date: it may say of a pool
/// that a user has stopped that it is to run.
#[derive(Debug, Default)]
struct Turns {
    count: u64,
    last: HashMap<PoolUuid, u64>,
    /// The newest of those that have been forgotten.
    forgotten: u64,
}

/// A moment, to ask what has happened since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

impl Turns {
    /// Pools of which it is known when they turned. A moment that counts is seconds old, and no more turn in that time.
    const KNOWN_MAX: usize = 4096;

    fn note(&mut self, pool: PoolUuid) {
        self.count += 1;
        self.last.insert(pool, self.count);
        if self.last.len() > Turns::KNOWN_MAX {
            self.forgotten = self.count - Turns::KNOWN_MAX as u64 / 2;
            self.last.retain(|_, turn| *turn > self.forgotten);
        }
    }

    fn any_since(&self, pool: PoolUuid, since: Moment) -> bool {
        self.last.get(&pool).copied().unwrap_or(self.forgotten) > since.0
    }
}

impl Registry {
    /// Now.
    pub fn moment(&self) -> Moment {
        Moment(self.turns.count)
    }

    /// Whether the pool has come to run, or ceased to, since that moment.
    pub fn has_turned(&self, pool: PoolUuid, since: Moment) -> bool {
        self.turns.any_since(pool, since)
    }

    /// Adds a device to its pool's set; what was known of another pool at its path is past.
    pub fn add(&mut self, seen: Seen) {
        let (pool, path) = (seen.pool(), &seen.device().path);
        self.sets.iter_mut().filter(|(other, _)| **other != pool).for_each(|(_, set)| set.forget(path));
        self.sets.entry(pool).or_default().add(seen);
        self.tidy();
    }

    /// A copy of a pool's set, to set the pool up from. The set itself stays, so that the pool is always to be found and a
    /// device that goes away meanwhile is forgotten.
    pub fn get(&self, pool: PoolUuid) -> Option<DeviceSet> {
        self.sets.get(&pool).cloned()
    }

    /// Which pool is meant, of those that do not run.
    ///
    /// # Errors
    /// If there is none, or more than one of that name. Pools of which the name is not known might be meant, too.
    pub fn resolve(&self, which: &PoolRef) -> Result<PoolUuid> {
        match which {
            PoolRef::Uuid(uuid) => {
                let shown = self.sets.get(uuid).and_then(|set| set.view(*uuid));
                shown.map(|pool| pool.uuid).ok_or_else(|| Error::UnknownPool(which.clone()))
            }
            PoolRef::Name(name) => {
                let named = |set: &DeviceSet| set.name().is_some_and(|of_set| of_set == *name);
                let pools: Vec<_> = self.sets.iter().filter(|(_, set)| named(set)).map(|(uuid, _)| *uuid).collect();
                match pools[..] {
                    [] => {
                        let shown = self.sets.iter().filter_map(|(uuid, set)| set.view(*uuid));
                        let nameless: Vec<_> = shown.filter(|pool| pool.name.is_none()).map(|pool| pool.uuid).collect();
                        Err(match nameless.is_empty() {
                            true => Error::UnknownPool(which.clone()),
                            false => Error::UnknownName { name: name.clone(), nameless },
                        })
                    }
                    [one] => Ok(one),
                    _ => Err(Error::AmbiguousName { name: name.clone(), pools }),
                }
            }
        }
    }

    /// Forgets everything known of pools that do not run, and takes what a new look at the machine has found that was begun
    /// at a moment. Of pools that have turned since, and of devices of running pools, what is known is newer.
    pub fn replace(&mut self, seen: Vec<Seen>, since: Moment) {
        let (newer, known) =
            std::mem::take(&mut self.sets).into_iter().partition(|(pool, _)| self.has_turned(*pool, since));
        let known: BTreeMap<PoolUuid, DeviceSet> = known;
        self.sets = newer;
        for seen in seen {
            let pool = seen.pool();
            if self.has_turned(pool, since) || self.running.contains_key(&seen.device().path) {
                continue;
            }
            let (partial, being_set_up) =
                known.get(&pool).map(|set| (set.partial, set.being_set_up)).unwrap_or_default();
            let new = || DeviceSet { partial, being_set_up, ..DeviceSet::default() };
            self.sets.entry(pool).or_insert_with(new).add(seen);
        }
        self.changed = true;
    }

    /// Takes a pool's set out: the pool runs, or nothing is left of it.
    pub fn take(&mut self, pool: PoolUuid) -> Option<DeviceSet> {
        let set = self.sets.remove(&pool);
        self.changed |= set.is_some();
        set
    }

    /// Takes in the devices of a pool that has been taken down.
    pub fn park(&mut self, pool: PoolUuid, set: DeviceSet) {
        self.sets.insert(pool, set);
        self.tidy();
    }

    /// Notes what has come of setting a pool up or taking it down: whether some of its device-mapper devices are up, and what
    /// went wrong.
    pub fn note_down(&mut self, pool: PoolUuid, partial: bool, trouble: Option<&Error>) {
        if let Some(set) = self.sets.get_mut(&pool) {
            let trouble = trouble.map(|error| error.sentence().into());
            self.changed |= (set.partial, &set.trouble) != (partial, &trouble) || set.being_set_up;
            (set.partial, set.trouble, set.being_set_up) = (partial, trouble, false);
        }
    }

    /// Notes that a pool is being set up, until it runs or [`Registry::note_down`] is told that it does not.
    pub fn note_being_set_up(&mut self, pool: PoolUuid) {
        if let Some(set) = self.sets.get_mut(&pool) {
            self.changed |= !std::mem::replace(&mut set.being_set_up, true);
        }
    }

    /// The pools that are being set up, by name, or by identifier where that is not known.
    pub fn being_set_up(&self) -> Vec<String> {
        let sets = self.sets.iter().filter(|(_, set)| set.being_set_up);
        sets.map(|(pool, set)| set.name().map_or_else(|| pool.to_string(), |name| name.to_string())).collect()
    }

    fn tidy(&mut self) {
        self.sets.retain(|_, set| !set.is_empty());
        self.changed = true;
    }

    /// Forgets the device at this path. Gives its pool, if it was known.
    pub fn remove_path(&mut self, path: &Path) -> Option<PoolUuid> {
        let knows = |set: &DeviceSet| {
            set.devices().any(|found| found.device.path == path)
                || set.containers().any(|encased| encased.device.path == path)
        };
        let pool = self.sets.iter().find(|(_, set)| knows(set)).map(|(pool, _)| *pool)?;
        let set = self.sets.get_mut(&pool)?;
        // What is up of a partially constructed pool uses its devices; they are not forgotten before it is taken down.
        if set.partial {
            return None;
        }
        // What is in a container goes with it; a container that is closed stays.
        let gone: Vec<DevUuid> = set.containers().filter(|c| c.device.path == path).map(Encased::id).collect();
        set.devices.retain(|device, _| !gone.contains(device));
        set.forget(path);
        self.tidy();
        Some(pool)
    }

    /// The paths of all devices of pools that do not run.
    pub fn paths(&self) -> BTreeSet<PathBuf> {
        self.sets.values().flat_map(|set| set.outer_paths().map(|(path, _)| path)).collect()
    }

    /// Whether this device is known to be a member of the pool, which runs or could.
    pub fn lists(&self, pool: PoolUuid, device: DevUuid) -> bool {
        self.running.values().any(|member| *member == (pool, device))
            || self.sets.get(&pool).is_some_and(|set| set.lists(device))
    }

    /// Pools that are known and do not run.
    pub fn pools(&self) -> Vec<PoolUuid> {
        self.sets.keys().copied().collect()
    }

    /// Notes the devices of a pool that runs now; nothing else is known of them any more.
    pub fn note_running(&mut self, pool: PoolUuid, devices: impl IntoIterator<Item = (PathBuf, DevUuid)>) {
        self.turns.note(pool);
        self.take(pool);
        for (path, device) in devices {
            if self.sets.values().any(|set| set.outer_paths().any(|(known, _)| known == path)) {
                self.sets.values_mut().for_each(|set| set.forget(&path));
                self.tidy();
            }
            self.running.insert(path, (pool, device));
        }
    }

    /// The pool does not run any more.
    pub fn note_ended(&mut self, pool: PoolUuid) {
        self.turns.note(pool);
        self.running.retain(|_, (of, _)| *of != pool);
    }

    /// The pools that run.
    pub fn running_pools(&self) -> BTreeSet<PoolUuid> {
        self.running.values().map(|(pool, _)| *pool).collect()
    }

    /// The running pool that the device at this path is a member of.
    pub fn running_member(&self, path: &Path) -> Option<(PoolUuid, DevUuid)> {
        self.running.get(path).copied()
    }

    /// The pools that do not run, as clients see them, if that changed since this was last called.
    pub fn take_change(&mut self) -> Option<Arc<view::Stopped>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.version += 1;
        let pools = self.sets.iter().filter_map(|(uuid, set)| set.view(*uuid)).collect();
        Some(Arc::new(view::Stopped { version: self.version, pools }))
    }
}
