//! Bytes on their way through the stack of devices down to the disks.
//!
//! Rules: I/O to a suspended device waits, also when it reaches it from a device above; a thin device maps a block when
//! it is first written and copies it when it is shared; a cache writes through, so its origin always has the bytes; a
//! flush of a thin device commits its pool. A pool without free data blocks holds writers back for
//! [`NO_SPACE_TIMEOUT`] of the machine's clock, and lets them fail from then on until it can write again. One without free
//! metadata blocks (the reserve not counted) finds that out when it commits: it can be read, writes of what is mapped go on,
//! its status is `ro`, and nothing needs a check. Metadata I/O of a pool does not wait for its metadata device.

use std::{collections::BTreeSet, ops::Range, time::Duration};

use nix::libc;

use super::{
    dm::DM_MAJOR,
    machine::Machine,
    targets::{PoolMode, metadata_threshold, uses},
    thin,
};
use crate::{
    base::units::SECTOR,
    platform::{
        DeviceNumber,
        dm::{Line, Target},
    },
};

/// How long a pool out of data blocks holds its writers back (`no_space_timeout` of the kernel's module).
const NO_SPACE_TIMEOUT: Duration = Duration::from_secs(60);

/// Why I/O did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// It never will.
    Errno(i32),
    /// A device on the way is suspended; try again when something has changed.
    Suspended,
    /// A pool has no free blocks and holds writers of this thin device back; try again when something has changed.
    Full {
        /// Minor number of the pool.
        pool: u32,
        /// The thin device in it.
        id: u32,
    },
    /// Such writers have to be served first; try again when something has changed.
    Queued,
}

/// Whether I/O waits for a suspended device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Wait,
    /// It is the kernel's own and passes.
    Pass,
}

/// Where a stretch of a device leads to; offsets in bytes.
enum Hop {
    Device(DeviceNumber, u64),
    Thin {
        pool: u32,
        id: u32,
        offset: u64,
    },
    /// All of the stretch, in an opened container.
    Crypt {
        minor: u32,
        at: u64,
    },
}

type Io<T = ()> = Result<T, Stop>;

impl Machine {
    /// Size of a device in bytes; `None` if there is none.
    pub(super) fn size_of(&self, number: DeviceNumber) -> Option<u64> {
        match self.disks.get(number) {
            Some(disk) => disk.present.then(|| disk.size_bytes()),
            None => Some(self.dm.get(number)?.size().0 * SECTOR),
        }
    }

