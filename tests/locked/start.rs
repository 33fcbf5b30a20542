//! Encrypted pools are started and stopped: by each unlock method, with wrong and missing keys, and
//! after a restart of the daemon or of the machine.

use std::path::Path;

use stratisd::{
    base::{pool_ref::PoolRef, units::Sectors},
    engine::{
        Error,
        dm_names::{self, Role},
        encryption::UnlockMethod,
        metadata::MetadataVersion,
        ops::{self, CacheTier, StopOutcome, UnlockOptions},
    },
    platform::{
        DeviceClass, Platform,
        sim::{CallKind, LuksCall, Sim, Trouble},
    },
    view::DeviceTier,
};
use support::{
    bench::{Bench, GIB, name},
    keys::{adopted_without_key, by_key, by_tang, create, machine, secret, set_key, shown, start, unset_key},
};

const VERSIONS: [MetadataVersion; 2] = [MetadataVersion::V1, MetadataVersion::V2];

/// A pool with a key and a Tang server, and a filesystem with a mark in it.
fn pool(version: MetadataVersion) -> Bench {
    let mut bench = machine();
    let bindings = vec![by_key(Some(1), "k"), by_tang(Some(2), "http://tang")];
    assert!(create(&mut bench, version, "p", &["/dev/a", "/dev/b"], bindings).unwrap());
    bench.create_filesystems("p", &["f"]).unwrap();
    bench.mark("p", "f", 7);
    bench
}

fn mark(bench: &Bench) -> u8 {
    bench.mark_of(bench.id("p"), bench.filesystem("p", "f"))
}

