//! Filesystems grow with their contents (`docs/spec/engine/storage-stack.md` §9.5).

use std::{path::Path, time::Duration};

use stratisd::{
    base::units::{Bytes, Sectors},
    engine::{Error, dm_names, ops},
    platform::{
        Platform,
        sim::{CallKind, Sim},
    },
    view::Availability,
};
use support::bench::{Bench, GIB};

/// A limit that only makes a test with a lost wake-up fail.
const HANG: Duration = Duration::from_secs(60);
const FULL: Bytes = Bytes(600 << 20);

fn machine() -> Bench {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f", "g", "h"]).unwrap();
    bench
}

fn use_space(bench: &Bench, names: &[&str]) {
    for name in names {
        bench.mount("p", name);
        bench.sim.set_used(&Path::new("/mnt").join(name), FULL).unwrap();
    }
}

fn check(bench: &mut Bench) -> Result<(), Error> {
    bench.run(ops::check_filesystems_now(bench.id("p")))
}

/// The recorded size, the size of the device and that of the XFS, in GiB.
fn sizes(bench: &Bench, name: &str) -> (u64, u64, u64) {
    let pool = bench.pool("p").unwrap();
    let device = dm_names::filesystem(pool.uuid, bench.filesystem("p", name));
    let table = bench.sim.dm_find(&device).unwrap().unwrap().table;
    let xfs = bench.sim.xfs_size(&bench.sim.dm_node(&device)).unwrap().sectors().unwrap();
    let recorded = pool.filesystems[&bench.filesystem("p", name)].size;
    (recorded.0 / GIB.0, table[0].length.0 / GIB.0, xfs.0 / GIB.0)
}

/// Another full filesystem was mounted at the same place after the mount table had been read.
#[test]
fn another_filesystems_usage_extends_nothing() {
    let mut bench = machine();
    let (sim, at) = (bench.sim.clone(), Path::new("/mnt/f"));
    bench.mount("p", "f");
    let other = bench.thin_node(bench.id("p"), bench.filesystem("p", "g"));
    let gate = sim.delay(CallKind::Usage, "/mnt/f");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(gate.wait_for(1, HANG));
            sim.unmount_user(at).unwrap();
            sim.mount_user(&other, at).unwrap();
            sim.set_used(at, FULL).unwrap();
            gate.open();
        });
        check(&mut bench).unwrap();
    });
    assert_eq!(["f", "g"].map(|name| sizes(&bench, name)), [(1, 1, 1), (1, 1, 1)]);
    check(&mut bench).unwrap();
    assert_eq!(["f", "g"].map(|name| sizes(&bench, name)), [(1, 1, 1), (2, 2, 2)], "the one that is full");
}

#[test]
fn mounted_filesystems_double_when_half_full() {
    let mut bench = machine();
    use_space(&bench, &["f", "g"]);
    bench.sim.set_used(Path::new("/mnt/g"), Bytes(512 << 20)).unwrap();
    check(&mut bench).unwrap();
    assert_eq!(["f", "g", "h"].map(|name| sizes(&bench, name)), [(2, 2, 2), (1, 1, 1), (1, 1, 1)]);
    check(&mut bench).unwrap();
    assert_eq!(sizes(&bench, "f"), (2, 2, 2), "less than half full now");
    let bench = bench.reboot();
    assert_eq!(sizes(&bench, "f"), (2, 2, 2));
}

/// Formerly filesystems mounted below a private mount or in a container were never extended,
/// because the daemon did not see the mount.
#[test]
fn filesystems_mounted_in_other_namespaces_are_extended() {
    let mut bench = machine();
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
    let path = bench.sim.mount_elsewhere(4711, &node, Path::new("/data")).unwrap();
    bench.sim.set_used(&path, FULL).unwrap();
    use_space(&bench, &["g"]);
    check(&mut bench).unwrap();
    assert_eq!(["f", "g", "h"].map(|name| sizes(&bench, name)), [(2, 2, 2), (2, 2, 2), (1, 1, 1)]);
    // The filesystem is in use, so a request that would remove it fails and names the mount.
    let error = bench.stop_pool("p").unwrap_err().sentence();
    assert!(error.contains("/proc/4711/root/data") || error.contains("/mnt/g"), "{error}");
    bench.sim.unmount_user(Path::new("/mnt/g")).unwrap();
    let error = bench.stop_pool("p").unwrap_err().sentence();
    assert!(error.contains("mounted on /proc/4711/root/data"), "{error}");
    bench.sim.unmount_user(&path).unwrap();
    bench.stop_pool("p").unwrap();
}

