//! Space of raw devices: which ranges are taken, and which ones are taken next
//! (`docs/spec/engine/storage-stack.md` §4, 5).
//!
//! Space is taken from the front of a device, lowest free range first; space for integrity data is
//! taken from the back. A tier takes space device by device in pool order. Space is never given
//! back, so there is no function to free it. To see the result of a request in advance, clone the
//! value and make the request to the clone.

use crate::{
    base::{ids::DevUuid, units::Sectors},
    engine::{
        metadata::pool::{DeviceSegment, Segment},
        plan::segments,
    },
};

/// Why space of a device cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum AllocError {
    #[error("the range of {length} at {start} is taken already, wholly or in part")]
    Overlap { start: Sectors, length: Sectors },
    #[error("the range of {length} at {start} does not end before the device does, at {limit}")]
    Beyond { start: Sectors, length: Sectors, limit: Sectors },
    #[error(
        "{} are needed at the end of the device, but only {} are free on it; use a larger device",
        .needed.readable(), .free.readable()
    )]
    TooSmall { needed: Sectors, free: Sectors },
    #[error("a device cannot shrink from {} to {}", .from.readable(), .to.readable())]
    Shrink { from: Sectors, to: Sectors },
    #[error("the sizes asked for are larger together than any device can be")]
    Overflow,
}

/// The space of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpace {
    limit: Sectors,
    /// The ranges that are taken: sorted, disjoint, never adjacent.
    taken: Vec<Segment>,
}

impl DeviceSpace {
    /// A device of this size, all of it free.
    pub fn new(limit: Sectors) -> DeviceSpace {
        DeviceSpace { limit, taken: Vec::new() }
    }

    /// The device's size.
    pub fn limit(&self) -> Sectors {
        self.limit
    }

    /// The space that is taken.
    pub fn used(&self) -> Sectors {
        // The ranges are disjoint and below the limit, so the sum never saturates.
        self.taken.iter().fold(Sectors::ZERO, |sum, range| sum.saturating_add(range.length))
    }

    /// The space that is free.
    pub fn free(&self) -> Sectors {
        self.limit.saturating_sub(self.used())
    }

    /// The free ranges, in order.
    pub fn free_ranges(&self) -> Vec<Segment> {
        let mut free = Vec::new();
        let mut from = Sectors::ZERO;
        for range in &self.taken {
            free.push(Segment::new(from, range.start.saturating_sub(from)));
            from = range.start.saturating_add(range.length);
        }
        free.push(Segment::new(from, self.limit.saturating_sub(from)));
        free.retain(|range| range.length > Sectors::ZERO);
        free
    }

    /// Takes a given range that the metadata records.
    ///
    /// # Errors
    /// If any part of it is taken or lies past the end. No space is taken then.
    pub fn take_range(&mut self, range: Segment) -> Result<(), AllocError> {
        let Segment { start, length } = range;
        let end = range.end().filter(|end| *end <= self.limit);
        let end = end.ok_or(AllocError::Beyond { start, length, limit: self.limit })?;
        if length == Sectors::ZERO {
            return Ok(());
        }
        let at = self.taken.partition_point(|other| other.start < start);
        let before = at.checked_sub(1).map(|i| self.taken[i]);
        if before.is_some_and(|other| other.start.saturating_add(other.length) > start)
            || self.taken.get(at).is_some_and(|other| other.start < end)
        {
            return Err(AllocError::Overlap { start, length });
        }
        self.taken.insert(at, range);
        self.merge_around(at);
        Ok(())
    }

    /// Takes up to `size` from the front, lowest free ranges first.
    pub fn take(&mut self, size: Sectors) -> Vec<Segment> {
        let mut missing = size;
        let mut found = Vec::new();
        for range in self.free_ranges() {
            let length = range.length.min(missing);
            missing = missing.saturating_sub(length);
            found.push(Segment { length, ..range });
            if missing == Sectors::ZERO {
                break;
            }
        }
        found.retain(|range| range.length > Sectors::ZERO);
        self.take_free(&found);
        found
    }

