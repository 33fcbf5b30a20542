//! Virtual disks: bytes with a volatile write cache, sector sizes, bad spots, and what is said of them.
//!
//! Fault rules:
//! - A write is seen by every reader at once and is durable only after a flush, or when more than [`CACHE_BYTES_MAX`]
//!   are waiting (a real cache is finite too).
//! - When power goes, each write that waits survives, is lost, or, if it is longer than a logical sector, is torn: each
//!   of its sectors survives or is lost by itself. A sector is never torn. The generator decides, write by write.
//! - A discarded stretch that waits is discarded or not, as a whole.
//! - No disk has more than the kernel can count, whatever a test asks for.
//! - A disk that is pulled out while something lies on it keeps its number until nothing does, and that number stays dead. The
//!   disk comes back with another number, and under any node.
//! - A bad sector fails every read that touches it until it is written.
//!
//! Knows nothing of device-mapper, nor of what the bytes mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use nix::libc;
use rand::{Rng, rngs::StdRng};

use super::{io::Stop, sparse::Sparse};
use crate::{
    base::units::{SECTOR, Sectors},
    engine::plan::sizes::DEVICE_MAX,
    platform::DeviceNumber,
};

/// Major number of the disks (`blkext`, as the kernel gives to drivers without their own).
pub(super) const DISK_MAJOR: u32 = 259;

/// More than this does not wait in a cache.
const CACHE_BYTES_MAX: u64 = 64 << 20;

/// How a disk is made.
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
    /// False while it is pulled out.
    pub(super) present: bool,
    current: Sparse,
    durable: Sparse,
    waiting: Vec<Waiting>,
    waiting_bytes: u64,
    bad: BTreeSet<u64>,
}

/// A change that is in the cache only.
enum Waiting {
    Bytes(u64, Box<[u8]>),
    Zeros(u64, u64),
}

