//! Devices are identified by their contents: clones, stale copies, leftovers, devices below others,
//! and devices that come back under another node.

use std::path::Path;

use stratisd::{
    base::units::Sectors,
    engine::{
        bda::{Bda, Repair},
        dm_names::Role,
        metadata::MetadataVersion,
        ops,
    },
    platform::{
        DeviceAction, DeviceEvent, Platform, Timestamp,
        dm::{Line, Visibility},
        sim::{CallKind, Sim},
    },
    view::LeftAsideView,
};
use support::{
    bench::{Bench, name},
    disks::{self, reboot},
};

use crate::{
    discovery::{Watched, two_disks},
    witness::listen,
};

const TIB: Sectors = Sectors(1 << 31);

fn path(text: &str) -> &Path {
    Path::new(text)
}

/// Copies the start of a disk, which holds all its metadata, to a new disk.
fn clone_disk(sim: &Sim, from: &str, to: &str) {
    sim.add_disk(path(to), TIB).unwrap();
    sim.put(path(to), 0, &sim.durable(path(from), 0..1 << 20)).unwrap();
}

/// A machine that is off, with pool `p` on `/dev/m`. The pool has been written to since `/dev/m`
/// was cloned to the nodes `clones`.
fn with_stale_clones(clones: &[&str]) -> Sim {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("old", &["/dev/m"]).unwrap();
    clones.iter().for_each(|clone| clone_disk(&bench.sim, "/dev/m", clone));
    bench.run(ops::rename_pool(bench.id("old"), name("p"))).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    reboot(&bench.sim);
    bench.sim
}

fn aside(bench: &Bench) -> Vec<LeftAsideView> {
    bench.stopped().left_aside.values().flat_map(|devices| devices.iter().cloned()).collect()
}

fn node(bench: &Bench, pool: &str) -> String {
    bench.pool(pool).unwrap().devices.values().next().unwrap().node.display().to_string()
}

/// Formerly the daemon used the first of two devices with one identity, so an old copy reverted the
/// pool to an earlier state.
#[test]
fn an_older_clone_is_left_aside() {
    let (bench, said) = listen(|| Bench::start(with_stale_clones(&["/dev/a", "/dev/z"])));
    assert_eq!(bench.names(), ["p"], "{said}");
    assert_eq!(node(&bench, "p"), "/dev/m");
    assert_eq!(bench.pool("p").unwrap().filesystems.len(), 1);
    let left: Vec<_> = aside(&bench).into_iter().map(|device| device.path).collect();
    assert_eq!(left, [path("/dev/a"), path("/dev/z")]);
    assert!(said.contains("/dev/a") && said.contains("is left aside"), "{said}");
    // The daemon writes nothing to a clone.
    let clone = Bda::load(&bench.sim, path("/dev/a"), Repair::ReadOnly).unwrap().unwrap();
    assert!(
        String::from_utf8(clone.read_json(&bench.sim, path("/dev/a")).unwrap().unwrap()).unwrap().contains("\"old\"")
    );
    bench.check_nothing_left("beside clones");
}

#[test]
fn equal_clones_keep_their_pool_down() {
    let sim = two_disks();
    clone_disk(&sim, "/dev/a", "/dev/clone");
    let mut watched = Watched::start(sim);
    assert_eq!(watched.bench.names(), Vec::<String>::new());
    let stopped = watched.stopped();
    let reason = stopped.list()[0].reason.clone().unwrap();
    assert!(reason.contains("/dev/a, /dev/clone") && reason.contains("pool p"), "{reason}");
    let nodes: Vec<_> = stopped.list()[0].devices.iter().map(|(node, _)| node.clone()).collect();
    for clashing in ["/dev/a", "/dev/b", "/dev/clone"] {
        assert!(nodes.iter().any(|node| node == path(clashing)), "{nodes:?}");
    }
    let error = watched.bench.start_pool("p").unwrap_err().sentence();
    assert!(error.contains("/dev/a, /dev/clone"), "{error}");
    assert!(watched.bench.sim.leftovers().is_empty(), "nothing of it is brought up");
    // The pool starts as soon as the identities are unique.
    watched.bench.sim.pull_disk(path("/dev/clone")).unwrap();
    watched.settle();
    assert_eq!(watched.bench.names(), ["p"]);
    assert_eq!(watched.bench.stopped().list(), []);
}

