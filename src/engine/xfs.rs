//! The XFS on a filesystem's thin device or on the metadata volume: how it is made, given an
//! identity, and extended (`docs/spec/engine/storage-stack.md` §9.1, 9.3, 9.5).
//!
//! The exit status of a program does not show whether it did its work: `xfs_db` leaves the UUID
//! unchanged while the log needs a replay, reports that on standard output, and exits with status
//! 0. So a change counts only once it is visible on the device, or in what the kernel reports about
//! the mounted file system.

use std::{collections::BTreeSet, path::Path};

use crate::{
    base::{
        ids::FsUuid,
        units::{Bytes, DataBlocks, Sectors},
    },
    engine::{
        error::{Error, Result},
        metadata::{LogEnd, SUPERBLOCK_BYTES, SUPERBLOCK_BYTES_MAX, XfsIdentity, superblock_with, xfs_parts, xfs_uuid},
        plan::sizes::{self, XfsParameters},
        undo::mended,
    },
    platform::{self, Mount, Platform, Program, WriteStep},
};

/// The kernel does not use a remainder of a device that is smaller than the smallest allocation
/// group.
const GROWTH_MIN: Sectors = sizes::DATA_BLOCK;

/// The UUID of the XFS on a device; `None`: there is no XFS.
///
/// # Errors
/// When the device cannot be read.
pub(super) fn identity(platform: &dyn Platform, node: &Path) -> platform::Result<Option<uuid::Uuid>> {
    Ok(xfs_uuid(&platform.read(node, 0, SUPERBLOCK_BYTES)?))
}

/// Whether the contents of a device are discarded before it is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Discard {
    /// Discard the contents.
    Yes,
    /// Keep what has been written to the device.
    No,
}

/// Makes an XFS with this UUID.
///
/// # Errors
/// When `mkfs.xfs` fails, or the device holds no such XFS afterwards.
pub(super) fn make(
    platform: &dyn Platform,
    node: &Path,
    uuid: uuid::Uuid,
    parameters: XfsParameters,
    discard: Discard,
) -> Result<()> {
    let text = node.to_string_lossy();
    let with_uuid = format!("uuid={}", uuid.hyphenated());
    let mut arguments = vec!["-f", "-q", &text, "-m", &with_uuid];
    if discard == Discard::No {
        arguments.push("-K");
    }
    let log = parameters.log.map(|log| format!("size={}", log.0));
    let groups = parameters.groups.map(|groups| format!("agcount={groups}"));
    for (option, value) in [("-l", &log), ("-d", &groups)] {
        arguments.extend(value.iter().flat_map(|value| [option, value]));
    }
    if mkfs_knows_nrext64(platform)? {
        // Older kernels cannot mount file systems with large extent counters.
        arguments.extend(["-i", "nrext64=0"]);
    }
    platform.run(Program::MkfsXfs, &arguments)?;
    expect_identity(platform, node, uuid, Program::MkfsXfs)
}

/// Whether mkfs.xfs is new enough to need this option. If it does not report its version, it counts
/// as new enough.
fn mkfs_knows_nrext64(platform: &dyn Platform) -> Result<bool> {
    let text = platform.run(Program::MkfsXfs, &["-V"])?;
    let major = text.split_ascii_whitespace().last().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    Ok(major.is_none_or(|major| major >= 6))
}

fn expect_identity(platform: &dyn Platform, node: &Path, expected: uuid::Uuid, program: Program) -> Result<()> {
    let found = identity(platform, node)?;
    match found == Some(expected) {
        true => Ok(()),
        false => Err(Error::XfsIdentity { node: node.to_owned(), expected, found, program }),
    }
}

