//! The identity of an XFS on its device: the UUID in the superblock of each allocation group (AG),
//! and in the header of the last record of the log. The layout is that of the XFS on-disk format,
//! version 5 ("XFS Algorithms & Data Structures", chapters "Superblocks" and "Journaling Log").
//!
//! The kernel, `xfs_db` and `xfs_repair` accept a clean log if the header of its last record, the
//! unmount record, carries the UUID of the superblock, or the nil UUID, as IRIX left it. Earlier
//! records of a clean log are neither replayed nor compared. `xfs_db` writes the whole log anew when
//! it changes the UUID; rewriting the header of the unmount record is enough.
//!
//! This module encodes and decodes; it reads and writes no device.

use uuid::Uuid;

use super::xfs::{sb, u16_at, u32_at, u64_at, uuid_at, xfs_size, xfs_uuid};

/// Basic block (BB), the unit of the log's block numbers, in bytes.
const LOG_BLOCK: usize = 512;
const RECORD_MAGIC: u32 = 0xfeed_babe;
/// Largest sector of an XFS, and so the largest superblock.
pub const SUPERBLOCK_BYTES_MAX: usize = 4096;

/// Offsets in the header of a log record.
mod record {
    pub(super) const CYCLE: usize = 4;
    pub(super) const VERSION: usize = 8;
    pub(super) const LENGTH: usize = 12;
    pub(super) const LSN: usize = 16;
    pub(super) const CRC: usize = 32;
    pub(super) const OPERATIONS: usize = 40;
    pub(super) const UUID: usize = 304;
    pub(super) const SIZE: usize = 320;
    /// What the checksum covers: `struct xlog_rec_header` as 64-bit kernels have it. A log of a
    /// 32-bit kernel, which has 324 bytes, is not understood.
    pub(super) const BYTES: usize = 328;
    /// The same of each extended header (`struct xlog_rec_ext_header`).
    pub(super) const EXTENDED_BYTES: usize = 260;
}

/// The low bits of the version (`XFS_SB_VERSION_NUMBITS`): the number of the format.
const FORMAT: u16 = 0xf;
const FORMAT_5: u16 = 5;
/// Incompatible feature: metadata carries another UUID than the superblock.
const META_UUID: u32 = 1 << 2;
/// Incompatible features that do not change where the UUID is: directory entries with types, sparse
/// inodes, [`META_UUID`], large timestamps and extent counters, exchanged ranges, parent pointers.
/// The one missing between them says that `xfs_repair` has to run first.
const KNOWN_FEATURES: u32 = 0b1110_1111;

/// Bytes of a record that one header describes (`XLOG_HEADER_CYCLE_SIZE`).
const HEADER_COVERS: u32 = 32 << 10;
/// Largest buffer that the kernel writes as one record, in bytes.
const RECORD_BYTES_MAX: u32 = 256 << 10;
/// The kernel writes the superblock shortly before it ends a log. If more records follow, the end
/// of the log is not searched any further.
const RECORDS_MAX: usize = 64;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(at..at + value.len())?.copy_from_slice(value);
    Some(())
}

/// CRC32C of these bytes with the field of the checksum as zeros.
fn checksum(bytes: &[u8], field: usize) -> Option<u32> {
    let crc = crc32c::crc32c(bytes.get(..field)?);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    Some(crc32c::crc32c_append(crc, bytes.get(field + 4..)?))
}

fn stored_checksum(bytes: &[u8], field: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(field..field + 4)?.try_into().ok()?))
}

/// A place in the log: the cycle, which counts the passes over the log, and the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lsn {
    cycle: u32,
    block: u32,
}

impl Lsn {
    fn from_bits(bits: u64) -> Lsn {
        Lsn { cycle: (bits >> 32) as u32, block: bits as u32 }
    }
}

/// Where the parts of an XFS lie that carry its UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XfsIdentity {
    /// The UUID.
    pub uuid: Uuid,
    /// Size of a superblock in bytes.
    pub superblock_bytes: usize,
    group_bytes: u64,
    groups: u32,
    /// Offset of the log on the device, in bytes.
    log: u64,
    log_blocks: u32,
    lsn: Lsn,
}

