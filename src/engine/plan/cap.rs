//! Hands out the cap device: consecutive ranges, one for each size
//! (`docs/spec/engine/storage-stack.md` §5). The metadata only records up to where the device is
//! handed out, because readers expect no gaps and need the sum.

use crate::{
    base::units::Sectors,
    engine::{
        metadata::{
            MetadataVersion,
            pool::{CRYPT_RESERVATION, Cap, Segment},
        },
        plan::segments,
    },
};

/// Why space cannot be handed out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CapError {
    #[error("the space handed out would be larger than any device can be")]
    Overflow,
    #[error("space for a LUKS2 header can only be held before anything else is handed out")]
    Late,
    #[error("version 1 metadata has no space for a LUKS2 header of the pool")]
    NotInVersion1,
}

/// The origin of offsets on the cap device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapBase {
    /// Version 1: all space is handed out from 0 on and recorded as one sum.
    Sum,
    /// Version 2, not encrypted: ranges are recorded. They begin after the space reserved for a
    /// LUKS2 header.
    AfterCryptReservation,
    /// Version 2, encrypted: ranges of the crypt device, from 0 on.
    Opened,
}

impl CapBase {
    /// The base of a pool.
    pub fn of(version: MetadataVersion, encrypted: bool) -> CapBase {
        match (version, encrypted) {
            (MetadataVersion::V1, _) => CapBase::Sum,
            (MetadataVersion::V2, false) => CapBase::AfterCryptReservation,
            (MetadataVersion::V2, true) => CapBase::Opened,
        }
    }
}

/// Reserves the space for a LUKS2 header, before anything else is taken in a version 2 pool.
///
/// # Errors
/// If space was handed out or reserved before, or the version has no such space.
pub fn reserve_crypt(cap: &mut Cap, version: MetadataVersion) -> Result<Segment, CapError> {
    if version == MetadataVersion::V1 {
        return Err(CapError::NotInVersion1);
    }
    if !cap.allocs.is_empty() || !cap.crypt_meta_allocs.is_empty() {
        return Err(CapError::Late);
    }
    let held = Segment::new(Sectors::ZERO, CRYPT_RESERVATION);
    cap.crypt_meta_allocs.push(held);
    Ok(held)
}

/// The start of the next range.
///
/// # Errors
/// If the recorded ranges end past the range of sizes.
pub fn next(cap: &Cap, base: CapBase) -> Result<Sectors, CapError> {
    let held = if base == CapBase::AfterCryptReservation { &cap.crypt_meta_allocs[..] } else { &[] };
    cap.allocs
        .iter()
        .chain(held)
        .try_fold(Sectors::ZERO, |next, segment| Some(next.max(segment.end()?)))
        .ok_or(CapError::Overflow)
}

