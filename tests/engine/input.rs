//! Bad input is refused with a clear error and changes nothing.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use stratisd::{
    base::{
        name::{NameError, TextPurpose},
        units::{Bytes, Sectors},
    },
    engine::{
        Error, Result,
        encryption::KeyDescription,
        error::Error::*,
        metadata::{IntegritySpec, MetadataVersion, TagSpec},
        ops::{self, NewFilesystem, NewPool},
        plan::{sector_rules::SectorError, sizes::SizeError},
    },
    platform::{
        self, Platform,
        sim::{CallKind, Preset, Sim},
    },
    view::DeviceTier,
};
use support::bench::{Bench, GIB, name};

use crate::witness::Witness;

const TIB: Sectors = Sectors(1 << 31);
/// The longest wait for an event that must happen.
const LIMIT: Duration = Duration::from_secs(60);

/// A machine with devices of every unusable kind, and with pools `p` on `/dev/a` and `other` on
/// `/dev/other`.
fn machine() -> Bench {
    let sim = Sim::builder()
        .disk("/dev/good", TIB)
        .second_node("/dev/good-twin")
        .disk("/dev/a", TIB)
        .disk("/dev/other", TIB)
        .disk("/dev/small", Sectors((2 << 20) - 1))
        .disk("/dev/xfs", TIB)
        .holding(Preset::Xfs)
        .disk("/dev/mounted", TIB)
        .holding(Preset::Xfs)
        .disk("/dev/luks", TIB)
        .holding(Preset::Luks)
        .disk("/dev/table", TIB)
        .holding(Preset::PartitionTable(2))
        .disk("/dev/multipath", TIB)
        .multipath_member()
        .disk("/dev/swap", TIB)
        .in_use()
        .disk("/dev/read-only", TIB)
        .read_only()
        .disk("/dev/4k", TIB)
        .logical(4096)
        .disk("/dev/512e", TIB)
        .physical(4096)
        .disk("/dev/torn", TIB)
        .link("/dev/disk/by-id/good", "/dev/good")
        .only_these()
        .build();
    let mut bench = Bench::start(sim);
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_pool("other", &["/dev/other"]).unwrap();
    // `/dev/torn` was in a pool that has been destroyed.
    bench.create_pool("gone", &["/dev/torn"]).unwrap();
    bench.run(ops::destroy_pool(bench.id("gone"))).unwrap();
    bench.sim.mount_user("/dev/mounted".as_ref(), "/mnt/mounted".as_ref()).unwrap();
    bench
}

fn paths(paths: &[&str]) -> Vec<PathBuf> {
    paths.iter().map(PathBuf::from).collect()
}

fn add(bench: &mut Bench, devices: &[&str]) -> Result<usize> {
    bench.run(ops::add_data_devices(bench.id("p"), paths(devices))).map(|added| added.len())
}

/// Devices that are refused both for a new pool and as an addition to a pool.
type Refusal = (&'static [&'static str], fn(&Error) -> bool);

const REFUSED: &[Refusal] = &[
    (&["/dev/good", "/dev/none"], |e| matches!(e, Platform(platform::Error::NoDevice { path }) if path == "/dev/none")),
    (&["/dev/good", "dev/good", "b"], |e| matches!(e, RelativePaths(paths) if paths.len() == 2)),
    (&["/dev/good", "/dev/good-twin"], |e| matches!(e, SameDevice(..))),
    (&["/dev/good", "/dev/small"], |e| matches!(e, TooSmall { size: Sectors(2_097_151), .. })),
    (&["/dev/good", "/dev/xfs"], |e| matches!(e, Foreign { what, .. } if what.contains("xfs"))),
    (&["/dev/good", "/dev/mounted"], |e| matches!(e, Foreign { what, .. } if what.contains("xfs"))),
    (&["/dev/good", "/dev/luks"], |e| matches!(e, Foreign { what, .. } if what.contains("LUKS"))),
    (&["/dev/good", "/dev/table"], |e| matches!(e, Foreign { what, .. } if what.contains("partition"))),
    (&["/dev/good", "/dev/multipath"], |e| matches!(e, Foreign { what, .. } if what.contains("multipath"))),
    (&["/dev/good", "/dev/swap"], |e| matches!(e, InUse { path } if path == "/dev/swap")),
    (&["/dev/good", "/dev/read-only"], |e| matches!(e, ReadOnly { path } if path == "/dev/read-only")),
    (&["/dev/good", "/dev/4k"], |e| matches!(e, SectorSizes(SectorError::Mixed(..)))),
    (&["/dev/good", "/dev/512e"], |e| matches!(e, SectorSizes(SectorError::Mixed(..)))),
    (&["/dev/good", "/dev/other"], |e| matches!(e, OwnedByPool { path, .. } if path == "/dev/other")),
];

