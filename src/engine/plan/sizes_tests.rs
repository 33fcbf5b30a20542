//! The numbers of storage-stack.md §4, 7.2, 7.3, 9.2 and of the worked examples.

use proptest::prelude::*;

use super::*;
use crate::engine::metadata::TagSpec;

const GIB: u64 = 2_097_152;

#[test]
fn reservations_match_the_worked_example() {
    let spec = IntegritySpec::default();
    assert_eq!(integrity_reservation(Sectors(20_971_520), &spec), Ok(Sectors(589_832)));
    let nothing =
        IntegritySpec { tag_spec: TagSpec::B0, journal_size: Sectors(0), block_size: 4096, allocate_superblock: false };
    assert_eq!(integrity_reservation(Sectors(20_971_520), &nothing), Ok(Sectors(0)));
    assert!(nothing.asks_for_nothing() && !spec.asks_for_nothing());
    let small = IntegritySpec { tag_spec: TagSpec::B32, ..nothing };
    // 2 621 440 blocks with 4 bytes each. One block more takes another 4 KiB.
    assert_eq!(integrity_reservation(Sectors(20_971_520), &small), Ok(Sectors(20_480)));
    assert_eq!(integrity_reservation(Sectors(20_971_527), &small), Ok(Sectors(20_480)));
    assert_eq!(integrity_reservation(Sectors(20_971_528), &small), Ok(Sectors(20_488)));
}

#[test]
fn reservations_that_cannot_be_are_errors() {
    let spec = IntegritySpec { block_size: 0, ..IntegritySpec::default() };
    assert_eq!(integrity_reservation(Sectors(8), &spec), Err(SizeError::IntegrityBlock(0)));
    let tiny = IntegritySpec { block_size: 1, ..IntegritySpec::default() };
    assert_eq!(integrity_reservation(Sectors(u64::MAX), &tiny), Err(SizeError::Overflow));
    let journal = IntegritySpec { journal_size: Sectors(u64::MAX), ..IntegritySpec::default() };
    assert_eq!(integrity_reservation(Sectors(8), &journal), Err(SizeError::Overflow));
}

#[test]
fn integrity_settings_have_a_granularity() {
    assert_eq!(check_integrity_spec(&IntegritySpec::default()), Ok(()));
    let journal = IntegritySpec { journal_size: Sectors(7), ..IntegritySpec::default() };
    assert_eq!(check_integrity_spec(&journal), Err(SizeError::Journal(Sectors(7))));
    for block_size in [0, 256, 4095] {
        let block = IntegritySpec { block_size, ..IntegritySpec::default() };
        assert_eq!(check_integrity_spec(&block), Err(SizeError::IntegrityBlock(block_size)));
    }
}

#[test]
fn thin_metadata_is_what_the_samples_say() {
    let samples = [
        ("872", 8192),
        ("1432\n", 12_288),
        (" 1456\n", 12_288),
        ("7304", 59_392),
        ("67384", 540_672),
        ("666568", 5_332_992),
        ("4161536", 33_292_288),
        ("4161537", 33_292_288),
        ("18446744073709551615", 33_292_288),
    ];
    for (printed, expected) in samples {
        assert_eq!(thin_metadata(printed), Ok(Sectors(expected)), "{printed}");
    }
    for bad in ["", "no", "-1", "1.5", "12 sectors"] {
        assert_eq!(thin_metadata(bad), Err(SizeError::ThinMetadataSize(bad.to_owned())));
    }
    assert_eq!(THIN_METADATA_MAX, Sectors(255 * (16_384 - 64) * 8).round_down(DATA_BLOCK));
}

#[test]
fn asks_thin_metadata_size_as_specified() {
    let expected = ["-b", "1048576b", "-s", "10413404160b", "-m", "100", "-n"];
    assert_eq!(thin_metadata_size_arguments(Sectors(20_338_680), FS_LIMIT), expected);
}

#[test]
fn initial_sizes_are_those_of_the_worked_examples() {
    let v2 = 20_971_520 - 8192 - 589_832 - CRYPT_RESERVATION.0;
    assert_eq!(v2, 20_338_680);
    let request = |usable, meta| initial(Sectors(usable), Sectors(meta)).map(|initial| initial.request().map(|s| s.0));
    assert_eq!(request(v2, 12_288), Ok([12_288, 12_288, 19_263_488, 1_048_576]));
    assert_eq!(request(20_971_520 - 8192, 12_288), Ok([12_288, 12_288, 19_890_176, 1_048_576]));
    // At most 50 GiB of data initially.
    assert_eq!(request(1024 * GIB, 540_672), Ok([540_672, 540_672, 104_857_600, 1_048_576]));
}

#[test]
fn a_pool_without_room_for_data_is_refused() {
    assert_eq!(room(Sectors(1_048_576), Sectors(0)), Sectors(0));
    assert_eq!(room(Sectors(1_048_576 + 20), Sectors(9)), Sectors(2));
    assert_eq!(room(Sectors(1_048_576 + 20), Sectors(11)), Sectors(0));
    let usable = Sectors(1_048_576 + 2 * 2048 + 2047);
    assert_eq!(initial(usable, Sectors(2048)), Err(SizeError::TooSmall { usable }));
    assert_eq!(initial(Sectors(usable.0 + 1), Sectors(2048)).unwrap().data, DATA_BLOCK);
}

#[test]
fn low_water_and_growth_have_their_limits() {
    assert_eq!(low_water(Sectors(19_263_488)), DataBlocks(4703));
    assert_eq!(low_water(Sectors(104_857_600)), DataBlocks(15_360));
    assert_eq!(data_growth(Sectors(2047)), None);
    assert_eq!(data_growth(Sectors(2 * 2048 + 1)), Some(Sectors(4096)));
    assert_eq!(data_growth(Sectors(u64::MAX)), Some(Sectors(104_857_600)));
    assert_eq!(blocks(Sectors(19_263_488)), DataBlocks(9406));
}

