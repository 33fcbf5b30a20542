//! Pools are stopped and started, including pools that were only partly taken down or that cannot
//! be started.

use std::path::Path;

use stratisd::{
    base::pool_ref::PoolRef,
    engine::{
        Error,
        dm_names::{self, Role},
        metadata::MetadataVersion,
        ops::{self, CacheTier, Secret, StopOutcome, UnlockOptions},
        request::{Granted, Step},
    },
    platform::{
        DeviceAction, DeviceEvent, Platform,
        sim::{CallKind, Sim},
    },
};
use support::{
    bench::{Bench, name},
    disks,
};

fn machine() -> Bench {
    machine_of(MetadataVersion::V2)
}

fn machine_of(version: MetadataVersion) -> Bench {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool_of(version, "p", &["/dev/a", "/dev/b"]).unwrap();
    bench.create_filesystems("p", &["f", "g"]).unwrap();
    bench.mark("p", "f", 7);
    bench
}

fn by_name(text: &str) -> PoolRef {
    PoolRef::Name(name(text))
}

/// Whether the stopped pool of this name has active leftovers. `None` if no stopped pool has the
/// name.
fn is_partial(bench: &Bench, pool: &str) -> Option<bool> {
    let stopped = bench.stopped();
    let found = stopped.named(pool).next();
    found.map(|uuid| stopped.pools()[&uuid].partial)
}

#[test]
fn a_pool_is_stopped_and_started_again() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut bench = machine_of(version);
        bench.check_pools();
        let before = bench.pool("p").unwrap();
        let stopped = bench.stop_pool("p").unwrap();
        assert!(matches!(stopped, StopOutcome::Done(uuid) if uuid == before.uuid), "{stopped:?}");
        assert_eq!(bench.names(), Vec::<String>::new());
        assert!(bench.sim.leftovers().is_empty(), "{:?}", bench.sim.leftovers());
        let shown = &bench.stopped().list()[0];
        assert_eq!((shown.uuid, shown.partial, shown.metadata_version), (before.uuid, false, Some(version.number())));
        assert_eq!(shown.devices.len(), 2);
        assert_eq!(disks::json_on(&bench.sim, "/dev/a")["started"], false);
        assert!(matches!(bench.stop_pool("p").unwrap(), StopOutcome::Already));

        let started = ops::start_pool(PoolRef::Uuid(before.uuid), UnlockOptions::default(), CacheTier::Keep);
        let started = bench.run(started).unwrap().expect("it did not run");
        assert_eq!((started.pool, started.devices.len(), started.filesystems.len()), (before.uuid, 2, 2));
        assert_eq!(bench.stopped().list().len(), 0);
        let after = bench.pool("p").unwrap();
        assert_eq!(after.filesystems, before.filesystems);
        assert_eq!(after.devices, before.devices);
        assert_eq!(bench.mark_of(after.uuid, bench.filesystem("p", "f")), 7);
        assert_eq!(disks::json_on(&bench.sim, "/dev/a")["started"], true);
        bench.check_nothing_left("after the start");
        assert!(!bench.start_pool("p").unwrap(), "it runs already");
    }
}

#[test]
fn stopped_and_started_pools_stay_so_after_restarts() {
    let mut bench = machine();
    bench.stop_pool("p").unwrap();
    let mut bench = bench.reboot();
    assert_eq!((bench.names().len(), is_partial(&bench, "p")), (0, Some(false)));
    bench.start_pool("p").unwrap();
    let bench = bench.reboot();
    assert_eq!(bench.names(), ["p"]);
}