/// Pool `p`, kept down by a clone of one of its two disks. Events of devices do not reach the daemon
/// by themselves.
fn kept_down_by_a_clone() -> Bench {
    let sim = two_disks();
    clone_disk(&sim, "/dev/a", "/dev/clone");
    let mut bench = Bench::start(sim);
    assert_eq!(bench.names(), Vec::<String>::new());
    assert!(bench.start_pool("p").unwrap_err().sentence().contains("/dev/a, /dev/clone"));
    bench
}

/// udev may lose the event. A device that has vanished clashes with nothing, even if the daemon
/// still lists it.
#[test]
fn a_vanished_clone_no_longer_clashes() {
    let mut bench = kept_down_by_a_clone();
    bench.sim.pull_disk(path("/dev/clone")).unwrap();
    assert!(bench.start_pool("p").unwrap());
}

fn changed(bench: &mut Bench, disk: &str) {
    let device = bench.sim.find_device(path(disk)).ok();
    let event = DeviceEvent { action: DeviceAction::Change, path: path(disk).into(), device, unlinked: None };
    bench.run(ops::device_event(event));
}

/// The next event of the original ends the clash, even if another disk has got the node of the
/// clone.
#[test]
fn an_event_ends_a_clash_with_nothing() {
    for is_replaced in [false, true] {
        let mut bench = kept_down_by_a_clone();
        bench.sim.pull_disk(path("/dev/clone")).unwrap();
        if is_replaced {
            bench.sim.add_disk(path("/dev/new"), TIB).unwrap();
            bench.sim.pull_disk(path("/dev/new")).unwrap();
            bench.sim.replug_disk(path("/dev/new"), path("/dev/clone")).unwrap();
        }
        changed(&mut bench, "/dev/a");
        assert_eq!(bench.names(), ["p"], "replaced: {is_replaced}");
    }
}

/// As [`a_vanished_clone_no_longer_clashes`], for a clone that was overwritten.
#[test]
fn an_overwritten_clone_no_longer_clashes() {
    let mut bench = kept_down_by_a_clone();
    bench.sim.put(path("/dev/clone"), 0, &[0; 1 << 20]).unwrap();
    assert!(bench.start_pool("p").unwrap());
}

#[test]
fn copies_with_other_headers_keep_the_pool_down() {
    let sim = with_stale_clones(&["/dev/a"]);
    for half in stratisd::engine::metadata::header::Half::BOTH {
        let header = *Bda::load(&sim, path("/dev/a"), Repair::ReadOnly).unwrap().unwrap().header();
        let other = stratisd::engine::metadata::StaticHeader { initialized: header.initialized + 1, ..header };
        sim.put(path("/dev/a"), half.half_offset(), &other.encode_half()).unwrap();
    }
    let bench = Bench::start(sim);
    assert_eq!(bench.names(), Vec::<String>::new());
    let reason = bench.stopped().list()[0].reason.clone().unwrap();
    assert!(reason.contains("/dev/a, /dev/m"), "{reason}");
}

#[test]
fn a_device_in_use_wins_over_its_clone() {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("p", &["/dev/m"]).unwrap();
    // The device in use wins even if the clone is newer.
    for clone in ["/dev/a", "/dev/z"] {
        clone_disk(&bench.sim, "/dev/m", clone);
        disks::change(&bench.sim, clone, |json| json["name"] = "other".into());
    }
    let bench = Bench::start(bench.sim);
    assert_eq!(bench.names(), ["p"]);
    assert_eq!(node(&bench, "p"), "/dev/m");
    assert_eq!(aside(&bench).len(), 2);
}

