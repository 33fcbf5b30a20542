//! The first scan for pools: what the start of the daemon waits for, and for how long.
//!
//! Devices are read and pools are set up in parallel, each on a dedicated thread. The start waits
//! for those that are quick, so that a client that sees the daemon's name sees those pools. Devices
//! and pools that do not answer are named in the log and follow later; they delay nothing else.
//!
//! Must never know: what a scan or a set-up consists of, who receives a change and how.

use std::time::Duration;

use crossbeam_channel::{Receiver, after, select, unbounded};
use threads::{
    group::{Group, How, ThreadEnd},
    stop::Stop,
};

use super::{
    dispatch::{Dispatcher, Request},
    error::Error,
    front_end::OnPublished,
    watchdog::Watchdog,
};
use crate::engine::request::Step;

/// How long reading the devices may take. A disk needs some seconds to spin up. Reads of a slower
/// disk are retried; its pool is set up when the disk has answered.
pub(super) const DEVICES_LIMIT: Duration = Duration::from_secs(10);
/// How long the start waits for pools. Pools are set up in parallel, so this limit covers all of
/// them.
pub(super) const POOLS_LIMIT: Duration = Duration::from_secs(10);

/// What is needed to run the requests of the start.
pub(super) struct Start<'a, R: Send + 'static> {
    pub(super) dispatcher: &'a Dispatcher<R>,
    /// Makes an answer that calls the given function.
    pub(super) answer: fn(OnPublished) -> R,
    pub(super) group: &'a Group,
    pub(super) stop: &'a Stop,
}

/// The outcome of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// All requests have ended, and their changes are published.
    All,
    /// Some requests still run.
    Late,
    /// The daemon has been requested to stop.
    Stop,
}

impl<R: Send + 'static> Start<'_, R> {
    /// Runs requests, with their labels, and waits for them to end, for at most `limit`. Late
    /// requests continue.
    ///
    /// # Errors
    /// A thread of the daemon ended.
    pub(super) fn run(&self, requests: Vec<(String, Step<()>)>, limit: Duration) -> Result<Waited, Error> {
        // Unbounded, but holds at most one message for each request.
        let (done, all_done) = unbounded();
        let count = requests.len();
        let answer = self.answer;
        for (label, chain) in requests {
            let answered = move |done: crossbeam_channel::Sender<()>| {
                // No receiver is left once the wait is over, because of the limit or a stop.
                Some(answer(Box::new(move || {
                    let _ = done.send(());
                })))
            };
            let (end, failure) = (done.clone(), done.clone());
            self.dispatcher.submit(Request {
                label,
                chain: chain.map(move |()| answered(end)),
                on_failure: Box::new(move |_| answered(failure)),
            });
        }
        let late = after(limit);
        for _ in 0..count {
            match wait_for(&all_done, &late, self.group, self.stop)? {
                Waited::All => {}
                other => return Ok(other),
            }
        }
        Ok(if self.stop.is_on() { Waited::Stop } else { Waited::All })
    }
}

/// Waits for a message, the time limit, the stop switch, or the end of a thread, which is an error
/// unless the daemon stops.
fn wait_for<T, L>(messages: &Receiver<T>, late: &Receiver<L>, group: &Group, stop: &Stop) -> Result<Waited, Error> {
    let ended = |ThreadEnd { name, how }| {
        let why = match how {
            How::Returned => String::new(),
            How::Failed(why) => format!(": {why}"),
            How::Panicked(text) => format!(" by a panic: {text}; please report it"),
        };
        Error::ThreadEnded { name, why }
    };
    select! {
        recv(messages) -> message => Ok(if message.is_ok() { Waited::All } else { Waited::Stop }),
        recv(late) -> _ => Ok(Waited::Late),
        recv(stop.receiver()) -> _ => Ok(Waited::Stop),
        recv(group.ended()) -> report => match report {
            Ok(report) if !stop.is_on() => Err(ended(report)),
            // A thread that ends after the switch is on ends because of it.
            _ => Ok(Waited::Stop),
        }
    }
}