#[test]
fn a_pool_is_made_and_shown() {
    for version in VERSIONS {
        let bench = pool(version);
        let encryption = shown(&bench, "p");
        assert_eq!(encryption.keys, [(1, "k".to_owned())]);
        assert_eq!((encryption.clevis[0].0, encryption.clevis[0].1.as_str()), (2, "tang"));
        assert!(encryption.clevis[0].2.contains(r#""url":"http://tang""#), "{:?}", encryption.clevis);
        assert_eq!(bench.pool("p").unwrap().volume_key_loaded, version == MetadataVersion::V2);
        bench.check_nothing_left("made");
    }
}

#[test]
fn each_unlock_method_opens_the_pool() {
    for version in VERSIONS {
        for method in [UnlockMethod::Any, UnlockMethod::Token(1), UnlockMethod::Token(2)] {
            let mut bench = pool(version);
            bench.stop_pool("p").unwrap();
            assert!(bench.sim.leftovers().is_empty(), "{:?}", bench.sim.leftovers());
            assert!(start(&mut bench, "p", Some(method), None).unwrap(), "{version:?} {method:?}");
            assert_eq!(mark(&bench), 7, "{version:?} {method:?}");
            bench.check_nothing_left("started");
            bench.sim.cut_power();
            bench.sim.power_on();
            let mut bench = Bench::start(bench.sim);
            assert!(bench.pool("p").is_none(), "nobody has said how");
            set_key(&mut bench, "k", "secret of k");
            assert!(start(&mut bench, "p", Some(method), None).unwrap(), "{version:?} {method:?}");
            assert_eq!(mark(&bench), 7, "{version:?} {method:?}");
        }
    }
}

#[test]
fn a_passphrase_can_be_handed_over() {
    for version in VERSIONS {
        let mut bench = pool(version);
        bench.stop_pool("p").unwrap();
        unset_key(&mut bench, "k");
        let wrong = start(&mut bench, "p", Some(UnlockMethod::Any), Some("wrong")).unwrap_err();
        // Who types it knows the pool. The error had named a device of the stack.
        assert_eq!(wrong.sentence(), "the passphrase does not open pool p; give the right one");
        assert!(bench.sim.leftovers().is_empty(), "{:?}", bench.sim.leftovers());
        // As blivet does before it tries the next passphrase.
        let stopped = bench.stop_pool("p").unwrap();
        assert!(matches!(stopped, StopOutcome::CleanedUp(_)), "{version:?}: {stopped:?}");
        assert!(matches!(bench.stop_pool("p").unwrap(), StopOutcome::Already));
        assert!(start(&mut bench, "p", Some(UnlockMethod::Token(1)), Some("secret of k")).unwrap());
        assert_eq!(mark(&bench), 7);
    }
}

#[test]
fn a_wrong_key_spoils_no_right_key() {
    for version in VERSIONS {
        let mut bench = pool(version);
        bench.stop_pool("p").unwrap();
        let error = start(&mut bench, "p", None, None).unwrap_err();
        assert!(matches!(error, Error::NoUnlockMethod { .. } | Error::Locked { .. }), "{error:?}");
        let error = start(&mut bench, "p", None, Some("secret of k")).unwrap_err();
        assert!(matches!(error, Error::NoUnlockMethod { .. } | Error::Locked { .. }), "{error:?}");
        set_key(&mut bench, "k", "another");
        let error = start(&mut bench, "p", Some(UnlockMethod::Token(1)), None).unwrap_err();
        assert!(error.sentence().contains("key description k"), "{}", error.sentence());
        unset_key(&mut bench, "k");
        let error = start(&mut bench, "p", Some(UnlockMethod::Token(1)), None).unwrap_err();
        assert!(error.sentence().contains('k'), "{}", error.sentence());
        assert!(start(&mut bench, "p", Some(UnlockMethod::Token(9)), None).is_err());
        assert!(bench.sim.leftovers().is_empty(), "{:?}", bench.sim.leftovers());
        // Any method that works suffices.
        assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
        assert_eq!(mark(&bench), 7);
    }
}

#[test]
fn a_running_pool_is_adopted_with_its_key() {
    for version in VERSIONS {
        let bench = pool(version);
        let bench = Bench::start(bench.sim);
        assert_eq!(mark(&bench), 7);
        assert_eq!(shown(&bench, "p").keys, [(1, "k".to_owned())]);
        assert_eq!(bench.pool("p").unwrap().volume_key_loaded, version == MetadataVersion::V2);
        bench.check_nothing_left("adopted");
    }
}

#[test]
fn a_set_key_loads_an_adopted_volume_key() {
    let mut bench = adopted_without_key();
    let error = bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/b".into()]));
    set_key(&mut bench, "k", "another");
    assert!(!bench.pool("p").unwrap().volume_key_loaded);
    set_key(&mut bench, "k", "secret of k");
    assert!(bench.pool("p").unwrap().volume_key_loaded, "{error:?}");
}

#[test]
fn a_destroyed_pool_cannot_be_opened() {
    for version in VERSIONS {
        let mut bench = pool(version);
        let (pool, filesystem) = (bench.id("p"), bench.filesystem("p", "f"));
        bench.run(ops::destroy_filesystems(pool, vec![filesystem])).unwrap();
        assert!(bench.run(ops::destroy_pool(pool)).unwrap());
        assert!(bench.sim.leftovers().is_empty(), "{:?}", bench.sim.leftovers());
        for disk in ["/dev/a", "/dev/b"] {
            assert_eq!(bench.sim.luks_read(disk.as_ref()).unwrap(), None);
            let bytes = bench.sim.read(disk.as_ref(), 0, 34 << 20).unwrap();
            let begins = |magic: &[u8]| bytes.windows(magic.len()).any(|window| window == magic);
            assert!(!begins(b"LUKS\xba\xbe") && !begins(b"SKUL\xba\xbe"), "{version:?} {disk}");
        }
        assert!(create(&mut bench, version, "q", &["/dev/a", "/dev/b"], vec![]).unwrap());
    }
}

/// Found in review: the search for the volume key of an adopted pool ran under the pool's lock, and
/// its caller waited for it. The bench fails if a slow step runs under a lock.
#[test]
fn a_refresh_finds_the_volume_key() {
    for by in ["a key", "Clevis"] {
        let mut bench = machine();
        let binding = if by == "a key" { by_key(None, "k") } else { by_tang(None, "http://tang") };
        create(&mut bench, MetadataVersion::V2, "p", &["/dev/a"], vec![binding]).unwrap();
        unset_key(&mut bench, "k");
        bench.sim.set_all_tang(Some(Trouble::Down));
        let mut bench = Bench::start(bench.sim);
        bench.run(ops::refresh()).unwrap();
        assert!(!bench.pool("p").unwrap().volume_key_loaded, "{by}: nothing opens it");
        // Set the key, as another program may.
        bench.sim.key_set("stratis-1-key-k", &secret("secret of k")).unwrap();
        bench.sim.set_all_tang(None);
        bench.run(ops::refresh()).unwrap();
        assert!(bench.pool("p").unwrap().volume_key_loaded, "{by}");
        bench.check_nothing_left(by);
    }
}

/// Found by kills at every step: the daemon was killed while it made the thin pool of a pool
/// without its cache. A start with the cache then moved the pool to the cache and suspended a thin
/// pool that had no table yet; the kernel does not resume such a device. The next start of the
/// daemon leaves active devices active if a LUKS device has been closed meanwhile.
#[test]
fn an_interrupted_cacheless_start_may_use_the_cache() {
    let stopped = || {
        let mut bench = Bench::start(Sim::builder().record().build());
        set_key(&mut bench, "k", "secret of k");
        create(&mut bench, MetadataVersion::V1, "p", &["/dev/a"], vec![by_key(Some(1), "k")]).unwrap();
        bench.create_filesystems("p", &["f"]).unwrap();
        bench.mark("p", "f", 7);
        bench.run(ops::init_cache(bench.id("p"), vec!["/dev/fast".into()])).unwrap();
        let thin_pool = Role::ThinPool.name(bench.id("p"));
        let pool = bench.pool("p").unwrap();
        let cache = pool.devices.values().find(|device| device.tier == DeviceTier::Cache).unwrap().uuid;
        bench.stop_pool("p").unwrap();
        (bench, thin_pool, dm_names::opened_device(cache))
    };
    let start_without = |bench: &mut Bench| {
        let which = PoolRef::Name(name("p"));
        bench.run(ops::start_pool(which, UnlockOptions::any(), CacheTier::Drop)).map(drop)
    };
    let (mut bench, thin_pool, _) = stopped();
    let first = bench.sim.steps();
    start_without(&mut bench).unwrap();
    let steps = bench.sim.trace().into_iter().enumerate().skip(usize::try_from(first).unwrap());
    let making: Vec<usize> = steps.filter(|(_, step)| step.subject.contains(&thin_pool)).map(|(at, _)| at).collect();
    assert!(making.len() > 3, "it is created, gets a table and begins to run");
    let mut bare = 0;
    for at in making {
        let (mut bench, thin_pool, opened) = stopped();
        bench.sim.faults().kill_at(u64::try_from(at).unwrap());
        start_without(&mut bench).unwrap_err();
        bench.sim.faults().clear();
        bench.sim.dm_remove(&opened).unwrap();
        let mut bench = Bench::start(bench.sim);
        let found = bench.sim.dm_find(&thin_pool).unwrap();
        bare += u32::from(found.is_some_and(|found| found.table.is_empty()));
        let started = start(&mut bench, "p", Some(UnlockMethod::Any), None);
        assert!(started.unwrap_or_else(|error| panic!("killed at step {at}: {}", error.sentence())));
        assert!(bench.pool("p").unwrap().has_cache);
        assert_eq!(mark(&bench), 7);
        bench.check_nothing_left("with the cache");
    }
    assert!(bare > 0, "the thin pool never had no table");
}

/// Formerly the LUKS devices of a cache were closed before the pool metadata dropped the cache, so
/// they could not be marked as dropped.
#[test]
fn cache_devices_stay_open_until_dropped_on_record() {
    let mut bench = machine();
    assert!(create(&mut bench, MetadataVersion::V1, "p", &["/dev/a"], vec![by_key(Some(1), "k")]).unwrap());
    assert_eq!(bench.run(ops::init_cache(bench.id("p"), vec!["/dev/fast".into()])).unwrap().len(), 1);
    let pool = bench.pool("p").unwrap();
    let cache = pool.devices.values().find(|device| device.tier == DeviceTier::Cache).unwrap().uuid;
    bench.stop_pool("p").unwrap();
    bench.sim.faults().cut_power_at_next(CallKind::DmRemove, &dm_names::opened_device(cache));
    let without = ops::start_pool(PoolRef::Name(name("p")), UnlockOptions::any(), CacheTier::Drop);
    // Whatever the result, the pool metadata has been written.
    drop(bench.run(without));
    assert!(bench.sim.dm_list().is_err(), "the power is off");
    let mut bench = bench.reboot();
    set_key(&mut bench, "k", "secret of k");
    assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
    assert!(!bench.pool("p").unwrap().has_cache, "it was given up when its container was closed");
    let class = bench.sim.find_device(Path::new("/dev/fast")).unwrap().class;
    assert_eq!(class, DeviceClass::Unowned);
}

/// A stop that panics after it was decided has closed some LUKS devices. Another stop completes it,
/// and no request sees a pool that has given up its devices.
#[test]
fn a_stop_that_panicked_is_completed() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut gone = 0;
        for step in 0.. {
            let mut bench = machine();
            create(&mut bench, version, "p", &["/dev/a", "/dev/b"], vec![by_key(Some(1), "k")]).unwrap();
            let pool = bench.id("p");
            bench.sim.faults().panic_at(bench.sim.steps() + step);
            let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bench.stop_pool("p")));
            if bench.sim.faults().struck() == 0 {
                break;
            }
            let at = format!("{version:?}, step {step}: {stopped:?}");
            let read = bench.run(ops::pool_metadata(pool, ops::MetadataCopy::Current));
            gone += usize::from(bench.pool("p").is_some() && matches!(read, Err(Error::NoPool(_))));
            if bench.pool("p").is_some() {
                bench.stop_pool("p").unwrap_or_else(|error| panic!("{at}: {}", error.sentence()));
            }
            assert!(bench.sim.leftovers().is_empty(), "{at}: {:?}", bench.sim.leftovers());
            assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap(), "{at}");
            bench.check_nothing_left(&at);
        }
        assert!(gone > 0, "{version:?}");
    }
}

