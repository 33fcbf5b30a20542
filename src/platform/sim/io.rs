//! I/O on its way through the table stack down to the disks.
//!
//! Rules: I/O to a suspended device waits, also when it arrives from a device above. A thin device
//! maps a block at its first write and copies it if it is shared. A cache writes through, so its
//! origin always has the data. A flush of a thin device commits its pool. A pool without free data
//! blocks queues writes for [`NO_SPACE_TIMEOUT`] of the machine's clock and then fails them until
//! it has space again. A pool without free metadata blocks (not counting the reserve) notices this
//! at its next commit: reads and writes to mapped blocks continue, its status is `ro`, and it needs
//! no check. Metadata I/O of a pool does not wait for its metadata device.

use std::{collections::BTreeSet, ops::Range, time::Duration};

use nix::libc;

use super::{
    dm_devices::DM_MAJOR,
    incomplete::{Incomplete, IoResult, Patience},
    machine::MachineState,
    pool_run::PoolMode,
    targets::{metadata_threshold, uses},
    thin,
};
use crate::{
    base::units::SECTOR,
    platform::{
        DeviceNumber,
        dm::{Line, Target},
    },
};

/// How long a pool that is out of data space queues writes (`no_space_timeout` of the kernel's
/// module).
const NO_SPACE_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a range of a device is mapped to; offsets in bytes.
enum Hop {
    Device(DeviceNumber, u64),
    Thin {
        pool: u32,
        id: u32,
        offset: u64,
    },
    /// The whole range, on a crypt device.
    Crypt {
        minor: u32,
        at: u64,
    },
}

impl MachineState {
    /// Size of a device in bytes; `None` if there is none.
    pub(super) fn size_of(&self, number: DeviceNumber) -> Option<u64> {
        match self.disks.get(number) {
            Some(disk) => disk.present.then(|| disk.size_bytes()),
            None => Some(self.dm.get(number)?.size().0 * SECTOR),
        }
    }

    /// Splits a range of a device-mapper device at the lines of its table.
    fn hops(
        &self,
        number: DeviceNumber,
        stretch: Range<u64>,
        past_the_end: i32,
        patience: Patience,
    ) -> IoResult<Vec<(Hop, Range<usize>)>> {
        let device = self.dm.get(number).ok_or(Incomplete::Errno(libc::ENXIO))?;
        if device.suspended && patience == Patience::Wait {
            return Err(Incomplete::Suspended);
        }
        if stretch.end > device.size().0 * SECTOR {
            return Err(Incomplete::Errno(past_the_end));
        }
        if device.opened.is_some() {
            let whole = 0..(stretch.end - stretch.start) as usize;
            return Ok(vec![(Hop::Crypt { minor: number.minor, at: stretch.start }, whole)]);
        }
        let first = device.table.partition_point(|line| (line.start.0 + line.length.0) * SECTOR <= stretch.start);
        let mut hops = Vec::with_capacity(1);
        for line in &device.table[first..] {
            let (start, end) = (line.start.0 * SECTOR, (line.start.0 + line.length.0) * SECTOR);
            if start >= stretch.end {
                break;
            }
            let (from, to) = (stretch.start.max(start), stretch.end.min(end));
            let within = from - start;
            let hop = match &line.target {
                Target::Linear { device, offset } => Hop::Device(*device, offset.0 * SECTOR + within),
                Target::ThinPool { data, .. } => Hop::Device(*data, within),
                Target::Cache { origin, .. } => Hop::Device(*origin, within),
                Target::Thin { pool, id } => Hop::Thin { pool: pool.minor, id: *id, offset: within },
                // Crypt is handled above; the rest is refused when a table is loaded.
                Target::Crypt { .. } | Target::Foreign { .. } => return Err(Incomplete::Errno(libc::EIO)),
            };
            hops.push((hop, (from - stretch.start) as usize..(to - stretch.start) as usize));
        }
        Ok(hops)
    }

