//! The metadata areas of a pool are nearly full. Additions are refused in time, and requests that
//! must always succeed still do.

use std::path::PathBuf;

use stratisd::{
    base::units::Sectors,
    engine::{
        Error,
        metadata::MetadataVersion,
        ops::{self, MetadataCopy, NewFilesystem},
    },
    platform::{Platform, WriteStep, sim::Sim},
};
use support::bench::{Bench, GIB, name};

/// The capacity of a device's metadata area in bytes, without the reserve.
const ALLOWED: usize = 260_064 - 4096;

fn recorded(bench: &mut Bench) -> usize {
    let id = bench.id("p");
    bench.run(ops::pool_metadata(id, MetadataCopy::Written)).unwrap().len()
}

fn disk(number: usize) -> PathBuf {
    format!("/dev/disk{number}").into()
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::RecordFull { .. })
}

/// A pool without room for any addition, and the number of its disks.
fn full(version: MetadataVersion) -> (Bench, usize) {
    // JSON encodes each character of this name in six bytes.
    let named = Sim::builder().disk_size(Sectors(60 * GIB.0)).wwn(&"\u{1}".repeat(255));
    let mut bench = Bench::start(named.build());
    let mut disks = 150;
    let paths: Vec<String> = (0..disks).map(|number| disk(number).display().to_string()).collect();
    bench.create_pool_of(version, "p", &paths.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let large = NewFilesystem { name: name("f"), size: Some(Sectors(100 * GIB.0)), size_limit: None };
    bench.run(ops::create_filesystems(bench.id("p"), vec![large])).unwrap();
    loop {
        let before = bench.pool("p").unwrap();
        let id = bench.id("p");
        match bench.run(ops::add_data_devices(id, vec![disk(disks)])) {
            Ok(_) => disks += 1,
            Err(error) => {
                assert!(is_full(&error), "{}", error.sentence());
                assert!(error.sentence().contains("cannot record this change of pool p"), "{}", error.sentence());
                assert_eq!(*bench.pool("p").unwrap(), *before);
                break;
            }
        }
        assert!(disks < 170, "{} bytes", recorded(&mut bench));
    }
    // The refused disk belongs to no pool.
    bench.create_pool("other", &[&disk(disks).display().to_string()]).unwrap();
    for number in 0..disks {
        let left = ALLOWED - recorded(&mut bench);
        let length = left.saturating_sub(r#","user_info":"""#.len()).min(255);
        if length == 0 {
            return (bench, disks);
        }
        let (id, device) = (bench.id("p"), bench.device("p", &disk(number).display().to_string()));
        bench.run(ops::set_user_info(id, device, Some("u".repeat(length)))).unwrap();
    }
    panic!("{} bytes are left", ALLOWED - recorded(&mut bench));
}

/// Formerly pool metadata could become too long to be written, and then every operation failed,
/// even a stop.
#[test]
fn a_full_record_refuses_growth_and_nothing_else() {
    for version in [MetadataVersion::V2, MetadataVersion::V1] {
        let (mut bench, disks) = full(version);
        let id = bench.id("p");
        // Enough writes to make a check extend the thin pool.
        let node = bench.thin_node(id, bench.filesystem("p", "f"));
        let blocks: Vec<_> = (100..36_100).map(|block| WriteStep::At(block << 20, b"x")).collect();
        bench.sim.write(&node, &blocks).unwrap();
        let before = bench.pool("p").unwrap();
        for refused in [
            bench.run(ops::check_now(id)),
            bench.run(ops::rename_pool(id, name(&"long".repeat(20)))).map(drop),
            bench.run(ops::add_data_devices(id, vec![disk(1000)])).map(drop),
            bench.run(ops::init_cache(id, vec![disk(1001)])).map(drop),
        ] {
            let error = refused.unwrap_err();
            assert!(is_full(&error), "{version:?}: {}", error.sentence());
        }
        // The thin pool must not queue writes for space that is never allocated.
        let after = bench.pool("p").unwrap();
        assert!(!before.no_alloc_space && after.no_alloc_space);
        assert_eq!((before.allocated, before.devices.len()), (after.allocated, after.devices.len()));
        bench.check_nothing_left("after refusals");

        bench.run(ops::set_overprovisioning(id, false)).unwrap();
        bench.stop_pool("p").unwrap();
        bench.start_pool("p").unwrap();
        let mut bench = bench.reboot();
        assert_eq!(bench.pool("p").unwrap().devices.len(), disks);
        // Removing texts makes room.
        for number in 0..4 {
            let device = bench.device("p", &disk(number).display().to_string());
            bench.run(ops::set_user_info(id, device, None)).unwrap();
        }
        bench.run(ops::check_now(id)).unwrap();
        assert!(bench.pool("p").unwrap().allocated > before.allocated);
        let doomed = bench.filesystem("p", "f");
        bench.run(ops::destroy_filesystems(id, vec![doomed])).unwrap();
        assert!(bench.run(ops::destroy_pool(id)).unwrap());
        bench.create_pool("next", &[&disk(0).display().to_string()]).unwrap();
        bench.check_nothing_left("at the end");
    }
}
