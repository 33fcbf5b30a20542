//! Stops the daemon in a fixed order and in bounded time, and names each part that hangs.
//!
//! Must never know: why it stops; pools stay as they are in any case.
//!
//! The order:
//!
//! 1. The switch is on and wakes all threads. New requests are refused; waiting ones are answered.
//! 2. The threads that take requests and the watchers end.
//! 3. Requests that have begun run to their end. After 10 s they start no format and no new pool;
//!    requests that have not ended 35 s later get an answer that says so. The early-boot daemon,
//!    from which stratisd takes over, waits longer while a program runs for a request.
//! 4. The workers end.
//! 5. The threads that answer publish the remaining changes and send the remaining answers, wait a
//!    bounded time until clients have taken them, and end.
//! 6. The signal thread ends.
//!
//! A step that takes too long is named in the log. The next steps still follow, except those that
//! need its result.

use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use signal_hook::iterator::Handle;
use threads::{
    group::{Group, Hanging, How, ThreadEnd},
    lock::Observation,
};

use super::{
    dispatch::Dispatcher,
    readiness,
    thread_table::{self, FrontEndThreads, ThreadRow},
};
use crate::platform::Platform;

/// How long requests that have begun may run. After that, those that have not begun to format, or
/// to create a pool, undo their changes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Sent while programs work for requests: the stop takes up to two more minutes (sd_notify(3)).
const EXTEND_STOP: &str = "EXTEND_TIMEOUT_USEC=120000000";
/// How long these requests may take after that. The limit starts again while programs run for them.
/// The longest single step is a format or a repair, which takes seconds. The service manager kills
/// the daemon after 90 s, which have to cover this limit and the two below.
const REQUESTS_LIMIT: Duration = Duration::from_secs(35);
/// How long the threads that answer may take, including the time until the answers are taken, which
/// the front end bounds.
const ANSWERERS_LIMIT: Duration = Duration::from_secs(25);
/// How long threads without work may take to end.
const THREADS_LIMIT: Duration = Duration::from_secs(5);

/// Requests and threads that did not end in time. The process exits without them.
#[derive(Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("cannot stop in order: {}; the log names the locks they hold", self.what())]
pub struct Stuck {
    /// Requests that were still running.
    pub requests: Vec<String>,
    /// Threads that were still running.
    pub threads: Vec<String>,
}

impl Stuck {
    fn what(&self) -> String {
        let stuck = [("requests still running", &self.requests), ("threads still running", &self.threads)];
        let stuck = stuck.into_iter().filter(|(_, names)| !names.is_empty());
        stuck.map(|(what, names)| format!("{what}: {}", some_of(names))).collect::<Vec<_>>().join("; ")
    }
}

/// The first of these names, and the number of the others.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let first = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Stops everything. The switch is already on. Threads that were never started are skipped. With
/// `working`, the limit of the requests does not count while programs run there.
///
/// # Errors
/// Requests and threads that have not ended in time.
pub(super) fn stop<R: Send + 'static>(
    group: &Group,
    front_end: &FrontEndThreads,
    dispatcher: Option<&Dispatcher<R>>,
    working: Option<&dyn Platform>,
    signals: &Handle,
) -> Result<(), Stuck> {
    readiness::tell(readiness::STOPPING);
    let mut stuck = Stuck::default();
    let mut join = |rows: &[ThreadRow], limit| match group.join(&thread_table::names(rows), limit) {
        Ok(()) => {}
        Err(Hanging { names }) => stuck.threads.extend(names),
    };
    let over = dispatcher.map(Dispatcher::stop);
    join(&[front_end.takers, &thread_table::WATCHERS].concat(), THREADS_LIMIT);
    if let (Some(dispatcher), Some(over)) = (dispatcher, over) {
        let is_late = |limit| over.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        if is_late(PATIENCE) {
            let count = dispatcher.unfinished().len();
            log::warn!(
                "{count} requests still run after {} s; formats and new pools that have not begun are cancelled",
                PATIENCE.as_secs()
            );
            dispatcher.hurry();
        }
        // A program that runs has its own limit, by the size of what it works on.
        let works = || working.is_some_and(|platform| platform.running_programs().iter().any(|one| !one.is_stuck));
        let mut late = is_late(REQUESTS_LIMIT);
        while late && works() {
            readiness::tell(EXTEND_STOP);
            late = is_late(REQUESTS_LIMIT);
        }
        if late {
            stuck.requests = dispatcher.unfinished();
            log_locks(&dispatcher.observe());
        }
        dispatcher.close();
    }
    join(&thread_table::RUNNERS, THREADS_LIMIT);
    join(front_end.answerers, ANSWERERS_LIMIT);
    signals.close();
    join(&thread_table::LAST, THREADS_LIMIT);
    for ThreadEnd { name, how } in group.ended().try_iter() {
        match how {
            How::Returned => {}
            How::Failed(why) | How::Panicked(why) => log::error!("thread {name} ended with an error: {why}"),
        }
    }
    if stuck == Stuck::default() { Ok(()) } else { Err(stuck) }
}

/// Logs the holders and waiters of all locks, to find the cause of a hang.
fn log_locks(locks: &Observation) {
    for (what, list) in [("has held", &locks.holders), ("has waited for", &locks.waiters)] {
        for one in list {
            log::error!("{} {what} {} for {:.1?}", one.label, one.access, one.age);
        }
    }
}
