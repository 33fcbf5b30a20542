//! What an XFS says of its own size, in the first sector of its device. Knows nothing else of XFS.

use crate::base::units::{Bytes, Sectors};

const MAGIC: &[u8; 4] = b"XFSB";

/// The size that the XFS on a device has, from the device's first sector; `None` if there is no XFS.
pub fn xfs_size(sector: &[u8]) -> Option<Sectors> {
    if sector.get(..4)? != MAGIC {
        return None;
    }
    let block = u32::from_be_bytes(sector.get(4..8)?.try_into().ok()?);
    let blocks = u64::from_be_bytes(sector.get(8..16)?.try_into().ok()?);
    let is_possible = block.is_power_of_two() && (512..=65_536).contains(&block);
    is_possible.then(|| Bytes(u128::from(block) * u128::from(blocks)).sectors()).flatten()
}

#[cfg(test)]
mod tests {
    use super::xfs_size;
    use crate::base::units::Sectors;

    fn superblock(magic: &[u8], block: u32, blocks: u64) -> Vec<u8> {
        [magic, &block.to_be_bytes(), &blocks.to_be_bytes(), &[0; 496]].concat()
    }

    #[test]
    fn the_size_of_an_xfs_is_read() {
        assert_eq!(xfs_size(&superblock(b"XFSB", 4096, 131_072)), Some(Sectors(1_048_576)));
        assert_eq!(xfs_size(&superblock(b"XFSB", 512, 3)), Some(Sectors(3)));
    }

    #[test]
    fn what_is_no_xfs_has_no_size() {
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