fn check_refused(refusal: &Refusal, what: &str, ask: fn(&mut Bench, &[&str]) -> Result<()>) {
    let (devices, expected) = refusal;
    let at = format!("{what} {devices:?}");
    let mut bench = machine();
    let before = Witness::of(&bench);
    let error = ask(&mut bench, devices).expect_err(&at);
    assert!(expected(&error), "{at}: {error:?}");
    assert!(error.sentence().len() > 20, "{at}: {}", error.sentence());
    before.check_unchanged(&bench, &at);
    bench.check_nothing_left(&at);
    // No claim is left: the good devices are still free.
    assert!(bench.create_pool("q", &["/dev/good"]).unwrap(), "{at}");
}

#[test]
fn a_new_pool_refuses_bad_devices() {
    for refusal in REFUSED {
        check_refused(refusal, "create pool", |bench, devices| bench.create_pool("new", devices).map(drop));
    }
    let none: Refusal = (&[], |e| matches!(e, NoDevices));
    check_refused(&none, "create pool", |bench, devices| bench.create_pool("new", devices).map(drop));
    let member: Refusal = (&["/dev/a"], |e| matches!(e, OwnedByPool { .. }));
    check_refused(&member, "create pool", |bench, devices| bench.create_pool("new", devices).map(drop));
}

#[test]
fn bad_devices_are_refused_when_they_are_added() {
    for refusal in REFUSED {
        check_refused(refusal, "add", |bench, devices| add(bench, devices).map(drop));
    }
    // The new devices suit each other, but not the pool.
    let other: Refusal = (&["/dev/4k"], |e| matches!(e, SectorSizes(SectorError::OtherThanTier { .. })));
    check_refused(&other, "add", |bench, devices| add(bench, devices).map(drop));
    let mut bench = machine();
    let nobody = stratisd::base::ids::PoolUuid::from_random([1; 16]);
    let error = bench.run(ops::add_data_devices(nobody, paths(&["/dev/good"]))).unwrap_err();
    assert!(matches!(error, NoPool(uuid) if uuid == nobody), "{error:?}");
}

#[test]
fn one_device_by_several_paths_counts_once() {
    let mut bench = machine();
    assert!(bench.create_pool("q", &["/dev/good", "/dev/disk/by-id/good", "/dev/./good", "/dev/good"]).unwrap());
    let pool = bench.pool("q").unwrap();
    assert_eq!(pool.devices.len(), 1);
    assert_eq!(pool.devices.values().next().unwrap().node, PathBuf::from("/dev/good"));
}

#[test]
fn a_device_of_a_stopped_pool_is_owned() {
    let bench = machine();
    let sim = bench.sim.clone();
    sim.cut_power();
    sim.power_on();
    // The other device of the pool is missing, so the pool is stopped. It still owns its device.
    let mut bench = Bench::start(sim);
    bench.create_pool("two", &["/dev/good", "/dev/torn"]).unwrap();
    bench.sim.cut_power();
    bench.sim.power_on();
    bench.sim.pull_disk("/dev/torn".as_ref()).unwrap();
    let mut bench = Bench::start(bench.sim);
    assert_eq!(bench.names(), ["other", "p"]);
    let before = Witness::of(&bench);
    for result in [bench.create_pool("new", &["/dev/good"]).map(drop), add(&mut bench, &["/dev/good"]).map(drop)] {
        let error = result.unwrap_err();
        assert!(matches!(error, OwnedByPool { .. }), "{error:?}");
    }
    before.check_unchanged(&bench, "devices of a stopped pool");
}