/// Waits until the daemon is requested to stop, and feeds the watchdog meanwhile.
///
/// # Errors
/// A thread of the daemon ended before the stop.
pub(super) fn wait_for_stop(group: &Group, stop: &Stop, mut watchdog: Watchdog) -> Result<(), Error> {
    watchdog.begin();
    loop {
        match wait_for(&watchdog.answered(), &watchdog.due(), group, stop)? {
            Waited::All => watchdog.feed(),
            Waited::Late => watchdog.look(),
            Waited::Stop => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use threads::pulse::Pulse;

    use super::*;
    use crate::{
        base::{ids::PoolUuid, name::Name, pool_ref::PoolRef, units::Sectors},
        daemon::{
            dispatch::{LIMITS, StepWorkers},
            links::Links,
        },
        engine::{Engine, dm_names::Role, ops},
        platform::sim::{CallKind, Sim},
        view::{Change, Update},
    };

    /// Long enough for any machine; only a lost wake-up reaches it.
    const HANG: Duration = Duration::from_secs(120);
    const TEN_GIB: Sectors = Sectors(10 << 21);

    /// A daemon without a bus: changes are published to a channel.
    struct Bench {
        group: Group,
        stop: Stop,
        engine: Arc<Engine>,
        dispatcher: Dispatcher<OnPublished>,
        published: Receiver<Change>,
    }

    impl Bench {
        fn new(sim: &Sim) -> Bench {
            let group = Group::new(&["worker-*", "links", "writer"]);
            let workers = StepWorkers::start(&group, LIMITS).unwrap();
            let links = Links::new().unwrap();
            let waits = links.clone();
            group.spawn("links", move || waits.run(&Pulse::default()).map_err(|error| error.to_string())).unwrap();
            let engine = Arc::new(Engine::new(Arc::new(sim.clone())));
            let (updates, to_write) = unbounded::<Update<OnPublished>>();
            let (publish, published) = unbounded();
            let dispatcher = Dispatcher::new(Arc::clone(&engine), workers, links, updates, Box::new(|_| {}));
            group
                .spawn("writer", move || {
                    for Update { changes, reply } in to_write {
                        changes.into_iter().for_each(|change| drop(publish.send(change)));
                        if let Some(on_published) = reply {
                            on_published();
                        }
                    }
                    Ok(())
                })
                .unwrap();
            Bench { group, stop: Stop::new(), engine, dispatcher, published }
        }

        fn start(&self) -> Start<'_, OnPublished> {
            Start {
                dispatcher: &self.dispatcher,
                answer: |on_published| on_published,
                group: &self.group,
                stop: &self.stop,
            }
        }

        /// Waits until pools of these names are published.
        fn wait_for_pools(&self, names: &[&str]) {
            let mut missing: BTreeSet<&str> = names.iter().copied().collect();
            while !missing.is_empty() {
                if let Change::Pool(pool) = self.published.recv_timeout(HANG).expect("the pool is published") {
                    missing.remove(pool.name.as_str());
                }
            }
        }

        fn end(self) {
            self.dispatcher.stop().recv_timeout(HANG).expect_err("the channel carries no message");
            self.dispatcher.close();
            self.group.join(&["links", "worker-*", "writer"], HANG).unwrap();
        }
    }

    /// A machine with the pools `slow` on eight disks and `quick` on one, both taken down.
    fn machine() -> Sim {
        let names: Vec<String> = (0..8).map(|n| format!("/dev/slow{n}")).collect();
        let mut builder = Sim::builder();
        for name in ["/dev/quick", "/dev/more", "/dev/third"] {
            builder = builder.disk(name, TEN_GIB);
        }
        for name in &names {
            builder = builder.disk(name, TEN_GIB);
        }
        let sim = builder.build();
        let bench = Bench::new(&sim);
        let create = |name: &str, paths: Vec<String>| {
            let new = ops::NewPool {
                name: Name::new(name).unwrap(),
                devices: paths.into_iter().map(Into::into).collect(),
                integrity: ops::IntegritySpec::default(),
                version: ops::MetadataVersion::V2,
                bindings: Vec::new(),
            };
            let made = ops::create_pool(new).map(|made| assert!(made.unwrap().is_some()));
            assert_eq!(bench.start().run(vec![("create".to_owned(), made)], HANG).unwrap(), Waited::All);
        };
        create("slow", names);
        create("quick", vec!["/dev/quick".to_owned()]);
        bench.end();
        sim.cut_power();
        sim.power_on();
        sim
    }

    /// One pool that did not answer left all others without watchers and kept the daemon from
    /// taking its bus name.
    #[test]
    fn a_slow_pool_delays_no_other() {
        let sim = machine();
        let bench = Bench::new(&sim);
        let (look, devices) = ops::first_look(&bench.engine).unwrap();
        assert_eq!(bench.start().run(devices, HANG).unwrap(), Waited::All);
        let pools = look.end(&bench.engine);
        assert_eq!((pools.len(), look.unread().len()), (2, 0));
        // Its devices have been read; the first table on one of them hangs.
        let slow = look_up(&bench.engine, "slow");
        let gate = sim.delay(CallKind::DmCreate, &Role::OriginSub.name(slow));
        assert_eq!(bench.start().run(pools, Duration::ZERO).unwrap(), Waited::Late);
        bench.wait_for_pools(&["quick"]);
        assert!(gate.wait_for(1, HANG));
        // The pool is listed as being set up, and a request to start it waits.
        assert_eq!(ops::being_set_up(&bench.engine), ["slow"]);
        let stop = ops::start_pool(slow.into(), ops::UnlockOptions::default(), ops::CacheTier::Keep);
        let stop = stop.map(|started| assert_eq!(started.unwrap(), None, "it runs when the answer comes"));
        assert_eq!(bench.start().run(vec![("start".to_owned(), stop)], Duration::ZERO).unwrap(), Waited::Late);
        gate.open();
        bench.wait_for_pools(&["slow"]);
        bench.end();
    }

    /// A request about a pool that is being set up waits for the set-up, however long that takes.
    /// No other request does.
    #[test]
    fn only_calls_about_an_unfinished_pool_wait() {
        let sim = machine();
        let bench = Bench::new(&sim);
        let (look, devices) = ops::first_look(&bench.engine).unwrap();
        assert_eq!(bench.start().run(devices, HANG).unwrap(), Waited::All);
        let pools = look.end(&bench.engine);
        let [slow, quick] = look_up_each(&bench.engine, ["slow", "quick"]);
        let gate = sim.delay(CallKind::DmCreate, &Role::OriginSub.name(slow));
        assert_eq!(bench.start().run(pools, Duration::ZERO).unwrap(), Waited::Late);
        bench.wait_for_pools(&["quick"]);
        assert!(gate.wait_for(1, HANG));

        let (tell, answered) = unbounded();
        let (unlock, keep) = (ops::UnlockOptions::default, ops::CacheTier::Keep);
        let by_name = PoolRef::Name(Name::new("slow").unwrap());
        let about_slow: Vec<Step<bool>> = vec![
            ops::start_pool(slow.into(), unlock(), keep).map(|started| started.is_ok()),
            ops::start_pool(by_name, unlock(), keep).map(|started| started.is_ok()),
            ops::stop_pool(slow.into()).map(|stopped| stopped.is_ok()),
        ];
        for chain in about_slow {
            let tell = tell.clone();
            let chain = chain.map(move |done| tell.send(done).unwrap());
            assert_eq!(
                bench.start().run(vec![("about slow".to_owned(), chain)], Duration::ZERO).unwrap(),
                Waited::Late
            );
        }

        let done = |what: &str, chain: Step<bool>| {
            let chain = chain.map(|done| assert!(done));
            assert_eq!(bench.start().run(vec![(what.to_owned(), chain)], HANG).unwrap(), Waited::All, "{what}");
        };
        let f = ops::NewFilesystem { name: Name::new("f").unwrap(), size: None, size_limit: None };
        done("create", ops::create_filesystems(quick, vec![f]).map(|made| made.is_ok_and(|made| made.len() == 1)));
        let more = vec!["/dev/more".into()];
        done("add", ops::add_data_devices(quick, more).map(|added| added.is_ok_and(|added| added.len() == 1)));
        let new = Name::new("renamed").unwrap();
        done("rename", ops::rename_pool(quick, new).map(|renamed| renamed.is_ok_and(|renamed| renamed)));
        done("set", ops::set_overprovisioning(quick, true).map(|changed| changed.is_ok()));
        done("list keys", ops::list_keys().map(|keys| keys.is_ok()));
        done("stop", ops::stop_pool(quick.into()).map(|stopped| stopped.is_ok()));
        done("start", ops::start_pool(quick.into(), unlock(), keep).map(|started| started.is_ok_and(|s| s.is_some())));
        let third = ops::NewPool {
            name: Name::new("third").unwrap(),
            devices: vec!["/dev/third".into()],
            integrity: ops::IntegritySpec::default(),
            version: ops::MetadataVersion::V2,
            bindings: Vec::new(),
        };
        done("create pool", ops::create_pool(third).map(|made| made.is_ok_and(|made| made.is_some())));
        assert!(answered.try_recv().is_err(), "the set-up has not come to its end");
        assert_eq!(ops::being_set_up(&bench.engine), ["slow"]);

        gate.open();
        for _ in 0..3 {
            assert!(answered.recv_timeout(HANG).unwrap());
        }
        bench.end();
    }

    /// Eight disks that did not answer blocked the reading of all others.
    #[test]
    fn disks_that_hang_delay_no_other_pool() {
        let sim = machine();
        let gate = sim.delay(CallKind::Read, "/dev/slow");
        let bench = Bench::new(&sim);
        let (look, devices) = ops::first_look(&bench.engine).unwrap();
        assert_eq!(devices.len(), 9);
        assert_eq!(bench.start().run(devices, Duration::from_millis(1)).unwrap(), Waited::Late);
        assert!(gate.wait_for(8, HANG));
        let pools = look.end(&bench.engine);
        // A disk that answers after the limit sets its pool up by itself.
        bench.start().run(pools, HANG).unwrap();
        bench.wait_for_pools(&["quick"]);
        assert!((8..=9).contains(&look.unread().len()), "{:?}", look.unread());
        gate.open();
        bench.wait_for_pools(&["slow"]);
        bench.end();
    }

    fn look_up(engine: &Engine, name: &str) -> PoolUuid {
        let [pool] = look_up_each(engine, [name]);
        pool
    }

    fn look_up_each<const N: usize>(engine: &Engine, names: [&str; N]) -> [PoolUuid; N] {
        let stopped = engine.take_stopped_change().unwrap();
        names.map(|name| stopped.named(name).next().unwrap())
    }
}
