//! Predicts what a request for a pool or for filesystems would take (`docs/spec/tools/utilities.md`
//! §2).
//!
//! These functions are pure. One figure comes from a program: the size of the thin metadata. The
//! caller asks for it, for the size that [`Devices::usable`] returns.

use crate::{
    base::units::{Bytes, Sectors},
    engine::{
        metadata::IntegritySpec,
        plan::sizes::{self, SizeError},
    },
};

/// Size of a device's signature blocks and metadata areas.
const AREA: Sectors = Sectors(8192);

/// Filesystems must be smaller than this.
const FILESYSTEM_END: Bytes = Bytes(1 << 55);

/// Size in bytes of the metadata of an empty XFS, by the logarithm of the size of the XFS. The
/// entries begin at 512 MiB (2^29), each for sizes below twice as much. The first is never used,
/// because an XFS counts as one of the next size.
const XFS_TAKES: [u64; 27] = [
    20_971_520,
    20_971_520,
    22_020_096,
    23_068_672,
    23_068_672,
    31_457_280,
    34_603_008,
    51_380_224,
    84_934_656,
    152_043_520,
    286_261_248,
    571_473_920,
    1_108_344_832,
    2_171_600_896,
    2_171_600_896,
    2_171_600_896,
    2_171_600_896,
    2_205_155_328,
    2_273_312_768,
    2_407_530_496,
    2_675_965_952,
    3_212_836_864,
    4_286_578_688,
    6_434_062_336,
    10_729_029_632,
    19_318_964_224,
    36_498_833_408,
];

/// Why a request is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PredictError {
    #[error("Specified filesystem size {} bytes is not within allowed limits.", .0.0)]
    FilesystemSize(Bytes),
    #[error("Specified filesystem size {} bytes is not a multiple of sector size, 512.", .0.0)]
    PartOfSector(Bytes),
    #[error("Some device sizes too small for DM metadata.")]
    DeviceTooSmall,
    #[error("Sum of all device sizes too small for a Stratis pool.")]
    DevicesTooSmall,
    #[error("Filesystems will take up too much space on specified pool.")]
    Filesystems,
    #[error(transparent)]
    Size(#[from] SizeError),
}

/// Whether the filesystems together may be larger than the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overprovisioning {
    /// They may. A filesystem takes what an empty XFS takes.
    Allowed,
    /// They may not. A filesystem takes its whole size.
    Forbidden,
}

/// The space that filesystems of these sizes take in a pool at first.
///
/// # Errors
/// The first size that no filesystem may have.
pub fn filesystems(sizes: &[Bytes], overprovisioning: Overprovisioning) -> Result<Sectors, PredictError> {
    let take = |size: &Bytes| -> Result<Sectors, PredictError> {
        if *size < sizes::FILESYSTEM_MIN.bytes() || *size >= FILESYSTEM_END {
            return Err(PredictError::FilesystemSize(*size));
        }
        let sectors = sizes::whole_sectors(*size).map_err(|_| PredictError::PartOfSector(*size))?;
        Ok(match overprovisioning {
            Overprovisioning::Forbidden => sectors,
            Overprovisioning::Allowed => {
                let entry = usize::try_from(size.0.ilog2() + 1 - 29).unwrap_or(usize::MAX);
                Sectors(XFS_TAKES.get(entry).copied().ok_or(PredictError::FilesystemSize(*size))? / 512)
            }
        })
    };
    let taken = sizes.iter().map(take).collect::<Result<Vec<_>, _>>()?;
    Ok(Sectors::checked_sum(taken).ok_or(SizeError::Overflow)?)
}

/// The devices of a planned pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    total: Sectors,
    usable: Sectors,
}

/// The space that a pool takes and leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prediction {
    /// Total size of the devices.
    pub total: Sectors,
    /// Space used, by everything.
    pub used: Sectors,
    /// Space left for data.
    pub free: Sectors,
    /// Space taken on each device for the device's own metadata and for integrity data.
    pub device_metadata: Sectors,
    /// Space taken for the thin metadata, the spare and the filesystem records.
    pub pool_metadata: Sectors,
}

impl Devices {
    /// Makes devices of these sizes, rounded down to whole sectors.
    ///
    /// # Errors
    /// When one device, or all together, are too small.
    pub fn new(sizes: &[Bytes], integrity: &IntegritySpec) -> Result<Devices, PredictError> {
        sizes::check_integrity_spec(integrity)?;
        let sectors = |size: &Bytes| u64::try_from(size.0 / 512).map(Sectors).map_err(|_| SizeError::Overflow);
        let sizes = sizes.iter().map(sectors).collect::<Result<Vec<_>, _>>()?;
        let mut available = Vec::new();
        for size in &sizes {
            let taken = AREA.saturating_add(sizes::integrity_reservation(*size, integrity)?);
            available.push(size.checked_sub(taken).ok_or(PredictError::DeviceTooSmall)?);
        }
        let total = Sectors::checked_sum(sizes).ok_or(SizeError::Overflow)?;
        let available = Sectors::checked_sum(available).ok_or(SizeError::Overflow)?;
        let usable = available.checked_sub(sizes::CRYPT_RESERVATION).ok_or(PredictError::DevicesTooSmall)?;
        Ok(Devices { total, usable })
    }

    /// Space for the layers above: the size to ask `thin_metadata_size` about.
    pub fn usable(&self) -> Sectors {
        self.usable
    }

