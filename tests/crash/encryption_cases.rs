//! The operations on encrypted pools, except re-encryption jobs, which are in `online`.

use std::path::Path;

use stratisd::{
    base::{pool_ref::PoolRef, units::Sectors},
    engine::{
        Result,
        encryption::{BindRequest, Kind, NewBinding, RebindRequest, SlotRequest, UnlockMethod},
        metadata::MetadataVersion,
        ops,
    },
    platform::sim::Sim,
};
use support::{
    bench::{Bench, GIB, name},
    keys::{by_key, by_tang, create, key, secret, set_key, start, tang, unset_key},
    state::State,
};

use crate::{
    Strike, Then,
    cases::{self, BOTH, Case},
};

const V1: MetadataVersion = MetadataVersion::V1;
const V2: MetadataVersion = MetadataVersion::V2;

const URL: &str = "http://tang";

/// Sets all keys. Keys that are already set stay.
pub fn set_keys(bench: &mut Bench) {
    for description in ["k", "l"] {
        set_key(bench, description, &format!("secret of {description}"));
    }
}

fn keys_only(bench: &mut Bench, _: MetadataVersion) {
    set_keys(bench);
}

fn k() -> NewBinding {
    by_key(Some(1), "k")
}

fn t() -> NewBinding {
    by_tang(Some(2), URL)
}

fn made(bench: &mut Bench, version: MetadataVersion, bindings: Vec<NewBinding>) {
    set_keys(bench);
    create(bench, version, "p", &["/dev/a", "/dev/b"], bindings).expect("the pool can be created");
    bench.create_filesystems("p", &["f"]).expect("the filesystem can be created");
    bench.mark("p", "f", 7);
}

/// A pool with a key and a Tang server, and a filesystem with a mark in it.
pub fn with_both(bench: &mut Bench, version: MetadataVersion) {
    made(bench, version, vec![k(), t()]);
}

fn with_key(bench: &mut Bench, version: MetadataVersion) {
    made(bench, version, vec![k()]);
}

fn with_tang(bench: &mut Bench, version: MetadataVersion) {
    made(bench, version, vec![t()]);
}

fn empty(bench: &mut Bench, version: MetadataVersion) {
    set_keys(bench);
    create(bench, version, "p", &["/dev/a", "/dev/b"], vec![k(), t()]).expect("the pool can be created");
}

fn stopped(bench: &mut Bench, version: MetadataVersion) {
    with_both(bench, version);
    cases::stop(bench, "p").expect("the pool can be stopped");
}

/// A pool on two devices, with a cache on a third.
pub fn cached(bench: &mut Bench, version: MetadataVersion) {
    with_both(bench, version);
    bench.run(ops::init_cache(bench.id("p"), vec!["/dev/fast".into()])).expect("a cache can be begun");
}

/// A pool on a disk that has grown.
fn resized(bench: &mut Bench, version: MetadataVersion) {
    set_keys(bench);
    let disk = Path::new("/dev/small");
    bench.sim.add_disk(disk, Sectors(4 * GIB.0)).expect("a disk can be plugged in");
    create(bench, version, "p", &["/dev/small"], vec![k(), t()]).expect("the pool can be created");
    bench.create_filesystems("p", &["f"]).expect("the filesystem can be created");
    bench.mark("p", "f", 7);
    bench.run(ops::check_now(bench.id("p"))).expect("the pool can be checked");
    bench.sim.resize_disk(disk, Sectors(8 * GIB.0)).expect("the disk is there");
}

/// The device of a pool with this path.
fn device_at(bench: &Bench, path: &str) -> stratisd::base::ids::DevUuid {
    let pool = bench.pool("p").expect("the pool runs");
    let found = pool.devices.values().find(|device| device.physical == Path::new(path));
    found.expect("the device is the pool's").uuid
}

fn made_of(bench: &mut Bench, version: MetadataVersion, bindings: Vec<NewBinding>) -> Result<()> {
    create(bench, version, "p", &["/dev/a", "/dev/b"], bindings).map(drop)
}

fn other_pool(bench: &mut Bench) -> Result<()> {
    create(bench, V1, "other", &["/dev/x"], vec![k()]).map(drop)
}

fn one_more(bench: &mut Bench) -> Result<()> {
    bench.create_filesystems("p", &["one-more"]).map(drop)
}

/// Unlocks the pool by each of its bindings, and creates a filesystem in it.
fn by_each(bench: &mut Bench) -> Result<()> {
    let pool = bench.pool("p").expect("the pool runs");
    let shown = pool.encryption.clone().expect("it is encrypted");
    let tokens = shown.keys.iter().map(|(token, _)| *token).chain(shown.clevis.iter().map(|(token, ..)| *token));
    for token in tokens {
        cases::stop(bench, "p")?;
        start(bench, "p", Some(UnlockMethod::Token(token)), None)?;
    }
    assert_eq!(bench.pool("p").expect("it has been started").encryption, Some(shown));
    one_more(bench)
}