    /// Takes exactly `size` from the back, highest free ranges first. Returns the ranges in
    /// ascending order.
    ///
    /// # Errors
    /// [`AllocError::TooSmall`] if there is less space. No space is taken then.
    pub fn reserve_back(&mut self, size: Sectors) -> Result<Vec<Segment>, AllocError> {
        if size > self.free() {
            return Err(AllocError::TooSmall { needed: size, free: self.free() });
        }
        let mut missing = size;
        let mut found = Vec::new();
        for range in self.free_ranges().into_iter().rev() {
            let length = range.length.min(missing);
            missing = missing.saturating_sub(length);
            let start = range.start.saturating_add(range.length).saturating_sub(length);
            found.insert(0, Segment { start, length });
        }
        found.retain(|range| range.length > Sectors::ZERO);
        self.take_free(&found);
        Ok(found)
    }

    /// Raises the size of the device.
    ///
    /// # Errors
    /// [`AllocError::Shrink`] if the new size is smaller.
    pub fn grow(&mut self, limit: Sectors) -> Result<(), AllocError> {
        if limit < self.limit {
            return Err(AllocError::Shrink { from: self.limit, to: limit });
        }
        self.limit = limit;
        Ok(())
    }

    fn take_free(&mut self, ranges: &[Segment]) {
        for range in ranges {
            let at = self.taken.partition_point(|other| other.start < range.start);
            self.taken.insert(at, *range);
            self.merge_around(at);
        }
    }

    /// Merges the range at this index with the ranges adjacent to it.
    fn merge_around(&mut self, at: usize) {
        use segments::Stretch;
        for first in [Some(at), at.checked_sub(1)].into_iter().flatten() {
            if let Some(joined) = self.taken.get(first + 1).and_then(|next| self.taken[first].joined(*next)) {
                self.taken[first] = joined;
                self.taken.remove(first + 1);
            }
        }
    }
}

/// The space of a tier: its devices in pool order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TierSpace {
    devices: Vec<(DevUuid, DeviceSpace)>,
}

impl TierSpace {
    /// Makes a tier of these devices, in this order.
    pub fn new(devices: impl IntoIterator<Item = (DevUuid, DeviceSpace)>) -> TierSpace {
        TierSpace { devices: devices.into_iter().collect() }
    }

    /// Adds a device at the end of the tier.
    pub fn push(&mut self, device: DevUuid, space: DeviceSpace) {
        self.devices.push((device, space));
    }

    /// The space of one device.
    pub fn device(&self, device: DevUuid) -> Option<&DeviceSpace> {
        self.devices.iter().find(|(uuid, _)| *uuid == device).map(|(_, space)| space)
    }

    /// The space of one device, for growing it.
    pub fn device_mut(&mut self, device: DevUuid) -> Option<&mut DeviceSpace> {
        self.devices.iter_mut().find(|(uuid, _)| *uuid == device).map(|(_, space)| space)
    }

    /// The space that is free.
    pub fn free(&self) -> Sectors {
        self.devices.iter().fold(Sectors::ZERO, |sum, (_, space)| sum.saturating_add(space.free()))
    }

    /// Serves all sizes or none (`None`). Returns the segments for each size; adjacent segments are
    /// merged.
    ///
    /// # Errors
    /// [`AllocError::Overflow`] if the sum of the sizes overflows.
    pub fn request(&mut self, sizes: &[Sectors]) -> Result<Option<Vec<Vec<DeviceSegment>>>, AllocError> {
        let sum = Sectors::checked_sum(sizes.iter().copied()).ok_or(AllocError::Overflow)?;
        if sum > self.free() {
            return Ok(None);
        }
        Ok(Some(sizes.iter().map(|size| self.take(*size)).collect()))
    }

    /// Takes all free space, device by device.
    pub fn take_all(&mut self) -> Vec<DeviceSegment> {
        self.take(Sectors(u64::MAX))
    }

    fn take(&mut self, size: Sectors) -> Vec<DeviceSegment> {
        let mut missing = size;
        let mut served = Vec::new();
        for (parent, space) in &mut self.devices {
            for Segment { start, length } in space.take(missing) {
                missing = missing.saturating_sub(length);
                segments::append(&mut served, [DeviceSegment { parent: *parent, start, length }]);
            }
        }
        served
    }
}

#[cfg(test)]
#[path = "alloc_tests.rs"]
mod tests;
