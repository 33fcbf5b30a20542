//! Repeated requests, limits, snapshots and their origins.

use serde_json::json;
use stratisd::{
    base::{ids::FsUuid, units::Sectors},
    engine::{
        Error, Result,
        ops::{self, NewFilesystem},
    },
    platform::{
        Platform,
        sim::{CallKind, Sim},
    },
};
use support::{
    bench::{Bench, GIB, name},
    disks::{self, reboot},
};

use crate::witness::{Witness, listen};

fn snapshot(bench: &mut Bench, origin: &str, to: &str) -> Result<Option<FsUuid>> {
    let origin = bench.filesystem("p", origin);
    bench.run(ops::snapshot_filesystem(bench.id("p"), origin, name(to)))
}

fn destroy(bench: &mut Bench, names: &[&str]) -> Result<usize> {
    let doomed = names.iter().map(|name| bench.filesystem("p", name)).collect();
    bench.run(ops::destroy_filesystems(bench.id("p"), doomed)).map(|gone| gone.len())
}

fn origin(bench: &Bench, of: &str) -> Option<String> {
    let pool = bench.pool("p").unwrap();
    let filesystem = &pool.filesystems[&bench.filesystem("p", of)];
    filesystem.origin.map(|origin| pool.filesystems.get(&origin).map_or("(gone)".into(), |o| o.name.to_string()))
}

#[test]
fn a_repeated_request_changes_nothing() {
    let mut bench = Bench::with_two_filesystems();
    snapshot(&mut bench, "f", "s").unwrap();
    let (pool, f, device) = (bench.id("p"), bench.filesystem("p", "f"), bench.device("p", "/dev/a"));
    bench.run(ops::set_user_info(pool, device, Some("here".to_owned()))).unwrap();
    let before = Witness::of(&bench);
    assert!(!bench.create_pool("p", &["/dev/b", "/dev/a", "/dev/a"]).unwrap());
    assert_eq!(bench.create_filesystems("p", &["g", "f", "f"]).unwrap(), 0);
    assert_eq!(snapshot(&mut bench, "f", "s").unwrap(), None);
    let again = bench.run(ops::add_data_devices(pool, vec!["/dev/a".into(), "/dev/b".into()]));
    assert_eq!(again.unwrap(), []);
    assert!(!bench.run(ops::rename_pool(pool, name("p"))).unwrap());
    assert!(!bench.run(ops::rename_filesystem(pool, f, name("f"))).unwrap());
    assert!(!bench.run(ops::set_user_info(pool, device, Some("here".to_owned()))).unwrap());
    before.check_unchanged(&bench, "the same again");
    // Only missing filesystems are created.
    assert_eq!(bench.create_filesystems("p", &["f", "h"]).unwrap(), 1);
    let more = vec!["/dev/a".into(), "/dev/c".into()];
    assert_eq!(bench.run(ops::add_data_devices(pool, more)).unwrap().len(), 1);
}

/// mkfs.xfs version 5 refuses the option that version 6 needs.
#[test]
fn an_old_mkfs_makes_filesystems_too() {
    let mut bench = Bench::start(Sim::builder().old_mkfs().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    assert_eq!(bench.create_filesystems("p", &["f"]).unwrap(), 1);
}

#[test]
fn another_filesystem_of_the_same_name_is_refused() {
    let mut bench = Bench::with_two_filesystems();
    let before = Witness::of(&bench);
    let error = bench.create_pool("p", &["/dev/a", "/dev/c"]).unwrap_err();
    let Error::OtherDevices { only_requested, only_present, .. } = &error else { panic!("{error:?}") };
    assert_eq!((&only_requested[..], &only_present[..]), (&["/dev/c".into()][..], &["/dev/b".into()][..]));
    let other = vec![NewFilesystem { name: name("f"), size: Some(Sectors(GIB.0 * 2)), size_limit: None }];
    let error = bench.run(ops::create_filesystems(bench.id("p"), other)).unwrap_err();
    assert!(matches!(error, Error::OtherSize { existing: GIB, .. }), "{error:?}");
    before.check_unchanged(&bench, "something else of the same name");
}

/// A pool with metadata that no request can produce.
fn with_thin_pool(change: fn(&mut serde_json::Value)) -> Bench {
    let bench = Bench::with_two_filesystems();
    reboot(&bench.sim);
    disks::change(&bench.sim, "/dev/a", |json| change(&mut json["thinpool_dev"]));
    Bench::start(bench.sim)
}

#[test]
fn there_are_no_more_filesystems_than_the_limit() {
    let mut bench = with_thin_pool(|thin| thin["fs_limit"] = json!(3));
    let before = Witness::of(&bench);
    let full = |error: Error| {
        let limited = matches!(error, Error::FilesystemLimit { limit: 3, wanted: 4, .. });
        assert!(limited, "{error:?}");
    };
    full(bench.create_filesystems("p", &["x", "y"]).unwrap_err());
    before.check_unchanged(&bench, "over the limit");
    snapshot(&mut bench, "f", "s").unwrap();
    full(bench.create_filesystems("p", &["x"]).unwrap_err());
    full(snapshot(&mut bench, "f", "t").unwrap_err());
    destroy(&mut bench, &["f"]).unwrap();
    assert_eq!(bench.create_filesystems("p", &["x"]).unwrap(), 1);
}

#[test]
fn without_overprovisioning_filesystems_fit() {
    let mut bench = with_thin_pool(|thin| thin["enable_overprov"] = json!(false));
    assert!(!bench.pool("p").unwrap().overprovisioning);
    let new = |size: Sectors| vec![NewFilesystem { name: name("x"), size: Some(size), size_limit: None }];
    let pool = bench.id("p");
    let before = Witness::of(&bench);
    let error = bench.run(ops::create_filesystems(pool, new(Sectors(2 << 31)))).unwrap_err();
    let Error::NoRoom { needed, room, .. } = error else { panic!("{error:?}") };
    assert_eq!(needed, Sectors((2 << 31) + 2 * GIB.0));
    assert!(room < Sectors(2 << 31));
    before.check_unchanged(&bench, "more than there is room for");
    // Use exactly the remaining room. After that nothing more fits.
    let rest = Sectors(room.0 - 2 * GIB.0);
    bench.run(ops::create_filesystems(pool, new(rest))).unwrap();
    let error = snapshot(&mut bench, "f", "s").unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error:?}");
}

