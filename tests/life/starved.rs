//! Thin pools without metadata space. They are not damaged: they get more metadata space where
//! space exists, and are restricted only until then.

use std::path::Path;

use stratisd::{
    base::units::Sectors,
    engine::{
        Error, Result,
        dm_names::Role,
        ops,
        plan::sizes,
        thin_status::{PoolStatus, State},
    },
    platform::{
        Platform, Program, WriteStep,
        sim::{CallKind, Sim},
    },
    view::Availability,
};
use support::bench::{Bench, GIB};

const SMALL: Sectors = Sectors(2 * GIB.0);
const BLOCK: u64 = 1 << 20;

/// A completely allocated pool on a disk of 2 GiB, with two filesystems. The machine has another,
/// large disk.
fn small() -> Bench {
    let sim = Sim::builder().disk("/dev/small", SMALL).disk("/dev/large", Sectors(100 * GIB.0)).build();
    let mut bench = Bench::start(sim);
    bench.create_pool("p", &["/dev/small"]).unwrap();
    bench.create_filesystems("p", &["f", "g"]).unwrap();
    bench.mark("p", "f", 7);
    check(&mut bench).unwrap();
    bench
}

fn check(bench: &mut Bench) -> Result<()> {
    bench.run(ops::check_now(bench.id("p")))
}

fn status(bench: &Bench) -> PoolStatus {
    let text = bench.sim.dm_status(&Role::ThinPool.name(bench.id("p"))).unwrap().remove(0);
    PoolStatus::parse(&text).unwrap()
}

/// Writes to a block of `f` that has not been written yet.
fn write(bench: &Bench, block: u64) -> stratisd::platform::Result<()> {
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
    bench.sim.write(&node, &[WriteStep::At(block * BLOCK, b"new"), WriteStep::Flush])
}

/// Uses up the metadata space of the thin pool.
fn starve(bench: &Bench) {
    bench.sim.take_metadata(&Role::ThinPool.name(bench.id("p")), 0).unwrap();
    assert_eq!(write(bench, 900).unwrap_err().errno(), Some(nix::libc::EIO));
    let status = status(bench);
    assert_eq!((status.state, status.needs_check), (State::OutOfMetadataSpace, false));
}

fn expect_free(bench: &mut Bench, at: &str) {
    let pool = bench.pool("p").unwrap();
    assert_eq!((pool.availability, pool.restriction.clone()), (Availability::Full, None), "{at}");
    assert_eq!(status(bench).state, State::ReadWrite, "{at}");
    write(bench, 901).unwrap();
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 7, "{at}");
    bench.create_filesystems("p", &["more"]).unwrap();
    bench.check_nothing_left(at);
}

fn expect_restricted(bench: &mut Bench) {
    let pool = bench.pool("p").unwrap();
    assert_eq!(pool.availability, Availability::NoRequests);
    let reason = pool.restriction.as_deref().unwrap();
    assert!(reason.contains("no space left for metadata") && reason.contains("add a data device"), "{reason}");
    let error = bench.create_filesystems("p", &["more"]).unwrap_err();
    assert!(matches!(error, Error::MetadataExhausted { .. }), "{error:?}");
}

/// Formerly a thin pool that was read-only for lack of metadata space counted as damaged. The check
/// did not extend its metadata, and only a stop ended the restriction.
#[test]
fn the_check_extends_metadata_where_space_exists() {
    let mut bench = Bench::start(Sim::builder().disk("/dev/a", Sectors(100 * GIB.0)).build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    bench.mark("p", "f", 7);
    check(&mut bench).unwrap();
    starve(&bench);
    let before = status(&bench).metadata_total;
    check(&mut bench).unwrap();
    assert!(status(&bench).metadata_total > before);
    expect_free(&mut bench, "after the check");
    expect_free_after_reboot(bench);
}

fn expect_free_after_reboot(bench: Bench) {
    let bench = bench.reboot();
    assert_eq!(bench.pool("p").unwrap().availability, Availability::Full);
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 7);
}

/// Formerly the restriction refused the addition of a disk, although the disk would have ended it.
#[test]
fn a_disk_ends_the_restriction() {
    let mut bench = small();
    starve(&bench);
    check(&mut bench).unwrap_err();
    expect_restricted(&mut bench);
    let added = bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/large".into()])).unwrap();
    assert_eq!(added.len(), 1);
    expect_free(&mut bench, "after a disk was added");
    expect_free_after_reboot(bench);
}

#[test]
fn a_grown_device_ends_the_restriction() {
    let mut bench = small();
    starve(&bench);
    check(&mut bench).unwrap_err();
    expect_restricted(&mut bench);
    bench.sim.resize_disk(Path::new("/dev/small"), Sectors(20 * GIB.0)).unwrap();
    let device = bench.device("p", "/dev/small");
    assert!(bench.run(ops::grow_device(bench.id("p"), device)).unwrap());
    expect_free(&mut bench, "after the device has grown");
}

