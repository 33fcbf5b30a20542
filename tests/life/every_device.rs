//! Pools with more disks than one save of the pool metadata covers. No device keeps an older state
//! where one would do harm.

use std::path::{Path, PathBuf};

use stratisd::{
    base::pool_ref::PoolRef,
    engine::{
        bda::{Bda, Repair},
        dm_names::Role,
        metadata::{FilesystemRecord, Journal, Pending},
        ops::{self, CacheTier, UnlockOptions},
    },
    platform::{
        Platform,
        sim::{CallKind, Sim},
    },
};
use support::{
    bench::{Bench, name},
    disks,
};

/// More than twice the number of disks that a partial save covers.
const DISKS: usize = 24;

fn paths() -> Vec<String> {
    (10..10 + DISKS).map(|number| format!("/dev/d{number}")).collect()
}

fn pool() -> Bench {
    let mut bench = Bench::start(Sim::builder().build());
    let paths = paths();
    bench.create_pool("p", &paths.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    bench
}

/// Checks that all data devices hold the same generation of the pool metadata.
fn all_agree(bench: &Bench) {
    let stamp = |path: String| {
        let bda = Bda::load(&bench.sim, Path::new(&path), Repair::ReadOnly).unwrap().expect("a Stratis device");
        bda.last_update().expect("it holds metadata")
    };
    let stamps: Vec<_> = paths().into_iter().map(stamp).collect();
    assert!(stamps.iter().all(|other| *other == stamps[0]), "{stamps:?}");
}

#[test]
fn a_new_pool_is_recorded_on_every_device() {
    all_agree(&pool());
}

#[test]
fn an_added_device_is_recorded_on_every_other() {
    let mut bench = pool();
    bench.run(ops::add_data_devices(bench.id("p"), vec![PathBuf::from("/dev/more")])).unwrap();
    // The generation may differ: the check after an addition may have extended the thin pool.
    for path in paths().iter().map(String::as_str).chain(["/dev/more"]) {
        let json = disks::json_on(&bench.sim, path);
        let devices = json["backstore"]["data_tier"]["blockdev"]["devs"].as_array().unwrap();
        assert_eq!(devices.len(), DISKS + 1, "{path}");
    }
}

#[test]
fn a_cache_is_recorded_on_every_data_device() {
    let mut bench = pool();
    bench.run(ops::init_cache(bench.id("p"), vec![PathBuf::from("/dev/c1")])).unwrap();
    all_agree(&bench);
    bench.run(ops::add_cache_devices(bench.id("p"), vec![PathBuf::from("/dev/c2")])).unwrap();
    all_agree(&bench);
    bench.stop_pool("p").unwrap();
    let start = ops::start_pool(PoolRef::Name(name("p")), UnlockOptions::default(), CacheTier::Drop);
    bench.run(start).unwrap();
    assert!(!bench.pool("p").unwrap().has_cache);
    for path in paths() {
        let backstore = disks::json_on(&bench.sim, &path)["backstore"].clone();
        assert!(backstore["cache_tier"].is_null(), "{path}: {backstore}");
    }
}

#[test]
fn a_destruction_is_recorded_on_every_device() {
    let mut bench = pool();
    // The daemon wipes nothing while the pool's lowest device is active, so keep that device in
    // use.
    bench.sim.hold_device(&Role::OriginSub.name(bench.id("p")), u32::MAX).unwrap();
    bench.run(ops::destroy_pool(bench.id("p"))).unwrap();
    all_agree(&bench);
    for path in paths() {
        assert!(disks::json_on(&bench.sim, &path)["destroying"].is_array(), "{path}");
    }
}

/// A write that was reported as failed may have reached the device.
#[test]
fn a_failed_change_is_overruled_on_every_device() {
    let mut bench = pool();
    for _ in 0..10 {
        bench.sim.faults().fail_next(CallKind::Write, "/dev/d");
    }
    bench.run(ops::rename_pool(bench.id("p"), name("q"))).unwrap_err();
    all_agree(&bench);
    for path in paths() {
        assert_eq!(disks::json_on(&bench.sim, &path)["name"], "p", "{path}");
    }
}

/// After an interrupted destruction or creation, another daemon ran and gave the thin device number
/// to a new filesystem.
#[test]
fn a_reused_thin_device_number_is_not_deleted() {
    let lost = support::examples::FILESYSTEM.parse().unwrap();
    for entry in [Journal::Destroy, Journal::Create] {
        let mut bench = Bench::start(Sim::builder().build());
        bench.create_pool("p", &["/dev/a"]).unwrap();
        bench.create_filesystems("p", &["f"]).unwrap();
        bench.mark("p", "f", 9);
        let (pool, f) = (bench.id("p"), bench.filesystem("p", "f"));
        let mdv = format!(".mdv-{}", pool.simple());
        let record = bench.sim.read_file(&format!("{mdv}/filesystems/{}.json", f.simple())).unwrap();
        let thin_id = FilesystemRecord::parse(&record).unwrap().thin_id;
        let entry = entry(vec![Pending { uuid: lost, thin_id, new_origin: None, was: None, by_removal: false }]);
        let file = entry.file().unwrap();
        bench.sim.replace_file(&format!("{mdv}/pending/{file}"), &entry.encode()).unwrap();
        let mut bench = bench.reboot();
        assert_eq!(bench.filesystem("p", "f"), f);
        assert_eq!(bench.mark_of(pool, f), 9);
        bench.check_nothing_left("after the journal");
        bench.create_filesystems("p", &["g"]).unwrap();
    }
}
