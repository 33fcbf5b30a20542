//! Re-encryption jobs under way: what other requests may do, and how a job is interrupted, fails
//! and resumes.

use std::{collections::BTreeSet, path::Path, time::Duration};

use stratisd::{
    base::{
        pool_ref::PoolRef,
        units::{Bytes, Sectors},
    },
    engine::{
        Engine, Error, Result,
        dm_names::Role,
        encryption::{BindRequest, Kind, RebindRequest, SlotRequest, UnlockMethod},
        metadata::MetadataVersion,
        ops,
        request::Step,
    },
    platform::{
        DeviceAction, DeviceEvent, Platform,
        luks::{DataEncryption, ReencryptionMode},
        sim::{CallKind, LuksCall, Sim, Trouble},
    },
};
use support::{
    bench::{Bench, GIB, name},
    keys::{by_key, by_tang, create, key, set_key, shown, start, tang, unset_key},
};

const V1: MetadataVersion = MetadataVersion::V1;
pub const V2: MetadataVersion = MetadataVersion::V2;
pub const URL: &str = "http://tang";
pub const SMALL: &str = "/dev/small";
/// The longest wait for a thread to reach a point.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Every job, and the metadata version of its pool.
pub const WORKS: [(ReencryptionMode, MetadataVersion); 4] = [
    (ReencryptionMode::Encrypt, V2),
    (ReencryptionMode::Reencrypt, V2),
    (ReencryptionMode::Reencrypt, V1),
    (ReencryptionMode::Decrypt, V2),
];

/// A pool with a mark in a filesystem, encrypted if the job needs that.
pub fn pool(sim: Sim, work: ReencryptionMode, version: MetadataVersion) -> Bench {
    let mut bench = Bench::start(sim);
    set_key(&mut bench, "k", "secret of k");
    set_key(&mut bench, "l", "secret of l");
    bench.sim.add_disk(Path::new(SMALL), Sectors(4 * GIB.0)).unwrap();
    let bindings = match work {
        ReencryptionMode::Encrypt => vec![],
        ReencryptionMode::Reencrypt | ReencryptionMode::Decrypt => vec![by_key(Some(1), "k"), by_tang(Some(2), URL)],
    };
    create(&mut bench, version, "p", &[SMALL, "/dev/b"], bindings).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    bench.mark("p", "f", 7);
    bench
}

pub fn ask(bench: &Bench, work: ReencryptionMode) -> Step<Result<bool>> {
    match work {
        ReencryptionMode::Encrypt => ops::encrypt_pool(bench.id("p"), vec![by_key(None, "k"), by_tang(None, URL)]),
        ReencryptionMode::Reencrypt => ops::reencrypt_pool(bench.id("p")),
        ReencryptionMode::Decrypt => ops::decrypt_pool(bench.id("p")),
    }
}

/// Runs the chain up to the first matching step, and returns the rest.
pub fn until<T: 'static>(next: Step<T>, is_meant: fn(&Step<T>) -> bool) -> Step<Step<T>> {
    if is_meant(&next) {
        return Step::Done(next);
    }
    match next {
        Step::Done(value) => Step::Done(Step::Done(value)),
        Step::Locked(access, step) => {
            Step::Locked(access, Box::new(move |engine, granted| until(step(engine, granted), is_meant)))
        }
        Step::Blocking(pace, step) => Step::Blocking(pace, Box::new(move |engine| until(step(engine), is_meant))),
        Step::Linked(links, limit, step) => {
            Step::Linked(links, limit, Box::new(move |engine, missing| until(step(engine, missing), is_meant)))
        }
        Step::Background(step) => Step::Background(Box::new(move |engine| until(step(engine), is_meant))),
        Step::Parallel(parts, join) => {
            Step::Parallel(parts, Box::new(move |engine, results| until(join(engine, results), is_meant)))
        }
        Step::Parked(wait, next) => Step::Parked(wait, Box::new(until(*next, is_meant))),
    }
}

/// Runs a job up to its background step.
pub fn begun(bench: &mut Bench, work: ReencryptionMode) -> Step<Result<bool>> {
    let asked = ask(bench, work);
    let rest = bench.run(until(asked, |next| matches!(next, Step::Background(_))));
    assert!(matches!(rest, Step::Background(_)), "it has not come so far");
    rest
}

