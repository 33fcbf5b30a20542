//! Another daemon ran in between. It does not know this daemon's marks and journal, and keeps or
//! drops them. What it has made must be kept.

use std::path::Path;

use serde_json::{Value, json};
use stratisd::{
    base::{
        ids::{FsUuid, PoolUuid},
        units::Sectors,
    },
    engine::{
        bda::{Bda, Repair},
        dm_names::{self, Role},
        metadata::{FilesystemRecord, HeaderFlags},
        ops,
    },
    platform::{
        DeviceClass, Platform, WriteStep,
        dm::{Line, Target, Visibility},
        sim::Sim,
    },
};
use support::{bench::Bench, disks};

use crate::{
    discovery::{two_disks, with_volume_changed},
    witness::listen,
};

/// A machine on which a daemon was killed right after it had recorded the destruction of the pool.
fn condemned() -> Sim {
    let sim = two_disks();
    for disk in ["/dev/a", "/dev/b"] {
        disks::condemn(&sim, disk);
    }
    sim
}

fn is_wiped(sim: &Sim) -> bool {
    ["/dev/a", "/dev/b"].iter().all(|disk| sim.find_device(Path::new(disk)).unwrap().class == DeviceClass::Unowned)
}

#[test]
fn an_interrupted_destruction_is_completed() {
    let bench = Bench::start(condemned());
    assert_eq!(bench.names(), Vec::<String>::new());
    assert!(is_wiped(&bench.sim));
}

/// Formerly the pool was wiped although another daemon had started it and made a filesystem.
#[test]
fn a_pool_started_since_its_destruction_is_kept() {
    for keeps_unknown_keys in [true, false] {
        let sim = condemned();
        for disk in ["/dev/a", "/dev/b"] {
            disks::change(&sim, disk, |json| {
                json["started"] = true.into();
                if !keeps_unknown_keys {
                    json.as_object_mut().unwrap().remove("destroying");
                }
            });
        }
        let (bench, said) = listen(|| Bench::start(sim));
        assert_eq!(bench.names(), ["p"], "{said}");
        assert_eq!(bench.pool("p").unwrap().filesystems.len(), 1);
        bench.check_nothing_left("it was started again");
    }
}

#[test]
fn a_pool_used_since_its_destruction_is_kept() {
    let sim = condemned();
    for started in [true, false] {
        for disk in ["/dev/a", "/dev/b"] {
            disks::change(&sim, disk, |json| json["started"] = started.into());
        }
    }
    let mut bench = Bench::start(sim);
    assert!(!is_wiped(&bench.sim));
    assert!(bench.stopped_pool("p").is_some());
    assert!(bench.start_pool("p").unwrap());
    // The metadata no longer mentions the destruction.
    assert!(disks::json_on(&bench.sim, "/dev/a").get("destroying").is_none());
    bench.stop_pool("p").unwrap();
    let bench = bench.reboot();
    assert!(bench.stopped_pool("p").is_some());
}

/// A device that another daemon uses again is not left over.
#[test]
fn devices_of_a_restarted_pool_are_not_taken() {
    let sim = condemned();
    disks::change(&sim, "/dev/a", |json| json["started"] = true.into());
    sim.pull_disk(Path::new("/dev/b")).unwrap();
    let mut bench = Bench::start(sim);
    assert!(bench.create_pool("new", &["/dev/a"]).is_err());
}

/// The record of the only filesystem of the pool.
fn record(sim: &Sim, mdv: &str) -> (String, Value) {
    let file = sim.list_files(&format!("{mdv}/filesystems")).unwrap().pop().unwrap();
    let path = format!("{mdv}/filesystems/{file}");
    let record = serde_json::from_slice(&sim.read_file(&path).unwrap()).unwrap();
    (path, record)
}

fn enter(sim: &Sim, mdv: &str, entry: &Value) {
    let (_, pending) = entry.as_object().unwrap().iter().next().unwrap();
    let file = pending[0]["uuid"].as_str().unwrap().replace('-', "");
    sim.list_files(&format!("{mdv}/pending")).unwrap();
    sim.replace_file(&format!("{mdv}/pending/{file}.json"), entry.to_string().as_bytes()).unwrap();
}

fn destruction(record: &Value) -> Value {
    json!({ "destroy": [{ "uuid": record["uuid"], "thin_id": record["thin_id"], "was": record }] })
}

