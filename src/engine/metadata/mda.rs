//! The metadata area (MDA): four regions that hold the last two generations of the pool metadata,
//! each twice (`docs/spec/engine/ondisk-metadata.md` §3).
//!
//! A region is a header of 32 bytes, followed by the JSON. Regions 0 and 2 are pair 0, regions 1
//! and 3 are pair 1. A write goes to the pair with the older generation, so the newer one stays
//! intact until the write is durable. Within the first region of a pair the JSON is made durable
//! *before* the header that declares it. A header fits in one sector, so it is written as a whole,
//! and by then its JSON is durable. (The existing daemon writes the header first. If it is
//! interrupted between the two, it leaves a header without its JSON, and the older generation does
//! not serve as a fall-back. The final contents of the disk are the same.)
//!
//! This module handles bytes and a layout. It must never depend on what the JSON says or where the
//! bytes come from.

use std::error::Error as StdError;

use crate::{
    base::units::{SECTOR, Sectors},
    engine::metadata::{PlannedWrite, array_at, header::STATIC_HEADER_BYTES, u32_at, u64_at},
    platform::Timestamp,
};

/// Size of a region's header in bytes.
pub const REGION_HEADER_BYTES: usize = 32;
/// Length of the longest JSON that is read or written, however large the area is. It bounds the
/// memory that a forged header can make the daemon allocate. The default area holds 260 064 bytes.
pub const JSON_BYTES_MAX: u64 = 64 << 20;
/// Regions in an area.
const REGIONS: u64 = 4;
/// Version of the region header, and of what follows it (the same for both metadata versions).
const HEADER_VERSION: u8 = 1;
const DATA_VERSION: u8 = 1;

const AT_CRC: usize = 0;
const AT_DATA_CRC: usize = 4;
const AT_LENGTH: usize = 8;
const AT_SECONDS: usize = 16;
const AT_NANOSECONDS: usize = 24;
const AT_HEADER_VERSION: usize = 28;
const AT_DATA_VERSION: usize = 29;

/// The cause of a failed read, as the reader reports it.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// Why the header or JSON of a region is unusable.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RegionError {
    #[error("it could not be read")]
    Read(#[source] Cause),
    #[error("only {0} bytes of it could be read")]
    Short(usize),
    #[error("the checksum of its header is wrong")]
    HeaderChecksum,
    #[error("its header has the unknown version {0}; a newer daemon may be needed")]
    HeaderVersion(u8),
    #[error("what it holds has the unknown version {0}; a newer daemon may be needed")]
    DataVersion(u8),
    #[error("its header promises {length} bytes, more than the {capacity} that fit")]
    TooLong { length: u64, capacity: u64 },
    #[error("its header has a time with {0} nanoseconds in a second")]
    Time(u32),
    #[error("the checksum of its contents is wrong")]
    DataChecksum,
}

/// Why metadata cannot be read from an area or written to it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum MdaError {
    #[error("a metadata area of {0} cannot be used")]
    Layout(Sectors),
    #[error("neither header of pair {pair} of the metadata area can be used (the other copy: {copy})")]
    Pair { pair: usize, copy: RegionError, source: RegionError },
    #[error("neither copy of the newest metadata can be used (the other copy: {copy})")]
    Contents { copy: RegionError, source: RegionError },
    #[error(
        "the device holds metadata at least as new as what was to be written; \
         another daemon may be using it, or the clock was set back"
    )]
    Older,
    #[error("the metadata has {length} bytes, but the device has space for {capacity} only")]
    TooLong { length: u64, capacity: u64 },
    #[error("metadata to be written must not be empty")]
    Empty,
}

/// The offsets of the regions of an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    region_bytes: u64,
}

impl Layout {
    /// The layout of an area of this size.
    ///
    /// # Errors
    /// [`MdaError::Layout`] if the size is not a multiple of 4, too small for any JSON, or larger
    /// than any disk.
    pub fn new(mda_size: Sectors) -> Result<Layout, MdaError> {
        let bytes = mda_size.0.checked_mul(SECTOR).filter(|b| b.checked_add(STATIC_HEADER_BYTES as u64).is_some());
        match bytes {
            Some(bytes) if mda_size.0.is_multiple_of(REGIONS) && bytes > 0 => {
                Ok(Layout { region_bytes: bytes / REGIONS })
            }
            _ => Err(MdaError::Layout(mda_size)),
        }
    }

