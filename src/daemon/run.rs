//! The life of the daemon: start in order, wait for the first reason to stop, stop in order.
//!
//! Must never know: any policy about pools.

use std::sync::Arc;

use crossbeam_channel::unbounded;
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGURG},
    iterator::Signals,
    low_level::{raise, signal_name},
};
use threads::{
    group::Group,
    lock::{Observation, Observed},
    pulse::Pulse,
    stop::Stop,
    wake::Waker,
};

use super::{
    dispatch::{Dispatcher, LIMITS, Request, StepWorkers},
    error::Error,
    first_look::{self, Start, Waited},
    links::Links,
    machine::{Machine, MachineChoice},
    readiness, stop, thread_table as names, version,
    watchdog::Watchdog,
};
use crate::{
    base::error_chain,
    bus::{self, Bus, Holder, Job, Locks, Reader, Reply},
    engine::{self, Engine, request::Step},
    platform::{self, Platform},
    view::Update,
    watch::{self, DeviceWatch, DmWatch, RunningPools, Timers, WatchRequest},
};

/// Runs the daemon until SIGINT or SIGTERM.
///
/// # Errors
/// Any other reason to end.
pub fn run(choice: &MachineChoice) -> Result<(), Error> {
    // Both calls come before the first thread starts, for the reasons that their documentation
    // gives.
    platform::linux::heap::give_back();
    let machine = Machine::start(choice)?;
    log::info!("stratisd {} starts on {}", version(), machine.description());
    let mut watchdog = Watchdog::new();
    // The watchdog asks the signal thread by a signal that is ignored by default.
    let asked_with = watchdog.is_wanted().then_some(SIGURG);
    let signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(asked_with)).map_err(Error::Signals)?;
    let handle = signals.handle();
    let (group, stop) = (Group::new(&names::NAMES), Stop::new());
    let mut dispatcher = None;
    let outcome = start(&machine, signals, &group, &stop, &mut dispatcher, &mut watchdog)
        // The daemon is up, or a stop has been requested, which the wait notices at once.
        .and_then(|()| first_look::wait_for_stop(&group, &stop, watchdog));
    if let Err(error) = &outcome {
        stop.trigger(error_chain::sentence(error));
    }
    let stopped = stop::stop(&group, dispatcher.as_ref(), &handle);
    outcome.and(stopped.map_err(Error::Stuck))
}

