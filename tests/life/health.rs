//! Damaged thin pools: the pool is restricted and shows the reason, and a stop and a start repair
//! it.

use stratisd::{
    base::units::Sectors,
    engine::{dm_names::Role, ops},
    platform::{
        Platform, Program, ProgramEnd,
        sim::{CallKind, Sim},
    },
    view::Availability,
};
use support::bench::{Bench, GIB};

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
    assert!(error.contains(reason) && error.contains("stop and start the pool"), "{error}");
}

#[test]
fn checks_and_starts_notice_a_failed_thin_pool() {
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
    let before = support::disks::json_on(&bench.sim, "/dev/a");
    bench.start_pool("p").unwrap();
    let after = support::disks::json_on(&bench.sim, "/dev/a");
    let flex = |json: &serde_json::Value, key: &str| json["flex_devs"][key].clone();
    assert_eq!(flex(&after, "thin_meta_dev"), flex(&before, "thin_meta_dev_spare"));
    assert_eq!(flex(&after, "thin_meta_dev_spare"), flex(&before, "thin_meta_dev"));
    assert_eq!(after["repaired"], true);
    assert_eq!(bench.pool("p").unwrap().availability, Availability::Full);
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 5);
    bench.check_nothing_left("after the repair");
}

/// Formerly a killed or missing thin_check caused a repair, which replaced the thin metadata.
#[test]
fn only_errors_found_by_thin_check_cause_repairs() {
    let mut bench = machine();
    let metadata = Role::ThinMeta.name(bench.id("p"));
    for end in [ProgramEnd::Signal(9), ProgramEnd::NotRun, ProgramEnd::Status(1), ProgramEnd::Status(127)] {
        bench.stop_pool("p").unwrap();
        let before = support::disks::json_on(&bench.sim, "/dev/a");
        // A thin_check without a verdict is retried once.
        bench.sim.faults().end_next(Program::ThinCheck, &metadata, end);
        bench.start_pool("p").unwrap();
        bench.stop_pool("p").unwrap();
        bench.sim.faults().end_next(Program::ThinCheck, &metadata, end);
        bench.sim.faults().end_next(Program::ThinCheck, &metadata, end);
        let error = bench.start_pool("p").unwrap_err().sentence();
        assert!(error.contains("could not be checked, and nothing was changed; start the pool again"), "{error}");
        let after = support::disks::json_on(&bench.sim, "/dev/a");
        assert_eq!(after["flex_devs"], before["flex_devs"], "{end:?}");
        bench.start_pool("p").unwrap();
    }
    for end in [ProgramEnd::TimedOut, ProgramEnd::Unkillable] {
        bench.stop_pool("p").unwrap();
        bench.sim.faults().end_next(Program::ThinCheck, &metadata, end);
        let error = bench.start_pool("p").unwrap_err().sentence();
        assert!(error.contains("did not exit in time"), "{error}");
        bench.start_pool("p").unwrap();
    }
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 5);
    bench.check_nothing_left("after checks without a verdict");
}

/// Formerly an unreadable disk was mistaken for damaged thin metadata.
#[test]
fn metadata_that_cannot_be_read_is_not_repaired() {
    let mut bench = machine();
    let metadata = bench.sim.dm_node(&Role::ThinMeta.name(bench.id("p")));
    bench.sim.damage_metadata(&metadata).unwrap();
    bench.stop_pool("p").unwrap();
    let before = support::disks::json_on(&bench.sim, "/dev/a");
    bench.sim.faults().fail_next(CallKind::Read, &metadata.to_string_lossy());
    let error = bench.start_pool("p").unwrap_err().sentence();
    assert!(error.contains("could not be checked, and nothing was changed"), "{error}");
    assert_eq!(support::disks::json_on(&bench.sim, "/dev/a")["flex_devs"], before["flex_devs"]);
    bench.start_pool("p").unwrap();
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 5);
}

