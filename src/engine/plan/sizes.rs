//! Sizes of the parts of the stack (`docs/spec/engine/storage-stack.md` §4, 7, 9.2).

pub use crate::engine::metadata::pool::{CRYPT_RESERVATION, DATA_BLOCK, INTEGRITY_UNIT};
use crate::{
    base::units::{Bytes, DataBlocks, SECTOR, Sectors},
    engine::metadata::{IntegritySpec, JOURNAL_UNIT},
};

/// Size of a metadata block of a thin pool.
pub const METADATA_BLOCK: Sectors = Sectors(8);
/// The most by which a thin pool's data grows at once.
pub const DATA_STEP: DataBlocks = DataBlocks(51_200);
/// A thin pool's data grows when it has fewer free data blocks than this.
pub const DATA_LOW_WATER: DataBlocks = DataBlocks(15_360);
/// Size of the metadata volume.
pub const MDV: Sectors = Sectors(1_048_576);
/// The default limit on the number of filesystems.
pub const FS_LIMIT: u64 = 100;
/// The size that is zeroed at the start of a new metadata device of a thin pool or cache.
pub const METADATA_ZEROED: Sectors = Sectors(8);
/// The largest metadata device that a thin pool can use.
pub const THIN_METADATA_MAX: Sectors = Sectors(33_292_288);
/// Size of a cache's metadata device.
pub const CACHE_METADATA: Sectors = Sectors(1_048_576);
/// The most space that a cache may have for its blocks: 32 TiB.
pub const CACHE_MAX: Sectors = Sectors(68_719_476_736);
/// The default size of a filesystem.
pub const FILESYSTEM_DEFAULT: Sectors = Sectors(2_147_483_648);
/// Largest size of a block device, and so of a filesystem: the kernel counts bytes in 63 bits. XFS
/// has the same limit.
pub const DEVICE_MAX: Sectors = Sectors((1 << 54) - 1);
/// Smallest filesystem.
pub const FILESYSTEM_MIN: Sectors = Sectors(1_048_576);
/// Smallest device.
pub const DEVICE_MIN: Sectors = Sectors(2_097_152);

/// What the XFS of a new filesystem gets by request; `None`: what `mkfs.xfs` chooses is no larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XfsParameters {
    /// Size of the log.
    pub log: Option<Bytes>,
    /// Number of allocation groups.
    pub groups: Option<u64>,
}

/// The log and the groups of a new filesystem's XFS, for a pool with this usable size.
///
/// The log is written when the XFS is made, and so is a data block of the thin pool for each
/// allocation group; a snapshot writes the latter again. `mkfs.xfs` makes the log a 2048th of the
/// filesystem and takes the optimal I/O size of a thin device for that of a disk array, which gets
/// up to 32 groups. But the size of a filesystem says little about how much it will hold: it is
/// often larger than the pool. So the log is a 2048th of the pool, and only large pools get more
/// than eight groups. Neither the log nor the size of a group changes when pool or filesystem grow.
pub fn xfs_parameters(filesystem: Sectors, usable: Sectors) -> XfsParameters {
    const PART: u64 = 2048;
    // The smallest log that mkfs.xfs makes by default, and the largest one.
    const LOG_MIN: Sectors = Sectors(64 << 11);
    const LOG_MAX: Sectors = Sectors(2038 << 11);
    // mkfs.xfs makes 8 groups on devices below 8 GiB, and 16 to 32 on larger ones; more only if a
    // group would otherwise be too large.
    const GROUPS: std::ops::Range<u64> = 8..32;
    const FEW_GROUPS: Sectors = Sectors(8 << 21);
    // Half of what a group may have: mkfs.xfs rounds the size of a group.
    const GROUP_MAX: Sectors = Sectors(1 << 30);
    const LARGE_POOL: Sectors = Sectors(1 << 31);
    let log = Sectors(usable.0 / PART / DATA_BLOCK.0 * DATA_BLOCK.0).max(LOG_MIN);
    let default = Sectors(filesystem.0 / PART).clamp(LOG_MIN, LOG_MAX);
    let groups = (filesystem.0 / GROUP_MAX.0 + 1).max(GROUPS.start);
    XfsParameters {
        log: (log < default).then(|| log.bytes()),
        groups: (filesystem > FEW_GROUPS && usable < LARGE_POOL && GROUPS.contains(&groups)).then_some(groups),
    }
}