/// Runs another request until it waits for the job to stop.
pub fn waiting<T: 'static>(bench: &mut Bench, asked: Step<T>) -> Step<T> {
    let rest = bench.run(until(asked, |next| matches!(next, Step::Parked(..))));
    let Step::Parked(_, rest) = rest else { panic!("it does not wait") };
    *rest
}

/// Runs the background step of the job, and returns the rest.
pub fn long<T>(engine: &Engine, next: Step<T>) -> Step<T> {
    let Step::Background(step) = next else { panic!("it is a step that takes hours") };
    step(engine)
}

pub fn mark(bench: &Bench) -> u8 {
    bench.mark_of(bench.id("p"), bench.filesystem("p", "f"))
}

fn device_at(bench: &Bench, path: &str) -> stratisd::base::ids::DevUuid {
    let pool = bench.pool("p").unwrap();
    pool.devices.values().find(|device| device.physical == Path::new(path)).unwrap().uuid
}

/// Recorded size of the small device in GiB, and its new size, both without the LUKS2 header.
fn sizes(bench: &Bench) -> (u64, Option<u64>) {
    let pool = bench.pool("p").unwrap();
    let device = &pool.devices[&device_at(bench, SMALL)];
    let up = |size: Sectors| size.0.div_ceil(GIB.0);
    (up(device.size), device.new_size.map(up))
}

fn event(bench: &mut Bench, action: DeviceAction, path: &str) {
    let device = bench.sim.find_device(Path::new(path)).ok().filter(|_| action != DeviceAction::Remove);
    bench.run(ops::device_event(DeviceEvent { action, path: path.into(), device, unlinked: None }));
}

pub fn is_done(bench: &Bench, work: ReencryptionMode) -> bool {
    let pool = bench.pool("p").unwrap();
    match work {
        ReencryptionMode::Encrypt => pool.encryption.is_some() && pool.reencryption.is_none(),
        ReencryptionMode::Reencrypt => pool.last_reencrypt.is_some() && pool.reencryption.is_none(),
        ReencryptionMode::Decrypt => pool.encryption.is_none() && pool.reencryption.is_none(),
    }
}

/// Found in review: events of devices that claim to belong to the pool waited for the end of the
/// job. No event may wait, or events would not be handled for hours. (The bench panics when a chain
/// waits.)
#[test]
fn device_events_do_not_wait_for_a_job() {
    for (work, version) in WORKS {
        let mut bench = pool(Sim::builder().build(), work, version);
        let at = format!("{work:?} {version:?}");
        // A device that claims to belong to the pool but was never added.
        let copy = bench.sim.durable(Path::new(SMALL), 0..20 << 20);
        let rest = begun(&mut bench, work);
        bench.sim.add_disk(Path::new("/dev/clone"), Sectors(4 * GIB.0)).unwrap();
        bench.sim.put(Path::new("/dev/clone"), 0, &copy).unwrap();
        event(&mut bench, DeviceAction::Add, "/dev/clone");
        event(&mut bench, DeviceAction::Remove, "/dev/clone");
        bench.sim.resize_disk(Path::new(SMALL), Sectors(8 * GIB.0)).unwrap();
        event(&mut bench, DeviceAction::Change, SMALL);
        assert_eq!(sizes(&bench), (4, Some(8)), "{at}: it is shown at once");
        let grow = ops::grow_device(bench.id("p"), device_at(&bench, SMALL));
        assert!(matches!(bench.run(grow), Err(Error::ReencryptionRunning { .. })), "{at}");
        event(&mut bench, DeviceAction::Remove, SMALL);
        event(&mut bench, DeviceAction::Add, SMALL);
        assert!(bench.run(rest).unwrap(), "{at}");
        assert_eq!(sizes(&bench), (4, Some(8)), "{at}: nor is it forgotten");
        let grow = ops::grow_device(bench.id("p"), device_at(&bench, SMALL));
        assert!(bench.run(grow).unwrap(), "{at}");
        assert_eq!((sizes(&bench), mark(&bench)), ((8, None), 7), "{at}");
        bench.check_nothing_left(&at);
    }
}

