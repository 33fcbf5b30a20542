//! Device-mapper: devices, their two table slots, who uses whom, event numbers.
//!
//! Rules, with the error number that the kernel gives:
//! - create: a name or UUID that is taken EBUSY; a `/` in the name, or one too long, EINVAL.
//! - load: unknown device ENXIO; lines that do not follow each other from 0, an unknown target, bad parameters, another
//!   target in place of a thin pool EINVAL; a device below that is not there ENXIO, is mounted or otherwise in
//!   exclusive use EBUSY, is read-only EACCES. Thin pool: a metadata device of another pool EBUSY, one that holds
//!   something else EILSEQ. Thin: no pool there, or a suspended one, EINVAL; unknown id ENODATA.
//! - resume: no table at all, a line past the end of the device below, a pool that shrank EINVAL. What fails after a
//!   load leaves the device suspended, as in the kernel.
//! - remove: anybody who has it open (a mount, another device's active or waiting table, a holder that a test
//!   simulates) EBUSY. rename: a name that is taken EBUSY.
//! - message: no active table ENXIO, a target that takes none or words that are not understood EINVAL, a read-only pool
//!   EOPNOTSUPP, `create_thin`/`create_snap` of a used id EEXIST, an unknown origin or a deletion of an unknown id
//!   ENODATA, the deletion of a device in use EBUSY. Their effect is durable when they return.
//! - events: a device's number grows with each event of its target and with a rename. The global event is raised by
//!   that, and by create, remove and the swap of a table.
//!
//! Targets: linear, thin-pool, thin, cache (`writethrough` or `passthrough`; `writeback` is refused with EINVAL). The
//! origin serves all I/O of a cache: nothing is ever promoted.
//!
//! Knows nothing of names' meaning, nor of how a disk works.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nix::libc;

use super::{
    io::{Patience, Stop},
    machine::Machine,
    thin::{self, Key, METADATA_BLOCK, METADATA_BLOCKS_MAX, THIN_ID_MAX},
    udev,
};
use crate::{
    engine::units::{DataBlocks, SECTOR, Sectors},
    platform::{
        DeviceAction, DeviceNumber,
        dm::{self, Line, Target, Visibility},
    },
};

/// Major number of device-mapper devices.
pub(super) const DM_MAJOR: u32 = 254;

const NAME_BYTES_MAX: usize = 127;
const UUID_BYTES_MAX: usize = 128;

/// What a pool will still do. In the order in which it gets worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PoolMode {
    Write,
    OutOfData,
    OutOfMetadata,
    ReadOnly,
    Fail,
}

/// Feature arguments of a thin pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) zero_new_blocks: bool,
    pub(super) discard: bool,
    pub(super) discard_passdown: bool,
    pub(super) read_only: bool,
    pub(super) error_if_no_space: bool,
}

impl Features {
    fn parse(words: &[String]) -> Result<Features, i32> {
        let mut features = Features {
            zero_new_blocks: true,
            discard: true,
            discard_passdown: true,
            read_only: false,
            error_if_no_space: false,
        };
        for word in words {
            match word.as_str() {
                "skip_block_zeroing" => features.zero_new_blocks = false,
                "ignore_discard" => features.discard = false,
                "no_discard_passdown" => features.discard_passdown = false,
                "read_only" => features.read_only = true,
                "error_if_no_space" => features.error_if_no_space = true,
                _ => return Err(libc::EINVAL),
            }
        }
        Ok(features)
    }

    /// In the order in which the kernel writes them.
    fn words(self) -> Vec<String> {
        [
            (!self.zero_new_blocks, "skip_block_zeroing"),
            (!self.discard, "ignore_discard"),
            (!self.discard_passdown, "no_discard_passdown"),
            (self.read_only, "read_only"),
            (self.error_if_no_space, "error_if_no_space"),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .map(|(_, word)| word.to_owned())
        .collect()
    }
}

/// A thin pool that runs: there while any table names it.
pub(super) struct PoolRun {
    pub(super) key: Key,
    pub(super) metadata: DeviceNumber,
    pub(super) data: DeviceNumber,
    pub(super) features: Features,
    pub(super) mode: PoolMode,
    pub(super) low_water: u64,
    pub(super) low_water_triggered: bool,
    tables: u32,
    /// How many tables have each thin device open.
    open: HashMap<u32, u32>,
}

/// A device.
pub(super) struct Device {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) event: u32,
    pub(super) suspended: bool,
    /// The active table.
    pub(super) table: Vec<Line>,
    /// Loaded, to become active at the next resume.
    waiting: Option<Vec<Line>>,
    pub(super) visibility: Visibility,
    /// Removals that will find it open, as while udev probes it.
    pub(super) holds: u32,
}

