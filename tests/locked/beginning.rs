//! Re-encryption jobs that fail before they have begun, and jobs that a refused request interrupts.

use stratisd::{
    base::pool_ref::PoolRef,
    engine::{
        Error,
        encryption::{EncryptionError, UnlockMethod},
        metadata::MetadataVersion,
        ops,
        request::Step,
    },
    platform::{
        Platform,
        luks::{Cost, HeaderChange, NewKeyslot, ReencryptionMode, Unlock},
        sim::{CallKind, LuksCall, Sim, Trouble},
    },
    view::Availability,
};
use support::{
    bench::{Bench, name},
    keys::{by_key, create, machine, secret, set_key, start, unset_key},
};

use crate::under_way::{
    LIMIT, URL, V2, WORKS, ask, begun, is_done, keyslots, long, luks_devices, mark, other_requests, pool, until,
    waiting,
};

/// Found by a mutant: nothing proved that the new volume key leaves the headers again.
#[test]
fn a_job_that_cannot_begin_leaves_nothing() {
    for (work, version) in WORKS.into_iter().filter(|(work, _)| *work != ReencryptionMode::Encrypt) {
        let at = format!("{work:?} {version:?}");
        let mut bench = pool(Sim::builder().build(), work, version);
        let (before, slots) = (bench.pool("p").unwrap(), keyslots(&bench, version));
        let rest = begun(&mut bench, work);
        if work == ReencryptionMode::Reencrypt {
            assert_ne!(keyslots(&bench, version), slots, "{at}: the new key is in the headers");
        }
        bench.sim.faults().fail_next(CallKind::Luks(LuksCall::Reencrypt), "");
        let error = bench.run(rest).unwrap_err();
        assert_eq!(keyslots(&bench, version), slots, "{at}: {}", error.sentence());
        let pool = bench.pool("p").unwrap();
        assert_eq!((&pool.reencryption, &pool.encryption), (&None, &before.encryption), "{at}");
        assert_eq!(pool.availability, Availability::Full, "{at}: {:?}", pool.restriction);
        for (what, request) in other_requests(&bench) {
            let done = bench.run(request);
            assert!(!matches!(done, Err(Error::ReencryptionStopped { .. })), "{at}, {what}: {done:?}");
        }
        let again = ask(&bench, work);
        assert!(bench.run(again).unwrap() && is_done(&bench, work) && mark(&bench) == 7, "{at}");
        bench.check_nothing_left(&at);
    }
}

/// A stop is refused while a filesystem is mounted. The job that made way for it continues, and its
/// caller hears that it is complete.
#[test]
fn a_refused_stop_only_delays_a_job() {
    for (work, version) in WORKS {
        let at = format!("{work:?} {version:?}");
        let mut bench = pool(Sim::builder().build(), work, version);
        bench.mount("p", "f");
        let rest = begun(&mut bench, work);
        // The second write to the last device: the job on it has begun.
        let last = luks_devices(&bench, version).pop().unwrap();
        let gate = bench.sim.delay_after(CallKind::LuksWrite, &last.to_string_lossy(), 1);
        let (stop, rest) = std::thread::scope(|scope| {
            let Bench { engine, pools, .. } = &mut bench;
            let engine = &*engine;
            let worker = scope.spawn(move || long(engine, rest));
            assert!(gate.wait_for(1, LIMIT), "{at}: the job does not begin");
            let stop = ops::stop_pool(PoolRef::Name(name("p")));
            let stop = pools.run(engine, until(stop, |next| matches!(next, Step::Parked(..))));
            let Step::Parked(_, stop) = stop else { panic!("{at}: the stop does not wait") };
            gate.open();
            (*stop, worker.join().unwrap())
        });
        let rest = waiting(&mut bench, rest);
        let refused = bench.run(stop);
        assert!(matches!(refused, Err(Error::Mounted { .. })), "{at}: {refused:?}");
        let done = bench.run(rest);
        assert!(matches!(done, Ok(true)), "{at}: {done:?}");
        assert!(is_done(&bench, work) && mark(&bench) == 7, "{at}");
        bench.check_nothing_left(&at);
    }
}

/// Each binding needs a keyslot for the new volume key. With too few of the 32, because somebody
/// has added passphrases to the header, some bindings would be lost.
#[test]
fn each_binding_needs_a_free_keyslot() {
    let mut bench = machine();
    let bindings = (0..15).map(|token| {
        let key = format!("key {token}");
        set_key(&mut bench, &key, &format!("secret of {key}"));
        by_key(Some(token), &key)
    });
    let bindings = bindings.collect();
    create(&mut bench, V2, "p", &["/dev/a"], bindings).unwrap();
    let (known, other) = (secret("secret of key 0"), secret("another"));
    let unlock = Unlock { passphrase: &known, keyslot: None };
    let add = |number| HeaderChange::AddKeyslot(NewKeyslot { number, passphrase: &other, cost: Cost::Guessable });
    let device = luks_devices(&bench, V2).pop().unwrap();
    bench.sim.luks_change(&device, Some(unlock), &[15, 16, 17].map(add)).unwrap();
    let (before, slots) = (bench.pool("p").unwrap(), keyslots(&bench, V2));
    let refused = bench.run(ops::reencrypt_pool(bench.id("p")));
    assert!(matches!(refused, Err(Error::Encryption(EncryptionError::NoKeyslots))), "{refused:?}");
    assert_eq!(keyslots(&bench, V2), slots);
    let pool = bench.pool("p").unwrap();
    assert_eq!((&pool.encryption, &pool.reencryption), (&before.encryption, &None));
}

