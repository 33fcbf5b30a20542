//! The rules of growth as tables, and properties of every plan.

use proptest::prelude::*;

use super::*;

const GIB: u64 = 2 << 20;

/// A pool with 100 GiB, of which 60 GiB are handed out. Its thin pool is half full.
fn calm() -> GrowthFacts {
    GrowthFacts {
        usable: Sectors(100 * GIB),
        available: Sectors(40 * GIB),
        metadata: Sectors(59_392),
        metadata_needed: Some(Sectors(59_392)),
        fs_limit: 100,
        fill: Some(Fill { metadata_free: 5000, metadata_low_water: Some(1024), data_free: DataBlocks(25_600) }),
        overprovisioning: true,
        filesystems: Sectors(10 * GIB),
        metadata_exhausted: false,
        writes_fail: false,
    }
}

fn with_free(data_free: u64) -> GrowthFacts {
    let fill = calm().fill.map(|fill| Fill { data_free: DataBlocks(data_free), ..fill });
    GrowthFacts { fill, ..calm() }
}

fn low_on_metadata() -> GrowthFacts {
    let fill = calm().fill.map(|fill| Fill { metadata_free: 1023, ..fill });
    GrowthFacts { fill, ..calm() }
}

fn check(pool: GrowthFacts, expected: Growth) {
    assert_eq!(super::pool(&pool), expected, "{pool:?}");
}

fn data(blocks: u64) -> Growth {
    Growth { data: Sectors(blocks * 2048), ..Growth::default() }
}

#[test]
fn data_grows_at_the_mark_and_not_before() {
    check(calm(), Growth::default());
    check(with_free(15_361), Growth::default());
    check(with_free(15_360), data(40 * 1024));
    check(with_free(0), data(40 * 1024));
    check(GrowthFacts { available: Sectors(400 * GIB), ..with_free(0) }, data(51_200));
    check(GrowthFacts { available: Sectors(2048 * 3 + 2047), ..with_free(0) }, data(3));
    check(GrowthFacts { fill: None, ..with_free(0) }, Growth::default());
}

#[test]
fn data_and_metadata_keep_their_own_space() {
    let unknown = |available| GrowthFacts { metadata_needed: None, available: Sectors(available), ..with_free(100) };
    check(unknown(400 * GIB), data(51_200));
    let held_back = (sizes::thin_metadata_at_most(Sectors(100 * GIB), 100).0 - 59_392) * 2;
    check(unknown(held_back + 3 * 2048), data(3));
    // There is no space now, but writes must not fail for that reason.
    check(unknown(held_back), Growth::default());
    check(unknown(2047), Growth { writes_fail: true, ..Growth::default() });
    // If the metadata cannot grow, no space is kept for it.
    check(GrowthFacts { metadata_exhausted: true, ..unknown(3 * 2048) }, data(3));
}

#[test]
fn writes_wait_only_while_space_is_left() {
    let full = GrowthFacts { available: Sectors(2047), ..with_free(15_360) };
    check(full, Growth { writes_fail: true, ..Growth::default() });
    check(GrowthFacts { available: Sectors(2047), ..with_free(15_361) }, Growth::default());
    check(GrowthFacts { writes_fail: true, ..full }, Growth { writes_fail: true, ..Growth::default() });
    check(GrowthFacts { writes_fail: true, available: Sectors(2048), ..full }, data(1));
    check(GrowthFacts { writes_fail: true, ..with_free(20_000) }, Growth::default());
    // A thin pool that does not report how full it is stays unchanged.
    check(GrowthFacts { writes_fail: true, fill: None, ..full }, Growth { writes_fail: true, ..Growth::default() });
}

#[test]
fn metadata_follows_the_need_and_doubles() {
    let needs = |needed| GrowthFacts { metadata_needed: Some(Sectors(needed)), ..calm() };
    check(needs(61_440), Growth { metadata: Sectors(2048), ..Growth::default() });
    check(needs(1024), Growth::default());
    check(GrowthFacts { metadata_needed: None, ..calm() }, Growth::default());
    check(low_on_metadata(), Growth { metadata: Sectors(59_392), ..Growth::default() });
    let unsaid = |metadata_free| calm().fill.map(|fill| Fill { metadata_free, metadata_low_water: None, ..fill });
    check(GrowthFacts { fill: unsaid(1), ..calm() }, Growth::default());
    check(GrowthFacts { fill: unsaid(0), ..calm() }, Growth { metadata: Sectors(59_392), ..Growth::default() });
    // If there are no free metadata blocks at all, less than twice the size will do.
    let scarce = GrowthFacts { fill: unsaid(0), available: Sectors(2 * 2048 + 1), ..calm() };
    check(scarce, Growth { metadata: Sectors(2048), ..Growth::default() });
    let huge = GrowthFacts { usable: Sectors(u64::MAX), available: Sectors(u64::MAX), ..low_on_metadata() };
    let metadata = Sectors(33_000_000);
    check(GrowthFacts { metadata, ..huge }, Growth { metadata: Sectors(292_288), ..Growth::default() });
}

