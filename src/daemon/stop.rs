//! How the daemon comes to its end: in one order, in bounded time, with the name of what hangs.
//!
//! Must never know: why it stops; pools stay as they are in any case.
//!
//! The order: the switch is on and wakes everybody; no request is taken any more, and those that wait are answered; the bus
//! reader and the watchers end; requests that have begun go on to their end; after ten seconds no format is begun for them
//! any more, and those that have not ended 35 seconds later are told so; the workers end; the tree writer publishes and
//! answers what is left, has the bus take it, and ends; the signal thread ends. A step that takes too long is named, and
//! the next ones follow all the same, as far as they do not need it.

use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use signal_hook::iterator::Handle;
use threads::{
    group::{Ended, Group, Hanging, How},
    lock::Observation,
};

use super::{dispatch::Dispatcher, readiness, thread_table as names};
use crate::bus::Reply;

/// How long all requests that have begun may go on. After that those that have not begun to format, or to make a pool, take
/// back what they have done.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long they may take after that. The longest single step is a format or a repair, which take seconds; and the
/// service manager loses patience after 90 seconds, of which this and the two below are a part.
const REQUESTS_LIMIT: Duration = Duration::from_secs(35);
/// How long the tree writer may take, at the end of which the bus takes what has been answered ([`crate::bus`] bounds that).
const WRITER_LIMIT: Duration = Duration::from_secs(25);
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
        let told = [("requests under way", &self.requests), ("threads still running", &self.threads)];
        let told = told.into_iter().filter(|(_, names)| !names.is_empty());
        told.map(|(what, names)| format!("{what}: {}", some_of(names))).collect::<Vec<_>>().join("; ")
    }
}

/// Names for a sentence: the first ones, and how many there are.
fn some_of(names: &[String]) -> String {
    const TOLD: usize = 5;
    let first = names.iter().take(TOLD).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(TOLD) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Brings everything to its end. The switch has been turned on. Threads that were never started are passed over.
///
/// # Errors
/// What was still under way when its time was up.
pub(super) fn stop(group: &Group, dispatcher: Option<&Dispatcher<Reply>>, signals: &Handle) -> Result<(), Stuck> {
    readiness::tell(readiness::STOPPING);
    let mut stuck = Stuck::default();
    let mut join = |names: &[&str], limit| match group.join(names, limit) {
        Ok(()) => {}
        Err(Hanging { names }) => stuck.threads.extend(names),
    };
    let over = dispatcher.map(Dispatcher::stop);
    let sources = [names::BUS_READER, names::BUS_LISTER, names::UDEV, names::DM_EVENTS, names::TIMERS];
    join(&sources, THREADS_LIMIT);
    if let (Some(dispatcher), Some(over)) = (dispatcher, over) {
        let is_late = |limit| over.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        if is_late(PATIENCE) {
            log::warn!(
                "{} requests are under way; what they have not begun is given up",
                dispatcher.unfinished().len()
            );
            dispatcher.hurry();
        }
        if is_late(REQUESTS_LIMIT) {
            stuck.requests = dispatcher.unfinished();
            log_locks(&dispatcher.observe());
        }
        dispatcher.close();
    }
    join(&[names::LINKS, names::WORKERS], THREADS_LIMIT);
    join(&[names::TREE_WRITER], WRITER_LIMIT);
    signals.close();
    join(&[names::SIGNALS], THREADS_LIMIT);
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