#[test]
fn a_clone_of_a_running_pool_is_reported() {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("p", &["/dev/m"]).unwrap();
    let mut watched = Watched::start(bench.sim);
    let ((), said) = listen(|| {
        clone_disk(&watched.bench.sim, "/dev/m", "/dev/second");
        watched.settle();
    });
    assert!(said.contains("/dev/second") && said.contains("the pool uses as /dev/m"), "{said}");
    let left = aside(&watched.bench);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].path, path("/dev/second"));
    assert_eq!(watched.bench.pool("p").unwrap().devices.len(), 1);
    assert_eq!(watched.bench.stopped().list(), []);
    // After a stop, only a newer stamp can tell the device from its clone. The stop itself writes
    // one.
    watched.bench.stop_pool("p").unwrap();
    assert!(watched.bench.start_pool("p").unwrap(), "the stop has been written to the device of the pool");
    assert_eq!(node(&watched.bench, "p"), "/dev/m");
    watched.bench.sim.pull_disk(path("/dev/second")).unwrap();
    watched.settle();
    assert_eq!(aside(&watched.bench), []);
}

/// Formerly a cache device that was missing when its cache was dropped kept the pool stopped after
/// it came back.
#[test]
fn an_unnamed_device_is_left_aside() {
    let sim = two_disks();
    let pool = Bda::load(&sim, path("/dev/a"), Repair::ReadOnly).unwrap().unwrap().header().pool;
    sim.add_disk(path("/dev/surplus"), TIB).unwrap();
    let surplus = "99999999-9999-4999-8999-999999999999";
    disks::Device { path: "/dev/surplus", uuid: surplus, pool, version: MetadataVersion::V2, json: None }.put(&sim);
    let (bench, said) = listen(|| Bench::start(sim.clone()));
    assert_eq!(bench.names(), ["p"], "{said}");
    let left = aside(&bench);
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].path.as_path(), left[0].device.to_string()), (path("/dev/surplus"), surplus.to_owned()));
    assert!(said.contains("/dev/surplus") && said.contains("does not name it"), "{said}");
    bench.check_nothing_left("beside a device left over");
    // Nor does the device keep the pool stopped when it is unreadable, or when the pool is stopped
    // and started.
    let mut bench = bench;
    sim.spoil(path("/dev/surplus"), 16..4096).unwrap();
    bench.stop_pool("p").unwrap();
    assert_eq!(bench.stopped_pool("p").unwrap().devices.len(), 2);
    assert!(bench.start_pool("p").unwrap());
}

const STRANGER: &str = "99999999-9999-4999-8999-999999999999";

/// Adds a device of the pool that its own metadata, written at this time, does not name.
fn add_stranger(sim: &Sim, seconds: u64) {
    let json = disks::json_on(sim, "/dev/a").to_string();
    let pool = Bda::load(sim, path("/dev/a"), Repair::ReadOnly).unwrap().unwrap().header().pool;
    sim.add_disk(path("/dev/surplus"), TIB).unwrap();
    let version = MetadataVersion::V2;
    disks::Device { path: "/dev/surplus", uuid: STRANGER, pool, version, json: None }.put(sim);
    let mut bda = Bda::load(sim, path("/dev/surplus"), Repair::ReadOnly).unwrap().unwrap();
    bda.save(sim, path("/dev/surplus"), json.as_bytes(), Timestamp { seconds, nanoseconds: 0 }).unwrap();
}

#[test]
fn older_metadata_on_an_unnamed_device_is_ignored() {
    let sim = two_disks();
    add_stranger(&sim, 1);
    let bench = Bench::start(sim);
    assert_eq!(bench.names(), ["p"]);
    assert_eq!(aside(&bench).len(), 1);
}

