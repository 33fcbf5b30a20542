//! The life of the daemon: come up in order, wait for the first reason to stop, stop in order.
//!
//! Must never know: any policy about pools.

use std::{io, sync::Arc};

use crossbeam_channel::unbounded;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
    low_level::signal_name,
};
use threads::{
    group::{Group, SpawnError},
    lock::{Observation, Observed},
    stop::Stop,
    wake::Waker,
};

use super::{
    dispatch::{Dispatcher, LIMITS, Request, Workers},
    first_look::{self, Start, Waited},
    links::Links,
    machine::{self, Choice, Machine},
    readiness,
    stop::{self, Stuck},
    thread_table as names, version,
};
use crate::{
    base::error_chain,
    bus::{self, Bus, Holder, Job, Locks, Reader, Reply},
    engine::{self, Engine, request::Next},
    platform::{self, Platform},
    watch::{self, DeviceWatch, DmWatch, Running, Task, Timers},
};

/// Why the daemon did not come up or did not stay up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error("the daemon cannot listen to signals")]
    Signals(#[source] io::Error),
    #[error("the daemon cannot make what its threads are woken with")]
    Waker(#[source] io::Error),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Bus(#[from] bus::Error),
    #[error("the machine does not tell of events")]
    Events(#[source] platform::Error),
    #[error("the pools of this machine could not be looked for: {0}")]
    Discovery(String),
    #[error("thread {name} ended{why}; without it the daemon cannot go on")]
    ThreadEnded { name: String, why: String },
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

/// Runs the daemon until SIGINT or SIGTERM.
///
/// # Errors
/// Any other reason why it ended.
pub fn run(choice: &Choice) -> Result<(), Error> {
    // Both before any thread, see there.
    platform::linux::heap::give_back();
    let machine = Machine::start(choice)?;
    log::info!("stratisd {} begins on {}", version(), machine.description());
    let signals = Signals::new([SIGINT, SIGTERM]).map_err(Error::Signals)?;
    let handle = signals.handle();
    let (group, stop) = (Group::new(&names::NAMES), Stop::new());
    let mut dispatcher = None;
    let outcome = start(&machine, signals, &group, &stop, &mut dispatcher)
        // Up, or told to stop on the way, which is seen at once.
        .and_then(|()| first_look::wait_for_stop(&group, &stop));
    if let Err(error) = &outcome {
        stop.trigger(error_chain::sentence(error));
    }
    let stopped = stop::stop(&group, dispatcher.as_ref(), &handle);
    outcome.and(stopped.map_err(Error::Stuck))
}

/// Brings everything up, the view first and the name last: whoever sees the name sees the pools, but for those that take long to
/// be set up, which are shown as being set up. Returns early when it is told to stop.
fn start(
    machine: &Machine,
    signals: Signals,
    group: &Group,
    stop: &Stop,
    dispatcher: &mut Option<Dispatcher<Reply>>,
) -> Result<(), Error> {
    let switch = stop.clone();
    group.spawn(names::SIGNALS, move || {
        listen(signals, &switch);
        Ok(())
    })?;
    let platform = machine.platform();
    let Bus { reader, lister, writer } = Bus::connect()?;

    let engine = Arc::new(Engine::new(Arc::clone(&platform)));
    let waker = || Waker::new().map_err(Error::Waker);
    let (timers_waker, dm_waker) = (waker()?, waker()?);
    let running = Running::new(vec![timers_waker.clone(), dm_waker.clone()]);
    let observed = running.clone();
    // Unbounded: see `Records` in `dispatch`.
    let (updates, published) = unbounded();
    let workers = Workers::start(group, LIMITS)?;
    let links = Links::new().map_err(Error::Waker)?;
    let waits = links.clone();
    group.spawn(names::LINKS, move || waits.run().map_err(|error| error_chain::sentence(&error)))?;
    let observer = Box::new(move |changes: &[_]| observed.note(changes));
    let dispatcher = &*dispatcher.insert(Dispatcher::new(Arc::clone(&engine), workers, links, updates, observer));
    group.spawn(names::TREE_WRITER, move || {
        writer.run(&published);
        Ok(())
    })?;
    let jobs = Jobs { dispatcher: dispatcher.clone(), platform: Arc::clone(&platform) };
    group.spawn(names::BUS_LISTER, move || {
        lister.run(&jobs);
        Ok(())
    })?;

    // The sources come first and the look at the machine second, so nothing that happens in between is missed.
    let device_events = platform.device_events().map_err(Error::Events)?;
    let dm_events = platform.dm_events().map_err(Error::Events)?;
    let begin = Start { dispatcher, tell: |told| Reply::tell(told), group, stop };
    let (look, devices) = engine::ops::first_look(&engine).map_err(|error| Error::Discovery(error.sentence()))?;
    match begin.run(devices, first_look::DEVICES_LIMIT)? {
        Waited::All => {}
        Waited::Late => {
            let unread: Vec<String> = look.unread().iter().map(|path| path.display().to_string()).collect();
            log::warn!("{} cannot be read so far; going on without them", unread.join(", "));
        }
        Waited::Stop => return Ok(()),
    }

    let submit = || -> watch::Submit {
        let dispatcher = dispatcher.clone();
        Box::new(move |Task { label, chain }| {
            let on_failure = Box::new(|_| None);
            dispatcher.submit(Request { label, chain: chain.map(|()| None), on_failure });
        })
    };
    let watch = DeviceWatch::new(device_events, waker()?, submit());
    spawn_watcher(names::UDEV, group, stop, |stop| watch.run(stop))?;
    let watch = DmWatch::new(Arc::clone(&platform), dm_events, running.clone(), dm_waker, submit());
    spawn_watcher(names::DM_EVENTS, group, stop, |stop| watch.run(stop))?;
    let timers = Timers::new(running, timers_waker, submit());
    spawn_watcher(names::TIMERS, group, stop, |stop| timers.run(stop))?;

    // Pools are watched from the moment in which they run, whatever the others do.
    match begin.run(look.end(&engine), first_look::POOLS_LIMIT)? {
        Waited::All => {}
        Waited::Late => {
            log::warn!("still being set up: {}; going on without", engine::ops::being_set_up(&engine).join(", "));
        }
        Waited::Stop => return Ok(()),
    }
    // When this is told, all that is known so far has been published.
    let nothing = vec![("the first view".to_owned(), Next::Done(()))];
    if begin.run(nothing, first_look::POOLS_LIMIT)? == Waited::Stop {
        return Ok(());
    }
    reader.request_name()?;
    spawn_reader(reader, group, stop, Jobs { dispatcher: dispatcher.clone(), platform })?;
    log::info!("{} is served", bus::NAME);
    readiness::tell(readiness::READY);
    Ok(())
}

/// The life of the signal thread: the first signal stops the daemon. Those that follow are others who ask for the same, as
/// systemd and a daemon that takes over do, and change nothing: the stop has its own limits of time.
fn listen(mut signals: Signals, stop: &Stop) {
    for signal in signals.forever() {
        let name = signal_name(signal).unwrap_or("a signal");
        if stop.is_on() {
            log::info!("{name} while stopping changes nothing; SIGQUIT ends the daemon at once");
        }
        stop.trigger(name);
    }
}

fn spawn_watcher(
    name: &str,
    group: &Group,
    stop: &Stop,
    run: impl FnOnce(&Stop) -> Result<(), watch::Error> + Send + 'static,
) -> Result<(), Error> {
    let stop = stop.clone();
    Ok(group.spawn(name, move || run(&stop).map_err(|error| error_chain::sentence(&error)))?)
}

fn spawn_reader(reader: Reader, group: &Group, stop: &Stop, jobs: Jobs) -> Result<(), Error> {
    let stop = stop.clone();
    Ok(group
        .spawn(names::BUS_READER, move || reader.run(&jobs, &stop).map_err(|error| error_chain::sentence(&error)))?)
}

/// Where the bus reader's jobs go.
struct Jobs {
    dispatcher: Dispatcher<Reply>,
    platform: Arc<dyn Platform>,
}

impl bus::Submit for Jobs {
    fn submit(&self, Job { label, chain, on_failure }: Job) {
        self.dispatcher.submit(Request { label, chain, on_failure });
    }

    fn locks(&self) -> Locks {
        let told = |observed: Vec<Observed>| -> Vec<Holder> {
            let tell = |Observed { label, access, age, .. }| Holder { request: label.into_owned(), access, age };
            observed.into_iter().map(tell).collect()
        };
        let Observation { holders, waiters } = self.dispatcher.observe();
        let running = self.platform.running_programs().into_iter();
        let programs = running.map(|platform::RunningProgram { label, process, age, is_stuck }| bus::RunningProgram {
            label,
            process,
            age,
            is_stuck,
        });
        let unanswered_udev_events = self.platform.unanswered_udev_events();
        Locks { holders: told(holders), waiters: told(waiters), programs: programs.collect(), unanswered_udev_events }
    }
}