impl XfsIdentity {
    /// Reads the superblock at the beginning of a device, of [`SUPERBLOCK_BYTES_MAX`] bytes. `None`
    /// if it is none, or of an XFS whose identity cannot be written here: its format is not version
    /// 5, it has features that are not known, a realtime section, or its log on another device, or
    /// it has to be repaired.
    pub fn read(start: &[u8]) -> Option<XfsIdentity> {
        let superblock = valid(start)?;
        xfs_size(superblock)?;
        let block = u64::from(u32_at(superblock, sb::BLOCK_SIZE)?);
        let log_start = u64_at(superblock, sb::LOG_START)?;
        let group_blocks = u64::from(u32_at(superblock, sb::GROUP_BLOCKS)?);
        let groups = u32_at(superblock, sb::GROUPS)?;
        let blocks = u64_at(superblock, sb::BLOCKS)?;
        let group_log = u32::from(*superblock.get(sb::GROUP_LOG)?);
        let in_group = log_start & 1u64.checked_shl(group_log)?.checked_sub(1)?;
        let group = log_start.checked_shr(group_log)?;
        let log_blocks = u64::from(u32_at(superblock, sb::LOG_BLOCKS)?);
        let is_consistent = log_start != 0
            && log_blocks != 0
            && group < u64::from(groups)
            && in_group.checked_add(log_blocks)? <= group_blocks
            && blocks.div_ceil(group_blocks.max(1)) == u64::from(groups);
        if !is_consistent {
            return None;
        }
        Some(XfsIdentity {
            uuid: uuid_at(superblock, sb::UUID)?,
            superblock_bytes: superblock.len(),
            group_bytes: group_blocks.checked_mul(block)?,
            groups,
            log: group.checked_mul(group_blocks)?.checked_add(in_group)?.checked_mul(block)?,
            log_blocks: u32::try_from(log_blocks.checked_mul(block)? / LOG_BLOCK as u64).ok()?,
            lsn: Lsn::from_bits(u64_at(superblock, sb::LSN)?),
        })
    }

    /// Offsets of the superblocks on the device, in bytes: the primary one, and then the secondary
    /// ones.
    pub fn superblocks(&self) -> impl DoubleEndedIterator<Item = u64> + use<> {
        let group_bytes = self.group_bytes;
        (0..u64::from(self.groups)).map(move |group| group.saturating_mul(group_bytes))
    }

    /// How the log ends. `read` reads from the device: offset and length in bytes.
    ///
    /// # Errors
    /// When `read` fails.
    pub fn log_end<E>(&self, mut read: impl FnMut(u64, usize) -> Result<Vec<u8>, E>) -> Result<LogEnd, E> {
        // The superblock names the record that wrote it last. After `mkfs.xfs` and `xfs_db`, the
        // only record is at the beginning.
        for (block, cycle) in [(self.lsn.block, Some(self.lsn.cycle)), (0, None)] {
            let found = self.end_behind(block, cycle, &mut read)?;
            if found != LogEnd::Unknown {
                return Ok(found);
            }
        }
        Ok(LogEnd::Unknown)
    }

