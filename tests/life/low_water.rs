//! A pool at its low-water mark grows at once, whatever other pools do. The device-mapper watcher,
//! the dispatcher, its workers and the engine run together on the simulated machine.

use std::{sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, unbounded};
use stratisd::{
    base::{ids::PoolUuid, units::Sectors},
    daemon::{
        dispatch::{Dispatcher, LIMITS, Request, StepWorkers},
        links::Links,
    },
    engine::{
        Engine, dm_names,
        ops::{self, NewFilesystem},
        request::Step,
    },
    platform::{
        Platform, Program, WriteStep,
        sim::{CallKind, Sim},
    },
    view::{Change, Update},
    watch::{DmWatch, RunningPools, WatchRequest},
};
use threads::{group::Group, pulse::Pulse, stop::Stop, wake::Waker};

use support::bench::{Bench, GIB, name};

/// A limit that only makes a test with a lost event fail.
const HANG: Duration = Duration::from_secs(60);
const BLOCK: u64 = 1 << 20;
/// The data blocks of a new pool, and its low-water mark.
const DATA: u64 = 51_200;
const LOW: u64 = 15_360;

fn pools() -> (Sim, [PoolUuid; 3], std::path::PathBuf) {
    let mut bench = Bench::start(Sim::builder().build());
    let all = [("low", "/dev/a"), ("held", "/dev/b"), ("slow", "/dev/c")];
    for (pool, disk) in all {
        bench.create_pool(pool, &[disk]).unwrap();
    }
    let big = NewFilesystem { name: name("f"), size: None, size_limit: None };
    bench.run(ops::create_filesystems(bench.id("low"), vec![big])).unwrap();
    let device = dm_names::filesystem(bench.id("low"), bench.filesystem("low", "f"));
    let node = bench.sim.dm_node(&device);
    (bench.sim.clone(), all.map(|(pool, _)| bench.id(pool)), node)
}

/// Waits until the view shows that the thin pool has grown.
fn wait_for_growth(updates: &Receiver<Update<()>>, pool: PoolUuid, before: Sectors) {
    loop {
        let update = updates.recv_timeout(HANG).expect("the pool should grow");
        let grown = |change: &Change| matches!(change, Change::Pool(now) if now.uuid == pool && now.allocated > before);
        if update.changes.iter().any(grown) {
            return;
        }
    }
}

#[test]
fn busy_pools_do_not_delay_another_pools_growth() {
    let (sim, [low, held, slow], node) = pools();
    let platform: Arc<dyn Platform> = Arc::new(sim.clone());
    let engine = Arc::new(Engine::new(Arc::clone(&platform)));
    let (group, stop) = (Group::new(&["links", "worker-*", "dm-events"]), Stop::new());
    let workers = StepWorkers::start(&group, LIMITS).unwrap();
    let links = Links::new().unwrap();
    let waits = links.clone();
    group.spawn("links", move || waits.run(&Pulse::default()).map_err(|error| error.to_string())).unwrap();
    let (sender, updates) = unbounded();
    let waker = Waker::new().unwrap();
    let running = RunningPools::new(vec![waker.clone()]);
    let observed = running.clone();
    let dispatcher =
        Dispatcher::new(Arc::clone(&engine), workers, links, sender, Box::new(move |changes| observed.note(changes)));
    let submit = |dispatcher: &Dispatcher<()>, label: String, chain: Step<Option<()>>| {
        dispatcher.submit(Request { label, chain, on_failure: Box::new(|_| None) });
    };
    let chains = ops::discover(&engine).unwrap();
    let count = chains.len();
    chains.into_iter().for_each(|chain| submit(&dispatcher, "discovery".to_owned(), chain.map(Some)));
    let mut before = Sectors::ZERO;
    let mut found = 0;
    while found < count {
        let update = updates.recv_timeout(HANG).expect("the pools should be found");
        for change in &update.changes {
            if let Change::Pool(pool) = change {
                if pool.uuid == low {
                    before = pool.allocated;
                }
            }
        }
        found += usize::from(update.reply.is_some());
    }

    // A request for one pool hangs in the kernel. In another pool, more formats hang than slow
    // steps may run at once.
    let kernel = sim.delay(CallKind::DmCreate, &format!("stratis-1-{}", held.simple()));
    let formats = sim.delay(CallKind::Run(Program::MkfsXfs), "/dev");
    let create = |pool, named: &str| {
        let new = NewFilesystem { name: name(named), size: Some(GIB), size_limit: None };
        ops::create_filesystems(pool, vec![new]).map(|_| Some(()))
    };
    submit(&dispatcher, "create in held".to_owned(), create(held, "f"));
    for i in 0..2 * LIMITS.slow.per_share {
        submit(&dispatcher, format!("create {i} in slow"), create(slow, &format!("f{i}")));
    }
    assert!(kernel.wait_for(1, HANG) && formats.wait_for(LIMITS.slow.per_share, HANG));

    let watch = {
        let (source, dispatcher) = (sim.dm_events().unwrap(), dispatcher.clone());
        let take = move |WatchRequest { label, chain }| submit(&dispatcher, label, chain.map(Some));
        DmWatch::new(platform, source, running, waker, Box::new(take))
    };
    let switch = stop.clone();
    group.spawn("dm-events", move || watch.run(&switch, &Pulse::default()).map_err(|error| error.to_string())).unwrap();

    // Write one block at a time until the mark is passed. The last of these writes raises the
    // event.
    for first in (1..DATA - LOW + 8).step_by(512) {
        let blocks = first..(first + 512).min(DATA - LOW + 8);
        let writes: Vec<WriteStep<'_>> = blocks.map(|block| WriteStep::At(block * BLOCK, b"x")).collect();
        sim.write(&node, &writes).unwrap();
    }
    wait_for_growth(&updates, low, before);
    assert_eq!(kernel.waiting(), 1, "it hangs still");
    assert_eq!(formats.waiting(), LIMITS.slow.per_share);

    [kernel, formats].iter().for_each(|gate| gate.open());
    stop.trigger("the test is over");
    let over = dispatcher.stop();
    over.recv_timeout(HANG).unwrap_err();
    dispatcher.close();
    group.join(&["dm-events", "worker-*"], HANG).unwrap();
}
