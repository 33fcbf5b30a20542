//! Bindings change while other requests rely on them. In every order that a seed gives, the outcome
//! is that of some sequence of the requests.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use stratisd::{
    engine::{
        self,
        encryption::{BindRequest, Kind, RebindRequest, SlotRequest, UnlockMethod},
        metadata::{IntegritySpec, MetadataVersion},
        ops::{self, NewPool},
        request::{Access, Granted, Step},
    },
    platform::{
        DeviceClass, Platform,
        sim::{CallKind, LuksCall},
    },
};
use support::{
    bench::{Bench, name},
    keys::{by_key, by_tang, create, key, machine, set_key, shown, start, tang},
    scheduler::Scheduler,
};

const URL: &str = "http://tang";

/// The key descriptions and the number of Clevis bindings that the pool has after a change.
type Opens = (&'static [&'static str], usize);

struct Change {
    name: &'static str,
    begins_with_clevis: bool,
    ask: fn(&Bench) -> Step<engine::Result<bool>>,
    opens: Opens,
}

const CHANGES: [Change; 5] = [
    Change {
        name: "rebind the key",
        begins_with_clevis: true,
        ask: |bench| ops::rebind(bench.id("p"), RebindRequest::Keyring(key("l")), SlotRequest::Legacy),
        opens: (&["l"], 1),
    },
    Change {
        name: "rebind Clevis",
        begins_with_clevis: true,
        ask: |bench| ops::rebind(bench.id("p"), RebindRequest::Clevis, SlotRequest::Legacy),
        opens: (&["k"], 1),
    },
    Change {
        name: "unbind the key",
        begins_with_clevis: true,
        ask: |bench| ops::unbind(bench.id("p"), Kind::Keyring, SlotRequest::Legacy),
        opens: (&[], 1),
    },
    Change {
        name: "unbind Clevis",
        begins_with_clevis: true,
        ask: |bench| ops::unbind(bench.id("p"), Kind::Clevis, SlotRequest::Legacy),
        opens: (&["k"], 0),
    },
    Change {
        name: "bind Clevis",
        begins_with_clevis: false,
        ask: |bench| ops::bind(bench.id("p"), BindRequest::Clevis(tang(URL)), SlotRequest::Legacy),
        opens: (&["k"], 1),
    },
];

/// Otherwise the new device would get another passphrase than the other devices.
#[test]
fn no_device_is_added_with_another_key() {
    let mut bench = machine();
    create(&mut bench, MetadataVersion::V1, "p", &["/dev/a"], vec![by_key(Some(1), "k")]).unwrap();
    set_key(&mut bench, "k", "another secret");
    let add = |bench: &mut Bench| bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/b".into()]));
    assert!(add(&mut bench).is_err());
    set_key(&mut bench, "k", "secret of k");
    assert_eq!(add(&mut bench).unwrap().len(), 1);
    bench.stop_pool("p").unwrap();
    assert!(start(&mut bench, "p", Some(UnlockMethod::Any), None).unwrap());
}

/// On a closed LUKS device, only the token has the name of the pool.
#[test]
fn a_closed_renamed_pool_shows_its_new_name() {
    let mut bench = machine();
    create(&mut bench, MetadataVersion::V1, "p", &["/dev/a", "/dev/b"], vec![by_key(Some(1), "k")]).unwrap();
    assert!(bench.run(ops::rename_pool(bench.id("p"), name("q"))).unwrap());
    let mut bench = bench.reboot();
    assert!(bench.stopped_pool("p").is_none());
    let told = bench.stopped_pool("q").unwrap().encryption.unwrap();
    assert_eq!(told.keys, [(1, "k".to_owned())], "so that people know which key to set");
    set_key(&mut bench, "k", "secret of k");
    assert!(start(&mut bench, "q", Some(UnlockMethod::Any), None).unwrap());
}