#[test]
fn filesystem_sizes_are_checked() {
    let check = |size: u64, limit: Option<u64>| check_new_filesystem(Sectors(size), limit.map(Sectors), Sectors(1));
    let default = FILESYSTEM_DEFAULT.0;
    assert_eq!(check(default, None), Ok(()));
    assert_eq!(check(1_048_576, Some(1_048_576)), Ok(()));
    assert_eq!(check(1_048_577, Some(1_048_579)), Ok(()));
    assert_eq!(check(1_048_575, None), Err(SizeError::FilesystemTooSmall(Sectors(1_048_575))));
    let too_large = Sectors(DEVICE_MAX.0 + 1);
    assert_eq!(check(too_large.0, None), Err(SizeError::FilesystemTooLarge(too_large)));
    for limit in [too_large.0, u64::MAX] {
        assert_eq!(check(default, Some(limit)), Ok(()));
    }
    assert_eq!(check(default, Some(8)), Err(SizeError::FilesystemTooSmall(Sectors(8))));
    let (limit, size) = (Sectors(2_147_483_647), FILESYSTEM_DEFAULT);
    assert_eq!(check(default, Some(limit.0)), Err(SizeError::LimitBelowSize { limit, size }));
}

#[test]
fn sizes_consist_of_whole_logical_sectors() {
    let sector = Sectors(8);
    let check = |size: u64, limit: Option<u64>| check_new_filesystem(Sectors(size), limit.map(Sectors), sector);
    let refused = |size| Err(SizeError::PartOfPoolSector { size: Sectors(size), sector });
    assert_eq!(check(1_048_584, Some(1_048_592)), Ok(()));
    assert_eq!(check(1_048_577, None), refused(1_048_577));
    assert_eq!(check(1_048_576, Some(1_048_583)), refused(1_048_583));
    assert_eq!(
        SizeError::PartOfPoolSector { size: Sectors(1_048_577), sector }.to_string(),
        "a size of 536871424 bytes is not a multiple of the pool's logical sector size of 4096 bytes; round it"
    );
}

proptest! {
    #[test]
    fn initial_parts_fit_and_data_is_whole_blocks(usable: u64, meta in 0..33_292_288_u64) {
        if let Ok(initial) = initial(Sectors(usable), Sectors(meta)) {
            let sum = Sectors::checked_sum(initial.request()).unwrap();
            prop_assert!(sum.0 <= usable);
            prop_assert_eq!(initial.data.round_down(DATA_BLOCK), initial.data);
            prop_assert!(initial.data > Sectors(0) && blocks(initial.data) <= DATA_STEP);
        }
    }

    #[test]
    fn reservations_are_blocks_and_grow_with_devices(size in 0..1_u64 << 50, more in 0..1_u64 << 40) {
        let spec = IntegritySpec::default();
        let small = integrity_reservation(Sectors(size), &spec).unwrap();
        let large = integrity_reservation(Sectors(size + more), &spec).unwrap();
        prop_assert!(small <= large && small.0.is_multiple_of(8) && large.0.is_multiple_of(8));
    }
}

#[test]
fn the_metadata_bound_exceeds_the_programs_answer() {
    // Size of the pool in GiB, and the output for 100 filesystems
    // (`docs/spec/engine/storage-stack.md` §7.2).
    for (gib, printed) in [(1, "872"), (10, "1456"), (100, "7304"), (1024, "67384"), (10 * 1024, "666568")] {
        let (needed, bound) = (thin_metadata(printed).unwrap(), thin_metadata_at_most(Sectors(gib << 21), 100));
        assert!(needed < bound && bound.0 < needed.0 * 4, "{gib} GiB: {needed} and {bound}");
    }
    assert_eq!(thin_metadata_at_most(Sectors(u64::MAX), u64::MAX), THIN_METADATA_MAX);
    // Twice a block for each filesystem, and eight times that like everything else.
    let filesystems = 100_000;
    assert!(thin_metadata_at_most(Sectors(0), filesystems).0 >= 2 * METADATA_BLOCK.0 * filesystems * 8);
}

#[test]
fn log_and_groups_follow_the_pool() {
    let mib = |mib: u64| Sectors(mib << 11);
    // Filesystem, pool, log, groups; in MiB.
    let samples = [
        // A filesystem that is small itself gets what mkfs.xfs chooses.
        (512, 4 << 10, None, None),
        (8 << 10, 4 << 10, None, None),
        (128 << 10, 4 << 10, None, Some(8)),
        // A large one in a small pool gets the smallest usual log.
        (1 << 20, 4 << 10, Some(64), Some(8)),
        (129 << 10, 128 << 10, Some(64), Some(8)),
        // In a larger pool, a 2048th of it, in whole data blocks.
        (1 << 20, (256 << 10) + 1000, Some(128), Some(8)),
        // Never more than mkfs.xfs would make.
        (1 << 20, 1 << 20, None, None),
        (1 << 30, 4 << 20, None, None),
        (1 << 30, 2 << 20, Some(1024), None),
        // A group has at most half a TiB.
        (4 << 20, 1 << 10, Some(64), Some(9)),
        ((4 << 20) - 1, 1 << 10, Some(64), Some(8)),
        (16 << 20, 1 << 10, Some(64), None),
    ];
    for (filesystem, pool, log, groups) in samples {
        let expected = XfsParameters { log: log.map(|log| mib(log).bytes()), groups };
        assert_eq!(xfs_parameters(mib(filesystem), mib(pool)), expected, "{filesystem} {pool}");
    }
}
