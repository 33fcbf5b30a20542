//! Pools that fill up to the last block and recover without a restart, and thin metadata that
//! cannot grow.

use std::{path::Path, time::Duration};

use stratisd::{
    base::units::Sectors,
    engine::{Error, Result, dm_names::Role, metadata::MetadataVersion, ops, thin_status::PoolStatus},
    platform::{
        Platform, WriteStep,
        sim::{CallKind, Sim},
    },
};
use support::bench::{Bench, GIB};

const HANG: Duration = Duration::from_secs(60);
const BLOCK: u64 = 1 << 20;
const SMALL: Sectors = Sectors(2 * GIB.0);
const VERSIONS: [MetadataVersion; 2] = [MetadataVersion::V1, MetadataVersion::V2];

/// A pool on a disk of 2 GiB with two filesystems of 1 GiB each, which is more than the pool can
/// hold.
fn machine(version: MetadataVersion) -> Bench {
    let sim = Sim::builder().disk("/dev/small", SMALL).disk("/dev/large", Sectors(100 * GIB.0)).build();
    let mut bench = Bench::start(sim);
    bench.create_pool_of(version, "p", &["/dev/small"]).unwrap();
    bench.create_filesystems("p", &["f", "g"]).unwrap();
    bench.mark("p", "f", 7);
    bench
}

/// A pool that has handed out all its space, and is full.
fn full(version: MetadataVersion) -> Bench {
    let mut bench = machine(version);
    check(&mut bench).unwrap();
    fill(&bench.sim, &nodes(&bench)).unwrap_err();
    bench
}

fn status(bench: &Bench) -> PoolStatus {
    let text = bench.sim.dm_status(&Role::ThinPool.name(bench.id("p"))).unwrap().remove(0);
    PoolStatus::parse(&text).unwrap()
}

fn check(bench: &mut Bench) -> Result<()> {
    bench.run(ops::check_now(bench.id("p")))
}

fn add(bench: &mut Bench, device: &str) -> Result<usize> {
    bench.run(ops::add_data_devices(bench.id("p"), vec![device.into()])).map(|added| added.len())
}

/// Writes to every block of both filesystems, and flushes the writes.
fn fill(sim: &Sim, nodes: &[std::path::PathBuf]) -> stratisd::platform::Result<()> {
    for node in nodes {
        for block in 0..1024 {
            sim.write(node, &[WriteStep::At(block * BLOCK + 512, &[9; 8]), WriteStep::Flush])?;
        }
    }
    Ok(())
}

fn nodes(bench: &Bench) -> Vec<std::path::PathBuf> {
    nodes_of(bench, &["f", "g"])
}

fn nodes_of(bench: &Bench, filesystems: &[&str]) -> Vec<std::path::PathBuf> {
    filesystems.iter().map(|name| bench.thin_node(bench.id("p"), bench.filesystem("p", name))).collect()
}

fn check_contents(bench: &Bench) {
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 7);
    for node in nodes(bench) {
        for block in 0..1024 {
            assert_eq!(bench.sim.read(&node, block * BLOCK + 512, 8).unwrap(), [9; 8], "{} {block}", node.display());
        }
    }
}

#[test]
fn an_added_disk_ends_failing_writes() {
    for version in VERSIONS {
        let mut bench = machine(version);
        // The check allocates the whole disk, which is still less than the reserve that a pool
        // should have.
        check(&mut bench).unwrap();
        let pool = bench.pool("p").unwrap();
        assert!(pool.no_alloc_space && status(&bench).errors_if_no_space);
        let error = fill(&bench.sim, &nodes(&bench)).unwrap_err();
        assert_eq!(error.errno(), Some(nix::libc::ENOSPC));
        assert_eq!(status(&bench).data_used, status(&bench).data_total, "to the last block");
        check(&mut bench).unwrap();
        assert_eq!(bench.pool("p").unwrap().restriction, None, "a full pool is not a broken one");

        assert_eq!(add(&mut bench, "/dev/large").unwrap(), 1);
        let pool = bench.pool("p").unwrap();
        assert!(!pool.no_alloc_space && !status(&bench).errors_if_no_space);
        fill(&bench.sim, &nodes(&bench)).unwrap();
        check_contents(&bench);
        bench.check_nothing_left("after a disk was added");
        let bench = bench.reboot();
        check_contents(&bench);
        assert!(!bench.pool("p").unwrap().no_alloc_space);
    }
}

#[test]
fn an_added_disk_resumes_queued_writes() {
    for version in VERSIONS {
        // No check has run yet, so the thin pool queues writes.
        let mut bench = machine(version);
        let (sim, all) = (bench.sim.clone(), nodes(&bench));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| fill(&sim, &all));
            assert!(sim.wait_for_stalled(1, HANG));
            assert_eq!(add(&mut bench, "/dev/large").unwrap(), 1);
            writer.join().unwrap().unwrap();
        });
        check_contents(&bench);
        bench.check_nothing_left("after a disk was added");
        check_contents(&bench.reboot());
    }
}

#[test]
fn queued_writes_fail_when_no_space_is_left() {
    let mut bench = machine(MetadataVersion::V2);
    let (sim, all) = (bench.sim.clone(), nodes(&bench));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| fill(&sim, &all));
        assert!(sim.wait_for_stalled(1, HANG));
        check(&mut bench).unwrap();
        assert_eq!(writer.join().unwrap().unwrap_err().errno(), Some(nix::libc::ENOSPC));
    });
    assert!(bench.pool("p").unwrap().no_alloc_space);
}

