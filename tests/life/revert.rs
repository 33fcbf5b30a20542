//! Reverts: which ones may be scheduled, which ones the set-up carries out, and what they leave
//! (`docs/spec/engine/storage-stack.md` §9.6).

use std::path::Path;

use stratisd::{
    base::{ids::FsUuid, units::Sectors},
    engine::{
        Error, Result,
        dm_names::{self, Role},
        metadata::{FilesystemRecord, MetadataVersion},
        ops::{self, MetadataCopy},
        thin_status::PoolStatus,
    },
    platform::{Platform, WriteStep, sim::Sim},
};
use support::bench::{Bench, GIB, name};

/// Pool `p` with filesystem `f`, its snapshots `s` and `r`, and `t`, a snapshot of `s`. Each has
/// its own contents.
fn machine(version: MetadataVersion) -> Bench {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool_of(version, "p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f", "other"]).unwrap();
    for (origin, to) in [("f", "s"), ("f", "r"), ("s", "t")] {
        snapshot(&mut bench, origin, to);
    }
    for (mark, filesystem) in (1..).zip(["f", "s", "r", "t"]) {
        bench.mark("p", filesystem, mark);
    }
    bench
}

fn snapshot(bench: &mut Bench, origin: &str, to: &str) {
    let origin = bench.filesystem("p", origin);
    bench.run(ops::snapshot_filesystem(bench.id("p"), origin, name(to))).unwrap();
}

fn schedule(bench: &mut Bench, snapshot: &str, scheduled: bool) -> Result<bool> {
    let id = bench.filesystem("p", snapshot);
    bench.run(ops::schedule_revert(bench.id("p"), id, scheduled))
}

fn record_file(bench: &Bench, filesystem: &str) -> String {
    format!(".mdv-{}/filesystems/{}.json", bench.id("p").simple(), bench.filesystem("p", filesystem).simple())
}

/// The record of a filesystem on disk.
fn record(bench: &Bench, filesystem: &str) -> FilesystemRecord {
    FilesystemRecord::parse(&bench.sim.read_file(&record_file(bench, filesystem)).unwrap()).unwrap()
}

/// Changes a record on disk, as another daemon could.
fn change_record(bench: &Bench, filesystem: &str, change: impl FnOnce(&mut FilesystemRecord)) {
    let mut changed = record(bench, filesystem);
    change(&mut changed);
    bench.sim.replace_file(&record_file(bench, filesystem), &changed.encode()).unwrap();
}

/// The name, name of the origin, mark and scheduled revert of each filesystem.
fn filesystems(bench: &Bench) -> Vec<(String, Option<String>, u8, bool)> {
    let pool = bench.pool("p").expect("the pool runs");
    let name_of = |id| pool.filesystems.get(&id).map_or("(gone)".to_owned(), |found| found.name.to_string());
    let mut all: Vec<_> = pool
        .filesystems
        .values()
        .map(|found| {
            let mark = bench.mark_of(pool.uuid, found.uuid);
            (found.name.to_string(), found.origin.map(name_of), mark, found.merge_scheduled)
        })
        .collect();
    all.sort();
    all
}

fn expect(bench: &Bench, expected: &[(&str, Option<&str>, u8, bool)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, origin, mark, merge)| ((*name).to_owned(), origin.map(str::to_owned), *mark, *merge))
        .collect();
    assert_eq!(filesystems(bench), expected);
}

fn stop_and_start(bench: &mut Bench) {
    bench.stop_pool("p").unwrap();
    assert!(bench.start_pool("p").unwrap());
}

