//! Another daemon ran in between. It does not know this daemon's marks and journal, and keeps or
//! drops them. What it has made must be kept.

use std::path::Path;

use serde_json::{Value, json};
use stratisd::{
    base::units::Sectors,
    engine::{
        bda::{Bda, Repair},
        metadata::HeaderFlags,
    },
    platform::{DeviceClass, Platform, sim::Sim},
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
