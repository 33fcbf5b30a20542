//! What the devices contain: signature blocks, metadata, and which devices belong together. These
//! checks need no daemon.
//!
//! This module must never write to a device, and must not wait for one that does not answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crossbeam_channel::unbounded;
use threads::group::Group;

use super::{
    Diagnosis,
    luks_tokens::{self, Tokens, UnlockWays},
    system::System,
};
use crate::{
    base::{
        error_chain,
        ids::{DevUuid, PoolUuid},
        units::SECTOR,
    },
    engine::{
        bda::{Bda, Repair},
        metadata::{
            HeaderFlags, MetadataVersion, PoolMetadata, StaticHeader,
            header::{self, BLOCK_BYTES, CopyContents, Half, Resolved},
        },
    },
    platform::{Timestamp, linux::needed},
    tools::{check_metadata, image::Image},
};

/// A disk may retry a read for half a minute.
const READ_LIMIT: Duration = Duration::from_secs(40);
const THREAD: &str = "read-device";

/// A device that belongs to a pool.
#[derive(Debug, Default)]
pub(super) struct DeviceEvidence {
    /// Its node, or the image.
    pub(super) path: PathBuf,
    /// The pool.
    pub(super) pool: Option<PoolUuid>,
    /// Name of the pool, where it is known.
    pub(super) pool_name: Option<String>,
    /// The unlock methods in its LUKS2 header.
    pub(super) locks: UnlockWays,
    device: Option<DevUuid>,
    version: Option<MetadataVersion>,
    /// It is a LUKS device, and the signature block is inside.
    is_outer: bool,
    is_uncommitted: bool,
    metadata: Option<(Timestamp, PoolMetadata)>,
    /// What is wrong with it: the name of the check, whether only one copy is wrong, and a
    /// sentence.
    faults: Vec<(&'static str, bool, String)>,
}

/// Reads all devices.
pub(super) fn read(system: &System, report: &mut Diagnosis) -> Vec<DeviceEvidence> {
    let paths = if !system.devices.is_empty() {
        system.devices.clone()
    } else if system.is_live() {
        match needed::stratis_devices() {
            Ok(paths) => paths,
            Err(error) => {
                report.unexamined(
                    "device-missing",
                    format!("cannot list the devices: {}", error_chain::sentence(&error)),
                );
                return Vec::new();
            }
        }
    } else {
        return Vec::new();
    };
    let (done, results) = unbounded();
    let group = Group::new(&[THREAD]);
    for path in &paths {
        let (path, done) = (path.clone(), done.clone());
        let work = move || {
            // After the limit the receiver is gone.
            let _ = done.send((path.clone(), read_device(&path)));
        };
        if let Err(error) = group.spawn_transient(THREAD, work) {
            report.unexamined("device-missing", format!("cannot start a thread to read the devices: {error}"));
        }
    }
    drop(done);
    let deadline = Instant::now() + READ_LIMIT;
    let mut awaited: BTreeSet<PathBuf> = paths.into_iter().collect();
    let mut found = Vec::new();
    while let Ok((path, read)) = results.recv_deadline(deadline) {
        awaited.remove(&path);
        match read {
            Ok(device) => found.extend(device),
            Err(error) => report.unexamined("device-missing", format!("cannot read {}: {error}", path.display())),
        }
    }
    for path in awaited {
        let why = format!("{} does not answer within {} s", path.display(), READ_LIMIT.as_secs());
        report.unexamined("device-missing", why);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Reads a device; `None` if it belongs to no pool.
fn read_device(path: &Path) -> io::Result<Option<DeviceEvidence>> {
    let image = Image::open(path)?;
    let mut found = DeviceEvidence { path: path.to_owned(), ..DeviceEvidence::default() };
    let copies = Half::BOTH.map(|half| match image.bytes(half.block_offset(), BLOCK_BYTES) {
        Ok(block) => CopyContents::in_block(&block),
        Err(_) => CopyContents::Unreadable,
    });
    let [first, second] = copies;
    match header::resolve(first, second) {
        Ok(Resolved::Nothing) => {
            let tokens = luks_tokens::read(|offset, length| image.bytes(offset, length).ok());
            let Some(Tokens { locks, identity: Some(token) }) = tokens else { return Ok(None) };
            found.is_outer = true;
            found.version = Some(MetadataVersion::V1);
            (found.pool, found.device) = (Some(token.pool), Some(token.device));
            (found.pool_name, found.locks) = (token.pool_name, locks);
        }
        Ok(Resolved::Header { header, rewrite }) => {
            if rewrite.is_some() {
                let what = "one copy of its signature block is damaged or older than the other".to_owned();
                found.faults.push(("signature-damaged", true, what));
            }
            read_metadata(&image, &header, &mut found);
        }
        Err(error) => {
            let what = format!("its signature block cannot be used: {}", error_chain::sentence(&error));
            found.faults.push(("signature-damaged", false, what));
        }
    }
    Ok(Some(found))
}

fn read_metadata(image: &Image, header: &StaticHeader, found: &mut DeviceEvidence) {
    (found.pool, found.device, found.version) = (Some(header.pool), Some(header.device), Some(header.version));
    found.is_uncommitted = header.flags.contains(HeaderFlags::UNCOMMITTED);
    let path = found.path.clone();
    let mut fault = |what: String| found.faults.push(("metadata-damaged", false, what));
    let loaded = Bda::load(image, &path, Repair::ReadOnly).and_then(|bda| match bda {
        Some(bda) => Ok(bda.last_update().zip(bda.read_json(image, &path)?)),
        None => Ok(None),
    });
    match loaded {
        Ok(Some((stamp, json))) => match PoolMetadata::parse(&json, header.version) {
            Ok(metadata) => {
                found.pool_name = Some(metadata.name.clone());
                found.metadata = Some((stamp, metadata));
            }
            Err(error) => fault(error_chain::sentence(&error)),
        },
        Ok(None) => {}
        Err(error) => fault(error_chain::sentence(&error)),
    }
    // The LUKS2 header of a version 2 pool lies at the start of its joined devices.
    let first = found.metadata.as_ref().and_then(|(_, metadata)| metadata.data_segments().first().copied());
    if let Some(first) = first.filter(|first| first.parent == header.device && header.version == MetadataVersion::V2) {
        let at = |offset: u64| first.start.0.checked_mul(SECTOR)?.checked_add(offset);
        let tokens = luks_tokens::read(|offset, length| image.bytes(at(offset)?, length).ok());
        found.locks = tokens.unwrap_or_default().locks;
    }
}

/// A pool, as its devices describe it.
struct DescribedPool<'a> {
    uuid: PoolUuid,
    devices: Vec<&'a DeviceEvidence>,
    metadata: Option<&'a PoolMetadata>,
    stamp: Timestamp,
}

impl DescribedPool<'_> {
    fn title(&self) -> String {
        match self.metadata {
            Some(metadata) => format!("{} ({})", metadata.name, self.uuid),
            None => self.uuid.to_string(),
        }
    }
}

fn pools(devices: &[DeviceEvidence]) -> Vec<DescribedPool<'_>> {
    let mut pools: BTreeMap<PoolUuid, Vec<&DeviceEvidence>> = BTreeMap::new();
    for device in devices.iter().filter(|device| !device.is_uncommitted) {
        if let Some(pool) = device.pool {
            pools.entry(pool).or_default().push(device);
        }
    }
    let described = pools.into_iter().map(|(uuid, devices)| {
        let newest = devices.iter().filter_map(|device| device.metadata.as_ref()).max_by_key(|(stamp, _)| *stamp);
        let (stamp, metadata) =
            newest.map_or((Timestamp::default(), None), |(stamp, metadata)| (*stamp, Some(metadata)));
        DescribedPool { uuid, devices, metadata, stamp }
    });
    described.collect()
}