/// Growing or adding a device needs the new volume key.
#[test]
fn a_reencrypted_pool_takes_devices_and_grows() {
    for version in [V1, V2] {
        let mut bench = pool(Sim::builder().build(), ReencryptionMode::Reencrypt, version);
        let pool = bench.id("p");
        assert!(bench.run(ops::reencrypt_pool(pool)).unwrap());
        bench.sim.add_disk(Path::new("/dev/more"), Sectors(4 * GIB.0)).unwrap();
        assert_eq!(bench.run(ops::add_data_devices(pool, vec!["/dev/more".into()])).unwrap().len(), 1);
        let added = bench.pool("p").unwrap();
        for path in [SMALL, "/dev/more"] {
            bench.sim.resize_disk(Path::new(path), Sectors(8 * GIB.0)).unwrap();
            event(&mut bench, DeviceAction::Change, path);
            assert!(bench.run(ops::grow_device(pool, device_at(&bench, path))).unwrap(), "{version:?} {path}");
        }
        bench.run(ops::check_now(pool)).unwrap();
        let grown = bench.pool("p").unwrap();
        assert_eq!(grown.total.0, added.total.0 + 8 * GIB.0, "{version:?}");
        assert!(bench.run(ops::reencrypt_pool(pool)).unwrap(), "{version:?}: once more, with the new device");
        for method in [UnlockMethod::Token(1), UnlockMethod::Token(2)] {
            bench.stop_pool("p").unwrap();
            assert!(start(&mut bench, "p", Some(method), None).unwrap(), "{version:?} {method:?}");
            assert_eq!((mark(&bench), bench.pool("p").unwrap().total), (7, grown.total), "{version:?} {method:?}");
        }
        bench.check_nothing_left("at the end");
    }
}

/// The pool might use a LUKS device past the end on record if it is opened with a larger size than
/// recorded.
#[test]
fn an_unrecorded_growth_is_taken_back() {
    let mut bench = pool(Sim::builder().build(), ReencryptionMode::Reencrypt, V1);
    let (pool, device) = (bench.id("p"), device_at(&bench, SMALL));
    let opened = bench.sim.dm_node(&stratisd::engine::dm_names::opened_device(device));
    let size = |bench: &Bench| bench.sim.geometry(&opened).unwrap().size;
    let before = size(&bench);
    bench.sim.resize_disk(Path::new(SMALL), Sectors(8 * GIB.0)).unwrap();
    event(&mut bench, DeviceAction::Change, SMALL);
    let node = format!("/dev/dm-{}", bench.sim.find_device(&opened).unwrap().number.minor);
    bench.sim.faults().fail_next(CallKind::Write, &node);
    assert!(bench.run(ops::grow_device(pool, device)).is_err());
    assert_eq!(size(&bench), before);
    bench.check_nothing_left("a growth that failed");
    assert!(bench.run(ops::grow_device(pool, device)).unwrap());
    assert!(size(&bench) > before);
}

/// Requests that would change LUKS devices or the devices below them.
pub fn other_requests(bench: &Bench) -> Vec<(&'static str, Step<Result<()>>)> {
    let pool = bench.id("p");
    let unit = |chain: Step<Result<bool>>| chain.map(|result| result.map(drop));
    let added = |chain: Step<Result<Vec<_>>>| chain.map(|result| result.map(drop));
    vec![
        ("bind", unit(ops::bind(pool, BindRequest::Clevis(tang("http://other")), SlotRequest::Free))),
        ("unbind", unit(ops::unbind(pool, Kind::Clevis, SlotRequest::Legacy))),
        ("rebind", unit(ops::rebind(pool, RebindRequest::Keyring(key("l")), SlotRequest::Legacy))),
        ("add a device", added(ops::add_data_devices(pool, vec!["/dev/more".into()]))),
        ("begin a cache", added(ops::init_cache(pool, vec!["/dev/fast".into()]))),
        ("grow a device", unit(ops::grow_device(pool, device_at(bench, SMALL)))),
    ]
}

