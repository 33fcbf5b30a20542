//! When a thin pool and its filesystems grow, and by how much (`docs/spec/engine/storage-stack.md`
//! §7.6, 7.7, 9.5).
//!
//! These functions turn the kernel's status and the record into a plan. Other modules carry the
//! plan out.

use crate::{
    base::units::{Bytes, DataBlocks, Sectors},
    engine::plan::sizes,
};

/// The kernel's figures about a thin pool that matter for growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Free blocks of the metadata device.
    pub metadata_free: u64,
    /// The low-water mark for metadata blocks: the kernel raises an event below it. Older kernels
    /// do not report it.
    pub metadata_low_water: Option<u64>,
    /// Free data blocks.
    pub data_free: DataBlocks,
}

/// The facts about a pool that matter for growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrowthFacts {
    /// Space of the devices without Stratis' own metadata.
    pub usable: Sectors,
    /// Usable space that has not been handed out.
    pub available: Sectors,
    /// Size of the thin pool's metadata device, which is also that of the spare.
    pub metadata: Sectors,
    /// The size that the metadata device should have; `None` if unknown.
    pub metadata_needed: Option<Sectors>,
    /// The largest number of filesystems that the pool may have.
    pub fs_limit: u64,
    /// How full the thin pool is; `None` if the kernel does not report it.
    pub fill: Option<Fill>,
    /// Whether the filesystems together may be larger than the pool.
    pub overprovisioning: bool,
    /// Sum of the filesystems' sizes.
    pub filesystems: Sectors,
    /// The metadata was found unable to grow, and nothing has changed since.
    pub metadata_exhausted: bool,
    /// Writes fail when no data blocks are left, because no space was left to hand out.
    pub writes_fail: bool,
}

/// Why thin metadata that should grow cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The devices do not have the space.
    Devices,
    /// The space is promised to filesystems, because overprovisioning is not allowed.
    Promised,
}

/// The plan for a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Growth {
    /// Growth of the metadata device, and of the spare.
    pub metadata: Sectors,
    /// Growth of the data device.
    pub data: Sectors,
    /// Whether writes should fail when no data blocks are left.
    pub writes_fail: bool,
    /// Why the metadata does not grow although it should, if that is a new finding.
    pub exhausted: Option<Exhausted>,
}

/// Plans the growth of a pool. Metadata comes first: data without mappings is of no use.
pub fn pool(pool: &GrowthFacts) -> Growth {
    let (metadata, exhausted) = match metadata(pool) {
        Ok(growth) => (growth, None),
        Err(exhausted) => (Sectors::ZERO, Some(exhausted)),
    };
    let kept = Growth { metadata, data: Sectors::ZERO, writes_fail: pool.writes_fail, exhausted };
    if exhausted == Some(Exhausted::Devices) {
        return Growth { writes_fail: true, ..kept };
    }
    let Some(fill) = pool.fill else { return kept };
    // The kernel raises its event when the mark is reached, and only once. So reaching the mark
    // counts as low.
    let is_low = fill.data_free <= sizes::DATA_LOW_WATER;
    let without = |size: Sectors| pool.available.saturating_sub(size).saturating_sub(size);
    match sizes::data_growth(without(metadata.max(held_back(pool)))) {
        // If the metadata cannot grow, promise as few writes as possible.
        Some(_) if pool.writes_fail && pool.metadata_exhausted => kept,
        Some(data) if is_low => Growth { data, writes_fail: false, ..kept },
        // There is space again: a daemon added a disk and was interrupted before it recorded this.
        Some(_) => Growth { writes_fail: false, ..kept },
        // Data will get space once it is known how much the metadata needs.
        None if sizes::data_growth(without(metadata)).is_some() => kept,
        None => Growth { writes_fail: pool.writes_fail || is_low, ..kept },
    }
}

/// The most by which the metadata device may have to grow, as long as its needed size is unknown.
/// Data does not wait for that size, but must not take the space that the metadata may need.
fn held_back(pool: &GrowthFacts) -> Sectors {
    match pool.metadata_needed {
        None if !pool.metadata_exhausted => {
            sizes::thin_metadata_at_most(pool.usable, pool.fs_limit).saturating_sub(pool.metadata)
        }
        _ => Sectors::ZERO,
    }
}