/// Hands out and records consecutive ranges, one for each size. After an error, none are recorded.
///
/// # Errors
/// If the ranges would end past the range of sizes.
pub fn hand_out(cap: &mut Cap, base: CapBase, sizes: &[Sectors]) -> Result<Vec<Segment>, CapError> {
    let mut end = next(cap, base)?;
    let mut ranges = Vec::with_capacity(sizes.len());
    for size in sizes {
        ranges.push(Segment::new(end, *size));
        end = end.checked_add(*size).ok_or(CapError::Overflow)?;
    }
    match base {
        CapBase::Sum => cap.allocs = vec![Segment::new(Sectors::ZERO, end)],
        // The first ranges stay separate, as other daemons write them. Later ones are merged:
        // otherwise, at some 500 TiB, one range for each growth of the thin pool, by 50 GiB at
        // most, would fill the metadata area.
        CapBase::AfterCryptReservation | CapBase::Opened if cap.allocs.is_empty() => cap.allocs.extend(&ranges),
        CapBase::AfterCryptReservation | CapBase::Opened => {
            let mut former = std::mem::take(&mut cap.allocs);
            former.sort_unstable();
            segments::append(&mut cap.allocs, former.into_iter().chain(ranges.iter().copied()));
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::{CapBase, CapError, hand_out, next, reserve_crypt};
    use crate::{
        base::units::Sectors,
        engine::metadata::{
            MetadataVersion,
            pool::{Cap, Segment},
        },
    };

    const V2_SIZES: [Sectors; 4] = [Sectors(12_288), Sectors(12_288), Sectors(19_263_488), Sectors(1_048_576)];

    fn segments(list: &[(u64, u64)]) -> Vec<Segment> {
        list.iter().map(|(start, length)| Segment::new(Sectors(*start), Sectors(*length))).collect()
    }

    fn check(version: MetadataVersion, encrypted: bool, sizes: &[Sectors], expected: &[(u64, u64)]) -> Cap {
        let mut cap = Cap::default();
        if version == MetadataVersion::V2 {
            reserve_crypt(&mut cap, version).unwrap();
        }
        let ranges = hand_out(&mut cap, CapBase::of(version, encrypted), sizes).unwrap();
        assert_eq!(ranges, segments(expected));
        cap
    }

    #[test]
    fn gives_the_ranges_of_the_worked_examples() {
        let open = [(34_816, 12_288), (47_104, 12_288), (59_392, 19_263_488), (19_322_880, 1_048_576)];
        let cap = check(MetadataVersion::V2, false, &V2_SIZES, &open);
        assert_eq!(cap.allocs, segments(&open));
        assert_eq!(cap.crypt_meta_allocs, segments(&[(0, 34_816)]));
        let encrypted = [(0, 12_288), (12_288, 12_288), (24_576, 19_263_488), (19_288_064, 1_048_576)];
        assert_eq!(check(MetadataVersion::V2, true, &V2_SIZES, &encrypted).allocs, segments(&encrypted));
        let v1 = [Sectors(12_288), Sectors(12_288), Sectors(19_890_176), Sectors(1_048_576)];
        let ranges = [(0, 12_288), (12_288, 12_288), (24_576, 19_890_176), (19_914_752, 1_048_576)];
        let cap = check(MetadataVersion::V1, false, &v1, &ranges);
        assert_eq!(cap.allocs, segments(&[(0, 20_963_328)]));
        assert_eq!(cap.crypt_meta_allocs, []);
    }

    #[test]
    fn goes_on_after_the_highest_range() {
        let mut cap = check(MetadataVersion::V2, false, &[Sectors(8)], &[(34_816, 8)]);
        assert_eq!(hand_out(&mut cap, CapBase::AfterCryptReservation, &[Sectors(4), Sectors(2)]).unwrap().len(), 2);
        assert_eq!(cap.allocs, segments(&[(34_816, 14)]));
        let mut cap = check(MetadataVersion::V1, false, &[Sectors(8)], &[(0, 8)]);
        assert_eq!(hand_out(&mut cap, CapBase::Sum, &[Sectors(4)]).unwrap(), segments(&[(8, 4)]));
        assert_eq!(cap.allocs, segments(&[(0, 12)]));
    }

    #[test]
    fn holds_crypt_space_only_first_and_only_once() {
        let mut cap = Cap::default();
        assert_eq!(reserve_crypt(&mut cap, MetadataVersion::V1), Err(CapError::NotInVersion1));
        reserve_crypt(&mut cap, MetadataVersion::V2).unwrap();
        assert_eq!(reserve_crypt(&mut cap, MetadataVersion::V2), Err(CapError::Late));
        let mut cap = check(MetadataVersion::V2, true, &[Sectors(8)], &[(0, 8)]);
        cap.crypt_meta_allocs.clear();
        assert_eq!(reserve_crypt(&mut cap, MetadataVersion::V2), Err(CapError::Late));
    }

    #[test]
    fn records_nothing_when_the_sum_is_too_large() {
        let mut cap = check(MetadataVersion::V2, false, &[Sectors(8)], &[(34_816, 8)]);
        let before = cap.clone();
        let sizes = [Sectors(8), Sectors(u64::MAX)];
        assert_eq!(hand_out(&mut cap, CapBase::AfterCryptReservation, &sizes), Err(CapError::Overflow));
        assert_eq!(cap, before);
        cap.allocs.push(Segment::new(Sectors(u64::MAX), Sectors(1)));
        assert_eq!(next(&cap, CapBase::Opened), Err(CapError::Overflow));
    }
}
