//! A pool is started without its cache, because the cache is lost or no longer wanted.

use std::path::Path;

use stratisd::{
    base::{name::Name, pool_ref::PoolRef, units::Sectors},
    engine::{
        Error, Result,
        dm_names::Role,
        metadata::MetadataVersion,
        ops::{self, CacheTier, Started, UnlockOptions},
    },
    platform::{
        DeviceClass, Platform, WriteStep,
        sim::{CallKind, RecordedCall, Sim},
    },
};
use support::{bench::Bench, disks, examples::CACHE_DEVICE};

const FAST: Sectors = Sectors(4 << 21);
/// The place of the kernel's cache metadata on the cache device, in bytes.
const CACHE_METADATA: std::ops::Range<u64> = (8192 << 9)..(8200 << 9);

/// A stopped pool on `/dev/slow` with a cache on `/dev/fast`, as another daemon could have made it.
fn stopped_with_cache(version: MetadataVersion) -> Bench {
    let sim = Sim::builder().disk("/dev/fast", FAST).record().build();
    let mut bench = Bench::start(sim);
    bench.create_pool_of(version, "p", &["/dev/slow"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    bench.mark("p", "f", 3);
    let pool = bench.id("p");
    bench.stop_pool("p").unwrap();
    disks::Device { path: "/dev/fast", uuid: CACHE_DEVICE, pool, version, json: None }.put(&bench.sim);
    let part = |start: u64, length: u64| serde_json::json!({"parent": CACHE_DEVICE, "start": start, "length": length});
    let (metadata, first) = (1 << 20, 8192);
    disks::change(&bench.sim, "/dev/slow", |json| {
        json["backstore"]["cache_tier"] = serde_json::json!({"blockdev": {
            "allocs": [[part(first + metadata, FAST.0 - first - metadata)], [part(first, metadata)]],
            "devs": [{"uuid": CACHE_DEVICE}],
        }});
    });
    let mut bench = Bench::start(bench.sim);
    assert!(bench.start_pool("p").unwrap(), "the pool with the cache is as it must be");
    assert!(bench.pool("p").unwrap().has_cache);
    bench.stop_pool("p").unwrap();
    bench
}

fn start(bench: &mut Bench, cache: CacheTier) -> Result<Option<Started>> {
    let which = PoolRef::Name(Name::new("p").unwrap());
    bench.run(ops::start_pool(which, UnlockOptions::default(), cache))
}

fn check_without(bench: &mut Bench) {
    let pool = bench.pool("p").expect("the pool runs");
    assert!(!pool.has_cache);
    assert_eq!(pool.devices.len(), 1);
    assert_eq!(bench.mark_of(pool.uuid, bench.filesystem("p", "f")), 3);
    bench.check_nothing_left("without the cache");
    assert!(disks::json_on(&bench.sim, "/dev/slow")["backstore"].get("cache_tier").is_none());
}

#[test]
fn the_cache_is_given_up_and_wiped() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut bench = stopped_with_cache(version);
        let started = start(&mut bench, CacheTier::Drop).unwrap().expect("it did not run");
        assert_eq!((started.devices.len(), started.filesystems.len()), (1, 1));
        check_without(&mut bench);
        assert_eq!(bench.sim.find_device(Path::new("/dev/fast")).unwrap().class, DeviceClass::Unowned);
        bench = bench.reboot();
        check_without(&mut bench);
        bench.create_pool("q", &["/dev/fast"]).unwrap();
    }
}

#[test]
fn a_pool_survives_its_lost_cache() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let bench = stopped_with_cache(version);
        bench.sim.pull_disk(Path::new("/dev/fast")).unwrap();
        let mut bench = Bench::start(bench.sim);
        let error = start(&mut bench, CacheTier::Keep).unwrap_err();
        assert!(matches!(error, Error::DevicesMissing { .. }), "{error:?}");
        assert!(start(&mut bench, CacheTier::Drop).unwrap().is_some());
        check_without(&mut bench);
        // If the cache device reappears, it belongs to no pool.
        bench.sim.add_disk(Path::new("/dev/fast"), FAST).unwrap();
        assert!(start(&mut bench, CacheTier::Drop).unwrap().is_none(), "it runs already");
    }
}