#[test]
fn newer_metadata_on_an_unnamed_device_is_refused() {
    let sim = two_disks();
    add_stranger(&sim, 1 << 40);
    let bench = Bench::start(sim);
    let reason = bench.stopped().list()[0].reason.clone().unwrap();
    assert!(reason.contains(STRANGER) && reason.contains("does not list the device"), "{reason}");
}

/// Stacks a device-mapper device on a whole disk, as multipath does.
fn put_over(sim: &Sim, disk: &str, holder: &str) {
    let number = sim.find_device(path(disk)).unwrap().number;
    let line = Line::linear(Sectors::ZERO, TIB, number, Sectors::ZERO);
    sim.dm_create(holder, holder, &[line], Visibility::Public).unwrap();
}

#[test]
fn a_holder_counts_before_the_disk_under_it() {
    let sim = two_disks();
    put_over(&sim, "/dev/a", "holder");
    let mut bench = Bench::start(sim.clone());
    let holder = sim.find_device(&sim.dm_node("holder")).unwrap();
    let nodes = |bench: &Bench| {
        let pool = bench.pool("p").unwrap();
        pool.devices.values().map(|device| device.node.clone()).collect::<Vec<_>>()
    };
    assert!(nodes(&bench).contains(&holder.path), "{:?}", nodes(&bench));
    assert_eq!(aside(&bench), [], "the disk under it is the same device");
    // The same by events: udev reports the disk before its holder.
    bench.stop_pool("p").unwrap();
    sim.dm_remove("holder").unwrap();
    let mut watched = Watched::start(sim.clone());
    put_over(&sim, "/dev/a", "holder");
    watched.settle();
    assert!(watched.bench.start_pool("p").unwrap());
    let holder = sim.find_device(&sim.dm_node("holder")).unwrap();
    assert!(nodes(&watched.bench).contains(&holder.path), "{:?}", nodes(&watched.bench));
    assert_eq!(aside(&watched.bench), []);
    // Without the holder, the disk itself is used again.
    watched.bench.stop_pool("p").unwrap();
    sim.dm_remove("holder").unwrap();
    watched.settle();
    assert!(watched.bench.start_pool("p").unwrap());
    assert!(nodes(&watched.bench).contains(&path("/dev/a").to_owned()), "{:?}", nodes(&watched.bench));
}

#[test]
fn a_disk_is_recognized_under_another_node() {
    let sim = two_disks();
    sim.pull_disk(path("/dev/b")).unwrap();
    let mut watched = Watched::start(sim.clone());
    sim.replug_disk(path("/dev/b"), path("/dev/elsewhere")).unwrap();
    watched.settle();
    assert_eq!(watched.bench.names(), ["p"]);
    // The disk moves while the pool is stopped.
    watched.bench.stop_pool("p").unwrap();
    sim.pull_disk(path("/dev/elsewhere")).unwrap();
    sim.replug_disk(path("/dev/elsewhere"), path("/dev/third")).unwrap();
    watched.settle();
    assert!(watched.bench.start_pool("p").unwrap());
    let pool = watched.bench.pool("p").unwrap();
    assert!(pool.devices.values().any(|device| device.node == path("/dev/third")), "{:?}", pool.devices);
}

/// Formerly the daemon ignored events of a device of a running pool, and the pool could not be
/// started again.
#[test]
fn a_disk_moved_at_run_time_is_found() {
    let mut watched = Watched::start(two_disks());
    let sim = watched.bench.sim.clone();
    let before = sim.find_device(path("/dev/a")).unwrap().number;
    sim.pull_disk(path("/dev/a")).unwrap();
    sim.replug_disk(path("/dev/a"), path("/dev/moved")).unwrap();
    watched.settle();
    assert_ne!(sim.find_device(path("/dev/moved")).unwrap().number, before, "the tables hold the dead one");
    assert_eq!(watched.bench.names(), ["p"]);
    assert_eq!(aside(&watched.bench)[0].path, path("/dev/moved"));
    watched.bench.stop_pool("p").unwrap();
    // The stop is recorded on the moved disk, too.
    assert_eq!(disks::json_on(&sim, "/dev/moved")["started"], false);
    watched.settle();
    assert!(watched.bench.start_pool("p").unwrap());
    let pool = watched.bench.pool("p").unwrap();
    assert!(pool.devices.values().any(|device| device.node == path("/dev/moved")), "{:?}", pool.devices);
    watched.bench.check_nothing_left("the disk moved");
}