/// Gives the XFS on a device the UUID of a filesystem. The UUID cannot be changed while the log has
/// to be replayed. That is the case if the origin was mounted (`is_dirty`), or was mounted when the
/// machine or the pool went down. The XFS is then mounted for a moment, which replays the log.
///
/// `xfs_db` would write the whole log anew, hundreds of megabytes of it, and so take as much space
/// of the pool for every snapshot. It runs only for an XFS that is not understood here.
///
/// # Errors
/// When the XFS has another UUID afterwards, or its UUID cannot be read or written.
pub(super) fn identify(platform: &dyn Platform, device: &str, id: FsUuid, is_dirty: bool) -> Result<()> {
    let node = platform.dm_node(device);
    let uuid = uuid::Uuid::from_bytes(*id.as_bytes());
    let by_program = || {
        log::warn!("{}: xfs_db writes the UUID, because the daemon does not understand this XFS", node.display());
        let command = format!("uuid {}", id.hyphenated());
        platform.run(Program::XfsDb, &["-x", "-c", &command, &node.to_string_lossy()])?;
        expect_identity(platform, &node, uuid, Program::XfsDb)
    };
    if !is_dirty {
        match write_identity(platform, &node, uuid) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Obstacle::NotUnderstood)) if by_program().is_ok() => return Ok(()),
            Ok(Err(_)) => {}
            // A daemon that was killed may have left it mounted for the replay.
            Err(error) if error.is_busy() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let at = replayed_at(id);
    // Unmount even after a mount that reports a failure. A program that examines new mounts may
    // keep this one busy for a moment.
    let unmount = || platform.unmount(&at).or_else(|_| platform.unmount(&at));
    let mounted = mended(|| platform.mount(&node, &at, "nouuid"), || drop(unmount()));
    let unmounted = mended(unmount, || drop(unmount()));
    mounted.and(unmounted)?;
    write_identity(platform, &node, uuid)?.or_else(|_| by_program())
}

/// Why the UUID of an XFS cannot be written here. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    /// The log has to be replayed first.
    NeedsReplay,
    /// This is no XFS whose identity is understood.
    NotUnderstood,
}

/// Bytes and their offset on the device.
type DeviceBytes = (u64, Vec<u8>);

fn write_identity(
    platform: &dyn Platform,
    node: &Path,
    uuid: uuid::Uuid,
) -> platform::Result<std::result::Result<(), Obstacle>> {
    // Keeps out mounts and other exclusive openers.
    let _hold = platform.hold(node)?;
    match plan_identity(platform, node, uuid)? {
        Ok(stages) => stages.iter().try_for_each(|pieces| write_sectors(platform, node, pieces)).map(Ok),
        Err(obstacle) => Ok(Err(obstacle)),
    }
}

/// Plans to write the UUID into the superblocks and the last record of the log. Returns what to
/// write in which stages, each of which becomes durable before the next one begins; none if the XFS
/// has the UUID.
///
/// After each stage the XFS can be mounted, be changed by `xfs_db`, and be given the UUID by another
/// plan. The record first gets the nil UUID, which goes with any superblock; then the secondary
/// superblocks are written, which a mount does not read; then the primary one; then the record
/// again. A crash before the last stage leaves the nil UUID, for which the kernel logs "null uuid in
/// log" once.
fn plan_identity(
    platform: &dyn Platform,
    node: &Path,
    uuid: uuid::Uuid,
) -> platform::Result<std::result::Result<Vec<Vec<DeviceBytes>>, Obstacle>> {
    let Some(identity) = XfsIdentity::read(&platform.read(node, 0, SUPERBLOCK_BYTES_MAX)?) else {
        return Ok(Err(Obstacle::NotUnderstood));
    };
    let record = match identity.log_end(|offset, length| platform.read(node, offset, length))? {
        LogEnd::Unmounted(record) => record,
        LogEnd::Dirty => return Ok(Err(Obstacle::NeedsReplay)),
        LogEnd::Unknown => return Ok(Err(Obstacle::NotUnderstood)),
    };
    let mut superblocks = Vec::new();
    for offset in identity.superblocks() {
        let superblock = platform.read(node, offset, identity.superblock_bytes)?;
        match superblock_with(&superblock, uuid) {
            Some(new) if new == superblock => {}
            Some(new) => superblocks.push((offset, new)),
            None => return Ok(Err(Obstacle::NotUnderstood)),
        }
    }
    let (Some(without), Some(with)) = (record.header_with(uuid::Uuid::nil()), record.header_with(uuid)) else {
        return Ok(Err(Obstacle::NotUnderstood));
    };
    let changes = !superblocks.is_empty();
    let before = changes.then_some((record.at, without));
    let after = (changes || !record.has_header(&with)).then_some((record.at, with));
    let (primary, secondary) = superblocks.into_iter().partition(|(offset, _)| *offset == 0);
    let stages = [before.into_iter().collect(), secondary, primary, after.into_iter().collect::<Vec<_>>()];
    Ok(Ok(stages.into_iter().filter(|pieces| !pieces.is_empty()).collect()))
}

