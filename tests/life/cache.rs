//! Initializing and extending caches, and what is refused.

use std::path::Path;

use stratisd::{
    base::{ids::DevUuid, units::Sectors},
    engine::{Error, Result, dm_names::Role, metadata::MetadataVersion, ops},
    platform::{
        DeviceClass, DeviceNumber, Platform,
        dm::Target,
        sim::{CallKind, Sim},
    },
    view::DeviceTier,
};
use support::bench::{Bench, GIB};

const VERSIONS: [MetadataVersion; 2] = [MetadataVersion::V1, MetadataVersion::V2];

fn machine_on(sim: Sim, version: MetadataVersion) -> Bench {
    let mut bench = Bench::start(sim);
    bench.create_pool_of(version, "p", &["/dev/slow"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    bench.mark("p", "f", 4);
    bench
}

fn machine(version: MetadataVersion) -> Bench {
    machine_on(Sim::builder().build(), version)
}

fn init(bench: &mut Bench, devices: &[&str]) -> Result<Vec<DevUuid>> {
    bench.run(ops::init_cache(bench.id("p"), devices.iter().map(Into::into).collect()))
}

fn add(bench: &mut Bench, devices: &[&str]) -> Result<Vec<DevUuid>> {
    bench.run(ops::add_cache_devices(bench.id("p"), devices.iter().map(Into::into).collect()))
}

fn number(bench: &Bench, role: Role) -> DeviceNumber {
    bench.sim.dm_find(&role.name(bench.id("p"))).unwrap().unwrap().number
}

fn length(bench: &Bench, role: Role) -> u64 {
    bench.sim.dm_find(&role.name(bench.id("p"))).unwrap().unwrap().table.iter().map(|line| line.length.0).sum()
}

/// Checks that every flex device lies on the cache.
fn check_cached(bench: &Bench, devices: usize) {
    let pool = bench.pool("p").unwrap();
    assert!(pool.has_cache);
    assert_eq!(pool.devices.values().filter(|device| device.tier == DeviceTier::Cache).count(), devices);
    assert!(pool.devices.values().all(|device| device.in_use));
    let cache = bench.sim.dm_find(&Role::Cache.name(pool.uuid)).unwrap().unwrap();
    let [line] = &cache.table[..] else { panic!("{:?}", cache.table) };
    assert!(matches!(&line.target, Target::Cache { features, .. } if features == &["writethrough"]));
    for role in [Role::Mdv, Role::ThinMeta, Role::ThinData] {
        let lines = bench.sim.dm_find(&role.name(pool.uuid)).unwrap().unwrap().table;
        let on_cache = |target: &Target| matches!(target, Target::Linear { device, .. } if *device == cache.number);
        assert!(lines.iter().all(|line| on_cache(&line.target)), "{role:?}: {lines:?}");
    }
    assert_eq!(bench.mark_of(pool.uuid, bench.filesystem("p", "f")), 4);
    bench.check_nothing_left("with a cache");
}

#[test]
fn a_cache_is_begun_and_made_larger() {
    for version in VERSIONS {
        let mut bench = machine(version);
        assert!(matches!(add(&mut bench, &["/dev/fast"]).unwrap_err(), Error::NoCache { .. }));
        let top = number(&bench, Role::ThinPool);
        assert_eq!(init(&mut bench, &["/dev/fast"]).unwrap().len(), 1);
        check_cached(&bench, 1);
        assert_eq!(number(&bench, Role::ThinPool), top, "nothing above the cache changes");
        let blocks = length(&bench, Role::CacheSub);
        assert_eq!(add(&mut bench, &["/dev/faster", "/dev/fast"]).unwrap().len(), 1, "one is there already");
        check_cached(&bench, 2);
        assert!(length(&bench, Role::CacheSub) > blocks);
        let mut bench = bench.reboot();
        check_cached(&bench, 2);
        // The pool can grow under its cache.
        assert_eq!(bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/more".into()])).unwrap().len(), 1);
        let origin = length(&bench, Role::OriginSub);
        assert_eq!(length(&bench, Role::Cache), origin);
    }
}

#[test]
fn only_the_same_devices_are_accepted_again() {
    let mut bench = machine(MetadataVersion::V2);
    assert!(matches!(init(&mut bench, &[]).unwrap_err(), Error::NoCacheDevices));
    init(&mut bench, &["/dev/fast", "/dev/faster"]).unwrap();
    let before = bench.sim.snapshot();
    assert_eq!(init(&mut bench, &["/dev/faster", "/dev/fast"]).unwrap(), []);
    assert_eq!(add(&mut bench, &["/dev/faster"]).unwrap(), []);
    for devices in [&["/dev/fast"][..], &["/dev/fast", "/dev/faster", "/dev/other"], &["/dev/other"]] {
        let error = init(&mut bench, devices).unwrap_err();
        assert!(matches!(error, Error::OtherCache { .. }), "{error:?}");
    }
    for device in ["/dev/slow", "/dev/fast"] {
        let other_tier = match device {
            "/dev/slow" => add(&mut bench, &[device]),
            _ => bench.run(ops::add_data_devices(bench.id("p"), vec![device.into()])),
        };
        assert!(matches!(other_tier.unwrap_err(), Error::InOtherTier { .. }));
    }
    assert_eq!(before.differences(&bench.sim.snapshot()), []);
    let fast = bench.device("p", "/dev/fast");
    bench.sim.resize_disk(Path::new("/dev/fast"), Sectors(2048 * GIB.0)).unwrap();
    let error = bench.run(ops::grow_device(bench.id("p"), fast)).unwrap_err();
    assert!(matches!(error, Error::CacheDoesNotGrow { .. }), "{error:?}");
}

#[test]
fn unsuitable_cache_devices_are_refused_unchanged() {
    let sim = Sim::builder()
        .disk("/dev/tiny", Sectors(GIB.0 / 2))
        .disk("/dev/small", GIB)
        .disk("/dev/huge", Sectors(40_000 * GIB.0))
        .disk("/dev/sectors", Sectors(10 * GIB.0))
        .logical(4096)
        .disk("/dev/mixed", Sectors(10 * GIB.0))
        .physical(4096)
        .build();
    let mut bench = machine_on(sim, MetadataVersion::V2);
    type Expected = fn(&Error) -> bool;
    let refusals: [(&[&str], Expected); 4] = [
        (&["/dev/tiny"], |error| matches!(error, Error::TooSmall { .. })),
        (&["/dev/huge"], |error| matches!(error, Error::Size(_))),
        (&["/dev/sectors"], |error| matches!(error, Error::SectorSizes(_))),
        (&["/dev/fast", "/dev/mixed"], |error| matches!(error, Error::SectorSizes(_))),
    ];
    for (devices, expected) in refusals {
        let error = init(&mut bench, devices).unwrap_err();
        assert!(expected(&error), "{devices:?}: {error:?}");
        assert!(!bench.pool("p").unwrap().has_cache);
        for device in devices {
            assert_eq!(bench.sim.find_device(Path::new(device)).unwrap().class, DeviceClass::Unowned, "{device}");
        }
        bench.check_nothing_left("after a refusal");
    }
    // Together with the present cache, this exceeds the maximum size.
    init(&mut bench, &["/dev/fast"]).unwrap();
    let error = add(&mut bench, &["/dev/huge"]).unwrap_err();
    assert!(matches!(error, Error::Size(_)), "{error:?}");
    check_cached(&bench, 1);
}

/// Formerly each check tried the larger cache again, which the kernel refused, and the pool
/// metadata named devices that no table could use.
#[test]
fn an_extension_refused_by_the_kernel_is_undone() {
    for version in VERSIONS {
        for (call, role) in
            [(CallKind::DmLoad, Role::CacheSub), (CallKind::DmLoad, Role::Cache), (CallKind::DmResume, Role::Cache)]
        {
            let at = format!("{version:?}: {call:?} of {role:?}");
            let mut bench = machine(version);
            init(&mut bench, &["/dev/fast"]).unwrap();
            let (before, blocks) = (bench.pool("p").unwrap(), length(&bench, Role::CacheSub));
            bench.sim.faults().refuse_next(call, &role.name(before.uuid));
            let error = add(&mut bench, &["/dev/faster"]).unwrap_err();
            assert!(error.is_refusal(), "{at}: {error:?}");
            assert_eq!(bench.pool("p").unwrap(), before, "{at}");
            assert_eq!(length(&bench, Role::CacheSub), blocks, "{at}");
            let class = bench.sim.find_device(Path::new("/dev/faster")).unwrap().class;
            assert_eq!(class, DeviceClass::Unowned, "{at}");
            bench.check_pools();
            check_cached(&bench, 1);
            let mut bench = bench.reboot();
            check_cached(&bench, 1);
            assert_eq!(add(&mut bench, &["/dev/faster"]).unwrap().len(), 1, "{at}");
            check_cached(&bench, 2);
        }
    }
}

/// If the undo fails, the devices stay in the pool, as recorded, and the next check uses them.
#[test]
fn the_check_completes_a_stuck_extension() {
    let prepare = || {
        let mut bench = machine_on(Sim::builder().record().build(), MetadataVersion::V2);
        init(&mut bench, &["/dev/fast"]).unwrap();
        let refused = Role::Cache.name(bench.id("p"));
        bench.sim.faults().refuse_next(CallKind::DmLoad, &refused);
        bench
    };
    let mut bench = prepare();
    add(&mut bench, &["/dev/faster"]).unwrap_err();
    let cache = Role::CacheSub.name(bench.id("p"));
    let put_back =
        bench.sim.trace().iter().rposition(|step| step.call == CallKind::DmLoad && step.subject == cache).unwrap();
    let mut bench = prepare();
    bench.sim.faults().fail_at(u64::try_from(put_back).unwrap());
    assert_eq!(add(&mut bench, &["/dev/faster"]).unwrap().len(), 1);
    bench.check_pools();
    check_cached(&bench, 2);
    check_cached(&bench.reboot(), 2);
}

/// A daemon that was killed while it made a cache has recorded it or has left nothing of it.
#[test]
fn a_cache_cut_short_leaves_nothing() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut outcomes = [0, 0];
        for step in 0.. {
            let mut bench = Bench::start(Sim::builder().build());
            bench.create_pool_of(version, "p", &["/dev/a"]).unwrap();
            bench.create_filesystems("p", &["f"]).unwrap();
            bench.mark("p", "f", 7);
            bench.sim.faults().kill_at(bench.sim.steps() + step);
            let made = bench.run(ops::init_cache(bench.id("p"), vec!["/dev/b".into()])).is_ok();
            bench.sim.faults().clear();
            if made {
                break;
            }
            let bench = Bench::start(bench.sim);
            let at = format!("{version:?}, step {step}");
            bench.check_nothing_left(&at);
            assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 7, "{at}");
            outcomes[usize::from(bench.pool("p").unwrap().has_cache)] += 1;
        }
        assert!(outcomes.iter().all(|count| *count > 0), "{version:?}: {outcomes:?}");
    }
}

