//! Device-mapper events alone extend a filesystem that is being filled. No timer runs in these
//! tests.

use std::{path::Path, sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, unbounded};
use stratisd::{
    base::{
        ids::{FsUuid, PoolUuid},
        units::{Bytes, Sectors},
    },
    daemon::{
        dispatch::{Dispatcher, LIMITS, Request, StepWorkers},
        links::Links,
    },
    engine::{
        Engine,
        dm_names::{self, Role},
        ops,
        request::Step,
    },
    platform::{
        Platform, WriteStep,
        dm::Target,
        sim::{CallKind, RecordedCall, Sim},
    },
    view::{Availability, Update},
    watch::{DmWatch, RunningPools, WatchRequest},
};
use threads::{group::Group, pulse::Pulse, stop::Stop, wake::Waker};

use support::bench::{Bench, GIB};

/// A limit that only makes a test with a lost event fail.
const HANG: Duration = Duration::from_secs(60);
const BLOCK: u64 = 1 << 20;
/// The number of blocks written between two checks.
const CHUNK: u64 = 16;
/// A pool with one filesystem of 1 GiB.
fn machine() -> Bench {
    let mut bench = Bench::start(Sim::builder().record().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    bench
}

/// The free data blocks of the thin pool, its low-water mark, and the number of events that it has
/// raised.
fn thin_pool(sim: &Sim, pool: PoolUuid) -> (u64, u64, u32) {
    let name = Role::ThinPool.name(pool);
    let status = sim.dm_status(&name).unwrap();
    let status = stratisd::engine::thin_status::PoolStatus::parse(&status[0]).unwrap();
    let Target::ThinPool { low_water, .. } = sim.dm_find(&name).unwrap().unwrap().table[0].target else {
        panic!("it is no thin pool");
    };
    let event = sim.dm_event(&name).unwrap().unwrap();
    (status.data_total.0 - status.data_used.0, low_water.0, event)
}

fn node(sim: &Sim, pool: PoolUuid, filesystem: FsUuid) -> std::path::PathBuf {
    sim.dm_node(&dm_names::filesystem(pool, filesystem))
}

/// Writes to the first byte of each of these blocks.
fn write(sim: &Sim, node: &Path, blocks: std::ops::Range<u64>) {
    let writes: Vec<WriteStep<'_>> = blocks.map(|block| WriteStep::At(block * BLOCK, b"x")).collect();
    sim.write(node, &writes).unwrap();
}

/// The daemon's dispatcher and its device-mapper watcher. `checked` gets a message for each check
/// that has ended.
struct Daemon {
    dispatcher: Dispatcher<()>,
    group: Group,
    stop: Stop,
    checked: Receiver<()>,
    _updates: Receiver<Update<()>>,
}

impl Daemon {
    fn start(sim: &Sim) -> Daemon {
        let platform: Arc<dyn Platform> = Arc::new(sim.clone());
        let engine = Arc::new(Engine::new(Arc::clone(&platform)));
        let waker = Waker::new().unwrap();
        let running = RunningPools::new(vec![waker.clone()]);
        let observed = running.clone();
        let (group, stop) = (Group::new(&["links", "worker-*", "dm-events"]), Stop::new());
        let workers = StepWorkers::start(&group, LIMITS).unwrap();
        let links = Links::new().unwrap();
        let waits = links.clone();
        group.spawn("links", move || waits.run(&Pulse::default()).map_err(|error| error.to_string())).unwrap();
        let (sender, updates) = unbounded();
        let dispatcher = Dispatcher::new(
            Arc::clone(&engine),
            workers,
            links,
            sender,
            Box::new(move |changes| observed.note(changes)),
        );
        let (done, checked) = unbounded();
        let submit = |dispatcher: &Dispatcher<()>, label: String, chain: Step<Option<()>>| {
            dispatcher.submit(Request { label, chain, on_failure: Box::new(|_| None) });
        };
        for chain in ops::discover(&engine).unwrap() {
            let done = done.clone();
            submit(&dispatcher, "discovery".to_owned(), chain.map(move |()| done.send(()).ok()));
            checked.recv_timeout(HANG).expect("the pool should be found");
        }
        let (source, submitter) = (sim.dm_events().unwrap(), dispatcher.clone());
        let take = move |WatchRequest { label, chain }| {
            let done = done.clone();
            submit(&submitter, label, chain.map(move |()| done.send(()).ok()));
        };
        let watch = DmWatch::new(platform, source, running, waker, Box::new(take));
        let switch = stop.clone();
        group
            .spawn("dm-events", move || watch.run(&switch, &Pulse::default()).map_err(|error| error.to_string()))
            .unwrap();
        // The watcher checks every pool when it starts.
        checked.recv_timeout(HANG).expect("the pool should be checked");
        Daemon { dispatcher, group, stop, checked, _updates: updates }
    }

    fn end(self) {
        self.stop.trigger("the test is over");
        let over = self.dispatcher.stop();
        over.recv_timeout(HANG).unwrap_err();
        self.dispatcher.close();
        self.group.join(&["dm-events", "worker-*"], HANG).unwrap();
    }
}

#[test]
fn events_alone_keep_extending_a_filling_filesystem() {
    let bench = machine();
    let (sim, pool, filesystem) = (bench.sim.clone(), bench.id("p"), bench.filesystem("p", "f"));
    bench.mount("p", "f");
    drop(bench);
    let daemon = Daemon::start(&sim);
    let (node, at) = (node(&sim, pool, filesystem), Path::new("/mnt/f"));
    let xfs = || sim.xfs_size(&node).unwrap().0;
    let (mut sizes, mut causes) = (vec![xfs()], 0);
    // Start past the superblock.
    for first in (1..6 * 1024).step_by(CHUNK as usize) {
        daemon.checked.try_iter().for_each(drop);
        let (_, _, before) = thin_pool(&sim, pool);
        let used = u128::from((first + CHUNK) * BLOCK);
        assert!(used < xfs(), "it is full: {used} of {}, after {causes} events", xfs());
        sim.set_used(at, Bytes(used)).unwrap();
        write(&sim, &node, first..first + CHUNK);
        if thin_pool(&sim, pool).2 != before {
            daemon.checked.recv_timeout(HANG).expect("an event causes a check");
            causes += 1;
        }
        if Some(&xfs()) != sizes.last() {
            sizes.push(xfs());
        }
    }
    let gib = |size: &u128| size >> 30;
    assert_eq!(sizes.iter().map(gib).collect::<Vec<_>>(), [1, 2, 4, 8, 16][..sizes.len()]);
    assert!(sizes.len() >= 4, "{sizes:?}");
    assert!(causes < 60, "{causes} events are more than are needed");
    daemon.end();
}

/// Found on a real kernel: each new mark blocked all I/O for 70 ms per filesystem, and every 256
/// MiB of writes set one.
#[test]
fn the_mark_moves_only_after_writes_end() {
    let mut bench = machine();
    let others: Vec<String> = (0..11).map(|number| format!("other{number}")).collect();
    bench.create_filesystems("p", &others.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let (sim, pool, filesystem) = (bench.sim.clone(), bench.id("p"), bench.filesystem("p", "f"));
    bench.mount("p", "f");
    drop(bench);
    let daemon = Daemon::start(&sim);
    let (node, at) = (node(&sim, pool, filesystem), Path::new("/mnt/f"));
    let loads =
        || sim.trace().iter().filter(|step| step.call == CallKind::DmLoad && step.subject.contains("thinpool")).count();
    let xfs = || sim.xfs_size(&node).unwrap().0;
    let (_, first_mark, _) = thin_pool(&sim, pool);
    let before = loads();
    // Each round writes more than the distance to the mark, and at most a quarter of the remaining
    // space.
    for first in (1..4 * 1024).step_by(256) {
        let used = u128::from((first + 256) * BLOCK);
        assert!(used < xfs(), "it is full: {used} of {}", xfs());
        sim.set_used(at, Bytes(used)).unwrap();
        daemon.checked.try_iter().for_each(drop);
        write(&sim, &node, first..first + 256);
        daemon.checked.recv_timeout(HANG).expect("it is looked at again as long as somebody writes");
    }
    assert!(xfs() > 4 << 30, "it was extended");
    assert_eq!((loads(), thin_pool(&sim, pool).1), (before, first_mark), "marks were moved");
    // After the writes have ended, the mark moves exactly once.
    while thin_pool(&sim, pool).1 == first_mark {
        daemon.checked.recv_timeout(HANG).expect("it is looked at until the mark is moved");
    }
    let (free, mark, _) = thin_pool(&sim, pool);
    assert!(mark < free && free - mark <= 1024, "{mark} of {free}");
    assert_eq!(loads(), before + 1);
    daemon.end();
}

#[test]
fn creating_a_filesystem_puts_the_mark_in_place() {
    let mut bench = Bench::start(Sim::builder().build());
    bench.create_pool("p", &["/dev/a"]).unwrap();
    let pool = bench.id("p");
    assert_eq!(thin_pool(&bench.sim, pool).1, 15_360, "nothing is watched");
    bench.create_filesystems("p", &["f"]).unwrap();
    let (free, mark, _) = thin_pool(&bench.sim, pool);
    let ahead = free - mark;
    assert!((200..=256).contains(&ahead), "a quarter of what 1 GiB has left: {ahead}");
    let bench = Bench::start(bench.sim);
    assert_eq!(thin_pool(&bench.sim, pool).1, mark, "who adopts the pool leaves it");
}

/// The kernel raises no event for a mark that was already passed when it was set.
#[test]
fn a_mark_passed_early_is_followed_by_another() {
    let mut bench = machine();
    let (sim, pool, filesystem) = (bench.sim.clone(), bench.id("p"), bench.filesystem("p", "f"));
    let node = node(&sim, pool, filesystem);
    // Whatever else is due is done. From here on, the check only moves the mark.
    bench.run(ops::check_now(pool)).unwrap();
    write(&sim, &node, 1..300);
    let (free, mark, _) = thin_pool(&sim, pool);
    assert!(free <= mark, "{free} free, mark {mark}: a new mark is due");
    let gate = sim.delay(CallKind::DmLoad, &Role::ThinPool.name(pool));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(gate.wait_for(1, HANG));
            write(&sim, &node, 300..800);
            gate.open();
        });
        bench.run(ops::check_now(pool)).unwrap();
    });
    let (free, mark, _) = thin_pool(&sim, pool);
    assert!(mark < free, "{free} free, mark {mark}");
}