/// An encryption up to its job, with these faults. Returns the error, if there was one.
fn struck(bench: &mut Bench, faults: impl FnOnce(&Sim, u64)) -> Result<Step<stratisd::engine::Result<bool>>, Error> {
    faults(&bench.sim, bench.sim.steps());
    let asked = ask(bench, ReencryptionMode::Encrypt);
    let rest = bench.run(until(asked, |next| matches!(next, Step::Background(_))));
    bench.sim.faults().clear();
    match rest {
        Step::Done(Err(error)) => Err(error),
        rest => Ok(rest),
    }
}

/// Before any data is encrypted, the pool gets a header, a record that names it, and tables that
/// lead through its crypt device.
#[test]
fn an_encryption_that_fails_early_is_taken_back() {
    let mut failed = 0;
    for step in 0.. {
        let mut bench = pool(Sim::builder().build(), ReencryptionMode::Encrypt, V2);
        let before = bench.pool("p").unwrap();
        let rest = struck(&mut bench, |sim, first| sim.faults().fail_at(first + step));
        let at = format!("step {step}");
        match rest {
            Err(error) => {
                failed += 1;
                let pool = bench.pool("p").unwrap();
                let at = format!("{at}: {}", error.sentence());
                assert_eq!((&pool.encryption, &pool.reencryption), (&None, &None), "{at}");
                assert_eq!((pool.availability, &pool.restriction), (before.availability, &before.restriction), "{at}");
                assert_eq!(keyslots(&bench, V2), [[].into()], "{at}");
                bench.check_nothing_left(&at);
                let again = ask(&bench, ReencryptionMode::Encrypt);
                assert!(bench.run(again).unwrap(), "{at}");
            }
            Ok(Step::Background(step)) => {
                assert!(bench.run(Step::Background(step)).unwrap(), "{at}");
                if bench.sim.faults().struck() == 0 {
                    break;
                }
            }
            Ok(_) => panic!("{at}: it ends without a job"),
        }
        assert!(is_done(&bench, ReencryptionMode::Encrypt) && mark(&bench) == 7, "{at}");
    }
    assert!(failed > 20, "{failed}");
}

/// If the former record cannot be written again, it is not known which one the next daemon finds.
/// That daemon need not have a key, so the crypt device stays.
#[test]
fn an_encryption_half_recorded_needs_no_key() {
    let mut restricted = 0;
    for step in 0..400 {
        let mut bench = pool(Sim::builder().build(), ReencryptionMode::Encrypt, V2);
        let rest = struck(&mut bench, |sim, first| {
            sim.faults().fail_at(first + step);
            sim.faults().break_from(first + step + 1, "/dev/");
        });
        if bench.sim.faults().struck() == 0 && rest.is_ok() {
            break;
        }
        if bench.pool("p").unwrap().availability < Availability::NoPoolChanges {
            continue;
        }
        restricted += 1;
        unset_key(&mut bench, "k");
        bench.sim.set_tang(URL, Some(Trouble::Down));
        let mut bench = Bench::start(bench.sim);
        let at = format!("step {step}");
        assert_eq!(bench.names(), ["p"], "{at}: {:?}", bench.stopped().list());
        assert_eq!(mark(&bench), 7, "{at}");
        set_key(&mut bench, "k", "secret of k");
        bench.stop_pool("p").unwrap();
        let method = bench.stopped_pool("p").unwrap().features.is_some_and(|of| of.key_description);
        assert!(start(&mut bench, "p", method.then_some(UnlockMethod::Any), None).unwrap(), "{at}");
        assert_eq!(mark(&bench), 7, "{at}");
    }
    assert!(restricted > 0);
}

/// A daemon that was killed before a re-encryption began has left the new volume key in the headers.
#[test]
fn a_job_killed_before_it_begins_leaves_nothing() {
    for version in [MetadataVersion::V1, V2] {
        let mut bench = pool(Sim::builder().build(), ReencryptionMode::Reencrypt, version);
        let before = keyslots(&bench, version);
        drop(begun(&mut bench, ReencryptionMode::Reencrypt));
        assert_ne!(keyslots(&bench, version), before, "{version:?}");
        let bench = Bench::start(bench.sim);
        assert_eq!(keyslots(&bench, version), before, "{version:?}");
        assert_eq!((bench.pool("p").unwrap().reencryption.clone(), mark(&bench)), (None, 7), "{version:?}");
        bench.check_nothing_left("killed before the job");
    }
}

/// The last write of a job may report a failure although it has taken effect.
#[test]
fn a_job_is_complete_if_its_header_is() {
    for (work, version) in WORKS {
        let job = |fails_after: Option<u64>| {
            let mut bench = pool(Sim::builder().build(), work, version);
            let rest = begun(&mut bench, work);
            fails_after.into_iter().for_each(|step| bench.sim.faults().fail_after(step));
            let rest = long(&bench.engine, rest);
            bench.sim.faults().clear();
            (bench, rest)
        };
        let headers = |bench: &Bench| {
            let header = |device: std::path::PathBuf| bench.sim.luks_read(&device).unwrap();
            luks_devices(bench, version).into_iter().map(header).collect::<Vec<_>>()
        };
        let (bench, _) = job(None);
        let (complete, last) = (headers(&bench), bench.sim.steps());
        let mut count = 0;
        for step in last - 12..last {
            let (mut bench, rest) = job(Some(step));
            let is_complete = headers(&bench) == complete;
            let done = bench.run(rest);
            assert!(done.is_ok() || !is_complete, "{work:?} {version:?}, step {step} of {last}: {done:?}");
            count += usize::from(is_complete);
        }
        assert!(count > 0, "{work:?} {version:?}");
    }
}
