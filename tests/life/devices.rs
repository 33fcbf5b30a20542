//! Devices of running pools grow, shrink, vanish, come back and are cloned.

use std::path::Path;

use stratisd::{
    base::{pool_ref::PoolRef, units::Sectors},
    engine::{Error, Result, metadata::MetadataVersion, ops},
    platform::{DeviceAction, DeviceEvent, Platform, sim::Sim},
};
use support::bench::{Bench, GIB, name};

/// Large enough for a new pool to fit on the first device.
const SIZE: Sectors = Sectors(100 * GIB.0);

fn machine() -> Bench {
    let sim = Sim::builder().disk("/dev/b", SIZE).disk("/dev/c", SIZE).only_these().build();
    let mut bench = Bench::start(sim);
    bench.create_pool("p", &["/dev/b", "/dev/c"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    bench.mark("p", "f", 3);
    bench
}

fn event(bench: &mut Bench, action: DeviceAction, path: &str) {
    let device = bench.sim.find_device(Path::new(path)).ok().filter(|_| action != DeviceAction::Remove);
    bench.run(ops::device_event(DeviceEvent { action, path: path.into(), device, unlinked: None }));
}

fn grow(bench: &mut Bench, path: &str) -> Result<bool> {
    let device = bench.device("p", path);
    bench.run(ops::grow_device(bench.id("p"), device))
}

/// The recorded size of a device in GiB, and its new size.
fn sizes(bench: &Bench, path: &str) -> (u64, Option<u64>) {
    let pool = bench.pool("p").unwrap();
    let device = &pool.devices[&bench.device("p", path)];
    (device.size.0 / GIB.0, device.new_size.map(|size| size.0 / GIB.0))
}

#[test]
fn a_new_size_is_used_on_request() {
    let mut bench = machine();
    assert!(!grow(&mut bench, "/dev/c").unwrap(), "it has not grown");
    let before = bench.pool("p").unwrap();
    bench.sim.resize_disk(Path::new("/dev/c"), Sectors(300 * GIB.0)).unwrap();
    event(&mut bench, DeviceAction::Change, "/dev/c");
    assert_eq!(sizes(&bench, "/dev/c"), (100, Some(300)));
    assert_eq!(bench.pool("p").unwrap().total, before.total);
    assert!(grow(&mut bench, "/dev/c").unwrap());
    assert_eq!(sizes(&bench, "/dev/c"), (300, None));
    assert_eq!(bench.pool("p").unwrap().total.0, before.total.0 + 200 * GIB.0);
    assert!(!grow(&mut bench, "/dev/c").unwrap());
    let bench = bench.reboot();
    assert_eq!(sizes(&bench, "/dev/c"), (300, None));
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 3);
}

#[test]
fn a_device_that_shrank_into_data_is_refused() {
    let mut bench = machine();
    bench.stop_pool("p").unwrap();
    bench.sim.resize_disk(Path::new("/dev/b"), GIB).unwrap();
    let error = bench.start_pool("p").unwrap_err();
    assert!(error.sentence().contains("/dev/b"), "{}", error.sentence());
    bench.sim.resize_disk(Path::new("/dev/b"), SIZE).unwrap();
    assert!(bench.start_pool("p").unwrap());
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 3);
}

/// The pool ignores later changes of a device that now belongs to another pool.
#[test]
fn a_device_of_another_pool_is_no_member() {
    let mut bench = machine();
    let mut other = Bench::start(Sim::builder().seed(7).disk("/dev/z", SIZE).build());
    other.create_pool("q", &["/dev/z"]).unwrap();
    for at in (0..20_u64).map(|mebibyte| mebibyte << 20) {
        let piece = other.sim.durable(Path::new("/dev/z"), at..at + (1 << 20));
        bench.sim.put(Path::new("/dev/c"), at, &piece).unwrap();
    }
    event(&mut bench, DeviceAction::Add, "/dev/c");
    bench.sim.resize_disk(Path::new("/dev/c"), Sectors(300 * GIB.0)).unwrap();
    event(&mut bench, DeviceAction::Change, "/dev/c");
    assert_eq!(sizes(&bench, "/dev/c"), (100, None));
}

#[test]
fn a_smaller_size_is_shown_and_never_used() {
    let mut bench = machine();
    bench.sim.resize_disk(Path::new("/dev/c"), Sectors(90 * GIB.0)).unwrap();
    event(&mut bench, DeviceAction::Change, "/dev/c");
    assert_eq!(sizes(&bench, "/dev/c"), (100, Some(90)));
    let before = bench.sim.snapshot();
    let error = grow(&mut bench, "/dev/c").unwrap_err();
    assert!(error.sentence().contains("/dev/c"), "{}", error.sentence());
    assert_eq!(before.differences(&bench.sim.snapshot()), []);
    assert_eq!(sizes(&bench, "/dev/c"), (100, Some(90)));
    // The device returns to its full size.
    bench.sim.resize_disk(Path::new("/dev/c"), SIZE).unwrap();
    event(&mut bench, DeviceAction::Change, "/dev/c");
    assert_eq!(sizes(&bench, "/dev/c"), (100, None));
}

