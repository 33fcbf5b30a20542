//! Stops, starts and refreshes run concurrently with other requests. In every order that a seed
//! gives, each request ends, and the outcome is that of some sequence of the requests.

use stratisd::{
    base::{name::Name, pool_ref::PoolRef},
    engine::{
        self,
        ops::{self, CacheTier, NewFilesystem, StopOutcome, UnlockOptions},
        request::Step,
    },
    platform::sim::Sim,
};
use support::{
    bench::{Bench, GIB, name},
    scheduler::Scheduler,
};

fn machine() -> Bench {
    let mut bench = Bench::start(Sim::builder().build());
    for (pool, disk) in [("p", "/dev/a"), ("q", "/dev/b")] {
        bench.create_pool(pool, &[disk]).unwrap();
        bench.create_filesystems(pool, &["f"]).unwrap();
    }
    bench
}

/// Whether the request changed anything, or the text of its error.
type Told = Result<bool, String>;

fn told<T: Send + 'static>(chain: Step<engine::Result<T>>, changed: fn(&T) -> bool) -> Step<Told> {
    chain.map(move |result| result.map(|value| changed(&value)).map_err(|error| error.sentence()))
}

fn by_name(pool: &str) -> PoolRef {
    PoolRef::Name(name(pool))
}

fn stop(which: PoolRef) -> Step<Told> {
    told(ops::stop_pool(which), |stopped| matches!(stopped, StopOutcome::Done(_)))
}

fn start(which: PoolRef) -> Step<Told> {
    told(ops::start_pool(which, UnlockOptions::default(), CacheTier::Keep), Option::is_some)
}

fn create(bench: &Bench, pool: &str, filesystem: &str) -> Step<Told> {
    let new = NewFilesystem { name: name(filesystem), size: Some(GIB), size_limit: None };
    told(ops::create_filesystems(bench.id(pool), vec![new]), |made| !made.is_empty())
}

fn seeds() -> std::ops::Range<u64> {
    0..std::env::var("LIFE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

#[test]
fn a_stop_waits_for_its_own_pool_only() {
    for seed in seeds() {
        let bench = machine();
        let (in_p, in_q) = (create(&bench, "p", "g"), create(&bench, "q", "g"));
        let mut all = Scheduler::new(bench, seed);
        all.begin("create in p", in_p);
        all.begin("create in q", in_q);
        all.begin("stop p", stop(by_name("p")));
        let results = all.finish();
        let history = all.history.join("\n");
        assert_eq!(results[1..], [Ok(true), Ok(true)], "seed {seed}:\n{history}");
        // The creation came first, or found the pool stopped.
        assert!(results[0] == Ok(true) || results[0].as_ref().is_err_and(|why| why.contains("no running pool")));
        assert_eq!(all.bench.names(), ["q"], "seed {seed}:\n{history}");
        all.bench.check_nothing_left(&history);
        all.bench.start_pool("p").unwrap();
        let count = all.bench.pool("p").unwrap().filesystems.len();
        assert_eq!(count, if results[0].is_ok() { 2 } else { 1 }, "seed {seed}:\n{history}");
    }
}

#[test]
fn one_of_several_starts_or_stops_acts() {
    for seed in seeds() {
        let mut bench = machine();
        let uuid = PoolRef::Uuid(bench.id("p"));
        bench.stop_pool("p").unwrap();
        let mut all = Scheduler::new(bench, seed);
        for which in [by_name("p"), uuid.clone(), by_name("p")] {
            all.begin("start", start(which));
        }
        let mut results = all.finish();
        results.sort();
        assert_eq!(results, [Ok(false), Ok(false), Ok(true)], "seed {seed}:\n{}", all.history.join("\n"));
        for which in [by_name("p"), uuid, by_name("p")] {
            all.begin("stop", stop(which));
        }
        let mut results = all.finish();
        results.sort();
        assert_eq!(results, [Ok(false), Ok(false), Ok(true)], "seed {seed}:\n{}", all.history.join("\n"));
    }
}

#[test]
fn concurrent_requests_all_end() {
    for seed in seeds() {
        let bench = machine();
        let in_p = create(&bench, "p", "g");
        let mut all = Scheduler::new(bench, seed);
        all.begin("stop", stop(by_name("p")));
        all.begin("refresh", told(ops::refresh(), |()| true));
        all.begin("start", start(by_name("p")));
        all.begin("create", in_p);
        all.begin("refresh again", told(ops::refresh(), |()| true));
        let results = all.finish();
        let history = all.history.join("\n");
        assert_eq!(
            (&results[0], &results[1], &results[4]),
            (&Ok(true), &Ok(true), &Ok(true)),
            "seed {seed}:\n{history}"
        );
        assert!(results[2].is_ok(), "seed {seed}: a pool that exists was not found: {results:?}\n{history}");
        let running = all.bench.names();
        let stopped = all.bench.stopped();
        assert_eq!(running.len() + stopped.list().len(), 2, "seed {seed}: {running:?} and {stopped:?}\n{history}");
        assert!(stopped.list().iter().all(|pool| !pool.partial), "seed {seed}:\n{history}");
        all.bench.check_nothing_left(&history);
        if stopped.list().is_empty() {
            // Every filesystem whose creation a reply has confirmed exists.
            let expected = if results[3] == Ok(true) { 2 } else { 1 };
            assert_eq!(all.bench.pool("p").unwrap().filesystems.len(), expected, "seed {seed}:\n{history}");
        }
    }
}

#[test]
fn start_and_creation_never_share_a_name() {
    for seed in seeds() {
        let mut bench = machine();
        bench.stop_pool("p").unwrap();
        let new = ops::NewPool {
            name: Name::new("p").unwrap(),
            devices: vec!["/dev/c".into()],
            integrity: Default::default(),
            version: ops::MetadataVersion::V2,
            bindings: Vec::new(),
        };
        let mut all = Scheduler::new(bench, seed);
        all.begin("start", start(by_name("p")));
        all.begin("create", told(ops::create_pool(new), Option::is_some));
        let results = all.finish();
        let history = all.history.join("\n");
        // If the creation came first, a start by name finds the new pool running.
        let clear = [Ok(true), Ok(false)].contains(&results[0]) && (results[1] == Ok(true)) != (results[0] == Ok(true));
        let taken =
            results[0].as_ref().is_err_and(|why| why.contains("running pool is named p")) && results[1] == Ok(true);
        assert!(clear || taken, "seed {seed}: {results:?}\n{history}");
        assert_eq!(all.bench.names(), ["p", "q"], "seed {seed}:\n{history}");
        all.bench.check_nothing_left(&history);
    }
}