/// No table names a disk that has no allocation.
#[test]
fn an_unused_disk_that_moved_stays_a_member() {
    let mut watched = Watched::start(two_disks());
    let sim = watched.bench.sim.clone();
    sim.pull_disk(path("/dev/b")).unwrap();
    watched.settle();
    sim.replug_disk(path("/dev/b"), path("/dev/moved")).unwrap();
    watched.settle();
    let pool = watched.bench.pool("p").unwrap();
    assert!(pool.devices.values().any(|device| device.node == path("/dev/moved")), "{:?}", pool.devices);
    assert_eq!(aside(&watched.bench), []);
    watched.bench.run(ops::rename_pool(watched.bench.id("p"), name("renamed"))).unwrap();
    assert_eq!(disks::json_on(&sim, "/dev/moved")["name"], "renamed");
}

/// The pool has not lost the disk, so a copy of it does not take its place.
#[test]
fn a_clone_of_an_unused_disk_replaces_nothing() {
    let mut watched = Watched::start(two_disks());
    let sim = watched.bench.sim.clone();
    clone_disk(&sim, "/dev/b", "/dev/clone");
    watched.settle();
    let pool = watched.bench.pool("p").unwrap();
    assert!(pool.devices.values().any(|device| device.node == path("/dev/b")), "{:?}", pool.devices);
    assert_eq!(aside(&watched.bench)[0].path, path("/dev/clone"));
    watched.bench.run(ops::rename_pool(watched.bench.id("p"), name("renamed"))).unwrap();
    assert_eq!(disks::json_on(&sim, "/dev/b")["name"], "renamed");
    assert_eq!(disks::json_on(&sim, "/dev/clone")["name"], "p");
}

/// Formerly two disks that had swapped their nodes were mistaken for each other, and one pool was
/// never found.
#[test]
fn disks_that_change_nodes_are_not_confused() {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_pool("q", &["/dev/b"]).unwrap();
    let mut watched = Watched::start(bench.sim);
    let sim = watched.bench.sim.clone();
    watched.bench.stop_pool("q").unwrap();
    for disk in ["/dev/a", "/dev/b"] {
        sim.pull_disk(path(disk)).unwrap();
    }
    // The disk of the running pool is dead. The disk of the stopped pool comes back under its node.
    sim.replug_disk(path("/dev/b"), path("/dev/a")).unwrap();
    watched.settle();
    assert!(watched.bench.start_pool("q").unwrap());
    assert_eq!(node(&watched.bench, "q"), "/dev/a");
    // Neither pool writes to the disk of the other.
    let before = sim.durable(path("/dev/a"), 0..1 << 20);
    assert!(watched.bench.run(ops::rename_pool(watched.bench.id("p"), name("other"))).is_err());
    assert_eq!(sim.durable(path("/dev/a"), 0..1 << 20), before);
}

