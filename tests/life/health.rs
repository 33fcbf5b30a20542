//! Thin pools that are not well: the pool is restricted, shown with the reason, and healed by a stop and a start.

use stratisd::{
    engine::{dm_names::Role, ops},
    platform::{Platform, sim::Sim},
    view::Availability,
};

use crate::bench::Bench;

fn machine() -> Bench {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    bench.mark("p", "f", 5);
    bench
}

fn expect_restricted(bench: &mut Bench, level: Availability, reason: &str) {
    let pool = bench.pool("p").expect("the pool is shown");
    assert_eq!(pool.availability, level);
    assert!(pool.restriction.as_deref().is_some_and(|why| why.contains(reason)), "{:?}", pool.restriction);
    let error = bench.create_filesystems("p", &["g"]).unwrap_err().sentence();
    assert!(error.contains(reason) && error.contains("stop the pool and start it again"), "{error}");
}

#[test]
fn a_failed_thin_pool_is_seen_by_the_next_check_and_by_a_daemon_that_starts() {
    let mut bench = machine();
    bench.sim.fail_pool(&Role::ThinPool.name(bench.id("p"))).unwrap();
    bench.run(ops::check_pool(bench.id("p")));
    expect_restricted(&mut bench, Availability::NoPoolChanges, "its thin pool has failed");
    let mut bench = Bench::start(bench.sim);
    expect_restricted(&mut bench, Availability::NoPoolChanges, "its thin pool has failed");
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    assert_eq!(bench.pool("p").unwrap().availability, Availability::Full);
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 5);
    bench.create_filesystems("p", &["g"]).unwrap();
}

#[test]
fn damaged_metadata_is_repaired_by_a_start() {
    let mut bench = machine();
    let metadata = bench.sim.dm_node(&Role::ThinMeta.name(bench.id("p")));
    bench.sim.damage_metadata(&metadata).unwrap();
    bench.stop_pool("p").unwrap();
    let before = crate::disks::json_on(&bench.sim, "/dev/a");
    bench.start_pool("p").unwrap();
    let after = crate::disks::json_on(&bench.sim, "/dev/a");
    let flex = |json: &serde_json::Value, key: &str| json["flex_devs"][key].clone();
    assert_eq!(flex(&after, "thin_meta_dev"), flex(&before, "thin_meta_dev_spare"));
    assert_eq!(flex(&after, "thin_meta_dev_spare"), flex(&before, "thin_meta_dev"));
    assert_eq!(bench.pool("p").unwrap().availability, Availability::Full);
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 5);
    bench.check_nothing_left("after the repair");
}

#[test]
fn a_thin_pool_that_must_be_checked_restricts_the_pool_and_is_mended_by_a_start() {
    let mut bench = machine();
    bench.sim.fail_metadata(&Role::ThinPool.name(bench.id("p"))).unwrap();
    bench.run(ops::check_pool(bench.id("p")));
    expect_restricted(&mut bench, Availability::NoRequests, "metadata of its thin pool");
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 5, "it can still be read");
    let mut bench = Bench::start(bench.sim);
    expect_restricted(&mut bench, Availability::NoRequests, "metadata of its thin pool");

    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    assert_eq!(bench.pool("p").unwrap().availability, Availability::Full);
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 5);
    bench.create_filesystems("p", &["g"]).unwrap();
    bench.check_nothing_left("after the start");
}
