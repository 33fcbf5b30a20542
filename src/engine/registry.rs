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
        ids::{DevUuid, PoolUuid},
        metadata::{HeaderFlags, MetadataVersion, PoolMetadata},
        name::Name,
    },
    platform::{BlockDevice, Timestamp},
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
    pub metadata: Option<Result<(Timestamp, Arc<PoolMetadata>), String>>,
}

impl Found {
    /// Whether it carries the mark that its pool's metadata does not name it yet.
    pub fn is_uncommitted(&self) -> bool {
        self.bda.header().flags.contains(HeaderFlags::UNCOMMITTED)
    }
}

/// The devices found of one pool that does not run.
#[derive(Debug, Clone, Default)]
pub struct DeviceSet {
    devices: BTreeMap<DevUuid, Found>,
    /// Some of the pool's device-mapper devices are up.
    pub partial: bool,
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
    /// No device has metadata, and each is marked as not committed: left over from a creation cut short.
    NeverCommitted,
    /// There is no metadata, it cannot be read, or the devices disagree.
    Unreadable(String),
}

impl DeviceSet {
    /// The devices, by identifier.
    pub fn devices(&self) -> impl Iterator<Item = &Found> {
        self.devices.values()
    }

    /// Takes the devices out.
    pub fn into_devices(self) -> impl Iterator<Item = Found> {
        self.devices.into_values()
    }

    /// Forgets the device at this path, if it is here.
    fn forget(&mut self, path: &Path) {
        self.devices.retain(|_, found| found.device.path != path);
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
        let mut versions = self.devices.values().map(|found| found.bda.header().version);
        let first = versions.next()?;
        versions.all(|version| version == first).then_some(first)
    }

    /// Adds a device. One of the same identifier but another number stays as it is, with a warning: it may be a clone.
    fn add(&mut self, found: Found) {
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
        let Some((_, newest)) = newest.max_by_key(|(stamp, _)| *stamp) else {
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
            _ => None,
        }
    }

    fn view(&self, uuid: PoolUuid) -> Option<view::StoppedPool> {
        let verdict = self.verdict();
        // Left-overs belong to nobody and are shown to nobody.
        if matches!(verdict, Verdict::NeverCommitted | Verdict::Destroying(_)) {
            return None;
        }
        let features = match &verdict {
            Verdict::Complete(meta) => Some(meta.features_view()),
            _ => None,
        };
        Some(view::StoppedPool {
            uuid,
            name: self.name(),
            devices: self.devices.iter().map(|(uuid, found)| (found.device.path.clone(), *uuid)).collect(),
            metadata_version: self.version().map(MetadataVersion::number),
            features,
            encryption: None,
            partial: self.partial,
        })
    }
}

/// Everything known of pools that do not run.
#[derive(Debug, Default)]
pub struct Registry {
    sets: BTreeMap<PoolUuid, DeviceSet>,
    /// Devices of running pools: whose they are.
    running: HashMap<PathBuf, (PoolUuid, DevUuid)>,
    version: u64,
    changed: bool,
}

impl Registry {
    /// Adds a device to its pool's set; what was known of another pool at its path is past.
    pub fn add(&mut self, found: Found) {
        let pool = found.bda.header().pool;
        self.sets.iter_mut().filter(|(other, _)| **other != pool).for_each(|(_, set)| set.forget(&found.device.path));
        self.sets.entry(pool).or_default().add(found);
        self.tidy();
    }

    /// A copy of a pool's set, to set the pool up from. The set itself stays, so that the pool is always to be found and a
    /// device that goes away meanwhile is forgotten.
    pub fn get(&self, pool: PoolUuid) -> Option<DeviceSet> {
        self.sets.get(&pool).cloned()
    }

    /// Takes a pool's set out: the pool runs, or nothing is left of it.
    pub fn take(&mut self, pool: PoolUuid) -> Option<DeviceSet> {
        let set = self.sets.remove(&pool);
        self.changed |= set.is_some();
        set
    }

    /// Notes whether some of a pool's device-mapper devices are up.
    pub fn note_partial(&mut self, pool: PoolUuid, partial: bool) {
        if let Some(set) = self.sets.get_mut(&pool) {
            set.partial = partial;
            self.changed = true;
        }
    }

    fn tidy(&mut self) {
        self.sets.retain(|_, set| !set.devices.is_empty());
        self.changed = true;
    }

    /// Forgets the device at this path. Gives its pool, if it was known.
    pub fn remove_path(&mut self, path: &Path) -> Option<PoolUuid> {
        let (pool, device) = self.sets.iter().find_map(|(pool, set)| {
            let (device, _) = set.devices.iter().find(|(_, found)| found.device.path == path)?;
            Some((*pool, *device))
        })?;
        let set = self.sets.get_mut(&pool)?;
        // What is up of a partially constructed pool uses its devices; they are not forgotten before it is taken down.
        if set.partial {
            return None;
        }
        set.devices.remove(&device);
        self.tidy();
        Some(pool)
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
        self.take(pool);
        for (path, device) in devices {
            if self.sets.values().any(|set| set.devices().any(|found| found.device.path == path)) {
                self.sets.values_mut().for_each(|set| set.forget(&path));
                self.tidy();
            }
            self.running.insert(path, (pool, device));
        }
    }

    /// The pool does not run any more.
    pub fn note_ended(&mut self, pool: PoolUuid) {
        self.running.retain(|_, (of, _)| *of != pool);
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
        let mut pools: Vec<view::StoppedPool> = self.sets.iter().filter_map(|(uuid, set)| set.view(*uuid)).collect();
        // A name that stands for more than one pool is shown for none.
        let mut uses: HashMap<Name, usize> = HashMap::new();
        pools.iter().filter_map(|pool| pool.name.clone()).for_each(|name| *uses.entry(name).or_default() += 1);
        for pool in &mut pools {
            if pool.name.as_ref().is_some_and(|name| uses[name] > 1) {
                pool.name = None;
            }
        }
        Some(Arc::new(view::Stopped { version: self.version, pools }))
    }
}