#[test]
fn requests_during_a_job_are_refused_at_once() {
    for (work, version) in WORKS {
        let mut bench = pool(Sim::builder().build(), work, version);
        let rest = begun(&mut bench, work);
        for (what, request) in other_requests(&bench) {
            let error = bench.run(request).unwrap_err();
            assert!(
                matches!(error, Error::ReencryptionRunning { .. }),
                "{work:?} {version:?}, {what}: {}",
                error.sentence()
            );
            assert!(error.sentence().contains("wait until that has finished"), "{}", error.sentence());
        }
        for other in [ReencryptionMode::Reencrypt, ReencryptionMode::Decrypt] {
            let asked = ask(&bench, other);
            assert!(
                matches!(bench.run(asked), Err(Error::ReencryptionRunning { .. })),
                "{work:?} {version:?}, {other:?}"
            );
        }
        let renamed = bench.run(ops::rename_pool(bench.id("p"), name("q")));
        match version {
            // In version 1 the LUKS2 headers hold the name of the pool.
            V1 => assert!(matches!(renamed, Err(Error::ReencryptionRunning { .. })), "{renamed:?}"),
            V2 => assert!(bench.run(ops::rename_pool(bench.id("q"), name("p"))).unwrap()),
        }
        assert!(bench.run(rest).unwrap());
        assert!(is_done(&bench, work) && mark(&bench) == 7, "{work:?} {version:?}");
        for (what, request) in other_requests(&bench) {
            let done = bench.run(request);
            let is_right = match (what, work, version) {
                ("bind" | "unbind" | "rebind", ReencryptionMode::Decrypt, _) => {
                    matches!(done, Err(Error::NothingToOpen { .. }))
                }
                // In version 1 a second Clevis binding may be refused.
                ("bind", _, V1) => true,
                _ => done.is_ok(),
            };
            assert!(is_right, "{work:?} {version:?}, {what}: {done:?}");
        }
    }
}

/// A stop at this moment leaves the pool as it was, and the next start finds it so. Only an
/// encryption, which has already formatted its LUKS device, resumes.
#[test]
fn a_job_can_be_interrupted_before_it_begins() {
    for (work, version) in WORKS {
        let mut bench = pool(Sim::builder().build(), work, version);
        let at = format!("{work:?} {version:?}");
        let before = bench.pool("p").unwrap().encryption.clone();
        let rest = begun(&mut bench, work);
        let stop = waiting(&mut bench, ops::stop_pool(PoolRef::Name(name("p"))));
        let interrupted = match work {
            ReencryptionMode::Encrypt => waiting(&mut bench, rest),
            _ => Step::Done(bench.run(rest)),
        };
        bench.run(stop).unwrap();
        let error = bench.run(interrupted).unwrap_err();
        match work {
            ReencryptionMode::Encrypt => assert!(matches!(error, Error::Interrupted { .. }), "{at}: {error:?}"),
            _ => assert!(matches!(error, Error::NotBegun { .. }), "{at}: {error:?}"),
        }
        assert!(bench.sim.leftovers().is_empty(), "{at}: {:?}", bench.sim.leftovers());
        assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap(), "{at}");
        assert_eq!(mark(&bench), 7, "{at}");
        match work {
            ReencryptionMode::Encrypt => assert!(is_done(&bench, work), "{at}"),
            _ => {
                let pool = bench.pool("p").unwrap();
                assert_eq!((&pool.encryption, &pool.reencryption, pool.last_reencrypt), (&before, &None, None), "{at}");
                let asked = ask(&bench, work);
                assert!(bench.run(asked).unwrap(), "{at}: again");
                assert!(is_done(&bench, work) && mark(&bench) == 7, "{at}");
            }
        }
        bench.check_nothing_left(&at);
    }
}

/// Stops a job between two devices because another request needs the pool exclusively. Returns the
/// rest of both.
fn interrupted_between<T: Send + 'static>(bench: &mut Bench, other: Step<T>) -> (Step<T>, Step<Result<bool>>) {
    let devices: Vec<_> = bench.pool("p").unwrap().devices.values().map(|device| device.physical.clone()).collect();
    let rest = begun(bench, ReencryptionMode::Reencrypt);
    let gate = bench.sim.delay(CallKind::Luks(LuksCall::Reencrypt), &devices[1].to_string_lossy());
    std::thread::scope(|scope| {
        let Bench { engine, pools, .. } = bench;
        let engine = &*engine;
        let worker = scope.spawn(move || long(engine, rest));
        assert!(gate.wait_for(1, LIMIT), "the second device is not come to");
        let other = pools.run(engine, until(other, |next| matches!(next, Step::Parked(..))));
        let Step::Parked(_, other) = other else { panic!("the other does not wait") };
        gate.open();
        (*other, worker.join().unwrap())
    })
}

