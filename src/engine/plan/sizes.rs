//! Sizes of the stack's parts.
use crate::engine::units::Sectors;

/// A data block of a thin pool.
pub const DATA_BLOCK: Sectors = Sectors(2048);