#[test]
fn only_unambiguous_reverts_can_be_scheduled() {
    let mut bench = machine(MetadataVersion::V2);
    let refused = |bench: &mut Bench, snapshot: &str, to: bool, expected: fn(&Error) -> bool| {
        let before = filesystems(bench);
        let error = schedule(bench, snapshot, to).unwrap_err();
        assert!(expected(&error), "{snapshot} to {to}: {error:?}");
        assert_eq!(filesystems(bench), before);
    };
    for to in [true, false] {
        refused(&mut bench, "f", to, |error| matches!(error, Error::NoOrigin { .. }));
    }
    assert!(!schedule(&mut bench, "s", false).unwrap(), "it is not scheduled as it is");
    assert!(schedule(&mut bench, "s", true).unwrap());
    assert!(!schedule(&mut bench, "s", true).unwrap(), "again is no change");
    assert!(record(&bench, "s").merge, "the order is on disk");
    refused(&mut bench, "r", true, |error| matches!(error, Error::SiblingScheduled { sibling, .. } if sibling == "s"));
    refused(&mut bench, "t", true, |error| matches!(error, Error::OriginScheduled { origin, .. } if origin == "s"));
    assert!(schedule(&mut bench, "s", false).unwrap());
    assert!(!record(&bench, "s").merge);
    assert!(schedule(&mut bench, "t", true).unwrap());
    refused(
        &mut bench,
        "s",
        true,
        |error| matches!(error, Error::SnapshotScheduled { snapshot, .. } if snapshot == "t"),
    );
    // A snapshot of another origin may be scheduled.
    assert!(schedule(&mut bench, "r", true).unwrap());
    let unknown = "00000000-0000-4000-8000-000000000001".parse().unwrap();
    let error = bench.run(ops::schedule_revert(bench.id("p"), unknown, true)).unwrap_err();
    assert!(matches!(error, Error::NoFilesystem { .. }), "{error:?}");
}

#[test]
fn the_snapshot_takes_the_place_of_its_origin() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut bench = machine(version);
        change_record(&bench, "s", |record| {
            record.size = Sectors(3 << 20);
            record.fs_size_limit = Some(Sectors(5 << 20));
        });
        let (origin, snapshot) = (record(&bench, "f"), record(&bench, "s"));
        schedule(&mut bench, "s", true).unwrap();
        // Scheduling has written the record from memory, so change it again.
        change_record(&bench, "s", |record| {
            record.size = Sectors(3 << 20);
            record.fs_size_limit = Some(Sectors(5 << 20));
        });
        stop_and_start(&mut bench);
        expect(
            &bench,
            &[("f", None, 2, false), ("other", None, 0, false), ("r", Some("f"), 3, false), ("t", Some("f"), 4, false)],
        );
        let merged = FilesystemRecord {
            thin_id: snapshot.thin_id,
            size: snapshot.size,
            fs_size_limit: snapshot.fs_size_limit,
            ..origin.clone()
        };
        assert_eq!(record(&bench, "f"), merged);
        // The new origin is saved at once. Another daemon must not find an origin that does not
        // exist.
        assert_eq!(record(&bench, "t").origin, Some(origin.uuid));
        let left = bench.sim.list_files(&format!(".mdv-{}/filesystems", bench.id("p").simple())).unwrap();
        assert_eq!(left.len(), 4, "{left:?}");
        bench.check_nothing_left("after the revert");
        let pool = bench.pool("p").unwrap();
        assert!(bench.is_linked("p", &pool.filesystems[&origin.uuid]));
        // The revert happens only once.
        let bench = bench.reboot();
        assert_eq!(filesystems(&bench).len(), 4);
        assert_eq!(record(&bench, "f"), merged);
    }
}

#[test]
fn a_reboot_reverts_to_a_mounted_snapshot_too() {
    let mut bench = machine(MetadataVersion::V2);
    schedule(&mut bench, "s", true).unwrap();
    // After the power cut the XFS log is dirty, so the UUID cannot be changed before the filesystem
    // has been mounted.
    bench.mount("p", "s");
    bench.mount("p", "f");
    let bench = bench.reboot();
    assert_eq!(filesystems(&bench)[0], ("f".to_owned(), None, 2, false));
    bench.check_nothing_left("after the reboot");
    bench.sim.mount_user(&bench.sim.dm_node(&thin(&bench, "f")), Path::new("/mnt/f")).unwrap();
}

fn thin(bench: &Bench, filesystem: &str) -> String {
    dm_names::filesystem(bench.id("p"), bench.filesystem("p", filesystem))
}

