//! Which devices can be combined in a pool, by their sector sizes
//! (`docs/spec/engine/storage-stack.md` §12).

use std::fmt;

/// Logical and physical sector size of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectorSizes {
    /// The unit of transfers.
    pub logical: u32,
    /// The unit of atomic writes.
    pub physical: u32,
}

impl fmt::Display for SectorSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes logical, {} bytes physical", self.logical, self.physical)
    }
}

/// A device of a tier, as the rules see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberSizes {
    /// Sector sizes of the raw device.
    pub base: SectorSizes,
    /// Sector sizes of the crypt device on it (encrypted version 1 pools).
    pub crypt: Option<SectorSizes>,
    /// The device holds more than its own metadata.
    pub in_use: bool,
}

/// The sector sizes that a tier works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effective {
    /// Sector sizes of the raw devices.
    pub base: SectorSizes,
    /// Sector sizes of the crypt devices on them, if there are any.
    pub crypt: Option<SectorSizes>,
}

/// Why devices cannot be combined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum SectorError {
    #[error("the devices have different sector sizes ({0}; {1}); use devices with the same")]
    Mixed(SectorSizes, SectorSizes),
    #[error("the new devices have sector sizes of {new}, but the pool's have {pool}; use devices with the same")]
    OtherThanTier { new: SectorSizes, pool: SectorSizes },
    #[error(
        "the cache devices have a logical sector size of {cache} bytes, but the data devices have {data}; \
         use devices with the same"
    )]
    CacheOtherThanData { cache: u32, data: u32 },
    #[error(
        "an unused device of the tier has larger sectors ({unused}) than those in use ({used}); \
         using it would change the sector size of the pool"
    )]
    LargerUnused { unused: SectorSizes, used: SectorSizes },
    #[error("the tier has no devices")]
    Empty,
}

/// The sector sizes that all these devices share.
///
/// # Errors
/// If they differ, or there are no devices.
pub fn common(devices: impl IntoIterator<Item = SectorSizes>) -> Result<SectorSizes, SectorError> {
    let mut devices = devices.into_iter();
    let first = devices.next().ok_or(SectorError::Empty)?;
    devices.find(|other| *other != first).map_or(Ok(first), |other| Err(SectorError::Mixed(first, other)))
}

/// The sector sizes that a tier works with: the largest of the devices in use or, if none is in
/// use, the sizes that all devices share.
///
/// # Errors
/// If an unused device has larger sectors than those in use, or if none is in use and they differ.
/// A pool with such a tier must not be changed.
pub fn effective(tier: &[MemberSizes]) -> Result<Effective, SectorError> {
    let Some(used) = largest(tier.iter().filter(|device| device.in_use)) else {
        let first = tier.first().ok_or(SectorError::Empty)?;
        common(tier.iter().map(|device| device.base))?;
        if let Some(other) = tier.iter().find(|device| device.crypt != first.crypt) {
            let crypt = |device: &MemberSizes| device.crypt.unwrap_or(device.base);
            return Err(SectorError::Mixed(crypt(first), crypt(other)));
        }
        return Ok(Effective { base: first.base, crypt: first.crypt });
    };
    let larger = |device: &&MemberSizes| logical(device) > used.logical || physical(device) > used.physical;
    match tier.iter().filter(|device| !device.in_use).find(larger) {
        Some(unused) => Err(SectorError::LargerUnused { unused: unused.base, used: used.sizes().base }),
        None => Ok(used.sizes()),
    }
}

/// Checks that new devices may join a tier.
///
/// # Errors
/// If the new devices differ from each other or from what the tier works with, or the tier itself
/// is invalid.
pub fn check_added(tier: &[MemberSizes], new: impl IntoIterator<Item = SectorSizes>) -> Result<(), SectorError> {
    let (new, pool) = (common(new)?, effective(tier)?.base);
    if new == pool { Ok(()) } else { Err(SectorError::OtherThanTier { new, pool }) }
}

/// Checks that new devices may become the cache of a data tier.
///
/// # Errors
/// If the new devices differ from each other, or their logical size differs from that of the data
/// tier, or the data tier is invalid.
pub fn check_cache(data: &[MemberSizes], new: impl IntoIterator<Item = SectorSizes>) -> Result<(), SectorError> {
    let (cache, data) = (common(new)?.logical, effective(data)?.base.logical);
    if cache == data { Ok(()) } else { Err(SectorError::CacheOtherThanData { cache, data }) }
}

/// The order of sizes: first that of the crypt device, then that of the raw device below.
type Rank = (Option<u32>, u32);