/// The kernel refuses deletions in this state until the table of the thin pool is reloaded.
#[test]
fn a_destroyed_filesystem_ends_the_restriction() {
    let mut bench = small();
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "g"));
    for block in 0..400 {
        bench.sim.write(&node, &[WriteStep::At(block * BLOCK, b"x"), WriteStep::Flush]).unwrap();
    }
    starve(&bench);
    check(&mut bench).unwrap_err();
    expect_restricted(&mut bench);
    let g = bench.filesystem("p", "g");
    assert_eq!(bench.run(ops::destroy_filesystems(bench.id("p"), vec![g])).unwrap(), [g]);
    expect_free(&mut bench, "after a filesystem was destroyed");
}

#[test]
fn a_restarted_daemon_accepts_a_disk_too() {
    let bench = small();
    starve(&bench);
    let mut bench = Bench::start(bench.sim);
    expect_restricted(&mut bench);
    bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/large".into()])).unwrap();
    expect_free(&mut bench, "after a disk was added");
}

/// The amount of thin metadata follows from the size of the pool.
#[test]
fn metadata_grows_with_its_pool() {
    let mut bench = small();
    let metadata = |bench: &Bench| {
        let table = bench.sim.dm_find(&Role::ThinMeta.name(bench.id("p"))).unwrap().unwrap().table;
        Sectors(table.iter().map(|line| line.length.0).sum())
    };
    let before = metadata(&bench);
    bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/large".into()])).unwrap();
    bench.run(ops::check_pool(bench.id("p")));
    let pool = bench.pool("p").unwrap();
    let arguments = sizes::thin_metadata_size_arguments(pool.total, pool.fs_limit);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let needed = sizes::thin_metadata(&bench.sim.run(Program::ThinMetadataSize, &arguments).unwrap()).unwrap();
    // A part of `total` is metadata itself and needs no further metadata.
    assert!(
        before < needed && metadata(&bench) > Sectors(needed.0 / 10 * 9),
        "{before:?} {needed:?} {:?}",
        metadata(&bench)
    );
}

/// Formerly the thin device of an unfinished filesystem could not be deleted, and the pool stayed
/// restricted forever.
#[test]
fn a_creation_without_metadata_space_leaves_nothing() {
    let mut bench = small();
    for free in 0..3 {
        bench.sim.take_metadata(&Role::ThinPool.name(bench.id("p")), free).unwrap();
        bench.create_filesystems("p", &["more"]).unwrap_err();
        // The result does not matter: the check reports only once that metadata cannot grow.
        let _ = check(&mut bench);
        bench.check_nothing_left(&format!("with {free} blocks"));
    }
    bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/large".into()])).unwrap();
    expect_free(&mut bench, "after a disk was added");
}

/// A damaged pool stays restricted, however much space there is.
#[test]
fn damage_is_not_ended_by_space() {
    let mut bench = small();
    starve(&bench);
    check(&mut bench).unwrap_err();
    bench.sim.fail_metadata(&Role::ThinPool.name(bench.id("p"))).unwrap();
    check(&mut bench).unwrap();
    let error = bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/large".into()])).unwrap_err();
    assert!(matches!(error, Error::Restricted { .. }), "{error:?}");
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/large".into()])).unwrap();
    expect_free(&mut bench, "after a start and a disk");
}

/// If the failure counted as a deletion, the thin device would stay and its blocks would never be
/// free again.
#[test]
fn a_thin_device_that_stays_is_deleted_later() {
    let mut bench = small();
    let (pool, filesystem) = (bench.id("p"), bench.filesystem("p", "f"));
    let thin_pool = Role::ThinPool.name(pool);
    let before = bench.sim.thin_ids(&thin_pool).unwrap();
    // The deletion is tried twice.
    (0..2).for_each(|_| bench.sim.faults().fail_next(CallKind::DmMessage, &thin_pool));
    assert_eq!(bench.run(ops::destroy_filesystems(pool, vec![filesystem])).unwrap(), [filesystem]);
    assert_eq!(bench.sim.thin_ids(&thin_pool).unwrap(), before);
    let bench = bench.reboot();
    assert_eq!(bench.sim.thin_ids(&thin_pool).unwrap().len(), before.len() - 1);
}

/// No check has run since a write failed, so the request itself finds out.
#[test]
fn a_creation_finds_the_metadata_exhausted() {
    let mut bench = small();
    starve(&bench);
    let error = bench.create_filesystems("p", &["more"]).unwrap_err();
    assert!(matches!(error, Error::MetadataExhausted { .. }), "{error:?}");
    bench.check_nothing_left("after a refusal");
}