#[test]
fn operations_without_the_vanished_device_still_work() {
    let mut bench = machine();
    bench.sim.pull_disk(Path::new("/dev/c")).unwrap();
    event(&mut bench, DeviceAction::Remove, "/dev/c");
    assert_eq!(bench.names(), ["p"], "a running pool does not react");
    let device = bench.device("p", "/dev/b");
    assert!(bench.run(ops::set_user_info(bench.id("p"), device, Some("top".to_owned()))).unwrap());
    bench.create_filesystems("p", &["g"]).unwrap();
    bench.stop_pool("p").unwrap();
    let error = bench.start_pool("p").unwrap_err();
    assert!(matches!(&error, Error::DevicesMissing { missing, .. } if missing.len() == 1), "{error:?}");
    assert!(!bench.stopped_pool("p").unwrap().partial);
    // The device comes back with older pool metadata than the other device has.
    bench.sim.add_disk(Path::new("/dev/c"), SIZE).unwrap();
    event(&mut bench, DeviceAction::Add, "/dev/c");
    assert!(bench.start_pool("p").unwrap());
    let pool = bench.pool("p").unwrap();
    assert_eq!((pool.filesystems.len(), pool.devices.len()), (2, 2));
    assert_eq!(pool.devices[&device].user_info.as_deref(), Some("top"));
    assert_eq!(bench.mark_of(pool.uuid, bench.filesystem("p", "f")), 3);
    bench.check_nothing_left("after the device came back");
}

#[test]
fn changes_fail_with_a_reason_without_devices() {
    let mut bench = machine();
    for disk in ["/dev/b", "/dev/c"] {
        bench.sim.pull_disk(Path::new(disk)).unwrap();
        event(&mut bench, DeviceAction::Remove, disk);
    }
    let before = bench.pool("p").unwrap();
    let error = bench.run(ops::rename_pool(bench.id("p"), name("q"))).unwrap_err();
    assert!(error.sentence().contains("/dev/b"), "{}", error.sentence());
    let pool = bench.pool("p").unwrap();
    assert_eq!((&pool.name, &pool.devices), (&before.name, &before.devices));
    // The state on disk is unknown, so every change is refused with the reason.
    assert!(pool.restriction.is_some(), "{pool:?}");
    for disk in ["/dev/b", "/dev/c"] {
        bench.sim.add_disk(Path::new(disk), SIZE).unwrap();
    }
    let bench = bench.reboot();
    let pool = bench.pool("p").unwrap();
    assert_eq!(pool.restriction, None, "set-up makes it whole again");
    assert_eq!(bench.mark_of(pool.uuid, bench.filesystem("p", "f")), 3);
}

/// Found in review: if the machine listed a clone before the device, a restarted daemon took the
/// running pool for one on other devices, and did not adopt it.
#[test]
fn a_clone_replaces_no_device_in_use() {
    let bench = machine();
    bench.sim.add_disk(Path::new("/dev/a"), SIZE).unwrap();
    bench.sim.put(Path::new("/dev/a"), 0, &bench.sim.durable(Path::new("/dev/b"), 0..8 << 20)).unwrap();
    let mut bench = Bench::start(bench.sim);
    assert_eq!(bench.names(), ["p"]);
    bench.device("p", "/dev/b");
    bench.run(ops::refresh()).unwrap();
    bench.device("p", "/dev/b");
    event(&mut bench, DeviceAction::Change, "/dev/a");
    assert_eq!(bench.stopped().list().len(), 0);
    bench.create_filesystems("p", &["g"]).unwrap();
    bench.check_nothing_left("beside a clone");
    // The same holds after a stop: the pool starts on the devices that it was stopped with.
    bench.stop_pool("p").unwrap();
    let started = ops::start_pool(PoolRef::Name(name("p")), ops::UnlockOptions::default(), ops::CacheTier::Keep);
    assert!(bench.run(started).unwrap().is_some());
    bench.device("p", "/dev/b");
}

/// A user wipes the signature of a pool and uses the disk again. Thin metadata that lies where that
/// of the new pool begins must not be taken for it.
#[test]
fn a_new_pool_has_no_old_thin_devices() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut bench = Bench::start(Sim::builder().build());
        bench.create_pool_of(version, "old", &["/dev/a"]).unwrap();
        bench.create_filesystems("old", &["f", "g"]).unwrap();
        bench.stop_pool("old").unwrap();
        bench.sim.put("/dev/a".as_ref(), 0, &[0; 1 << 20]).unwrap();
        let mut bench = Bench::start(bench.sim);
        bench.create_pool_of(version, "p", &["/dev/a"]).unwrap();
        bench.check_nothing_left("a new pool");
        bench.create_filesystems("p", &["f"]).unwrap();
        bench.check_nothing_left("a new filesystem");
    }
}

/// A request with some of the pool's devices is not the request that has made the pool.
#[test]
fn a_pool_with_more_devices_is_another() {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("p", &["/dev/a", "/dev/b"]).unwrap();
    assert!(!bench.create_pool("p", &["/dev/b", "/dev/a"]).unwrap());
    for devices in [&["/dev/a"][..], &["/dev/a", "/dev/b", "/dev/c"], &["/dev/c"]] {
        let refused = bench.create_pool("p", devices);
        assert!(matches!(refused, Err(Error::OtherDevices { .. })), "{devices:?}: {refused:?}");
    }
}