    /// Cuts a stretch of a device-mapper device at the lines of its table.
    fn hops(
        &self,
        number: DeviceNumber,
        stretch: Range<u64>,
        past_the_end: i32,
        patience: Patience,
    ) -> Io<Vec<(Hop, Range<usize>)>> {
        let device = self.dm.get(number).ok_or(Stop::Errno(libc::ENXIO))?;
        if device.suspended && patience == Patience::Wait {
            return Err(Stop::Suspended);
        }
        if stretch.end > device.size().0 * SECTOR {
            return Err(Stop::Errno(past_the_end));
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
                // Seen to above, and refused when a table is loaded.
                Target::Crypt { .. } | Target::Foreign { .. } => return Err(Stop::Errno(libc::EIO)),
            };
            hops.push((hop, (from - stretch.start) as usize..(to - stretch.start) as usize));
        }
        Ok(hops)
    }

    /// Fills `out` with the bytes at `offset`.
    pub(super) fn read_at(&self, number: DeviceNumber, offset: u64, out: &mut [u8], patience: Patience) -> Io {
        if let Some(disk) = self.disks.get(number) {
            return disk.read(offset, out);
        }
        let end = offset.checked_add(out.len() as u64).ok_or(Stop::Errno(libc::EINVAL))?;
        for (hop, part) in self.hops(number, offset..end, libc::EIO, patience)? {
            match hop {
                Hop::Device(below, at) => self.read_at(below, at, &mut out[part], patience)?,
                Hop::Thin { pool, id, offset } => self.read_thin(pool, id, offset, &mut out[part], patience)?,
                Hop::Crypt { minor, at } => self.read_crypt(minor, at, &mut out[part], patience)?,
            }
        }
        Ok(())
    }

    /// Puts `bytes` at `offset`. When it stops to wait, part of it may have happened; it is the same when repeated.
    pub(super) fn write_at(&mut self, number: DeviceNumber, offset: u64, bytes: &[u8], patience: Patience) -> Io {
        if let Some(disk) = self.disks.get_mut(number) {
            return disk.write(offset, bytes);
        }
        let end = offset.checked_add(bytes.len() as u64).ok_or(Stop::Errno(libc::EINVAL))?;
        for (hop, part) in self.hops(number, offset..end, libc::ENOSPC, patience)? {
            match hop {
                Hop::Device(below, at) => self.write_at(below, at, &bytes[part], patience)?,
                Hop::Thin { pool, id, offset } => self.write_thin(pool, id, offset, &bytes[part], patience)?,
                Hop::Crypt { minor, at } => self.write_crypt(minor, at, &bytes[part], patience)?,
            }
        }
        Ok(())
    }

    /// Discards a stretch: disks then read as zeros there, thin devices give back the whole blocks in it.
    pub(super) fn discard_at(&mut self, number: DeviceNumber, offset: u64, length: u64) -> Io {
        if let Some(disk) = self.disks.get_mut(number) {
            return disk.zero(offset, length);
        }
        let end = offset.checked_add(length).ok_or(Stop::Errno(libc::EINVAL))?;
        for (hop, part) in self.hops(number, offset..end, libc::ENOSPC, Patience::Wait)? {
            match hop {
                Hop::Device(below, at) => self.discard_at(below, at, part.len() as u64)?,
                // Not passed on.
                Hop::Crypt { .. } => {}
                Hop::Thin { pool, id, offset } => {
                    let store = self.pool_store(pool)?;
                    let block = store.current.block * SECTOR;
                    let blocks = offset.div_ceil(block)..(offset + part.len() as u64) / block;
                    let run = self.dm.pool(pool).filter(|run| run.mode <= PoolMode::OutOfData);
                    match run.and_then(|run| self.thin.get_mut(&run.key)) {
                        Some(store) if !blocks.is_empty() => store.unmap(id, blocks),
                        // Discards are advice.
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes everything written to the device durable.
    pub(super) fn flush(&mut self, number: DeviceNumber, patience: Patience) -> Io {
        if let Some(disk) = self.disks.get_mut(number) {
            return disk.flush();
        }
        let device = self.dm.get(number).ok_or(Stop::Errno(libc::ENXIO))?;
        if device.suspended && patience == Patience::Wait {
            return Err(Stop::Suspended);
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
                Target::Foreign { .. } => return Err(Stop::Errno(libc::EIO)),
            };
            if !below.contains(&to) {
                below.push(to);
            }
        }
        for to in below {
            self.flush(to, patience)?;
        }
        for pool in pools {
            let run = self.dm.pool(pool).ok_or(Stop::Errno(libc::EIO))?;
            let (data, suspended) = (run.data, self.dm.get_minor(pool).is_none_or(|d| d.suspended));
            if suspended && patience == Patience::Wait {
                return Err(Stop::Suspended);
            }
            self.flush(data, patience)?;
            // The pool commits for the flush if there is something to commit, and has no other word for what is wrong.
            if self.pool_store(pool)?.dirty {
                self.commit_pool(pool).map_err(|_| Stop::Errno(libc::EIO))?;
            }
        }
        Ok(())
    }

    fn pool_store(&self, pool: u32) -> Io<&thin::Store> {
        let run = self.dm.pool(pool).ok_or(Stop::Errno(libc::EIO))?;
        if run.mode == PoolMode::Fail {
            return Err(Stop::Errno(libc::EIO));
        }
        self.thin.get(&run.key).ok_or(Stop::Errno(libc::EIO))
    }

    fn pool_ready(&self, pool: u32, patience: Patience) -> Io {
        match self.dm.get_minor(pool) {
            None => Err(Stop::Errno(libc::EIO)),
            Some(device) if device.suspended && patience == Patience::Wait => Err(Stop::Suspended),
            Some(_) => Ok(()),
        }
    }

    fn read_thin(&self, pool: u32, id: u32, offset: u64, out: &mut [u8], patience: Patience) -> Io {
        self.pool_ready(pool, patience)?;
        let data = self.dm.pool(pool).ok_or(Stop::Errno(libc::EIO))?.data;
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

    fn write_thin(&mut self, pool: u32, id: u32, offset: u64, bytes: &[u8], patience: Patience) -> Io {
        self.pool_ready(pool, patience)?;
        let run = self.dm.pool(pool).ok_or(Stop::Errno(libc::EIO))?;
        let (data, key, zeroing) = (run.data, run.key, run.features.zero_new_blocks);
        let size = self.pool_store(pool)?.current.block * SECTOR;
        self.check_batch(pool, id, blocks(offset, bytes.len(), size).map(|(block, ..)| block))?;
        for (block, within, part) in blocks(offset, bytes.len(), size) {
            let meta = &self.pool_store(pool)?.current;
            if !meta.exists(id) {
                return Err(Stop::Errno(libc::EIO));
            }
            let held = meta.lookup(id, block);
            if let Some(held) = held.filter(|held| !meta.is_shared(*held)) {
                self.write_at(data, held * size + within, &bytes[part], patience)?;
                continue;
            }
            let fresh = self.take_block(pool, id)?;
            if (part.len() as u64) < size {
                // The rest of the block: what the device had there; for a new mapping zeros, if that is asked for,
                // and else whatever lies there.
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

    /// The kernel looks for metadata space when it takes data blocks and maps those of one batch afterwards: with many at
    /// once even the reserve runs out, in the middle of a transaction. That is given up then.
    fn check_batch(&mut self, pool: u32, id: u32, blocks: impl Iterator<Item = u64>) -> Io {
        let store = self.pool_store(pool)?;
        let meta = &store.current;
        let fresh =
            blocks.filter(|block| meta.lookup(id, *block).is_none_or(|held| meta.is_shared(held))).count() as u64;
        let is_writing = self.dm.pool(pool).is_some_and(|run| run.mode == PoolMode::Write);
        if is_writing && fresh > 1 && fresh <= meta.free_data() && !meta.has_metadata_for(fresh) {
            self.metadata_failed(pool);
            return Err(Stop::Errno(libc::EIO));
        }
        Ok(())
    }

    /// A free block of a pool; raises the low-water event, and those of being out of data or metadata.
    fn take_block(&mut self, pool: u32, id: u32) -> Io<u64> {
        let (key, mode) = {
            let run = self.dm.pool(pool).ok_or(Stop::Errno(libc::EIO))?;
            (run.key, run.mode)
        };
        match mode {
            PoolMode::Write => {}
            PoolMode::OutOfData => return Err(self.no_space(pool, id)),
            _ => return Err(Stop::Errno(libc::EIO)),
        }
        let store = self.thin.get(&key).ok_or(Stop::Errno(libc::EIO))?;
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
            // Committed before the reserve is used, which tells that there is no more.
            self.commit_pool(pool)?;
            if self.dm.pool(pool).is_none_or(|run| run.mode != PoolMode::Write) {
                return Err(Stop::Errno(libc::EIO));
            }
        }
        if let Some(block) = self.thin.get(&key).and_then(thin::Store::free_block) {
            return Ok(block);
        }
        // What the running transaction freed can be had after a commit.
        self.commit_pool(pool)?;
        if let Some(block) = self.thin.get(&key).and_then(thin::Store::free_block) {
            return Ok(block);
        }
        self.set_pool_mode(pool, PoolMode::OutOfData);
        Err(self.no_space(pool, id))
    }

    fn no_space(&self, pool: u32, id: u32) -> Stop {
        match self.dm.pool(pool) {
            Some(run) if !run.features.error_if_no_space => Stop::Full { pool, id },
            _ => Stop::Errno(libc::ENOSPC),
        }
    }

    /// Whether writes to a device are held back by its pool, which is out of data blocks.
    pub(super) fn has_queued_writes(&self, minor: u32) -> bool {
        self.dm.active(minor).iter().any(|line| match line.target {
            Target::Thin { pool, id } => self.queued.contains(&(pool.minor, id)),
            _ => false,
        })
    }

    /// Pools that have been out of data blocks for as long as the kernel is patient let their writers fail from now on.
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

    /// How long until the first pool gives up waiting.
    pub(super) fn gives_up_in(&self) -> Option<Duration> {
        let runs = self.dm.pool_minors().into_iter().filter_map(|pool| self.dm.pool(pool)?.gives_up_at);
        runs.min().map(|at| at.saturating_sub(self.clock.time()))
    }

    /// Writes a pool's metadata: data first, then the superblock, and both durable.
    pub(super) fn commit_pool(&mut self, pool: u32) -> Io {
        let Some(run) = self.dm.pool(pool) else { return Err(Stop::Errno(libc::EIO)) };
        let (key, data, metadata) = (run.key, run.data, run.metadata);
        if run.mode >= PoolMode::OutOfMetadata {
            return Err(Stop::Errno(libc::EINVAL));
        }
        let Some(store) = self.thin.get(&key) else { return Err(Stop::Errno(libc::EIO)) };
        if store.dirty {
            let sector = thin::superblock(&key, store.current.transaction);
            let written = self
                .flush(data, Patience::Pass)
                .and_then(|()| self.write_at(metadata, 0, &sector, Patience::Pass))
                .and_then(|()| self.flush(metadata, Patience::Pass));
            if let Err(stop) = written {
                self.metadata_failed(pool);
                return Err(stop);
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
            // Nothing is given up and nothing has to be checked: more metadata is all that it takes.
            self.set_pool_mode(pool, PoolMode::OutOfMetadata);
        }
        let free = self.thin.get(&key).map_or(0, |store| store.current.free_data());
        if free > 0 && self.dm.pool(pool).is_some_and(|run| run.mode == PoolMode::OutOfData) {
            self.set_pool_mode(pool, PoolMode::Write);
        }
        Ok(())
    }

    /// A transaction is given up: back to the last commit, to be checked before the pool may be changed again.
    pub(super) fn metadata_failed(&mut self, pool: u32) {
        let Some(run) = self.dm.pool(pool) else { return };
        let (key, metadata) = (run.key, run.metadata);
        // The flag reaches a device that works.
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

    /// Writes and flushes by the kernel on its own behalf.
    pub(super) fn write_durably(&mut self, number: DeviceNumber, offset: u64, bytes: &[u8]) -> Io {
        self.write_at(number, offset, bytes, Patience::Pass)?;
        self.flush(number, Patience::Pass)
    }

    /// See [`Machine::next_stored`], for a device-mapper device.
    pub(super) fn next_stored_above(&self, number: DeviceNumber, range: Range<u64>) -> Io<Option<Range<u64>>> {
        for (hop, part) in self.hops(number, range.clone(), libc::EIO, Patience::Pass)? {
            let from = range.start + part.start as u64;
            let found = match hop {
                Hop::Device(below, at) => self
                    .next_stored(below, at..at + part.len() as u64)?
                    .map(|found| from + (found.start - at)..from + (found.end - at)),
                // Not looked into.
                Hop::Thin { .. } | Hop::Crypt { .. } => Some(from..from + part.len().min(4096) as u64),
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The disks that a device rests on.
    pub(super) fn disks_below(&self, number: DeviceNumber) -> Vec<DeviceNumber> {
        let mut found = self.lower_devices(number);
        found.insert(number);
        found.into_iter().filter(|number| number.major != DM_MAJOR).collect()
    }

    /// Everything that a device lies on.
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

/// The parts of a stretch that lie in one block each: block, offset in the block, range in the stretch.
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