#[test]
fn metadata_that_cannot_grow_stops_promises() {
    let scarce = GrowthFacts { available: Sectors(2 * 59_392 - 1), ..low_on_metadata() };
    let stopped = Growth { writes_fail: true, exhausted: Some(Exhausted::Devices), ..Growth::default() };
    check(scarce, stopped);
    // At the next check no growth is tried before the situation has changed.
    let known = GrowthFacts { metadata_exhausted: true, writes_fail: true, ..scarce };
    check(known, Growth { writes_fail: true, ..Growth::default() });
    let tight = GrowthFacts { overprovisioning: false, ..low_on_metadata() };
    let most = 100 * GIB - 1_048_576 - 2 * 59_392;
    let promised = GrowthFacts { filesystems: Sectors(most), ..tight };
    check(promised, Growth { exhausted: Some(Exhausted::Promised), ..Growth::default() });
    check(
        GrowthFacts { filesystems: Sectors(most - 1), ..tight },
        Growth { metadata: Sectors(59_392), ..Growth::default() },
    );
    check(
        GrowthFacts { overprovisioning: true, ..promised },
        Growth { metadata: Sectors(59_392), ..Growth::default() },
    );
}

#[test]
fn data_gets_what_metadata_leaves() {
    let both = GrowthFacts { metadata_needed: Some(Sectors(61_440)), available: Sectors(2048 * 5), ..with_free(0) };
    check(both, Growth { metadata: Sectors(2048), data: Sectors(2048 * 3), ..Growth::default() });
    let last = GrowthFacts { available: Sectors(2048 * 2), ..both };
    check(last, Growth { metadata: Sectors(2048), writes_fail: true, ..Growth::default() });
}

proptest! {
    /// No plan hands out more space than is available, partial data blocks, or more than one step.
    #[test]
    fn plans_are_covered(
        usable in 0..1_u64 << 40, available in 0..1_u64 << 40, metadata in 0..1_u64 << 26, needed in 0..1_u64 << 26,
        metadata_free in 0..4000_u64, data_free in 0..40_000_u64, filesystems in 0..1_u64 << 41, flags in 0..16_u8,
    ) {
        let pool = GrowthFacts {
            usable: Sectors(usable),
            available: Sectors(available),
            metadata: Sectors(metadata),
            metadata_needed: (flags & 8 == 0).then_some(Sectors(needed)),
            fs_limit: 100,
            fill: Some(Fill { metadata_free, metadata_low_water: Some(1024), data_free: DataBlocks(data_free) }),
            overprovisioning: flags & 1 == 0,
            filesystems: Sectors(filesystems),
            metadata_exhausted: flags & 2 == 0,
            writes_fail: flags & 4 == 0,
        };
        let plan = super::pool(&pool);
        prop_assert!(u128::from(plan.metadata.0) * 2 + u128::from(plan.data.0) <= u128::from(available));
        prop_assert!(plan.data.0.is_multiple_of(2048) && plan.data.0 <= 51_200 * 2048);
        prop_assert!(plan.data.0 == 0 || !plan.writes_fail);
        prop_assert!(plan.metadata.0 == 0 || plan.exhausted.is_none());
        // After a plan was carried out no further plan is needed, unless it was one step of
        // several.
        let fill = pool.fill.map(|fill| Fill {
            data_free: DataBlocks(data_free + plan.data.0 / 2048),
            metadata_free: metadata_free + plan.metadata.0 / 8,
            ..fill
        });
        let after = GrowthFacts {
            available: Sectors(available - plan.metadata.0 * 2 - plan.data.0),
            metadata: Sectors(metadata + plan.metadata.0),
            fill,
            metadata_exhausted: pool.metadata_exhausted || plan.exhausted.is_some(),
            writes_fail: plan.writes_fail,
            ..pool
        };
        let again = super::pool(&after);
        prop_assert!(again.exhausted.is_none() || plan.metadata.0 > 0, "{again:?}");
        prop_assert!(again.writes_fail == plan.writes_fail || plan.data.0 > 0 || plan.metadata.0 > 0, "{again:?}");
    }
}

fn filesystem(size: u64, used_percent: u64) -> FilesystemFill {
    let total = Bytes(u128::from(size) * 512 / 100 * 99);
    FilesystemFill { size: Sectors(size), limit: None, total, used: Bytes(total.0 / 100 * u128::from(used_percent)) }
}

