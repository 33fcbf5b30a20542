//! How the daemon notices in time that a filesystem is filling up
//! (`docs/spec/engine/storage-stack.md` §9.5 describes what it does then).
//!
//! The kernel raises one event when the number of free data blocks of a thin pool falls to the
//! low-water mark. The usual mark serves the thin pool itself, which must grow in time. But a
//! filesystem can be full long before that, and no other event reports that a filesystem is filling
//! up. So the daemon sets the mark closer, and moves it again whenever it was passed.
//!
//! This has a cost. The kernel accepts a new mark only with a new table. To load it, the kernel
//! suspends every thin device of the pool, one after the other, and waits for a grace period of its
//! locks at each: some ms for each filesystem, in which the pool does no I/O. With few filesystems,
//! users do not notice. With hundreds, a mark that moves every 256 MiB would leave no time for
//! other I/O. In such a pool the mark is moved only when there are no writes. As long as there are
//! writes, the daemon checks the pool by time, which costs one query to the kernel.
//!
//! This module handles numbers. It must never depend on the kernel or the clock.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    base::units::{DataBlocks, Sectors},
    engine::{metadata::FilesystemRecord, plan::sizes},
};

/// Bounds of the number of data blocks given out before the next check of filesystems. Above the
/// upper bound, a new filesystem could fill up before the check. Below the lower bound, I/O would
/// be delayed too often.
const LOOK_AFTER: RangeInclusive<u64> = 32..=1024;
/// The mark may be moved each time that this many data blocks were given out for each thin device.
/// A disk that writes 1 GiB in a second needs 31 ms to fill them, and the kernel needs about 10 ms
/// to suspend the device.
const BLOCKS_PER_DEVICE: u64 = 32;
/// Ten times as long as the kernel takes to suspend a thin device. If the mark may not be moved
/// otherwise, it may be moved after a time without writes: this long, times the number of thin
/// devices.
const QUIET_PER_DEVICE: Duration = Duration::from_millis(100);
/// The most data blocks given out in a second: disks write at most 2 GiB in a second.
const BLOCKS_PER_SECOND: u64 = 2048;
/// Bounds of the time to the next check.
const LOOK_AGAIN: RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(5);

/// A filesystem whose space is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// Size of its thin device.
    pub size: Sectors,
    /// The mapped part of it.
    pub mapped: Sectors,
    /// The filesystem must not grow past this size.
    pub limit: Option<Sectors>,
}

impl Watched {
    /// The filesystem of a record, with this much of it mapped.
    pub fn new(record: &FilesystemRecord, mapped: Sectors) -> Watched {
        Watched { size: record.size, mapped, limit: record.fs_size_limit }
    }

    /// Whether there is a reason to watch the filesystem.
    pub fn may_grow(&self) -> bool {
        // A limit may be larger than any device.
        self.limit.unwrap_or(sizes::DEVICE_MAX).min(sizes::DEVICE_MAX) > self.size
    }

    /// The space left in the filesystem. A filesystem that was filled and emptied again already has
    /// its blocks; it counts as having a quarter of its size left.
    fn room(self) -> Sectors {
        self.size.saturating_sub(self.mapped).max(Sectors(self.size.0 / 4))
    }
}

/// A thin pool that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchFacts {
    /// The low-water mark in force.
    pub mark: DataBlocks,
    /// The usual mark, for the thin pool itself.
    pub usual: DataBlocks,
    /// Free data blocks.
    pub free: DataBlocks,
    /// The number of thin devices.
    pub devices: u64,
    /// How long no write has been seen.
    pub quiet: Duration,
}

/// How to watch a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watching {
    /// The mark that the thin pool should have. A mark that serves its purpose stays.
    pub mark: DataBlocks,
    /// When to check the pool again, if no event will come.
    pub look_again: Option<Duration>,
}

impl Watching {
    fn by_event(mark: DataBlocks) -> Watching {
        Watching { mark, look_again: None }
    }
}