/// In version 1, an added device lies on a LUKS device of its own, which opens with the keys of the
/// pool.
#[test]
fn an_addition_cut_short_leaves_no_container() {
    for is_rebooted in [false, true] {
        let mut outcomes = [0, 0];
        for step in 0.. {
            let mut bench = machine();
            create(&mut bench, MetadataVersion::V1, "p", &["/dev/a"], vec![by_key(Some(1), "k")]).unwrap();
            let pool = bench.id("p");
            bench.sim.faults().kill_at(bench.sim.steps() + step);
            let added = bench.run(ops::add_data_devices(pool, vec!["/dev/b".into()])).is_ok();
            bench.sim.faults().clear();
            if added {
                break;
            }
            let mut bench = match is_rebooted {
                false => Bench::start(bench.sim),
                true => bench.reboot(),
            };
            if is_rebooted {
                set_key(&mut bench, "k", "secret of k");
                start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap();
            }
            let at = format!("step {step}, {is_rebooted}");
            let count = bench.pool("p").unwrap().devices.len();
            outcomes[count - 1] += 1;
            bench.check_nothing_left(&at);
            assert_eq!(bench.sim.header(Path::new("/dev/b")).is_some(), count == 2, "{at}");
        }
        assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
    }
}

/// Where nothing opens a pool, none of its LUKS devices stays open: a start or stop that was cut
/// short opened or closed only some of them.
#[test]
fn a_daemon_closes_what_a_start_opened() {
    let (mut stopped, mut runs) = (0, 0);
    for step in 0.. {
        let mut bench = pool(MetadataVersion::V1);
        bench.stop_pool("p").unwrap();
        bench.sim.faults().kill_at(bench.sim.steps() + step);
        let started = start(&mut bench, "p", Some(UnlockMethod::Any), None).is_ok();
        bench.sim.faults().clear();
        if started {
            break;
        }
        let (opened, bench) = (bench.sim.opened().len(), Bench::start(bench.sim));
        let at = format!("step {step}, {opened} devices were open");
        match bench.pool("p") {
            Some(_) => runs += 1,
            None => {
                assert!(bench.sim.leftovers().is_empty(), "{at}: {:?}", bench.sim.leftovers());
                stopped += usize::from(opened == 1);
            }
        }
        bench.check_nothing_left(&at);
    }
    assert!(stopped > 0 && runs > 0, "{stopped}, {runs}");
}

