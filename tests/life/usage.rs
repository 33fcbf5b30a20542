//! The sizes of a pool that clients see after a change, without a check in between (promise P3).

use std::path::{Path, PathBuf};

use stratisd::{
    base::units::{Bytes, Sectors},
    engine::ops,
    view,
};
use support::bench::{Bench, GIB, name};

/// Checks that a check would not change the view.
fn is_up_to_date(bench: &mut Bench, after: &str) {
    let before = bench.pool("p").unwrap();
    bench.check_pools();
    assert_eq!(before, bench.pool("p").unwrap(), "after {after}");
}

/// As [`is_up_to_date`], except for the usage of these filesystems, to which users have written.
fn is_up_to_date_but(bench: &mut Bench, after: &str, written: &[&str]) {
    let shown = |bench: &Bench| {
        let mut pool = view::PoolView::clone(&bench.pool("p").unwrap());
        for filesystem in pool.filesystems.clone().values().filter(|found| written.contains(&found.name.as_str())) {
            let quiet = view::FilesystemView { used: None, ..view::FilesystemView::clone(filesystem) };
            pool.filesystems.insert(filesystem.uuid, quiet.into());
        }
        pool
    };
    let before = shown(bench);
    bench.check_pools();
    assert_eq!(before, shown(bench), "after {after}");
}

/// Formerly `TotalPhysicalUsed` changed only at the next check after CreateFilesystems, up to ten
/// seconds later.
#[test]
fn used_space_is_that_after_the_change() {
    let mut bench = Bench::start(stratisd::platform::sim::Sim::builder().build());
    bench.create_pool("p", &["/dev/a", "/dev/b"]).unwrap();
    let pool = bench.id("p");
    is_up_to_date(&mut bench, "the creation of the pool");
    let used = |bench: &Bench| bench.pool("p").unwrap().used.unwrap();
    let empty = used(&bench);
    bench.create_filesystems("p", &["f", "g"]).unwrap();
    assert!(used(&bench) > empty);
    is_up_to_date(&mut bench, "the creation of filesystems");
    // Data that the snapshot writes back belongs to the origin.
    bench.mark("p", "f", 1);
    let origin = bench.filesystem("p", "f");
    bench.run(ops::snapshot_filesystem(pool, origin, name("s"))).unwrap();
    is_up_to_date(&mut bench, "a snapshot");
    let snapshot = bench.filesystem("p", "s");
    bench.run(ops::set_size_limit(pool, origin, Some(Sectors(3000 * GIB.0)))).unwrap();
    is_up_to_date(&mut bench, "a size limit");
    bench.run(ops::schedule_revert(pool, snapshot, true)).unwrap();
    is_up_to_date(&mut bench, "the order of a revert");
    bench.run(ops::schedule_revert(pool, snapshot, false)).unwrap();
    bench.run(ops::rename_filesystem(pool, origin, name("h"))).unwrap();
    is_up_to_date(&mut bench, "the rename of a filesystem");
    bench.run(ops::add_data_devices(pool, vec![PathBuf::from("/dev/c")])).unwrap();
    is_up_to_date(&mut bench, "the addition of a data device");
    bench.run(ops::init_cache(pool, vec![PathBuf::from("/dev/d")])).unwrap();
    is_up_to_date(&mut bench, "the beginning of a cache");
    bench.run(ops::add_cache_devices(pool, vec![PathBuf::from("/dev/e")])).unwrap();
    is_up_to_date(&mut bench, "the addition of a cache device");
    bench.run(ops::set_fs_limit(pool, 5000)).unwrap();
    is_up_to_date(&mut bench, "a higher filesystem limit");
    let size = bench.pool("p").unwrap().devices[&bench.device("p", "/dev/c")].size;
    bench.sim.resize_disk(Path::new("/dev/c"), Sectors(size.0 + 100 * GIB.0)).unwrap();
    let device = bench.device("p", "/dev/c");
    assert!(bench.run(ops::grow_device(pool, device)).unwrap());
    is_up_to_date(&mut bench, "the growth of a device");
    let before = used(&bench);
    let doomed = ["h", "s"].map(|name| bench.filesystem("p", name)).to_vec();
    bench.run(ops::destroy_filesystems(pool, doomed)).unwrap();
    assert!(used(&bench) < before);
    is_up_to_date(&mut bench, "the destruction of filesystems");
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    is_up_to_date(&mut bench, "a stop and a start");
    bench.run(ops::rename_pool(pool, name("p"))).unwrap();
    bench.run(ops::refresh()).unwrap();
    is_up_to_date(&mut bench, "a refresh");
}

/// The revert of a filesystem to its snapshot, and the destruction of another filesystem.
#[test]
fn used_space_is_that_after_reverts_and_destructions() {
    let mut bench = Bench::with_two_filesystems();
    let pool = bench.id("p");
    bench.check_pools();
    let used = |bench: &Bench, name: &str| {
        let id = bench.filesystem("p", name);
        bench.pool("p").unwrap().filesystems[&id].used.unwrap()
    };
    let origin = bench.filesystem("p", "f");
    for snapshot in ["s", "t"] {
        bench.run(ops::snapshot_filesystem(pool, origin, name(snapshot))).unwrap();
    }
    bench.mark("p", "f", 1);
    let doomed = bench.filesystem("p", "t");
    bench.run(ops::destroy_filesystems(pool, vec![doomed])).unwrap();
    is_up_to_date_but(&mut bench, "the destruction of a snapshot", &["f"]);
    let (before, of_snapshot) = (used(&bench, "f"), used(&bench, "s"));
    assert!(of_snapshot < before);
    let snapshot = bench.filesystem("p", "s");
    bench.run(ops::schedule_revert(pool, snapshot, true)).unwrap();
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    assert_eq!(used(&bench, "f"), of_snapshot);
    is_up_to_date(&mut bench, "a revert");
}

/// Formerly an extended XFS and its pool showed their former usage until the next check.
#[test]
fn used_space_is_that_after_an_extension() {
    let mut bench = Bench::start(stratisd::platform::sim::Sim::builder().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    let (pool, id) = (bench.id("p"), bench.filesystem("p", "f"));
    bench.mount("p", "f");
    let shown = |bench: &Bench| {
        let pool = bench.pool("p").unwrap();
        let filesystem = &pool.filesystems[&id];
        (filesystem.size, filesystem.used.unwrap(), pool.used.unwrap())
    };
    let half = |size: Sectors| Bytes(size.bytes().0 / 4 * 3);
    let mut before = shown(&bench);
    // Extend the filesystem by a check of filesystems, and by a refresh.
    for refresh in [false, true] {
        bench.sim.set_used(Path::new("/mnt/f"), half(before.0)).unwrap();
        match refresh {
            false => bench.run(ops::check_filesystems_now(pool)).unwrap(),
            true => bench.run(ops::refresh()).unwrap(),
        }
        let after = shown(&bench);
        assert!(after.0 > before.0 && after.1 > before.1 && after.2 > before.2, "{before:?}, {after:?}");
        is_up_to_date(&mut bench, "an extension");
        before = after;
    }
}