/// Writes these pieces, each within whole logical sectors of the device, and makes them durable.
fn write_sectors(platform: &dyn Platform, node: &Path, pieces: &[DeviceBytes]) -> platform::Result<()> {
    let sector = u64::from(platform.geometry(node)?.logical);
    let mut whole = Vec::new();
    for (offset, bytes) in pieces {
        let lead = (offset % sector) as usize;
        let length = (lead + bytes.len()).next_multiple_of(sector as usize);
        let mut around = match length == bytes.len() {
            true => bytes.clone(),
            false => platform.read(node, offset - lead as u64, length)?,
        };
        around[lead..lead + bytes.len()].copy_from_slice(bytes);
        whole.push((offset - lead as u64, around));
    }
    let steps = whole.iter().map(|(offset, bytes)| WriteStep::Sectors(*offset, bytes)).chain([WriteStep::Flush]);
    platform.write(node, &steps.collect::<Vec<_>>())
}

/// The number of data blocks of the thin pool that [`identify`] may take for a device with shared
/// blocks: one for each piece that it writes, or the whole log if `xfs_db` has to write it. Zero if
/// the XFS already has the UUID. The blocks that a replay of the log will write cannot be predicted.
///
/// # Errors
/// When the superblock cannot be read.
pub(super) fn blocks_to_identify(platform: &dyn Platform, node: &Path, id: FsUuid) -> platform::Result<DataBlocks> {
    let uuid = uuid::Uuid::from_bytes(*id.as_bytes());
    let superblock = platform.read(node, 0, SUPERBLOCK_BYTES)?;
    if xfs_uuid(&superblock) == Some(uuid) {
        return Ok(DataBlocks(0));
    }
    // If something cannot be read, the larger estimate holds.
    if let Ok(Ok(stages)) = plan_identity(platform, node, uuid) {
        let places: BTreeSet<u64> = stages.iter().flatten().map(|(offset, _)| *offset).collect();
        return Ok(DataBlocks(places.len() as u64));
    }
    let Some(parts) = xfs_parts(&superblock) else { return Ok(DataBlocks(0)) };
    // The log need not begin at the start of a block.
    let log = parts.log.sectors().map_or(0, |log| log.0.div_ceil(sizes::DATA_BLOCK.0)).saturating_add(1);
    Ok(DataBlocks(log.saturating_add(u64::from(parts.groups))))
}

/// Where the XFS of a filesystem is mounted for the replay of its log.
fn replayed_at(id: FsUuid) -> String {
    format!("stratis_mp_{}", id.simple())
}

/// Unmounts the XFS of a filesystem from the place of the replay, where a daemon that was killed
/// may have left it mounted.
///
/// # Errors
/// When the XFS is busy.
pub(super) fn leave(platform: &dyn Platform, id: FsUuid) -> platform::Result<()> {
    platform.unmount(&replayed_at(id))
}

/// Extends a mounted XFS to the size of its device. `before` is the size that the kernel reported;
/// the device is larger by `growth`.
///
/// # Errors
/// When the kernel refuses, or the XFS did not grow.
pub(super) fn extend(platform: &dyn Platform, mount: &Mount, before: Bytes, growth: Sectors) -> Result<()> {
    platform.grow_xfs(mount)?;
    match platform.usage(mount) {
        Ok(now) if now.total > before || growth < GROWTH_MIN => Ok(()),
        Ok(_) => Err(Error::NotExtended { mount_point: mount.shown() }),
        // The XFS was unmounted meanwhile. The next check that finds it mounted compares the sizes
        // again.
        Err(platform::Error::OtherMount { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
