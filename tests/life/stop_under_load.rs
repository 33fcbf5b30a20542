//! The daemon stops while many requests are under way. Every caller gets a reply, and every reply
//! is true.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crossbeam_channel::unbounded;
use stratisd::{
    daemon::{
        dispatch::{Dispatcher, LIMITS, Request, StepWorkers},
        links::Links,
    },
    engine::{
        Engine,
        error::Error,
        ops::{self, NewFilesystem},
    },
    platform::{
        Platform, Program,
        sim::{CallKind, Sim},
    },
    service::Failure,
};
use threads::{group::Group, pulse::Pulse};

use support::bench::{Bench, GIB, name};

/// A limit that only makes a test with a lost event fail.
const HANG: Duration = Duration::from_secs(60);
const CREATIONS: usize = 200;

/// The outcome of a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Found,
    Created(usize),
    Refused(usize, String),
}

/// Formerly the daemon waited for all formats, gave up after a minute, and had sent no replies.
#[test]
fn a_stop_completes_begun_creations_and_refuses_others() {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    let pool = bench.id("p");
    bench.run(ops::set_fs_limit(pool, 1000)).unwrap();
    let sim = bench.sim.clone();
    drop(bench);

    let platform: Arc<dyn Platform> = Arc::new(sim.clone());
    let engine = Arc::new(Engine::new(platform));
    let group = Group::new(&["links", "worker-*"]);
    let workers = StepWorkers::start(&group, LIMITS).unwrap();
    let links = Links::new().unwrap();
    let waits = links.clone();
    group.spawn("links", move || waits.run(&Pulse::default()).map_err(|error| error.to_string())).unwrap();
    let (sender, updates) = unbounded();
    let dispatcher = Dispatcher::new(Arc::clone(&engine), workers, links, sender, Box::new(|_| ()));
    let mut found = 0;
    for chain in ops::discover(&engine).unwrap() {
        let chain = chain.map(|()| Some(Told::Found));
        dispatcher.submit(Request { label: "discovery".to_owned(), chain, on_failure: Box::new(|_| None) });
        while updates.recv_timeout(HANG).unwrap().reply.is_none() {}
        found += 1;
    }
    assert_eq!(found, 1);

    let formats = sim.delay(CallKind::Run(Program::MkfsXfs), "/dev");
    for number in 0..CREATIONS {
        let new = NewFilesystem { name: name(&format!("f{number}")), size: Some(GIB), size_limit: None };
        let chain = ops::create_filesystems(pool, vec![new]).map(move |created| {
            Some(match created {
                Ok(_) => Told::Created(number),
                Err(error) => Told::Refused(number, error.sentence()),
            })
        });
        let on_failure = Box::new(move |failure: Failure| Some(Told::Refused(number, format!("{failure:?}"))));
        dispatcher.submit(Request { label: format!("create {number}"), chain, on_failure });
    }
    assert!(formats.wait_for(LIMITS.slow.per_share, HANG));
    // Wait until all creations have begun: their thin devices exist, and no creation holds or
    // awaits the pool's lock.
    let settled = || {
        let seen = dispatcher.observe();
        seen.holders.is_empty() && seen.waiters.is_empty()
    };
    while !settled() {
        std::thread::yield_now();
    }

    let over = dispatcher.stop();
    dispatcher.hurry();
    formats.open();
    assert!(over.recv_timeout(HANG).is_err_and(|error| error.is_disconnected()), "it comes to its end");
    dispatcher.close();
    group.join(&["links", "worker-*"], HANG).unwrap();
    let mut told = BTreeMap::new();
    for reply in updates.try_iter().filter_map(|update| update.reply) {
        let number = match &reply {
            Told::Created(number) | Told::Refused(number, _) => *number,
            Told::Found => panic!("found twice"),
        };
        assert!(told.insert(number, reply).is_none(), "{number} is told twice");
    }
    assert_eq!(told.len(), CREATIONS, "everybody is told something");
    let created: Vec<String> = told
        .values()
        .filter_map(|told| match told {
            Told::Created(number) => Some(format!("f{number}")),
            _ => None,
        })
        .collect();
    assert_eq!(created.len(), LIMITS.slow.per_share, "those that were being formatted");
    let refused =
        told.values().filter(|told| matches!(told, Told::Refused(_, why) if *why == Error::Ending.sentence()));
    assert_eq!(refused.count(), CREATIONS - created.len());

    drop((dispatcher, engine));
    let bench = Bench::start(sim);
    let there: Vec<String> =
        bench.pool("p").unwrap().filesystems.values().map(|filesystem| filesystem.name.to_string()).collect();
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    assert_eq!(sorted(there), sorted(created), "what was told is so");
}
