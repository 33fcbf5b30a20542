//! Tables of device-mapper devices: the checks at a load, the devices they hold, the status of
//! their targets.
//!
//! The rules are in `dm`. This module knows nothing of names, nor which table of a device is live.

use std::collections::HashMap;

use nix::libc;

use super::{
    dm_devices::{DM_MAJOR, number},
    incomplete::{Patience, errno},
    machine::MachineState,
    pool_run::{PoolFeatures, PoolMode, PoolRun},
    thin::{self, METADATA_BLOCK, METADATA_BLOCKS_MAX, MappingsKey, THIN_ID_MAX},
};
use crate::{
    base::units::{DataBlocks, SECTOR, Sectors},
    engine::plan::sizes::DEVICE_MAX,
    platform::{
        DeviceNumber,
        dm::{Line, Target},
    },
};

/// The devices that a table names, each once.
pub(super) fn uses(table: &[Line]) -> Vec<DeviceNumber> {
    let mut found = Vec::new();
    let mut add = |number: &DeviceNumber| {
        if !found.contains(number) {
            found.push(*number);
        }
    };
    for line in table {
        match &line.target {
            Target::Linear { device, .. } | Target::Crypt { device, .. } => add(device),
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

/// The kernel raises an event when fewer metadata blocks than this are free.
pub(super) fn metadata_threshold(blocks: u64) -> u64 {
    (blocks / 4).min(1024)
}

impl MachineState {
    /// Checks a table and opens everything below it.
    pub(super) fn construct(&mut self, minor: u32, table: &[Line]) -> Result<Vec<Line>, i32> {
        let mut end = 0_u64;
        for line in table {
            if line.start.0 != end || line.length.0 == 0 {
                return Err(libc::EINVAL);
            }
            end = end.checked_add(line.length.0).filter(|end| *end <= DEVICE_MAX.0).ok_or(libc::EINVAL)?;
            let alone = matches!(line.target, Target::ThinPool { .. });
            if alone && table.len() > 1 {
                return Err(libc::EINVAL);
            }
        }
        let is_pool = |lines: &[Line]| lines.iter().any(|line| matches!(line.target, Target::ThinPool { .. }));
        if table.is_empty() || (is_pool(self.dm.active(minor)) && !is_pool(table)) {
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

    pub(super) fn check_below(&self, minor: u32, below: DeviceNumber) -> Result<(), i32> {
        if below == number(minor) {
            return Err(libc::EINVAL);
        }
        if self.size_of(below).is_none() {
            return Err(libc::ENXIO);
        }
        if self.held.contains_key(&below) {
            return Err(libc::EBUSY);
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
                let run = self.dm.pool_mut(pool.minor).filter(|_| pool.major == DM_MAJOR).ok_or(libc::EINVAL)?;
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
                let granular = block.0 >= 64 && block.0 <= 2_097_152 && block.0.is_multiple_of(64);
                if !known || !policies.contains(&policy.as_str()) || !granular {
                    return Err(libc::EINVAL);
                }
                line.target.clone()
            }
            Target::Foreign { kind, .. } if kind == "error" => line.target.clone(),
            Target::Crypt { .. } | Target::Foreign { .. } => return Err(libc::EINVAL),
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
    ) -> Result<PoolFeatures, i32> {
        let features = PoolFeatures::parse(words)?;
        if block.0 < 128 || block.0 > 2_097_152 || !block.0.is_multiple_of(128) || metadata == data {
            return Err(libc::EINVAL);
        }
        if let Some(run) = self.dm.pool_mut(minor) {
            if run.metadata != metadata || run.data != data || run.features.discard != features.discard {
                return Err(libc::EINVAL);
            }
            if self.thin.get(&run.key).is_some_and(|store| store.current.block != block.0) {
                return Err(libc::EINVAL);
            }
            run.tables += 1;
            return Ok(features);
        }
        if self.dm.has_pool_on(metadata) {
            return Err(libc::EBUSY);
        }
        let key = self.open_metadata(metadata, block)?;
        let run = PoolRun {
            key,
            metadata,
            data,
            features,
            mode: PoolMode::Write,
            gives_up_at: None,
            low_water: 0,
            low_water_triggered: false,
            metadata_low: false,
            tables: 1,
            open: HashMap::new(),
        };
        self.dm.insert_pool(minor, run);
        Ok(features)
    }

    /// Number of blocks of a metadata device that the kernel uses.
    fn metadata_blocks(&self, metadata: DeviceNumber) -> u64 {
        (self.size_of(metadata).unwrap_or(0) / METADATA_BLOCK).min(METADATA_BLOCKS_MAX)
    }

    /// Finds the mappings of a metadata device, or creates empty ones if its first block is zero.
    fn open_metadata(&mut self, metadata: DeviceNumber, block: Sectors) -> Result<MappingsKey, i32> {
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

    /// Closes everything below a table.
    pub(super) fn destruct(&mut self, table: &[Line], minor: u32) {
        self.release_pools(table, minor);
        for below in uses(table) {
            self.dm.close(below);
        }
    }

    fn release_pools(&mut self, table: &[Line], minor: u32) {
        for line in table {
            match &line.target {
                Target::ThinPool { .. } => {
                    let Some(run) = self.dm.pool_mut(minor) else { continue };
                    run.tables -= 1;
                    if run.tables == 0 {
                        // Commits the open transaction, as the kernel's last worker run does. If
                        // that fails, the mappings go back to the last commit.
                        let lost = self.commit_pool(minor).is_err();
                        let key = self.dm.pool(minor).map(|run| run.key);
                        match key.and_then(|key| self.thin.get_mut(&key)) {
                            Some(store) if lost && store.dirty => store.abort(),
                            _ => {}
                        }
                        self.dm.remove_pool(minor);
                    }
                }
                Target::Thin { pool, id } => {
                    let Some(run) = self.dm.pool_mut(pool.minor) else { continue };
                    let Some(count) = run.open.get_mut(id) else { continue };
                    *count -= 1;
                    if *count == 0 {
                        run.open.remove(id);
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether every line fits the device below it and is aligned to its logical sectors.
    pub(super) fn areas_fit(&self, table: &[Line]) -> bool {
        table.iter().all(|line| self.is_aligned(line)) && self.are_within(table)
    }

    /// Whether a line, and the range that it maps to, consist of whole logical sectors of the
    /// device below.
    fn is_aligned(&self, line: &Line) -> bool {
        let offset = match line.target {
            Target::Linear { offset, .. } => offset.0,
            _ => 0,
        };
        let sector = |device: &DeviceNumber| u64::from(self.logical_sector(*device)) / SECTOR;
        let below = uses(std::slice::from_ref(line));
        below.iter().map(sector).all(|unit| [line.start.0, line.length.0, offset].iter().all(|at| at % unit == 0))
    }

    fn are_within(&self, table: &[Line]) -> bool {
        let within = |device: &DeviceNumber, start: u64, length: u64| {
            let size = self.size_of(*device).unwrap_or(0) / SECTOR;
            start.checked_add(length).is_some_and(|end| end <= size)
        };
        table.iter().all(|line| match &line.target {
            Target::Linear { device, offset } => within(device, offset.0, line.length.0),
            Target::ThinPool { data, .. } => within(data, 0, line.length.0),
            Target::Cache { origin, .. } => within(origin, 0, line.length.0),
            Target::Thin { .. } | Target::Crypt { .. } | Target::Foreign { .. } => true,
        })
    }

    /// What a thin pool does before it resumes: takes its arguments and the new sizes of its
    /// devices. A new table makes the pool try to write again, whatever it lacked before. The old
    /// table keeps the mode, except that a larger metadata device ends the lack of metadata space.
    pub(super) fn pre_resume(&mut self, minor: u32, is_new: bool) -> Result<(), i32> {
        let Some(Line { length, target: Target::ThinPool { metadata, low_water, features, .. }, .. }) =
            self.dm.active(minor).first()
        else {
            return Ok(());
        };
        let (length, metadata, DataBlocks(low_water)) = (length.0, *metadata, *low_water);
        let features = PoolFeatures::parse(features)?;
        let key = self.dm.pool(minor).map(|run| run.key).ok_or(libc::EINVAL)?;
        let metadata_blocks = self.metadata_blocks(metadata);
        let store = self.thin.get_mut(&key).ok_or(libc::EINVAL)?;
        let data_blocks = length / store.current.block;
        if data_blocks < store.current.data_blocks || metadata_blocks < store.current.metadata_blocks {
            return Err(libc::EINVAL);
        }
        let sound = !store.current.needs_check;
        let more_metadata = sound && metadata_blocks > store.current.metadata_blocks;
        let resized = more_metadata || sound && data_blocks > store.current.data_blocks;
        if resized {
            store.current.data_blocks = data_blocks;
            store.current.metadata_blocks = metadata_blocks;
            store.dirty = true;
        }
        let mode = match self.dm.pool_mut(minor) {
            Some(run) => {
                run.features = features;
                run.low_water = low_water;
                run.mode
            }
            None => return Err(libc::EINVAL),
        };
        let wanted = match mode {
            PoolMode::Fail => PoolMode::Fail,
            _ if is_new && features.read_only => PoolMode::ReadOnly,
            // The pool cannot write again before a check.
            PoolMode::Write if !sound => PoolMode::ReadOnly,
            _ if is_new && sound => PoolMode::Write,
            PoolMode::OutOfMetadata if more_metadata => PoolMode::Write,
            mode => mode,
        };
        self.set_pool_mode(minor, wanted);
        if resized {
            // A failed commit has set the pool's mode accordingly; the device resumes nevertheless.
            let _ = self.commit_pool(minor);
        }
        Ok(())
    }

    pub(super) fn status(&self, minor: u32, target: &Target) -> String {
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
            Target::Linear { .. } | Target::Crypt { .. } | Target::Foreign { .. } => String::new(),
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
        let threshold = metadata_threshold(self.metadata_blocks(metadata));
        // The kernel also prints the trailing space.
        format!(
            "{} {}/{} {}/{} {held} {mode} {discard} {no_space} {check} {threshold} ",
            meta.transaction,
            meta.metadata_blocks - meta.free_metadata(),
            meta.metadata_blocks,
            meta.used_data(),
            meta.data_blocks,
        )
    }
}