/// Starts everything, the view first and the bus name last: a client that sees the name sees the
/// pools. Pools that take long to set up are listed as being set up. Returns early on a stop.
fn start(
    machine: &Machine,
    signals: Signals,
    group: &Group,
    stop: &Stop,
    dispatcher: &mut Option<Dispatcher<Reply>>,
    watchdog: &mut Watchdog,
) -> Result<(), Error> {
    let switch = stop.clone();
    let pulse = watchdog.member(names::SIGNALS, |_| drop(raise(SIGURG)));
    group.spawn(names::SIGNALS, move || {
        listen(signals, &switch, &pulse);
        Ok(())
    })?;
    let platform = machine.platform();
    let Bus { reader, lister, writer } = Bus::connect()?;

    let engine = Arc::new(Engine::new(Arc::clone(&platform)));
    let waker = || Waker::new().map_err(Error::Waker);
    let (udev_waker, timers_waker, dm_waker) = (waker()?, waker()?, waker()?);
    let running = RunningPools::new(vec![timers_waker.clone(), dm_waker.clone()]);
    let observed = running.clone();
    // Unbounded: see `Records` in `dispatch`.
    let (updates, published) = unbounded();
    let workers = StepWorkers::start(group, LIMITS)?;
    let links = Links::new().map_err(Error::Waker)?;
    let (waits, nudged) = (links.clone(), links.clone());
    let pulse = watchdog.member(names::LINKS, move |_| nudged.nudge());
    group.spawn(names::LINKS, move || waits.run(&pulse).map_err(|error| error_chain::sentence(&error)))?;
    let nudge = updates.clone();
    let observer = Box::new(move |changes: &[_]| observed.note(changes));
    let dispatcher = &*dispatcher.insert(Dispatcher::new(Arc::clone(&engine), workers, links, updates, observer));
    let passed = dispatcher.clone();
    watchdog.member(names::WORKERS, move |pulse| {
        let pulse = pulse.clone();
        passed.pass(Box::new(move || pulse.beat()));
    });
    let pulse =
        watchdog.member(names::TREE_WRITER, move |_| drop(nudge.send(Update { changes: Vec::new(), reply: None })));
    group.spawn(names::TREE_WRITER, move || {
        writer.run(&published, &pulse);
        Ok(())
    })?;
    let jobs = BusJobs { dispatcher: dispatcher.clone(), platform: Arc::clone(&platform) };
    let nudge = lister.nudge();
    let pulse = watchdog.member(names::BUS_LISTER, move |_| nudge());
    group.spawn(names::BUS_LISTER, move || {
        lister.run(&jobs, &pulse);
        Ok(())
    })?;

    // The event sources come first and the scan second, so no event in between is missed.
    let device_events = platform.device_events().map_err(Error::Events)?;
    let dm_events = platform.dm_events().map_err(Error::Events)?;
    let begin = Start { dispatcher, answer: |told| Reply::tell(told), group, stop };
    let (look, devices) = engine::ops::first_look(&engine).map_err(|error| Error::Discovery(error.sentence()))?;
    match begin.run(devices, first_look::DEVICES_LIMIT)? {
        Waited::All => {}
        Waited::Late => {
            let unread: Vec<String> = look.unread().iter().map(|path| path.display().to_string()).collect();
            log::warn!("starting without devices that do not answer: {}", unread.join(", "));
        }
        Waited::Stop => return Ok(()),
    }

    let submit = || -> watch::SubmitWatched {
        let dispatcher = dispatcher.clone();
        Box::new(move |WatchRequest { label, chain }| {
            let on_failure = Box::new(|_| None);
            dispatcher.submit(Request { label, chain: chain.map(|()| None), on_failure });
        })
    };
    let mut woken = |name, waker: &Waker| {
        let waker = waker.clone();
        watchdog.member(name, move |_| waker.wake())
    };
    let pulse = woken(names::UDEV, &udev_waker);
    let watch = DeviceWatch::new(device_events, udev_waker, submit());
    spawn_watcher(names::UDEV, group, stop, move |stop| watch.run(stop, &pulse))?;
    let pulse = woken(names::DM_EVENTS, &dm_waker);
    let watch = DmWatch::new(Arc::clone(&platform), dm_events, running.clone(), dm_waker, submit());
    spawn_watcher(names::DM_EVENTS, group, stop, move |stop| watch.run(stop, &pulse))?;
    let pulse = woken(names::TIMERS, &timers_waker);
    let timers = Timers::new(running, timers_waker, submit());
    spawn_watcher(names::TIMERS, group, stop, move |stop| timers.run(stop, &pulse))?;

    // Pools are watched from the moment they run, independently of the others.
    match begin.run(look.end(&engine), first_look::POOLS_LIMIT)? {
        Waited::All => {}
        Waited::Late => {
            log::warn!("serving while pools are still being set up: {}", engine::ops::being_set_up(&engine).join(", "));
        }
        Waited::Stop => return Ok(()),
    }
    // When this request is answered, all changes so far have been published.
    let nothing = vec![("the first view".to_owned(), Step::Done(()))];
    if begin.run(nothing, first_look::POOLS_LIMIT)? == Waited::Stop {
        return Ok(());
    }
    reader.request_name()?;
    let pulse = woken(names::BUS_READER, reader.waker());
    spawn_reader(reader, group, stop, pulse, BusJobs { dispatcher: dispatcher.clone(), platform })?;
    log::info!("{} is served", bus::NAME);
    readiness::tell(readiness::READY);
    Ok(())
}

/// The body of the signal thread. The first signal stops the daemon. Later ones change nothing:
/// systemd and a daemon that takes over may send a second one, and the stop has its own time
/// limits.
fn listen(mut signals: Signals, stop: &Stop, pulse: &Pulse) {
    for signal in signals.forever() {
        pulse.beat();
        if signal == SIGURG {
            continue;
        }
        let name = signal_name(signal).unwrap_or("a signal");
        if stop.is_on() {
            log::info!("ignoring {name}: the daemon is already stopping; SIGQUIT ends it at once");
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

fn spawn_reader(reader: Reader, group: &Group, stop: &Stop, pulse: Pulse, jobs: BusJobs) -> Result<(), Error> {
    let stop = stop.clone();
    Ok(group.spawn(names::BUS_READER, move || {
        reader.run(&jobs, &stop, &pulse).map_err(|error| error_chain::sentence(&error))
    })?)
}

/// Receives the jobs of the bus reader.
struct BusJobs {
    dispatcher: Dispatcher<Reply>,
    platform: Arc<dyn Platform>,
}

impl bus::Submit for BusJobs {
    fn submit(&self, Job { label, chain, on_failure }: Job) {
        self.dispatcher.submit(Request { label, chain, on_failure });
    }

    fn locks(&self) -> Locks {
        let list = |observed: Vec<Observed>| -> Vec<Holder> {
            let holder = |Observed { label, access, age, .. }| Holder { request: label.into_owned(), access, age };
            observed.into_iter().map(holder).collect()
        };
        let Observation { holders, waiters } = self.dispatcher.observe();
        let running = self.platform.running_programs().into_iter();
        let programs = running.map(|platform::RunningProgram { label, process, age, is_stuck }| bus::ReportedProgram {
            label,
            process,
            age,
            is_stuck,
        });
        let unanswered_udev_events = self.platform.unanswered_udev_events();
        Locks { holders: list(holders), waiters: list(waiters), programs: programs.collect(), unanswered_udev_events }
    }
}