#[test]
fn a_filesystem_at_its_limit_causes_no_events() {
    let mut bench = machine();
    let (pool, filesystem) = (bench.id("p"), bench.filesystem("p", "f"));
    assert!(bench.run(ops::set_size_limit(pool, filesystem, Some(GIB))).unwrap());
    bench.run(ops::check_now(pool)).unwrap();
    let (free, mark, before) = thin_pool(&bench.sim, pool);
    assert_eq!(mark, 15_360);
    write(&bench.sim, &node(&bench.sim, pool, filesystem), 0..1024);
    let (left, _, after) = thin_pool(&bench.sim, pool);
    assert!(free - left > 900, "{left} of {free}");
    assert_eq!(after, before);
}

/// Formerly the new filesystem cleared the mark for all other filesystems, and only the periodic
/// checks extended them.
#[test]
fn a_filesystem_made_at_its_limit_moves_nothing() {
    let mut bench = machine();
    let pool = bench.id("p");
    bench.run(ops::check_now(pool)).unwrap();
    let (_, before, _) = thin_pool(&bench.sim, pool);
    assert!(before > 15_360, "another is watched");
    let full = ops::NewFilesystem { name: support::bench::name("g"), size: Some(GIB), size_limit: Some(GIB) };
    bench.run(ops::create_filesystems(pool, vec![full])).unwrap();
    assert_eq!(thin_pool(&bench.sim, pool).1, before);
}

