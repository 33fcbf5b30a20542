//! The watchers as threads, over a simulated machine. The test takes the place of the engine: it
//! takes tasks from the channel, and dropping a task ends it. Only a lost event reaches a time
//! limit.

use std::{path::Path, sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, unbounded};
use threads::{group::Group, pulse::Pulse, stop::Stop, wake::Waker};

use super::*;
use crate::{
    base::{ids::PoolUuid, name::Name, units::Sectors},
    engine::dm_names::Role,
    platform::{
        Platform,
        dm::{Line, Visibility},
        sim::Sim,
    },
    view::{self, Change},
};

const HANG: Duration = Duration::from_secs(60);

struct Watched {
    group: Group,
    stop: Stop,
    tasks: Receiver<WatchRequest>,
}

impl Watched {
    fn start<W: Send + 'static>(
        make: impl FnOnce(SubmitWatched) -> W,
        run: impl FnOnce(W, &Stop) -> Result<(), Error> + Send + 'static,
    ) -> Watched {
        let (sender, tasks) = unbounded();
        let watch = make(Box::new(move |task| sender.send(task).expect("the test owns the receiver")));
        let (group, stop) = (Group::new(&["watcher"]), Stop::new());
        let switch = stop.clone();
        group.spawn("watcher", move || run(watch, &switch).map_err(|error| error.to_string())).unwrap();
        Watched { group, stop, tasks }
    }

    fn next(&self) -> WatchRequest {
        self.tasks.recv_timeout(HANG).expect("a task comes")
    }

    fn end(self) {
        self.stop.trigger("the test is over");
        self.group.join(&["watcher"], HANG).unwrap();
        assert_eq!(self.group.ended().recv().unwrap().how, threads::group::How::Returned);
        assert!(self.tasks.try_recv().is_err(), "a task without a cause");
    }
}

fn comes(pool: PoolUuid) -> Change {
    Change::Pool(Arc::new(view::PoolView::bare(pool, Name::new("p").unwrap())))
}

#[test]
fn events_of_one_device_are_processed_in_order() {
    let sim = Sim::builder().build();
    let source = sim.device_events().unwrap();
    let watched = Watched::start(
        |submit| DeviceWatch::new(source, Waker::new().unwrap(), submit),
        |watch, stop| watch.run(stop, &Pulse::default()),
    );
    let (a, b) = (Path::new("/dev/a"), Path::new("/dev/b"));
    sim.add_disk(a, Sectors(1 << 21)).unwrap();
    let add = watched.next();
    assert_eq!(add.label, "Add of /dev/a");
    sim.pull_disk(a).unwrap();
    sim.add_disk(b, Sectors(1 << 21)).unwrap();
    let other = watched.next();
    assert_eq!(other.label, "Add of /dev/b", "the removal must wait for the first event, this one must not");
    drop(add);
    assert_eq!(watched.next().label, "Remove of /dev/a");
    drop(other);
    watched.end();
}

/// Found in review: events that did not fit into the socket were logged and forgotten.
#[test]
fn lost_events_cause_a_scan_of_all_devices() {
    let sim = Sim::builder().build();
    let source = sim.device_events().unwrap();
    // The test sends more events than the source keeps.
    for number in 0..5000 {
        sim.add_disk(Path::new(&format!("/dev/x{number}")), Sectors(1 << 21)).unwrap();
    }
    let watched = Watched::start(
        |submit| DeviceWatch::new(source, Waker::new().unwrap(), submit),
        |watch, stop| watch.run(stop, &Pulse::default()),
    );
    let look = loop {
        let task = watched.next();
        if task.label.starts_with("scan of all devices") {
            break task;
        }
        assert!(task.label.starts_with("Add of /dev/x"), "{}", task.label);
    };
    // The findings of the scan are processed like events.
    let engine = crate::engine::Engine::new(Arc::new(sim.clone()));
    let header = crate::engine::metadata::StaticHeader::new(
        PoolUuid::from_random([1; 16]),
        crate::base::ids::DevUuid::from_random([2; 16]),
        crate::engine::metadata::MetadataVersion::V2,
        Sectors(1 << 21),
        0,
    );
    crate::engine::bda::Bda::initialize(&sim, &[(Path::new("/dev/x4999"), header)]).unwrap();
    // Writing the header raised another event, which does not matter here.
    drop(watched.next());
    let Step::Blocking(_, step) = look.chain else { panic!("the scan takes a lock") };
    assert!(matches!(step(&engine), Step::Done(())));
    assert_eq!(watched.next().label, "Change of /dev/x4999");
    watched.end();
}

#[test]
fn device_mapper_events_merge_during_a_check() {
    let sim = Sim::builder().disk("/dev/a", Sectors(1 << 21)).build();
    let disk = sim.find_device(Path::new("/dev/a")).unwrap().number;
    let source = sim.dm_events().unwrap();
    let platform: Arc<dyn Platform> = Arc::new(sim.clone());
    let waker = Waker::new().unwrap();
    let running = RunningPools::new(vec![waker.clone()]);
    let observed = running.clone();
    let watched = Watched::start(
        |submit| DmWatch::new(platform, source, running, waker, submit),
        |watch, stop| watch.run(stop, &Pulse::default()),
    );
    let make = |pool: PoolUuid| {
        let table = [Line::linear(Sectors(0), Sectors(8), disk, Sectors(0))];
        let name = Role::ThinPool.name(pool);
        sim.dm_create(&name, &name, &table, Visibility::Private).unwrap();
        observed.note(&[comes(pool)]);
    };
    let [a, b] = [1, 2].map(|byte| PoolUuid::from_random([byte; 16]));
    let label = |pool| format!("check of pool {pool} after a device-mapper event");
    make(a);
    let first = watched.next();
    assert_eq!(first.label, label(a));
    sim.raise_event(&Role::ThinPool.name(a)).unwrap();
    sim.raise_event(&Role::ThinPool.name(a)).unwrap();
    make(b);
    let other = watched.next();
    assert_eq!(other.label, label(b), "a pool must not wait for another");
    drop(first);
    let second = watched.next();
    assert_eq!(second.label, label(a), "two events during a check cause one more");
    drop((second, other));
    watched.end();
}

#[test]
fn the_first_pool_wakes_the_timer() {
    let waker = Waker::new().unwrap();
    let running = RunningPools::new(vec![waker.clone()]);
    let observed = running.clone();
    let watched = Watched::start(
        |submit| Timers::new(running, waker, submit),
        |timers, stop| timers.run(stop, &Pulse::default()),
    );
    let pool = PoolUuid::from_random([7; 16]);
    observed.note(&[comes(pool)]);
    let check = watched.next();
    assert_eq!(check.label, format!("periodic check of pool {pool}"));
    observed.note(&[Change::PoolGone(pool)]);
    drop(check);
    assert!(observed.list().is_empty());
    watched.end();
}