#[test]
fn a_cache_device_is_not_added_as_data() {
    let (mut bench, _) = crate::old_pools::with_cache();
    let before = Witness::of(&bench);
    let error = bench.run(ops::add_data_devices(bench.id("old"), paths(&["/dev/fast"]))).unwrap_err();
    assert!(matches!(error, InOtherTier { tier: DeviceTier::Cache, .. }), "{error:?}");
    assert!(error.sentence().contains("in the cache tier"), "{}", error.sentence());
    before.check_unchanged(&bench, "a cache device");
}

#[test]
fn impossible_integrity_settings_are_refused_before_any_write() {
    let good = IntegritySpec::default();
    let check = |integrity: IntegritySpec, expected: fn(&Error) -> bool| {
        let at = format!("{integrity:?}");
        let mut bench = machine();
        let before = Witness::of(&bench);
        let (devices, version) = (paths(&["/dev/good"]), MetadataVersion::V2);
        let error = bench
            .run(ops::create_pool(NewPool { name: name("new"), devices, integrity, version, bindings: Vec::new() }))
            .unwrap_err();
        assert!(expected(&error), "{at}: {error:?}");
        before.check_unchanged(&bench, &at);
        assert!(bench.create_pool("q", &["/dev/good"]).unwrap(), "{at}");
    };
    check(IntegritySpec { journal_size: Sectors(1), ..good }, |e| matches!(e, Size(SizeError::Journal(_))));
    check(IntegritySpec { block_size: 1000, ..good }, |e| matches!(e, Size(SizeError::IntegrityBlock(1000))));
    // The journal is larger than the device.
    check(IntegritySpec { journal_size: Sectors(1 << 32), ..good }, |e| matches!(e, Allocation(_)));
    // The journal leaves too little space for a thin pool.
    check(IntegritySpec { journal_size: Sectors(2_112_837_624), tag_spec: TagSpec::B512, ..good }, |e| {
        matches!(e, Size(SizeError::TooSmall { .. }))
    });
}

/// Found in review: the space for reservations was checked only after the device had been written.
#[test]
fn a_device_without_room_is_refused_unwritten() {
    let mut bench = machine();
    let integrity = IntegritySpec { journal_size: Sectors(8 << 20), ..IntegritySpec::default() };
    let new = NewPool {
        name: name("q"),
        devices: paths(&["/dev/good"]),
        integrity,
        version: MetadataVersion::V2,
        bindings: Vec::new(),
    };
    bench.run(ops::create_pool(new)).unwrap();
    bench.sim.add_disk("/dev/few".as_ref(), Sectors(2 << 20)).unwrap();
    let before = Witness::of(&bench);
    let error = bench.run(ops::add_data_devices(bench.id("q"), paths(&["/dev/few"]))).unwrap_err();
    assert!(matches!(error, Allocation(_)), "{error:?}");
    before.check_unchanged(&bench, "a device that is too small for its reservation");
}