/// Growth of the metadata device, and of the spare.
fn metadata(pool: &GrowthFacts) -> Result<Sectors, Exhausted> {
    if pool.metadata_exhausted {
        return Ok(Sectors::ZERO);
    }
    let is_out = pool.fill.is_some_and(|fill| fill.metadata_free == 0);
    let is_low = is_out
        || pool
            .fill
            .is_some_and(|fill| fill.metadata_low_water.is_some_and(|low_water| fill.metadata_free < low_water));
    let wanted = match is_low {
        true => pool.metadata.saturating_add(pool.metadata).min(pool.usable.round_down(sizes::DATA_BLOCK)),
        false => pool.metadata_needed.unwrap_or(pool.metadata),
    };
    // The kernel does not use more than this.
    let growth = wanted.min(sizes::THIN_METADATA_MAX).saturating_sub(pool.metadata);
    if growth == Sectors::ZERO {
        return Ok(growth);
    }
    let taken = [pool.filesystems, sizes::MDV, pool.metadata, pool.metadata];
    if !pool.overprovisioning && Sectors::checked_sum(taken).is_none_or(|taken| taken >= pool.usable) {
        return Err(Exhausted::Promised);
    }
    // Without free metadata blocks no writes are possible, so any growth is better than none.
    let half = Sectors(pool.available.0 / 2).round_down(sizes::DATA_BLOCK);
    let growth = if is_out { growth.min(half) } else { growth };
    match growth.checked_add(growth) {
        Some(both) if both <= pool.available && growth > Sectors::ZERO => Ok(growth),
        _ => Err(Exhausted::Devices),
    }
}

/// A mounted filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesystemFill {
    /// Size of its thin device, as recorded.
    pub size: Sectors,
    /// The filesystem must not grow past this size.
    pub limit: Option<Sectors>,
    /// Size of the XFS as reported to users.
    pub total: Bytes,
    /// The part of it in use.
    pub used: Bytes,
}

/// The plan for a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// No change.
    None,
    /// Complete an interrupted extension: the XFS is smaller than the recorded size.
    Complete,
    /// Extend it by this size.
    By(Sectors),
}

/// Plans the growth of filesystems in a pool with this logical sector size. Every size is a
/// multiple of it. `room` is the space that the pool has left for all filesystems; `None`: together
/// they may be larger than the pool. The first filesystems in the list are served first.
pub fn filesystems(list: &[FilesystemFill], room: Option<Sectors>, sector: Sectors) -> Vec<Extension> {
    let mut left = room;
    let decide = |filesystem: &FilesystemFill| {
        if filesystem.used.0.saturating_mul(2) <= filesystem.total.0 {
            return Extension::None;
        }
        // The log and other metadata take an eighth of an XFS at most, and extensions usually
        // double its size.
        if filesystem.total.0 < filesystem.size.bytes().0 / 4 * 3 {
            return Extension::Complete;
        }
        let largest = filesystem.limit.unwrap_or(sizes::DEVICE_MAX).min(sizes::DEVICE_MAX);
        let growth =
            filesystem.size.min(largest.saturating_sub(filesystem.size)).min(left.unwrap_or(sizes::DEVICE_MAX));
        // Limits, and so the room, may date from a time when they were not checked.
        let grown = filesystem.size.saturating_add(growth).round_down(sector);
        let growth = grown.saturating_sub(filesystem.size);
        if growth == Sectors::ZERO {
            return Extension::None;
        }
        left = left.map(|left| left.saturating_sub(growth));
        Extension::By(growth)
    };
    list.iter().map(decide).collect()
}

/// The size that a thin device must have. Another daemon may have made the device larger than
/// recorded: that daemon extends device and XFS first and writes the record last. `xfs` is the size
/// of the XFS on the device, `mapped` the end of the last data block in use. Such a daemon is at
/// most one extension ahead of its record, so larger sizes are not believed.
pub fn outgrown(recorded: Sectors, limit: Option<Sectors>, xfs: Option<Sectors>, mapped: Option<Sectors>) -> Sectors {
    let largest = recorded.saturating_add(recorded).min(sizes::DEVICE_MAX);
    let xfs = xfs.filter(|xfs| *xfs <= largest).unwrap_or_default();
    let size = recorded.max(xfs);
    // The last block may extend past the end of the device.
    match mapped.filter(|mapped| Some(*mapped) > size.round_up(sizes::DATA_BLOCK)) {
        // The XFS has grown, but only its log shows that yet.
        Some(mapped) => limit.map_or(largest, |limit| limit.min(largest)).max(mapped),
        None => size,
    }
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;