#[test]
fn a_filesystem_in_use_keeps_the_pool_running() {
    let mut bench = machine();
    bench.mount("p", "g");
    let before = (bench.pool("p").unwrap(), bench.sim.leftovers(), disks::json_on(&bench.sim, "/dev/a"));
    let error = bench.stop_pool("p").unwrap_err();
    assert!(matches!(&error, Error::Mounted { name, .. } if name.as_str() == "g"), "{error:?}");
    assert_eq!((bench.pool("p").unwrap(), bench.sim.leftovers(), disks::json_on(&bench.sim, "/dev/a")), before);
    bench.sim.unmount_user(Path::new("/mnt/g")).unwrap();

    // The device is open but not mounted. The stop sets up again what it has taken down, with its
    // link.
    for filesystem in ["f", "g"] {
        let device = dm_names::filesystem(bench.id("p"), bench.filesystem("p", filesystem));
        bench.sim.hold_device(&device, 5).unwrap();
        let error = bench.stop_pool("p").unwrap_err();
        assert!(error.is_busy(), "{error:?}");
        bench.check_nothing_left(filesystem);
        let pool = bench.pool("p").unwrap();
        assert!(pool.filesystems.values().all(|filesystem| bench.is_linked("p", filesystem)));
        assert_eq!((pool.filesystems.len(), pool.availability.word()), (2, "fully_operational"));
        assert_eq!(bench.mark_of(pool.uuid, bench.filesystem("p", "f")), 7);
    }
    // The same holds for the thin pool.
    bench.sim.hold_device(&Role::ThinPool.name(bench.id("p")), 5).unwrap();
    assert!(bench.stop_pool("p").unwrap_err().is_busy());
    bench.check_nothing_left("the thin pool was in use");
    bench.create_filesystems("p", &["h"]).unwrap();
    assert!(matches!(bench.stop_pool("p").unwrap(), StopOutcome::Done(_)));
}

/// A pool whose lowest device was in use during its stop.
fn partly_stopped() -> Bench {
    let mut bench = machine();
    let uuid = bench.id("p");
    bench.sim.hold_device(&Role::OriginSub.name(uuid), 10).unwrap();
    let stopped = bench.stop_pool("p").unwrap();
    assert!(matches!(&stopped, StopOutcome::Partly(of, error) if *of == uuid && error.is_busy()), "{stopped:?}");
    assert_eq!((bench.names().len(), is_partial(&bench, "p")), (0, Some(true)));
    assert_eq!(bench.sim.leftovers().devices, [Role::OriginSub.name(uuid)]);
    bench
}

#[test]
fn a_partly_stopped_pool_can_be_cleaned_up() {
    let mut bench = partly_stopped();
    let device = bench.sim.leftovers().devices[0].clone();
    bench.sim.hold_device(&device, 10).unwrap();
    assert!(bench.stop_pool("p").unwrap_err().is_busy());
    assert_eq!(is_partial(&bench, "p"), Some(true), "it is as it was");
    assert!(matches!(bench.stop_pool("p").unwrap(), StopOutcome::CleanedUp(_)));
    assert!(bench.sim.leftovers().is_empty());
    assert_eq!(is_partial(&bench, "p"), Some(false));
    assert!(matches!(bench.stop_pool("p").unwrap(), StopOutcome::Already));
    assert!(bench.start_pool("p").unwrap());
}

#[test]
fn a_partly_stopped_pool_can_be_started() {
    let mut bench = partly_stopped();
    assert!(bench.start_pool("p").unwrap());
    bench.check_nothing_left("what was up is adopted");
    assert_eq!(bench.mark_of(bench.id("p"), bench.filesystem("p", "f")), 7);
}

#[test]
fn a_daemon_that_starts_completes_a_stop() {
    let bench = partly_stopped();
    let bench = Bench::start(bench.sim);
    assert_eq!(is_partial(&bench, "p"), Some(false));
    assert!(bench.sim.leftovers().is_empty());
}

/// A removal of a device may report a failure although the device is gone.
#[test]
fn a_stop_is_partial_while_something_is_up() {
    let mut outcomes = [0, 0];
    for step in 0.. {
        let mut bench = machine();
        let lowest = Role::OriginSub.name(bench.id("p"));
        // The first attempt to take the pool down fails, so the second one counts.
        bench.sim.faults().fail_next(CallKind::DmFind, &lowest);
        let strike = bench.sim.steps() + step;
        bench.sim.faults().fail_after(strike);
        let stopped = bench.stop_pool("p");
        if bench.sim.steps() <= strike {
            break;
        }
        bench.sim.faults().clear();
        let is_up = !bench.sim.leftovers().is_empty();
        match stopped {
            Ok(StopOutcome::Done(_)) => assert!(!is_up, "step {step}"),
            Ok(StopOutcome::Partly(..)) => assert!(is_up, "step {step}"),
            Ok(other) => panic!("step {step}: {other:?}"),
            Err(_) => continue,
        }
        assert_eq!(is_partial(&bench, "p"), Some(is_up), "step {step}");
        outcomes[usize::from(is_up)] += 1;
    }
    assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
}