#[test]
fn bad_filesystems_are_refused() {
    let new = |text: &str, size: Option<Sectors>, size_limit: Option<Sectors>| NewFilesystem {
        name: name(text),
        size,
        size_limit,
    };
    let small = Sectors((1 << 20) - 1);
    // 2^63 bytes is one sector more than a block device can have.
    let large = Sectors(1 << 54);
    type Case = (Vec<NewFilesystem>, fn(&Error) -> bool);
    let cases: Vec<Case> = vec![
        (vec![new("x", Some(small), None)], |e| {
            matches!(e, FilesystemSize { source: SizeError::FilesystemTooSmall(_), .. })
        }),
        (vec![new("x", Some(GIB), Some(small))], |e| {
            matches!(e, FilesystemSize { source: SizeError::FilesystemTooSmall(_), .. })
        }),
        (vec![new("x", Some(large), None)], |e| {
            matches!(e, FilesystemSize { source: SizeError::FilesystemTooLarge(_), .. })
        }),
        (vec![new("x", Some(large), Some(large))], |e| {
            matches!(e, FilesystemSize { source: SizeError::FilesystemTooLarge(_), .. })
        }),
        (vec![new("x", Some(TIB), Some(GIB))], |e| {
            matches!(e, FilesystemSize { source: SizeError::LimitBelowSize { .. }, .. })
        }),
        (vec![new("x", Some(GIB), None), new("f", Some(TIB), None)], |e| {
            matches!(e, OtherSize { existing: GIB, requested: TIB, .. })
        }),
        (vec![new("x", Some(GIB), None), new("x", Some(TIB), None)], |e| matches!(e, OtherSize { .. })),
        ((0..101).map(|i| new(&format!("x{i}"), Some(GIB), None)).collect(), |e| {
            matches!(e, FilesystemLimit { limit: 100, wanted: 102, .. })
        }),
    ];
    for (new, expected) in cases {
        let mut bench = machine();
        bench.create_filesystems("p", &["f"]).unwrap();
        let at = format!("{:?}", new.first());
        let before = Witness::of(&bench);
        let error = bench.run(ops::create_filesystems(bench.id("p"), new)).unwrap_err();
        assert!(expected(&error), "{at}: {error:?}");
        before.check_unchanged(&bench, &at);
        assert_eq!(bench.create_filesystems("p", &["x"]).unwrap(), 1, "{at}: the name is not held back");
    }
}

/// Found in review: arithmetic on sizes of 2^64 bytes or more overflowed 64 bits.
#[test]
fn sizes_that_no_block_device_has_are_refused() {
    const TOO_LARGE: [u128; 5] = [1 << 63, (1 << 64) - 512, 1 << 64, (1 << 64) + (1 << 30), (1 << 73) - 512];
    for bytes in TOO_LARGE {
        let size = Bytes(bytes).sectors().unwrap();
        let mut bench = machine();
        let before = Witness::of(&bench);
        for size_limit in [None, Some(size)] {
            let new = vec![NewFilesystem { name: name("x"), size: Some(size), size_limit }];
            let error = bench.run(ops::create_filesystems(bench.id("p"), new)).unwrap_err();
            assert!(error.sentence().contains("larger than a block device can be"), "{bytes}: {}", error.sentence());
        }
        before.check_unchanged(&bench, &format!("{bytes} bytes"));
        assert_eq!(bench.pool("p").unwrap().restriction, None);
    }
}

/// Found in review: the daemon refused the largest size that clients can send as a limit, although
/// a filesystem merely never reaches such a limit.
#[test]
fn a_size_limit_may_exceed_any_device() {
    for bytes in [1 << 63, 1 << 64, 9_444_732_965_739_290_426_880] {
        let limit = Bytes(bytes).sectors().unwrap();
        let mut bench = machine();
        bench.create_filesystems("p", &["f"]).unwrap();
        let (pool, f) = (bench.id("p"), bench.filesystem("p", "f"));
        assert!(bench.run(ops::set_size_limit(pool, f, Some(limit))).unwrap());
        assert!(!bench.run(ops::set_size_limit(pool, f, Some(limit))).unwrap());
        let new = NewFilesystem { name: name("x"), size: Some(GIB), size_limit: Some(limit) };
        bench.run(ops::create_filesystems(pool, vec![new])).unwrap();
        // The filesystem grows like one without a limit.
        bench.mount("p", "x");
        bench.sim.set_used("/mnt/x".as_ref(), Bytes(600 << 20)).unwrap();
        bench.run(ops::check_filesystems_now(pool)).unwrap();
        let bench = bench.reboot();
        let found = bench.pool("p").unwrap();
        let of = |id| &found.filesystems[&id];
        assert_eq!([of(f).size_limit, of(bench.filesystem("p", "x")).size_limit], [Some(limit); 2]);
        assert!(of(bench.filesystem("p", "x")).size > GIB, "{bytes}: {:?}", of(bench.filesystem("p", "x")));
    }
}

