//! Appends to lists of segments and merges adjacent ones.
//!
//! The order of a list is the order in which the device is assembled, so this module never sorts a
//! list.

use crate::{
    base::units::Sectors,
    engine::metadata::pool::{DeviceSegment, Segment},
};

/// A range that can be appended to a list and merged with the end of it.
pub trait Stretch: Copy {
    /// The segment that covers `self` and then `next`, if they are adjacent and the sum of their
    /// lengths does not overflow.
    fn joined(self, next: Self) -> Option<Self>;
    /// Number of sectors.
    fn length(&self) -> Sectors;
}

impl Stretch for Segment {
    fn joined(self, next: Segment) -> Option<Segment> {
        let length = self.length.checked_add(next.length)?;
        (self.end()? == next.start).then_some(Segment { length, ..self })
    }

    fn length(&self) -> Sectors {
        self.length
    }
}

impl Stretch for DeviceSegment {
    fn joined(self, next: DeviceSegment) -> Option<DeviceSegment> {
        let joined = self.segment().joined(next.segment())?;
        (self.parent == next.parent).then_some(DeviceSegment { length: joined.length, ..self })
    }

    fn length(&self) -> Sectors {
        self.length
    }
}

/// Appends segments. A segment that continues the end of the list is merged with it. Empty segments
/// are left out.
pub fn append<S: Stretch>(list: &mut Vec<S>, segments: impl IntoIterator<Item = S>) {
    for segment in segments.into_iter().filter(|segment| segment.length() > Sectors::ZERO) {
        match list.last_mut().and_then(|last| last.joined(segment).map(|joined| (last, joined))) {
            Some((last, joined)) => *last = joined,
            None => list.push(segment),
        }
    }
}

/// The sum of all lengths; `None` on overflow.
pub fn total<S: Stretch>(list: &[S]) -> Option<Sectors> {
    Sectors::checked_sum(list.iter().map(Stretch::length))
}

#[cfg(test)]
mod tests {
    use super::{append, total};
    use crate::{
        base::{ids::DevUuid, units::Sectors},
        engine::metadata::pool::{DeviceSegment, Segment},
    };

    fn segment(start: u64, length: u64) -> Segment {
        Segment::new(Sectors(start), Sectors(length))
    }

    #[test]
    fn merges_only_what_continues_the_last() {
        let mut list = vec![segment(0, 10)];
        append(&mut list, [segment(10, 5), segment(20, 5), segment(15, 5), segment(25, 0), segment(20, 1)]);
        assert_eq!(list, [segment(0, 15), segment(20, 5), segment(15, 6)]);
        assert_eq!(total(&list), Some(Sectors(26)));
    }

    #[test]
    fn never_merges_across_devices() {
        let on = |device: u8, start: u64| DeviceSegment {
            parent: DevUuid::from_random([device; 16]),
            start: Sectors(start),
            length: Sectors(8),
        };
        let mut list = Vec::new();
        append(&mut list, [on(1, 0), on(1, 8), on(2, 16), on(2, 24)]);
        assert_eq!(list.iter().map(|s| (s.start.0, s.length.0)).collect::<Vec<_>>(), [(0, 16), (16, 16)]);
    }

    #[test]
    fn refuses_sums_past_the_range() {
        let mut list = vec![segment(0, u64::MAX)];
        append(&mut list, [segment(u64::MAX, 1)]);
        assert_eq!(list.len(), 2);
        assert_eq!(total(&list), None);
    }
}