/// Somebody has removed by hand what a stop had left up.
#[test]
fn a_failed_clean_up_looks_what_is_up() {
    let mut bench = partly_stopped();
    let lowest = bench.sim.leftovers().devices[0].clone();
    bench.sim.hold_device(&lowest, 0).unwrap();
    bench.sim.dm_remove(&lowest).unwrap();
    for _ in 0..2 {
        bench.sim.faults().fail_next(CallKind::DmList, "");
    }
    bench.stop_pool("p").unwrap_err();
    assert_eq!(bench.sim.faults().struck(), 2);
    assert_eq!(is_partial(&bench, "p"), Some(false));
}

/// A start that panics tells nobody what it has brought up.
#[test]
fn a_start_that_panicked_is_cleaned_up() {
    let mut cleaned = 0;
    for step in 0.. {
        let mut bench = machine();
        bench.stop_pool("p").unwrap();
        bench.sim.faults().panic_at(bench.sim.steps() + step);
        let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bench.start_pool("p")));
        if bench.sim.faults().struck() == 0 {
            break;
        }
        let is_up = !bench.sim.leftovers().is_empty();
        let stopped = bench.stop_pool("p");
        let at = format!("step {step}: {started:?}, then {stopped:?}");
        match stopped {
            Ok(StopOutcome::CleanedUp(_)) => cleaned += usize::from(is_up),
            Ok(StopOutcome::Done(_)) => {}
            Ok(StopOutcome::Already) => assert!(!is_up, "{at}"),
            _ => panic!("{at}"),
        }
        assert!(bench.sim.leftovers().is_empty(), "{at}: {:?}", bench.sim.leftovers());
    }
    assert!(cleaned > 0, "no start left anything up");
}

#[test]
fn unknown_pools_and_missing_devices_are_reported() {
    let mut bench = machine();
    let unknown = PoolRef::Uuid("11111111-2222-4333-8444-555566667777".parse().unwrap());
    for which in [unknown, by_name("none")] {
        let stopped = bench.run(ops::stop_pool(which.clone())).unwrap_err();
        let started = bench.run(ops::start_pool(which.clone(), UnlockOptions::default(), CacheTier::Keep)).unwrap_err();
        for error in [stopped, started] {
            assert!(matches!(&error, Error::UnknownPool(of) if *of == which), "{error:?}");
        }
    }
}

#[test]
fn an_ambiguous_name_selects_no_stopped_pool() {
    let mut bench = machine();
    bench.stop_pool("p").unwrap();
    bench.create_pool("p", &["/dev/c"]).unwrap();
    let second = bench.id("p");
    // A stopped pool may have the name of a running one. That name then selects the running pool.
    let first = bench.stopped().list()[0].uuid;
    assert!(!bench.start_pool("p").unwrap());
    let taken =
        bench.run(ops::start_pool(PoolRef::Uuid(first), UnlockOptions::default(), CacheTier::Keep)).unwrap_err();
    assert!(matches!(&taken, Error::NameRuns(of) if of.as_str() == "p"), "{taken:?}");
    assert_eq!(bench.names(), ["p"]);
    bench.check_nothing_left("the first was not started");

    bench.stop_pool("p").unwrap();
    assert!(bench.stopped().list().iter().all(|pool| pool.name == Some(name("p"))));
    for error in [bench.stop_pool("p").unwrap_err(), bench.start_pool("p").unwrap_err()] {
        assert!(matches!(&error, Error::AmbiguousName { pools, .. } if pools.len() == 2), "{error:?}");
    }
    let start = |uuid| ops::start_pool(PoolRef::Uuid(uuid), UnlockOptions::default(), CacheTier::Keep);
    assert!(bench.run(start(second)).unwrap().is_some());
    bench.run(ops::rename_pool(second, name("q"))).unwrap();
    assert!(bench.run(start(first)).unwrap().is_some());
    assert_eq!(bench.names(), ["p", "q"]);
}