impl Device {
    pub(super) fn size(&self) -> Sectors {
        Sectors(self.table.last().map_or(0, |line| line.start.0 + line.length.0))
    }
}

/// Devices that a table names, each once.
pub(super) fn uses(table: &[Line]) -> Vec<DeviceNumber> {
    let mut found = Vec::new();
    let mut add = |number: &DeviceNumber| {
        if !found.contains(number) {
            found.push(*number);
        }
    };
    for line in table {
        match &line.target {
            Target::Linear { device, .. } => add(device),
            Target::ThinPool { metadata, data, .. } => [metadata, data].into_iter().for_each(&mut add),
            Target::Thin { pool, .. } => add(pool),
            Target::Cache { metadata, cache, origin, .. } => {
                [metadata, cache, origin].into_iter().for_each(&mut add);
            }
            Target::Foreign { .. } => {}
        }
    }
    found
}

/// All device-mapper devices.
#[derive(Default)]
pub(super) struct Dm {
    devices: BTreeMap<u32, Device>,
    names: BTreeMap<String, u32>,
    uuids: HashMap<String, u32>,
    /// Minor numbers below `next` that are free.
    free: BTreeSet<u32>,
    next: u32,
    /// How many tables and mounts have a device open.
    opens: HashMap<DeviceNumber, u32>,
    pools: BTreeMap<u32, PoolRun>,
    by_metadata: HashMap<DeviceNumber, u32>,
}

impl Dm {
    pub(super) fn get(&self, number: DeviceNumber) -> Option<&Device> {
        (number.major == DM_MAJOR).then(|| self.devices.get(&number.minor)).flatten()
    }

    pub(super) fn get_minor(&self, minor: u32) -> Option<&Device> {
        self.devices.get(&minor)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub(super) fn device_mut(&mut self, minor: u32) -> Option<&mut Device> {
        self.devices.get_mut(&minor)
    }

    pub(super) fn pool(&self, minor: u32) -> Option<&PoolRun> {
        self.pools.get(&minor)
    }

    pub(super) fn pool_mut(&mut self, minor: u32) -> Option<&mut PoolRun> {
        self.pools.get_mut(&minor)
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
            event: self.devices.get(minor).map_or(0, |device| device.event),
        };
        self.names.iter().map(listed).collect()
    }

    pub(super) fn public(&self) -> Vec<u32> {
        self.devices.iter().filter(|(_, d)| d.visibility == Visibility::Public).map(|(minor, _)| *minor).collect()
    }

    fn minor_of(&self, name: &str) -> Result<u32, i32> {
        self.by_name(name).ok_or(libc::ENXIO)
    }
}

pub(super) fn number(minor: u32) -> DeviceNumber {
    DeviceNumber { major: DM_MAJOR, minor }
}

fn errno(stop: Stop) -> i32 {
    match stop {
        Stop::Errno(errno) => errno,
        Stop::Suspended | Stop::Full => libc::EBUSY,
    }
}

impl Machine {
    pub(super) fn raise_dm_event(&mut self, minor: u32) {
        if let Some(device) = self.dm.device_mut(minor) {
            device.event = device.event.wrapping_add(1);
        }
        self.events.dm_event();
    }

