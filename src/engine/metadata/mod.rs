//! The on-disk formats: the static header, the metadata area, the JSON of pools and filesystems,
//! and the journal of filesystems.
//!
//! These are codecs between bytes and values, specified by `docs/spec/engine/ondisk-metadata.md`.
//! They handle bytes and errors. They must never depend on files, threads, locks or device names.
//! [`bda`](crate::engine::bda) reads and writes the bytes.

pub mod filesystem;
pub mod header;
pub mod journal;
pub mod mda;
pub mod pool;
mod xfs;
mod xfs_identity;

use serde::{Deserialize, Serialize, Serializer};

pub use self::{
    filesystem::FilesystemRecord,
    header::{HeaderFlags, StaticHeader},
    journal::{Journal, Pending, Revert},
    mda::{Layout, Mda},
    pool::PoolMetadata,
    xfs::{SUPERBLOCK_BYTES, XfsParts, xfs_parts, xfs_size, xfs_uuid},
    xfs_identity::{LogEnd, SUPERBLOCK_BYTES_MAX, UnmountRecord, XfsIdentity, superblock_with},
};
use crate::base::units::{Bytes, Sectors};

/// The two forms of a pool on disk (`docs/spec/engine/ondisk-metadata.md` §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MetadataVersion {
    /// Each block device is encrypted separately. New pools do not use this version.
    V1,
    /// Encryption lies above the data tier. Space for integrity data is reserved.
    V2,
}

impl MetadataVersion {
    /// 1 or 2, as in the signature block and on the bus.
    pub fn number(self) -> u8 {
        match self {
            MetadataVersion::V1 => 1,
            MetadataVersion::V2 => 2,
        }
    }

    /// The version with that number, if there is one.
    pub fn from_number(number: u8) -> Option<MetadataVersion> {
        match number {
            1 => Some(MetadataVersion::V1),
            2 => Some(MetadataVersion::V2),
            _ => None,
        }
    }
}

/// The space to reserve for integrity data on each data device
/// (`docs/spec/engine/ondisk-metadata.md` §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntegritySpec {
    /// Tag bits per integrity block.
    pub tag_spec: TagSpec,
    /// Size of the journal.
    pub journal_size: Sectors,
    /// Size of an integrity block, in bytes.
    pub block_size: u64,
    /// Whether space for a superblock is reserved.
    pub allocate_superblock: bool,
}

impl IntegritySpec {
    /// Whether no space at all is reserved.
    pub fn asks_for_nothing(&self) -> bool {
        self.tag_spec == TagSpec::B0 && self.journal_size == Sectors::ZERO && !self.allocate_superblock
    }
}

/// Tag bits per integrity block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum TagSpec {
    #[serde(rename = "0b")]
    B0,
    #[serde(rename = "32b")]
    B32,
    #[serde(rename = "512b")]
    B512,
}

impl TagSpec {
    /// The tag's size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            TagSpec::B0 => 0,
            TagSpec::B32 => 4,
            TagSpec::B512 => 64,
        }
    }
}

/// The journal size must be a multiple of this.
pub const JOURNAL_UNIT: Bytes = Bytes(4096);

impl Default for IntegritySpec {
    fn default() -> IntegritySpec {
        IntegritySpec {
            tag_spec: TagSpec::B512,
            journal_size: Sectors(262_144),
            block_size: 4096,
            allocate_superblock: true,
        }
    }
}

/// Keys of a JSON object that this daemon does not know, with their values. A newer daemon wrote
/// them, and must find them unchanged after this daemon has written the object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rest(serde_json::Map<String, serde_json::Value>);

impl Rest {
    /// Whether there are no such keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One step of a planned write. Offsets are in bytes from the start of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedWrite {
    /// Write these bytes at this offset.
    At(u64, Vec<u8>),
    /// Make everything before this step durable.
    Flush,
}

/// Length of the longest stored text, by a user or about hardware, in bytes.
const STORED_BYTES_MAX: usize = 255;

/// The beginning of `text` that is stored: whole characters, at most [`STORED_BYTES_MAX`] bytes.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(STORED_BYTES_MAX)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

/// Serializes a text, cut to the stored length.
fn write_cut<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(cut(text))
}

/// Reads a little-endian number at a fixed offset of a block.
fn u64_at(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(block, at))
}

/// See [`u64_at`].
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(block, at))
}

/// `N` bytes at a fixed offset of a block whose length has been checked.
fn array_at<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..at + N]);
    bytes
}
