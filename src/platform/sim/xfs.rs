//! XFS as a daemon sees it: a superblock on the device, mounts, usage, and a store of small files.
//!
//! Rules:
//! - The first sector of the device holds what a superblock of version 5 does about the identity and
//!   the places of groups and log, and besides: whether the log needs a replay, and the key of the
//!   files, which are kept here. So files are found exactly where that sector is found. A sector
//!   with a wrong checksum is no XFS.
//! - A copy of the sector (a snapshot) refers to the same files. So only devices that are not thin
//!   can have files; file calls elsewhere are refused with EOPNOTSUPP.
//! - A mount marks the log on the device as dirty, an unmount as clean. A second mounted file
//!   system with the same UUID is refused with EINVAL unless `nouuid` is given; so are a device
//!   without XFS and one that has become too small. A device in other use gives EBUSY. Mount
//!   options other than `nouuid`, `ro`, `rw` and `defaults` give EINVAL.
//! - A path below `/proc/PROCESS/root` lies in the mount namespace of that process; its mounts are
//!   visible nowhere else.
//! - An I/O error on a write of the log (by a sync, a suspend with flush, an unmount, xfs_growfs),
//!   or on a dead device when files are used, shuts the file system down: every call on its files
//!   fails with EIO until it is unmounted and mounted again, and what was not durable is lost as by
//!   a power cut. Its usage can still be read. Its log stays dirty.
//! - A directory takes one mount; a second device there gives EBUSY (the kernel would stack them).
//! - Changes of names are journaled in order. A power cut keeps a prefix of the unsynced part,
//!   chosen by the generator. A sync of a file makes its contents durable, and the journal up to
//!   the file's own last change. A sync of a directory makes the whole journal durable; an unmount
//!   and a suspend with flush, everything. At a power cut, unsynced contents are lost, kept in part
//!   (a prefix), or kept.
//!
//! This module knows nothing of the contents of files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::{Rng, rngs::StdRng};

use super::xfs_log::{self, RecordPlace};
use crate::{
    base::units::Bytes,
    platform::{self, DeviceNumber},
};

/// Directory of the private mounts.
pub(super) const PRIVATE: &str = "/run/stratisd/ns_mounts";

/// File system block size in bytes.
pub(super) const BLOCK: u64 = 4096;

/// Size of the log that mkfs.xfs makes for a file system of this size: a 2048th, at least 64 MiB
/// and less than 2 GiB.
pub(super) fn log_bytes(size: u64) -> u64 {
    (size / 2048).clamp(64 << 20, (2 << 30) - (10 << 20))
}

/// Limit of allocation groups. For the largest devices the real mkfs.xfs makes millions and takes
/// hours.
const GROUPS_MAX: u64 = 1024;

/// Number of allocation groups that mkfs.xfs makes on a device of this size with a stripe width, as
/// thin devices have: from 8 to 32, and one per TiB on larger ones.
fn default_groups(size: u64) -> u64 {
    match size {
        ..=0x2_0000_0000 => 8,
        0x2_0000_0001..=0x80_0000_0000 => 16,
        _ => size.div_ceil(1 << 40).clamp(32, GROUPS_MAX),
    }
}

/// Whether a device of this size can have this many allocation groups: each has at least 16 MiB and
/// less than 1 TiB.
pub(super) fn can_have(size: u64, groups: u64) -> bool {
    groups > 0 && (16 << 20..1 << 40).contains(&(size / groups))
}

/// Smallest size that mkfs.xfs accepts.
pub(super) const BYTES_MIN: u64 = 300 << 20;

pub(super) type FilesKey = [u8; 16];

