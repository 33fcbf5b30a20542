//! The one place that starts threads: names from a fixed list, panics caught, each end reported,
//! joins bounded.
//!
//! Must never know: what the threads do, and what their end means for the program.
//!
//! The order of a stop is the order of the names given to [`Group::join`]. By then each of these
//! threads has been told to end, by a stop or by the end of what it waits on. The join waits for
//! them and names those that do not end.
//!
//! ```
//! use std::time::Duration;
//! use threads::group::{Group, How};
//!
//! let group = Group::new(&["timers", "worker-*"]);
//! group.spawn("worker-1", || Ok(())).expect("the name is on the list");
//! group.spawn("timers", || panic!("a mistake")).expect("the name is on the list");
//! group.join(&["worker-*", "timers"], Duration::from_secs(60)).expect("both end by themselves");
//! let ends: Vec<How> = group.ended().try_iter().map(|ended| ended.how).collect();
//! assert!(ends.contains(&How::Panicked("a mistake".into())));
//! ```

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use thiserror::Error;

use crate::primitives::{Mutex, PlainArc};

/// Longest name of a thread in bytes: the kernel keeps 15 and a zero, and truncates the rest.
pub const NAME_BYTES_MAX: usize = 15;

/// The threads of a program. Clones are the same group.
#[derive(Clone, Debug)]
pub struct Group {
    shared: PlainArc<GroupCore>,
}

/// State shared by the clones. The threads do not keep it alive: each has only the sender for its
/// report.
#[derive(Debug)]
struct GroupCore {
    allowed: Box<[&'static str]>,
    /// Threads that were started and not joined yet, in the order of their start.
    threads: Mutex<Vec<Thread>>,
    /// Unbounded, but holds at most one message for each thread ever started, sent at its end.
    /// Transient threads send one only if they panic.
    ended: (Sender<ThreadEnd>, Receiver<ThreadEnd>),
}

#[derive(Debug)]
struct Thread {
    name: String,
    /// Started by [`Group::spawn_transient`].
    transient: bool,
    /// Disconnected when the thread has nothing left to do but exit: a join after that is quick.
    over: Receiver<std::convert::Infallible>,
    handle: std::thread::JoinHandle<()>,
}

/// The report of a thread's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadEnd {
    /// The thread.
    pub name: String,
    /// How it ended.
    pub how: How,
}

/// How a thread ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Its function returned.
    Returned,
    /// Its function returned this error.
    Failed(String),
    /// Its function panicked with this text.
    Panicked(String),
}

/// Why a thread was not started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The name is not on the group's list.
    #[error("cannot start thread {name:?}: the name is not listed; add it to the list of thread names")]
    NotListed {
        /// The name asked for.
        name: String,
    },
    /// The kernel would cut the name.
    #[error("cannot start thread {name:?}: the name is longer than {NAME_BYTES_MAX} bytes; choose a shorter one")]
    NameTooLong {
        /// The name asked for.
        name: String,
    },
    /// A thread of that name was started and has not been joined.
    #[error("cannot start thread {name:?}: a thread of that name exists; join it first")]
    Exists {
        /// The name asked for.
        name: String,
    },
    /// The system refused.
    #[error("cannot start thread {name:?}; check the limits on tasks and memory")]
    System {
        /// The name asked for.
        name: String,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
}

/// Threads that did not end in time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("still running after the time allowed: {}", names.join(", "))]
pub struct Hanging {
    /// Their names, in the order of the joins.
    pub names: Vec<String>,
}