#[test]
fn a_pool_without_disks_is_stopped_and_forgotten() {
    let mut watched = Watched::start(two_disks());
    let sim = watched.bench.sim.clone();
    for disk in ["/dev/a", "/dev/b"] {
        sim.pull_disk(path(disk)).unwrap();
    }
    watched.settle();
    let (stopped, said) = listen(|| watched.bench.stop_pool("p"));
    stopped.unwrap();
    assert!(said.contains("its devices are gone"), "{said}");
    assert_eq!(watched.bench.names(), Vec::<String>::new());
    assert_eq!(watched.bench.stopped().list(), [], "nothing is known of it");
    assert!(sim.leftovers().is_empty(), "{:?}", sim.leftovers());
    // Both disks come back, one of them under another node. The pool stays stopped, now as
    // recorded, until a start.
    sim.replug_disk(path("/dev/a"), path("/dev/a")).unwrap();
    sim.replug_disk(path("/dev/b"), path("/dev/c")).unwrap();
    watched.settle();
    assert_eq!(watched.bench.names(), Vec::<String>::new());
    assert_eq!(disks::json_on(&sim, "/dev/a")["started"], false);
    let shown = watched.bench.stopped_pool("p").expect("it is known again");
    assert_eq!(shown.reason.as_deref(), Some("it was stopped by request"));
    assert!(watched.bench.start_pool("p").unwrap());
    watched.bench.check_nothing_left("started again");
    assert_eq!(watched.bench.pool("p").unwrap().filesystems.len(), 1);
}

#[test]
fn a_stop_is_recorded_on_the_remaining_disk() {
    let mut watched = Watched::start(two_disks());
    let sim = watched.bench.sim.clone();
    sim.pull_disk(path("/dev/a")).unwrap();
    watched.settle();
    watched.bench.stop_pool("p").unwrap();
    assert_eq!(disks::json_on(&sim, "/dev/b")["started"], false);
    assert_eq!(watched.bench.stopped_pool("p").unwrap().devices.len(), 1);
    sim.replug_disk(path("/dev/a"), path("/dev/a")).unwrap();
    watched.settle();
    assert_eq!(watched.bench.names(), Vec::<String>::new());
    assert!(watched.bench.start_pool("p").unwrap());
}

#[test]
fn a_pool_without_disks_is_not_destroyed() {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.sim.pull_disk(path("/dev/a")).unwrap();
    let error = bench.run(ops::destroy_pool(bench.id("p"))).unwrap_err().sentence();
    assert_eq!(error, "none of the data devices of pool p can be read; connect them, or stop the pool");
    assert!(bench.sim.dm_find(&Role::ThinPool.name(bench.id("p"))).unwrap().is_some(), "it is as it was");
    bench.stop_pool("p").unwrap();
}

/// A node proves nothing about a disk that cannot be read.
#[test]
fn dead_disks_are_forgotten_by_a_stop() {
    let mut bench = Bench::start(two_disks());
    for disk in ["/dev/a", "/dev/b"] {
        bench.sim.spoil(path(disk), 0..1 << 16).unwrap();
    }
    let (stopped, said) = listen(|| bench.stop_pool("p"));
    stopped.unwrap();
    assert!(said.contains("its devices are gone"), "{said}");
    assert_eq!(bench.stopped().list(), [], "nothing is known of it");
    assert!(bench.sim.leftovers().is_empty(), "{:?}", bench.sim.leftovers());
}

/// A disk was pulled and plugged in again, and the daemon has not received the events yet. The node
/// leads to another device number, so what is known of the node is out of date.
#[test]
fn a_stop_forgets_a_disk_plugged_in_again() {
    let mut bench = Bench::start(two_disks());
    bench.sim.pull_disk(path("/dev/a")).unwrap();
    bench.sim.add_disk(path("/dev/a"), TIB).unwrap();
    bench.stop_pool("p").unwrap();
    let nodes: Vec<_> = bench.stopped_pool("p").unwrap().devices.iter().map(|(node, _)| node.clone()).collect();
    assert_eq!(nodes, [path("/dev/b")]);
}