    pub(super) fn dm_new(&mut self, name: &str, uuid: &str) -> Result<u32, i32> {
        if name.is_empty() || name.contains('/') || name.len() > NAME_BYTES_MAX || uuid.len() > UUID_BYTES_MAX {
            return Err(libc::EINVAL);
        }
        if self.dm.names.contains_key(name) || (!uuid.is_empty() && self.dm.uuids.contains_key(uuid)) {
            return Err(libc::EBUSY);
        }
        let minor = self.dm.free.pop_first().unwrap_or_else(|| {
            self.dm.next += 1;
            self.dm.next - 1
        });
        self.dm.names.insert(name.to_owned(), minor);
        if !uuid.is_empty() {
            self.dm.uuids.insert(uuid.to_owned(), minor);
        }
        let device = Device {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            event: 0,
            suspended: false,
            table: Vec::new(),
            waiting: None,
            visibility: Visibility::Private,
            holds: 0,
        };
        self.dm.devices.insert(minor, device);
        self.events.dm_event();
        Ok(minor)
    }

    pub(super) fn dm_find(&self, name: &str) -> Option<dm::Device> {
        let minor = self.dm.by_name(name)?;
        let device = self.dm.get_minor(minor)?;
        Some(dm::Device {
            number: number(minor),
            uuid: device.uuid.clone(),
            suspended: device.suspended,
            table: device.table.clone(),
        })
    }

