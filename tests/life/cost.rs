//! The cost of requests on large pools: reads, reads of the mount table, and waits for disks. The
//! tests count steps and measure no time.

use std::path::PathBuf;

use stratisd::{
    engine::ops,
    platform::sim::{CallKind, Sim},
};
use support::bench::Bench;

/// The number of disks of a large pool.
const DISKS: usize = 200;

fn disks(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("/dev/d{number}")).collect()
}

fn pool_of(count: usize) -> Bench {
    let mut bench = Bench::start(Sim::builder().build());
    let disks = disks(count);
    bench.create_pool("p", &disks.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    bench
}

/// A pool with thirty filesystems, on a machine that records its steps.
fn thirty_filesystems() -> Bench {
    let mut bench = Bench::start(Sim::builder().record().build());
    bench.create_pool("p", &["/dev/a", "/dev/b"]).unwrap();
    let names: Vec<String> = (0..30).map(|number| format!("f{number}")).collect();
    bench.create_filesystems("p", &names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    bench
}

/// The number of steps of one kind since step `from`.
fn count(bench: &Bench, from: u64, call: CallKind) -> usize {
    let from = usize::try_from(from).unwrap();
    bench.sim.trace()[from..].iter().filter(|step| step.call == call).count()
}

/// Formerly destroying one of 1,000 filesystems read all 1,003 record files, with the pool locked.
#[test]
fn destroying_a_filesystem_reads_no_other_record() {
    let mut bench = thirty_filesystems();
    let (pool, doomed) = (bench.id("p"), bench.filesystem("p", "f7"));
    let from = bench.sim.steps();
    bench.run(ops::destroy_filesystems(pool, vec![doomed])).unwrap();
    assert_eq!(count(&bench, from, CallKind::ReadFile), 0, "files that were read:\n{}", bench.tail(from));
    bench.check_nothing_left("after the destruction");
}

/// Formerly each destroyed filesystem cost one read of the mount table, with the pool locked.
#[test]
fn stop_and_destroy_read_the_mounts_once() {
    let mut bench = thirty_filesystems();
    let pool = bench.id("p");
    let doomed = (0..10).map(|number| bench.filesystem("p", &format!("f{number}"))).collect();
    let from = bench.sim.steps();
    bench.run(ops::destroy_filesystems(pool, doomed)).unwrap();
    assert_eq!(count(&bench, from, CallKind::MountPoints), 1);
    let from = bench.sim.steps();
    bench.stop_pool("p").unwrap();
    assert_eq!(count(&bench, from, CallKind::MountPoints), 1);
}

/// Formerly adding a device to 202 others waited for 609 flushes, one after the other, with the
/// pool locked.
#[test]
fn adding_a_device_flushes_one_device() {
    let (mut large, mut small) = (pool_of(DISKS), pool_of(1));
    let add = |bench: &mut Bench| {
        let before = bench.sim.flush_waits();
        bench.run(ops::add_data_devices(bench.id("p"), vec![PathBuf::from("/dev/more")])).unwrap();
        bench.sim.flush_waits() - before
    };
    // The small pool has also grown its thin pool, which writes the pool metadata once more.
    assert!(add(&mut large) <= add(&mut small));
}

#[test]
fn creating_on_many_disks_flushes_in_parallel() {
    let mut waits = [DISKS, 1].map(pool_of);
    let [large, small] = waits.each_ref().map(|bench| bench.sim.flush_waits());
    assert_eq!(large, small, "created");
    let [large, small] = waits.each_mut().map(|bench| {
        let before = bench.sim.flush_waits();
        bench.run(ops::destroy_pool(bench.id("p"))).unwrap();
        bench.sim.flush_waits() - before
    });
    assert_eq!(large, small, "destroyed");
}