#[test]
fn the_largest_filesystem_can_be_made() {
    let mut bench = machine();
    let largest = Bytes((1 << 63) - 512).sectors().unwrap();
    let new = NewFilesystem { name: name("x"), size: Some(largest), size_limit: Some(largest) };
    bench.run(ops::create_filesystems(bench.id("p"), vec![new])).unwrap();
    bench.mark("p", "x", 7);
    bench.mount("p", "x");
    bench.sim.set_used("/mnt/x".as_ref(), Bytes(1 << 63)).unwrap();
    bench.run(ops::check_filesystems_now(bench.id("p"))).unwrap();
    let bench = bench.reboot();
    let pool = bench.pool("p").unwrap();
    assert_eq!(pool.filesystems.values().map(|filesystem| filesystem.size).collect::<Vec<_>>(), [largest]);
    assert_eq!(bench.mark_of(pool.uuid, bench.filesystem("p", "x")), 7);
}

#[test]
fn long_texts_are_shortened_in_errors() {
    let mut bench = machine();
    let long = "x".repeat(100_000);
    for paths in [paths(&[&long]), paths(&[&format!("/dev/{long}")])] {
        let (integrity, version) = (IntegritySpec::default(), MetadataVersion::V2);
        let new = NewPool { name: name("new"), devices: paths, integrity, version, bindings: Vec::new() };
        let said = bench.run(ops::create_pool(new)).unwrap_err().sentence();
        assert!(said.chars().count() < 240, "{said}");
    }
    let said = KeyDescription::new(&format!("{long};")).unwrap_err().to_string();
    assert!(said.chars().count() < 240, "{said}");
}

#[test]
fn sizes_are_shown_in_readable_units() {
    let mut bench = machine();
    bench.create_filesystems("p", &["f"]).unwrap();
    let new = NewFilesystem { name: name("f"), size: Some(Sectors(2 * GIB.0)), size_limit: None };
    let said = bench.run(ops::create_filesystems(bench.id("p"), vec![new])).unwrap_err().sentence();
    assert!(said.contains("already exists with a size of 1 GiB, not 2 GiB"), "{said}");
    let said = bench.create_pool("new", &["/dev/small"]).unwrap_err().sentence();
    assert!(said.contains("it has 1023.99 MiB (1073741312 bytes), and a pool needs 1 GiB"), "{said}");
}

#[test]
fn errors_name_what_does_not_exist() {
    let mut bench = machine();
    bench.create_filesystems("p", &["f", "g"]).unwrap();
    let (pool, f) = (bench.id("p"), bench.filesystem("p", "f"));
    let nobody = stratisd::base::ids::FsUuid::from_random([1; 16]);
    let no_pool = stratisd::base::ids::PoolUuid::from_random([1; 16]);
    let before = Witness::of(&bench);
    let check = |result: Result<()>, expected: fn(&Error) -> bool| {
        let error = result.unwrap_err();
        assert!(expected(&error), "{error:?}");
    };
    let one = |text: &str| vec![NewFilesystem { name: name(text), size: Some(GIB), size_limit: None }];
    check(bench.run(ops::create_filesystems(no_pool, one("x"))).map(drop), |e| matches!(e, NoPool(_)));
    check(bench.run(ops::snapshot_filesystem(pool, nobody, name("x"))).map(drop), |e| matches!(e, NoFilesystem { .. }));
    check(bench.run(ops::snapshot_filesystem(no_pool, f, name("x"))).map(drop), |e| matches!(e, NoPool(_)));
    check(bench.run(ops::rename_filesystem(pool, nobody, name("x"))).map(drop), |e| matches!(e, NoFilesystem { .. }));
    check(bench.run(ops::rename_filesystem(pool, f, name("g"))).map(drop), |e| matches!(e, FilesystemNameTaken { .. }));
    check(bench.run(ops::rename_pool(no_pool, name("x"))).map(drop), |e| matches!(e, NoPool(_)));
    check(bench.run(ops::rename_pool(pool, name("other"))).map(drop), |e| matches!(e, PoolNameTaken(_)));
    check(
        bench.run(ops::destroy_pool(pool)).map(drop),
        |e| matches!(e, HasFilesystems { filesystems, .. } if filesystems.len() == 2),
    );
    let device = stratisd::base::ids::DevUuid::from_random([1; 16]);
    check(bench.run(ops::set_user_info(pool, device, None)).map(drop), |e| matches!(e, NoDevice { .. }));
    before.check_unchanged(&bench, "requests about what is not there");
    assert!(!bench.run(ops::destroy_pool(no_pool)).unwrap());
    assert_eq!(bench.run(ops::destroy_filesystems(pool, vec![nobody])).unwrap(), []);
    before.check_unchanged(&bench, "destroying what is not there");
}

