//! What clients see of a pool's sizes after a change, without a check in between (promise P3).

use std::path::{Path, PathBuf};

use stratisd::{base::units::Sectors, engine::ops};

use crate::bench::{Bench, GIB, name};

/// What a check would change of the sizes that are shown is out of date.
fn is_up_to_date(bench: &mut Bench, after: &str) {
    let shown = |bench: &Bench| {
        let pool = bench.pool("p").unwrap();
        let used: Vec<_> = pool.filesystems.values().map(|filesystem| filesystem.used).collect();
        (pool.used, used)
    };
    let before = shown(bench);
    bench.check_pools();
    assert_eq!(before, shown(bench), "after {after}");
}

/// `TotalPhysicalUsed` was unchanged after CreateFilesystems until the next check, ten seconds later.
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
    bench.mark("p", "f", 1);
    bench.check_pools();
    let origin = bench.filesystem("p", "f");
    bench.run(ops::snapshot_filesystem(pool, origin, name("s"))).unwrap();
    is_up_to_date(&mut bench, "a snapshot");
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
}