/// The first sector of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) uuid: [u8; 16],
    /// The UUID that metadata carries: the one that mkfs.xfs has given.
    meta_uuid: [u8; 16],
    pub(super) blocks: u64,
    group_blocks: u32,
    groups: u32,
    /// First block of the log.
    log_start: u64,
    /// Size of the log in file system blocks.
    log_blocks: u32,
    /// The record that wrote the superblock last.
    lsn: RecordPlace,
    /// The last record of the log. The kernel searches the log for it.
    pub(super) end: RecordPlace,
    pub(super) key: FilesKey,
    pub(super) dirty: bool,
}

/// Incompatible feature: metadata carries another UUID than the superblock.
const META_UUID: u32 = 1 << 2;

impl Superblock {
    /// That of a new file system on a device of this size. `log`: the size of its log in bytes;
    /// `groups`: the number of its allocation groups; `None` for the default.
    pub(super) fn new(uuid: [u8; 16], size: u64, key: FilesKey, log: Option<u64>, groups: Option<u64>) -> Superblock {
        let groups = groups.unwrap_or_else(|| default_groups(size));
        let blocks = size / BLOCK;
        let group_blocks = u32::try_from(blocks.div_ceil(groups)).unwrap_or(u32::MAX);
        // The last group may be smaller, and there may be fewer groups than asked for.
        let groups = blocks.div_ceil(u64::from(group_blocks.max(1))).min(GROUPS_MAX);
        Superblock {
            uuid,
            meta_uuid: uuid,
            blocks,
            group_blocks,
            groups: groups as u32,
            // Behind the headers of the middle group.
            log_start: groups / 2 * u64::from(group_blocks) + 8,
            log_blocks: (log.unwrap_or_else(|| log_bytes(size)) / BLOCK) as u32,
            lsn: RecordPlace { cycle: 0, block: 0 },
            end: RecordPlace::FIRST,
            key,
            dirty: false,
        }
    }

    /// The same after growth. New groups are as large as the existing ones.
    pub(super) fn grown(self, blocks: u64) -> Superblock {
        let groups = blocks.div_ceil(u64::from(self.group_blocks)).min(GROUPS_MAX).max(u64::from(self.groups));
        Superblock { blocks, groups: groups as u32, ..self }
    }

    /// The same with another UUID and a new log, as `xfs_db` writes it.
    pub(super) fn with_uuid(self, uuid: [u8; 16]) -> Superblock {
        Superblock { uuid, end: self.end.new_cycle(), ..self }
    }

    /// The same after an unmount, or after a mount.
    pub(super) fn with_end(self, end: RecordPlace, dirty: bool) -> Superblock {
        // An unmount writes the superblock, and then the record that says so.
        let lsn = if dirty { self.lsn } else { self.end };
        Superblock { lsn, end, dirty, ..self }
    }

    /// Offsets of the secondary superblocks, in bytes: at the beginning of each allocation group but
    /// the first.
    pub(super) fn copies(&self) -> impl Iterator<Item = u64> + use<> {
        let (group, size) = (u64::from(self.group_blocks) * BLOCK, self.blocks.saturating_mul(BLOCK));
        (1..u64::from(self.groups)).map(move |index| index * group).filter(move |at| at + 512 <= size)
    }

    /// Offset of the log in bytes.
    pub(super) fn log(&self) -> u64 {
        self.log_start * BLOCK
    }

    /// Size of the log in bytes.
    pub(super) fn log_bytes(&self) -> u64 {
        u64::from(self.log_blocks) * BLOCK
    }

    /// The only record of a new log, as a program writes it.
    pub(super) fn first_record(&self) -> [u8; xfs_log::RECORD] {
        xfs_log::record(self.end, &self.uuid, true, xfs_log::RecordWriter::Program)
    }

    /// Where the next record goes.
    pub(super) fn next_record(&self) -> RecordPlace {
        self.end.next(self.log_blocks.saturating_mul((BLOCK / 512) as u32))
    }

    /// Offset of a record on the device, in bytes.
    pub(super) fn record(&self, at: RecordPlace) -> u64 {
        self.log() + u64::from(at.block) * 512
    }