/// Formerly a filesystem was destroyed although it had been renamed, and so used, after the
/// decision to destroy it.
#[test]
fn a_filesystem_changed_since_its_destruction_is_kept() {
    let changes: [fn(&mut Value); 3] = [
        |record| record["name"] = "renamed".into(),
        |record| record["size"] = (4 << 21).into(),
        |record| record["fs_size_limit"] = (8 << 21).into(),
    ];
    for change in changes {
        let (bench, said) = with_volume_changed(|sim, mdv| {
            let (path, mut record) = record(sim, mdv);
            enter(sim, mdv, &destruction(&record));
            change(&mut record);
            sim.replace_file(&path, record.to_string().as_bytes()).unwrap();
        });
        assert_eq!(bench.names(), ["p"], "{said}");
        assert_eq!(bench.pool("p").unwrap().filesystems.len(), 1, "{said}");
        assert!(said.contains("has been changed since; keeping it"), "{said}");
        bench.check_nothing_left("the filesystem was changed since");
    }
    let (bench, said) = with_volume_changed(|sim, mdv| enter(sim, mdv, &destruction(&record(sim, mdv).1)));
    assert_eq!(bench.pool("p").unwrap().filesystems.len(), 0, "{said}");
    bench.check_nothing_left("nothing was changed since");
}

#[test]
fn a_reassigned_thin_device_is_kept() {
    let other = "00000000-0000-4000-8000-000000000002";
    for kind in ["create", "destroy"] {
        let (bench, said) = with_volume_changed(|sim, mdv| {
            let id = record(sim, mdv).1["thin_id"].clone();
            enter(sim, mdv, &json!({ kind: [{ "uuid": other, "thin_id": id }] }));
        });
        assert_eq!(bench.pool("p").unwrap().filesystems.len(), 1, "{kind}: {said}");
        bench.check_nothing_left(kind);
    }
}

/// Another daemon gave the space for integrity data to the thin pool. Formerly such a pool did not
/// start.
#[test]
fn a_full_grown_device_keeps_no_pool_down() {
    let sim = two_disks();
    let disk = Path::new("/dev/a");
    let old = sim.geometry(disk).unwrap().size;
    let new = Sectors(old.0 + (1 << 24));
    sim.resize_disk(disk, new).unwrap();
    let mut bda = Bda::load(&sim, disk, Repair::ReadOnly).unwrap().unwrap();
    bda.resize(&sim, disk, new, HeaderFlags::GROWN).unwrap();
    let device = bda.header().device.to_string();
    disks::change(&sim, "/dev/a", |json| {
        let tier = &mut json["backstore"]["data_tier"]["blockdev"];
        let entry = tier["devs"].as_array().unwrap().iter().find(|entry| entry["uuid"] == device.as_str()).unwrap();
        let reserved = entry["integrity_meta_allocs"][0].clone();
        let allocs = tier["allocs"][0].as_array_mut().unwrap();
        let ends = allocs.iter().filter(|segment| segment["parent"] == device.as_str());
        let end = ends.map(|segment| segment["start"].as_u64().unwrap() + segment["length"].as_u64().unwrap()).max();
        let (end, start) = (end.unwrap_or(8192), reserved[0].as_u64().unwrap());
        allocs.push(json!({ "parent": device, "start": end, "length": start - end }));
        let start = start + reserved[1].as_u64().unwrap();
        allocs.push(json!({ "parent": device, "start": start, "length": new.0 - start }));
    });
    let (bench, said) = listen(|| Bench::start(sim));
    assert_eq!(bench.names(), ["p"], "{said}");
    assert!(said.contains("no space for integrity data"), "{said}");
    let header = *Bda::load(&bench.sim, disk, Repair::ReadOnly).unwrap().unwrap().header();
    assert!(!header.flags.contains(HeaderFlags::GROWN));
}

const USED: u8 = 7;

/// Sets up what is recorded, as another daemon does, and writes to it. Returns the filesystems.
fn use_recorded(sim: &Sim, pool: PoolUuid) -> Vec<FsUuid> {
    let directory = format!(".mdv-{}/filesystems", pool.simple());
    let thin_pool = sim.dm_find(&Role::ThinPool.name(pool)).unwrap().unwrap().number;
    let mut used = Vec::new();
    for file in sim.list_files(&directory).unwrap() {
        let record = FilesystemRecord::parse(&sim.read_file(&format!("{directory}/{file}")).unwrap()).unwrap();
        let name = dm_names::filesystem(pool, record.uuid);
        if sim.dm_find(&name).unwrap().is_none() {
            let target = Target::Thin { pool: thin_pool, id: record.thin_id };
            let table = [Line { start: Sectors::ZERO, length: record.size, target }];
            sim.dm_create(&name, &name, &table, Visibility::Public).unwrap();
        }
        let mark = [WriteStep::At(64 << 20, &[USED; 512]), WriteStep::Flush];
        sim.write(&sim.dm_node(&name), &mark).unwrap();
        used.push(record.uuid);
    }
    used
}