impl Waiting {
    fn range(&self) -> Range<u64> {
        match self {
            Waiting::Bytes(at, bytes) => *at..*at + bytes.len() as u64,
            Waiting::Zeros(at, length) => *at..*at + *length,
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
            waiting: Vec::new(),
            waiting_bytes: 0,
            bad: BTreeSet::new(),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.shape.size.min(DEVICE_MAX).0 * SECTOR
    }

    fn check(&self, offset: u64, length: u64, past_the_end: i32) -> Result<(), Stop> {
        if !self.present {
            return Err(Stop::Errno(libc::EIO));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(Stop::Errno(past_the_end)),
        }
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Stop> {
        self.check(offset, out.len() as u64, libc::EIO)?;
        let sectors = offset / SECTOR..(offset + out.len() as u64).div_ceil(SECTOR);
        if self.bad.range(sectors).next().is_some() {
            return Err(Stop::Errno(libc::EIO));
        }
        self.current.read(offset, out);
        Ok(())
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stop> {
        self.check(offset, bytes.len() as u64, libc::ENOSPC)?;
        if self.shape.read_only {
            return Err(Stop::Errno(libc::EPERM));
        }
        for sector in offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR) {
            if self.bad.is_empty() {
                break;
            }
            self.bad.remove(&sector);
        }
        self.current.write(offset, bytes);
        self.wait(Waiting::Bytes(offset, bytes.into()), bytes.len() as u64);
        Ok(())
    }

    /// Discards a stretch, which then reads as zeros.
    pub(super) fn zero(&mut self, offset: u64, length: u64) -> Result<(), Stop> {
        self.check(offset, length, libc::ENOSPC)?;
        if self.shape.read_only {
            return Err(Stop::Errno(libc::EPERM));
        }
        self.current.zero(offset, length);
        self.wait(Waiting::Zeros(offset, length), 0);
        Ok(())
    }

    fn wait(&mut self, change: Waiting, bytes: u64) {
        self.waiting.push(change);
        self.waiting_bytes += bytes;
        if self.waiting_bytes > CACHE_BYTES_MAX {
            self.destage();
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), Stop> {
        self.check(0, 0, libc::EIO)?;
        self.destage();
        Ok(())
    }

    fn destage(&mut self) {
        for change in std::mem::take(&mut self.waiting) {
            self.durable.take_over(&self.current, change.range());
        }
        self.waiting_bytes = 0;
    }

    /// Loses what the generator does not spare.
    pub(super) fn lose_power(&mut self, chance: &mut StdRng) {
        let unit = u64::from(self.shape.logical);
        for change in std::mem::take(&mut self.waiting) {
            match change {
                Waiting::Zeros(at, length) => {
                    if chance.random() {
                        self.durable.zero(at, length);
                    }
                }
                Waiting::Bytes(at, bytes) => {
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
        self.waiting_bytes = 0;
        self.current = self.durable.clone();
    }

    /// Writes past cache and read-only flag: what was on the disk when it was bought.
    pub(super) fn preset(&mut self, offset: u64, bytes: &[u8]) {
        self.current.write(offset, bytes);
        self.durable.write(offset, bytes);
    }

    /// The first stretch of a part of it that holds something else than zeros.
    pub(super) fn next_stored(&self, range: Range<u64>) -> Option<Range<u64>> {
        self.current.next_stored(range)
    }

    pub(super) fn spoil(&mut self, sectors: Range<u64>) {
        self.bad.extend(sectors);
    }

    /// The bytes that a power cut that loses every waiting write would leave.
    pub(super) fn durable(&self) -> &Sparse {
        &self.durable
    }
}

/// A stretch cut at multiples of `unit`.
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

/// All disks of the machine, and the paths that lead to them.
pub(super) struct Disks {
    disks: Vec<Disk>,
    paths: BTreeMap<PathBuf, usize>,
    aliases: BTreeMap<PathBuf, PathBuf>,
    template: DiskShape,
    on_demand: bool,
}

impl Disks {
    pub(super) fn new(template: DiskShape, on_demand: bool) -> Disks {
        Disks { disks: Vec::new(), paths: BTreeMap::new(), aliases: BTreeMap::new(), template, on_demand }
    }

    /// Makes a disk; a path that is taken keeps its disk.
    pub(super) fn add(&mut self, path: PathBuf, shape: DiskShape) -> DeviceNumber {
        if let Some(number) = self.number_at(&path) {
            return number;
        }
        let number = DeviceNumber { major: DISK_MAJOR, minor: self.disks.len() as u32 };
        self.paths.insert(path.clone(), self.disks.len());
        self.disks.push(Disk::new(path, number, shape));
        number
    }

    /// Puts a disk that was pulled out back in, under this node. While something holds its former number it gets a new one.
    /// False if no disk that was pulled out had the node `former`, or another disk that is there has the new one.
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
            // One that has been pulled out as well: the two change their nodes.
            self.paths.insert(former.to_owned(), other);
            former.clone_into(&mut self.disks[other].path);
        }
        true
    }

    /// Another node with the number of a disk that is there.
    pub(super) fn add_twin(&mut self, path: PathBuf, of: &Path) -> bool {
        let index = self.paths.get(of).copied();
        index.is_some_and(|index| self.paths.insert(path, index).is_none())
    }

    pub(super) fn add_alias(&mut self, alias: PathBuf, target: PathBuf) {
        self.aliases.insert(alias, target);
    }

    /// The node that a path leads to, links followed.
    pub(super) fn resolve(&self, path: PathBuf) -> PathBuf {
        self.aliases.get(&path).cloned().unwrap_or(path)
    }

    /// The disk at a path, made now if the machine makes disks on demand.
    pub(super) fn find(&mut self, path: &Path) -> Option<DeviceNumber> {
        if let Some(index) = self.paths.get(path) {
            let disk = &self.disks[*index];
            return disk.present.then_some(disk.number);
        }
        self.on_demand.then(|| self.add(path.to_owned(), self.template.clone()))
    }

    /// The number of the disk at a path, present or not; never makes one.
    pub(super) fn number_at(&self, path: &Path) -> Option<DeviceNumber> {
        self.paths.get(path).map(|index| self.disks[*index].number)
    }

    /// The disk at a path, present or not; never makes one.
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

    /// Every node in order of its path.
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