/// Each device of a version 1 pool has its own LUKS2 header. An added device must end up with the
/// bindings of the others.
#[test]
fn added_devices_get_the_final_bindings() {
    for change in &CHANGES {
        for seed in 0..30 {
            let at = format!("{} beside an addition, seed {seed}", change.name);
            let mut bench = machine();
            set_key(&mut bench, "l", "secret of l");
            let mut bindings = vec![by_key(Some(1), "k")];
            bindings.extend(change.begins_with_clevis.then(|| by_tang(Some(2), URL)));
            create(&mut bench, MetadataVersion::V1, "p", &["/dev/a", "/dev/b"], bindings).unwrap();
            let pool = bench.id("p");
            let told = |text: engine::Error| text.sentence();
            let changed = (change.ask)(&bench).map(move |done| done.map_err(told));
            let added = ops::add_data_devices(pool, vec!["/dev/c".into(), "/dev/d".into()]);
            let added = added.map(move |done| done.map(|devices| devices.len() == 2).map_err(told));
            let fast = ops::init_cache(pool, vec!["/dev/fast".into()]);
            let fast = fast.map(move |done| done.map(|devices| devices.len() == 1).map_err(told));
            let mut scheduler = Scheduler::new(bench, seed);
            scheduler.begin("change", changed);
            scheduler.begin("add", added);
            scheduler.begin("cache", fast);
            let results = scheduler.finish();
            assert_eq!(results, [Ok(true), Ok(true), Ok(true)], "{at}:\n{}", scheduler.history.join("\n"));
            let mut bench = scheduler.bench;
            let encryption = shown(&bench, "p");
            assert!(encryption.keys_agree && encryption.clevis_agree, "{at}: {encryption:?}");
            let keys: Vec<&str> = encryption.keys.iter().map(|(_, key)| key.as_str()).collect();
            assert_eq!((&keys[..], encryption.clevis.len()), (change.opens.0, change.opens.1), "{at}");
            let headers = ["/dev/a", "/dev/b", "/dev/c", "/dev/d", "/dev/fast"].map(|path| {
                let header = bench.sim.luks_read(path.as_ref()).unwrap().unwrap();
                (header.keyslots.len(), header.unused.len(), header.tokens.keys().copied().collect::<Vec<_>>())
            });
            assert!(headers.iter().all(|header| *header == headers[0]), "{at}: {headers:?}");
            for token in encryption.keys.iter().map(|(token, _)| *token).chain(encryption.clevis.iter().map(|c| c.0)) {
                bench.stop_pool("p").unwrap();
                assert!(start(&mut bench, "p", Some(UnlockMethod::Token(token)), None).unwrap(), "{at}: by {token}");
            }
            bench.check_nothing_left(&at);
        }
    }
}

/// Runs a chain. Each part of a parallel step gets its own thread.
fn run_at_once<T>(bench: &mut Bench, mut next: Step<T>) -> T {
    loop {
        next = match next {
            Step::Done(value) => return value,
            Step::Blocking(_, step) | Step::Background(step) => step(&bench.engine),
            Step::Parallel(parts, join) => {
                let engine = &bench.engine;
                let results = std::thread::scope(|scope| {
                    let threads: Vec<_> = parts.into_iter().map(|part| scope.spawn(|| part(engine))).collect();
                    threads.into_iter().map(|thread| thread.join().ok()).collect()
                });
                join(engine, results)
            }
            Step::Locked(Access::Table(_), step) => step(&bench.engine, Granted::Table(&mut bench.pools)),
            Step::Locked(Access::Pool(which, _), step) => {
                let pool = bench.pools.resolve(&which).and_then(|pool| bench.pools.0.get_mut(&pool));
                step(&bench.engine, pool.map_or(Granted::NoPool, Granted::Write))
            }
            Step::Parked(..) | Step::Linked(..) => panic!("nothing else is under way"),
        };
    }
}

/// Formerly the devices were formatted one after the other. With two hundred devices, key
/// derivation took a second or more for each.
#[test]
fn luks_devices_are_made_side_by_side() {
    const HANG: Duration = Duration::from_secs(60);
    let mut bench = machine();
    let sim = bench.sim.clone();
    let meet = |bench: &mut Bench, count: usize, act: &dyn Fn(&mut Bench)| {
        let gate = sim.delay(CallKind::Luks(LuksCall::Format), "");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let met = gate.wait_for(count, HANG);
                gate.open();
                assert!(met, "fewer than {count} are made at once");
            });
            act(bench);
        });
    };
    meet(&mut bench, 3, &|bench| {
        let new = NewPool {
            name: name("p"),
            devices: ["/dev/a", "/dev/b", "/dev/c"].map(PathBuf::from).to_vec(),
            integrity: IntegritySpec::default(),
            version: MetadataVersion::V1,
            bindings: vec![by_key(Some(1), "k")],
        };
        assert!(run_at_once(bench, ops::create_pool(new)).unwrap().is_some());
    });
    meet(&mut bench, 2, &|bench| {
        let more = ["/dev/d", "/dev/e"].map(PathBuf::from).to_vec();
        let added = run_at_once(bench, ops::add_data_devices(bench.id("p"), more)).unwrap();
        assert_eq!(added.len(), 2);
    });
    bench.check_nothing_left("with five devices");
    // If one device fails, all fail.
    bench.sim.faults().fail_next(CallKind::Luks(LuksCall::Format), "/dev/g");
    let more = ["/dev/f", "/dev/g", "/dev/h"].map(PathBuf::from).to_vec();
    bench.run(ops::add_data_devices(bench.id("p"), more)).unwrap_err();
    for device in ["/dev/f", "/dev/g", "/dev/h"] {
        let class = bench.sim.find_device(Path::new(device)).unwrap().class;
        assert_eq!(class, DeviceClass::Unowned, "{device}");
    }
    bench.check_nothing_left("after a failure");
}