fn start_again(bench: &mut Bench) -> Result<()> {
    start(bench, "p", Some(UnlockMethod::Any), None)?;
    by_each(bench)
}

const fn creation(name: &'static str, versions: &'static [MetadataVersion], act: fn(&mut Bench) -> Result<()>) -> Case {
    Case { name, versions, then: Then::Look, prepare: keys_only, act, next: other_pool }
}

const fn change(
    name: &'static str,
    prepare: fn(&mut Bench, MetadataVersion),
    act: fn(&mut Bench) -> Result<()>,
) -> Case {
    Case { name, versions: BOTH, then: Then::Look, prepare, act, next: by_each }
}

/// The operations on encrypted pools.
pub const ENCRYPTION_CASES: &[Case] = &[
    creation("create an encrypted pool with a key", &[V2], |bench| made_of(bench, V2, vec![k()])),
    creation("create an encrypted pool with a key and Clevis", &[V2], |bench| made_of(bench, V2, vec![k(), t()])),
    creation("create an encrypted pool with Clevis", &[V2], |bench| made_of(bench, V2, vec![t()])),
    creation("create an encrypted pool with a key", &[V1], |bench| made_of(bench, V1, vec![k()])),
    creation("create an encrypted pool with a key and Clevis", &[V1], |bench| made_of(bench, V1, vec![k(), t()])),
    creation("create an encrypted pool with Clevis", &[V1], |bench| made_of(bench, V1, vec![t()])),
    change("bind a key", with_tang, |bench| {
        bench.run(ops::bind(bench.id("p"), BindRequest::Keyring(key("k")), SlotRequest::Legacy)).map(drop)
    }),
    change("bind Clevis", with_key, |bench| {
        bench.run(ops::bind(bench.id("p"), BindRequest::Clevis(tang(URL)), SlotRequest::Legacy)).map(drop)
    }),
    change("unbind a key", with_both, |bench| {
        bench.run(ops::unbind(bench.id("p"), Kind::Keyring, SlotRequest::Legacy)).map(drop)
    }),
    change("unbind Clevis", with_both, |bench| {
        bench.run(ops::unbind(bench.id("p"), Kind::Clevis, SlotRequest::Legacy)).map(drop)
    }),
    change("rebind a key", with_both, |bench| {
        bench.run(ops::rebind(bench.id("p"), RebindRequest::Keyring(key("l")), SlotRequest::Legacy)).map(drop)
    }),
    change("rebind the only key", with_key, |bench| {
        bench.run(ops::rebind(bench.id("p"), RebindRequest::Keyring(key("l")), SlotRequest::Legacy)).map(drop)
    }),
    change("rebind Clevis", with_both, |bench| {
        bench.run(ops::rebind(bench.id("p"), RebindRequest::Clevis, SlotRequest::Legacy)).map(drop)
    }),
    change("start an encrypted pool by its key", stopped, |bench| {
        start(bench, "p", Some(UnlockMethod::Token(1)), None).map(drop)
    }),
    change("start an encrypted pool by Clevis", stopped, |bench| {
        start(bench, "p", Some(UnlockMethod::Token(2)), None).map(drop)
    }),
    change("start an encrypted pool by a passphrase", stopped, |bench| {
        start(bench, "p", Some(UnlockMethod::Any), Some("secret of k")).map(drop)
    }),
    Case {
        name: "start an encrypted pool without its cache",
        versions: BOTH,
        then: Then::Look,
        prepare: |bench, version| {
            cached(bench, version);
            cases::stop(bench, "p").expect("the pool can be stopped");
        },
        act: |bench| {
            let pool = PoolRef::Name(name("p"));
            bench.run(ops::start_pool(pool, ops::UnlockOptions::any(), ops::CacheTier::Drop)).map(drop)
        },
        next: by_each,
    },
    Case {
        name: "stop an encrypted pool",
        versions: BOTH,
        then: Then::Look,
        prepare: with_both,
        act: |bench| cases::stop(bench, "p"),
        next: start_again,
    },
    Case {
        name: "destroy an encrypted pool",
        versions: BOTH,
        then: Then::Look,
        prepare: empty,
        act: |bench| bench.run(ops::destroy_pool(bench.id("p"))).map(drop),
        next: other_pool,
    },
    Case {
        name: "add two data devices to an encrypted pool",
        versions: BOTH,
        then: Then::Check,
        prepare: with_both,
        act: |bench| bench.run(ops::add_data_devices(bench.id("p"), vec!["/dev/c".into(), "/dev/d".into()])).map(drop),
        next: by_each,
    },
    Case {
        name: "begin a cache of an encrypted pool",
        versions: BOTH,
        then: Then::Check,
        prepare: with_both,
        act: |bench| bench.run(ops::init_cache(bench.id("p"), vec!["/dev/fast".into()])).map(drop),
        next: by_each,
    },
    Case {
        name: "add a cache device to an encrypted pool",
        versions: BOTH,
        then: Then::Check,
        prepare: cached,
        act: |bench| bench.run(ops::add_cache_devices(bench.id("p"), vec!["/dev/faster".into()])).map(drop),
        next: by_each,
    },
    Case {
        name: "grow a device of an encrypted pool",
        versions: BOTH,
        then: Then::Check,
        prepare: resized,
        act: |bench| bench.run(ops::grow_device(bench.id("p"), device_at(bench, "/dev/small"))).map(drop),
        next: by_each,
    },
    Case {
        name: "rename an encrypted pool",
        versions: BOTH,
        then: Then::Look,
        prepare: with_both,
        act: |bench| bench.run(ops::rename_pool(bench.id("p"), name("q"))).map(drop),
        next: |bench| {
            let pool = bench.names().into_iter().next().expect("a pool is there");
            bench.create_filesystems(&pool, &["one-more"]).map(drop)
        },
    },
];