    pub(super) fn encode(&self) -> [u8; 512] {
        let mut sector = [0; 512];
        let mut put = |at: usize, value: &[u8]| sector[at..at + value.len()].copy_from_slice(value);
        let group_blocks = u64::from(self.group_blocks.max(1));
        let group_log = group_blocks.next_power_of_two().ilog2();
        let log_start = ((self.log_start / group_blocks) << group_log) | (self.log_start % group_blocks);
        put(0, b"XFSB");
        put(4, &(BLOCK as u32).to_be_bytes());
        put(8, &self.blocks.to_be_bytes());
        put(32, &self.uuid);
        put(48, &log_start.to_be_bytes());
        put(84, &self.group_blocks.to_be_bytes());
        put(88, &self.groups.to_be_bytes());
        put(96, &self.log_blocks.to_be_bytes());
        // Version 5, with the flags that it implies.
        put(100, &0xb4a5_u16.to_be_bytes());
        put(102, &512_u16.to_be_bytes());
        put(124, &[group_log as u8]);
        if self.meta_uuid != self.uuid {
            put(216, &META_UUID.to_be_bytes());
            put(248, &self.meta_uuid);
        }
        put(240, &self.lsn.bits().to_be_bytes());
        // The rest lies in the part of the sector that XFS does not use.
        put(400, &self.key);
        put(416, &[u8::from(self.dirty)]);
        put(420, &self.end.bits().to_be_bytes());
        put(428, &self.log_start.to_be_bytes());
        let crc = crc32c::crc32c(&sector).to_le_bytes();
        sector[224..228].copy_from_slice(&crc);
        sector
    }

    pub(super) fn decode(sector: &[u8; 512]) -> Option<Superblock> {
        let field = |at: usize| -> Option<[u8; 16]> { sector[at..at + 16].try_into().ok() };
        let word = |at: usize| Some(u32::from_be_bytes(sector[at..at + 4].try_into().ok()?));
        let long = |at: usize| Some(u64::from_be_bytes(sector[at..at + 8].try_into().ok()?));
        let crc = xfs_log::checksum(sector, 224);
        if &sector[..4] != b"XFSB" || sector[224..228] != crc.to_le_bytes() {
            return None;
        }
        let uuid = field(32)?;
        Some(Superblock {
            uuid,
            meta_uuid: if word(216)? & META_UUID != 0 { field(248)? } else { uuid },
            blocks: long(8)?,
            group_blocks: word(84)?,
            groups: word(88)?,
            log_start: long(428)?,
            log_blocks: word(96)?,
            lsn: RecordPlace::from_bits(long(240)?),
            end: RecordPlace::from_bits(long(420)?),
            key: field(400)?,
            dirty: sector[416] != 0,
        })
    }
}

#[derive(Debug)]
pub(super) struct MountedXfs {
    pub(super) device: DeviceNumber,
    pub(super) key: FilesKey,
    pub(super) uuid: [u8; 16],
    /// A process in the mount's namespace; `None` for the namespace of PID 1.
    pub(super) process: Option<u32>,
}

/// All file systems and mounts.
#[derive(Default)]
pub(super) struct Xfs {
    pub(super) files: BTreeMap<FilesKey, Files>,
    pub(super) mounts: BTreeMap<PathBuf, MountedXfs>,
    pub(super) by_device: HashMap<DeviceNumber, Vec<PathBuf>>,
    pub(super) by_uuid: HashMap<[u8; 16], BTreeSet<DeviceNumber>>,
    pub(super) used: HashMap<DeviceNumber, Bytes>,
    /// Mounted file systems that are shut down.
    pub(super) shut_down: BTreeSet<DeviceNumber>,
}

impl Xfs {
    /// Shuts a file system down because its log cannot be written.
    pub(super) fn shut_down(&mut self, device: DeviceNumber) {
        if self.is_mounted(device) {
            self.shut_down.insert(device);
        }
    }