#[test]
fn a_daemon_that_finds_the_pool_up_waits() {
    let mut bench = machine(MetadataVersion::V2);
    schedule(&mut bench, "s", true).unwrap();
    bench.mount("p", "f");
    let before = filesystems(&bench);
    let mut bench = Bench::start(bench.sim);
    assert_eq!(filesystems(&bench), before);
    // The daemon waits even if the origin is not active: a program that has the snapshot open would
    // write to the origin.
    bench.sim.unmount_user(Path::new("/mnt/f")).unwrap();
    bench.sim.dm_remove(&thin(&bench, "f")).unwrap();
    bench = Bench::start(bench.sim);
    assert_eq!(filesystems(&bench), before);
    stop_and_start(&mut bench);
    assert_eq!(filesystems(&bench)[0], ("f".to_owned(), None, 2, false));
}

/// Marks these snapshots as scheduled on disk, starts the pool, and checks that none was reverted.
fn nothing_is_done(bench: Bench, scheduled: &[&str]) -> Bench {
    scheduled.iter().for_each(|snapshot| change_record(&bench, snapshot, |record| record.merge = true));
    let count = filesystems(&bench).len();
    let bench = bench.reboot();
    let found = filesystems(&bench);
    assert_eq!(found.len(), count);
    for (name, _, _, merge) in found {
        assert_eq!(merge, scheduled.contains(&name.as_str()), "{name}");
    }
    let pool = bench.pool("p").unwrap();
    assert_eq!(pool.availability.word(), "fully_operational");
    bench.check_nothing_left("after a start that does nothing");
    bench
}

#[test]
fn ambiguous_reverts_are_not_carried_out() {
    // Two scheduled snapshots of one origin.
    let mut bench = nothing_is_done(machine(MetadataVersion::V2), &["s", "r"]);
    // Cancelling one of the two makes the revert unambiguous.
    assert!(schedule(&mut bench, "r", false).unwrap());
    stop_and_start(&mut bench);
    assert_eq!(filesystems(&bench)[0], ("f".to_owned(), None, 2, false));
    // A scheduled snapshot of a scheduled snapshot.
    nothing_is_done(machine(MetadataVersion::V2), &["s", "t"]);
    // A filesystem that is not a snapshot.
    nothing_is_done(machine(MetadataVersion::V2), &["other"]);
}

#[test]
fn a_missing_origin_is_not_replaced() {
    let bench = machine(MetadataVersion::V2);
    let nobody = "00000000-0000-4000-8000-000000000001".parse().unwrap();
    change_record(&bench, "s", |record| record.origin = Some(nobody));
    let mut bench = nothing_is_done(bench, &["s"]);
    assert!(schedule(&mut bench, "s", false).unwrap(), "the order can be taken back");
    assert!(schedule(&mut bench, "s", true).unwrap(), "and given again");
}

#[test]
fn an_ambiguity_blocks_no_other_revert() {
    let mut bench = machine(MetadataVersion::V2);
    snapshot(&mut bench, "other", "o");
    bench.mark("p", "o", 9);
    ["s", "r", "o"].iter().for_each(|snapshot| change_record(&bench, snapshot, |record| record.merge = true));
    stop_and_start(&mut bench);
    expect(
        &bench,
        &[
            ("f", None, 1, false),
            ("other", None, 9, false),
            ("r", Some("f"), 3, true),
            ("s", Some("f"), 2, true),
            ("t", Some("s"), 4, false),
        ],
    );
}

#[test]
fn metadata_is_returned_as_json() {
    let mut bench = machine(MetadataVersion::V2);
    let id = bench.id("p");
    let parse = |text: String| -> serde_json::Value { serde_json::from_str(&text).unwrap() };
    for copy in [MetadataCopy::Current, MetadataCopy::Written] {
        let pool = parse(bench.run(ops::pool_metadata(id, copy)).unwrap());
        assert_eq!(pool["name"], "p");
        assert_eq!(pool["started"], true);
        assert_eq!(pool, support::disks::json_on(&bench.sim, "/dev/a"));
        let all = parse(bench.run(ops::filesystem_metadata(id, None, copy)).unwrap());
        assert_eq!(all.as_object().unwrap().len(), 5);
        let one = bench.run(ops::filesystem_metadata(id, Some("s".to_owned()), copy)).unwrap();
        let s = bench.filesystem("p", "s");
        assert_eq!(parse(one)[s.hyphenated()]["origin"], bench.filesystem("p", "f").hyphenated());
        assert_eq!(bench.run(ops::filesystem_metadata(id, Some("nope".to_owned()), copy)).unwrap(), "{}");
    }
    // The two copies differ when another daemon has written the record.
    change_record(&bench, "s", |record| record.created = 7);
    let created = |bench: &mut Bench, copy| {
        let text = bench.run(ops::filesystem_metadata(id, Some("s".to_owned()), copy)).unwrap();
        parse(text)[bench.filesystem("p", "s").hyphenated()]["created"].clone()
    };
    assert_eq!(created(&mut bench, MetadataCopy::Written), 7);
    assert_ne!(created(&mut bench, MetadataCopy::Current), 7);
}