/// A pool that another daemon unlocked with a key that is gone: this daemon cannot find the volume
/// key.
fn adopted_without_key() -> Bench {
    let mut bench = Bench::start(Sim::builder().seed(1).record().build());
    with_key(&mut bench, V2);
    unset_key(&mut bench, "k");
    let bench = Bench::start(bench.sim);
    assert!(!bench.pool("p").expect("it is up").volume_key_loaded);
    bench
}

fn set_k(bench: &mut Bench) -> Result<()> {
    bench.run(ops::set_key(key("k"), secret("secret of k"))).map(drop)
}

/// A request that sets a key does not wait for the volume key, so its reply covers the key only.
#[test]
fn faults_setting_a_key_lose_no_volume_key() {
    let mut bench = adopted_without_key();
    let (first, before) = (bench.sim.steps(), State::of(&bench));
    set_k(&mut bench).expect("a key can be set");
    let (steps, after) = (bench.sim.steps() - first, State::of(&bench));
    assert_ne!(before, after);
    for step in 0..steps {
        for strike in [Strike::FailBefore, Strike::FailAfter, Strike::Kill] {
            let at = format!("{strike:?} at step {step} of {steps}");
            let mut bench = adopted_without_key();
            let first = bench.sim.steps();
            strike.at(&bench.sim, first + step);
            let set = set_k(&mut bench);
            bench.sim.faults().clear();
            let found = State::of(&bench);
            assert!([&before, &after].contains(&&found), "{at}: {found:#?}\n{}", bench.tail(first));
            let mut bench = Bench::start(bench.sim);
            if set.is_err() {
                set_k(&mut bench).expect("a key can be set");
            }
            assert_eq!(State::of(&bench), after, "{at}");
            bench.check_nothing_left(&at);
        }
    }
    println!("setting a key: {steps} steps, each struck three times");
}

/// An empty pool, adopted by a daemon that has no key for it.
fn empty_without_key() -> (Bench, u64) {
    let mut bench = Bench::start(Sim::builder().seed(1).record().build());
    set_keys(&mut bench);
    create(&mut bench, V2, "p", &["/dev/a", "/dev/b"], vec![k()]).expect("the pool can be created");
    unset_key(&mut bench, "k");
    let bench = Bench::start(bench.sim);
    assert!(!bench.pool("p").expect("it is up").volume_key_loaded);
    let first = bench.sim.steps();
    (bench, first)
}

fn destroy(bench: &mut Bench) -> Result<()> {
    bench.run(ops::destroy_pool(bench.id("p"))).map(drop)
}

/// Found in review: if the destruction could not be recorded, the LUKS device was already closed,
/// and no key was left to unlock it.
#[test]
fn faults_destroying_without_key_leave_all_or_nothing() {
    let (mut bench, first) = empty_without_key();
    let before = State::of(&bench);
    let reading = bench.sim.steps();
    destroy(&mut bench).expect("it can be destroyed");
    let (steps, after) = (bench.sim.steps() - reading, State::of(&bench));
    let mut kept = 0;
    for step in 0..steps {
        for strike in [Strike::FailBefore, Strike::FailAfter, Strike::Kill] {
            let at = format!("{strike:?} at step {step} of {steps}");
            let (mut bench, again) = empty_without_key();
            assert_eq!(again, first);
            strike.at(&bench.sim, first + step);
            let destroyed = destroy(&mut bench);
            bench.sim.faults().clear();
            let trace = bench.tail(first);
            if strike == Strike::Kill {
                bench = Bench::start(bench.sim);
            }
            let found = State::of(&bench);
            let right = match &destroyed {
                Ok(()) => found == after,
                Err(_) if strike == Strike::Kill => [&before, &after].contains(&&found),
                Err(_) => found == before,
            };
            assert!(right, "{at}: {found:#?}\n{trace}");
            bench.check_nothing_left(&at);
            if found == before {
                kept += 1;
                destroy(&mut bench).unwrap_or_else(|error| panic!("{at}: again: {}", error.sentence()));
            }
            set_k(&mut bench).expect("a key can be set");
            other_pool(&mut bench).unwrap_or_else(|error| panic!("{at}: next: {}", error.sentence()));
        }
    }
    println!("destroying a pool without its key: {steps} steps, each struck three times; kept {kept} times");
}