/// Why a size is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum SizeError {
    #[error("the integrity block size of {0} bytes is not a power of two from 512 up; 4096 is usual")]
    IntegrityBlock(u64),
    #[error("the integrity journal of {} is not a multiple of {}; round it", .0.readable(), JOURNAL_UNIT.readable())]
    Journal(Sectors),
    #[error("the sizes asked for are larger than any device can be")]
    Overflow,
    #[error("thin_metadata_size printed {0:?}, which is not a number of sectors")]
    ThinMetadataSize(String),
    #[error("the pool's {} are too small for a thin pool; use larger or more devices", .usable.readable())]
    TooSmall { usable: Sectors },
    #[error("a size of {} is not a multiple of the pool's logical sector size of {} bytes; round it", .size.bytes(), .sector.bytes().0)]
    PartOfPoolSector { size: Sectors, sector: Sectors },
    #[error("a filesystem of {} is too small; it must have at least {}", .0.readable(), FILESYSTEM_MIN.readable())]
    FilesystemTooSmall(Sectors),
    #[error(
        "a filesystem of {} is larger than a block device can be, which is less than 8 EiB; choose a smaller size",
        .0.readable()
    )]
    FilesystemTooLarge(Sectors),
    #[error("the size limit of {} is smaller than the filesystem, which has {}", .limit.readable(), .size.readable())]
    LimitBelowSize { limit: Sectors, size: Sectors },
    #[error("the cache would have {}, but {} is the most; use smaller or fewer devices", .0.readable(), CACHE_MAX.readable())]
    CacheTooLarge(Sectors),
}

/// Checks the reservation for integrity data that a user asks for.
///
/// # Errors
/// If the journal size or the block size does not have the granularity that dm-integrity needs.
pub fn check_integrity_spec(spec: &IntegritySpec) -> Result<(), SizeError> {
    if !spec.journal_size.bytes().0.is_multiple_of(JOURNAL_UNIT.0) {
        return Err(SizeError::Journal(spec.journal_size));
    }
    if spec.block_size < SECTOR || !spec.block_size.is_power_of_two() {
        return Err(SizeError::IntegrityBlock(spec.block_size));
    }
    Ok(())
}

/// The space to reserve for integrity data at the end of a device of this size: superblock,
/// journal, and the tags of all blocks, in multiples of 4 KiB.
///
/// # Errors
/// If the block size is zero, or the sum is larger than any device.
pub fn integrity_reservation(device: Sectors, spec: &IntegritySpec) -> Result<Sectors, SizeError> {
    let superblock = if spec.allocate_superblock { INTEGRITY_UNIT } else { Sectors::ZERO };
    let blocks =
        device.bytes().0.checked_div(u128::from(spec.block_size)).ok_or(SizeError::IntegrityBlock(spec.block_size))?;
    let tags = blocks.checked_mul(u128::from(spec.tag_spec.bytes())).map(Bytes);
    tags.and_then(|tags| tags.round_up(INTEGRITY_UNIT.bytes())?.sectors())
        .and_then(|tags| Sectors::checked_sum([superblock, spec.journal_size, tags]))
        .ok_or(SizeError::Overflow)
}

/// Arguments that make `thin_metadata_size` compute the need of a pool of this size with this many
/// thin devices.
pub fn thin_metadata_size_arguments(pool: Sectors, filesystems: u64) -> [String; 7] {
    let block = format!("{}b", DATA_BLOCK.bytes().0);
    let size = format!("{}b", pool.bytes().0);
    ["-b".to_owned(), block, "-s".to_owned(), size, "-m".to_owned(), filesystems.to_string(), "-n".to_owned()]
}

/// The size of a thin pool's metadata device, from the output of `thin_metadata_size`.
///
/// # Errors
/// If the output is not a number.
pub fn thin_metadata(printed: &str) -> Result<Sectors, SizeError> {
    let refused = || SizeError::ThinMetadataSize(printed.chars().take(80).collect());
    let sectors: u64 = printed.trim().parse().map_err(|_| refused())?;
    // The tool counts mappings once. The factor is that of §7.2.
    let wanted = Sectors(sectors).checked_mul(8).and_then(|wanted| wanted.round_up(DATA_BLOCK));
    Ok(wanted.map_or(THIN_METADATA_MAX, |wanted| wanted.min(THIN_METADATA_MAX)))
}

/// An upper bound for the metadata device of a thin pool of this size with this many thin devices:
/// about twice the output of `thin_metadata_size`, which is half a byte for each kibibyte and a
/// block for each thin device.
pub fn thin_metadata_at_most(pool: Sectors, filesystems: u64) -> Sectors {
    let mappings = blocks(pool).0 / 8;
    let devices = filesystems.saturating_mul(METADATA_BLOCK.0 * 2);
    let said = Sectors(mappings.saturating_add(devices).saturating_add(1024));
    let wanted = said.checked_mul(8).and_then(|wanted| wanted.round_up(DATA_BLOCK));
    wanted.map_or(THIN_METADATA_MAX, |wanted| wanted.min(THIN_METADATA_MAX))
}