/// Found in review: the error said that nothing had changed, although one of two devices already
/// had its new volume key.
#[test]
fn a_job_interrupted_between_devices_has_begun() {
    for by in ["a stop", "a new look"] {
        let mut bench = pool(Sim::builder().build(), ReencryptionMode::Reencrypt, V1);
        let rest = match by {
            "a stop" => {
                let stop = ops::stop_pool(PoolRef::Name(name("p")));
                let (stop, rest) = interrupted_between(&mut bench, stop);
                bench.run(stop).unwrap();
                rest
            }
            _ => {
                let (refresh, rest) = interrupted_between(&mut bench, ops::refresh());
                bench.run(refresh).unwrap();
                rest
            }
        };
        let error = bench.run(rest).unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{by}: {error:?}");
        for method in [UnlockMethod::Token(1), UnlockMethod::Token(2)] {
            if bench.pool("p").is_some() {
                bench.stop_pool("p").unwrap();
            }
            assert!(start(&mut bench, "p", Some(method), None).unwrap(), "{by}");
            assert_eq!(mark(&bench), 7, "{by}");
        }
        assert!(bench.run(ops::reencrypt_pool(bench.id("p"))).unwrap(), "{by}: another request makes new keys");
        assert!(is_done(&bench, ReencryptionMode::Reencrypt) && mark(&bench) == 7, "{by}");
        bench.check_nothing_left(by);
    }
}

/// The devices below the LUKS devices of the pool.
pub fn luks_devices(bench: &Bench, version: MetadataVersion) -> Vec<std::path::PathBuf> {
    match version {
        V1 => vec![SMALL.into(), "/dev/b".into()],
        V2 => vec![bench.sim.dm_node(&Role::Cache.name(bench.id("p")))],
    }
}

/// The keyslots of each LUKS device, empty for a device without a LUKS2 header.
pub fn keyslots(bench: &Bench, version: MetadataVersion) -> Vec<BTreeSet<u32>> {
    let header = |path: std::path::PathBuf| bench.sim.header(&path);
    luks_devices(bench, version)
        .into_iter()
        .map(|path| header(path).map_or_else(BTreeSet::new, |found| found.keyslots))
        .collect()
}

/// A job interrupted in its first hot zone: data has changed, but no byte counts as done.
#[test]
fn a_job_killed_in_its_first_part_resumes() {
    for (work, version) in WORKS {
        let found = (0..60).find_map(|step| {
            let mut bench = pool(Sim::builder().hot_zone(1).build(), work, version);
            let before = keyslots(&bench, version);
            let rest = begun(&mut bench, work);
            let paths = luks_devices(&bench, version);
            bench.sim.faults().kill_at(bench.sim.steps() + step);
            assert!(bench.run(rest).is_err());
            bench.sim.faults().clear();
            let is_hot = |path: &std::path::PathBuf| {
                let state = bench.sim.header(path).unwrap().state;
                state == DataEncryption::Unfinished { mode: work, done: Bytes(1) }
            };
            paths.iter().any(is_hot).then_some((bench, before))
        });
        let at = format!("{work:?} {version:?}");
        let (bench, before) = found.unwrap_or_else(|| panic!("{at}: no step leaves the first part hot"));
        // A daemon that finds the pool unlocked completes the job. A later start must unlock
        // the pool.
        let disks = bench.sim.clone();
        let mut bench = Bench::start(disks);
        assert!(is_done(&bench, work), "{at}: {:?}", bench.pool("p").unwrap().reencryption);
        assert!(bench.pool("p").unwrap().reencryption.is_none(), "{at}");
        if work == ReencryptionMode::Reencrypt {
            // Each device has new keyslots, even one that the killed daemon had only prepared.
            for (before, now) in before.iter().zip(keyslots(&bench, version)) {
                assert!(!now.is_empty() && now.is_disjoint(before), "{at}: {before:?} {now:?}");
            }
        }
        assert_eq!(mark(&bench), 7, "{at}");
        bench.check_nothing_left(&at);
        bench.stop_pool("p").unwrap();
        let method = (work != ReencryptionMode::Decrypt).then_some(UnlockMethod::Any);
        assert!(start(&mut bench, "p", method, None).unwrap(), "{at}");
        assert_eq!(mark(&bench), 7, "{at}");
    }
}

/// A daemon was killed during a job, and the next daemon has no key to resume it.
fn halted(work: ReencryptionMode, version: MetadataVersion) -> Bench {
    let mut bench = pool(Sim::builder().build(), work, version);
    let rest = begun(&mut bench, work);
    bench.sim.faults().kill_at(bench.sim.steps() + 60);
    assert!(bench.run(rest).is_err());
    bench.sim.faults().clear();
    unset_key(&mut bench, "k");
    bench.sim.set_tang(URL, Some(Trouble::Down));
    Bench::start(bench.sim)
}