#[test]
fn a_mark_that_fails_leaves_nothing_suspended() {
    let mut bench = machine();
    let (pool, filesystem) = (bench.id("p"), bench.filesystem("p", "f"));
    let name = Role::ThinPool.name(pool);
    let suspended = |bench: &Bench| bench.sim.dm_find(&name).unwrap().unwrap().suspended;
    let mut fill = {
        let (sim, node) = (bench.sim.clone(), node(&bench.sim, pool, filesystem));
        let mut at = 0;
        move || {
            let (_, _, before) = thin_pool(&sim, pool);
            while thin_pool(&sim, pool).2 == before {
                write(&sim, &node, at..at + CHUNK);
                at += CHUNK;
            }
        }
    };
    // Another program suspends the thin pool, and setting the new mark resumes it.
    fill();
    bench.sim.dm_suspend(&name, false).unwrap();
    bench.run(ops::check_now(pool)).unwrap();
    assert!(!suspended(&bench));
    // If every attempt fails, the next check sets the mark.
    fill();
    bench.sim.dm_suspend(&name, false).unwrap();
    for _ in 0..2 {
        bench.sim.faults().fail_next(CallKind::DmResume, &name);
    }
    bench.run(ops::check_now(pool)).unwrap();
    assert_eq!(bench.sim.faults().struck(), 2);
    assert!(suspended(&bench), "it could not be resumed");
    bench.run(ops::check_now(pool)).unwrap();
    assert!(!suspended(&bench));
    let (free, mark, _) = thin_pool(&bench.sim, pool);
    assert!(mark < free, "the mark lies ahead again: {mark} of {free}");
    // The daemon does not retry on a failed thin pool.
    fill();
    bench.sim.fail_pool(&name).unwrap();
    let from = bench.sim.steps();
    bench.run(ops::check_now(pool)).unwrap_err();
    assert!(!suspended(&bench));
    assert!(!bench.tail(from).contains("DmLoad"), "{}", bench.tail(from));
    assert_eq!(bench.pool("p").unwrap().availability, Availability::NoPoolChanges);
}