/// Sizes of the parts of a new thin pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initial {
    /// Size of the thin metadata.
    pub meta: Sectors,
    /// Size of the spare thin metadata, the same.
    pub spare: Sectors,
    /// Size of the thin data, in whole blocks.
    pub data: Sectors,
    /// Size of the metadata volume.
    pub mdv: Sectors,
}

impl Initial {
    /// The sizes to request from the backstore, in this order.
    pub fn request(&self) -> [Sectors; 4] {
        [self.meta, self.spare, self.data, self.mdv]
    }
}

/// Sizes of the parts of a new thin pool with this usable space and thin metadata of this size.
///
/// # Errors
/// [`SizeError::TooSmall`] if no space would be left for data.
pub fn initial(usable: Sectors, meta: Sectors) -> Result<Initial, SizeError> {
    let data = room(usable, meta).min(sectors(DATA_STEP)).round_down(DATA_BLOCK);
    if data == Sectors::ZERO {
        return Err(SizeError::TooSmall { usable });
    }
    Ok(Initial { meta, spare: meta, data, mdv: MDV })
}

/// The space left for data besides the thin metadata, the spare and the metadata volume.
pub fn room(usable: Sectors, meta: Sectors) -> Sectors {
    usable.saturating_sub(MDV).saturating_sub(meta).saturating_sub(meta)
}

/// The low-water mark of a new thin pool with data of this size.
pub fn low_water(data: Sectors) -> DataBlocks {
    DATA_LOW_WATER.min(DataBlocks(blocks(data).0 / 2))
}

/// Growth of a thin pool's data when this much space is available; `None` if that is less than one
/// block.
pub fn data_growth(available: Sectors) -> Option<Sectors> {
    let growth = available.round_down(DATA_BLOCK).min(sectors(DATA_STEP));
    (growth > Sectors::ZERO).then_some(growth)
}

/// The number of whole data blocks in a size.
pub fn blocks(size: Sectors) -> DataBlocks {
    DataBlocks(size.0 / DATA_BLOCK.0)
}

/// The size of data blocks. Saturates at the largest size.
pub fn sectors(blocks: DataBlocks) -> Sectors {
    Sectors(blocks.0.saturating_mul(DATA_BLOCK.0))
}

/// Checks the size and size limit of a new filesystem in a pool with this logical sector size.
///
/// # Errors
/// If either is too small or not a multiple of the sector size, the size is too large, or the limit
/// is below the size.
pub fn check_new_filesystem(size: Sectors, limit: Option<Sectors>, sector: Sectors) -> Result<(), SizeError> {
    check_filesystem(size)?;
    check_sector(size, sector)?;
    check_limit(size, limit, sector)
}

/// The kernel accepts no table whose size is not a multiple of the logical sector size of the
/// device below.
fn check_sector(size: Sectors, sector: Sectors) -> Result<(), SizeError> {
    if size.round_down(sector) == size { Ok(()) } else { Err(SizeError::PartOfPoolSector { size, sector }) }
}

fn check_filesystem(size: Sectors) -> Result<(), SizeError> {
    match size {
        small if small < FILESYSTEM_MIN => Err(SizeError::FilesystemTooSmall(small)),
        large if large > DEVICE_MAX => Err(SizeError::FilesystemTooLarge(large)),
        _ => Ok(()),
    }
}

/// Checks a size limit for a filesystem of this size in a pool with this logical sector size. A
/// limit larger than any device has no effect.
///
/// # Errors
/// If the limit is too small for any filesystem, below the size of this one, or not a multiple of
/// the sector size.
pub fn check_limit(size: Sectors, limit: Option<Sectors>, sector: Sectors) -> Result<(), SizeError> {
    match limit {
        Some(limit) if limit < FILESYSTEM_MIN => Err(SizeError::FilesystemTooSmall(limit)),
        Some(limit) if limit < size => Err(SizeError::LimitBelowSize { limit, size }),
        Some(limit) => check_sector(limit, sector),
        None => Ok(()),
    }
}

/// Checks the space of a cache for its blocks.
///
/// # Errors
/// If there is more than [`CACHE_MAX`].
pub fn check_cache(blocks: Sectors) -> Result<(), SizeError> {
    if blocks <= CACHE_MAX { Ok(()) } else { Err(SizeError::CacheTooLarge(blocks)) }
}

/// The largest number of filesystems whose records fit in a metadata volume of this size.
pub fn fs_limit_max(mdv: Sectors) -> u64 {
    mdv.0 / METADATA_BLOCK.0
}

#[cfg(test)]
#[path = "sizes_tests.rs"]
mod tests;