pub(super) fn check(devices: &[DeviceEvidence], report: &mut Diagnosis) {
    for device in devices {
        for (id, one_copy, what) in &device.faults {
            let what = format!("{}: {what}", device.path.display());
            match one_copy {
                true => {
                    let why = "stratisd uses the other copy; if that is damaged too, the device is lost";
                    report.warning(id, what, why, "start the pool: stratisd rewrites the copy; check the disk");
                }
                false => {
                    let why = "its pool cannot be started with this device";
                    report.problem(id, what, why, "check the disk and its cables; a newer stratisd may be needed");
                }
            }
        }
    }
    let pools = pools(devices);
    for pool in &pools {
        check_identities(pool, report);
        check_members(pool, report);
        let Some(metadata) =
            pool.metadata.filter(|_| pool.devices.iter().all(|device| device.version == Some(MetadataVersion::V2)))
        else {
            continue;
        };
        for finding in check_metadata::check(metadata) {
            let what = format!("The metadata of pool {} contradicts itself: {finding}", pool.title());
            report.problem(
                "metadata-damaged",
                what,
                "stratisd does not set up the pool",
                "keep copies of the disks, and report this",
            );
        }
    }
    let mut names: BTreeMap<&str, Vec<&DescribedPool<'_>>> = BTreeMap::new();
    for pool in &pools {
        if let Some(metadata) = pool.metadata {
            names.entry(&metadata.name).or_default().push(pool);
        }
    }
    for (name, same) in names.into_iter().filter(|(_, same)| same.len() > 1) {
        let uuids: Vec<String> = same.iter().map(|pool| pool.uuid.to_string()).collect();
        report.warning(
            "identity-duplicate",
            format!("Several pools are named {name}: {}", uuids.join(", ")),
            "only one of them can run at a time",
            "rename the running pool, then start the other one by its UUID",
        );
    }
}

