//! RefreshState reads all devices again and adopts active ones.

use std::path::Path;

use stratisd::{
    engine::{dm_names::Role, ops},
    platform::{Platform, sim::Sim},
    view::Availability,
};
use support::{bench::Bench, disks};

fn machine() -> Bench {
    let mut bench = Bench::start(Sim::builder().build());
    for (pool, disk) in [("p", "/dev/a"), ("q", "/dev/b"), ("stopped", "/dev/c")] {
        bench.create_pool(pool, &[disk]).unwrap();
        bench.create_filesystems(pool, &["f"]).unwrap();
    }
    bench.stop_pool("stopped").unwrap();
    bench
}

#[test]
fn nothing_changes_where_nothing_has_changed() {
    let mut bench = machine();
    bench.mount("p", "f");
    // The view shows the usage at the last check.
    bench.check_pools();
    let pools = || ["p", "q"];
    let before = (pools().map(|pool| bench.pool(pool)), bench.sim.leftovers(), bench.stopped().list().clone());
    let disks_before = bench.sim.snapshot();
    bench.run(ops::refresh()).unwrap();
    let after = (pools().map(|pool| bench.pool(pool)), bench.sim.leftovers(), bench.stopped().list().clone());
    assert_eq!(after, before);
    assert_eq!(disks_before.differences(&bench.sim.snapshot()), []);
    bench.check_nothing_left("after a refresh");
    bench.create_filesystems("p", &["g"]).unwrap();
}

#[test]
fn a_refresh_finds_unreported_changes() {
    let mut bench = machine();
    // One pool is renamed without an event, another gets a new limit, and later the first one
    // vanishes and comes back.
    disks::change(&bench.sim, "/dev/c", |json| json["name"] = serde_json::json!("renamed"));
    disks::change(&bench.sim, "/dev/b", |json| json["thinpool_dev"]["fs_limit"] = serde_json::json!(123));
    bench.run(ops::refresh()).unwrap();
    assert_eq!(bench.pool("q").unwrap().fs_limit, 123);
    let stopped = bench.stopped();
    assert_eq!(stopped.list()[0].name.as_ref().unwrap().as_str(), "renamed");
    bench.sim.pull_disk(Path::new("/dev/c")).unwrap();
    bench.run(ops::refresh()).unwrap();
    assert_eq!(bench.stopped().list().len(), 0);
    bench.sim.add_disk(Path::new("/dev/c"), support::bench::GIB).unwrap();
    disks::change(&bench.sim, "/dev/c", |json| json["started"] = serde_json::json!(true));
    bench.run(ops::refresh()).unwrap();
    assert_eq!(bench.names(), ["p", "q", "renamed"]);
    bench.check_nothing_left("after a refresh");
}

#[test]
fn a_refresh_ends_a_restriction() {
    let mut bench = machine();
    let id = bench.id("p");
    let restrict = |bench: &mut Bench| {
        let pool = bench.pools.0.get_mut(&id).unwrap();
        pool.restrict(Availability::NoPoolChanges, "a test wants it so");
    };
    restrict(&mut bench);
    let shown = bench.pool("p").unwrap();
    assert_eq!(shown.availability, Availability::NoPoolChanges);
    assert_eq!(shown.restriction.as_deref(), Some("a test wants it so"));
    let error = bench.create_filesystems("p", &["g"]).unwrap_err();
    assert!(error.sentence().contains("a test wants it so"), "{}", error.sentence());
    bench.run(ops::refresh()).unwrap();
    let shown = bench.pool("p").unwrap();
    assert_eq!((shown.availability, &shown.restriction), (Availability::Full, &None));
    bench.create_filesystems("p", &["g"]).unwrap();
    // A stop, which is never refused, and a start end the restriction as well.
    restrict(&mut bench);
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    assert_eq!(bench.pool("p").unwrap().availability, Availability::Full);
}

#[test]
fn a_pool_that_cannot_be_reread_keeps_running() {
    let mut bench = machine();
    bench.mount("q", "f");
    bench.check_pools();
    disks::save(&bench.sim, "/dev/b", b"no metadata");
    let before = bench.pool("q");
    let error = bench.run(ops::refresh()).unwrap_err();
    assert!(error.sentence().contains("cannot be used"), "{}", error.sentence());
    assert_eq!(bench.pool("q"), before);
    assert_eq!(bench.names(), ["p", "q"]);
    bench.check_nothing_left("after a refresh that failed");
    // The same holds if a later step fails.
    disks::save(&bench.sim, "/dev/b", disks::json_on(&bench.sim, "/dev/a").to_string().as_bytes());
    assert!(bench.run(ops::refresh()).is_err());
    assert_eq!(bench.pool("q"), before);
    bench.check_nothing_left("after another");
    bench.create_filesystems("q", &["g"]).unwrap();
    assert!(bench.sim.dm_find(&Role::ThinPool.name(bench.id("q"))).unwrap().is_some());
}
