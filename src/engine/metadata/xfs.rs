//! What the first sector of an XFS says about its size and its parts. This module does not
//! interpret any other part of an XFS.

use crate::base::units::{Bytes, Sectors};

const MAGIC: &[u8; 4] = b"XFSB";

/// The size of the XFS on a device, from the first sector of the device; `None` if there is no XFS.
pub fn xfs_size(sector: &[u8]) -> Option<Sectors> {
    if sector.get(..4)? != MAGIC {
        return None;
    }
    let block = u32::from_be_bytes(sector.get(4..8)?.try_into().ok()?);
    let blocks = u64::from_be_bytes(sector.get(8..16)?.try_into().ok()?);
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
    let number = |at: usize| Some(u32::from_be_bytes(sector.get(at..at + 4)?.try_into().ok()?));
    let log = u128::from(number(96)?) * u128::from(number(4)?);
    Some(XfsParts { log: Bytes(log), groups: number(88)? })
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
