//! Pools that other daemons made: the worked examples of `docs/spec/engine/ondisk-metadata.md` §6.9
//! and 6.10, version 1, and metadata of older series.

use serde_json::{Value, json};
use stratisd::{
    base::{ids::PoolUuid, units::Sectors},
    engine::{dm_names::Role, metadata::MetadataVersion, ops},
    platform::{
        Platform,
        dm::{Line, Target},
        sim::Sim,
    },
    view::DeviceTier,
};
use support::{
    bench::{Bench, name},
    disks::{self, Device, Parts},
    examples,
};

use crate::witness::listen;

const TEN_GIB: Sectors = Sectors(20_971_520);

fn pool_uuid() -> PoolUuid {
    examples::POOL.parse().unwrap()
}

/// A machine with the pool of §6.9 on `/dev/a`.
pub fn worked_example() -> Sim {
    let sim = Sim::builder().disk("/dev/a", TEN_GIB).wwn("0x5000c500a1b2c3d4").build();
    let (uuid, version) = (examples::DEVICE, MetadataVersion::V2);
    Device { path: "/dev/a", uuid, pool: pool_uuid(), version, json: Some(examples::POOL_V2) }.put(&sim);
    let parts =
        Parts { at: 8192, mdv: (19_322_880, 1_048_576), thin_meta: (34_816, 12_288), thin_data: (59_392, 19_263_488) };
    disks::put_contents(&sim, "/dev/a", pool_uuid(), &parts);
    sim
}

/// A machine with the pool of §6.10 on `/dev/slow` and `/dev/fast`. The pool has been found and
/// runs.
pub fn with_cache() -> (Bench, String) {
    let sim = Sim::builder().disk("/dev/slow", TEN_GIB).disk("/dev/fast", Sectors(2_097_152)).build();
    let (pool, version) = (pool_uuid(), MetadataVersion::V1);
    let uuid = examples::DATA_DEVICE;
    Device { path: "/dev/slow", uuid, pool, version, json: Some(examples::POOL_V1) }.put(&sim);
    let uuid = examples::CACHE_DEVICE;
    Device { path: "/dev/fast", uuid, pool, version, json: None }.put(&sim);
    let parts =
        Parts { at: 8192, mdv: (19_914_752, 1_048_576), thin_meta: (0, 12_288), thin_data: (24_576, 19_890_176) };
    disks::put_contents(&sim, "/dev/slow", pool, &parts);
    listen(|| Bench::start(sim))
}