#[test]
fn an_unwiped_cache_blocks_nothing() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut bench = stopped_with_cache(version);
        let wiping = bench.sim.steps() + first_step_of_wiping(version);
        // The wipe is attempted twice.
        bench.sim.faults().fail_at(wiping);
        bench.sim.faults().fail_at(wiping + 1);
        assert!(start(&mut bench, CacheTier::Drop).unwrap().is_some());
        bench.sim.faults().clear();
        check_without(&mut bench);
        assert_eq!(bench.sim.find_device(Path::new("/dev/fast")).unwrap().class, DeviceClass::Stratis);
        // The signature on the cache device disturbs neither the pool nor a new pool on that disk.
        bench = bench.reboot();
        check_without(&mut bench);
        bench.create_pool("q", &["/dev/fast"]).unwrap();
    }
}

/// The step that begins to wipe the cache device, counted from the beginning of a start without the
/// cache. It is the first write to the cache device after the pool metadata without the cache has
/// been written.
fn first_step_of_wiping(version: MetadataVersion) -> u64 {
    let mut bench = stopped_with_cache(version);
    let from = bench.sim.steps();
    start(&mut bench, CacheTier::Drop).unwrap();
    let steps: Vec<_> = bench.sim.trace().into_iter().skip(usize::try_from(from).unwrap()).collect();
    let writes_to = |step: &RecordedCall, disk| step.call == CallKind::Write && step.subject.contains(disk);
    let committed = steps.iter().rposition(|step| writes_to(step, "/dev/slow")).unwrap();
    let wiping = steps.iter().skip(committed).position(|step| writes_to(step, "/dev/fast")).unwrap();
    u64::try_from(committed + wiping).unwrap()
}

/// Found in review: writes that bypass a cache make its blocks stale. A start without the cache
/// wrote to the metadata volume, which it mounts, before the pool metadata had dropped the cache.
/// If that start was interrupted, the next one used the cache with its stale blocks.
#[test]
fn nothing_is_written_past_a_dirty_cache() {
    let prepared = |version, is_gone| {
        let bench = stopped_with_cache(version);
        bench
            .sim
            .write(Path::new("/dev/fast"), &[WriteStep::At(CACHE_METADATA.start, &[7; 4096]), WriteStep::Flush])
            .unwrap();
        match is_gone {
            true => {
                bench.sim.pull_disk(Path::new("/dev/fast")).unwrap();
                Bench::start(bench.sim)
            }
            false => bench,
        }
    };
    for (version, is_gone) in
        [MetadataVersion::V1, MetadataVersion::V2].into_iter().flat_map(|version| [(version, false), (version, true)])
    {
        let mut bench = prepared(version, is_gone);
        let first = bench.sim.steps();
        start(&mut bench, CacheTier::Drop).unwrap();
        let (mut kept, mut past) = (0, 0);
        for step in first..bench.sim.steps() {
            let mut bench = prepared(version, is_gone);
            bench.sim.faults().kill_at(step);
            drop(start(&mut bench, CacheTier::Drop));
            bench.sim.faults().clear();
            let bench = Bench::without_discovery(bench.sim);
            let is_recorded = disks::json_on(&bench.sim, "/dev/slow")["backstore"].get("cache_tier").is_some();
            let holds_nothing =
                !is_gone && bench.sim.durable(Path::new("/dev/fast"), CACHE_METADATA).iter().all(|b| *b == 0);
            let is_passed =
                bench.sim.trace().iter().skip(usize::try_from(first).unwrap()).any(|s| s.call == CallKind::Mount);
            assert!(!is_passed || holds_nothing || !is_recorded, "{version:?}, gone: {is_gone}, killed at step {step}");
            kept += u32::from(is_recorded && !holds_nothing);
            past += u32::from(is_passed);
        }
        assert!(kept > 0 && past > 0, "{version:?}, gone: {is_gone}");
    }
}

#[test]
fn a_data_device_is_never_given_up() {
    let mut bench = stopped_with_cache(MetadataVersion::V2);
    bench.sim.pull_disk(Path::new("/dev/slow")).unwrap();
    assert!(start(&mut bench, CacheTier::Drop).is_err());
    bench.sim.add_disk(Path::new("/dev/slow"), FAST).unwrap();
    assert!(start(&mut bench, CacheTier::Keep).unwrap().is_some());
    assert!(bench.pool("p").unwrap().has_cache);
    assert!(bench.sim.dm_find(&Role::CacheSub.name(bench.id("p"))).unwrap().is_some());
}