#[test]
fn unlock_options_need_an_encrypted_pool() {
    let mut bench = machine();
    let method = UnlockOptions::any();
    let passphrase = UnlockOptions { method: None, passphrase: Some(Secret::new(b"secret".to_vec().into())) };
    for running in [true, false] {
        if !running {
            bench.stop_pool("p").unwrap();
        }
        for unlock in [method.clone(), passphrase.clone()] {
            let error = bench.run(ops::start_pool(by_name("p"), unlock, CacheTier::Keep)).unwrap_err();
            assert!(matches!(error, Error::NotEncrypted { .. }), "{error:?}");
        }
    }
    assert_eq!(is_partial(&bench, "p"), Some(false));
    for disk in ["/dev/a", "/dev/b"] {
        disks::change(&bench.sim, disk, |json| {
            json["features"] = serde_json::json!(["Encryption"]);
            // In an encrypted pool these offsets count from the start of the opened LUKS device.
            let counted = |lists: &mut serde_json::Value| {
                for segment in lists.as_array_mut().into_iter().flatten() {
                    segment[0] = serde_json::json!(segment[0].as_u64().unwrap() - 34_816);
                }
            };
            counted(&mut json["backstore"]["cap"]["allocs"]);
            for list in ["meta_dev", "thin_meta_dev", "thin_data_dev", "thin_meta_dev_spare"] {
                counted(&mut json["flex_devs"][list]);
            }
        });
    }
    for unlock in [UnlockOptions::default(), passphrase] {
        let error = bench.run(ops::start_pool(by_name("p"), unlock, CacheTier::Keep)).unwrap_err();
        assert!(matches!(error, Error::NoUnlockMethod { .. }), "{error:?}");
    }
    let error = bench.run(ops::start_pool(by_name("p"), method, CacheTier::Keep)).unwrap_err();
    assert!(matches!(error, Error::NoHeader { .. }), "{error:?}");
    assert!(bench.sim.leftovers().is_empty());
}

#[test]
fn a_start_that_fails_can_be_repeated() {
    let mut bench = machine();
    bench.stop_pool("p").unwrap();
    bench.sim.pull_disk(Path::new("/dev/b")).unwrap();
    // The start fails whether or not udev has already reported the removal.
    let error = bench.start_pool("p").unwrap_err();
    assert!(matches!(&error, Error::DevicesMissing { missing, .. } if missing.len() == 1), "{error:?}");
    assert_eq!(is_partial(&bench, "p"), Some(false));
    assert!(bench.sim.leftovers().is_empty());
    bench.sim.add_disk(Path::new("/dev/b"), support::bench::GIB).unwrap();
    assert!(bench.start_pool("p").unwrap());
    bench.check_nothing_left("after the second try");
}

/// Found by pairs of faults: after a start in which no device of the pool could be read, the daemon
/// took the pool for one that had never been completed, and forgot it until the next discovery.
#[test]
fn a_pool_with_unreadable_devices_is_not_forgotten() {
    for version in [MetadataVersion::V1, MetadataVersion::V2] {
        let mut bench = machine_of(version);
        bench.stop_pool("p").unwrap();
        let before = bench.stopped().list()[0].clone();
        // The start looks up each device twice.
        for disk in ["/dev/a", "/dev/a", "/dev/b", "/dev/b"] {
            bench.sim.faults().fail_next(CallKind::FindDevice, disk);
        }
        let error = bench.start_pool("p").unwrap_err().sentence();
        assert_eq!(bench.sim.faults().struck(), 4);
        assert!(error.contains("Input/output error"), "the error says why: {error}");
        assert_eq!(reason(&bench), error);
        let after = bench.stopped().list()[0].clone();
        assert_eq!((&after.name, &after.devices), (&before.name, &before.devices));
        assert!(bench.start_pool("p").unwrap());
        bench.check_nothing_left("after the second try");
    }
}

/// As [`a_pool_with_unreadable_devices_is_not_forgotten`], for a refresh and for udev events.
#[test]
fn a_device_that_cannot_be_read_stays_known() {
    let fail = |bench: &Bench| {
        bench.sim.faults().clear();
        // Fail the reads of both copies of each header, however often they are tried.
        (0..20).for_each(|at| bench.sim.faults().fail_next(CallKind::Read, ["/dev/a", "/dev/b"][at % 2]));
    };
    let mut bench = machine();
    bench.stop_pool("p").unwrap();
    let before = bench.stopped().list();
    fail(&bench);
    bench.run(ops::refresh()).unwrap();
    assert_eq!(bench.stopped().list(), before);

    fail(&bench);
    for path in ["/dev/a", "/dev/b"] {
        let device = bench.sim.find_device(Path::new(path)).unwrap();
        let event =
            DeviceEvent { action: DeviceAction::Change, path: path.into(), device: Some(device), unlinked: None };
        bench.run(ops::device_event(event));
    }
    assert_eq!(bench.stopped().list(), before);
    // A refresh still forgets devices that have vanished.
    bench.sim.pull_disk(Path::new("/dev/a")).unwrap();
    bench.sim.faults().clear();
    bench.run(ops::refresh()).unwrap();
    assert_eq!(bench.stopped().list()[0].devices.len(), 1);
    bench.sim.add_disk(Path::new("/dev/a"), support::bench::GIB).unwrap();
    assert!(bench.start_pool("p").is_err(), "nobody has told of the disk");
    bench.run(ops::refresh()).unwrap();
    assert!(bench.start_pool("p").unwrap());
}