/// Found in review: the pool was shown as being re-encrypted although its job no longer ran.
#[test]
fn a_job_without_its_key_waits_and_resumes() {
    for (work, version) in WORKS {
        let at = format!("{work:?} {version:?}");
        let mut bench = halted(work, version);
        let pool = bench.pool("p").unwrap();
        let why = pool.reencryption.as_ref().and_then(|work| work.error.clone());
        assert!(why.as_ref().is_some_and(|why| why.contains("key k is not in the kernel's keyring")), "{at}: {why:?}");
        for (what, request) in other_requests(&bench) {
            let error = bench.run(request).unwrap_err();
            assert!(matches!(error, Error::ReencryptionStopped { .. }), "{at}, {what}: {}", error.sentence());
            assert!(error.sentence().contains("the job stopped"), "{}", error.sentence());
        }
        set_key(&mut bench, "l", "another");
        assert!(!is_done(&bench, work), "{at}: that opens nothing");
        set_key(&mut bench, "k", "wrong");
        assert!(bench.pool("p").unwrap().reencryption.as_ref().is_some_and(|work| work.error.is_some()), "{at}");
        set_key(&mut bench, "k", "secret of k");
        assert!(is_done(&bench, work), "{at}: {:?}", bench.pool("p").unwrap().reencryption);
        let pool = bench.pool("p").unwrap();
        assert!(pool.reencryption.is_none(), "{at}: {:?}", pool.reencryption);
        assert_eq!(pool.volume_key_loaded, version == V2 && work != ReencryptionMode::Decrypt, "{at}");
        assert_eq!(mark(&bench), 7, "{at}");
        bench.check_nothing_left(&at);
    }
}

/// A refresh also retries jobs that the daemon has given up.
#[test]
fn a_refresh_retries_a_job_given_up() {
    for (work, version) in WORKS {
        let at = format!("{work:?} {version:?}");
        let mut bench = halted(work, version);
        bench.run(ops::refresh()).unwrap();
        assert!(
            bench.pool("p").unwrap().reencryption.as_ref().is_some_and(|work| work.error.is_some()),
            "{at}: no key"
        );
        bench.sim.set_tang(URL, None);
        bench.run(ops::refresh()).unwrap();
        assert!(is_done(&bench, work) && mark(&bench) == 7, "{at}");
        bench.check_nothing_left(&at);
    }
}

/// A user who has fixed the cause, in whatever way, requests the job again.
#[test]
fn a_job_given_up_resumes_on_request() {
    for (work, version) in WORKS {
        let mut bench = halted(work, version);
        bench.sim.set_tang(URL, None);
        let asked = ask(&bench, work);
        assert!(bench.run(asked).unwrap(), "{work:?} {version:?}");
        assert!(is_done(&bench, work) && mark(&bench) == 7, "{work:?} {version:?}");
    }
}

/// A panic during a job ends the job, and the pool shows that.
#[test]
fn a_job_that_panicked_resumes_on_request() {
    let mut bench = pool(Sim::builder().build(), ReencryptionMode::Reencrypt, V2);
    let rest = begun(&mut bench, ReencryptionMode::Reencrypt);
    bench.sim.faults().panic_at(bench.sim.steps() + 60);
    let engine = &bench.engine;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(long(engine, rest))));
    assert!(panicked.is_err());
    // The dispatcher does this after every step.
    bench.run(Step::<()>::Done(()));
    let request = ops::unbind(bench.id("p"), Kind::Clevis, SlotRequest::Legacy);
    let error = bench.run(request).unwrap_err();
    assert!(matches!(error, Error::ReencryptionStopped { .. }), "{}", error.sentence());
    let asked = ask(&bench, ReencryptionMode::Reencrypt);
    assert!(bench.run(asked).unwrap());
    assert!(is_done(&bench, ReencryptionMode::Reencrypt) && mark(&bench) == 7);
    assert_eq!(shown(&bench, "p").keys, [(1, "k".to_owned())]);
}

/// Resuming the unfinished job would do something else than the caller requested.
#[test]
fn another_job_is_refused_while_one_is_unfinished() {
    let mut bench = halted(ReencryptionMode::Reencrypt, V2);
    // The job could go on now.
    bench.sim.set_tang(URL, None);
    let refused = bench.run(ops::decrypt_pool(bench.id("p")));
    assert!(matches!(refused, Err(Error::ReencryptionStopped { .. })), "{refused:?}");
    set_key(&mut bench, "k", "secret of k");
    assert!(is_done(&bench, ReencryptionMode::Reencrypt) && shown(&bench, "p").keys.len() == 1);
    assert_eq!(mark(&bench), 7);
}