    /// What a pool on these devices takes and leaves with thin metadata of this size, and with
    /// filesystems that take this much.
    ///
    /// # Errors
    /// When there is not enough space.
    pub fn pool(&self, thin_metadata: Sectors, filesystems: Sectors) -> Result<Prediction, PredictError> {
        let pool_metadata =
            Sectors::checked_sum([thin_metadata, thin_metadata, sizes::MDV]).ok_or(SizeError::Overflow)?;
        let left = self.usable.checked_sub(pool_metadata).ok_or(PredictError::DevicesTooSmall)?;
        let free = left.checked_sub(filesystems).ok_or(PredictError::Filesystems)?;
        Ok(Prediction {
            total: self.total,
            used: self.total.saturating_sub(free),
            free,
            device_metadata: self.total.saturating_sub(self.usable),
            pool_metadata,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::metadata::TagSpec;

    const GIB: u128 = 1 << 30;

    /// The worked examples of §2.2: devices in bytes, the output of `thin_metadata_size`,
    /// filesystems; then free, admin space, metadata space, total and used.
    #[test]
    fn pools_take_what_the_existing_tool_says() {
        let all = IntegritySpec::default();
        let none = IntegritySpec { allocate_superblock: false, journal_size: Sectors(0), tag_spec: TagSpec::B0, ..all };
        let some = IntegritySpec { tag_spec: TagSpec::B32, ..all };
        let ten = 10 * GIB;
        type Case<'a> = (&'a IntegritySpec, &'a [u128], &'a str, &'a [u128], Overprovisioning, [u128; 5]);
        use Overprovisioning::{Allowed, Forbidden};
        let cases: [Case<'_>; 7] = [
            (
                &all,
                &[1024 * GIB],
                "66328",
                &[],
                Allowed,
                [1_081_093_386_240, 1_082_130_432, 17_336_111_104, 1_099_511_627_776, 18_418_241_536],
            ),
            (
                &all,
                &[ten],
                "1432",
                &[],
                Allowed,
                [9_863_950_336, 549_453_824, 324_014_080, 10_737_418_240, 873_467_904],
            ),
            (
                &all,
                &[ten],
                "1432",
                &[GIB],
                Allowed,
                [9_841_930_240, 549_453_824, 324_014_080, 10_737_418_240, 895_488_000],
            ),
            (
                &all,
                &[ten],
                "1432",
                &[GIB],
                Forbidden,
                [8_790_208_512, 549_453_824, 324_014_080, 10_737_418_240, 1_947_209_728],
            ),
            (
                &none,
                &[ten],
                "1456",
                &[],
                Allowed,
                [10_165_944_320, 549_453_824, 22_020_096, 10_737_418_240, 571_473_920],
            ),
            (
                &some,
                &[ten],
                "1448",
                &[],
                Allowed,
                [10_021_236_736, 549_453_824, 166_727_680, 10_737_418_240, 716_181_504],
            ),
            (&all, &[GIB], "864", &[], Allowed, [355_463_168, 545_259_520, 173_019_136, 1_073_741_824, 718_278_656]),
        ];
        for (integrity, devices, printed, wanted, overprovisioning, expected) in cases {
            let bytes = |list: &[u128]| list.iter().copied().map(Bytes).collect::<Vec<_>>();
            let devices = Devices::new(&bytes(devices), integrity).unwrap();
            let taken = filesystems(&bytes(wanted), overprovisioning).unwrap();
            let pool = devices.pool(sizes::thin_metadata(printed).unwrap(), taken).unwrap();
            let found = [pool.free, pool.pool_metadata, pool.device_metadata, pool.total, pool.used];
            assert_eq!(found.map(|size| size.bytes().0), expected);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_as_by_the_existing_tool() {
        let spec = IntegritySpec::default();
        let devices = |sizes: &[u128]| Devices::new(&sizes.iter().copied().map(Bytes).collect::<Vec<_>>(), &spec);
        assert_eq!(devices(&[100 << 20]), Err(PredictError::DeviceTooSmall));
        // Enough for the device's own metadata, but not for a pool.
        assert_eq!(devices(&[150 << 20]).unwrap_err(), PredictError::DevicesTooSmall);
        let small = devices(&[GIB]).unwrap();
        assert_eq!(small.pool(Sectors(small.usable().0), Sectors(0)), Err(PredictError::DevicesTooSmall));
        assert_eq!(small.pool(Sectors(8192), small.usable()), Err(PredictError::Filesystems));
        assert_eq!(devices(&[u128::MAX]), Err(SizeError::Overflow.into()));
        let odd = IntegritySpec { journal_size: Sectors(1), ..spec };
        assert_eq!(Devices::new(&[Bytes(GIB)], &odd), Err(SizeError::Journal(Sectors(1)).into()));
    }

    #[test]
    fn filesystems_take_what_the_existing_tool_says() {
        use Overprovisioning::{Allowed, Forbidden};
        let take = |sizes: &[u128], overprovisioning| {
            filesystems(&sizes.iter().copied().map(Bytes).collect::<Vec<_>>(), overprovisioning)
                .map(|taken| taken.bytes().0)
        };
        let half = GIB / 2;
        assert_eq!(take(&[half], Allowed), Ok(20_971_520));
        assert_eq!(take(&[GIB], Allowed), Ok(22_020_096));
        assert_eq!(take(&[GIB, 2 * GIB], Allowed), Ok(45_088_768));
        assert_eq!(take(&[GIB, 2 * GIB], Forbidden), Ok(3_221_225_472));
        assert_eq!(take(&[36_028_797_018_963_456], Allowed), Ok(36_498_833_408));
        for size in [536_870_400, 1 << 55, 0] {
            assert_eq!(take(&[size], Allowed), Err(PredictError::FilesystemSize(Bytes(size))));
        }
        assert_eq!(take(&[GIB, half + 1], Forbidden), Err(PredictError::PartOfSector(Bytes(half + 1))));
    }
}