/// The kernel is asked for the cache before the pool metadata names it.
#[test]
fn a_refused_cache_is_never_recorded() {
    let prepare = || machine_on(Sim::builder().record().build(), MetadataVersion::V2);
    let mut bench = prepare();
    let (cache, from) = (Role::Cache.name(bench.id("p")), bench.sim.steps());
    init(&mut bench, &["/dev/fast"]).unwrap();
    let trace = bench.sim.trace().split_off(usize::try_from(from).unwrap());
    let asked = trace.iter().position(|step| step.call == CallKind::DmLoad && step.subject == cache).unwrap();

    let mut bench = prepare();
    let recorded = |bench: &Bench| bench.sim.durable(Path::new("/dev/slow"), 0..1 << 20);
    let before = recorded(&bench);
    bench.sim.faults().fail_at(from + u64::try_from(asked).unwrap());
    init(&mut bench, &["/dev/fast"]).unwrap_err();
    assert!(recorded(&bench) == before && !bench.pool("p").unwrap().has_cache);
    assert_eq!(bench.sim.find_device(Path::new("/dev/fast")).unwrap().class, DeviceClass::Unowned);
    bench.check_nothing_left("after the refusal");
    init(&mut bench, &["/dev/fast"]).unwrap();
    check_cached(&bench, 1);
}