fn logical(device: &MemberSizes) -> Rank {
    (device.crypt.map(|sizes| sizes.logical), device.base.logical)
}

fn physical(device: &MemberSizes) -> Rank {
    (device.crypt.map(|sizes| sizes.physical), device.base.physical)
}

/// The largest logical and the largest physical size. The two may come from different devices.
struct Largest {
    logical: Rank,
    physical: Rank,
}

impl Largest {
    fn sizes(&self) -> Effective {
        let crypt = self.logical.0.zip(self.physical.0);
        Effective {
            base: SectorSizes { logical: self.logical.1, physical: self.physical.1 },
            crypt: crypt.map(|(logical, physical)| SectorSizes { logical, physical }),
        }
    }
}

fn largest<'a>(devices: impl Iterator<Item = &'a MemberSizes> + Clone) -> Option<Largest> {
    let logical = devices.clone().map(logical).max()?;
    Some(Largest { logical, physical: devices.map(physical).max()? })
}

#[cfg(test)]
mod tests {
    use super::{Effective, MemberSizes, SectorError, SectorSizes, check_added, check_cache, common, effective};

    const SMALL: SectorSizes = SectorSizes { logical: 512, physical: 512 };
    const MIXED: SectorSizes = SectorSizes { logical: 512, physical: 4096 };
    const LARGE: SectorSizes = SectorSizes { logical: 4096, physical: 4096 };

    fn used(base: SectorSizes) -> MemberSizes {
        MemberSizes { base, crypt: None, in_use: true }
    }

    fn unused(base: SectorSizes) -> MemberSizes {
        MemberSizes { in_use: false, ..used(base) }
    }

    fn open(base: SectorSizes) -> Effective {
        Effective { base, crypt: None }
    }

    #[test]
    fn new_devices_are_of_one_kind() {
        assert_eq!(common([SMALL, SMALL]), Ok(SMALL));
        assert_eq!(common([SMALL, MIXED]), Err(SectorError::Mixed(SMALL, MIXED)));
        assert_eq!(common([]), Err(SectorError::Empty));
    }

    #[test]
    fn a_tier_works_with_the_largest_in_use() {
        assert_eq!(effective(&[used(SMALL), used(MIXED), unused(SMALL)]), Ok(open(MIXED)));
        assert_eq!(effective(&[unused(LARGE), unused(LARGE)]), Ok(open(LARGE)));
        let split = SectorSizes { logical: 4096, physical: 512 };
        assert_eq!(effective(&[used(MIXED), used(split)]), Ok(open(LARGE)));
    }

    #[test]
    fn a_tier_with_larger_unused_sectors_is_invalid() {
        let broken = Err(SectorError::LargerUnused { unused: MIXED, used: SMALL });
        assert_eq!(effective(&[used(SMALL), unused(MIXED)]), broken);
        assert_eq!(effective(&[unused(SMALL), unused(MIXED)]), Err(SectorError::Mixed(SMALL, MIXED)));
        assert_eq!(effective(&[]), Err(SectorError::Empty));
    }

    #[test]
    fn crypt_sizes_come_before_raw_sizes() {
        let crypt = |base, crypt, in_use| MemberSizes { base, crypt: Some(crypt), in_use };
        let tier = [crypt(MIXED, LARGE, true), crypt(LARGE, SMALL, false)];
        assert_eq!(effective(&tier), Ok(Effective { base: MIXED, crypt: Some(LARGE) }));
        let differ = [crypt(SMALL, SMALL, false), crypt(SMALL, LARGE, false)];
        assert_eq!(effective(&differ), Err(SectorError::Mixed(SMALL, LARGE)));
    }

    #[test]
    fn added_devices_match_the_tier() {
        assert_eq!(check_added(&[used(MIXED)], [MIXED, MIXED]), Ok(()));
        let other = Err(SectorError::OtherThanTier { new: SMALL, pool: MIXED });
        assert_eq!(check_added(&[used(MIXED)], [SMALL]), other);
        assert!(matches!(check_added(&[used(SMALL), unused(LARGE)], [SMALL]), Err(SectorError::LargerUnused { .. })));
    }

    #[test]
    fn a_cache_matches_in_logical_size_only() {
        assert_eq!(check_cache(&[used(MIXED)], [SMALL]), Ok(()));
        let other = Err(SectorError::CacheOtherThanData { cache: 4096, data: 512 });
        assert_eq!(check_cache(&[used(MIXED)], [LARGE]), other);
    }
}