#[test]
fn snapshots_inherit_the_origin_of_what_is_destroyed() {
    // f <- s <- t <- u
    let mut bench = Bench::with_two_filesystems();
    for (from, to) in [("f", "s"), ("s", "t"), ("t", "u")] {
        snapshot(&mut bench, from, to).unwrap();
    }
    destroy(&mut bench, &["s"]).unwrap();
    assert_eq!(origin(&bench, "t").as_deref(), Some("f"));
    // Destroy parts of a chain of snapshots in one request, in any order.
    destroy(&mut bench, &["t", "f"]).unwrap();
    assert_eq!(origin(&bench, "u"), None);
    reboot(&bench.sim);
    let bench = Bench::start(bench.sim);
    assert_eq!(origin(&bench, "u"), None);
    bench.check_nothing_left("after destroying a chain");
}

#[test]
fn snapshots_are_destroyed_up_to_a_kept_origin() {
    let mut bench = Bench::with_two_filesystems();
    for (from, to) in [("f", "s"), ("s", "t"), ("t", "u")] {
        snapshot(&mut bench, from, to).unwrap();
    }
    destroy(&mut bench, &["t", "s"]).unwrap();
    assert_eq!(origin(&bench, "u").as_deref(), Some("f"));
    reboot(&bench.sim);
    assert_eq!(origin(&Bench::start(bench.sim), "u").as_deref(), Some("f"));
}