/// The name in the headers identifies a pool whose LUKS devices are closed.
#[test]
fn a_rename_cut_short_leaves_one_name() {
    let mut mended = 0;
    for step in 0.. {
        let mut bench = pool(MetadataVersion::V1);
        let names = |bench: &Bench| {
            ["/dev/a", "/dev/b"].map(|disk| {
                let tokens = bench.sim.header(Path::new(disk)).unwrap().tokens;
                tokens.values().find_map(|token| Some(token.get("pool_name")?.as_str()?.to_owned())).unwrap()
            })
        };
        bench.sim.faults().kill_at(bench.sim.steps() + step);
        let renamed = bench.run(ops::rename_pool(bench.id("p"), name("q"))).is_ok();
        bench.sim.faults().clear();
        if renamed {
            break;
        }
        let before = names(&bench);
        let bench = Bench::start(bench.sim);
        let name = bench.names().remove(0);
        assert_eq!(names(&bench), [name.clone(), name.clone()], "step {step}");
        mended += usize::from(before != [name.clone(), name]);
    }
    assert!(mended > 0);
}

/// A disk that was added is recorded before the crypt device is made larger, which takes the volume
/// key. A stop forgets the key.
#[test]
fn a_start_enlarges_an_adopted_crypt_device() {
    let size = Sectors(100 * GIB.0);
    let mut bench = Bench::start(Sim::builder().disk("/dev/a", size).disk("/dev/b", size).build());
    set_key(&mut bench, "k", "secret of k");
    create(&mut bench, MetadataVersion::V2, "p", &["/dev/a"], vec![by_key(Some(1), "k")]).unwrap();
    bench.run(ops::check_now(bench.id("p"))).unwrap();
    let crypt = Role::Crypt.name(bench.id("p"));
    let length = |bench: &Bench| bench.sim.dm_find(&crypt).unwrap().unwrap().size();
    let before = length(&bench);
    (0..9).for_each(|_| bench.sim.faults().fail_next(CallKind::Luks(LuksCall::Resize), ""));
    bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/b".into()])).unwrap();
    assert!(bench.sim.faults().struck() > 0);
    bench.sim.hold_device(&crypt, 1000).unwrap();
    assert!(matches!(bench.stop_pool("p").unwrap(), StopOutcome::Partly(..)));
    bench.sim.hold_device(&crypt, 0).unwrap();
    bench.sim.faults().clear();
    assert_eq!(length(&bench), before, "it is still open, with its former size");
    assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
    assert!(length(&bench) > before && bench.pool("p").unwrap().volume_key_loaded);
    bench.check_nothing_left("larger");
}

