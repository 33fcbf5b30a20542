//! How the daemon comes to its end: in one order, in bounded time, with the name of what hangs.
//!
//! Must never know: why it stops; pools stay as they are in any case.
//!
//! The order: the switch is on and wakes everybody; no request is taken any more, and those that wait are answered; the bus
//! reader and the watchers end; requests that have begun go on to their end; the workers end; the tree writer publishes and
//! answers what is left and ends; the signal thread ends. A step that takes too long is named, and the next ones follow
//! all the same, as far as they do not need it.

use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use signal_hook::iterator::Handle;
use threads::{
    group::{Ended, Group, Hanging, How},
    lock::Observation,
};

use super::{dispatch::Dispatcher, readiness, thread_table as names};
use crate::bus::Reply;

/// How long requests that have begun may take. The longest single step is a format or a repair, which take seconds; and the
/// service manager loses patience after 90 seconds.
const REQUESTS_LIMIT: Duration = Duration::from_secs(60);
/// How long threads may take that have nothing to do but to end.
const THREADS_LIMIT: Duration = Duration::from_secs(5);

/// What did not come to its end in time. The process ends without it.
#[derive(Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("the daemon could not stop in order; {}", self.what())]
pub struct Stuck {
    /// Requests that were still under way.
    pub requests: Vec<String>,
    /// Threads that were still running.
    pub threads: Vec<String>,
}

impl Stuck {
    fn what(&self) -> String {
        let requests = (!self.requests.is_empty()).then(|| format!("requests under way: {}", self.requests.join(", ")));
        let threads = (!self.threads.is_empty()).then(|| format!("threads still running: {}", self.threads.join(", ")));
        [requests, threads].into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// Brings everything to its end. The switch has been turned on. Threads that were never started are passed over.
///
/// # Errors
/// What was still under way when its time was up.
pub(super) fn stop(group: &Group, dispatcher: Option<&Dispatcher<Reply>>, signals: &Handle) -> Result<(), Stuck> {
    readiness::tell(readiness::STOPPING);
    let mut stuck = Stuck::default();
    let mut join = |names: &[&str]| match group.join(names, THREADS_LIMIT) {
        Ok(()) => {}
        Err(Hanging { names }) => stuck.threads.extend(names),
    };
    let over = dispatcher.map(Dispatcher::stop);
    join(&[names::BUS_READER, names::BUS_LISTER, names::UDEV, names::DM_EVENTS, names::TIMERS]);
    if let (Some(dispatcher), Some(over)) = (dispatcher, over) {
        if over.recv_timeout(REQUESTS_LIMIT) == Err(RecvTimeoutError::Timeout) {
            stuck.requests = dispatcher.unfinished();
            log_locks(&dispatcher.observe());
        }
        dispatcher.close();
    }
    join(&[names::LINKS, names::WORKERS]);
    join(&[names::TREE_WRITER]);
    signals.close();
    join(&[names::SIGNALS]);
    for Ended { name, how } in group.ended().try_iter() {
        match how {
            How::Returned => {}
            How::Failed(why) | How::Panicked(why) => log::error!("thread {name} ended with an error: {why}"),
        }
    }
    if stuck == Stuck::default() { Ok(()) } else { Err(stuck) }
}

/// Who has what and who waits for it, to find the cause of a hang.
fn log_locks(locks: &Observation) {
    for (what, list) in [("holds", &locks.holders), ("waits for", &locks.waiters)] {
        for one in list {
            log::error!("{} {what} {} since {:?}", one.label, one.access, one.age);
        }
    }
}
