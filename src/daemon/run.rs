//! The life of the daemon: start in order, wait for the first reason to stop, stop in order.
//!
//! Must never know: any policy about pools.

use std::{convert::Infallible, sync::Arc};

use crossbeam_channel::unbounded;
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGURG},
    iterator::Signals,
    low_level::{raise, signal_name},
};
use threads::{group::Group, pulse::Pulse, stop::Stop, wake::Waker};

use super::{
    dispatch::{Dispatcher, LIMITS, Request, StepWorkers},
    error::Error,
    first_look::{self, Start, Waited},
    front_end::{FrontEnd, Jobs, Threads, UpdateChannel},
    links::Links,
    machine::{DaemonRole, Machine, MachineChoice, Predecessor},
    readiness, stop, thread_table as names, version,
    watchdog::Watchdog,
};
use crate::{
    base::error_chain,
    engine::{self, Engine, request::Step},
    watch::{self, DeviceWatch, DmWatch, RunningPools, Timers, WatchRequest},
};

/// Extends the time for the start by 30 seconds (sd_notify(3)), while the early-boot daemon
/// completes what it has begun.
const EXTEND_START: &str = "EXTEND_TIMEOUT_USEC=30000000";

/// Runs the daemon with this front end until SIGINT or SIGTERM. `predecessor`: what becomes of an
/// early-boot daemon if this is another one.
///
/// # Errors
/// Any other reason to end.
pub fn run<F: FrontEnd>(choice: &MachineChoice, predecessor: Predecessor) -> Result<(), Error> {
    // Both calls come before the first thread starts, for the reasons that their documentation
    // gives.
    crate::platform::linux::heap::give_back();
    let mut watchdog = Watchdog::new();
    // The watchdog asks the signal thread by a signal that is ignored by default.
    let asked_with = watchdog.is_wanted().then_some(SIGURG);
    let mut signals = Signals::new([SIGINT, SIGTERM].into_iter().chain(asked_with)).map_err(Error::Signals)?;
    let mut machine = Machine::start(choice, F::ROLE, predecessor)?;
    log::info!("{} {} starts on {}", F::ROLE.program(), version(), machine.description());
    // Everything that may fail comes before the other daemon is told to end: if this one cannot
    // start, the other one continues.
    let front_end = F::open(machine.paths()).map_err(Error::FrontEnd)?;
    let go_on = || {
        readiness::tell(EXTEND_START);
        !signals.pending().any(|signal| signal != SIGURG)
    };
    if !machine.take_over(go_on)? {
        log::info!("the daemon was told to stop while it waited for the early-boot daemon");
        return Ok(());
    }
    let handle = signals.handle();
    let all = names::names(&F::THREADS.with_the_daemons().collect::<Vec<_>>());
    let (group, stop) = (Group::new(&all), Stop::new());
    let mut dispatcher = None;
    let threads = Threads { group: &group, stop: &stop, watchdog: &mut watchdog };
    let outcome = start(&machine, front_end, signals, threads, &mut dispatcher)
        // The daemon is up, or a stop has been requested, which the wait notices at once.
        .and_then(|()| first_look::wait_for_stop(&group, &stop, watchdog));
    if let Err(error) = &outcome {
        stop.trigger(error_chain::sentence(error));
    }
    // When the early-boot daemon stops, stratisd waits for it, and its clients wait for their
    // pools. When stratisd stops, a shutdown may wait for it.
    let platform = machine.platform();
    let working = (F::ROLE == DaemonRole::Early).then_some(&*platform);
    let stopped = stop::stop(&group, &F::THREADS, dispatcher.as_ref(), working, &handle);
    outcome.and(stopped.map_err(Error::Stuck))
}

/// Starts everything, the view first and the service to clients last: a client that is served sees
/// the pools. Pools that take long to set up are listed as being set up. Returns early on a stop.
fn start<F: FrontEnd>(
    machine: &Machine,
    mut front_end: F,
    signals: Signals,
    mut threads: Threads<'_>,
    dispatcher: &mut Option<Dispatcher<F::Reply>>,
) -> Result<(), Error> {
    let threads = &mut threads;
    threads.spawn(
        names::SIGNALS,
        |_| drop(raise(SIGURG)),
        move |stop, pulse| {
            listen(signals, stop, pulse);
            Ok::<_, Infallible>(())
        },
    )?;
    let platform = machine.platform();

    let engine = Arc::new(Engine::new(Arc::clone(&platform)));
    let waker = || Waker::new().map_err(Error::Waker);
    let (udev_waker, timers_waker, dm_waker) = (waker()?, waker()?, waker()?);
    let running = RunningPools::new(vec![timers_waker.clone(), dm_waker.clone()]);
    let observed = running.clone();
    // Unbounded: see `Records` in `dispatch`.
    let (sender, updates) = unbounded();
    let workers = StepWorkers::start(threads.group, LIMITS)?;
    let links = Links::new().map_err(Error::Waker)?;
    let (waits, nudged) = (links.clone(), links.clone());
    threads.spawn(names::LINKS, move |_| nudged.nudge(), move |_, pulse| waits.run(pulse))?;
    let channel = UpdateChannel { updates, sender: sender.clone() };
    let observer = Box::new(move |changes: &[_]| observed.note(changes));
    let dispatcher = &*dispatcher.insert(Dispatcher::new(Arc::clone(&engine), workers, links, sender, observer));
    let passed = dispatcher.clone();
    threads.watchdog.member(names::WORKERS, move |pulse| {
        let pulse = pulse.clone();
        passed.pass(Box::new(move || pulse.beat()));
    });
    let jobs = Jobs { dispatcher: dispatcher.clone(), platform: Arc::clone(&platform) };
    front_end.publish(threads, channel, &jobs)?;

    // The event sources come first and the scan second, so no event in between is missed.
    let device_events = platform.device_events().map_err(Error::Events)?;
    let dm_events = platform.dm_events().map_err(Error::Events)?;
    let begin = Start { dispatcher, answer: F::tell, group: threads.group, stop: threads.stop };
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
    let woken = |waker: &Waker| {
        let waker = waker.clone();
        move |_: &Pulse| waker.wake()
    };
    let ask = woken(&udev_waker);
    let watch = DeviceWatch::new(device_events, udev_waker, submit());
    threads.spawn(names::UDEV, ask, move |stop, pulse| watch.run(stop, pulse))?;
    let ask = woken(&dm_waker);
    let watch = DmWatch::new(Arc::clone(&platform), dm_events, running.clone(), dm_waker, submit());
    threads.spawn(names::DM_EVENTS, ask, move |stop, pulse| watch.run(stop, pulse))?;
    let ask = woken(&timers_waker);
    let timers = Timers::new(running, timers_waker, submit());
    threads.spawn(names::TIMERS, ask, move |stop, pulse| timers.run(stop, pulse))?;

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
    let served = front_end.serve(threads, jobs)?;
    log::info!("{served} is served");
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