    /// Fills `out` with the bytes at `offset`.
    pub(super) fn read_at(&self, number: DeviceNumber, offset: u64, out: &mut [u8], patience: Patience) -> IoResult {
        if let Some(disk) = self.disks.get(number) {
            return disk.read(offset, out);
        }
        let end = offset.checked_add(out.len() as u64).ok_or(Incomplete::Errno(libc::EINVAL))?;
        for (hop, part) in self.hops(number, offset..end, libc::EIO, patience)? {
            match hop {
                Hop::Device(below, at) => self.read_at(below, at, &mut out[part], patience)?,
                Hop::Thin { pool, id, offset } => self.read_thin(pool, id, offset, &mut out[part], patience)?,
                Hop::Crypt { minor, at } => self.read_crypt(minor, at, &mut out[part], patience)?,
            }
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`. If it stops to wait, part of it may be written; a repetition is
    /// idempotent.
    pub(super) fn write_at(&mut self, number: DeviceNumber, offset: u64, bytes: &[u8], patience: Patience) -> IoResult {
        if let Some(disk) = self.disks.get_mut(number) {
            return disk.write(offset, bytes);
        }
        let end = offset.checked_add(bytes.len() as u64).ok_or(Incomplete::Errno(libc::EINVAL))?;
        for (hop, part) in self.hops(number, offset..end, libc::ENOSPC, patience)? {
            match hop {
                Hop::Device(below, at) => self.write_at(below, at, &bytes[part], patience)?,
                Hop::Thin { pool, id, offset } => self.write_thin(pool, id, offset, &bytes[part], patience)?,
                Hop::Crypt { minor, at } => self.write_crypt(minor, at, &bytes[part], patience)?,
            }
        }
        Ok(())
    }

    /// Discards a range: disks then read as zeros there, thin devices free the whole blocks in it.
    pub(super) fn discard_at(&mut self, number: DeviceNumber, offset: u64, length: u64) -> IoResult {
        if let Some(disk) = self.disks.get_mut(number) {
            return disk.zero(offset, length);
        }
        let end = offset.checked_add(length).ok_or(Incomplete::Errno(libc::EINVAL))?;
        for (hop, part) in self.hops(number, offset..end, libc::ENOSPC, Patience::Wait)? {
            match hop {
                Hop::Device(below, at) => self.discard_at(below, at, part.len() as u64)?,
                // Crypt devices do not pass discards down.
                Hop::Crypt { .. } => {}
                Hop::Thin { pool, id, offset } => {
                    let store = self.pool_store(pool)?;
                    let block = store.current.block * SECTOR;
                    let blocks = offset.div_ceil(block)..(offset + part.len() as u64) / block;
                    let run = self.dm.pool(pool).filter(|run| run.mode <= PoolMode::OutOfData);
                    match run.and_then(|run| self.thin.get_mut(&run.key)) {
                        Some(store) if !blocks.is_empty() => store.unmap(id, blocks),
                        // A discard is only a hint, so its errors do not matter.
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes everything written to the device durable.
    pub(super) fn flush(&mut self, number: DeviceNumber, patience: Patience) -> IoResult {
        if let Some(disk) = self.disks.get_mut(number) {
            return disk.flush();
        }
        let device = self.dm.get(number).ok_or(Incomplete::Errno(libc::ENXIO))?;
        if device.suspended && patience == Patience::Wait {
            return Err(Incomplete::Suspended);
        }
        let (mut below, mut pools) = (Vec::new(), Vec::new());
        for line in &device.table {
            let to = match &line.target {
                Target::Linear { device, .. } | Target::Crypt { device, .. } => *device,
                Target::ThinPool { data, .. } => *data,
                Target::Cache { origin, .. } => *origin,
                Target::Thin { pool, .. } => {
                    pools.push(pool.minor);
                    continue;
                }
                Target::Foreign { .. } => return Err(Incomplete::Errno(libc::EIO)),
            };
            if !below.contains(&to) {
                below.push(to);
            }
        }
        for to in below {
            self.flush(to, patience)?;
        }
        for pool in pools {
            let run = self.dm.pool(pool).ok_or(Incomplete::Errno(libc::EIO))?;
            let (data, suspended) = (run.data, self.dm.get_minor(pool).is_none_or(|d| d.suspended));
            if suspended && patience == Patience::Wait {
                return Err(Incomplete::Suspended);
            }
            self.flush(data, patience)?;
            // The flush commits the pool if there is something to commit, and reports any failure
            // as EIO.
            if self.pool_store(pool)?.dirty {
                self.commit_pool(pool).map_err(|_| Incomplete::Errno(libc::EIO))?;
            }
        }
        Ok(())
    }

    fn pool_store(&self, pool: u32) -> IoResult<&thin::Store> {
        let run = self.dm.pool(pool).ok_or(Incomplete::Errno(libc::EIO))?;
        if run.mode == PoolMode::Fail {
            return Err(Incomplete::Errno(libc::EIO));
        }
        self.thin.get(&run.key).ok_or(Incomplete::Errno(libc::EIO))
    }

    fn pool_ready(&self, pool: u32, patience: Patience) -> IoResult {
        match self.dm.get_minor(pool) {
            None => Err(Incomplete::Errno(libc::EIO)),
            Some(device) if device.suspended && patience == Patience::Wait => Err(Incomplete::Suspended),
            Some(_) => Ok(()),
        }
    }

    fn read_thin(&self, pool: u32, id: u32, offset: u64, out: &mut [u8], patience: Patience) -> IoResult {
        self.pool_ready(pool, patience)?;
        let data = self.dm.pool(pool).ok_or(Incomplete::Errno(libc::EIO))?.data;
        let meta = &self.pool_store(pool)?.current;
        let size = meta.block * SECTOR;
        for (block, within, part) in blocks(offset, out.len(), size) {
            match meta.lookup(id, block) {
                Some(held) => self.read_at(data, held * size + within, &mut out[part], patience)?,
                None => out[part].fill(0),
            }
        }
        Ok(())
    }

    fn write_thin(&mut self, pool: u32, id: u32, offset: u64, bytes: &[u8], patience: Patience) -> IoResult {
        self.pool_ready(pool, patience)?;
        let run = self.dm.pool(pool).ok_or(Incomplete::Errno(libc::EIO))?;
        let (data, key, zeroing) = (run.data, run.key, run.features.zero_new_blocks);
        let size = self.pool_store(pool)?.current.block * SECTOR;
        self.check_batch(pool, id, blocks(offset, bytes.len(), size).map(|(block, ..)| block))?;
        for (block, within, part) in blocks(offset, bytes.len(), size) {
            let meta = &self.pool_store(pool)?.current;
            if !meta.exists(id) {
                return Err(Incomplete::Errno(libc::EIO));
            }
            let held = meta.lookup(id, block);
            if let Some(held) = held.filter(|held| !meta.is_shared(*held)) {
                self.write_at(data, held * size + within, &bytes[part], patience)?;
                continue;
            }
            let fresh = self.take_block(pool, id)?;
            if (part.len() as u64) < size {
                // The rest of the block: its former contents; for a new mapping zeros, if the pool
                // zeroes new blocks, or else whatever lies there.
                if held.is_some() || zeroing {
                    let mut rest = vec![0; size as usize];
                    if let Some(held) = held {
                        self.read_at(data, held * size, &mut rest, patience)?;
                    }
                    self.write_at(data, fresh * size, &rest, patience)?;
                }
            }
            self.write_at(data, fresh * size + within, &bytes[part], patience)?;
            if let Some(store) = self.thin.get_mut(&key) {
                store.map(id, block, fresh);
            }
        }
        Ok(())
    }

    /// The kernel checks for metadata space when it allocates data blocks, and maps the blocks of a
    /// batch afterwards. With many at once even the reserve runs out in the middle of a
    /// transaction, which is then aborted.
    fn check_batch(&mut self, pool: u32, id: u32, blocks: impl Iterator<Item = u64>) -> IoResult {
        let store = self.pool_store(pool)?;
        let meta = &store.current;
        let fresh =
            blocks.filter(|block| meta.lookup(id, *block).is_none_or(|held| meta.is_shared(held))).count() as u64;
        let is_writing = self.dm.pool(pool).is_some_and(|run| run.mode == PoolMode::Write);
        if is_writing && fresh > 1 && fresh <= meta.free_data() && !meta.has_metadata_for(fresh) {
            self.metadata_failed(pool);
            return Err(Incomplete::Errno(libc::EIO));
        }
        Ok(())
    }

    /// Allocates a block of a pool. Raises the events for the low-water mark and for exhausted data
    /// or metadata.
    fn take_block(&mut self, pool: u32, id: u32) -> IoResult<u64> {
        let (key, mode) = {
            let run = self.dm.pool(pool).ok_or(Incomplete::Errno(libc::EIO))?;
            (run.key, run.mode)
        };
        match mode {
            PoolMode::Write => {}
            PoolMode::OutOfData => return Err(self.no_space(pool, id)),
            _ => return Err(Incomplete::Errno(libc::EIO)),
        }
        let store = self.thin.get(&key).ok_or(Incomplete::Errno(libc::EIO))?;
        let free = store.current.free_data();
        let low = self.dm.pool_mut(pool).is_some_and(|run| {
            let low = free <= run.low_water && !run.low_water_triggered;
            run.low_water_triggered |= low;
            low
        });
        if low {
            self.raise_dm_event(pool);
        }
        if self.thin.get(&key).is_some_and(|store| store.current.free_metadata() == 0) {
            // The pool commits before it uses the reserve, and notices that no metadata is left.
            self.commit_pool(pool)?;
            if self.dm.pool(pool).is_none_or(|run| run.mode != PoolMode::Write) {
                return Err(Incomplete::Errno(libc::EIO));
            }
        }
        if let Some(block) = self.thin.get(&key).and_then(thin::Store::free_block) {
            return Ok(block);
        }
        // Blocks that the running transaction freed become available after a commit.
        self.commit_pool(pool)?;
        if let Some(block) = self.thin.get(&key).and_then(thin::Store::free_block) {
            return Ok(block);
        }
        self.set_pool_mode(pool, PoolMode::OutOfData);
        Err(self.no_space(pool, id))
    }

    fn no_space(&self, pool: u32, id: u32) -> Incomplete {
        match self.dm.pool(pool) {
            Some(run) if !run.features.error_if_no_space => Incomplete::Full { pool, id },
            _ => Incomplete::Errno(libc::ENOSPC),
        }
    }

    /// Whether the pool of a device, out of data space, queues writes to it.
    pub(super) fn has_queued_writes(&self, minor: u32) -> bool {
        self.dm.active(minor).iter().any(|line| match line.target {
            Target::Thin { pool, id } => self.queued.contains(&(pool.minor, id)),
            _ => false,
        })
    }

    /// Fails queued writes of pools that have been out of data space for the timeout.
    pub(super) fn give_up_waiting(&mut self) {
        let now = self.clock.time();
        for pool in self.dm.pool_minors() {
            let Some(run) = self.dm.pool_mut(pool) else { continue };
            if run.gives_up_at.is_some_and(|at| at <= now) {
                run.gives_up_at = None;
                run.features.error_if_no_space = true;
                self.raise_dm_event(pool);
            }
        }
    }

    /// Time until the first pool reaches that timeout.
    pub(super) fn gives_up_in(&self) -> Option<Duration> {
        let runs = self.dm.pool_minors().into_iter().filter_map(|pool| self.dm.pool(pool)?.gives_up_at);
        runs.min().map(|at| at.saturating_sub(self.clock.time()))
    }

    /// Commits a pool's metadata: data first, then the superblock, both durable.
    pub(super) fn commit_pool(&mut self, pool: u32) -> IoResult {
        let Some(run) = self.dm.pool(pool) else { return Err(Incomplete::Errno(libc::EIO)) };
        let (key, data, metadata) = (run.key, run.data, run.metadata);
        if run.mode >= PoolMode::OutOfMetadata {
            return Err(Incomplete::Errno(libc::EINVAL));
        }
        let Some(store) = self.thin.get(&key) else { return Err(Incomplete::Errno(libc::EIO)) };
        if store.dirty {
            let sector = thin::superblock(&key, store.current.transaction);
            let written = self
                .flush(data, Patience::Pass)
                .and_then(|()| self.write_at(metadata, 0, &sector, Patience::Pass))
                .and_then(|()| self.flush(metadata, Patience::Pass));
            if let Err(incomplete) = written {
                self.metadata_failed(pool);
                return Err(incomplete);
            }
            let mut low = false;
            if let Some(store) = self.thin.get_mut(&key) {
                store.commit();
                let meta = &store.current;
                low = meta.unused_metadata() <= metadata_threshold(meta.metadata_blocks);
            }
            let was_low = self.dm.pool_mut(pool).is_some_and(|run| std::mem::replace(&mut run.metadata_low, low));
            if low && !was_low {
                self.raise_dm_event(pool);
            }
        }
        if self.thin.get(&key).is_some_and(|store| store.current.free_metadata() == 0) {
            // Nothing is aborted and nothing needs a check: the pool needs only more metadata
            // space.
            self.set_pool_mode(pool, PoolMode::OutOfMetadata);
        }
        let free = self.thin.get(&key).map_or(0, |store| store.current.free_data());
        if free > 0 && self.dm.pool(pool).is_some_and(|run| run.mode == PoolMode::OutOfData) {
            self.set_pool_mode(pool, PoolMode::Write);
        }
        Ok(())
    }

    /// Aborts a transaction: back to the last commit; the pool needs a check before it can be
    /// changed.
    pub(super) fn metadata_failed(&mut self, pool: u32) {
        let Some(run) = self.dm.pool(pool) else { return };
        let (key, metadata) = (run.key, run.metadata);
        // The flag can be written only if the metadata device works.
        let is_sound = self.flush(metadata, Patience::Pass).is_ok();
        if let Some(store) = self.thin.get_mut(&key) {
            store.abort();
            store.current.needs_check = true;
            if is_sound {
                store.commit();
            }
        }
        self.set_pool_mode(pool, PoolMode::ReadOnly);
    }

    pub(super) fn set_pool_mode(&mut self, pool: u32, mode: PoolMode) {
        let asked = matches!(
            self.dm.active(pool).first(),
            Some(Line { target: Target::ThinPool { features, .. }, .. })
                if features.iter().any(|word| word == "error_if_no_space")
        );
        let gives_up_at = self.clock.time() + NO_SPACE_TIMEOUT;
        let Some(run) = self.dm.pool_mut(pool) else { return };
        let changed = std::mem::replace(&mut run.mode, mode) != mode;
        if mode == PoolMode::Write {
            run.features.error_if_no_space = asked;
        }
        let waits = mode == PoolMode::OutOfData && !run.features.error_if_no_space;
        run.gives_up_at = waits.then_some(gives_up_at);
        if changed {
            self.raise_dm_event(pool);
        }
    }

    /// Writes and flushes on behalf of the kernel itself.
    pub(super) fn write_durably(&mut self, number: DeviceNumber, offset: u64, bytes: &[u8]) -> IoResult {
        self.write_at(number, offset, bytes, Patience::Pass)?;
        self.flush(number, Patience::Pass)
    }

    /// See [`MachineState::next_stored`]; for device-mapper devices.
    pub(super) fn next_stored_above(&self, number: DeviceNumber, range: Range<u64>) -> IoResult<Option<Range<u64>>> {
        for (hop, part) in self.hops(number, range.clone(), libc::EIO, Patience::Pass)? {
            let from = range.start + part.start as u64;
            let found = match hop {
                Hop::Device(below, at) => self
                    .next_stored(below, at..at + part.len() as u64)?
                    .map(|found| from + (found.start - at)..from + (found.end - at)),
                // The contents of thin and crypt devices are not examined.
                Hop::Thin { .. } | Hop::Crypt { .. } => Some(from..from + part.len().min(4096) as u64),
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The disks below a device.
    pub(super) fn disks_below(&self, number: DeviceNumber) -> Vec<DeviceNumber> {
        let mut found = self.lower_devices(number);
        found.insert(number);
        found.into_iter().filter(|number| number.major != DM_MAJOR).collect()
    }

    /// All devices below a device.
    pub(super) fn lower_devices(&self, number: DeviceNumber) -> BTreeSet<DeviceNumber> {
        let mut found = BTreeSet::new();
        let mut ahead = vec![number];
        while let Some(number) = ahead.pop() {
            for below in self.dm.get(number).map_or_else(Vec::new, |device| uses(&device.table)) {
                if found.insert(below) {
                    ahead.push(below);
                }
            }
        }
        found
    }
}

/// Splits a range by blocks: block, offset in the block, part of the range.
fn blocks(offset: u64, length: usize, size: u64) -> impl Iterator<Item = (u64, u64, Range<usize>)> {
    let end = offset + length as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let block = at / size;
        let stop = end.min((block + 1) * size);
        let part = (at - offset) as usize..(stop - offset) as usize;
        let within = at % size;
        at = stop;
        Some((block, within, part))
    })
}