/// The table of the thin pool is the last one that a growth replaces. While those below it lag
/// behind the record, the kernel would refuse it.
#[test]
fn no_mark_moves_while_tables_lag_behind() {
    let sim = Sim::builder().disk("/dev/a", Sectors(10 * GIB.0)).disk("/dev/b", Sectors(100 * GIB.0)).record().build();
    let mut bench = Bench::start(sim);
    bench.create_pool("p", &["/dev/a"]).unwrap();
    bench.create_filesystems("p", &["f"]).unwrap();
    let (sim, pool) = (bench.sim.clone(), bench.id("p"));
    bench.run(ops::check_now(pool)).unwrap();
    write(&sim, &node(&sim, pool, bench.filesystem("p", "f")), 1..300);
    let (free, mark, _) = thin_pool(&sim, pool);
    assert!(free <= mark, "{free} free, mark {mark}: a new mark is due");
    let (data, from) = (Role::ThinData.name(pool), sim.steps());
    (0..9).for_each(|_| sim.faults().fail_next(CallKind::DmLoad, &data));
    bench.run(ops::add_data_devices(pool, vec!["/dev/b".into()])).unwrap();
    assert!(sim.faults().struck() > 0);
    let trace = sim.trace().split_off(usize::try_from(from).unwrap());
    let mut failed = trace.iter().skip_while(|step| (step.call, &step.subject) != (CallKind::DmLoad, &data));
    let changed = |step: &RecordedCall| step.call.changes() && step.subject == Role::ThinPool.name(pool);
    assert!(!failed.any(changed), "{}", bench.tail(from));
    sim.faults().clear();
    bench.run(ops::check_now(pool)).unwrap();
    let (free, mark, _) = thin_pool(&sim, pool);
    assert!(free > 50_000 && mark < free, "{free} free, mark {mark}");
}
