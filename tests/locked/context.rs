//! The engine as the context of the dispatcher's requests: what a request waits for, what the engine
//! begins by itself, and what a stop of the daemon ends.

use stratisd::{
    daemon::dispatch::Context,
    engine::{Error, metadata::IntegritySpec, ops, request::Step},
    platform::{luks::ReencryptionMode, sim::Sim},
};
use support::{
    bench::{Bench, name},
    keys::{adopted_without_key, key, secret},
};

use crate::under_way::{V2, begun, is_done, long, mark, pool};

/// Runs the only step of a chain, or the first one.
fn first<T>(bench: &Bench, chain: Step<T>) -> Step<T> {
    let Step::Blocking(_, step) = chain else { panic!("it needs a lock") };
    step(&bench.engine)
}

/// A request that tried again at once would keep a worker busy until the claim is released.
#[test]
fn a_claim_is_waited_for() {
    let bench = Bench::start(Sim::builder().build());
    let create = |disk: &str| {
        let (devices, integrity) = (vec![disk.into()], IntegritySpec::default());
        ops::create_pool(ops::NewPool { name: name("p"), devices, integrity, version: V2, bindings: Vec::new() })
    };
    let creating = first(&bench, create("/dev/a"));
    let seen = Context::claims_given_back(&bench.engine);
    let Step::Parked(wait, _) = first(&bench, create("/dev/b")) else { panic!("the name is claimed") };
    assert!(Context::is_taken(&bench.engine, &wait, seen));
    drop(creating);
    assert!(!Context::is_taken(&bench.engine, &wait, seen));
}

/// A set key loads the volume key of a pool by itself, after the reply.
#[test]
fn work_of_the_engine_is_taken_once() {
    let mut bench = adopted_without_key();
    assert!(matches!(first(&bench, ops::set_key(key("k"), secret("secret of k"))), Step::Done(Ok(_))));
    let begun = Context::take_follow_ups::<()>(&bench.engine);
    assert!(Context::take_follow_ups::<()>(&bench.engine).is_empty());
    assert!(!bench.pool("p").unwrap().volume_key_loaded);
    for (label, chain) in begun {
        assert_eq!(bench.run(chain), None, "{label} answers nobody");
    }
    assert!(bench.pool("p").unwrap().volume_key_loaded);
}

/// A stop of the daemon interrupts the job on a pool, which may take hours. The next set-up resumes
/// it.
#[test]
fn an_ending_daemon_interrupts_its_jobs() {
    let mut bench = pool(Sim::builder().hot_zone(1).build(), ReencryptionMode::Decrypt, V2);
    let rest = begun(&mut bench, ReencryptionMode::Decrypt);
    // The progress of the job is asked for before each part of the data.
    Context::end(&bench.engine);
    let rest = long(&bench.engine, rest);
    let ended = bench.run(rest);
    assert!(matches!(&ended, Err(error) if !matches!(error, Error::Panicked)), "{ended:?}");
    assert!(!is_done(&bench, ReencryptionMode::Decrypt), "{ended:?}");
    assert_eq!(mark(&bench), 7);
}
