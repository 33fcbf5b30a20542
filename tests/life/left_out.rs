//! Failed filesystems, which have a record but could not be set up. No operation treats them as
//! absent.

use std::{collections::BTreeMap, path::Path};

use stratisd::{
    base::ids::FsUuid,
    engine::{
        Error,
        dm_names::{self, Role},
        ops::{self, MetadataCopy},
    },
    platform::{
        Platform,
        dm::{Target, Visibility},
        sim::{CallKind, Sim},
    },
};
use support::bench::{Bench, name};

/// A pool with filesystems `f` and `g` and a snapshot `s` of `f`. Also returns the UUID of the
/// snapshot.
fn with_snapshot() -> (Bench, FsUuid) {
    let mut bench = Bench::with_two_filesystems();
    bench.mark("p", "f", 7);
    let (pool, f) = (bench.id("p"), bench.filesystem("p", "f"));
    let snapshot = bench.run(ops::snapshot_filesystem(pool, f, name("s"))).unwrap().expect("it is new");
    (bench, snapshot)
}

/// As [`with_snapshot`], after a boot at which the set-up of the snapshot failed.
fn without_snapshot() -> (Bench, FsUuid) {
    let (bench, snapshot) = with_snapshot();
    let device = dm_names::filesystem(bench.id("p"), snapshot);
    bench.sim.cut_power();
    bench.sim.power_on();
    (0..2).for_each(|_| bench.sim.faults().fail_next(CallKind::DmCreate, &device));
    let bench = Bench::start(bench.sim);
    let pool = bench.pool("p").unwrap();
    let left_out: Vec<_> =
        pool.failed_filesystems.iter().map(|left_out| (left_out.uuid, left_out.name.as_str())).collect();
    assert_eq!((left_out, pool.filesystems.len()), (vec![(snapshot, "s")], 2));
    assert!(pool.failed_filesystems[0].reason.contains(&device), "{:?}", pool.failed_filesystems);
    (bench, snapshot)
}

fn destroy(bench: &mut Bench, names: &[&str]) {
    let (pool, doomed) = (bench.id("p"), names.iter().map(|name| bench.filesystem("p", name)).collect());
    bench.run(ops::destroy_filesystems(pool, doomed)).unwrap();
}

/// Found in review: the pool counted as empty, and its destruction would have destroyed the data of
/// failed filesystems.
#[test]
fn a_pool_with_failed_filesystems_is_not_destroyed() {
    let (mut bench, _) = without_snapshot();
    destroy(&mut bench, &["f", "g"]);
    let (pool, before) = (bench.id("p"), bench.sim.snapshot());
    let error = bench.run(ops::destroy_pool(pool)).unwrap_err();
    assert!(matches!(&error, Error::HasFailedFilesystems { filesystems, .. } if *filesystems == ["s"]), "{error:?}");
    assert!(error.sentence().contains("(s)") && error.sentence().contains("stop and start"), "{}", error.sentence());
    assert!(before.differences(&bench.sim.snapshot()).is_empty());
    // As the error says, a start recovers the filesystem with its contents. After that it can be
    // destroyed.
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    assert!(bench.pool("p").unwrap().failed_filesystems.is_empty());
    assert_eq!(bench.mark_of(pool, bench.filesystem("p", "s")), 7);
    destroy(&mut bench, &["s"]);
    assert!(bench.run(ops::destroy_pool(pool)).unwrap());
}

#[test]
fn failed_filesystems_count_for_the_limit() {
    let (mut bench, _) = without_snapshot();
    let limit = bench.pool("p").unwrap().fs_limit;
    let names: Vec<String> = (3..limit).map(|number| format!("n{number}")).collect();
    bench.create_filesystems("p", &names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let error = bench.create_filesystems("p", &["one-more"]).unwrap_err();
    assert!(matches!(error, Error::FilesystemLimit { wanted, .. } if wanted == limit + 1), "{error:?}");
    let f = bench.filesystem("p", "f");
    let error = bench.run(ops::snapshot_filesystem(bench.id("p"), f, name("one-more"))).unwrap_err();
    assert!(matches!(error, Error::FilesystemLimit { .. }), "{error:?}");
}

#[test]
fn the_origin_of_failed_filesystems_is_rewritten() {
    let (mut bench, _) = without_snapshot();
    let origin = |bench: &mut Bench, copy| {
        let json = bench.run(ops::filesystem_metadata(bench.id("p"), Some("s".to_owned()), copy)).unwrap();
        let records: BTreeMap<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
        let (_, record) = records.into_iter().next().expect("it is recorded");
        record.get("origin").cloned()
    };
    let f = bench.filesystem("p", "f").hyphenated().to_string();
    for copy in [MetadataCopy::Current, MetadataCopy::Written] {
        assert_eq!(origin(&mut bench, copy), Some(f.clone().into()), "{copy:?}");
    }
    destroy(&mut bench, &["f"]);
    for copy in [MetadataCopy::Current, MetadataCopy::Written] {
        assert_eq!(origin(&mut bench, copy), None, "{copy:?}");
    }
}

/// The filesystem was active already, with another table than recorded, and mounted.
#[test]
fn a_mounted_failed_filesystem_prevents_the_stop() {
    let (bench, snapshot) = with_snapshot();
    bench.mount("p", "s");
    let device = dm_names::filesystem(bench.id("p"), snapshot);
    let sim: Sim = bench.sim;
    let mut table = sim.dm_find(&device).unwrap().expect("it is up").table;
    let Target::Thin { id, .. } = &mut table[0].target else { panic!("{table:?}") };
    *id = 0;
    sim.dm_load(&device, &table).unwrap();
    sim.dm_suspend(&device, false).unwrap();
    sim.dm_resume(&device, Visibility::Public).unwrap();
    let mut bench = Bench::start(sim);
    assert_eq!(bench.pool("p").unwrap().failed_filesystems.len(), 1);
    let mut up = bench.sim.leftovers().devices;
    let error = bench.stop_pool("p").unwrap_err();
    assert!(matches!(&error, Error::Mounted { name, .. } if name.as_str() == "s"), "{error:?}");
    assert_eq!((bench.sim.leftovers().devices, bench.pool("p").unwrap().filesystems.len()), (up.clone(), 2));
    bench.sim.unmount_user(Path::new("/mnt/s")).unwrap();
    bench.stop_pool("p").unwrap();
    up = bench.sim.leftovers().devices;
    assert!(up.is_empty(), "{up:?}");
    assert!(bench.start_pool("p").unwrap());
    assert!(bench.pool("p").unwrap().failed_filesystems.is_empty());
    assert!(bench.sim.dm_find(&Role::ThinPool.name(bench.id("p"))).unwrap().is_some());
}