    pub(super) fn is_shut_down(&self, device: DeviceNumber) -> bool {
        self.shut_down.contains(&device)
    }

    pub(super) fn is_mounted(&self, device: DeviceNumber) -> bool {
        self.by_device.contains_key(&device)
    }

    pub(super) fn device_at(&self, at: &Path) -> Option<DeviceNumber> {
        self.mounts.get(at).map(|mount| mount.device)
    }

    pub(super) fn mounts(&self) -> impl Iterator<Item = (&PathBuf, DeviceNumber)> {
        self.mounts.iter().map(|(at, mount)| (at, mount.device))
    }

    /// The mounts of users.
    pub(super) fn mounts_of(&self, devices: &[DeviceNumber]) -> Vec<platform::Mount> {
        let points = |device: &DeviceNumber| self.by_device.get(device).into_iter().flatten();
        let mounts = devices.iter().flat_map(points).filter(|at| !at.starts_with(PRIVATE));
        mounts
            .filter_map(|at| {
                let MountedXfs { device, process, .. } = self.mounts.get(at)?;
                let below = at.components().skip(if process.is_some() { 4 } else { 1 });
                let mount_point = Path::new("/").join(below.collect::<PathBuf>());
                Some(platform::Mount { number: *device, mount_point, process: *process })
            })
            .collect()
    }

    pub(super) fn forget_usage(&mut self, device: DeviceNumber) {
        self.used.remove(&device);
    }

    pub(super) fn set_used(&mut self, device: DeviceNumber, used: Bytes) {
        self.used.insert(device, used);
    }

    pub(super) fn new_files(&mut self, key: FilesKey) {
        self.files.insert(key, Files::default());
    }

    pub(super) fn lose_power(&mut self, chance: &mut StdRng) {
        self.mounts.clear();
        self.by_device.clear();
        self.by_uuid.clear();
        self.used.clear();
        self.shut_down.clear();
        self.files.values_mut().for_each(|files| files.lose_power(chance));
    }
}

/// Files as values, and the part of them that would survive.
#[derive(Default)]
pub(super) struct Files {
    contents: BTreeMap<u64, FileContents>,
    next: u64,
    now: DirectoryTree,
    durable: DirectoryTree,
    journal: Vec<JournaledChange>,
}

#[derive(Clone, Default)]
struct DirectoryTree {
    files: BTreeMap<String, u64>,
    directories: BTreeSet<String>,
}

struct FileContents {
    now: Arc<[u8]>,
    /// The contents at the last sync.
    synced: Option<Arc<[u8]>>,
    /// The file has a name now.
    named: bool,
}

enum JournaledChange {
    Make(String, u64),
    Rename(String, String, u64),
    Remove(String, u64),
    Directory(String),
}

impl JournaledChange {
    fn concerns(&self, file: u64) -> bool {
        match self {
            JournaledChange::Make(_, f) | JournaledChange::Rename(_, _, f) | JournaledChange::Remove(_, f) => {
                *f == file
            }
            JournaledChange::Directory(_) => false,
        }
    }
}

impl Files {
    pub(super) fn list(&mut self, directory: &str) -> Vec<String> {
        let mut parent = String::new();
        for part in directory.split('/').filter(|part| !part.is_empty()) {
            parent = if parent.is_empty() { part.to_owned() } else { format!("{parent}/{part}") };
            if self.now.directories.insert(parent.clone()) {
                self.journal.push(JournaledChange::Directory(parent.clone()));
            }
        }
        let prefix = if parent.is_empty() { String::new() } else { format!("{parent}/") };
        let inside = self.now.files.range(prefix.clone()..).map(|(name, _)| name);
        let inside = inside.take_while(|name| name.starts_with(&prefix)).map(|name| &name[prefix.len()..]);
        inside.filter(|name| !name.contains('/')).map(str::to_owned).collect()
    }