    pub(super) fn dm_load(&mut self, name: &str, table: &[Line]) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        let table = self.construct(minor, table)?;
        let replaced = self.dm.device_mut(minor).and_then(|device| device.waiting.replace(table));
        if let Some(table) = replaced {
            self.destruct(&table, minor);
        }
        Ok(())
    }

    /// Checks a table and takes hold of everything below it.
    fn construct(&mut self, minor: u32, table: &[Line]) -> Result<Vec<Line>, i32> {
        let mut end = 0_u64;
        for line in table {
            if line.start.0 != end || line.length.0 == 0 {
                return Err(libc::EINVAL);
            }
            end = end.checked_add(line.length.0).ok_or(libc::EINVAL)?;
            let alone = matches!(line.target, Target::ThinPool { .. });
            if alone && table.len() > 1 {
                return Err(libc::EINVAL);
            }
        }
        let is_pool = |lines: &[Line]| lines.iter().any(|line| matches!(line.target, Target::ThinPool { .. }));
        if table.is_empty() || (is_pool(&self.dm.devices[&minor].table) && !is_pool(table)) {
            return Err(libc::EINVAL);
        }
        for below in uses(table) {
            self.check_below(minor, below)?;
        }
        let mut made: Vec<Line> = Vec::with_capacity(table.len());
        for line in table {
            match self.construct_line(minor, line) {
                Ok(line) => made.push(line),
                Err(errno) => {
                    self.release_pools(&made, minor);
                    return Err(errno);
                }
            }
        }
        for below in uses(&made) {
            self.dm.open(below);
        }
        Ok(made)
    }

    fn check_below(&self, minor: u32, below: DeviceNumber) -> Result<(), i32> {
        if below == number(minor) {
            return Err(libc::EINVAL);
        }
        if self.size_of(below).is_none() {
            return Err(libc::ENXIO);
        }
        if let Some(disk) = self.disks.get(below) {
            if disk.shape.in_use {
                return Err(libc::EBUSY);
            }
            if disk.shape.read_only {
                return Err(libc::EACCES);
            }
        }
        if self.xfs.is_mounted(below) { Err(libc::EBUSY) } else { Ok(()) }
    }

    fn construct_line(&mut self, minor: u32, line: &Line) -> Result<Line, i32> {
        let target = match &line.target {
            Target::Linear { .. } => line.target.clone(),
            Target::ThinPool { metadata, data, block, low_water, features } => {
                let features = self.construct_pool(minor, *metadata, *data, *block, features)?;
                Target::ThinPool {
                    metadata: *metadata,
                    data: *data,
                    block: *block,
                    low_water: *low_water,
                    features: features.words(),
                }
            }
            Target::Thin { pool, id } => {
                let suspended = self.dm.get(*pool).is_none_or(|device| device.suspended);
                let run = self.dm.pools.get_mut(&pool.minor).filter(|_| pool.major == DM_MAJOR).ok_or(libc::EINVAL)?;
                if run.mode == PoolMode::Fail || u64::from(*id) > THIN_ID_MAX {
                    return Err(libc::EINVAL);
                }
                if !self.thin.get(&run.key).is_some_and(|store| store.current.exists(*id)) {
                    return Err(libc::ENODATA);
                }
                if suspended {
                    return Err(libc::EINVAL);
                }
                *run.open.entry(*id).or_default() += 1;
                line.target.clone()
            }
            Target::Cache { block, features, policy, .. } => {
                let modes = ["writethrough", "passthrough", "metadata2", "no_discard_passdown"];
                let known = features.iter().all(|word| modes.contains(&word.as_str()));
                let policies = ["default", "smq", "mq", "cleaner"];
                let granular = block.0 >= 64 && block.0 <= 2_097_152 && block.0 % 64 == 0;
                if !known || !policies.contains(&policy.as_str()) || !granular {
                    return Err(libc::EINVAL);
                }
                line.target.clone()
            }
            Target::Foreign { .. } => return Err(libc::EINVAL),
        };
        Ok(Line { start: line.start, length: line.length, target })
    }

    fn construct_pool(
        &mut self,
        minor: u32,
        metadata: DeviceNumber,
        data: DeviceNumber,
        block: Sectors,
        words: &[String],
    ) -> Result<Features, i32> {
        let features = Features::parse(words)?;
        if block.0 < 128 || block.0 > 2_097_152 || block.0 % 128 != 0 || metadata == data {
            return Err(libc::EINVAL);
        }
        if let Some(run) = self.dm.pools.get_mut(&minor) {
            if run.metadata != metadata || run.data != data || run.features.discard != features.discard {
                return Err(libc::EINVAL);
            }
            if self.thin.get(&run.key).is_some_and(|store| store.current.block != block.0) {
                return Err(libc::EINVAL);
            }
            run.tables += 1;
            return Ok(features);
        }
        if self.dm.by_metadata.contains_key(&metadata) {
            return Err(libc::EBUSY);
        }
        let key = self.open_metadata(metadata, block)?;
        let run = PoolRun {
            key,
            metadata,
            data,
            features,
            mode: PoolMode::Write,
            low_water: 0,
            low_water_triggered: false,
            tables: 1,
            open: HashMap::new(),
        };
        self.dm.pools.insert(minor, run);
        self.dm.by_metadata.insert(metadata, minor);
        Ok(features)
    }

    /// Blocks of a metadata device, as far as the kernel uses them.
    fn metadata_blocks(&self, metadata: DeviceNumber) -> u64 {
        (self.size_of(metadata).unwrap_or(0) / METADATA_BLOCK).min(METADATA_BLOCKS_MAX)
    }

    /// Finds the mappings that a metadata device names, or makes empty ones if its first block is zero.
    fn open_metadata(&mut self, metadata: DeviceNumber, block: Sectors) -> Result<Key, i32> {
        let mut first = vec![0; METADATA_BLOCK as usize];
        self.read_at(metadata, 0, &mut first, Patience::Pass).map_err(errno)?;
        if first.iter().any(|byte| *byte != 0) {
            let key = thin::key_of(&first).ok_or(libc::EILSEQ)?;
            let store = self.thin.get(&key).ok_or(libc::EILSEQ)?;
            return if store.current.block == block.0 { Ok(key) } else { Err(libc::EINVAL) };
        }
        let key = self.new_key();
        let meta = thin::Meta::new(block.0, self.metadata_blocks(metadata));
        if meta.used_metadata() > meta.metadata_blocks {
            return Err(libc::ENOSPC);
        }
        self.write_durably(metadata, 0, &thin::superblock(&key, 0)).map_err(errno)?;
        self.thin.insert(key, thin::Store::new(meta));
        Ok(key)
    }

    /// Lets go of everything below a table.
    fn destruct(&mut self, table: &[Line], minor: u32) {
        self.release_pools(table, minor);
        for below in uses(table) {
            self.dm.close(below);
        }
    }

    fn release_pools(&mut self, table: &[Line], minor: u32) {
        for line in table {
            match &line.target {
                Target::ThinPool { metadata, .. } => {
                    let Some(run) = self.dm.pools.get_mut(&minor) else { continue };
                    run.tables -= 1;
                    if run.tables == 0 {
                        // What is not committed yet is, as the kernel's last worker run does. What cannot be stays
                        // behind and the mappings are those of the last commit.
                        if self.commit_pool(minor).is_err()
                            && let Some(run) = self.dm.pools.get(&minor)
                            && let Some(store) = self.thin.get_mut(&run.key)
                            && store.dirty
                        {
                            store.abort();
                        }
                        self.dm.pools.remove(&minor);
                        self.dm.by_metadata.remove(metadata);
                    }
                }
                Target::Thin { pool, id } => {
                    if let Some(run) = self.dm.pools.get_mut(&pool.minor)
                        && let Some(count) = run.open.get_mut(id)
                    {
                        *count -= 1;
                        if *count == 0 {
                            run.open.remove(id);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether every line stays within the device below it.
    fn areas_fit(&self, table: &[Line]) -> bool {
        let within = |device: &DeviceNumber, start: u64, length: u64| {
            let size = self.size_of(*device).unwrap_or(0) / SECTOR;
            start.checked_add(length).is_some_and(|end| end <= size)
        };
        table.iter().all(|line| match &line.target {
            Target::Linear { device, offset } => within(device, offset.0, line.length.0),
            Target::ThinPool { data, .. } => within(data, 0, line.length.0),
            Target::Cache { origin, .. } => within(origin, 0, line.length.0),
            Target::Thin { .. } | Target::Foreign { .. } => true,
        })
    }

    pub(super) fn dm_resume(&mut self, name: &str, visibility: Visibility) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        let waiting = self.dm.device_mut(minor).and_then(|device| device.waiting.take());
        let mut swapped = false;
        if let Some(table) = waiting {
            if !self.areas_fit(&table) {
                self.destruct(&table, minor);
                if let Some(device) = self.dm.device_mut(minor) {
                    device.suspended = true;
                }
                return Err(libc::EINVAL);
            }
            let old = self.dm.device_mut(minor).map(|device| {
                device.suspended = true;
                std::mem::replace(&mut device.table, table)
            });
            if let Some(old) = old {
                self.destruct(&old, minor);
            }
            self.events.dm_event();
            swapped = true;
        }
        if self.dm.devices[&minor].table.is_empty() {
            return Err(libc::EINVAL);
        }
        if self.dm.devices[&minor].suspended {
            self.pre_resume(minor)?;
        }
        let was_private = self.dm.device_mut(minor).is_some_and(|device| {
            device.suspended = false;
            std::mem::replace(&mut device.visibility, visibility) == Visibility::Private
        });
        if let Some(run) = self.dm.pools.get_mut(&minor) {
            run.low_water_triggered = false;
        }
        if visibility == Visibility::Public {
            let action = if swapped && was_private { DeviceAction::Add } else { DeviceAction::Change };
            self.device_event(action, &udev::dm_node(minor));
        }
        Ok(())
    }

    /// What a thin pool does before it goes on: takes its new arguments and the new sizes of its devices.
    fn pre_resume(&mut self, minor: u32) -> Result<(), i32> {
        let Some(Line { length, target: Target::ThinPool { metadata, low_water, features, .. }, .. }) =
            self.dm.devices[&minor].table.first()
        else {
            return Ok(());
        };
        let (length, metadata, DataBlocks(low_water)) = (length.0, *metadata, *low_water);
        let features = Features::parse(features)?;
        let key = self.dm.pools.get(&minor).map(|run| run.key).ok_or(libc::EINVAL)?;
        let metadata_blocks = self.metadata_blocks(metadata);
        let store = self.thin.get_mut(&key).ok_or(libc::EINVAL)?;
        let data_blocks = length / store.current.block;
        if data_blocks < store.current.data_blocks || metadata_blocks < store.current.metadata_blocks {
            return Err(libc::EINVAL);
        }
        let sound = !store.current.needs_check;
        if sound && (data_blocks, metadata_blocks) != (store.current.data_blocks, store.current.metadata_blocks) {
            store.current.data_blocks = data_blocks;
            store.current.metadata_blocks = metadata_blocks;
            store.dirty = true;
        }
        let mode = match self.dm.pools.get_mut(&minor) {
            Some(run) => {
                run.features = features;
                run.low_water = low_water;
                run.mode
            }
            None => return Err(libc::EINVAL),
        };
        let wanted = match mode {
            PoolMode::Fail => PoolMode::Fail,
            _ if !sound || features.read_only => PoolMode::ReadOnly,
            _ => PoolMode::Write,
        };
        self.set_pool_mode(minor, wanted);
        // A commit that fails has put the pool into the mode that says so; the device goes on regardless.
        let _ = self.commit_pool(minor);
        Ok(())
    }

    pub(super) fn dm_suspend(&mut self, name: &str, flush: bool) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        if self.dm.devices[&minor].suspended {
            return Ok(());
        }
        if flush && self.xfs.is_mounted(number(minor)) {
            self.sync_file_system(number(minor)).map_err(errno)?;
        }
        // As in the kernel, a commit that fails shows in the pool's mode and not here.
        let _ = self.commit_pool(minor);
        if let Some(device) = self.dm.device_mut(minor) {
            device.suspended = true;
        }
        Ok(())
    }

    pub(super) fn dm_remove(&mut self, name: &str) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        let held = self.dm.device_mut(minor).is_some_and(|device| {
            let held = device.holds > 0;
            device.holds = device.holds.saturating_sub(1);
            held
        });
        if held || self.dm.is_open(number(minor)) {
            return Err(libc::EBUSY);
        }
        let Some(device) = self.dm.devices.remove(&minor) else { return Err(libc::ENXIO) };
        self.destruct(&device.table, minor);
        if let Some(waiting) = &device.waiting {
            self.destruct(waiting, minor);
        }
        self.dm.names.remove(&device.name);
        self.dm.uuids.remove(&device.uuid);
        self.dm.free.insert(minor);
        self.xfs.forget_usage(number(minor));
        self.udev.remove_links(number(minor));
        if device.visibility == Visibility::Public {
            self.device_event(DeviceAction::Remove, &udev::dm_node(minor));
        }
        self.events.dm_event();
        Ok(())
    }

    pub(super) fn dm_rename(&mut self, name: &str, new_name: &str) -> Result<(), i32> {
        if new_name.is_empty() || new_name.contains('/') || new_name.len() > NAME_BYTES_MAX {
            return Err(libc::EINVAL);
        }
        if self.dm.names.contains_key(new_name) {
            return Err(libc::EBUSY);
        }
        let minor = self.dm.minor_of(name)?;
        self.dm.names.remove(name);
        self.dm.names.insert(new_name.to_owned(), minor);
        if let Some(device) = self.dm.device_mut(minor) {
            device.name = new_name.to_owned();
            if device.visibility == Visibility::Public {
                self.device_event(DeviceAction::Change, &udev::dm_node(minor));
            }
        }
        self.raise_dm_event(minor);
        Ok(())
    }

    pub(super) fn dm_message(&mut self, name: &str, message: &str) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        match self.dm.devices[&minor].table.first().map(|line| &line.target) {
            None => return Err(libc::ENXIO),
            Some(Target::ThinPool { .. }) => {}
            Some(_) => return Err(libc::EINVAL),
        }
        let run = self.dm.pools.get(&minor).ok_or(libc::EINVAL)?;
        if run.mode >= PoolMode::OutOfMetadata {
            return Err(libc::EOPNOTSUPP);
        }
        let id = |word: &str| word.parse::<u64>().ok().filter(|id| *id <= THIN_ID_MAX).map(|id| id as u32);
        let words: Vec<&str> = message.split_ascii_whitespace().collect();
        let verb = words.first().ok_or(libc::EINVAL)?.to_ascii_lowercase();
        let store = self.thin.get_mut(&run.key).ok_or(libc::EINVAL)?;
        let meta = &mut store.current;
        match (verb.as_str(), &words[1..]) {
            ("create_thin", [new]) => meta.create(id(new).ok_or(libc::EINVAL)?)?,
            ("create_snap", [new, origin]) => {
                meta.snapshot(id(new).ok_or(libc::EINVAL)?, id(origin).ok_or(libc::EINVAL)?)?;
            }
            ("delete", [old]) => {
                let old = id(old).ok_or(libc::EINVAL)?;
                if run.open.contains_key(&old) {
                    return Err(libc::EBUSY);
                }
                meta.delete(old)?;
            }
            ("set_transaction_id", [from, to]) => {
                let number = |word: &str| word.parse::<u64>().map_err(|_| libc::EINVAL);
                let (from, to) = (number(from)?, number(to)?);
                if meta.transaction != from {
                    return Err(libc::EINVAL);
                }
                meta.transaction = to;
            }
            ("reserve_metadata_snap", []) if !meta.held_root => meta.held_root = true,
            ("reserve_metadata_snap", []) => return Err(libc::EBUSY),
            ("release_metadata_snap", []) if meta.held_root => meta.held_root = false,
            _ => return Err(libc::EINVAL),
        }
        store.dirty = true;
        // As in the kernel: a commit that fails shows in the pool's mode and not in the message's result.
        let _ = self.commit_pool(minor);
        Ok(())
    }

    pub(super) fn dm_status(&mut self, name: &str) -> Result<Vec<String>, i32> {
        let minor = self.dm.minor_of(name)?;
        if self.dm.pool(minor).is_some() && !self.dm.devices[&minor].suspended {
            let _ = self.commit_pool(minor);
        }
        let lines = &self.dm.devices[&minor].table;
        Ok(lines.iter().map(|line| self.status(minor, &line.target)).collect())
    }

    fn status(&self, minor: u32, target: &Target) -> String {
        match target {
            Target::ThinPool { metadata, .. } => self.pool_status(minor, *metadata),
            Target::Thin { pool, id } => {
                let Some(run) = self.dm.pool(pool.minor) else { return "Error".to_owned() };
                if run.mode == PoolMode::Fail {
                    return "Fail".to_owned();
                }
                match self.thin.get(&run.key).and_then(|store| store.current.mapped(*id)) {
                    Some((mapped, Some(highest))) => format!("{mapped} {highest}"),
                    Some((mapped, None)) => format!("{mapped} -"),
                    None => "Error".to_owned(),
                }
            }
            Target::Cache { metadata, cache, block, features, policy, .. } => {
                let policy = if policy == "default" { "smq" } else { policy };
                let blocks = self.size_of(*cache).unwrap_or(0) / SECTOR / block.0;
                let metadata = self.metadata_blocks(*metadata);
                let used = (4 + blocks.div_ceil(504)).min(metadata);
                let features = features.iter().fold(features.len().to_string(), |text, word| text + " " + word);
                format!(
                    "8 {used}/{metadata} {} 0/{blocks} 0 0 0 0 0 0 0 {features} 2 migration_threshold 2048 {policy} 0 \
                     rw - ",
                    block.0
                )
            }
            Target::Linear { .. } | Target::Foreign { .. } => String::new(),
        }
    }

    fn pool_status(&self, minor: u32, metadata: DeviceNumber) -> String {
        let Some(run) = self.dm.pool(minor) else { return "Error".to_owned() };
        let Some(store) = self.thin.get(&run.key) else { return "Error".to_owned() };
        let meta = &store.current;
        let mode = match run.mode {
            PoolMode::Fail => return "Fail".to_owned(),
            PoolMode::Write => "rw",
            PoolMode::OutOfData => "out_of_data_space",
            PoolMode::OutOfMetadata | PoolMode::ReadOnly => "ro",
        };
        let discard = match (run.features.discard, run.features.discard_passdown) {
            (false, _) => "ignore_discard",
            (true, true) => "discard_passdown",
            (true, false) => "no_discard_passdown",
        };
        let no_space = if run.features.error_if_no_space { "error_if_no_space" } else { "queue_if_no_space" };
        let held = if meta.held_root { "1" } else { "-" };
        let check = if meta.needs_check { "needs_check" } else { "-" };
        let threshold = (self.metadata_blocks(metadata) / 4).min(1024);
        // The space at the end is the kernel's.
        format!(
            "{} {}/{} {}/{} {held} {mode} {discard} {no_space} {check} {threshold} ",
            meta.transaction,
            meta.used_metadata(),
            meta.metadata_blocks,
            meta.used_data(),
            meta.data_blocks,
        )
    }

    /// Puts a pool into its failed mode, as when its metadata cannot even be read any more.
    pub(super) fn fail_pool(&mut self, name: &str) -> Result<(), i32> {
        let minor = self.dm.minor_of(name)?;
        self.set_pool_mode(minor, PoolMode::Fail);
        Ok(())
    }
}
