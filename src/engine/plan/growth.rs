//! When a thin pool and its filesystems grow, and by how much (`docs/spec/engine/storage-stack.md` §7.6, 7.7, 9.5).
//!
//! From what the kernel says and what is recorded to what is to be done; doing it is another matter.

use crate::{
    base::units::{Bytes, DataBlocks, Sectors},
    engine::plan::sizes,
};

/// What the kernel says of a thin pool, as far as growth looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Blocks of the metadata device that are free.
    pub metadata_free: u64,
    /// With fewer than these the kernel raises an event; older kernels do not say.
    pub metadata_low_water: Option<u64>,
    /// Data blocks that are free.
    pub data_free: DataBlocks,
}

/// What is known of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Space of its devices for everything but Stratis' own metadata.
    pub usable: Sectors,
    /// What of that has not been handed out.
    pub available: Sectors,
    /// Size of the thin pool's metadata device, and of its spare.
    pub metadata: Sectors,
    /// What that size should be; `None` if that is not known yet.
    pub metadata_needed: Option<Sectors>,
    /// How many filesystems it may have.
    pub fs_limit: u64,
    /// How full the thin pool is; `None` if it does not say.
    pub fill: Option<Fill>,
    /// Whether filesystems may be larger together than the pool.
    pub overprovisioning: bool,
    /// Sum of the filesystems' sizes.
    pub filesystems: Sectors,
    /// Metadata was found unable to grow, and nothing has changed since.
    pub metadata_exhausted: bool,
    /// Writes fail when no data blocks are left, because there was nothing more to hand out.
    pub writes_fail: bool,
}

/// Why a thin pool's metadata cannot grow although it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The devices do not have the space.
    Devices,
    /// The space is promised to filesystems, since overprovisioning is not allowed.
    Promised,
}

/// What is to be done with a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Growth {
    /// By how much the metadata device grows, and its spare as well.
    pub metadata: Sectors,
    /// By how much the data device grows.
    pub data: Sectors,
    /// Whether writes are to fail when no data blocks are left.
    pub writes_fail: bool,
    /// Why metadata does not grow although it should, if that was found out just now.
    pub exhausted: Option<Exhausted>,
}

/// What is to be done with a pool. Metadata comes first: data without mappings is of no use.
pub fn pool(pool: &Pool) -> Growth {
    let (metadata, exhausted) = match metadata(pool) {
        Ok(growth) => (growth, None),
        Err(exhausted) => (Sectors::ZERO, Some(exhausted)),
    };
    let kept = Growth { metadata, data: Sectors::ZERO, writes_fail: pool.writes_fail, exhausted };
    if exhausted == Some(Exhausted::Devices) {
        return Growth { writes_fail: true, ..kept };
    }
    let Some(fill) = pool.fill else { return kept };
    // The kernel's event comes when the mark is reached, so reaching it must do; it does not come a second time.
    let is_low = fill.data_free <= sizes::DATA_LOW_WATER;
    let without = |size: Sectors| pool.available.saturating_sub(size).saturating_sub(size);
    match sizes::data_growth(without(metadata.max(held_back(pool)))) {
        // Where metadata cannot grow, the fewest writes are promised that can be kept.
        Some(_) if pool.writes_fail && pool.metadata_exhausted => kept,
        Some(data) if is_low => Growth { data, writes_fail: false, ..kept },
        // There is space again: a disk was added by a daemon that did not get further.
        Some(_) => Growth { writes_fail: false, ..kept },
        // There is some, when it is known how much.
        None if sizes::data_growth(without(metadata)).is_some() => kept,
        None => Growth { writes_fail: pool.writes_fail || is_low, ..kept },
    }
}

/// By how much the metadata device may have to grow at most, where that is not known: data does not wait until it is, but
/// must not take away what is needed then.
fn held_back(pool: &Pool) -> Sectors {
    match pool.metadata_needed {
        None if !pool.metadata_exhausted => {
            sizes::thin_metadata_at_most(pool.usable, pool.fs_limit).saturating_sub(pool.metadata)
        }
        _ => Sectors::ZERO,
    }
}

/// By how much the metadata device grows, and its spare as well.
fn metadata(pool: &Pool) -> Result<Sectors, Exhausted> {
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
    // The kernel makes no use of more.
    let growth = wanted.min(sizes::THIN_METADATA_MAX).saturating_sub(pool.metadata);
    if growth == Sectors::ZERO {
        return Ok(growth);
    }
    let taken = [pool.filesystems, sizes::MDV, pool.metadata, pool.metadata];
    if !pool.overprovisioning && Sectors::checked_sum(taken).is_none_or(|taken| taken >= pool.usable) {
        return Err(Exhausted::Promised);
    }
    // Without any metadata left not a block can be written, so whatever there is will do.
    let half = Sectors(pool.available.0 / 2).round_down(sizes::DATA_BLOCK);
    let growth = if is_out { growth.min(half) } else { growth };
    match growth.checked_add(growth) {
        Some(both) if both <= pool.available && growth > Sectors::ZERO => Ok(growth),
        _ => Err(Exhausted::Devices),
    }
}

/// A mounted filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    /// Size of its thin device, as recorded.
    pub size: Sectors,
    /// It does not grow past this.
    pub limit: Option<Sectors>,
    /// Size of the XFS, as it tells its users.
    pub total: Bytes,
    /// Of that in use.
    pub used: Bytes,
}

/// What is to be done with a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// Nothing.
    None,
    /// Its XFS is smaller than the size that is recorded, because an extension was cut short: that is completed.
    Complete,
    /// It grows by so much.
    By(Sectors),
}

/// What is to be done with filesystems in a pool with this logical sector size, of which every size is a multiple. `room` is
/// what the pool has left for them together; `None`: they may be larger than the pool. Who comes first is served first.
pub fn filesystems(list: &[Filesystem], room: Option<Sectors>, sector: Sectors) -> Vec<Extension> {
    let mut left = room;
    let decide = |filesystem: &Filesystem| {
        if filesystem.used.0.saturating_mul(2) <= filesystem.total.0 {
            return Extension::None;
        }
        // Its log and other metadata take an eighth of an XFS at most, and extensions double it mostly.
        if filesystem.total.0 < filesystem.size.bytes().0 / 4 * 3 {
            return Extension::Complete;
        }
        let largest = filesystem.limit.unwrap_or(sizes::DEVICE_MAX).min(sizes::DEVICE_MAX);
        let growth =
            filesystem.size.min(largest.saturating_sub(filesystem.size)).min(left.unwrap_or(sizes::DEVICE_MAX));
        // Limits may be of an age in which they were not checked, and so may the room be.
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

/// The size that a thin device must have, which another daemon may have made larger than is recorded: that one extends device
/// and XFS first, and writes the record last. `xfs` is the size that the XFS on it has, `mapped` the end of the last data
/// block that is in use. Such a daemon has gone one extension ahead of its record at most, so nothing larger is believed.
pub fn outgrown(recorded: Sectors, limit: Option<Sectors>, xfs: Option<Sectors>, mapped: Option<Sectors>) -> Sectors {
    let largest = recorded.saturating_add(recorded).min(sizes::DEVICE_MAX);
    let xfs = xfs.filter(|xfs| *xfs <= largest).unwrap_or_default();
    let size = recorded.max(xfs);
    // The last block may lie past the end of the device in part.
    match mapped.filter(|mapped| Some(*mapped) > size.round_up(sizes::DATA_BLOCK)) {
        // The XFS has grown, and only its log says so yet.
        Some(mapped) => limit.map_or(largest, |limit| limit.min(largest)).max(mapped),
        None => size,
    }
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;