#[test]
fn a_full_pool_grows_after_a_restart() {
    let mut bench = Bench::start(full(MetadataVersion::V2).sim);
    assert!(bench.pool("p").unwrap().no_alloc_space);
    add(&mut bench, "/dev/large").unwrap();
    fill(&bench.sim, &nodes(&bench)).unwrap();
    check_contents(&bench);
}

#[test]
fn a_grown_device_revives_a_full_pool() {
    for version in VERSIONS {
        let mut bench = full(version);
        bench.sim.resize_disk(Path::new("/dev/small"), Sectors(5 * GIB.0)).unwrap();
        let device = bench.device("p", "/dev/small");
        assert!(bench.run(ops::grow_device(bench.id("p"), device)).unwrap());
        fill(&bench.sim, &nodes(&bench)).unwrap();
        check_contents(&bench);
    }
}

#[test]
fn metadata_that_cannot_grow_stops_allocation_with_notice() {
    for version in VERSIONS {
        let mut bench = machine(version);
        check(&mut bench).unwrap();
        let before = bench.pool("p").unwrap();
        // More filesystems need more metadata than there is.
        let error = bench.run(ops::set_fs_limit(bench.id("p"), 60_000)).unwrap_err();
        assert!(matches!(error, Error::MetadataExhausted { .. }), "{error:?}");
        assert_eq!(bench.pool("p").unwrap(), before);
        add(&mut bench, "/dev/large").unwrap();
        let metadata = status(&bench).metadata_total;
        bench.run(ops::set_fs_limit(bench.id("p"), 60_000)).unwrap();
        assert!(status(&bench).metadata_total > metadata);
        assert_eq!(bench.pool("p").unwrap().fs_limit, 60_000);
    }
}

#[test]
fn metadata_does_not_grow_into_promised_space() {
    let mut bench = machine(MetadataVersion::V2);
    add(&mut bench, "/dev/large").unwrap();
    assert!(bench.run(ops::set_overprovisioning(bench.id("p"), false)).unwrap());
    // Promise all remaining space.
    let mut size = 102 * GIB.0;
    loop {
        let new = ops::NewFilesystem { name: support::bench::name("big"), size: Some(Sectors(size)), size_limit: None };
        match bench.run(ops::create_filesystems(bench.id("p"), vec![new])) {
            Ok(_) => break,
            Err(Error::NoRoom { needed, room, .. }) => size -= needed.0 - room.0,
            Err(other) => panic!("{other:?}"),
        }
    }
    let error = bench.run(ops::set_fs_limit(bench.id("p"), 60_000)).unwrap_err();
    assert!(matches!(error, Error::MetadataPromised { .. }), "{error:?}");
    assert!(bench.run(ops::set_overprovisioning(bench.id("p"), true)).unwrap());
    bench.run(ops::set_fs_limit(bench.id("p"), 60_000)).unwrap();
}

/// Formerly a check read the status three to four times, at each event and for each pool every ten
/// seconds.
#[test]
fn a_check_reads_the_thin_status_once() {
    let mut bench = Bench::start(Sim::builder().record().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    let thin_pool = Role::ThinPool.name(bench.id("p"));
    // The number of status reads in a check, and whether the check changed anything.
    let asks = |bench: &mut Bench| {
        let before = bench.sim.steps();
        check(bench).unwrap();
        let steps = bench.sim.trace().split_off(usize::try_from(before).unwrap());
        let asked = steps.iter().filter(|step| step.call == CallKind::DmStatus && step.subject == thin_pool).count();
        (asked, steps.iter().any(|step| step.call.changes()))
    };
    // After it has grown the thin pool, the check reads the status again.
    let first = asks(&mut bench);
    assert!(first.0 > 1 && first.1, "{first:?}");
    while asks(&mut bench).1 {}
    assert_eq!(asks(&mut bench), (1, false));
    let node = nodes_of(&bench, &["f"]).remove(0);
    bench.sim.write(&node, &[WriteStep::At(100 * BLOCK, &[9; 8]), WriteStep::Flush]).unwrap();
    let before = bench.pool("p").unwrap().used.unwrap();
    assert_eq!(asks(&mut bench), (1, false));
    let used = bench.pool("p").unwrap().used.unwrap();
    assert_eq!(used, Sectors(before.0 + BLOCK / 512), "and it is the state of now");
}

/// An extension writes to the filesystem, and would wait in a thin pool without space.
#[test]
fn filesystems_in_a_full_pool_are_not_extended() {
    let mut bench = full(MetadataVersion::V2);
    bench.mount("p", "f");
    bench.sim.set_used(Path::new("/mnt/f"), stratisd::base::units::Bytes(900 << 20)).unwrap();
    check(&mut bench).unwrap();
    let device = stratisd::engine::dm_names::filesystem(bench.id("p"), bench.filesystem("p", "f"));
    let size = |bench: &Bench| bench.sim.dm_find(&device).unwrap().unwrap().table[0].length;
    bench.run(ops::check_filesystems_now(bench.id("p"))).unwrap();
    assert_eq!(size(&bench), GIB);
    add(&mut bench, "/dev/large").unwrap();
    bench.run(ops::check_filesystems_now(bench.id("p"))).unwrap();
    assert!(size(&bench) > GIB);
}

/// A new table would suspend every filesystem of the pool, and no mark can be passed any more.
#[test]
fn a_full_pool_gets_no_new_mark() {
    for version in VERSIONS {
        let mut bench = full(version);
        let table = |bench: &Bench| bench.sim.dm_find(&Role::ThinPool.name(bench.id("p"))).unwrap().unwrap().table;
        let before = table(&bench);
        check(&mut bench).unwrap();
        assert_eq!(table(&bench), before);
    }
}
