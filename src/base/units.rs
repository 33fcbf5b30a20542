//! Sizes with their unit in the type. The types know nothing about what is measured.
//!
//! Arithmetic that can overflow is explicit: `checked_add`, `checked_sub`, `saturating_sub`. The
//! plain operators are deliberately not implemented.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Size of a sector in bytes. It is the unit of the kernel's block layer and of all Stratis
/// metadata.
pub const SECTOR: u64 = 512;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// A size of zero.
            pub const ZERO: $name = $name(0);

            /// The sum; `None` on overflow.
            pub fn checked_add(self, other: $name) -> Option<$name> {
                self.0.checked_add(other.0).map($name)
            }

            /// The difference; `None` if it would be negative.
            pub fn checked_sub(self, other: $name) -> Option<$name> {
                self.0.checked_sub(other.0).map($name)
            }

            /// The difference; zero if it would be negative.
            pub fn saturating_sub(self, other: $name) -> $name {
                $name(self.0.saturating_sub(other.0))
            }

            /// The sum; the largest value on overflow.
            pub fn saturating_add(self, other: $name) -> $name {
                $name(self.0.saturating_add(other.0))
            }

            /// The product; `None` on overflow.
            pub fn checked_mul(self, times: $inner) -> Option<$name> {
                self.0.checked_mul(times).map($name)
            }

            /// Rounds down to a multiple of `unit`, which must not be zero.
            pub fn round_down(self, unit: $name) -> $name {
                $name(self.0 - self.0 % unit.0)
            }

            /// Rounds up to a multiple of `unit`; `None` on overflow.
            pub fn round_up(self, unit: $name) -> Option<$name> {
                match self.0 % unit.0 {
                    0 => Some(self),
                    rest => self.0.checked_add(unit.0 - rest).map($name),
                }
            }
        }

        impl $name {
            /// The sum of all sizes; `None` on overflow.
            pub fn checked_sum(sizes: impl IntoIterator<Item = $name>) -> Option<$name> {
                sizes.into_iter().try_fold($name(0), |sum, size| sum.checked_add(size))
            }
        }
    };
}

unit!(
    /// A number of sectors of 512 bytes.
    Sectors, u64
);
unit!(
    /// A number of bytes. 128 bits, because clients may name sizes up to 2^64 sectors.
    Bytes, u128
);
unit!(
    /// A number of thin-pool data blocks of [`DATA_BLOCK`](crate::engine::plan::sizes::DATA_BLOCK)
    /// sectors.
    DataBlocks, u64
);

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors", self.0)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

impl fmt::Display for DataBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} data blocks", self.0)
    }
}

impl Sectors {
    /// The size in a form for people.
    pub fn readable(self) -> Readable {
        self.bytes().readable()
    }

    /// The same size in bytes; every number of sectors fits.
    pub fn bytes(self) -> Bytes {
        Bytes(u128::from(self.0) * u128::from(SECTOR))
    }
}

impl Bytes {
    /// The size in a form for people.
    pub fn readable(self) -> Readable {
        Readable(self)
    }

    /// Whole sectors in this many bytes, rounded down; `None` past 2^64 sectors.
    pub fn sectors(self) -> Option<Sectors> {
        u64::try_from(self.0 / u128::from(SECTOR)).ok().map(Sectors)
    }
}

/// A size for people, in the largest unit that fits at least once. If two decimals are not exact,
/// the bytes follow.
#[derive(Debug, Clone, Copy)]
pub struct Readable(Bytes);

impl fmt::Display for Readable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 6] = [(60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let Some((bits, unit)) = UNITS.into_iter().find(|(bits, _)| self.0.0 >> bits > 0) else {
            return write!(f, "{} bytes", self.0.0);
        };
        let (whole, rest) = (self.0.0 >> bits, self.0.0 & ((1 << bits) - 1));
        // Round down: a size just below a round number must not be shown as that number.
        let hundredths = (rest * 100) >> bits;
        match hundredths {
            0 => write!(f, "{whole}")?,
            some if some % 10 == 0 => write!(f, "{whole}.{}", some / 10)?,
            some => write!(f, "{whole}.{some:02}")?,
        }
        write!(f, " {unit}")?;
        if (hundredths << bits) == rest * 100 { Ok(()) } else { write!(f, " ({} bytes)", self.0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_units_that_people_read() {
        let check = |bytes: u128, shown: &str| assert_eq!(Bytes(bytes).readable().to_string(), shown);
        check(0, "0 bytes");
        check(512, "512 bytes");
        check(1024, "1 KiB");
        check(1536, "1.5 KiB");
        check(1 << 30, "1 GiB");
        check((1 << 30) + (1 << 28), "1.25 GiB");
        check((1 << 30) + 512, "1 GiB (1073742336 bytes)");
        check((1 << 30) - 512, "1023.99 MiB (1073741312 bytes)");
        check(3 << 30, "3 GiB");
        check(u128::from(u64::MAX), "15.99 EiB (18446744073709551615 bytes)");
        check(1 << 70, "1024 EiB");
        check(u128::MAX, "295147905179352825855.99 EiB (340282366920938463463374607431768211455 bytes)");
        assert_eq!(Sectors(2_097_152).readable().to_string(), "1 GiB");
        assert_eq!(DataBlocks(3).to_string(), "3 data blocks");
    }
}
