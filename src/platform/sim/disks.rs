//! Virtual disks: bytes with a volatile write cache, sector sizes, bad sectors, and properties.
//!
//! Fault rules:
//! - Every reader sees a write at once. It is durable only after a flush, or once more than
//!   [`CACHE_BYTES_MAX`] are cached, because a real cache is finite too.
//! - At a power cut, each cached write survives or is lost; one that is longer than a logical
//!   sector may be torn, in which case each of its sectors survives or is lost separately. A sector
//!   is never torn. The generator decides write by write.
//! - A cached discard takes effect as a whole or not at all.
//! - No disk is larger than the kernel supports, even if a test asks for a larger one.
//! - A disk that is pulled while devices lie on it keeps its number as long as one of them exists,
//!   and that number stays dead. The disk comes back with another number, under any node.
//! - A bad sector fails every read that touches it until it is written.
//!
//! This module knows nothing of device-mapper, nor of what the bytes mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use nix::libc;
use rand::{Rng, rngs::StdRng};

use super::{incomplete::Incomplete, sparse::Sparse};
use crate::{
    base::units::{SECTOR, Sectors},
    engine::plan::sizes::DEVICE_MAX,
    platform::DeviceNumber,
};

/// Major number of the disks: `blkext`, which the kernel uses for drivers without their own.
pub(super) const DISK_MAJOR: u32 = 259;

/// Capacity of the write cache.
const CACHE_BYTES_MAX: u64 = 64 << 20;

/// Properties of a disk.
#[derive(Debug, Clone)]
pub(super) struct DiskShape {
    pub(super) size: Sectors,
    pub(super) logical: u32,
    pub(super) physical: u32,
    pub(super) read_only: bool,
    pub(super) wwn: Option<String>,
    pub(super) multipath: bool,
    pub(super) in_use: bool,
}

/// A disk.
pub(super) struct Disk {
    /// Its first node.
    pub(super) path: PathBuf,
    pub(super) number: DeviceNumber,
    pub(super) shape: DiskShape,
    /// `false` while the disk is pulled.
    pub(super) present: bool,
    current: Sparse,
    durable: Sparse,
    cached: Vec<CachedChange>,
    cached_bytes: u64,
    bad: BTreeSet<u64>,
}

/// A change that is only in the cache.
enum CachedChange {
    Bytes(u64, Box<[u8]>),
    Zeros(u64, u64),
}

impl CachedChange {
    fn range(&self) -> Range<u64> {
        match self {
            CachedChange::Bytes(at, bytes) => *at..*at + bytes.len() as u64,
            CachedChange::Zeros(at, length) => *at..*at + *length,
        }
    }
}