#[test]
fn one_mounted_filesystem_refuses_the_whole_destruction() {
    let mut bench = machine();
    bench.create_filesystems("p", &["f", "g"]).unwrap();
    bench.mount("p", "g");
    let both = vec![bench.filesystem("p", "f"), bench.filesystem("p", "g")];
    let before = Witness::of(&bench);
    let error = bench.run(ops::destroy_filesystems(bench.id("p"), both)).unwrap_err();
    assert!(matches!(&error, Mounted { mount_points, .. } if mount_points == &paths(&["/mnt/g"])), "{error:?}");
    assert!(error.is_busy());
    before.check_unchanged(&bench, "a mounted filesystem");
}

#[test]
fn user_info_of_old_pools_follows_name_rules() {
    for (version, refused) in [(MetadataVersion::V1, true), (MetadataVersion::V2, false)] {
        let mut bench = machine();
        bench.create_pool_of(version, "q", &["/dev/good"]).unwrap();
        let device = bench.device("q", "/dev/good");
        let set = bench.run(ops::set_user_info(bench.id("q"), device, Some("front left".to_owned())));
        match refused {
            true => assert!(matches!(set, Err(Name(NameError::Character(TextPurpose::UserInfo, _, ' ')))), "{set:?}"),
            false => assert!(set.unwrap()),
        }
        let set = bench.run(ops::set_user_info(bench.id("q"), device, Some(String::new())));
        if let Err(error) = &set {
            assert_eq!(error.sentence(), "the user info must not be empty");
        }
        assert_eq!(set.is_err(), refused);
    }
}

/// Formerly another program could take a disk between the check and the first write, and was
/// overwritten.
#[test]
fn a_device_is_held_from_check_to_write() {
    let sim = Sim::builder().record().build();
    let gate = sim.delay(CallKind::Write, "/dev/a");
    let mut bench = Bench::start(sim.clone());
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| bench.create_pool("p", &["/dev/a", "/dev/b"]));
        assert!(gate.wait_for(1, LIMIT));
        for disk in ["/dev/a", "/dev/b"] {
            assert!(sim.hold(Path::new(disk)).unwrap_err().is_busy(), "{disk} is free for others");
        }
        gate.open();
        creation.join().unwrap().unwrap();
    });
    let trace = sim.trace();
    let first = trace.iter().find(|step| step.subject == "/dev/a" && step.call != CallKind::FindDevice).unwrap();
    assert_eq!(first.call, CallKind::Hold, "it is taken before anything of it is looked at");
}

/// The daemon has not heard of the disk yet.
#[test]
fn a_disk_of_an_unknown_pool_is_owned() {
    let mut other = Bench::start(Sim::builder().seed(7).build());
    other.create_pool("other", &["/dev/a"]).unwrap();
    let disk = Path::new("/dev/new");
    let mut bench = Bench::start(Sim::builder().build());
    bench.sim.add_disk(disk, TIB).unwrap();
    bench.sim.put(disk, 0, &other.sim.durable(Path::new("/dev/a"), 0..1 << 20)).unwrap();
    let before = Witness::of(&bench);
    let error = bench.create_pool("new", &["/dev/new"]).unwrap_err();
    assert!(matches!(error, OwnedByPool { pool, .. } if pool == other.id("other")), "{error:?}");
    before.check_unchanged(&bench, "the disk of an unknown pool");
}