/// A second repair would overwrite the old thin metadata that the first repair has kept.
#[test]
fn a_repair_keeps_the_old_metadata_until_verified() {
    let mut bench = machine();
    let pool = bench.id("p");
    let metadata = bench.sim.dm_node(&Role::ThinMeta.name(pool));
    let damage = |bench: &mut Bench| {
        bench.sim.damage_metadata(&metadata).unwrap();
        bench.stop_pool("p").unwrap();
    };
    damage(&mut bench);
    bench.start_pool("p").unwrap();
    damage(&mut bench);
    let before = support::disks::json_on(&bench.sim, "/dev/a");
    let error = bench.start_pool("p").unwrap_err().sentence();
    assert!(error.contains("damaged again after a repair"), "{error}");
    assert_eq!(support::disks::json_on(&bench.sim, "/dev/a")["flex_devs"], before["flex_devs"]);
    bench.check_nothing_left("after the refusal");

    // After a set-up that finds the thin metadata sound, another repair is possible.
    let mut bench = machine();
    let pool = bench.id("p");
    let metadata = bench.sim.dm_node(&Role::ThinMeta.name(pool));
    bench.sim.damage_metadata(&metadata).unwrap();
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    assert_eq!(support::disks::json_on(&bench.sim, "/dev/a").get("repaired"), None);
    bench.sim.damage_metadata(&metadata).unwrap();
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    assert_eq!(bench.mark_of(pool, bench.filesystem("p", "f")), 5);
}

#[test]
fn a_repair_that_is_not_sound_changes_nothing() {
    let mut bench = machine();
    let pool = bench.id("p");
    let metadata = bench.sim.dm_node(&Role::ThinMeta.name(pool));
    bench.sim.damage_metadata(&metadata).unwrap();
    bench.stop_pool("p").unwrap();
    let before = support::disks::json_on(&bench.sim, "/dev/a");
    let spare = Role::ThinMetaSpare.name(pool);
    for _ in 0..2 {
        bench.sim.faults().end_next(Program::ThinCheck, &spare, ProgramEnd::Signal(9));
    }
    let error = bench.start_pool("p").unwrap_err().sentence();
    assert!(error.contains("could not be checked"), "{error}");
    bench.sim.faults().end_at_next_write(Program::ThinRepair, "", ProgramEnd::Signal(9));
    let error = bench.start_pool("p").unwrap_err().sentence();
    assert!(error.contains("thin_repair failed: killed by signal 9"), "{error}");
    assert_eq!(support::disks::json_on(&bench.sim, "/dev/a")["flex_devs"], before["flex_devs"]);
    bench.start_pool("p").unwrap();
    assert_eq!(bench.mark_of(pool, bench.filesystem("p", "f")), 5);
    bench.check_nothing_left("after the repair");
}

#[test]
fn a_start_repairs_a_thin_pool_needing_check() {
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

/// Found in review: each check reloaded the table and allocated space that the thin pool could not
/// use.
#[test]
fn a_read_only_thin_pool_is_not_retried() {
    let mut bench = Bench::start(Sim::builder().record().build());
    bench.sim.add_disk("/dev/small".as_ref(), Sectors(2 * GIB.0)).unwrap();
    bench.create_pool("p", &["/dev/small"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    check(&mut bench);
    // The thin pool becomes read-only before it takes the recorded space.
    let thin_pool = Role::ThinPool.name(bench.id("p"));
    let mapped = |bench: &Bench| bench.sim.dm_find(&thin_pool).unwrap().unwrap().table[0].length;
    let before = mapped(&bench);
    for _ in 0..10 {
        bench.sim.faults().fail_next(CallKind::DmLoad, &thin_pool);
    }
    bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/large".into()])).unwrap();
    bench.sim.faults().clear();
    assert_eq!(mapped(&bench), before);
    bench.sim.fail_metadata(&thin_pool).unwrap();
    check(&mut bench);
    let (pool, steps) = (bench.pool("p").unwrap(), bench.sim.steps());
    for _ in 0..3 {
        check(&mut bench);
    }
    let steps = bench.sim.trace().split_off(usize::try_from(steps).unwrap());
    let changes: Vec<_> = steps.iter().filter(|step| step.call.changes()).collect();
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(bench.pool("p").unwrap().allocated, pool.allocated);
    bench.stop_pool("p").unwrap();
    bench.start_pool("p").unwrap();
    assert_eq!(bench.pool("p").unwrap().availability, Availability::Full);
    check(&mut bench);
    assert!(mapped(&bench) > Sectors(2 * GIB.0), "it grows again");
    bench.check_nothing_left("after the start");
}

fn check(bench: &mut Bench) {
    bench.run(ops::check_pool(bench.id("p")));
}