/// The pool has dropped the cache while its device was missing. What lies on the device is none of
/// the pool's business.
#[test]
fn a_dropped_cache_device_is_closed_unwiped() {
    let mut bench = machine();
    create(&mut bench, MetadataVersion::V1, "p", &["/dev/a"], vec![by_key(Some(1), "k")]).unwrap();
    bench.run(ops::init_cache(bench.id("p"), vec!["/dev/fast".into()])).unwrap();
    bench.stop_pool("p").unwrap();
    let fast = Path::new("/dev/fast");
    bench.sim.pull_disk(fast).unwrap();
    let mut bench = bench.reboot();
    set_key(&mut bench, "k", "secret of k");
    let without = ops::start_pool(PoolRef::Name(name("p")), UnlockOptions::any(), CacheTier::Drop);
    bench.run(without).unwrap();
    bench.stop_pool("p").unwrap();
    bench.sim.add_disk(fast, GIB).unwrap();
    let mut bench = bench.reboot();
    set_key(&mut bench, "k", "secret of k");
    let before = bench.sim.durable(fast, 0..64 << 20);
    assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
    assert!(!bench.pool("p").unwrap().has_cache);
    assert!(bench.sim.header(fast).is_some() && bench.sim.durable(fast, 0..64 << 20) == before);
    bench.check_nothing_left("beside a dropped cache device");
}

/// Of errors that leave equally much behind, the first one is told.
#[test]
fn the_first_disk_that_fails_is_named() {
    let mut bench = machine();
    for disk in ["/dev/a", "/dev/b"] {
        bench.sim.faults().fail_next(CallKind::Luks(LuksCall::Format), disk);
    }
    let binding = vec![by_key(Some(1), "k")];
    let error = create(&mut bench, MetadataVersion::V1, "p", &["/dev/a", "/dev/b"], binding).unwrap_err();
    assert_eq!(bench.sim.faults().struck(), 2);
    assert!(error.sentence().contains("/dev/a"), "{}", error.sentence());
}