/// Several devices with one identity.
fn check_identities(pool: &DescribedPool<'_>, report: &mut Diagnosis) {
    let mut nodes: BTreeMap<(DevUuid, bool), Vec<&Path>> = BTreeMap::new();
    for found in &pool.devices {
        if let Some(device) = found.device {
            nodes.entry((device, found.is_outer)).or_default().push(&found.path);
        }
    }
    for ((device, _), nodes) in nodes {
        let lies_on = |upper: &Path, lower: &Path| {
            let name =
                |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            Path::new("/sys/class/block").join(name(upper)).join("slaves").join(name(lower)).exists()
        };
        // What lies below another device of the list is the same device.
        let tops: Vec<&&Path> = nodes.iter().filter(|node| !nodes.iter().any(|other| lies_on(other, node))).collect();
        if tops.len() > 1 {
            let listed: Vec<String> = tops.iter().map(|node| node.display().to_string()).collect();
            report.problem(
                "identity-duplicate",
                format!("Device {device} of pool {} was found several times: {}", pool.title(), listed.join(", ")),
                "stratisd does not start the pool if it cannot tell which one is current",
                "disconnect the copy, or wipe its signature (wipefs) if it is not needed",
            );
        }
    }
}

fn check_members(pool: &DescribedPool<'_>, report: &mut Diagnosis) {
    let there: BTreeSet<DevUuid> = pool.devices.iter().filter_map(|found| found.device).collect();
    match pool.metadata {
        Some(metadata) if !metadata.is_condemned(pool.stamp) => {
            let listed: BTreeSet<DevUuid> = metadata.devices().collect();
            for missing in listed.difference(&there) {
                report.problem(
                    "device-missing",
                    format!("Device {missing} of pool {} was not found", pool.title()),
                    "the pool is not started without it",
                    "connect the disk; if it is a cache device that is lost, start the pool with --remove-cache",
                );
            }
        }
        Some(_) => {}
        // Closed devices of version 1 hide the metadata.
        None if pool.devices.iter().any(|found| found.is_outer) => {}
        None => report.problem(
            "metadata-damaged",
            format!("No device of pool {} that was found holds its metadata", pool.title()),
            "the pool cannot be started",
            "connect its other devices",
        ),
    }
}

/// Pools that are recorded as stopped. If a daemon runs, its report counts instead.
pub(super) fn check_stopped(devices: &[DeviceEvidence], report: &mut Diagnosis) {
    for pool in pools(devices) {
        if let Some(metadata) = pool.metadata.filter(|metadata| !metadata.is_condemned(pool.stamp)) {
            if metadata.started == Some(false) {
                report.warning(
                    "pool-stopped",
                    format!("Pool {} was stopped", pool.title()),
                    "stratisd does not start it at boot before it has been started by hand",
                    format!("stratis pool start --name {}", metadata.name),
                );
            }
        }
    }
}