fn example(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Runs every operation on a pool with `disk` as its only data device. Destroys the pool in the
/// end.
fn live_with(bench: &mut Bench, pool: &str, disk: &str) {
    assert_eq!(bench.create_filesystems(pool, &["f", "g"]).unwrap(), 2);
    bench.mount(pool, "f");
    let id = bench.id(pool);
    let f = bench.filesystem(pool, "f");
    assert!(bench.run(ops::snapshot_filesystem(id, f, name("s"))).unwrap().is_some());
    assert!(bench.run(ops::rename_filesystem(id, f, name("h"))).unwrap());
    assert!(bench.run(ops::rename_pool(id, name("renamed"))).unwrap());
    assert_eq!(bench.run(ops::add_data_devices(id, vec!["/dev/added".into()])).unwrap().len(), 1);
    let device = bench.device("renamed", disk);
    assert!(bench.run(ops::set_user_info(id, device, Some("rack-7".to_owned()))).unwrap());
    bench.run(ops::check_pool(id));
    let before = bench.pool("renamed").unwrap();
    assert_eq!(before.filesystems.len(), 3);

    // A new daemon adopts the pool; after a reboot, discovery finds it.
    let mut bench = Bench::start(bench.sim.clone());
    assert_eq!(bench.pool("renamed").unwrap(), before);
    disks::reboot(&bench.sim);
    bench = Bench::start(bench.sim);
    let after = bench.pool("renamed").unwrap();
    let names = |pool: &stratisd::view::PoolView| {
        let mut names: Vec<_> = pool.filesystems.values().map(|f| (f.name.to_string(), f.uuid, f.origin)).collect();
        names.sort();
        names
    };
    assert_eq!(names(&after), names(&before));
    assert_eq!(after.devices, before.devices);
    let doomed = after.filesystems.keys().copied().collect();
    assert_eq!(bench.run(ops::destroy_filesystems(id, doomed)).unwrap().len(), 3);
    assert!(bench.run(ops::destroy_pool(id)).unwrap());
    assert!(bench.sim.leftovers().is_empty(), "{:?}", bench.sim.leftovers());
    bench = Bench::start(bench.sim);
    assert_eq!(bench.names(), Vec::<String>::new());
    assert!(bench.create_pool("anew", &[disk, "/dev/added"]).unwrap());
}

#[test]
fn the_worked_example_of_version_2_runs() {
    let mut bench = Bench::start(worked_example());
    bench.check_nothing_left("the worked example");
    let pool = bench.pool("p1").expect("the pool runs");
    assert_eq!((pool.uuid, pool.metadata_version, pool.has_cache), (pool_uuid(), 2, false));
    assert_eq!(pool.total, TEN_GIB);
    // All space is allocated except a rest that is too small for another data block.
    assert_eq!(pool.allocated, Sectors(8192 + 589_832 + 34_816 + 20_336_640));
    let device = pool.devices.values().next().unwrap();
    assert_eq!(device.hardware_info.as_deref(), Some("0x5000c500a1b2c3d4"));
    assert_eq!(device.initialized, 1_700_000_000);
    // The start wrote nothing.
    assert_eq!(disks::json_on(&bench.sim, "/dev/a"), example(examples::POOL_V2));

    let table = |role: Role| bench.sim.dm_find(&role.name(pool_uuid())).unwrap().expect("it is up").table;
    let raw = bench.sim.find_device("/dev/a".as_ref()).unwrap().number;
    assert_eq!(table(Role::OriginSub), [Line::linear(Sectors(0), Sectors(20_371_456), raw, Sectors(8192))]);
    let [Line { length, target: Target::ThinPool { features, .. }, .. }] = &table(Role::ThinPool)[..] else {
        panic!("not a thin pool: {:?}", table(Role::ThinPool));
    };
    assert_eq!(*length, Sectors(19_263_488));
    // The kernel reports the features in its own order.
    let features: std::collections::BTreeSet<&str> = features.iter().map(String::as_str).collect();
    assert_eq!(features, ["no_discard_passdown", "skip_block_zeroing"].into());

    // A pool that this daemon creates on such a disk has the same layout.
    bench.sim.add_disk("/dev/b".as_ref(), TEN_GIB).unwrap();
    bench.create_pool("ours", &["/dev/b"]).unwrap();
    let ours = disks::json_on(&bench.sim, "/dev/b");
    let device = bench.device("ours", "/dev/b").hyphenated();
    let mut theirs = example(&examples::POOL_V2.replace(examples::DEVICE, &device));
    theirs["name"] = json!("ours");
    theirs["backstore"]["data_tier"]["blockdev"]["devs"][0].as_object_mut().unwrap().remove("hardware_info");
    assert_eq!(ours, theirs);

    bench.run(ops::destroy_pool(bench.id("ours"))).unwrap();
    live_with(&mut bench, "p1", "/dev/a");
}

#[test]
fn a_change_keeps_every_other_key() {
    let mut bench = Bench::start(worked_example());
    let mut expected = example(examples::POOL_V2);
    bench.run(ops::rename_pool(pool_uuid(), name("q"))).unwrap();
    expected["name"] = json!("q");
    assert_eq!(disks::json_on(&bench.sim, "/dev/a"), expected);
    let device = bench.device("q", "/dev/a");
    bench.run(ops::set_user_info(pool_uuid(), device, Some("rack 7".to_owned()))).unwrap();
    expected["backstore"]["data_tier"]["blockdev"]["devs"][0]["user_info"] = json!("rack 7");
    assert_eq!(disks::json_on(&bench.sim, "/dev/a"), expected);
    bench.run(ops::set_user_info(pool_uuid(), device, None)).unwrap();
    let entry = &mut expected["backstore"]["data_tier"]["blockdev"]["devs"][0];
    entry.as_object_mut().unwrap().remove("user_info");
    assert_eq!(disks::json_on(&bench.sim, "/dev/a"), expected);
    // Filesystems do not change the pool metadata.
    bench.create_filesystems("q", &["f"]).unwrap();
    assert_eq!(disks::json_on(&bench.sim, "/dev/a"), expected);
}

#[test]
fn the_cached_version_1_example_runs() {
    let (mut bench, said) = with_cache();
    let pool = bench.pool("old").unwrap_or_else(|| panic!("the pool does not run: {said}"));
    assert_eq!((pool.metadata_version, pool.has_cache), (1, true));
    assert_eq!(pool.devices.len(), 2);
    let tiers: Vec<DeviceTier> = pool.devices.values().map(|device| device.tier).collect();
    assert!(tiers.contains(&DeviceTier::Data) && tiers.contains(&DeviceTier::Cache));
    let number = |role: Role| bench.sim.dm_find(&role.name(pool_uuid())).unwrap().expect("it is up").number;
    let table = |role: Role| bench.sim.dm_find(&role.name(pool_uuid())).unwrap().expect("it is up").table;
    let fast = bench.sim.find_device("/dev/fast".as_ref()).unwrap().number;
    assert_eq!(table(Role::CacheMeta), [Line::linear(Sectors(0), Sectors(1_048_576), fast, Sectors(8192))]);
    assert_eq!(table(Role::CacheSub), [Line::linear(Sectors(0), Sectors(1_040_384), fast, Sectors(1_056_768))]);
    let cache = Target::Cache {
        metadata: number(Role::CacheMeta),
        cache: number(Role::CacheSub),
        origin: number(Role::OriginSub),
        block: Sectors(2048),
        features: vec!["writethrough".to_owned()],
        policy: "default".to_owned(),
    };
    assert_eq!(table(Role::Cache), [Line { start: Sectors(0), length: Sectors(20_963_328), target: cache }]);
    let over = number(Role::Cache);
    assert_eq!(table(Role::ThinData), [Line::linear(Sectors(0), Sectors(19_890_176), over, Sectors(24_576))]);
    assert_eq!(disks::json_on(&bench.sim, "/dev/slow"), example(examples::POOL_V1));
    live_with(&mut bench, "old", "/dev/slow");
}

#[test]
fn pools_of_version_1_support_every_operation() {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool_of(MetadataVersion::V1, "v1", &["/dev/a"]).unwrap();
    let written = disks::json_on(&bench.sim, "/dev/a").to_string();
    for key in ["features", "integrity_spec", "integrity_meta_allocs", "crypt_meta_allocs", "destroying"] {
        assert!(!written.contains(key), "{key} is not for version 1: {written}");
    }
    live_with(&mut bench, "v1", "/dev/a");
}

#[test]
fn metadata_of_older_series_is_completed() {
    let sim = worked_example();
    disks::change(&sim, "/dev/a", |json| {
        json.as_object_mut().unwrap().remove("started");
        let thin = json["thinpool_dev"].as_object_mut().unwrap();
        ["feature_args", "fs_limit", "enable_overprov"].iter().for_each(|key| drop(thin.remove(*key)));
    });
    let bench = Bench::start(sim);
    let pool = bench.pool("p1").expect("the pool runs");
    assert_eq!((pool.fs_limit, pool.overprovisioning, pool.no_alloc_space), (100, true, false));
    assert_eq!(disks::json_on(&bench.sim, "/dev/a"), example(examples::POOL_V2));
}

#[test]
fn a_pool_that_was_stopped_stays_stopped() {
    let sim = worked_example();
    disks::change(&sim, "/dev/a", |json| json["started"] = json!(false));
    let before = disks::json_on(&sim, "/dev/a");
    let (bench, said) = listen(|| Bench::start(sim));
    assert_eq!(bench.names(), Vec::<String>::new());
    let stopped = bench.engine.take_stopped_change().expect("it is told of");
    assert_eq!(stopped.list().len(), 1);
    assert_eq!(stopped.list()[0].name.as_ref().map(ToString::to_string).as_deref(), Some("p1"));
    assert!(!stopped.list()[0].partial);
    assert!(said.contains("stopped by request"), "{said}");
    assert!(bench.sim.leftovers().is_empty());
    assert_eq!(disks::json_on(&bench.sim, "/dev/a"), before);
}

#[test]
fn an_encrypted_pool_shows_what_unlocks_it() {
    let sim = worked_example();
    disks::change(&sim, "/dev/a", |json| json["features"] = json!(["Encryption", "KeyDescriptionEnabled"]));
    let (bench, said) = listen(|| Bench::start(sim));
    assert_eq!(bench.names(), Vec::<String>::new());
    let stopped = bench.engine.take_stopped_change().expect("it is told of");
    let features = stopped.list()[0].features.expect("the metadata can be read");
    assert!(features.encryption && features.key_description && !features.clevis);
    assert!(said.contains("p1 is encrypted"), "{said}");
    assert!(bench.sim.leftovers().is_empty());
}
