//! The static header: the identity of a device and the layout of its first sectors
//! (`docs/spec/engine/ondisk-metadata.md` §2).
//!
//! The sixteen sectors hold two copies of one 512-byte signature block, each alone in a half of 4
//! KiB. A copy is always written as its whole half, and the halves are never in flight together. So
//! a power cut can damage only one copy at a time; the other stays intact. This module handles
//! bytes. It must never depend on where they come from.

use crate::{
    base::{
        ids::{DevUuid, PoolUuid},
        units::Sectors,
    },
    engine::metadata::{MetadataVersion, PlannedWrite, array_at, u32_at, u64_at},
};

/// Size of the static header: both halves.
pub const STATIC_HEADER: Sectors = Sectors(16);
/// Size of the static header in bytes.
pub const STATIC_HEADER_BYTES: usize = 2 * HALF_BYTES;
/// Size of one half in bytes: a zero sector, the block, six zero sectors.
pub const HALF_BYTES: usize = 4096;
/// Size of a signature block in bytes.
pub const BLOCK_BYTES: usize = 512;
/// Default and minimum size of the metadata area.
pub const MDA_SIZE: Sectors = Sectors(2032);
/// Default size of the reserved space after the metadata area.
pub const RESERVED_SIZE: Sectors = Sectors(6144);
/// Latest time of initialization, in seconds since 1970: the last that a calendar with four-digit
/// years can represent in every time zone.
pub const INITIALIZED_MAX: u64 = 253_402_207_200;

const MAGIC: [u8; 16] = *b"!Stra0tis\x86\xff\x02^Arh";
/// Offset of a signature block in its half, in bytes.
const BLOCK_IN_HALF: usize = 512;

const AT_CRC: usize = 0;
const AT_MAGIC: usize = 4;
const AT_SIZE: usize = 20;
const AT_VERSION: usize = 28;
const AT_POOL: usize = 32;
const AT_DEVICE: usize = 64;
const AT_MDA_SIZE: usize = 96;
const AT_RESERVED: usize = 104;
const AT_FLAGS: usize = 112;
const AT_INITIALIZED: usize = 120;

/// Marks on a device. Other daemons neither write nor read them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct HeaderFlags(pub u64);

impl HeaderFlags {
    /// No mark.
    pub const NONE: HeaderFlags = HeaderFlags(0);
    /// The creation or addition that initialized the device has not been committed, so nothing on
    /// the device counts.
    pub const UNCOMMITTED: HeaderFlags = HeaderFlags(1);
    /// The device has grown, and the pool metadata may not have reserved the space that integrity
    /// data needs for the new size.
    pub const GROWN: HeaderFlags = HeaderFlags(2);

    /// Whether all of `marks` are set.
    pub fn contains(self, marks: HeaderFlags) -> bool {
        self.0 & marks.0 == marks.0
    }

    /// These marks and `marks`.
    #[must_use]
    pub fn with(self, marks: HeaderFlags) -> HeaderFlags {
        HeaderFlags(self.0 | marks.0)
    }

    /// These marks without `marks`.
    #[must_use]
    pub fn without(self, marks: HeaderFlags) -> HeaderFlags {
        HeaderFlags(self.0 & !marks.0)
    }
}

/// The contents of a signature block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticHeader {
    /// The pool.
    pub pool: PoolUuid,
    /// The device.
    pub device: DevUuid,
    /// The metadata version, which determines the form of everything else that is written.
    pub version: MetadataVersion,
    /// Size of the block device (encrypted version 1 pools: of the crypt device on it).
    pub device_size: Sectors,
    /// Size of the metadata area: a multiple of 4, at least [`MDA_SIZE`].
    pub mda_size: Sectors,
    /// Size of the reserved space after the metadata area, which nothing uses.
    pub reserved: Sectors,
    /// Marks.
    pub flags: HeaderFlags,
    /// Time of initialization: seconds since 1970, at most [`INITIALIZED_MAX`].
    pub initialized: u64,
}

/// Why a copy of the signature block is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Invalid {
    #[error("only {0} bytes of a signature block of {BLOCK_BYTES} bytes could be read")]
    Short(usize),
    #[error("its checksum is wrong; it was damaged or written only in part")]
    Checksum,
    #[error("its version {0} is unknown; a newer daemon may be needed")]
    Version(u8),
    #[error("its {0} is not a UUID")]
    Uuid(&'static str),
    #[error("its initialization time, {0} s, is not a calendar time")]
    Time(u64),
    #[error("it gives the metadata area {0}, which is not a multiple of 4 sectors from {MDA_SIZE} up")]
    MdaSize(Sectors),
    #[error("its metadata needs {metadata} sectors, more than the {device} that it gives for the device")]
    Space { metadata: u128, device: Sectors },
}

