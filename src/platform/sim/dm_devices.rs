//! Device-mapper devices as values: names, tables, open counts, running pools. The rules are in
//! `dm`.
//!
//! This module knows nothing of what a table does.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
};

use nix::libc;

use super::{cipher::Opened, pool_run::PoolRun};
use crate::{
    base::units::Sectors,
    platform::{
        DeviceNumber,
        dm::{self, Line, Visibility},
    },
};

/// Major number of device-mapper devices.
pub(super) const DM_MAJOR: u32 = 254;

/// A device.
pub(super) struct DmDevice {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) event: u32,
    pub(super) suspended: bool,
    /// The live table.
    pub(super) table: Vec<Line>,
    /// The loaded table, which becomes live at the next resume.
    pub(super) waiting: Option<Vec<Line>>,
    pub(super) visibility: Visibility,
    /// Number of removals that will still find the device open, as while udev probes it.
    pub(super) holds: u32,
    /// Set for a crypt device; its table is made from this.
    pub(super) opened: Option<Opened>,
}

impl DmDevice {
    pub(super) fn size(&self) -> Sectors {
        Sectors(self.table.last().map_or(0, |line| line.start.0 + line.length.0))
    }
}

/// All device-mapper devices.
#[derive(Default)]
pub(super) struct Dm {
    devices: BTreeMap<u32, DmDevice>,
    names: BTreeMap<String, u32>,
    uuids: HashMap<String, u32>,
    /// Free minor numbers below `next`.
    free: BTreeSet<u32>,
    next: u32,
    /// Number of tables and mounts that have a device open.
    opens: HashMap<DeviceNumber, u32>,
    pools: BTreeMap<u32, PoolRun>,
    by_metadata: HashMap<DeviceNumber, u32>,
}

impl Dm {
    pub(super) fn get(&self, number: DeviceNumber) -> Option<&DmDevice> {
        (number.major == DM_MAJOR).then(|| self.devices.get(&number.minor)).flatten()
    }

    pub(super) fn get_minor(&self, minor: u32) -> Option<&DmDevice> {
        self.devices.get(&minor)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub(super) fn device_mut(&mut self, minor: u32) -> Option<&mut DmDevice> {
        self.devices.get_mut(&minor)
    }

    pub(super) fn pool(&self, minor: u32) -> Option<&PoolRun> {
        self.pools.get(&minor)
    }

    pub(super) fn pool_mut(&mut self, minor: u32) -> Option<&mut PoolRun> {
        self.pools.get_mut(&minor)
    }

    pub(super) fn has_pool_on(&self, metadata: DeviceNumber) -> bool {
        self.by_metadata.contains_key(&metadata)
    }

    pub(super) fn insert_pool(&mut self, minor: u32, run: PoolRun) {
        self.by_metadata.insert(run.metadata, minor);
        self.pools.insert(minor, run);
    }

    pub(super) fn remove_pool(&mut self, minor: u32) {
        if let Some(run) = self.pools.remove(&minor) {
            self.by_metadata.remove(&run.metadata);
        }
    }

    /// The live table of a device; empty if there is none.
    pub(super) fn active(&self, minor: u32) -> &[Line] {
        self.devices.get(&minor).map_or(&[], |device| &device.table)
    }

    pub(super) fn pool_minors(&self) -> Vec<u32> {
        self.pools.keys().copied().collect()
    }

    pub(super) fn is_open(&self, number: DeviceNumber) -> bool {
        self.opens.contains_key(&number)
    }

    pub(super) fn open(&mut self, number: DeviceNumber) {
        *self.opens.entry(number).or_default() += 1;
    }

    pub(super) fn close(&mut self, number: DeviceNumber) {
        if let Some(count) = self.opens.get_mut(&number) {
            *count -= 1;
            if *count == 0 {
                self.opens.remove(&number);
            }
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.names.keys()
    }

    pub(super) fn list(&self) -> Vec<dm::Listed> {
        let listed = |(name, minor): (&String, &u32)| dm::Listed {
            name: name.clone(),
            number: number(*minor),
            event: self.event(name),
        };
        self.names.iter().map(listed).collect()
    }

    pub(super) fn event(&self, name: &str) -> Option<u32> {
        Some(self.devices.get(&self.by_name(name)?)?.event)
    }

    pub(super) fn public(&self) -> Vec<u32> {
        self.devices.iter().filter(|(_, d)| d.visibility == Visibility::Public).map(|(minor, _)| *minor).collect()
    }

    pub(super) fn is_suspended(&self, minor: u32) -> bool {
        self.devices.get(&minor).is_some_and(|device| device.suspended)
    }

    pub(super) fn minor_of(&self, name: &str) -> Result<u32, i32> {
        self.by_name(name).ok_or(libc::ENXIO)
    }

    /// Adds a device without a table. EBUSY if its name or UUID is in use.
    pub(super) fn insert(&mut self, name: &str, uuid: &str) -> Result<u32, i32> {
        if self.names.contains_key(name) || (!uuid.is_empty() && self.uuids.contains_key(uuid)) {
            return Err(libc::EBUSY);
        }
        let minor = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.names.insert(name.to_owned(), minor);
        if !uuid.is_empty() {
            self.uuids.insert(uuid.to_owned(), minor);
        }
        let device = DmDevice {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            event: 0,
            suspended: false,
            table: Vec::new(),
            waiting: None,
            visibility: Visibility::Private,
            holds: 0,
            opened: None,
        };
        self.devices.insert(minor, device);
        Ok(minor)
    }

    pub(super) fn remove(&mut self, minor: u32) -> Option<DmDevice> {
        let device = self.devices.remove(&minor)?;
        self.names.remove(&device.name);
        self.uuids.remove(&device.uuid);
        self.free.insert(minor);
        Some(device)
    }
}

pub(super) fn number(minor: u32) -> DeviceNumber {
    DeviceNumber { major: DM_MAJOR, minor }
}

/// Node of a device-mapper device, to which links resolve.
pub(super) fn dm_node(minor: u32) -> PathBuf {
    PathBuf::from(format!("/dev/dm-{minor}"))
}