    /// Follows the records from the one at a block to the last one.
    fn end_behind<E>(
        &self,
        block: u32,
        cycle: Option<u32>,
        read: &mut impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<LogEnd, E> {
        if block >= self.log_blocks {
            return Ok(LogEnd::Unknown);
        }
        let mut header = self.read_blocks(block, 1, read)?;
        let Some(mut known) = RecordHeader::read(&header, block) else { return Ok(LogEnd::Unknown) };
        if cycle.is_some_and(|cycle| cycle != known.cycle) {
            return Ok(LogEnd::Unknown);
        }
        for _ in 0..RECORDS_MAX {
            let Some((next, wraps)) = self.behind(known) else { return Ok(LogEnd::Unknown) };
            let cycle = known.cycle.wrapping_add(u32::from(wraps));
            let following = self.read_blocks(next, 1, read)?;
            match RecordHeader::read(&following, next) {
                Some(found) if found.cycle == cycle => (header, known) = (following, found),
                // What follows the last record is of the cycle before, or was never written.
                _ if [Some(cycle.wrapping_sub(1)), Some(0)].contains(&cycle_of(&following)) => {
                    return self.judge(known, header, read);
                }
                _ => break,
            }
        }
        Ok(LogEnd::Unknown)
    }

    /// The block behind a record, and whether it lies in the next cycle. `None` if no
    /// record can be that long.
    fn behind(&self, record: RecordHeader) -> Option<(u32, bool)> {
        let next = record.block.checked_add(record.headers())?.checked_add(record.payload_blocks())?;
        let wraps = next >= self.log_blocks;
        let next = if wraps { next - self.log_blocks } else { next };
        (next < self.log_blocks).then_some((next, wraps))
    }

    /// Whether the last record is valid and says that the XFS was unmounted.
    fn judge<E>(
        &self,
        known: RecordHeader,
        header: Vec<u8>,
        read: &mut impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<LogEnd, E> {
        let rest = known.headers() - 1 + known.payload_blocks();
        let rest = self.read_blocks((known.block + 1) % self.log_blocks, rest, read)?;
        let at = self.log + u64::from(known.block) * LOG_BLOCK as u64;
        let record = UnmountRecord { at, header, rest, known };
        Ok(match (record.is_valid(), record.is_unmount()) {
            (true, true) => LogEnd::Unmounted(record),
            (true, false) => LogEnd::Dirty,
            (false, _) => LogEnd::Unknown,
        })
    }

    /// Reads blocks of the log, which continues at its beginning.
    fn read_blocks<E>(
        &self,
        block: u32,
        count: u32,
        read: &mut impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let before_end = count.min(self.log_blocks - block);
        let mut bytes = Vec::new();
        for (block, count) in [(block, before_end), (0, count - before_end)].into_iter().filter(|(_, count)| *count > 0)
        {
            let at = self.log + u64::from(block) * LOG_BLOCK as u64;
            bytes.extend(read(at, count as usize * LOG_BLOCK)?);
        }
        Ok(bytes)
    }
}

/// The superblock in these bytes, which may be followed by others; `None` unless it is valid, of
/// format 5, and of an XFS with no other place for its UUID.
fn valid(bytes: &[u8]) -> Option<&[u8]> {
    xfs_uuid(bytes)?;
    if u16_at(bytes, sb::VERSION)? & FORMAT != FORMAT_5 {
        return None;
    }
    let size = usize::from(u16_at(bytes, sb::SECTOR_SIZE)?);
    let superblock = bytes.get(..size).filter(|_| size >= sb::BYTES)?;
    let is_sound = checksum(superblock, sb::CRC)? == stored_checksum(superblock, sb::CRC)?
        && u32_at(superblock, sb::INCOMPATIBLE)? & !KNOWN_FEATURES == 0
        && u64_at(superblock, sb::REALTIME_BLOCKS)? == 0;
    is_sound.then_some(superblock)
}

/// A superblock with another UUID; `None` if [`XfsIdentity::read`] would not accept it. All other metadata
/// keeps carrying the UUID of the format, which the superblock then names.
pub fn superblock_with(superblock: &[u8], uuid: Uuid) -> Option<Vec<u8>> {
    let mut new = valid(superblock)?.to_vec();
    let incompatible = u32_at(&new, sb::INCOMPATIBLE)?;
    let of_metadata = uuid_at(&new, if incompatible & META_UUID == 0 { sb::UUID } else { sb::META_UUID })?;
    let (incompatible, meta_uuid) = match of_metadata == uuid {
        true => (incompatible & !META_UUID, Uuid::nil()),
        false => (incompatible | META_UUID, of_metadata),
    };
    put(&mut new, sb::INCOMPATIBLE, &incompatible.to_be_bytes())?;
    put(&mut new, sb::META_UUID, meta_uuid.as_bytes())?;
    put(&mut new, sb::UUID, uuid.as_bytes())?;
    let crc = checksum(&new, sb::CRC)?;
    put(&mut new, sb::CRC, &crc.to_le_bytes())?;
    Some(new)
}

/// How the log of an XFS ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEnd {
    /// The XFS was unmounted: the log holds nothing that has to be replayed.
    Unmounted(UnmountRecord),
    /// The log has to be replayed.
    Dirty,
    /// The log does not show it where it was looked for.
    Unknown,
}

/// What the header of a log record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RecordHeader {
    block: u32,
    cycle: u32,
    /// Length of the payload in bytes.
    length: u32,
    /// Size of the buffer that the kernel wrote the record from, in bytes.
    size: u32,
    operations: u32,
}