/// Why two copies do not form a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Unresolved {
    #[error(
        "the two copies of its signature block are both valid but differ, and neither is the later one; \
         find out by hand which is right and overwrite the other"
    )]
    Disagree,
    #[error("no valid copy of its signature block could be found, though it looks like a Stratis device")]
    Invalid(#[from] Invalid),
    #[error("neither copy of its signature block could be read; check the disk")]
    Unreadable,
}

impl StaticHeader {
    /// Makes the header of a device that is to be initialized, with the default sizes and no marks.
    pub fn new(
        pool: PoolUuid,
        device: DevUuid,
        version: MetadataVersion,
        device_size: Sectors,
        initialized: u64,
    ) -> StaticHeader {
        StaticHeader {
            pool,
            device,
            version,
            device_size,
            mda_size: MDA_SIZE,
            reserved: RESERVED_SIZE,
            flags: HeaderFlags::NONE,
            initialized,
        }
    }

    /// Size of static header and metadata area.
    pub fn bda_size(&self) -> Sectors {
        STATIC_HEADER.saturating_add(self.mda_size)
    }

    /// Size of static header, metadata area and reserved space, which is never allocated.
    pub fn extended_size(&self) -> Sectors {
        self.bda_size().saturating_add(self.reserved)
    }

    /// Encodes the signature block.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(AT_MAGIC, &MAGIC);
        put(AT_SIZE, &self.device_size.0.to_le_bytes());
        put(AT_VERSION, &[self.version.number()]);
        put(AT_POOL, self.pool.simple().as_bytes());
        put(AT_DEVICE, self.device.simple().as_bytes());
        put(AT_MDA_SIZE, &self.mda_size.0.to_le_bytes());
        put(AT_RESERVED, &self.reserved.0.to_le_bytes());
        put(AT_FLAGS, &self.flags.0.to_le_bytes());
        put(AT_INITIALIZED, &self.initialized.to_le_bytes());
        let crc = crc32c::crc32c(&block[AT_MAGIC..]);
        block[AT_CRC..AT_MAGIC].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Encodes one half of the static header, as it is written.
    pub fn encode_half(&self) -> [u8; HALF_BYTES] {
        let mut half = [0; HALF_BYTES];
        half[BLOCK_IN_HALF..BLOCK_IN_HALF + BLOCK_BYTES].copy_from_slice(&self.encode());
        half
    }

    /// Parses a signature block. `None`: the block is not one of Stratis.
    ///
    /// # Errors
    /// Why the block is invalid. Besides the rules of §2.2, the metadata must fit on the device.
    pub fn decode(block: &[u8]) -> Result<Option<StaticHeader>, Invalid> {
        if block.len() < BLOCK_BYTES {
            return Err(Invalid::Short(block.len()));
        }
        let block = &block[..BLOCK_BYTES];
        if block[AT_MAGIC..AT_SIZE] != MAGIC {
            return Ok(None);
        }
        if u32_at(block, AT_CRC) != crc32c::crc32c(&block[AT_MAGIC..]) {
            return Err(Invalid::Checksum);
        }
        let version = MetadataVersion::from_number(block[AT_VERSION]).ok_or(Invalid::Version(block[AT_VERSION]))?;
        let header = StaticHeader {
            pool: uuid_at(block, AT_POOL).ok_or(Invalid::Uuid("pool UUID"))?,
            device: uuid_at(block, AT_DEVICE).ok_or(Invalid::Uuid("device UUID"))?,
            version,
            device_size: Sectors(u64_at(block, AT_SIZE)),
            mda_size: Sectors(u64_at(block, AT_MDA_SIZE)),
            reserved: Sectors(u64_at(block, AT_RESERVED)),
            flags: HeaderFlags(u64_at(block, AT_FLAGS)),
            initialized: u64_at(block, AT_INITIALIZED),
        };
        header.check()?;
        Ok(Some(header))
    }

    /// Checks the rules for sizes and time of a valid header.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.initialized > INITIALIZED_MAX {
            return Err(Invalid::Time(self.initialized));
        }
        if self.mda_size < MDA_SIZE || !self.mda_size.0.is_multiple_of(4) {
            return Err(Invalid::MdaSize(self.mda_size));
        }
        let metadata = [STATIC_HEADER, self.mda_size, self.reserved].iter().map(|s| u128::from(s.0)).sum::<u128>();
        if metadata > u128::from(self.device_size.0) {
            return Err(Invalid::Space { metadata, device: self.device_size });
        }
        Ok(())
    }
}

/// The steps that write both copies on a device without any.
pub fn plan_initialize(header: &StaticHeader) -> Vec<PlannedWrite> {
    Half::BOTH.iter().flat_map(|half| write_half(*half, header)).collect()
}