    /// The offset of a region, in bytes from the start of the device. `region` is 0, 1, 2 or 3.
    pub fn offset(&self, region: usize) -> u64 {
        STATIC_HEADER_BYTES as u64 + region as u64 * self.region_bytes
    }

    /// Length of the longest JSON that fits, in bytes.
    pub fn capacity(&self) -> u64 {
        (self.region_bytes - REGION_HEADER_BYTES as u64).min(JSON_BYTES_MAX)
    }

    fn json_offset(&self, region: usize) -> u64 {
        self.offset(region) + REGION_HEADER_BYTES as u64
    }
}

/// What a region's header says about the JSON after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// CRC-32C of the JSON.
    pub crc: u32,
    /// Length of the JSON in bytes, not 0.
    pub length: u64,
    /// Its time stamp.
    pub time: Timestamp,
}

/// Encodes a region's header; `None` for a region that was never written.
pub fn encode_region(generation: Option<&Generation>) -> [u8; REGION_HEADER_BYTES] {
    let mut header = [0; REGION_HEADER_BYTES];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    if let Some(generation) = generation {
        put(AT_DATA_CRC, &generation.crc.to_le_bytes());
        put(AT_LENGTH, &generation.length.to_le_bytes());
        put(AT_SECONDS, &generation.time.seconds.to_le_bytes());
        put(AT_NANOSECONDS, &generation.time.nanoseconds.to_le_bytes());
    }
    put(AT_HEADER_VERSION, &[HEADER_VERSION, DATA_VERSION]);
    let crc = crc32c::crc32c(&header[AT_DATA_CRC..]);
    header[AT_CRC..AT_DATA_CRC].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Parses a region's header; `None` if the region was never written.
///
/// # Errors
/// Why the header is invalid.
pub fn decode_region(header: &[u8], layout: Layout) -> Result<Option<Generation>, RegionError> {
    if header.len() < REGION_HEADER_BYTES {
        return Err(RegionError::Short(header.len()));
    }
    let header = &header[..REGION_HEADER_BYTES];
    if u32_at(header, AT_CRC) != crc32c::crc32c(&header[AT_DATA_CRC..]) {
        return Err(RegionError::HeaderChecksum);
    }
    match (header[AT_HEADER_VERSION], header[AT_DATA_VERSION]) {
        (HEADER_VERSION, DATA_VERSION) => {}
        (HEADER_VERSION, other) => return Err(RegionError::DataVersion(other)),
        (other, _) => return Err(RegionError::HeaderVersion(other)),
    }
    let length = u64_at(header, AT_LENGTH);
    if length == 0 {
        return Ok(None);
    }
    if length > layout.capacity() {
        return Err(RegionError::TooLong { length, capacity: layout.capacity() });
    }
    let time = Timestamp { seconds: u64_at(header, AT_SECONDS), nanoseconds: u32_at(header, AT_NANOSECONDS) };
    if time.nanoseconds >= 1_000_000_000 {
        return Err(RegionError::Time(time.nanoseconds));
    }
    Ok(Some(Generation { crc: u32::from_le_bytes(array_at(header, AT_DATA_CRC)), length, time }))
}

/// A planned write of one generation to one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<PlannedWrite>,
    pair: usize,
    generation: Generation,
}

/// The state of an area: the generations in its two pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mda {
    layout: Layout,
    pairs: [Option<Generation>; 2],
}

impl Mda {
    /// The state of an area that was just initialized.
    pub fn empty(layout: Layout) -> Mda {
        Mda { layout, pairs: [None; 2] }
    }

    /// The steps that make an area empty.
    pub fn plan_initialize(layout: Layout) -> Vec<PlannedWrite> {
        let headers =
            (0..REGIONS as usize).map(|region| PlannedWrite::At(layout.offset(region), encode_region(None).to_vec()));
        headers.chain([PlannedWrite::Flush]).collect()
    }

    /// Reads the headers of both pairs. `read` gets an offset and a number of bytes. The second
    /// copy of a header is read only if the first is unusable.
    ///
    /// # Errors
    /// [`MdaError::Pair`] if both headers of a pair are unusable.
    pub fn load(layout: Layout, mut read: impl FnMut(u64, usize) -> Result<Vec<u8>, Cause>) -> Result<Mda, MdaError> {
        let mut header = |region: usize| {
            let bytes = read(layout.offset(region), REGION_HEADER_BYTES).map_err(RegionError::Read)?;
            decode_region(&bytes, layout)
        };
        let mut pairs = [None; 2];
        for (pair, generation) in pairs.iter_mut().enumerate() {
            *generation = header(pair)
                .or_else(|source| header(pair + 2).map_err(|copy| MdaError::Pair { pair, copy, source }))?;
        }
        Ok(Mda { layout, pairs })
    }

