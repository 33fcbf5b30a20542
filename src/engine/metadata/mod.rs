//! What is on disk: the static header, the metadata area, the pool-level and filesystem-level JSON.
use serde::{Deserialize, Serialize};

use crate::engine::units::{Bytes, Sectors};

/// How much space to reserve on each data device for integrity data (`spec/engine/ondisk-metadata.md` §6.3).
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

/// Journal size must be a multiple of this.
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