/// The steps that replace a header so that [`resolve`] gives one of the two headers at every
/// moment. The same holds for other daemons.
///
/// Two good copies that differ must differ in their initialization time, too: otherwise no reader
/// knows which one counts. So the first copy is written with a time one second later, which stays
/// until the second copy has been written. Only a power cut between the two leaves the later time
/// on disk.
pub fn plan_rewrite(new: &StaticHeader) -> Vec<PlannedWrite> {
    let later = StaticHeader { initialized: new.initialized.saturating_add(1).min(INITIALIZED_MAX), ..*new };
    [write_half(Half::First, &later), write_half(Half::Second, new), write_half(Half::First, new)].concat()
}

/// The steps that write one copy.
pub fn write_half(half: Half, header: &StaticHeader) -> [PlannedWrite; 2] {
    [PlannedWrite::At(half.half_offset(), header.encode_half().to_vec()), PlannedWrite::Flush]
}

/// The steps that remove the header.
pub fn plan_wipe() -> [PlannedWrite; 2] {
    [PlannedWrite::At(0, vec![0; STATIC_HEADER_BYTES]), PlannedWrite::Flush]
}

/// Parses a UUID in simple form at a fixed offset.
fn uuid_at<T: std::str::FromStr>(block: &[u8], at: usize) -> Option<T> {
    std::str::from_utf8(&array_at::<32>(block, at)).ok()?.parse().ok()
}

/// A copy of the signature block, with the half of the static header around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// The copy in sector 1.
    First,
    /// The copy in sector 9.
    Second,
}

impl Half {
    /// Both copies, in the order in which they are written.
    pub const BOTH: [Half; 2] = [Half::First, Half::Second];

    /// Offset of the half, in bytes.
    pub fn half_offset(self) -> u64 {
        match self {
            Half::First => 0,
            Half::Second => HALF_BYTES as u64,
        }
    }

    /// Offset of the signature block, in bytes.
    pub fn block_offset(self) -> u64 {
        self.half_offset() + BLOCK_IN_HALF as u64
    }
}

/// The result of reading one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyContents {
    /// The read failed.
    Unreadable,
    /// Not a signature block.
    Nothing,
    /// A signature block that cannot be used.
    Invalid(Invalid),
    /// A valid block.
    Valid(StaticHeader),
}

impl CopyContents {
    /// Classifies the bytes of a block.
    pub fn in_block(block: &[u8]) -> CopyContents {
        match StaticHeader::decode(block) {
            Ok(None) => CopyContents::Nothing,
            Ok(Some(header)) => CopyContents::Valid(header),
            Err(invalid) => CopyContents::Invalid(invalid),
        }
    }
}

/// The result of both copies together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// The device is not a Stratis device.
    Nothing,
    /// The device has this header.
    Header {
        /// The header.
        header: StaticHeader,
        /// The copy to be overwritten with the header, if one differs.
        rewrite: Option<Half>,
    },
}

/// Resolves two copies to one header by the table of §2.3.
///
/// Copies that differ only in their flags are the same header to other daemons, and one of these
/// may have rewritten a copy without flags. So that is no error here. The copy with fewer flags
/// counts: a mark must never cause data to be undone that another daemon keeps using.
///
/// # Errors
/// Two good copies that contradict each other, or no good copy although there are traces of one.
pub fn resolve(first: CopyContents, second: CopyContents) -> Result<Resolved, Unresolved> {
    use CopyContents::{Invalid, Nothing, Unreadable, Valid};
    let keep = |header, rewrite| Ok(Resolved::Header { header, rewrite });
    match (first, second) {
        (Valid(a), Valid(b)) if a == b => keep(a, None),
        (Valid(a), Valid(b)) if a.initialized > b.initialized => keep(a, Some(Half::Second)),
        (Valid(a), Valid(b)) if a.initialized < b.initialized => keep(b, Some(Half::First)),
        (Valid(a), Valid(b)) if a == (StaticHeader { flags: a.flags, ..b }) => {
            if a.flags.0 < b.flags.0 {
                keep(a, Some(Half::Second))
            } else {
                keep(b, Some(Half::First))
            }
        }
        (Valid(_), Valid(_)) => Err(Unresolved::Disagree),
        (Valid(header), _) => keep(header, Some(Half::Second)),
        (_, Valid(header)) => keep(header, Some(Half::First)),
        (Invalid(invalid), _) | (_, Invalid(invalid)) => Err(Unresolved::Invalid(invalid)),
        (Unreadable, Unreadable) => Err(Unresolved::Unreadable),
        (Nothing, Nothing | Unreadable) | (Unreadable, Nothing) => Ok(Resolved::Nothing),
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
