//! What the superblock at the beginning of an XFS says about its size, its parts and its UUID.
//! [`xfs_identity`](super::xfs_identity) changes the UUID.

use uuid::Uuid;

use crate::base::units::{Bytes, Sectors};

/// Offsets in the superblock.
pub(super) mod sb {
    pub(in crate::engine::metadata) const BLOCK_SIZE: usize = 4;
    pub(in crate::engine::metadata) const BLOCKS: usize = 8;
    pub(in crate::engine::metadata) const REALTIME_BLOCKS: usize = 16;
    pub(in crate::engine::metadata) const UUID: usize = 32;
    pub(in crate::engine::metadata) const LOG_START: usize = 48;
    pub(in crate::engine::metadata) const GROUP_BLOCKS: usize = 84;
    pub(in crate::engine::metadata) const GROUPS: usize = 88;
    pub(in crate::engine::metadata) const LOG_BLOCKS: usize = 96;
    pub(in crate::engine::metadata) const VERSION: usize = 100;
    pub(in crate::engine::metadata) const SECTOR_SIZE: usize = 102;
    pub(in crate::engine::metadata) const GROUP_LOG: usize = 124;
    pub(in crate::engine::metadata) const INCOMPATIBLE: usize = 216;
    pub(in crate::engine::metadata) const CRC: usize = 224;
    pub(in crate::engine::metadata) const LSN: usize = 240;
    pub(in crate::engine::metadata) const META_UUID: usize = 248;
    /// The smallest superblock of format 5 that has all of these.
    pub(in crate::engine::metadata) const BYTES: usize = 264;
}

const MAGIC: &[u8] = b"XFSB";

/// How much of a superblock the functions below need: the smallest sector.
pub const SUPERBLOCK_BYTES: usize = 512;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

pub(super) fn uuid_at(bytes: &[u8], at: usize) -> Option<Uuid> {
    Uuid::from_slice(bytes.get(at..at + size_of::<Uuid>())?).ok()
}

/// The UUID of the XFS on a device, from the first sector of the device; `None` if there is no XFS.
pub fn xfs_uuid(sector: &[u8]) -> Option<Uuid> {
    uuid_at(sector, sb::UUID).filter(|_| sector.starts_with(MAGIC))
}

/// The size of the XFS on a device, from the first sector of the device; `None` if there is no XFS.
pub fn xfs_size(sector: &[u8]) -> Option<Sectors> {
    if !sector.starts_with(MAGIC) {
        return None;
    }
    let (block, blocks) = (u32_at(sector, sb::BLOCK_SIZE)?, u64_at(sector, sb::BLOCKS)?);
    let is_possible = block.is_power_of_two() && (512..=65_536).contains(&block);
    is_possible.then(|| Bytes(u128::from(block) * u128::from(blocks)).sectors()).flatten()
}

/// The parts that `xfs_db` overwrites when it writes the UUID of an XFS: the log, and the header of
/// each allocation group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XfsParts {
    /// Size of the log; zero if the log is on another device.
    pub log: Bytes,
    /// Number of allocation groups.
    pub groups: u32,
}

/// The parts of the XFS on a device, from the first sector of the device; `None` if there is no
/// XFS.
pub fn xfs_parts(sector: &[u8]) -> Option<XfsParts> {
    xfs_size(sector)?;
    let log = u128::from(u32_at(sector, sb::LOG_BLOCKS)?) * u128::from(u32_at(sector, sb::BLOCK_SIZE)?);
    Some(XfsParts { log: Bytes(log), groups: u32_at(sector, sb::GROUPS)? })
}

#[cfg(test)]
mod tests {
    use super::{XfsParts, xfs_parts, xfs_size};
    use crate::base::units::{Bytes, Sectors};

    fn superblock(magic: &[u8], block: u32, blocks: u64) -> Vec<u8> {
        [magic, &block.to_be_bytes(), &blocks.to_be_bytes(), &[0; 496]].concat()
    }

    #[test]
    fn the_size_of_an_xfs_is_read() {
        assert_eq!(xfs_size(&superblock(b"XFSB", 4096, 131_072)), Some(Sectors(1_048_576)));
        assert_eq!(xfs_size(&superblock(b"XFSB", 512, 3)), Some(Sectors(3)));
    }

    #[test]
    fn the_parts_of_an_xfs_are_read() {
        let mut sector = superblock(b"XFSB", 4096, 131_072);
        sector[88..92].copy_from_slice(&8u32.to_be_bytes());
        sector[96..100].copy_from_slice(&16_384u32.to_be_bytes());
        assert_eq!(xfs_parts(&sector), Some(XfsParts { log: Bytes(64 << 20), groups: 8 }));
        assert_eq!(xfs_parts(&superblock(b"XFSA", 4096, 131_072)), None);
        assert_eq!(xfs_parts(&sector[..99]), None);
    }

    #[test]
    fn other_contents_have_no_xfs_size() {
        let others = [
            superblock(b"XFSA", 4096, 1),
            superblock(b"XFSB", 0, 1),
            superblock(b"XFSB", 4095, 1),
            superblock(b"XFSB", 1 << 31, 1),
            superblock(b"XFSB", 65_536, u64::MAX),
            b"XFSB".to_vec(),
            Vec::new(),
        ];
        for sector in others {
            assert_eq!(xfs_size(&sector), None, "{sector:?}");
        }
    }
}