/// Layers cannot be brought up again on disks that are gone. A stop that fails leaves the pool to
/// the next one.
#[test]
fn a_failed_stop_without_disks_is_repeated() {
    for held in [Role::ThinPool, Role::ThinMeta] {
        let mut bench = Bench::start(two_disks());
        let held = held.name(bench.id("p"));
        for disk in ["/dev/a", "/dev/b"] {
            bench.sim.pull_disk(path(disk)).unwrap();
        }
        bench.sim.hold_device(&held, 1000).unwrap();
        let error = bench.stop_pool("p").unwrap_err();
        assert!(error.is_busy(), "{error:?}");
        assert_eq!(bench.pool("p").unwrap().restriction, None, "{held}");
        bench.sim.hold_device(&held, 0).unwrap();
        bench.stop_pool("p").unwrap();
        assert!(bench.sim.leftovers().is_empty(), "{:?}", bench.sim.leftovers());
    }
}

/// Stops the pool of [`two_disks`] after a change of its disks. Returns the nodes of the stopped
/// pool, and whether its stop was recorded.
fn stopped_after(change: impl FnOnce(&Sim)) -> (Bench, Vec<String>, bool) {
    let mut bench = Bench::start(two_disks());
    change(&bench.sim);
    let (stopped, said) = listen(|| bench.stop_pool("p"));
    stopped.unwrap();
    let nodes = bench.stopped_pool("p").map(|pool| pool.devices.clone()).unwrap_or_default();
    let mut nodes: Vec<_> = nodes.iter().map(|(node, _)| node.display().to_string()).collect();
    nodes.sort();
    (bench, nodes, !said.contains("its devices are gone"))
}

#[test]
fn an_unreadable_disk_beside_another_stays_known() {
    let (_, nodes, is_recorded) = stopped_after(|sim| sim.spoil(path("/dev/b"), 0..1 << 16).unwrap());
    assert_eq!((nodes, is_recorded), (vec!["/dev/a".to_owned(), "/dev/b".to_owned()], true));
}

#[test]
fn overwritten_disks_are_forgotten_by_a_stop() {
    let (_, nodes, is_recorded) = stopped_after(|sim| {
        ["/dev/a", "/dev/b"].iter().for_each(|disk| sim.put(path(disk), 0, &[0; 1 << 20]).unwrap());
    });
    assert_eq!((nodes, is_recorded), (vec![], false));
}

/// The disks could not be read for a moment. They stay known, and the stop is recorded with the
/// next event.
#[test]
fn a_stop_survives_disks_unreadable_for_moments() {
    let (mut bench, nodes, is_recorded) = stopped_after(|sim| {
        // Each of three tries reads both copies of the header.
        ["/dev/a", "/dev/b"].iter().for_each(|disk| (0..6).for_each(|_| sim.faults().fail_next(CallKind::Read, disk)));
    });
    assert_eq!(bench.sim.faults().struck(), 12);
    assert_eq!((nodes, is_recorded), (vec!["/dev/a".to_owned(), "/dev/b".to_owned()], false));
    changed(&mut bench, "/dev/a");
    assert_eq!(disks::json_on(&bench.sim, "/dev/a")["started"], false);
    assert_eq!(bench.names(), Vec::<String>::new());
    assert!(bench.start_pool("p").unwrap());
}

/// While some of a stopped pool is up, its devices stay known, even one that is gone.
#[test]
fn a_disk_pulled_from_partial_pool_is_forgotten() {
    let mut watched = Watched::start(two_disks());
    let sim = watched.bench.sim.clone();
    let held = Role::OriginSub.name(watched.bench.id("p"));
    sim.hold_device(&held, 1000).unwrap();
    watched.bench.stop_pool("p").unwrap();
    assert!(watched.bench.stopped_pool("p").unwrap().partial);
    sim.pull_disk(path("/dev/b")).unwrap();
    watched.settle();
    sim.hold_device(&held, 0).unwrap();
    watched.bench.stop_pool("p").unwrap();
    let stopped = watched.bench.stopped_pool("p").unwrap();
    let nodes: Vec<_> = stopped.devices.iter().map(|(node, _)| node.clone()).collect();
    assert_eq!((stopped.partial, nodes), (false, vec![path("/dev/a").to_owned()]));
}