#[test]
fn a_filesystem_doubles_when_half_full() {
    let full = filesystem(GIB, 51);
    let half = FilesystemFill { used: Bytes(full.total.0 / 2), ..full };
    assert_eq!(filesystems(&[full, half], None, Sectors(1)), [Extension::By(Sectors(GIB)), Extension::None]);
    let limited = |limit| FilesystemFill { limit: Some(Sectors(limit)), ..full };
    let list = [limited(GIB), limited(GIB + 8), limited(3 * GIB), limited(GIB - 8)];
    let expected = [Extension::None, Extension::By(Sectors(8)), Extension::By(Sectors(GIB)), Extension::None];
    assert_eq!(filesystems(&list, None, Sectors(1)), expected);
    let largest =
        FilesystemFill { size: Sectors(u64::MAX), total: Bytes(u64::MAX as u128 * 512), used: Bytes(1 << 100), ..full };
    assert_eq!(filesystems(&[largest], None, Sectors(1)), [Extension::None]);
}

#[test]
fn an_interrupted_extension_is_completed_first() {
    let full = filesystem(GIB, 80);
    let behind = FilesystemFill { size: Sectors(2 * GIB), ..full };
    assert_eq!(filesystems(&[behind], None, Sectors(1)), [Extension::Complete]);
    // The smallest XFS has 64 MiB of log in 512 MiB. That does not count as an interrupted
    // extension.
    let small = FilesystemFill { size: Sectors(GIB / 2), limit: None, total: Bytes(448 << 20), used: Bytes(300 << 20) };
    assert_eq!(filesystems(&[small], None, Sectors(1)), [Extension::By(Sectors(GIB / 2))]);
}

#[test]
fn room_is_shared_in_order() {
    let full = filesystem(GIB, 80);
    let by = |size| Extension::By(Sectors(size));
    assert_eq!(
        filesystems(&[full, full, full], Some(Sectors(GIB + 4096)), Sectors(1)),
        [by(GIB), by(4096), Extension::None]
    );
    assert_eq!(filesystems(&[full], Some(Sectors(0)), Sectors(1)), [Extension::None]);
}

#[test]
fn a_device_grows_by_whole_logical_sectors() {
    let full = FilesystemFill { limit: Some(Sectors(GIB + 4097)), ..filesystem(GIB, 80) };
    let check = |list: &[FilesystemFill], room: Option<u64>, expected: u64| {
        let expected = if expected == 0 { Extension::None } else { Extension::By(Sectors(expected)) };
        assert_eq!(filesystems(list, room.map(Sectors), Sectors(8)), [expected]);
    };
    check(&[full], None, 4096);
    check(&[FilesystemFill { limit: Some(Sectors(GIB + 7)), ..full }], None, 0);
    check(&[FilesystemFill { limit: None, ..full }], Some(4099), 4096);
    // A size that is not a multiple is rounded.
    check(&[FilesystemFill { limit: None, size: Sectors(GIB + 1), ..full }], Some(15), 15);
    let largest = Sectors(sizes::DEVICE_MAX.0 / 2 + 1);
    check(
        &[FilesystemFill { limit: None, total: largest.bytes(), used: largest.bytes(), size: largest }],
        None,
        largest.0 - 8,
    );
}

#[test]
fn a_device_becomes_as_large_as_its_xfs() {
    let size = |xfs: u64, mapped: u64| outgrown(Sectors(GIB), None, Some(Sectors(xfs)), Some(Sectors(mapped))).0;
    assert_eq!(size(GIB, GIB), GIB);
    assert_eq!(size(GIB + 8, 4096), GIB + 8);
    assert_eq!(size(2 * GIB, 4096), 2 * GIB);
    // No daemon is more than one extension ahead of its record.
    assert_eq!(size(2 * GIB + 8, 4096), GIB);
    // Data past the end shows that the XFS is larger than its superblock says.
    assert_eq!(size(GIB, GIB + 2048), 2 * GIB);
    let limited = |mapped: u64| outgrown(Sectors(GIB), Some(Sectors(GIB + 9000)), None, Some(Sectors(mapped))).0;
    assert_eq!(limited(GIB + 2048), GIB + 9000);
    assert_eq!(limited(GIB + 10 * 2048), GIB + 10 * 2048);
    // The last block of a device whose size is not a multiple of the block size.
    assert_eq!(outgrown(Sectors(GIB + 8), None, None, Some(Sectors(GIB + 2048))).0, GIB + 8);
    assert_eq!(outgrown(Sectors(GIB), None, None, None).0, GIB);
}