impl Disk {
    fn new(path: PathBuf, number: DeviceNumber, shape: DiskShape) -> Disk {
        Disk {
            path,
            number,
            shape,
            present: true,
            current: Sparse::default(),
            durable: Sparse::default(),
            cached: Vec::new(),
            cached_bytes: 0,
            bad: BTreeSet::new(),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.shape.size.min(DEVICE_MAX).0 * SECTOR
    }

    fn check(&self, offset: u64, length: u64, past_the_end: i32) -> Result<(), Incomplete> {
        if !self.present {
            return Err(Incomplete::Errno(libc::EIO));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(Incomplete::Errno(past_the_end)),
        }
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Incomplete> {
        self.check(offset, out.len() as u64, libc::EIO)?;
        let sectors = offset / SECTOR..(offset + out.len() as u64).div_ceil(SECTOR);
        if self.bad.range(sectors).next().is_some() {
            return Err(Incomplete::Errno(libc::EIO));
        }
        self.current.read(offset, out);
        Ok(())
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Incomplete> {
        self.check(offset, bytes.len() as u64, libc::ENOSPC)?;
        if self.shape.read_only {
            return Err(Incomplete::Errno(libc::EPERM));
        }
        for sector in offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR) {
            if self.bad.is_empty() {
                break;
            }
            self.bad.remove(&sector);
        }
        self.current.write(offset, bytes);
        self.cache(CachedChange::Bytes(offset, bytes.into()), bytes.len() as u64);
        Ok(())
    }

    /// Discards a range, which then reads as zeros.
    pub(super) fn zero(&mut self, offset: u64, length: u64) -> Result<(), Incomplete> {
        self.check(offset, length, libc::ENOSPC)?;
        if self.shape.read_only {
            return Err(Incomplete::Errno(libc::EPERM));
        }
        self.current.zero(offset, length);
        self.cache(CachedChange::Zeros(offset, length), 0);
        Ok(())
    }

    fn cache(&mut self, change: CachedChange, bytes: u64) {
        self.cached.push(change);
        self.cached_bytes += bytes;
        if self.cached_bytes > CACHE_BYTES_MAX {
            self.destage();
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), Incomplete> {
        self.check(0, 0, libc::EIO)?;
        self.destage();
        Ok(())
    }

    fn destage(&mut self) {
        for change in std::mem::take(&mut self.cached) {
            self.durable.take_over(&self.current, change.range());
        }
        self.cached_bytes = 0;
    }

    /// Loses the cached changes that the generator does not keep.
    pub(super) fn lose_power(&mut self, chance: &mut StdRng) {
        let unit = u64::from(self.shape.logical);
        for change in std::mem::take(&mut self.cached) {
            match change {
                CachedChange::Zeros(at, length) => {
                    if chance.random() {
                        self.durable.zero(at, length);
                    }
                }
                CachedChange::Bytes(at, bytes) => {
                    let torn = bytes.len() as u64 > unit && chance.random_ratio(1, 3);
                    let whole: bool = chance.random();
                    for (start, end) in pieces(at, bytes.len() as u64, unit) {
                        if if torn { chance.random() } else { whole } {
                            self.durable.write(start, &bytes[(start - at) as usize..(end - at) as usize]);
                        }
                    }
                }
            }
        }
        self.cached_bytes = 0;
        self.current = self.durable.clone();
    }

    /// Writes initial contents, past the cache and the read-only flag.
    pub(super) fn preset(&mut self, offset: u64, bytes: &[u8]) {
        self.current.write(offset, bytes);
        self.durable.write(offset, bytes);
    }

    /// The first range of non-zero pages within `range`.
    pub(super) fn next_stored(&self, range: Range<u64>) -> Option<Range<u64>> {
        self.current.next_stored(range)
    }

    pub(super) fn spoil(&mut self, sectors: Range<u64>) {
        self.bad.extend(sectors);
    }

    /// The bytes that would remain if a power cut lost every cached write.
    pub(super) fn durable(&self) -> &Sparse {
        &self.durable
    }
}

/// Splits a range at multiples of `unit`.
fn pieces(at: u64, length: u64, unit: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = at + length;
    let mut start = at;
    std::iter::from_fn(move || {
        if start >= end {
            return None;
        }
        let stop = end.min((start / unit + 1) * unit);
        let piece = (start, stop);
        start = stop;
        Some(piece)
    })
}

/// All disks of the machine and the paths that lead to them.
pub(super) struct DiskTable {
    disks: Vec<Disk>,
    paths: BTreeMap<PathBuf, usize>,
    aliases: BTreeMap<PathBuf, PathBuf>,
    template: DiskShape,
    on_demand: bool,
}

impl DiskTable {
    pub(super) fn new(template: DiskShape, on_demand: bool) -> DiskTable {
        DiskTable { disks: Vec::new(), paths: BTreeMap::new(), aliases: BTreeMap::new(), template, on_demand }
    }

    /// Adds a disk. If the path is in use, keeps the disk there.
    pub(super) fn add(&mut self, path: PathBuf, shape: DiskShape) -> DeviceNumber {
        if let Some(number) = self.number_at(&path) {
            return number;
        }
        let number = DeviceNumber { major: DISK_MAJOR, minor: self.disks.len() as u32 };
        self.paths.insert(path.clone(), self.disks.len());
        self.disks.push(Disk::new(path, number, shape));
        number
    }

    /// Reinserts a pulled disk under the node `path`. The disk gets a new number while something
    /// holds its former one. Returns `false` if no pulled disk had the node `former`, or if a
    /// present disk has the node `path`.
    pub(super) fn put_back(&mut self, former: &Path, path: PathBuf, is_held: impl Fn(DeviceNumber) -> bool) -> bool {
        let Some(index) = self.paths.get(former).copied().filter(|index| !self.disks[*index].present) else {
            return false;
        };
        let displaced = self.paths.get(&path).copied().filter(|_| path != former);
        if displaced.is_some_and(|other| self.disks[other].present) {
            return false;
        }
        let nodes: Vec<PathBuf> =
            self.paths.iter().filter(|(_, at)| **at == index).map(|(path, _)| path.clone()).collect();
        let mut at = index;
        if is_held(self.disks[index].number) {
            at = self.disks.len();
            let number = DeviceNumber { major: DISK_MAJOR, minor: at as u32 };
            let dead = Disk::new(former.to_owned(), self.disks[index].number, self.disks[index].shape.clone());
            let back = std::mem::replace(&mut self.disks[index], Disk { present: false, ..dead });
            self.disks.push(Disk { number, ..back });
        }
        for node in nodes {
            self.paths.remove(&node);
            self.paths.insert(if node == former { path.clone() } else { node }, at);
        }
        self.disks[at].path = path;
        self.disks[at].present = true;
        if let Some(other) = displaced {
            // The disk at the new node is pulled as well, so the two swap nodes.
            self.paths.insert(former.to_owned(), other);
            former.clone_into(&mut self.disks[other].path);
        }
        true
    }

    /// Adds another node with the number of an existing disk.
    pub(super) fn add_twin(&mut self, path: PathBuf, of: &Path) -> bool {
        let index = self.paths.get(of).copied();
        index.is_some_and(|index| self.paths.insert(path, index).is_none())
    }

    pub(super) fn add_alias(&mut self, alias: PathBuf, target: PathBuf) {
        self.aliases.insert(alias, target);
    }

    /// The node that a path leads to, following links.
    pub(super) fn resolve(&self, path: PathBuf) -> PathBuf {
        self.aliases.get(&path).cloned().unwrap_or(path)
    }

    /// The disk at a path. Creates it if the machine makes disks on demand.
    pub(super) fn find(&mut self, path: &Path) -> Option<DeviceNumber> {
        if let Some(index) = self.paths.get(path) {
            let disk = &self.disks[*index];
            return disk.present.then_some(disk.number);
        }
        self.on_demand.then(|| self.add(path.to_owned(), self.template.clone()))
    }

    /// Device number of the disk at a path, present or not; never creates one.
    pub(super) fn number_at(&self, path: &Path) -> Option<DeviceNumber> {
        self.paths.get(path).map(|index| self.disks[*index].number)
    }

    /// The disk at a path, present or not; never creates one.
    pub(super) fn known(&mut self, path: &Path) -> Option<&mut Disk> {
        let index = *self.paths.get(path)?;
        self.disks.get_mut(index)
    }

    pub(super) fn get(&self, number: DeviceNumber) -> Option<&Disk> {
        (number.major == DISK_MAJOR).then(|| self.disks.get(number.minor as usize)).flatten()
    }

    pub(super) fn get_mut(&mut self, number: DeviceNumber) -> Option<&mut Disk> {
        (number.major == DISK_MAJOR).then(|| self.disks.get_mut(number.minor as usize)).flatten()
    }

    /// Every node, sorted by path.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&PathBuf, &Disk)> {
        self.paths.iter().map(|(path, index)| (path, &self.disks[*index]))
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Disk> {
        self.disks.iter_mut()
    }

    pub(super) fn template(&self) -> &DiskShape {
        &self.template
    }
}