/// Plans how to watch these filesystems of a pool.
///
/// The mark lies below the free blocks by no more than a quarter of the room in the filesystem with
/// the least room. The time to the next check is no longer than it takes to fill a quarter of that
/// room, or to use up the free blocks above the usual mark.
pub fn watch(pool: &WatchFacts, filesystems: impl IntoIterator<Item = Watched>) -> Watching {
    let WatchFacts { mark, usual, free, devices, quiet } = *pool;
    let Some(least) = filesystems.into_iter().filter(Watched::may_grow).map(Watched::room).min() else {
        return Watching::by_event(usual);
    };
    let quarter = sizes::blocks(least).0 / 4;
    let step = quarter.clamp(*LOOK_AFTER.start(), *LOOK_AFTER.end());
    if mark < free && free.saturating_sub(mark).0 <= step {
        return Watching::by_event(mark);
    }
    let may_move = step >= devices.saturating_mul(BLOCKS_PER_DEVICE)
        || quiet >= QUIET_PER_DEVICE.saturating_mul(u32::try_from(devices).unwrap_or(u32::MAX));
    // Below the usual mark, the event of that mark has been raised, and the daemon has already
    // reacted as far as possible.
    let above_usual = Some(free.saturating_sub(usual)).filter(|above| above.0 > 0);
    if may_move {
        let soon = free.saturating_sub(DataBlocks(step));
        return Watching::by_event(if above_usual.is_some() { soon.max(usual) } else { soon });
    }
    let ahead = above_usual.map_or(quarter, |above| above.0.min(quarter));
    let time = Duration::from_millis(ahead.saturating_mul(1000) / BLOCKS_PER_SECOND);
    Watching { mark, look_again: Some(time.clamp(*LOOK_AGAIN.start(), *LOOK_AGAIN.end())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 21;
    const USUAL: u64 = 15_360;

    fn watched(size: u64, mapped: u64, limit: Option<u64>) -> Watched {
        Watched { size: Sectors(size), mapped: Sectors(mapped), limit: limit.map(Sectors) }
    }

    fn pool(mark: u64, free: u64, devices: u64, quiet: u64) -> WatchFacts {
        WatchFacts {
            mark: DataBlocks(mark),
            usual: DataBlocks(USUAL),
            free: DataBlocks(free),
            devices,
            quiet: Duration::from_millis(quiet),
        }
    }

    #[test]
    fn no_filesystem_grows_past_the_largest_device() {
        for limit in [None, Some(sizes::DEVICE_MAX.0), Some(u64::MAX)] {
            assert!(watched(GIB, GIB, limit).may_grow());
            assert!(!watched(sizes::DEVICE_MAX.0, GIB, limit).may_grow());
        }
        assert!(!watched(GIB, GIB, Some(GIB)).may_grow());
    }

    #[test]
    fn the_mark_keeps_a_quarter_of_the_room() {
        let mark = |now, free, list: &[Watched]| {
            let watching = watch(&pool(now, free, 1, 0), list.iter().copied());
            assert_eq!(watching.look_again, None, "there is an event");
            watching.mark.0
        };
        let one = [watched(2 * GIB, GIB, None)];
        assert_eq!(mark(15_360, 100_000, &one), 100_000 - 256, "1 GiB is left");
        assert_eq!(mark(100_000 - 256, 100_000, &one), 100_000 - 256);
        assert_eq!(mark(100_000 - 256, 99_800, &one), 100_000 - 256, "its event will come soon enough");
        assert_eq!(mark(100_000 - 256, 99_744, &one), 99_744 - 256, "its event has come");
        assert_eq!(mark(15_360, 15_400, &one), 15_360, "the usual mark comes before");
        assert_eq!(mark(15_360, 15_360, &one), 15_360 - 256, "and has come");
        assert_eq!(mark(15_360, 100, &one), 0, "there is no mark below the last block");
        assert_eq!(mark(0, 0, &one), 0);
        let new = [watched(1024 * GIB, 0, None)];
        assert_eq!(mark(15_360, 100_000, &new), 100_000 - 1024, "not more than a new one needs");
        let emptied = [watched(GIB, GIB, None)];
        assert_eq!(mark(15_360, 100_000, &emptied), 100_000 - 64, "blocks that were emptied are used first");
        assert_eq!(mark(15_360, 100_000, &[watched(GIB / 2, GIB / 2, None)]), 100_000 - 32);
        assert_eq!(mark(99_000, 100_000, &[watched(GIB, 0, Some(GIB))]), 15_360, "that one does not grow");
        assert_eq!(mark(99_000, 100_000, &[]), 15_360);
        let both = [one[0], watched(GIB, GIB / 2, None)];
        assert_eq!(mark(15_360, 100_000, &both), 100_000 - 128, "the one with the least room");
    }

    #[test]
    fn with_many_devices_the_mark_moves_when_idle() {
        let one = || [watched(2 * GIB, GIB, None)];
        let watch = |mark, free, devices, quiet| watch(&pool(mark, free, devices, quiet), one());
        let by_event = |mark| Watching::by_event(DataBlocks(mark));
        assert_eq!(watch(99_744, 99_744, 8, 0), by_event(99_744 - 256), "256 blocks for 8 of them are not too few");
        let by_time = Watching { mark: DataBlocks(99_744), look_again: Some(Duration::from_millis(250)) };
        assert_eq!(watch(99_744, 99_744, 9, 0), by_time, "the event has come, and they write");
        assert_eq!(watch(99_744, 99_000, 9, 899), by_time);
        assert_eq!(watch(99_744, 99_000, 9, 900), by_event(99_000 - 256), "they have written");
        assert_eq!(watch(99_744, 99_745, 1000, 0), by_event(99_744), "the event will come");
        assert_eq!(watch(USUAL, 99_000, 1000, 99_999).mark.0, USUAL);
        assert_eq!(watch(USUAL, 99_000, 1000, 100_000), by_event(99_000 - 256));
    }

    #[test]
    fn the_next_look_comes_before_room_shrinks() {
        let look = |size, free| {
            let watching = watch(&pool(99_999, free, 1000, 0), [watched(size, 0, None)]);
            watching.look_again.expect("they write").as_millis()
        };
        assert_eq!(
            look(GIB, 90_000),
            250,
            "it may be four times as much as is thought fastest until a quarter is full"
        );
        assert_eq!(look(16 * GIB, 90_000), 2000);
        assert_eq!(look(1024 * GIB, 90_000), 5000);
        assert_eq!(look(1024 * GIB, USUAL + 2048), 1000, "by then the thin pool itself must grow");
        assert_eq!(look(16 * GIB, USUAL), 2000, "past that its event has come");
    }
}