impl Group {
    /// A group without threads. `names` lists the names that threads may have; a name that ends in
    /// `-*` stands for a family (`worker-*`: `worker-1`, `worker-2` …).
    #[must_use]
    pub fn new(names: &[&'static str]) -> Self {
        let ended = crossbeam_channel::unbounded();
        Self { shared: PlainArc::new(GroupCore { allowed: names.into(), threads: Mutex::new(Vec::new()), ended }) }
    }

    /// Starts a transient thread: one of a family whose threads come and go. Its return is not
    /// reported. Several may have the same name, because one that ends exists a moment longer. A
    /// panic is reported as for other threads.
    ///
    /// # Errors
    /// The name is not allowed or too long, or the system refuses.
    pub fn spawn_transient(&self, name: &str, f: impl FnOnce() + Send + 'static) -> Result<(), SpawnError> {
        // Joins transient threads that have ended; otherwise the list would grow as long as the
        // group lives.
        let ended: Vec<Thread> = {
            let mut threads = self.shared.threads.lock();
            let is_over = |over: &Receiver<_>| over.try_recv() == Err(TryRecvError::Disconnected);
            threads.extract_if(.., |thread| thread.transient && is_over(&thread.over)).collect()
        };
        ended.into_iter().for_each(Thread::join);
        self.start(name, true, move || {
            f();
            Ok(())
        })
    }

    /// Starts a thread. [`Group::ended`] reports how it ends; a panic is caught and reported there
    /// too.
    ///
    /// # Errors
    /// The name is not allowed, too long or in use, or the system refuses.
    pub fn spawn(&self, name: &str, f: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), SpawnError> {
        self.start(name, false, f)
    }

    fn start(
        &self,
        name: &str,
        transient: bool,
        f: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Result<(), SpawnError> {
        let owned = || name.to_owned();
        if !self.shared.allowed.iter().any(|pattern| matches(pattern, name)) {
            return Err(SpawnError::NotListed { name: owned() });
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(SpawnError::NameTooLong { name: owned() });
        }
        // The mutex is held during the start, so that no name is used twice. The new thread does
        // not need the mutex.
        let mut threads = self.shared.threads.lock();
        if threads.iter().any(|thread| thread.name == name && !(thread.transient && transient)) {
            return Err(SpawnError::Exists { name: owned() });
        }
        let (running, over) = crossbeam_channel::bounded(0);
        let reports = self.shared.ended.0.clone();
        let name_inside = owned();
        let body = move || {
            // Caught here, not by the join: a panic must be known when it happens, because it stops
            // the program. Only the owner of the function's data reads it again, so no other code
            // sees it half changed.
            let how = match catch_unwind(AssertUnwindSafe(f)) {
                Ok(Ok(())) => How::Returned,
                Ok(Err(error)) => How::Failed(error),
                Err(panic) => How::Panicked(panic_text(panic.as_ref())),
            };
            log::debug!("thread {name_inside} ended: {how:?}");
            // If the group is gone, no receiver is left for the report. The report is sent before
            // `running` is dropped, so code that has joined the thread finds it.
            if !transient || how != How::Returned {
                let _ = reports.send(ThreadEnd { name: name_inside, how });
            }
            drop(running);
        };
        let handle = std::thread::Builder::new()
            .name(owned())
            .spawn(body)
            .map_err(|source| SpawnError::System { name: owned(), source })?;
        threads.push(Thread { name: owned(), transient, over, handle });
        Ok(())
    }

    /// The channel that reports the end of each thread once. All receivers share the reports, so
    /// use one reader.
    #[must_use]
    pub fn ended(&self) -> Receiver<ThreadEnd> {
        self.shared.ended.1.clone()
    }

    /// Waits for the named threads to end, one after the other in this order, and at most `limit`
    /// for all of them together. A family (`worker-*`) stands for its threads in the order of their
    /// start. Names without a thread are skipped.
    ///
    /// # Errors
    /// Names the threads that did not end in time. They stay in the group and can be joined again.
    pub fn join(&self, names: &[&str], limit: Duration) -> Result<(), Hanging> {
        // One deadline for all of them, so that the whole join is bounded.
        let deadline = Instant::now() + limit;
        let mut hanging = Vec::new();
        for pattern in names {
            for thread in self.take(pattern) {
                // After the deadline this still finds the threads that have ended and joins them;
                // only the others are named.
                if let Err(crossbeam_channel::RecvTimeoutError::Timeout) = thread.over.recv_deadline(deadline) {
                    hanging.push(thread.name.clone());
                    self.shared.threads.lock().push(thread);
                } else {
                    thread.join();
                }
            }
        }
        if hanging.is_empty() { Ok(()) } else { Err(Hanging { names: hanging }) }
    }

    /// Removes the threads of a name or family from the list, so that no wait happens under the
    /// mutex.
    fn take(&self, pattern: &str) -> Vec<Thread> {
        self.shared.threads.lock().extract_if(.., |thread| matches(pattern, &thread.name)).collect()
    }
}

impl Thread {
    /// Joins a thread that has nothing left to do.
    fn join(self) {
        if self.handle.join().is_err() {
            // The body catches all panics except one in the drop of a panic payload.
            log::error!("thread {} ended by a panic outside its function", self.name);
        }
    }
}

/// Whether an item of a list of names covers this name. A family needs the dash, so that `timers*`
/// matches nothing instead of too much.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) if prefix.ends_with('-') => name.len() > prefix.len() && name.starts_with(prefix),
        _ => pattern == name,
    }
}

/// The text of a panic, for people. `panic!` with a literal carries a `&str`, with arguments a
/// `String`. A payload of `panic_any` has no text.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests;