impl RecordHeader {
    /// `None` if this is not the header of a record that was written to this block.
    fn read(bytes: &[u8], block: u32) -> Option<RecordHeader> {
        let field = |at| u32_at(bytes, at);
        let header = RecordHeader {
            block,
            cycle: field(record::CYCLE)?,
            length: field(record::LENGTH)?,
            size: field(record::SIZE)?,
            operations: field(record::OPERATIONS)?,
        };
        let is_known = field(0)? == RECORD_MAGIC
            && field(record::VERSION)? == 2
            && Lsn::from_bits(u64_at(bytes, record::LSN)?) == Lsn { cycle: header.cycle, block }
            && header.length > 0
            && header.length <= RECORD_BYTES_MAX
            && header.size <= RECORD_BYTES_MAX;
        is_known.then_some(header)
    }

    /// Number of blocks with headers.
    fn headers(self) -> u32 {
        self.size.div_ceil(HEADER_COVERS).max(1)
    }

    fn payload_blocks(self) -> u32 {
        self.length.div_ceil(LOG_BLOCK as u32)
    }
}

/// The cycle in which a block was written.
fn cycle_of(block: &[u8]) -> Option<u32> {
    // The first word of each block is the cycle, but for the header of a record.
    let first = u32_at(block, 0)?;
    if first == RECORD_MAGIC { u32_at(block, record::CYCLE) } else { Some(first) }
}

/// The record at the end of a log that says that the XFS was unmounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmountRecord {
    /// Offset of its header on the device, in bytes.
    pub at: u64,
    header: Vec<u8>,
    /// Extended headers, and the payload.
    rest: Vec<u8>,
    known: RecordHeader,
}

impl UnmountRecord {
    /// The header with another UUID. The nil UUID goes with any superblock. `None` if the header is
    /// too short, which it is not in a record that was read.
    pub fn header_with(&self, uuid: Uuid) -> Option<Vec<u8>> {
        let mut new = self.header.clone();
        put(&mut new, record::UUID, uuid.as_bytes())?;
        // mkfs.xfs and xfs_db leave h_crc zero, and the kernel accepts that.
        if stored_checksum(&new, record::CRC)? != 0 {
            let crc = self.checksum(&new)?;
            put(&mut new, record::CRC, &crc.to_le_bytes())?;
        }
        Some(new)
    }

    /// Whether this is the header that the record has.
    pub fn has_header(&self, header: &[u8]) -> bool {
        self.header == header
    }

    fn is_valid(&self) -> bool {
        let stored = stored_checksum(&self.header, record::CRC);
        stored.is_some_and(|stored| stored == 0 || self.checksum(&self.header) == Some(stored))
    }

    /// A record of one operation, which ends the log.
    fn is_unmount(&self) -> bool {
        const CLIENT_LOG: u8 = 0xaa;
        const FLAG_UNMOUNT: u8 = 0x20;
        let operation = self.payload().and_then(|payload| Some((*payload.get(8)?, *payload.get(9)?)));
        self.known.operations == 1
            && operation.is_some_and(|(client, flags)| client == CLIENT_LOG && flags & FLAG_UNMOUNT != 0)
    }

    fn payload(&self) -> Option<&[u8]> {
        self.rest.get((self.known.headers() - 1) as usize * LOG_BLOCK..)?.get(..self.known.length as usize)
    }

    /// The checksum of the record with this header.
    fn checksum(&self, header: &[u8]) -> Option<u32> {
        let mut crc = checksum(header.get(..record::BYTES)?, record::CRC)?;
        // Only the extended headers that the payload needs count, although there may be more.
        let extended = self.known.length.div_ceil(HEADER_COVERS).saturating_sub(1).min(self.known.headers() - 1);
        for header in self.rest.chunks(LOG_BLOCK).take(extended as usize) {
            crc = crc32c::crc32c_append(crc, header.get(..record::EXTENDED_BYTES)?);
        }
        Some(crc32c::crc32c_append(crc, self.payload()?))
    }
}

#[cfg(test)]
#[path = "xfs_identity_tests.rs"]
mod tests;