    /// The layout of the regions.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The pair to which the next write goes.
    pub fn older(&self) -> usize {
        match self.pairs {
            [None, _] => 0,
            [_, None] => 1,
            [Some(a), Some(b)] => usize::from(b.time <= a.time),
        }
    }

    /// The pair that holds the device's metadata.
    pub fn newer(&self) -> usize {
        1 - self.older()
    }

    /// The newest generation, if there is any.
    pub fn newest(&self) -> Option<Generation> {
        self.pairs[self.newer()]
    }

    /// The generations of both pairs.
    pub fn generations(&self) -> [Option<Generation>; 2] {
        self.pairs
    }

    /// The time of the device's metadata.
    pub fn last_update(&self) -> Option<Timestamp> {
        self.newest().map(|generation| generation.time)
    }

    /// Reads the newest JSON, from its second copy if the first is unusable. `None`: there is none.
    ///
    /// # Errors
    /// [`MdaError::Contents`] if both copies are unusable. The older generation never serves as a
    /// substitute.
    pub fn read_json(
        &self,
        mut read: impl FnMut(u64, usize) -> Result<Vec<u8>, Cause>,
    ) -> Result<Option<Vec<u8>>, MdaError> {
        let Some(generation) = self.newest() else { return Ok(None) };
        let length = usize::try_from(generation.length)
            .map_err(|_| MdaError::TooLong { length: generation.length, capacity: self.layout.capacity() })?;
        let mut json = |region: usize| {
            let bytes = read(self.layout.json_offset(region), length).map_err(RegionError::Read)?;
            if bytes.len() != length {
                return Err(RegionError::Short(bytes.len()));
            }
            if crc32c::crc32c(&bytes) != generation.crc {
                return Err(RegionError::DataChecksum);
            }
            Ok(bytes)
        };
        json(self.newer())
            .or_else(|source| json(self.newer() + 2).map_err(|copy| MdaError::Contents { copy, source }))
            .map(Some)
    }

    /// Plans to write `json` with the time `stamp`.
    ///
    /// # Errors
    /// If the stamp is not newer than the one on disk, or the JSON is too long or empty (a length
    /// of 0 means that there is none).
    pub fn plan_write(&self, json: &[u8], stamp: Timestamp) -> Result<Plan, MdaError> {
        if self.last_update().is_some_and(|last| last >= stamp) {
            return Err(MdaError::Older);
        }
        let (length, capacity) = (json.len() as u64, self.layout.capacity());
        if length > capacity {
            return Err(MdaError::TooLong { length, capacity });
        }
        if json.is_empty() {
            return Err(MdaError::Empty);
        }
        let generation = Generation { crc: crc32c::crc32c(json), length, time: stamp };
        let header = encode_region(Some(&generation));
        let pair = self.older();
        let mut both = header.to_vec();
        both.extend_from_slice(json);
        let steps = vec![
            PlannedWrite::At(self.layout.json_offset(pair), json.to_vec()),
            PlannedWrite::Flush,
            PlannedWrite::At(self.layout.offset(pair), header.to_vec()),
            PlannedWrite::Flush,
            // The first region is intact now, so the second may be torn.
            PlannedWrite::At(self.layout.offset(pair + 2), both),
            PlannedWrite::Flush,
        ];
        Ok(Plan { steps, pair, generation })
    }

    /// Notes that a plan was carried out.
    pub fn written(&mut self, plan: &Plan) {
        self.pairs[plan.pair] = Some(plan.generation);
    }
}

/// The stamp of a save: `now`, but at least a nanosecond later than the last one (§3.7).
pub fn next_stamp(now: Timestamp, last: Option<Timestamp>) -> Timestamp {
    let after = |last: Timestamp| match last.nanoseconds {
        0..999_999_999 => Timestamp { nanoseconds: last.nanoseconds + 1, ..last },
        _ => Timestamp { seconds: last.seconds.saturating_add(1), nanoseconds: 0 },
    };
    last.map_or(now, |last| now.max(after(last)))
}

#[cfg(test)]
#[path = "mda_tests.rs"]
mod tests;
