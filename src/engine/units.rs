//! Sizes with their unit in the type. Knows nothing of what is measured.
//!
//! Arithmetic that can overflow is explicit: `checked_add`, `checked_sub`, `saturating_sub`; the plain
//! operators are not implemented on purpose.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in a sector, the unit of the kernel's block layer and of all Stratis metadata.
pub const SECTOR: u64 = 512;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $suffix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// Nothing.
            pub const ZERO: $name = $name(0);

            /// The sum, or `None` past the type's range.
            pub fn checked_add(self, other: $name) -> Option<$name> {
                self.0.checked_add(other.0).map($name)
            }

            /// The difference, or `None` below zero.
            pub fn checked_sub(self, other: $name) -> Option<$name> {
                self.0.checked_sub(other.0).map($name)
            }

            /// The difference, zero where it would be negative.
            pub fn saturating_sub(self, other: $name) -> $name {
                $name(self.0.saturating_sub(other.0))
            }

            /// The sum, the largest value where it would be larger.
            pub fn saturating_add(self, other: $name) -> $name {
                $name(self.0.saturating_add(other.0))
            }

            /// This many times the size, or `None` past the type's range.
            pub fn checked_mul(self, times: $inner) -> Option<$name> {
                self.0.checked_mul(times).map($name)
            }

            /// The largest multiple of `unit` that is not larger. `unit` is not zero.
            pub fn round_down(self, unit: $name) -> $name {
                $name(self.0 - self.0 % unit.0)
            }

            /// The smallest multiple of `unit` that is not smaller, or `None` past the type's range.
            pub fn round_up(self, unit: $name) -> Option<$name> {
                match self.0 % unit.0 {
                    0 => Some(self),
                    rest => self.0.checked_add(unit.0 - rest).map($name),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{} ", $suffix), self.0)
            }
        }

        impl $name {
            /// The sum of all, or `None` past the type's range.
            pub fn checked_sum(sizes: impl IntoIterator<Item = $name>) -> Option<$name> {
                sizes.into_iter().try_fold($name(0), |sum, size| sum.checked_add(size))
            }
        }
    };
}

unit!(
    /// A number of sectors of 512 bytes.
    Sectors, u64, "sectors"
);
unit!(
    /// A number of bytes. 128 bits, because clients may name sizes up to 2^64 sectors.
    Bytes, u128, "bytes"
);
unit!(
    /// A number of thin-pool data blocks of [`DATA_BLOCK`](crate::engine::plan::sizes::DATA_BLOCK) sectors.
    DataBlocks, u64, "data blocks"
);

impl Sectors {
    /// The same size in bytes; every number of sectors fits.
    pub fn bytes(self) -> Bytes {
        Bytes(u128::from(self.0) * u128::from(SECTOR))
    }
}

impl Bytes {
    /// Whole sectors in this many bytes, a rest dropped; `None` past 2^64 sectors.
    pub fn sectors(self) -> Option<Sectors> {
        u64::try_from(self.0 / u128::from(SECTOR)).ok().map(Sectors)
    }
}