/// A pool with or without unallocated space. Every block of its thin pool is in use, and no check
/// has run since the thin pool filled up. Snapshot `s` is scheduled to replace `f`.
fn full(version: MetadataVersion, disk: Sectors) -> Bench {
    let sim = Sim::builder().disk("/dev/small", disk).disk("/dev/large", Sectors(100 * GIB.0)).build();
    let mut bench = Bench::start(sim);
    bench.create_pool_of(version, "p", &["/dev/small"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    let filler = ops::NewFilesystem { name: name("filler"), size: Some(Sectors(100 * GIB.0)), size_limit: None };
    bench.run(ops::create_filesystems(bench.id("p"), vec![filler])).unwrap();
    bench.mark("p", "f", 1);
    snapshot(&mut bench, "f", "s");
    // A second snapshot shares blocks with the first, which would otherwise own them alone.
    snapshot(&mut bench, "s", "t");
    schedule(&mut bench, "s", true).unwrap();
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "filler"));
    let free = |bench: &Bench| {
        let status = status(bench);
        status.data_total.0 - status.data_used.0
    };
    let mut block = 100;
    while free(&bench) > 0 {
        bench.sim.write(&node, &[WriteStep::At(block << 20, &[9; 512]), WriteStep::Flush]).unwrap();
        block += 1;
    }
    bench
}

fn status(bench: &Bench) -> PoolStatus {
    let text = bench.sim.dm_status(&Role::ThinPool.name(bench.id("p"))).unwrap().remove(0);
    PoolStatus::parse(&text).unwrap()
}

/// Formerly the write of the XFS UUID waited for space, but no check could allocate any, because
/// the pool was not yet in the table of pools. After 60 s the write failed and the pool was
/// restricted.
#[test]
fn a_full_pool_gets_space_before_a_revert() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut bench = full(version, Sectors(200 * GIB.0));
        let before = status(&bench);
        assert!(!before.errors_if_no_space, "writes wait");
        stop_and_start(&mut bench);
        assert!(status(&bench).data_total > before.data_total);
        let pool = bench.pool("p").unwrap();
        assert_eq!((pool.restriction.as_deref(), pool.filesystems.len()), (None, 3));
        bench.check_nothing_left("after the revert");
        assert_eq!(bench.mark_of(pool.uuid, bench.filesystem("p", "f")), 1);
    }
}

/// Without unallocated space the revert happens nevertheless. The XFS UUID is changed once there is
/// space.
#[test]
fn a_start_completes_a_revert_without_space() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut bench = full(version, Sectors(2 * GIB.0));
        let (snapshot, f) = (bench.filesystem("p", "s"), bench.filesystem("p", "f"));
        stop_and_start(&mut bench);
        let pool = bench.pool("p").unwrap();
        assert_eq!((pool.restriction.as_deref(), pool.filesystems.len()), (None, 3));
        let identity = |bench: &Bench| bench.sim.xfs_uuid(&bench.thin_node(bench.id("p"), f)).map(FsUuid::from);
        assert_eq!(identity(&bench), Some(snapshot), "{version:?}");
        assert_eq!(bench.mark_of(pool.uuid, f), 1);
        // Without space, the filesystem still works like any other, and a start after a power cut
        // accepts it.
        let mut bench = bench.reboot();
        assert_eq!(identity(&bench), Some(snapshot));
        assert_eq!(bench.pool("p").unwrap().restriction, None);
        bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/large".into()])).unwrap();
        stop_and_start(&mut bench);
        assert_eq!(identity(&bench), Some(f));
        bench.check_nothing_left("after a start with space");
    }
}