#[test]
fn no_filesystem_grows_past_its_limit() {
    let mut bench = machine();
    let f = bench.filesystem("p", "f");
    let limit = |bench: &mut Bench, limit| bench.run(ops::set_size_limit(bench.id("p"), f, limit));
    assert!(matches!(limit(&mut bench, Some(Sectors(GIB.0 - 1))).unwrap_err(), Error::SizeLimit { .. }));
    assert!(limit(&mut bench, Some(GIB)).unwrap());
    assert!(!limit(&mut bench, Some(GIB)).unwrap(), "it is that already");
    use_space(&bench, &["f"]);
    check(&mut bench).unwrap();
    assert_eq!(sizes(&bench, "f"), (1, 1, 1));
    assert!(limit(&mut bench, None).unwrap());
    check(&mut bench).unwrap();
    assert_eq!(sizes(&bench, "f"), (2, 2, 2));
}

#[test]
fn a_failed_extension_is_retried_and_delays_nobody() {
    let mut bench = machine();
    use_space(&bench, &["f", "g"]);
    bench.sim.faults().fail_next(CallKind::GrowXfs, "/mnt/f");
    let error = check(&mut bench).unwrap_err();
    assert!(error.sentence().contains("cannot grow the XFS at /mnt/f"), "{}", error.sentence());
    assert_eq!(["f", "g"].map(|name| sizes(&bench, name)), [(2, 2, 1), (2, 2, 2)]);
    assert_eq!(bench.pool("p").unwrap().restriction, None);
    check(&mut bench).unwrap();
    assert_eq!(sizes(&bench, "f"), (2, 2, 2), "completed, not extended once more");
}

/// The kernel may report success and change nothing. Only the size that the XFS reports afterwards
/// counts.
#[test]
fn an_extension_without_effect_is_not_done() {
    let mut bench = machine();
    use_space(&bench, &["f", "g"]);
    bench.sim.faults().idle_growth("/mnt/f");
    let error = check(&mut bench).unwrap_err();
    assert!(matches!(&error, Error::NotExtended { mount_point } if mount_point == Path::new("/mnt/f")), "{error:?}");
    assert_eq!(["f", "g"].map(|name| sizes(&bench, name)), [(2, 2, 1), (2, 2, 2)]);
    assert_eq!(bench.pool("p").unwrap().restriction, None);
    check(&mut bench).unwrap();
    assert_eq!(sizes(&bench, "f"), (2, 2, 2), "completed, not extended once more");
}

#[test]
fn an_unreadable_filesystem_delays_no_other() {
    let mut bench = machine();
    use_space(&bench, &["f", "g"]);
    bench.sim.faults().fail_next(CallKind::Usage, "/mnt/f");
    check(&mut bench).unwrap_err();
    assert_eq!(["f", "g"].map(|name| sizes(&bench, name)), [(1, 1, 1), (2, 2, 2)]);
}

#[test]
fn without_overprovisioning_filesystems_share_the_rest() {
    let mut bench = Bench::start(Sim::builder().disk("/dev/a", Sectors(6 * GIB.0)).build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f", "g", "h"]).unwrap();
    assert!(bench.run(ops::set_overprovisioning(bench.id("p"), false)).unwrap());
    use_space(&bench, &["f", "g", "h"]);
    check(&mut bench).unwrap();
    let sum: u64 = bench.pool("p").unwrap().filesystems.values().map(|filesystem| filesystem.size.0).sum();
    assert!(sum > 4 * GIB.0 && sum < 6 * GIB.0, "{sum}");
    let error = bench.create_filesystems("p", &["more"]).unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error:?}");
    bench.check_nothing_left("after the extensions");
}

#[test]
fn a_refresh_extends_filesystems_too() {
    let mut bench = machine();
    use_space(&bench, &["f"]);
    bench.run(ops::refresh()).unwrap();
    assert_eq!(sizes(&bench, "f"), (2, 2, 2));
}

/// Every ten seconds, each pool is checked. Where no filesystem could be extended, that costs no
/// look at mounts.
#[test]
fn nothing_is_read_where_nothing_may_grow() {
    let mut restricted = machine();
    use_space(&restricted, &["f"]);
    let pool = restricted.pools.0.values_mut().next().unwrap();
    pool.restrict(Availability::NoPoolChanges, "a test wants it so");
    let mut empty = Bench::start(Sim::builder().build());
    empty.create_pool("p", &["/dev/a"]).unwrap();
    for (what, mut bench) in [("restricted", restricted), ("empty", empty)] {
        let before = bench.sim.steps();
        check(&mut bench).unwrap();
        assert_eq!(bench.sim.steps(), before, "{what}");
    }
}
