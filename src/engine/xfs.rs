//! The XFS on a filesystem's thin device or on the metadata volume: how it is made, given an
//! identity, and extended (`docs/spec/engine/storage-stack.md` §9.1, 9.3, 9.5).
//!
//! The exit status of a program does not show whether it did its work: `xfs_db` leaves the UUID
//! unchanged while the log needs a replay, reports that on standard output, and exits with status
//! 0. So a change counts only once it is visible on the device, or in what the kernel reports about
//! the mounted file system.

use std::path::Path;

use crate::{
    base::{
        ids::FsUuid,
        units::{Bytes, DataBlocks, Sectors},
    },
    engine::{
        error::{Error, Result},
        metadata::xfs_parts,
        plan::sizes,
        undo::mended,
    },
    platform::{self, Mount, Platform, Program},
};

/// Magic and UUID in the superblock, at the beginning of the device.
const MAGIC: &[u8] = b"XFSB";
const UUID_AT: usize = 32;
const SUPERBLOCK_BYTES: usize = 512;

/// The kernel does not use a remainder of a device that is smaller than the smallest allocation
/// group.
const GROWTH_MIN: Sectors = sizes::DATA_BLOCK;

/// The UUID of the XFS on a device; `None`: there is no XFS.
///
/// # Errors
/// When the device cannot be read.
pub(super) fn identity(platform: &dyn Platform, node: &Path) -> platform::Result<Option<uuid::Uuid>> {
    let superblock = platform.read(node, 0, SUPERBLOCK_BYTES)?;
    let uuid = superblock.get(UUID_AT..UUID_AT + size_of::<uuid::Uuid>());
    let uuid = uuid.and_then(|bytes| uuid::Uuid::from_slice(bytes).ok());
    Ok(uuid.filter(|_| superblock.starts_with(MAGIC)))
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
pub(super) fn make(platform: &dyn Platform, node: &Path, uuid: uuid::Uuid, discard: Discard) -> Result<()> {
    let text = node.to_string_lossy();
    let with_uuid = format!("uuid={}", uuid.hyphenated());
    let mut arguments = vec!["-f", "-q", &text, "-m", &with_uuid];
    if discard == Discard::No {
        arguments.push("-K");
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
/// # Errors
/// When the XFS has another UUID afterwards, or its UUID cannot be read.
pub(super) fn identify(platform: &dyn Platform, device: &str, id: FsUuid, is_dirty: bool) -> Result<()> {
    let node = platform.dm_node(device);
    let uuid = uuid::Uuid::from_bytes(*id.as_bytes());
    let write_uuid = || {
        let command = format!("uuid {}", id.hyphenated());
        platform.run(Program::XfsDb, &["-x", "-c", &command, &node.to_string_lossy()])?;
        expect_identity(platform, &node, uuid, Program::XfsDb)
    };
    if !is_dirty && write_uuid().is_ok() {
        return Ok(());
    }
    let at = replayed_at(id);
    // Unmount even after a mount that reports a failure. A program that examines new mounts may
    // keep this one busy for a moment.
    let unmount = || platform.unmount(&at).or_else(|_| platform.unmount(&at));
    let mounted = mended(|| platform.mount(&node, &at, "nouuid"), || drop(unmount()));
    let unmounted = mended(unmount, || drop(unmount()));
    mounted.and(unmounted)?;
    write_uuid()
}

/// The number of data blocks of the thin pool that [`identify`] may take for a device with shared
/// blocks: `xfs_db` clears the log and writes the header of each allocation group. Zero if the XFS
/// already has the UUID. The blocks that a replay of the log will write cannot be predicted.
///
/// # Errors
/// When the device cannot be read.
pub(super) fn blocks_to_identify(platform: &dyn Platform, node: &Path, id: FsUuid) -> platform::Result<DataBlocks> {
    if identity(platform, node)? == Some(uuid::Uuid::from_bytes(*id.as_bytes())) {
        return Ok(DataBlocks(0));
    }
    let Some(parts) = xfs_parts(&platform.read(node, 0, SUPERBLOCK_BYTES)?) else { return Ok(DataBlocks(0)) };
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