    pub(super) fn read(&self, path: &str) -> Option<Vec<u8>> {
        let file = self.now.files.get(path)?;
        self.contents.get(file).map(|contents| contents.now.to_vec())
    }

    /// Creates or truncates a file and writes it. Returns false if its directory is missing.
    pub(super) fn write(&mut self, path: &str, bytes: &[u8]) -> bool {
        let directory = path.rsplit_once('/').map(|(directory, _)| directory);
        if directory.is_some_and(|directory| !self.now.directories.contains(directory)) {
            return false;
        }
        let file = match self.now.files.get(path) {
            Some(file) => *file,
            None => {
                let file = self.next;
                self.next += 1;
                self.now.files.insert(path.to_owned(), file);
                self.journal.push(JournaledChange::Make(path.to_owned(), file));
                file
            }
        };
        let contents = self.contents.entry(file).or_insert(FileContents { now: [].into(), synced: None, named: true });
        contents.now = bytes.into();
        true
    }

    pub(super) fn sync(&mut self, path: &str) -> bool {
        let Some(file) = self.now.files.get(path).copied() else { return false };
        if let Some(contents) = self.contents.get_mut(&file) {
            contents.synced = Some(Arc::clone(&contents.now));
        }
        if let Some(last) = self.journal.iter().rposition(|change| change.concerns(file)) {
            self.replay(last + 1);
        }
        true
    }

    pub(super) fn sync_directory(&mut self) {
        self.replay(self.journal.len());
    }

    pub(super) fn sync_all(&mut self) {
        self.contents.values_mut().for_each(|contents| contents.synced = Some(Arc::clone(&contents.now)));
        self.sync_directory();
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> bool {
        let Some(file) = self.now.files.remove(from) else { return false };
        let replaced = self.now.files.insert(to.to_owned(), file);
        if let Some(contents) = replaced.and_then(|replaced| self.contents.get_mut(&replaced)) {
            contents.named = false;
        }
        self.journal.push(JournaledChange::Rename(from.to_owned(), to.to_owned(), file));
        true
    }

    /// Returns whether there was such a file.
    pub(super) fn remove(&mut self, path: &str) -> bool {
        let Some(file) = self.now.files.remove(path) else { return false };
        if let Some(contents) = self.contents.get_mut(&file) {
            contents.named = false;
        }
        self.journal.push(JournaledChange::Remove(path.to_owned(), file));
        true
    }

    /// Makes the first `count` changes of the journal durable.
    fn replay(&mut self, count: usize) {
        for change in self.journal.drain(..count) {
            let gone = match change {
                JournaledChange::Make(path, file) => self.durable.files.insert(path, file),
                JournaledChange::Rename(from, to, file) => {
                    self.durable.files.remove(&from);
                    self.durable.files.insert(to, file)
                }
                JournaledChange::Remove(path, _) => self.durable.files.remove(&path),
                JournaledChange::Directory(path) => {
                    self.durable.directories.insert(path);
                    None
                }
            };
            let forgotten = |file: &u64| self.contents.get(file).is_some_and(|contents| !contents.named);
            if let Some(gone) = gone.filter(forgotten) {
                self.contents.remove(&gone);
            }
        }
    }

    pub(super) fn lose_power(&mut self, chance: &mut StdRng) {
        self.replay(chance.random_range(0..=self.journal.len()));
        self.journal.clear();
        self.now = self.durable.clone();
        let kept: BTreeSet<u64> = self.now.files.values().copied().collect();
        self.contents.retain(|file, _| kept.contains(file));
        for contents in self.contents.values_mut() {
            contents.named = true;
            if contents.synced.as_ref() != Some(&contents.now) {
                contents.now = match chance.random_range(0..3) {
                    0 => [].into(),
                    1 => contents.now[..chance.random_range(0..=contents.now.len())].into(),
                    _ => Arc::clone(&contents.now),
                };
                contents.synced = Some(Arc::clone(&contents.now));
            }
        }
    }
}