/// Formerly the entry in the journal decided a destruction. If the daemon was killed before it had
/// removed the records, another daemon set the filesystems up; nothing showed that they had been
/// written to, and the next set-up destroyed them.
#[test]
fn a_filesystem_mounted_since_its_destruction_is_kept() {
    let prepared = || {
        let bench = Bench::with_two_filesystems();
        let doomed = ["f", "g"].map(|name| bench.filesystem("p", name));
        (bench.id("p"), doomed, bench)
    };
    let (pool, doomed, mut bench) = prepared();
    let begin = bench.sim.steps();
    bench.run(ops::destroy_filesystems(pool, doomed.to_vec())).unwrap();
    let steps = bench.sim.steps() - begin;
    let mut kept = 0;
    for step in 0..steps {
        let (pool, doomed, mut bench) = prepared();
        bench.sim.faults().kill_at(bench.sim.steps() + step);
        let answered = bench.run(ops::destroy_filesystems(pool, doomed.to_vec())).is_ok();
        bench.sim.faults().clear();
        let used = use_recorded(&bench.sim, pool);
        let bench = Bench::start(bench.sim);
        let at = format!("killed at step {step} of {steps}");
        for id in &used {
            assert_eq!(bench.mark_of(pool, *id), USED, "{at}");
        }
        let found: Vec<FsUuid> = bench.pool("p").unwrap().filesystems.keys().copied().collect();
        assert_eq!(found.len(), if used.is_empty() { 0 } else { 2 }, "{at}: all or none");
        assert!(used.is_empty() || !answered, "{at}");
        bench.check_nothing_left(&at);
        kept += u64::from(!used.is_empty());
    }
    assert!(0 < kept && kept < steps, "{kept} of {steps}");
}

/// A kill came between the removals of the records of `f` and `g`. Then another daemon ran.
#[test]
fn a_record_is_written_again_unless_replaced() {
    let other: FsUuid = "00000000-0000-4000-8000-000000000002".parse().unwrap();
    type Change = fn(&FilesystemRecord, FsUuid) -> Option<FilesystemRecord>;
    let changes: [(Change, &[&str], &str); 4] = [
        (|_, _| None, &["f", "g"], "recording it again"),
        // Its name is in use.
        (|f, other| Some(FilesystemRecord { uuid: other, thin_id: 77, ..f.clone() }), &["f", "g"], "has been replaced"),
        // Its thin device number is in use.
        (
            |f, other| Some(FilesystemRecord { uuid: other, name: "h".to_owned(), ..f.clone() }),
            &["g", "h"],
            "has been replaced",
        ),
        // The other daemon had set it up, too, and destroyed it.
        (|_, _| None, &["g"], "has been replaced"),
    ];
    for (number, (change, names, expected)) in changes.into_iter().enumerate() {
        let bench = Bench::with_two_filesystems();
        let (pool, sim) = (bench.id("p"), &bench.sim);
        let [f, g] = ["f", "g"].map(|name| bench.filesystem("p", name));
        let mdv = format!(".mdv-{}", pool.simple());
        let path = |id: FsUuid| format!("{mdv}/filesystems/{}.json", id.simple());
        let [was_f, was_g]: [Value; 2] =
            [f, g].map(|id| serde_json::from_slice(&sim.read_file(&path(id)).unwrap()).unwrap());
        let pending = |was: &Value| {
            let (uuid, thin_id) = (&was["uuid"], &was["thin_id"]);
            json!({ "uuid": uuid, "thin_id": thin_id, "was": was, "by_removal": true })
        };
        enter(sim, &mdv, &json!({ "destroy": [pending(&was_f), pending(&was_g)] }));
        [f, g].into_iter().for_each(|id| sim.dm_remove(&dm_names::filesystem(pool, id)).unwrap());
        sim.remove_file(&path(f)).unwrap();
        let record = FilesystemRecord::parse(was_f.to_string().as_bytes()).unwrap();
        let thin_pool = Role::ThinPool.name(pool);
        if number == 1 {
            sim.dm_message(&thin_pool, "create_thin 77").unwrap();
        }
        if number == 3 {
            sim.dm_message(&thin_pool, &format!("delete {}", record.thin_id)).unwrap();
        }
        if let Some(new) = change(&record, other) {
            sim.replace_file(&path(other), &new.encode()).unwrap();
        }
        let (bench, said) = listen(|| Bench::start(bench.sim));
        let view = bench.pool("p").unwrap();
        let mut found: Vec<&str> = view.filesystems.values().map(|found| found.name.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, names, "{number}: {said}");
        assert!(said.contains(expected), "{number}: {said}");
        let deleted = bench.sim.dm_message(&thin_pool, &format!("delete {}", record.thin_id)).unwrap_err();
        match number {
            // The other daemon's filesystem has no XFS here.
            1 => assert_eq!(deleted.errno(), Some(nix::libc::ENODATA)),
            2 => assert_eq!(deleted.errno(), Some(nix::libc::EBUSY)),
            _ => bench.check_nothing_left(&number.to_string()),
        }
    }
}
