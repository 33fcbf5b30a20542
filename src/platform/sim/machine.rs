//! The whole state of the simulated machine, and its power.
//!
//! One value behind one mutex, which is a leaf: no thread waits while it holds the mutex. Rules of
//! a power cut: disks keep what was durable and, of the rest, what the generator chooses. Pools go
//! back to their last commit. Device-mapper devices, mounts, links and event sources are lost.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    clock::Clock,
    disks::DiskTable,
    dm_devices::{self, Dm, dm_node},
    events::EventSources,
    key_servers::KeyServers,
    thin::Stores,
    udev_queue::Udev,
    xfs::Xfs,
};
use crate::platform::{DeviceNumber, keyring::Secret};

/// Default number of busy results; below the attempts of a removal.
const LINGERING_DEFAULT: u32 = 2;

/// The state of the machine.
pub(super) struct MachineState {
    pub(super) powered: bool,
    /// Number of times it was switched on again.
    pub(super) boot: u64,
    pub(super) disks: DiskTable,
    pub(super) dm: Dm,
    pub(super) thin: Stores,
    pub(super) xfs: Xfs,
    pub(super) udev: Udev,
    pub(super) events: EventSources,
    /// Devices that the daemon holds exclusively, with the serial number of each hold.
    pub(super) held: BTreeMap<DeviceNumber, u64>,
    /// Number of calls whose I/O waits for a suspended device or a full pool.
    pub(super) stalled: usize,
    /// Pool and thin device of each write that a full pool queues.
    pub(super) queued: Vec<(u32, u32)>,
    /// How many removals find a device still busy after its last user closed it.
    pub(super) lingering: u32,
    pub(super) clock: Clock,
    /// Keys by name. A power cut loses them, as in the kernel.
    pub(super) keyring: BTreeMap<String, Secret>,
    /// Volume keys in the daemon's process keyring.
    pub(super) volume_keys: BTreeMap<String, Secret>,
    /// Tang servers and the TPM.
    pub(super) key_servers: KeyServers,
    pub(super) chance: StdRng,
    keys: u64,
}

impl MachineState {
    pub(super) fn new(disks: DiskTable, key_servers: KeyServers, clock: Clock, seed: u64) -> MachineState {
        MachineState {
            powered: true,
            boot: 0,
            disks,
            dm: Dm::default(),
            thin: Stores::default(),
            xfs: Xfs::default(),
            udev: Udev::default(),
            events: EventSources::default(),
            held: BTreeMap::new(),
            stalled: 0,
            queued: Vec::new(),
            lingering: LINGERING_DEFAULT,
            clock,
            chance: StdRng::seed_from_u64(seed),
            keyring: BTreeMap::new(),
            volume_keys: BTreeMap::new(),
            key_servers,
            keys: 0,
        }
    }

    /// A key for state that is kept here and found through bytes on a device. Keys never repeat and
    /// never occur on a device by accident.
    pub(super) fn new_key(&mut self) -> [u8; 16] {
        self.keys += 1;
        let mut key = *b"sim:\0\0\0\0\0\0\0\0\0\0\0\0";
        key[8..].copy_from_slice(&self.keys.to_be_bytes());
        key
    }

    /// The canonical node and device number that a path leads to.
    pub(super) fn node(&mut self, path: &Path) -> Option<(PathBuf, DeviceNumber)> {
        let path = self.disks.resolve(normal(path)?);
        if let Ok(name) = path.strip_prefix("/dev/mapper") {
            let minor = self.dm.by_name(name.to_str()?)?;
            return Some((dm_node(minor), dm_devices::number(minor)));
        }
        if path.starts_with("/dev/stratis") {
            let number = self.udev.link(&path)?;
            return Some((dm_node(number.minor), number));
        }
        if let Some(minor) = path.to_str().and_then(|text| text.strip_prefix("/dev/dm-")) {
            let number = dm_devices::number(minor.parse().ok()?);
            return self.dm.get(number).map(|_| (path.clone(), number));
        }
        if path == Path::new("/dev") || path.parent().is_none() {
            return None;
        }
        let number = self.disks.find(&path)?;
        Some((path, number))
    }

    /// Takes exclusive use of a device. Returns the serial number of the hold.
    pub(super) fn hold(&mut self, number: DeviceNumber) -> u64 {
        self.keys += 1;
        self.held.insert(number, self.keys);
        self.keys
    }

    /// Releases a hold, unless a power cut already has.
    pub(super) fn release(&mut self, number: DeviceNumber, serial: u64) {
        if self.held.get(&number) == Some(&serial) {
            self.held.remove(&number);
        }
    }

    /// Applies the effects of a power cut.
    pub(super) fn lose_power(&mut self) {
        if !self.powered {
            return;
        }
        self.powered = false;
        for pool in self.dm.pool_minors() {
            if self.chance.random() {
                // Stands for the kernel's periodic commit, which has just happened.
                let _ = self.commit_pool(pool);
            }
        }
        for disk in self.disks.all_mut() {
            disk.lose_power(&mut self.chance);
        }
        self.thin.lose_power();
        self.xfs.lose_power(&mut self.chance);
        self.dm = Dm::default();
        self.udev.lose_power();
        self.events.lose_power();
        self.keyring.clear();
        self.volume_keys.clear();
        self.held.clear();
    }

    pub(super) fn power_on(&mut self) {
        self.powered = true;
        self.boot += 1;
    }

    /// A device was closed; udev, or the kernel itself, keeps it open for a moment.
    pub(super) fn left(&mut self, number: DeviceNumber) {
        let lingering = self.lingering;
        if let Some(device) = (number.major == dm_devices::DM_MAJOR).then(|| self.dm.device_mut(number.minor)).flatten()
        {
            device.holds = device.holds.max(lingering);
        }
    }

    /// Pulls a disk: its write cache is lost and its node is gone. Returns false if there is no
    /// such disk.
    pub(super) fn pull(&mut self, path: &Path) -> bool {
        let Some(disk) = self.disks.known(path).filter(|disk| disk.present) else { return false };
        disk.lose_power(&mut self.chance);
        disk.present = false;
        true
    }
}

/// Normalizes an absolute path: removes `.`, `..` and doubled slashes. `None` for a relative path
/// and for one longer than the kernel accepts.
pub(super) fn normal(path: &Path) -> Option<PathBuf> {
    const PATH_BYTES_MAX: usize = 4095;
    const NAME_BYTES_MAX: usize = 255;
    let mut normal = PathBuf::from("/");
    let is_too_long = path.as_os_str().len() > PATH_BYTES_MAX || path.iter().any(|part| part.len() > NAME_BYTES_MAX);
    if !path.is_absolute() || is_too_long {
        return None;
    }
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::Normal(part) => normal.push(part),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(normal)
}