#[test]
fn a_pool_that_lacks_a_device_says_so() {
    let bench = machine();
    bench.sim.cut_power();
    bench.sim.power_on();
    bench.sim.pull_disk(Path::new("/dev/b")).unwrap();
    let mut bench = Bench::start(bench.sim);
    let error = bench.start_pool("p").unwrap_err();
    assert!(matches!(&error, Error::DevicesMissing { missing, total: 2, .. } if missing.len() == 1), "{error:?}");
}

/// The reason why the only stopped pool is stopped.
fn reason(bench: &Bench) -> String {
    let stopped = bench.stopped();
    assert_eq!(stopped.list().len(), 1, "{stopped:?}");
    stopped.list()[0].reason.as_deref().expect("nobody sets it up now").to_owned()
}

#[test]
fn the_reason_of_a_stopped_pool_is_shown() {
    let mut bench = machine();
    bench.stop_pool("p").unwrap();
    assert_eq!(reason(&bench), "it was stopped by request");
    bench.sim.pull_disk(Path::new("/dev/b")).unwrap();
    let error = bench.start_pool("p").unwrap_err();
    assert_eq!(reason(&bench), error.sentence());
    bench.sim.add_disk(Path::new("/dev/b"), support::bench::GIB).unwrap();
    // Fail a start half-way.
    let device = Role::ThinPool.name(bench.stopped().list()[0].uuid);
    bench.sim.faults().fail_next(CallKind::DmCreate, &device);
    bench.start_pool("p").unwrap_err();
    assert!(reason(&bench).contains(&device), "{}", reason(&bench));
    let stopped = bench.stop_pool("p").unwrap();
    assert!(matches!(stopped, StopOutcome::CleanedUp(_)), "{stopped:?} after a failed start");
    assert_eq!(reason(&bench), "it was stopped by request");
    assert!(matches!(bench.stop_pool("p").unwrap(), StopOutcome::Already));
    assert!(bench.start_pool("p").unwrap());
    assert_eq!(bench.stopped().list().len(), 0);
    bench.stop_pool("p").unwrap();
    assert_eq!(reason(&bench), "it was stopped by request", "what went wrong once is past");

    let mut bench = partly_stopped();
    assert!(
        reason(&bench).starts_with("it was stopped, but some of it could not be taken down: "),
        "{}",
        reason(&bench)
    );
    bench.stop_pool("p").unwrap();
    assert_eq!(reason(&bench), "it was stopped by request");

    // A daemon that starts shows the reason, too.
    let bench = machine();
    bench.sim.cut_power();
    bench.sim.power_on();
    bench.sim.pull_disk(Path::new("/dev/b")).unwrap();
    let bench = Bench::start(bench.sim);
    assert!(reason(&bench).contains("1 of the 2 devices of pool p are missing"), "{}", reason(&bench));
}

#[test]
fn a_pool_of_unknown_name_makes_names_ambiguous() {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    let pool = bench.id("p");
    bench.run(ops::init_cache(pool, vec!["/dev/fast".into()])).unwrap();
    bench.sim.cut_power();
    bench.sim.power_on();
    // The cache device that is left does not hold the name of the pool.
    bench.sim.pull_disk(Path::new("/dev/a")).unwrap();
    let mut bench = Bench::start(bench.sim);
    for error in [bench.start_pool("p").unwrap_err(), bench.stop_pool("p").unwrap_err()] {
        assert!(matches!(&error, Error::UnknownName { nameless, .. } if *nameless == [pool]), "{error:?}");
    }
    assert!(reason(&bench).contains("no device holds pool metadata"), "{}", reason(&bench));
}

/// A request finds a pool neither running nor stopped if the pool starts between the two looks.
#[test]
fn a_pool_that_starts_meanwhile_is_found() {
    let mut bench = machine();
    let Step::Locked(_, look) = ops::stop_pool(by_name("p")) else { panic!("it does not ask for the pool") };
    let rest = look(&bench.engine, Granted::NoPool);
    let stopped = bench.run(rest).unwrap();
    assert!(matches!(stopped, StopOutcome::Done(_)), "{stopped:?}");
}