#[test]
fn filesystems_of_a_scheduled_revert_are_not_destroyed() {
    let mut bench = Bench::with_two_filesystems();
    snapshot(&mut bench, "f", "s").unwrap();
    // Schedule the revert in the record, as another daemon may have done.
    let file = format!(".mdv-{}/filesystems/{}.json", bench.id("p").simple(), bench.filesystem("p", "s").simple());
    let record = String::from_utf8(bench.sim.read_file(&file).unwrap()).unwrap();
    bench.sim.replace_file(&file, record.replace(r#""merge":false"#, r#""merge":true"#).as_bytes()).unwrap();
    let mut bench = Bench::start(bench.sim);
    let Some(pool) = bench.pool("p") else { panic!("the pool does not run") };
    if pool.filesystems.values().all(|filesystem| !filesystem.merge_scheduled) {
        // The set-up has carried the revert out, so nothing is scheduled.
        assert_eq!(pool.filesystems.len(), 2);
        return;
    }
    let before = Witness::of(&bench);
    for doomed in [&["s"][..], &["f"], &["g", "f"]] {
        let error = destroy(&mut bench, doomed).unwrap_err();
        assert!(matches!(error, Error::RevertScheduled { .. }), "{doomed:?}: {error:?}");
    }
    before.check_unchanged(&bench, "a scheduled revert");
    assert_eq!(destroy(&mut bench, &["g"]).unwrap(), 1);
}

/// Found in review: if the record of a destroyed filesystem could not be removed, and a new
/// filesystem took the name, the pool could not be set up.
#[test]
fn leftovers_of_a_destroyed_filesystem_block_nothing() {
    let mut bench = Bench::with_two_filesystems();
    snapshot(&mut bench, "f", "s").unwrap();
    let fail = |bench: &Bench, call, subject: &str| {
        (0..2).for_each(|_| bench.sim.faults().fail_next(call, subject));
        bench.sim.faults().struck()
    };
    // Before and after the metadata volume is mounted again. Without the removal nothing happens.
    let struck = fail(&bench, CallKind::RemoveFile, "filesystems");
    assert!(destroy(&mut bench, &["f"]).is_err());
    assert_eq!(bench.sim.faults().struck() - struck, 2);
    assert_eq!(bench.pool("p").unwrap().filesystems.len(), 3);
    bench.check_nothing_left("what was not removed");
    // Both attempts to delete the thin device.
    let struck = fail(&bench, CallKind::DmMessage, "thinpool");
    let (gone, said) = listen(|| destroy(&mut bench, &["f"]).unwrap());
    assert_eq!((gone, bench.sim.faults().struck() - struck), (1, 2));
    assert!(said.contains("which the next set-up completes"), "{said}");
    assert_eq!(bench.create_filesystems("p", &["f"]).unwrap(), 1);
    assert_eq!(destroy(&mut bench, &["g"]).unwrap(), 1);
    assert_eq!(origin(&bench, "s"), None);
    reboot(&bench.sim);
    let (bench, said) = listen(|| Bench::start(bench.sim));
    assert_eq!(bench.names(), ["p"], "{said}");
    assert_eq!(bench.pool("p").unwrap().filesystems.len(), 2);
    assert_eq!(origin(&bench, "s"), None);
    bench.check_nothing_left("after the next set-up");
}

/// Found in review: one thin device that was still open prevented the set-up of its pool.
#[test]
fn a_leftover_in_use_keeps_no_pool_down() {
    let mut bench = Bench::with_two_filesystems();
    let mut scheduler = support::scheduler::Scheduler::new(bench, 0);
    let new = vec![NewFilesystem { name: name("h"), size: Some(GIB), size_limit: None }];
    let pool = scheduler.bench.id("p");
    scheduler.begin("create", ops::create_filesystems(pool, new));
    // The thin device exists. Its mkfs outlives the daemon, and still has the device open when the
    // next daemon starts.
    scheduler.step();
    bench = scheduler.bench;
    let listed = bench.sim.dm_list().unwrap();
    let known: Vec<String> = bench.pool("p").unwrap().filesystems.keys().map(|id| id.simple()).collect();
    let is_pending = |dm: &&stratisd::platform::dm::Listed| {
        dm.name.contains("thin-fs") && known.iter().all(|id| !dm.name.contains(id.as_str()))
    };
    let pending = listed.iter().find(is_pending).expect("the thin device is there").name.clone();
    bench.sim.hold_device(&pending, 1000).unwrap();
    let (mut bench, said) = listen(|| Bench::start(bench.sim));
    assert_eq!(bench.names(), ["p"], "{said}");
    assert!(said.contains("stays until the next set-up"), "{said}");
    assert_eq!(bench.create_filesystems("p", &["h"]).unwrap(), 1, "its number is not given out");
    bench.sim.hold_device(&pending, 0).unwrap();
    let bench = Bench::start(bench.sim);
    bench.check_nothing_left("when it is free");
    assert_eq!(bench.pool("p").unwrap().filesystems.len(), 3);
}

/// The destruction of a filesystem was decided, and its completion fails at the next set-up. Its
/// snapshots have their new origin nevertheless, and no others.
#[test]
fn snapshots_never_show_a_destroyed_origin() {
    let mut shown = 0;
    for step in 0.. {
        let mut bench = Bench::with_two_filesystems();
        for (origin, to) in [("f", "s"), ("f", "t"), ("g", "u")] {
            snapshot(&mut bench, origin, to).unwrap();
        }
        bench.sim.faults().kill_at(bench.sim.steps() + step);
        let is_done = destroy(&mut bench, &["f"]).is_ok();
        bench.sim.faults().clear();
        if is_done {
            break;
        }
        let decided = bench.sim.list_files(&format!(".mdv-{}/pending", bench.id("p").simple())).unwrap().len();
        // The set-up tries each file twice.
        (0..2).for_each(|_| bench.sim.faults().fail_next(CallKind::WriteTemp, "/filesystems/"));
        let before = bench.sim.faults().struck();
        let bench = Bench::start(bench.sim);
        let pool = bench.pool("p").unwrap();
        if pool.filesystems.values().any(|filesystem| filesystem.name.as_str() == "f") {
            continue;
        }
        let origins = ["s", "t", "u"].map(|name| origin(&bench, name));
        assert_eq!(origins, [None, None, Some("g".to_owned())], "step {step}, {decided} entries");
        shown += usize::from(bench.sim.faults().struck() > before);
    }
    assert!(shown > 0, "no completion has failed");
}
